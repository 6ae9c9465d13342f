//! Operands of TLBI instructions (Arm ARM, C5.5 "A64 System instructions for TLB maintenance").
//!
//! Encoding for the TLBIs that umbra issues, decoding for those that a guest hypervisor issues and
//! umbra emulates; the tests hold the two against each other and against the manual's formula
//!
//! ```text
//!   BaseADDR * granule  ≤  address  <  BaseADDR * granule + (NUM + 1) * 2^(5*SCALE + 1) * granule
//! ```

use crate::{
    addr::Address,
    granule::{Granule, Level},
    tag::Asid,
};

const TTL_SHIFT: u32 = 44;
const PAGE_NUMBER: u64 = (1 << 44) - 1;
const IPA_PAGE_NUMBER: u64 = (1 << 40) - 1;
const RANGE_BASE: u64 = (1 << 37) - 1;
const RANGE_TTL_SHIFT: u32 = 37;
const RANGE_NUM_SHIFT: u32 = 39;
const RANGE_SCALE_SHIFT: u32 = 44;
const RANGE_TG_SHIFT: u32 = 46;
const ASID_SHIFT: u32 = 48;

/// The two bits that name a granule here: 0b00 stands for "not said".
const fn tg(granule: Granule) -> u64 {
    match granule {
        Granule::K4 => 0b01,
        Granule::K16 => 0b10,
        Granule::K64 => 0b11,
    }
}

const fn from_tg(bits: u64) -> Option<Granule> {
    match bits & 0b11 {
        0b01 => Some(Granule::K4),
        0b10 => Some(Granule::K16),
        0b11 => Some(Granule::K64),
        _ => None,
    }
}

/// The TTL field (FEAT_TTL): four bits that say at which level the leaf is; 0 says nothing.
///
/// Level 0 is a hint only for 4 KiB granules with LPA2, and level −1 never is: no hint for them.
pub const fn ttl(granule: Granule, level: Option<Level>) -> u64 {
    match level {
        Some(level @ (Level::L1 | Level::L2 | Level::L3)) if granule.has_leaf(level) => {
            tg(granule) << 2 | level.number() as u64
        }
        _ => 0,
    }
}

/// The granule and level that a TTL field names; `None` where it names no leaf level.
pub fn decode_ttl(ttl: u64) -> Option<(Granule, Level)> {
    let granule = from_tg(ttl >> 2)?;
    let level = Level::from_number((ttl & 0b11) as i8)?;
    granule.has_leaf(level).then_some((granule, level))
}

/// The operand of a TLBI by virtual address (VAE2IS, VALE2IS, VAE1IS, …).
pub fn by_va<A: Address>(address: A, asid: Asid, ttl: u64) -> u64 {
    (asid.number() as u64) << ASID_SHIFT
        | (ttl & 0xf) << TTL_SHIFT
        | address.to_raw() >> 12 & PAGE_NUMBER
}

/// The operand of a TLBI by intermediate physical address (IPAS2E1IS, IPAS2LE1IS, …), non-secure.
pub fn by_ipa<A: Address>(address: A, ttl: u64) -> u64 {
    (ttl & 0xf) << TTL_SHIFT | address.to_raw() >> 12 & IPA_PAGE_NUMBER
}

/// What the operand of a TLBI by address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByAddress<A> {
    /// The page; a virtual one is sign-extended from bit 55.
    pub page: A,
    /// ASID, where the instruction has one.
    pub asid: Asid,
    /// The granule and level of the leaf, if it says so.
    pub leaf: Option<(Granule, Level)>,
}

/// Reads the operand of a TLBI by virtual address.
pub fn decode_va<A: Address>(operand: u64) -> ByAddress<A> {
    let page = (operand & PAGE_NUMBER) << 12;
    // Bits 63:56 are a copy of bit 55.
    let page = ((page << 8) as i64 >> 8) as u64;
    ByAddress {
        page: A::from_raw(page),
        asid: Asid::new((operand >> ASID_SHIFT) as u16),
        leaf: decode_ttl(operand >> TTL_SHIFT),
    }
}

/// Reads the operand of a TLBI by intermediate physical address.
pub fn decode_ipa<A: Address>(operand: u64) -> ByAddress<A> {
    ByAddress {
        page: A::from_raw((operand & IPA_PAGE_NUMBER) << 12),
        asid: Asid::new(0),
        leaf: decode_ttl(operand >> TTL_SHIFT),
    }
}

