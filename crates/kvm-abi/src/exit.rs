//! Why KVM_RUN returned, as a value that is written into the run page and read from it.
//!
//! `write_to` and `read_from` are each other's inverse; a test goes through every kind. A reason
//! that arm64 does not have reads as [`Exit::Unknown`], never as an error.

use crate::run::{self, RunPage};

/// KVM_EXIT_UNKNOWN.
pub const KVM_EXIT_UNKNOWN: u32 = 0;
/// KVM_EXIT_HYPERCALL.
pub const KVM_EXIT_HYPERCALL: u32 = 3;
/// KVM_EXIT_DEBUG.
pub const KVM_EXIT_DEBUG: u32 = 4;
/// KVM_EXIT_MMIO.
pub const KVM_EXIT_MMIO: u32 = 6;
/// KVM_EXIT_FAIL_ENTRY.
pub const KVM_EXIT_FAIL_ENTRY: u32 = 9;
/// KVM_EXIT_INTR: a signal; KVM_RUN answers EINTR.
pub const KVM_EXIT_INTR: u32 = 10;
/// KVM_EXIT_INTERNAL_ERROR.
pub const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
/// KVM_EXIT_SYSTEM_EVENT.
pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
/// KVM_EXIT_ARM_NISV.
pub const KVM_EXIT_ARM_NISV: u32 = 28;
/// KVM_EXIT_DIRTY_RING_FULL.
pub const KVM_EXIT_DIRTY_RING_FULL: u32 = 31;
/// KVM_EXIT_MEMORY_FAULT.
pub const KVM_EXIT_MEMORY_FAULT: u32 = 39;
/// KVM_EXIT_ARM_SEA.
pub const KVM_EXIT_ARM_SEA: u32 = 41;

/// `system_event.type`: the guest asked to be switched off.
pub const KVM_SYSTEM_EVENT_SHUTDOWN: u32 = 1;
/// `system_event.type`: the guest asked for a reset.
pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
/// `system_event.type`: the guest crashed.
pub const KVM_SYSTEM_EVENT_CRASH: u32 = 3;
/// `system_event.type`: a suspended vCPU has a wake-up event.
pub const KVM_SYSTEM_EVENT_WAKEUP: u32 = 4;
/// `system_event.type`: the guest asked to be suspended.
pub const KVM_SYSTEM_EVENT_SUSPEND: u32 = 5;
/// `system_event.flags` of a reset: it was SYSTEM_RESET2.
pub const KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2: u64 = 1 << 0;
/// `system_event.flags` of a shutdown: it was SYSTEM_OFF2.
pub const KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2: u64 = 1 << 0;

/// `internal.suberror`: an instruction could not be emulated.
pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
/// `internal.suberror`: an exit that nothing accounts for.
pub const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: u32 = 4;

/// `hypercall.flags`: SMC, not HVC.
pub const KVM_HYPERCALL_EXIT_SMC: u64 = 1 << 0;
/// `hypercall.flags`: a 16-bit instruction.
pub const KVM_HYPERCALL_EXIT_16BIT: u64 = 1 << 1;

/// `memory_fault.flags`: a private access.
pub const KVM_MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;

/// `arm_sea.flags`: `gpa` is valid.
pub const ARM_SEA_FLAG_GPA_VALID: u64 = 1 << 0;
/// `arm_sea.flags`, umbra's own: the access was made by a guest's guest, and the word behind `gpa`
/// holds its L2 physical address. From the top, where Linux will not meet it soon.
pub const ARM_SEA_FLAG_NESTED: u64 = 1 << 63;

/// `flags` of a KVM_EXIT_DEBUG: `hsr_high` is valid.
pub const KVM_DEBUG_ARCH_HSR_HIGH_VALID: u16 = 1;

/// Why KVM_RUN returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing that this ABI has a name for.
    Unknown {
        /// The raw reason.
        reason: u32,
    },
    /// A firmware call that the VMM's filter asked for.
    Hypercall {
        /// The function id.
        nr: u64,
        /// `KVM_HYPERCALL_EXIT_*`.
        flags: u64,
    },
    /// A debug event for the VMM.
    Debug {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2, for a watchpoint.
        far: u64,
    },
    /// An access outside memory.
    Mmio(MmioExit),
    /// The vCPU could not be entered.
    FailEntry {
        /// Bit 0: this CPU cannot run it.
        reason: u64,
        /// The CPU.
        cpu: u32,
    },
    /// A signal or `immediate_exit`.
    Intr,
    /// A defect on our side.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// Up to three words of detail.
        data: [u64; 3],
        /// How many of them count.
        count: u32,
    },
    /// The guest asked for something that concerns the whole VM.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
        /// `data[0]`.
        flags: u64,
    },
    /// An access outside memory whose syndrome does not describe it.
    ArmNisv {
        /// ISS of ESR_EL2, bits \[24:0\].
        esr_iss: u64,
        /// Guest physical address.
        fault_ipa: u64,
    },
    /// The dirty ring is full.
    DirtyRingFull,
    /// Memory that the VMM must see to.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First byte, guest physical.
        gpa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// A synchronous external abort on the guest's memory.
    ArmSea(ArmSeaExit),
}

