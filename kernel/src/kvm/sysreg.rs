//! A guest's trapped access to a system register.

use alloc::sync::Arc;

use umbra_arm64::esr::SysRegTrap;
use umbra_arm64::idreg::{self, Config, IdRegs, cache, masks};
use umbra_arm64::sysreg::{self, Emulated, Reg, SgiGroup, SysReg, TimerReg, TrapAction};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_kvm_abi::vcpu::{
    KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PTRAUTH_ADDRESS, VcpuFeatures,
};
use umbra_vgic::SgiRegister;

use super::exit::{read_x, skip, write_x};
use super::run::Next;
use super::vcpu::{State, Vcpu, request};
use super::{debug, inject, nested, pmu, timer};

/// What a vCPU with these features sees in its ID registers.
pub(super) fn shown_id_regs(features: VcpuFeatures) -> IdRegs {
    let mut hw = IdRegs::default();
    for &source in idreg::SOURCES {
        let value = match source {
            SysReg::CTR_EL0 => umbra_hw::idregs::ctr(),
            SysReg::DCZID_EL0 => umbra_hw::idregs::dczid(),
            SysReg::AIDR_EL1 => umbra_hw::idregs::aidr(),
            id => umbra_hw::idregs::read(id.crm(), id.op2()),
        };
        hw.set(source, value);
    }
    if left_out(Safeguard::IdRegisters) {
        return hw;
    }
    let pauth = features.has(KVM_ARM_VCPU_PTRAUTH_ADDRESS);
    idreg::shown(
        &hw,
        &Config {
            pauth,
            nested: features.has(KVM_ARM_VCPU_HAS_EL2),
            gicv3: true,
            pmu: features.has(KVM_ARM_VCPU_PMU_V3),
        },
    )
}

/// An MRS, MSR or system instruction that trapped.
pub(super) fn access(vcpu: &Arc<Vcpu>, state: &mut State, trap: SysRegTrap) -> Next {
    let enc = trap.reg;
    let value = read_x(state, trap.rt);
    let done = match sysreg::trap(enc, !trap.read, &state.features) {
        TrapAction::IdReg(enc) => {
            let shown = state.id_regs.get(enc);
            write_x(state, trap.rt, shown);
            true
        }
        TrapAction::ReadZero => {
            write_x(state, trap.rt, 0);
            true
        }
        TrapAction::WriteIgnored => true,
        TrapAction::Undef => false,
        TrapAction::Pmu(enc) => {
            match pmu::access(vcpu, state, enc, (!trap.read).then_some(value)) {
                Some(found) if trap.read => {
                    write_x(state, trap.rt, found);
                    true
                }
                done => done.is_some(),
            }
        }
        TrapAction::Nested(enc) => nested::sysreg(vcpu, state, enc, trap.read, trap.rt, value),
        TrapAction::State(reg) if trap.read => {
            let stored = vcpu.hw.lock().regs.get_any(reg);
            write_x(state, trap.rt, stored);
            true
        }
        TrapAction::State(reg) => {
            let value = masks::res(reg, &state.id_regs).map_or(value, |res| res.sanitise(value));
            let mut hw = vcpu.hw.lock();
            hw.regs.set_any(reg, value);
            if debug::concerns(reg) {
                debug::arm(&hw, state);
            }
            true
        }
        TrapAction::Emulate(what) => emulate(vcpu, state, what, trap.read, trap.rt, value),
    };
    if done {
        skip(state);
    } else {
        inject::undefined(vcpu, state);
    }
    Next::Guest
}

/// Returns whether the access exists.
fn emulate(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    what: Emulated,
    read: bool,
    rt: u8,
    value: u64,
) -> bool {
    match what {
        Emulated::CacheSize => {
            let selected = vcpu.hw.lock().regs.get(Reg::CsselrEl1);
            let clidr = state.id_regs.get(SysReg::CLIDR_EL1);
            let ctr = state.id_regs.get(SysReg::CTR_EL0);
            write_x(state, rt, cache::ccsidr(clidr, ctr, selected).unwrap_or(0));
        }
        Emulated::CacheSelect if read => {
            let selected = vcpu.hw.lock().regs.get(Reg::CsselrEl1);
            write_x(state, rt, selected);
        }
        Emulated::CacheSelect => vcpu.hw.lock().regs.set(Reg::CsselrEl1, value & 0x1f),
        // With FWB the guest's memory is coherent whatever its attributes: nothing to clean.
        Emulated::SetWay => {}
        Emulated::OsLock => {
            let mut hw = vcpu.hw.lock();
            hw.regs.set(Reg::OslsrEl1, (value & 1) << 1 | 1 << 3);
            debug::arm(&hw, state);
        }
        Emulated::Sgi(group) => {
            let register = match group {
                SgiGroup::Sgi1 => SgiRegister::Sgi1r,
                SgiGroup::Asgi1 => SgiRegister::Asgi1r,
                SgiGroup::Sgi0 => SgiRegister::Sgi0r,
            };
            vcpu.vm.gic.sgi(vcpu, register, value);
        }
        Emulated::Deactivate => vcpu.vm.gic.deactivate(vcpu, (value & 0xff_ffff) as u32),
        Emulated::GicSre => {
            if read {
                write_x(state, rt, 7);
            }
        }
        Emulated::Timer(register) => return timer_register(vcpu, state, register, read, rt, value),
    }
    true
}

/// The timers are the guest's own; what comes here is one whose counter is not the machine's (`timer`), or a name that
/// traps all the same.
fn timer_register(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    register: TimerReg,
    read: bool,
    rt: u8,
    value: u64,
) -> bool {
    let now = umbra_hw::timer::ticks();
    let mut hw = vcpu.hw.lock();
    let virt = now.wrapping_sub(hw.cntvoff);
    let phys = timer::physical_count(&hw, now);
    let (reg, tval_base) = match register {
        TimerReg::CntpTval => (Reg::CntpCvalEl0, Some(phys)),
        TimerReg::CntvTval => (Reg::CntvCvalEl0, Some(virt)),
        TimerReg::CntpCval => (Reg::CntpCvalEl0, None),
        TimerReg::CntvCval => (Reg::CntvCvalEl0, None),
        TimerReg::CntpCtl => (Reg::CntpCtlEl0, None),
        TimerReg::CntvCtl => (Reg::CntvCtlEl0, None),
        TimerReg::Cntpct | TimerReg::CntpctSs | TimerReg::Cntvct | TimerReg::CntvctSs => {
            drop(hw);
            if read {
                let physical = matches!(register, TimerReg::Cntpct | TimerReg::CntpctSs);
                write_x(state, rt, if physical { phys } else { virt });
            }
            return read;
        }
    };
    if read {
        let stored = if reg == Reg::CntpCvalEl0 {
            timer::physical_cval(&hw)
        } else {
            hw.regs.get_any(reg)
        };
        drop(hw);
        write_x(
            state,
            rt,
            tval_base.map_or(stored, |base| stored.wrapping_sub(base) & 0xffff_ffff),
        );
    } else {
        let value = tval_base.map_or(value, |base| {
            base.wrapping_add(value as u32 as i32 as i64 as u64)
        });
        if reg == Reg::CntpCvalEl0 {
            timer::set_physical_cval(&mut hw, value);
        } else {
            hw.regs.set_any(reg, value);
        }
        drop(hw);
        vcpu.kick(request::GIC);
    }
    true
}
