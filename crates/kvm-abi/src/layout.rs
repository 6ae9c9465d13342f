//! Every layout and number against `kvm-bindings`, at compile time, where that crate is built for
//! arm64: `cargo check -p umbra-kvm-abi --tests --target aarch64-unknown-linux-musl`.
//!
//! The bindings are generated from Linux's headers by people who never saw this crate.

use crate::{cap, device, exit, ioctl, irq, memory, reg, run, stats, vcpu, vgic};
use core::mem::{align_of, offset_of};
use kvm_bindings as linux;

/// Same size, same alignment, and the named fields at the same offsets.
macro_rules! same {
    ($ours:ty, $theirs:ty $(, $field:ident = $their_field:ident $(. $deeper:ident)*)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$theirs>());
            assert!(align_of::<$ours>() == align_of::<$theirs>());
            $(assert!(
                offset_of!($ours, $field) == offset_of!($theirs, $their_field $(. $deeper)*)
            );)*
        };
    };
}

same!(
    memory::UserspaceMemoryRegion,
    linux::kvm_userspace_memory_region,
    slot = slot,
    flags = flags,
    guest_phys_addr = guest_phys_addr,
    memory_size = memory_size,
    userspace_addr = userspace_addr
);
same!(
    memory::UserspaceMemoryRegion2,
    linux::kvm_userspace_memory_region2,
    guest_memfd_offset = guest_memfd_offset,
    guest_memfd = guest_memfd,
    pad2 = pad2
);
same!(
    memory::DirtyLog,
    linux::kvm_dirty_log,
    slot = slot,
    dirty_bitmap = __bindgen_anon_1
);
same!(
    memory::ClearDirtyLog,
    linux::kvm_clear_dirty_log,
    slot = slot,
    num_pages = num_pages,
    first_page = first_page,
    dirty_bitmap = __bindgen_anon_1
);
same!(
    memory::DirtyGfn,
    linux::kvm_dirty_gfn,
    flags = flags,
    slot = slot,
    offset = offset
);
same!(
    memory::MemoryAttributes,
    linux::kvm_memory_attributes,
    address = address,
    size = size,
    attributes = attributes,
    flags = flags
);
same!(
    memory::CreateGuestMemfd,
    linux::kvm_create_guest_memfd,
    size = size,
    flags = flags
);
same!(
    memory::PreFaultMemory,
    linux::kvm_pre_fault_memory,
    gpa = gpa,
    size = size,
    flags = flags
);
same!(
    memory::CopyMteTags,
    linux::kvm_arm_copy_mte_tags,
    guest_ipa = guest_ipa,
    length = length,
    addr = addr,
    flags = flags
);
same!(
    vcpu::VcpuInit,
    linux::kvm_vcpu_init,
    target = target,
    features = features
);
same!(vcpu::MpState, linux::kvm_mp_state, mp_state = mp_state);
same!(
    vcpu::VcpuEvents,
    linux::kvm_vcpu_events,
    serror_pending = exception.serror_pending,
    serror_has_esr = exception.serror_has_esr,
    ext_dabt_pending = exception.ext_dabt_pending,
    serror_esr = exception.serror_esr,
    reserved = reserved
);
same!(
    vcpu::EnableCap,
    linux::kvm_enable_cap,
    cap = cap,
    flags = flags,
    args = args
);
same!(vcpu::SignalMask, linux::kvm_signal_mask, len = len);
same!(
    vcpu::Translation,
    linux::kvm_translation,
    linear_address = linear_address,
    valid = valid
);
same!(
    vcpu::CounterOffset,
    linux::kvm_arm_counter_offset,
    counter_offset = counter_offset
);
same!(
    vcpu::GuestDebug,
    linux::kvm_guest_debug,
    control = control,
    dbg_bcr = arch.dbg_bcr,
    dbg_bvr = arch.dbg_bvr,
    dbg_wcr = arch.dbg_wcr,
    dbg_wvr = arch.dbg_wvr
);
same!(
    vcpu::Regs,
    linux::kvm_regs,
    regs = regs.regs,
    sp = regs.sp,
    pc = regs.pc,
    pstate = regs.pstate,
    sp_el1 = sp_el1,
    elr_el1 = elr_el1,
    spsr = spsr,
    vregs = fp_regs.vregs,
    fpsr = fp_regs.fpsr,
    fpcr = fp_regs.fpcr
);
same!(irq::IrqLevel, linux::kvm_irq_level, level = level);
same!(
    irq::IrqFd,
    linux::kvm_irqfd,
    fd = fd,
    gsi = gsi,
    flags = flags,
    resamplefd = resamplefd
);
same!(
    irq::IoEventFd,
    linux::kvm_ioeventfd,
    datamatch = datamatch,
    addr = addr,
    len = len,
    fd = fd,
    flags = flags
);
same!(
    irq::IrqRouting,
    linux::kvm_irq_routing,
    nr = nr,
    flags = flags
);
same!(
    irq::IrqRoutingEntry,
    linux::kvm_irq_routing_entry,
    gsi = gsi,
    kind = type_,
    flags = flags,
    words = u
);
same!(
    irq::Msi,
    linux::kvm_msi,
    address_lo = address_lo,
    address_hi = address_hi,
    data = data,
    flags = flags,
    devid = devid
);
same!(
    irq::CoalescedMmioZone,
    linux::kvm_coalesced_mmio_zone,
    addr = addr,
    size = size
);
same!(
    irq::ArmDeviceAddr,
    linux::kvm_arm_device_addr,
    id = id,
    addr = addr
);
same!(
    device::CreateDevice,
    linux::kvm_create_device,
    kind = type_,
    fd = fd,
    flags = flags
);
same!(
    device::DeviceAttr,
    linux::kvm_device_attr,
    flags = flags,
    group = group,
    attr = attr,
    addr = addr
);
same!(
    device::SmcccFilter,
    linux::kvm_smccc_filter,
    base = base,
    nr_functions = nr_functions,
    action = action
);
same!(reg::OneReg, linux::kvm_one_reg, id = id, addr = addr);
same!(reg::RegList, linux::kvm_reg_list, n = n);
same!(
    reg::RegMaskRange,
    linux::reg_mask_range,
    addr = addr,
    range = range
);
same!(
    stats::StatsHeader,
    linux::kvm_stats_header,
    name_size = name_size,
    num_desc = num_desc,
    id_offset = id_offset,
    desc_offset = desc_offset,
    data_offset = data_offset
);
same!(
    stats::StatsDesc,
    linux::kvm_stats_desc,
    flags = flags,
    exponent = exponent,
    size = size,
    offset = offset,
    bucket_size = bucket_size
);

