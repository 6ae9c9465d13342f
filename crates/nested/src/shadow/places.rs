//! Where shadows map the pages of a VM, found from either end.
//!
//! Each entry is in two indexes: by context and address (the forward one has the shape of the shadow
//! table), and in a list of all entries that map the same piece of the VM. It also notes how large
//! the guest hypervisor's own leaf was: a TLBI without a level hint has to take all of that leaf, and
//! no more.
//!
//! An entry costs 24 bytes and its part of the indexes. What a guest hypervisor can make it hold is
//! bounded by the shadow tables themselves (one entry a leaf) and by [`CROWD`].

use alloc::boxed::Box;
use alloc::vec::Vec;

use umbra_arm64::{Ipa, L2Ipa};

use super::pool::ContextId;
use super::radix::{OutOfMemory, Radix};

/// Entries that one piece of the VM may have. A guest hypervisor that maps one page everywhere pays for
/// it with new faults, and nobody waits long for the page to be taken back.
pub const CROWD: u32 = 64;

/// How much an entry maps: the leaf sizes of a table of 4 KiB pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// 4 KiB.
    Page,
    /// 2 MiB.
    Block,
    /// 1 GiB.
    Giant,
}

impl Size {
    /// All of them.
    pub const ALL: [Size; 3] = [Size::Page, Size::Block, Size::Giant];

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << (39 - 9 * self.level())
    }

    /// The size of so many bytes.
    pub fn of(bytes: u64) -> Option<Size> {
        Size::ALL.into_iter().find(|size| size.bytes() == bytes)
    }

    const fn level(self) -> usize {
        match self {
            Size::Page => 3,
            Size::Block => 2,
            Size::Giant => 1,
        }
    }

    const fn code(self) -> u64 {
        self.level() as u64
    }

    const fn from_level(level: usize) -> Size {
        match level {
            1 => Size::Giant,
            2 => Size::Block,
            _ => Size::Page,
        }
    }
}

/// One entry of a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The context whose table it is in.
    pub context: ContextId,
    /// First address there.
    pub at: L2Ipa,
    /// The first address of the VM that it maps.
    pub ipa: Ipa,
    /// How much.
    pub size: Size,
    /// Bytes of the guest hypervisor's own leaf as a power of two, its contiguous neighbours included.
    pub leaf_shift: u8,
}

impl Place {
    /// Whether the guest hypervisor's own leaf for this entry maps `at` too.
    pub const fn leaf_maps(&self, at: L2Ipa) -> bool {
        let shift = self.leaf_shift as u32;
        shift >= 48 || self.at.raw() >> shift == at.raw() >> shift
    }
}

/// What an insertion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// It is noted.
    Done,
    /// It was noted already.
    Known,
    /// It is noted; this other entry of the same piece had to go, and its leaf has to.
    Crowded(Place),
}

/// `at`: address, leaf shift in bits 7:2, size in 1:0. `ipa`: address, context's index in bits 5:0.
#[derive(Clone, Copy, Default)]
struct Entry {
    at: u64,
    ipa: u64,
    /// Neighbours in the list of the piece: number + 1, or 0.
    next: u32,
    before: u32,
}

const CHUNK: usize = 128;
const PAGE_MASK: u64 = !0xfff;
/// A list's head in the reverse index: the number + 1 of its first entry, and how many there are.
const HEAD: u32 = (1 << 25) - 1;
const COUNT_SHIFT: u32 = 25;

/// The books of one VM. See the module.
pub struct Places {
    chunks: Vec<Box<[Entry]>>,
    /// Entries that were ever used.
    grown: u32,
    /// Free entries, listed by `next`.
    free: u32,
    used: u32,
    /// By the contexts' index.
    forward: Vec<Forward>,
    reverse: Radix,
}

/// The entries of one context.
struct Forward {
    context: ContextId,
    index: Radix,
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

impl Places {
    /// No entries.
    pub const fn new() -> Places {
        Places {
            chunks: Vec::new(),
            grown: 0,
            free: 0,
            used: 0,
            forward: Vec::new(),
            reverse: Radix::new(),
        }
    }

