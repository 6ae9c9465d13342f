//! Between virtual EL2 and what it runs.
//!
//! The EL1 registers of hardware are virtual EL2's while it runs and its guest's while that runs, so
//! the way between the two goes through memory: what is loaded is put away, the other bank is loaded
//! before the next entry. The VNCR page is the save area of the guest's EL1 registers, which is where
//! the guest hypervisor reads and writes them.

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_hw::guest::HwPstate;

use super::super::vcpu::{State, Vcpu, request};
use super::super::{loaded, run};
use super::shown_pstate;

/// Vector offsets of an exception that comes from below virtual EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) enum Vector {
    /// Synchronous, from a lower level in AArch64.
    Sync = 0x400,
}

/// Virtual EL2 returns to EL1 or EL0 of its guest.
pub(super) fn enter(vcpu: &Arc<Vcpu>, state: &mut State, pstate: HwPstate, pc: u64) {
    change(vcpu, state, World::Nested);
    state.frame.pc = pc;
    state.frame.set_pstate(pstate);
}

/// Its guest takes an exception to virtual EL2.
pub(in crate::kvm) fn leave(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    vector: Vector,
    esr: u64,
    far: Option<u64>,
) {
    let from = shown_pstate(state);
    let pc = state.frame.pc;
    change(vcpu, state, World::VirtualEl2);
    let mut hw = vcpu.hw.lock();
    let regs = &mut hw.regs;
    regs.set(Reg::SpsrEl2, from);
    regs.set(Reg::ElrEl2, pc);
    regs.set(Reg::EsrEl2, esr);
    if let Some(far) = far {
        regs.set(Reg::FarEl2, far);
    }
    state.frame.pc = regs.get(Reg::VbarEl2).wrapping_add(vector as u64);
    state.frame.set_pstate(HwPstate::EL1H_MASKED);
}

fn change(vcpu: &Arc<Vcpu>, state: &mut State, world: World) {
    loaded::put(vcpu);
    state.world = world;
    let virtual_el2 = world == World::VirtualEl2;
    // What runs below without a stage 2 has the VM's own space, under a VMID of its own. (A guest
    // hypervisor's stage 2 is not there yet: what it runs sees the VM's memory as it is.)
    let below = vcpu.vm.memory.lock().vttbr_below();
    let theirs = {
        let mut hw = vcpu.hw.lock();
        hw.virtual_el2 = virtual_el2;
        hw.vttbr = match below {
            Some(below) if !virtual_el2 => below,
            _ => vcpu.vm.vttbr,
        };
        hw.regs.get(Reg::HcrEl2)
    };
    state.hcr = run::hcr(state.init.unwrap_or_default(), world)
        | if virtual_el2 { 0 } else { theirs & GUEST_BITS };
    vcpu.vm.gic.relink_timers(vcpu);
    vcpu.kick(request::GIC);
}

/// The bits of a guest hypervisor's HCR_EL2 that hold for its guest in hardware: all but what names
/// umbra's own business. TGE is clear whenever there is a guest to run; API and APK follow the VM.
const GUEST_BITS: u64 =
    !(1 << 27 | 1 << 34 | 1 << 40 | 1 << 41 | 1 << 42 | 1 << 43 | 1 << 45 | 1 << 47);
