//! Random worlds: registers that are mostly legal, and a memory in which every word is a descriptor.
//!
//! The memory is not built: a word is computed from its address when it is read. So walks go deep
//! without anybody laying out tables, tables overlap and point to themselves, and nothing has to be
//! told which level or stage a word is for.

use std::collections::BTreeMap;

use umbra_arm64::Ipa;
use umbra_nested::{Features, Granules, GuestMemory, MemoryError, Support};

use crate::manual::Regs;

/// A small random generator (splitmix64), so that a failure is named by one number. A fuzzer gives the
/// first words itself.
#[derive(Clone)]
pub(crate) struct Rng {
    state: u64,
    /// The words that come first, the last one first.
    tape: Vec<u64>,
    /// Its name.
    pub(crate) seed: u64,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Rng {
    /// The sequence of number `seed`.
    pub(crate) fn new(seed: u64) -> Rng {
        Rng {
            state: mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)),
            tape: Vec::new(),
            seed,
        }
    }

    /// The words of `bytes`, then a sequence that they name.
    pub(crate) fn on_tape(bytes: &[u8]) -> Rng {
        let word = |part: &[u8]| part.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        let tape: Vec<u64> = bytes.chunks(8).rev().map(word).collect();
        let name = tape.iter().fold(0, |name, word| mix(name ^ word));
        Rng {
            tape,
            ..Rng::new(name)
        }
    }

    /// Any number.
    pub(crate) fn word(&mut self) -> u64 {
        if let Some(word) = self.tape.pop() {
            return word;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// `word` in `percent` of 100 cases, otherwise 0.
    fn maybe(&mut self, percent: u64, word: u64) -> u64 {
        if self.percent(percent) { word } else { 0 }
    }
}

/// A memory of descriptors.
#[derive(Clone)]
pub(crate) struct World {
    seed: u64,
    big_endian: bool,
    /// Addresses in descriptors are mostly below this many bits.
    address_bits: u32,
    /// The same for every descriptor of a group: bits below are zero.
    aligned_bits: u32,
    /// Most words can be read, lead on and permit: for walks of many tables.
    friendly: bool,
    /// What was written over it.
    pub(crate) written: BTreeMap<u64, u64>,
}

impl World {
    /// Descriptor bits that both stages take as address: 47:12.
    fn address(&self, rng: &mut Rng) -> u64 {
        let bits = if rng.percent(96) {
            self.address_bits
        } else {
            52
        };
        let low = if rng.percent(50) {
            self.aligned_bits
        } else {
            12
        };
        let address = rng.word() >> (64 - bits) >> low << low;
        // Bits 51:48 go to all the places where some granule has them.
        let high = address >> 48 & 15;
        address & ((1 << 48) - 1)
            | (high & 3) << 48
            | (high >> 2) << 8
            | high << 12 & if rng.percent(50) { 0xf000 } else { 0 }
    }

    fn descriptor(&self, at: u64) -> u64 {
        let mut rng = Rng::new(self.seed ^ mix(at));
        let kind = match rng.below(if self.friendly { 90 } else { 100 }) {
            0..=65 => 0b11,
            66..=89 => 0b01,
            90..=94 => 0b00,
            _ => 0b10,
        };
        let mut word = kind | self.address(&mut rng);
        // Attributes of a leaf, ignored or reserved in a table.
        word |= rng.word() & 0x7c; // AttrIndx, MemAttr, AP[1], S2AP[0]
        word |= rng.maybe(70, 1 << 6) | rng.maybe(50, 1 << 7);
        word |= if self.friendly {
            rng.maybe(90, 1 << 6) | rng.maybe(90, 1 << 10)
        } else {
            0
        };
        word |= rng.maybe(40, 1 << 5) | rng.maybe(40, 1 << 4);
        if rng.percent(50) {
            word = word & !(3 << 8) | rng.below(4) << 8;
        }
        word |= rng.maybe(70, 1 << 10) | rng.maybe(20, 1 << 11);
        word |= rng.maybe(50, 1 << 51) | rng.maybe(40, 1 << 52);
        word |= rng.maybe(25, 1 << 53) | rng.maybe(25, 1 << 54);
        // Limits that a table sets.
        word | rng.maybe(10, 1 << 59)
            | rng.maybe(10, 1 << 60)
            | rng.maybe(10, 1 << 61)
            | rng.maybe(10, 1 << 62)
            | rng.word() & (1 << 63 | 0xf << 55)
    }

    fn health(&self, at: u64, write: bool) -> Result<(), MemoryError> {
        let range = if self.friendly { 2000 } else { 200 };
        match mix(self.seed.rotate_left(17) ^ (at >> 12)) % range {
            0..=2 => Err(MemoryError::NotMapped),
            3..=4 => Err(MemoryError::Poisoned),
            5 => Err(MemoryError::Retry),
            6..=9 if write => Err(MemoryError::ReadOnly),
            _ => Ok(()),
        }
    }
}

impl GuestMemory for World {
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError> {
        let at = at.raw();
        assert_eq!(at % 8, 0);
        self.health(at, false)?;
        if let Some(word) = self.written.get(&at) {
            return Ok(*word);
        }
        let word = self.descriptor(at);
        Ok(if self.big_endian {
            word.swap_bytes()
        } else {
            word
        })
    }

    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        self.health(at.raw(), true)?;
        let actual = self.read_u64(at)?;
        if actual != old {
            return Ok(Err(actual));
        }
        self.written.insert(at.raw(), new);
        Ok(Ok(()))
    }
}

