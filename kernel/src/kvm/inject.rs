//! Exceptions that umbra takes on behalf of a plain guest, at its EL1 (Arm ARM D1.3, AArch64.TakeException).

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_arm64::{Gva, Ipa, Level};
use umbra_hw::guest::{HCR_VSE, HwPstate};
use umbra_trace::Injected;

use super::vcpu::{Hw, State, Vcpu};
use super::{events, nested};

const EC_UNKNOWN: u64 = 0x00;
const EC_HVC: u64 = 0x16;
const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_INSTRUCTION_ABORT: u64 = 0x21;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
const EC_DATA_ABORT: u64 = 0x25;
const IL: u64 = 1 << 25;
const FSC_EXTERNAL: u64 = 0x10;
const FSC_EXTERNAL_ON_WALK: u64 = 0x14;
const FSC_EXCLUSIVE: u64 = 0x35;

/// Where in the vector table an exception of this kind begins.
#[derive(Clone, Copy)]
enum Kind {
    Sync = 0x000,
}

fn from_el0(state: &State) -> bool {
    state.frame.pstate().raw() & 0xf == 0
}

/// The registers of the level that takes the exception.
struct Bank {
    elr: Reg,
    spsr: Reg,
    esr: Reg,
    far: Reg,
    sctlr: Reg,
    vbar: Reg,
}

const EL1: Bank = Bank {
    elr: Reg::ElrEl1,
    spsr: Reg::SpsrEl1,
    esr: Reg::EsrEl1,
    far: Reg::FarEl1,
    sctlr: Reg::SctlrEl1,
    vbar: Reg::VbarEl1,
};

const VIRTUAL_EL2: Bank = Bank {
    elr: Reg::ElrEl2,
    spsr: Reg::SpsrEl2,
    esr: Reg::EsrEl2,
    far: Reg::FarEl2,
    sctlr: Reg::SctlrEl2,
    vbar: Reg::VbarEl2,
};

/// Takes an exception to the level that runs the show, EL1 or virtual EL2: ESR, FAR where it has
/// one, and the vector.
fn take(hw: &mut Hw, state: &mut State, kind: Kind, esr: u64, far: Option<u64>) {
    let bank = if state.world == World::VirtualEl2 {
        VIRTUAL_EL2
    } else {
        EL1
    };
    let old = state.frame.pstate().raw();
    let table = match old & 0xf {
        0 => 0x400,
        4 => 0x000,
        _ => 0x200,
    };
    let regs = &mut hw.regs;
    regs.set(bank.elr, state.frame.pc);
    regs.set(bank.spsr, nested::shown_pstate(state));
    regs.set(bank.esr, esr);
    if let Some(far) = far {
        regs.set(bank.far, far);
    }
    let sctlr = regs.get(bank.sctlr);
    const PAN: u64 = 1 << 22;
    // Kept: N Z C V, DIT, PAN. Set: D A I F, PAN without SPAN, SSBS as DSSBS, TCO with MTE (hidden).
    let mut new = old & (0xf000_0000 | 1 << 24 | PAN) | 0x3c5;
    if sctlr & 1 << 23 == 0 {
        new |= PAN;
    }
    if sctlr >> 44 & 1 == 1 {
        new |= 1 << 12;
    }
    state.frame.pc = regs.get(bank.vbar).wrapping_add(table + kind as u64);
    if let Some(pstate) = HwPstate::new(new) {
        state.frame.set_pstate(pstate);
    }
}

/// An exception of unknown reason: the instruction is undefined to the guest.
pub(super) fn undefined(vcpu: &Arc<Vcpu>, state: &mut State) {
    events::inject(
        vcpu,
        state,
        Injected::Undefined,
        EC_UNKNOWN << 26 | IL,
        None,
    );
    take(
        &mut vcpu.hw.lock(),
        state,
        Kind::Sync,
        EC_UNKNOWN << 26 | IL,
        None,
    );
}

/// HVC at virtual EL2 goes to virtual EL2 itself.
pub(super) fn hypervisor_call(vcpu: &Arc<Vcpu>, state: &mut State, immediate: u16) {
    let esr = EC_HVC << 26 | IL | u64::from(immediate);
    events::inject(vcpu, state, Injected::HypervisorCall, esr, None);
    take(&mut vcpu.hw.lock(), state, Kind::Sync, esr, None);
}

