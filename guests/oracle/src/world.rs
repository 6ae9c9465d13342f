//! The memory of a case: descriptors that come into being when they are read.
//!
//! A word of the pool is computed from the case's number and its address, written to RAM when the
//! software walk first reads it, and so there when the CPU walks. Tables overlap and point to
//! themselves; nothing has to be laid out, and a walk of any depth finds descriptors.
//!
//! ```text
//!   forget ─► software walk (generates, marks) ─► rewind (as generated) ─► AT (marks) ─► differs?
//! ```

use umbra_arm64::Ipa;
use umbra_nested::{GuestMemory, MemoryError};

use crate::generate::shareability;
use crate::rng::{Rng, mix};
use crate::rt;

/// A word that a walk reached.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word {
    /// Where it is.
    pub(crate) at: u64,
    /// As it was generated.
    pub(crate) before: u64,
    /// As the software walk left it.
    pub(crate) after: u64,
}

/// More than two stages with five levels each can reach.
const WORDS: usize = 128;

/// What all descriptors of a case have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Which descriptors.
    pub(crate) seed: u64,
    /// Words are big-endian.
    pub(crate) big_endian: bool,
    /// One of the stages uses 52-bit addresses of 4 or 16 KiB granules: bits 9:8 and 49:48 are address.
    pub(crate) ds: bool,
    /// One of the stages uses 64 KiB granules: bits 15:12 are address.
    pub(crate) k64: bool,
    /// Percentages: nothing there, a block where one may be, an address out of the way, AF, and the
    /// right to read (bit 6).
    pub(crate) percent: [u64; 5],
    /// Sabotage: what the software walk finds turned round in every word.
    pub(crate) flipped: u64,
}

/// The memory of one question.
pub(crate) struct World {
    shape: Shape,
    words: [Word; WORDS],
    count: usize,
    last: u64,
}

/// Address bits that lead out of the pool into nowhere: neither RAM nor any device of the board, whose
/// high devices lie from 256 GiB to 1 TiB.
const NOWHERE: [u32; 11] = [33, 34, 36, 37, 40, 41, 42, 43, 44, 45, 47];

/// Somewhere in the lower half of the pool, on a boundary of 64 KiB.
pub(crate) fn place(rng: &mut Rng) -> u64 {
    rt::POOL + (rng.below(32) << 16)
}

/// A bit that leads into nowhere.
pub(crate) fn nowhere(rng: &mut Rng) -> u64 {
    1 << rng.pick(&NOWHERE)
}

impl Shape {
    fn address(&self, rng: &mut Rng) -> u64 {
        let mut address = place(rng);
        if !self.k64 {
            address |= rng.maybe(50, rng.clone().word() & 0xf000);
        }
        if rng.percent(self.percent[2]) {
            address |= match rng.below(6) {
                0 if self.ds => 1 << rng.pick(&[9, 48, 49]),
                0 if self.k64 => 1 << rng.pick(&[12, 13, 14, 15]),
                _ => nowhere(rng),
            };
        }
        if !self.ds {
            address |= shareability(rng) << 8 | rng.maybe(5, 1 << 48) | rng.maybe(5, 1 << 49);
        }
        address
    }

    /// The descriptor at `at`, as a value.
    fn descriptor(&self, at: u64) -> u64 {
        let mut rng = Rng::new(self.seed ^ mix(at));
        let [invalid, block, _, accessed, readable] = self.percent;
        let kind = if rng.percent(invalid) {
            rng.pick(&[0b00, 0b00, 0b10])
        } else if rng.percent(block) {
            0b01
        } else {
            0b11
        };
        let mut word = kind | self.address(&mut rng);
        word |= rng.word() & 0x3c; // AttrIndx and NS, or MemAttr
        word |= rng.maybe(readable, 1 << 6) | rng.maybe(50, 1 << 7);
        word |= rng.maybe(accessed, 1 << 10) | rng.maybe(30, 1 << 11);
        word |= rng.maybe(10, 1 << 50) | rng.maybe(40, 1 << 51) | rng.maybe(40, 1 << 52);
        word |= rng.maybe(25, 1 << 53) | rng.maybe(25, 1 << 54);
        // Ignored in a leaf; from 59 on the limits that a table sets.
        word |= rng.word() & 0xf << 55;
        for at in 59..64 {
            word |= rng.maybe(10, 1 << at);
        }
        word
    }
}

impl World {
    /// A memory that nobody has read.
    pub(crate) fn new(shape: Shape) -> World {
        World {
            shape,
            words: [Word::default(); WORDS],
            count: 0,
            last: 0,
        }
    }

    /// The word that the software walk read last: of a walk that ended in a leaf, the leaf.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The words that were read.
    pub(crate) fn words(&self) -> &[Word] {
        &self.words[..self.count]
    }

    /// The value of a word in memory, and the other way round.
    fn value(&self, word: u64) -> u64 {
        if self.shape.big_endian {
            word.swap_bytes()
        } else {
            word
        }
    }

    /// Remembers how the software walk left the memory, and makes it as it was before.
    pub(crate) fn rewind(&mut self) {
        for word in &mut self.words[..self.count] {
            word.after = rt::read(word.at);
            rt::write(word.at, word.before);
        }
    }

    /// The words that are not now as the software walk left them, as they were and by which bits.
    pub(crate) fn differences(&self) -> impl Iterator<Item = (u64, u64)> {
        let changed = |word: &Word| (word.before, word.after ^ rt::read(word.at));
        self.words()
            .iter()
            .map(changed)
            .filter(|(_, bits)| *bits != 0)
    }

    /// Makes the pool all zero again.
    pub(crate) fn forget(&mut self) {
        for word in self.words() {
            rt::write(word.at, 0);
        }
        self.count = 0;
    }

    fn flip(&self, word: u64) -> u64 {
        word ^ self.value(self.shape.flipped)
    }

    /// Generates the word at `at` if nobody has read it yet.
    fn touch(&mut self, at: u64) -> Result<(), MemoryError> {
        if !rt::in_pool(at) {
            return Err(MemoryError::NotMapped);
        }
        if self.words().iter().any(|word| word.at == at) {
            return Ok(());
        }
        let value = self.shape.descriptor(at);
        let before = self.value(value);
        rt::write(at, before);
        assert!(self.count < WORDS, "a walk does not end");
        self.words[self.count] = Word {
            at,
            before,
            after: before,
        };
        self.count += 1;
        Ok(())
    }
}

impl GuestMemory for World {
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError> {
        self.touch(at.raw())?;
        let word = self.flip(rt::read(at.raw()));
        self.last = word;
        Ok(word)
    }

    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        self.touch(at.raw())?;
        let actual = self.flip(rt::read(at.raw()));
        if actual != old {
            return Ok(Err(actual));
        }
        rt::write(at.raw(), self.flip(new));
        Ok(Ok(()))
    }
}
