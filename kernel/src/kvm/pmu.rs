//! A vCPU's performance counters (KVM_ARM_VCPU_PMU_V3_CTRL). How the registers behave is
//! `umbra_arm64::pmu`'s, the counting hardware's (`umbra_hw::pmu`); this joins them: what hardware counts for
//! the next entry, which events the VMM allows, the overflow interrupt.

use alloc::boxed::Box;
use alloc::vec::Vec;

use umbra_arm64::pmu::{CYCLES, Pmu};
use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_hw::pmu::PmuRegs;
use umbra_kvm_abi::device::{
    DeviceAttr, KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, KVM_ARM_VCPU_PMU_V3_SET_PMU, PmuEventFilter,
};
use umbra_kvm_abi::vcpu::KVM_ARM_VCPU_PMU_V3;
use umbra_linux::Errno;

use super::device::Verb;
use super::vcpu::{State, Vcpu};
use super::vm::Vm;
use super::{read_struct, write_struct};
use crate::mm::Mm;

/// PMUVer from which event counters have 64 bits.
const LONG_COUNTERS: u8 = 6;
/// PMUVer from which events have 16 bits, not 10.
const WIDE_EVENTS: u8 = 4;

/// What is one for all vCPUs of a VM.
#[derive(Debug, Default)]
pub(super) struct VmPmu {
    /// Event counters, if the VMM said.
    counters: Option<u8>,
    /// The events that may be counted, a bit each; `None` for all.
    allowed: Option<Vec<u64>>,
}

impl VmPmu {
    fn counters(&self) -> u8 {
        self.counters.unwrap_or_else(umbra_hw::pmu::counters)
    }

    fn allows(&self, event: u64) -> bool {
        let word = |words: &Vec<u64>| words.get((event >> 6) as usize).copied().unwrap_or(0);
        self.allowed
            .as_ref()
            .is_none_or(|words| word(words) >> (event & 63) & 1 != 0)
    }

    /// PMCEID: of the common events those that may be counted.
    fn identification(&self) -> [u64; 2] {
        let events = umbra_hw::pmu::events();
        core::array::from_fn(|half| {
            let kept = |bit: &u64| {
                // The upper words are events from 0x4000 on.
                let event = half as u64 * 32 + (bit & 31) + (bit >> 5) * 0x4000;
                self.allows(event)
            };
            let mask = (0..64).filter(kept).fold(0, |mask, bit| mask | 1 << bit);
            events[half] & mask
        })
    }
}

/// A vCPU's PMU.
pub(super) struct VcpuPmu {
    regs: Pmu,
    /// What hardware has while the guest runs; meaningful if `in_use`.
    loaded: PmuRegs,
    in_use: bool,
    /// The overflow interrupt, once the VMM said.
    irq: Option<u32>,
    /// KVM_ARM_VCPU_PMU_V3_INIT was done.
    created: bool,
    /// The interrupt's level as the GIC knows it.
    line: bool,
}

/// KVM_ARM_VCPU_INIT: a PMU if the VMM asked for one, reset.
pub(super) fn reset(vcpu: &Vcpu, state: &mut State) {
    let wanted = state
        .init
        .is_some_and(|features| features.has(KVM_ARM_VCPU_PMU_V3));
    if !wanted {
        return;
    }
    let regs = {
        let of_vm = vcpu.vm.pmu.lock();
        let is_long = umbra_hw::pmu::version() >= LONG_COUNTERS;
        Pmu::new(of_vm.counters(), is_long, of_vm.identification())
    };
    let counters = regs.counters();
    match &mut state.pmu {
        Some(pmu) => {
            pmu.regs = regs;
            pmu.in_use = false;
            pmu.tell(vcpu);
        }
        None => {
            state.pmu = Some(Box::new(VcpuPmu {
                regs,
                loaded: PmuRegs::default(),
                in_use: false,
                irq: None,
                created: false,
                line: false,
            }));
        }
    }
    let is_nested = {
        let mut hw = vcpu.hw.lock();
        if hw.nested {
            hw.regs.set(Reg::MdcrEl2, counters.into());
        }
        hw.nested
    };
    if is_nested {
        follow(vcpu, state);
    }
}

