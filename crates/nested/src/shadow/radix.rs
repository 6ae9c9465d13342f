//! An index by address with the shape of a page table: an ordered map whose keys are the naturally
//! aligned pieces of 4 KiB, 2 MiB and 1 GiB of a 48-bit space, and whose values are numbers above 0.
//!
//! Finding, setting and clearing cost one step a level; a look over a range costs the tables that are
//! present in it. A piece and smaller pieces within it may have values at the same time.
//!
//! Each table remembers the largest *mark* that was set below it since it was empty, so that a search
//! for something large skips the tables that have nothing of the kind.

#[cfg(test)]
extern crate std;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::ControlFlow;

/// The heap could not give what an index needs; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// The levels that have values: the pieces of a [`super::Size`].
const LEVELS: usize = 4;
const ENTRIES: usize = 512;

/// Bits below the index of a level, 0 at the top.
const fn shift(level: usize) -> u32 {
    39 - 9 * level as u32
}

const fn index(addr: u64, level: usize) -> usize {
    (addr >> shift(level)) as usize % ENTRIES
}

/// A table. A slot holds a value in its low half and the number + 1 of a table in its high half.
struct Table {
    slots: Box<[u64; ENTRIES]>,
    used: u32,
    mark: u8,
}

const VALUE: u64 = 0xffff_ffff;

#[cfg(test)]
std::thread_local! {
    static STEPS: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// Slots looked at since the last call, by this thread: what the tests count.
#[cfg(test)]
pub(super) fn steps_since() -> u64 {
    STEPS.take()
}

#[inline]
fn step() {
    #[cfg(test)]
    STEPS.set(STEPS.get() + 1);
}

const fn child(slot: u64) -> Option<usize> {
    match slot >> 32 {
        0 => None,
        number => Some(number as usize - 1),
    }
}

/// See the module.
pub(super) struct Radix {
    /// The first is the root, once there is one.
    tables: Vec<Table>,
    /// Tables that nothing points to.
    free: Vec<u32>,
    /// The way that the last change went: what comes next is most often its neighbour.
    last: Way,
}

/// The tables from the root down to a lowest one, and what that spans.
#[derive(Clone, Copy)]
struct Way {
    /// Addresses without the bits below it; no address where there is no way.
    span: u64,
    tables: [usize; LEVELS],
    /// Every table of it has this mark at least.
    mark: u8,
}

impl Way {
    const NONE: Way = Way {
        span: u64::MAX,
        tables: [0; LEVELS],
        mark: 0,
    };

    const fn leads_to(&self, addr: u64) -> bool {
        self.span == addr >> shift(LEVELS - 2)
    }
}

/// What a look over a range found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) addr: u64,
    pub(super) level: usize,
    pub(super) value: u32,
}

impl Radix {
    pub(super) const fn new() -> Radix {
        Radix {
            tables: Vec::new(),
            free: Vec::new(),
            last: Way::NONE,
        }
    }

    /// The tables from the root down to `level` on the way to `addr`, as far as they exist.
    #[inline]
    fn path(&self, addr: u64, level: usize) -> ([usize; LEVELS], usize) {
        if self.last.leads_to(addr) {
            step();
            return (self.last.tables, level + 1);
        }
        self.descend(addr, level)
    }

    #[inline(never)]
    fn descend(&self, addr: u64, level: usize) -> ([usize; LEVELS], usize) {
        let (mut path, mut depth) = ([0; LEVELS], 0);
        if self.tables.is_empty() {
            return (path, 0);
        }
        let mut table = 0;
        loop {
            step();
            path[depth] = table;
            depth += 1;
            if depth > level {
                return (path, depth);
            }
            match child(self.tables[table].slots[index(addr, depth - 1)]) {
                Some(next) => table = next,
                None => return (path, depth),
            }
        }
    }

    /// The value of the piece of `level` at `addr`; 0 if it has none.
    pub(super) fn get(&self, addr: u64, level: usize) -> u32 {
        let table = if self.last.leads_to(addr) {
            step();
            self.last.tables[level]
        } else {
            let (path, depth) = self.descend(addr, level);
            if depth <= level {
                return 0;
            }
            path[level]
        };
        (self.tables[table].slots[index(addr, level)] & VALUE) as u32
    }

    /// The value of the largest piece that `addr` lies in, and its level.
    pub(super) fn covering(&self, addr: u64) -> Option<Found> {
        let (path, depth) = self.path(addr, LEVELS - 1);
        path[..depth].iter().enumerate().find_map(|(level, &at)| {
            let value = (self.tables[at].slots[index(addr, level)] & VALUE) as u32;
            (value != 0).then_some(Found {
                addr: addr >> shift(level) << shift(level),
                level,
                value,
            })
        })
    }

