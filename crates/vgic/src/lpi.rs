//! LPIs: interrupts that exist because an ITS maps them, and the redistributor registers they need.
//!
//! Within the crate an LPI has a *number*, [`LPI_BASE`] + its place among the VM's, so that candidate
//! sets stay bitmaps; list registers have its INTID. A place is taken again only when no list
//! register can hold its interrupt any more. Their configuration (priority, enable) is what the guest
//! wrote to memory, which others read: [`LpiConfig`].

use alloc::vec::Vec;

use crate::irq::Irq;
use crate::vcpus::{Kicks, VcpuNumber};
use crate::vgic::Vgic;

/// The first INTID of an LPI.
pub const FIRST_LPI: u32 = 8192;
/// Bits of an INTID where there are LPIs.
pub(crate) const INTID_BITS: u32 = 16;
/// LPIs that a VM may have mapped at once.
pub const MAX_LPIS: usize = 1024;
/// Numbers of LPIs begin here, above all other INTIDs.
pub(crate) const LPI_BASE: u32 = 1024;

/// GICR_CTLR.EnableLPIs.
const ENABLE: u64 = 1;
/// GICR_PROPBASER: IDbits and address; cacheability and shareability read as they were written.
const PROPBASER_MASK: u64 = 0x0700_0fff_ffff_ff9f | 0xf << 44 | 7 << 7;
/// GICR_PENDBASER: PTZ, address.
const PENDBASER_MASK: u64 = 0x4700_0000_ffff_0f80 | 0xf_ffff << 32;
const PTZ: u64 = 1 << 62;

/// What the guest says of an LPI in its configuration table (IHI 0069, "LPI Configuration tables").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LpiConfig(pub u8);

impl LpiConfig {
    const fn enabled(self) -> bool {
        self.0 & 1 == 1
    }
    const fn priority(self) -> u8 {
        self.0 & 0xfc
    }
}

/// There is no room for another LPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyLpis;

#[derive(Clone, Debug)]
pub(crate) struct Lpi {
    pub(crate) intid: u32,
    pub(crate) irq: Irq,
    /// An ITS maps it; otherwise what is left of it waits for a list register.
    mapped: bool,
}

/// The LPIs of a VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lpis {
    places: Vec<Lpi>,
    /// INTID and place, by INTID; mapped ones only.
    by_intid: Vec<(u32, u16)>,
    /// The VM has an ITS.
    pub(crate) present: bool,
    /// GICR_PROPBASER, the same for all redistributors as on KVM.
    pub(crate) propbaser: u64,
}

impl Lpis {
    pub(crate) fn irq(&self, number: u32) -> Option<&Irq> {
        let place = number.checked_sub(LPI_BASE)?;
        self.places.get(place as usize).map(|lpi| &lpi.irq)
    }

    pub(crate) fn irq_mut(&mut self, number: u32) -> Option<&mut Irq> {
        let place = number.checked_sub(LPI_BASE)?;
        self.places.get_mut(place as usize).map(|lpi| &mut lpi.irq)
    }

    /// The INTID for a list register.
    pub(crate) fn intid(&self, number: u32) -> Option<u32> {
        let place = number.checked_sub(LPI_BASE)?;
        self.places.get(place as usize).map(|lpi| lpi.intid)
    }

    fn number(&self, intid: u32) -> Option<u32> {
        let at = self.by_intid.binary_search_by_key(&intid, |entry| entry.0);
        let &(_, place) = self.by_intid.get(at.ok()?)?;
        Some(LPI_BASE + u32::from(place))
    }

    /// The number of an INTID that a list register of `vcpu` had: also of one that is mapped no more.
    pub(crate) fn resident_number(&self, intid: u32, vcpu: VcpuNumber) -> Option<u32> {
        let at = self
            .places
            .iter()
            .position(|lpi| lpi.intid == intid && lpi.irq.resident == Some(vcpu))?;
        Some(LPI_BASE + at as u32)
    }

