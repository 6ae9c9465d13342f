//! How big a mapping may be: one rule for canonical and shadow tables (rows N9 to N11).
//!
//! The size is the biggest leaf of the granule that does not exceed any of: the host's block behind the
//! address, the slot (the whole leaf lies in it, and its addresses on both sides are congruent), one
//! page while dirty pages are logged, and the guest hypervisor's own mapping.
//!
//! Computed before anything is mapped; no address is adjusted by it afterwards (rows N7, N8).

use umbra_arm64::{Granule, Hva, Ipa};

/// A memory slot: `bytes` from `ipa` on are the VMM's memory from `hva` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// First address in the VM.
    pub ipa: Ipa,
    /// First address in the VMM.
    pub hva: Hva,
    /// Length in bytes.
    pub bytes: u64,
}

impl SlotRange {
    /// Whether the naturally aligned `size` bytes round `ipa` all belong to the slot, and stand for
    /// `size` bytes of the VMM that are naturally aligned too.
    fn holds_leaf(&self, ipa: Ipa, size: u64) -> bool {
        let block = ipa.align_down(size);
        let congruent = self.ipa.offset_in(size) == self.hva.offset_in(size);
        let first = block.offset_from(self.ipa);
        let end = first.and_then(|first| first.checked_add(size));
        congruent && end.is_some_and(|end| end <= self.bytes)
    }
}

/// What bounds the size of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRequest {
    /// The table's granule.
    pub granule: Granule,
    /// The biggest leaf the table can hold, in bytes (a start level below a block level excludes it).
    pub table_limit: u64,
    /// The address in the VM's own space.
    pub ipa: Ipa,
    /// Its slot.
    pub slot: SlotRange,
    /// Bytes of the naturally aligned, physically contiguous and equally permitted block of host memory
    /// behind the address.
    pub host_bytes: u64,
    /// Dirty pages are logged.
    pub logging: bool,
    /// For a shadow: bytes that the guest hypervisor's tables map here with one leaf, contiguous
    /// neighbours included. `None` on the canonical table.
    pub guest_bytes: Option<u64>,
}

