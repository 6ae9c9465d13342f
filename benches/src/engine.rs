//! The engine for tables that umbra owns: stage 2 with pages of 4 KiB.

use std::cell::{Cell, OnceCell, RefCell};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use umbra_arm64::{Granule, Ipa, Pa, Rights, Tag, Vmid};
use umbra_stage2::{Attrs, Config, Geometry, Mapped, NoMemory, PageTable, S2, Tables};

use crate::Work;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Looks of one run.
pub(crate) const LOOKS: u64 = 1000;
/// Where the table pages lie.
const BASE: u64 = 1 << 40;

/// Table pages, each made when it is first asked for.
struct Pages {
    all: Vec<OnceCell<Box<[AtomicU64]>>>,
    next: Cell<usize>,
    free: RefCell<Vec<Pa>>,
}

impl Pages {
    /// Enough for `entries` pages side by side.
    fn for_entries(entries: u64) -> Self {
        let tables = entries / 512 + 64;
        Self {
            all: (0..tables).map(|_| OnceCell::new()).collect(),
            next: Cell::new(0),
            free: RefCell::default(),
        }
    }
}

impl Tables for Pages {
    fn table(&self, pa: Pa) -> &[AtomicU64] {
        let index = (pa.raw() - BASE) / PAGE;
        self.all[index as usize].get().expect("a page of ours")
    }

    fn alloc(&self, pages: usize, _tag: Tag) -> Result<Pa, NoMemory> {
        assert_eq!(pages, 1, "these shapes have no concatenated root");
        if let Some(pa) = self.free.borrow_mut().pop() {
            let words = self.table(pa);
            words
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
            return Ok(pa);
        }
        let index = self.next.get();
        let page = self.all.get(index).ok_or(NoMemory)?;
        page.get_or_init(|| (0..512).map(|_| AtomicU64::new(0)).collect());
        self.next.set(index + 1);
        Ok(Pa::new(BASE + index as u64 * PAGE))
    }

    fn free(&self, pa: Pa, _pages: usize) {
        self.free.borrow_mut().push(pa);
    }
}

/// (The pages of a table that is dropped go with their `Pages`.)
struct Table {
    pages: Pages,
    table: PageTable<S2, Ipa>,
}

impl Table {
    /// An empty table of as many levels, 3 or 4.
    fn new(levels: u64, entries: u64) -> Self {
        let bits = if levels == 4 { 48 } else { 39 };
        let pages = Pages::for_entries(entries);
        let config = Config {
            geometry: Geometry::stage2(Granule::K4, bits).expect("a shape"),
            output_bits: 48,
            format: S2 { xnx: true },
            tag: Tag::Vmid(Vmid::new(1)),
        };
        let table = PageTable::new(config, &pages).expect("memory");
        Self { pages, table }
    }

    fn map(&mut self, at: u64, size: u64) {
        let (at, pa) = (Ipa::new(at), Pa::new(at));
        let mapped = self
            .table
            .map(at, pa, size, Attrs::normal(Rights::ALL), &self.pages);
        assert!(matches!(mapped, Ok(Mapped::Fresh)), "{mapped:?}");
    }
}

/// Looks at addresses that a leaf of the wanted level maps.
pub(crate) struct Look {
    table: Table,
}

impl Look {
    pub(crate) fn new(levels: u64) -> Self {
        let size = match levels {
            1 => 1 << 30,
            2 => 1 << 21,
            _ => PAGE,
        };
        let mut table = Table::new(levels, 1);
        table.map(0, size);
        Self { table }
    }
}

impl Work for Look {
    fn operations(&self) -> u64 {
        LOOKS
    }

    fn run(&mut self) {
        for offset in 0..LOOKS {
            let at = Ipa::new(black_box(offset));
            let leaf = self.table.table.lookup(at, &self.table.pages);
            black_box(leaf.expect("it is mapped"));
        }
    }
}

/// Maps pages side by side, one call each.
pub(crate) struct Map {
    table: Table,
    entries: u64,
}

impl Map {
    pub(crate) fn new(entries: u64) -> Self {
        let table = Table::new(3, entries);
        Self { table, entries }
    }
}

impl Work for Map {
    fn operations(&self) -> u64 {
        self.entries
    }

    fn run(&mut self) {
        for page in 0..self.entries {
            self.table.map(black_box(page) * PAGE, PAGE);
        }
        assert_eq!(self.table.table.mapped_bytes(), self.entries * PAGE);
    }
}

/// Unmaps them again, one call each; the TLB's part is handed to nobody.
pub(crate) struct Unmap(Map);

impl Unmap {
    pub(crate) fn new(entries: u64) -> Self {
        let mut map = Map::new(entries);
        map.run();
        Self(map)
    }
}

impl Work for Unmap {
    fn operations(&self) -> u64 {
        self.0.entries
    }

    fn run(&mut self) {
        let Table { pages, table } = &mut self.0.table;
        for page in 0..self.0.entries {
            let at = Ipa::new(black_box(page) * PAGE);
            let change = table.unmap(at, PAGE, pages).expect("unmapped");
            change.finish(table, pages, |request| {
                black_box(request);
            });
        }
        assert_eq!(table.mapped_bytes(), 0);
    }
}
