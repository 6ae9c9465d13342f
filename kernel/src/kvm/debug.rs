//! Debugging: a guest's own breakpoints, watchpoints and single step, and the VMM's of the guest
//! (KVM_SET_GUEST_DEBUG).
//!
//! ```text
//!   the VMM's, if it enabled any ─► hardware has them, exceptions go to EL2: KVM_EXIT_DEBUG
//!   else the guest's, if MDSCR_EL1 has one of them on and the OS lock is open ─► hardware has those
//!   else ─► nothing: an entry costs nothing
//! ```
//!
//! The registers are state; guests' accesses trap, but for MDSCR_EL1 at virtual EL2, which FEAT_NV2 keeps in the
//! register page and which is looked at when virtual EL2 returns from an exception or is left. While the VMM
//! debugs, the guest's own debugging rests, as on Linux.
//!
//! PSTATE.SS exists once and single step has two users. While KVM_RUN steps for the VMM it is the VMM's, and
//! the guest's waits in [`Debug`]; between calls it is the guest's.

use alloc::boxed::Box;

use umbra_arm64::Ec;
use umbra_arm64::sysreg::Reg;
use umbra_hw::debug::{DebugRegs, MDSCR_KDE, MDSCR_MDE, MDSCR_SS};
use umbra_hw::guest::{Frame, HwPstate};
use umbra_kvm_abi::exit::Exit as VmmExit;
use umbra_kvm_abi::vcpu::{
    GuestDebug, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW,
    KVM_GUESTDBG_VALID_MASK,
};
use umbra_linux::Errno;

use super::run::Next;
use super::vcpu::{Hw, State, Vcpu};

/// PSTATE.SS: the next instruction is executed before the step exception.
const SS: u64 = 1 << 21;
/// OSLSR_EL1.OSLK.
const OSLK: u64 = 1 << 1;

/// Who debugs a vCPU, and how.
#[derive(Default)]
pub(super) struct Debug {
    /// `KVM_GUESTDBG_*`; 0 while the VMM does not debug.
    control: u32,
    /// The VMM's breakpoints and watchpoints.
    theirs: Option<Box<DebugRegs>>,
    /// What hardware holds while the guest runs.
    loaded: Option<Box<DebugRegs>>,
    /// The VMM's step has been made and its exception not been told.
    step_pending: bool,
    /// The guest's PSTATE.SS, while PSTATE has the VMM's.
    guest_ss: Option<bool>,
}

impl Debug {
    /// What hardware needs for the next entry.
    pub(super) fn loaded(&self) -> Option<&DebugRegs> {
        self.loaded.as_deref()
    }

    fn steps(&self) -> bool {
        self.control & KVM_GUESTDBG_SINGLESTEP != 0
    }

    /// KVM_RUN begins, or what it runs was reset: PSTATE.SS is the VMM's if it steps.
    pub(super) fn begin(&mut self, frame: &mut Frame) {
        if self.steps() && self.guest_ss.is_none() {
            self.guest_ss = Some(frame.pstate().raw() & SS != 0);
            set_ss(frame, !self.step_pending);
        }
    }

    /// KVM_RUN ends, or what it runs is to be reset: PSTATE.SS is the guest's. Whether it was not.
    pub(super) fn end(&mut self, frame: &mut Frame) -> bool {
        let Some(guests) = self.guest_ss.take() else {
            return false;
        };
        self.step_pending = frame.pstate().raw() & SS == 0;
        set_ss(frame, guests);
        true
    }
}

fn set_ss(frame: &mut Frame, set: bool) {
    let raw = frame.pstate().raw();
    if let Some(pstate) = HwPstate::new(if set { raw | SS } else { raw & !SS }) {
        frame.set_pstate(pstate);
    }
}

/// After an instruction was done for what runs: a step that covers it has been made (Arm ARM D2.11).
pub(super) fn stepped(state: &mut State) {
    if state.debug.loaded.is_some() {
        set_ss(&mut state.frame, false);
    }
}