/// Bytes to map round `request.ipa`: a leaf size of the granule. One page if nothing bigger fits.
pub fn mapping_size(request: &SizeRequest) -> u64 {
    let granule = request.granule;
    let page = granule.bytes();
    let ceiling = request
        .table_limit
        .min(request.host_bytes)
        .min(request.guest_bytes.unwrap_or(u64::MAX))
        .min(if request.logging { page } else { u64::MAX });
    umbra_arm64::Level::ALL
        .into_iter()
        .filter(|level| granule.has_leaf(*level))
        .map(|level| granule.level_bytes(level))
        .find(|size| *size <= ceiling && request.slot.holds_leaf(request.ipa, *size))
        .unwrap_or(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// 4 GiB at 1 GiB, everything in favour of size.
    fn best() -> SizeRequest {
        SizeRequest {
            granule: Granule::K4,
            table_limit: GIB,
            ipa: Ipa::new(2 * GIB + 0x1234),
            slot: SlotRange {
                ipa: Ipa::new(GIB),
                hva: Hva::new(0x7f00_0000_0000),
                bytes: 4 * GIB,
            },
            host_bytes: GIB,
            logging: false,
            guest_bytes: None,
        }
    }

    #[test]
    fn each_bound_alone_makes_it_smaller() {
        assert_eq!(mapping_size(&best()), GIB);
        assert_eq!(
            mapping_size(&SizeRequest {
                table_limit: 2 * MIB,
                ..best()
            }),
            2 * MIB
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                host_bytes: 512 * MIB,
                ..best()
            }),
            2 * MIB
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                host_bytes: 4096,
                ..best()
            }),
            4096
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                logging: true,
                ..best()
            }),
            4096
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                guest_bytes: Some(32 * MIB),
                ..best()
            }),
            2 * MIB
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                guest_bytes: Some(64 << 10),
                ..best()
            }),
            4096
        );
        assert_eq!(
            mapping_size(&SizeRequest {
                guest_bytes: Some(GIB),
                ..best()
            }),
            GIB
        );
    }

    #[test]
    fn the_slot_s_ends_and_alignment_count() {
        let with = |slot| mapping_size(&SizeRequest { slot, ..best() });
        let slot = best().slot;
        assert_eq!(
            with(SlotRange {
                bytes: 2 * GIB - 4096,
                ..slot
            }),
            2 * MIB
        );
        assert_eq!(
            with(SlotRange {
                bytes: GIB + 4096 * 2,
                ..slot
            }),
            4096
        );
        // Two MiB apart: blocks of 2 MiB are congruent, of 1 GiB not.
        assert_eq!(
            with(SlotRange {
                hva: Hva::new(0x7f00_0020_0000),
                ..slot
            }),
            2 * MIB
        );
        assert_eq!(
            with(SlotRange {
                hva: Hva::new(0x7f00_0000_1000),
                ..slot
            }),
            4096
        );
        // The block begins before the slot.
        let late = SlotRange {
            ipa: Ipa::new(2 * GIB + 0x1000),
            hva: Hva::new(0x1000),
            bytes: GIB,
        };
        assert_eq!(with(late), 4096);
    }

    fn request() -> impl Strategy<Value = SizeRequest> {
        let shift = || prop::sample::select(&[12u32, 13, 14, 16, 20, 21, 22, 25, 29, 30, 31][..]);
        let granule = prop::sample::select(&Granule::ALL[..]);
        let place = (0u64..1 << 16, shift()).prop_map(|(n, shift)| n << shift);
        let bytes = (1u64..64, shift()).prop_map(|(n, shift)| n << shift);
        let bounds = (
            12u32..40,
            12u32..40,
            prop::option::of(12u32..40),
            any::<bool>(),
        );
        (granule, place.clone(), place, bytes, 0.0..1.0f64, bounds).prop_map(
            |(granule, ipa, hva, bytes, at, (table, host, guest, logging))| {
                let page = granule.bytes();
                let (ipa, hva, bytes) = (
                    ipa & !(page - 1),
                    hva & !(page - 1),
                    bytes.next_multiple_of(page),
                );
                let inside = ((bytes as f64 * at) as u64).min(bytes - 1);
                SizeRequest {
                    granule,
                    table_limit: 1 << table,
                    ipa: Ipa::new(ipa + inside),
                    slot: SlotRange {
                        ipa: Ipa::new(ipa),
                        hva: Hva::new(hva),
                        bytes,
                    },
                    host_bytes: 1 << host,
                    logging,
                    guest_bytes: guest.map(|shift| 1 << shift),
                }
            },
        )
    }

    /// Whether a leaf of `size` keeps every promise, each in its own words.
    fn is_allowed(request: &SizeRequest, size: u64) -> bool {
        let SizeRequest { slot, ipa, .. } = *request;
        let start = ipa.raw() / size * size;
        let host_start = (slot.hva.raw() + (ipa.raw() - slot.ipa.raw())) / size * size;
        start >= slot.ipa.raw()
            && start + size <= slot.ipa.raw() + slot.bytes
            && host_start >= slot.hva.raw()
            && host_start - slot.hva.raw() == start - slot.ipa.raw()
            && size <= request.host_bytes
            && size <= request.table_limit
            && request.guest_bytes.is_none_or(|bytes| size <= bytes)
            && (!request.logging || size == request.granule.bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_biggest_that_keeps_every_promise(request in request()) {
            let (size, page) = (mapping_size(&request), request.granule.bytes());
            prop_assert!(request.granule.leaf_level(size).is_some());
            prop_assert!(size == page || is_allowed(&request, size));
            for level in umbra_arm64::Level::ALL {
                let bigger = request.granule.level_bytes(level);
                if request.granule.has_leaf(level) && bigger > size {
                    prop_assert!(!is_allowed(&request, bigger), "{bigger:#x} would have done, not {size:#x}");
                }
            }
        }

        #[test]
        fn no_numbers_overflow(
            ipa in any::<u64>(), base in any::<u64>(), hva in any::<u64>(), bytes in any::<u64>(), host_bytes in any::<u64>(),
        ) {
            let slot = SlotRange { ipa: Ipa::new(base), hva: Hva::new(hva), bytes };
            let request = SizeRequest { ipa: Ipa::new(ipa), slot, host_bytes, ..best() };
            prop_assert!(mapping_size(&request) >= 4096);
        }
    }
}
