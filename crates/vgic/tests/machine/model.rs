//! The virtual GIC against a model that knows no list registers: whatever is injected, acknowledged, ended, disabled or re-routed, each
//! CPU acknowledges exactly what a GIC without a hypervisor would have it acknowledge.

use crate::machine::*;
use umbra_vgic::{Frame, SgiRegister};

/// IHI 0069, "Interrupt handling state machine", for one interrupt.
#[derive(Clone, Debug)]
struct ModelIrq {
    intid: u32,
    /// Of a private interrupt.
    vcpu: Option<usize>,
    line: bool,
    latch: bool,
    /// By whom, or by a register write.
    active: bool,
    /// Became active by an acknowledge on this CPU.
    taken_by: Option<usize>,
    enabled: bool,
    edge: bool,
    priority: u8,
    target: Option<usize>,
}

impl ModelIrq {
    fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
}

pub(crate) const VCPUS: usize = 2;
pub(crate) const SGIS: [u32; 2] = [0, 9];
const PPIS: [u32; 2] = [20, TIMER];
/// Linked to a physical interrupt.
const TIMER: u32 = 27;
const SPIS: [u32; 7] = [32, 33, 40, 63, 64, 65, 95];

/// What happens to a VM.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Level(usize, bool),
    Edge(usize),
    Sgi { from: usize, sgi: usize, to: usize },
    Acknowledge(usize),
    End(usize),
    Deactivate(usize, usize),
    Enable(usize),
    Disable(usize),
    SetPending(usize),
    ClearPending(usize),
    SetActive(usize),
    ClearActive(usize),
    Priority(usize, u8),
    Route(usize, u32),
    Trigger(usize, bool),
    GroupEnable(bool),
    PriorityMask(usize, u8),
    Leave(usize),
    Enter(usize),
    Read(usize),
}

/// A machine and its model, moved together.
pub(crate) struct World {
    machine: Machine,
    irqs: Vec<ModelIrq>,
    group1: bool,
    eoi_mode: bool,
    /// Acknowledged and not yet ended (EOIR) on each CPU, most recent last.
    taken: Vec<Vec<u32>>,
}

impl World {
    pub(crate) fn new(nr_lrs: u8, eoi_mode: bool) -> Self {
        let mut machine = Machine::new(VCPUS as u32, nr_lrs, eoi_mode);
        let mut irqs = Vec::new();
        let blank = |intid, vcpu, edge, target| ModelIrq {
            intid,
            vcpu,
            line: false,
            latch: false,
            active: false,
            taken_by: None,
            enabled: true,
            edge,
            priority: 0,
            target,
        };
        for vcpu in 0..VCPUS {
            irqs.extend(SGIS.map(|intid| blank(intid, Some(vcpu), true, Some(vcpu))));
            irqs.extend(PPIS.map(|intid| blank(intid, Some(vcpu), false, Some(vcpu))));
            let kicks = machine
                .vgic
                .link_physical(vcpu, TIMER, Some(PHYSICAL + TIMER))
                .unwrap();
            machine.kick(kicks);
        }
        irqs.extend(SPIS.map(|intid| blank(intid, None, false, Some(0))));
        for irq in &irqs {
            machine.write_bit(irq.vcpu.unwrap_or(0), ISENABLER, irq.intid);
        }
        Self {
            machine,
            irqs,
            group1: true,
            eoi_mode,
            taken: vec![Vec::new(); VCPUS],
        }
    }

    fn index(&self, irq: usize) -> usize {
        irq % self.irqs.len()
    }

    fn find(&self, vcpu: usize, intid: u32) -> usize {
        let same =
            |irq: &ModelIrq| irq.intid == intid && irq.vcpu.is_none_or(|owner| owner == vcpu);
        self.irqs
            .iter()
            .position(same)
            .unwrap_or_else(|| panic!("{intid} was never injected"))
    }

    /// What `vcpu` may acknowledge now: the most urgent ones.
    fn acknowledgeable(&self, vcpu: usize) -> Vec<u32> {
        let cpu = &self.machine.cpus[vcpu];
        let limit = cpu.vmcr.pmr().min(cpu.running_priority());
        let waiting = self.irqs.iter().filter(|irq| {
            self.group1
                && irq.pending()
                && irq.enabled
                && !irq.active
                && irq.target == Some(vcpu)
                && irq.priority < limit
        });
        let best = waiting.clone().map(|irq| irq.priority).min();
        waiting
            .filter(|irq| Some(irq.priority) == best)
            .map(|irq| irq.intid)
            .collect()
    }

    fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        let expected = self.acknowledgeable(vcpu);
        let intid = self.machine.cpus[vcpu].iar();
        if intid == SPURIOUS {
            assert!(
                expected.is_empty(),
                "vCPU {vcpu} took nothing, but {expected:?} wait"
            );
            return None;
        }
        assert!(
            expected.contains(&intid),
            "vCPU {vcpu} took {intid}, not one of {expected:?}"
        );
        let at = self.find(vcpu, intid);
        let irq = &mut self.irqs[at];
        irq.latch = false;
        irq.active = true;
        irq.taken_by = Some(vcpu);
        self.taken[vcpu].push(intid);
        Some(intid)
    }

    fn end(&mut self, vcpu: usize) {
        let Some(intid) = self.taken[vcpu].pop() else {
            return;
        };
        self.machine.cpus[vcpu].eoir(intid);
        if !self.eoi_mode {
            self.deactivated(vcpu, intid);
        }
    }

    fn deactivated(&mut self, vcpu: usize, intid: u32) {
        let at = self.find(vcpu, intid);
        self.irqs[at].active = false;
        self.irqs[at].taken_by = None;
    }

    pub(crate) fn step(&mut self, op: &Op) {
        match *op {
            Op::Level(irq, level) => {
                let at = self.index(irq);
                let irq = &mut self.irqs[at];
                if irq.intid >= 16 {
                    irq.line = level;
                    irq.latch |= irq.edge && level;
                    self.machine
                        .set_level(irq.vcpu.unwrap_or(0), irq.intid, level);
                }
            }
            Op::Edge(irq) => {
                let at = self.index(irq);
                let irq = &mut self.irqs[at];
                if irq.vcpu.is_none() {
                    irq.latch = true;
                    self.machine.inject_edge(irq.intid);
                }
            }
            Op::Sgi { from, sgi, to } => {
                let intid = SGIS[sgi];
                let at = self.find(to, intid);
                self.irqs[at].latch = true;
                let value = u64::from(intid) << 24 | 1 << to;
                let kicks = self.machine.vgic.sgi(from, SgiRegister::Sgi1r, value);
                self.machine.kick(kicks);
            }
            Op::Acknowledge(vcpu) => {
                if self.machine.cpus[vcpu].running {
                    self.acknowledge(vcpu);
                }
            }
            Op::End(vcpu) => {
                if self.machine.cpus[vcpu].running {
                    self.end(vcpu);
                }
            }
            Op::Deactivate(vcpu, irq) => {
                let at = self.index(irq);
                let irq = self.irqs[at].clone();
                let ended = !self.taken.iter().flatten().any(|&intid| intid == irq.intid);
                let mine = irq.vcpu.is_none_or(|owner| owner == vcpu);
                if self.eoi_mode && self.machine.cpus[vcpu].running && ended && mine && irq.active {
                    self.machine.dir(vcpu, irq.intid);
                    self.deactivated(vcpu, irq.intid);
                }
            }
            Op::Enable(irq) => self.write_bit(irq, ISENABLER, |irq| irq.enabled = true),
            Op::Disable(irq) => self.write_bit(irq, ICENABLER, |irq| irq.enabled = false),
            Op::SetPending(irq) => self.write_bit(irq, ISPENDR, |irq| irq.latch = true),
            Op::ClearPending(irq) => self.write_bit(irq, ICPENDR, |irq| irq.latch = false),
            // With EOImode = 0 an EOI for what was acknowledged could not be told from one for what was only made active.
            Op::SetActive(irq) if self.eoi_mode => {
                self.write_bit(irq, ISACTIVER, |irq| irq.active = true)
            }
            Op::ClearActive(irq) if self.eoi_mode => self.write_bit(irq, ICACTIVER, |irq| {
                irq.active = false;
                irq.taken_by = None;
            }),
            Op::SetActive(_) | Op::ClearActive(_) => {}
            Op::Priority(irq, priority) => {
                let at = self.index(irq);
                let irq = &mut self.irqs[at];
                // The order of EOIs is that of the priorities at acknowledge.
                if !irq.active {
                    irq.priority = priority;
                    self.machine
                        .set_priority(irq.vcpu.unwrap_or(0), irq.intid, priority);
                }
            }
            Op::Route(irq, affinity) => {
                let at = self.index(irq);
                let irq = &mut self.irqs[at];
                if irq.vcpu.is_none() {
                    irq.target = Some(affinity as usize).filter(|&vcpu| vcpu < VCPUS);
                    self.machine.write_sized(
                        Frame::Dist,
                        IROUTER + 8 * irq.intid,
                        8,
                        u64::from(affinity),
                    );
                }
            }
            Op::Trigger(irq, edge) => {
                let at = self.index(irq);
                let irq = &mut self.irqs[at];
                if irq.vcpu.is_none() {
                    irq.edge = edge;
                    self.machine.set_edge(irq.intid, edge);
                }
            }
            Op::GroupEnable(on) => {
                self.group1 = on;
                self.machine.write(Frame::Dist, 0, u32::from(on) << 1);
            }
            // ICC_PMR_EL1 is the hardware's: no call is made.
            Op::PriorityMask(vcpu, mask) => self.machine.cpus[vcpu].vmcr.set_pmr(mask),
            Op::Leave(vcpu) => self.machine.leave(vcpu),
            Op::Enter(vcpu) => {
                if !self.machine.cpus[vcpu].running {
                    self.machine.enter(vcpu);
                }
            }
            Op::Read(irq) => {
                let at = self.index(irq);
                let irq = self.irqs[at].clone();
                let vcpu = irq.vcpu.unwrap_or(0);
                for (bank, expected) in [
                    (ISPENDR, irq.pending()),
                    (ICPENDR, irq.pending()),
                    (ISACTIVER, irq.active),
                    (ISENABLER, irq.enabled),
                ] {
                    assert_eq!(
                        self.machine.read_bit(vcpu, bank, irq.intid),
                        expected,
                        "{bank:#x} {irq:?}"
                    );
                }
            }
        }
        self.machine.settle();
        self.check_wfi();
    }

    fn write_bit(&mut self, irq: usize, bank: u32, change: impl Fn(&mut ModelIrq)) {
        let at = self.index(irq);
        change(&mut self.irqs[at]);
        let irq = &self.irqs[at];
        self.machine
            .write_bit(irq.vcpu.unwrap_or(0), bank, irq.intid);
    }

    /// A vCPU that is out of the guest wakes up for exactly what it could acknowledge, running priority aside.
    fn check_wfi(&self) {
        for (vcpu, cpu) in self
            .machine
            .cpus
            .iter()
            .enumerate()
            .filter(|(_, cpu)| !cpu.running && cpu.aprs.is_empty())
        {
            let expected = !self.acknowledgeable(vcpu).is_empty();
            assert_eq!(
                self.machine.vgic.has_pending(vcpu, cpu.vmcr),
                expected,
                "WFI of vCPU {vcpu}"
            );
        }
    }

    /// Enables everything and takes it all: what is left at the end was neither lost nor is it delivered twice.
    pub(crate) fn drain(&mut self) {
        self.step(&Op::GroupEnable(true));
        for irq in 0..self.irqs.len() {
            self.step(&Op::Enable(irq));
            self.step(&Op::Route(irq, 0));
            self.step(&Op::Level(irq, false));
        }
        for vcpu in 0..VCPUS {
            self.step(&Op::PriorityMask(vcpu, 0xff));
            self.step(&Op::Enter(vcpu));
            while !self.taken[vcpu].is_empty() {
                self.step(&Op::End(vcpu));
            }
        }
        if self.eoi_mode {
            (0..self.irqs.len()).for_each(|irq| self.step(&Op::ClearActive(irq)));
        }
        for vcpu in 0..VCPUS {
            for round in 0.. {
                assert!(round < 64, "vCPU {vcpu} is never done");
                if self.acknowledge(vcpu).is_none() {
                    break;
                }
                self.machine.settle();
                self.step(&Op::End(vcpu));
                if self.eoi_mode {
                    (0..self.irqs.len()).for_each(|irq| self.step(&Op::Deactivate(vcpu, irq)));
                }
            }
        }
        for irq in &self.irqs {
            assert!(!irq.pending() && !irq.active, "left over: {irq:?}");
        }
        for irq in 0..self.irqs.len() {
            self.step(&Op::Read(irq));
        }
    }
}
