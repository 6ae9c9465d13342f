//! PAR_EL1 (Arm ARM D24.2.128, AArch64.EncodePAR).

use umbra_arm64::{FaultStatus, GuestFault};

use crate::attributes::Attributes;

/// A value of PAR_EL1, in its 64-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Par(u64);

const F: u64 = 1 << 0;
const FST_SHIFT: u32 = 1;
const SH_SHIFT: u32 = 7;
const PTW: u64 = 1 << 8;
const S: u64 = 1 << 9;
/// NS is UNKNOWN in a successful result of the Non-secure state; QEMU sets it.
const NS: u64 = 1 << 9;
const RES1: u64 = 1 << 11;
const ATTR_SHIFT: u32 = 56;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Par {
    /// The translation succeeded: the page of `output`, with `attributes`. `xs` is FEAT_XS.
    pub(super) fn success(output: u64, attributes: Attributes, xs: bool) -> Par {
        let (attr, sh) = attributes.encode_par(xs);
        Par((attr as u64) << ATTR_SHIFT | output & ADDRESS | RES1 | NS | (sh as u64) << SH_SHIFT)
    }

    /// The translation failed: `stage2` says in stage 2, and `walk` on the way to a descriptor of
    /// stage 1.
    pub(super) fn failure(fault: GuestFault, stage2: bool, walk: bool) -> Par {
        // A walk ends in no fault without a code: those have levels that hold no leaves.
        let status = fault.status().encode().unwrap_or(0);
        let s = if stage2 { S } else { 0 };
        let ptw = if walk { PTW } else { 0 };
        Par(RES1 | F | (status as u64) << FST_SHIFT | s | ptw)
    }

    /// The value for the register.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The fault status, if the translation failed.
    pub fn fault(self) -> Option<FaultStatus> {
        (self.0 & F != 0).then(|| FaultStatus::decode((self.0 >> FST_SHIFT) as u8))
    }

    /// Whether hardware would take this outcome as an exception: a table that cannot be read is a
    /// synchronous external abort of the AT (Arm ARM, AArch64.AT), with FAR_ELx the address that was
    /// asked about. KVM puts it into PAR_EL1 all the same, and a guest must be ready for either.
    pub fn is_external(self) -> bool {
        self.fault().is_some_and(FaultStatus::is_sea)
    }
}
