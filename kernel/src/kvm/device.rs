//! Devices of a VM: the VGICv3 (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`), and beside it ITSes (`its`).
//!
//! ```text
//!  VM ── KVM_CREATE_DEVICE ──► device file ── KVM_{SET,GET,HAS}_DEVICE_ATTR ─┬─ placement   where the frames are
//!                                                                            ├─ registers   state, all vCPUs stopped
//!  vCPU, VM ── KVM_{SET,GET,HAS}_DEVICE_ATTR ──► others                      └─ NR_IRQS, CTRL, MAINT_IRQ
//! ```
//!
//! Order of set-up: create, number of interrupts, vCPUs, initialise; the frames at any time before a
//! vCPU runs. After initialisation the number of vCPUs is settled.

mod its;
mod others;
mod placement;
mod registers;

use alloc::sync::Arc;

use umbra_arm64::sysreg::SysReg;
use umbra_kvm_abi::device::{
    CreateDevice, DeviceAttr, KVM_CREATE_DEVICE_TEST, KVM_DEV_TYPE_ARM_VGIC_ITS,
    KVM_DEV_TYPE_ARM_VGIC_V3,
};
use umbra_kvm_abi::ioctl;
use umbra_kvm_abi::vgic::{KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, is_valid_nr_irqs};
use umbra_linux::Errno;
use umbra_vgic::{Affinity, Attr, AttrError, decode_attr, has_register};

pub(super) use others::{vcpu_attr, vm_attr};
pub(super) use placement::check_before_run;

use super::gic::DEFAULT_IRQS;
use super::loaded;
use super::vcpu::Vcpu;
use super::vm::{Open, Vm};
use super::{read_struct, write_struct};
use crate::file::{Call, File};
use crate::mm::Mm;

/// Private interrupts: what NR_IRQS counts before anybody said more.
const PRIVATE_IRQS: u32 = 32;

/// What a device-attribute ioctl asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Set,
    Get,
    Has,
}

impl Verb {
    /// `None` for another ioctl.
    pub(super) fn of(request: u32) -> Option<Self> {
        match request {
            r if r == ioctl::KVM_SET_DEVICE_ATTR.raw() => Some(Self::Set),
            r if r == ioctl::KVM_GET_DEVICE_ATTR.raw() => Some(Self::Get),
            r if r == ioctl::KVM_HAS_DEVICE_ATTR.raw() => Some(Self::Has),
            _ => None,
        }
    }
}

/// KVM_CREATE_DEVICE; sets `create.fd`. `ENODEV`: no such type; `EEXIST`: there is one; `EBUSY`: a
/// vCPU runs or has run.
pub(super) fn create(
    open: &Arc<Open>,
    call: &Call<'_>,
    create: &mut CreateDevice,
) -> Result<(), Errno> {
    let vm = open.vm();
    if !matches!(
        create.kind,
        KVM_DEV_TYPE_ARM_VGIC_V3 | KVM_DEV_TYPE_ARM_VGIC_ITS
    ) {
        return Err(Errno::ENODEV);
    }
    if create.flags & KVM_CREATE_DEVICE_TEST != 0 {
        return Ok(());
    }
    if create.kind == KVM_DEV_TYPE_ARM_VGIC_ITS {
        let its = vm.itses.create(vm)?;
        let file = its::ItsFile {
            open: open.clone(),
            its: its.clone(),
        };
        let fd = call.process.install(Arc::new(file), true);
        create.fd = fd.inspect_err(|_| vm.itses.forget(&its))?;
        return Ok(());
    }
    with_all_stopped(vm, || {
        let mut layout = vm.gic.layout.lock();
        if layout.created {
            return Err(Errno::EEXIST);
        }
        if vm.has_run() {
            return Err(Errno::EBUSY);
        }
        layout.created = true;
        Ok(())
    })?;
    let installed = call
        .process
        .install(Arc::new(VgicFile { open: open.clone() }), true);
    if installed.is_err() {
        vm.gic.layout.lock().created = false;
    }
    create.fd = installed?;
    Ok(())
}

/// Runs `f` while every vCPU is out of KVM_RUN and its registers are in memory. `EBUSY` if one is
/// in use.
pub(super) fn with_all_stopped<R>(
    vm: &Vm,
    f: impl FnOnce() -> Result<R, Errno>,
) -> Result<R, Errno> {
    let vcpus = vm.all_vcpus();
    let mut held = alloc::vec::Vec::with_capacity(vcpus.len());
    for vcpu in &vcpus {
        held.push(vcpu.state.try_lock().ok_or(Errno::EBUSY)?);
    }
    for vcpu in &vcpus {
        loaded::put(vcpu);
    }
    f()
}

/// The vCPU that an attribute's affinity names.
fn vcpu_of(vm: &Vm, affinity: Affinity) -> Option<usize> {
    let named = |vcpu: &Arc<Vcpu>| Affinity::from_mpidr(vcpu.mpidr()) == affinity;
    vm.all_vcpus()
        .into_iter()
        .find(named)
        .map(|vcpu| vcpu.index())
}

/// What a process holds: a descriptor for a VM's GIC.
struct VgicFile {
    open: Arc<Open>,
}

impl File for VgicFile {
    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        let vm = self.open.vm();
        let mm = call.process.mm();
        if !Arc::ptr_eq(&mm, &vm.mm) {
            return Err(Errno::EIO);
        }
        let verb = Verb::of(request).ok_or(Errno::ENOTTY)?;
        let attr = read_struct::<DeviceAttr>(&mm, arg)?;
        match verb {
            Verb::Has => has(vm, &attr),
            Verb::Set => set(vm, &mm, &attr),
            Verb::Get => get(vm, &mm, &attr),
        }?;
        Ok(0)
    }
}

