//! Shadow stage 2: what a guest hypervisor's tables and the VM's own come to, per context.
//!
//! A context is made for everything that changes the meaning of an address (`Key`) and has a table
//! and a hardware VMID of its own. The *reverse map* names, for each page of the VM, where shadows
//! map it, so that taking a page back costs its mappings. All of it lies under the VM's memory lock.
//!
//! A fill walks the guest hypervisor's tables without the lock; every TLBI of the guest hypervisor
//! moves `seq`, and a fill that began before is not installed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use umbra_arm64::{Granule, Ipa, L2Ipa, Pa, Rights, Tag, Vmid};
use umbra_stage2::{Attrs, Config, Geometry, MapError, Mapped, S2, Shadow};

use super::super::memory::{Machine, NotMapped, give_vmid, invalidate_under, take_vmid};
use crate::mem::TablePages;

/// Places at which shadows may map one piece of the VM.
const PLACES: usize = 64;
/// Contexts that a VM keeps.
const BUDGET: usize = 64;

/// Everything that changes what an address means to what a guest hypervisor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) struct Key {
    /// VTTBR_EL2 without CnP.
    pub(in crate::kvm) vttbr: u64,
    pub(in crate::kvm) vtcr: u64,
    /// HCR_EL2's VM, DC, PTW, CD, ID, FWB.
    pub(in crate::kvm) hcr: u64,
}

impl Key {
    /// The guest hypervisor's own VMID.
    pub(in crate::kvm) fn vmid(&self) -> u16 {
        (self.vttbr >> 48) as u16
    }
}

struct Context {
    id: u64,
    key: Key,
    table: Shadow,
    vttbr: u64,
    users: usize,
    used_at: u64,
    seq: u64,
}

/// The shadows of one VM.
pub(in crate::kvm) struct Shadows {
    contexts: Vec<Context>,
    /// First address of a mapped piece of the VM → its bytes, the context and the address there.
    reverse: BTreeMap<u64, Vec<(u64, u64, L2Ipa)>>,
    /// The largest piece in the reverse map: how far back a look has to begin.
    largest: u64,
    next_id: u64,
    clock: u64,
}

impl Shadows {
    pub(in crate::kvm) const fn new() -> Self {
        Self {
            contexts: Vec::new(),
            reverse: BTreeMap::new(),
            largest: 4096,
            next_id: 1,
            clock: 0,
        }
    }

    /// Takes the context for `key` into use: its name and VTTBR_EL2. `None` when memory or VMIDs are
    /// out.
    pub(in crate::kvm) fn acquire(&mut self, key: Key, machine: &Machine) -> Option<(u64, u64)> {
        self.clock += 1;
        let clock = self.clock;
        if let Some(context) = self.contexts.iter_mut().find(|context| context.key == key) {
            context.users += 1;
            context.used_at = clock;
            return Some((context.id, context.vttbr));
        }
        if self.contexts.len() >= BUDGET {
            self.evict_oldest();
        }
        let vmid = take_vmid(machine.vmid_bits)?;
        let context = self.make(key, machine, vmid);
        if context.is_none() {
            give_vmid(vmid.number());
        }
        context
    }

    fn make(&mut self, key: Key, machine: &Machine, vmid: Vmid) -> Option<(u64, u64)> {
        let config = Config {
            geometry: Geometry::stage2(Granule::K4, machine.pa_bits.into())?,
            output_bits: machine.pa_bits.into(),
            format: S2 { xnx: machine.xnx },
            tag: Tag::Vmid(vmid),
        };
        let table = Shadow::new(config, &TablePages).ok()?;
        let vttbr = umbra_hw::tlb::vttbr(table.root(), vmid.number());
        let id = self.next_id;
        self.next_id += 1;
        self.contexts.push(Context {
            id,
            key,
            table,
            vttbr,
            users: 1,
            used_at: self.clock,
            seq: 0,
        });
        Some((id, vttbr))
    }

