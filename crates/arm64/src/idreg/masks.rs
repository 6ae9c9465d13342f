//! Which bits of a control register exist for a guest, worked out from its ID registers.
//!
//! A bit of a feature that the guest is not shown is RES0 (some are RES1) for it, whatever the
//! hardware below has. umbra reads a guest's register through [`Res::sanitise`] at every use; what
//! is stored stays what the guest wrote, since a register in the VNCR page is written without a
//! trap and an old value proves nothing.
//!
//! A row says: these bits exist when this holds. Bits that no row names are RES0.

use super::IdRegs;
use crate::sysreg::{Reg, SysReg};

/// The reserved bits of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Res {
    /// Bits that read as zero.
    pub res0: u64,
    /// Bits that read as one.
    pub res1: u64,
}

impl Res {
    /// `value` as the architecture reads it.
    pub const fn sanitise(self, value: u64) -> u64 {
        value & !self.res0 | self.res1
    }

    /// The bits that mean something.
    pub const fn valid(self) -> u64 {
        !(self.res0 | self.res1)
    }
}

/// A condition on ID registers.
type When = fn(&IdRegs) -> bool;

/// Bits of one meaning: which, when they exist, and whether they read as one otherwise.
struct Bits {
    mask: u64,
    when: When,
    otherwise_one: bool,
}

const fn bits(mask: u64, when: When) -> Bits {
    Bits {
        mask,
        when,
        otherwise_one: false,
    }
}

const fn or_one(mask: u64, when: When) -> Bits {
    Bits {
        mask,
        when,
        otherwise_one: true,
    }
}

/// A mask from bit `low` to bit `high`, both included.
const fn span(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

const fn bit(at: u32) -> u64 {
    1 << at
}

const fn always(_: &IdRegs) -> bool {
    true
}

const fn never(_: &IdRegs) -> bool {
    false
}

macro_rules! conditions {
    ($($name:ident: $enc:ident[$shift:literal] >= $least:literal;)*) => {
        $(
            fn $name(ids: &IdRegs) -> bool {
                ids.field(SysReg::$enc, $shift) >= $least
            }
        )*
    };
}

conditions! {
    ras: ID_AA64PFR0_EL1[28] >= 1;
    rasv1p1: ID_AA64PFR0_EL1[28] >= 2;
    sve: ID_AA64PFR0_EL1[32] >= 1;
    amu: ID_AA64PFR0_EL1[44] >= 1;
    csv2_2: ID_AA64PFR0_EL1[56] >= 2;
    bti: ID_AA64PFR1_EL1[0] >= 1;
    ssbs: ID_AA64PFR1_EL1[4] >= 2;
    mte2: ID_AA64PFR1_EL1[8] >= 2;
    sme: ID_AA64PFR1_EL1[24] >= 1;
    pmu: ID_AA64DFR0_EL1[8] >= 1;
    pmu3p1: ID_AA64DFR0_EL1[8] >= 4;
    pmu3p5: ID_AA64DFR0_EL1[8] >= 6;
    xs: ID_AA64ISAR1_EL1[56] >= 1;
    specres: ID_AA64ISAR1_EL1[40] >= 1;
    mops: ID_AA64ISAR2_EL1[16] >= 1;
    exs: ID_AA64MMFR0_EL1[44] >= 1;
    fgt: ID_AA64MMFR0_EL1[56] >= 1;
    ecv: ID_AA64MMFR0_EL1[60] >= 1;
    ecv2: ID_AA64MMFR0_EL1[60] >= 2;
    asid16: ID_AA64MMFR0_EL1[4] >= 2;
    hafdbs_af: ID_AA64MMFR1_EL1[0] >= 1;
    hafdbs_dbm: ID_AA64MMFR1_EL1[0] >= 2;
    vmid16: ID_AA64MMFR1_EL1[4] >= 2;
    hpds: ID_AA64MMFR1_EL1[12] >= 1;
    hpds2: ID_AA64MMFR1_EL1[12] >= 2;
    lor: ID_AA64MMFR1_EL1[16] >= 1;
    pan: ID_AA64MMFR1_EL1[20] >= 1;
    pan3: ID_AA64MMFR1_EL1[20] >= 3;
    tidcp1: ID_AA64MMFR1_EL1[52] >= 1;
    cmow: ID_AA64MMFR1_EL1[56] >= 1;
    cnp: ID_AA64MMFR2_EL1[0] >= 1;
    lsm: ID_AA64MMFR2_EL1[8] >= 1;
    iesb: ID_AA64MMFR2_EL1[12] >= 1;
    nv: ID_AA64MMFR2_EL1[24] >= 1;
    nv2: ID_AA64MMFR2_EL1[24] >= 2;
    lse2: ID_AA64MMFR2_EL1[32] >= 1;
    fwb: ID_AA64MMFR2_EL1[40] >= 1;
    evt: ID_AA64MMFR2_EL1[56] >= 1;
    evt2: ID_AA64MMFR2_EL1[56] >= 2;
    e0pd: ID_AA64MMFR2_EL1[60] >= 1;
    tcr2: ID_AA64MMFR3_EL1[0] >= 1;
    sctlr2: ID_AA64MMFR3_EL1[4] >= 1;
    s1poe: ID_AA64MMFR3_EL1[16] >= 1;
}

fn pauth(ids: &IdRegs) -> bool {
    ids.has_pauth()
}

fn big_endian_el0(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64MMFR0_EL1, 8) != 0 || ids.field(SysReg::ID_AA64MMFR0_EL1, 16) != 0
}

