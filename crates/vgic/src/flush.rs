//! Between the interrupts and the list registers: what to load before the guest runs, what came of it afterwards.
//!
//! When there are more interrupts than registers, the most urgent *active* one keeps a register (its EOI then needs no exit), the
//! most urgent *pending* ones get the others, and active ones what is left. So there is always a pending interrupt among
//! the registers when one waits outside, and all outside are no more urgent than those inside:
//!
//! - pending outside: NPIE, a maintenance interrupt once the guest has taken all that were loaded;
//! - active outside: LRENPIE, a maintenance interrupt when the guest ends one that is in no register. With EOImode = 0 the
//!   n-th such EOI is for the n-th most urgent of them, as EOIs nest. With EOImode = 1 any may be meant, so ICC_DIR_EL1 traps.

use crate::cpuif::{HcrBits, Vmcr};
use crate::irqset::bits;
use crate::lpi::FIRST_LPI;
use crate::lr::{LrFile, MAX_LRS};
use crate::mmio::Refusal;
use crate::vcpus::{Kicks, VcpuNumber, VcpuSet};
use crate::vgic::Vgic;

/// PPIs with a physical link, by bit of their INTID. Before the guest runs, the kernel gives each physical interrupt of
/// `linked` the active state that `active` says: an active one does not fire while the guest has it in hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkedPpis {
    /// Those with a link.
    pub linked: u32,
    /// Those whose physical interrupt is to be active: the guest's is pending by its line, or active.
    pub active: u32,
}

/// What [`Vgic::flush`] decided besides the list registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// For ICH_HCR_EL2, which the kernel ORs with its own bits. EOIcount is zero: write it so.
    pub hcr: HcrBits,
    /// Physical interrupts to make active or inactive.
    pub linked: LinkedPpis,
    /// Other vCPUs that must trap ICC_DIR_EL1 from now on.
    pub kicks: Kicks,
}

/// The most urgent interrupts of one kind, most urgent first; equal priorities by INTID.
struct Urgent {
    best: [(u8, u32); MAX_LRS],
    kept: usize,
    seen: usize,
}

impl Urgent {
    const fn new() -> Self {
        Self {
            best: [(0, 0); MAX_LRS],
            kept: 0,
            seen: 0,
        }
    }

    fn offer(&mut self, priority: u8, intid: u32) {
        let key = (priority, intid);
        let at = self.best[..self.kept].partition_point(|&other| other < key);
        self.seen += 1;
        self.kept = (self.kept + 1).min(MAX_LRS);
        if at < self.kept {
            self.best.copy_within(at..self.kept - 1, at + 1);
            self.best[at] = key;
        }
    }

    fn take(&self, most: usize) -> impl Iterator<Item = u32> {
        self.best[..self.kept.min(most)]
            .iter()
            .map(|&(_, intid)| intid)
    }
}

impl Vgic {
    /// Number of list registers in use: ICH_VTR_EL2.ListRegs + 1.
    #[must_use]
    pub fn nr_lrs(&self) -> usize {
        (usize::from(self.vtr.list_regs()) + 1).min(MAX_LRS)
    }

    /// Whether `vcpu` must not (re-)enter the guest with what its list registers hold: something changed, or nothing is loaded.
    #[must_use]
    pub fn needs_flush(&self, vcpu: usize) -> bool {
        self.vcpus
            .get(vcpu)
            .is_some_and(|gic| gic.dirty || !gic.loaded)
    }

    /// Computes the list registers of `vcpu`, to be loaded before it runs. Lines of linked PPIs must
    /// be up to date ([`Vgic::set_level`]).
    ///
    /// # Panics
    /// When `vcpu` does not exist or its list registers were not taken back by [`Vgic::sync`]: states would be lost.
    pub fn flush(&mut self, vcpu: usize, lrs: &mut LrFile) -> Flushed {
        assert!(
            !self.vcpus[vcpu].loaded,
            "list registers flushed twice without a sync between"
        );
        lrs.used = 0;
        // Most often there is nothing.
        let (pending_outside, active_outside) = if self.has_candidates(vcpu) {
            self.fill(vcpu, lrs)
        } else {
            (false, false)
        };
        let gic = &self.vcpus[vcpu];
        let has_spi = gic.candidates.has_spi();
        let kicks = if has_spi {
            self.make_others_trap_dir(vcpu)
        } else {
            Kicks::NONE
        };
        let spis_elsewhere = self.spi_holders > usize::from(has_spi);
        let gic = &mut self.vcpus[vcpu];
        gic.loaded = true;
        gic.dirty = false;
        gic.traps_dir = active_outside || spis_elsewhere;
        let hcr = HcrBits::new()
            .with_en(true)
            .with_npie(pending_outside)
            .with_lrenpie(active_outside)
            .with_tdir(gic.traps_dir && self.vtr.tds())
            .with_tc(gic.traps_dir && !self.vtr.tds());
        Flushed {
            hcr,
            linked: self.linked_ppis(vcpu),
            kicks,
        }
    }

