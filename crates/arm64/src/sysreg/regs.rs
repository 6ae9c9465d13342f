//! The table of registers that a vCPU has state for.
//!
//! One row says everything about a register; the slot in the register file is worked out from the
//! encoding when the table is built. The hardware register named as `home` is the one that carries
//! the value while the register's context is loaded, by the name that EL2 with E2H set must use.
//!
//! The registers of vEL2 that FEAT_NV2 redirects to EL1 hardware (SPSR, ELR, ESR, FAR) and those a
//! kernel with E2H reaches by EL1 names (SCTLR, TTBR0 …) name as their home the very hardware
//! register that L2 uses: whoever loads one class has stored the other first.

use super::SysReg;
use super::feature::{Feature, Features};
use crate::vncr;

/// Whose register it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One copy serves every context of the vCPU, guest hypervisor or guest.
    Shared,
    /// Belongs to EL1: a plain guest, or L2.
    El1,
    /// Belongs to vEL2.
    El2,
}

/// What a register has been reset to when KVM_ARM_VCPU_INIT returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// All bits zero.
    Zero,
    /// This value.
    Value(u64),
    /// The architecture says UNKNOWN; [`UNKNOWN`] makes a guest that relies on it visible.
    Unknown,
    /// The vCPU's MIDR_EL1.
    Midr,
    /// The vCPU's MPIDR_EL1.
    Mpidr,
}

/// What an architecturally UNKNOWN register holds after reset.
pub const UNKNOWN: u64 = 0x5aa5_c3a5_5ac3_a55a;

/// Where the state of a register lives while the vCPU is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The 64-bit slot of this index (byte offset / 8) in the VNCR page.
    Vncr(u16),
    /// This element of the array beside the page.
    Array(u16),
}

/// A row of the table of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegInfo {
    /// The register's index in the table.
    pub reg: Reg,
    /// Its encoding; for an EL1 timer the `_EL0` name.
    pub enc: SysReg,
    /// Whose it is.
    pub class: Class,
    /// What it needs to exist.
    pub feature: Feature,
    /// Its value after reset.
    pub reset: Reset,
    /// The hardware register that carries it while its context is loaded; `None` for a register
    /// that only software looks at.
    pub home: Option<HwReg>,
    /// Where it lives otherwise.
    pub slot: Slot,
}

/// A hardware register of the loaded guest, by the name that reaches it from EL2 with E2H set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    reason = "each variant is the architectural name of a register"
)]
pub enum HwReg {
    TpidrEl0,
    TpidrroEl0,
    TpidrEl1,
    SpEl0,
    ParEl1,
    VdisrEl2,
    ApIaKeyLoEl1,
    ApIaKeyHiEl1,
    ApIbKeyLoEl1,
    ApIbKeyHiEl1,
    ApDaKeyLoEl1,
    ApDaKeyHiEl1,
    ApDbKeyLoEl1,
    ApDbKeyHiEl1,
    ApGaKeyLoEl1,
    ApGaKeyHiEl1,
    PorEl0,
    MdscrEl1,
    VmpidrEl2,
    SctlrEl12,
    CpacrEl12,
    Ttbr0El12,
    Ttbr1El12,
    TcrEl12,
    Afsr0El12,
    Afsr1El12,
    EsrEl12,
    FarEl12,
    MairEl12,
    AmairEl12,
    VbarEl12,
    ContextidrEl12,
    SpsrEl12,
    ElrEl12,
    SpEl1,
    CntkctlEl12,
    CntvCtlEl02,
    CntvCvalEl02,
    CntpCtlEl02,
    CntpCvalEl02,
    Sctlr2El12,
    Tcr2El12,
    Pire0El12,
    PirEl12,
    PorEl12,
    /// `DBGBVR<n>_EL1`.
    Dbgbvr(u8),
    /// `DBGBCR<n>_EL1`.
    Dbgbcr(u8),
    /// `DBGWVR<n>_EL1`.
    Dbgwvr(u8),
    /// `DBGWCR<n>_EL1`.
    Dbgwcr(u8),
}

