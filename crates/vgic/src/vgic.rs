//! The VM's interrupt controller: its interrupts, who they belong to, and what devices do to them.

use alloc::vec::Vec;

use crate::cpuif::Vtr;
use crate::irq::Irq;
use crate::irqset::{IrqSet, bits};
use crate::lpi::{LPI_BASE, Lpis};
use crate::vcpus::{Kicks, MAX_VCPUS, VcpuNumber};
use crate::{FIRST_SPI, SPI_END};

/// Affinity of a vCPU as MPIDR_EL1 has it, without the bits between: Aff3 in bits 31:24 down to Aff0 in bits 7:0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity(pub u32);

impl Affinity {
    /// From MPIDR_EL1, or the same layout in `GICD_IROUTER<n>`: Aff3 in bits 39:32, Aff2.Aff1.Aff0 in bits 23:0.
    #[must_use]
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr >> 8) as u32 & 0xff00_0000 | mpidr as u32 & 0x00ff_ffff)
    }

    /// The number of the vCPU: its id, of which KVM makes the affinity, sixteen to the lowest level.
    pub(crate) const fn number(self) -> u64 {
        (self.0 & 0xf | (self.0 >> 8 & 0xff) << 4 | (self.0 >> 16 & 0xff) << 12) as u64
    }

    /// To the layout of `GICD_IROUTER<n>`.
    #[must_use]
    pub const fn to_irouter(self) -> u64 {
        ((self.0 & 0xff00_0000) as u64) << 8 | (self.0 & 0x00ff_ffff) as u64
    }
}

/// What a virtual GIC is made of, fixed at KVM_DEV_ARM_VGIC_CTRL_INIT.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// SGIs, PPIs and SPIs together: KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 64 to 1024 in steps of 32. INTIDs 1020 to 1023 never exist.
    pub nr_irqs: u32,
    /// Affinity of each vCPU, in the order of their redistributors.
    pub affinities: &'a [Affinity],
    /// The hardware's ICH_VTR_EL2: list registers, priority bits, Aff3, TDIR.
    pub vtr: Vtr,
}

/// Why a virtual GIC cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// `nr_irqs` is not one of 64, 96, … 1024 (EINVAL).
    NrIrqs,
    /// No vCPU (ENODEV).
    NoVcpus,
    /// More than [`MAX_VCPUS`] vCPUs (E2BIG).
    TooManyVcpus,
    /// Two vCPUs with one affinity (EINVAL).
    SameAffinity,
    /// Not enough memory (ENOMEM).
    NoMemory,
}

/// The VM has no such interrupt, or it is not of the kind asked for (EINVAL of KVM_IRQ_LINE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchIrq;

/// What one vCPU adds: its redistributor, and which interrupts concern it.
#[derive(Clone, Debug)]
pub(crate) struct VcpuGic {
    pub(crate) affinity: Affinity,
    /// SGIs and PPIs.
    pub(crate) private: [Irq; FIRST_SPI as usize],
    /// PPIs with a physical link, by bit.
    pub(crate) linked: u32,
    /// Interrupts `flush` has to look at.
    pub(crate) candidates: IrqSet,
    /// LPIs among them, by number less [`LPI_BASE`].
    pub(crate) lpi_candidates: IrqSet,
    /// GICR_CTLR.EnableLPIs.
    pub(crate) takes_lpis: bool,
    /// It was set, and nobody has looked at the guest's tables since.
    pub(crate) lpis_start: bool,
    /// GICR_PENDBASER.
    pub(crate) pendbaser: u64,
    /// Between `flush` and `sync`.
    pub(crate) loaded: bool,
    /// Something changed since `flush`.
    pub(crate) dirty: bool,
    /// ICC_DIR_EL1 traps with what is loaded.
    pub(crate) traps_dir: bool,
    /// This redistributor is the last of its region: GICR_TYPER.Last.
    pub(crate) last_in_region: bool,
}

/// The virtual GICv3 of one VM. See the crate for what always holds and who locks it.
#[derive(Clone, Debug)]
pub struct Vgic {
    pub(crate) vcpus: Vec<VcpuGic>,
    /// SPIs, INTID 32 first.
    pub(crate) spis: Vec<Irq>,
    pub(crate) vtr: Vtr,
    pub(crate) group0: bool,
    pub(crate) group1: bool,
    pub(crate) eois: IrqSet,
    /// A vCPU has an Aff0 above 15.
    pub(crate) far_aff0: bool,
    pub(crate) lpis: Lpis,
    /// How many vCPUs have an SPI among their candidates.
    pub(crate) spi_holders: usize,
}

