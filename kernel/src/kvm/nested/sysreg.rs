//! EL2 registers by name, EL1's by their EL2 aliases, and address translation.

use alloc::sync::Arc;

use umbra_arm64::Gva;
use umbra_arm64::esr::SysRegTrap;
use umbra_arm64::idreg::masks;
use umbra_arm64::sysreg::{Reg, SysReg, is_at, is_tlbi};

use umbra_nested::Features;
use umbra_nested::at::{self, Context, Op};
use umbra_nested::stage1::Stage1Regs;

use super::super::exit::{read_x, write_x};
use super::super::vcpu::{State, Vcpu, request};
use super::super::{pmu, timer};
use super::fault::VmMemory;
use super::{interrupts, tlbi};

/// ICC_SRE_EL2 as shown: Enable, DIB, DFB, SRE.
pub(in crate::kvm) const ICC_SRE: u64 = 0xf;

/// Performs what a guest hypervisor does most, by the shortest way: Linux invalidates each page that it
/// unmaps, and looks at ICH_MISR_EL2 after each run. `false`: it is nothing of the kind.
#[inline]
pub(in crate::kvm) fn often(vcpu: &Vcpu, state: &mut State, trap: SysRegTrap) -> bool {
    if is_tlbi(trap.reg) {
        tlbi::perform(vcpu, trap.reg, read_x(state, trap.rt));
        return true;
    }
    let is_misr = trap.reg == SysReg::ICH_MISR_EL2 && trap.read;
    if is_misr {
        write_x(state, trap.rt, interrupts::maintenance(&vcpu.hw.lock()));
    }
    is_misr
}

/// Performs any other trapped access. Returns whether what it names exists.
pub(in crate::kvm) fn access(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    enc: SysReg,
    read: bool,
    rt: u8,
    value: u64,
) -> bool {
    let done = match enc {
        SysReg::ICC_SRE_EL2 => Some(ICC_SRE),
        SysReg::ICH_VTR_EL2 => Some(umbra_hw::vgic::vtr()),
        SysReg::ICH_EISR_EL2 => Some(interrupts::ended(&vcpu.hw.lock())),
        SysReg::ICH_ELRSR_EL2 => Some(interrupts::empty(&vcpu.hw.lock())),
        // Of modes that only AArch32 has.
        SysReg::SPSR_IRQ | SysReg::SPSR_ABT | SysReg::SPSR_UND | SysReg::SPSR_FIQ => Some(0),
        _ => None,
    };
    if let Some(shown) = done {
        if read {
            write_x(state, rt, shown);
        }
        return read || enc == SysReg::ICC_SRE_EL2 || enc.crn() == 4;
    }
    if is_at(enc)
        && let Some(op) = Op::from_enc(enc)
    {
        return translate(vcpu, state, op, value);
    }
    if let Some((cval, is_virtual)) = timer_value(enc) {
        let mut hw = vcpu.hw.lock();
        let now = timer::counter(&hw, is_virtual);
        if read {
            let left = hw.regs.get_any(cval).wrapping_sub(now);
            drop(hw);
            write_x(state, rt, left & 0xffff_ffff);
        } else {
            hw.regs
                .set_any(cval, now.wrapping_add(value as u32 as i32 as i64 as u64));
            drop(hw);
            vcpu.kick(request::GIC);
        }
        return true;
    }
    let Some(reg) = Reg::from_enc(unaliased(enc)).filter(|reg| reg.exists(&state.features)) else {
        return false;
    };
    if read {
        let hw = vcpu.hw.lock();
        let stored = timer::control(&hw, reg).unwrap_or_else(|| hw.regs.get_any(reg));
        drop(hw);
        write_x(state, rt, stored);
    } else {
        let value = masks::res(reg, &state.id_regs).map_or(value, |res| res.sanitise(value));
        vcpu.hw.lock().regs.set_any(reg, value);
        if moves_interrupts(enc) {
            vcpu.kick(request::GIC);
        }
        if reg == Reg::MdcrEl2 {
            pmu::divide(vcpu, state);
        }
    }
    true
}

/// Whether a register is the timers', the interrupt controller's, or HCR_EL2: what it holds may raise or
/// lower an interrupt.
fn moves_interrupts(enc: SysReg) -> bool {
    enc == SysReg::HCR_EL2 || matches!(enc.crn(), 12 | 14)
}

/// The EL1 or EL0 register that an `_EL12` or `_EL02` name means.
fn unaliased(enc: SysReg) -> SysReg {
    if enc.op1() != 5 {
        return enc;
    }
    let op1 = if enc.crn() == 14 && enc.crm() >= 2 {
        3
    } else {
        0
    };
    SysReg::new(enc.op0(), op1, enc.crn(), enc.crm(), enc.op2())
}

/// A TVAL register: the CVAL behind it, and whether its counter is the virtual one of EL1.
fn timer_value(enc: SysReg) -> Option<(Reg, bool)> {
    const CNTP_TVAL_EL02: SysReg = SysReg::new(3, 5, 14, 2, 0);
    const CNTV_TVAL_EL02: SysReg = SysReg::new(3, 5, 14, 3, 0);
    match enc {
        SysReg::CNTHP_TVAL_EL2 => Some((Reg::CnthpCvalEl2, false)),
        SysReg::CNTHV_TVAL_EL2 => Some((Reg::CnthvCvalEl2, false)),
        CNTP_TVAL_EL02 => Some((Reg::CntpCvalEl0, false)),
        CNTV_TVAL_EL02 => Some((Reg::CntvCvalEl0, true)),
        _ => None,
    }
}

/// AT: the translation that the guest hypervisor asks for, into PAR_EL1. Returns that it exists.
fn translate(vcpu: &Arc<Vcpu>, state: &mut State, op: Op, va: u64) -> bool {
    let context = {
        let hw = vcpu.hw.lock();
        let get = |reg| hw.regs.get_any(reg);
        Context {
            features: Features::of(&state.id_regs),
            hcr: get(Reg::HcrEl2),
            el1: Stage1Regs {
                sctlr: get(Reg::SctlrEl1),
                tcr: get(Reg::TcrEl1),
                ttbr0: get(Reg::Ttbr0El1),
                ttbr1: get(Reg::Ttbr1El1),
                mair: get(Reg::MairEl1),
            },
            el2: Stage1Regs {
                sctlr: get(Reg::SctlrEl2),
                tcr: get(Reg::TcrEl2),
                ttbr0: get(Reg::Ttbr0El2),
                ttbr1: get(Reg::Ttbr1El2),
                mair: get(Reg::MairEl2),
            },
            vtcr: get(Reg::VtcrEl2),
            vttbr: get(Reg::VttbrEl2),
            pan: state.frame.pstate().raw() >> 22 & 1 == 1,
        }
    };
    // A translation that was changed under each of several attempts is as good as none: the
    // hypervisor asks again.
    let par = at::translate(op, Gva::new(va), &context, &mut VmMemory(&vcpu.vm))
        .map_or(1, |par| par.raw());
    vcpu.hw.lock().regs.set(Reg::ParEl1, par);
    true
}
