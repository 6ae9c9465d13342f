//! Blocks into tables and back, and trees of tables given up as a whole.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use umbra_arm64::{Address, Granule, Level, Pa, Tag};

use crate::{
    entry::{self, AF, Entry},
    format::Format,
    map::{Broken, Make, MapError},
    seam::{NoMemory, Tables},
    table::{PageTable, Span, Spot},
    work::TlbWork,
};

/// What becomes of the carved-out span of a block; the rest stays as it was.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Carve {
    /// It stays too.
    Keep,
    /// It is unmapped.
    Absent,
    /// It is one leaf, this descriptor.
    Leaf(u64),
    /// It keeps its output and gets these attribute bits.
    Attrs(u64),
}

/// A table that says what a block said, but for one span; not published yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carved {
    /// First input address of the block.
    pub(crate) addr: u64,
    pub(crate) table: Pa,
    /// Bytes the table maps.
    pub(crate) bytes: u64,
}

impl<F: Format, A: Address> PageTable<F, A> {
    /// Breaks the block that maps `addr` into a table of the next level with the same mappings.
    /// `None` if `addr` is mapped by a page, or not at all.
    pub fn split(&mut self, addr: A, tables: &impl Tables) -> Result<Option<Broken>, MapError> {
        let spot = self
            .find(addr.to_raw(), tables)
            .ok_or(MapError::InputSize)?;
        match spot.entry {
            Entry::InTransition(_) => Err(MapError::Busy),
            Entry::Leaf if spot.level != Level::L3 => {
                let whole = Span::of_entry(
                    addr.to_raw(),
                    self.config.geometry.granule().level_bytes(spot.level),
                );
                let carved = self.carve(spot, addr.to_raw(), whole, Carve::Keep, tables)?;
                let mut work = TlbWork::new(self.config.tag, self.root);
                let make = self.break_block(spot, carved, &mut work, tables);
                Ok(Some(Broken { work, make }))
            }
            Entry::Leaf | Entry::Absent | Entry::Table(_) => Ok(None),
        }
    }

    /// Makes one block of `size` bytes out of the table below `addr`, if every entry of it is a leaf,
    /// their outputs follow each other, the first is aligned to `size` and their attributes are the
    /// same. The block counts as accessed if any leaf was. `None` if it cannot be one block.
    pub fn collapse(
        &mut self,
        addr: A,
        size: u64,
        tables: &impl Tables,
    ) -> Result<Option<Broken>, MapError> {
        let granule = self.config.geometry.granule();
        let level = granule
            .leaf_level(size)
            .filter(|level| *level >= self.config.geometry.start());
        let level = level.ok_or(MapError::Misaligned)?;
        let spot = self
            .find_to(addr.to_raw(), level, tables)
            .ok_or(MapError::InputSize)?;
        let child = match spot.entry {
            Entry::InTransition(_) => return Err(MapError::Busy),
            Entry::Absent | Entry::Leaf => return Ok(None),
            Entry::Table(child) => child,
        };
        let (Some(below), Some(word)) = (level.next(), self.one_block(child, level, tables)) else {
            return Ok(None);
        };
        let start = addr.to_raw() & !(size - 1);
        let mut work = TlbWork::new(self.config.tag, self.root);
        let make = self.break_entry(spot, start, word, size, &mut work, tables);
        work.add(start, size, None, false);
        self.detach_tree(child, Some(below), tables, &mut work);
        Ok(Some(Broken { work, make }))
    }

    /// The descriptor of `level` that says the same as all of `table`, if there is one.
    fn one_block(&self, table: Pa, level: Level, tables: &impl Tables) -> Option<u64> {
        let granule = self.config.geometry.granule();
        let (size, below) = (granule.level_bytes(level), level.next()?);
        let step = granule.level_bytes(below);
        let entries = tables.table(table);
        let first = entries[0].load(Acquire);
        let pa = entry::output(first, granule);
        let mut accessed = 0;
        for (index, slot) in entries.iter().enumerate() {
            let word = slot.load(Acquire);
            let follows = entry::decode(word, below, granule) == Entry::Leaf
                && entry::output(word, granule).raw() == pa.raw() + index as u64 * step
                && (entry::attrs(word, granule) ^ entry::attrs(first, granule)) & !AF == 0;
            if !follows {
                return None;
            }
            accessed |= word & AF;
        }
        pa.is_aligned(size)
            .then(|| entry::leaf(pa, level, entry::attrs(first, granule) | accessed))
    }

