//! The same jobs by the crate `aarch64-paging`, an engine for a program's own tables: stage 2, identity
//! mapping, never active, so without break-before-make.

use std::hint::black_box;

use aarch64_paging::descriptor::Stage2Attributes;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{MemoryRegion, Stage2};

use crate::Work;
use crate::engine::{LOOKS, PAGE};

type Table = IdMap<Stage2>;

/// As umbra's own: normal memory with all rights, accessed.
const MEMORY: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::ACCESS_FLAG);

fn table(levels: u64) -> Table {
    IdMap::new(if levels == 4 { 0 } else { 1 }, Stage2)
}

fn region(at: u64, size: u64) -> MemoryRegion {
    MemoryRegion::new(at as usize, (at + size) as usize)
}

/// See [`crate::engine::Look`].
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
        let mut table = table(levels);
        table.map_range(&region(0, size), MEMORY).expect("mapped");
        Self { table }
    }
}

impl Work for Look {
    fn operations(&self) -> u64 {
        LOOKS
    }

    fn run(&mut self) {
        for offset in 0..LOOKS {
            // It walks whole pages.
            let at = region(black_box(offset) / PAGE * PAGE, PAGE);
            let mut found = None;
            let walked = self.table.walk_range(&at, &mut |_, descriptor, level| {
                found = Some((descriptor.output_address(), descriptor.flags(), level));
                Ok(())
            });
            walked.expect("it is mapped");
            black_box(found);
        }
    }
}

/// See [`crate::engine::Map`].
pub(crate) struct Map {
    table: Table,
    entries: u64,
}

impl Map {
    pub(crate) fn new(entries: u64) -> Self {
        let table = table(3);
        Self { table, entries }
    }

    fn each(&mut self, attributes: Stage2Attributes) {
        for page in 0..self.entries {
            let page = region(black_box(page) * PAGE, PAGE);
            self.table.map_range(&page, attributes).expect("written");
        }
    }
}

impl Work for Map {
    fn operations(&self) -> u64 {
        self.entries
    }

    fn run(&mut self) {
        self.each(MEMORY);
    }
}

/// See [`crate::engine::Unmap`]. It keeps tables that become empty.
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
        self.0.each(Stage2Attributes::empty());
    }
}
