//! What a translation yields: success and fault are different types.
//!
//! Shared by the walkers of guest-owned tables, the table engine and the abort decisions. There is
//! no "default" translation with all rights: a translation exists only where a walk made one.

use crate::{addr::Address, fault::FaultStatus, granule::Level};

/// What may be done through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Rights {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Fetches at EL0.
    pub exec_el0: bool,
    /// Fetches at EL1. (For a process under EL2 always false: EL2 never runs a user page.)
    pub exec_el1: bool,
}

impl Rights {
    /// No access at all.
    pub const NONE: Rights = Rights {
        read: false,
        write: false,
        exec_el0: false,
        exec_el1: false,
    };
    /// Loads only.
    pub const READ: Rights = Rights {
        read: true,
        ..Rights::NONE
    };
    /// Loads and stores.
    pub const READ_WRITE: Rights = Rights {
        write: true,
        ..Rights::READ
    };
    /// Everything.
    pub const ALL: Rights = Rights {
        exec_el0: true,
        exec_el1: true,
        ..Rights::READ_WRITE
    };

    /// Whether everything that `other` allows is allowed here too.
    pub const fn covers(self, other: Rights) -> bool {
        (self.read || !other.read)
            && (self.write || !other.write)
            && (self.exec_el0 || !other.exec_el0)
            && (self.exec_el1 || !other.exec_el1)
    }

    /// What both allow.
    pub const fn and(self, other: Rights) -> Rights {
        Rights {
            read: self.read && other.read,
            write: self.write && other.write,
            exec_el0: self.exec_el0 && other.exec_el0,
            exec_el1: self.exec_el1 && other.exec_el1,
        }
    }
}

/// A successful walk of tables whose output is an address of type `A`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A> {
    /// The output for the input address that was asked about, its offset in the page included.
    pub output: A,
    /// Level of the leaf.
    pub level: Level,
    /// Bytes the leaf maps, the contiguous hint not counted.
    pub leaf_bytes: u64,
    /// Bytes the leaf and its contiguous neighbours map: `leaf_bytes` without the hint.
    pub bytes: u64,
    /// What the tables permit.
    pub rights: Rights,
    /// The access flag, as it is after the walk.
    pub accessed: bool,
}

impl<A: Address> Translation<A> {
    /// Whether the contiguous hint was set.
    pub const fn is_contiguous(&self) -> bool {
        self.bytes != self.leaf_bytes
    }
}

/// Why a walk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No mapping, or an input beyond the input size (level 0 or the start level).
    Translation,
    /// The access flag is clear and nobody sets it.
    AccessFlag,
    /// The mapping forbids the access.
    Permission,
    /// An output beyond the physical address size.
    AddressSize,
    /// A descriptor could not be read: an external abort on the walk.
    ExternalOnWalk,
}

/// The fault that a walk of a guest's tables ends in: what its owner is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestFault {
    /// What.
    pub kind: FaultKind,
    /// At which level of the walk.
    pub level: Level,
}

impl GuestFault {
    /// The fault status to report for it.
    pub const fn status(self) -> FaultStatus {
        match self.kind {
            FaultKind::Translation => FaultStatus::Translation(self.level),
            FaultKind::AccessFlag => FaultStatus::AccessFlag(self.level),
            FaultKind::Permission => FaultStatus::Permission(self.level),
            FaultKind::AddressSize => FaultStatus::AddressSize(self.level),
            FaultKind::ExternalOnWalk => FaultStatus::ExternalOnWalk(self.level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Rights> {
        (0..16u8).map(|n| Rights {
            read: n & 1 != 0,
            write: n & 2 != 0,
            exec_el0: n & 4 != 0,
            exec_el1: n & 8 != 0,
        })
    }

    #[test]
    fn rights_are_a_lattice() {
        for a in all() {
            assert!(a.covers(Rights::NONE) && Rights::ALL.covers(a) && a.covers(a));
            for b in all() {
                assert!(a.covers(a.and(b)) && b.covers(a.and(b)));
                assert_eq!(a.covers(b), a.and(b) == b);
                assert_eq!(a.covers(b) && b.covers(a), a == b);
            }
        }
    }

    #[test]
    fn a_fault_keeps_its_level_in_the_status() {
        let kinds = [
            (FaultKind::AddressSize, 0x00),
            (FaultKind::Translation, 0x04),
            (FaultKind::AccessFlag, 0x08),
            (FaultKind::Permission, 0x0c),
            (FaultKind::ExternalOnWalk, 0x14),
        ];
        for (kind, base) in kinds {
            for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
                let code = GuestFault { kind, level }.status().encode();
                assert_eq!(code, Some(base + level.number() as u8));
            }
        }
    }
}
