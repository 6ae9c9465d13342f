//! Exceptions that umbra takes on behalf of a guest, at EL1 or at the virtual EL2 that runs (Arm ARM D1.3,
//! AArch64.TakeException). From below into virtual EL2: `nested::take`.

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::sysreg::Reg;
use umbra_arm64::{Gva, Hpfar, Ipa, L2Ipa, Level};
use umbra_hw::guest::{HCR_VSE, HwPstate};
use umbra_trace::Injected;

use super::events;
use super::nested::{self, Exception};
use super::vcpu::{Hw, State, Vcpu};

const EC_UNKNOWN: u64 = 0x00;
const EC_HVC: u64 = 0x16;
const EC_FPAC: u64 = 0x1c;
const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_INSTRUCTION_ABORT: u64 = 0x21;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
const EC_DATA_ABORT: u64 = 0x25;
const EC_SERROR: u64 = 0x2f;
const IL: u64 = 1 << 25;
const FSC_EXTERNAL: u64 = 0x10;
const FSC_EXTERNAL_ON_WALK: u64 = 0x14;
const FSC_EXCLUSIVE: u64 = 0x35;

/// Where in a quarter of the vector table an exception of this kind begins.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Sync = 0x000,
    Irq = 0x080,
    SError = 0x180,
}

/// What an exception interrupts.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// As the level that takes it sees it.
    pstate: u64,
    pc: u64,
    /// The quarter of its vector table.
    table: u64,
}

impl Origin {
    /// What runs now.
    pub(super) fn of(state: &State) -> Self {
        let pstate = nested::shown_pstate(state);
        // EL1 of a plain guest, and virtual EL2, take it from themselves or from EL0; virtual EL2 takes it
        // from a lower level where its guest runs.
        let table = match (state.world, state.frame.pstate().raw() & 0xf) {
            (World::Nested, _) | (_, 0) => 0x400,
            (_, 4) => 0x000,
            (_, _) => 0x200,
        };
        Self {
            pstate,
            pc: state.frame.pc,
            table,
        }
    }

    /// The same for EL1 of a guest hypervisor's guest, to which only its EL0 is a lower level.
    fn for_el1(self, state: &State) -> Self {
        let table = match state.frame.pstate().raw() & 0xf {
            0 => 0x400,
            4 => 0x000,
            _ => 0x200,
        };
        Self { table, ..self }
    }
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
    let from = Origin::of(state).for_el1(state);
    enter(hw, state, from, kind, Some(esr), far);
}

/// The level whose world is loaded, EL1 or virtual EL2, takes an exception from `from`.
pub(super) fn enter(
    hw: &mut Hw,
    state: &mut State,
    from: Origin,
    kind: Kind,
    esr: Option<u64>,
    far: Option<u64>,
) {
    if state.world == World::VirtualEl2 {
        enter_bank(hw, state, VIRTUAL_EL2, from, kind, (esr, far));
    } else {
        enter_bank(hw, state, EL1, from, kind, (esr, far));
    }
}

