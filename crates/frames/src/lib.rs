//! The frame table: one word for every 4 KiB frame, saying who owns it, and a buddy allocator whose
//! free lists live in those words.
//!
//! ```text
//! 63  60 59   56 55 51 50   49            25 24             0
//! state  owner   order pool prev (free head)  next (free head)
//!                           bad, mark, label  references (allocated head)
//! ```
//!
//! What always holds: every frame of RAM is in exactly one block; the block's first frame (its
//! *head*) carries state, order and owner; the others say `Tail`. A frame that is not RAM, or is not
//! umbra's to give, is `Reserved`. Blocks are naturally aligned. A frame known to be bad is marked
//! (bit 49, where it is in use) and becomes `Retired` when its owner lets go of it: it never comes
//! back, and costs its page, not its block.
//!
//! There are two pools: *plain* memory that umbra does not map, and *table* memory that it does.
//! Whole chunks move from plain to table by [`Frames::convert`]; nothing moves back.
//!
//! An allocated block can have a *label*: whose table, or whose memory, it is. Where what said so is lost,
//! the label finds what has been left behind ([`Frames::sweep`]).
//!
//! The table is not locked in itself: the owner holds one lock round every call.
#![no_std]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use umbra_arm64::Pa;

/// log2 of the frame size in bytes.
pub const FRAME_SHIFT: u32 = 12;
/// Bytes in a frame.
pub const FRAME: u64 = 1 << FRAME_SHIFT;
/// The largest block: 2^18 frames, 1 GiB.
pub const MAX_ORDER: u8 = 18;
/// Order of a chunk, the unit that moves between pools: 2 MiB.
pub const CHUNK_ORDER: u8 = 9;

/// Which of the two kinds of memory a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Not mapped by umbra: processes' and guests'.
    Plain,
    /// Mapped by umbra, reached as words.
    Table,
}

/// Who owns an allocated block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Owner {
    /// The kernel heap.
    Heap = 1,
    /// A translation table (process, canonical or shadow stage 2, umbra's own).
    Table = 2,
    /// A kernel stack.
    Stack = 3,
    /// Anonymous memory of a process, and so of the guests it runs.
    Anonymous = 4,
    /// A page that a process and umbra share, such as a vCPU's run page.
    Shared = 5,
    /// The frame table itself and other rings of words.
    Kernel = 6,
}

impl Owner {
    fn from_bits(bits: u64) -> Option<Self> {
        [
            Self::Heap,
            Self::Table,
            Self::Stack,
            Self::Anonymous,
            Self::Shared,
            Self::Kernel,
        ]
        .into_iter()
        .find(|owner| *owner as u64 == bits)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    Reserved = 0,
    FreeHead = 1,
    Tail = 2,
    Allocated = 3,
    Retired = 4,
}

const LINK_BITS: u32 = 25;
const LINK_MASK: u64 = (1 << LINK_BITS) - 1;
const REFERENCES: u64 = (1 << 24) - 1;
/// A frame in use that is bad. Free heads have links there, and are never bad.
const BAD: u64 = 1 << 49;
/// An allocated head that a sweep is to leave where it is.
const MARK: u64 = 1 << 48;
const LABEL_SHIFT: u32 = 25;
/// Labels are smaller.
pub const LABELS: u32 = 1 << 23;
const LABEL_MASK: u64 = LABELS as u64 - 1;

#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn new(state: State, owner: u64, order: u8, pool: Pool) -> Self {
        Self(
            (state as u64) << 60
                | owner << 56
                | u64::from(order) << 51
                | u64::from(pool == Pool::Table) << 50,
        )
    }
    fn state(self) -> State {
        match self.0 >> 60 {
            1 => State::FreeHead,
            2 => State::Tail,
            3 => State::Allocated,
            4 => State::Retired,
            _ => State::Reserved,
        }
    }
    fn owner(self) -> Option<Owner> {
        Owner::from_bits(self.0 >> 56 & 0xf)
    }
    fn order(self) -> u8 {
        (self.0 >> 51 & 0x1f) as u8
    }
    fn pool(self) -> Pool {
        if self.0 >> 50 & 1 == 1 {
            Pool::Table
        } else {
            Pool::Plain
        }
    }
}