/// KVM_SET_GUEST_DEBUG. `EINVAL`: a flag that arm64 does not know.
pub(super) fn set(vcpu: &Vcpu, state: &mut State, debug: &GuestDebug) -> Result<u64, Errno> {
    if debug.control & !KVM_GUESTDBG_VALID_MASK != 0 {
        return Err(Errno::EINVAL);
    }
    if debug.control & KVM_GUESTDBG_ENABLE == 0 {
        state.debug.control = 0;
        state.debug.step_pending = false;
    } else {
        state.debug.control = debug.control;
        if debug.control & KVM_GUESTDBG_USE_HW != 0 {
            state.debug.theirs = Some(Box::new(DebugRegs {
                bvr: debug.dbg_bvr,
                bcr: debug.dbg_bcr,
                wvr: debug.dbg_wvr,
                wcr: debug.dbg_wcr,
                ..DebugRegs::default()
            }));
        }
    }
    arm(&vcpu.hw.lock(), state);
    Ok(0)
}

/// Whether a trapped write of `reg` changes what hardware needs.
pub(super) fn concerns(reg: Reg) -> bool {
    reg.info().enc.op0() == 2
}

/// Works out what hardware needs: after a debug register changed, and at the beginning of KVM_RUN.
pub(super) fn arm(hw: &Hw, state: &mut State) {
    let debug = &mut state.debug;
    if debug.control != 0 {
        let uses_hw = debug.control & KVM_GUESTDBG_USE_HW != 0;
        let mut regs = match &debug.theirs {
            Some(theirs) if uses_hw => theirs.clone(),
            _ => Box::default(),
        };
        regs.to_el2 = true;
        regs.mdscr = if uses_hw { MDSCR_MDE } else { 0 } | if debug.steps() { MDSCR_SS } else { 0 };
        debug.loaded = Some(regs);
        return;
    }
    let mdscr = hw.regs.get(Reg::MdscrEl1) & (MDSCR_SS | MDSCR_KDE | MDSCR_MDE);
    // KDE alone switches nothing on.
    if mdscr & (MDSCR_SS | MDSCR_MDE) == 0 || hw.regs.get(Reg::OslsrEl1) & OSLK != 0 {
        debug.loaded = None;
        return;
    }
    let regs = debug.loaded.get_or_insert_default();
    regs.to_el2 = false;
    regs.mdscr = mdscr;
    if mdscr & MDSCR_MDE == 0 {
        return;
    }
    for reg in Reg::ALL.iter().copied().filter(|&reg| concerns(reg)) {
        let enc = reg.info().enc;
        let values = match enc.op2() {
            4 => &mut regs.bvr,
            5 => &mut regs.bcr,
            6 => &mut regs.wvr,
            7 => &mut regs.wcr,
            _ => continue,
        };
        if enc.crn() == 0
            && let Some(value) = values.get_mut(usize::from(enc.crm()))
        {
            *value = if reg.exists(&state.features) {
                hw.regs.get(reg)
            } else {
                0
            };
        }
    }
}

/// A debug exception that the VMM asked for; `None` for any other exit.
pub(super) fn exit(state: &mut State, ec: Ec, esr: u64, far: u64) -> Option<Next> {
    let asked = state.debug.control != 0
        && matches!(
            ec,
            Ec::BreakpointLower | Ec::StepLower | Ec::WatchpointLower | Ec::Brk | Ec::Bkpt32
        );
    if !asked {
        return None;
    }
    if ec == Ec::StepLower {
        // The next KVM_RUN makes the next step.
        set_ss(&mut state.frame, true);
    }
    Some(Next::Vmm(VmmExit::Debug {
        esr,
        far: if ec == Ec::WatchpointLower { far } else { 0 },
    }))
}

/// Before a vCPU's registers are reset, and after: `reset` sees and leaves the guest's own PSTATE.
pub(super) fn around_reset(vcpu: &Vcpu, state: &mut State, reset: impl FnOnce(&mut State)) {
    let stepped = state.debug.end(&mut state.frame);
    reset(state);
    arm(&vcpu.hw.lock(), state);
    if stepped {
        state.debug.begin(&mut state.frame);
    }
}
