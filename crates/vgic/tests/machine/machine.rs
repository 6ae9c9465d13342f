//! A machine to run the virtual GIC on: the CPU interface as the hardware operates it on list registers (IHI 0069, "Virtual
//! interrupt handling and prioritization"), and a kernel that keeps the duties the crate names. It uses the public
//! interface alone.

use umbra_vgic::{
    Access, Affinity, Config, Flushed, Frame, HcrBits, Kicks, LrFile, LrState, Refusal, Vgic, Vmcr,
    Vtr,
};

/// What ICC_IAR<g>_EL1 answers when nothing is to be acknowledged.
pub(crate) const SPURIOUS: u32 = 1023;
/// Physical INTID behind a linked PPI: the PPI's own plus this.
pub(crate) const PHYSICAL: u32 = 100;

/// One CPU that runs one vCPU.
pub(crate) struct Cpu {
    pub(crate) lrs: LrFile,
    pub(crate) hcr: HcrBits,
    pub(crate) vmcr: Vmcr,
    /// Active priorities, most recent last.
    pub(crate) aprs: Vec<u8>,
    /// Physical PPIs that are active, by INTID of the virtual one.
    pub(crate) physical_active: u32,
    /// Linked PPIs.
    pub(crate) linked: u32,
    /// In the guest, with list registers loaded.
    pub(crate) running: bool,
    /// Exits the kernel had to make for the GIC's sake.
    pub(crate) exits: usize,
}

impl Cpu {
    pub(crate) fn running_priority(&self) -> u8 {
        self.aprs.iter().copied().min().unwrap_or(0xff)
    }

    /// ICC_IAR0_EL1 or ICC_IAR1_EL1, whichever group is more urgent.
    pub(crate) fn iar(&mut self) -> u32 {
        let (vmcr, running) = (self.vmcr, self.running_priority());
        let signalled = self.lrs.loaded_mut().iter_mut().filter(|lr| {
            let group = if lr.group1() {
                vmcr.group1()
            } else {
                vmcr.group0()
            };
            lr.state() == LrState::Pending
                && group
                && lr.priority() < vmcr.pmr()
                && lr.priority() < running
        });
        let Some(lr) = signalled.min_by_key(|lr| lr.priority()) else {
            return SPURIOUS;
        };
        lr.set_state(LrState::Active);
        let (intid, priority) = (lr.vintid(), lr.priority());
        self.aprs.push(priority);
        intid
    }

    /// ICC_EOIR<g>_EL1.
    pub(crate) fn eoir(&mut self, intid: u32) {
        // Priority drop: the most urgent active priority goes, whatever the INTID.
        let running = self.running_priority();
        if let Some(at) = self.aprs.iter().position(|&priority| priority == running) {
            self.aprs.remove(at);
        }
        if !self.vmcr.eoi_mode() {
            self.deactivate(intid);
        }
    }

    /// ICC_DIR_EL1, untrapped.
    pub(crate) fn deactivate(&mut self, intid: u32) {
        let active = |lr: &&mut umbra_vgic::Lr| lr.vintid() == intid && lr.state().is_active();
        match self.lrs.loaded_mut().iter_mut().find(active) {
            Some(lr) => {
                lr.set_state(LrState::new(lr.state().is_pending(), false));
                if lr.hw() {
                    assert_eq!(u32::from(lr.pintid()), PHYSICAL + intid);
                    self.physical_active &= !(1 << intid);
                }
            }
            None => self.hcr.set_eoi_count(self.hcr.eoi_count() + 1),
        }
    }

    /// Whether the maintenance interrupt is asserted (ICH_MISR_EL2).
    pub(crate) fn maintenance(&self) -> bool {
        let lrs = self.lrs.loaded();
        let eoi = lrs
            .iter()
            .any(|lr| lr.state() == LrState::Invalid && lr.eoi());
        let no_pending = self.hcr.npie() && !lrs.iter().any(|lr| lr.state().is_pending());
        let not_present = self.hcr.lrenpie() && self.hcr.eoi_count() != 0;
        eoi || no_pending || not_present
    }
}

/// The VM and its CPUs.
pub(crate) struct Machine {
    pub(crate) vgic: Vgic,
    pub(crate) cpus: Vec<Cpu>,
}

