//! Devices and their attributes (api.rst 4.79–4.81, `Documentation/virt/kvm/devices/`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct kvm_create_device`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CreateDevice {
    /// `KVM_DEV_TYPE_*`.
    pub kind: u32,
    /// Out: the device's file.
    pub fd: u32,
    /// [`KVM_CREATE_DEVICE_TEST`] or 0.
    pub flags: u32,
}

/// Only say whether the type exists.
pub const KVM_CREATE_DEVICE_TEST: u32 = 1;

/// A GICv2.
pub const KVM_DEV_TYPE_ARM_VGIC_V2: u32 = 5;
/// A GICv3.
pub const KVM_DEV_TYPE_ARM_VGIC_V3: u32 = 7;
/// An interrupt translation service.
pub const KVM_DEV_TYPE_ARM_VGIC_ITS: u32 = 8;

/// `struct kvm_device_attr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceAttr {
    /// Zero.
    pub flags: u32,
    /// The group of attributes.
    pub group: u32,
    /// The attribute in the group.
    pub attr: u64,
    /// The value, in the VMM's address space.
    pub addr: u64,
}

/// vCPU group: performance counters.
pub const KVM_ARM_VCPU_PMU_V3_CTRL: u32 = 0;
/// Attribute of [`KVM_ARM_VCPU_PMU_V3_CTRL`]: the overflow interrupt.
pub const KVM_ARM_VCPU_PMU_V3_IRQ: u64 = 0;
/// The PMU is complete.
pub const KVM_ARM_VCPU_PMU_V3_INIT: u64 = 1;
/// Which events may be counted.
pub const KVM_ARM_VCPU_PMU_V3_FILTER: u64 = 2;
/// Which of the host's PMUs.
pub const KVM_ARM_VCPU_PMU_V3_SET_PMU: u64 = 3;
/// How many event counters.
pub const KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS: u64 = 4;

/// `struct kvm_pmu_event_filter`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PmuEventFilter {
    /// The first event.
    pub base_event: u16,
    /// How many.
    pub nevents: u16,
    /// 0: allowed, 1: denied.
    pub action: u8,
    /// Ignored.
    pub pad: [u8; 3],
}
/// vCPU group: the INTIDs of the timers; the value is an `i32`.
pub const KVM_ARM_VCPU_TIMER_CTRL: u32 = 1;
/// vCPU group: stolen time.
pub const KVM_ARM_VCPU_PVTIME_CTRL: u32 = 2;
/// Attribute of [`KVM_ARM_VCPU_PVTIME_CTRL`]: where the structure lies.
pub const KVM_ARM_VCPU_PVTIME_IPA: u64 = 0;
/// Timer attribute: the virtual timer of EL1.
pub const KVM_ARM_VCPU_TIMER_IRQ_VTIMER: u64 = 0;
/// Timer attribute: the physical timer of EL1.
pub const KVM_ARM_VCPU_TIMER_IRQ_PTIMER: u64 = 1;
/// Timer attribute: the virtual timer of EL2.
pub const KVM_ARM_VCPU_TIMER_IRQ_HVTIMER: u64 = 2;
/// Timer attribute: the physical timer of EL2.
pub const KVM_ARM_VCPU_TIMER_IRQ_HPTIMER: u64 = 3;

/// VM group: the filter of firmware calls.
pub const KVM_ARM_VM_SMCCC_CTRL: u32 = 0;
/// Attribute: add a range to the filter.
pub const KVM_ARM_VM_SMCCC_FILTER: u64 = 0;

/// `struct kvm_smccc_filter`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SmcccFilter {
    /// First function id.
    pub base: u32,
    /// Number of function ids.
    pub nr_functions: u32,
    /// 0 the kernel handles them, 1 they are unknown, 2 they exit to the VMM.
    pub action: u8,
    /// Zero.
    pub pad: [u8; 15],
}
