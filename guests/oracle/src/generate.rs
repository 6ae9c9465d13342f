//! Cases: registers that are mostly legal, so that walks go deep, and addresses that mostly lie within
//! them. A case has a number; all of it follows from that.

use umbra_arm64::Granule;
use umbra_nested::Features;

use crate::rng::Rng;
use crate::rt::Question;
use crate::world::{Shape, nowhere, place};

const HCR_VM: u64 = 1 << 0;
const HCR_PTW: u64 = 1 << 2;
const HCR_DC: u64 = 1 << 12;
const HCR_TGE: u64 = 1 << 27;
const HCR_RW: u64 = 1 << 31;
const HCR_CD: u64 = 1 << 32;
const HCR_E2H: u64 = 1 << 34;
const HCR_FWB: u64 = 1 << 46;

/// What a case is mainly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    /// Stage 1 behind stage 2.
    Both,
    /// Stage 2, with stage 1 off.
    Second,
    /// EL1&0 without stage 2.
    First,
    /// EL2&0.
    Own,
}

/// A case: registers and memory; the instruction and the address are its questions'.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The registers. The address is still to be filled in.
    pub(crate) registers: Question,
    /// The memory.
    pub(crate) shape: Shape,
    theme: Theme,
    rng: Rng,
}

/// An instruction, as its number in `Op::TABLE`, and an address with PSTATE.PAN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    /// The instruction.
    pub(crate) number: usize,
    /// The registers with the address.
    pub(crate) question: Question,
}

/// The granule that a TG field of stage 1 names; `upper` is TG1.
pub(crate) fn stage1_granule(features: &Features, tcr: u64, upper: bool) -> Granule {
    let asked = match (upper, if upper { tcr >> 30 & 3 } else { tcr >> 14 & 3 }) {
        (false, 0b00) | (true, 0b10) => Some(Granule::K4),
        (false, 0b10) | (true, 0b01) => Some(Granule::K16),
        (false, 0b01) | (true, 0b11) => Some(Granule::K64),
        _ => None,
    };
    features.stage1.select(asked)
}

/// The granule that VTCR_EL2 names.
pub(crate) fn stage2_granule(features: &Features, vtcr: u64) -> Granule {
    let asked = match vtcr >> 14 & 3 {
        0b00 => Some(Granule::K4),
        0b01 => Some(Granule::K64),
        0b10 => Some(Granule::K16),
        _ => None,
    };
    features.stage2.select(asked)
}

/// A TnSZ for an input that a walk from `start` with granule bits `shift` resolves; sometimes any.
fn fitting(rng: &mut Rng, shift: u64, start: i64, more: u64, wish: u64) -> u64 {
    let stride = shift - 3;
    let least = shift + stride * (3 - start) as u64 + 1;
    let most = (least + stride - 1 + more).min(52);
    if rng.percent(2) || most < least {
        return rng.below(64);
    }
    let least = least.max(wish.min(most));
    64 - (least + rng.below(most - least + 1))
}

/// A PS field: mostly big. 0b111 is reserved: there is nothing to compare.
fn output_size(rng: &mut Rng) -> u64 {
    if rng.percent(55) {
        5 + rng.below(2)
    } else {
        rng.below(7)
    }
}

fn vtcr(rng: &mut Rng, wish: u64) -> u64 {
    let (shift, tg) = rng.pick(&[(12, 0b00), (14, 0b10), (16, 0b01)]);
    let start = rng.pick(&[-1, -1, 0, 0, 1, 1, 2, 2, 3]);
    let (sl2, sl0) = match (shift, start) {
        (12, -1) => (1, 0b00),
        (12, 3) => (0, 0b11),
        (12, _) => (0, 2 - start as u64),
        _ => (0, (3 - start).clamp(0, 3) as u64),
    };
    let size = fitting(rng, shift, start, 4, wish);
    let tg = if rng.percent(2) { 0b11 } else { tg };
    let sl2 = if rng.percent(2) { 1 } else { sl2 };
    let ds = if start < 1 { 80 } else { 30 };
    size | sl0 << 6
        | rng.below(16) << 8
        | shareability(rng) << 12
        | tg << 14
        | output_size(rng) << 16
        | rng.maybe(50, 1 << 21)
        | rng.maybe(25, 1 << 22)
        | 1 << 31
        | rng.maybe(ds, 1 << 32)
        | sl2 << 33
}

