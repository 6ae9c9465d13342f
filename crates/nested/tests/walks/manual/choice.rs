//! Where the manual leaves a choice.

use umbra_arm64::Ipa;
use umbra_nested::Support;

/// `__IMPDEF "TG0 encoded granule size"`: a granule that is reserved or absent is replaced by the
/// smallest there is, as QEMU does (`sanitize_gran_size`). In bits: 12, 14 or 16.
pub(crate) fn granule(asked: Option<u32>, support: [(u32, Support); 3]) -> u32 {
    let there = |bits: u32| {
        support
            .iter()
            .any(|(known, support)| *known == bits && *support != Support::Absent)
    };
    match asked {
        Some(bits) if there(bits) => bits,
        _ => [12, 14, 16]
            .into_iter()
            .find(|bits| there(*bits))
            .unwrap_or(12),
    }
}

/// "Fault on TxSZ value below minimum" and "… above maximum": yes. The first is required with FEAT_LVA
/// or FEAT_LPA; QEMU does both always.
pub(crate) const FAULT_ON_TXSZ_OUT_OF_RANGE: bool = true;

/// "Translation fault on misprogrammed contiguous bit": no. QEMU never looks at the bit.
pub(crate) const FAULT_ON_CONTIGUOUS: bool = false;

/// Whether the contiguous bit of a leaf is believed. It is a hint: a TLB need not use it. The
/// pseudocode takes the low output bits of a group from the input; where the descriptor says otherwise
/// (a misprogrammed group, CONSTRAINED UNPREDICTABLE) or the group is bigger than the input space, the
/// hint is not taken.
pub(crate) fn believe_contiguous(
    base: u64,
    input: u64,
    leaf: u32,
    group: u32,
    iasize: u32,
) -> bool {
    let low = |x: u64| super::slice(x, group - 1, leaf);
    low(base) == low(input) && group <= iasize
}

/// Unpredictable_AFUPDATE: no, a permission fault leaves the access flag alone (as in QEMU).
pub(crate) const AF_ON_PERMISSION_FAULT: bool = false;

/// Unpredictable_INSTRDEVICE: no fault for a fetch from device memory.
pub(crate) const FETCH_FROM_DEVICE_FAULTS: bool = false;

/// Unpredictable_RESMAIR: Device-nGnRnE.
pub(crate) const RESERVED_MAIR: u64 = 0x00;

/// Unpredictable_S2RESMEMATTR: non-cacheable.
pub(crate) const RESERVED_S2_CACHEABILITY: u64 = 0b01;

/// Unpredictable_Shareability: outer shareable.
pub(crate) const RESERVED_SHAREABILITY: u64 = 0b10;

/// What a memory that fails answers.
pub(crate) enum PhysMem {
    /// The value.
    Value(u64),
    /// A synchronous external abort.
    Abort,
    /// Not now.
    Retry,
}

/// `PhysMemRead` of a descriptor.
pub(crate) fn phys_mem_read(memory: &mut impl umbra_nested::GuestMemory, address: u64) -> PhysMem {
    use umbra_nested::MemoryError::{NotMapped, Poisoned, ReadOnly, Retry};
    match memory.read_u64(Ipa::new(address)) {
        Ok(value) => PhysMem::Value(value),
        Err(NotMapped | Poisoned | ReadOnly) => PhysMem::Abort,
        Err(Retry) => PhysMem::Retry,
    }
}

/// `PhysMemWrite` of a descriptor that was just read as `old`.
pub(crate) fn phys_mem_write(
    memory: &mut impl umbra_nested::GuestMemory,
    address: u64,
    old: u64,
    new: u64,
) -> PhysMem {
    use umbra_nested::MemoryError::{NotMapped, Poisoned, ReadOnly, Retry};
    match memory.compare_exchange_u64(Ipa::new(address), old, new) {
        Ok(outcome) => {
            assert_eq!(outcome, Ok(()), "nobody else writes here");
            PhysMem::Value(new)
        }
        Err(NotMapped | Poisoned | ReadOnly) => PhysMem::Abort,
        Err(Retry) => PhysMem::Retry,
    }
}
