//! What both stages share.

use umbra_arm64::Granule;
use umbra_nested::{Features, GuestMemory, Support};

use super::choice::{self, PhysMem};
use super::{Fault, Machine, Status, bit, is_zero, slice};

pub(crate) const FINAL_LEVEL: i32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DescriptorType {
    Table,
    Leaf,
    Invalid,
}

/// Stage and walk that a fault is to be filed under.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) secondstage: bool,
    pub(crate) s2fs1walk: bool,
}

impl Place {
    pub(crate) fn fault(self, statuscode: Status, level: i32) -> Fault {
        Fault::Architected {
            statuscode,
            level,
            secondstage: self.secondstage,
            s2fs1walk: self.s2fs1walk,
        }
    }
}

/// The granules of a stage, by their bits.
pub(crate) fn support(features: &Features, stage2: bool) -> [(u32, Support); 3] {
    let granules = if stage2 {
        features.stage2
    } else {
        features.stage1
    };
    [
        (12, granules.support(Granule::K4)),
        (14, granules.support(Granule::K16)),
        (16, granules.support(Granule::K64)),
    ]
}

/// Whether the DS bit counts: FEAT_LPA2 for this granule and stage.
pub(crate) fn have_ds(features: &Features, stage2: bool, granule: u32) -> bool {
    granule != 16
        && support(features, stage2)
            .iter()
            .any(|(bits, support)| *bits == granule && *support == Support::Lpa2)
}

pub(crate) fn ia_size(txsz: u32) -> u32 {
    64 - txsz
}

/// `AArch64.MaxTxSZ`.
pub(crate) fn max_txsz(features: &Features, granule: u32) -> u32 {
    if features.small_tables {
        if granule == 16 { 47 } else { 48 }
    } else {
        39
    }
}

/// `TranslationSize`: the bits that a leaf of `level` passes through.
pub(crate) fn translation_size(granule: u32, level: i32) -> u32 {
    granule + (granule - 3) * (FINAL_LEVEL - level) as u32
}

/// `ContiguousSize`.
pub(crate) fn contiguous_size(granule: u32, level: i32) -> u32 {
    match granule {
        12 => 4,
        14 if level == 2 => 5,
        14 => 7,
        _ => 5,
    }
}

/// `AArch64.ContiguousBit`.
pub(crate) fn contiguous_bit(granule: u32, level: i32, descriptor: u64) -> bool {
    !matches!((granule, level), (16, 1) | (14, 1) | (12, 0)) && bit(descriptor, 52)
}

