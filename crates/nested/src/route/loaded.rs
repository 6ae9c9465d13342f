//! What the trap registers of hardware hold while a guest hypervisor's guest runs: umbra's own wishes
//! and the guest hypervisor's, put together.
//!
//! While virtual EL2 itself runs, only umbra's are there.

use super::{Controls, cnthctl, cptr, hcr, hcrx, mdcr};

/// Bits of HCR_EL2 that are never the guest hypervisor's: VSE (offered by the caller), TGE, CD, ID, E2H, RW, the PAuth traps, which
/// are combined, NV, NV1, NV2, FIEN. CD and ID would make umbra's own accesses to the same memory
/// incoherent with its guest's; with FEAT_S2FWB nobody can see that they do nothing.
const NOT_THEIRS: u64 = 1 << 8
    | 1 << 27
    | 0b11 << 31
    | 0b11 << 33
    | hcr::APK
    | hcr::API
    | 0b11 << 42
    | 1 << 45
    | hcr::FIEN;

/// What umbra itself asks for, whatever runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// HCR_EL2; its PAuth bits say whether the VM has the feature.
    pub hcr: u64,
    /// HCRX_EL2.
    pub hcrx: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// The fine-grained registers in the order of [`FINE`](super::FINE). Their reversed bits are clear:
    /// what they guard is hidden.
    pub fine: [u64; 6],
    /// CPTR_EL2.TCPAC, of what runs without a guest hypervisor above it.
    pub cpacr: bool,
}

/// The trap registers of hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// HCR_EL2.
    pub hcr: u64,
    /// HCRX_EL2.
    pub hcrx: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// The fine-grained registers.
    pub fine: [u64; 6],
    /// CPTR_EL2: FP traps.
    pub fp: bool,
    /// CPTR_EL2.TCPAC.
    pub cpacr: bool,
}

impl Own {
    /// For virtual EL2, or a plain guest.
    pub const fn alone(&self) -> Loaded {
        Loaded {
            hcr: self.hcr,
            hcrx: self.hcrx,
            mdcr: self.mdcr,
            cnthctl: self.cnthctl,
            fine: self.fine,
            fp: false,
            cpacr: self.cpacr,
        }
    }

    /// For what a guest hypervisor with these controls runs.
    pub fn below(&self, theirs: &Controls) -> Loaded {
        const ENABLES: u64 = hcr::API | hcr::APK;
        const TIMER_ENABLES: u64 = cnthctl::EL1PCTEN | cnthctl::EL1PTEN;
        const TIMER_TRAPS: u64 = cnthctl::EL1TVT | cnthctl::EL1TVCT;
        const DEBUG: u64 = mdcr::TDE | mdcr::TDA | mdcr::TDOSA | mdcr::TDRA | mdcr::TDCC;
        // VF and VI are pending only where FMO and IMO are set.
        const VIRTUAL: u64 = 0b11 << 6;
        let virtual_interrupts = theirs.hcr << 3 & theirs.hcr & VIRTUAL;
        const NO_XS: u64 = hcrx::FNXS | hcrx::FGT_NXS;
        Loaded {
            hcr: self.hcr & !ENABLES
                | self.hcr & theirs.hcr & ENABLES
                | theirs.hcr & !NOT_THEIRS & !VIRTUAL
                | virtual_interrupts,
            hcrx: self.hcrx & !hcrx::MSCEN
                | self.hcrx & theirs.hcrx & hcrx::MSCEN
                | theirs.hcrx & (hcrx::MCE2 | NO_XS),
            mdcr: self.mdcr | theirs.mdcr & DEBUG,
            cnthctl: self.cnthctl & !TIMER_ENABLES
                | self.cnthctl & theirs.cnthctl & TIMER_ENABLES
                | theirs.cnthctl & TIMER_TRAPS,
            fine: core::array::from_fn(|at| self.fine[at] | theirs.fine[at]),
            fp: theirs.traps_fp(),
            cpacr: theirs.cptr & cptr::TCPAC != 0,
        }
    }
}
