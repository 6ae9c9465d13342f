//! The shape of a table: granule, input size, start level, root.
//!
//! Stage 2 may begin with up to sixteen tables side by side (concatenation, Arm ARM D8.2.2), which
//! saves a level for every common IPA size. Rule used here: start at the deepest level whose root
//! needs at most sixteen tables. It is also what the architecture demands for 4 KiB granules when the
//! machine has 42 or fewer physical address bits, where level 0 does not exist.

use umbra_arm64::{Granule, Level};

/// The shape of one translation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    granule: Granule,
    input_bits: u32,
    start: Level,
    root_tables: usize,
}

impl Geometry {
    /// A stage-2 table for input addresses of `ipa_bits` bits (32 to 48); `None` outside that.
    pub fn stage2(granule: Granule, ipa_bits: u32) -> Option<Self> {
        Self::new(granule, ipa_bits, 16)
    }

    /// A stage-1 table for input addresses of `va_bits` bits (32 to 48); `None` outside that.
    pub fn stage1(granule: Granule, va_bits: u32) -> Option<Self> {
        Self::new(granule, va_bits, 1)
    }

    fn new(granule: Granule, input_bits: u32, most_tables: usize) -> Option<Self> {
        if !(32..=48).contains(&input_bits) {
            return None;
        }
        // From the pages upwards; at 48 bits level 0 always suffices.
        [Level::L2, Level::L1, Level::L0]
            .into_iter()
            .find_map(|start| {
                let table_bits = granule.level_shift(start) + granule.shift() - 3;
                let root_tables = 1usize.checked_shl(input_bits.saturating_sub(table_bits))?;
                (root_tables <= most_tables).then_some(Self {
                    granule,
                    input_bits,
                    start,
                    root_tables,
                })
            })
    }

    /// The granule.
    pub const fn granule(self) -> Granule {
        self.granule
    }

    /// Bits of input address.
    pub const fn input_bits(self) -> u32 {
        self.input_bits
    }

    /// Bytes of input address space.
    pub const fn input_bytes(self) -> u64 {
        1 << self.input_bits
    }

    /// The level of the root.
    pub const fn start(self) -> Level {
        self.start
    }

    /// Tables that make up the root, 1 to 16.
    pub const fn root_tables(self) -> usize {
        self.root_tables
    }

    /// VTCR_EL2.T0SZ, or TCR_EL2.T0SZ.
    pub const fn t0sz(self) -> u64 {
        64 - self.input_bits as u64
    }

    /// VTCR_EL2.SL0 without FEAT_LPA2 (Arm ARM, VTCR_EL2.SL0): the start level, counted down from
    /// 2 for 4 KiB granules and from 3 for the others.
    pub const fn sl0(self) -> u64 {
        let deepest = match self.granule {
            Granule::K4 => 2,
            Granule::K16 | Granule::K64 => 3,
        };
        (deepest - self.start.number()) as u64
    }

    /// VTCR_EL2.TG0, or TCR_EL2.TG0.
    pub const fn tg0(self) -> u64 {
        match self.granule {
            Granule::K4 => 0b00,
            Granule::K64 => 0b01,
            Granule::K16 => 0b10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage2_start_levels_of_the_manual() {
        // (granule, bits, start, tables, SL0), Arm ARM tables of stage-2 concatenation.
        let rows = [
            (Granule::K4, 32, Level::L2, 4, 0),
            (Granule::K4, 34, Level::L2, 16, 0),
            (Granule::K4, 35, Level::L1, 1, 1),
            (Granule::K4, 39, Level::L1, 1, 1),
            (Granule::K4, 40, Level::L1, 2, 1),
            (Granule::K4, 43, Level::L1, 16, 1),
            (Granule::K4, 44, Level::L0, 1, 2),
            (Granule::K4, 48, Level::L0, 1, 2),
            (Granule::K16, 36, Level::L2, 1, 1),
            (Granule::K16, 40, Level::L2, 16, 1),
            (Granule::K16, 48, Level::L1, 2, 2),
            (Granule::K64, 40, Level::L2, 1, 1),
            (Granule::K64, 46, Level::L2, 16, 1),
            (Granule::K64, 48, Level::L1, 1, 2),
        ];
        for (granule, bits, start, tables, sl0) in rows {
            let shape = Geometry::stage2(granule, bits).unwrap();
            assert_eq!(
                (shape.start(), shape.root_tables(), shape.sl0()),
                (start, tables, sl0),
                "{granule:?} {bits}"
            );
        }
    }

    #[test]
    fn stage1_has_one_root_table() {
        for (bits, start) in [
            (32, Level::L1),
            (39, Level::L1),
            (40, Level::L0),
            (48, Level::L0),
        ] {
            let shape = Geometry::stage1(Granule::K4, bits).unwrap();
            assert_eq!((shape.start(), shape.root_tables()), (start, 1));
        }
    }

    #[test]
    fn the_root_covers_the_input_space() {
        for granule in Granule::ALL {
            for bits in 32..=48 {
                for shape in [
                    Geometry::stage1(granule, bits),
                    Geometry::stage2(granule, bits),
                ] {
                    let shape = shape.unwrap();
                    let entries = (shape.root_tables() * granule.entries()) as u128;
                    assert!(
                        entries * granule.level_bytes(shape.start()) as u128
                            >= shape.input_bytes() as u128
                    );
                    assert_eq!(shape.t0sz() + bits as u64, 64);
                }
            }
        }
        assert_eq!(Geometry::stage2(Granule::K4, 31), None);
        assert_eq!(Geometry::stage2(Granule::K4, 49), None);
    }
}
