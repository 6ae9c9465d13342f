//! Unmapping and changing rights over a range.
//!
//! Each comes in two kinds, because a block may reach beyond the range:
//!
//! - `unmap`, `protect` are exact. The block is split, which allocates a table and is a
//!   break-before-make: at most two, one at each end. All that can fail is done first.
//! - `evict`, `write_protect` cannot fail and allocate nothing. They take the whole block: what
//!   lies outside the range faults and is mapped again. For tables that can be refilled on demand.

use core::{
    ops::ControlFlow,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
};

use umbra_arm64::{Address, Level, Pa, Rights};

use crate::{
    entry::{self, AF, Entry, VALID},
    format::Format,
    map::{Make, MapError},
    resize::{Carve, Carved},
    seam::Tables,
    table::{Leaf, PageTable, Span, Spot},
    work::{TlbRequest, TlbWork},
};

/// What an exact change of a range owes.
#[derive(Debug)]
#[must_use = "carries TLB work and entries in transition"]
pub struct Change {
    /// Invalidates what changed.
    pub work: TlbWork,
    /// Blocks at the ends of the range that are being split; complete them after `work`.
    pub makes: [Option<Make>; 2],
}

impl Change {
    /// Discharges the work, completes the splits and frees the pages, for a caller that keeps the
    /// lock throughout.
    pub fn finish<F: Format, A: Address>(
        self,
        table: &mut PageTable<F, A>,
        tables: &impl Tables,
        invalidate: impl FnMut(&TlbRequest),
    ) {
        let discharged = self.work.discharge(invalidate);
        for make in self.makes.into_iter().flatten() {
            table.complete(make, &discharged, tables);
        }
        discharged.release(tables);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Remove,
    Rights(Rights),
    WriteProtect,
}

/// What a sweep over a range produces, and the carved tables it may use on the way.
struct Sweep {
    edit: Edit,
    work: TlbWork,
    makes: [Option<Make>; 2],
    carved: [Option<Carved>; 2],
}

impl Sweep {
    fn take_carved(&mut self, addr: u64) -> Option<Carved> {
        self.carved
            .iter_mut()
            .find(|carved| carved.is_some_and(|carved| carved.addr == addr))?
            .take()
    }

    fn push(&mut self, make: Make) {
        let [first, second] = &mut self.makes;
        *if first.is_none() { first } else { second } = Some(make);
    }
}

impl<F: Format, A: Address> PageTable<F, A> {
    /// Unmaps exactly `bytes` from `addr` on, both multiples of the granule. Absent parts are no
    /// error; a break-before-make wholly inside the range is cancelled.
    pub fn unmap(&mut self, addr: A, bytes: u64, tables: &impl Tables) -> Result<Change, MapError> {
        self.exactly(addr, bytes, Edit::Remove, tables)
    }

    /// Gives exactly `bytes` from `addr` on, both multiples of the granule, these rights; absent
    /// parts stay absent. `Busy` if an entry of the range is in transition.
    pub fn protect(
        &mut self,
        addr: A,
        bytes: u64,
        rights: Rights,
        tables: &impl Tables,
    ) -> Result<Change, MapError> {
        self.exactly(addr, bytes, Edit::Rights(rights), tables)
    }

    /// Unmaps every leaf that meets the range. Entries in transition become absent: their break is
    /// cancelled, and what it broke is invalidated here too.
    pub fn evict(&mut self, addr: A, bytes: u64, tables: &impl Tables) -> TlbWork {
        self.roughly(addr, bytes, Edit::Remove, tables)
    }

    /// Takes write permission from every leaf that meets the range (dirty logging). Entries in
    /// transition become absent, since what they are becoming might be writable.
    pub fn write_protect(&mut self, addr: A, bytes: u64, tables: &impl Tables) -> TlbWork {
        self.roughly(addr, bytes, Edit::WriteProtect, tables)
    }

    /// An empty work of this table, for [`PageTable::remove_leaf`] to add to.
    pub fn work(&self) -> TlbWork {
        TlbWork::new(self.config.tag, self.root)
    }