    /// The vCPU that ran in the context no longer does.
    pub(in crate::kvm) fn release(&mut self, id: u64) {
        if let Some(context) = self.find(id) {
            context.users = context.users.saturating_sub(1);
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Context> {
        self.contexts.iter_mut().find(|context| context.id == id)
    }

    fn evict_oldest(&mut self) {
        let oldest = self
            .contexts
            .iter()
            .enumerate()
            .filter(|(_, context)| context.users == 0)
            .min_by_key(|(_, context)| context.used_at)
            .map(|(at, _)| at);
        if let Some(at) = oldest {
            let context = self.contexts.swap_remove(at);
            context.destroy();
        }
    }

    /// What a fill of the context has to find unchanged.
    pub(in crate::kvm) fn sequence(&mut self, id: u64) -> u64 {
        self.find(id).map_or(0, |context| context.seq)
    }

    /// Sets the access flag of the context's mapping of `at`: the guest hypervisor's tables still said so
    /// when they were walked.
    pub(in crate::kvm) fn make_young(&mut self, (id, seq): (u64, u64), at: L2Ipa) {
        if let Some(context) = self.find(id).filter(|context| context.seq == seq) {
            context.table.make_young(at, &TablePages);
            umbra_hw::tlb::publish();
        }
    }

    /// Drops everything a context maps: it is filled anew.
    pub(in crate::kvm) fn rebuild(&mut self, id: u64) {
        if let Some(context) = self.find(id) {
            context.evict(L2Ipa::new(0), 1 << 48);
        }
    }

    /// Maps `bytes` at `at` in the context, and notes that they are `ipa`'s.
    pub(in crate::kvm) fn map(
        &mut self,
        id: u64,
        seq: u64,
        (at, ipa, pa): (L2Ipa, Ipa, Pa),
        bytes: u64,
        rights: Rights,
    ) -> Result<(), NotMapped> {
        let context = self.find(id).ok_or(NotMapped::Retry)?;
        if context.seq != seq {
            return Err(NotMapped::Retry);
        }
        let vttbr = context.vttbr;
        let result = context
            .table
            .map(at, pa, bytes, Attrs::normal(rights), &TablePages);
        match result {
            Ok(Mapped::Fresh | Mapped::Unchanged) => {}
            Ok(Mapped::Rights(work)) => {
                work.finish(&TablePages, |request| invalidate_under(vttbr, request));
            }
            Ok(Mapped::Broken(broken)) => {
                broken.finish(&mut context.table, &TablePages, |request| {
                    invalidate_under(vttbr, request)
                });
            }
            Err(MapError::Busy) => return Err(NotMapped::Retry),
            Err(MapError::NoMemory) => return Err(NotMapped::NoMemory),
            // An address beyond the table's input: the walk refused it before.
            Err(error) => {
                log::error!("shadow of {at}: {error:?}");
                return Err(NotMapped::Retry);
            }
        }
        let places = self.reverse.entry(ipa.raw()).or_default();
        if places.contains(&(bytes, id, at)) {
            umbra_hw::tlb::publish();
            return Ok(());
        }
        // A guest hypervisor that maps one page everywhere pays for it with new faults.
        let crowd = if places.len() >= PLACES {
            core::mem::take(places)
        } else {
            Vec::new()
        };
        places.push((bytes, id, at));
        for (bytes, id, at) in crowd {
            if let Some(context) = self.find(id) {
                context.evict(at, bytes);
            }
        }
        self.largest = self.largest.max(bytes);
        umbra_hw::tlb::publish();
        Ok(())
    }

    /// Unmaps whatever of `[base, base + bytes)` of the VM any shadow maps.
    pub(in crate::kvm) fn forget(&mut self, base: Ipa, bytes: u64) {
        let end = base.raw().saturating_add(bytes);
        let from = base.raw().saturating_sub(self.largest - 1);
        let hit: Vec<u64> = self
            .reverse
            .range(from..end)
            .filter(|(start, places)| {
                places
                    .iter()
                    .any(|(bytes, ..)| **start + bytes > base.raw())
            })
            .map(|(start, _)| *start)
            .collect();
        for start in hit {
            for (bytes, id, at) in self.reverse.remove(&start).unwrap_or_default() {
                if let Some(context) = self.find(id) {
                    context.evict(at, bytes);
                }
            }
        }
    }

    /// The guest hypervisor invalidates `[at, at + bytes)` under its VMID.
    pub(in crate::kvm) fn invalidate(&mut self, vmid: u16, at: L2Ipa, bytes: u64) {
        for context in self
            .contexts
            .iter_mut()
            .filter(|context| context.key.vmid() == vmid)
        {
            context.seq += 1;
            context.evict(at, bytes);
        }
    }

    /// The guest hypervisor invalidates everything, of one VMID or of all.
    pub(in crate::kvm) fn invalidate_all(&mut self, vmid: Option<u16>) {
        let matches = |context: &&mut Context| vmid.is_none_or(|vmid| context.key.vmid() == vmid);
        for context in self.contexts.iter_mut().filter(matches) {
            context.seq += 1;
            context.evict(L2Ipa::new(0), 1 << 48);
        }
    }

    /// VTTBR_EL2 of every context of a VMID.
    pub(in crate::kvm) fn vttbrs(&self, vmid: Option<u16>) -> Vec<u64> {
        self.contexts
            .iter()
            .filter(|context| vmid.is_none_or(|vmid| context.key.vmid() == vmid))
            .map(|context| context.vttbr)
            .collect()
    }

    /// The VM goes.
    pub(in crate::kvm) fn destroy(&mut self) {
        for context in self.contexts.drain(..) {
            context.destroy();
        }
    }
}

impl Context {
    fn evict(&mut self, at: L2Ipa, bytes: u64) {
        let vttbr = self.vttbr;
        self.table
            .evict(at, bytes, &TablePages)
            .finish(&TablePages, |request| invalidate_under(vttbr, request));
    }

    fn destroy(self) {
        let vttbr = self.vttbr;
        umbra_hw::guest::unload_vttbr(vttbr);
        self.table
            .destroy(&TablePages)
            .finish(&TablePages, |request| invalidate_under(vttbr, request));
        give_vmid((vttbr >> 48) as u16);
    }
}
