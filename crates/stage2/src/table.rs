//! The table itself: making, reading, ageing and destroying it.

use core::{
    marker::PhantomData,
    ops::ControlFlow,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};

use umbra_arm64::{Address, Level, Pa, Tag};

use crate::{
    entry::{self, AF, Entry, Ticket},
    format::{Attrs, Format},
    geometry::Geometry,
    seam::{NoMemory, Tables},
    work::TlbWork,
};

/// What a table is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config<F> {
    /// Its shape.
    pub geometry: Geometry,
    /// Physical address bits of the machine, at most 48: no output lies beyond.
    pub output_bits: u32,
    /// The descriptor format.
    pub format: F,
    /// The tag under which hardware caches its translations.
    pub tag: Tag,
}

/// A mapping, as one descriptor says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf<A> {
    /// First input address.
    pub addr: A,
    /// The output address of `addr`.
    pub pa: Pa,
    /// Bytes mapped.
    pub size: u64,
    /// Level of the descriptor.
    pub level: Level,
    /// Memory type, rights, access flag, software bits.
    pub attrs: Attrs,
}

impl<A: Address> Leaf<A> {
    /// The output address of `addr`, or `None` where the leaf does not map it.
    pub fn output(&self, addr: A) -> Option<Pa> {
        let offset = addr.to_raw().checked_sub(self.addr.to_raw())?;
        if offset < self.size {
            self.pa.checked_add(offset)
        } else {
            None
        }
    }
}

/// A set of translation tables from addresses of type `A`.
///
/// Dropping one leaks its pages: `destroy` it.
#[derive(Debug)]
pub struct PageTable<F, A> {
    pub(crate) config: Config<F>,
    pub(crate) root: Pa,
    pub(crate) mapped_bytes: u64,
    pub(crate) table_pages: usize,
    pub(crate) next_ticket: u64,
    /// Breaks that were neither completed nor found cancelled.
    pub(crate) open_breaks: usize,
    space: PhantomData<A>,
}

/// Where the last look of [`PageTable::lookup_near`] ended: a table of level 3 and the first address
/// that it spans.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(Option<(u64, Pa)>);

/// Where a walk for one address ended: the entry that decides about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) table: Pa,
    pub(crate) level: Level,
    pub(crate) word: u64,
    pub(crate) entry: Entry,
}