fn abort_class(state: &State, instruction: bool) -> u64 {
    match (instruction, from_el0(state)) {
        (true, true) => EC_INSTRUCTION_ABORT_LOWER,
        (true, false) => EC_INSTRUCTION_ABORT,
        (false, true) => EC_DATA_ABORT_LOWER,
        (false, false) => EC_DATA_ABORT,
    }
}

/// An abort with this ISS, at the level that runs the show.
pub(super) fn abort(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    instruction: bool,
    iss: u64,
    far: Option<u64>,
) {
    let esr = abort_class(state, instruction) << 26 | IL | iss;
    take(&mut vcpu.hw.lock(), state, Kind::Sync, esr, far);
}

/// A synchronous external abort, on the access or, with a level, on the stage-1 walk for it.
pub(super) fn external_abort(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    instruction: bool,
    far: Gva,
    walk_level: Option<Level>,
) {
    let status = match walk_level {
        Some(level) => FSC_EXTERNAL_ON_WALK.wrapping_add_signed(level.number().into()),
        None => FSC_EXTERNAL,
    };
    if state.world == World::Nested && super::sea::nested_takes(vcpu) {
        let class = if instruction {
            EC_INSTRUCTION_ABORT_LOWER
        } else {
            EC_DATA_ABORT_LOWER
        };
        let esr = class << 26 | IL | status;
        events::inject(vcpu, state, Injected::ExternalAbort, esr, Some(far.raw()));
        let vector = nested::Vector::Sync;
        return nested::leave(vcpu, state, vector, Some(esr), Some(far.raw()));
    }
    let esr = abort_class(state, instruction) << 26 | IL | status;
    events::inject(vcpu, state, Injected::ExternalAbort, esr, Some(far.raw()));
    take(&mut vcpu.hw.lock(), state, Kind::Sync, esr, Some(far.raw()));
}

/// An address-size fault, level 0.
pub(super) fn address_size(vcpu: &Arc<Vcpu>, state: &mut State, instruction: bool, far: Gva) {
    let esr = abort_class(state, instruction) << 26 | IL;
    events::inject(vcpu, state, Injected::AddressSize, esr, Some(far.raw()));
    take(&mut vcpu.hw.lock(), state, Kind::Sync, esr, Some(far.raw()));
}

/// An exclusive or atomic access where memory does not support it.
pub(super) fn exclusive(vcpu: &Arc<Vcpu>, state: &mut State, far: Gva) {
    let esr = abort_class(state, false) << 26 | IL | FSC_EXCLUSIVE;
    events::inject(vcpu, state, Injected::Exclusive, esr, Some(far.raw()));
    take(&mut vcpu.hw.lock(), state, Kind::Sync, esr, Some(far.raw()));
}

/// What the VMM or an earlier exit asked for, before the guest is entered.
pub(super) fn pending(vcpu: &Arc<Vcpu>, state: &mut State) {
    let told = state.told.take();
    if state.pending_abort {
        state.pending_abort = false;
        super::sea::inject(vcpu, state, told);
    }
    // Hardware holds a virtual SError until the guest unmasks it.
    match state.pending_serror {
        Some(syndrome) => {
            if state.hcr & HCR_VSE == 0 {
                let esr = syndrome.map_or(1 << 24, u64::from);
                events::inject(vcpu, state, Injected::SError, esr, None);
            }
            if state.features.ras {
                // Without a syndrome of the VMM's: IMPLEMENTATION DEFINED (IDS).
                umbra_hw::guest::set_serror_syndrome(syndrome.map_or(1 << 24, u64::from));
            }
            state.hcr |= HCR_VSE;
        }
        None => state.hcr &= !HCR_VSE,
    }
}

/// The level of the stage-1 descriptor in the page `ipa` that the walk for `va` met: found by walking
/// again. `None` where the walk does not come by.
pub(super) fn stage1_level(vcpu: &Arc<Vcpu>, state: &State, va: Gva, ipa: Ipa) -> Option<Level> {
    super::stage1::level_of(vcpu, state, va, ipa)
}
