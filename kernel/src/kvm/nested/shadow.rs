//! Shadow stage 2: what a guest hypervisor's tables and the VM's own come to, per context.
//!
//! A context is made for everything that changes the meaning of an address (`ContextKey`) and has a table
//! and a hardware VMID of its own. What it maps stands in the books of `umbra_nested::shadow` too, entry
//! by entry, so that taking a page of the VM back costs its mappings. All of it lies under the VM's memory
//! lock, which is held until the TLB work of a change is done.
//!
//! A fill walks the guest hypervisor's tables without the lock; every TLBI of the guest hypervisor
//! advances the context's sequence, and a fill that began before is not installed.
//!
//! Whatever may be long is done in portions of [`PORTION`] entries, between which the lock is free:
//! a TLBI, and the end of a context. Taking pages of the VM back is not: its caller promised that
//! nothing derived from them is in use when it is done.

use alloc::vec::Vec;

use umbra_arm64::{Granule, Ipa, L2Ipa, Level, Pa, Rights, Tag, Vmid};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_nested::shadow::{ContextId, ContextKey, Insert, Part, Place, Places, Pool, Size, Tlbi};
use umbra_nested::stage2::WINDOW;
use umbra_stage2::{
    Attrs, Config, Geometry, Leaf, MapError, Mapped, S2, Shadow, TlbRequest, TlbWork,
};
use umbra_trace::Shadowed;

use super::super::events;
use super::super::ghost::{self, Made};
use super::super::memory::{
    Machine, NotMapped, give_vmid, heal_table, invalidate_under, moved, take_vmid,
};
use crate::mem::{self, TablePages};

/// Entries that are dropped under the lock at once where the work can be divided.
const PORTION: usize = 512;
/// Table pages that all shadows of a VM may have besides those in proportion to its memory.
const LEAST_TABLES: usize = 1024;
/// The software bit of a leaf that was made ahead of an access to it.
const AHEAD: u8 = 1;
const END: u64 = 1 << 48;

struct Context {
    table: Shadow,
    vttbr: u64,
    /// Roots that went bad.
    old_roots: Vec<Pa>,
}

/// What happened to shadows.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kvm) struct Counts {
    /// Entries made for an access.
    pub(in crate::kvm) fills: u64,
    /// Entries made ahead of one.
    pub(in crate::kvm) ahead: u64,
    /// Of those that are gone again: how many were used, and how many never.
    pub(in crate::kvm) ahead_used: u64,
    /// See `ahead_used`.
    pub(in crate::kvm) ahead_unused: u64,
    /// Contexts made.
    pub(in crate::kvm) made: u64,
    /// Contexts given up for another.
    pub(in crate::kvm) given_up: u64,
}

impl Counts {
    fn gone(&mut self, leaf: &Leaf<L2Ipa>) {
        if leaf.attrs.software & AHEAD != 0 {
            if leaf.attrs.accessed {
                self.ahead_used += 1;
            } else {
                self.ahead_unused += 1;
            }
        }
    }
}

/// Shadows at a glance.
#[derive(Clone, Copy, Debug)]
pub(in crate::kvm) struct Summary {
    /// Entries that are still there counted as well.
    pub(in crate::kvm) counts: Counts,
    pub(in crate::kvm) contexts: u64,
    pub(in crate::kvm) entries: u64,
    pub(in crate::kvm) table_pages: u64,
}

/// One leaf to be made.
#[derive(Clone, Copy, Debug)]
pub(in crate::kvm) struct Fill {
    pub(in crate::kvm) at: L2Ipa,
    pub(in crate::kvm) ipa: Ipa,
    pub(in crate::kvm) pa: Pa,
    pub(in crate::kvm) size: Size,
    pub(in crate::kvm) rights: Rights,
    /// Bytes of the guest hypervisor's own leaf.
    pub(in crate::kvm) leaf_bytes: u64,
}

/// What asking for a context came to.
#[derive(Clone, Copy, Debug)]
pub(in crate::kvm) enum Acquired {
    /// It is in use now: its name and VTTBR_EL2.
    Context(ContextId, u64),
    /// Another is being given up for it: ask again, the lock having been free.
    Again,
    /// Memory or VMIDs are out.
    NoMemory,
}

