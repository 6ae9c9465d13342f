//! What a field of an event may be, and how it lies in a word.
//!
//! Each type has a *format*, a few characters that go into the schema and tell any reader how to show
//! the word: `x` hexadecimal, `d` decimal, `b` bytes, `a` an address or none, `f:|a|b|c` flags from bit
//! 0, `e:|a|b|c` one of several from 0.

use umbra_arm64::{Gva, Ipa, L2Ipa, Pa};

/// A value that is a field of an event.
pub trait Word: Copy {
    /// How any reader shows it.
    const FORMAT: &'static str;
    /// The word.
    fn to_word(self) -> u64;
    /// The value of a word, unless no value has that word.
    fn from_word(word: u64) -> Option<Self>;
}

impl Word for u64 {
    const FORMAT: &'static str = "x";
    fn to_word(self) -> u64 {
        self
    }
    fn from_word(word: u64) -> Option<Self> {
        Some(word)
    }
}

impl Word for u32 {
    const FORMAT: &'static str = "d";
    fn to_word(self) -> u64 {
        self.into()
    }
    fn from_word(word: u64) -> Option<Self> {
        word.try_into().ok()
    }
}

impl Word for bool {
    const FORMAT: &'static str = "e:|no|yes";
    fn to_word(self) -> u64 {
        self.into()
    }
    fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Word for Bytes {
    const FORMAT: &'static str = "b";
    fn to_word(self) -> u64 {
        self.0
    }
    fn from_word(word: u64) -> Option<Self> {
        Some(Self(word))
    }
}

/// The word of an address that is not there. No address space has so many bits.
pub(crate) const NO_ADDRESS: u64 = u64::MAX;

macro_rules! addresses {
    ($($space:ident)*) => {
        $(
            impl Word for $space {
                const FORMAT: &'static str = "x";
                fn to_word(self) -> u64 {
                    self.raw()
                }
                fn from_word(word: u64) -> Option<Self> {
                    Some($space::new(word))
                }
            }

            impl Word for Option<$space> {
                const FORMAT: &'static str = "a";
                fn to_word(self) -> u64 {
                    self.map_or(NO_ADDRESS, $space::raw)
                }
                fn from_word(word: u64) -> Option<Self> {
                    Some((word != NO_ADDRESS).then_some($space::new(word)))
                }
            }
        )*
    };
}

addresses! { Gva Ipa L2Ipa Pa }

/// What a mapping allows: bit 0 read, 1 write, 2 fetch at EL0, 3 fetch at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(pub u8);

impl From<umbra_arm64::Rights> for Rights {
    fn from(rights: umbra_arm64::Rights) -> Self {
        let bit = |is: bool, n: u8| u8::from(is) << n;
        Self(
            bit(rights.read, 0)
                | bit(rights.write, 1)
                | bit(rights.exec_el0, 2)
                | bit(rights.exec_el1, 3),
        )
    }
}

impl Word for Rights {
    const FORMAT: &'static str = "f:|r|w|x0|x1";
    fn to_word(self) -> u64 {
        self.0.into()
    }
    fn from_word(word: u64) -> Option<Self> {
        (word < 16).then_some(Self(word as u8))
    }
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$case_doc:meta])* $case:ident $shown:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
            pub enum $name {
                $($(#[$case_doc])* $case,)*
            }

            impl $name {
                /// All of them, by number.
                pub const ALL: &'static [$name] = &[$($name::$case,)*];

                /// The name that readers show.
                pub const fn name(self) -> &'static str {
                    match self {
                        $($name::$case => $shown,)*
                    }
                }
            }

            impl Word for $name {
                const FORMAT: &'static str = concat!("e:", $("|", $shown,)*);
                fn to_word(self) -> u64 {
                    self as u64
                }
                fn from_word(word: u64) -> Option<Self> {
                    Self::ALL.get(usize::try_from(word).ok()?).copied()
                }
            }
        )*
    };
}

