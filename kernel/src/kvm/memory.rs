//! A VM's memory: its slots, and the canonical stage 2 that follows them.
//!
//! The lock (rank 160) lies inside the VMM's address-space lock (150): a guest fault asks the address
//! space for the page and maps it under both, and the address space calls [`Memory::invalidate`]
//! before a page changes. So the stage 2 never maps what the VMM no longer does.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use umbra_abort::{SizeRequest, Stage2Kind, mapping_size};
use umbra_arm64::{Address, Granule, Ipa, Level, Pa, Rights, Tag, Vmid};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_hw::tlb;
use umbra_linux::vma::Span;
use umbra_stage2::dirty::DirtyLog;
use umbra_stage2::{
    Attrs, Canonical, Config, Geometry, MapError, Mapped, NoMemory, PageTable, S2, Scope,
    TlbRequest,
};
use umbra_trace::UnmapReason;

use super::events;
use super::ghost::{self, Made};
use super::nested::Shadows;
use super::slots::{self, Change, Slot, SlotError, Slots};
use crate::mem::{self, TablePages};
use crate::mm::{PageView, Present};

mod ahead;

pub(super) use ahead::AheadCounts;

/// Why a page could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotMapped {
    /// The slot went away or changed meanwhile: let the access happen again.
    Retry,
    /// No memory for tables.
    NoMemory,
}

/// What an access that faulted needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) write: bool,
    pub(super) exec: bool,
    /// Why it faulted.
    pub(super) kind: Stage2Kind,
}

/// Slots and tables of one VM.
pub(super) struct Memory {
    slots: Slots,
    /// `None` only while the VM is being dropped.
    table: Option<Canonical>,
    vttbr: u64,
    /// The same word for who has not the lock.
    shown_vttbr: Arc<AtomicU64>,
    /// Roots that went bad: CPUs may have them loaded until the VM ends.
    old_roots: Vec<Pa>,
    /// How many pages of tables had been lost, in the machine, when these were last looked at.
    healed_at: u64,
    /// The same tables under a second VMID, for what a guest hypervisor runs without a stage 2 of its
    /// own: the two have different stage-1 entries for the same addresses.
    below: Option<u64>,
    /// Under which of the guest hypervisor's VMIDs it last ran something so.
    below_vmid: u16,
    vmid_bits: u32,
    ahead: AheadCounts,
    /// What guest hypervisors' own stage 2 come to.
    pub(super) shadows: Shadows,
}

/// VMIDs in use, a bit each. 0 stands for "no guest".
static VMIDS: SpinLock<[u64; 1024]> = SpinLock::new("vmids", 191, {
    let mut words = [0; 1024];
    words[0] = 1;
    words
});

/// Gives a VMID back; its TLB entries are gone.
pub(super) fn give_vmid(number: u16) {
    let number = usize::from(number);
    VMIDS.lock()[number / 64] &= !(1 << (number % 64));
}

/// A free VMID of so many bits.
pub(super) fn take_vmid(bits: u32) -> Option<Vmid> {
    let mut words = VMIDS.lock();
    let limit = (1usize << bits) / 64;
    let word = words[..limit].iter().position(|&word| word != u64::MAX)?;
    let bit = words[word].trailing_ones();
    words[word] |= 1 << bit;
    Some(Vmid::new((word * 64) as u16 + bit as u16))
}

/// What the machine's stage 2 can do, from ID_AA64MMFR0/1_EL1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// Physical address bits, at most 48.
    pub(super) pa_bits: u8,
    pub(super) vmid_bits: u32,
    pub(super) xnx: bool,
    hafdbs: bool,
}

impl Machine {
    /// Reads it.
    pub(super) fn read() -> Self {
        let mmfr0 = umbra_hw::idregs::read(7, 0);
        let mmfr1 = umbra_hw::idregs::read(7, 1);
        let pa_bits = match mmfr0 & 0xf {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        };
        Self {
            pa_bits,
            vmid_bits: if mmfr1 >> 4 & 0xf == 2 { 16 } else { 8 },
            xnx: mmfr1 >> 28 & 0xf != 0,
            hafdbs: mmfr1 & 0xf != 0,
        }
    }

