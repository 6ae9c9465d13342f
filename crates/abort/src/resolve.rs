//! What to do about a stage-2 fault: the decision table, on one page.
//!
//! ```text
//!  slot \ fault      translation        access flag   permission         in every case first
//!  ───────────────────────────────────────────────────────────────────────────────────────────
//!  beyond machine    address-size fault in the guest                     address size: our table
//!  beyond VM         SEA in the guest                                    is broken: OwnTablesBroken
//!  none              fetch, walk: SEA · cache op: skipped · otherwise MMIO
//!  read-only, write  fetch, walk: SEA · otherwise MMIO (cache op: see below)
//!  read-only, read   map read-only      make young    map (exec)
//!  RAM, write to host-read-only memory: told to the VMM
//!  RAM               map                make young    map with the right that was missing
//!  poisoned          the SEA it stands for, whatever the kind
//! ```
//!
//! MMIO with a described instruction leaves as such. Without one it leaves as it is if the VMM asked
//! for that, else it is an SEA in the guest (Linux fails KVM_RUN with ENOSYS: a written difference).
//!
//! A cache operation is reported as a write, but in read-only memory there is nothing to write back:
//! the page is mapped for it like for a read, and if that was not enough it is skipped. (Linux treats it
//! as MMIO without a syndrome: a written difference.)
//!
//! The order is that of Linux's `kvm_handle_guest_abort`, where the order can be seen by a guest.

use umbra_arm64::{Address, Ipa, esr::Access};

use crate::classify::{Stage2Fault, Stage2Kind};

/// What the VM's memory slots, and the memory behind them, say about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Memory.
    Ram {
        /// The VMM itself may write it.
        writable: bool,
    },
    /// Memory that the guest may read; writes are MMIO (KVM_MEM_READONLY).
    ReadOnly,
    /// Memory that is broken and therefore kept unmapped.
    Poisoned,
    /// Nothing.
    None,
    /// Beyond the VM's IPA size, within what the machine could address.
    BeyondVm,
    /// Beyond what the machine can address.
    BeyondMachine,
}

/// What the VMM opted in to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// KVM_CAP_ARM_NISV_TO_USER: aborts without a described instruction leave to the VMM.
    pub nisv_to_user: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Map the page (or the block round it: `mapping_size`) with at least the rights named.
    Map {
        /// Writable now.
        write: bool,
        /// Executable now.
        exec: bool,
        /// Never writable: the slot is read-only, or the memory is.
        read_only: bool,
    },
    /// Set the access flag of the mapping.
    MakeYoung,
    /// A synchronous external abort in the guest.
    InjectSea {
        /// An instruction abort, not a data abort.
        instruction: bool,
        /// On the stage-1 walk: the level is that of the descriptor, found by walking again.
        on_walk: bool,
    },
    /// An address-size fault, level 0, in the guest.
    InjectAddressSize {
        /// An instruction abort, not a data abort.
        instruction: bool,
    },
    /// A device access, described.
    Mmio {
        /// Address, in the VM's own space.
        ipa: Ipa,
        /// The load or store.
        access: Access,
        /// A store.
        write: bool,
    },
    /// A device access that hardware does not describe, for the VMM (KVM_EXIT_ARM_NISV).
    NisvExit {
        /// Address, in the VM's own space.
        ipa: Ipa,
    },
    /// Step over the cache operation.
    SkipCacheOp,
    /// The access hit broken memory: make the abort that it stands for (`Sea::of_poison`).
    ConsumePoison {
        /// A stage-1 descriptor lies there.
        on_walk: bool,
    },
    /// The memory behind the slot cannot be written: told to the VMM (KVM_EXIT_MEMORY_FAULT).
    MemoryFault {
        /// Address, in the VM's own space.
        ipa: Ipa,
    },
    /// Our own table names an output that does not exist: drop the tree and build it anew.
    OwnTablesBroken,
}