/// Where a frame stood when it was found bad ([`Frames::retire`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nobody's: it is retired now.
    Free,
    /// In use: it is retired when its owner lets go of it.
    Owned(Owner),
    /// Retired before.
    Retired,
    /// Not in the table, or never umbra's to give.
    Reserved,
}

/// What [`Frames::release`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Released {
    /// Others still hold the block.
    Shared,
    /// That was the last reference: the block is free.
    Freed,
}

/// The frame table over a run of words.
pub struct Frames<'a> {
    words: &'a [AtomicU64],
    base: Pa,
    /// First free block of each order, by pool: frame number + 1, 0 for none.
    heads: [[u32; MAX_ORDER as usize + 1]; 2],
    free: [u64; 2],
    total: u64,
    retired: u64,
    /// Frames in use that are marked bad.
    bad: u64,
}

impl<'a> Frames<'a> {
    /// A table for the frames from `base` on, one word each; all reserved. The words must be zero.
    pub const fn new(words: &'a [AtomicU64], base: Pa) -> Self {
        Self {
            words,
            base,
            heads: [[0; MAX_ORDER as usize + 1]; 2],
            free: [0; 2],
            total: 0,
            retired: 0,
            bad: 0,
        }
    }

    /// Frames that are free, in a pool.
    pub fn free_frames(&self, pool: Pool) -> u64 {
        self.free[pool as usize]
    }

    /// Frames that were ever added.
    pub fn total_frames(&self) -> u64 {
        self.total
    }

    /// How many blocks of `2^order` frames could be taken of a pool's free ones. Looks at every free
    /// block of this size or larger.
    pub fn free_blocks(&self, order: u8, pool: Pool) -> u64 {
        let mut count = 0;
        for larger in order..=MAX_ORDER {
            let first = (self.heads[pool as usize][larger as usize] as usize).checked_sub(1);
            let list = core::iter::successors(first, |&head| self.links(head).1);
            count += (list.count() as u64) << (larger - order);
        }
        count
    }

    /// Frames that are retired.
    pub fn retired_frames(&self) -> u64 {
        self.retired
    }

    fn index(&self, pa: Pa) -> Option<usize> {
        let offset = pa.offset_from(self.base)?;
        let index = usize::try_from(offset >> FRAME_SHIFT).ok()?;
        (index < self.words.len()).then_some(index)
    }

    fn pa(&self, index: usize) -> Pa {
        Pa::new(self.base.raw() + ((index as u64) << FRAME_SHIFT))
    }

    fn word(&self, index: usize) -> Word {
        Word(self.words[index].load(Relaxed))
    }

    fn set(&self, index: usize, word: Word) {
        self.words[index].store(word.0, Relaxed);
    }

    fn set_links(&self, index: usize, prev: Option<usize>, next: Option<usize>) {
        let link = |at: Option<usize>| at.map_or(0, |at| at as u64 + 1);
        let word = self.word(index).0 & !(LINK_MASK << LINK_BITS | LINK_MASK);
        self.set(index, Word(word | link(prev) << LINK_BITS | link(next)));
    }

    fn links(&self, index: usize) -> (Option<usize>, Option<usize>) {
        let word = self.word(index).0;
        let link = |bits: u64| (bits as usize).checked_sub(1);
        (link(word >> LINK_BITS & LINK_MASK), link(word & LINK_MASK))
    }

    fn push(&mut self, index: usize, order: u8, pool: Pool) {
        let head = (self.heads[pool as usize][order as usize] as usize).checked_sub(1);
        self.set(index, Word::new(State::FreeHead, 0, order, pool));
        self.set_links(index, None, head);
        if let Some(head) = head {
            let (_, next) = self.links(head);
            self.set_links(head, Some(index), next);
        }
        self.heads[pool as usize][order as usize] = index as u32 + 1;
        self.free[pool as usize] += 1 << order;
    }