fn big_endian(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64MMFR0_EL1, 8) != 0
}

/// LPA2 with 4 KiB or 16 KiB granules: TGran4 is 1 (of signed values), or TGran16 is 2.
fn lpa2(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64MMFR0_EL1, 28) == 1 || ids.field(SysReg::ID_AA64MMFR0_EL1, 20) >= 2
}

// SCTLR_EL1 and, with E2H set, SCTLR_EL2 (Arm ARM D24.2.175). No AArch32: CP15BEN is RES0, ITD and
// SED are RES1.
const SCTLR: &[Bits] = &[
    bits(
        span(4, 0) | bit(9) | bit(12) | span(16, 14) | span(19, 18) | bit(26),
        always,
    ),
    bits(bit(6), lse2),
    or_one(span(8, 7), never),
    bits(bit(10), specres),
    or_one(bit(11) | bit(22), exs),
    bits(bit(13) | bit(27) | span(31, 30), pauth),
    or_one(bit(20), csv2_2),
    bits(bit(21), iesb),
    or_one(bit(23), pan),
    bits(bit(24), big_endian_el0),
    bits(bit(25), big_endian),
    or_one(span(29, 28), lsm),
    bits(bit(32), cmow),
    bits(bit(33), mops),
    bits(span(36, 35), bti),
    bits(bit(37) | span(43, 38) | span(59, 58), mte2),
    bits(bit(44), ssbs),
    bits(bit(57), pan3),
    bits(bit(60), sme),
    bits(bit(63), tidcp1),
];

// TCR_EL1 and, with E2H set, TCR_EL2 (D24.2.184).
const TCR: &[Bits] = &[
    bits(span(5, 0) | span(34, 7) | span(38, 37), always),
    bits(bit(36), asid16),
    bits(bit(39), hafdbs_af),
    bits(bit(40), hafdbs_dbm),
    bits(span(42, 41), hpds),
    bits(span(50, 43), hpds2),
    bits(span(52, 51), pauth),
    bits(span(54, 53), sve),
    bits(span(56, 55), e0pd),
    bits(span(58, 57) | span(61, 60), mte2),
    bits(bit(59), lpa2),
];

// CPACR_EL1 (D24.2.33) and, with E2H set, CPTR_EL2, which adds TCPAC and TAM.
const CPACR: &[Bits] = &[
    bits(span(17, 16), sve),
    bits(span(21, 20), always),
    bits(span(25, 24), sme),
    bits(bit(29), s1poe),
];

const CPTR: &[Bits] = &[
    bits(span(17, 16), sve),
    bits(span(21, 20) | bit(31), always),
    bits(span(25, 24), sme),
    bits(bit(29), s1poe),
    bits(bit(30), amu),
];

const CNTKCTL: &[Bits] = &[bits(span(9, 0), always), bits(bit(17), ecv)];

const CNTHCTL: &[Bits] = &[
    bits(span(11, 0), always),
    bits(bit(12), ecv2),
    bits(span(17, 13), ecv),
];

// HCR_EL2 (D24.2.46). EL1 is AArch64 only, so RW is RES1; E2H cannot be cleared; EL3 is there, so
// HCD is RES0. NV1 is RES0 for every guest (E2H0 is −2).
const HCR: &[Bits] = &[
    bits(
        span(14, 0) | span(28, 16) | bit(30) | span(33, 32) | bit(38),
        always,
    ),
    or_one(bit(31) | bit(34), never),
    bits(bit(35), lor),
    bits(span(37, 36), ras),
    bits(span(41, 40), pauth),
    bits(bit(42) | bit(44), nv),
    bits(bit(45), nv2),
    bits(bit(46), fwb),
    bits(bit(47), rasv1p1),
    bits(span(50, 49) | bit(52), evt),
    bits(bit(51), amu),
    bits(bit(53), csv2_2),
    bits(span(55, 54), evt2),
    bits(span(58, 56), mte2),
];