    /// Puts the most urgent interrupts into `lrs`: whether pending ones are left outside, and active ones.
    #[inline(never)]
    fn fill(&mut self, vcpu: usize, lrs: &mut LrFile) -> (bool, bool) {
        let (mut pending, mut active) = (Urgent::new(), Urgent::new());
        self.survey(vcpu, &mut pending, &mut active);
        let nr_lrs = self.nr_lrs();
        // One register stays with the most urgent active interrupt, unless it is the only register.
        let reserved = active.seen.min(1).min(nr_lrs - 1);
        let nr_pending = pending.seen.min(nr_lrs - reserved);
        let nr_active = active.seen.min(nr_lrs - nr_pending);
        let pending_outside = pending.seen > nr_pending;
        let active_outside = active.seen > nr_active;

        for intid in active.take(nr_active).chain(pending.take(nr_pending)) {
            let Some(signalled) = self.irq(vcpu, intid).map(|irq| self.group_enabled(irq)) else {
                continue;
            };
            let Some(irq) = self.irq_mut(vcpu, intid) else {
                continue;
            };
            // "Pending and active" might count as a pending register, and NPIE would not fire.
            let lr = irq.load(intid, vcpu as VcpuNumber, signalled, !pending_outside);
            // Within here an LPI has a number.
            let intid = self.lpis.intid(intid).unwrap_or(intid);
            lrs.push(lr.with_vintid(intid));
        }
        (pending_outside, active_outside)
    }

    /// Takes the list registers of `vcpu` back after it ran: `lrs` as flushed, with the hardware's contents, `eoi_count` of
    /// ICH_HCR_EL2. A no-op for a vCPU that has nothing loaded. The kernel clears the hardware's registers, or
    /// flushes and loads again.
    pub fn sync(&mut self, vcpu: usize, lrs: &LrFile, eoi_count: u8) -> Kicks {
        if !self.vcpus.get(vcpu).is_some_and(|gic| gic.loaded) {
            return Kicks::NONE;
        }
        let mut kicks = Kicks::NONE;
        // First, while residency still tells which active interrupts were outside.
        for _ in 0..eoi_count {
            let Some(intid) = self.most_urgent_active_outside(vcpu) else {
                break;
            };
            kicks |= self.end(vcpu, intid, true);
        }
        for lr in lrs.loaded() {
            let intid = match lr.vintid() {
                lpi if lpi >= FIRST_LPI => self
                    .lpis
                    .resident_number(lpi, vcpu as VcpuNumber)
                    .unwrap_or(lpi),
                intid => intid,
            };
            let Some(irq) = self
                .irq_mut(vcpu, intid)
                .filter(|irq| irq.resident == Some(vcpu as VcpuNumber))
            else {
                continue;
            };
            let deactivated = irq.unload(lr.state(), vcpu as VcpuNumber);
            if core::mem::take(&mut irq.end_asked) && irq.active {
                kicks |= self.end(vcpu, intid, true);
                continue;
            }
            let notify = deactivated && irq.notify_eoi;
            self.eois.set(intid, notify || self.eois.contains(intid));
            kicks |= self.settle(vcpu, intid);
        }
        let gic = &mut self.vcpus[vcpu];
        gic.loaded = false;
        gic.dirty = true;
        // The caller is this vCPU, or has it stopped: it flushes before it runs in any case.
        kicks.without(vcpu)
    }

