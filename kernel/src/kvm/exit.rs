//! What a guest's exit was, and who sees to it.

use alloc::sync::Arc;

use umbra_abort::{Abort, Context, SErrorEffect, World, classify, device_access};
use umbra_arm64::esr::{SysRegTrap, WfxKind};
use umbra_arm64::{Ec, Esr, Gva, Hpfar, Ipa, L2Ipa, Syndrome};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_kvm_abi::exit::{Exit as VmmExit, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON};

use super::run::Next;
use super::vcpu::{State, Vcpu, has_ras};
use super::{debug, fault, firmware, inject, nested, sea, sysreg};
use crate::poison;

/// A synchronous exit.
pub(super) fn sync(vcpu: &Arc<Vcpu>, state: &mut State, esr: u64, far: u64, hpfar: u64) -> Next {
    let esr = Esr::new(esr);
    // What a guest does most, by the shortest way to the same end.
    if state.world == World::Plain {
        if esr.is(Ec::Hvc) {
            if firmware::is_nobodys(vcpu, state) {
                return Next::Guest;
            }
            return firmware::call(vcpu, state, false);
        }
        if let Some(device) = device_access(esr, Gva::new(far), Hpfar::new(hpfar))
            && fault::is_device(vcpu, device.ipa)
        {
            return fault::device(vcpu, state, far, device);
        }
    }
    if state.world != World::Nested && esr.is(Ec::SysReg) {
        let trap = SysRegTrap::decode(esr.iss());
        if state.world == World::VirtualEl2 && nested::often(vcpu, state, trap) {
            skip(state);
            return Next::Guest;
        }
        return sysreg::access(vcpu, state, trap);
    }
    // Aborts are decoded once, by `classify`.
    if esr.is(Ec::DataAbortLower) || esr.is(Ec::InstructionAbortLower) {
        return abort(vcpu, state, esr, far, hpfar);
    }
    if let Some(next) = debug::exit(state, esr.ec(), esr.raw(), far) {
        return next;
    }
    if state.world == World::Nested && nested::is_theirs(&vcpu.hw.lock(), state, esr.syndrome()) {
        let exception = nested::Exception::Sync {
            esr: esr.raw() & 0xffff_ffff,
            // Of what is forwarded only a watchpoint has an address.
            far: (esr.ec() == Ec::WatchpointLower).then_some(far),
            hpfar: None,
        };
        nested::take(vcpu, state, exception);
        return Next::Guest;
    }
    match esr.syndrome() {
        Syndrome::Wfx(wfx) => {
            skip(state);
            match wfx.kind {
                WfxKind::Wfi | WfxKind::Wfit => Next::Wait,
                WfxKind::Wfe | WfxKind::Wfet => Next::Interrupt,
            }
        }
        Syndrome::Hvc(immediate) if state.world == World::VirtualEl2 => {
            inject::hypervisor_call(vcpu, state, immediate);
            Next::Guest
        }
        Syndrome::Eret(iss) if state.world == World::VirtualEl2 => nested::eret(vcpu, state, iss),
        Syndrome::Hvc(_) => firmware::call(vcpu, state, false),
        // An SMC traps before it takes effect: PC is still on it (Arm ARM D1.3.5).
        Syndrome::Smc(immediate) => {
            skip(state);
            if immediate == 0 {
                firmware::call(vcpu, state, true)
            } else {
                state.frame.x[0] = u64::MAX;
                Next::Guest
            }
        }
        Syndrome::SysReg(trap) => sysreg::access(vcpu, state, trap),
        Syndrome::DataAbort { .. }
        | Syndrome::InstructionAbort { .. }
        | Syndrome::SError(_)
        | Syndrome::IllegalState => abort(vcpu, state, esr, far, hpfar),
        Syndrome::FpAccess
        | Syndrome::SveAccess
        | Syndrome::SmeAccess
        | Syndrome::PointerAuth
        | Syndrome::Eret(_)
        | Syndrome::Svc(_)
        | Syndrome::Other(_) => undefined(vcpu, state, esr),
    }
}

/// What the guest does not have is undefined to it.
fn undefined(vcpu: &Arc<Vcpu>, state: &mut State, esr: Esr) -> Next {
    if esr.ec() == Ec::from_number(0) {
        log::warn!("vCPU {} exits with an unknown reason", vcpu.id);
    }
    inject::undefined(vcpu, state);
    Next::Guest
}

