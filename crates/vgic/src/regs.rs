//! The register map as tables: where each register is, and with which sizes it may be accessed (IHI 0069, "The GIC Distributor
//! register map", "… Redistributor register map"). A test walks them for overlaps and gaps.

use crate::banks::Bank;

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    /// Reads as zero, ignores writes: not implemented, or RES0 with DS = ARE = 1.
    Zero,
    GicdCtlr,
    GicdTyper,
    /// GICD_IIDR and GICR_IIDR.
    Iidr,
    GicdTyper2,
    Irouter,
    Pidr2,
    GicrTyper,
    GicrCtlr,
    Propbaser,
    Pendbaser,
    Bank(Bank),
}

/// Access sizes a region allows, naturally aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sizes {
    Word,
    ByteOrWord,
    WordOrDouble,
}

/// `len` bytes from `start` of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) start: u32,
    pub(crate) len: u32,
    pub(crate) sizes: Sizes,
    pub(crate) reg: Reg,
}

impl Region {
    /// Whether an access of `len` bytes at `offset`, which is in the region, has a size and alignment it allows.
    pub(crate) fn allows(&self, offset: u32, len: u8) -> bool {
        let size = match self.sizes {
            Sizes::Word => len == 4,
            Sizes::ByteOrWord => len == 1 || len == 4,
            Sizes::WordOrDouble => len == 4 || len == 8,
        };
        size && offset.is_multiple_of(u32::from(len))
    }
}

const fn at(start: u32, len: u32, sizes: Sizes, reg: Reg) -> Region {
    Region {
        start,
        len,
        sizes,
        reg,
    }
}

use Sizes::{ByteOrWord, Word, WordOrDouble};

/// GICD_*, ascending.
pub(crate) const DIST: &[Region] = &[
    at(0x0000, 0x004, Word, Reg::GicdCtlr),
    at(0x0004, 0x004, Word, Reg::GicdTyper),
    at(0x0008, 0x004, Word, Reg::Iidr),
    at(0x000c, 0x004, Word, Reg::GicdTyper2),
    at(0x0010, 0x004, Word, Reg::Zero), // GICD_STATUSR
    at(0x0080, 0x080, Word, Reg::Bank(Bank::Group)),
    at(0x0100, 0x080, Word, Reg::Bank(Bank::SetEnable)),
    at(0x0180, 0x080, Word, Reg::Bank(Bank::ClearEnable)),
    at(0x0200, 0x080, Word, Reg::Bank(Bank::SetPending)),
    at(0x0280, 0x080, Word, Reg::Bank(Bank::ClearPending)),
    at(0x0300, 0x080, Word, Reg::Bank(Bank::SetActive)),
    at(0x0380, 0x080, Word, Reg::Bank(Bank::ClearActive)),
    at(0x0400, 0x400, ByteOrWord, Reg::Bank(Bank::Priority)),
    at(0x0800, 0x400, ByteOrWord, Reg::Zero), // GICD_ITARGETSR<n>
    at(0x0c00, 0x100, Word, Reg::Bank(Bank::Config)),
    at(0x0d00, 0x080, Word, Reg::Zero),       // GICD_IGRPMODR<n>
    at(0x0e00, 0x100, Word, Reg::Zero),       // GICD_NSACR<n>
    at(0x0f00, 0x004, Word, Reg::Zero),       // GICD_SGIR
    at(0x0f10, 0x020, ByteOrWord, Reg::Zero), // GICD_CPENDSGIR<n>, GICD_SPENDSGIR<n>
    at(0x6000, 0x2000, WordOrDouble, Reg::Irouter),
    at(0xffd0, 0x018, Word, Reg::Zero), // identification, but for:
    at(0xffe8, 0x004, Word, Reg::Pidr2),
    at(0xffec, 0x014, Word, Reg::Zero),
];

/// GICR_* of RD_base, ascending. Without an ITS, GICR_CTLR has nothing to enable and the tables have no base.
pub(crate) const RD: &[Region] = &[
    at(0x0000, 0x004, Word, Reg::GicrCtlr),
    at(0x0004, 0x004, Word, Reg::Iidr),
    at(0x0008, 0x008, WordOrDouble, Reg::GicrTyper),
    at(0x0010, 0x004, Word, Reg::Zero),         // GICR_STATUSR
    at(0x0014, 0x004, Word, Reg::Zero),         // GICR_WAKER: always awake
    at(0x0040, 0x010, WordOrDouble, Reg::Zero), // GICR_SETLPIR, GICR_CLRLPIR
    at(0x0070, 0x008, WordOrDouble, Reg::Propbaser),
    at(0x0078, 0x008, WordOrDouble, Reg::Pendbaser),
    at(0x00a0, 0x008, WordOrDouble, Reg::Zero), // GICR_INVLPIR
    at(0x00b0, 0x008, WordOrDouble, Reg::Zero), // GICR_INVALLR
    at(0x00c0, 0x004, Word, Reg::Zero),         // GICR_SYNCR
    at(0xffd0, 0x018, Word, Reg::Zero),
    at(0xffe8, 0x004, Word, Reg::Pidr2),
    at(0xffec, 0x014, Word, Reg::Zero),
];