    fn add_table(&mut self) -> Result<usize, OutOfMemory> {
        if let Some(number) = self.free.pop() {
            return Ok(number as usize);
        }
        let mut slots = Vec::new();
        slots.try_reserve_exact(ENTRIES).map_err(|_| OutOfMemory)?;
        slots.resize(ENTRIES, 0);
        let slots = slots.into_boxed_slice();
        let slots = slots.try_into().map_err(|_| OutOfMemory)?;
        self.tables.try_reserve(1).map_err(|_| OutOfMemory)?;
        // A free table is noted where memory must not be needed.
        let most = self.tables.len() + 1;
        if self.free.capacity() < most {
            let more = most.next_power_of_two() - self.free.len();
            self.free.try_reserve(more).map_err(|_| OutOfMemory)?;
        }
        self.tables.push(Table {
            slots,
            used: 0,
            mark: 0,
        });
        Ok(self.tables.len() - 1)
    }

    /// The tables down to `level` on the way to `addr`, made where they are missing.
    #[inline(never)]
    fn dig(&mut self, addr: u64, level: usize) -> Result<[usize; LEVELS], OutOfMemory> {
        if self.tables.is_empty() {
            self.add_table()?;
        }
        let mut way = [0; LEVELS];
        for above in 0..level {
            let (table, at) = (way[above], index(addr, above));
            way[above + 1] = match child(self.tables[table].slots[at]) {
                Some(next) => next,
                None => {
                    let next = match self.add_table() {
                        Ok(next) => next,
                        Err(error) => {
                            self.prune(addr, level);
                            return Err(error);
                        }
                    };
                    let parent = &mut self.tables[table];
                    parent.used += u32::from(parent.slots[at] == 0);
                    parent.slots[at] |= (next as u64 + 1) << 32;
                    next
                }
            };
        }
        Ok(way)
    }

    /// Gives the piece of `level` at `addr` a value above 0, and the tables above it a mark.
    pub(super) fn set(
        &mut self,
        addr: u64,
        level: usize,
        value: u32,
        mark: u8,
    ) -> Result<(), OutOfMemory> {
        if !self.last.leads_to(addr) {
            let tables = self.dig(addr, level)?;
            if level < LEVELS - 1 {
                self.raise(&tables[..=level], mark);
                self.put(tables[level], addr, level, value);
                return Ok(());
            }
            let span = addr >> shift(LEVELS - 2);
            self.last = Way {
                span,
                tables,
                mark: 0,
            };
        }
        step();
        // Nothing can fail any more.
        if mark > self.last.mark {
            let tables = self.last.tables;
            self.raise(&tables[..=level], mark);
            if level == LEVELS - 1 {
                self.last.mark = mark;
            }
        }
        self.put(self.last.tables[level], addr, level, value);
        Ok(())
    }

    fn raise(&mut self, tables: &[usize], mark: u8) {
        for &table in tables {
            let node = &mut self.tables[table];
            node.mark = node.mark.max(mark);
        }
    }

    fn put(&mut self, table: usize, addr: u64, level: usize, value: u32) {
        let node = &mut self.tables[table];
        let slot = &mut node.slots[index(addr, level)];
        node.used += u32::from(*slot == 0);
        *slot = *slot & !VALUE | u64::from(value);
    }

    /// Remembers the way to `addr`, if it goes all the way down: for several looks in a row.
    pub(super) fn aim(&mut self, addr: u64) {
        if !self.last.leads_to(addr)
            && let (tables, LEVELS) = self.descend(addr, LEVELS - 1)
        {
            let span = addr >> shift(LEVELS - 2);
            self.last = Way {
                span,
                tables,
                mark: 0,
            };
        }
    }

    /// Takes the value of the piece away; tables that are empty then are free.
    pub(super) fn clear(&mut self, addr: u64, level: usize) {
        let (path, depth) = self.path(addr, level);
        if depth <= level {
            return;
        }
        let node = &mut self.tables[path[level]];
        let slot = &mut node.slots[index(addr, level)];
        let before = *slot;
        *slot &= !VALUE;
        node.used -= u32::from(before != 0 && *slot == 0);
        if node.used == 0 {
            self.prune(addr, level);
        }
    }

    /// Gives up the tables on the way to the piece that are empty, from below.
    #[inline(never)]
    fn prune(&mut self, addr: u64, level: usize) {
        let (path, depth) = self.path(addr, level);
        self.last = Way::NONE;
        for level in (1..depth).rev() {
            let node = &mut self.tables[path[level]];
            if node.used != 0 {
                return;
            }
            node.mark = 0;
            self.free.push(path[level] as u32);
            let parent = &mut self.tables[path[level - 1]];
            let slot = &mut parent.slots[index(addr, level - 1)];
            *slot &= VALUE;
            parent.used -= u32::from(*slot == 0);
        }
        if let Some(root) = self.tables.first_mut().filter(|root| root.used == 0) {
            root.mark = 0;
        }
    }

    /// How far round `addr` anything with a mark above 12 may reach that lies in a table on the way to
    /// it: a power of two, at least 12.
    pub(super) fn reach(&self, addr: u64) -> u32 {
        let (path, depth) = self.path(addr, LEVELS - 1);
        let marks = path[..depth]
            .iter()
            .map(|&at| u32::from(self.tables[at].mark));
        // A table of level n spans what an entry of level n - 1 maps: a larger mark may lie beside it.
        let mut reach = 12;
        for (level, mark) in marks.enumerate() {
            if mark > shift(level) {
                reach = reach.max(mark);
            }
        }
        reach
    }