/// Of a vCPU with virtual EL2: MDCR_EL2 was written, or who runs has changed. Which counters count, and by
/// which bit of their filters, goes by both.
pub(super) fn follow(vcpu: &Vcpu, state: &mut State) {
    let Some(pmu) = &mut state.pmu else {
        return;
    };
    let (mdcr, runs) = {
        let hw = vcpu.hw.lock();
        if !hw.nested {
            return;
        }
        (hw.regs.get_any(Reg::MdcrEl2), hw.virtual_el2)
    };
    pmu.regs.under(mdcr, runs);
    pmu.arm(&vcpu.vm);
}

/// As [`follow`] after a write of MDCR_EL2, which may also raise or lower the interrupt.
pub(super) fn divide(vcpu: &Vcpu, state: &mut State) {
    follow(vcpu, state);
    if let Some(pmu) = &mut state.pmu {
        pmu.tell(vcpu);
    }
}

/// Before the first KVM_RUN. `EINVAL`: there is a PMU that was not initialised.
pub(super) fn check(vcpu: &Vcpu, state: &mut State) -> Result<(), Errno> {
    let Some(pmu) = &mut state.pmu else {
        return Ok(());
    };
    if !pmu.created {
        return Err(Errno::EINVAL);
    }
    // The VMM may have set a filter and the number of counters since.
    let of_vm = vcpu.vm.pmu.lock();
    pmu.regs.set_counters(of_vm.counters());
    pmu.regs.set_identification(of_vm.identification());
    drop(of_vm);
    {
        // A guest hypervisor begins with all of them, as a VMM that sets their number expects.
        let mut hw = vcpu.hw.lock();
        if hw.nested {
            let mdcr = hw.regs.get_any(Reg::MdcrEl2);
            let counters = (mdcr & 0x1f).min(pmu.regs.counters().into());
            hw.regs.set(Reg::MdcrEl2, mdcr & !0x1f | counters);
        }
    }
    divide(vcpu, state);
    Ok(())
}

/// The counters for the next entry, if the guest uses any.
pub(super) fn for_entry(pmu: &mut Option<Box<VcpuPmu>>) -> Option<&mut PmuRegs> {
    let pmu = pmu.as_mut()?;
    pmu.in_use.then_some(&mut pmu.loaded)
}

/// After an exit: what hardware counted.
#[inline(always)]
pub(super) fn collect(vcpu: &Vcpu, state: &mut State) {
    if let Some(pmu) = &mut state.pmu
        && pmu.in_use
    {
        pmu.collect(vcpu);
    }
}

impl VcpuPmu {
    fn collect(&mut self, vcpu: &Vcpu) {
        let counted = self.loaded.counting;
        for n in (0..=CYCLES).filter(|n| counted >> n & 1 != 0) {
            self.regs.counted(n, self.loaded.counts[n as usize]);
        }
        if counted != 0 && self.loaded.overflows & counted != 0 {
            self.regs.overflowed(self.loaded.overflows & counted);
            self.tell(vcpu);
        }
    }

    /// Works out what hardware has for the next entry.
    fn arm(&mut self, vm: &Vm) {
        let regs = &self.regs;
        let allowed = vm.pmu.lock();
        let may = |n: &u32| {
            *n == CYCLES && allowed.allows(0x11)
                || *n != CYCLES && { allowed.allows(regs.kind(*n) & 0xffff) }
        };
        let wanted = regs.counting();
        let counting = (0..=CYCLES)
            .filter(|n| wanted >> n & 1 != 0)
            .filter(may)
            .fold(0, |set, n| set | 1 << n);
        self.in_use = counting != 0 || regs.user() != 0;
        let loaded = &mut self.loaded;
        loaded.counting = counting;
        loaded.interrupting = regs.interrupting();
        loaded.control = regs.hardware_control();
        loaded.user = regs.user();
        for n in (0..=CYCLES).filter(|n| counting >> n & 1 != 0) {
            loaded.kinds[n as usize] = regs.kind(n);
            loaded.counts[n as usize] = regs.count(n);
        }
    }