macro_rules! home {
    (None) => {
        None
    };
    ($name:ident $(($n:literal))?) => {
        Some(HwReg::$name$(($n))?)
    };
}

macro_rules! registers {
    ($($var:ident, $enc:ident, $class:ident, $feature:ident $(($n:literal))?, $reset:ident $(($v:expr))?, $home:ident $(($hn:literal))?;)*) => {
        /// A register that a vCPU has state for: an index into the register file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Reg {
            $(
                #[doc = concat!("`", stringify!($enc), "`.")]
                $var,
            )*
        }

        impl Reg {
            /// Every register, in table order.
            pub const ALL: &[Reg] = &[$(Reg::$var,)*];
        }

        const ROWS: [RegInfo; Reg::ALL.len()] = place([$(
            RegInfo {
                reg: Reg::$var,
                enc: SysReg::$enc,
                class: Class::$class,
                feature: Feature::$feature$(($n))?,
                reset: Reset::$reset$(($v))?,
                home: home!($home $(($hn))?),
                slot: Slot::Array(0),
            },
        )*]);
    };
}

/// Gives every row its slot: the VNCR page where the architecture has a place there, else the next
/// element of the array.
const fn place(mut rows: [RegInfo; Reg::ALL.len()]) -> [RegInfo; Reg::ALL.len()] {
    let mut at = 0;
    let mut next = 0;
    while at < rows.len() {
        rows[at].slot = match vncr::offset_of(rows[at].enc) {
            Some(offset) => Slot::Vncr(offset / 8),
            None => {
                next += 1;
                Slot::Array(next - 1)
            }
        };
        at += 1;
    }
    rows
}

pub(super) static REGS: [RegInfo; Reg::ALL.len()] = ROWS;

/// Number of registers that have no place in the VNCR page.
pub const ARRAY_LEN: usize = {
    let (mut at, mut count) = (0, 0);
    while at < ROWS.len() {
        if matches!(ROWS[at].slot, Slot::Array(_)) {
            count += 1;
        }
        at += 1;
    }
    count
};

/// Row numbers in ascending order of encoding, for lookup.
static BY_ENCODING: [Reg; Reg::ALL.len()] = {
    let mut order = [Reg::TpidrEl0; Reg::ALL.len()];
    let mut len = 0;
    while len < ROWS.len() {
        let mut at = len;
        while at > 0 && ROWS[order[at - 1] as usize].enc.id() > ROWS[len].enc.id() {
            order[at] = order[at - 1];
            at -= 1;
        }
        order[at] = ROWS[len].reg;
        len += 1;
    }
    order
};

impl Reg {
    /// The register's row.
    pub const fn info(self) -> &'static RegInfo {
        &REGS[self as usize]
    }

    /// The register of encoding `enc`, or `None` where a vCPU keeps no state of that name. EL1 and
    /// EL2 encodings name what they say; `_EL12` and `_EL02` names are not looked through.
    pub fn from_enc(enc: SysReg) -> Option<Self> {
        let at = BY_ENCODING
            .binary_search_by_key(&enc, |reg| reg.info().enc)
            .ok()?;
        Some(BY_ENCODING[at])
    }

    /// Every register, in ascending order of encoding, which is the order of KVM's register list.
    pub fn by_encoding() -> impl Iterator<Item = Self> {
        BY_ENCODING.iter().copied()
    }

    /// Whether a vCPU with `features` has this register.
    pub fn exists(self, features: &Features) -> bool {
        features.has(self.info().feature)
    }
}

