//! What a guest's ID registers promise about its translation.
//!
//! The walkers believe nothing else: a control bit of a feature that is not shown is read as zero,
//! whatever the guest wrote there. So a walk does not depend on somebody having sanitised the
//! registers first.

use umbra_arm64::Granule;
use umbra_arm64::idreg::IdRegs;
use umbra_arm64::sysreg::SysReg;

/// How far a granule is supported in one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Not at all.
    Absent,
    /// Up to 48 bits of address (64 KiB: as FEAT_LPA and FEAT_LVA say).
    Present,
    /// With FEAT_LPA2: 52 bits where the DS bit is set.
    Lpa2,
}

/// The granules of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    /// 4 KiB.
    pub k4: Support,
    /// 16 KiB.
    pub k16: Support,
    /// 64 KiB; never [`Support::Lpa2`].
    pub k64: Support,
}

impl Granules {
    /// How far `granule` is supported.
    pub const fn support(self, granule: Granule) -> Support {
        match granule {
            Granule::K4 => self.k4,
            Granule::K16 => self.k16,
            Granule::K64 => self.k64,
        }
    }

    /// The granule that a TG field selects: a reserved value or an absent granule acts as an
    /// implementation-defined one, here the smallest that is there (Arm ARM, TCR_EL1.TG0).
    pub fn select(self, asked: Option<Granule>) -> Granule {
        let there = |granule: &Granule| self.support(*granule) != Support::Absent;
        asked
            .filter(there)
            .or_else(|| Granule::ALL.into_iter().find(there))
            .unwrap_or(Granule::K4)
    }
}

/// The features of a guest that its translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Physical address bits (PARange), 32 to 52. 52 implies FEAT_LPA.
    pub pa_bits: u32,
    /// Granules at stage 1.
    pub stage1: Granules,
    /// Granules at stage 2.
    pub stage2: Granules,
    /// FEAT_LVA: 52 bits of virtual address with 64 KiB granules.
    pub lva: bool,
    /// FEAT_TTST: input sizes down to 16 bits.
    pub small_tables: bool,
    /// FEAT_HAFDBS: hardware sets the access flag.
    pub access_flag: bool,
    /// FEAT_HAFDBS: hardware manages dirty state as well.
    pub dirty_state: bool,
    /// FEAT_XNX: execute-never at stage 2 by exception level.
    pub xnx: bool,
    /// FEAT_HPDS: hierarchical permissions can be disabled.
    pub hpds: bool,
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_PAN3: SCTLR_ELx.EPAN.
    pub epan: bool,
    /// FEAT_E0PD.
    pub e0pd: bool,
    /// FEAT_PAuth: TCR_ELx.TBID.
    pub tbid: bool,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// FEAT_XS.
    pub xs: bool,
}

impl Features {
    /// Whether physical addresses have 52 bits (FEAT_LPA).
    pub const fn lpa(&self) -> bool {
        self.pa_bits >= 52
    }

    /// What the values `ids`, as shown to the guest, promise.
    pub fn of(ids: &IdRegs) -> Features {
        let mmfr0 = |shift| ids.field(SysReg::ID_AA64MMFR0_EL1, shift);
        let mmfr1 = |shift| ids.field(SysReg::ID_AA64MMFR1_EL1, shift);
        let mmfr2 = |shift| ids.field(SysReg::ID_AA64MMFR2_EL1, shift);
        // TGran4 and TGran64 are signed with 0 for "there"; TGran16 is unsigned with 1.
        let stage1 = Granules {
            k4: match mmfr0(28) {
                0 => Support::Present,
                1..=7 => Support::Lpa2,
                _ => Support::Absent,
            },
            k16: match mmfr0(20) {
                0 => Support::Absent,
                1 => Support::Present,
                _ => Support::Lpa2,
            },
            k64: match mmfr0(24) {
                0..=7 => Support::Present,
                _ => Support::Absent,
            },
        };
        let second = |shift, first| match mmfr0(shift) {
            0 => first,
            1 => Support::Absent,
            2 => Support::Present,
            _ => Support::Lpa2,
        };
        Features {
            pa_bits: pa_range(mmfr0(0)),
            stage1,
            stage2: Granules {
                k4: second(40, stage1.k4),
                k16: second(32, stage1.k16),
                k64: match second(36, stage1.k64) {
                    Support::Absent => Support::Absent,
                    Support::Present | Support::Lpa2 => Support::Present,
                },
            },
            lva: mmfr2(16) != 0,
            small_tables: mmfr2(28) != 0,
            access_flag: mmfr1(0) >= 1,
            dirty_state: mmfr1(0) >= 2,
            xnx: mmfr1(28) != 0,
            hpds: mmfr1(12) != 0,
            pan: mmfr1(20) != 0,
            epan: mmfr1(20) >= 3,
            e0pd: mmfr2(60) != 0,
            tbid: ids.has_pauth(),
            fwb: mmfr2(40) != 0,
            xs: ids.field(SysReg::ID_AA64ISAR1_EL1, 56) != 0,
        }
    }