/// A range of raw input addresses, end exclusive; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    pub(crate) fn of_entry(addr: u64, size: u64) -> Span {
        let start = addr & !(size - 1);
        Span {
            start,
            end: start + size,
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn contains(self, inner: Span) -> bool {
        self.start <= inner.start && inner.end <= self.end
    }

    pub(crate) fn meets(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

impl<F: Format, A: Address> PageTable<F, A> {
    /// Makes an empty table.
    pub fn new(config: Config<F>, tables: &impl Tables) -> Result<Self, NoMemory> {
        let pages = config.geometry.root_tables();
        Ok(Self {
            config,
            root: tables.alloc(pages, config.tag)?,
            mapped_bytes: 0,
            table_pages: pages,
            next_ticket: 1,
            open_breaks: 0,
            space: PhantomData,
        })
    }

    /// The physical address for VTTBR_EL2.BADDR or TTBR0_EL2.BADDR.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// The shape of the table.
    pub fn geometry(&self) -> Geometry {
        self.config.geometry
    }

    /// The tag that TLB work carries.
    pub fn tag(&self) -> Tag {
        self.config.tag
    }

    /// Gives the table another tag, under which hardware must hold nothing yet. The caller sees to it
    /// that no work under the old tag is outstanding.
    pub fn retag(&mut self, tag: Tag) {
        self.config.tag = tag;
    }

    /// Bytes of input address that are mapped; entries in transition do not count.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Pages the table itself occupies, the root and pages for splits under way included. Pages that
    /// wait in a `TlbWork` do not count.
    pub fn table_pages(&self) -> usize {
        self.table_pages
    }

    /// The mapping of `addr`. `None`: not mapped, in transition, or beyond the input space.
    pub fn lookup(&self, addr: A, tables: &impl Tables) -> Option<Leaf<A>> {
        let spot = self.find(addr.to_raw(), tables)?;
        (spot.entry == Entry::Leaf).then(|| self.leaf_at(addr.to_raw(), spot.level, spot.word))
    }

    /// [`PageTable::lookup`] of one address after another: a neighbour of the last one is found
    /// without a walk. The table must not have changed since the first.
    pub fn lookup_near(
        &self,
        cursor: &mut Cursor,
        addr: A,
        tables: &impl Tables,
    ) -> Option<Leaf<A>> {
        let addr = addr.to_raw();
        let granule = self.config.geometry.granule();
        let span = Span::of_entry(addr, granule.level_bytes(Level::L2));
        let (level, word) = match cursor.0 {
            Some((known, table)) if known == span.start => {
                let slot = self.slot(table, Level::L3, addr, tables);
                (Level::L3, slot.load(Acquire))
            }
            _ => {
                let spot = self.find(addr, tables)?;
                cursor.0 = (spot.level == Level::L3).then_some((span.start, spot.table));
                (spot.level, spot.word)
            }
        };
        let is_leaf = entry::decode(word, level, granule) == Entry::Leaf;
        is_leaf.then(|| self.leaf_at(addr, level, word))
    }

    /// Whether `addr` waits for the second half of a break-before-make: a fault there is retried.
    pub fn in_transition(&self, addr: A, tables: &impl Tables) -> bool {
        self.find(addr.to_raw(), tables)
            .is_some_and(|spot| matches!(spot.entry, Entry::InTransition(_)))
    }

    /// Calls `each` for every leaf that meets `bytes` from `addr` on, in order of address.
    pub fn visit(&self, addr: A, bytes: u64, tables: &impl Tables, mut each: impl FnMut(Leaf<A>)) {
        let _: ControlFlow<()> = self.for_each(
            self.clamp(addr, bytes),
            tables,
            &mut |start, level, word, _slot| {
                if entry::decode(word, level, self.config.geometry.granule()) == Entry::Leaf {
                    each(self.leaf_at(start, level, word));
                }
                ControlFlow::Continue(())
            },
        );
    }

    /// Sets the access flag of the leaf that maps `addr`, for an access-flag fault. An entry whose
    /// flag is clear is never in a TLB, so there is no TLB work. `false` if nothing maps `addr` now.
    pub fn make_young(&mut self, addr: A, tables: &impl Tables) -> bool {
        match self.find(addr.to_raw(), tables) {
            Some(spot) if spot.entry == Entry::Leaf => {
                self.slot(spot.table, spot.level, addr.to_raw(), tables)
                    .fetch_or(AF, Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Clears the access flags in the range and says whether any was set. A leaf that reaches
    /// beyond the range is aged as a whole; an entry in transition counts as accessed.
    ///
    /// No TLB work: an old translation may go on being used without setting the flag again, which
    /// makes ageing a little late and nothing else.
    pub fn age(&mut self, addr: A, bytes: u64, tables: &impl Tables) -> bool {
        let mut accessed = false;
        let granule = self.config.geometry.granule();
        let _: ControlFlow<()> = self.for_each(
            self.clamp(addr, bytes),
            tables,
            &mut |_, level, word, slot| {
                accessed |= match entry::decode(word, level, granule) {
                    Entry::Leaf => slot.fetch_and(!AF, Relaxed) & AF != 0,
                    Entry::InTransition(_) => true,
                    Entry::Absent | Entry::Table(_) => false,
                };
                ControlFlow::Continue(())
            },
        );
        accessed
    }

    /// Gives up the table. The work covers everything under the tag and frees every page, the root
    /// included: it is discharged when no CPU has the root loaded any more. A `Make` that is still
    /// open is abandoned (`Make::abandon`).
    pub fn destroy(mut self, tables: &impl Tables) -> TlbWork {
        let mut work = TlbWork::new(self.config.tag, self.root);
        let (granule, start, pages) = (
            self.config.geometry.granule(),
            self.config.geometry.start(),
            self.config.geometry.root_tables(),
        );
        for part in 0..pages {
            let table = self.root_part(part);
            for slot in tables.table(table) {
                if let Entry::Table(child) =
                    entry::decode(slot.swap(entry::ABSENT, Relaxed), start, granule)
                {
                    self.detach_tree(child, start.next(), tables, &mut work);
                }
            }
        }
        work.add_all();
        work.detach_root(self.root, pages);
        work
    }

    pub(crate) fn root_part(&self, part: usize) -> Pa {
        Pa::new(self.root.raw() + part as u64 * self.config.geometry.granule().bytes())
    }

    /// The part of the range that lies within the input space, rounded outwards to whole pages;
    /// `None` if that is nothing.
    pub(crate) fn clamp(&self, addr: A, bytes: u64) -> Option<Span> {
        let page = self.config.geometry.granule().bytes();
        let limit = self.config.geometry.input_bytes();
        let end = addr.to_raw().saturating_add(bytes).min(limit);
        let start = addr.to_raw() & !(page - 1);
        // The limit is a multiple of the page, so rounding up cannot pass it.
        (bytes != 0 && start < end).then(|| Span {
            start,
            end: (end + page - 1) & !(page - 1),
        })
    }

    pub(crate) fn slot<'t>(
        &self,
        table: Pa,
        level: Level,
        addr: u64,
        tables: &'t impl Tables,
    ) -> &'t AtomicU64 {
        let (table, index) = self.place(table, level, addr);
        &tables.table(table)[index]
    }

    /// The entries of one table for a span that does not reach beyond it.
    pub(crate) fn slots<'t>(
        &self,
        table: Pa,
        level: Level,
        span: Span,
        tables: &'t impl Tables,
    ) -> &'t [AtomicU64] {
        let (table, first) = self.place(table, level, span.start);
        let shift = self.config.geometry.granule().level_shift(level);
        &tables.table(table)[first..][..(span.bytes() >> shift) as usize]
    }

    /// The table page, of a root of several the right one, and the entry's number in it.
    fn place(&self, table: Pa, level: Level, addr: u64) -> (Pa, usize) {
        let granule = self.config.geometry.granule();
        let entries = granule.entries();
        let index = (addr >> granule.level_shift(level)) as usize;
        let table = if level == self.config.geometry.start() {
            self.root_part(index >> entries.trailing_zeros())
        } else {
            table
        };
        (table, index & (entries - 1))
    }

    /// Walks to the entry that decides about `addr`; `None` beyond the input space.
    pub(crate) fn find(&self, addr: u64, tables: &impl Tables) -> Option<Spot> {
        self.find_to(addr, Level::L3, tables)
    }

    /// Like `find`, but goes no deeper than `lowest`.
    pub(crate) fn find_to(&self, addr: u64, lowest: Level, tables: &impl Tables) -> Option<Spot> {
        if addr >= self.config.geometry.input_bytes() {
            return None;
        }
        let granule = self.config.geometry.granule();
        let mask = granule.entries() - 1;
        let mut level = self.config.geometry.start();
        let mut shift = granule.level_shift(level);
        let (mut table, index) = self.place(self.root, level, addr);
        let mut word = tables.table(table)[index].load(Acquire);
        // By far the most steps are from a table to the next.
        while level < lowest
            && let (Entry::Table(child), Some(next)) =
                (entry::decode(word, level, granule), level.next())
        {
            (table, level) = (child, next);
            shift -= mask.count_ones();
            word = tables.table(table)[(addr >> shift) as usize & mask].load(Acquire);
        }
        Some(Spot {
            table,
            level,
            word,
            entry: entry::decode(word, level, granule),
        })
    }

    pub(crate) fn leaf_at(&self, addr: u64, level: Level, word: u64) -> Leaf<A> {
        let granule = self.config.geometry.granule();
        let size = granule.level_bytes(level);
        Leaf {
            addr: A::from_raw(addr & !(size - 1)),
            pa: entry::output(word, granule),
            size,
            level,
            attrs: self.config.format.decode(word),
        }
    }

    /// Calls `each(start, level, word, slot)` for every entry in the span that is neither absent nor a
    /// table, in order of address.
    pub(crate) fn for_each<T: Tables, B>(
        &self,
        span: Option<Span>,
        tables: &T,
        each: &mut impl FnMut(u64, Level, u64, &AtomicU64) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        match span {
            Some(span) => {
                self.for_each_in(self.root, self.config.geometry.start(), span, tables, each)
            }
            None => ControlFlow::Continue(()),
        }
    }

    fn for_each_in<T: Tables, B>(
        &self,
        table: Pa,
        level: Level,
        span: Span,
        tables: &T,
        each: &mut impl FnMut(u64, Level, u64, &AtomicU64) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let granule = self.config.geometry.granule();
        let size = granule.level_bytes(level);
        let mut start = span.start & !(size - 1);
        while start < span.end {
            let slot = self.slot(table, level, start, tables);
            let word = slot.load(Acquire);
            match (entry::decode(word, level, granule), level.next()) {
                (Entry::Absent, _) => {}
                (Entry::Table(child), Some(next)) => {
                    let below = Span {
                        start: span.start.max(start),
                        end: span.end.min(start + size),
                    };
                    self.for_each_in(child, next, below, tables, each)?;
                }
                _ => each(start, level, word, slot)?,
            }
            start += size;
        }
        ControlFlow::Continue(())
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.open_breaks += 1;
        ticket
    }
}