fn support(rng: &mut Rng, lpa2: bool) -> Support {
    match rng.below(10) {
        0 => Support::Absent,
        1..=3 => Support::Present,
        _ if lpa2 => Support::Lpa2,
        _ => Support::Present,
    }
}

fn granules(rng: &mut Rng) -> Granules {
    Granules {
        k4: support(rng, true),
        k16: support(rng, true),
        k64: support(rng, false),
    }
}

/// Features: in half of the cases everything there is, otherwise any mixture.
pub(crate) fn features(rng: &mut Rng) -> Features {
    let everything = rng.percent(50);
    let mut flag = |percent| everything || rng.percent(percent);
    let (lva, small_tables, access_flag) = (flag(50), flag(50), flag(60));
    let dirty_state = access_flag && flag(60);
    let (xnx, hpds, pan) = (flag(50), flag(50), flag(70));
    let (epan, e0pd, tbid, fwb, xs) = (pan && flag(50), flag(50), flag(50), flag(50), flag(50));
    let all = Granules {
        k4: Support::Lpa2,
        k16: Support::Lpa2,
        k64: Support::Present,
    };
    Features {
        pa_bits: if everything {
            52
        } else {
            rng.pick(&[32, 36, 40, 42, 44, 48, 48, 52])
        },
        stage1: if everything { all } else { granules(rng) },
        stage2: if everything { all } else { granules(rng) },
        lva,
        small_tables,
        access_flag,
        dirty_state,
        xnx,
        hpds,
        pan,
        epan,
        e0pd,
        tbid,
        fwb,
        xs,
    }
}

/// A T0SZ for an input that a walk from `start` with granule bits `shift` resolves; sometimes none.
fn fitting_txsz(rng: &mut Rng, shift: u64, start: i64, concatenated: u64) -> u64 {
    let stride = shift - 3;
    let least = shift + stride * (3 - start) as u64 + 1;
    let most = (least + stride - 1 + concatenated).min(52);
    if rng.percent(4) || most < least {
        return rng.below(64);
    }
    64 - (least + rng.below(most - least + 1))
}

/// VTCR_EL2.
fn vtcr(rng: &mut Rng) -> u64 {
    let (shift, tg) = rng.pick(&[(12, 0b00), (14, 0b10), (16, 0b01)]);
    let start = rng.pick(&[-1, 0, 1, 1, 2, 2, 3]);
    // SL2:SL0 of the start level; what the granule has none for becomes some other code.
    let (sl2, sl0) = match (shift, start) {
        (12, -1) => (1, 0b00),
        (12, 3) => (0, 0b11),
        (12, _) => (0, 2 - start as u64),
        _ => (0, (3 - start).clamp(0, 3) as u64),
    };
    let txsz = fitting_txsz(rng, shift, start, 4);
    let tg = if rng.percent(3) { 0b11 } else { tg };
    let sl2 = if rng.percent(3) { 1 } else { sl2 };
    let ds = if start < 1 { 80 } else { 40 };
    txsz | sl0 << 6
        | tg << 14
        | output_size(rng) << 16
        | rng.below(4) << 12
        | rng.maybe(60, 1 << 21)
        | rng.maybe(60, 1 << 22)
        | rng.maybe(ds, 1 << 32)
        | sl2 << 33
}

/// A PS field: mostly big.
fn output_size(rng: &mut Rng) -> u64 {
    if rng.percent(80) {
        5 + rng.below(2)
    } else {
        rng.below(8)
    }
}

/// TCR_ELx of the two-half layout, or of EL2 without E2H.
fn tcr(rng: &mut Rng, one_half: bool) -> u64 {
    let mut half = |codes: [u64; 3]| {
        let (shift, index) = rng.pick(&[(12, 0), (14, 1), (16, 2)]);
        let start = rng.pick(&[-1, 0, 0, 1, 1, 2, 3]);
        let txsz = fitting_txsz(rng, shift, start, 0);
        let tg = if rng.percent(3) {
            rng.below(4)
        } else {
            codes[index]
        };
        txsz | tg << 14 | rng.below(4) << 12
    };
    let lower = half([0b00, 0b10, 0b01]);
    let upper = half([0b10, 0b01, 0b11]);
    let output = output_size(rng);
    if one_half {
        return lower
            | output << 16
            | rng.maybe(40, 1 << 20)
            | rng.maybe(60, 1 << 21)
            | rng.maybe(60, 1 << 22)
            | rng.maybe(30, 1 << 24)
            | rng.maybe(50, 1 << 29)
            | rng.maybe(60, 1 << 32);
    }
    let mut word = lower | upper << 16 | output << 32;
    word |= rng.maybe(3, 1 << 7) | rng.maybe(3, 1 << 23);
    for at in [37, 38, 41, 42, 51, 52] {
        word |= rng.maybe(40, 1 << at);
    }
    word |= rng.maybe(60, 1 << 39) | rng.maybe(60, 1 << 40);
    word |= rng.maybe(10, 1 << 55) | rng.maybe(10, 1 << 56);
    word | rng.maybe(60, 1 << 59)
}

