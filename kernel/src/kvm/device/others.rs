//! Attributes of vCPUs and VMs (`Documentation/virt/kvm/devices/vcpu.rst`, `vm.rst`).

use core::sync::atomic::Ordering;

use umbra_hw::timer::{HYP_TIMER_PPI, HYP_VIRT_TIMER_PPI, PHYS_TIMER_PPI, VIRT_TIMER_PPI};
use umbra_kvm_abi::device::{
    DeviceAttr, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_TIMER_CTRL,
    KVM_ARM_VCPU_TIMER_IRQ_HPTIMER, KVM_ARM_VCPU_TIMER_IRQ_HVTIMER, KVM_ARM_VCPU_TIMER_IRQ_PTIMER,
    KVM_ARM_VCPU_TIMER_IRQ_VTIMER, KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, SmcccFilter,
};
use umbra_linux::Errno;

use super::Verb;
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

/// The timers' interrupts, which are linked to the machine's and have its numbers. `EINVAL`: no GIC, or another
/// number; `EBUSY`: a vCPU has run.
fn timer_attr(vcpu: &Vcpu, mm: &Mm, verb: Verb, attr: &DeviceAttr) -> Result<u64, Errno> {
    let wired = timer_irq(attr.attr).ok_or(Errno::ENXIO);
    match verb {
        Verb::Has => {
            wired?;
        }
        Verb::Get => write_struct(mm, attr.addr, &wired?)?,
        Verb::Set => {
            if !vcpu.vm.gic.layout.lock().created {
                return Err(Errno::EINVAL);
            }
            let irq = read_struct::<u32>(mm, attr.addr)?;
            if !(16..32).contains(&irq) {
                return Err(Errno::EINVAL);
            }
            if vcpu.vm.has_run() {
                return Err(Errno::EBUSY);
            }
            if irq != wired? {
                return Err(Errno::EINVAL);
            }
        }
    }
    Ok(0)
}

fn timer_irq(attr: u64) -> Option<u32> {
    match attr {
        KVM_ARM_VCPU_TIMER_IRQ_VTIMER => Some(VIRT_TIMER_PPI),
        KVM_ARM_VCPU_TIMER_IRQ_PTIMER => Some(PHYS_TIMER_PPI),
        KVM_ARM_VCPU_TIMER_IRQ_HVTIMER => Some(HYP_VIRT_TIMER_PPI),
        KVM_ARM_VCPU_TIMER_IRQ_HPTIMER => Some(HYP_TIMER_PPI),
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
