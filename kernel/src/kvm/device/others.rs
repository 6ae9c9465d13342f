//! Attributes of vCPUs and VMs (`Documentation/virt/kvm/devices/vcpu.rst`, `vm.rst`).

use core::sync::atomic::Ordering;

use umbra_kvm_abi::device::{
    DeviceAttr, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_TIMER_CTRL,
    KVM_ARM_VCPU_TIMER_IRQ_HPTIMER, KVM_ARM_VCPU_TIMER_IRQ_HVTIMER, KVM_ARM_VCPU_TIMER_IRQ_PTIMER,
    KVM_ARM_VCPU_TIMER_IRQ_VTIMER, KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, SmcccFilter,
};
use umbra_linux::Errno;

use super::Verb;
use crate::kvm::time::Ppis;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::{Vm, abi};
use crate::kvm::{pmu, pvtime, read_struct, write_struct};
use crate::mm::Mm;

/// KVM_{SET,GET,HAS}_DEVICE_ATTR on a vCPU. `ENOTTY`: another request; `ENXIO`: no such attribute.
pub(in crate::kvm) fn vcpu_attr(
    vcpu: &Vcpu,
    mm: &Mm,
    request: u32,
    attr: &DeviceAttr,
) -> Result<u64, Errno> {
    let verb = Verb::of(request).ok_or(Errno::ENOTTY)?;
    match attr.group {
        KVM_ARM_VCPU_TIMER_CTRL => timer_attr(vcpu, mm, verb, attr),
        KVM_ARM_VCPU_PMU_V3_CTRL => pmu::attr(vcpu, mm, verb, attr),
        KVM_ARM_VCPU_PVTIME_CTRL => pvtime::attr(vcpu, mm, verb, attr.attr, attr.addr),
        _ => Err(Errno::ENXIO),
    }
}

/// The timers' interrupts, which are the VM's: whichever vCPU they are set through, all have them. Whether they
/// differ is seen when a vCPU runs first. `EINVAL`: no GIC, or no private interrupt; `EBUSY`: a vCPU has run.
fn timer_attr(vcpu: &Vcpu, mm: &Mm, verb: Verb, attr: &DeviceAttr) -> Result<u64, Errno> {
    let which = timer_irq(attr.attr).ok_or(Errno::ENXIO);
    let time = &vcpu.vm.time;
    match verb {
        Verb::Has => {
            which?;
        }
        Verb::Get => write_struct(mm, attr.addr, which?(&mut time.ppis()))?,
        Verb::Set => {
            if !vcpu.vm.gic.layout.lock().created {
                return Err(Errno::EINVAL);
            }
            let irq = read_struct::<u32>(mm, attr.addr)?;
            if !(16..32).contains(&irq) {
                return Err(Errno::EINVAL);
            }
            // In Linux's order: settled ones are refused before one that is not there.
            time.set_ppi(|ppis| which.map(|which| *which(ppis) = irq))??;
        }
    }
    Ok(0)
}

fn timer_irq(attr: u64) -> Option<fn(&mut Ppis) -> &mut u32> {
    match attr {
        KVM_ARM_VCPU_TIMER_IRQ_VTIMER => Some(|ppis| &mut ppis.virt),
        KVM_ARM_VCPU_TIMER_IRQ_PTIMER => Some(|ppis| &mut ppis.phys),
        KVM_ARM_VCPU_TIMER_IRQ_HVTIMER => Some(|ppis| &mut ppis.hyp_virt),
        KVM_ARM_VCPU_TIMER_IRQ_HPTIMER => Some(|ppis| &mut ppis.hyp),
        _ => None,
    }
}

/// KVM_{SET,HAS}_DEVICE_ATTR on a VM, which has the filter of firmware calls. `ENOTTY`: another
/// request; `ENXIO`: no such attribute; `EBUSY`: a vCPU has run.
pub(in crate::kvm) fn vm_attr(
    vm: &Vm,
    mm: &Mm,
    request: u32,
    attr: &DeviceAttr,
) -> Result<u64, Errno> {
    let is_filter = (attr.group, attr.attr) == (KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER);
    match Verb::of(request) {
        Some(Verb::Set | Verb::Has) if !is_filter => Err(Errno::ENXIO),
        Some(Verb::Has) => Ok(0),
        Some(Verb::Set) => {
            let range = read_struct::<SmcccFilter>(mm, attr.addr)?;
            if vm.has_run() {
                return Err(Errno::EBUSY);
            }
            abi(vm.filter.lock().add(&range))?;
            vm.filters.store(true, Ordering::Release);
            Ok(0)
        }
        Some(Verb::Get) | None => Err(Errno::ENOTTY),
    }
}
