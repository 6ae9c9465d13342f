//! A straight transcription of the manual's pseudocode for address translation (Arm ARM, shared
//! pseudocode, aarch64/translation). One function of the manual is one function here, under its name;
//! numbers are integers and bit ranges, as there, so that it can be read beside it.
//!
//! Left out is what no guest of umbra's is shown: 128-bit descriptors, permission indirection and
//! overlay, granule protection, memory tagging, Secure and Realm states, NV1, AArch32.
//!
//! Where the manual leaves a choice, `choice` says which one is taken, and why.

mod at;
mod attributes;
mod choice;
mod stage1;
mod stage2;
mod walk;

use umbra_nested::{Features, GuestMemory};

pub(crate) use at::{At, aarch64_at};
pub(crate) use attributes::{MemAttrs, encode_par_attrs, par_encode_shareability, s1_decode};
pub(crate) use stage1::{s1_granule, s1_translate};
pub(crate) use stage2::{s2_granule, s2_translate};

/// `FaultRecord`, and the two ways of not getting that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A fault with its status code and level.
    Architected {
        /// Which.
        statuscode: Status,
        /// Level, −1 to 3.
        level: i32,
        /// Found in stage 2.
        secondstage: bool,
        /// … while stage 1 was walked.
        s2fs1walk: bool,
    },
    /// The memory behind a descriptor is not there at the moment.
    Retry(u64),
}

/// `Fault_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Fault_Translation.
    Translation,
    /// Fault_AccessFlag.
    AccessFlag,
    /// Fault_Permission.
    Permission,
    /// Fault_AddressSize.
    AddressSize,
    /// Fault_SyncExternalOnWalk.
    SyncExternalOnWalk,
}

/// `EncodeLDFSC`.
pub(crate) fn encode_ldfsc(status: Status, level: i32) -> u8 {
    if level == -1 {
        return match status {
            Status::AddressSize => 0b101001,
            Status::Translation => 0b101011,
            Status::SyncExternalOnWalk => 0b010011,
            Status::AccessFlag | Status::Permission => unreachable!("no leaf at level -1"),
        };
    }
    let base = match status {
        Status::AddressSize => 0b000000,
        Status::Translation => 0b000100,
        Status::AccessFlag => 0b001000,
        Status::Permission => 0b001100,
        Status::SyncExternalOnWalk => 0b010100,
    };
    base + level as u8
}

/// `AccessDescriptor`, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccDesc {
    /// By EL0.
    pub(crate) el0: bool,
    /// Reads.
    pub(crate) read: bool,
    /// Writes.
    pub(crate) write: bool,
    /// AccessType_IFETCH.
    pub(crate) ifetch: bool,
    /// AccessType_TTW.
    pub(crate) ttw: bool,
    /// AccessType_AT.
    pub(crate) at: bool,
    /// PAN is looked at (and PSTATE.PAN is set).
    pub(crate) pan: bool,
}

impl AccDesc {
    /// A load.
    pub(crate) const READ: AccDesc = AccDesc {
        el0: false,
        read: true,
        write: false,
        ifetch: false,
        ttw: false,
        at: false,
        pan: false,
    };
    /// A store.
    pub(crate) const WRITE: AccDesc = AccDesc {
        read: false,
        write: true,
        ..AccDesc::READ
    };
    /// A fetch.
    pub(crate) const FETCH: AccDesc = AccDesc {
        ifetch: true,
        ..AccDesc::READ
    };
    /// `CreateAccDescS1TTW`.
    pub(crate) const S1TTW: AccDesc = AccDesc {
        ttw: true,
        ..AccDesc::READ
    };
    /// `CreateAccDescTTEUpdate`.
    pub(crate) const TTE_UPDATE: AccDesc = AccDesc {
        ttw: true,
        write: true,
        ..AccDesc::READ
    };
}

/// The registers a translation depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Regs {
    /// HCR_EL2.
    pub(crate) hcr: u64,
    /// VTCR_EL2.
    pub(crate) vtcr: u64,
    /// VTTBR_EL2.
    pub(crate) vttbr: u64,
    /// SCTLR, TCR, TTBR0, TTBR1 and MAIR of EL1.
    pub(crate) el1: [u64; 5],
    /// The same of EL2.
    pub(crate) el2: [u64; 5],
}

/// The machine: registers, features and memory.
pub(crate) struct Machine<'a, M> {
    /// Registers.
    pub(crate) regs: Regs,
    /// `IsFeatureImplemented`.
    pub(crate) features: Features,
    /// `PhysMem`.
    pub(crate) memory: &'a mut M,
}

/// `AddressDescriptor` of a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// The output address.
    pub(crate) address: u64,
    /// Level of the leaf; `None` where no table was looked at.
    pub(crate) level: Option<i32>,
    /// Logarithm of what the leaf maps, and of what it maps with the contiguous bit.
    pub(crate) size: (u32, u32),
    /// Attributes.
    pub(crate) memattrs: MemAttrs,
}

/// `x<high:low>`.
pub(crate) fn slice(x: u64, high: u32, low: u32) -> u64 {
    let width = high - low + 1;
    let shifted = x >> low;
    if width == 64 {
        shifted
    } else {
        shifted % (1 << width)
    }
}

/// `x<at>` as a boolean.
pub(crate) fn bit(x: u64, at: u32) -> bool {
    slice(x, at, at) == 1
}

/// `IsZero(x<high:low>)`, true for an empty range.
pub(crate) fn is_zero(x: u64, high: u32, low: u32) -> bool {
    low > high || slice(x, high, low) == 0
}

/// `IsOnes(x<high:low>)`.
pub(crate) fn is_ones(x: u64, high: u32, low: u32) -> bool {
    is_zero(!x, high, low)
}

impl<M: GuestMemory> Machine<'_, M> {
    /// `AArch64.PAMax`.
    pub(crate) fn pa_max(&self) -> u32 {
        self.features.pa_bits
    }

    /// FEAT_LPA.
    pub(crate) fn have_52bit_pa(&self) -> bool {
        self.pa_max() == 52
    }
}