    /// Builds the table for the block at `spot` with `span` carved out of it.
    pub(crate) fn carve(
        &mut self,
        spot: Spot,
        addr: u64,
        span: Span,
        carve: Carve,
        tables: &impl Tables,
    ) -> Result<Carved, NoMemory> {
        let granule = self.config.geometry.granule();
        let block = Span::of_entry(addr, granule.level_bytes(spot.level));
        let mut pages = 0;
        let table = build(
            (granule, self.config.tag),
            spot.word,
            spot.level,
            block,
            span,
            carve,
            tables,
            &mut pages,
        )?;
        self.table_pages += pages;
        let gone = match carve {
            Carve::Absent => block.end.min(span.end) - block.start.max(span.start),
            Carve::Keep | Carve::Leaf(_) | Carve::Attrs(_) => 0,
        };
        Ok(Carved {
            addr: block.start,
            table,
            bytes: block.bytes() - gone,
        })
    }

    /// Frees a carved table that will not be used.
    pub(crate) fn uncarve(&mut self, carved: Carved, level: Level, tables: &impl Tables) {
        if let Some(below) = level.next() {
            self.table_pages -=
                free_tree(carved.table, below, self.config.geometry.granule(), tables);
        }
    }

    /// First half of putting a carved table in the place of its block.
    pub(crate) fn break_block(
        &mut self,
        spot: Spot,
        carved: Carved,
        work: &mut TlbWork,
        tables: &impl Tables,
    ) -> Make {
        let size = self.config.geometry.granule().level_bytes(spot.level);
        self.mapped_bytes -= size;
        work.add(carved.addr, size, Some(spot.level), true);
        self.break_entry(
            spot,
            carved.addr,
            entry::table(carved.table),
            carved.bytes,
            work,
            tables,
        )
    }

    /// Hands a table that nothing points to any more, and all below it, to `work`.
    pub(crate) fn detach_tree(
        &mut self,
        table: Pa,
        level: Option<Level>,
        tables: &impl Tables,
        work: &mut TlbWork,
    ) {
        let granule = self.config.geometry.granule();
        if let Some(level) = level {
            for slot in tables.table(table) {
                match entry::decode(slot.load(Acquire), level, granule) {
                    Entry::Leaf => self.mapped_bytes -= granule.level_bytes(level),
                    Entry::Table(child) => self.detach_tree(child, level.next(), tables, work),
                    Entry::Absent | Entry::InTransition(_) => {}
                }
            }
        }
        self.table_pages -= 1;
        work.detach(table, tables);
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "a recursion over one block: the arguments are its state"
)]
fn build(
    (granule, tag): (Granule, Tag),
    word: u64,
    level: Level,
    block: Span,
    span: Span,
    carve: Carve,
    tables: &impl Tables,
    pages: &mut usize,
) -> Result<Pa, NoMemory> {
    let below = level.next().ok_or(NoMemory)?;
    let table = tables.alloc(1, tag)?;
    *pages += 1;
    let (step, pa, attrs) = (
        granule.level_bytes(below),
        entry::output(word, granule).raw(),
        entry::attrs(word, granule),
    );
    let mut part = Span {
        start: block.start,
        end: block.start + step,
    };
    for slot in tables.table(table) {
        let output = Pa::new(pa + (part.start - block.start));
        let same = entry::leaf(output, below, attrs);
        let entry = if !span.meets(part) {
            same
        } else if span.contains(part) {
            match carve {
                Carve::Keep => same,
                Carve::Absent => entry::ABSENT,
                Carve::Leaf(leaf) => leaf,
                Carve::Attrs(bits) => entry::leaf(output, below, bits | attrs & AF),
            }
        } else {
            match build(
                (granule, tag),
                same,
                below,
                part,
                span,
                carve,
                tables,
                pages,
            ) {
                Ok(child) => entry::table(child),
                Err(NoMemory) => {
                    free_tree(table, below, granule, tables);
                    return Err(NoMemory);
                }
            }
        };
        slot.store(entry, Relaxed);
        part = Span {
            start: part.start + step,
            end: part.end + step,
        };
    }
    Ok(table)
}

/// Frees a tree that hardware never saw. Returns its pages.
pub(crate) fn free_tree(table: Pa, level: Level, granule: Granule, tables: &impl Tables) -> usize {
    let mut pages = 1;
    if let Some(next) = level.next() {
        for slot in tables.table(table) {
            if let Entry::Table(child) = entry::decode(slot.load(Relaxed), level, granule) {
                pages += free_tree(child, next, granule, tables);
            }
        }
    }
    tables.free(table, 1);
    pages
}
