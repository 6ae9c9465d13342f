//! Mapping one leaf, and the two halves of break-before-make.
//!
//! What `map` does depends on what it finds at the leaf's place (Arm ARM D8.16.1, "Using
//! break-before-make"):
//!
//! ```text
//!   nothing                    write the leaf                              Fresh
//!   the same leaf              at most set AF or software bits             Unchanged
//!   same output, other rights  compare-and-swap, old rights may linger     Rights(work)
//!   other output or type,      mark in transition, discharge, write        Broken { work, make }
//!   a block, or a table
//!   a mark of transition       leave it                                    Err(Busy)
//! ```

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use umbra_arm64::{Address, Granule, Level, Pa};

use crate::{
    entry::{self, AF, Entry, Ticket},
    format::{Attrs, Format},
    resize::{Carve, free_tree},
    seam::{NoMemory, Tables},
    table::{PageTable, Span, Spot},
    work::{Discharged, TlbRequest, TlbWork, unwinding},
};

/// Why an operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or size is not a multiple of what it has to be, or the size is not that of a leaf.
    Misaligned,
    /// The range leaves the input address space.
    InputSize,
    /// The output leaves the machine's physical address space.
    OutputSize,
    /// The descriptor format cannot express the attributes.
    Attributes,
    /// The entry is in transition: somebody is between the halves of a break-before-make. Let the
    /// access happen again.
    Busy,
    /// No page for a table.
    NoMemory,
}

impl From<NoMemory> for MapError {
    fn from(_: NoMemory) -> Self {
        MapError::NoMemory
    }
}

/// What `map` did.
#[derive(Debug)]
#[must_use = "may carry TLB work"]
pub enum Mapped {
    /// Nothing was mapped before; no TLB work.
    Fresh,
    /// The mapping was there already; no TLB work.
    Unchanged,
    /// Rights changed in place. Until the work is discharged the old ones may still be in use, in
    /// either direction: a tightening is not yet effective, a loosening may fault once more.
    Rights(TlbWork),
    /// The old mapping is gone, the new one follows by `complete`.
    Broken(Broken),
}

/// The first half of a break-before-make: the entry is invalid and marked.
#[derive(Debug)]
#[must_use = "the entry stays in transition until it is completed"]
pub struct Broken {
    /// Invalidates what the entry said before.
    pub work: TlbWork,
    /// Writes what it shall say; works only after `work` has been discharged.
    pub make: Make,
}

impl Broken {
    /// Both halves at once, for a caller that keeps the lock throughout.
    pub fn finish<F: Format, A: Address>(
        self,
        table: &mut PageTable<F, A>,
        tables: &impl Tables,
        invalidate: impl FnMut(&TlbRequest),
    ) -> Completed {
        let discharged = self.work.discharge(invalidate);
        let completed = table.complete(self.make, &discharged, tables);
        discharged.release(tables);
        completed
    }
}

/// The second half of a break-before-make.
#[derive(Debug)]
#[must_use = "the entry stays in transition until it is completed"]
pub struct Make {
    pub(crate) root: Pa,
    pub(crate) granule: Granule,
    pub(crate) addr: u64,
    pub(crate) level: Level,
    pub(crate) ticket: Ticket,
    /// The descriptor to write.
    pub(crate) word: u64,
    /// What that will map.
    pub(crate) bytes: u64,
    pub(crate) armed: bool,
}

impl Make {
    /// Frees what was prepared, for a table that was destroyed in the meantime.
    pub fn abandon(mut self, tables: &impl Tables) {
        self.discard(tables);
    }

    /// Frees the table that the descriptor would have published. Returns its pages.
    fn discard(&mut self, tables: &impl Tables) -> usize {
        self.armed = false;
        match (
            entry::decode(self.word, self.level, self.granule),
            self.level.next(),
        ) {
            (Entry::Table(table), Some(next)) => free_tree(table, next, self.granule, tables),
            _ => 0,
        }
    }
}

impl Drop for Make {
    fn drop(&mut self) {
        if self.armed && !unwinding() {
            debug_assert!(
                false,
                "the entry at {:#x} was left in transition",
                self.addr
            );
        }
    }
}

/// How a break-before-make ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The new descriptor is in place.
    Made,
    /// The address was unmapped meanwhile; nothing was written.
    Cancelled,
}