    /// VTCR_EL2 for 4 KiB tables of `ipa_bits`: write-back walks, inner shareable, hardware access
    /// flag (Arm ARM D24.2.218).
    pub(super) fn vtcr(&self, ipa_bits: u8) -> u64 {
        let sl0 = if ipa_bits > 43 {
            2
        } else if ipa_bits > 34 {
            1
        } else {
            0
        };
        let ps: u64 = match self.pa_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            _ => 5,
        };
        u64::from(64 - ipa_bits)
            | sl0 << 6
            | 1 << 8
            | 1 << 10
            | 3 << 12
            | ps << 16
            | u64::from(self.vmid_bits == 16) << 19
            | u64::from(self.hafdbs) << 21
            | 1 << 31
    }
}

fn invalidate_tlb(vttbrs: (u64, Option<u64>)) -> impl FnMut(&TlbRequest) {
    move |request| {
        for vttbr in core::iter::once(vttbrs.0).chain(vttbrs.1) {
            invalidate_under(vttbr, request);
        }
    }
}

/// Performs a TLB request under the VMID of a VTTBR_EL2.
pub(super) fn invalidate_under(vttbr: u64, request: &TlbRequest) {
    tlb::Stage2::with(vttbr, |stage2| match request.scope {
        // A long range costs more by page than the VM's refills.
        Scope::Range {
            addr,
            bytes,
            level,
            leaf_only,
        } => {
            let step = level.map_or(4096, |level| Granule::K4.level_bytes(level));
            let count = bytes.div_ceil(step);
            if count > 512 {
                ghost::struck_all(stage2.all());
            } else {
                let level = level.filter(|_| leaf_only);
                // TG = 4 KiB, level in the low bits (Arm ARM D8.17.5).
                let ttl = level.map_or(0, |level| 0b0100 | level.number() as u64 & 3);
                ghost::struck(
                    stage2.ipa(addr, step, count, ttl),
                    addr,
                    (step, count),
                    level,
                );
            }
        }
        Scope::All => ghost::struck_all(stage2.all()),
    });
}

/// Cuts unsound pages off a table, and frees what hung below them. Answers how many there were, and the root
/// that was replaced, if it was. `more_lost`: umbra has met some itself.
pub(super) fn heal_table<A: Address>(
    table: &mut PageTable<S2, A>,
    more_lost: bool,
    invalidate: impl FnMut(&TlbRequest),
) -> (usize, Option<Pa>) {
    let root = table.root();
    let end = root.checked_add(table.geometry().root_tables() as u64 * 4096);
    let healed = table.cut_unsound(&TablePages, &mut mem::is_sound_table, &mut |page, _, _| {
        if page >= root && Some(page) < end {
            mem::give_up_root(page);
        } else {
            mem::give_up_table(page);
        }
    });
    healed.work.finish(&TablePages, invalidate);
    if let Some(old) = healed.old_root {
        ROOTS.fetch_add(1, Ordering::AcqRel);
        mem::unlabel(old);
    }
    if healed.orphans || more_lost {
        mem::sweep(table.tag(), |reach| {
            table.visit_tables(&TablePages, &mut |page| reach(page));
        });
    }
    (healed.cuts, healed.old_root)
}

/// How often a root was replaced, in the machine.
static ROOTS: AtomicU64 = AtomicU64::new(0);

/// What changes when a root was replaced somewhere: then vCPUs look whether theirs is.
pub(super) fn roots_replaced() -> u64 {
    ROOTS.load(Ordering::Acquire)
}

/// VTTBR_EL2 with another root.
pub(super) fn moved(vttbr: u64, root: Pa) -> u64 {
    vttbr & 0xffff << 48 | root.raw()
}

