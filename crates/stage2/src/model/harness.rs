//! One table, its hardware and its model, moved together.

use core::sync::atomic::Ordering::Relaxed;
use std::{collections::BTreeSet, format, string::String, vec, vec::Vec};

use umbra_arm64::{Granule, Ipa, Pa, Tag, Vmid};

use super::{
    extents::{Extent, Extents},
    fake::FakeTables,
    mmu::{Mmu, Regime},
};
use crate::{
    Attrs, Broken, Change, Completed, Config, Discharged, Format, Geometry, Make, MapError, Mapped,
    Memory, PageTable, Rights, TlbWork, table::Span,
};

/// An operation of the engine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Map {
        at: u64,
        size: u64,
        pa: u64,
        memory: Memory,
        rights: Rights,
        later: bool,
    },
    Unmap {
        at: u64,
        bytes: u64,
        later: bool,
    },
    Protect {
        at: u64,
        bytes: u64,
        rights: Rights,
        later: bool,
    },
    Evict {
        at: u64,
        bytes: u64,
    },
    WriteProtect {
        at: u64,
        bytes: u64,
    },
    Split {
        at: u64,
        later: bool,
    },
    Collapse {
        at: u64,
        size: u64,
        later: bool,
    },
    Age {
        at: u64,
        bytes: u64,
    },
    /// Goes on with the n-th open break.
    Advance(usize),
    /// Lets an allocation fail after this many more.
    FailAlloc(usize),
}

/// A break-before-make on its way.
struct Open {
    work: Option<TlbWork>,
    discharged: Option<Discharged>,
    makes: Vec<Half>,
}

struct Half {
    make: Option<Make>,
    region: Span,
    /// What completing it maps.
    contents: Vec<Extent>,
    cancelled: bool,
}

pub(super) struct Harness<F: Format> {
    pub(super) table: Option<PageTable<F, Ipa>>,
    pub(super) tables: FakeTables,
    mmu: Mmu,
    model: Extents,
    open: Vec<Open>,
    /// Requests seen so far, and which of them never reach the hardware.
    pub(super) requests: usize,
    pub(super) lost: BTreeSet<usize>,
}

pub(super) fn tag() -> Tag {
    Tag::Vmid(Vmid::new(7))
}

impl<F: Format> Harness<F> {
    pub(super) fn new(format: F, regime: Regime, geometry: Geometry) -> Self {
        let tables = FakeTables::new(geometry.granule());
        let config = Config {
            geometry,
            output_bits: 44,
            format,
            tag: tag(),
        };
        let table = PageTable::new(config, &tables).expect("the first allocation");
        let mmu = Mmu::new(regime, geometry, table.root(), tag());
        Self {
            table: Some(table),
            tables,
            mmu,
            model: Extents::default(),
            open: vec![],
            requests: 0,
            lost: BTreeSet::new(),
        }
    }

    fn pt(&mut self) -> &mut PageTable<F, Ipa> {
        self.table.as_mut().expect("not destroyed")
    }

    fn granule(&self) -> Granule {
        self.tables_geometry().granule()
    }

    fn tables_geometry(&self) -> Geometry {
        self.table.as_ref().expect("not destroyed").geometry()
    }

    /// Performs `op`, then lets hardware cache all it can, then checks everything.
    pub(super) fn step(&mut self, op: Op) -> Result<(), String> {
        self.perform(op)?;
        self.check()
    }

