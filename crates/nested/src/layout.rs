//! Where the addresses stand in a descriptor and in a table base register.
//!
//! There are three forms, chosen by granule, features and the DS bit (Arm ARM D8.3.1):
//!
//! ```text
//!            [51:50] of the output   [49:48]            block at
//!   Narrow   –                       –                  1 (4K) 2
//!   Lpa      descriptor [15:14]      descriptor [13:12] 1 2          64 KiB, FEAT_LPA
//!   Ds       descriptor [9:8]        descriptor [49:48] 0 1 2 / 1 2  4 / 16 KiB, FEAT_LPA2, DS=1
//! ```
//!
//! Nothing here judges an address: whether it is in range is the walk's business.

use umbra_arm64::{Descriptor, DescriptorKind, Granule, Level};

use crate::features::{Features, Support};

/// How output addresses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Narrow,
    Lpa,
    Ds,
}

/// The shape of the tables of one stage of one regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) granule: Granule,
    pub(crate) form: Form,
}

/// Bits `high` down to `low` of `word`, in place at the bottom.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// The lowest `count` bits set; all of them from 64 on.
pub(crate) const fn ones(count: u32) -> u64 {
    match 1u64.checked_shl(count) {
        Some(bit) => bit - 1,
        None => u64::MAX,
    }
}

impl Layout {
    /// The form of tables of `granule`, supported as `support` says, where the register has `ds`.
    pub(crate) fn new(granule: Granule, support: Support, ds: bool, features: &Features) -> Layout {
        let form = match (granule, support) {
            (Granule::K64, _) if features.lpa() => Form::Lpa,
            (Granule::K4 | Granule::K16, Support::Lpa2) if ds => Form::Ds,
            _ => Form::Narrow,
        };
        Layout { granule, form }
    }

    /// Whether the DS bit is there and set.
    pub(crate) fn ds(self) -> bool {
        self.form == Form::Ds
    }

    /// Input address bits that a table of this granule resolves.
    pub(crate) const fn stride(self) -> u32 {
        self.granule.shift() - 3
    }

    /// Address bits 51:48 of a descriptor's output, in place.
    fn high(self, descriptor: Descriptor) -> u64 {
        let raw = descriptor.raw();
        match self.form {
            Form::Narrow => 0,
            Form::Lpa => bits(raw, 15, 12) << 48,
            Form::Ds => bits(raw, 9, 8) << 50 | bits(raw, 49, 48) << 48,
        }
    }

    /// The table that a table descriptor points to.
    pub(crate) fn table(self, descriptor: Descriptor) -> u64 {
        descriptor.output(Level::L3, self.granule) | self.high(descriptor)
    }

    /// The first byte that a leaf at `level` maps to.
    pub(crate) fn leaf(self, descriptor: Descriptor, level: Level) -> u64 {
        descriptor.output(level, self.granule) | self.high(descriptor)
    }

    /// What `descriptor` is at `level`; a block where none may be is invalid.
    pub(crate) fn kind(self, descriptor: Descriptor, level: Level) -> DescriptorKind {
        match descriptor.kind(level) {
            DescriptorKind::Leaf if !self.has_leaf(level) => DescriptorKind::Invalid,
            kind => kind,
        }
    }

    fn has_leaf(self, level: Level) -> bool {
        self.granule.has_leaf(level)
            || match (self.form, self.granule) {
                (Form::Narrow, _) => false,
                (Form::Ds, Granule::K4) => level == Level::L0,
                (Form::Ds | Form::Lpa, _) => level == Level::L1,
            }
    }

    /// Bytes that a leaf at `level` with the contiguous hint and its neighbours map. `None` where
    /// the hint has no meaning (Arm ARM D8.6.1).
    pub(crate) fn contiguous_bytes(self, level: Level) -> Option<u64> {
        let entries_log2 = match (self.granule, level) {
            (Granule::K4, Level::L1 | Level::L2 | Level::L3) => 4,
            (Granule::K16, Level::L2) => 5,
            (Granule::K16, Level::L3) => 7,
            (Granule::K64, Level::L2 | Level::L3) => 5,
            _ => return None,
        };
        Some(self.granule.level_bytes(level) << entries_log2)
    }

    /// The table that a base register points to, `table_bits` being the logarithm of its size in
    /// bytes. `wide_output` says that the PS or IPS field holds the encoding of 52 bits.
    pub(crate) fn base(self, register: u64, table_bits: u32, wide_output: bool) -> u64 {
        let wide = self.form == Form::Ds || self.form == Form::Lpa && wide_output;
        let address = if wide {
            bits(register, 47, 6) << 6 | bits(register, 5, 2) << 48
        } else {
            bits(register, 47, 1) << 1
        };
        address & !ones(table_bits)
    }