/// The run page: our offsets against the fields of `struct kvm_run`.
macro_rules! run_field {
    ($($ours:ident = $($path:ident).+;)*) => {
        $(const _: () = assert!(run::$ours == offset_of!(linux::kvm_run, $($path).+));)*
    };
}

const _: () = assert!(run::SIZE == size_of::<linux::kvm_run>());

run_field! {
    IMMEDIATE_EXIT = immediate_exit;
    EXIT_REASON = exit_reason;
    FLAGS = flags;
    EXIT = __bindgen_anon_1;
    VALID_REGS = kvm_valid_regs;
    DIRTY_REGS = kvm_dirty_regs;
    DEVICE_IRQ_LEVEL = s.regs.device_irq_level;
    FAIL_ENTRY_REASON = __bindgen_anon_1.fail_entry.hardware_entry_failure_reason;
    FAIL_ENTRY_CPU = __bindgen_anon_1.fail_entry.cpu;
    DEBUG_HSR = __bindgen_anon_1.debug.arch.hsr;
    DEBUG_HSR_HIGH = __bindgen_anon_1.debug.arch.hsr_high;
    DEBUG_FAR = __bindgen_anon_1.debug.arch.far;
    MMIO_PHYS_ADDR = __bindgen_anon_1.mmio.phys_addr;
    MMIO_DATA = __bindgen_anon_1.mmio.data;
    MMIO_LEN = __bindgen_anon_1.mmio.len;
    MMIO_IS_WRITE = __bindgen_anon_1.mmio.is_write;
    HYPERCALL_NR = __bindgen_anon_1.hypercall.nr;
    HYPERCALL_ARGS = __bindgen_anon_1.hypercall.args;
    HYPERCALL_RET = __bindgen_anon_1.hypercall.ret;
    HYPERCALL_FLAGS = __bindgen_anon_1.hypercall.__bindgen_anon_1;
    INTERNAL_SUBERROR = __bindgen_anon_1.internal.suberror;
    INTERNAL_NDATA = __bindgen_anon_1.internal.ndata;
    INTERNAL_DATA = __bindgen_anon_1.internal.data;
    SYSTEM_EVENT_TYPE = __bindgen_anon_1.system_event.type_;
    SYSTEM_EVENT_NDATA = __bindgen_anon_1.system_event.ndata;
    SYSTEM_EVENT_DATA = __bindgen_anon_1.system_event.__bindgen_anon_1;
    ARM_NISV_ESR_ISS = __bindgen_anon_1.arm_nisv.esr_iss;
    ARM_NISV_FAULT_IPA = __bindgen_anon_1.arm_nisv.fault_ipa;
    MEMORY_FAULT_FLAGS = __bindgen_anon_1.memory_fault.flags;
    MEMORY_FAULT_GPA = __bindgen_anon_1.memory_fault.gpa;
    MEMORY_FAULT_SIZE = __bindgen_anon_1.memory_fault.size;
}

