//! The capability numbers that mean something on arm64 (api.rst 4.4 and chapters 6 to 8).
//!
//! [`ALL`] names them for logs and for the test that compares them; a number that is not here is
//! answered 0 by KVM_CHECK_EXTENSION and EINVAL by KVM_ENABLE_CAP.

macro_rules! capabilities {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $name: u32 = $number;
        )*

        /// Every capability: number, name. Ascending.
        pub const ALL: &[(u32, &str)] = &[$(($number, stringify!($name)),)*];
    };
}

capabilities! {
    /// An interrupt controller can be created.
    KVM_CAP_IRQCHIP = 0;
    /// KVM_SET_USER_MEMORY_REGION.
    KVM_CAP_USER_MEMORY = 3;
    /// The recommended number of vCPUs.
    KVM_CAP_NR_VCPUS = 9;
    /// The number of memory slots.
    KVM_CAP_NR_MEMSLOTS = 10;
    /// KVM_GET_MP_STATE.
    KVM_CAP_MP_STATE = 14;
    /// KVM_REGISTER_COALESCED_MMIO; the answer is the page of the ring.
    KVM_CAP_COALESCED_MMIO = 15;
    /// munmap in the VMM takes effect in the guest.
    KVM_CAP_SYNC_MMU = 16;
    /// A slot can be deleted.
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21;
    /// KVM_SET_GUEST_DEBUG.
    KVM_CAP_SET_GUEST_DEBUG = 23;
    /// KVM_SET_GSI_ROUTING; the answer is the number of entries.
    KVM_CAP_IRQ_ROUTING = 25;
    /// KVM_IRQ_LINE_STATUS.
    KVM_CAP_IRQ_INJECT_STATUS = 26;
    /// A slot can be made where one was deleted.
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30;
    /// KVM_IRQFD.
    KVM_CAP_IRQFD = 32;
    /// KVM_IOEVENTFD.
    KVM_CAP_IOEVENTFD = 36;
    /// KVM_EXIT_INTERNAL_ERROR has data.
    KVM_CAP_INTERNAL_ERROR_DATA = 40;
    /// KVM_GET_VCPU_EVENTS.
    KVM_CAP_VCPU_EVENTS = 41;
    /// KVM_ENABLE_CAP on a vCPU.
    KVM_CAP_ENABLE_CAP = 54;
    /// The largest number of vCPUs.
    KVM_CAP_MAX_VCPUS = 66;
    /// KVM_GET_ONE_REG.
    KVM_CAP_ONE_REG = 70;
    /// Shared registers in the run page.
    KVM_CAP_SYNC_REGS = 74;
    /// KVM_SIGNAL_MSI.
    KVM_CAP_SIGNAL_MSI = 77;
    /// Read-only slots.
    KVM_CAP_READONLY_MEM = 81;
    /// Resampling irqfds.
    KVM_CAP_IRQFD_RESAMPLE = 82;
    /// PSCI.
    KVM_CAP_ARM_PSCI = 87;
    /// KVM_ARM_SET_DEVICE_ADDR.
    KVM_CAP_ARM_SET_DEVICE_ADDR = 88;
    /// KVM_CREATE_DEVICE.
    KVM_CAP_DEVICE_CTRL = 89;
    /// AArch32 at EL1.
    KVM_CAP_ARM_EL1_32BIT = 93;
    /// KVM_ENABLE_CAP on a VM.
    KVM_CAP_ENABLE_CAP_VM = 98;
    /// An ioeventfd may leave the length open.
    KVM_CAP_IOEVENTFD_NO_LENGTH = 100;
    /// Device attributes of a VM.
    KVM_CAP_VM_ATTRIBUTES = 101;
    /// PSCI 0.2 and later.
    KVM_CAP_ARM_PSCI_0_2 = 102;
    /// KVM_CHECK_EXTENSION on a VM.
    KVM_CAP_CHECK_EXTENSION_VM = 105;
    /// The number of breakpoints for KVM_SET_GUEST_DEBUG.
    KVM_CAP_GUEST_DEBUG_HW_BPS = 119;
    /// The number of watchpoints for KVM_SET_GUEST_DEBUG.
    KVM_CAP_GUEST_DEBUG_HW_WPS = 120;
    /// An ioeventfd of any length.
    KVM_CAP_IOEVENTFD_ANY_LENGTH = 122;
    /// Performance counters.
    KVM_CAP_ARM_PMU_V3 = 126;
    /// Device attributes of a vCPU.
    KVM_CAP_VCPU_ATTRIBUTES = 127;
    /// One more than the largest vCPU id.
    KVM_CAP_MAX_VCPU_ID = 128;
    /// Messages carry a device id.
    KVM_CAP_MSI_DEVID = 131;
    /// `immediate_exit`.
    KVM_CAP_IMMEDIATE_EXIT = 136;
    /// The outputs of in-kernel devices are shown in the run page.
    KVM_CAP_ARM_USER_IRQ = 144;
    /// An SError can carry a syndrome.
    KVM_CAP_ARM_INJECT_SERROR_ESR = 158;
    /// The largest IPA width in bits.
    KVM_CAP_ARM_VM_IPA_SIZE = 165;
    /// KVM_CLEAR_DIRTY_LOG.
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168;
    /// SVE.
    KVM_CAP_ARM_SVE = 170;
    /// Pointer authentication of addresses.
    KVM_CAP_ARM_PTRAUTH_ADDRESS = 171;
    /// Generic pointer authentication.
    KVM_CAP_ARM_PTRAUTH_GENERIC = 172;
    /// KVM_IRQ_LINE takes twelve bits of vCPU id.
    KVM_CAP_ARM_IRQ_LINE_LAYOUT_2 = 174;
    /// Accesses without syndrome exit.
    KVM_CAP_ARM_NISV_TO_USER = 177;
    /// KVM_SET_VCPU_EVENTS injects external aborts.
    KVM_CAP_ARM_INJECT_EXT_DABT = 178;
    /// Halt polling.
    KVM_CAP_HALT_POLL = 182;
    /// The last CPU is reported.
    KVM_CAP_LAST_CPU = 184;
    /// Stolen time.
    KVM_CAP_STEAL_TIME = 187;
    /// The dirty ring.
    KVM_CAP_DIRTY_LOG_RING = 192;
    /// KVM_SET_GUEST_DEBUG2.
    KVM_CAP_SET_GUEST_DEBUG2 = 195;
    /// The host's clock for guests.
    KVM_CAP_PTP_KVM = 198;
    /// KVM_GET_STATS_FD.
    KVM_CAP_BINARY_STATS_FD = 203;
    /// MTE.
    KVM_CAP_ARM_MTE = 205;
    /// The width of guest physical addresses.
    KVM_CAP_VM_GPA_BITS = 207;
    /// Attributes of `/dev/kvm`.
    KVM_CAP_SYS_ATTRIBUTES = 209;
    /// `system_event` has data.
    KVM_CAP_SYSTEM_EVENT_DATA = 215;
    /// SYSTEM_SUSPEND of PSCI exits.
    KVM_CAP_ARM_SYSTEM_SUSPEND = 216;
    /// The dirty ring with acquire and release.
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223;
    /// The dirty ring beside a bitmap.
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP = 225;
    /// KVM_ARM_SET_COUNTER_OFFSET.
    KVM_CAP_COUNTER_OFFSET = 227;
    /// Eager splitting: how much at once.
    KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE = 228;
    /// Eager splitting: which sizes.
    KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES = 229;
    /// KVM_ARM_GET_REG_WRITABLE_MASKS.
    KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES = 230;
    /// KVM_SET_USER_MEMORY_REGION2.
    KVM_CAP_USER_MEMORY2 = 231;
    /// KVM_EXIT_MEMORY_FAULT.
    KVM_CAP_MEMORY_FAULT_INFO = 232;
    /// KVM_SET_MEMORY_ATTRIBUTES.
    KVM_CAP_MEMORY_ATTRIBUTES = 233;
    /// KVM_CREATE_GUEST_MEMFD.
    KVM_CAP_GUEST_MEMFD = 234;
    /// The set of machine types.
    KVM_CAP_VM_TYPES = 235;
    /// KVM_PRE_FAULT_MEMORY.
    KVM_CAP_PRE_FAULT_MEMORY = 236;
    /// MIDR_EL1, REVIDR_EL1 and AIDR_EL1 can be written.
    KVM_CAP_ARM_WRITABLE_IMP_ID_REGS = 239;
    /// Virtual EL2.
    KVM_CAP_ARM_EL2 = 240;
    /// Virtual EL2 with E2H 0.
    KVM_CAP_ARM_EL2_E2H0 = 241;
    /// Device memory can be mapped cacheable.
    KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED = 243;
    /// The flags of guest memory files.
    KVM_CAP_GUEST_MEMFD_FLAGS = 244;
    /// KVM_EXIT_ARM_SEA.
    KVM_CAP_ARM_SEA_TO_USER = 245;
}