fn tcr(rng: &mut Rng) -> u64 {
    let mut half = |codes: [u64; 3]| {
        let (shift, index) = rng.pick(&[(12, 0), (14, 1), (16, 2)]);
        let start = rng.pick(&[-1, -1, 0, 0, 1, 1, 2, 3]);
        let size = fitting(rng, shift, start, 0, 0);
        let tg = if rng.percent(2) {
            rng.below(4)
        } else {
            codes[index]
        };
        size | tg << 14 | shareability(rng) << 12 | rng.below(16) << 8
    };
    let lower = half([0b00, 0b10, 0b01]);
    let upper = half([0b10, 0b01, 0b11]);
    let mut word = lower | upper << 16 | output_size(rng) << 32;
    word &= !(1 << 22); // A1: which ASID, nothing that is asked about.
    word |= rng.maybe(2, 1 << 7) | rng.maybe(2, 1 << 23);
    for at in [37, 38, 41, 42, 51, 52] {
        word |= rng.maybe(40, 1 << at);
    }
    word |= rng.maybe(50, 1 << 39) | rng.maybe(25, 1 << 40);
    word | rng.maybe(5, 1 << 55) | rng.maybe(5, 1 << 56) | rng.maybe(40, 1 << 59)
}

/// A two-bit shareability. 0b01 is reserved: there is nothing to compare.
pub(crate) fn shareability(rng: &mut Rng) -> u64 {
    rng.pick(&[0b00, 0b10, 0b11])
}

fn mair(rng: &mut Rng) -> u64 {
    const BYTES: [u64; 12] = [
        0x00, 0x04, 0x08, 0x0c, 0x44, 0xff, 0xbb, 0xee, 0x77, 0x4f, 0xf4, 0x9d,
    ];
    /// Those with XS = 0 that FEAT_XS brought.
    const QUICK: [u64; 6] = [0x01, 0x05, 0x09, 0x0d, 0x40, 0xa0];
    let quick = rng.percent(25);
    (0..8).fold(0, |word, index| {
        // Reserved encodings (a nibble of zeros) are UNPREDICTABLE: there is nothing to compare.
        let byte = if quick && rng.percent(40) {
            rng.pick(&QUICK)
        } else if rng.percent(70) {
            rng.pick(&BYTES)
        } else {
            (rng.below(15) + 1) << 4 | (rng.below(15) + 1)
        };
        word | byte << (index * 8)
    })
}

/// A table base register: a table in the pool, an ASID or VMID, sometimes bits that ought to be zero.
fn base(rng: &mut Rng) -> u64 {
    let at = place(rng) | rng.maybe(30, rng.clone().below(1024) << 6);
    let astray = if rng.percent(6) { nowhere(rng) } else { 0 };
    let high = rng.maybe(3, rng.clone().below(16) << 2);
    at | astray | high | rng.below(1 << 16) << 48 | rng.maybe(50, 1)
}

fn sctlr(rng: &mut Rng, big_endian: bool, on: u64) -> u64 {
    0x30c5_0830
        | rng.maybe(on, 1)
        | rng.maybe(85, 1 << 2)
        | rng.maybe(50, 1 << 12)
        | rng.maybe(20, 1 << 19)
        | u64::from(big_endian) << 25
        | rng.maybe(40, 1 << 57)
}