impl Memory {
    /// No slots, an empty table. `None` when memory or VMIDs are out.
    pub(super) fn new(machine: &Machine, ipa_bits: u8) -> Option<Self> {
        let vmid = take_vmid(machine.vmid_bits)?;
        let config = Config {
            geometry: Geometry::stage2(Granule::K4, ipa_bits.into())?,
            output_bits: machine.pa_bits.into(),
            format: S2 { xnx: machine.xnx },
            tag: Tag::Vmid(vmid),
        };
        let table = Canonical::new(config, &TablePages).ok()?;
        let vttbr = tlb::vttbr(table.root(), vmid.number());
        Some(Self {
            slots: Slots::new(),
            table: Some(table),
            vttbr,
            shown_vttbr: Arc::new(AtomicU64::new(vttbr)),
            old_roots: Vec::new(),
            healed_at: umbra_hw::lost::generation(),
            below: None,
            below_vmid: 0,
            ahead: AheadCounts::default(),
            shadows: Shadows::new(events::vm_number(vttbr)),
            vmid_bits: machine.vmid_bits,
        })
    }

    /// VTTBR_EL2 of the canonical table under the second VMID, for what runs under one of the guest
    /// hypervisor's VMIDs; `None` when VMIDs are out.
    ///
    /// There is one for all of them: what another left in the TLB goes first. Two at the same time
    /// would share entries, which is between the guest hypervisor's own guests.
    pub(super) fn vttbr_below(&mut self, vmid: u16) -> Option<u64> {
        if let Some(vttbr) = self.below.filter(|_| vmid != self.below_vmid) {
            tlb::Stage2::with(vttbr, tlb::Stage2::guest_all);
        }
        self.below_vmid = vmid;
        if self.below.is_none() {
            let vmid = take_vmid(self.vmid_bits)?;
            let root = self.table().root();
            self.below = Some(tlb::vttbr(root, vmid.number()));
        }
        self.below
    }

    /// VTTBR_EL2 of the canonical table under either VMID.
    pub(super) fn vttbrs(&self) -> (u64, Option<u64>) {
        (self.vttbr, self.below)
    }

    /// VTTBR_EL2 of the canonical table, as it is whenever somebody looks.
    pub(super) fn shown_vttbr(&self) -> Arc<AtomicU64> {
        self.shown_vttbr.clone()
    }

    /// VTTBR_EL2 of the canonical table.
    pub(super) fn vttbr(&self) -> u64 {
        self.vttbr
    }

    fn table(&mut self) -> &mut Canonical {
        self.table
            .as_mut()
            .expect("the table lives as long as the VM")
    }

    /// Whether `ipa` lies in a slot.
    pub(super) fn is_memory(&mut self, ipa: Ipa) -> bool {
        self.slots.is_memory(ipa)
    }

    /// The slot that `ipa` lies in.
    pub(super) fn has_slots(&self) -> bool {
        self.slots.bytes() != 0
    }

    /// The slot that an address lies in.
    pub(super) fn slot_at(&mut self, ipa: Ipa) -> Option<Slot> {
        self.slots.at(ipa)
    }

    /// Creates, moves, changes or (with `None`) deletes slot `id`; `log` is for one that logs.
    pub(super) fn set_slot(
        &mut self,
        id: u32,
        slot: Option<Slot>,
        log: Option<DirtyLog>,
    ) -> Result<(), SlotError> {
        match self.slots.set(id, slot, log)? {
            Change::Nothing => {}
            Change::Evict(base, bytes) => {
                self.evict(base, bytes);
                events::unmapped(self.vttbr, base, bytes, UnmapReason::Slot);
            }
            Change::Protect(base, bytes) => {
                self.write_protect(base, bytes);
                events::unmapped(self.vttbr, base, bytes, UnmapReason::Log);
            }
        }
        self.shadows.set_memory(self.slots.bytes());
        Ok(())
    }