    /// Unmaps the leaf that maps `addr`, adds what that owes to `work`, and says what the leaf was. An
    /// entry in transition becomes absent. A table that this leaves empty stays until its range is
    /// evicted: the cost is that of one walk.
    pub fn remove_leaf(
        &mut self,
        addr: A,
        work: &mut TlbWork,
        tables: &impl Tables,
    ) -> Option<Leaf<A>> {
        let spot = self.find(addr.to_raw(), tables)?;
        let size = self.config.geometry.granule().level_bytes(spot.level);
        let part = Span::of_entry(addr.to_raw(), size);
        match spot.entry {
            Entry::Absent | Entry::Table(_) => return None,
            Entry::Leaf | Entry::InTransition(_) => {}
        }
        let old = self
            .slot(spot.table, spot.level, part.start, tables)
            .swap(entry::ABSENT, AcqRel);
        if spot.entry != Entry::Leaf {
            work.add(part.start, size, None, false);
            return None;
        }
        self.mapped_bytes -= size;
        if old & VALID != 0 {
            work.add(part.start, size, Some(spot.level), true);
        }
        Some(self.leaf_at(part.start, spot.level, old))
    }

    fn roughly(&mut self, addr: A, bytes: u64, edit: Edit, tables: &impl Tables) -> TlbWork {
        self.run(self.clamp(addr, bytes), edit, [None; 2], tables)
            .work
    }

    fn exactly(
        &mut self,
        addr: A,
        bytes: u64,
        edit: Edit,
        tables: &impl Tables,
    ) -> Result<Change, MapError> {
        let page = self.config.geometry.granule().bytes();
        if (addr.to_raw() | bytes) & (page - 1) != 0 {
            return Err(MapError::Misaligned);
        }
        let end = addr
            .to_raw()
            .checked_add(bytes)
            .ok_or(MapError::InputSize)?;
        if end > self.config.geometry.input_bytes() {
            return Err(MapError::InputSize);
        }
        if let Edit::Rights(rights) = edit {
            self.config
                .format
                .encode(crate::Attrs::normal(rights))
                .ok_or(MapError::Attributes)?;
        }
        let span = (bytes != 0).then_some(Span {
            start: addr.to_raw(),
            end,
        });
        if self.open_breaks > 0 && self.is_busy(span, edit, tables) {
            return Err(MapError::Busy);
        }
        let carved = match span {
            Some(span) => self.carve_ends(span, edit, tables)?,
            None => [None; 2],
        };
        Ok(self.run(span, edit, carved, tables))
    }