    /// `vcpu` wrote ICC_DIR_EL1, trapped: ends the active state of `intid`, wherever it is. What another vCPU's list
    /// registers hold ends when they are taken back: that vCPU is kicked, and would otherwise only load it again
    /// before anybody could end it.
    ///
    /// # Errors
    /// [`Refusal::NeedsSync`]: the interrupt is in the list registers of this vCPU.
    pub fn deactivate(&mut self, vcpu: usize, intid: u32) -> Result<Kicks, Refusal> {
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return Ok(Kicks::NONE);
        };
        match irq.resident {
            Some(holder) if usize::from(holder) == vcpu => {
                Err(Refusal::NeedsSync(VcpuSet::one(vcpu)))
            }
            Some(holder) => {
                irq.end_asked = true;
                Ok(self.kick(Some(holder)))
            }
            None if irq.active => Ok(self.end(vcpu, intid, true)),
            None => Ok(Kicks::NONE),
        }
    }

    /// Whether an interrupt would be signalled to `vcpu` were it to run with ICH_VMCR_EL2 = `vmcr`: the condition that ends a WFI.
    /// Sync first: an interrupt in a list register counts as pending here, as it may have been when last seen.
    #[must_use]
    pub fn has_pending(&self, vcpu: usize, vmcr: Vmcr) -> bool {
        self.candidates(vcpu)
            .filter_map(|intid| self.irq(vcpu, intid))
            .any(|irq| {
                let group = if irq.group1 {
                    self.group1 && vmcr.group1()
                } else {
                    self.group0 && vmcr.group0()
                };
                let pending = (irq.pending() || irq.handed) && irq.enabled && !irq.active;
                pending
                    && group
                    && irq.target == Some(vcpu as VcpuNumber)
                    && irq.priority < vmcr.pmr()
            })
    }

    /// The linked PPIs of `vcpu`, as [`Vgic::flush`] reports them.
    #[must_use]
    pub fn linked_ppis(&self, vcpu: usize) -> LinkedPpis {
        let Some(gic) = self.vcpus.get(vcpu) else {
            return LinkedPpis::default();
        };
        let active = bits(gic.linked.into()).fold(0, |active, intid| {
            let irq = &gic.private[intid as usize];
            active | u32::from(irq.active || irq.line) << intid
        });
        LinkedPpis {
            linked: gic.linked,
            active,
        }
    }

    /// The pending interrupts `vcpu` could take, and the active ones it has.
    fn survey(&self, vcpu: usize, pending: &mut Urgent, active: &mut Urgent) {
        for intid in self.candidates(vcpu) {
            let Some(irq) = self.irq(vcpu, intid) else {
                continue;
            };
            if irq.active {
                active.offer(irq.priority, intid);
            } else if self.group_enabled(irq) {
                pending.offer(irq.priority, intid);
            }
        }
    }

    fn most_urgent_active_outside(&self, vcpu: usize) -> Option<u32> {
        let candidates = self.candidates(vcpu);
        let outside = candidates.filter_map(|intid| Some((intid, self.irq(vcpu, intid)?)));
        let outside = outside.filter(|(_, irq)| irq.active && irq.resident.is_none());
        outside
            .min_by_key(|&(intid, irq)| (irq.priority, intid))
            .map(|(intid, _)| intid)
    }

    /// Ends the active state of an interrupt that is in no list register; `by_guest` says by EOI, not by a register write.
    pub(crate) fn end(&mut self, vcpu: usize, intid: u32, by_guest: bool) -> Kicks {
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return Kicks::NONE;
        };
        irq.active = false;
        let home = irq.home.take();
        let (notify, linked) = (by_guest && irq.notify_eoi, irq.link.is_some());
        self.eois.set(intid, notify || self.eois.contains(intid));
        let mut kicks = self.settle(vcpu, intid);
        if linked {
            // The physical interrupt is to become inactive: the kernel sees it on the next flush.
            kicks |= self.kick(home.or(Some(vcpu as VcpuNumber)));
        }
        kicks
    }

    /// An SPI that `vcpu` has, or may take, can be deactivated from anywhere: the others trap ICC_DIR_EL1. Whatever EOImode
    /// they were last seen with: a guest changes it without an exit.
    pub(crate) fn make_others_trap_dir(&mut self, vcpu: usize) -> Kicks {
        let mut kicks = Kicks::NONE;
        for (other, gic) in self.vcpus.iter_mut().enumerate() {
            if other != vcpu && gic.loaded && !gic.traps_dir {
                gic.dirty = true;
                kicks |= Kicks::one(other);
            }
        }
        kicks
    }
}