impl Vgic {
    /// A GIC after reset: everything disabled, PPIs and SPIs level-sensitive, all in group 1 (as KVM's GICv3 starts), SPIs
    /// routed to affinity 0.0.0.0. The last vCPU's redistributor has GICR_TYPER.Last.
    ///
    /// # Errors
    /// What of `config` cannot be had.
    pub fn new(config: &Config<'_>) -> Result<Self, ConfigError> {
        let nr_irqs = config.nr_irqs;
        if !(64..=1024).contains(&nr_irqs) || !nr_irqs.is_multiple_of(32) {
            return Err(ConfigError::NrIrqs);
        }
        let affinities = config.affinities;
        if affinities.is_empty() {
            return Err(ConfigError::NoVcpus);
        }
        if affinities.len() > MAX_VCPUS {
            return Err(ConfigError::TooManyVcpus);
        }
        if affinities
            .iter()
            .enumerate()
            .any(|(at, one)| affinities[..at].contains(one))
        {
            return Err(ConfigError::SameAffinity);
        }
        let mut vcpus = Vec::new();
        vcpus
            .try_reserve_exact(affinities.len())
            .map_err(|_| ConfigError::NoMemory)?;
        for (index, &affinity) in affinities.iter().enumerate() {
            vcpus.push(VcpuGic::new(
                index as VcpuNumber,
                affinity,
                index + 1 == affinities.len(),
            ));
        }
        let target = affinities
            .iter()
            .position(|&affinity| affinity == Affinity(0))
            .map(|index| index as VcpuNumber);
        let nr_spis = (nr_irqs.min(SPI_END) - FIRST_SPI) as usize;
        let mut spis = Vec::new();
        spis.try_reserve_exact(nr_spis)
            .map_err(|_| ConfigError::NoMemory)?;
        spis.resize(
            nr_spis,
            Irq {
                group1: true,
                target,
                ..Irq::default()
            },
        );
        Ok(Self {
            vcpus,
            spis,
            vtr: config.vtr,
            group0: false,
            group1: false,
            eois: IrqSet::default(),
            far_aff0: affinities.iter().any(|&Affinity(one)| one & 0xff > 15),
            lpis: Lpis::default(),
            spi_holders: 0,
        })
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn nr_vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// One above the highest INTID: 1020 where [`Config::nr_irqs`] was 1024.
    #[must_use]
    pub fn intid_end(&self) -> u32 {
        FIRST_SPI + self.spis.len() as u32
    }

    /// The vCPU with this affinity.
    #[must_use]
    pub fn vcpu_by_affinity(&self, affinity: Affinity) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| vcpu.affinity == affinity)
    }

    /// The device's wire changed. `vcpu` is the one a PPI belongs to; an SPI has none. For an edge-triggered interrupt `true`
    /// latches, as each KVM_IRQ_LINE with level 1 does. The line of an interrupt with a physical link is the kernel's to
    /// refresh before each [`Vgic::flush`] (a timer: CNTx_CTL.ISTATUS and not IMASK).
    ///
    /// # Errors
    /// [`NoSuchIrq`]: no such vCPU or INTID, or an SGI.
    pub fn set_level(&mut self, vcpu: usize, intid: u32, level: bool) -> Result<Kicks, NoSuchIrq> {
        let irq = self.wired_mut(vcpu, intid)?;
        let moved = core::mem::replace(&mut irq.line, level) != level;
        let changed = if irq.edge {
            level && irq.set_latch()
        } else {
            moved
        };
        // Loaded as active, so nothing pending is to be withdrawn; what is left over is at most a maintenance interrupt.
        let nothing_to_withdraw = !level && irq.resident.is_some() && irq.active;
        Ok(if changed && !nothing_to_withdraw {
            self.settle(vcpu, intid)
        } else {
            Kicks::NONE
        })
    }

    /// [`Vgic::set_level`] of several PPIs of a vCPU, by bit of their INTID: the lines of `which` are as `levels` says.
    pub fn set_levels(&mut self, vcpu: usize, which: u32, levels: u32) -> Kicks {
        let mut kicks = Kicks::NONE;
        let Some(gic) = self.vcpus.get(vcpu) else {
            return kicks;
        };
        let is_other =
            |&intid: &u32| gic.private[intid as usize].line != (levels >> intid & 1 != 0);
        let moved = bits(which.into())
            .filter(is_other)
            .fold(0, |all, intid| all | 1 << intid);
        for intid in bits(moved) {
            let level = levels >> intid & 1 != 0;
            kicks |= self.set_level(vcpu, intid, level).unwrap_or(Kicks::NONE);
        }
        kicks
    }

    /// An edge arrived: irqfd, an MSI-like SPI, a device that pulses its wire. Latches whatever the configuration is set to,
    /// so that a guest that configures late loses nothing; a level interrupt is then pending until acknowledged.
    ///
    /// # Errors
    /// [`NoSuchIrq`]: no such vCPU or INTID, or an SGI.
    pub fn inject_edge(&mut self, vcpu: usize, intid: u32) -> Result<Kicks, NoSuchIrq> {
        let irq = self.wired_mut(vcpu, intid)?;
        Ok(if irq.set_latch() {
            self.settle(vcpu, intid)
        } else {
            Kicks::NONE
        })
    }

    /// Ties a PPI to a physical INTID (`None`: unties): its list register gets HW = 1, and the guest's deactivation deactivates
    /// the physical interrupt. The kernel runs with EOImode = 1 and leaves the physical interrupt active; see
    /// [`crate::LinkedPpis`] for what it must do on entry.
    ///
    /// # Errors
    /// [`NoSuchIrq`]: not a PPI of this VM, or a physical INTID that does not fit a list register.
    pub fn link_physical(
        &mut self,
        vcpu: usize,
        intid: u32,
        pintid: Option<u32>,
    ) -> Result<Kicks, NoSuchIrq> {
        if intid >= FIRST_SPI || pintid.is_some_and(|physical| !(16..SPI_END).contains(&physical)) {
            return Err(NoSuchIrq);
        }
        let irq = self.wired_mut(vcpu, intid)?;
        irq.link = pintid.map(|physical| physical as u16);
        let resident = irq.resident;
        if let Some(gic) = self.vcpus.get_mut(vcpu) {
            gic.linked = gic.linked & !(1 << intid) | u32::from(pintid.is_some()) << intid;
        }
        Ok(if resident.is_some() {
            self.kick(resident)
        } else {
            Kicks::NONE
        })
    }

    /// Whether to report deactivations of this SPI through [`Vgic::take_eois`]: an irqfd with a resample eventfd.
    ///
    /// # Errors
    /// [`NoSuchIrq`]: not an SPI of this VM.
    pub fn set_notify_eoi(&mut self, intid: u32, notify: bool) -> Result<Kicks, NoSuchIrq> {
        let irq = self
            .irq_mut(0, intid)
            .filter(|_| intid >= FIRST_SPI)
            .ok_or(NoSuchIrq)?;
        irq.notify_eoi = notify;
        let resident = irq.resident;
        Ok(self.kick(resident))
    }

    /// The SPIs deactivated since the last call, of those [`Vgic::set_notify_eoi`] named.
    #[must_use]
    pub fn take_eois(&mut self) -> IrqSet {
        core::mem::take(&mut self.eois)
    }

    /// Sets GICR_TYPER.Last by the layout of the redistributor regions ([`crate::Placement::last_redists`]).
    pub fn set_last_in_region(&mut self, lasts: impl Iterator<Item = usize>) {
        for vcpu in &mut self.vcpus {
            vcpu.last_in_region = false;
        }
        for index in lasts {
            if let Some(vcpu) = self.vcpus.get_mut(index) {
                vcpu.last_in_region = true;
            }
        }
    }

    pub(crate) fn irq(&self, vcpu: usize, intid: u32) -> Option<&Irq> {
        match intid.checked_sub(FIRST_SPI) {
            Some(_) if intid >= LPI_BASE => self.lpis.irq(intid),
            Some(spi) => self.spis.get(spi as usize),
            None => self.vcpus.get(vcpu)?.private.get(intid as usize),
        }
    }

    pub(crate) fn irq_mut(&mut self, vcpu: usize, intid: u32) -> Option<&mut Irq> {
        match intid.checked_sub(FIRST_SPI) {
            Some(_) if intid >= LPI_BASE => self.lpis.irq_mut(intid),
            Some(spi) => self.spis.get_mut(spi as usize),
            None => self.vcpus.get_mut(vcpu)?.private.get_mut(intid as usize),
        }
    }

    /// The interrupts that concern `vcpu`, by number.
    pub(crate) fn candidates(&self, vcpu: usize) -> impl Iterator<Item = u32> {
        let sets = self.vcpus.get(vcpu);
        let (others, lpis) = sets.map_or((&IrqSet::EMPTY, &IrqSet::EMPTY), |gic| {
            (&gic.candidates, &gic.lpi_candidates)
        });
        others.iter().chain(lpis.iter().map(|lpi| LPI_BASE + lpi))
    }

    /// Whether any interrupt concerns `vcpu`.
    pub(crate) fn has_candidates(&self, vcpu: usize) -> bool {
        let has = |gic: &VcpuGic| !gic.candidates.is_empty() || !gic.lpi_candidates.is_empty();
        self.vcpus.get(vcpu).is_some_and(has)
    }

    /// Whether GICD_CTLR lets the interrupt's group through.
    pub(crate) const fn group_enabled(&self, irq: &Irq) -> bool {
        if irq.group1 { self.group1 } else { self.group0 }
    }

    /// Gives `vcpu` another affinity, before it runs: SPIs that were routed to it still are. `false`: another has that.
    pub fn set_affinity(&mut self, vcpu: usize, affinity: Affinity) -> bool {
        let mut others = self.vcpus.iter().enumerate();
        if others.any(|(other, gic)| other != vcpu && gic.affinity == affinity) {
            return false;
        }
        if let Some(gic) = self.vcpus.get_mut(vcpu) {
            gic.affinity = affinity;
        }
        true
    }

    /// An interrupt with a wire: a PPI or SPI.
    fn wired_mut(&mut self, vcpu: usize, intid: u32) -> Result<&mut Irq, NoSuchIrq> {
        if !(16..LPI_BASE).contains(&intid) {
            return Err(NoSuchIrq);
        }
        self.irq_mut(vcpu, intid).ok_or(NoSuchIrq)
    }

    /// Puts a changed interrupt into the right candidate set (invariant 3) and says who must know. A resident interrupt
    /// stays where it is until its vCPU syncs.
    pub(crate) fn settle(&mut self, vcpu: usize, intid: u32) -> Kicks {
        let Some(signalled) = self
            .irq(vcpu, intid)
            .map(|irq| irq.active || self.group_enabled(irq))
        else {
            return Kicks::NONE;
        };
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return Kicks::NONE;
        };
        if irq.resident.is_some() {
            let resident = irq.resident;
            return self.kick(resident);
        }
        let owner = irq.owner();
        let before = core::mem::replace(&mut irq.candidate_of, owner);
        let active_spi = irq.active && (FIRST_SPI..LPI_BASE).contains(&intid);
        if before != owner {
            for (holder, member) in [(before, false), (owner, true)] {
                let Some(index) = holder.map(usize::from) else {
                    continue;
                };
                if let Some(holder) = self.vcpus.get_mut(index) {
                    let had_spi = holder.candidates.has_spi();
                    holder.set_candidate(intid, member);
                    self.spi_holders += usize::from(holder.candidates.has_spi());
                    self.spi_holders -= usize::from(had_spi);
                }
            }
        }
        let kicks = self.kick(owner.filter(|_| signalled));
        match owner.filter(|_| active_spi) {
            Some(owner) => kicks | self.make_others_trap_dir(usize::from(owner)),
            None => kicks,
        }
    }

    pub(crate) fn kick(&mut self, vcpu: Option<VcpuNumber>) -> Kicks {
        match vcpu.and_then(|index| Some((index, self.vcpus.get_mut(usize::from(index))?))) {
            Some((index, vcpu)) => {
                vcpu.dirty = true;
                Kicks::one(usize::from(index))
            }
            None => Kicks::NONE,
        }
    }
}

impl VcpuGic {
    fn set_candidate(&mut self, number: u32, member: bool) {
        match number.checked_sub(LPI_BASE) {
            Some(lpi) => self.lpi_candidates.set(lpi, member),
            None => self.candidates.set(number, member),
        }
    }

    fn new(index: VcpuNumber, affinity: Affinity, last_in_region: bool) -> Self {
        let ppi = Irq {
            group1: true,
            target: Some(index),
            ..Irq::default()
        };
        let mut private = [ppi; FIRST_SPI as usize];
        for sgi in &mut private[..16] {
            sgi.edge = true;
            // Writes to GICR_ISENABLER0 decide; SGIs start enabled in KVM, and guests rely on either.
            sgi.enabled = true;
        }
        Self {
            affinity,
            private,
            linked: 0,
            candidates: IrqSet::default(),
            lpi_candidates: IrqSet::default(),
            takes_lpis: false,
            lpis_start: false,
            pendbaser: 0,
            loaded: false,
            dirty: true,
            traps_dir: false,
            last_in_region,
        }
    }
}