/// The name of a capability, where arm64 has it.
pub fn name(number: u32) -> Option<&'static str> {
    let at = ALL.binary_search_by_key(&number, |row| row.0).ok()?;
    Some(ALL[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend() {
        assert!(ALL.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    /// As for ioctls: a capability that the document does not mention is one that nobody decided.
    #[test]
    fn the_document_names_every_capability_once() {
        let document = include_str!("../../../docs/abi.md");
        for (_, name) in ALL {
            let mut rows = document.lines().filter(|line| {
                let mut cells = line.split('|').map(str::trim);
                cells.nth(1) == Some(name)
            });
            let row = rows.next().unwrap_or("");
            let state = row.split('|').nth(2).map(str::trim);
            assert!(
                matches!(state, Some("done" | "partial" | "absent")),
                "{name}: {row}"
            );
            assert_eq!(rows.next(), None, "{name}");
        }
    }

    #[test]
    fn the_newest_have_their_numbers() {
        assert_eq!(name(240), Some("KVM_CAP_ARM_EL2"));
        assert_eq!(name(241), Some("KVM_CAP_ARM_EL2_E2H0"));
        assert_eq!(name(245), Some("KVM_CAP_ARM_SEA_TO_USER"));
        assert_eq!(name(1), None);
    }
}