// A value that SCTLR_EL1 and SCTLR_EL2 are reset to has the MMU and the caches off and the bits
// set that were RES1 in Armv8.0. HCR_EL2 starts with E2H, which is RES1 for our guests.
registers! {
    TpidrEl0, TPIDR_EL0, Shared, Base, Unknown, TpidrEl0;
    TpidrroEl0, TPIDRRO_EL0, Shared, Base, Unknown, TpidrroEl0;
    TpidrEl1, TPIDR_EL1, Shared, Base, Unknown, TpidrEl1;
    SpEl0, SP_EL0, Shared, Base, Zero, SpEl0;
    ParEl1, PAR_EL1, Shared, Base, Unknown, ParEl1;
    CsselrEl1, CSSELR_EL1, Shared, Base, Zero, None;
    DisrEl1, DISR_EL1, Shared, Ras, Zero, VdisrEl2;
    ApIaKeyLoEl1, APIAKEYLO_EL1, Shared, PAuth, Unknown, ApIaKeyLoEl1;
    ApIaKeyHiEl1, APIAKEYHI_EL1, Shared, PAuth, Unknown, ApIaKeyHiEl1;
    ApIbKeyLoEl1, APIBKEYLO_EL1, Shared, PAuth, Unknown, ApIbKeyLoEl1;
    ApIbKeyHiEl1, APIBKEYHI_EL1, Shared, PAuth, Unknown, ApIbKeyHiEl1;
    ApDaKeyLoEl1, APDAKEYLO_EL1, Shared, PAuth, Unknown, ApDaKeyLoEl1;
    ApDaKeyHiEl1, APDAKEYHI_EL1, Shared, PAuth, Unknown, ApDaKeyHiEl1;
    ApDbKeyLoEl1, APDBKEYLO_EL1, Shared, PAuth, Unknown, ApDbKeyLoEl1;
    ApDbKeyHiEl1, APDBKEYHI_EL1, Shared, PAuth, Unknown, ApDbKeyHiEl1;
    ApGaKeyLoEl1, APGAKEYLO_EL1, Shared, PAuth, Unknown, ApGaKeyLoEl1;
    ApGaKeyHiEl1, APGAKEYHI_EL1, Shared, PAuth, Unknown, ApGaKeyHiEl1;
    PorEl0, POR_EL0, Shared, S1Poe, Zero, PorEl0;
    MdscrEl1, MDSCR_EL1, Shared, Base, Zero, MdscrEl1;
    MdccintEl1, MDCCINT_EL1, Shared, Base, Zero, None;
    OslsrEl1, OSLSR_EL1, Shared, Base, Value(0x8), None;
    Dacr32El2, DACR32_EL2, Shared, Base, Zero, None;
    Ifsr32El2, IFSR32_EL2, Shared, Base, Zero, None;
    Fpexc32El2, FPEXC32_EL2, Shared, Base, Value(0x700), None;
    MpidrEl1, MPIDR_EL1, Shared, Base, Mpidr, VmpidrEl2;
    SctlrEl1, SCTLR_EL1, El1, Base, Value(0x00c5_0078), SctlrEl12;
    ActlrEl1, ACTLR_EL1, El1, Base, Zero, None;
    CpacrEl1, CPACR_EL1, El1, Base, Zero, CpacrEl12;
    Ttbr0El1, TTBR0_EL1, El1, Base, Unknown, Ttbr0El12;
    Ttbr1El1, TTBR1_EL1, El1, Base, Unknown, Ttbr1El12;
    TcrEl1, TCR_EL1, El1, Base, Zero, TcrEl12;
    Afsr0El1, AFSR0_EL1, El1, Base, Unknown, Afsr0El12;
    Afsr1El1, AFSR1_EL1, El1, Base, Unknown, Afsr1El12;
    EsrEl1, ESR_EL1, El1, Base, Unknown, EsrEl12;
    FarEl1, FAR_EL1, El1, Base, Unknown, FarEl12;
    MairEl1, MAIR_EL1, El1, Base, Unknown, MairEl12;
    AmairEl1, AMAIR_EL1, El1, Base, Zero, AmairEl12;
    VbarEl1, VBAR_EL1, El1, Base, Zero, VbarEl12;
    ContextidrEl1, CONTEXTIDR_EL1, El1, Base, Zero, ContextidrEl12;
    SpsrEl1, SPSR_EL1, El1, Base, Zero, SpsrEl12;
    ElrEl1, ELR_EL1, El1, Base, Zero, ElrEl12;
    SpEl1, SP_EL1, El1, Base, Zero, SpEl1;
    CntkctlEl1, CNTKCTL_EL1, El1, Base, Zero, CntkctlEl12;
    CntvCtlEl0, CNTV_CTL_EL0, El1, Base, Zero, CntvCtlEl02;
    CntvCvalEl0, CNTV_CVAL_EL0, El1, Base, Zero, CntvCvalEl02;
    CntpCtlEl0, CNTP_CTL_EL0, El1, Base, Zero, CntpCtlEl02;
    CntpCvalEl0, CNTP_CVAL_EL0, El1, Base, Zero, CntpCvalEl02;
    Sctlr2El1, SCTLR2_EL1, El1, Sctlr2, Zero, Sctlr2El12;
    Tcr2El1, TCR2_EL1, El1, Tcr2, Zero, Tcr2El12;
    Pire0El1, PIRE0_EL1, El1, S1Pie, Zero, Pire0El12;
    PirEl1, PIR_EL1, El1, S1Pie, Zero, PirEl12;
    PorEl1, POR_EL1, El1, S1Poe, Zero, PorEl12;
    VpidrEl2, VPIDR_EL2, El2, El2, Midr, None;
    VmpidrEl2, VMPIDR_EL2, El2, El2, Mpidr, None;
    SctlrEl2, SCTLR_EL2, El2, El2, Value(0x30c5_0830), SctlrEl12;
    ActlrEl2, ACTLR_EL2, El2, El2, Zero, None;
    HcrEl2, HCR_EL2, El2, El2, Value(1 << 34), None;
    HcrxEl2, HCRX_EL2, El2, El2Hcx, Zero, None;
    MdcrEl2, MDCR_EL2, El2, El2, Zero, None;
    CptrEl2, CPTR_EL2, El2, El2, Zero, CpacrEl12;
    HstrEl2, HSTR_EL2, El2, El2, Zero, None;
    HacrEl2, HACR_EL2, El2, El2, Zero, None;
    Ttbr0El2, TTBR0_EL2, El2, El2, Zero, Ttbr0El12;
    Ttbr1El2, TTBR1_EL2, El2, El2, Zero, Ttbr1El12;
    TcrEl2, TCR_EL2, El2, El2, Zero, TcrEl12;
    VttbrEl2, VTTBR_EL2, El2, El2, Zero, None;
    VtcrEl2, VTCR_EL2, El2, El2, Zero, None;
    SpsrEl2, SPSR_EL2, El2, El2, Zero, SpsrEl12;
    ElrEl2, ELR_EL2, El2, El2, Zero, ElrEl12;
    Afsr0El2, AFSR0_EL2, El2, El2, Zero, Afsr0El12;
    Afsr1El2, AFSR1_EL2, El2, El2, Zero, Afsr1El12;
    EsrEl2, ESR_EL2, El2, El2, Zero, EsrEl12;
    FarEl2, FAR_EL2, El2, El2, Zero, FarEl12;
    HpfarEl2, HPFAR_EL2, El2, El2, Zero, None;
    MairEl2, MAIR_EL2, El2, El2, Zero, MairEl12;
    AmairEl2, AMAIR_EL2, El2, El2, Zero, AmairEl12;
    VbarEl2, VBAR_EL2, El2, El2, Zero, VbarEl12;
    ContextidrEl2, CONTEXTIDR_EL2, El2, El2, Zero, ContextidrEl12;
    TpidrEl2, TPIDR_EL2, El2, El2, Zero, None;
    SpEl2, SP_EL2, El2, El2, Zero, SpEl1;
    CntvoffEl2, CNTVOFF_EL2, El2, El2, Zero, None;
    CnthctlEl2, CNTHCTL_EL2, El2, El2, Zero, CntkctlEl12;
    CnthpCtlEl2, CNTHP_CTL_EL2, El2, El2, Zero, CntpCtlEl02;
    CnthpCvalEl2, CNTHP_CVAL_EL2, El2, El2, Zero, CntpCvalEl02;
    CnthvCtlEl2, CNTHV_CTL_EL2, El2, El2, Zero, CntvCtlEl02;
    CnthvCvalEl2, CNTHV_CVAL_EL2, El2, El2, Zero, CntvCvalEl02;
    VsesrEl2, VSESR_EL2, El2, El2Ras, Zero, None;
    VdisrEl2, VDISR_EL2, El2, El2Ras, Zero, None;
    Sctlr2El2, SCTLR2_EL2, El2, El2Sctlr2, Zero, Sctlr2El12;
    Tcr2El2, TCR2_EL2, El2, El2Tcr2, Zero, Tcr2El12;
    Pire0El2, PIRE0_EL2, El2, El2S1Pie, Zero, Pire0El12;
    PirEl2, PIR_EL2, El2, El2S1Pie, Zero, PirEl12;
    PorEl2, POR_EL2, El2, El2S1Poe, Zero, PorEl12;
    HfgrtrEl2, HFGRTR_EL2, El2, El2Fgt, Zero, None;
    HfgwtrEl2, HFGWTR_EL2, El2, El2Fgt, Zero, None;
    HfgitrEl2, HFGITR_EL2, El2, El2Fgt, Zero, None;
    HdfgrtrEl2, HDFGRTR_EL2, El2, El2Fgt, Zero, None;
    HdfgwtrEl2, HDFGWTR_EL2, El2, El2Fgt, Zero, None;
    HafgrtrEl2, HAFGRTR_EL2, El2, El2Fgt, Zero, None;
    Hfgrtr2El2, HFGRTR2_EL2, El2, El2Fgt2, Zero, None;
    Hfgwtr2El2, HFGWTR2_EL2, El2, El2Fgt2, Zero, None;
    Hfgitr2El2, HFGITR2_EL2, El2, El2Fgt2, Zero, None;
    Hdfgrtr2El2, HDFGRTR2_EL2, El2, El2Fgt2, Zero, None;
    Hdfgwtr2El2, HDFGWTR2_EL2, El2, El2Fgt2, Zero, None;
    VncrEl2, VNCR_EL2, El2, El2Recursive, Zero, None;
    IchHcrEl2, ICH_HCR_EL2, El2, El2, Zero, None;
    IchVmcrEl2, ICH_VMCR_EL2, El2, El2, Zero, None;
    IchAp0r0El2, ICH_AP0R0_EL2, El2, El2, Zero, None;
    IchAp0r1El2, ICH_AP0R1_EL2, El2, El2, Zero, None;
    IchAp0r2El2, ICH_AP0R2_EL2, El2, El2, Zero, None;
    IchAp0r3El2, ICH_AP0R3_EL2, El2, El2, Zero, None;
    IchAp1r0El2, ICH_AP1R0_EL2, El2, El2, Zero, None;
    IchAp1r1El2, ICH_AP1R1_EL2, El2, El2, Zero, None;
    IchAp1r2El2, ICH_AP1R2_EL2, El2, El2, Zero, None;
    IchAp1r3El2, ICH_AP1R3_EL2, El2, El2, Zero, None;
    IchLr0El2, ICH_LR0_EL2, El2, El2, Zero, None;
    IchLr1El2, ICH_LR1_EL2, El2, El2, Zero, None;
    IchLr2El2, ICH_LR2_EL2, El2, El2, Zero, None;
    IchLr3El2, ICH_LR3_EL2, El2, El2, Zero, None;
    IchLr4El2, ICH_LR4_EL2, El2, El2, Zero, None;
    IchLr5El2, ICH_LR5_EL2, El2, El2, Zero, None;
    IchLr6El2, ICH_LR6_EL2, El2, El2, Zero, None;
    IchLr7El2, ICH_LR7_EL2, El2, El2, Zero, None;
    IchLr8El2, ICH_LR8_EL2, El2, El2, Zero, None;
    IchLr9El2, ICH_LR9_EL2, El2, El2, Zero, None;
    IchLr10El2, ICH_LR10_EL2, El2, El2, Zero, None;
    IchLr11El2, ICH_LR11_EL2, El2, El2, Zero, None;
    IchLr12El2, ICH_LR12_EL2, El2, El2, Zero, None;
    IchLr13El2, ICH_LR13_EL2, El2, El2, Zero, None;
    IchLr14El2, ICH_LR14_EL2, El2, El2, Zero, None;
    IchLr15El2, ICH_LR15_EL2, El2, El2, Zero, None;
    Dbgbvr0El1, DBGBVR0_EL1, Shared, Breakpoint(0), Zero, Dbgbvr(0);
    Dbgbcr0El1, DBGBCR0_EL1, Shared, Breakpoint(0), Zero, Dbgbcr(0);
    Dbgwvr0El1, DBGWVR0_EL1, Shared, Watchpoint(0), Zero, Dbgwvr(0);
    Dbgwcr0El1, DBGWCR0_EL1, Shared, Watchpoint(0), Zero, Dbgwcr(0);
    Dbgbvr1El1, DBGBVR1_EL1, Shared, Breakpoint(1), Zero, Dbgbvr(1);
    Dbgbcr1El1, DBGBCR1_EL1, Shared, Breakpoint(1), Zero, Dbgbcr(1);
    Dbgwvr1El1, DBGWVR1_EL1, Shared, Watchpoint(1), Zero, Dbgwvr(1);
    Dbgwcr1El1, DBGWCR1_EL1, Shared, Watchpoint(1), Zero, Dbgwcr(1);
    Dbgbvr2El1, DBGBVR2_EL1, Shared, Breakpoint(2), Zero, Dbgbvr(2);
    Dbgbcr2El1, DBGBCR2_EL1, Shared, Breakpoint(2), Zero, Dbgbcr(2);
    Dbgwvr2El1, DBGWVR2_EL1, Shared, Watchpoint(2), Zero, Dbgwvr(2);
    Dbgwcr2El1, DBGWCR2_EL1, Shared, Watchpoint(2), Zero, Dbgwcr(2);
    Dbgbvr3El1, DBGBVR3_EL1, Shared, Breakpoint(3), Zero, Dbgbvr(3);
    Dbgbcr3El1, DBGBCR3_EL1, Shared, Breakpoint(3), Zero, Dbgbcr(3);
    Dbgwvr3El1, DBGWVR3_EL1, Shared, Watchpoint(3), Zero, Dbgwvr(3);
    Dbgwcr3El1, DBGWCR3_EL1, Shared, Watchpoint(3), Zero, Dbgwcr(3);
    Dbgbvr4El1, DBGBVR4_EL1, Shared, Breakpoint(4), Zero, Dbgbvr(4);
    Dbgbcr4El1, DBGBCR4_EL1, Shared, Breakpoint(4), Zero, Dbgbcr(4);
    Dbgwvr4El1, DBGWVR4_EL1, Shared, Watchpoint(4), Zero, Dbgwvr(4);
    Dbgwcr4El1, DBGWCR4_EL1, Shared, Watchpoint(4), Zero, Dbgwcr(4);
    Dbgbvr5El1, DBGBVR5_EL1, Shared, Breakpoint(5), Zero, Dbgbvr(5);
    Dbgbcr5El1, DBGBCR5_EL1, Shared, Breakpoint(5), Zero, Dbgbcr(5);
    Dbgwvr5El1, DBGWVR5_EL1, Shared, Watchpoint(5), Zero, Dbgwvr(5);
    Dbgwcr5El1, DBGWCR5_EL1, Shared, Watchpoint(5), Zero, Dbgwcr(5);
    Dbgbvr6El1, DBGBVR6_EL1, Shared, Breakpoint(6), Zero, Dbgbvr(6);
    Dbgbcr6El1, DBGBCR6_EL1, Shared, Breakpoint(6), Zero, Dbgbcr(6);
    Dbgwvr6El1, DBGWVR6_EL1, Shared, Watchpoint(6), Zero, Dbgwvr(6);
    Dbgwcr6El1, DBGWCR6_EL1, Shared, Watchpoint(6), Zero, Dbgwcr(6);
    Dbgbvr7El1, DBGBVR7_EL1, Shared, Breakpoint(7), Zero, Dbgbvr(7);
    Dbgbcr7El1, DBGBCR7_EL1, Shared, Breakpoint(7), Zero, Dbgbcr(7);
    Dbgwvr7El1, DBGWVR7_EL1, Shared, Watchpoint(7), Zero, Dbgwvr(7);
    Dbgwcr7El1, DBGWCR7_EL1, Shared, Watchpoint(7), Zero, Dbgwcr(7);
    Dbgbvr8El1, DBGBVR8_EL1, Shared, Breakpoint(8), Zero, Dbgbvr(8);
    Dbgbcr8El1, DBGBCR8_EL1, Shared, Breakpoint(8), Zero, Dbgbcr(8);
    Dbgwvr8El1, DBGWVR8_EL1, Shared, Watchpoint(8), Zero, Dbgwvr(8);
    Dbgwcr8El1, DBGWCR8_EL1, Shared, Watchpoint(8), Zero, Dbgwcr(8);
    Dbgbvr9El1, DBGBVR9_EL1, Shared, Breakpoint(9), Zero, Dbgbvr(9);
    Dbgbcr9El1, DBGBCR9_EL1, Shared, Breakpoint(9), Zero, Dbgbcr(9);
    Dbgwvr9El1, DBGWVR9_EL1, Shared, Watchpoint(9), Zero, Dbgwvr(9);
    Dbgwcr9El1, DBGWCR9_EL1, Shared, Watchpoint(9), Zero, Dbgwcr(9);
    Dbgbvr10El1, DBGBVR10_EL1, Shared, Breakpoint(10), Zero, Dbgbvr(10);
    Dbgbcr10El1, DBGBCR10_EL1, Shared, Breakpoint(10), Zero, Dbgbcr(10);
    Dbgwvr10El1, DBGWVR10_EL1, Shared, Watchpoint(10), Zero, Dbgwvr(10);
    Dbgwcr10El1, DBGWCR10_EL1, Shared, Watchpoint(10), Zero, Dbgwcr(10);
    Dbgbvr11El1, DBGBVR11_EL1, Shared, Breakpoint(11), Zero, Dbgbvr(11);
    Dbgbcr11El1, DBGBCR11_EL1, Shared, Breakpoint(11), Zero, Dbgbcr(11);
    Dbgwvr11El1, DBGWVR11_EL1, Shared, Watchpoint(11), Zero, Dbgwvr(11);
    Dbgwcr11El1, DBGWCR11_EL1, Shared, Watchpoint(11), Zero, Dbgwcr(11);
    Dbgbvr12El1, DBGBVR12_EL1, Shared, Breakpoint(12), Zero, Dbgbvr(12);
    Dbgbcr12El1, DBGBCR12_EL1, Shared, Breakpoint(12), Zero, Dbgbcr(12);
    Dbgwvr12El1, DBGWVR12_EL1, Shared, Watchpoint(12), Zero, Dbgwvr(12);
    Dbgwcr12El1, DBGWCR12_EL1, Shared, Watchpoint(12), Zero, Dbgwcr(12);
    Dbgbvr13El1, DBGBVR13_EL1, Shared, Breakpoint(13), Zero, Dbgbvr(13);
    Dbgbcr13El1, DBGBCR13_EL1, Shared, Breakpoint(13), Zero, Dbgbcr(13);
    Dbgwvr13El1, DBGWVR13_EL1, Shared, Watchpoint(13), Zero, Dbgwvr(13);
    Dbgwcr13El1, DBGWCR13_EL1, Shared, Watchpoint(13), Zero, Dbgwcr(13);
    Dbgbvr14El1, DBGBVR14_EL1, Shared, Breakpoint(14), Zero, Dbgbvr(14);
    Dbgbcr14El1, DBGBCR14_EL1, Shared, Breakpoint(14), Zero, Dbgbcr(14);
    Dbgwvr14El1, DBGWVR14_EL1, Shared, Watchpoint(14), Zero, Dbgwvr(14);
    Dbgwcr14El1, DBGWCR14_EL1, Shared, Watchpoint(14), Zero, Dbgwcr(14);
    Dbgbvr15El1, DBGBVR15_EL1, Shared, Breakpoint(15), Zero, Dbgbvr(15);
    Dbgbcr15El1, DBGBCR15_EL1, Shared, Breakpoint(15), Zero, Dbgbcr(15);
    Dbgwvr15El1, DBGWVR15_EL1, Shared, Watchpoint(15), Zero, Dbgwvr(15);
    Dbgwcr15El1, DBGWCR15_EL1, Shared, Watchpoint(15), Zero, Dbgwcr(15);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_where_their_index_says() {
        for (at, reg) in Reg::ALL.iter().enumerate() {
            assert_eq!(reg.info().reg, *reg);
            assert_eq!(*reg as usize, at);
        }
    }

    #[test]
    fn no_encoding_and_no_slot_is_used_twice() {
        let encodings: BTreeSet<SysReg> = REGS.iter().map(|row| row.enc).collect();
        assert_eq!(encodings.len(), REGS.len());
        let slots: BTreeSet<(bool, u16)> = REGS
            .iter()
            .map(|row| match row.slot {
                Slot::Vncr(index) => (true, index),
                Slot::Array(index) => (false, index),
            })
            .collect();
        assert_eq!(slots.len(), REGS.len());
        assert_eq!(slots.iter().filter(|slot| !slot.0).count(), ARRAY_LEN);
    }

    #[test]
    fn lookup_by_encoding_finds_every_register_and_no_other() {
        for row in &REGS {
            assert_eq!(Reg::from_enc(row.enc), Some(row.reg), "{}", row.enc);
        }
        let ascending: std::vec::Vec<SysReg> = Reg::by_encoding().map(|r| r.info().enc).collect();
        assert!(ascending.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Reg::from_enc(SysReg::SCTLR_EL12), None);
        assert_eq!(Reg::from_enc(SysReg::ID_AA64PFR0_EL1), None);
    }

    #[test]
    fn a_hardware_register_serves_one_register_of_each_class() {
        for row in &REGS {
            let Some(home) = row.home else { continue };
            let sharers = REGS.iter().filter(|other| {
                other.home == Some(home)
                    && (other.class == row.class
                        || other.class == Class::Shared
                        || row.class == Class::Shared)
            });
            assert_eq!(sharers.count(), 1, "{}", row.enc);
        }
    }

    #[test]
    fn an_el2_register_needs_el2() {
        let all_but_el2 = Features {
            pauth: true,
            ras: true,
            sctlr2: true,
            tcr2: true,
            s1pie: true,
            s1poe: true,
            breakpoints: 16,
            watchpoints: 16,
            el2: false,
            hcx: true,
            fgt: true,
            fgt2: true,
            recursive: true,
            ecv: true,
            lor: true,
            gicv3: true,
            pmu: true,
        };
        let everything = Features {
            el2: true,
            ..all_but_el2
        };
        for row in &REGS {
            assert_eq!(
                row.reg.exists(&all_but_el2),
                row.class != Class::El2,
                "{}",
                row.enc
            );
            assert!(row.reg.exists(&everything), "{}", row.enc);
        }
        let bare = Features {
            breakpoints: 2,
            watchpoints: 1,
            ..Features::default()
        };
        assert!(Reg::Dbgbvr1El1.exists(&bare) && !Reg::Dbgbvr2El1.exists(&bare));
        assert!(Reg::Dbgwcr0El1.exists(&bare) && !Reg::Dbgwcr1El1.exists(&bare));
        assert!(!Reg::ApIaKeyLoEl1.exists(&bare));
    }

    #[test]
    fn the_nv2_redirected_registers_share_hardware_with_el1() {
        for (el2, el1) in [
            (Reg::SpsrEl2, Reg::SpsrEl1),
            (Reg::ElrEl2, Reg::ElrEl1),
            (Reg::EsrEl2, Reg::EsrEl1),
            (Reg::FarEl2, Reg::FarEl1),
            (Reg::SctlrEl2, Reg::SctlrEl1),
            (Reg::SpEl2, Reg::SpEl1),
        ] {
            assert_eq!(el2.info().home, el1.info().home);
            assert!(el2.info().home.is_some());
        }
    }
}