/// An access outside memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioExit {
    /// Guest physical address.
    pub phys_addr: u64,
    /// What was written, low byte first; zero beyond `len`, and for a read.
    pub data: [u8; 8],
    /// 1, 2, 4 or 8 bytes.
    pub len: u32,
    /// Whether the guest writes.
    pub is_write: bool,
}

impl MmioExit {
    /// The written value, zero-extended.
    pub const fn value(&self) -> u64 {
        u64::from_le_bytes(self.data)
    }

    /// Writes the exit into the page.
    pub fn write_to(&self, page: &dyn RunPage) {
        page.store_u64(run::MMIO_PHYS_ADDR, self.phys_addr);
        page.store_u64(run::MMIO_DATA, u64::from_le_bytes(self.data).to_le());
        page.store_u32(run::MMIO_LEN, self.len);
        page.store_u8(run::MMIO_IS_WRITE, u8::from(self.is_write));
        page.store_u32(run::EXIT_REASON, KVM_EXIT_MMIO);
    }
}

/// A synchronous external abort on the guest's memory (requirement rows S1, S8–S11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmSeaExit {
    /// The syndrome, only the bits that a VMM may see.
    pub esr: u64,
    /// The guest virtual address, or 0 where the hardware gave none (ESR.FnV).
    pub gva: u64,
    /// The address in the VM's own physical space, where it is known.
    pub gpa: Option<u64>,
    /// The L2 physical address, if a guest's guest made the access.
    pub l2_ipa: Option<u64>,
}

impl ArmSeaExit {
    /// Writes the exit into the page.
    pub fn write_to(&self, page: &dyn RunPage) {
        let gpa_valid = if self.gpa.is_some() {
            ARM_SEA_FLAG_GPA_VALID
        } else {
            0
        };
        let nested = if self.l2_ipa.is_some() {
            ARM_SEA_FLAG_NESTED
        } else {
            0
        };
        page.store_u64(run::ARM_SEA_FLAGS, gpa_valid | nested);
        page.store_u64(run::ARM_SEA_ESR, self.esr);
        page.store_u64(run::ARM_SEA_GVA, self.gva);
        page.store_u64(run::ARM_SEA_GPA, self.gpa.unwrap_or(0));
        page.store_u64(run::ARM_SEA_L2_IPA, self.l2_ipa.unwrap_or(0));
        page.store_u32(run::EXIT_REASON, KVM_EXIT_ARM_SEA);
    }

    fn read_from(page: &dyn RunPage) -> Self {
        let flags = page.load_u64(run::ARM_SEA_FLAGS);
        let when = |flag: u64, offset| (flags & flag != 0).then(|| page.load_u64(offset));
        Self {
            esr: page.load_u64(run::ARM_SEA_ESR),
            gva: page.load_u64(run::ARM_SEA_GVA),
            gpa: when(ARM_SEA_FLAG_GPA_VALID, run::ARM_SEA_GPA),
            l2_ipa: when(ARM_SEA_FLAG_NESTED, run::ARM_SEA_L2_IPA),
        }
    }
}

impl Exit {
    /// The number in `exit_reason`.
    pub const fn reason(&self) -> u32 {
        match self {
            Self::Unknown { reason } => *reason,
            Self::Hypercall { .. } => KVM_EXIT_HYPERCALL,
            Self::Debug { .. } => KVM_EXIT_DEBUG,
            Self::Mmio(_) => KVM_EXIT_MMIO,
            Self::FailEntry { .. } => KVM_EXIT_FAIL_ENTRY,
            Self::Intr => KVM_EXIT_INTR,
            Self::InternalError { .. } => KVM_EXIT_INTERNAL_ERROR,
            Self::SystemEvent { .. } => KVM_EXIT_SYSTEM_EVENT,
            Self::ArmNisv { .. } => KVM_EXIT_ARM_NISV,
            Self::DirtyRingFull => KVM_EXIT_DIRTY_RING_FULL,
            Self::MemoryFault { .. } => KVM_EXIT_MEMORY_FAULT,
            Self::ArmSea(_) => KVM_EXIT_ARM_SEA,
        }
    }