    fn unlink(&mut self, index: usize, order: u8, pool: Pool) {
        let (prev, next) = self.links(index);
        match prev {
            Some(prev) => {
                let (before, _) = self.links(prev);
                self.set_links(prev, before, next);
            }
            None => {
                self.heads[pool as usize][order as usize] = next.map_or(0, |next| next as u32 + 1)
            }
        }
        if let Some(next) = next {
            let (_, after) = self.links(next);
            self.set_links(next, prev, after);
        }
        self.free[pool as usize] -= 1 << order;
    }

    /// Makes the reserved frames of `[start, end)` free plain memory. Partial frames are left out.
    pub fn add(&mut self, start: Pa, end: Pa) {
        let Some(start) = start.align_up(FRAME) else {
            return;
        };
        let end = end.align_down(FRAME);
        let mut at = start;
        while at < end {
            let Some(index) = self.index(at) else { return };
            let frames_left = end.offset_from(at).unwrap_or(0) >> FRAME_SHIFT;
            // The largest naturally aligned block that fits.
            let pfn = at.raw() >> FRAME_SHIFT;
            let mut order = MAX_ORDER.min(pfn.trailing_zeros() as u8);
            while 1 << order > frames_left || index + (1 << order) > self.words.len() {
                order -= 1;
            }
            self.total += 1 << order;
            self.insert(index, order, Pool::Plain);
            match at.checked_add(FRAME << order) {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// Puts a block on its free list, joined with its buddies as far as they are free.
    fn insert(&mut self, index: usize, order: u8, pool: Pool) {
        let (mut index, mut order) = (index, order);
        for tail in index + 1..index + (1 << order) {
            self.set(tail, Word::new(State::Tail, 0, 0, pool));
        }
        // Table memory stays in chunks: they are mapped one by one.
        let limit = if pool == Pool::Table {
            CHUNK_ORDER
        } else {
            MAX_ORDER
        };
        while order < limit {
            let pfn = self.pa(index).raw() >> FRAME_SHIFT;
            let Some(buddy) = self.index(Pa::new((pfn ^ 1 << order) << FRAME_SHIFT)) else {
                break;
            };
            let word = self.word(buddy);
            if word.state() != State::FreeHead || word.order() != order || word.pool() != pool {
                break;
            }
            self.unlink(buddy, order, pool);
            self.set(index.max(buddy), Word::new(State::Tail, 0, 0, pool));
            index = index.min(buddy);
            order += 1;
        }
        self.push(index, order, pool);
    }

    /// Takes a block of `2^order` frames with one reference, or `None` if no such block is free.
    pub fn allocate(&mut self, order: u8, pool: Pool, owner: Owner) -> Option<Pa> {
        let mut found =
            (order..=MAX_ORDER).find(|&order| self.heads[pool as usize][order as usize] != 0)?;
        let index = self.heads[pool as usize][found as usize] as usize - 1;
        self.unlink(index, found, pool);
        while found > order {
            found -= 1;
            self.push(index + (1 << found), found, pool);
        }
        let word = Word::new(State::Allocated, owner as u64, order, pool);
        self.set(index, Word(word.0 | 1));
        Some(self.pa(index))
    }

    /// Labels an allocated block; 0 is no label.
    pub fn label(&mut self, pa: Pa, label: u32) {
        let (index, word) = self.head(pa);
        let kept = word.0 & !(LABEL_MASK << LABEL_SHIFT);
        let label = u64::from(label) & LABEL_MASK;
        self.set(index, Word(kept | label << LABEL_SHIFT));
    }

    /// The next [`Frames::sweep`] of its label leaves the allocated block that `pa` lies in alone.
    pub fn mark(&mut self, pa: Pa) {
        if let Some(index) = self.block_of(pa).and_then(|(head, ..)| self.index(head)) {
            self.set(index, Word(self.word(index).0 | MARK));
        }
    }

    /// Frees every allocated block with `label` that was not marked, whatever references it has, and takes the
    /// marks off the others. Answers how many frames that were. Looks at every frame there is.
    pub fn sweep(&mut self, label: u32) -> u64 {
        let (mut index, mut swept) = (0, 0);
        while index < self.words.len() {
            let word = self.word(index);
            let mine = word.state() == State::Allocated
                && word.0 >> LABEL_SHIFT & LABEL_MASK == u64::from(label);
            if mine && word.0 & MARK != 0 {
                self.set(index, Word(word.0 & !MARK));
            } else if mine {
                swept += 1 << word.order();
                self.free_block(index, word.order(), word.pool());
            }
            index += match word.state() {
                State::FreeHead | State::Allocated => 1 << word.order(),
                State::Reserved | State::Tail | State::Retired => 1,
            };
        }
        swept
    }

    /// The allocated block that `pa` lies in: its first address, order and owner.
    pub fn block_of(&self, pa: Pa) -> Option<(Pa, u8, Owner)> {
        for order in 0..=MAX_ORDER {
            let head = pa.align_down(FRAME << order);
            let index = self.index(head)?;
            let word = self.word(index);
            match word.state() {
                State::Allocated if word.order() >= order => {
                    return Some((head, word.order(), word.owner()?));
                }
                State::Tail => {}
                _ => return None,
            }
        }
        None
    }

    fn head(&self, pa: Pa) -> (usize, Word) {
        let index = self
            .index(pa)
            .unwrap_or_else(|| panic!("{pa} is not in the frame table"));
        let word = self.word(index);
        assert!(
            word.state() == State::Allocated,
            "{pa} is not the start of an allocated block"
        );
        (index, word)
    }

    /// Adds a reference to an allocated block.
    pub fn hold(&mut self, pa: Pa) {
        let (index, word) = self.head(pa);
        assert!(
            word.0 & REFERENCES < REFERENCES,
            "too many references to {pa}"
        );
        self.set(index, Word(word.0 + 1));
    }

    /// References to an allocated block.
    pub fn references(&self, pa: Pa) -> u64 {
        self.head(pa).1.0 & REFERENCES
    }

    /// Drops a reference, and frees the block with the last.
    pub fn release(&mut self, pa: Pa) -> Released {
        let (index, word) = self.head(pa);
        if word.0 & REFERENCES > 1 {
            self.set(index, Word(word.0 - 1));
            return Released::Shared;
        }
        self.free_block(index, word.order(), word.pool());
        Released::Freed
    }

    /// Frees a block that was in use, without its bad frames.
    fn free_block(&mut self, index: usize, order: u8, pool: Pool) {
        let is_bad = |word: &AtomicU64| word.load(Relaxed) & BAD != 0;
        let bad = self.bad > 0 && self.words[index..index + (1 << order)].iter().any(is_bad);
        if !bad {
            self.insert(index, order, pool);
        } else if order == 0 {
            self.set(index, Word::new(State::Retired, 0, 0, pool));
            self.bad -= 1;
            self.retired += 1;
        } else {
            self.free_block(index, order - 1, pool);
            self.free_block(index + (1 << (order - 1)), order - 1, pool);
        }
    }

    /// The frame of `pa` is bad: it is not given out again. A free frame leaves its block at once; one
    /// in use when its owner lets go of it.
    pub fn retire(&mut self, pa: Pa) -> Standing {
        let Some(frame) = self.index(pa) else {
            return Standing::Reserved;
        };
        if self.word(frame).state() == State::Retired {
            return Standing::Retired;
        }
        if let Some((_, _, owner)) = self.block_of(pa) {
            let word = self.word(frame);
            if word.0 & BAD == 0 {
                self.set(frame, Word(word.0 | BAD));
                self.bad += 1;
            }
            return Standing::Owned(owner);
        }
        let Some((head, order, pool)) = self.free_block_of(pa) else {
            return Standing::Reserved;
        };
        self.unlink(head, order, pool);
        for tail in head..head + (1 << order) {
            self.set(tail, Word::new(State::Tail, 0, 0, pool));
        }
        self.set(frame, Word(self.word(frame).0 | BAD));
        self.bad += 1;
        self.free_block(head, order, pool);
        Standing::Free
    }

    /// Tells every run of frames that one owner has: first address, the address behind the last, owner.
    pub fn for_each_run(&self, mut each: impl FnMut(Pa, Pa, Owner)) {
        let mut run: Option<(usize, usize, Owner)> = None;
        let mut index = 0;
        while index < self.words.len() {
            let word = self.word(index);
            let (frames, owner) = match word.state() {
                State::Allocated => (1 << word.order(), word.owner()),
                State::FreeHead => (1 << word.order(), None),
                State::Reserved | State::Tail | State::Retired => (1, None),
            };
            match (&mut run, owner) {
                (Some((_, end, same)), Some(owner)) if *same == owner && *end == index => {
                    *end += frames;
                }
                (_, owner) => {
                    if let Some((start, end, owner)) = run.take() {
                        each(self.pa(start), self.pa(end), owner);
                    }
                    run = owner.map(|owner| (index, index + frames, owner));
                }
            }
            index += frames;
        }
        if let Some((start, end, owner)) = run {
            each(self.pa(start), self.pa(end), owner);
        }
    }

    /// The first frame of every block, and every frame that is in none.
    fn heads(&self) -> impl Iterator<Item = usize> {
        let mut index = 0;
        core::iter::from_fn(move || {
            let at = index;
            let word = (at < self.words.len()).then(|| self.word(at))?;
            index += match word.state() {
                State::FreeHead | State::Allocated => 1 << word.order(),
                State::Reserved | State::Tail | State::Retired => 1,
            };
            Some(at)
        })
    }

    /// The `nth` frame, counted round and round, that `owner` has under a label that `is_wanted`.
    pub fn nth_of(&self, owner: Owner, nth: u64, is_wanted: impl Fn(u32) -> bool) -> Option<Pa> {
        let wanted = |index: &usize| {
            let word = self.word(*index);
            word.state() == State::Allocated
                && word.owner() == Some(owner)
                && word.0 & BAD == 0
                && is_wanted((word.0 >> LABEL_SHIFT & LABEL_MASK) as u32)
        };
        let mut found = 0;
        let count = self.heads().filter(wanted).count() as u64;
        let nth = nth.checked_rem(count)?;
        let index = self.heads().find(|index| {
            found += u64::from(wanted(index));
            found > nth
        })?;
        Some(self.pa(index))
    }

    /// Whether `pa` lies in a frame that was added, retired or not.
    pub fn is_ram(&self, pa: Pa) -> bool {
        self.index(pa)
            .is_some_and(|frame| self.word(frame).state() != State::Reserved)
    }

    /// Whether the frame of `pa` is marked bad or retired.
    pub fn is_bad(&self, pa: Pa) -> bool {
        self.index(pa).is_some_and(|frame| {
            let word = self.word(frame);
            match word.state() {
                State::Retired => true,
                State::Allocated | State::Tail => word.0 & BAD != 0,
                State::FreeHead | State::Reserved => false,
            }
        })
    }

    fn free_block_of(&self, pa: Pa) -> Option<(usize, u8, Pool)> {
        for order in 0..=MAX_ORDER {
            let index = self.index(pa.align_down(FRAME << order))?;
            let word = self.word(index);
            match word.state() {
                State::FreeHead if word.order() >= order => {
                    return Some((index, word.order(), word.pool()));
                }
                State::Tail => {}
                _ => return None,
            }
        }
        None
    }

    /// Makes an allocated block `2^order` blocks of one frame, each with the references it had.
    pub fn split(&mut self, pa: Pa) {
        let (index, word) = self.head(pa);
        let Some(owner) = word.owner() else { return };
        let kept = word.0 & (REFERENCES | LABEL_MASK << LABEL_SHIFT);
        let single = Word::new(State::Allocated, owner as u64, 0, word.pool()).0 | kept;
        for frame in index..index + (1 << word.order()) {
            let bad = self.word(frame).0 & BAD;
            self.set(frame, Word(single & !BAD | bad));
        }
    }

    /// Moves an allocated chunk of plain memory into the table pool, free. The caller has mapped it.
    pub fn convert(&mut self, chunk: Pa) {
        let (index, word) = self.head(chunk);
        assert!(
            word.order() == CHUNK_ORDER && word.pool() == Pool::Plain,
            "{chunk} is not a plain chunk"
        );
        self.free_block(index, CHUNK_ORDER, Pool::Table);
    }
}

#[cfg(test)]
mod tests;