/// Decides about a fault on a VM's own stage 2 at `ipa`, which is the fault's own address or what a
/// translation of its virtual address gave.
pub fn resolve_canonical(
    fault: &Stage2Fault<Ipa>,
    ipa: Ipa,
    slot: Slot,
    capabilities: Capabilities,
) -> Action {
    if fault.kind == Stage2Kind::AddressSize {
        return Action::OwnTablesBroken;
    }
    let instruction = fault.instruction;
    match slot {
        Slot::BeyondMachine => Action::InjectAddressSize { instruction },
        Slot::BeyondVm => Action::InjectSea {
            instruction,
            on_walk: fault.s1ptw,
        },
        Slot::None | Slot::Poisoned | Slot::ReadOnly | Slot::Ram { .. } => {
            in_slot(fault, ipa, slot, capabilities)
        }
    }
}

/// What canonical and shadow resolution have in common: the rows of the table below the bounds of
/// the address space. `ipa` is in the VM's own space, the fault's own address need not be.
pub(crate) fn in_slot<A: Address>(
    fault: &Stage2Fault<A>,
    ipa: Ipa,
    slot: Slot,
    capabilities: Capabilities,
) -> Action {
    match slot {
        Slot::BeyondMachine | Slot::BeyondVm | Slot::None => {
            outside_memory(fault, ipa, capabilities)
        }
        Slot::Poisoned => Action::ConsumePoison {
            on_walk: fault.s1ptw,
        },
        Slot::ReadOnly if fault.cache_op => cache_op_on_read_only(fault),
        Slot::ReadOnly if fault.write => outside_memory(fault, ipa, capabilities),
        Slot::ReadOnly => in_memory(fault, true),
        Slot::Ram { writable: false } if fault.cache_op => cache_op_on_read_only(fault),
        Slot::Ram { writable: false } if fault.write => Action::MemoryFault { ipa },
        Slot::Ram { writable } => in_memory(fault, !writable),
    }
}

/// A fault where there is memory that permits the access.
pub(crate) fn in_memory<A: Address>(fault: &Stage2Fault<A>, read_only: bool) -> Action {
    match fault.kind {
        Stage2Kind::AccessFlag => Action::MakeYoung,
        Stage2Kind::Translation | Stage2Kind::Permission => Action::Map {
            write: fault.write && !read_only,
            exec: fault.exec(),
            read_only,
        },
        Stage2Kind::AddressSize => Action::OwnTablesBroken,
    }
}

/// A cache operation where nothing can be written.
pub(crate) fn cache_op_on_read_only<A: Address>(fault: &Stage2Fault<A>) -> Action {
    match fault.kind {
        Stage2Kind::Permission => Action::SkipCacheOp,
        Stage2Kind::Translation | Stage2Kind::AccessFlag | Stage2Kind::AddressSize => {
            in_memory(fault, true)
        }
    }
}