fn decode(vm: &Vm, attr: &DeviceAttr) -> Result<Attr, Errno> {
    decode_attr(|affinity| vcpu_of(vm, affinity), attr.group, attr.attr).map_err(
        |error| match error {
            AttrError::NoAttr => Errno::ENXIO,
            AttrError::Invalid => Errno::EINVAL,
        },
    )
}

fn has(vm: &Vm, attr: &DeviceAttr) -> Result<(), Errno> {
    // The kind of information alone decides, not the vCPU or the INTID it is about.
    if attr.group == KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO {
        return if attr.attr as u32 >> 10 == 0 {
            Ok(())
        } else {
            Err(Errno::ENXIO)
        };
    }
    let there = match decode(vm, attr)? {
        Attr::DistAddr
        | Attr::RedistAddr
        | Attr::RedistRegion
        | Attr::NrIrqs
        | Attr::Init
        | Attr::SavePendingTables
        | Attr::LineLevel { .. }
        | Attr::MaintIrq => true,
        Attr::Register(frame, offset) => has_register(frame, offset),
        Attr::SysReg { instr, .. } => registers::has_icc(vm, SysReg::from_id(instr)),
    };
    if there { Ok(()) } else { Err(Errno::ENXIO) }
}

fn set(vm: &Vm, mm: &Mm, attr: &DeviceAttr) -> Result<(), Errno> {
    match decode(vm, attr)? {
        what @ (Attr::DistAddr | Attr::RedistAddr | Attr::RedistRegion) => {
            placement::set(vm, what, read_struct(mm, attr.addr)?)
        }
        Attr::Register(frame, offset) => {
            let value = read_struct::<u32>(mm, attr.addr)?;
            registers::set_frame(vm, frame, offset, value)?;
            super::its::begin_lpis(vm, frame);
            Ok(())
        }
        Attr::SysReg { vcpu, instr } => {
            let value = read_struct::<u64>(mm, attr.addr)?;
            registers::set_icc(vm, vcpu, SysReg::from_id(instr), value)
        }
        Attr::LineLevel { vcpu, intid } => {
            let value = read_struct::<u32>(mm, attr.addr)?;
            registers::set_levels(vm, vcpu, intid, value)
        }
        Attr::NrIrqs => set_nr_irqs(vm, read_struct(mm, attr.addr)?),
        Attr::Init => init(vm),
        Attr::MaintIrq => set_maint_irq(vm, read_struct(mm, attr.addr)?),
        Attr::SavePendingTables => with_all_stopped(vm, || super::its::save_pending(vm)),
    }
}

fn get(vm: &Vm, mm: &Mm, attr: &DeviceAttr) -> Result<(), Errno> {
    match decode(vm, attr)? {
        what @ (Attr::DistAddr | Attr::RedistAddr) => {
            let base = placement::get(vm, what);
            write_struct(mm, attr.addr, &base)
        }
        Attr::RedistRegion => {
            // The value says on the way in which region is meant.
            let value = placement::get_region(vm, read_struct(mm, attr.addr)?)?;
            write_struct(mm, attr.addr, &value)
        }
        Attr::Register(frame, offset) => {
            let value = registers::get_frame(vm, frame, offset)?;
            write_struct(mm, attr.addr, &value)
        }
        Attr::SysReg { vcpu, instr } => {
            let value = registers::get_icc(vm, vcpu, SysReg::from_id(instr))?;
            write_struct(mm, attr.addr, &value)
        }
        Attr::LineLevel { vcpu, intid } => {
            let value = registers::get_levels(vm, vcpu, intid)?;
            write_struct(mm, attr.addr, &value)
        }
        Attr::NrIrqs => write_struct(mm, attr.addr, &nr_irqs(vm)),
        Attr::MaintIrq => {
            let irq = vm.gic.layout.lock().maint_irq.unwrap_or(0);
            write_struct(mm, attr.addr, &irq)
        }
        Attr::Init | Attr::SavePendingTables => Err(Errno::ENXIO),
    }
}

fn set_nr_irqs(vm: &Vm, count: u32) -> Result<(), Errno> {
    if !is_valid_nr_irqs(count) {
        return Err(Errno::EINVAL);
    }
    let mut layout = vm.gic.layout.lock();
    if vm.gic.is_initialised() || layout.nr_irqs.is_some() {
        return Err(Errno::EBUSY);
    }
    layout.nr_irqs = Some(count);
    Ok(())
}

fn nr_irqs(vm: &Vm) -> u32 {
    let unsaid = if vm.gic.is_initialised() {
        DEFAULT_IRQS
    } else {
        PRIVATE_IRQS
    };
    vm.gic.layout.lock().nr_irqs.unwrap_or(unsaid)
}

fn set_maint_irq(vm: &Vm, irq: u32) -> Result<(), Errno> {
    if vm.gic.is_initialised() {
        return Err(Errno::EBUSY);
    }
    // A private interrupt that is no SGI.
    if !(16..PRIVATE_IRQS).contains(&irq) {
        return Err(Errno::EINVAL);
    }
    vm.gic.layout.lock().maint_irq = Some(irq);
    Ok(())
}

fn init(vm: &Vm) -> Result<(), Errno> {
    vm.gic.init(vm)?;
    placement::settle(vm);
    Ok(())
}