/// The shadows of one VM.
pub(in crate::kvm) struct Shadows {
    vm: u16,
    pool: Pool<Context>,
    places: Places,
    /// Pages of all tables.
    tables: usize,
    most_tables: usize,
    pub(in crate::kvm) counts: Counts,
}

impl Shadows {
    /// Of VM number `vm`, as events call it.
    pub(in crate::kvm) const fn new(vm: u16) -> Self {
        Self {
            vm,
            pool: Pool::new(),
            places: Places::new(),
            tables: 0,
            most_tables: LEAST_TABLES,
            counts: Counts {
                fills: 0,
                ahead: 0,
                ahead_used: 0,
                ahead_unused: 0,
                made: 0,
                given_up: 0,
            },
        }
    }

    /// The VM has so much memory: table pages are allowed in proportion, eight times what one context
    /// needs to map all of it in pages.
    pub(in crate::kvm) fn set_memory(&mut self, bytes: u64) {
        let pages = bytes / 4096 / 64;
        self.most_tables = LEAST_TABLES + usize::try_from(pages).unwrap_or(usize::MAX / 2);
    }

    /// Takes the context for `key` into use.
    pub(in crate::kvm) fn acquire(&mut self, key: ContextKey, machine: &Machine) -> Acquired {
        if let Some(id) = self.pool.acquire(&key) {
            return match self.pool.get(id) {
                Some(context) => Acquired::Context(id, context.vttbr),
                None => Acquired::Again,
            };
        }
        if self.pool.is_full() {
            let Some(victim) = self.pool.victim() else {
                return Acquired::NoMemory;
            };
            if !self.give_up(victim) {
                return Acquired::Again;
            }
        }
        let Some(vmid) = take_vmid(machine.vmid_bits) else {
            return Acquired::NoMemory;
        };
        self.make(key, machine, vmid).unwrap_or_else(|| {
            give_vmid(vmid.number());
            Acquired::NoMemory
        })
    }

    fn make(&mut self, key: ContextKey, machine: &Machine, vmid: Vmid) -> Option<Acquired> {
        let config = Config {
            geometry: Geometry::stage2(Granule::K4, machine.pa_bits.into())?,
            output_bits: machine.pa_bits.into(),
            format: S2 { xnx: machine.xnx },
            tag: Tag::Vmid(vmid),
        };
        let table = Shadow::new(config, &TablePages).ok()?;
        let vttbr = umbra_hw::tlb::vttbr(table.root(), vmid.number());
        let pages = table.table_pages();
        match self.pool.insert(
            key,
            Context {
                table,
                vttbr,
                old_roots: Vec::new(),
            },
        ) {
            Ok(id) => {
                self.tables += pages;
                self.counts.made += 1;
                events::shadow(self.vm, id, Shadowed::Created, Some(&key), vttbr);
                Some(Acquired::Context(id, vttbr))
            }
            Err(context) => {
                context
                    .table
                    .destroy(&TablePages)
                    .finish(&TablePages, under(vttbr));
                None
            }
        }
    }

    /// The vCPU that ran in the context no longer does.
    pub(in crate::kvm) fn release(&mut self, id: ContextId) {
        self.pool.release(id);
    }

    /// What a fill of the context has to find unchanged.
    pub(in crate::kvm) fn sequence(&mut self, id: ContextId) -> u64 {
        // A context in use does not go; for one that went no fill is installed.
        self.pool.sequence(id).unwrap_or(u64::MAX)
    }

    /// Drops a portion of a context that nobody uses, and the context itself once it is empty: whether
    /// it is.
    fn give_up(&mut self, id: ContextId) -> bool {
        let mut portion = PORTION;
        if !self.sweep(id, &mut 0, END, &mut portion) {
            return false;
        }
        if let Some(context) = self.pool.remove(id) {
            self.tables -= context.table.table_pages();
            self.counts.given_up += 1;
            events::shadow(self.vm, id, Shadowed::OverBudget, None, context.vttbr);
            context.destroy();
        }
        true
    }

