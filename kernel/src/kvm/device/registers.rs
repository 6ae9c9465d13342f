//! The GIC's registers for a VMM that saves or restores a VM. Every vCPU is stopped and its list
//! registers are taken back, so what the books say is all there is.

use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_linux::Errno;
use umbra_vgic::{Access, Frame, IccReg, Kicks, Refusal, Vgic, Vtr, known_early};

use super::with_all_stopped;
use crate::kvm::nested;
use crate::kvm::vcpu::Hw;
use crate::kvm::vm::Vm;

/// Registers of the distributor and redistributors are accessed by words.
const WORD: u8 = 4;

/// Runs `f` on the GIC of stopped vCPUs. `EBUSY`: one runs, or the GIC is not initialised.
fn with_vgic<R>(
    vm: &Vm,
    f: impl FnOnce(&mut Vgic) -> (Result<R, Errno>, Kicks),
) -> Result<R, Errno> {
    with_all_stopped(vm, || vm.gic.with(vm, f).unwrap_or(Err(Errno::EBUSY)))
}

fn refused(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NoRegister => Errno::ENXIO,
        Refusal::Invalid => Errno::EINVAL,
        Refusal::Settled => Errno::EBUSY,
        // Stopped vCPUs are synced, so this is not expected; the VMM may try again.
        Refusal::NeedsSync(_) => Errno::EBUSY,
    }
}

/// What a VMM may ask before the GIC is initialised.
fn early(vm: &Vm, frame: Frame, offset: u32) -> Option<u32> {
    known_early(frame, offset).filter(|_| !vm.gic.is_initialised())
}

pub(super) fn get_frame(vm: &Vm, frame: Frame, offset: u32) -> Result<u32, Errno> {
    if let Some(value) = early(vm, frame, offset) {
        return Ok(value);
    }
    with_vgic(vm, |vgic| {
        let value = vgic.mmio_read(Access::Uaccess, frame, offset, WORD);
        (
            value.map(|value| value as u32).map_err(refused),
            Kicks::NONE,
        )
    })
}

pub(super) fn set_frame(vm: &Vm, frame: Frame, offset: u32, value: u32) -> Result<(), Errno> {
    if let Some(fixed) = early(vm, frame, offset) {
        return if value == fixed {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        };
    }
    with_vgic(vm, |vgic| {
        match vgic.mmio_write(Access::Uaccess, frame, offset, WORD, value.into()) {
            Ok(kicks) => (Ok(()), kicks),
            Err(refusal) => (Err(refused(refusal)), Kicks::NONE),
        }
    })
}

pub(super) fn get_levels(vm: &Vm, vcpu: usize, intid: u32) -> Result<u32, Errno> {
    with_vgic(vm, |vgic| (Ok(vgic.line_levels(vcpu, intid)), Kicks::NONE))
}

pub(super) fn set_levels(vm: &Vm, vcpu: usize, intid: u32, levels: u32) -> Result<(), Errno> {
    with_vgic(vm, |vgic| {
        (Ok(()), vgic.set_line_levels(vcpu, intid, levels))
    })
}

/// A register of the CPU interface: the guest's own, or, where there is a virtual EL2, the one with which
/// that drives its guest's.
enum Interface {
    Own(IccReg),
    Below(El2),
}

/// What EL2's interface is made of.
enum El2 {
    /// ICH_AP<g>R<n>_EL2, ICH_HCR_EL2, ICH_VMCR_EL2, ICH_LR<n>_EL2.
    State(Reg),
    /// ICC_SRE_EL2 and ICH_VTR_EL2, which can only be what they are.
    Fixed(u64),
}

/// `None`: the VM has no such register.
fn interface(vm: &Vm, enc: SysReg) -> Option<Interface> {
    if let Some(register) = IccReg::from_enc(enc) {
        return Some(Interface::Own(register));
    }
    if !vm.is_nested() || (enc.op1(), enc.crn()) != (4, 12) {
        return None;
    }
    let below = match enc {
        SysReg::ICC_SRE_EL2 => El2::Fixed(nested::ICC_SRE),
        SysReg::ICH_VTR_EL2 => El2::Fixed(umbra_hw::vgic::vtr()),
        // VBAR_EL2 and its neighbours are the vCPU's (ONE_REG).
        _ if enc.crm() < 8 => return None,
        _ => El2::State(Reg::from_enc(enc)?),
    };
    Some(Interface::Below(below))
}

/// Whether a VMM finds `enc` among the registers of a CPU interface.
pub(super) fn has_icc(vm: &Vm, enc: SysReg) -> bool {
    interface(vm, enc).is_some()
}

/// Runs `f` on the CPU interface of a vCPU, all of them stopped.
fn with_interface<R>(
    vm: &Vm,
    vcpu: usize,
    register: SysReg,
    f: impl FnOnce(&mut Hw, Interface, Vtr) -> Result<R, Errno>,
) -> Result<R, Errno> {
    with_all_stopped(vm, || {
        if !vm.gic.is_initialised() {
            return Err(Errno::EBUSY);
        }
        let register_there = interface(vm, register).ok_or(Errno::ENOENT)?;
        let vcpu = vm.vcpu(vcpu).ok_or(Errno::EINVAL)?;
        let vtr = Vtr::from_bits(umbra_hw::vgic::vtr());
        // Active priorities that this machine's number of priority bits has no register for.
        let is_beyond = matches!(register_there, Interface::Below(El2::State(_)))
            && matches!(register.crm(), 8 | 9)
            && register.op2() >= 1 << (vtr.pri_bits().saturating_sub(4));
        if is_beyond {
            return Err(Errno::EINVAL);
        }
        f(&mut vcpu.hw.lock(), register_there, vtr)
    })
}

pub(super) fn get_icc(vm: &Vm, vcpu: usize, register: SysReg) -> Result<u64, Errno> {
    with_interface(vm, vcpu, register, |hw, register, vtr| match register {
        Interface::Own(register) => hw.cpuif.icc(register, vtr).map_err(|_| Errno::EINVAL),
        Interface::Below(El2::State(reg)) => Ok(hw.regs.get_any(reg)),
        Interface::Below(El2::Fixed(value)) => Ok(value),
    })
}

pub(super) fn set_icc(vm: &Vm, vcpu: usize, register: SysReg, value: u64) -> Result<(), Errno> {
    with_interface(vm, vcpu, register, |hw, register, vtr| match register {
        Interface::Own(register) => hw
            .cpuif
            .set_icc(register, vtr, value)
            .map_err(|_| Errno::EINVAL),
        Interface::Below(El2::State(reg)) => {
            hw.regs.set_any(reg, value);
            Ok(())
        }
        Interface::Below(El2::Fixed(fixed)) if value == fixed => Ok(()),
        Interface::Below(El2::Fixed(_)) => Err(Errno::EINVAL),
    })
}