// Of its two callers one is hot, and a first touch pays 50 instructions for the call.
#[inline(always)]
fn abort(vcpu: &Arc<Vcpu>, state: &mut State, esr: Esr, far: u64, hpfar: u64) -> Next {
    let context = Context {
        ras: has_ras(),
        world: state.world,
    };
    let on_shadow = state.world != World::Plain
        && vcpu.hw.lock().shadow.is_some()
        && !left_out(Safeguard::NestedSpace);
    if on_shadow
        && let Abort::Stage2(fault) =
            classify::<L2Ipa>(esr, Gva::new(far), Some(Hpfar::new(hpfar)), context)
    {
        // The reverse map grows by this, and a guest may fault without ever leaving to the VMM.
        crate::mem::top_up();
        let next = nested::shadow_fault(vcpu, state, esr, fault);
        sea::follow(vcpu, state);
        return next;
    }
    match classify::<Ipa>(esr, Gva::new(far), Some(Hpfar::new(hpfar)), context) {
        Abort::Stage2(fault) => {
            let next = fault::stage2(vcpu, state, esr, fault);
            sea::follow(vcpu, state);
            next
        }
        Abort::Sea(sea) if sea.is_uncontainable() => poison::uncontainable(),
        Abort::Sea(sea) => sea::met(vcpu, state, &sea),
        Abort::SError(effect) => serror_effect(vcpu, state, effect),
        Abort::TlbConflict => {
            // Under the VMID that ran: a shadow's, if it was one.
            let vttbr = vcpu.hw.lock().vttbr;
            umbra_hw::tlb::Stage2::with(vttbr, umbra_hw::tlb::Stage2::all);
            Next::Guest
        }
        Abort::UnsupportedExclusive { gva } => {
            inject::exclusive(vcpu, state, gva);
            Next::Guest
        }
        Abort::Unexpected {
            instruction, gva, ..
        } => {
            inject::external_abort(vcpu, state, instruction, gva, None);
            Next::Guest
        }
        Abort::IllegalReturn | Abort::Vncr(_) | Abort::AtEl2 | Abort::NotAnAbort(_) => {
            log::error!(
                "vCPU {}: exit that no guest can cause, ESR {:#x}",
                vcpu.id,
                esr.raw()
            );
            Next::Vmm(VmmExit::InternalError {
                suberror: KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                data: [esr.raw(), far, hpfar],
                count: 3,
            })
        }
    }
}

/// An asynchronous physical SError while the guest ran.
pub(super) fn serror(vcpu: &Arc<Vcpu>, state: &mut State, esr: u64) -> Next {
    let context = Context {
        ras: has_ras(),
        world: state.world,
    };
    match classify::<Ipa>(Esr::new(esr), Gva::new(0), None, context) {
        Abort::SError(effect) => serror_effect(vcpu, state, effect),
        _ => Next::Guest,
    }
}

fn serror_effect(vcpu: &Arc<Vcpu>, state: &mut State, effect: SErrorEffect) -> Next {
    match effect {
        SErrorEffect::Resume => log::warn!("vCPU {}: a corrected memory error", vcpu.id),
        SErrorEffect::InjectIntoGuest => {
            state.pending_serror = Some(None);
            // Entered anew, which makes it pending.
            return Next::Interrupt;
        }
        SErrorEffect::Fatal => poison::uncontainable(),
    }
    Next::Guest
}

/// Past the instruction that trapped: four bytes, there is no AArch32.
pub(super) fn skip(state: &mut State) {
    state.frame.pc = state.frame.pc.wrapping_add(4);
    debug::stepped(state);
}

/// The value of general register `n` of an instruction, 31 being zero.
pub(super) fn read_x(state: &State, n: u8) -> u64 {
    state.frame.x.get(usize::from(n)).copied().unwrap_or(0)
}

/// Sets general register `n` of an instruction; 31 goes nowhere.
pub(super) fn write_x(state: &mut State, n: u8, value: u64) {
    if let Some(x) = state.frame.x.get_mut(usize::from(n)) {
        *x = value;
    }
}
