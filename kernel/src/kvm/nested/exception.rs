//! Exceptions that virtual EL2 takes, from wherever the vCPU is (Arm ARM D1.3, AArch64.TakeException).
//!
//! [`take`] is the one way in: from what the guest hypervisor runs it goes by a world switch, from
//! virtual EL2 itself and from EL0 under its TGE without one. Whether an exception is virtual EL2's at
//! all is asked before ([`takes_external_aborts`], [`takes_serrors`], `route`).

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_hw::guest::Deferred;
use umbra_hw::sabotage::{Safeguard, left_out};

use super::super::events;
use super::super::inject::{self, Kind, Origin};
use super::super::vcpu::{Hw, State, Vcpu};
use super::{TGE, switch};

/// An exception for virtual EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) enum Exception {
    /// Synchronous.
    Sync {
        /// ESR_EL2, of the class that the exception has where it comes from.
        esr: u64,
        /// FAR_EL2, where the class has one.
        far: Option<u64>,
        /// HPFAR_EL2, for faults of stage 2.
        hpfar: Option<u64>,
    },
    /// An interrupt, which virtual EL2 finds in its virtual CPU interface.
    Irq,
    /// SError.
    SError {
        /// ESR_EL2.
        esr: u64,
    },
}

/// Virtual EL2 takes `exception`. The PC must be past the instruction already where it has been done.
pub(in crate::kvm) fn take(vcpu: &Arc<Vcpu>, state: &mut State, exception: Exception) {
    let from = Origin::of(state);
    if state.world == World::Nested {
        events::nested_exception(vcpu, state.frame.pc, exception);
        switch::leave(vcpu, state);
    }
    let (kind, esr, far, hpfar) = match exception {
        Exception::Sync { esr, far, hpfar } => (Kind::Sync, Some(esr), far, hpfar),
        Exception::Irq => (Kind::Irq, None, None, None),
        Exception::SError { esr } => (Kind::SError, Some(esr), None, None),
    };
    let mut hw = vcpu.hw.lock();
    if let Some(hpfar) = hpfar {
        hw.regs.set(Reg::HpfarEl2, hpfar);
    }
    inject::enter(&mut hw, state, from, kind, esr, far);
}

fn hcr(hw: &Hw) -> u64 {
    hw.masks.hcr(hw.regs.get(Reg::HcrEl2))
}

/// Whether the guest hypervisor takes external aborts of what it runs (HCR_EL2.TEA, TGE).
pub(in crate::kvm) fn takes_external_aborts(hw: &Hw) -> bool {
    const TEA: u64 = 1 << 37;
    !left_out(Safeguard::SeaRoute) && hw.is_below() && hcr(hw) & (TGE | TEA) != 0
}

/// HCR_EL2.AMO: SErrors of what it runs are the guest hypervisor's, and it may make virtual ones.
const AMO: u64 = 1 << 5;

/// Whether the guest hypervisor takes SErrors of what it runs (HCR_EL2.AMO, TGE). Nothing below can
/// mask them then.
pub(in crate::kvm) fn takes_serrors(hw: &Hw) -> bool {
    hw.is_below() && hcr(hw) & (TGE | AMO) != 0
}

/// Whose deferred SErrors what runs would find in DISR_EL1.
pub(in crate::kvm) fn deferred(hw: &Hw) -> Deferred {
    if hw.is_below() && hcr(hw) & AMO != 0 {
        Deferred::Below
    } else {
        Deferred::Own
    }
}

/// HCR_EL2.VSE.
const VSE: u64 = 1 << 8;

/// The syndrome of the virtual SError that the guest hypervisor made pending for what it runs.
pub(in crate::kvm) fn virtual_serror(hw: &Hw) -> Option<u64> {
    (hw.is_below() && hcr(hw) & (AMO | VSE) == AMO | VSE).then(|| hw.regs.get(Reg::VsesrEl2))
}

/// Its guest took the virtual SError: HCR_EL2.VSE is clear.
pub(in crate::kvm) fn virtual_serror_taken(hw: &mut Hw) {
    let hcr = hw.regs.get(Reg::HcrEl2);
    hw.regs.set(Reg::HcrEl2, hcr & !VSE);
}