    /// Byte offset of the entry for `input` in a table at `level`. The start table (`start`) may
    /// have fewer entries than others, or more, concatenated; `input` must be cut to its size.
    pub(crate) fn entry_offset(self, input: u64, level: Level, start: bool) -> u64 {
        let index = input >> self.granule.level_shift(level);
        let index = if start {
            index
        } else {
            index & ones(self.stride())
        };
        index << 3
    }

    /// Logarithm of the size in bytes of the start table, for an input of `input_bits` bits that
    /// is resolved from `start` on: 8 bytes an entry.
    pub(crate) fn start_table_bits(self, input_bits: u32, start: Level) -> u32 {
        input_bits.saturating_sub(self.granule.level_shift(start)) + 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(granule: Granule, form: Form) -> Layout {
        Layout { granule, form }
    }

    #[test]
    fn high_address_bits_stand_where_the_form_puts_them() {
        let page = |raw, granule, form| layout(granule, form).leaf(Descriptor::new(raw), Level::L3);
        let all = 0x0003_0000_0000_f300;
        assert_eq!(page(all, Granule::K64, Form::Narrow), 0);
        assert_eq!(page(all, Granule::K64, Form::Lpa), 0x000f_0000_0000_0000);
        assert_eq!(page(all, Granule::K4, Form::Ds), 0x000f_0000_0000_f000);
        assert_eq!(page(0x200, Granule::K4, Form::Ds), 1 << 51);
        assert_eq!(page(1 << 48, Granule::K16, Form::Ds), 1 << 48);
        assert_eq!(page(1 << 15, Granule::K64, Form::Lpa), 1 << 51);
    }

    #[test]
    fn blocks_are_where_the_manual_has_them() {
        let levels = |granule, form| {
            Level::ALL.map(|level| {
                layout(granule, form).kind(Descriptor::new(0b01), level) == DescriptorKind::Leaf
            })
        };
        let (no, yes) = (false, true);
        assert_eq!(
            levels(Granule::K4, Form::Narrow),
            [no, no, yes, yes, no],
            "0b01 is reserved at level 3"
        );
        assert_eq!(levels(Granule::K4, Form::Ds), [no, yes, yes, yes, no]);
        assert_eq!(levels(Granule::K16, Form::Narrow), [no, no, no, yes, no]);
        assert_eq!(levels(Granule::K16, Form::Ds), [no, no, yes, yes, no]);
        assert_eq!(levels(Granule::K64, Form::Narrow), [no, no, no, yes, no]);
        assert_eq!(levels(Granule::K64, Form::Lpa), [no, no, yes, yes, no]);
    }

    #[test]
    fn contiguous_sizes_are_those_of_the_manual() {
        let sizes =
            |granule| Level::ALL.map(|level| layout(granule, Form::Ds).contiguous_bytes(level));
        assert_eq!(
            sizes(Granule::K4),
            [None, None, Some(16 << 30), Some(32 << 20), Some(64 << 10)]
        );
        assert_eq!(
            sizes(Granule::K16),
            [None, None, None, Some(1 << 30), Some(2 << 20)]
        );
        assert_eq!(
            sizes(Granule::K64),
            [None, None, None, Some(16 << 30), Some(2 << 20)]
        );
    }

    #[test]
    fn a_base_register_is_cut_to_the_size_of_its_table() {
        let narrow = layout(Granule::K4, Form::Narrow);
        assert_eq!(narrow.base(u64::MAX, 12, true), 0x0000_ffff_ffff_f000);
        assert_eq!(narrow.base(u64::MAX, 4, true), 0x0000_ffff_ffff_fff0);
        let ds = layout(Granule::K4, Form::Ds);
        assert_eq!(ds.base(u64::MAX, 4, false), 0x000f_ffff_ffff_ffc0);
        let lpa = layout(Granule::K64, Form::Lpa);
        assert_eq!(lpa.base(u64::MAX, 16, true), 0x000f_ffff_ffff_0000);
        assert_eq!(lpa.base(u64::MAX, 16, false), 0x0000_ffff_ffff_0000);
    }

    #[test]
    fn only_the_start_table_has_more_entries_than_a_page_holds() {
        let layout = layout(Granule::K4, Form::Narrow);
        let input = (1 << 40) - 1;
        assert_eq!(layout.entry_offset(input, Level::L1, true), 1023 * 8);
        assert_eq!(layout.entry_offset(input, Level::L1, false), 511 * 8);
        assert_eq!(layout.start_table_bits(40, Level::L1), 13);
    }
}
