//! What to do about a stage-2 fault on a shadow: a function of its own, with the rules that it shares
//! with the canonical one (rows N16, N17).
//!
//! ```text
//!  shadow names no output             our table is broken, whatever else (row N13)
//!  the walk of L1's tables faults     reflected, with the walk's kind and level (rows N2, N20, N22)
//!  L1 withholds the right             reflected as a permission fault at its leaf (row N21)
//!  its output is beyond the machine   reflected as an address-size fault at its leaf
//!  its output is beyond the VM        SEA
//!  anything else                      as the same fault at its output would be on the canonical
//!                                     table, which includes the read-only slot (row N18), the cache
//!                                     operation (row N19), MMIO (row N24) and our own access flag,
//!                                     set on the address that faulted (rows N20, N26)
//! ```
//!
//! The guest hypervisor's tables are the kernel's to walk; what the walk gave is an argument, so that
//! the decision is a pure function of what is known.

use umbra_arm64::{FaultKind, GuestFault, Ipa, L2Ipa, Rights, Translation};

use crate::classify::{Stage2Fault, Stage2Kind};
use crate::resolve::{Action, Capabilities, Slot, in_slot};

/// What the access that faulted needs of the guest hypervisor's stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch at EL0.
    FetchEl0,
    /// A fetch at EL1.
    FetchEl1,
    /// The read of a stage-1 descriptor, whatever it was for.
    WalkRead,
    /// The update of a stage-1 descriptor.
    WalkUpdate,
}

impl Wanted {
    /// What `fault`, of an access at EL0 or EL1, was for.
    ///
    /// The access to a stage-1 descriptor is a data access even where a fetch caused it. A cache
    /// operation is reported as a write: it was refused as one only if permission was what it lacked.
    pub const fn of(fault: &Stage2Fault<L2Ipa>, el0: bool) -> Wanted {
        let permission = matches!(fault.kind, Stage2Kind::Permission);
        if fault.s1ptw {
            return if fault.write {
                Wanted::WalkUpdate
            } else {
                Wanted::WalkRead
            };
        }
        if fault.exec() {
            return if el0 {
                Wanted::FetchEl0
            } else {
                Wanted::FetchEl1
            };
        }
        if fault.write && (permission || !fault.cache_op) {
            Wanted::Write
        } else {
            Wanted::Read
        }
    }

    /// Whether `rights` suffice for it (XNX by level included).
    pub const fn is_permitted(self, rights: Rights) -> bool {
        match self {
            Wanted::Read | Wanted::WalkRead => rights.read,
            Wanted::Write => rights.write,
            Wanted::WalkUpdate => rights.read && rights.write,
            Wanted::FetchEl0 => rights.exec_el0,
            Wanted::FetchEl1 => rights.exec_el1,
        }
    }

    /// Whether memory changes.
    pub const fn is_write(self) -> bool {
        matches!(self, Wanted::Write | Wanted::WalkUpdate)
    }
}

/// What to do about a fault on a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowAction {
    /// It is the guest hypervisor's: `crate::reflect`.
    Reflect(GuestFault),
    /// It is ours. Mappings and access flags are made in the shadow, at the address that faulted;
    /// every address named is in the VM's own space.
    Resolve(Action),
}

/// Decides about a fault on a shadow. `walked` is what the walk of the guest hypervisor's tables for
/// [`Wanted::of`] gave, `slot` what lies at its output (of no interest where it failed).
pub fn resolve_shadow(
    fault: &Stage2Fault<L2Ipa>,
    wanted: Wanted,
    walked: Result<&Translation<Ipa>, GuestFault>,
    slot: Slot,
    capabilities: Capabilities,
) -> ShadowAction {
    if fault.kind == Stage2Kind::AddressSize {
        return ShadowAction::Resolve(Action::OwnTablesBroken);
    }
    let translation = match walked {
        Ok(translation) => translation,
        Err(walked) => return ShadowAction::Reflect(walked),
    };
    let theirs = |kind| {
        ShadowAction::Reflect(GuestFault {
            kind,
            level: translation.level,
        })
    };
    if !wanted.is_permitted(translation.rights) {
        return theirs(FaultKind::Permission);
    }
    let fault = Stage2Fault {
        write: wanted.is_write() || fault.write && fault.cache_op,
        ..*fault
    };
    match slot {
        Slot::BeyondMachine => theirs(FaultKind::AddressSize),
        Slot::BeyondVm => ShadowAction::Resolve(Action::InjectSea {
            instruction: fault.instruction,
            on_walk: fault.s1ptw,
        }),
        Slot::None | Slot::Poisoned | Slot::ReadOnly | Slot::Ram { .. } => {
            match in_slot(&fault, translation.output, slot, capabilities) {
                // A cache operation asks for no more than the tables give.
                Action::Map {
                    exec, read_only, ..
                } => ShadowAction::Resolve(Action::Map {
                    write: wanted.is_write() && !read_only,
                    exec,
                    read_only,
                }),
                action => ShadowAction::Resolve(action),
            }
        }
    }
}

