//! Why a walk stopped short of a translation.
//!
//! What the owner of the tables is told ([`GuestFault`]) is kept apart from what umbra has to do
//! first: bring a page in, or let another CPU finish changing a descriptor.

use umbra_arm64::{FaultKind, GuestFault, Ipa, L2Ipa, Level};

use crate::memory::MemoryError;

/// A walk has to be done again: nothing was decided. The vCPU may simply be re-entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Again {
    /// The word at this address is not there yet ([`MemoryError::Retry`]).
    Memory(Ipa),
    /// Somebody changed the descriptor under each of several attempts to mark it.
    Contended,
}

/// Why a walk of one stage stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The tables say so.
    Fault(GuestFault),
    /// The descriptor at `at` could not be read, or not be marked.
    Memory {
        /// Where it is, in the VM's own space.
        at: Ipa,
        /// The level of the table it stands in.
        level: Level,
        /// Why.
        error: MemoryError,
    },
    /// Somebody changed the descriptor under each of several attempts to mark it.
    Contended,
}

impl Stop {
    /// The fault to tell the owner of the tables, or what has to happen first. A descriptor that
    /// cannot be reached is an external abort on the walk, whatever the reason.
    pub const fn fault(self) -> Result<GuestFault, Again> {
        match self {
            Stop::Fault(fault) => Ok(fault),
            Stop::Memory { at, level, error } => match error {
                MemoryError::NotMapped | MemoryError::ReadOnly | MemoryError::Poisoned => {
                    Ok(GuestFault {
                        kind: FaultKind::ExternalOnWalk,
                        level,
                    })
                }
                MemoryError::Retry => Err(Again::Memory(at)),
            },
            Stop::Contended => Err(Again::Contended),
        }
    }

    /// The address of a poisoned descriptor: the page that a memory error is to be reported for.
    pub const fn poisoned(self) -> Option<Ipa> {
        match self {
            Stop::Memory {
                at,
                error: MemoryError::Poisoned,
                ..
            } => Some(at),
            _ => None,
        }
    }
}

impl From<GuestFault> for Stop {
    fn from(fault: GuestFault) -> Stop {
        Stop::Fault(fault)
    }
}

/// Why a walk of stage 1, whose tables may lie behind stage 2, stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop1 {
    /// Stage 1 itself.
    Stage1(Stop),
    /// Stage 2, on the way to a descriptor of stage 1 (ESR_ELx.S1PTW).
    Stage2 {
        /// What stage 2 said.
        stop: Stop,
        /// The descriptor's address: HPFAR_EL2 names its page.
        ipa: L2Ipa,
        /// The level of stage 1 whose descriptor it is.
        level: Level,
    },
}

impl From<Stop> for Stop1 {
    fn from(stop: Stop) -> Stop1 {
        Stop1::Stage1(stop)
    }
}

impl From<GuestFault> for Stop1 {
    fn from(fault: GuestFault) -> Stop1 {
        Stop1::Stage1(Stop::Fault(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        let at = Ipa::new(0x8000_0008);
        let stop = |error| Stop::Memory {
            at,
            level: Level::L2,
            error,
        };
        let external = Ok(GuestFault {
            kind: FaultKind::ExternalOnWalk,
            level: Level::L2,
        });
        assert_eq!(stop(MemoryError::NotMapped).fault(), external);
        assert_eq!(stop(MemoryError::ReadOnly).fault(), external);
        assert_eq!(stop(MemoryError::Poisoned).fault(), external);
        assert_eq!(stop(MemoryError::Retry).fault(), Err(Again::Memory(at)));
        assert_eq!(Stop::Contended.fault(), Err(Again::Contended));
    }

    #[test]
    fn a_poisoned_descriptor_is_named() {
        let at = Ipa::new(0x1000);
        let level = Level::L1;
        let stop = |error| Stop::Memory { at, level, error };
        assert_eq!(stop(MemoryError::Poisoned).poisoned(), Some(at));
        assert_eq!(stop(MemoryError::NotMapped).poisoned(), None);
        assert_eq!(Stop::Contended.poisoned(), None);
    }
}
