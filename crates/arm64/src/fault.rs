//! Fault status: the six bits in ESR_ELx and PAR_EL1 that say what went wrong.
//!
//! One table holds every architected code (Arm ARM, ESR_ELx ISS "DFSC" and "IFSC"); both directions
//! are read from it, so they cannot disagree. What is not in it is `Reserved`, never an error:
//! hardware of tomorrow may send it.

use crate::granule::Level;

/// A decoded fault status code. Every six-bit value has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultStatus {
    /// The output of a translation, or a TTBR, lies beyond the physical address size.
    AddressSize(Level),
    /// No mapping.
    Translation(Level),
    /// The access flag is clear.
    AccessFlag(Level),
    /// The mapping forbids the access.
    Permission(Level),
    /// Synchronous external abort of the access itself.
    External,
    /// Synchronous external abort of a translation table walk.
    ExternalOnWalk(Level),
    /// Synchronous parity or ECC error of the access itself; not permitted with FEAT_RAS.
    Parity,
    /// Synchronous parity or ECC error of a translation table walk; not permitted with FEAT_RAS.
    ParityOnWalk(Level),
    /// Memory tagging: synchronous tag check fault.
    TagCheck,
    /// Alignment.
    Alignment,
    /// Granule protection fault of the access itself.
    GranuleProtection,
    /// Granule protection fault of a translation table walk.
    GranuleProtectionOnWalk(Level),
    /// Two TLB entries match.
    TlbConflict,
    /// Hardware could not update a descriptor atomically.
    UnsupportedUpdate,
    /// IMPLEMENTATION DEFINED lockdown fault.
    Lockdown,
    /// Exclusive or atomic access to memory that does not support it.
    UnsupportedExclusive,
    /// A code without a meaning here; the value is that code.
    Reserved(u8),
}

use FaultStatus::*;
use Level::*;

const CODES: [(u8, FaultStatus); 42] = [
    (0b000000, AddressSize(L0)),
    (0b000001, AddressSize(L1)),
    (0b000010, AddressSize(L2)),
    (0b000011, AddressSize(L3)),
    (0b000100, Translation(L0)),
    (0b000101, Translation(L1)),
    (0b000110, Translation(L2)),
    (0b000111, Translation(L3)),
    (0b001000, AccessFlag(L0)),
    (0b001001, AccessFlag(L1)),
    (0b001010, AccessFlag(L2)),
    (0b001011, AccessFlag(L3)),
    (0b001100, Permission(L0)),
    (0b001101, Permission(L1)),
    (0b001110, Permission(L2)),
    (0b001111, Permission(L3)),
    (0b010000, External),
    (0b010001, TagCheck),
    (0b010011, ExternalOnWalk(Minus1)),
    (0b010100, ExternalOnWalk(L0)),
    (0b010101, ExternalOnWalk(L1)),
    (0b010110, ExternalOnWalk(L2)),
    (0b010111, ExternalOnWalk(L3)),
    (0b011000, Parity),
    (0b011011, ParityOnWalk(Minus1)),
    (0b011100, ParityOnWalk(L0)),
    (0b011101, ParityOnWalk(L1)),
    (0b011110, ParityOnWalk(L2)),
    (0b011111, ParityOnWalk(L3)),
    (0b100001, Alignment),
    (0b100011, GranuleProtectionOnWalk(Minus1)),
    (0b100100, GranuleProtectionOnWalk(L0)),
    (0b100101, GranuleProtectionOnWalk(L1)),
    (0b100110, GranuleProtectionOnWalk(L2)),
    (0b100111, GranuleProtectionOnWalk(L3)),
    (0b101000, GranuleProtection),
    (0b101001, AddressSize(Minus1)),
    (0b101011, Translation(Minus1)),
    (0b110000, TlbConflict),
    (0b110001, UnsupportedUpdate),
    (0b110100, Lockdown),
    (0b110101, UnsupportedExclusive),
];

impl FaultStatus {
    /// Decodes the low six bits of `code`.
    pub fn decode(code: u8) -> FaultStatus {
        let code = code & 0x3f;
        CODES
            .iter()
            .find(|(known, _)| *known == code)
            .map_or(Reserved(code), |(_, status)| *status)
    }

    /// The six-bit code. Levels for which the architecture has none (a permission fault at −1)
    /// have none here either: `None`.
    pub fn encode(self) -> Option<u8> {
        match self {
            Reserved(code) => Some(code & 0x3f),
            known => CODES
                .iter()
                .find(|(_, status)| *status == known)
                .map(|(code, _)| *code),
        }
    }

    /// Synchronous external abort in the wide sense: external, parity or ECC, on a walk or not.
    pub const fn is_sea(self) -> bool {
        matches!(
            self,
            External | ExternalOnWalk(_) | Parity | ParityOnWalk(_)
        )
    }

    /// Whether a translation table walk met the fault, and not the access itself.
    pub const fn is_on_walk(self) -> bool {
        matches!(
            self,
            ExternalOnWalk(_) | ParityOnWalk(_) | GranuleProtectionOnWalk(_)
        )
    }

    /// The level of the walk that the code names.
    pub const fn level(self) -> Option<Level> {
        match self {
            AddressSize(level)
            | Translation(level)
            | AccessFlag(level)
            | Permission(level)
            | ExternalOnWalk(level)
            | ParityOnWalk(level)
            | GranuleProtectionOnWalk(level) => Some(level),
            External | Parity | TagCheck | Alignment | GranuleProtection | TlbConflict
            | UnsupportedUpdate | Lockdown | UnsupportedExclusive | Reserved(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_neither_duplicates_nor_disorder() {
        for pair in CODES.windows(2) {
            assert!(pair[0].0 < pair[1].0);
        }
        for (n, (_, status)) in CODES.iter().enumerate() {
            assert!(CODES[..n].iter().all(|(_, other)| other != status));
        }
    }

    #[test]
    fn every_code_round_trips() {
        for code in 0..64 {
            assert_eq!(FaultStatus::decode(code).encode(), Some(code));
            assert_eq!(FaultStatus::decode(code | 0xc0), FaultStatus::decode(code));
        }
        assert_eq!(Permission(Minus1).encode(), None);
    }

    #[test]
    fn families_are_those_of_the_manual() {
        let sea = (0..64).filter(|code| FaultStatus::decode(*code).is_sea());
        // 0x12 (level −2) needs 128-bit descriptors, which nothing here uses.
        let expected = [
            0x10, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
        ];
        assert!(sea.eq(expected));
        assert_eq!(FaultStatus::decode(0x35), UnsupportedExclusive);
        assert_eq!(FaultStatus::decode(0x30), TlbConflict);
        assert_eq!(FaultStatus::decode(0x2b), Translation(Minus1));
        assert_eq!(FaultStatus::decode(0x3f), Reserved(0x3f));
        assert!(!External.is_on_walk() && ExternalOnWalk(L2).is_on_walk());
        assert_eq!(
            (External.level(), ParityOnWalk(L1).level()),
            (None, Some(L1))
        );
    }
}
