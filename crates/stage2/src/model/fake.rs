//! Table pages on the host.

use core::sync::atomic::AtomicU64;
use std::{boxed::Box, cell::Cell, cell::OnceCell, vec::Vec};

use umbra_arm64::{Granule, Pa, Tag};

use crate::{NoMemory, Tables};

const PAGES: usize = 8192;
/// Where the pages lie in the physical address space.
const BASE: u64 = 1 << 32;

#[derive(Default)]
struct Page {
    entries: OnceCell<Box<[AtomicU64]>>,
    dead: Cell<bool>,
}

/// An allocator that hands out every page once.
pub(super) struct FakeTables {
    granule: Granule,
    pages: Vec<Page>,
    next: Cell<usize>,
    live: Cell<usize>,
    /// Allocations that succeed before one fails.
    pub(super) fail_in: Cell<Option<usize>>,
}

impl FakeTables {
    pub(super) fn new(granule: Granule) -> Self {
        Self {
            granule,
            pages: (0..PAGES).map(|_| Page::default()).collect(),
            next: Cell::new(0),
            live: Cell::new(0),
            fail_in: Cell::new(None),
        }
    }

    /// Pages allocated and not freed.
    pub(super) fn live(&self) -> usize {
        self.live.get()
    }

    fn page(&self, pa: Pa) -> &Page {
        assert!(pa.is_aligned(self.granule.bytes()), "{pa:?} is no table");
        &self.pages[((pa.raw() - BASE) / self.granule.bytes()) as usize]
    }

    /// The entries hardware finds at `pa`; `None` once the page was freed.
    pub(super) fn hardware_view(&self, pa: Pa) -> Option<&[AtomicU64]> {
        let page = self.page(pa);
        if page.dead.get() {
            None
        } else {
            page.entries.get().map(|entries| &**entries)
        }
    }
}

impl Tables for FakeTables {
    fn table(&self, pa: Pa) -> &[AtomicU64] {
        self.hardware_view(pa)
            .expect("the engine uses a page it does not own")
    }

    fn alloc(&self, pages: usize, _tag: Tag) -> Result<Pa, NoMemory> {
        assert!(pages.is_power_of_two() && pages <= 16);
        match self.fail_in.get() {
            Some(0) => {
                self.fail_in.set(None);
                return Err(NoMemory);
            }
            Some(more) => self.fail_in.set(Some(more - 1)),
            None => {}
        }
        let first = self.next.get().next_multiple_of(pages);
        self.next.set(first + pages);
        self.live.set(self.live.get() + pages);
        for page in &self.pages[first..first + pages] {
            page.entries.get_or_init(|| {
                (0..self.granule.entries())
                    .map(|_| AtomicU64::new(0))
                    .collect()
            });
        }
        Ok(Pa::new(BASE + first as u64 * self.granule.bytes()))
    }

    fn free(&self, pa: Pa, pages: usize) {
        for part in 0..pages as u64 {
            let page = self.page(Pa::new(pa.raw() + part * self.granule.bytes()));
            assert!(
                page.entries.get().is_some() && !page.dead.replace(true),
                "{pa:?} freed twice"
            );
        }
        self.live.set(self.live.get() - pages);
    }
}