const HCRX: &[Bits] = &[
    bits(span(4, 3), xs),
    bits(bit(9), cmow),
    bits(span(11, 10), mops),
    bits(bit(14), tcr2),
    bits(bit(15), sctlr2),
];

// MDCR_EL2: HPMN, HPME and the counters' traps come with counters, HPMD and HCCD later. HLP is not kept: all
// event counters overflow by PMCR_EL0.LP.
const MDCR: &[Bits] = &[
    bits(span(11, 8), always),
    bits(span(7, 0), pmu),
    bits(bit(17), pmu3p1),
    bits(bit(23), pmu3p5),
    bits(bit(27), fgt),
];

// VTCR_EL2 (D24.2.206). NSW and NSA are of the Secure state.
const VTCR: &[Bits] = &[
    bits(span(18, 0), always),
    bits(bit(19), vmid16),
    bits(bit(21), hafdbs_af),
    bits(bit(22), hafdbs_dbm),
    bits(span(28, 25), hpds2),
    or_one(bit(31), never),
    bits(span(33, 32), lpa2),
];

const VTTBR: &[Bits] = &[
    bits(bit(0), cnp),
    bits(span(47, 1) | span(55, 48), always),
    bits(span(63, 56), vmid16),
];

const fn table(reg: Reg) -> Option<&'static [Bits]> {
    Some(match reg {
        Reg::SctlrEl1 | Reg::SctlrEl2 => SCTLR,
        Reg::TcrEl1 | Reg::TcrEl2 => TCR,
        Reg::CpacrEl1 => CPACR,
        Reg::CptrEl2 => CPTR,
        Reg::CntkctlEl1 => CNTKCTL,
        Reg::CnthctlEl2 => CNTHCTL,
        Reg::HcrEl2 => HCR,
        Reg::HcrxEl2 => HCRX,
        Reg::MdcrEl2 => MDCR,
        Reg::VtcrEl2 => VTCR,
        Reg::VttbrEl2 => VTTBR,
        _ => return None,
    })
}