impl Case {
    /// Case number `number` of the sequence of `seed`.
    pub(crate) fn new(seed: u64, number: u64) -> Case {
        let mut rng = Rng::new(crate::rng::mix(seed) ^ number);
        let rng = &mut rng;
        let theme = match rng.below(100) {
            0..45 => Theme::Both,
            45..68 => Theme::Second,
            68..78 => Theme::First,
            _ => Theme::Own,
        };
        // The same for all: a table read in the wrong order leads anywhere, into devices too.
        let big_endian = rng.percent(25);
        // Tables of stage 1 lie above 2 GiB: an input of stage 2 has to reach there.
        let wish = if theme == Theme::Both && rng.percent(85) {
            33
        } else {
            0
        };
        let (vtcr, tcr1, tcr2) = (vtcr(rng, wish), tcr(rng), tcr(rng));
        let on = match theme {
            Theme::Both | Theme::First => 98,
            Theme::Second => 15,
            Theme::Own => 97,
        };
        let stage1 = |rng: &mut Rng, tcr, on| {
            let sctlr = sctlr(rng, big_endian, on);
            [sctlr, tcr, base(rng), base(rng), mair(rng)]
        };
        let el1 = stage1(rng, tcr1, on);
        let el2 = stage1(rng, tcr2, if theme == Theme::Own { on } else { 60 });
        let (vm, host) = match theme {
            Theme::Both | Theme::Second => (97, 0),
            Theme::First => (0, 0),
            Theme::Own => (50, 50),
        };
        let hcr = HCR_RW
            | HCR_E2H
            | rng.maybe(vm, HCR_VM)
            | rng.maybe(15, HCR_PTW)
            | rng.maybe(if theme == Theme::Second { 20 } else { 1 }, HCR_DC)
            | rng.maybe(host, HCR_TGE)
            | rng.maybe(10, HCR_CD)
            | rng.maybe(40, HCR_FWB);
        let registers = Question {
            el1,
            el2,
            hcr,
            vtcr,
            vttbr: base(rng),
            va: 0,
            pan: 0,
        };
        let shape = Shape {
            seed: rng.word(),
            big_endian,
            ds: [vtcr >> 32, tcr1 >> 59, tcr2 >> 59]
                .iter()
                .any(|ds| ds & 1 != 0),
            k64: [vtcr, tcr1, tcr2, tcr1 >> 16, tcr2 >> 16]
                .iter()
                .any(|tcr| tcr >> 14 & 1 != 0),
            percent: [
                rng.pick(&[0, 1, 8]),
                rng.pick(&[5, 30]),
                rng.pick(&[0, 4, 25]),
                rng.pick(&[60, 97]),
                rng.pick(&[70, 98]),
            ],
            flipped: 0,
        };
        Case {
            registers: registers.asked(),
            shape,
            theme,
            rng: rng.clone(),
        }
    }

    /// The next question.
    pub(crate) fn query(&mut self) -> Query {
        let rng = &mut self.rng;
        let host = self.registers.hcr & HCR_TGE != 0;
        // As `Op::TABLE` counts: 0 to 5 S1E1 and S1E0, 6 and 7 S1E2, 8 to 11 S12.
        let number = match self.theme {
            Theme::Both | Theme::Second if rng.percent(75) => 8 + rng.below(4),
            Theme::Both | Theme::Second | Theme::First => rng.pick(&[0, 1, 2, 3, 4, 5, 8, 9, 10]),
            Theme::Own if host => rng.below(12),
            Theme::Own => 6 + rng.below(2),
        };
        let own = self.theme == Theme::Own;
        let tcr = if own {
            self.registers.el2[1]
        } else {
            self.registers.el1[1]
        };
        let flat = !own && self.theme == Theme::Second;
        let va = if flat {
            flat_address(rng, self.registers.vtcr)
        } else {
            address(rng, tcr, own)
        };
        let question = Question {
            va,
            pan: rng.maybe(40, 1 << 22),
            ..self.registers
        };
        Query {
            number: number as usize,
            question,
        }
    }
}

fn sparse(rng: &mut Rng, low: u64) -> u64 {
    if rng.percent(40) {
        low & !0x3fff_f000
    } else {
        low
    }
}

/// An input of stage 2.
fn flat_address(rng: &mut Rng, vtcr: u64) -> u64 {
    let bits = (64 - (vtcr & 0x3f)).clamp(1, 52);
    let bits = if rng.percent(95) {
        bits
    } else {
        (bits + 1).min(55)
    };
    let low = rng.word() >> (64 - bits);
    sparse(rng, low)
}

/// A virtual address: mostly in range, of either half (the lower one of EL2&0 is the oracle's own),
/// with and without a tag.
fn address(rng: &mut Rng, tcr: u64, own: bool) -> u64 {
    let upper = own || rng.percent(50);
    let size = if upper { tcr >> 16 & 0x3f } else { tcr & 0x3f };
    let bits = (64 - size).clamp(1, 55);
    let bits = if rng.percent(96) {
        bits
    } else {
        (bits + 1).min(55)
    };
    let low = rng.word() >> (64 - bits);
    let low = sparse(rng, low);
    let va = if upper { low | u64::MAX << bits } else { low };
    if rng.percent(15) {
        va ^ rng.word() << 56
    } else {
        va
    }
}
