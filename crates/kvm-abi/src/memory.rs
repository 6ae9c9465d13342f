//! Machine types, memory slots, dirty logs (api.rst 4.2, 4.8, 4.35, 4.117, 4.140).

use crate::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The argument of KVM_CREATE_VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineType {
    /// The width of the VM's physical address space in bits, 32 to 52.
    pub ipa_bits: u8,
}

impl MachineType {
    /// Reads the argument of KVM_CREATE_VM; 0 in the low byte means 40 bits. Answers EINVAL for
    /// unknown bits (protected VMs among them) and for a width below 32 or above `max_ipa_bits`.
    pub const fn parse(raw: u64, max_ipa_bits: u8) -> Result<Self, Errno> {
        if raw & !0xff != 0 {
            return Err(Errno::EINVAL);
        }
        let ipa_bits = if raw == 0 { 40 } else { raw as u8 };
        if ipa_bits < 32 || ipa_bits > max_ipa_bits {
            return Err(Errno::EINVAL);
        }
        Ok(Self { ipa_bits })
    }
}

/// The slot's written pages are logged.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
/// The guest cannot write the slot; writes are MMIO.
pub const KVM_MEM_READONLY: u32 = 1 << 1;
/// The slot is backed by a guest memory file.
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;

/// The number of slots that KVM_CAP_NR_MEMSLOTS answers on Linux: ids are below it.
pub const KVM_USER_MEM_SLOTS: u32 = 32_767;
/// The largest size of a slot, in pages.
pub const KVM_MEM_MAX_NR_PAGES: u64 = (1 << 31) - 1;

/// `struct kvm_userspace_memory_region`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UserspaceMemoryRegion {
    /// Slot id in \[15:0\], address space in \[31:16\] (0 on arm64).
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// First byte of the slot, guest physical.
    pub guest_phys_addr: u64,
    /// Size in bytes; 0 deletes the slot.
    pub memory_size: u64,
    /// First byte of the backing, in the VMM's address space.
    pub userspace_addr: u64,
}

/// `struct kvm_userspace_memory_region2`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UserspaceMemoryRegion2 {
    /// What KVM_SET_USER_MEMORY_REGION has.
    pub region: UserspaceMemoryRegion,
    /// Offset in bytes in the guest memory file.
    pub guest_memfd_offset: u64,
    /// The guest memory file; meaningful with [`KVM_MEM_GUEST_MEMFD`].
    pub guest_memfd: u32,
    /// Ignored.
    pub pad1: u32,
    /// Ignored.
    pub pad2: [u64; 14],
}

/// `struct kvm_dirty_log`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DirtyLog {
    /// Slot id and address space.
    pub slot: u32,
    /// Ignored.
    pub padding1: u32,
    /// Where the bitmap goes, in the VMM's address space: a bit a page, rounded up to 64 bits.
    pub dirty_bitmap: u64,
}

/// `struct kvm_clear_dirty_log`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ClearDirtyLog {
    /// Slot id and address space.
    pub slot: u32,
    /// Number of pages; a multiple of 64 unless the range ends with the slot.
    pub num_pages: u32,
    /// First page in the slot; a multiple of 64.
    pub first_page: u64,
    /// The pages to clear, in the VMM's address space.
    pub dirty_bitmap: u64,
}

/// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: KVM_GET_DIRTY_LOG does not clear.
pub const KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: u64 = 1 << 0;
/// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: every page starts dirty.
pub const KVM_DIRTY_LOG_INITIALLY_SET: u64 = 1 << 1;

/// `struct kvm_dirty_gfn`: an entry of the dirty ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DirtyGfn {
    /// Bit 0: dirty, bit 1: collected by the VMM.
    pub flags: u32,
    /// Slot id and address space.
    pub slot: u32,
    /// Page number in the slot.
    pub offset: u64,
}

/// The ring's first page in a vCPU's mapping.
pub const KVM_DIRTY_LOG_PAGE_OFFSET: u64 = 64;

/// `struct kvm_memory_attributes`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MemoryAttributes {
    /// First byte, guest physical.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Bit 3: private.
    pub attributes: u64,
    /// Zero.
    pub flags: u64,
}

/// `struct kvm_create_guest_memfd`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CreateGuestMemfd {
    /// Size in bytes.
    pub size: u64,
    /// Bit 0: can be mapped.
    pub flags: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

/// `struct kvm_pre_fault_memory`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PreFaultMemory {
    /// First byte, guest physical; advanced on return.
    pub gpa: u64,
    /// Size in bytes; reduced on return.
    pub size: u64,
    /// Zero.
    pub flags: u64,
    /// Zero.
    pub padding: [u64; 5],
}

/// `struct kvm_arm_copy_mte_tags`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CopyMteTags {
    /// First byte, guest physical.
    pub guest_ipa: u64,
    /// Size in bytes.
    pub length: u64,
    /// The tags, in the VMM's address space.
    pub addr: u64,
    /// 0 to the guest, 1 from the guest.
    pub flags: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_type_is_a_width_between_32_and_the_largest() {
        assert_eq!(MachineType::parse(0, 48), Ok(MachineType { ipa_bits: 40 }));
        assert_eq!(MachineType::parse(32, 48), Ok(MachineType { ipa_bits: 32 }));
        assert_eq!(MachineType::parse(48, 48), Ok(MachineType { ipa_bits: 48 }));
        for bad in [31, 49, 255, 1 << 8, 1 << 31, u64::MAX] {
            assert_eq!(MachineType::parse(bad, 48), Err(Errno::EINVAL), "{bad:#x}");
        }
        assert_eq!(
            MachineType::parse(0, 36),
            Err(Errno::EINVAL),
            "40 bits do not fit"
        );
    }
}