impl Machine {
    pub(crate) fn new(nr_vcpus: u32, nr_lrs: u8, eoi_mode: bool) -> Self {
        let affinities: Vec<_> = (0..nr_vcpus).map(Affinity).collect();
        let vtr = Vtr::new()
            .with_list_regs(nr_lrs - 1)
            .with_pri_bits(4)
            .with_pre_bits(4)
            .with_tds(true);
        let vgic = Vgic::new(&Config {
            nr_irqs: 96,
            affinities: &affinities,
            vtr,
        })
        .unwrap();
        let vmcr = Vmcr::new()
            .with_pmr(0xff)
            .with_group0(true)
            .with_group1(true)
            .with_eoi_mode(eoi_mode);
        let cpu = || Cpu {
            lrs: LrFile::EMPTY,
            hcr: HcrBits::new(),
            vmcr,
            aprs: Vec::new(),
            physical_active: 0,
            linked: 0,
            running: false,
            exits: 0,
        };
        let mut machine = Self {
            vgic,
            cpus: (0..nr_vcpus).map(|_| cpu()).collect(),
        };
        machine.write(Frame::Dist, 0, 3);
        for vcpu in 0..machine.cpus.len() {
            machine.enter(vcpu);
        }
        machine
    }

    /// The vCPU's CPU goes into the guest.
    pub(crate) fn enter(&mut self, vcpu: usize) {
        let cpu = &mut self.cpus[vcpu];
        assert!(!cpu.running);
        let Flushed { hcr, linked, kicks } = self.vgic.flush(vcpu, &mut cpu.lrs);
        cpu.hcr = hcr;
        cpu.linked = linked.linked;
        cpu.physical_active = linked.active;
        cpu.running = true;
        assert!(cpu.lrs.used <= self.vgic.nr_lrs());
        self.kick(kicks);
    }

    /// The vCPU's CPU leaves the guest, and takes its list registers back.
    pub(crate) fn leave(&mut self, vcpu: usize) {
        let cpu = &mut self.cpus[vcpu];
        if cpu.running {
            cpu.running = false;
            cpu.exits += 1;
            let kicks = self.vgic.sync(vcpu, &cpu.lrs, cpu.hcr.eoi_count());
            self.kick(kicks);
        }
    }

    /// Makes the named vCPUs that are in the guest leave and re-enter it.
    pub(crate) fn kick(&mut self, kicks: Kicks) {
        for vcpu in kicks.iter() {
            // It may have been out since the call, or one kick answered on the way to another.
            if self.cpus[vcpu].running && self.vgic.needs_flush(vcpu) {
                self.leave(vcpu);
                self.enter(vcpu);
            }
        }
    }

    /// Whether the physical side interrupts the guest: maintenance, or a linked line is high and its interrupt not active.
    pub(crate) fn interrupted(&self, vcpu: usize) -> bool {
        let cpu = &self.cpus[vcpu];
        let lines = self.vgic.line_levels(vcpu, 0) & cpu.linked;
        cpu.running && (cpu.maintenance() || lines & !cpu.physical_active != 0)
    }