    /// Whether an entry in transition stands in the way of an exact edit.
    fn is_busy(&self, span: Option<Span>, edit: Edit, tables: &impl Tables) -> bool {
        let granule = self.config.geometry.granule();
        let walk = self.for_each(span, tables, &mut |start, level, word, _| {
            let part = Span::of_entry(start, granule.level_bytes(level));
            let whole = span.is_some_and(|span| span.contains(part));
            match entry::decode(word, level, granule) {
                Entry::InTransition(_) if edit != Edit::Remove || !whole => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        walk.is_break()
    }

    /// Prepares the tables for the blocks that reach over the ends of the span.
    fn carve_ends(
        &mut self,
        span: Span,
        edit: Edit,
        tables: &impl Tables,
    ) -> Result<[Option<Carved>; 2], MapError> {
        let mut carved = [None; 2];
        let mut first: Option<(Carved, Level)> = None;
        for (end, addr) in [span.start, span.end - 1].into_iter().enumerate() {
            let Some(spot) = self.find(addr, tables) else {
                continue;
            };
            let block =
                Span::of_entry(addr, self.config.geometry.granule().level_bytes(spot.level));
            let known = first.is_some_and(|(carved, _)| carved.addr == block.start);
            if spot.entry != Entry::Leaf || span.contains(block) || known {
                continue;
            }
            let Some(carve) = self.carving(spot, edit) else {
                continue;
            };
            match self.carve(spot, addr, span, carve, tables) {
                Ok(new) => {
                    carved[end] = Some(new);
                    first = Some((new, spot.level));
                }
                Err(no_memory) => {
                    if let Some((unused, level)) = first {
                        self.uncarve(unused, level, tables);
                    }
                    return Err(no_memory.into());
                }
            }
        }
        Ok(carved)
    }

    /// What an edit carves out of the block at `spot`; `None` if the block is that already.
    fn carving(&self, spot: Spot, edit: Edit) -> Option<Carve> {
        if edit == Edit::Remove {
            return Some(Carve::Absent);
        }
        let word = self.edited(spot.level, spot.word, edit)?;
        let granule = self.config.geometry.granule();
        ((word ^ spot.word) & !AF != 0).then(|| Carve::Attrs(entry::attrs(word, granule)))
    }

    /// The leaf after a change of rights; `None` where the format cannot say it.
    fn edited(&self, level: Level, word: u64, edit: Edit) -> Option<u64> {
        let granule = self.config.geometry.granule();
        let mut attrs = self.config.format.decode(word);
        match edit {
            Edit::Remove => return None,
            Edit::Rights(rights) => attrs.rights = rights,
            Edit::WriteProtect => attrs.rights.write = false,
        }
        Some(entry::leaf(
            entry::output(word, granule),
            level,
            self.config.format.encode(attrs)?,
        ))
    }

    fn run(
        &mut self,
        span: Option<Span>,
        edit: Edit,
        carved: [Option<Carved>; 2],
        tables: &impl Tables,
    ) -> Change {
        let work = TlbWork::new(self.config.tag, self.root);
        let mut sweep = Sweep {
            edit,
            work,
            makes: [None, None],
            carved,
        };
        if let Some(span) = span {
            self.sweep(
                self.root,
                self.config.geometry.start(),
                span,
                &mut sweep,
                tables,
            );
        }
        Change {
            work: sweep.work,
            makes: sweep.makes,
        }
    }

    fn sweep(
        &mut self,
        table: Pa,
        level: Level,
        span: Span,
        sweep: &mut Sweep,
        tables: &impl Tables,
    ) {
        let granule = self.config.geometry.granule();
        let size = granule.level_bytes(level);
        let mut start = span.start & !(size - 1);
        while start < span.end {
            let part = Span {
                start,
                end: start + size,
            };
            let slot = self.slot(table, level, start, tables);
            let word = slot.load(Acquire);
            let entry = entry::decode(word, level, granule);
            match entry {
                Entry::Absent => {}
                Entry::InTransition(_) => {
                    slot.swap(entry::ABSENT, AcqRel);
                    sweep.work.add(start, size, None, false);
                }
                Entry::Table(child) if sweep.edit == Edit::Remove && span.contains(part) => {
                    slot.swap(entry::ABSENT, AcqRel);
                    self.detach_tree(child, level.next(), tables, &mut sweep.work);
                    sweep.work.add(start, size, None, false);
                }
                Entry::Table(child) => {
                    let below = Span {
                        start: span.start.max(start),
                        end: span.end.min(part.end),
                    };
                    self.sweep_below(child, level, below, sweep, tables);
                    if sweep.edit == Edit::Remove && is_empty(child, below, size, tables) {
                        slot.swap(entry::ABSENT, AcqRel);
                        self.detach_tree(child, level.next(), tables, &mut sweep.work);
                        sweep.work.add(start, size, None, false);
                    }
                }
                Entry::Leaf => self.edit_leaf(
                    Spot {
                        table,
                        level,
                        word,
                        entry,
                    },
                    part,
                    sweep,
                    tables,
                ),
            }
            start += size;
        }
    }

    fn sweep_below(
        &mut self,
        child: Pa,
        level: Level,
        span: Span,
        sweep: &mut Sweep,
        tables: &impl Tables,
    ) {
        if let Some(next) = level.next() {
            self.sweep(child, next, span, sweep, tables);
        }
    }

    fn edit_leaf(&mut self, spot: Spot, part: Span, sweep: &mut Sweep, tables: &impl Tables) {
        if let Some(carved) = sweep.take_carved(part.start) {
            let make = self.break_block(spot, carved, &mut sweep.work, tables);
            sweep.push(make);
        } else if sweep.edit == Edit::Remove {
            let old = self
                .slot(spot.table, spot.level, part.start, tables)
                .swap(entry::ABSENT, AcqRel);
            self.mapped_bytes -= part.bytes();
            if old & VALID != 0 {
                sweep
                    .work
                    .add(part.start, part.bytes(), Some(spot.level), true);
            }
        } else if let Some(word) = self.edited(spot.level, spot.word, sweep.edit) {
            let old = self.update(spot.table, spot.level, part.start, word, tables);
            if entry::needs_invalidation(old, word) {
                sweep
                    .work
                    .add(part.start, part.bytes(), Some(spot.level), true);
            }
        }
    }
}

/// Whether no entry of the table, which spans `bytes`, is in use, now that `swept` is not. The entries on
/// either side of that are looked at first: who unmaps page by page mostly finds one there, and need
/// not pay for a look at all of them.
fn is_empty(table: Pa, swept: Span, bytes: u64, tables: &impl Tables) -> bool {
    let entries = tables.table(table);
    let is_used = |slot: &AtomicU64| slot.load(Acquire) != entry::ABSENT;
    let each = (bytes / entries.len() as u64).max(1);
    let index = |addr: u64| (addr % bytes / each) as usize;
    let before = index(swept.start).checked_sub(1);
    let behind = index(swept.end - 1) + 1;
    let beside = before.into_iter().chain([behind]);
    !beside.filter_map(|at| entries.get(at)).any(is_used) && !entries.iter().any(is_used)
}