    /// Pages of slot `id`, if it logs.
    pub(super) fn logged_pages(&mut self, id: u32) -> Option<u64> {
        self.slots.log(id).map(|(_, log)| log.pages())
    }

    /// The page at `ipa` was written by somebody who does not use the tables: a walker, a device.
    pub(super) fn mark_dirty(&mut self, ipa: Ipa) {
        self.slots.mark(ipa);
    }

    /// Reads words of the log of slot `id` from word `first` on; none beyond the slot. With `clear`,
    /// the pages it tells are clean and read only when this returns. `false`: it does not log.
    pub(super) fn read_log(&mut self, id: u32, first: u64, out: &mut [u64], clear: bool) -> bool {
        let Some((slot, log)) = self.slots.log(id) else {
            return false;
        };
        for (word, index) in out.iter_mut().zip(first..) {
            *word = log.word(index);
            if clear {
                log.clear(index, *word);
            }
        }
        if clear && let Some((base, bytes)) = slots::range_of(&slot, first, out) {
            self.write_protect(base, bytes);
        }
        true
    }

    /// Clears what `bits` name, from word `first` on: those pages are clean and read only when this
    /// returns. `false`: slot `id` does not log.
    pub(super) fn clear_log(&mut self, id: u32, first: u64, bits: &mut [u64]) -> bool {
        let Some((slot, log)) = self.slots.log(id) else {
            return false;
        };
        for (word, index) in bits.iter_mut().zip(first..) {
            *word = log.clear(index, *word);
        }
        if let Some((base, bytes)) = slots::range_of(&slot, first, bits) {
            self.write_protect(base, bytes);
        }
        true
    }

    /// What was read could not be told: it is dirty still.
    pub(super) fn restore_log(&mut self, id: u32, first: u64, bits: &[u64]) {
        if let Some((_, log)) = self.slots.log(id) {
            for (&word, index) in bits.iter().zip(first..) {
                log.restore(index, word);
            }
        }
    }

    /// Takes the right to write from all that is mapped of the range, shadows included.
    fn write_protect(&mut self, base: Ipa, bytes: u64) {
        if left_out(Safeguard::DirtyProtect) {
            return;
        }
        self.shadows.write_protect(base, bytes);
        let vttbr = (self.vttbr, self.below);
        self.table()
            .write_protect(base, bytes, &TablePages)
            .finish(&TablePages, |request| {
                if !left_out(Safeguard::TightenTlbi) {
                    invalidate_tlb(vttbr)(request);
                }
            });
        ghost::write_protected(events::vm_number(vttbr.0), base, bytes);
    }

    fn evict(&mut self, base: Ipa, bytes: u64) {
        self.shadows.forget(base, bytes);
        let Self { table, ahead, .. } = self;
        if let Some(table) = table {
            ahead.going(table, base, bytes);
        }
        let vttbr = (self.vttbr, self.below);
        self.table()
            .evict(base, bytes, &TablePages)
            .finish(&TablePages, invalidate_tlb(vttbr));
        ghost::taken_back(events::vm_number(vttbr.0), base, bytes);
    }

    /// The VMM's pages of `span` change: unmaps what the guest sees of them.
    pub(super) fn invalidate(&mut self, span: Span) {
        let mut from = None;
        while let Some((place, base, bytes)) = self.slots.next_seen_of(span, from) {
            self.evict(base, bytes);
            events::unmapped(self.vttbr, base, bytes, UnmapReason::Host);
            from = Some(place);
        }
    }

    /// One page of the VMM is broken: it alone goes, and what is mapped round it stays, where there is
    /// memory to cut its block.
    pub(super) fn take_page(&mut self, span: Span) {
        let vttbr = (self.vttbr, self.below);
        let mut from = None;
        while let Some((place, base, bytes)) = self.slots.next_seen_of(span, from) {
            from = Some(place);
            self.shadows.forget(base, bytes);
            let table = self.table();
            match table.unmap(base, bytes, &TablePages) {
                Ok(change) => {
                    change.finish(table, &TablePages, invalidate_tlb(vttbr));
                    ghost::taken_back(events::vm_number(vttbr.0), base, bytes);
                }
                Err(_) => self.evict(base, bytes),
            }
            events::unmapped(self.vttbr, base, bytes, UnmapReason::Poison);
        }
    }

