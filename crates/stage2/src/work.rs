//! TLB work: what must be invalidated before anyone may rely on a change.
//!
//! Always holds: a table page that hardware could still reach through a TLB or walk cache is not
//! freed. The order is in the types: an operation returns `TlbWork`, discharging it gives
//! `Discharged`, and only that frees pages (`release`) or ends a break-before-make (`complete`).
//!
//! The pages to be freed can be any number, and this crate has no heap, so they form a list through
//! their own first entry. A link is a page-aligned address, bit 0 clear: a walker that still comes by
//! reads an invalid descriptor.

use core::sync::atomic::Ordering::{Relaxed, Release};

use umbra_arm64::{Level, Pa, tag::Tag};

use crate::{entry::Ticket, seam::Tables};

/// Ranges a work keeps apart before it becomes "everything under this tag".
const RANGES: usize = 8;

/// What one TLB invalidation has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every translation and walk-cache entry under the tag.
    All,
    /// The translations of a range of input addresses.
    Range {
        /// First input address, in the space that the table translates; a multiple of the granule.
        addr: u64,
        /// Bytes, a multiple of the granule.
        bytes: u64,
        /// The level of every leaf to be invalidated, if it is one and known (the TTL hint).
        level: Option<Level>,
        /// Only leaves changed. Otherwise walk-cache entries (pointers to tables) must go as well.
        leaf_only: bool,
    },
}

/// One invalidation to perform.
///
/// For a VMID it means stage-2 entries *and* whatever combines stage 1 with them
/// (`IPAS2E1IS; DSB ISH; VMALLE1IS; DSB ISH`); for an ASID, stage 1 of EL2&0. A `dsb ishst` comes
/// before, so that no walker still reads the old entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbRequest {
    /// Under which VMID or ASID.
    pub tag: Tag,
    /// What.
    pub scope: Scope,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    addr: u64,
    bytes: u64,
    level: Option<Level>,
    leaf_only: bool,
}

impl Range {
    const NOTHING: Range = Range {
        addr: 0,
        bytes: 0,
        level: None,
        leaf_only: false,
    };

    /// Whether invalidating this invalidates all of `other`.
    fn absorbs(&self, other: &Range) -> bool {
        let general = self.level.is_none() && !self.leaf_only;
        general && self.addr <= other.addr && other.addr + other.bytes <= self.addr + self.bytes
    }

    /// Whether the two are one range of one kind.
    fn adjoins(&self, other: &Range) -> bool {
        (self.level, self.leaf_only) == (other.level, other.leaf_only)
            && (self.addr + self.bytes == other.addr || other.addr + other.bytes == self.addr)
    }
}

/// Detached table pages, linked through their first entries.
#[derive(Clone, Copy, Debug, Default)]
struct Detached {
    ends: Option<(Pa, Pa)>,
    pages: usize,
    /// A root of several pages is freed in one piece, as it was allocated.
    root: Option<(Pa, usize)>,
}

impl Detached {
    fn count(&self) -> usize {
        self.pages + self.root.map_or(0, |(_, pages)| pages)
    }
}

/// The breaks whose invalidation a work contains: tickets from first to last.
type Breaks = Option<(Ticket, Ticket)>;

/// TLB invalidations that a change of tables owes, and the table pages that wait for them.
///
/// Dropping one that is not empty is a bug (stale translations stay in use) and panics in builds
/// with debug assertions. The lock that guards the table is held until the work is discharged:
/// an address that was unmapped must not be mapped again before that. Only entries in transition
/// may be left while the lock is free.
#[derive(Debug)]
#[must_use = "translations stay in the TLB until the work is discharged"]
pub struct TlbWork {
    tag: Tag,
    table: Pa,
    all: bool,
    ranges: [Range; RANGES],
    /// How many of them there are.
    used: usize,
    detached: Detached,
    breaks: Breaks,
    armed: bool,
}

impl TlbWork {
    #[inline]
    pub(crate) fn new(tag: Tag, table: Pa) -> Self {
        Self {
            tag,
            table,
            all: false,
            ranges: [Range::NOTHING; RANGES],
            used: 0,
            detached: Detached::default(),
            breaks: None,
            armed: true,
        }
    }

    /// The tag under which everything here must be invalidated.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Whether there is nothing to invalidate and nothing to free.
    pub fn is_empty(&self) -> bool {
        !self.all && self.used == 0 && self.waiting() == 0
    }

