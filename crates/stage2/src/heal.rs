//! Tables whose own pages went bad: what hangs on a page that cannot be trusted is cut off, and faults
//! fill it again. A root that is bad is replaced: what hangs on its good parts moves to a fresh one.
//!
//! What hung below a page that cannot be read is not found by a walk. Its owner finds it by the tag that
//! `Tables::alloc` was told, among the pages that [`PageTable::visit_tables`] does not come by any more.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use umbra_arm64::{Address, Level, Pa};

use crate::{
    entry::{self, Entry},
    format::Format,
    seam::Tables,
    table::PageTable,
    work::TlbWork,
};

/// What [`PageTable::cut_unsound`] did.
#[derive(Debug)]
pub struct Healed {
    /// Pages that were cut off, pages of a root included.
    pub cuts: usize,
    /// Whether tables or leaves hung below them that no walk comes by now.
    pub orphans: bool,
    /// The root before, if it was replaced: in one piece, as it was allocated. It is the caller's, who
    /// frees it when no CPU has it loaded. Its entries are gone, so that a CPU which has maps nothing.
    pub old_root: Option<Pa>,
    /// Covers everything under the tag if anything was cut.
    pub work: TlbWork,
}

impl<F: Format, A: Address> PageTable<F, A> {
    /// Cuts off every table page that `is_sound` refuses, with all below it; `cut` is told each with the first
    /// input address and the bytes of what it mapped. Where pages of the root are refused it is replaced; without
    /// memory for another it stays as it is.
    pub fn cut_unsound(
        &mut self,
        tables: &impl Tables,
        is_sound: &mut impl FnMut(Pa) -> bool,
        cut: &mut impl FnMut(Pa, u64, u64),
    ) -> Healed {
        let granule = self.config.geometry.granule();
        let start = self.config.geometry.start();
        let (mut cuts, mut orphans) = (0, false);
        let old_root = self.renew_root(tables, is_sound, &mut |part, page| {
            cuts += 1;
            orphans = true;
            let bytes = granule.level_bytes(start) * granule.entries() as u64;
            cut(page, part as u64 * bytes, bytes);
        });
        let (mut bytes, mut pages) = (0, 0);
        for part in 0..self.config.geometry.root_tables() {
            let first = part as u64 * granule.level_bytes(start) * granule.entries() as u64;
            let mut visit = |child: Pa, level: Option<Level>, at: u64, size: u64| {
                let sound = is_sound(child);
                if !sound {
                    cut(child, at, size);
                    cuts += 1;
                    orphans |= level.is_some_and(|level| level != Level::L3);
                }
                sound
            };
            let left = &mut (&mut bytes, &mut pages);
            let root = self.root_part(part);
            self.sift(root, Some(start), first, tables, &mut visit, left);
        }
        let mut work = TlbWork::new(self.config.tag, self.root);
        if cuts > 0 {
            self.mapped_bytes = bytes;
            self.table_pages = pages;
            work.add_all();
        }
        Healed {
            cuts,
            orphans,
            old_root,
            work,
        }
    }

    /// Replaces the root if one of its pages is refused, each of which `cut` is told.
    fn renew_root(
        &mut self,
        tables: &impl Tables,
        is_sound: &mut impl FnMut(Pa) -> bool,
        cut: &mut impl FnMut(usize, Pa),
    ) -> Option<Pa> {
        let parts = self.config.geometry.root_tables();
        // A root is 16 pages at most (Arm ARM D8.2.3, concatenated tables).
        let refused = (0..parts)
            .filter(|&part| !is_sound(self.root_part(part)))
            .fold(0u32, |refused, part| refused | 1 << part);
        if refused == 0 {
            return None;
        }
        let fresh = tables.alloc(parts, self.config.tag).ok()?;
        let old = core::mem::replace(&mut self.root, fresh);
        for part in 0..parts {
            let at = part as u64 * self.config.geometry.granule().bytes();
            let from = Pa::new(old.raw() + at);
            if refused >> part & 1 == 1 {
                cut(part, from);
                continue;
            }
            for (to, from) in tables
                .table(self.root_part(part))
                .iter()
                .zip(tables.table(from))
            {
                to.store(from.swap(entry::ABSENT, Relaxed), Relaxed);
            }
        }
        Some(old)
    }

    /// Clears entries whose table is refused, and counts what is left.
    fn sift(
        &self,
        table: Pa,
        level: Option<Level>,
        first: u64,
        tables: &impl Tables,
        visit: &mut impl FnMut(Pa, Option<Level>, u64, u64) -> bool,
        left: &mut (&mut u64, &mut usize),
    ) {
        *left.1 += 1;
        let Some(level) = level else { return };
        let granule = self.config.geometry.granule();
        let bytes = granule.level_bytes(level);
        for (slot, at) in tables
            .table(table)
            .iter()
            .zip((first..).step_by(bytes as usize))
        {
            match entry::decode(slot.load(Acquire), level, granule) {
                Entry::Leaf => *left.0 += bytes,
                Entry::Table(child) if visit(child, level.next(), at, bytes) => {
                    self.sift(child, level.next(), at, tables, visit, left);
                }
                Entry::Table(_) => slot.store(entry::ABSENT, Relaxed),
                Entry::Absent | Entry::InTransition(_) => {}
            }
        }
    }

    /// Calls `each` for every page of the table itself, those of the root included.
    pub fn visit_tables(&self, tables: &impl Tables, each: &mut impl FnMut(Pa)) {
        let start = self.config.geometry.start();
        for part in 0..self.config.geometry.root_tables() {
            self.visit_below(self.root_part(part), Some(start), tables, each);
        }
    }

    fn visit_below(
        &self,
        table: Pa,
        level: Option<Level>,
        tables: &impl Tables,
        each: &mut impl FnMut(Pa),
    ) {
        each(table);
        let Some(level) = level else { return };
        for slot in tables.table(table) {
            let word = slot.load(Acquire);
            let entry = entry::decode(word, level, self.config.geometry.granule());
            if let Entry::Table(child) = entry {
                self.visit_below(child, level.next(), tables, each);
            }
        }
    }

    /// Breaks the table on purpose, to see it healed: the last table on the way to `near`, or else the first below
    /// the root, is lost with all below it, and its entry names `to` instead. `None`: there is no such table.
    pub fn misdirect(&mut self, near: Option<A>, to: Pa, tables: &impl Tables) -> Option<TlbWork> {
        const NAMED: u64 = 0x0000_ffff_ffff_f000;
        let granule = self.config.geometry.granule();
        let start = self.config.geometry.start();
        let slot = match near {
            Some(near) => {
                let spot = self.find_to(near.to_raw(), Level::L2, tables)?;
                let table = matches!(spot.entry, Entry::Table(_));
                table.then(|| self.slot(spot.table, spot.level, near.to_raw(), tables))?
            }
            None => {
                let table = |word| matches!(entry::decode(word, start, granule), Entry::Table(_));
                (0..self.config.geometry.root_tables())
                    .flat_map(|part| tables.table(self.root_part(part)))
                    .find(|slot| table(slot.load(Acquire)))?
            }
        };
        let word = slot.load(Acquire);
        slot.store(word & !NAMED | to.raw() & NAMED, Relaxed);
        let mut work = TlbWork::new(self.config.tag, self.root);
        work.add_all();
        Some(work)
    }
}
