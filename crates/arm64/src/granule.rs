//! Translation granules and lookup levels of VMSAv8-64 (Arm ARM D8.2).
//!
//! A table of any granule fills exactly one page of that granule, so every level but the first
//! resolves `shift - 3` bits. Everything else here follows from that one fact.

/// A level of a translation table walk: −1 (52-bit input, LPA2) to 3 (pages).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Level −1, only with FEAT_LPA2.
    Minus1,
    /// Level 0.
    L0,
    /// Level 1.
    L1,
    /// Level 2.
    L2,
    /// Level 3, whose leaves are pages.
    L3,
}

impl Level {
    /// All levels, from the root downwards.
    pub const ALL: [Level; 5] = [Level::Minus1, Level::L0, Level::L1, Level::L2, Level::L3];

    /// The level as the manual counts it, −1 to 3.
    pub const fn number(self) -> i8 {
        match self {
            Level::Minus1 => -1,
            Level::L0 => 0,
            Level::L1 => 1,
            Level::L2 => 2,
            Level::L3 => 3,
        }
    }

    /// The level with this number, if there is one.
    pub const fn from_number(number: i8) -> Option<Level> {
        match number {
            -1 => Some(Level::Minus1),
            0 => Some(Level::L0),
            1 => Some(Level::L1),
            2 => Some(Level::L2),
            3 => Some(Level::L3),
            _ => None,
        }
    }

    /// The level that a table descriptor of this level points to.
    pub const fn next(self) -> Option<Level> {
        Level::from_number(self.number() + 1)
    }
}

/// The size of pages and of tables in one translation regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB pages, 512 entries a table.
    K4,
    /// 16 KiB pages, 2048 entries a table.
    K16,
    /// 64 KiB pages, 8192 entries a table.
    K64,
}

impl Granule {
    /// All granules.
    pub const ALL: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

    /// Address bits within a page.
    pub const fn shift(self) -> u32 {
        match self {
            Granule::K4 => 12,
            Granule::K16 => 14,
            Granule::K64 => 16,
        }
    }

    /// Bytes of a page, and of a table.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Entries of a table.
    pub const fn entries(self) -> usize {
        1 << (self.shift() - 3)
    }

    /// Address bits below those that `level` resolves.
    ///
    /// Total: for the levels a granule does not have (64 KiB at −1) it saturates at 63.
    pub const fn level_shift(self, level: Level) -> u32 {
        let below = (3 - level.number()) as u32;
        let shift = self.shift() + below * (self.shift() - 3);
        if shift > 63 { 63 } else { shift }
    }

    /// Bytes of input address that one entry of `level` covers.
    pub const fn level_bytes(self, level: Level) -> u64 {
        1 << self.level_shift(level)
    }

    /// Whether a descriptor at `level` may be a page or block without FEAT_LPA2 (Arm ARM
    /// D8.3.1): 1 GiB and 2 MiB, 32 MiB, 512 MiB.
    pub const fn has_leaf(self, level: Level) -> bool {
        match level {
            Level::L3 | Level::L2 => true,
            Level::L1 => matches!(self, Granule::K4),
            Level::L0 | Level::Minus1 => false,
        }
    }

    /// The level whose leaves are `bytes` big.
    pub fn leaf_level(self, bytes: u64) -> Option<Level> {
        Level::ALL
            .into_iter()
            .find(|level| self.has_leaf(*level) && self.level_bytes(*level) == bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_sizes_are_those_of_the_manual() {
        let sizes = |granule: Granule| {
            Level::ALL.map(|level| {
                if granule.has_leaf(level) {
                    granule.level_bytes(level)
                } else {
                    0
                }
            })
        };
        assert_eq!(sizes(Granule::K4), [0, 0, 1 << 30, 2 << 20, 4 << 10]);
        assert_eq!(sizes(Granule::K16), [0, 0, 0, 32 << 20, 16 << 10]);
        assert_eq!(sizes(Granule::K64), [0, 0, 0, 512 << 20, 64 << 10]);
    }

    #[test]
    fn leaf_level_inverts_level_bytes() {
        for granule in Granule::ALL {
            for level in Level::ALL {
                let found = granule.leaf_level(granule.level_bytes(level));
                assert_eq!(found, granule.has_leaf(level).then_some(level));
            }
            assert_eq!(granule.leaf_level(granule.bytes() * 2), None);
        }
    }

    #[test]
    fn levels_count_from_minus_one_to_three() {
        for (position, level) in Level::ALL.into_iter().enumerate() {
            assert_eq!(level.number(), position as i8 - 1);
            assert_eq!(Level::from_number(level.number()), Some(level));
            assert_eq!(level.next(), Level::ALL.get(position + 1).copied());
        }
        assert_eq!(Level::from_number(-2), None);
        assert_eq!(Level::from_number(4), None);
    }
}