    /// The first value at or after `from`, before `end`, in a table whose mark is at least `mark`:
    /// larger pieces before smaller ones at the same address. A piece that began before `from` counts.
    pub(super) fn next(&self, from: u64, end: u64, mark: u8) -> Option<Found> {
        let mut first = None;
        let _ = self.look((from, end), mark, &mut |found| {
            first = Some(found);
            ControlFlow::Break(())
        });
        first
    }

    /// Calls `each` for every value of a piece that meets `[from, end)`, in order of address.
    pub(super) fn visit(&self, from: u64, end: u64, each: &mut impl FnMut(Found)) {
        let _ = self.look((from, end), 0, &mut |found| {
            each(found);
            ControlFlow::Continue(())
        });
    }

    fn look(
        &self,
        range: (u64, u64),
        mark: u8,
        each: &mut impl FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.tables.is_empty() || range.0 >= range.1 {
            return ControlFlow::Continue(());
        }
        self.look_in(0, 0, 0, range, mark, each)
    }

    fn look_in(
        &self,
        table: usize,
        level: usize,
        base: u64,
        (from, end): (u64, u64),
        mark: u8,
        each: &mut impl FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let node = &self.tables[table];
        if node.used == 0 || node.mark < mark {
            return ControlFlow::Continue(());
        }
        let first = from.saturating_sub(base) >> shift(level);
        let last = (end - 1 - base) >> shift(level);
        for at in first..=last.min(ENTRIES as u64 - 1) {
            step();
            let slot = node.slots[at as usize];
            let addr = base + (at << shift(level));
            if slot & VALUE != 0 {
                each(Found {
                    addr,
                    level,
                    value: (slot & VALUE) as u32,
                })?;
            }
            if let Some(below) = child(slot) {
                self.look_in(below, level + 1, addr, (from.max(addr), end), mark, each)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Tables in use.
    #[cfg(test)]
    pub(super) fn tables(&self) -> usize {
        self.tables.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    type Model = BTreeMap<(u64, usize), (u32, u8)>;

    fn pieces() -> impl Strategy<Value = (u64, usize)> {
        // Few enough places that operations meet.
        (0u64..3, 0u64..3, 0u64..6, 1usize..4).prop_map(|(giga, mega, page, level)| {
            let addr = ((giga * 511) << 30) | ((mega * 255) << 21) | ((page * 100) << 12);
            (addr >> shift(level) << shift(level), level)
        })
    }

    fn meeting(model: &Model, from: u64, end: u64) -> Vec<(u64, usize, u32)> {
        let meets = |addr: u64, level| addr < end && addr + (1 << shift(level)) > from;
        let mut all: Vec<_> = model
            .iter()
            .filter(|((addr, level), _)| meets(*addr, *level))
            .map(|((addr, level), (value, _))| (*addr, *level, *value))
            .collect();
        all.sort_by_key(|(addr, level, _)| (*addr, *level));
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_a_plain_map(
            steps in prop::collection::vec((pieces(), any::<bool>(), 12u8..31), 1..200),
            (from, _) in pieces(), bytes in prop::sample::select(std::vec![4096u64, 0x64000, 1 << 21, 1 << 30, 1 << 47]),
        ) {
            let (mut radix, mut model) = (Radix::new(), Model::new());
            for (n, ((addr, level), set, mark)) in steps.into_iter().enumerate() {
                let mark = mark.max(shift(level) as u8);
                if set {
                    radix.set(addr, level, n as u32 + 1, mark).unwrap();
                    model.insert((addr, level), (n as u32 + 1, mark));
                } else {
                    radix.clear(addr, level);
                    model.remove(&(addr, level));
                }
                prop_assert_eq!(radix.get(addr, level), model.get(&(addr, level)).map_or(0, |v| v.0));
            }
            let end = from + bytes;
            let mut seen = Vec::new();
            radix.visit(from, end, &mut |found| seen.push((found.addr, found.level, found.value)));
            prop_assert_eq!(&seen, &meeting(&model, from, end));
            let first = radix.next(from, end, 0).map(|found| (found.addr, found.level, found.value));
            prop_assert_eq!(first, seen.first().copied());
            // What is marked to reach over an address, and does not map it, is within its reach.
            for ((addr, level), (_, mark)) in &model {
                let (mark, over) = (u32::from(*mark), addr >> shift(*level) == from >> shift(*level));
                let reaches = addr >> mark == from >> mark && !over;
                prop_assert!(!reaches || mark <= radix.reach(from), "{addr:#x} {mark}");
            }
            let largest = (1..4).find_map(|level| {
                let piece = (from >> shift(level) << shift(level), level);
                model.get(&piece).map(|v| (piece.0, level, v.0))
            });
            prop_assert_eq!(radix.covering(from).map(|f| (f.addr, f.level, f.value)), largest);
            for (addr, level) in model.keys().copied().collect::<Vec<_>>() {
                radix.clear(addr, level);
            }
            prop_assert!(radix.tables() <= 1);
        }
    }
}