choices! {
    /// Why the guest was left (`ARM_EXCEPTION_IRQ`, `_EL1_SERROR`, `_TRAP` of Linux).
    ExitKind {
        /// A physical interrupt.
        Irq "irq",
        /// A physical SError.
        SError "serror",
        /// A trap or an abort: ESR tells.
        Trap "trap",
    }
    /// Whether a device access was answered when it was recorded (`KVM_TRACE_MMIO_*` of Linux).
    MmioKind {
        /// A load that the VMM has to answer.
        ReadUnsatisfied "read-unsatisfied",
        /// A load.
        Read "read",
        /// A store.
        Write "write",
    }
    /// Who answers a device access.
    MmioBy {
        /// The virtual GIC.
        Gic "gic",
        /// An event descriptor (KVM_IOEVENTFD).
        EventFd "ioeventfd",
        /// The VMM.
        Vmm "vmm",
    }
    /// What became of a stage-2 fault.
    Resolution {
        /// A mapping was made or changed.
        Mapped "mapped",
        /// The access flag was set.
        Young "young",
        /// A device access.
        Mmio "mmio",
        /// A device access that hardware does not describe, for the VMM.
        Nisv "nisv",
        /// A cache operation where nothing is: stepped over.
        CacheOpSkipped "cache-op-skipped",
        /// An external abort for the guest.
        ExternalAbort "external-abort",
        /// An address-size fault for the guest.
        AddressSize "address-size",
        /// The memory behind the slot cannot be used: told to the VMM.
        MemoryFault "memory-fault",
        /// The page is poisoned.
        Poison "poison",
        /// A table of umbra's own is broken: dropped, made anew.
        OwnTables "own-tables",
        /// The guest hypervisor's own tables forbid it: reflected to it.
        Reflected "reflected",
        /// Something changed meanwhile: the access happens again.
        Retry "retry",
        /// No memory.
        NoMemory "no-memory",
    }
    /// How an entry of a stage-2 table came to be.
    How {
        /// A load touched it first.
        Load "load",
        /// A store touched it first.
        Store "store",
        /// A fetch touched it first.
        Fetch "fetch",
        /// It was there with fewer rights.
        Permission "permission",
        /// A neighbour's fault brought it along.
        Around "around",
        /// A walk of stage-1 tables touched it first.
        Walk "walk",
    }
    /// Why entries went.
    UnmapReason {
        /// The VMM's own mapping changed (munmap, mprotect, madvise).
        Host "host",
        /// The slot was moved or deleted.
        Slot "slot",
        /// The guest hypervisor's TLB maintenance.
        Tlbi "tlbi",
        /// The memory is broken.
        Poison "poison",
        /// The page is mapped at too many places.
        Crowd "crowd",
        /// Dirty logging or ageing.
        Log "log",
    }
    /// What happens to a shadow table.
    Shadowed {
        /// Made for a context that had none.
        Created "created",
        /// Dropped: the budget was used up.
        OverBudget "over-budget",
        /// Dropped: the memory was wanted.
        Reclaimed "reclaimed",
        /// Dropped with its VM.
        VmGone "vm-gone",
    }
    /// What was injected into a guest.
    Injected {
        /// An instruction that is undefined to it.
        Undefined "undefined",
        /// A synchronous external abort.
        ExternalAbort "external-abort",
        /// An address-size fault.
        AddressSize "address-size",
        /// An unsupported exclusive or atomic access.
        Exclusive "exclusive",
        /// A virtual SError.
        SError "serror",
        /// A hypervisor call of virtual EL2 to itself.
        HypervisorCall "hvc",
        /// An authentication failed (FEAT_FPAC).
        AuthenticationFailure "pac-failure",
    }
    /// What a guest hypervisor takes from below (`enum exception_type` of Linux).
    NestedException {
        /// A synchronous exception.
        Sync "sync",
        /// An interrupt.
        Irq "irq",
        /// An SError.
        SError "serror",
    }
    /// Whose memory a memory error was about.
    Owner {
        /// umbra's: a table, a VNCR page, its own data.
        Host "host",
        /// The guest's.
        Guest "guest",
    }
    /// Which way a memory error went.
    SeaPath {
        /// To the VMM: KVM_EXIT_ARM_SEA.
        Vmm "vmm",
        /// Into the guest, as an SError.
        SError "serror",
        /// Into the guest or its hypervisor, as an external abort.
        ExternalAbort "external-abort",
        /// umbra dropped what was broken and made it anew.
        Healed "healed",
        /// Firmware saw to it.
        Firmware "firmware",
        /// A process got SIGBUS.
        Signal "signal",
        /// The machine stopped.
        Fatal "fatal",
    }
    /// Whether a CPU sleeps.
    IdleState {
        /// It begins to wait.
        Enter "enter",
        /// It goes on.
        Exit "exit",
    }
}