/// The rights of a shadow mapping: never more than the guest hypervisor gives and never more than the
/// memory behind it allows.
///
/// `writable`: the slot and the VMM's mapping allow writes. `write_now`: the access that is being
/// resolved is a write; while pages are logged (`logging`) only such a one makes a page writable.
pub const fn shadow_rights(
    theirs: Rights,
    writable: bool,
    logging: bool,
    write_now: bool,
) -> Rights {
    Rights {
        write: theirs.write && writable && (!logging || write_now),
        ..theirs
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::resolve::resolve_canonical;
    use crate::resolve::tests::{ACCESS, SLOTS};
    use std::vec::Vec;
    use umbra_arm64::{Gva, Level};

    const IPA: Ipa = Ipa::new(0x4000_0abc);
    const AT: L2Ipa = L2Ipa::new(0x9_0000_0abc);
    const KINDS: [Stage2Kind; 4] = [
        Stage2Kind::Translation,
        Stage2Kind::AccessFlag,
        Stage2Kind::Permission,
        Stage2Kind::AddressSize,
    ];
    const GUEST_KINDS: [FaultKind; 5] = [
        FaultKind::Translation,
        FaultKind::AccessFlag,
        FaultKind::Permission,
        FaultKind::AddressSize,
        FaultKind::ExternalOnWalk,
    ];

    fn rights() -> impl Iterator<Item = Rights> {
        (0..16u8).map(|n| Rights {
            read: n & 1 != 0,
            write: n & 2 != 0,
            exec_el0: n & 4 != 0,
            exec_el1: n & 8 != 0,
        })
    }

    /// Every fault that classification can produce, and more.
    fn faults() -> Vec<(Stage2Fault<L2Ipa>, bool)> {
        let mut all = Vec::new();
        for kind in KINDS {
            for n in 0..64u8 {
                let bit = |b: u8| n >> b & 1 == 1;
                let fault = Stage2Fault {
                    kind,
                    level: Level::L3,
                    write: bit(0),
                    instruction: bit(1),
                    s1ptw: bit(2),
                    cache_op: bit(3),
                    access: bit(4).then_some(ACCESS),
                    gva: Gva::new(0xabc),
                    address: Some(AT),
                };
                all.push((fault, bit(5)));
            }
        }
        all
    }

    fn translation(rights: Rights, level: Level) -> Translation<Ipa> {
        Translation {
            output: IPA,
            level,
            leaf_bytes: 4096,
            bytes: 4096,
            rights,
            accessed: true,
        }
    }

    fn capabilities() -> [Capabilities; 2] {
        [false, true].map(|nisv_to_user| Capabilities { nisv_to_user })
    }

    /// Calls `check` for the whole input space with a walk that succeeded.
    fn everything(
        mut check: impl FnMut(&Stage2Fault<L2Ipa>, Wanted, &Translation<Ipa>, Slot, Capabilities),
    ) {
        for (fault, el0) in faults() {
            let wanted = Wanted::of(&fault, el0);
            for rights in rights() {
                for level in [Level::L1, Level::L2, Level::L3] {
                    for slot in SLOTS {
                        for capabilities in capabilities() {
                            let walked = translation(rights, level);
                            check(&fault, wanted, &walked, slot, capabilities);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_fault_of_the_walk_is_theirs_whatever_else() {
        for (fault, el0) in faults() {
            for kind in GUEST_KINDS {
                for level in [Level::L0, Level::L3] {
                    for slot in SLOTS {
                        let walked = GuestFault { kind, level };
                        let action = resolve_shadow(
                            &fault,
                            Wanted::of(&fault, el0),
                            Err(walked),
                            slot,
                            Capabilities::default(),
                        );
                        let expected = if fault.kind == Stage2Kind::AddressSize {
                            ShadowAction::Resolve(Action::OwnTablesBroken)
                        } else {
                            ShadowAction::Reflect(walked)
                        };
                        assert_eq!(action, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn an_address_size_fault_on_a_shadow_is_our_own_table() {
        everything(|fault, wanted, walked, slot, capabilities| {
            let action = resolve_shadow(fault, wanted, Ok(walked), slot, capabilities);
            assert_eq!(
                action == ShadowAction::Resolve(Action::OwnTablesBroken),
                fault.kind == Stage2Kind::AddressSize
            );
        });
    }

    #[test]
    fn a_right_that_they_withhold_is_their_fault() {
        everything(|fault, wanted, walked, slot, capabilities| {
            if fault.kind == Stage2Kind::AddressSize {
                return;
            }
            let action = resolve_shadow(fault, wanted, Ok(walked), slot, capabilities);
            let permission = ShadowAction::Reflect(GuestFault {
                kind: FaultKind::Permission,
                level: walked.level,
            });
            assert_eq!(
                action == permission,
                !wanted.is_permitted(walked.rights),
                "{fault:?} {walked:?} {slot:?}"
            );
        });
    }

    #[test]
    fn what_is_ours_is_what_the_canonical_table_would_say() {
        everything(|fault, wanted, walked, slot, capabilities| {
            if fault.kind == Stage2Kind::AddressSize || !wanted.is_permitted(walked.rights) {
                return;
            }
            let action = resolve_shadow(fault, wanted, Ok(walked), slot, capabilities);
            let at_output = Stage2Fault {
                kind: fault.kind,
                level: fault.level,
                write: wanted.is_write() || fault.write && fault.cache_op,
                instruction: fault.instruction,
                s1ptw: fault.s1ptw,
                cache_op: fault.cache_op,
                access: fault.access,
                gva: fault.gva,
                address: Some(IPA),
            };
            let canonical = resolve_canonical(&at_output, IPA, slot, capabilities);
            let told = std::format!("{fault:?} {walked:?} {slot:?} {action:?} {canonical:?}");
            match (slot, action, canonical) {
                (Slot::BeyondMachine, action, _) => assert_eq!(
                    action,
                    ShadowAction::Reflect(GuestFault {
                        kind: FaultKind::AddressSize,
                        level: walked.level
                    }),
                    "{told}"
                ),
                (
                    _,
                    ShadowAction::Resolve(Action::Map {
                        write,
                        exec,
                        read_only,
                    }),
                    Action::Map {
                        exec: canonical_exec,
                        read_only: canonical_read_only,
                        ..
                    },
                ) => {
                    assert_eq!(
                        (exec, read_only),
                        (canonical_exec, canonical_read_only),
                        "{told}"
                    );
                    assert!(!write || walked.rights.write && !read_only, "{told}");
                    // What is mapped lets the access succeed.
                    assert!(write || !wanted.is_write() || fault.cache_op, "{told}");
                }
                (_, ShadowAction::Resolve(action), canonical) => {
                    assert_eq!(action, canonical, "{told}");
                }
                (_, ShadowAction::Reflect(_), _) => panic!("{told}"),
            }
        });
    }

    #[test]
    fn what_an_access_is_for() {
        let fault = |kind, write, instruction, s1ptw, cache_op| Stage2Fault {
            kind,
            write,
            instruction,
            s1ptw,
            cache_op,
            ..faults()[0].0
        };
        let (missing, forbidden) = (Stage2Kind::Translation, Stage2Kind::Permission);
        for el0 in [false, true] {
            let of = |fault| Wanted::of(&fault, el0);
            let fetch = if el0 {
                Wanted::FetchEl0
            } else {
                Wanted::FetchEl1
            };
            assert_eq!(of(fault(missing, false, true, false, false)), fetch);
            assert_eq!(of(fault(missing, false, false, false, false)), Wanted::Read);
            assert_eq!(of(fault(missing, true, false, false, false)), Wanted::Write);
            // The walk for a fetch is a data access ([BR5] of the notes on Linux).
            for instruction in [false, true] {
                let read = fault(missing, false, instruction, true, false);
                let update = fault(forbidden, true, instruction, true, false);
                assert_eq!(
                    (of(read), of(update)),
                    (Wanted::WalkRead, Wanted::WalkUpdate)
                );
            }
            // DC CVAC where nothing is mapped needs no right to write; DC IVAC does.
            assert_eq!(of(fault(missing, true, false, false, true)), Wanted::Read);
            assert_eq!(
                of(fault(forbidden, true, false, false, true)),
                Wanted::Write
            );
        }
    }

    #[test]
    fn permissions_by_access() {
        for rights in rights() {
            let permitted = |wanted: Wanted| wanted.is_permitted(rights);
            assert_eq!(permitted(Wanted::Read), rights.read);
            assert_eq!(permitted(Wanted::WalkRead), rights.read);
            assert_eq!(permitted(Wanted::Write), rights.write);
            assert_eq!(permitted(Wanted::WalkUpdate), rights.read && rights.write);
            assert_eq!(permitted(Wanted::FetchEl0), rights.exec_el0);
            assert_eq!(permitted(Wanted::FetchEl1), rights.exec_el1);
        }
    }

    #[test]
    fn a_shadow_never_gives_more() {
        for theirs in rights() {
            for n in 0..8u8 {
                let (writable, logging, write_now) = (n & 1 != 0, n & 2 != 0, n & 4 != 0);
                let given = shadow_rights(theirs, writable, logging, write_now);
                assert!(theirs.covers(given));
                assert!(writable || !given.write);
                assert!(!logging || write_now || !given.write);
                let bounded = !writable || logging && !write_now;
                assert!(bounded || given == theirs, "nothing else is taken away");
            }
        }
    }
}
