//! A VM whose GIC is the VMM's (KVM_CAP_ARM_USER_IRQ): what umbra's own devices, the timers and the performance
//! counters, have to say to it stands in the run page (`device_irq_level`), and KVM_RUN ends when it changes.
//!
//! A machine's timer interrupt that has fired stays active, so that it does not fire again at once, until the
//! guest's timer is quiet; that is looked at after each exit which is not umbra's own to answer, as on Linux.

use core::sync::atomic::Ordering;

use umbra_hw::gic;
use umbra_hw::timer::{PHYS_TIMER_PPI, VIRT_TIMER_PPI};
use umbra_kvm_abi::run::{DEVICE_IRQ_LEVEL, RunPage};

use super::vcpu::{State, Vcpu};
use super::{loaded, timer};

/// `KVM_ARM_DEV_*`: the virtual timer, the physical timer, the performance counters.
const VIRT_TIMER: u64 = 1 << 0;
const PHYS_TIMER: u64 = 1 << 1;
const PMU: u64 = 1 << 2;

fn levels(vcpu: &Vcpu, state: &State) -> u64 {
    let (lines, ppis) = {
        let hw = vcpu.hw.lock();
        (timer::lines(vcpu, &hw), hw.ppis)
    };
    let high = |ppi: u32| lines.high >> ppi & 1 != 0;
    let bit = |bit: u64, set: bool| if set { bit } else { 0 };
    bit(VIRT_TIMER, high(ppis.virt))
        | bit(PHYS_TIMER, high(ppis.phys))
        | bit(PMU, state.pmu.as_ref().is_some_and(|pmu| pmu.line()))
}

/// Whether the VMM must hear of something. The vCPU is loaded here.
pub(super) fn changed(vcpu: &Vcpu, state: &State) -> bool {
    let levels = levels(vcpu, state);
    for (ppi, bit) in [(VIRT_TIMER_PPI, VIRT_TIMER), (PHYS_TIMER_PPI, PHYS_TIMER)] {
        gic::set_private_active(ppi, levels & bit != 0);
    }
    vcpu.timers_high.store(0, Ordering::Relaxed);
    levels != vcpu.page.load_u64(DEVICE_IRQ_LEVEL)
}

/// KVM_RUN ends: the run page says how things stand.
pub(super) fn show(vcpu: &Vcpu, state: &State) {
    // A vCPU that slept until now may have been loaded elsewhere.
    let here = vcpu.hw.lock().regs.hw.is_loaded_here();
    if !here {
        loaded::put(vcpu);
    }
    vcpu.page.store_u64(DEVICE_IRQ_LEVEL, levels(vcpu, state));
}