impl<M: GuestMemory> Machine<'_, M> {
    /// `AArch64.PhysicalAddressSize`.
    pub(crate) fn physical_address_size(&self, ps: u64, granule: u32, lpa2: bool) -> u32 {
        let size = [32, 36, 40, 42, 44, 48, 52, 56][ps as usize];
        let max = if granule != 16 && !lpa2 || !self.have_52bit_pa() {
            self.pa_max().min(48)
        } else {
            self.pa_max().min(52)
        };
        size.min(max)
    }

    /// `AArch64.OAOutOfRange`.
    pub(crate) fn oa_out_of_range(&self, address: u64, ps: u64, granule: u32, lpa2: bool) -> bool {
        !is_zero(address, 55, self.physical_address_size(ps, granule, lpa2))
    }

    /// `AArch64.BlockDescSupported`.
    fn block_desc_supported(&self, ds: bool, granule: u32, level: i32) -> bool {
        match granule {
            12 => level == 2 || level == 1 || level == 0 && ds,
            14 => level == 2 || level == 1 && ds,
            _ => level == 2 || level == 1 && self.pa_max() >= 52,
        }
    }

    /// `AArch64.DecodeDescriptorType`.
    pub(crate) fn decode_descriptor_type(
        &self,
        descriptor: u64,
        ds: bool,
        granule: u32,
        level: i32,
    ) -> DescriptorType {
        if !bit(descriptor, 0) {
            DescriptorType::Invalid
        } else if bit(descriptor, 1) {
            if level == FINAL_LEVEL {
                DescriptorType::Leaf
            } else {
                DescriptorType::Table
            }
        } else if self.block_desc_supported(ds, granule, level) {
            DescriptorType::Leaf
        } else {
            DescriptorType::Invalid
        }
    }

    /// `AArch64.LeafBase`.
    pub(crate) fn leaf_base(&self, descriptor: u64, ds: bool, granule: u32, level: i32) -> u64 {
        let leafsize = translation_size(granule, level);
        let base = slice(descriptor, 47, leafsize) << leafsize;
        base | self.high_bits(descriptor, ds, granule)
    }

    fn high_bits(&self, descriptor: u64, ds: bool, granule: u32) -> u64 {
        if self.have_52bit_pa() && granule == 16 {
            slice(descriptor, 15, 12) << 48
        } else if ds {
            (slice(descriptor, 9, 8) << 2 | slice(descriptor, 49, 48)) << 48
        } else {
            0
        }
    }

    /// `AArch64.NextTableBase`.
    pub(crate) fn next_table_base(&self, descriptor: u64, ds: bool, granule: u32) -> u64 {
        let base = slice(descriptor, 47, granule) << granule;
        base | self.high_bits(descriptor, ds, granule)
    }

    /// `AArch64.S1TTBaseAddress` and `AArch64.S2TTBaseAddress`, which are the same.
    pub(crate) fn tt_base_address(
        &self,
        ttbr: u64,
        ps: u64,
        ds: bool,
        granule: u32,
        iasize: u32,
        startlevel: i32,
    ) -> u64 {
        let levels = (FINAL_LEVEL - startlevel) as u32;
        let stride = granule - 3;
        let mut tsize = iasize - (levels * stride + granule) + 3;
        let base;
        if self.have_52bit_pa() && granule == 16 && ps == 0b110 || ds {
            tsize = tsize.max(6);
            base = slice(ttbr, 5, 2) << 48 | slice(ttbr, 47, 6) << 6;
        } else {
            base = slice(ttbr, 47, 1) << 1;
        }
        base >> tsize << tsize
    }

    /// `FetchDescriptor`.
    pub(crate) fn fetch_descriptor(
        &mut self,
        ee: bool,
        address: u64,
        place: Place,
        level: i32,
    ) -> Result<u64, Fault> {
        match choice::phys_mem_read(self.memory, address) {
            PhysMem::Value(value) if ee => Ok(value.swap_bytes()),
            PhysMem::Value(value) => Ok(value),
            PhysMem::Abort => Err(place.fault(Status::SyncExternalOnWalk, level)),
            PhysMem::Retry => Err(Fault::Retry(address)),
        }
    }

    /// `AArch64.MemSwapTableDesc`, where nobody else writes.
    pub(crate) fn mem_swap_table_desc(
        &mut self,
        ee: bool,
        address: u64,
        (old, new): (u64, u64),
        place: Place,
        level: i32,
    ) -> Result<(), Fault> {
        let order = |word: u64| if ee { word.swap_bytes() } else { word };
        match choice::phys_mem_write(self.memory, address, order(old), order(new)) {
            PhysMem::Value(_) => Ok(()),
            PhysMem::Abort => Err(place.fault(Status::SyncExternalOnWalk, level)),
            PhysMem::Retry => Err(Fault::Retry(address)),
        }
    }
}

/// `AArch64.S1SLTTEntryAddress` and `AArch64.S2SLTTEntryAddress`.
pub(crate) fn slt_entry_address(level: i32, granule: u32, iasize: u32, ia: u64, base: u64) -> u64 {
    let lsb = translation_size(granule, level);
    base | slice(ia, iasize - 1, lsb) << 3
}

/// `AArch64.TTEntryAddress`.
pub(crate) fn tt_entry_address(level: i32, granule: u32, ia: u64, base: u64) -> u64 {
    let lsb = translation_size(granule, level);
    base | slice(ia, lsb + granule - 3 - 1, lsb) << 3
}

/// `StageOA`, with the sizes of the leaf and of its group.
pub(crate) fn stage_oa(
    ia: u64,
    granule: u32,
    level: i32,
    base: u64,
    contiguous: bool,
    iasize: u32,
) -> (u64, (u32, u32)) {
    let tsize = translation_size(granule, level);
    let csize = if contiguous {
        contiguous_size(granule, level)
    } else {
        0
    };
    let group = tsize + csize;
    let believed = choice::believe_contiguous(base, ia, tsize, group.max(tsize + 1), iasize);
    let ia_msb = if contiguous && believed { group } else { tsize };
    let address = slice(base, 55, ia_msb) << ia_msb | slice(ia, ia_msb - 1, 0);
    (address, (tsize, ia_msb))
}