/// GICR_* of SGI_base, ascending.
pub(crate) const SGI: &[Region] = &[
    at(0x0080, 0x004, Word, Reg::Bank(Bank::Group)),
    at(0x0100, 0x004, Word, Reg::Bank(Bank::SetEnable)),
    at(0x0180, 0x004, Word, Reg::Bank(Bank::ClearEnable)),
    at(0x0200, 0x004, Word, Reg::Bank(Bank::SetPending)),
    at(0x0280, 0x004, Word, Reg::Bank(Bank::ClearPending)),
    at(0x0300, 0x004, Word, Reg::Bank(Bank::SetActive)),
    at(0x0380, 0x004, Word, Reg::Bank(Bank::ClearActive)),
    at(0x0400, 0x020, ByteOrWord, Reg::Bank(Bank::Priority)),
    at(0x0c00, 0x008, Word, Reg::Bank(Bank::Config)),
    at(0x0d00, 0x004, Word, Reg::Zero), // GICR_IGRPMODR0
    at(0x0e00, 0x004, Word, Reg::Zero), // GICR_NSACR
];

/// The region that holds `offset`.
pub(crate) fn find(map: &'static [Region], offset: u32) -> Option<&'static Region> {
    // A frame begins with registers of a word each, where those are that drivers ask for.
    let word = map.get(offset as usize / 4);
    if let Some(region) = word.filter(|region| region.start == offset & !3) {
        return Some(region);
    }
    let after = map.partition_point(|region| region.start <= offset);
    let region = map.get(after.checked_sub(1)?)?;
    (offset - region.start < region.len).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_END: u32 = 0x1_0000;
    const MAPS: [(&str, &[Region]); 3] = [("GICD", DIST), ("RD", RD), ("SGI", SGI)];

    #[test]
    fn regions_ascend_without_overlap_and_stay_in_the_frame() {
        for (name, map) in MAPS {
            let mut end = 0;
            for region in map {
                assert!(region.start >= end && region.len > 0, "{name} {region:x?}");
                end = region.start + region.len;
            }
            assert!(end <= FRAME_END, "{name}");
        }
    }

    #[test]
    fn find_agrees_with_a_walk() {
        for (name, map) in MAPS {
            for offset in 0..FRAME_END + 8 {
                let walked = map
                    .iter()
                    .find(|region| (region.start..region.start + region.len).contains(&offset));
                assert_eq!(
                    find(map, offset).map(|region| region.start),
                    walked.map(|region| region.start),
                    "{name} {offset:#x}"
                );
            }
        }
    }

    #[test]
    fn gaps_are_those_of_the_manual() {
        let gaps = |map: &[Region]| {
            let ends = map.iter().map(|region| region.start + region.len);
            let starts = map.iter().skip(1).map(|region| region.start);
            ends.zip(starts)
                .filter(|(end, start)| end != start)
                .collect::<std::vec::Vec<_>>()
        };
        // Reserved; message-based SPIs, extended SPIs and what else GICD_TYPER says is absent.
        assert_eq!(
            gaps(DIST),
            [
                (0x14, 0x80),
                (0xd80, 0xe00),
                (0xf04, 0xf10),
                (0xf30, 0x6000),
                (0x8000, 0xffd0)
            ]
        );
        assert_eq!(gaps(SGI).first(), Some(&(0x84, 0x100)));
        assert_eq!(gaps(RD).first(), Some(&(0x18, 0x40)));
    }

    #[test]
    fn a_bank_has_a_field_for_each_interrupt() {
        for (name, map, interrupts) in [("GICD", DIST, 1024), ("SGI", SGI, 32)] {
            for region in map {
                if let Reg::Bank(bank) = region.reg {
                    assert_eq!(region.len * 8, interrupts * bank.width(), "{name} {bank:?}");
                }
            }
        }
    }

    #[test]
    fn sizes_are_natural_and_as_the_region_says() {
        let priority = find(DIST, 0x400).unwrap();
        let router = find(DIST, 0x6000).unwrap();
        let enable = find(DIST, 0x100).unwrap();
        for (region, offset, len, allowed) in [
            (priority, 0x401, 1, true),
            (priority, 0x402, 2, false),
            (priority, 0x402, 4, false),
            (router, 0x6104, 4, true),
            (router, 0x6104, 8, false),
            (router, 0x6108, 8, true),
            (enable, 0x104, 4, true),
            (enable, 0x104, 1, false),
            (enable, 0x108, 8, false),
            (enable, 0x104, 0, false),
        ] {
            assert_eq!(region.allows(offset, len), allowed, "{offset:#x} {len}");
        }
    }
}