impl<F: Format, A: Address> PageTable<F, A> {
    /// Maps `size` bytes, one leaf, from `addr` to `pa`.
    ///
    /// `size` is a leaf size of the granule, both addresses are multiples of it. An access flag
    /// that is already set stays set. On an error nothing was mapped or unmapped.
    pub fn map(
        &mut self,
        addr: A,
        pa: Pa,
        size: u64,
        attrs: Attrs,
        tables: &impl Tables,
    ) -> Result<Mapped, MapError> {
        let (level, bits) = self.check(addr, pa, size, attrs)?;
        let addr = addr.to_raw();
        let word = entry::leaf(pa, level, bits);
        let spot = self
            .find_to(addr, level, tables)
            .ok_or(MapError::InputSize)?;
        match spot.entry {
            Entry::InTransition(_) => Err(MapError::Busy),
            Entry::Absent => self.fill(spot, addr, level, word, tables),
            Entry::Leaf if spot.level == level => Ok(self.replace(spot, addr, word, tables)),
            Entry::Leaf => self.map_into_block(spot, addr, level, word, tables),
            Entry::Table(child) => {
                let mut work = TlbWork::new(self.config.tag, self.root);
                let make = self.break_entry(spot, addr, word, size, &mut work, tables);
                work.add(addr, size, None, false);
                self.detach_tree(child, level.next(), tables, &mut work);
                Ok(Mapped::Broken(Broken { work, make }))
            }
        }
    }

    /// Writes the new descriptor of a break whose work was discharged.
    ///
    /// # Panics
    ///
    /// If `discharged` is not from the work of this break: writing now would put two translations of
    /// one address into a TLB.
    pub fn complete(
        &mut self,
        mut make: Make,
        discharged: &Discharged,
        tables: &impl Tables,
    ) -> Completed {
        assert!(
            make.root == self.root && discharged.covers(make.root, make.ticket),
            "break-before-make at {:#x} completed without its own TLB work",
            make.addr
        );
        self.open_breaks -= 1;
        // The way to the entry may have been unmapped and rebuilt: walk it anew, trust the ticket only.
        let found = self.find_to(make.addr, make.level, tables).filter(|spot| {
            spot.level == make.level && spot.entry == Entry::InTransition(make.ticket)
        });
        match found {
            Some(spot) => {
                self.slot(spot.table, spot.level, make.addr, tables)
                    .store(make.word, Release);
                self.mapped_bytes += make.bytes;
                make.armed = false;
                Completed::Made
            }
            None => {
                self.table_pages -= make.discard(tables);
                Completed::Cancelled
            }
        }
    }

    /// Writes pages round the one at `near`, which is mapped, ahead of an access to them: where its
    /// own table has nothing, in the naturally aligned `window` of bytes, `pick` says for an address
    /// what to map there. What can be written is shown to `allow` right before it is. Answers how
    /// many there are now; the rest is left out.
    pub fn fill_near<T>(
        &mut self,
        near: A,
        window: u64,
        tables: &impl Tables,
        mut pick: impl FnMut(A) -> Option<(Pa, Attrs, T)>,
        mut allow: impl FnMut(T) -> bool,
    ) -> usize {
        let granule = self.config.geometry.granule();
        let (near, page) = (near.to_raw(), granule.bytes());
        let span = Span::of_entry(near, window.min(granule.level_bytes(Level::L2)));
        let table = match self.find(near, tables) {
            Some(spot) if spot.level == Level::L3 && spot.entry == Entry::Leaf => spot.table,
            _ => return 0,
        };
        let mut made = 0;
        let mut addr = span.start;
        for slot in self.slots(table, Level::L3, span, tables) {
            if slot.load(Relaxed) == entry::ABSENT
                && let Some((pa, attrs, of)) = pick(A::from_raw(addr))
                && let Ok(bits) = self.bits(pa, page, attrs)
                && allow(of)
            {
                slot.store(entry::leaf(pa, Level::L3, bits), Release);
                made += 1;
            }
            addr += page;
        }
        self.mapped_bytes += made as u64 * page;
        made
    }

    fn check(&self, addr: A, pa: Pa, size: u64, attrs: Attrs) -> Result<(Level, u64), MapError> {
        let geometry = self.config.geometry;
        let level = geometry
            .granule()
            .leaf_level(size)
            .filter(|level| *level >= geometry.start());
        let level = level.ok_or(MapError::Misaligned)?;
        if addr.to_raw() & (size - 1) != 0 {
            return Err(MapError::Misaligned);
        }
        if addr.to_raw() >= geometry.input_bytes() {
            return Err(MapError::InputSize);
        }
        Ok((level, self.bits(pa, size, attrs)?))
    }

    /// The attributes of a leaf of `size` bytes at `pa`, if there can be one.
    fn bits(&self, pa: Pa, size: u64, attrs: Attrs) -> Result<u64, MapError> {
        if !pa.is_aligned(size) {
            return Err(MapError::Misaligned);
        }
        // Both are multiples of `size`, and so is the limit: the last byte lies within if the first does.
        if pa.raw() >> self.config.output_bits.min(48) != 0 {
            return Err(MapError::OutputSize);
        }
        let format = &self.config.format;
        format.encode(attrs).ok_or(MapError::Attributes)
    }

