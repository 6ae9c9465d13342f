//! The two tags under which a TLB files translations.
//!
//! They are types of their own because the worst TLB bug is an invalidation that goes out under
//! somebody else's tag: it costs nothing, reports nothing, and leaves the stale entry in place.

/// A virtual machine identifier (VTTBR_EL2.VMID): the tag of one stage 2 and all it translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u16);

/// An address space identifier (TTBRn_ELx.ASID) of the EL2&0 regime: the tag of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asid(u16);

impl Vmid {
    /// Names VMID `number`; whether all 16 bits count depends on FEAT_VMID16.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number as it stands in VTTBR_EL2\[63:48\].
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl Asid {
    /// Names ASID `number`; whether all 16 bits count depends on ID_AA64MMFR0_EL1.ASIDBits.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number as it stands in TTBRn_ELx\[63:48\].
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The tag of one set of translation tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// Stage 2 of a VM, or of one shadow.
    Vmid(Vmid),
    /// Stage 1 of a process at EL0 under EL2.
    Asid(Asid),
}
