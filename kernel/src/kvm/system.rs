//! The ioctls of /dev/kvm itself, and what it says it can do.

use alloc::sync::Arc;

use umbra_kvm_abi::cap;
use umbra_kvm_abi::ioctl;
use umbra_kvm_abi::memory::{KVM_USER_MEM_SLOTS, MachineType};
use umbra_kvm_abi::vcpu::KVM_GUESTDBG_VALID_MASK;
use umbra_linux::Errno;

use super::live;
use super::memory::Machine;
use super::vm::{Open, Vm, VmFile, abi};
use crate::file::{Call, File};

/// vCPUs a VM may have.
pub(super) const MAX_VCPUS: usize = umbra_vgic::MAX_VCPUS;
/// Block sizes that a stage 2 may have: 4 KiB, 2 MiB, 1 GiB, a bit each.
const BLOCK_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// Whether blocks may be split ahead in pieces of `bytes`; 0 is not at all.
pub(super) fn is_chunk(bytes: u64) -> bool {
    bytes == 0 || bytes.is_power_of_two() && BLOCK_SIZES & bytes != 0
}

/// The ABI's version, for ever 12.
const API_VERSION: u64 = 12;
/// Bytes of the run page.
pub(super) const RUN_BYTES: u64 = 4096;
/// Bytes of a vCPU's mapping: behind the run page, the VM's ring of queued writes (`coalesced`).
pub(super) const MAPPING_BYTES: u64 = RUN_BYTES + 4096;

/// /dev/kvm, opened.
pub(super) struct System;