    /// Writes a leaf below an absent entry: the missing tables first, published from below.
    fn fill(
        &mut self,
        spot: Spot,
        addr: u64,
        level: Level,
        word: u64,
        tables: &impl Tables,
    ) -> Result<Mapped, MapError> {
        let granule = self.config.geometry.granule();
        let (mut top, mut at, mut pages) = (word, level, 0);
        while at > spot.level {
            let table = match tables.alloc(1, self.config.tag) {
                Ok(table) => table,
                Err(NoMemory) => {
                    if let (Entry::Table(table), Some(next)) =
                        (entry::decode(top, at, granule), at.next())
                        && at < level
                    {
                        free_tree(table, next, granule, tables);
                    }
                    return Err(MapError::NoMemory);
                }
            };
            pages += 1;
            self.slot(table, at, addr, tables).store(top, Relaxed);
            top = entry::table(table);
            at = Level::from_number(at.number() - 1).unwrap_or(spot.level);
        }
        self.slot(spot.table, spot.level, addr, tables)
            .store(top, Release);
        self.table_pages += pages;
        self.mapped_bytes += granule.level_bytes(level);
        Ok(Mapped::Fresh)
    }

    /// A leaf where a leaf of the same size is.
    fn replace(&mut self, spot: Spot, addr: u64, word: u64, tables: &impl Tables) -> Mapped {
        let granule = self.config.geometry.granule();
        let mut work = TlbWork::new(self.config.tag, self.root);
        let (old, new) = (
            self.config.format.decode(spot.word),
            self.config.format.decode(word),
        );
        if entry::output(spot.word, granule) != entry::output(word, granule)
            || old.memory != new.memory
        {
            let size = granule.level_bytes(spot.level);
            self.mapped_bytes -= size;
            work.add(addr, size, Some(spot.level), true);
            let make = self.break_entry(spot, addr, word, size, &mut work, tables);
            return Mapped::Broken(Broken { work, make });
        }
        let before = self.update(spot.table, spot.level, addr, word, tables);
        if entry::needs_invalidation(before, word) {
            work.add(
                addr,
                granule.level_bytes(spot.level),
                Some(spot.level),
                true,
            );
            Mapped::Rights(work)
        } else {
            Mapped::Unchanged
        }
    }

    /// A smaller leaf within a block.
    fn map_into_block(
        &mut self,
        spot: Spot,
        addr: u64,
        level: Level,
        word: u64,
        tables: &impl Tables,
    ) -> Result<Mapped, MapError> {
        let granule = self.config.geometry.granule();
        let block = granule.level_bytes(spot.level);
        let span = Span::of_entry(addr, granule.level_bytes(level));
        let offset = addr & (block - 1);
        let same_output =
            entry::output(spot.word, granule).raw() + offset == entry::output(word, granule).raw();
        let same_attrs = !entry::needs_invalidation(
            entry::attrs(spot.word, granule) | entry::VALID,
            entry::attrs(word, granule) | entry::VALID,
        );
        if same_output && same_attrs {
            if word & AF != 0 {
                self.slot(spot.table, spot.level, addr, tables)
                    .fetch_or(AF, Relaxed);
            }
            return Ok(Mapped::Unchanged);
        }
        let carved = self.carve(spot, addr, span, Carve::Leaf(word), tables)?;
        let mut work = TlbWork::new(self.config.tag, self.root);
        let make = self.break_block(spot, carved, &mut work, tables);
        Ok(Mapped::Broken(Broken { work, make }))
    }

    /// Writes `word`, which differs from the entry in rights at most, and keeps an access flag that
    /// hardware sets at the same time. Returns what was there.
    pub(crate) fn update(
        &self,
        table: Pa,
        level: Level,
        addr: u64,
        word: u64,
        tables: &impl Tables,
    ) -> u64 {
        let slot = self.slot(table, level, addr, tables);
        let mut old = slot.load(Acquire);
        while let Err(seen) = slot.compare_exchange_weak(old, word | old & AF, AcqRel, Acquire) {
            old = seen;
        }
        old
    }

    /// Marks the entry at `spot` as in transition to `word`, which will map `bytes`.
    pub(crate) fn break_entry(
        &mut self,
        spot: Spot,
        addr: u64,
        word: u64,
        bytes: u64,
        work: &mut TlbWork,
        tables: &impl Tables,
    ) -> Make {
        let ticket = self.ticket();
        work.add_break(ticket);
        let slot = self.slot(spot.table, spot.level, addr, tables);
        slot.swap(entry::in_transition(ticket), AcqRel);
        Make {
            root: self.root,
            granule: self.config.geometry.granule(),
            addr,
            level: spot.level,
            ticket,
            word,
            bytes,
            armed: true,
        }
    }
}