/// A range that one TLBI covers (FEAT_TLBIRANGE): up to 2 097 152 granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbiRange {
    /// The granule that counts.
    pub granule: Granule,
    /// SCALE, 0 to 3.
    pub scale: u8,
    /// NUM, 0 to 31.
    pub num: u8,
    /// The level of the leaves, if they share one: 1 to 3.
    pub level: Option<Level>,
    /// First address, a multiple of the granule. 37 bits of granules count.
    pub start: u64,
}

impl TlbiRange {
    /// Granules covered, by the manual's formula.
    pub const fn granules(&self) -> u64 {
        (self.num as u64 + 1) << (5 * self.scale as u32 + 1)
    }

    /// Bytes covered.
    pub const fn bytes(&self) -> u64 {
        self.granules() << self.granule.shift()
    }

    /// The operand; `asid` is 0 for ranges of intermediate physical addresses.
    pub fn encode(&self, asid: Asid) -> u64 {
        let level = match self.level {
            Some(level @ (Level::L1 | Level::L2 | Level::L3)) => level.number() as u64,
            _ => 0,
        };
        (asid.number() as u64) << ASID_SHIFT
            | tg(self.granule) << RANGE_TG_SHIFT
            | (self.scale as u64 & 0b11) << RANGE_SCALE_SHIFT
            | (self.num as u64 & 0x1f) << RANGE_NUM_SHIFT
            | level << RANGE_TTL_SHIFT
            | self.start >> self.granule.shift() & RANGE_BASE
    }

    /// Reads an operand and its ASID field; `None` for the reserved granule, of which the
    /// architecture promises nothing. `start` has the bits of BaseADDR and no sign extension.
    pub fn decode(operand: u64) -> Option<(TlbiRange, Asid)> {
        let granule = from_tg(operand >> RANGE_TG_SHIFT)?;
        let level = Level::from_number((operand >> RANGE_TTL_SHIFT & 0b11) as i8);
        let range = TlbiRange {
            granule,
            scale: (operand >> RANGE_SCALE_SHIFT & 0b11) as u8,
            num: (operand >> RANGE_NUM_SHIFT & 0x1f) as u8,
            level: level.filter(|level| *level != Level::L0),
            start: (operand & RANGE_BASE) << granule.shift(),
        };
        Some((range, Asid::new((operand >> ASID_SHIFT) as u16)))
    }
}

/// One instruction of a sequence that covers a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A TLBI by address for one granule from here.
    Page(u64),
    /// A TLBI by range.
    Range(TlbiRange),
}

/// Covers `bytes` from `start` on, both multiples of the granule, exactly: biggest pieces first, at
/// most five for up to 8 GiB of 4 KiB granules.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    granule: Granule,
    level: Option<Level>,
    start: u64,
    granules: u64,
}