    /// Drops what a context maps from `cursor` to `end`, as many entries as `portion` says. Whether
    /// that was all.
    fn sweep(&mut self, id: ContextId, cursor: &mut u64, end: u64, portion: &mut usize) -> bool {
        let from = *cursor;
        let Some(context) = self.pool.get(id) else {
            return true;
        };
        let before = context.table.table_pages();
        let mut work = context.table.work();
        while *portion > 0 && *cursor < end {
            match self.places.pop(id, L2Ipa::new(*cursor), end) {
                Some(place) => {
                    context.remove(&place, &mut work, &mut self.counts);
                    *cursor = place.at.raw() + place.size.bytes();
                    *portion -= 1;
                }
                None => *cursor = end,
            }
        }
        // Over more than a table's range, the tables go too.
        if *cursor - from > Size::Block.bytes() {
            let tables = context
                .table
                .evict(L2Ipa::new(from), *cursor - from, &TablePages);
            if let Err(other) = work.merge(tables, &TablePages) {
                other.finish(&TablePages, under(context.vttbr));
            }
        }
        self.tables -= before - context.table.table_pages();
        work.finish(&TablePages, under(context.vttbr));
        ghost::unmapped(context.vttbr, from, *cursor - from);
        *cursor >= end
    }

    /// Drops what a context maps of the guest hypervisor's leaf at `at`. Whether that was all.
    fn sweep_leaf(
        &mut self,
        id: ContextId,
        at: u64,
        cursor: &mut u64,
        portion: &mut usize,
    ) -> bool {
        let Some(context) = self.pool.get(id).filter(|_| at < END) else {
            return true;
        };
        if *portion == 0 {
            return false;
        }
        let mut next = || self.places.pop_leaf(id, L2Ipa::new(at), cursor);
        let mut all = true;
        if let Some(mut place) = next() {
            let mut work = context.table.work();
            loop {
                context.remove(&place, &mut work, &mut self.counts);
                *portion -= 1;
                let more = if *portion > 0 { next() } else { None };
                match more {
                    Some(more) => place = more,
                    None => break,
                }
            }
            all = *portion > 0;
            work.finish(&TablePages, under(context.vttbr));
        }
        if all {
            ghost::unmapped(context.vttbr, at, 1);
        }
        all
    }

    /// Sets the access flag of the context's mapping of `at`: the guest hypervisor's tables still said so
    /// when they were walked.
    pub(in crate::kvm) fn make_young(&mut self, (id, seq): (ContextId, u64), at: L2Ipa) {
        if self.pool.sequence(id) != Some(seq) {
            return;
        }
        if let Some(context) = self.pool.get(id) {
            context.table.make_young(at, &TablePages);
            umbra_hw::tlb::publish();
        }
    }

    /// Drops everything a context maps: it is filled anew.
    pub(in crate::kvm) fn rebuild(&mut self, id: ContextId) {
        self.sweep(id, &mut 0, END, &mut { usize::MAX });
    }

    /// Makes pages ahead of accesses to them, round the one that was just made at `near`: where its
    /// table has nothing, what `pick` says. Their access flags are clear.
    pub(in crate::kvm) fn fill_around(
        &mut self,
        id: ContextId,
        near: L2Ipa,
        mut pick: impl FnMut(L2Ipa) -> Option<Fill>,
        mut made: impl FnMut(&Fill),
    ) {
        let Self {
            pool, places, vm, ..
        } = self;
        let Some(Context { table, vttbr, .. }) = pool.get(id) else {
            return;
        };
        let mut crowded = [None; (WINDOW / 4096) as usize];
        let mut out_of_the_way = crowded.iter_mut();
        let pick = |at| {
            let fill = pick(at)?;
            let attrs = Attrs {
                accessed: false,
                software: AHEAD,
                ..Attrs::normal(fill.rights)
            };
            Some((fill.pa, attrs, fill))
        };
        let count = table.fill_near(near, WINDOW, &TablePages, pick, |fill| {
            match places.insert(place(id, &fill)) {
                Ok(Insert::Done | Insert::Known) => {}
                Ok(Insert::Crowded(other)) => {
                    if let Some(slot) = out_of_the_way.next() {
                        *slot = Some(other);
                    }
                }
                Err(_) => return false,
            }
            ghost::fresh(&ghost_of(*vttbr, *vm, &fill));
            made(&fill);
            true
        });
        self.counts.ahead += count as u64;
        for other in crowded.iter().flatten() {
            self.drop_leaf(other);
        }
    }