    /// The overflow interrupt's level.
    pub(super) fn line(&self) -> bool {
        self.regs.line()
    }

    /// Tells the GIC what the overflow interrupt has become.
    fn tell(&mut self, vcpu: &Vcpu) {
        let line = self.regs.line();
        if line != self.line
            && let Some(irq) = self.irq
        {
            self.line = line;
            vcpu.vm.gic.set_line(&vcpu.vm, vcpu.index(), irq, line);
        }
    }
}

/// A guest's trapped access: the value read, or 0; `None` where it is UNDEFINED.
pub(super) fn access(
    vcpu: &Vcpu,
    state: &mut State,
    enc: SysReg,
    write: Option<u64>,
) -> Option<u64> {
    let pmu = state.pmu.as_mut()?;
    match write {
        None => pmu.regs.read(enc),
        Some(value) => {
            pmu.regs.write(enc, value)?;
            pmu.arm(&vcpu.vm);
            pmu.tell(vcpu);
            Some(0)
        }
    }
}

/// KVM_GET_ONE_REG.
pub(super) fn save(state: &State, enc: SysReg) -> u64 {
    state.pmu.as_ref().map_or(0, |pmu| pmu.regs.save(enc))
}

/// KVM_SET_ONE_REG. PMCR_EL0 also says how many counters there are, while no vCPU has run.
pub(super) fn restore(vcpu: &Vcpu, state: &mut State, enc: SysReg, value: u64) {
    let vm = &vcpu.vm;
    let Some(pmu) = state.pmu.as_mut() else {
        return;
    };
    if enc == SysReg::PMCR_EL0 && !vm.has_run() {
        let counters = (value >> 11 & 0x1f) as u8;
        if counters <= umbra_hw::pmu::counters() {
            vm.pmu.lock().counters = Some(counters);
            pmu.regs.set_counters(counters);
        }
    }
    pmu.regs.restore(enc, value);
    pmu.arm(vm);
    pmu.tell(vcpu);
}

/// KVM_{SET,GET,HAS}_DEVICE_ATTR of the group. `ENXIO`: no such attribute; `ENODEV`: no PMU was asked for, or
/// the GIC is not initialised; `EBUSY`: it is settled; `EINVAL`; `EFAULT`.
pub(super) fn attr(vcpu: &Vcpu, mm: &Mm, verb: Verb, attr: &DeviceAttr) -> Result<u64, Errno> {
    let mut state = vcpu.state.lock();
    let vm = &vcpu.vm;
    let Some(pmu) = state.pmu.as_mut() else {
        return Err(match verb {
            Verb::Set => Errno::ENODEV,
            Verb::Get | Verb::Has => Errno::ENXIO,
        });
    };
    match verb {
        Verb::Has => has(attr.attr),
        Verb::Get => match attr.attr {
            KVM_ARM_VCPU_PMU_V3_IRQ if !vm.gic.layout.lock().created => Err(Errno::EINVAL),
            KVM_ARM_VCPU_PMU_V3_IRQ => write_struct(mm, attr.addr, &pmu.irq.ok_or(Errno::ENXIO)?),
            _ => Err(Errno::ENXIO),
        },
        Verb::Set if pmu.created => Err(Errno::EBUSY),
        Verb::Set => match attr.attr {
            KVM_ARM_VCPU_PMU_V3_IRQ => pmu.set_irq(vcpu, mm, attr.addr),
            KVM_ARM_VCPU_PMU_V3_INIT => pmu.initialise(vm),
            KVM_ARM_VCPU_PMU_V3_FILTER => set_filter(vm, &read_struct(mm, attr.addr)?),
            // The PMUs that could be chosen are perf's, which is not here.
            KVM_ARM_VCPU_PMU_V3_SET_PMU => read_struct::<u32>(mm, attr.addr).and(Err(Errno::ENXIO)),
            KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS => {
                let wanted = read_struct::<u32>(mm, attr.addr)?;
                let counters = u8::try_from(wanted)
                    .ok()
                    .filter(|&counters| counters <= umbra_hw::pmu::counters())
                    .ok_or(Errno::EINVAL)?;
                vm.pmu.lock().counters = Some(counters);
                pmu.regs.set_counters(counters);
                Ok(())
            }
            _ => Err(Errno::ENXIO),
        },
    }
    .map(|()| 0)
}

