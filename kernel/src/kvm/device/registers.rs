//! The GIC's registers for a VMM that saves or restores a VM. Every vCPU is stopped and its list
//! registers are taken back, so what the books say is all there is.

use umbra_arm64::sysreg::SysReg;
use umbra_linux::Errno;
use umbra_vgic::{Access, Frame, IccReg, Kicks, Refusal, Vgic, Vtr};

use super::with_all_stopped;
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
        // Stopped vCPUs are synced, so this is not expected; the VMM may try again.
        Refusal::NeedsSync(_) => Errno::EBUSY,
    }
}

pub(super) fn get_frame(vm: &Vm, frame: Frame, offset: u32) -> Result<u32, Errno> {
    with_vgic(vm, |vgic| {
        let value = vgic.mmio_read(Access::Uaccess, frame, offset, WORD);
        (
            value.map(|value| value as u32).map_err(refused),
            Kicks::NONE,
        )
    })
}

pub(super) fn set_frame(vm: &Vm, frame: Frame, offset: u32, value: u32) -> Result<(), Errno> {
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

/// Runs `f` on the CPU interface of a vCPU, all of them stopped.
fn with_interface<R>(
    vm: &Vm,
    vcpu: usize,
    register: SysReg,
    f: impl FnOnce(&mut Hw, IccReg, Vtr) -> Result<R, umbra_vgic::InvalidIcc>,
) -> Result<R, Errno> {
    with_all_stopped(vm, || {
        if !vm.gic.is_initialised() {
            return Err(Errno::EBUSY);
        }
        let register = IccReg::from_enc(register).ok_or(Errno::ENOENT)?;
        let vcpu = vm.vcpu(vcpu).ok_or(Errno::EINVAL)?;
        let vtr = Vtr::from_bits(umbra_hw::vgic::vtr());
        f(&mut vcpu.hw.lock(), register, vtr).map_err(|_| Errno::EINVAL)
    })
}

pub(super) fn get_icc(vm: &Vm, vcpu: usize, register: SysReg) -> Result<u64, Errno> {
    with_interface(vm, vcpu, register, |hw, register, vtr| {
        hw.cpuif.icc(register, vtr)
    })
}

pub(super) fn set_icc(vm: &Vm, vcpu: usize, register: SysReg, value: u64) -> Result<(), Errno> {
    with_interface(vm, vcpu, register, |hw, register, vtr| {
        hw.cpuif.set_icc(register, vtr, value)
    })
}