/// KVM_CHECK_EXTENSION: 0 for what is not there.
pub(super) fn extension(number: u64, vm: Option<&Arc<Vm>>) -> u64 {
    let machine = Machine::read();
    let Ok(number) = u32::try_from(number) else {
        return 0;
    };
    match number {
        cap::KVM_CAP_USER_MEMORY
        | cap::KVM_CAP_USER_MEMORY2
        | cap::KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | cap::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | cap::KVM_CAP_ONE_REG
        | cap::KVM_CAP_ARM_PSCI
        | cap::KVM_CAP_ARM_PSCI_0_2
        | cap::KVM_CAP_READONLY_MEM
        | cap::KVM_CAP_MP_STATE
        | cap::KVM_CAP_IMMEDIATE_EXIT
        | cap::KVM_CAP_IRQFD
        | cap::KVM_CAP_IOEVENTFD
        | cap::KVM_CAP_IOEVENTFD_ANY_LENGTH
        | cap::KVM_CAP_DEVICE_CTRL
        | cap::KVM_CAP_VCPU_EVENTS
        | cap::KVM_CAP_ENABLE_CAP
        | cap::KVM_CAP_ENABLE_CAP_VM
        | cap::KVM_CAP_ARM_NISV_TO_USER
        | cap::KVM_CAP_ARM_INJECT_EXT_DABT
        | cap::KVM_CAP_ARM_SEA_TO_USER
        | cap::KVM_CAP_ARM_SYSTEM_SUSPEND
        | cap::KVM_CAP_BINARY_STATS_FD
        | cap::KVM_CAP_HALT_POLL
        | cap::KVM_CAP_ARM_WRITABLE_IMP_ID_REGS
        | cap::KVM_CAP_IRQFD_RESAMPLE
        | cap::KVM_CAP_ARM_USER_IRQ
        // The page of the vCPU's mapping that the ring is.
        | cap::KVM_CAP_COALESCED_MMIO
        | cap::KVM_CAP_IRQCHIP => 1,
        cap::KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE => {
            vm.map_or(0, |vm| vm.options.lock().split_chunk)
        }
        cap::KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES => BLOCK_SIZES,
        // Not where EL2's counters would need it (docs/abi.md).
        cap::KVM_CAP_COUNTER_OFFSET => u64::from(vm.is_none_or(|vm| !vm.is_nested())),
        cap::KVM_CAP_MSI_DEVID => vm.map_or(0, |vm| vm.itses.are_there().into()),
        cap::KVM_CAP_SYNC_MMU
        | cap::KVM_CAP_SIGNAL_MSI
        | cap::KVM_CAP_VCPU_ATTRIBUTES
        | cap::KVM_CAP_VM_ATTRIBUTES
        | cap::KVM_CAP_CHECK_EXTENSION_VM
        | cap::KVM_CAP_ARM_IRQ_LINE_LAYOUT_2
        | cap::KVM_CAP_SYSTEM_EVENT_DATA
        | cap::KVM_CAP_INTERNAL_ERROR_DATA
        | cap::KVM_CAP_MEMORY_FAULT_INFO
        // A mask of ranges: that of the feature ids.
        | cap::KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES => 1,
        cap::KVM_CAP_IRQ_ROUTING => super::routing::MAX_ROUTES.into(),
        cap::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => super::dirty::MANUAL,
        cap::KVM_CAP_ARM_VM_IPA_SIZE => u64::from(machine.pa_bits),
        cap::KVM_CAP_NR_VCPUS => crate::sched::cpus() as u64,
        cap::KVM_CAP_MAX_VCPUS | cap::KVM_CAP_MAX_VCPU_ID => MAX_VCPUS as u64,
        cap::KVM_CAP_NR_MEMSLOTS => u64::from(KVM_USER_MEM_SLOTS),
        cap::KVM_CAP_ARM_PTRAUTH_ADDRESS | cap::KVM_CAP_ARM_PTRAUTH_GENERIC => {
            u64::from(super::vcpu::has_pauth())
        }
        cap::KVM_CAP_SET_GUEST_DEBUG | cap::KVM_CAP_STEAL_TIME | cap::KVM_CAP_PTP_KVM => 1,
        cap::KVM_CAP_ARM_PMU_V3 => u64::from(umbra_hw::pmu::version() != 0),
        cap::KVM_CAP_SET_GUEST_DEBUG2 => u64::from(KVM_GUESTDBG_VALID_MASK),
        cap::KVM_CAP_GUEST_DEBUG_HW_BPS => umbra_hw::debug::breakpoints() as u64,
        cap::KVM_CAP_GUEST_DEBUG_HW_WPS => umbra_hw::debug::watchpoints() as u64,
        cap::KVM_CAP_ARM_EL2 => u64::from(super::vcpu::has_nv2()),
        cap::KVM_CAP_ARM_INJECT_SERROR_ESR => u64::from(super::vcpu::has_ras()),
        _ => 0,
    }
}

impl File for System {
    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        match request {
            r if r == ioctl::KVM_GET_API_VERSION.raw() => {
                if arg != 0 {
                    return Err(Errno::EINVAL);
                }
                Ok(API_VERSION)
            }
            r if r == ioctl::KVM_CREATE_VM.raw() => {
                let machine = Machine::read();
                let kind = abi(MachineType::parse(arg, machine.pa_bits))?;
                let vm = Vm::new(call.process.mm(), kind.ipa_bits)?;
                live::register(&vm);
                call.process
                    .install(
                        Arc::new(VmFile {
                            open: Open::new(vm),
                        }),
                        true,
                    )
                    .map(u64::from)
            }
            // Of a VM alone: on /dev/kvm Linux gives an error instead of a zero.
            r if r == ioctl::KVM_CHECK_EXTENSION.raw() && arg == cap::KVM_CAP_MSI_DEVID.into() => {
                Err(Errno::EINVAL)
            }
            r if r == ioctl::KVM_CHECK_EXTENSION.raw() => Ok(extension(arg, None)),
            r if r == ioctl::KVM_GET_VCPU_MMAP_SIZE.raw() => {
                if arg != 0 {
                    return Err(Errno::EINVAL);
                }
                Ok(MAPPING_BYTES)
            }
            // As Linux answers on arm64, what it knows elsewhere included.
            _ => Err(Errno::EINVAL),
        }
    }
}
