//! What a vCPU has: the conditions under which a register exists at all.
//!
//! A register whose feature is off is hidden everywhere at once: accesses are UNDEFINED, KVM's
//! one-register calls answer ENOENT, nobody loads it. One rule, so that no half-hidden register
//! can tell a guest about a feature that its ID registers deny.

/// What a vCPU must have for a register to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Nothing: the register is always there.
    Base,
    /// FEAT_PAuth, given to the VM.
    PAuth,
    /// FEAT_RAS.
    Ras,
    /// FEAT_SCTLR2.
    Sctlr2,
    /// FEAT_TCR2.
    Tcr2,
    /// FEAT_S1PIE.
    S1Pie,
    /// FEAT_S1POE.
    S1Poe,
    /// Breakpoint number n is implemented.
    Breakpoint(u8),
    /// Watchpoint number n is implemented.
    Watchpoint(u8),
    /// Virtual EL2.
    El2,
    /// Virtual EL2 with FEAT_RAS.
    El2Ras,
    /// Virtual EL2 with FEAT_HCX.
    El2Hcx,
    /// Virtual EL2 with FEAT_FGT.
    El2Fgt,
    /// Virtual EL2 with FEAT_FGT2.
    El2Fgt2,
    /// Virtual EL2 with FEAT_SCTLR2.
    El2Sctlr2,
    /// Virtual EL2 with FEAT_TCR2.
    El2Tcr2,
    /// Virtual EL2 with FEAT_S1PIE.
    El2S1Pie,
    /// Virtual EL2 with FEAT_S1POE.
    El2S1Poe,
    /// Virtual EL2 that is itself shown FEAT_NV2.
    El2Recursive,
    /// FEAT_ECV.
    Ecv,
    /// FEAT_LOR.
    Lor,
    /// A GICv3 with its system-register interface.
    GicV3,
}

/// What a vCPU has: computed once from its ID registers (`idreg::IdRegs::features`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// FEAT_PAuth.
    pub pauth: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_SCTLR2.
    pub sctlr2: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
    /// FEAT_S1PIE.
    pub s1pie: bool,
    /// FEAT_S1POE.
    pub s1poe: bool,
    /// Number of breakpoints, 0 to 16.
    pub breakpoints: u8,
    /// Number of watchpoints, 0 to 16.
    pub watchpoints: u8,
    /// Virtual EL2.
    pub el2: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_NV2 shown to vEL2.
    pub recursive: bool,
    /// FEAT_ECV.
    pub ecv: bool,
    /// FEAT_LOR.
    pub lor: bool,
    /// A GICv3 with its system-register interface.
    pub gicv3: bool,
    /// FEAT_PMUv3.
    pub pmu: bool,
}

impl Features {
    /// Whether a vCPU with these features has what `feature` names.
    pub const fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Base => true,
            Feature::PAuth => self.pauth,
            Feature::Ras => self.ras,
            Feature::Sctlr2 => self.sctlr2,
            Feature::Tcr2 => self.tcr2,
            Feature::S1Pie => self.s1pie,
            Feature::S1Poe => self.s1poe,
            Feature::Breakpoint(n) => n < self.breakpoints,
            Feature::Watchpoint(n) => n < self.watchpoints,
            Feature::El2 => self.el2,
            Feature::El2Ras => self.el2 && self.ras,
            Feature::El2Hcx => self.el2 && self.hcx,
            Feature::El2Fgt => self.el2 && self.fgt,
            Feature::El2Fgt2 => self.el2 && self.fgt2,
            Feature::El2Sctlr2 => self.el2 && self.sctlr2,
            Feature::El2Tcr2 => self.el2 && self.tcr2,
            Feature::El2S1Pie => self.el2 && self.s1pie,
            Feature::El2S1Poe => self.el2 && self.s1poe,
            Feature::El2Recursive => self.el2 && self.recursive,
            Feature::Ecv => self.ecv,
            Feature::Lor => self.lor,
            Feature::GicV3 => self.gicv3,
        }
    }
}