impl Steps {
    /// The steps for a range whose leaves are at `level`, if that is known.
    pub const fn new(granule: Granule, start: u64, bytes: u64, level: Option<Level>) -> Self {
        Self {
            granule,
            level,
            start,
            granules: bytes >> granule.shift(),
        }
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let (granule, start) = (self.granule, self.start);
        let (step, granules) = match self.granules {
            0 => return None,
            1 => (Step::Page(start), 1),
            many => {
                let scale = (0..=3u8)
                    .rev()
                    .find(|scale| many >> (5 * scale + 1) != 0)
                    .unwrap_or(0);
                let num = ((many >> (5 * scale + 1)) - 1).min(31) as u8;
                let range = TlbiRange {
                    granule,
                    scale,
                    num,
                    level: self.level,
                    start,
                };
                (Step::Range(range), range.granules())
            }
        };
        self.granules -= granules;
        self.start = start.wrapping_add(granules << granule.shift());
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::addr::{Gva, Ipa};
    use proptest::prelude::*;

    fn granules() -> impl Strategy<Value = Granule> {
        prop::sample::select(Granule::ALL.to_vec())
    }

    fn levels() -> impl Strategy<Value = Option<Level>> {
        prop::sample::select(std::vec![
            None,
            Some(Level::L1),
            Some(Level::L2),
            Some(Level::L3)
        ])
    }

    #[test]
    fn ttl_values_of_the_manual() {
        assert_eq!(ttl(Granule::K4, Some(Level::L1)), 0b0101);
        assert_eq!(ttl(Granule::K4, Some(Level::L3)), 0b0111);
        assert_eq!(ttl(Granule::K16, Some(Level::L2)), 0b1010);
        assert_eq!(ttl(Granule::K64, Some(Level::L3)), 0b1111);
        for granule in Granule::ALL {
            assert_eq!((ttl(granule, None), ttl(granule, Some(Level::L0))), (0, 0));
        }
        // A level that holds no leaves without LPA2 is no hint.
        assert_eq!(
            (ttl(Granule::K64, Some(Level::L1)), decode_ttl(0b1101)),
            (0, None)
        );
        assert_eq!((decode_ttl(0b0011), decode_ttl(0b0100)), (None, None));
    }

    #[test]
    fn operands_by_hand() {
        let asid = Asid::new(0x1234);
        assert_eq!(
            by_va(Gva::new(0xffff_8000_1234_5678), asid, 0b0111),
            0x1234_7ff8_0001_2345
        );
        assert_eq!(by_ipa(Ipa::new(0x4001_2000), 0b0110), 0x0000_6000_0004_0012);
        let range = TlbiRange {
            granule: Granule::K4,
            scale: 1,
            num: 3,
            level: Some(Level::L3),
            start: 0x4000_0000,
        };
        assert_eq!((range.granules(), range.bytes()), (256, 1 << 20));
        let expected = 0b01 << 46 | 1 << 44 | 3 << 39 | 3 << 37 | 0x4_0000;
        assert_eq!(range.encode(Asid::new(0)), expected);
        assert_eq!(TlbiRange::decode(0x1f << 39), None);
    }

    #[test]
    fn a_guest_s_block_takes_one_step() {
        let mut steps = Steps::new(Granule::K4, 0, 2 << 20, Some(Level::L2));
        let whole = TlbiRange {
            granule: Granule::K4,
            scale: 1,
            num: 7,
            level: Some(Level::L2),
            start: 0,
        };
        assert_eq!(
            (steps.next(), steps.next()),
            (Some(Step::Range(whole)), None)
        );
    }

    proptest! {
        #[test]
        fn addresses_round_trip(page in 0u64..1 << 44, asid in any::<u16>(), granule in granules(), level in levels()) {
            let address = ((page << 20) as i64 >> 8) as u64;
            let operand = by_va(Gva::new(address), Asid::new(asid), ttl(granule, level));
            let read = decode_va::<Gva>(operand);
            let leaf = level.filter(|level| granule.has_leaf(*level)).map(|level| (granule, level));
            prop_assert_eq!((read.page.raw(), read.asid.number(), read.leaf), (address, asid, leaf));
            let ipa = Ipa::new((page & 0xff_ffff_ffff) << 12);
            let read = decode_ipa::<Ipa>(by_ipa(ipa, ttl(granule, level)));
            prop_assert_eq!((read.page, read.leaf), (ipa, leaf));
        }

        #[test]
        fn ranges_round_trip(
            scale in 0u8..4, num in 0u8..32, base in 0u64..1 << 37, asid in any::<u16>(), granule in granules(), level in levels(),
        ) {
            let range = TlbiRange { granule, scale, num, level, start: base << granule.shift() };
            prop_assert_eq!(TlbiRange::decode(range.encode(Asid::new(asid))), Some((range, Asid::new(asid))));
        }

        #[test]
        fn steps_cover_exactly(first in 0u64..1 << 30, many in 0u64..1 << 24, granule in granules(), level in levels()) {
            let mut next = first << granule.shift();
            let end = next + (many << granule.shift());
            let mut count = 0;
            for step in Steps::new(granule, next, end - next, level) {
                let (start, bytes) = match step {
                    Step::Page(start) => (start, granule.bytes()),
                    Step::Range(range) => {
                        prop_assert!(range.scale <= 3 && range.num <= 31 && range.level == level);
                        (range.start, range.bytes())
                    }
                };
                prop_assert_eq!(start, next);
                next += bytes;
                count += 1;
            }
            prop_assert_eq!(next, end);
            prop_assert!(count <= 5 + (many >> 21));
        }
    }
}
