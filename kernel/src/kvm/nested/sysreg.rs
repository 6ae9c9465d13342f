//! EL2 registers by name, EL1's by their EL2 aliases, and the instructions that only EL2 has.

use alloc::sync::Arc;

use umbra_arm64::idreg::masks;
use umbra_arm64::sysreg::{Reg, SysReg, is_tlbi};

use super::super::exit::write_x;
use super::super::vcpu::{State, Vcpu, request};
use super::tlbi;

/// ICC_SRE_EL2 as shown: Enable, DIB, DFB, SRE.
const ICC_SRE: u64 = 0xf;

/// Performs a trapped access. Returns whether what it names exists.
pub(in crate::kvm) fn access(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    enc: SysReg,
    read: bool,
    rt: u8,
    value: u64,
) -> bool {
    if is_tlbi(enc) {
        tlbi::perform(enc, value, vcpu.vm.vttbr);
        return true;
    }
    let done = match enc {
        SysReg::ICC_SRE_EL2 => Some(ICC_SRE),
        SysReg::ICH_VTR_EL2 => Some(umbra_hw::vgic::vtr()),
        SysReg::ICH_MISR_EL2 | SysReg::ICH_EISR_EL2 => Some(0),
        SysReg::ICH_ELRSR_EL2 => Some(empty_list_registers(vcpu)),
        _ => None,
    };
    if let Some(shown) = done {
        if read {
            write_x(state, rt, shown);
        }
        return read || enc == SysReg::ICC_SRE_EL2;
    }
    if let Some((cval, now)) = timer_value(enc) {
        let mut hw = vcpu.hw.lock();
        if read {
            let left = hw.regs.get(cval).wrapping_sub(now);
            drop(hw);
            write_x(state, rt, left & 0xffff_ffff);
        } else {
            hw.regs
                .set(cval, now.wrapping_add(value as u32 as i32 as i64 as u64));
            drop(hw);
            vcpu.kick(request::GIC);
        }
        return true;
    }
    let Some(reg) = Reg::from_enc(unaliased(enc)).filter(|reg| reg.exists(&state.features)) else {
        return false;
    };
    if read {
        let stored = vcpu.hw.lock().regs.get(reg);
        write_x(state, rt, stored);
    } else {
        let value = masks::res(reg, &state.id_regs).map_or(value, |res| res.sanitise(value));
        vcpu.hw.lock().regs.set(reg, value);
        vcpu.kick(request::GIC);
    }
    true
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

/// A TVAL register: the CVAL behind it and what its counter says.
fn timer_value(enc: SysReg) -> Option<(Reg, u64)> {
    let now = umbra_hw::timer::ticks();
    match enc {
        SysReg::CNTHP_TVAL_EL2 => Some((Reg::CnthpCvalEl2, now)),
        SysReg::CNTHV_TVAL_EL2 => Some((Reg::CnthvCvalEl2, now)),
        _ => None,
    }
}

/// ICH_ELRSR_EL2 of the list registers in the VNCR page: free ones that ask for no EOI maintenance.
fn empty_list_registers(vcpu: &Vcpu) -> u64 {
    const EOI: u64 = 1 << 41;
    const HW: u64 = 1 << 61;
    let count = umbra_hw::vgic::limits().list_registers;
    let hw = vcpu.hw.lock();
    (0..count as u16).fold(0, |bits, n| {
        let lr = hw.regs.hw.get(0x400 + 8 * n);
        let free = lr >> 62 == 0 && (lr & HW != 0 || lr & EOI == 0);
        bits | u64::from(free) << n
    })
}