    /// `flags` of the page.
    fn flags(&self) -> u16 {
        match self {
            Self::Debug { .. } => KVM_DEBUG_ARCH_HSR_HIGH_VALID,
            _ => 0,
        }
    }

    /// Writes the exit into the page, its fields before its reason.
    pub fn write_to(&self, page: &dyn RunPage) {
        page.store_u32(run::FLAGS_WORD, u32::from(self.flags()) << 16);
        match *self {
            Self::Unknown { .. } | Self::Intr | Self::DirtyRingFull => {}
            Self::Hypercall { nr, flags } => {
                page.store_u64(run::HYPERCALL_NR, nr);
                page.store_u64(run::HYPERCALL_RET, 0);
                page.store_u64(run::HYPERCALL_FLAGS, flags);
            }
            Self::Debug { esr, far } => {
                page.store_u32(run::DEBUG_HSR, esr as u32);
                page.store_u32(run::DEBUG_HSR_HIGH, (esr >> 32) as u32);
                page.store_u64(run::DEBUG_FAR, far);
            }
            Self::Mmio(mmio) => mmio.write_to(page),
            Self::FailEntry { reason, cpu } => {
                page.store_u64(run::FAIL_ENTRY_REASON, reason);
                page.store_u32(run::FAIL_ENTRY_CPU, cpu);
            }
            Self::InternalError {
                suberror,
                data,
                count,
            } => {
                page.store_u32(run::INTERNAL_SUBERROR, suberror);
                page.store_u32(run::INTERNAL_NDATA, count.min(3));
                for (at, word) in data.into_iter().enumerate() {
                    page.store_u64(run::INTERNAL_DATA + 8 * at, word);
                }
            }
            Self::SystemEvent { kind, flags } => {
                page.store_u32(run::SYSTEM_EVENT_TYPE, kind);
                page.store_u32(run::SYSTEM_EVENT_NDATA, 1);
                page.store_u64(run::SYSTEM_EVENT_DATA, flags);
            }
            Self::ArmNisv { esr_iss, fault_ipa } => {
                page.store_u64(run::ARM_NISV_ESR_ISS, esr_iss);
                page.store_u64(run::ARM_NISV_FAULT_IPA, fault_ipa);
            }
            Self::MemoryFault { flags, gpa, size } => {
                page.store_u64(run::MEMORY_FAULT_FLAGS, flags);
                page.store_u64(run::MEMORY_FAULT_GPA, gpa);
                page.store_u64(run::MEMORY_FAULT_SIZE, size);
            }
            Self::ArmSea(sea) => sea.write_to(page),
        }
        page.store_u32(run::EXIT_REASON, self.reason());
    }

