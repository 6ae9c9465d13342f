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
use umbra_nested::shadow::{ContextId, ContextKey};

use super::super::vcpu::{Hw, State, Vcpu, request};
use super::super::{events, loaded, run};
use super::shadow::Acquired;
use super::shown_pstate;

const FMO: u64 = 1 << 3;
const IMO: u64 = 1 << 4;
/// The bits of a guest hypervisor's HCR_EL2 that hold for its guest in hardware: all but what names
/// umbra's own business (TGE, E2H, API, APK, NV, NV1, NV2, FIEN).
const GUEST_BITS: u64 =
    !(1 << 27 | 1 << 34 | 1 << 40 | 1 << 41 | 1 << 42 | 1 << 43 | 1 << 45 | 1 << 47);

/// Vector offsets of an exception that comes from below virtual EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kvm) enum Vector {
    /// Synchronous, from a lower level in AArch64.
    Sync = 0x400,
    /// An interrupt.
    Irq = 0x480,
}

/// Virtual EL2 returns to EL1 or EL0 of its guest. Returns false where there is no memory to run it.
pub(super) fn enter(vcpu: &Arc<Vcpu>, state: &mut State, pstate: HwPstate, pc: u64) -> bool {
    let key = {
        let hw = vcpu.hw.lock();
        let get = |reg| hw.regs.get(reg);
        ContextKey::new(get(Reg::VttbrEl2), get(Reg::VtcrEl2), get(Reg::HcrEl2))
    };
    let Some((shadow, vttbr)) = space(vcpu, key) else {
        return false;
    };
    events::nested_entry(vcpu, pc, shadow);
    change(vcpu, state, World::Nested, shadow, vttbr);
    state.frame.pc = pc;
    state.frame.set_pstate(pstate);
    true
}

/// The shadow for what the guest hypervisor runs, and VTTBR_EL2 for it.
fn space(vcpu: &Vcpu, key: ContextKey) -> Option<(Option<ContextId>, u64)> {
    if !key.is_translated() {
        // Without a stage 2 of its own, the VM's space under a VMID of its own.
        let vttbr = vcpu.vm.memory.lock().vttbr_below(key.vmid());
        return vttbr.map(|vttbr| (None, vttbr));
    }
    loop {
        let acquired = vcpu.vm.memory.lock().shadows.acquire(key, &vcpu.vm.machine);
        match acquired {
            Acquired::Context(id, vttbr) => return Some((Some(id), vttbr)),
            Acquired::Again => crate::irq::poll(),
            Acquired::NoMemory => return None,
        }
    }
}

/// Its guest takes an exception to virtual EL2.
pub(in crate::kvm) fn leave(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    vector: Vector,
    esr: Option<u64>,
    far: Option<u64>,
) {
    let from = shown_pstate(state);
    let pc = state.frame.pc;
    events::nested_exception(vcpu, pc, vector, esr);
    let left = vcpu.hw.lock().shadow;
    change(vcpu, state, World::VirtualEl2, None, vcpu.vm.vttbr);
    if let Some(left) = left {
        vcpu.vm.memory.lock().shadows.release(left);
    }
    let mut hw = vcpu.hw.lock();
    let regs = &mut hw.regs;
    regs.set(Reg::SpsrEl2, from);
    regs.set(Reg::ElrEl2, pc);
    if let Some(esr) = esr {
        regs.set(Reg::EsrEl2, esr);
    }
    if let Some(far) = far {
        regs.set(Reg::FarEl2, far);
    }
    state.frame.pc = regs.get(Reg::VbarEl2).wrapping_add(vector as u64);
    state.frame.set_pstate(HwPstate::EL1H_MASKED);
}

fn change(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    world: World,
    shadow: Option<ContextId>,
    vttbr: u64,
) {
    loaded::put(vcpu);
    state.world = world;
    vcpu.stats.begin(world);
    let virtual_el2 = world == World::VirtualEl2;
    let theirs = {
        let mut hw = vcpu.hw.lock();
        hw.virtual_el2 = virtual_el2;
        hw.shadow = shadow;
        hw.vttbr = vttbr;
        hw.regs.get(Reg::HcrEl2)
    };
    let ctr = state.id_regs.get(umbra_arm64::sysreg::SysReg::CTR_EL0);
    state.hcr = run::hcr(state.init.unwrap_or_default(), world, ctr)
        | if virtual_el2 { 0 } else { theirs & GUEST_BITS };
    vcpu.vm.gic.relink_timers(vcpu);
    vcpu.kick(request::GIC);
}

/// Whether the guest hypervisor takes interrupts of what it runs, whose list registers are then its
/// own.
pub(in crate::kvm) fn routes_interrupts(hw: &Hw) -> bool {
    hw.nested && !hw.virtual_el2 && hw.regs.get(Reg::HcrEl2) & (IMO | FMO) != 0
}

/// Whether the guest hypervisor traps FP of what it runs (CPTR_EL2.FPEN, E2H form).
pub(in crate::kvm) fn traps_fp(hw: &Hw) -> bool {
    hw.nested && !hw.virtual_el2 && hw.regs.get(Reg::CptrEl2) >> 20 & 1 == 0
}