    /// The leaf that maps `ipa`: its first address, what that is mapped to, and its bytes.
    pub(super) fn leaf_at(&mut self, ipa: Ipa) -> Option<(Ipa, Pa, u64)> {
        let leaf = self.table().lookup(ipa, &TablePages)?;
        Some((leaf.addr, leaf.pa, leaf.size))
    }

    /// Cuts table pages that cannot be trusted off the VM's tables, canonical and shadows: faults fill
    /// them again, and the guest never knows. A root is replaced, and who has it loaded follows
    /// (`sea::follow`). Answers how many there were.
    pub(super) fn heal(&mut self) -> usize {
        let lost = umbra_hw::lost::generation();
        let more_lost = core::mem::replace(&mut self.healed_at, lost) != lost;
        let vttbr = (self.vttbr, self.below);
        let (cuts, old) = heal_table(self.table(), more_lost, invalidate_tlb(vttbr));
        if let Some(old) = old {
            let root = self.table().root();
            self.vttbr = moved(self.vttbr, root);
            self.below = self.below.map(|below| moved(below, root));
            self.shown_vttbr.store(self.vttbr, Ordering::Release);
            self.old_roots.push(old);
        }
        if cuts > 0 {
            log::warn!("{cuts} pages of a VM's stage 2 were bad: made anew");
        }
        let shadows = self.shadows.heal(more_lost);
        if shadows > 0 {
            log::warn!("{shadows} pages of a VM's shadows were bad: made anew");
        }
        cuts + shadows
    }

    /// Pages of tables were lost since these were looked at: before anything is mapped, they are looked at
    /// again, as what is written to a page that is lost reaches nobody.
    pub(super) fn mend(&mut self) {
        if self.healed_at != umbra_hw::lost::generation() {
            self.heal();
        }
    }

    /// Drops whatever the VM maps: faults make it anew.
    pub(super) fn drop_all(&mut self) {
        self.evict(Ipa::new(0), 1 << 48);
    }

    /// Breaks the canonical table, or the shadows, on purpose (`PageTable::misdirect`).
    pub(super) fn misdirect(&mut self, to: Pa, shadows: bool) {
        if shadows {
            return self.shadows.misdirect(to);
        }
        let vttbr = (self.vttbr, self.below);
        if let Some(work) = self.table().misdirect(None, to, &TablePages) {
            work.finish(&TablePages, invalidate_tlb(vttbr));
        }
    }

    /// Sets the access flag of the leaf at `ipa`.
    pub(super) fn make_young(&mut self, ipa: Ipa) {
        self.mend();
        self.table().make_young(ipa, &TablePages);
        tlb::publish();
    }

    /// Drops the leaf at `ipa`: it will be made anew.
    pub(super) fn drop_leaf(&mut self, ipa: Ipa) {
        self.evict(ipa.align_down(4096), 4096);
    }