    /// Reads the exit back: the VMM's side.
    pub fn read_from(page: &dyn RunPage) -> Self {
        match page.load_u32(run::EXIT_REASON) {
            KVM_EXIT_HYPERCALL => Self::Hypercall {
                nr: page.load_u64(run::HYPERCALL_NR),
                flags: page.load_u64(run::HYPERCALL_FLAGS),
            },
            KVM_EXIT_DEBUG => Self::Debug {
                esr: u64::from(page.load_u32(run::DEBUG_HSR))
                    | u64::from(page.load_u32(run::DEBUG_HSR_HIGH)) << 32,
                far: page.load_u64(run::DEBUG_FAR),
            },
            KVM_EXIT_MMIO => Self::Mmio(MmioExit {
                phys_addr: page.load_u64(run::MMIO_PHYS_ADDR),
                data: u64::from_le(page.load_u64(run::MMIO_DATA)).to_le_bytes(),
                len: page.load_u32(run::MMIO_LEN),
                is_write: page.load_u8(run::MMIO_IS_WRITE) != 0,
            }),
            KVM_EXIT_FAIL_ENTRY => Self::FailEntry {
                reason: page.load_u64(run::FAIL_ENTRY_REASON),
                cpu: page.load_u32(run::FAIL_ENTRY_CPU),
            },
            KVM_EXIT_INTR => Self::Intr,
            KVM_EXIT_INTERNAL_ERROR => Self::InternalError {
                suberror: page.load_u32(run::INTERNAL_SUBERROR),
                data: core::array::from_fn(|at| page.load_u64(run::INTERNAL_DATA + 8 * at)),
                count: page.load_u32(run::INTERNAL_NDATA),
            },
            KVM_EXIT_SYSTEM_EVENT => Self::SystemEvent {
                kind: page.load_u32(run::SYSTEM_EVENT_TYPE),
                flags: page.load_u64(run::SYSTEM_EVENT_DATA),
            },
            KVM_EXIT_ARM_NISV => Self::ArmNisv {
                esr_iss: page.load_u64(run::ARM_NISV_ESR_ISS),
                fault_ipa: page.load_u64(run::ARM_NISV_FAULT_IPA),
            },
            KVM_EXIT_DIRTY_RING_FULL => Self::DirtyRingFull,
            KVM_EXIT_MEMORY_FAULT => Self::MemoryFault {
                flags: page.load_u64(run::MEMORY_FAULT_FLAGS),
                gpa: page.load_u64(run::MEMORY_FAULT_GPA),
                size: page.load_u64(run::MEMORY_FAULT_SIZE),
            },
            KVM_EXIT_ARM_SEA => Self::ArmSea(ArmSeaExit::read_from(page)),
            reason => Self::Unknown { reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::fake::Page;

    const SEA: ArmSeaExit = ArmSeaExit {
        esr: 0x9200_0010,
        gva: 0xffff_8000_1234_5000,
        gpa: Some(0x4000_1000),
        l2_ipa: None,
    };

    #[test]
    fn every_exit_survives_the_page() {
        let mmio = MmioExit {
            phys_addr: 0x900_0000,
            data: [0x41, 0, 0, 0, 0, 0, 0, 0],
            len: 1,
            is_write: true,
        };
        for exit in [
            Exit::Unknown { reason: 77 },
            Exit::Hypercall {
                nr: 0x8400_0000,
                flags: KVM_HYPERCALL_EXIT_SMC,
            },
            Exit::Debug {
                esr: 0x1_f200_0000,
                far: 5,
            },
            Exit::Mmio(mmio),
            Exit::Mmio(MmioExit {
                data: [0; 8],
                is_write: false,
                len: 8,
                ..mmio
            }),
            Exit::FailEntry { reason: 1, cpu: 3 },
            Exit::Intr,
            Exit::InternalError {
                suberror: 4,
                data: [1, 2, 3],
                count: 2,
            },
            Exit::SystemEvent {
                kind: KVM_SYSTEM_EVENT_RESET,
                flags: 1,
            },
            Exit::ArmNisv {
                esr_iss: 0x45,
                fault_ipa: 0x900_0000,
            },
            Exit::DirtyRingFull,
            Exit::MemoryFault {
                flags: 8,
                gpa: 0x1000,
                size: 0x2000,
            },
            Exit::ArmSea(SEA),
            Exit::ArmSea(ArmSeaExit {
                gpa: None,
                l2_ipa: Some(0x8000_0000),
                ..SEA
            }),
        ] {
            let page = Page::filled(0xff);
            exit.write_to(&page);
            assert_eq!(Exit::read_from(&page), exit);
            assert_eq!(page.load_u32(8), exit.reason());
            assert_eq!(
                page.load_u8(run::IMMEDIATE_EXIT),
                0xff,
                "the VMM's byte is left alone"
            );
        }
    }

    /// The bytes that a VMM written against Linux's header reads.
    #[test]
    fn an_mmio_exit_lies_where_linux_puts_it() {
        let page = Page::filled(0);
        MmioExit {
            phys_addr: 0x0a00_0050,
            data: [1, 2, 3, 4, 0, 0, 0, 0],
            len: 4,
            is_write: true,
        }
        .write_to(&page);
        assert_eq!(page.load_u32(8), 6);
        assert_eq!(page.load_u64(32), 0x0a00_0050);
        assert_eq!(page.load_u32(40), 0x0403_0201);
        assert_eq!(page.load_u32(48), 4);
        assert_eq!(page.load_u8(52), 1);
    }

    #[test]
    fn an_abort_without_an_address_says_so() {
        let page = Page::filled(0xff);
        ArmSeaExit { gpa: None, ..SEA }.write_to(&page);
        assert_eq!(page.load_u32(8), 41);
        assert_eq!(
            (page.load_u64(32), page.load_u64(56), page.load_u64(64)),
            (0, 0, 0)
        );
    }
}
