//! Tables whose own pages went bad: what hangs on a page that cannot be trusted is cut off, and faults
//! fill it again.
//!
//! The page above keeps its place, so the root stays where it is and CPUs that have it loaded go on. What
//! hung below a page that cannot be read is not found again and is not given back: a page goes bad
//! once, so that is bounded by what it could hold.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use umbra_arm64::{Address, Level, Pa};

use crate::{
    entry::{self, Entry},
    format::Format,
    seam::Tables,
    table::PageTable,
    work::TlbWork,
};

impl<F: Format, A: Address> PageTable<F, A> {
    /// Cuts off every table page that `is_sound` refuses, with all below it. The root's own pages are
    /// not asked about. Answers how many were cut, each of which `cut` was told; the work covers
    /// everything under the tag if there were any.
    pub fn cut_unsound(
        &mut self,
        tables: &impl Tables,
        is_sound: &mut impl FnMut(Pa) -> bool,
        cut: &mut impl FnMut(Pa),
    ) -> (usize, TlbWork) {
        let mut work = TlbWork::new(self.config.tag, self.root);
        let (mut cuts, mut bytes, mut pages) = (0, 0, 0);
        for part in 0..self.config.geometry.root_tables() {
            let table = self.root_part(part);
            let mut visit = |child: Pa| {
                let sound = is_sound(child);
                if !sound {
                    cut(child);
                    cuts += 1;
                }
                sound
            };
            let start = self.config.geometry.start();
            self.sift(
                table,
                Some(start),
                tables,
                &mut visit,
                &mut (&mut bytes, &mut pages),
            );
        }
        if cuts > 0 {
            self.mapped_bytes = bytes;
            self.table_pages = pages;
            work.add_all();
        }
        (cuts, work)
    }

    /// Clears entries whose table is refused, and counts what is left.
    fn sift(
        &self,
        table: Pa,
        level: Option<Level>,
        tables: &impl Tables,
        visit: &mut impl FnMut(Pa) -> bool,
        left: &mut (&mut u64, &mut usize),
    ) {
        *left.1 += 1;
        let Some(level) = level else { return };
        let granule = self.config.geometry.granule();
        for slot in tables.table(table) {
            match entry::decode(slot.load(Acquire), level, granule) {
                Entry::Leaf => *left.0 += granule.level_bytes(level),
                Entry::Table(child) if visit(child) => {
                    self.sift(child, level.next(), tables, visit, left);
                }
                Entry::Table(_) => slot.store(entry::ABSENT, Relaxed),
                Entry::Absent | Entry::InTransition(_) => {}
            }
        }
    }

    /// Breaks the table on purpose, to see it healed: the first table below the root is taken down, and its
    /// entry names `to` instead. `None`: the root has no table below it.
    pub fn misdirect(&mut self, to: Pa, tables: &impl Tables) -> Option<TlbWork> {
        const NAMED: u64 = 0x0000_ffff_ffff_f000;
        let granule = self.config.geometry.granule();
        let start = self.config.geometry.start();
        for part in 0..self.config.geometry.root_tables() {
            for slot in tables.table(self.root_part(part)) {
                let word = slot.load(Acquire);
                if let Entry::Table(child) = entry::decode(word, start, granule) {
                    let mut work = TlbWork::new(self.config.tag, self.root);
                    slot.store(word & !NAMED | to.raw() & NAMED, Relaxed);
                    self.detach_tree(child, start.next(), tables, &mut work);
                    work.add_all();
                    return Some(work);
                }
            }
        }
        None
    }
}