    /// The biggest TnSZ (the smallest input) that is legal with `granule`.
    pub(crate) const fn max_txsz(&self, granule: Granule) -> u32 {
        match (self.small_tables, granule) {
            (false, _) => 39,
            (true, Granule::K4 | Granule::K16) => 48,
            (true, Granule::K64) => 47,
        }
    }
}

/// Address bits that a PARange or PS encoding stands for; what is beyond 52 bits counts as 52.
pub(crate) const fn pa_range(encoded: u64) -> u32 {
    match encoded & 7 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(fields: &[(SysReg, u32, u64)]) -> Features {
        let mut ids = IdRegs::default();
        for (enc, shift, value) in fields {
            let old = ids.get(*enc);
            assert!(ids.set(*enc, old | value << shift));
        }
        Features::of(&ids)
    }

    const MMFR0: SysReg = SysReg::ID_AA64MMFR0_EL1;

    #[test]
    fn stage_2_granules_follow_stage_1_unless_they_say_otherwise() {
        let plain = with(&[(MMFR0, 20, 1)]);
        assert_eq!(plain.stage1, plain.stage2);
        assert_eq!(plain.stage2.k16, Support::Present);
        let split = with(&[
            (MMFR0, 20, 2),
            (MMFR0, 32, 1),
            (MMFR0, 36, 1),
            (MMFR0, 40, 3),
        ]);
        assert_eq!(split.stage1.k16, Support::Lpa2);
        let Granules { k4, k16, k64 } = split.stage2;
        assert_eq!(
            (k4, k16, k64),
            (Support::Lpa2, Support::Absent, Support::Absent)
        );
    }

    #[test]
    fn absent_granules_are_absent() {
        let none = with(&[(MMFR0, 24, 15), (MMFR0, 28, 15)]);
        let Granules { k4, k16, k64 } = none.stage1;
        assert_eq!(
            [k4, k16, k64],
            [Support::Absent, Support::Absent, Support::Absent]
        );
    }

    #[test]
    fn what_is_not_there_is_replaced_by_the_smallest_that_is() {
        let granules = Granules {
            k4: Support::Absent,
            k16: Support::Present,
            k64: Support::Present,
        };
        assert_eq!(granules.select(Some(Granule::K64)), Granule::K64);
        assert_eq!(granules.select(Some(Granule::K4)), Granule::K16);
        assert_eq!(granules.select(None), Granule::K16);
    }

    #[test]
    fn physical_address_ranges() {
        let bits = [0, 1, 2, 3, 4, 5, 6, 7].map(pa_range);
        assert_eq!(bits, [32, 36, 40, 42, 44, 48, 52, 52]);
        assert!(with(&[(MMFR0, 0, 6)]).lpa() && !with(&[(MMFR0, 0, 5)]).lpa());
    }

    #[test]
    fn each_field_opens_its_feature() {
        let mmfr1 = SysReg::ID_AA64MMFR1_EL1;
        let mmfr2 = SysReg::ID_AA64MMFR2_EL1;
        let none = with(&[]);
        for (field, feature) in [
            ((mmfr1, 0, 1), (|f| f.access_flag) as fn(&Features) -> bool),
            ((mmfr1, 0, 2), |f| f.dirty_state && f.access_flag),
            ((mmfr1, 12, 1), |f| f.hpds),
            ((mmfr1, 20, 1), |f| f.pan),
            ((mmfr1, 20, 3), |f| f.epan),
            ((mmfr1, 28, 1), |f| f.xnx),
            ((mmfr2, 16, 1), |f| f.lva),
            ((mmfr2, 28, 1), |f| f.small_tables),
            ((mmfr2, 40, 1), |f| f.fwb),
            ((mmfr2, 60, 1), |f| f.e0pd),
            ((SysReg::ID_AA64ISAR1_EL1, 56, 1), |f| f.xs),
            ((SysReg::ID_AA64ISAR1_EL1, 8, 1), |f| f.tbid),
        ] {
            assert!(!feature(&none) && feature(&with(&[field])), "{field:?}");
        }
        assert!(!with(&[(mmfr1, 0, 1)]).dirty_state && !with(&[(mmfr1, 20, 2)]).epan);
    }
}