/// Numbers of the same name.
macro_rules! numbers {
    ($($module:ident { $($name:ident),* $(,)? })*) => {
        $($(const _: () = assert!($module::$name as u64 == linux::$name as u64);)*)*
    };
}

numbers! {
    exit {
        KVM_EXIT_UNKNOWN, KVM_EXIT_HYPERCALL, KVM_EXIT_DEBUG, KVM_EXIT_MMIO, KVM_EXIT_FAIL_ENTRY,
        KVM_EXIT_INTR, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_ARM_NISV,
        KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_MEMORY_FAULT, KVM_SYSTEM_EVENT_SHUTDOWN,
        KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_WAKEUP,
        KVM_SYSTEM_EVENT_SUSPEND, KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2,
        KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2, KVM_INTERNAL_ERROR_EMULATION,
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_HYPERCALL_EXIT_SMC,
        KVM_HYPERCALL_EXIT_16BIT, KVM_MEMORY_EXIT_FLAG_PRIVATE,
    }
    memory {
        KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEM_GUEST_MEMFD,
        KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET,
        KVM_DIRTY_LOG_PAGE_OFFSET,
    }
    vcpu {
        KVM_ARM_TARGET_GENERIC_V8, KVM_ARM_NUM_TARGETS, KVM_ARM_VCPU_POWER_OFF,
        KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_SVE,
        KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_HAS_EL2,
        KVM_ARM_VCPU_HAS_EL2_E2H0, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
        KVM_GUESTDBG_USE_SW_BP, KVM_GUESTDBG_USE_HW,
    }
    irq {
        KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KVM_MSI_VALID_DEVID,
    }
    device {
        KVM_CREATE_DEVICE_TEST, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_TIMER_CTRL,
        KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, KVM_ARM_VCPU_TIMER_IRQ_PTIMER,
        KVM_ARM_VCPU_TIMER_IRQ_HVTIMER, KVM_ARM_VCPU_TIMER_IRQ_HPTIMER, KVM_ARM_VM_SMCCC_CTRL,
        KVM_ARM_VM_SMCCC_FILTER,
    }
    vgic {
        KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_REGS,
        KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
        KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
        KVM_DEV_ARM_VGIC_GRP_ITS_REGS, KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ, KVM_VGIC_V3_ADDR_TYPE_DIST,
        KVM_VGIC_V3_ADDR_TYPE_REDIST, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
        KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
    }
    stats {
        KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_PEAK,
        KVM_STATS_UNIT_NONE, KVM_STATS_UNIT_BYTES, KVM_STATS_UNIT_SECONDS, KVM_STATS_BASE_POW10,
        KVM_STATS_BASE_POW2,
    }
    cap {
        KVM_CAP_IRQCHIP, KVM_CAP_USER_MEMORY, KVM_CAP_NR_VCPUS, KVM_CAP_NR_MEMSLOTS,
        KVM_CAP_MP_STATE, KVM_CAP_COALESCED_MMIO, KVM_CAP_SYNC_MMU,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS, KVM_CAP_SET_GUEST_DEBUG, KVM_CAP_IRQ_ROUTING,
        KVM_CAP_IRQ_INJECT_STATUS, KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, KVM_CAP_IRQFD,
        KVM_CAP_IOEVENTFD, KVM_CAP_INTERNAL_ERROR_DATA, KVM_CAP_VCPU_EVENTS, KVM_CAP_ENABLE_CAP,
        KVM_CAP_MAX_VCPUS, KVM_CAP_ONE_REG, KVM_CAP_SYNC_REGS, KVM_CAP_SIGNAL_MSI,
        KVM_CAP_READONLY_MEM, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_ARM_PSCI,
        KVM_CAP_ARM_SET_DEVICE_ADDR, KVM_CAP_DEVICE_CTRL, KVM_CAP_ARM_EL1_32BIT,
        KVM_CAP_ENABLE_CAP_VM, KVM_CAP_IOEVENTFD_NO_LENGTH, KVM_CAP_VM_ATTRIBUTES,
        KVM_CAP_ARM_PSCI_0_2, KVM_CAP_CHECK_EXTENSION_VM, KVM_CAP_GUEST_DEBUG_HW_BPS,
        KVM_CAP_GUEST_DEBUG_HW_WPS, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_ARM_PMU_V3,
        KVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_MAX_VCPU_ID, KVM_CAP_MSI_DEVID, KVM_CAP_IMMEDIATE_EXIT,
        KVM_CAP_ARM_USER_IRQ, KVM_CAP_ARM_INJECT_SERROR_ESR, KVM_CAP_ARM_VM_IPA_SIZE,
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_ARM_SVE, KVM_CAP_ARM_PTRAUTH_ADDRESS,
        KVM_CAP_ARM_PTRAUTH_GENERIC, KVM_CAP_ARM_IRQ_LINE_LAYOUT_2, KVM_CAP_ARM_NISV_TO_USER,
        KVM_CAP_ARM_INJECT_EXT_DABT, KVM_CAP_HALT_POLL, KVM_CAP_LAST_CPU, KVM_CAP_STEAL_TIME,
        KVM_CAP_DIRTY_LOG_RING, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_PTP_KVM,
        KVM_CAP_BINARY_STATS_FD, KVM_CAP_ARM_MTE, KVM_CAP_VM_GPA_BITS, KVM_CAP_SYS_ATTRIBUTES,
        KVM_CAP_SYSTEM_EVENT_DATA, KVM_CAP_ARM_SYSTEM_SUSPEND, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_COUNTER_OFFSET,
        KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES,
        KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES, KVM_CAP_USER_MEMORY2, KVM_CAP_MEMORY_FAULT_INFO,
        KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES,
        KVM_CAP_PRE_FAULT_MEMORY, KVM_CAP_ARM_WRITABLE_IMP_ID_REGS,
    }
}

const _: () = {
    assert!(device::KVM_DEV_TYPE_ARM_VGIC_V2 == linux::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2);
    assert!(device::KVM_DEV_TYPE_ARM_VGIC_V3 == linux::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3);
    assert!(device::KVM_DEV_TYPE_ARM_VGIC_ITS == linux::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS);
    assert!(vcpu::Power::Runnable as u32 == linux::KVM_MP_STATE_RUNNABLE);
    assert!(vcpu::Power::Stopped as u32 == linux::KVM_MP_STATE_STOPPED);
    assert!(vcpu::Power::Suspended as u32 == linux::KVM_MP_STATE_SUSPENDED);
    assert!(reg::KVM_ARM_FEATURE_ID_RANGE_SIZE == linux::KVM_ARM_FEATURE_ID_RANGE_SIZE as usize);
    // A structure's size is part of an ioctl's number.
    assert!(ioctl::KVM_GET_REGS.arg_size() == size_of::<linux::kvm_regs>());
};