fn mair(rng: &mut Rng) -> u64 {
    const BYTES: [u64; 12] = [
        0x00, 0x04, 0x08, 0x0c, 0x44, 0xff, 0xbb, 0xee, 0x01, 0x40, 0xa0, 0x77,
    ];
    (0..8).fold(0, |word, index| {
        let byte = if rng.percent(80) {
            rng.pick(&BYTES)
        } else {
            rng.below(256)
        };
        word | byte << (index * 8)
    })
}

fn sctlr(rng: &mut Rng, big_endian: bool) -> u64 {
    rng.maybe(95, 1)
        | rng.maybe(85, 1 << 2)
        | rng.maybe(50, 1 << 12)
        | rng.maybe(20, 1 << 19)
        | (u64::from(big_endian) << 25)
        | rng.maybe(50, 1 << 57)
}

/// A case: features, registers and memory.
pub(crate) struct Case {
    /// What the guest is shown.
    pub(crate) features: Features,
    /// Its registers.
    pub(crate) regs: Regs,
    /// Its memory.
    pub(crate) world: World,
}

/// The case that `rng` comes to. EL2 has one half if `one_half`.
pub(crate) fn case(rng: &mut Rng, one_half: bool) -> Case {
    let features = features(rng);
    let big_endian = rng.percent(30);
    let world = World {
        seed: rng.word(),
        big_endian,
        address_bits: rng.pick(&[31, 36, 40, 44, 47, 48]),
        aligned_bits: rng.pick(&[12, 16, 25, 30]),
        friendly: rng.percent(60),
        written: BTreeMap::new(),
    };
    let table = |rng: &mut Rng| {
        let bits = if rng.percent(95) {
            world.address_bits
        } else {
            48
        };
        let low = rng.below(16) << 2 & rng.maybe(5, 0x3c);
        rng.word() >> (64 - bits) << 1 & ((1 << 48) - 1) & !0x3f | low
    };
    let order = |rng: &mut Rng| big_endian ^ rng.percent(4);
    let hcr = rng.maybe(92, 1)
        | rng.maybe(20, 1 << 2)
        | rng.maybe(3, 1 << 12)
        | rng.maybe(4, 1 << 27)
        | rng.maybe(8, 1 << 32)
        | if one_half { 0 } else { 1 << 34 }
        | rng.maybe(40, 1 << 46);
    let regs = |rng: &mut Rng, one_half| {
        let big_endian = order(rng);
        let (ttbr0, ttbr1) = (table(rng), table(rng));
        [
            sctlr(rng, big_endian),
            tcr(rng, one_half),
            ttbr0,
            ttbr1,
            mair(rng),
        ]
    };
    let el1 = regs(rng, false);
    let el2 = regs(rng, one_half);
    let regs = Regs {
        hcr,
        vtcr: vtcr(rng),
        vttbr: table(rng) | rng.word() << 48,
        el1,
        el2,
    };
    Case {
        features,
        regs,
        world,
    }
}

/// An input of stage 2 for `vtcr`: mostly in range, often with many zeros.
pub(crate) fn ipa(rng: &mut Rng, vtcr: u64) -> u64 {
    let bits = (64 - (vtcr & 0x3f)).clamp(1, 60) as u32;
    let bits = if rng.percent(96) {
        bits
    } else {
        (bits + 1 + rng.below(3) as u32).min(64)
    };
    let ipa = rng.word() >> (64 - bits);
    if rng.percent(40) {
        ipa & !0x3fff_f000
    } else {
        ipa
    }
}

/// A virtual address for `tcr`: mostly in range, of either half, with and without a tag.
pub(crate) fn va(rng: &mut Rng, tcr: u64, one_half: bool) -> u64 {
    let upper = !one_half && rng.percent(50);
    let txsz = if upper { tcr >> 16 & 0x3f } else { tcr & 0x3f };
    let bits = (64 - txsz).clamp(1, 55) as u32;
    let bits = if rng.percent(97) {
        bits
    } else {
        (bits + 1).min(55)
    };
    let low = rng.word() >> (64 - bits);
    let low = if rng.percent(40) {
        low & !0x3fff_f000
    } else {
        low
    };
    let va = if upper { low | u64::MAX << bits } else { low };
    if rng.percent(15) {
        va ^ rng.word() << 56
    } else {
        va
    }
}