    /// Makes a leaf for an access, if the guest hypervisor has invalidated nothing since `seq`.
    pub(in crate::kvm) fn fill(
        &mut self,
        (id, seq): (ContextId, u64),
        fill: &Fill,
    ) -> Result<(), NotMapped> {
        if self.pool.sequence(id) != Some(seq) {
            return Err(NotMapped::Retry);
        }
        let bytes = fill.size.bytes();
        let known = self.places.find(id, fill.at);
        let same = known.is_some_and(|known| {
            (known.at, known.size, known.ipa) == (fill.at, fill.size, fill.ipa)
        });
        if !same && (known.is_some() || fill.size != Size::Page) {
            // The guest hypervisor maps something else here now.
            let end = fill.at.raw() + bytes;
            self.sweep(id, &mut { fill.at.raw() }, end, &mut { usize::MAX });
        }
        let place = place(id, fill);
        if same && let Some(context) = self.pool.get(id) {
            // Here by an access that the leaf does not allow, or not any more.
            let had = context.table.lookup(fill.at, &TablePages);
            self.counts.ahead_used +=
                u64::from(had.is_some_and(|leaf| leaf.attrs.software & AHEAD != 0));
        }
        match self.places.insert(place) {
            Ok(Insert::Done | Insert::Known) => {}
            Ok(Insert::Crowded(other)) => self.drop_leaf(&other),
            Err(_) => return Err(NotMapped::NoMemory),
        }
        let result = self.map(id, fill, Attrs::normal(fill.rights));
        if result.is_err() {
            self.places
                .pop(id, fill.at, fill.at.raw().saturating_add(bytes));
            self.drop_leaf(&place);
            return result;
        }
        self.counts.fills += 1;
        self.keep_to_budget(id);
        Ok(())
    }

    fn map(&mut self, id: ContextId, fill: &Fill, attrs: Attrs) -> Result<(), NotMapped> {
        let Some(context) = self.pool.get(id) else {
            return Err(NotMapped::Retry);
        };
        let (vttbr, before) = (context.vttbr, context.table.table_pages());
        let bytes = fill.size.bytes();
        let mapped = context
            .table
            .map(fill.at, fill.pa, bytes, attrs, &TablePages);
        let ghost = ghost_of(vttbr, self.vm, fill);
        let result = match mapped {
            Ok(Mapped::Unchanged) => Ok(()),
            Ok(Mapped::Fresh) => {
                ghost::fresh(&ghost);
                Ok(())
            }
            Ok(Mapped::Rights(work)) => {
                work.finish(&TablePages, under(vttbr));
                ghost::replaced(&ghost);
                Ok(())
            }
            Ok(Mapped::Broken(broken)) => {
                broken.finish(&mut context.table, &TablePages, under(vttbr));
                ghost::replaced(&ghost);
                Ok(())
            }
            Err(MapError::Busy) => Err(NotMapped::Retry),
            Err(MapError::NoMemory) => Err(NotMapped::NoMemory),
            // An address beyond the table's input: the walk refused it before.
            Err(error) => {
                log::error!("shadow of {}: {error:?}", fill.at);
                Err(NotMapped::Retry)
            }
        };
        self.tables = self.tables + context.table.table_pages() - before;
        result
    }

    /// Tables beyond the budget: a context that nobody uses goes, else a portion of this one.
    fn keep_to_budget(&mut self, id: ContextId) {
        if self.tables > self.most_tables {
            let victim = self.pool.victim();
            let done = victim.is_none_or(|victim| self.give_up(victim));
            if victim.is_none() || !done && self.tables > 2 * self.most_tables {
                self.sweep(id, &mut 0, END, &mut { 8 * PORTION });
            }
        }
    }