    /// Table pages that wait for this work, a root included.
    pub fn waiting(&self) -> usize {
        self.detached.count()
    }

    pub(crate) fn add_all(&mut self) {
        self.all = true;
    }

    pub(crate) fn add(&mut self, addr: u64, bytes: u64, level: Option<Level>, leaf_only: bool) {
        let new = Range {
            addr,
            bytes,
            level,
            leaf_only,
        };
        for old in &mut self.ranges[..self.used] {
            if new.absorbs(old) {
                *old = new;
                return;
            }
            if old.adjoins(&new) {
                old.addr = old.addr.min(addr);
                old.bytes += bytes;
                return;
            }
        }
        match self.ranges.get_mut(self.used) {
            Some(free) => {
                *free = new;
                self.used += 1;
            }
            None => self.all = true,
        }
    }

    pub(crate) fn add_break(&mut self, ticket: Ticket) {
        self.breaks = match self.breaks {
            None => Some((ticket, ticket)),
            Some((first, _)) => Some((first, ticket)),
        };
    }

    /// Hands over a table page that no entry points to any more.
    pub(crate) fn detach(&mut self, page: Pa, tables: &impl Tables) {
        let next = self.detached.ends.map_or(0, |(head, _)| head.raw());
        tables.table(page)[0].store(next, Release);
        let tail = self.detached.ends.map_or(page, |(_, tail)| tail);
        self.detached.ends = Some((page, tail));
        self.detached.pages += 1;
    }

    pub(crate) fn detach_root(&mut self, root: Pa, pages: usize) {
        self.detached.root = Some((root, pages));
    }