#[inline(always)]
fn enter_bank(
    hw: &mut Hw,
    state: &mut State,
    bank: Bank,
    from: Origin,
    kind: Kind,
    (esr, far): (Option<u64>, Option<u64>),
) {
    let virtual_el2 = state.world == World::VirtualEl2;
    let regs = &mut hw.regs;
    regs.set(bank.elr, from.pc);
    regs.set(bank.spsr, from.pstate);
    if let Some(esr) = esr {
        regs.set(bank.esr, esr);
    }
    if let Some(far) = far {
        regs.set(bank.far, far);
    }
    let sctlr = regs.get(bank.sctlr);
    const PAN: u64 = 1 << 22;
    const SPAN: u64 = 1 << 23;
    const TGE: u64 = 1 << 27;
    // Kept: N Z C V, DIT, PAN. Set: D A I F, PAN without SPAN (EL2 has SPAN under TGE only), SSBS as
    // DSSBS, TCO with MTE (hidden).
    let mut new = from.pstate & (0xf000_0000 | 1 << 24 | PAN) | 0x3c5;
    let has_span = !virtual_el2 || regs.get(Reg::HcrEl2) & TGE != 0;
    if has_span && sctlr & SPAN == 0 {
        new |= PAN;
    }
    if sctlr >> 44 & 1 == 1 {
        new |= 1 << 12;
    }
    state.frame.pc = regs.get(bank.vbar).wrapping_add(from.table + kind as u64);
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

/// An address was not what its signature says (FEAT_FPAC), to the level that authenticated it.
pub(super) fn authentication_failure(vcpu: &Arc<Vcpu>, state: &mut State, iss: u32) {
    let esr = EC_FPAC << 26 | IL | u64::from(iss);
    events::inject(vcpu, state, Injected::AuthenticationFailure, esr, None);
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

/// An external abort with this ISS: virtual EL2 takes it of its guest if it asked for that (HCR_EL2.TEA),
/// with the page in its guest's space where that is known; else the level that runs the show.
pub(super) fn abort(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    instruction: bool,
    iss: u64,
    far: Option<u64>,
    page: Option<L2Ipa>,
) {
    if nested::takes_external_aborts(&vcpu.hw.lock()) {
        let class = if instruction {
            EC_INSTRUCTION_ABORT_LOWER
        } else {
            EC_DATA_ABORT_LOWER
        };
        let exception = Exception::Sync {
            esr: class << 26 | IL | iss,
            far,
            hpfar: page.map(|page| Hpfar::from_page(page).raw()),
        };
        return nested::take(vcpu, state, exception);
    }
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
    let esr = abort_class(state, instruction) << 26 | IL | status;
    events::inject(vcpu, state, Injected::ExternalAbort, esr, Some(far.raw()));
    abort(vcpu, state, instruction, status, Some(far.raw()), None);
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
    if let Some(syndrome) = state.pending_serror
        && state.hcr & HCR_VSE == 0
    {
        events::inject(vcpu, state, Injected::SError, serror_iss(syndrome), None);
    }
    if let Some(syndrome) = state.pending_serror
        && nested::takes_serrors(&vcpu.hw.lock())
    {
        state.pending_serror = None;
        let esr = EC_SERROR << 26 | IL | serror_iss(syndrome);
        nested::take(vcpu, state, Exception::SError { esr });
    }
    let hw = vcpu.hw.lock();
    offer_serror(&hw, state);
}

/// The ISS of an SError; without a syndrome of the VMM's: IMPLEMENTATION DEFINED (IDS).
fn serror_iss(syndrome: Option<u32>) -> u64 {
    const ISS: u64 = (1 << 25) - 1;
    syndrome.map_or(1 << 24, u64::from) & ISS
}

/// Hardware holds a virtual SError until what runs unmasks it: the one that umbra has for it, or that a
/// guest hypervisor has for its guest.
pub(super) fn offer_serror(hw: &Hw, state: &mut State) {
    let own = state.pending_serror.filter(|_| !nested::takes_serrors(hw));
    let waits = own.map(serror_iss);
    match waits.or_else(|| nested::virtual_serror(hw)) {
        Some(iss) => {
            if state.features.ras {
                umbra_hw::guest::set_serror_syndrome(iss);
            }
            state.hcr |= HCR_VSE;
        }
        None => state.hcr &= !HCR_VSE,
    }
}

/// After an exit: whether hardware delivered the virtual SError.
pub(super) fn collect_serror(vcpu: &Vcpu, state: &mut State) {
    if state.hcr & HCR_VSE == 0 || umbra_hw::guest::serror_waits() {
        return;
    }
    state.hcr &= !HCR_VSE;
    if state.pending_serror.take().is_none() {
        nested::virtual_serror_taken(&mut vcpu.hw.lock());
    }
}

/// The level of the stage-1 descriptor in the page `ipa` that the walk for `va` met: found by walking
/// again. `None` where the walk does not come by.
pub(super) fn stage1_level(vcpu: &Arc<Vcpu>, state: &State, va: Gva, ipa: Ipa) -> Option<Level> {
    super::stage1::level_of(vcpu, state, va, ipa)
}