/// An access where there is no memory for it.
pub(crate) fn outside_memory<A: Address>(
    fault: &Stage2Fault<A>,
    ipa: Ipa,
    capabilities: Capabilities,
) -> Action {
    if fault.instruction || fault.s1ptw {
        return Action::InjectSea {
            instruction: fault.instruction,
            on_walk: fault.s1ptw,
        };
    }
    if fault.cache_op {
        return Action::SkipCacheOp;
    }
    match fault.access {
        Some(access) => Action::Mmio {
            ipa,
            access,
            write: fault.write,
        },
        None if capabilities.nisv_to_user => Action::NisvExit { ipa },
        None => Action::InjectSea {
            instruction: false,
            on_walk: false,
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;
    use umbra_arm64::{Gva, Level, esr::AccessSize};

    const IPA: Ipa = Ipa::new(0x900_0018);
    pub(crate) const ACCESS: Access = Access {
        size: AccessSize::Word,
        sign_extend: false,
        register: 7,
        sixty_four: false,
        ordered: false,
    };
    pub(crate) const SLOTS: [Slot; 7] = [
        Slot::Ram { writable: true },
        Slot::Ram { writable: false },
        Slot::ReadOnly,
        Slot::Poisoned,
        Slot::None,
        Slot::BeyondVm,
        Slot::BeyondMachine,
    ];
    const KINDS: [Stage2Kind; 3] = [
        Stage2Kind::Translation,
        Stage2Kind::AccessFlag,
        Stage2Kind::Permission,
    ];
    const NO: Capabilities = Capabilities {
        nisv_to_user: false,
    };
    const NISV: Capabilities = Capabilities { nisv_to_user: true };

    fn load(kind: Stage2Kind) -> Stage2Fault<Ipa> {
        Stage2Fault {
            kind,
            level: Level::L3,
            write: false,
            instruction: false,
            s1ptw: false,
            cache_op: false,
            access: Some(ACCESS),
            gva: Gva::new(0x18),
            address: Some(IPA),
        }
    }

    fn store(kind: Stage2Kind) -> Stage2Fault<Ipa> {
        Stage2Fault {
            write: true,
            ..load(kind)
        }
    }

    fn fetch(kind: Stage2Kind) -> Stage2Fault<Ipa> {
        Stage2Fault {
            instruction: true,
            access: None,
            ..load(kind)
        }
    }

    fn walk(kind: Stage2Kind, instruction: bool) -> Stage2Fault<Ipa> {
        Stage2Fault {
            s1ptw: true,
            instruction,
            access: None,
            write: kind == Stage2Kind::Permission,
            ..load(kind)
        }
    }

    fn cache_op(kind: Stage2Kind) -> Stage2Fault<Ipa> {
        Stage2Fault {
            cache_op: true,
            access: None,
            ..store(kind)
        }
    }

    fn faults() -> Vec<Stage2Fault<Ipa>> {
        let all = |kind| {
            [
                load(kind),
                store(kind),
                fetch(kind),
                walk(kind, false),
                walk(kind, true),
                cache_op(kind),
                Stage2Fault {
                    access: None,
                    ..store(kind)
                },
            ]
        };
        KINDS.into_iter().flat_map(all).collect()
    }

    fn resolve(fault: Stage2Fault<Ipa>, slot: Slot) -> Action {
        resolve_canonical(&fault, IPA, slot, NO)
    }

    #[test]
    fn memory_is_mapped_with_what_was_asked() {
        let ram = Slot::Ram { writable: true };
        for kind in [Stage2Kind::Translation, Stage2Kind::Permission] {
            let map = |write, exec| Action::Map {
                write,
                exec,
                read_only: false,
            };
            assert_eq!(resolve(load(kind), ram), map(false, false));
            assert_eq!(resolve(store(kind), ram), map(true, false));
            assert_eq!(resolve(fetch(kind), ram), map(false, true));
            for instruction in [false, true] {
                let write = kind == Stage2Kind::Permission;
                assert_eq!(
                    resolve(walk(kind, instruction), ram),
                    map(write, false),
                    "a walk is a data access"
                );
            }
        }
    }

    #[test]
    fn an_access_flag_fault_in_memory_only_sets_the_flag() {
        for fault in [load, store, fetch].map(|make| make(Stage2Kind::AccessFlag)) {
            assert_eq!(
                resolve(fault, Slot::Ram { writable: true }),
                Action::MakeYoung
            );
        }
        assert_eq!(
            resolve(load(Stage2Kind::AccessFlag), Slot::ReadOnly),
            Action::MakeYoung
        );
    }

    #[test]
    fn read_only_slots_are_memory_to_readers_and_devices_to_writers() {
        let map = |exec| Action::Map {
            write: false,
            exec,
            read_only: true,
        };
        assert_eq!(
            resolve(load(Stage2Kind::Translation), Slot::ReadOnly),
            map(false)
        );
        assert_eq!(
            resolve(fetch(Stage2Kind::Permission), Slot::ReadOnly),
            map(true)
        );
        for kind in [Stage2Kind::Translation, Stage2Kind::Permission] {
            let mmio = Action::Mmio {
                ipa: IPA,
                access: ACCESS,
                write: true,
            };
            assert_eq!(resolve(store(kind), Slot::ReadOnly), mmio);
        }
        let sea = Action::InjectSea {
            instruction: false,
            on_walk: true,
        };
        assert_eq!(
            resolve(walk(Stage2Kind::Permission, false), Slot::ReadOnly),
            sea
        );
        assert_eq!(
            resolve(walk(Stage2Kind::Translation, false), Slot::ReadOnly),
            map(false)
        );
    }

    #[test]
    fn where_nothing_is() {
        for kind in KINDS {
            let mmio = |write| Action::Mmio {
                ipa: IPA,
                access: ACCESS,
                write,
            };
            assert_eq!(resolve(load(kind), Slot::None), mmio(false));
            assert_eq!(resolve(store(kind), Slot::None), mmio(true));
            assert_eq!(
                resolve(fetch(kind), Slot::None),
                Action::InjectSea {
                    instruction: true,
                    on_walk: false
                }
            );
            for instruction in [false, true] {
                let sea = Action::InjectSea {
                    instruction,
                    on_walk: true,
                };
                assert_eq!(resolve(walk(kind, instruction), Slot::None), sea);
            }
            assert_eq!(resolve(cache_op(kind), Slot::None), Action::SkipCacheOp);
        }
    }

    #[test]
    fn without_a_described_instruction() {
        let bare = Stage2Fault {
            access: None,
            ..load(Stage2Kind::Translation)
        };
        let with = |capabilities| resolve_canonical(&bare, IPA, Slot::None, capabilities);
        assert_eq!(with(NISV), Action::NisvExit { ipa: IPA });
        assert_eq!(
            with(NO),
            Action::InjectSea {
                instruction: false,
                on_walk: false
            }
        );
    }

    #[test]
    fn cache_operations_never_write() {
        for slot in [Slot::ReadOnly, Slot::Ram { writable: false }] {
            let map = Action::Map {
                write: false,
                exec: false,
                read_only: true,
            };
            assert_eq!(resolve(cache_op(Stage2Kind::Translation), slot), map);
            assert_eq!(
                resolve(cache_op(Stage2Kind::Permission), slot),
                Action::SkipCacheOp
            );
        }
    }

    #[test]
    fn the_bounds_of_the_address_space() {
        for fault in faults() {
            let Stage2Fault {
                instruction,
                s1ptw: on_walk,
                ..
            } = fault;
            assert_eq!(
                resolve(fault, Slot::BeyondMachine),
                Action::InjectAddressSize { instruction }
            );
            assert_eq!(
                resolve(fault, Slot::BeyondVm),
                Action::InjectSea {
                    instruction,
                    on_walk
                }
            );
            assert_eq!(
                resolve(fault, Slot::Poisoned),
                Action::ConsumePoison { on_walk }
            );
        }
    }

    #[test]
    fn properties_of_the_whole_table() {
        for fault in faults() {
            for slot in SLOTS {
                for capabilities in [NO, NISV] {
                    let action = resolve_canonical(&fault, IPA, slot, capabilities);
                    let told = std::format!("{fault:?} {slot:?} {action:?}");
                    if let Action::Map {
                        write,
                        exec,
                        read_only,
                    } = action
                    {
                        assert!(!(write && read_only), "{told}");
                        assert!(!write || fault.write, "{told}");
                        assert_eq!(exec, fault.exec(), "{told}");
                        // Whatever is mapped lets the access succeed, or the guest would never get on.
                        assert!(write || !fault.write || fault.cache_op, "{told}");
                        assert!(matches!(slot, Slot::Ram { .. } | Slot::ReadOnly), "{told}");
                    }
                    if matches!(
                        action,
                        Action::Mmio { .. } | Action::NisvExit { .. } | Action::SkipCacheOp
                    ) {
                        assert!(!fault.instruction && !fault.s1ptw, "{told}");
                    }
                    assert!(
                        capabilities.nisv_to_user || !matches!(action, Action::NisvExit { .. }),
                        "{told}"
                    );
                    let broken = Stage2Fault {
                        kind: Stage2Kind::AddressSize,
                        ..fault
                    };
                    assert_eq!(
                        resolve_canonical(&broken, IPA, slot, capabilities),
                        Action::OwnTablesBroken
                    );
                }
            }
        }
    }

    #[test]
    fn memory_that_the_vmm_cannot_write() {
        let slot = Slot::Ram { writable: false };
        assert_eq!(
            resolve(store(Stage2Kind::Permission), slot),
            Action::MemoryFault { ipa: IPA }
        );
        let map = Action::Map {
            write: false,
            exec: false,
            read_only: true,
        };
        assert_eq!(resolve(load(Stage2Kind::Translation), slot), map);
    }
}