    fn add(&mut self, intid: u32) -> Result<u32, TooManyLpis> {
        let at = match self.by_intid.binary_search_by_key(&intid, |entry| entry.0) {
            Ok(_) => return self.number(intid).ok_or(TooManyLpis),
            Err(at) => at,
        };
        self.by_intid.try_reserve(1).map_err(|_| TooManyLpis)?;
        let lpi = Lpi {
            intid,
            irq: Irq {
                edge: true,
                group1: true,
                ..Irq::default()
            },
            mapped: true,
        };
        let gone = |lpi: &Lpi| !lpi.mapped && lpi.irq.resident.is_none() && !lpi.irq.active;
        let place = match self.places.iter().position(gone) {
            Some(place) => place,
            None if self.places.len() == MAX_LPIS => return Err(TooManyLpis),
            None => {
                self.places.try_reserve(1).map_err(|_| TooManyLpis)?;
                self.places.push(lpi.clone());
                self.places.len() - 1
            }
        };
        self.places[place] = lpi;
        self.by_intid.insert(at, (intid, place as u16));
        Ok(LPI_BASE + place as u32)
    }
}

impl Vgic {
    /// The VM has an ITS, so there are LPIs: GICD_TYPER, GICR_TYPER and GICR_CTLR say so.
    pub fn allow_lpis(&mut self) {
        self.lpis.present = true;
    }

    /// LPIs that the guest's tables have room for: GICR_PROPBASER.IDbits. An INTID is below it.
    pub fn lpi_end(&self) -> u32 {
        let bits = (self.lpis.propbaser & 0x1f) as u32 + 1;
        1 << bits.min(INTID_BITS)
    }

    /// Where the byte lies that configures `intid`, guest physical. `None`: it is no LPI, or the guest
    /// has no table.
    pub fn lpi_config_at(&self, intid: u32) -> Option<u64> {
        let table = self.lpis.propbaser & 0x000f_ffff_ffff_f000;
        let inside = (FIRST_LPI..self.lpi_end()).contains(&intid);
        (inside && table != 0).then(|| table + u64::from(intid - FIRST_LPI))
    }

    /// Where the pending table of `vcpu` lies, guest physical: a bit an INTID.
    pub fn pending_table(&self, vcpu: usize) -> Option<u64> {
        let pendbaser = self.vcpus.get(vcpu)?.pendbaser;
        Some(pendbaser & 0x000f_ffff_ffff_0000)
    }

    /// An ITS maps `intid` to `vcpu`, or to nobody for now.
    ///
    /// # Errors
    /// [`TooManyLpis`].
    pub fn map_lpi(
        &mut self,
        intid: u32,
        vcpu: Option<usize>,
        config: LpiConfig,
    ) -> Result<Kicks, TooManyLpis> {
        let number = self.lpis.add(intid)?;
        Ok(self.target_number(number, vcpu) | self.configure_number(number, config))
    }

    /// No ITS maps `intid` any more: it is neither pending nor enabled, and gone once no list register
    /// has it.
    pub fn unmap_lpi(&mut self, intid: u32) -> Kicks {
        let Some(number) = self.lpis.number(intid) else {
            return Kicks::NONE;
        };
        self.lpis.by_intid.retain(|entry| entry.0 != intid);
        if let Some(lpi) = self.lpis.places.get_mut((number - LPI_BASE) as usize) {
            lpi.mapped = false;
            lpi.irq.clear_latch();
            lpi.irq.enabled = false;
        }
        self.settle(0, number)
    }

    /// An ITS routes `intid` to another vCPU.
    pub fn target_lpi(&mut self, intid: u32, vcpu: Option<usize>) -> Kicks {
        match self.lpis.number(intid) {
            Some(number) => self.target_number(number, vcpu),
            None => Kicks::NONE,
        }
    }

    fn target_number(&mut self, number: u32, vcpu: Option<usize>) -> Kicks {
        let target = vcpu.filter(|&vcpu| vcpu < self.nr_vcpus());
        match self.lpis.irq_mut(number) {
            Some(irq) => irq.target = target.map(|vcpu| vcpu as VcpuNumber),
            None => return Kicks::NONE,
        }
        self.settle(0, number)
    }

    /// The guest's configuration of `intid` was read.
    pub fn configure_lpi(&mut self, intid: u32, config: LpiConfig) -> Kicks {
        match self.lpis.number(intid) {
            Some(number) => self.configure_number(number, config),
            None => Kicks::NONE,
        }
    }

    fn configure_number(&mut self, number: u32, config: LpiConfig) -> Kicks {
        let priority = config.priority() & self.vtr.priority_mask();
        match self.lpis.irq_mut(number) {
            Some(irq) => (irq.priority, irq.enabled) = (priority, config.enabled()),
            None => return Kicks::NONE,
        }
        self.settle(0, number)
    }