/// The reserved bits of `reg` for a guest that sees `ids`, or `None` for a register that has none
/// of interest.
pub fn res(reg: Reg, ids: &IdRegs) -> Option<Res> {
    let mut res = Res {
        res0: u64::MAX,
        res1: 0,
    };
    for row in table(reg)? {
        if (row.when)(ids) {
            res.res0 &= !row.mask;
        } else if row.otherwise_one {
            res.res0 &= !row.mask;
            res.res1 |= row.mask;
        }
    }
    Some(res)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idreg::{Config, shown};

    const REGS: [Reg; 12] = [
        Reg::SctlrEl1,
        Reg::SctlrEl2,
        Reg::TcrEl1,
        Reg::CpacrEl1,
        Reg::CptrEl2,
        Reg::CntkctlEl1,
        Reg::CnthctlEl2,
        Reg::HcrEl2,
        Reg::HcrxEl2,
        Reg::MdcrEl2,
        Reg::VtcrEl2,
        Reg::VttbrEl2,
    ];

    fn of(reg: Reg, ids: &IdRegs) -> Res {
        res(reg, ids).expect("a table")
    }

    fn with(fields: &[(SysReg, u32, u64)]) -> IdRegs {
        let mut ids = IdRegs::default();
        for (enc, shift, value) in fields {
            let old = ids.get(*enc);
            assert!(ids.set(*enc, old | value << shift));
        }
        ids
    }

    #[test]
    fn rows_do_not_overlap() {
        for reg in REGS {
            let mut seen = 0;
            for row in table(reg).expect("a table") {
                assert_eq!(seen & row.mask, 0, "{}: {:#x}", reg.info().enc, row.mask);
                seen |= row.mask;
            }
        }
    }

    #[test]
    fn a_bit_is_either_zero_one_or_valid() {
        let nothing = IdRegs::default();
        for reg in REGS {
            let res = of(reg, &nothing);
            assert_eq!(res.res0 & res.res1, 0);
            assert_eq!(res.valid() | res.res0 | res.res1, u64::MAX);
            assert_eq!(res.sanitise(u64::MAX), !res.res0);
            assert_eq!(res.sanitise(0), res.res1);
        }
    }

    #[test]
    fn without_features_sctlr_has_the_bits_of_armv8_0() {
        let res = of(Reg::SctlrEl1, &IdRegs::default());
        assert_eq!(
            res.res1,
            1 << 7 | 1 << 8 | 1 << 11 | 1 << 20 | 1 << 22 | 1 << 23 | 3 << 28
        );
        assert_eq!(
            res.valid(),
            0x1f | 1 << 9 | 1 << 12 | 7 << 14 | 3 << 18 | 1 << 26
        );
    }

    /// Each condition by itself opens its own bits.
    #[test]
    fn a_feature_opens_its_bits() {
        for (reg, field, opened) in [
            (Reg::SctlrEl1, (SysReg::ID_AA64MMFR1_EL1, 20, 1), 1 << 23),
            (
                Reg::SctlrEl1,
                (SysReg::ID_AA64ISAR1_EL1, 8, 1),
                1 << 13 | 1 << 27 | 3 << 30,
            ),
            (Reg::SctlrEl1, (SysReg::ID_AA64ISAR2_EL1, 16, 1), 1 << 33),
            (Reg::SctlrEl2, (SysReg::ID_AA64PFR1_EL1, 0, 1), 3 << 35),
            (Reg::TcrEl1, (SysReg::ID_AA64MMFR1_EL1, 0, 1), 1 << 39),
            (Reg::TcrEl1, (SysReg::ID_AA64MMFR1_EL1, 0, 2), 3 << 39),
            (Reg::TcrEl1, (SysReg::ID_AA64MMFR2_EL1, 60, 1), 3 << 55),
            (Reg::HcrEl2, (SysReg::ID_AA64PFR0_EL1, 28, 1), 3 << 36),
            (
                Reg::HcrEl2,
                (SysReg::ID_AA64MMFR2_EL1, 24, 2),
                1 << 42 | 1 << 44 | 1 << 45,
            ),
            (Reg::HcrEl2, (SysReg::ID_AA64MMFR2_EL1, 40, 1), 1 << 46),
            (
                Reg::HcrEl2,
                (SysReg::ID_AA64MMFR2_EL1, 56, 1),
                3 << 49 | 1 << 52,
            ),
            (Reg::HcrxEl2, (SysReg::ID_AA64ISAR1_EL1, 56, 1), 3 << 3),
            (Reg::VtcrEl2, (SysReg::ID_AA64MMFR1_EL1, 4, 2), 1 << 19),
            (Reg::VtcrEl2, (SysReg::ID_AA64MMFR0_EL1, 28, 1), 3 << 32),
            (Reg::VttbrEl2, (SysReg::ID_AA64MMFR2_EL1, 0, 1), 1),
            (Reg::VttbrEl2, (SysReg::ID_AA64MMFR1_EL1, 4, 2), 0xff << 56),
            (Reg::CntkctlEl1, (SysReg::ID_AA64MMFR0_EL1, 60, 1), 1 << 17),
            (Reg::MdcrEl2, (SysReg::ID_AA64MMFR0_EL1, 56, 1), 1 << 27),
        ] {
            let without = of(reg, &IdRegs::default()).valid();
            let with = of(reg, &with(&[field])).valid();
            assert_eq!(with & !without, opened, "{} {field:?}", reg.info().enc);
            assert_eq!(without & !with, 0, "{} {field:?}", reg.info().enc);
        }
    }

    #[test]
    fn an_absent_4k_granule_is_not_lpa2() {
        let ids = with(&[(SysReg::ID_AA64MMFR0_EL1, 28, 15)]);
        assert_eq!(of(Reg::VtcrEl2, &ids).res0 & 3 << 32, 3 << 32);
    }

    #[test]
    fn a_guest_hypervisor_cannot_leave_vhe_or_reach_nv() {
        let mut hw = IdRegs::default();
        for enc in crate::idreg::SOURCES {
            hw.set(*enc, 0x2222_2222_2222_2222);
        }
        let ids = shown(
            &hw,
            &Config {
                pauth: true,
                nested: true,
                gicv3: true,
                pmu: true,
            },
        );
        let hcr = of(Reg::HcrEl2, &ids);
        assert_eq!(hcr.res1, 1 << 31 | 1 << 34);
        assert_eq!(
            hcr.res0 & (1 << 42 | 1 << 43 | 1 << 45),
            1 << 42 | 1 << 43 | 1 << 45
        );
        assert_eq!(hcr.res0 & (3 << 36 | 1 << 46), 0, "RAS and FWB are shown");
    }

    #[test]
    fn registers_without_a_table_say_so() {
        assert_eq!(res(Reg::TpidrEl1, &IdRegs::default()), None);
    }
}