    /// Takes the interrupts that interrupt the guests, until there are none.
    pub(crate) fn settle(&mut self) {
        for vcpu in 0..self.cpus.len() {
            for round in 0.. {
                if !self.interrupted(vcpu) {
                    break;
                }
                assert!(round < 4, "maintenance interrupts without end");
                self.leave(vcpu);
                self.enter(vcpu);
            }
        }
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            assert_eq!(
                self.vgic.needs_flush(vcpu),
                !cpu.running,
                "vCPU {vcpu} was not kicked"
            );
        }
    }

    /// Makes a call that may first want vCPUs synced, as the kernel does: stop them, call again, let them go.
    pub(crate) fn with_sync<T>(
        &mut self,
        mut call: impl FnMut(&mut Vgic) -> Result<T, Refusal>,
    ) -> T {
        match call(&mut self.vgic) {
            Ok(value) => value,
            Err(Refusal::NeedsSync(vcpus)) => {
                assert!(
                    vcpus.iter().all(|vcpu| self.cpus[vcpu].running),
                    "asked to sync what is not loaded"
                );
                vcpus.iter().for_each(|vcpu| self.leave(vcpu));
                let value = call(&mut self.vgic)
                    .unwrap_or_else(|refusal| panic!("{refusal:?} after a sync"));
                vcpus.iter().for_each(|vcpu| self.enter(vcpu));
                value
            }
            Err(refusal) => panic!("{refusal:?} for a guest"),
        }
    }

    /// The guest writes a word.
    pub(crate) fn write(&mut self, frame: Frame, offset: u32, value: u32) {
        self.write_sized(frame, offset, 4, u64::from(value));
    }

    /// The guest writes `len` bytes.
    pub(crate) fn write_sized(&mut self, frame: Frame, offset: u32, len: u8, value: u64) {
        let kicks =
            self.with_sync(|vgic| vgic.mmio_write(Access::Guest, frame, offset, len, value));
        self.kick(kicks);
    }

    /// The guest reads a word.
    pub(crate) fn read(&mut self, frame: Frame, offset: u32) -> u32 {
        self.with_sync(|vgic| vgic.mmio_read(Access::Guest, frame, offset, 4)) as u32
    }

    /// The guest's view of one bit of a one-bit bank, for the interrupt of `vcpu`.
    pub(crate) fn read_bit(&mut self, vcpu: usize, bank: u32, intid: u32) -> bool {
        let (frame, bit) = place(vcpu, intid);
        self.read(frame, bank + bit / 32 * 4) >> (bit % 32) & 1 != 0
    }

    /// The guest writes 1 to one bit of a one-bit bank.
    pub(crate) fn write_bit(&mut self, vcpu: usize, bank: u32, intid: u32) {
        let (frame, bit) = place(vcpu, intid);
        self.write(frame, bank + bit / 32 * 4, 1 << (bit % 32));
    }

    /// The guest sets one priority.
    pub(crate) fn set_priority(&mut self, vcpu: usize, intid: u32, priority: u8) {
        self.write_sized(
            place(vcpu, intid).0,
            IPRIORITYR + intid,
            1,
            u64::from(priority),
        );
    }

    /// The guest makes an SPI edge-triggered or level-sensitive.
    pub(crate) fn set_edge(&mut self, intid: u32, edge: bool) {
        let (offset, shift) = (ICFGR + intid / 16 * 4, intid % 16 * 2);
        let value = self.read(Frame::Dist, offset) & !(3 << shift);
        self.write(Frame::Dist, offset, value | u32::from(edge) << (shift + 1));
    }

    /// A device moves its wire.
    pub(crate) fn set_level(&mut self, vcpu: usize, intid: u32, level: bool) {
        let kicks = self.vgic.set_level(vcpu, intid, level).unwrap();
        self.kick(kicks);
    }

    /// A device pulses.
    pub(crate) fn inject_edge(&mut self, intid: u32) {
        let kicks = self.vgic.inject_edge(0, intid).unwrap();
        self.kick(kicks);
    }

    /// The guest writes ICC_DIR_EL1.
    pub(crate) fn dir(&mut self, vcpu: usize, intid: u32) {
        if self.cpus[vcpu].hcr.tdir() {
            let kicks = self.with_sync(|vgic| vgic.deactivate(vcpu, intid));
            self.kick(kicks);
        } else {
            self.cpus[vcpu].deactivate(intid);
        }
    }
}

/// Which frame has an interrupt, and which bit of a one-bit bank it is.
pub(crate) fn place(vcpu: usize, intid: u32) -> (Frame, u32) {
    (
        if intid < 32 {
            Frame::Sgi(vcpu)
        } else {
            Frame::Dist
        },
        intid,
    )
}

pub(crate) const ISENABLER: u32 = 0x100;
pub(crate) const ICENABLER: u32 = 0x180;
pub(crate) const ISPENDR: u32 = 0x200;
pub(crate) const ICPENDR: u32 = 0x280;
pub(crate) const ISACTIVER: u32 = 0x300;
pub(crate) const ICACTIVER: u32 = 0x380;
pub(crate) const IPRIORITYR: u32 = 0x400;
pub(crate) const ICFGR: u32 = 0xc00;
pub(crate) const IROUTER: u32 = 0x6000;