    /// A message or a command makes `intid` pending, or no longer. One whose redistributor does not
    /// take LPIs stays as it is.
    pub fn set_lpi_pending(&mut self, intid: u32, pending: bool) -> Kicks {
        let Some(number) = self.lpis.number(intid) else {
            return Kicks::NONE;
        };
        let takes = |irq: &Irq| {
            irq.target
                .and_then(|vcpu| self.vcpus.get(usize::from(vcpu)))
                .is_some_and(|vcpu| vcpu.takes_lpis)
        };
        if !self.lpis.irq(number).is_some_and(takes) {
            return Kicks::NONE;
        }
        let changed = self.lpis.irq_mut(number).is_some_and(|irq| {
            if pending {
                irq.set_latch()
            } else {
                irq.clear_latch()
            }
        });
        if changed {
            self.settle(0, number)
        } else {
            Kicks::NONE
        }
    }

    /// Whether `intid` is pending, as far as is known without asking a list register.
    pub fn is_lpi_pending(&self, intid: u32) -> bool {
        self.lpis
            .number(intid)
            .and_then(|number| self.lpis.irq(number))
            .is_some_and(|irq| irq.latch || irq.handed)
    }

    /// The first mapped LPI from `from` on, and the vCPU it goes to.
    pub fn next_lpi(&self, from: u32) -> Option<(u32, Option<usize>)> {
        let at = self.lpis.by_intid.partition_point(|entry| entry.0 < from);
        let &(intid, place) = self.lpis.by_intid.get(at)?;
        let irq = &self.lpis.places.get(usize::from(place))?.irq;
        Some((intid, irq.target.map(usize::from)))
    }

    /// Whether the redistributor of `vcpu` began to take LPIs since the last call: their configuration and,
    /// unless the guest says that it is empty, its pending table are to be read.
    #[must_use]
    pub fn take_lpi_start(&mut self, vcpu: usize) -> bool {
        let gic = self.vcpus.get_mut(vcpu);
        gic.is_some_and(|gic| core::mem::take(&mut gic.lpis_start))
    }

    pub(crate) fn gicr_ctlr(&self, vcpu: usize) -> u64 {
        u64::from(self.vcpus.get(vcpu).is_some_and(|gic| gic.takes_lpis))
    }

    pub(crate) fn set_gicr_ctlr(&mut self, vcpu: usize, value: u64) -> Kicks {
        let takes = value & ENABLE != 0;
        let present = self.lpis.present;
        let Some(gic) = self
            .vcpus
            .get_mut(vcpu)
            .filter(|gic| present && gic.takes_lpis != takes)
        else {
            return Kicks::NONE;
        };
        gic.takes_lpis = takes;
        if takes {
            gic.lpis_start = true;
            return Kicks::NONE;
        }
        // What was pending is forgotten, as on KVM.
        let mut kicks = Kicks::NONE;
        for place in 0..self.lpis.places.len() {
            let irq = &mut self.lpis.places[place].irq;
            if irq.target == Some(vcpu as VcpuNumber) && irq.clear_latch() {
                kicks |= self.settle(vcpu, LPI_BASE + place as u32);
            }
        }
        kicks
    }

    pub(crate) fn pendbaser(&self, vcpu: usize) -> u64 {
        // PTZ reads as zero.
        self.vcpus.get(vcpu).map_or(0, |gic| gic.pendbaser & !PTZ)
    }

    /// Whether the guest says that the pending table of `vcpu` holds only zeros.
    pub fn is_pending_table_zero(&self, vcpu: usize) -> bool {
        self.vcpus
            .get(vcpu)
            .is_some_and(|gic| gic.pendbaser & PTZ != 0)
    }

    /// GICR_PROPBASER and GICR_PENDBASER cannot change while LPIs are on (IHI 0069, GICR_CTLR).
    pub(crate) fn set_propbaser(&mut self, vcpu: usize, value: u64) {
        if self.lpis.present && self.gicr_ctlr(vcpu) == 0 {
            self.lpis.propbaser = value & PROPBASER_MASK;
        }
    }

    pub(crate) fn set_pendbaser(&mut self, vcpu: usize, value: u64) {
        let present = self.lpis.present;
        if let Some(gic) = self
            .vcpus
            .get_mut(vcpu)
            .filter(|gic| present && !gic.takes_lpis)
        {
            gic.pendbaser = value & PENDBASER_MASK;
        }
    }
}
