//! A guest at virtual EL2: what FEAT_NV2 leaves to umbra.
//!
//! Most of what a guest hypervisor does to its EL2 runs on the hardware: its EL2 translation and
//! exception registers are in the EL1 registers, the others are words of the VNCR page. What traps is
//! emulated here: exception returns (`eret`), the EL2 registers that have neither place (`sysreg`),
//! and maintenance of translations (`tlbi`).
//!
//! *Virtual EL2* includes EL0 under its TGE: nothing changes in hardware between the two.

mod exception;
mod fault;
mod interrupts;
mod route;
mod shadow;
mod switch;
mod sysreg;
mod tlbi;

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_hw::guest::HwPstate;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_linux::Errno;
use umbra_nested::pauth::{Key, Rules};

pub(super) use exception::{
    Exception, deferred, take, takes_external_aborts, takes_serrors, virtual_serror,
    virtual_serror_taken,
};
pub(super) use fault::{shadow as shadow_fault, through_stage2};
pub(super) use interrupts::{
    Below, Ended, collect, load as load_interface, maintenance_line, save as save_interface,
    waits_below,
};
pub(super) use route::{is_theirs, own, routes_interrupts, traps, wishes};
pub(super) use shadow::{Fill, Shadows};
pub(super) use sysreg::{ICC_SRE, access as sysreg, often};

use super::debug;
use super::inject;
use super::run::Next;
use super::vcpu::{State, Vcpu};

/// HCR_EL2.TGE.
const TGE: u64 = 1 << 27;
/// PSTATE.IL.
const IL: u64 = 1 << 20;
const MODE: u64 = 0x1f;
const EL0T: u64 = 0b00000;
const EL1T: u64 = 0b00100;
const EL1H: u64 = 0b00101;
const EL2T: u64 = 0b01000;
const EL2H: u64 = 0b01001;

/// PSTATE as the guest believes it is: virtual EL2 runs as EL1.
pub(super) fn shown_pstate(state: &State) -> u64 {
    let raw = state.frame.pstate().raw();
    match (state.world, raw & MODE) {
        (World::VirtualEl2, EL1H) => raw & !MODE | EL2H,
        (World::VirtualEl2, EL1T) => raw & !MODE | EL2T,
        _ => raw,
    }
}

/// A PSTATE that a guest at virtual EL2 may have, for the hardware; `None` for one it cannot.
pub(super) fn hardware_pstate(raw: u64) -> Option<HwPstate> {
    match raw & MODE {
        EL2H => HwPstate::new(raw & !MODE | EL1H),
        EL2T => HwPstate::new(raw & !MODE | EL1T),
        EL0T => HwPstate::new(raw),
        _ => None,
    }
}

/// ERET, ERETAA or ERETAB at virtual EL2, by the ISS of its trap (Arm ARM, AArch64.ExceptionReturn).
pub(super) fn eret(vcpu: &Arc<Vcpu>, state: &mut State, iss: u32) -> Next {
    let (spsr, elr, hcr) = {
        let hw = vcpu.hw.lock();
        debug::arm(&hw, state);
        (
            hw.regs.get(Reg::SpsrEl2),
            hw.regs.get(Reg::ElrEl2),
            hw.regs.get(Reg::HcrEl2),
        )
    };
    let elr = match Key::of_eret(iss) {
        None => elr,
        Some(key) => match authenticate(vcpu, state, key, elr) {
            Ok(elr) => elr,
            Err(taken) => return taken,
        },
    };
    let host_el0 = spsr & MODE == EL0T && hcr & TGE != 0;
    let to = match spsr & MODE {
        EL2H | EL2T => hardware_pstate(spsr),
        EL0T if host_el0 => hardware_pstate(spsr),
        // EL1 and EL0 of what it runs.
        EL0T | EL1T | EL1H if hcr & TGE == 0 => {
            let Some(pstate) = HwPstate::new(spsr) else {
                return illegal(state, spsr, elr);
            };
            if !switch::enter(vcpu, state, pstate, elr) {
                return Next::Fail(Errno::ENOMEM);
            }
            // An SError that virtual EL2 had masked may be its to take from here.
            return match state.pending_serror {
                Some(_) => Next::Interrupt,
                None => Next::Guest,
            };
        }
        _ => None,
    };
    state.frame.pc = elr;
    match to {
        Some(pstate) => state.frame.set_pstate(pstate),
        None => return illegal(state, spsr, elr),
    }
    Next::Guest
}

/// A PSTATE that a VMM may give a vCPU with EL2, of either world; `None` for none.
pub(super) fn arrival(raw: u64) -> Option<u64> {
    matches!(raw & MODE, EL0T | EL1T | EL1H | EL2T | EL2H).then_some(raw)
}

/// The vCPU is where the VMM put it by its PSTATE, in the world that this and HCR_EL2 name now that all
/// registers are set. False where there is no memory to run it.
pub(super) fn arrive(vcpu: &Arc<Vcpu>, state: &mut State) -> bool {
    let Some(raw) = state.arrival else {
        return true;
    };
    let hcr = {
        let hw = vcpu.hw.lock();
        hw.masks.hcr(hw.regs.get(Reg::HcrEl2))
    };
    let below = match raw & MODE {
        EL0T => hcr & TGE == 0,
        mode => mode == EL1T || mode == EL1H,
    };
    let pstate = if below {
        HwPstate::new(raw)
    } else {
        hardware_pstate(raw)
    };
    if let Some(pstate) = pstate {
        match state.world {
            World::VirtualEl2 if below => {
                if !switch::enter(vcpu, state, pstate, state.frame.pc) {
                    return false;
                }
            }
            World::Nested if !below => switch::leave(vcpu, state),
            World::Plain | World::VirtualEl2 | World::Nested => {}
        }
        state.frame.set_pstate(pstate);
    }
    state.arrival = None;
    true
}

/// Where `signed` leads under the guest's own keys; `Err` where an exception was taken instead.
fn authenticate(vcpu: &Arc<Vcpu>, state: &mut State, key: Key, signed: u64) -> Result<u64, Next> {
    let Some(rules) = Rules::of(&state.id_regs) else {
        inject::undefined(vcpu, state);
        return Err(Next::Guest);
    };
    let (sctlr, tcr, sp) = {
        let hw = vcpu.hw.lock();
        let sp = match state.frame.pstate().raw() & MODE {
            EL1H => Reg::SpEl2,
            _ => Reg::SpEl0,
        };
        let get = |reg| hw.regs.get_any(reg);
        (get(Reg::SctlrEl2), get(Reg::TcrEl2), get(sp))
    };
    if !key.is_enabled(sctlr) || left_out(Safeguard::NestedAuthentication) {
        return Ok(signed);
    }
    let code = |address| umbra_hw::pauth::code(address, sp, key == Key::B);
    rules
        .authenticate(key, signed, tcr, code)
        .map_err(|failed| {
            inject::authentication_failure(vcpu, state, failed.iss);
            Next::Guest
        })
}

/// An illegal exception return: the mode stays, flags, PAN and masks come from SPSR, and the next
/// instruction raises an Illegal State exception.
fn illegal(state: &mut State, spsr: u64, elr: u64) -> Next {
    state.frame.pc = elr;
    const TAKEN: u64 = 0xf000_0000 | 1 << 22 | 0x3c0;
    let now = state.frame.pstate().raw();
    if let Some(pstate) = HwPstate::new(now & !TAKEN | spsr & TAKEN | IL) {
        state.frame.set_pstate(pstate);
    }
    Next::Guest
}
