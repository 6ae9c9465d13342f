//! Descriptors of tables that somebody else owns: what a 64-bit word says, before any judgement.
//!
//! Reading is total. Which levels may hold blocks, how far outputs may reach and what an attribute
//! means is for the walker, who knows the owner's control registers (Arm ARM D8.3).

use crate::granule::{Granule, Level};

/// The type of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorKind {
    /// Bit 0 clear, or the reserved encoding at level 3, which hardware treats the same.
    Invalid,
    /// The next table.
    Table,
    /// A block, or a page at level 3.
    Leaf,
}

/// A 64-bit descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor(u64);

impl Descriptor {
    /// The word, in the endianness of this machine.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The word.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// What it is at `level`.
    pub const fn kind(self, level: Level) -> DescriptorKind {
        match (self.0 & 0b11, level) {
            (0b11, Level::L3) | (0b01, Level::Minus1 | Level::L0 | Level::L1 | Level::L2) => {
                DescriptorKind::Leaf
            }
            (0b11, _) => DescriptorKind::Table,
            _ => DescriptorKind::Invalid,
        }
    }

    /// Output address bits 47 down to those that `level` does not resolve. For a table descriptor,
    /// ask with `Level::L3`: a table is as big as a page.
    pub const fn output(self, level: Level, granule: Granule) -> u64 {
        self.0 & 0x0000_ffff_ffff_ffff & !(granule.level_bytes(level) - 1)
    }

    /// The access flag of a leaf.
    pub const fn accessed(self) -> bool {
        self.0 >> 10 & 1 != 0
    }

    /// The same leaf with the access flag set.
    pub const fn with_accessed(self) -> Self {
        Self(self.0 | 1 << 10)
    }

    /// The contiguous hint of a leaf.
    pub const fn contiguous(self) -> bool {
        self.0 >> 52 & 1 != 0
    }

    /// Stage 2: S2AP\[0\] permits reads, S2AP\[1\] writes.
    pub const fn s2ap(self) -> (bool, bool) {
        (self.0 >> 6 & 1 != 0, self.0 >> 7 & 1 != 0)
    }

    /// Stage 2: XN, bits 54:53; without FEAT_XNX bit 53 is not looked at.
    pub const fn s2xn(self, xnx: bool) -> (bool, bool) {
        let execute_never = self.0 >> 54 & 1 != 0;
        let split = xnx && self.0 >> 53 & 1 != 0;
        // 00 both, 01 EL0 only, 10 neither, 11 EL1 only.
        (!execute_never, execute_never == split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_depends_on_the_level() {
        for level in Level::ALL {
            let page = level == Level::L3;
            assert_eq!(Descriptor::new(0b00).kind(level), DescriptorKind::Invalid);
            assert_eq!(Descriptor::new(0b10).kind(level), DescriptorKind::Invalid);
            let (one, three) = (
                Descriptor::new(0b01).kind(level),
                Descriptor::new(0b11).kind(level),
            );
            let expected = if page {
                (DescriptorKind::Invalid, DescriptorKind::Leaf)
            } else {
                (DescriptorKind::Leaf, DescriptorKind::Table)
            };
            assert_eq!((one, three), expected);
        }
    }

    #[test]
    fn outputs_lose_what_the_level_does_not_resolve() {
        let all = Descriptor::new(u64::MAX);
        assert_eq!(all.output(Level::L3, Granule::K4), 0x0000_ffff_ffff_f000);
        assert_eq!(all.output(Level::L2, Granule::K4), 0x0000_ffff_ffe0_0000);
        assert_eq!(all.output(Level::L3, Granule::K64), 0x0000_ffff_ffff_0000);
    }

    #[test]
    fn stage_2_execute_never() {
        let xn = |bits: u64, xnx| Descriptor::new(bits << 53).s2xn(xnx);
        assert_eq!(
            [0, 1, 2, 3].map(|bits| xn(bits, true)),
            [(true, true), (true, false), (false, false), (false, true)]
        );
        assert_eq!(
            [0, 1, 2, 3].map(|bits| xn(bits, false)),
            [(true, true), (true, true), (false, false), (false, false)]
        );
    }

    #[test]
    fn flags_stand_in_their_places() {
        assert_eq!(Descriptor::new(0).with_accessed().raw(), 0x400);
        assert!(Descriptor::new(1 << 10).accessed() && !Descriptor::new(!(1 << 10)).accessed());
        assert!(Descriptor::new(1 << 52).contiguous() && !Descriptor::new(!(1 << 52)).contiguous());
        assert_eq!(
            (
                Descriptor::new(1 << 6).s2ap(),
                Descriptor::new(1 << 7).s2ap()
            ),
            ((true, false), (false, true))
        );
    }
}