    /// Adds `other` to this work, so that both are discharged by one set of invalidations.
    ///
    /// Works of different tables or tags do not mix, and of works that belong to a
    /// break-before-make only successive ones do: then `other` comes back unchanged.
    #[expect(
        clippy::result_large_err,
        reason = "there is no heap, and dropping the work is the error"
    )]
    pub fn merge(&mut self, mut other: TlbWork, tables: &impl Tables) -> Result<(), TlbWork> {
        if (self.tag, self.table) != (other.tag, other.table) {
            return Err(other);
        }
        let breaks = match (self.breaks, other.breaks) {
            (mine, None) => mine,
            (None, theirs) => theirs,
            (Some((first, last)), Some((next, end))) if next.0 == last.0 + 1 => Some((first, end)),
            (Some(_), Some(_)) => return Err(other),
        };
        self.breaks = breaks;
        self.all |= other.all;
        for range in &other.ranges[..other.used] {
            self.add(range.addr, range.bytes, range.level, range.leaf_only);
        }
        self.detached.ends = match (self.detached.ends, other.detached.ends) {
            (Some((head, middle)), Some((next, tail))) => {
                tables.table(middle)[0].store(next.raw(), Release);
                Some((head, tail))
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.detached.pages += other.detached.pages;
        self.detached.root = self.detached.root.or(other.detached.root);
        other.armed = false;
        Ok(())
    }

    /// Performs the invalidations through `invalidate`, which returns when they have completed
    /// (`dsb ishst` before the first, `dsb ish` after the last).
    #[inline]
    pub fn discharge(mut self, mut invalidate: impl FnMut(&TlbRequest)) -> Discharged {
        self.armed = false;
        if self.all {
            invalidate(&TlbRequest {
                tag: self.tag,
                scope: Scope::All,
            });
        } else {
            for Range {
                addr,
                bytes,
                level,
                leaf_only,
            } in self.ranges[..self.used].iter().copied()
            {
                invalidate(&TlbRequest {
                    tag: self.tag,
                    scope: Scope::Range {
                        addr,
                        bytes,
                        level,
                        leaf_only,
                    },
                });
            }
        }
        Discharged {
            table: self.table,
            detached: self.detached,
            breaks: self.breaks,
        }
    }

    /// Discharges the work and frees its pages: the whole duty where no break is part of it.
    #[inline]
    pub fn finish(self, tables: &impl Tables, invalidate: impl FnMut(&TlbRequest)) {
        self.discharge(invalidate).release(tables);
    }
}

impl Drop for TlbWork {
    fn drop(&mut self) {
        if self.armed && !self.is_empty() && !unwinding() {
            debug_assert!(
                false,
                "TLB work under {:?} was dropped without being discharged",
                self.tag
            );
        }
    }
}

/// Proof that a `TlbWork` was discharged, and owner of the table pages that waited for it.
#[derive(Debug)]
#[must_use = "detached table pages leak unless released"]
pub struct Discharged {
    table: Pa,
    detached: Detached,
    breaks: Breaks,
}

impl Discharged {
    pub(crate) fn covers(&self, table: Pa, ticket: Ticket) -> bool {
        self.table == table
            && self
                .breaks
                .is_some_and(|(first, last)| (first..=last).contains(&ticket))
    }

    /// Table pages that `release` will free, a root included.
    pub fn waiting(&self) -> usize {
        self.detached.count()
    }

    /// Frees the detached table pages: nothing can reach them any more.
    pub fn release(mut self, tables: &impl Tables) {
        let detached = core::mem::take(&mut self.detached);
        let mut next = detached.ends.map(|(head, _)| head);
        for _ in 0..detached.pages {
            let Some(page) = next else { break };
            next = Some(Pa::new(tables.table(page)[0].load(Relaxed)));
            tables.free(page, 1);
        }
        if let Some((root, pages)) = detached.root {
            tables.free(root, pages);
        }
    }
}

impl Drop for Discharged {
    fn drop(&mut self) {
        if self.waiting() != 0 && !unwinding() {
            debug_assert!(
                false,
                "detached table pages were dropped without being released"
            );
        }
    }
}

/// A failing test must report its own failure, not the bombs that it leaves behind.
#[cfg(test)]
pub(crate) fn unwinding() -> bool {
    std::thread::panicking()
}

#[cfg(not(test))]
pub(crate) fn unwinding() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;
    use umbra_arm64::Vmid;

    /// The ranges of a work to which `adds` were added in order.
    fn ranges(adds: &[(u64, u64, Option<Level>, bool)]) -> Vec<(u64, u64, Option<Level>, bool)> {
        let mut work = TlbWork::new(Tag::Vmid(Vmid::new(1)), Pa::new(0));
        for (addr, bytes, level, leaf_only) in adds {
            work.add(*addr, *bytes, *level, *leaf_only);
        }
        let mut seen = Vec::new();
        let done = work.discharge(|request| match request.scope {
            Scope::Range {
                addr,
                bytes,
                level,
                leaf_only,
            } => seen.push((addr, bytes, level, leaf_only)),
            Scope::All => seen.push((0, u64::MAX, None, false)),
        });
        assert_eq!(done.waiting(), 0);
        seen
    }

    #[test]
    fn neighbours_of_one_kind_become_one_range() {
        let (page, block) = (Some(Level::L3), Some(Level::L2));
        assert_eq!(
            ranges(&[(8, 8, page, true), (16, 8, page, true)]),
            [(8, 16, page, true)]
        );
        assert_eq!(
            ranges(&[(16, 8, page, true), (8, 8, page, true)]),
            [(8, 16, page, true)]
        );
        for other in [
            (16, 8, block, true),
            (16, 8, page, false),
            (16, 8, None, true),
            (24, 8, page, true),
        ] {
            assert_eq!(
                ranges(&[(8, 8, page, true), other]),
                [(8, 8, page, true), other]
            );
        }
    }

    #[test]
    fn only_a_request_for_everything_in_a_range_absorbs_another() {
        let leaf = (8, 8, Some(Level::L3), true);
        assert_eq!(
            ranges(&[leaf, (0, 32, None, false)]),
            [(0, 32, None, false)]
        );
        assert_eq!(
            ranges(&[leaf, (0, 12, None, false)]),
            [leaf, (0, 12, None, false)]
        );
        for less in [(0, 32, None, true), (0, 32, Some(Level::L3), false)] {
            let table = (8, 8, None, false);
            assert_eq!(ranges(&[table, less]), [table, less]);
        }
    }

    #[test]
    fn too_many_ranges_are_everything() {
        let far = |n: u64| (n * 100, 1, None, true);
        let some: Vec<_> = (0..RANGES as u64).map(far).collect();
        assert_eq!(ranges(&some), some);
        let more: Vec<_> = (0..RANGES as u64 + 1).map(far).collect();
        assert_eq!(ranges(&more), [(0, u64::MAX, None, false)]);
    }
}