    /// Entries in all.
    pub const fn len(&self) -> usize {
        self.used as usize
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn entry(&self, number: u32) -> &Entry {
        &self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    fn entry_mut(&mut self, number: u32) -> &mut Entry {
        &mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    fn place(&self, number: u32) -> Option<Place> {
        let entry = self.entry(number);
        Some(Place {
            context: self.forward.get((entry.ipa & 0x3f) as usize)?.context,
            at: L2Ipa::new(entry.at & PAGE_MASK),
            ipa: Ipa::new(entry.ipa & PAGE_MASK),
            size: Size::from_level((entry.at & 3) as usize),
            leaf_shift: (entry.at >> 2 & 0x3f) as u8,
        })
    }

    fn index(&self, context: ContextId) -> Option<&Radix> {
        self.forward
            .get(context.index())
            .map(|forward| &forward.index)
    }

    /// Makes room for the entries of a context.
    fn admit(&mut self, context: ContextId) -> Result<&mut Radix, OutOfMemory> {
        while self.forward.len() <= context.index() {
            self.forward.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.forward.push(Forward {
                context,
                index: Radix::new(),
            });
        }
        let forward = &mut self.forward[context.index()];
        // The index is empty when its place in the pool goes to another.
        forward.context = context;
        Ok(&mut forward.index)
    }

    /// A free entry's number.
    fn take(&mut self) -> Result<u32, OutOfMemory> {
        if self.free != 0 {
            let number = self.free - 1;
            self.free = self.entry(number).next;
            return Ok(number);
        }
        if self.grown as usize == self.chunks.len() * CHUNK {
            if self.grown >= HEAD - CHUNK as u32 {
                return Err(OutOfMemory);
            }
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(CHUNK).map_err(|_| OutOfMemory)?;
            chunk.resize(CHUNK, Entry::default());
            self.chunks.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.chunks.push(chunk.into_boxed_slice());
        }
        self.grown += 1;
        Ok(self.grown - 1)
    }

    fn give(&mut self, number: u32) {
        let free = self.free;
        *self.entry_mut(number) = Entry {
            next: free,
            ..Entry::default()
        };
        self.free = number + 1;
    }

    /// The entry that maps `at` in a context.
    pub fn find(&self, context: ContextId, at: L2Ipa) -> Option<Place> {
        let found = self.index(context)?.covering(at.raw())?;
        self.place(found.value - 1)
    }

    /// Notes an entry. Nothing else of the context may be noted where it is ([`Places::pop`] first),
    /// but the same entry, whose leaf it then is.
    ///
    /// On an error nothing has changed.
    pub fn insert(&mut self, place: Place) -> Result<Insert, OutOfMemory> {
        let Place {
            context,
            at,
            ipa,
            size,
            leaf_shift,
        } = place;
        let (slot, level) = (context.index(), size.level());
        let (at, ipa) = (at.raw() & PAGE_MASK, ipa.raw() & PAGE_MASK);
        let word = at | u64::from(leaf_shift) << 2 | size.code();
        let known = self.admit(context)?.get(at, level);
        if known != 0 && self.entry(known - 1).ipa & PAGE_MASK == ipa {
            self.entry_mut(known - 1).at = word;
            // The tables' marks have to follow; a value that is there needs no memory.
            self.forward[slot].index.set(at, level, known, leaf_shift)?;
            return Ok(Insert::Known);
        }
        debug_assert!(known == 0, "an entry over another");
        let number = self.take()?;
        let list = self.reverse.get(ipa, level);
        let (first, count) = (list & HEAD, list >> COUNT_SHIFT);
        if let Err(error) = self.forward[slot]
            .index
            .set(at, level, number + 1, leaf_shift)
        {
            self.give(number);
            return Err(error);
        }
        let head = (number + 1) | ((count + 1) << COUNT_SHIFT);
        if let Err(error) = self.reverse.set(ipa, level, head, 0) {
            self.forward[slot].index.clear(at, level);
            self.give(number);
            return Err(error);
        }
        *self.entry_mut(number) = Entry {
            at: word,
            ipa: ipa | slot as u64,
            next: first,
            before: 0,
        };
        if first != 0 {
            self.entry_mut(first - 1).before = number + 1;
        }
        self.used += 1;
        if count < CROWD {
            return Ok(Insert::Done);
        }
        // The one after the newest: the list is not ordered by use, any but the newest will do.
        Ok(match self.place(first - 1) {
            Some(other) => {
                self.remove(first - 1);
                Insert::Crowded(other)
            }
            None => Insert::Done,
        })
    }

    /// Takes an entry out of both indexes.
    fn remove(&mut self, number: u32) {
        let Entry {
            at,
            ipa,
            next,
            before,
        } = *self.entry(number);
        let (slot, level) = ((ipa & 0x3f) as usize, (at & 3) as usize);
        let (at, ipa) = (at & PAGE_MASK, ipa & PAGE_MASK);
        self.reverse.aim(ipa);
        self.forward[slot].index.clear(at, level);
        if next != 0 {
            self.entry_mut(next - 1).before = before;
        }
        let list = self.reverse.get(ipa, level);
        let count = (list >> COUNT_SHIFT).saturating_sub(1);
        let first = if before != 0 {
            self.entry_mut(before - 1).next = next;
            list & HEAD
        } else {
            next
        };
        if first == 0 {
            self.reverse.clear(ipa, level);
        } else {
            // It is there: no memory is needed.
            let head = first | (count << COUNT_SHIFT);
            let replaced = self.reverse.set(ipa, level, head, 0);
            debug_assert!(replaced.is_ok());
        }
        self.give(number);
        self.used -= 1;
    }

    /// Takes out the first entry of a context that meets `[from, end)`.
    pub fn pop(&mut self, context: ContextId, from: L2Ipa, end: u64) -> Option<Place> {
        let found = self.index(context)?.next(from.raw(), end, 0)?;
        let place = self.place(found.value - 1)?;
        self.remove(found.value - 1);
        Some(place)
    }

    /// Takes out one entry of a context that comes from the guest hypervisor's leaf which maps `at`.
    /// `cursor`, 0 at first, is where the next call goes on.
    ///
    /// Costs the entries of that leaf, and those that lie among them.
    pub fn pop_leaf(&mut self, context: ContextId, at: L2Ipa, cursor: &mut u64) -> Option<Place> {
        let index = &mut self.forward.get_mut(context.index())?.index;
        index.aim(at.raw());
        let reach = index.reach(at.raw());
        let base = at.raw() >> reach << reach;
        let end = base.saturating_add(1 << reach).min(1 << 48);
        // What maps the address itself, once: it may be filled again meanwhile.
        let is_first = *cursor == 0;
        *cursor = base.max(*cursor).max(1);
        if is_first && let Some(found) = index.covering(at.raw()) {
            let place = self.place(found.value - 1)?;
            self.remove(found.value - 1);
            return Some(place);
        }
        if reach == 12 {
            return None;
        }
        while let Some(found) = self.index(context)?.next(*cursor, end, 13) {
            let place = self.place(found.value - 1)?;
            *cursor = found.addr + place.size.bytes();
            if place.leaf_maps(at) {
                self.remove(found.value - 1);
                return Some(place);
            }
        }
        None
    }

    /// Takes out the first entry, of any context, that maps something of `[base, base + bytes)` of the
    /// VM.
    pub fn pop_mapping(&mut self, base: Ipa, bytes: u64) -> Option<Place> {
        let end = base.raw().saturating_add(bytes);
        let found = self.reverse.next(base.raw(), end, 0)?;
        let number = (found.value & HEAD) - 1;
        let place = self.place(number)?;
        self.remove(number);
        Some(place)
    }

    /// Shows every entry that maps something of `[base, base + bytes)` of the VM.
    pub fn for_each_mapping(&self, base: Ipa, bytes: u64, mut each: impl FnMut(Place)) {
        let end = base.raw().saturating_add(bytes);
        self.reverse.visit(base.raw(), end, &mut |found| {
            let mut next = found.value & HEAD;
            while next != 0 {
                each_place(self.place(next - 1), &mut each);
                next = self.entry(next - 1).next;
            }
        });
    }

    /// Shows every entry of a context that meets `[from, end)`, in order of address.
    pub fn for_each(&self, context: ContextId, from: L2Ipa, end: u64, mut each: impl FnMut(Place)) {
        if let Some(index) = self.index(context) {
            index.visit(from.raw(), end, &mut |found| {
                each_place(self.place(found.value - 1), &mut each);
            });
        }
    }
}

fn each_place(place: Option<Place>, each: &mut impl FnMut(Place)) {
    if let Some(place) = place {
        each(place);
    }
}

#[cfg(test)]
mod tests;