    /// Drops the leaf of an entry that is out of the books.
    fn drop_leaf(&mut self, place: &Place) {
        if let Some(context) = self.pool.get(place.context) {
            let mut work = context.table.work();
            context.remove(place, &mut work, &mut self.counts);
            work.finish(&TablePages, under(context.vttbr));
        }
    }

    /// Unmaps whatever of `[base, base + bytes)` of the VM any shadow maps.
    pub(in crate::kvm) fn forget(&mut self, base: Ipa, bytes: u64) {
        if left_out(Safeguard::ShadowReverse) {
            return;
        }
        let mut works = Works::new();
        while let Some(place) = self.places.pop_mapping(base, bytes) {
            if let Some(context) = self.pool.get(place.context) {
                let counts = &mut self.counts;
                let work = works.of(place.context, context);
                context.remove(&place, work, counts);
            }
        }
        works.finish();
    }

    /// Takes the right to write `[base, base + bytes)` of the VM from every shadow. What is larger
    /// loses it as a whole.
    pub(in crate::kvm) fn write_protect(&mut self, base: Ipa, bytes: u64) {
        if left_out(Safeguard::ShadowProtect) {
            return;
        }
        let Self { pool, places, .. } = self;
        let mut works = Works::new();
        places.for_each_mapping(base, bytes, |place| {
            if let Some(context) = pool.get(place.context) {
                let more = context
                    .table
                    .write_protect(place.at, place.size.bytes(), &TablePages);
                works.add(place.context, context, more);
            }
        });
        works.finish();
    }

    /// Does a portion of a TLBI of the guest hypervisor and says whether that was all of it.
    pub(in crate::kvm) fn invalidate(&mut self, tlbi: &mut Tlbi) -> bool {
        tlbi.begin(&mut self.pool);
        let mut portion = PORTION;
        while let Some((id, part)) = tlbi.due(&self.pool) {
            let done = match part {
                Part::Leaf(at) => self.sweep_leaf(id, at.raw(), &mut tlbi.cursor, &mut portion),
                Part::Range(start, end) => {
                    tlbi.cursor = start.raw().max(tlbi.cursor);
                    self.sweep(id, &mut tlbi.cursor, end, &mut portion)
                }
            };
            if !done {
                return false;
            }
            tlbi.done();
        }
        true
    }

    /// VTTBR_EL2 of every context of a VMID, or of all.
    pub(in crate::kvm) fn vttbrs(&self, vmid: Option<u16>) -> impl Iterator<Item = u64> {
        self.pool.values_of(vmid).map(|(_, context)| context.vttbr)
    }

    /// What there is and what happened. Costs a look at every entry.
    pub(in crate::kvm) fn summary(&self) -> Summary {
        let mut summary = self.overview();
        for (_, context) in self.pool.values() {
            let table = &context.table;
            let counts = &mut summary.counts;
            table.visit(L2Ipa::new(0), END, &TablePages, |leaf| counts.gone(&leaf));
        }
        summary
    }

    /// The same without that look: whether what was made ahead was used is known of what is gone only.
    pub(in crate::kvm) fn overview(&self) -> Summary {
        Summary {
            counts: self.counts,
            contexts: self.pool.values().count() as u64,
            entries: self.places.len() as u64,
            table_pages: self.tables as u64,
        }
    }

    /// VTTBR_EL2 of one context.
    pub(in crate::kvm) fn vttbr_of(&mut self, id: ContextId) -> Option<u64> {
        self.pool.get(id).map(|context| context.vttbr)
    }

    /// Cuts table pages that cannot be trusted off every context; each such context is filled anew.
    /// Answers how many there were.
    /// `more_lost`: umbra has met some itself.
    pub(in crate::kvm) fn heal(&mut self, more_lost: bool) -> usize {
        let (mut from, mut total) = (0, 0);
        while let Some(id) = self.pool.next_of_vmid(None, from) {
            from = id.index() + 1;
            let Some(context) = self.pool.get(id) else {
                continue;
            };
            let before = context.table.table_pages();
            let table = &mut context.table;
            let (cuts, old) = heal_table(table, more_lost, under(context.vttbr));
            if let Some(old) = old {
                context.vttbr = moved(context.vttbr, table.root());
                context.old_roots.push(old);
            }
            self.tables -= before - context.table.table_pages();
            if cuts > 0 {
                self.rebuild(id);
                total += cuts;
            }
        }
        total
    }