    fn perform(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Map {
                at,
                size,
                pa,
                memory,
                rights,
                later,
            } => {
                let new = Extent {
                    start: at,
                    end: at.wrapping_add(size),
                    pa,
                    memory,
                    rights,
                };
                self.map(new, later)
            }
            Op::Unmap { at, bytes, later } => self.change(at, bytes, None, later),
            Op::Protect {
                at,
                bytes,
                rights,
                later,
            } => self.change(at, bytes, Some(rights), later),
            Op::Evict { at, bytes } => self.rough(at, bytes, true),
            Op::WriteProtect { at, bytes } => self.rough(at, bytes, false),
            Op::Split { at, later } => self.split(at, later),
            Op::Collapse { at, size, later } => self.collapse(at, size, later),
            Op::Age { at, bytes } => {
                let tables = &self.tables;
                let table = self.table.as_mut().expect("not destroyed");
                table.age(Ipa::new(at), bytes, tables);
                Ok(())
            }
            Op::Advance(n) => match self.open.len() {
                0 => Ok(()),
                len => self.advance(n % len),
            },
            Op::FailAlloc(n) => {
                self.tables.fail_in.set(Some(n));
                Ok(())
            }
        }
    }

    fn attrs(extent: Extent) -> Attrs {
        Attrs {
            memory: extent.memory,
            rights: extent.rights,
            accessed: false,
            software: 0,
        }
    }

    fn map(&mut self, new: Extent, later: bool) -> Result<(), String> {
        let size = new.end.wrapping_sub(new.start);
        let region = Span {
            start: new.start,
            end: new.end,
        };
        let busy = self.halves().any(|half| half.region.contains(region));
        let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
        let was = table.lookup(Ipa::new(new.start), tables);
        let result = table.map(
            Ipa::new(new.start),
            Pa::new(new.pa),
            size,
            Self::attrs(new),
            tables,
        );
        if busy && !matches!(result, Err(MapError::Busy | MapError::Attributes)) {
            return Err(format!("mapped over an open break: {result:?}"));
        }
        match result {
            Err(MapError::Busy) if !busy => Err("busy without an open break".into()),
            Err(_) => Ok(()),
            Ok(Mapped::Fresh) => {
                if !self.model.slice(region).is_empty() {
                    return Err("fresh where something was mapped".into());
                }
                self.model.insert(new);
                Ok(())
            }
            Ok(Mapped::Unchanged) => {
                let was = was.ok_or("unchanged where nothing was mapped")?;
                let same = was.output(Ipa::new(new.start)) == Some(Pa::new(new.pa))
                    && (was.attrs.memory, was.attrs.rights) == (new.memory, new.rights);
                // Leaving the parked state changes what the model says and owes nothing.
                if !same && was.attrs.rights != Rights::NONE {
                    return Err(format!("unchanged, but {was:x?} is not {new:x?}"));
                }
                self.model.insert(new);
                Ok(())
            }
            Ok(Mapped::Rights(work)) => {
                self.model.insert(new);
                self.finish(work)
            }
            Ok(Mapped::Broken(Broken { work, make })) => {
                self.cancel(region, true);
                self.model.insert(new);
                self.broken(work, vec![make], later)
            }
        }
    }

    fn change(
        &mut self,
        at: u64,
        bytes: u64,
        rights: Option<Rights>,
        later: bool,
    ) -> Result<(), String> {
        let span = Span {
            start: at,
            end: at + bytes,
        };
        let busy = self.halves().any(|half| {
            half.region.meets(span) && (rights.is_some() || !span.contains(half.region))
        });
        let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
        let result = match rights {
            None => table.unmap(Ipa::new(at), bytes, tables),
            Some(rights) => table.protect(Ipa::new(at), bytes, rights, tables),
        };
        match result {
            Err(MapError::Busy) if busy => Ok(()),
            Err(MapError::Busy) => Err("busy without an open break in the way".into()),
            Err(_) => Ok(()),
            Ok(_) if busy => Err("changed across an open break".into()),
            Ok(Change { work, makes }) => {
                self.cancel(span, true);
                match rights {
                    None => self.model.remove(span),
                    Some(rights) => self.model.change(span, |_| rights),
                }
                // The lock is kept until the work is discharged, so only the second half can be late.
                let makes = makes
                    .into_iter()
                    .flatten()
                    .map(|make| self.half(make))
                    .collect();
                self.open.push(Open {
                    work: None,
                    discharged: None,
                    makes,
                });
                let discharged = self.discharge(work)?;
                let last = self.open.len() - 1;
                self.open[last].discharged = Some(discharged);
                if later { Ok(()) } else { self.advance(last) }
            }
        }
    }

    fn rough(&mut self, at: u64, bytes: u64, remove: bool) -> Result<(), String> {
        let span = Span {
            start: at,
            end: at + bytes,
        };
        let mut touched = vec![];
        self.table.as_ref().expect("not destroyed").visit(
            Ipa::new(at),
            bytes,
            &self.tables,
            |leaf| {
                touched.push(Span {
                    start: leaf.addr.raw(),
                    end: leaf.addr.raw() + leaf.size,
                });
            },
        );
        let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
        let work = if remove {
            table.evict(Ipa::new(at), bytes, tables)
        } else {
            table.write_protect(Ipa::new(at), bytes, tables)
        };
        self.cancel(span, false);
        for leaf in touched {
            if remove {
                self.model.remove(leaf);
            } else {
                self.model.change(leaf, |rights| Rights {
                    write: false,
                    ..rights
                });
            }
        }
        self.finish(work)
    }

    fn split(&mut self, at: u64, later: bool) -> Result<(), String> {
        let busy = self
            .halves()
            .any(|half| (half.region.start..half.region.end).contains(&at));
        let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
        match table.split(Ipa::new(at), tables) {
            Err(MapError::Busy) if busy => Ok(()),
            Err(MapError::NoMemory) => Ok(()),
            Err(error) => Err(format!("split: {error:?}")),
            Ok(None) => Ok(()),
            Ok(Some(Broken { work, make })) => self.broken(work, vec![make], later),
        }
    }

    fn collapse(&mut self, at: u64, size: u64, later: bool) -> Result<(), String> {
        let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
        match table.collapse(Ipa::new(at), size, tables) {
            Err(MapError::Busy | MapError::Misaligned) | Ok(None) => Ok(()),
            Err(error) => Err(format!("collapse: {error:?}")),
            Ok(Some(Broken { work, make })) => {
                let region = self.region(&make);
                let inside: Extents = self.model.slice(region).into_iter().collect();
                if inside.normal().len() != 1 || inside.bytes() != size {
                    return Err(format!("collapsed what is not one block: {inside:x?}"));
                }
                self.broken(work, vec![make], later)
            }
        }
    }

    fn region(&self, make: &Make) -> Span {
        Span::of_entry(make.addr, self.granule().level_bytes(make.level))
    }

    /// Takes a break's region out of the model until it is completed.
    fn half(&mut self, make: Make) -> Half {
        let region = self.region(&make);
        let contents = self.model.slice(region);
        self.model.remove(region);
        Half {
            make: Some(make),
            region,
            contents,
            cancelled: false,
        }
    }

    fn broken(&mut self, work: TlbWork, makes: Vec<Make>, later: bool) -> Result<(), String> {
        let makes = makes.into_iter().map(|make| self.half(make)).collect();
        self.open.push(Open {
            work: Some(work),
            discharged: None,
            makes,
        });
        if later {
            return Ok(());
        }
        let last = self.open.len() - 1;
        self.advance(last)?;
        self.advance(last)
    }

    /// The next half of an open break: discharge, or complete and release.
    fn advance(&mut self, n: usize) -> Result<(), String> {
        if let Some(work) = self.open[n].work.take() {
            let discharged = self.discharge(work)?;
            self.open[n].discharged = Some(discharged);
            return Ok(());
        }
        let mut open = self.open.remove(n);
        let discharged = open.discharged.take().expect("discharged before");
        let mut result = Ok(());
        for half in &mut open.makes {
            let make = half.make.take().expect("completed once");
            let (table, tables) = (self.table.as_mut().expect("not destroyed"), &self.tables);
            let completed = table.complete(make, &discharged, tables);
            let expected = if half.cancelled {
                Completed::Cancelled
            } else {
                Completed::Made
            };
            if completed != expected {
                result = Err(format!(
                    "{completed:?} instead of {expected:?} at {:x?}",
                    half.region
                ));
            }
            if completed == Completed::Made {
                half.contents
                    .drain(..)
                    .for_each(|extent| self.model.insert(extent));
            }
        }
        discharged.release(&self.tables);
        result
    }

    fn discharge(&mut self, work: TlbWork) -> Result<Discharged, String> {
        // Hardware walks between the change and the invalidation: the old and the new entry may
        // both be in the TLB now, if the engine let them.
        let contradiction = self.mmu.cache_everything(&self.tables);
        let (mmu, requests, lost) = (&mut self.mmu, &mut self.requests, &self.lost);
        let discharged = work.discharge(|request| {
            if !lost.contains(requests) {
                mmu.invalidate(request);
            }
            *requests += 1;
        });
        match contradiction {
            Ok(()) => Ok(discharged),
            Err(error) => {
                core::mem::forget(discharged);
                Err(error)
            }
        }
    }

    fn finish(&mut self, work: TlbWork) -> Result<(), String> {
        self.discharge(work)?.release(&self.tables);
        Ok(())
    }

    fn halves(&self) -> impl Iterator<Item = &Half> {
        self.open
            .iter()
            .flat_map(|open| &open.makes)
            .filter(|half| !half.cancelled)
    }

    fn cancel(&mut self, span: Span, only_inside: bool) {
        for half in self.open.iter_mut().flat_map(|open| &mut open.makes) {
            half.cancelled |= if only_inside {
                span.contains(half.region)
            } else {
                span.meets(half.region)
            };
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.mmu.cache_everything(&self.tables)?;
        let reach = self.mmu.reach(&self.tables)?;
        let seen: Extents = reach.leaves.iter().map(|leaf| leaf.extent()).collect();
        let visible = self.model.filtered(|extent| self.mmu_sees(extent)).normal();
        if seen.normal() != visible {
            return Err(format!(
                "hardware sees {:x?}, the model {visible:x?}",
                seen.normal()
            ));
        }
        self.check_visit()?;
        let pending: Vec<Span> = self
            .open
            .iter()
            .filter(|open| open.work.is_some())
            .flat_map(|open| &open.makes)
            .map(|half| half.region)
            .collect();
        let excused = |start: u64, size: u64| {
            pending.iter().any(|span| {
                span.meets(Span {
                    start,
                    end: start + size,
                })
            })
        };
        let stale = self
            .mmu
            .tlb
            .leaves
            .iter()
            .find(|leaf| !reach.leaves.contains(leaf) && !excused(leaf.start, leaf.size));
        if let Some(leaf) = stale {
            return Err(format!("stale translation {leaf:x?}"));
        }
        let stale = self
            .mmu
            .tlb
            .pointers
            .iter()
            .find(|old| !reach.pointers.contains(old) && !excused(old.start, old.size));
        if let Some(pointer) = stale {
            return Err(format!("stale table pointer {pointer:x?}"));
        }
        self.check_pages()
    }

    /// A parked leaf is mapped for the engine and invisible to hardware.
    fn mmu_sees(&self, extent: &Extent) -> bool {
        let format = self.table.as_ref().expect("not destroyed").config.format;
        format
            .encode(Self::attrs(*extent))
            .is_some_and(|bits| bits & crate::entry::PARKED == 0)
    }

    fn check_visit(&self) -> Result<(), String> {
        let table = self.table.as_ref().expect("not destroyed");
        let mut leaves = vec![];
        table.visit(Ipa::new(0), u64::MAX, &self.tables, |leaf| {
            leaves.push(Extent {
                start: leaf.addr.raw(),
                end: leaf.addr.raw() + leaf.size,
                pa: leaf.pa.raw(),
                memory: leaf.attrs.memory,
                rights: leaf.attrs.rights,
            });
        });
        let engine: Extents = leaves.into_iter().collect();
        if engine.normal() != self.model.normal() {
            return Err(format!(
                "the engine maps {:x?}, the model {:x?}",
                engine.normal(),
                self.model.normal()
            ));
        }
        if table.mapped_bytes() != self.model.bytes() {
            return Err(format!(
                "mapped_bytes {:#x}, the model {:#x}",
                table.mapped_bytes(),
                self.model.bytes()
            ));
        }
        Ok(())
    }

    fn check_pages(&self) -> Result<(), String> {
        let waiting: usize = self
            .open
            .iter()
            .map(|open| {
                open.work.as_ref().map_or(0, TlbWork::waiting)
                    + open.discharged.as_ref().map_or(0, Discharged::waiting)
            })
            .sum();
        let owned = self.table.as_ref().map_or(0, PageTable::table_pages);
        if self.tables.live() != owned + waiting {
            return Err(format!(
                "{} pages are live, {owned} in use, {waiting} waiting",
                self.tables.live()
            ));
        }
        Ok(())
    }

    /// Ends every open break, destroys the table, and sees that nothing is left.
    pub(super) fn destroy(&mut self) -> Result<(), String> {
        while !self.open.is_empty() {
            self.advance(0)?;
            self.check()?;
        }
        let work = self
            .table
            .take()
            .expect("destroyed once")
            .destroy(&self.tables);
        let live = self.tables.live();
        if work.waiting() != live {
            return Err(format!(
                "{live} pages are live, destroy found {}",
                work.waiting()
            ));
        }
        self.finish(work)?;
        let tlb = &self.mmu.tlb;
        if self.tables.live() != 0 || !tlb.leaves.is_empty() || !tlb.pointers.is_empty() {
            return Err("something outlives the table".into());
        }
        Ok(())
    }

    /// Sets the access flag as hardware does, if `at` is mapped.
    pub(super) fn touch(&mut self, at: u64) {
        let found = self.pt().config.geometry.input_bytes();
        if at < found {
            let (table, tables) = (self.table.as_ref().expect("not destroyed"), &self.tables);
            if let Some(spot) = table.find(at, tables)
                && spot.word & 1 == 1
            {
                table
                    .slot(spot.table, spot.level, at, tables)
                    .fetch_or(1 << 10, Relaxed);
            }
        }
    }
}

impl<F: Format> Drop for Harness<F> {
    /// A run that ended in an error leaves work behind; its drop bombs would hide the error.
    fn drop(&mut self) {
        core::mem::forget(core::mem::take(&mut self.open));
    }
}