fn has(number: u64) -> Result<(), Errno> {
    match number {
        KVM_ARM_VCPU_PMU_V3_IRQ
        | KVM_ARM_VCPU_PMU_V3_INIT
        | KVM_ARM_VCPU_PMU_V3_FILTER
        | KVM_ARM_VCPU_PMU_V3_SET_PMU
        | KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS => Ok(()),
        _ => Err(Errno::ENXIO),
    }
}

impl VcpuPmu {
    /// A private interrupt that is the same for all vCPUs, or a shared one for each.
    fn set_irq(&mut self, vcpu: &Vcpu, mm: &Mm, addr: u64) -> Result<(), Errno> {
        let vm = &vcpu.vm;
        if !vm.gic.layout.lock().created {
            return Err(Errno::EINVAL);
        }
        let irq = read_struct::<u32>(mm, addr)?;
        if !(16..1020).contains(&irq) {
            return Err(Errno::EINVAL);
        }
        for other in vm.all_vcpus().iter().filter(|v| v.index() != vcpu.index()) {
            let taken = other.state.try_lock().ok_or(Errno::EBUSY)?;
            let taken = taken.pmu.as_ref().and_then(|pmu| pmu.irq);
            if taken.is_some_and(|taken| (irq < 32) != (taken == irq)) {
                return Err(Errno::EINVAL);
            }
        }
        if self.irq.is_some() {
            return Err(Errno::EBUSY);
        }
        self.irq = Some(irq);
        Ok(())
    }

    /// Its overflow interrupt, if the VMM said which.
    pub(super) fn irq(&self) -> Option<u32> {
        self.irq
    }

    fn initialise(&mut self, vm: &Vm) -> Result<(), Errno> {
        if vm.gic.layout.lock().created {
            if !vm.gic.is_initialised() {
                return Err(Errno::ENODEV);
            }
            if self.irq.is_none() {
                return Err(Errno::ENXIO);
            }
        }
        self.created = true;
        Ok(())
    }
}

fn set_filter(vm: &Vm, filter: &PmuEventFilter) -> Result<(), Errno> {
    let events = if umbra_hw::pmu::version() >= WIDE_EVENTS {
        1 << 16
    } else {
        1 << 10
    };
    let end = usize::from(filter.base_event) + usize::from(filter.nevents);
    if end > events || filter.action > 1 {
        return Err(Errno::EINVAL);
    }
    if vm.has_run() {
        return Err(Errno::EBUSY);
    }
    let allow = filter.action == 0;
    crate::mem::top_up();
    let mut of_vm = vm.pmu.lock();
    // The first filter says what becomes of the events that none names.
    let words = of_vm
        .allowed
        .get_or_insert_with(|| alloc::vec![if allow { 0 } else { u64::MAX }; events / 64]);
    for event in filter.base_event.into()..end {
        if let Some(word) = words.get_mut(event / 64) {
            let bit = 1 << (event % 64);
            *word = if allow { *word | bit } else { *word & !bit };
        }
    }
    Ok(())
}