    /// Breaks every context on purpose (`PageTable::misdirect`).
    pub(in crate::kvm) fn misdirect(&mut self, to: Pa) {
        let mut from = 0;
        while let Some(id) = self.pool.next_of_vmid(None, from) {
            from = id.index() + 1;
            let Some(context) = self.pool.get(id) else {
                continue;
            };
            if let Some(work) = context.table.misdirect(None, to, &TablePages) {
                work.finish(&TablePages, under(context.vttbr));
            }
        }
    }

    /// The VM goes.
    pub(in crate::kvm) fn destroy(&mut self) {
        let mut from = 0;
        while let Some(id) = self.pool.next_of_vmid(None, from) {
            if let Some(context) = self.pool.remove(id) {
                events::shadow(self.vm, id, Shadowed::VmGone, None, context.vttbr);
                context.destroy();
            }
            from = id.index() + 1;
        }
        self.places = Places::new();
        self.tables = 0;
    }
}

/// What the books say of a leaf.
fn place(id: ContextId, fill: &Fill) -> Place {
    Place {
        context: id,
        at: fill.at,
        ipa: fill.ipa,
        size: fill.size,
        leaf_shift: fill.leaf_bytes.trailing_zeros().min(48) as u8,
    }
}

fn ghost_of(vttbr: u64, vm: u16, fill: &Fill) -> Made {
    Made {
        vttbr,
        addr: fill.at.raw(),
        level: Granule::K4
            .leaf_level(fill.size.bytes())
            .unwrap_or(Level::L3),
        pa: fill.pa,
        rights: fill.rights,
        vm,
        source: fill.ipa,
    }
}

impl Context {
    /// Takes the leaf of an entry out of the table.
    fn remove(&mut self, place: &Place, work: &mut TlbWork, counts: &mut Counts) {
        if let Some(leaf) = self.table.remove_leaf(place.at, work, &TablePages) {
            debug_assert!(
                leaf.addr == place.at && leaf.size == place.size.bytes(),
                "the books say {place:?}, the shadow {leaf:?}"
            );
            counts.gone(&leaf);
        }
    }

    fn destroy(self) {
        let vttbr = self.vttbr;
        umbra_hw::guest::unload_vttbr(vttbr);
        for root in self.old_roots {
            mem::release(root);
        }
        self.table
            .destroy(&TablePages)
            .finish(&TablePages, under(vttbr));
        ghost::gone(vttbr);
        give_vmid((vttbr >> 48) as u16);
    }
}

/// How TLB requests of a context are performed.
fn under(vttbr: u64) -> impl FnMut(&TlbRequest) {
    move |request| {
        if left_out(Safeguard::ShadowTlbi) {
            return;
        }
        let other = u64::from(left_out(Safeguard::ShadowVmid)) << 48;
        invalidate_under(vttbr ^ other, request);
    }
}

/// TLB work of several entries in a row, put together as long as they are one context's.
struct Works(Option<(ContextId, u64, TlbWork)>);

impl Works {
    const fn new() -> Works {
        Works(None)
    }

    /// The work to add to for an entry of `context`.
    fn of(&mut self, id: ContextId, context: &Context) -> &mut TlbWork {
        if self.0.as_ref().is_some_and(|(other, ..)| *other != id) {
            core::mem::replace(self, Works(None)).finish();
        }
        let fresh = || (id, context.vttbr, context.table.work());
        &mut self.0.get_or_insert_with(fresh).2
    }

    fn add(&mut self, id: ContextId, context: &Context, more: TlbWork) {
        if let Err(more) = self.of(id, context).merge(more, &TablePages) {
            more.finish(&TablePages, under(context.vttbr));
        }
    }

    fn finish(self) {
        if let Some((_, vttbr, work)) = self.0 {
            work.finish(&TablePages, under(vttbr));
        }
    }
}