    /// Maps the page that `view` shows at `ipa`, in the largest leaf that both sides allow. `slot` is
    /// what the lookup found; if it changed since, nothing is mapped.
    pub(super) fn map(
        &mut self,
        ipa: Ipa,
        slot: &Slot,
        view: &PageView,
        wanted: Wanted,
        present: Present<'_>,
    ) -> Result<(), NotMapped> {
        if self.slot_at(ipa) != Some(*slot) {
            return Err(NotMapped::Retry);
        }
        self.mend();
        let hva = slot.hva_of(ipa).ok_or(NotMapped::Retry)?;
        let size = mapping_size(&SizeRequest {
            granule: Granule::K4,
            table_limit: 1 << 30,
            ipa,
            slot: slot.range(),
            host_bytes: view.bytes,
            logging: slot.logging,
            guest_bytes: None,
        });
        let at = ipa.align_down(if left_out(Safeguard::MappingAlign) {
            slots::PAGE
        } else {
            size
        });
        let offset = hva
            .align_down(size)
            .offset_from(view.start)
            .ok_or(NotMapped::Retry)?;
        let pa = Pa::new(view.pa.raw() + offset);
        // Rights that are there stay: a fetch must not take back what a store got. A translation fault
        // found nothing; where another vCPU mapped the page since, a right to fetch that goes here
        // comes back with one permission fault, which keeps all rights.
        let had = (wanted.kind != Stage2Kind::Translation)
            .then(|| self.table().lookup(ipa, &TablePages))
            .flatten();
        if let Some(leaf) = &had {
            self.ahead.gone(Attrs {
                accessed: true,
                ..leaf.attrs
            });
        }
        let exec = wanted.exec || had.is_some_and(|leaf| leaf.attrs.rights.exec_el1);
        // While pages are logged, only one that was written is writable; a block that was not
        // protected yet says nothing of one page.
        let dirty = wanted.write
            || had.is_some_and(|leaf| leaf.size == slots::PAGE && leaf.attrs.rights.write);
        let rights = Rights {
            read: true,
            write: view.writable && slot.may_be_written() && (!slot.logging || dirty),
            exec_el0: exec,
            exec_el1: exec,
        };
        if slot.logging && wanted.write {
            self.slots.mark(ipa);
        }
        if exec {
            umbra_hw::mem::sync_instructions(pa, size);
        }
        let result = self
            .table()
            .map(at, pa, size, Attrs::normal(rights), &TablePages);
        let vttbr = (self.vttbr, self.below);
        let ghost = Made {
            vttbr: vttbr.0,
            addr: at.raw(),
            level: Granule::K4.leaf_level(size).unwrap_or(Level::L3),
            pa,
            rights,
            vm: events::vm_number(vttbr.0),
            source: at,
        };
        match result {
            Ok(Mapped::Unchanged) => {}
            Ok(Mapped::Fresh) => ghost::fresh(&ghost),
            Ok(Mapped::Rights(work)) => {
                work.finish(&TablePages, invalidate_tlb(vttbr));
                ghost::replaced(&ghost);
            }
            Ok(Mapped::Broken(broken)) => {
                broken.finish(self.table(), &TablePages, invalidate_tlb(vttbr));
                ghost::replaced(&ghost);
            }
            Err(MapError::NoMemory) => return Err(NotMapped::NoMemory),
            Err(MapError::Busy) => return Err(NotMapped::Retry),
            Err(error) => {
                log::error!("mapping {at} to {pa}: {error:?}");
                return Err(NotMapped::NoMemory);
            }
        }
        // Where the page was new, so is what lies round it; and what lies round a page that was mapped
        // has been looked at when that was done.
        let unknown = wanted.kind == Stage2Kind::Translation && !view.fresh;
        if size == slots::PAGE && unknown {
            self.map_ahead(ipa, slot, wanted, present);
        }
        tlb::publish();
        Ok(())
    }
}

impl From<NoMemory> for NotMapped {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.mend();
        self.shadows.destroy();
        for root in self.old_roots.drain(..) {
            mem::release(root);
        }
        if let Some(table) = self.table.take() {
            let vttbr = (self.vttbr, self.below);
            for vttbr in core::iter::once(vttbr.0).chain(vttbr.1) {
                umbra_hw::guest::unload_vttbr(vttbr);
            }
            table
                .destroy(&TablePages)
                .finish(&TablePages, invalidate_tlb(vttbr));
        }
        for vttbr in core::iter::once(self.vttbr).chain(self.below) {
            ghost::gone(vttbr);
            give_vmid((vttbr >> 48) as u16);
        }
    }
}
