//! Between virtual EL2 and what it runs.
//!
//! The EL1 registers of hardware are virtual EL2's while it runs and its guest's while that runs. The
//! vCPU stays loaded on the way: that one set changes its owner, and with it the stage 2, the traps,
//! the identity, the counter's offset and the virtual CPU interface. The VNCR page is the save area of
//! the guest's EL1 registers, which is where the guest hypervisor reads and writes them. General
//! registers, FP, PAuth keys and the EL0 registers are one for both and stay where they are.

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_hw::guest::HwPstate;
use umbra_nested::shadow::{ContextId, ContextKey};

use super::super::gic::deliver;
use super::super::vcpu::{State, Vcpu, request};
use super::super::{debug, events, inject, loaded, pmu, timer};
use super::route;
use super::shadow::Acquired;

/// Virtual EL2 returns to EL1 or EL0 of its guest. Returns false where there is no memory to run it.
pub(super) fn enter(vcpu: &Arc<Vcpu>, state: &mut State, pstate: HwPstate, pc: u64) -> bool {
    let key = {
        let hw = vcpu.hw.lock();
        let hcr = hw.masks.hcr(hw.regs.get(Reg::HcrEl2));
        ContextKey::new(hw.regs.get(Reg::VttbrEl2), hw.regs.get(Reg::VtcrEl2), hcr)
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

/// From what a guest hypervisor runs to virtual EL2; the exception is the caller's to tell.
pub(super) fn leave(vcpu: &Arc<Vcpu>, state: &mut State) {
    let left = vcpu.hw.lock().shadow;
    change(vcpu, state, World::VirtualEl2, None, vcpu.vm.vttbr());
    if let Some(left) = left {
        vcpu.vm.memory.lock().shadows.release(left);
    }
}

fn change(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    world: World,
    shadow: Option<ContextId>,
    vttbr: u64,
) {
    vcpu.stats.begin(world);
    loaded::load(vcpu);
    let (kicks, ended) = {
        let mut hw = vcpu.hw.lock();
        let put = loaded::put_interface(vcpu, &mut hw);
        hw.virtual_el2 = world == World::VirtualEl2;
        hw.shadow = shadow;
        hw.vttbr = vttbr;
        timer::adopt_offsets(vcpu, &mut hw);
        let wishes = route::wishes(&hw);
        let machine = loaded::machine(vcpu, &hw, &wishes);
        hw.regs.hw.switch(&machine);
        loaded::load_interface(&mut hw);
        state.world = world;
        state.hcr = wishes.hcr;
        inject::offer_serror(&hw, state);
        debug::arm(&hw, state);
        put
    };
    pmu::follow(vcpu, state);
    deliver(&vcpu.vm, kicks);
    ended.deliver(vcpu);
    vcpu.vm.gic.relink_timers(vcpu);
    vcpu.kick(request::GIC);
}
