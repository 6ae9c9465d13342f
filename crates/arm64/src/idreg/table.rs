//! The table of ID-register fields: name, place, kind, and what a guest is shown.
//!
//! A field that is not here reads as zero, which by the ID scheme means "not there" for all
//! unsigned fields; the signed ones, where −1 means that, are named even when they are hidden.
//! Reasons stand at the row where the row does not speak for itself.

use super::Config;
use crate::sysreg::SysReg;

/// What is shown in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What hardware has, at most this. A VMM may lower it; it is told so of fields that are zero, too, as on Linux.
    UpTo(u64),
    /// Nothing, and nobody may say otherwise.
    Hidden,
    /// What hardware has, at most the second. A VMM may lower it to the first, the least that makes sense.
    Floor(u64, u64),
    /// What hardware has, at most this. A VMM may raise it to that: it tells of something that may happen.
    Raised(u64),
    /// Whether stage 2 has a granule: 2 for a guest hypervisor, whose tables umbra walks itself, else 0, which
    /// is what stage 1 has. A VMM may say 1, that it has not.
    Stage2Granule,
    /// What hardware has, at most the first for a plain guest, the second for a guest hypervisor. A
    /// VMM may lower it.
    Split(u64, u64),
    /// What hardware has, at most this, if the VM has pointer authentication.
    PAuth(u64),
    /// What hardware has of PMUv3, at most this, if the VM has performance counters. A VMM may lower it.
    Pmu(u64),
    /// What hardware has, at most this; what follows from it is not undone by a VMM.
    Kept(u64),
    /// This value.
    Fixed(u64),
    /// This value for a guest hypervisor, else zero.
    Nested(u64),
    /// The same, of a field that a VMM is told it may lower, as on Linux; there is no less of it.
    NestedNamed(u64),
    /// 1 if the VM has a GICv3, else zero. A VMM may say either; what is true is shown from the first run on.
    GicV3,
}

/// A field of an ID register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the Arm ARM.
    pub name: &'static str,
    /// Its lowest bit.
    pub shift: u32,
    /// Its width in bits.
    pub width: u32,
    /// Whether its values count as two's complement, −1 meaning absent.
    pub signed: bool,
    /// What is shown.
    pub policy: Policy,
}

impl Field {
    /// The field's bits in the register.
    pub const fn mask(&self) -> u64 {
        ((1 << self.width) - 1) << self.shift
    }

    /// The field's bits of `register`, shifted down.
    pub const fn extract(&self, register: u64) -> u64 {
        (register & self.mask()) >> self.shift
    }

    /// `value` at the field's place.
    pub const fn place(&self, value: u64) -> u64 {
        value << self.shift & self.mask()
    }

    /// The rank of `value`: more is more.
    pub const fn order(&self, value: u64) -> i64 {
        let above = 64 - self.width;
        if self.signed {
            (value << above) as i64 >> above
        } else {
            value as i64
        }
    }

    /// Whether a VMM is told that it may write the field.
    pub const fn writable(&self) -> bool {
        match self.policy {
            Policy::UpTo(_)
            | Policy::Floor(..)
            | Policy::Raised(_)
            | Policy::Split(..)
            | Policy::Pmu(_)
            | Policy::Stage2Granule
            | Policy::NestedNamed(_)
            | Policy::GicV3 => true,
            Policy::Hidden
            | Policy::PAuth(_)
            | Policy::Kept(_)
            | Policy::Fixed(_)
            | Policy::Nested(_) => false,
        }
    }

    /// Whether a VMM may write `new` where `shown` is what was shown at first.
    pub const fn takes(&self, new: u64, shown: u64) -> bool {
        let lower = self.order(new) <= self.order(shown);
        match self.policy {
            _ if new == shown => true,
            Policy::UpTo(_) | Policy::Split(..) | Policy::Pmu(_) => lower,
            Policy::Floor(least, _) => lower && self.order(new) >= self.order(least),
            Policy::Raised(most) => !lower && new <= most,
            Policy::Stage2Granule => new == 1,
            Policy::GicV3 => new <= 1,
            Policy::NestedNamed(_)
            | Policy::Hidden
            | Policy::PAuth(_)
            | Policy::Kept(_)
            | Policy::Fixed(_)
            | Policy::Nested(_) => false,
        }
    }

    /// Whether the value is umbra's choice whatever the hardware.
    pub const fn is_fixed(&self) -> bool {
        matches!(
            self.policy,
            Policy::Fixed(_)
                | Policy::Nested(_)
                | Policy::NestedNamed(_)
                | Policy::Stage2Granule
                | Policy::GicV3
        )
    }

    /// The value to show where hardware's register reads as `hw`.
    pub const fn shown(&self, hw: u64, config: &Config) -> u64 {
        let there = self.extract(hw);
        match self.policy {
            Policy::UpTo(most)
            | Policy::Kept(most)
            | Policy::Floor(_, most)
            | Policy::Raised(most) => self.at_most(there, most),
            Policy::Hidden => 0,
            Policy::Stage2Granule => 2 * config.nested as u64,
            Policy::Split(plain, nested) => {
                self.at_most(there, if config.nested { nested } else { plain })
            }
            Policy::PAuth(most) => {
                if config.pauth {
                    self.at_most(there, most)
                } else {
                    0
                }
            }
            // 15 is a PMU of another kind.
            Policy::Pmu(_) if !config.pmu || there == 15 => 0,
            Policy::Pmu(most) => self.at_most(there, most),
            Policy::Fixed(value) => value,
            Policy::Nested(value) | Policy::NestedNamed(value) => {
                if config.nested {
                    value
                } else {
                    0
                }
            }
            Policy::GicV3 => config.gicv3 as u64,
        }
    }

    const fn at_most(&self, there: u64, most: u64) -> u64 {
        if self.order(there) <= self.order(most) {
            there
        } else {
            most
        }
    }
}

/// An ID register and its fields.
#[derive(Clone, Copy, Debug)]
pub struct IdTable {
    /// The register.
    pub enc: SysReg,
    /// Its fields, ascending.
    pub fields: &'static [Field],
}

use Policy::{
    Fixed, Floor, GicV3, Hidden, Kept, Nested, NestedNamed, PAuth, Pmu, Raised, Split,
    Stage2Granule, UpTo,
};

const fn f(name: &'static str, shift: u32, policy: Policy) -> Field {
    Field {
        name,
        shift,
        width: 4,
        signed: false,
        policy,
    }
}

const fn signed(name: &'static str, shift: u32, policy: Policy) -> Field {
    Field {
        name,
        shift,
        width: 4,
        signed: true,
        policy,
    }
}

const fn wide(name: &'static str, shift: u32, width: u32, policy: Policy) -> Field {
    Field {
        name,
        shift,
        width,
        signed: false,
        policy,
    }
}

/// −1 in four bits: a signed field's "absent".
const ABSENT: u64 = 15;

/// Every register that shows anything. The rest of the ID space reads as zero: AArch32's registers,
/// for no guest of ours runs AArch32, and those of SVE, SME, FP8, AFR and the later DFRs.
pub const TABLES: &[IdTable] = &[
    IdTable {
        enc: SysReg::ID_AA64PFR0_EL1,
        fields: &[
            f("EL0", 0, Floor(1, 1)),
            f("EL1", 4, Floor(1, 1)),
            f("EL2", 8, NestedNamed(1)),
            // A guest hypervisor reaches its firmware by SMC, which needs an EL3.
            f("EL3", 12, NestedNamed(1)),
            signed("FP", 16, Kept(1)),
            signed("AdvSIMD", 20, Kept(1)),
            f("GIC", 24, GicV3),
            // RASv2 adds registers that would have to be kept.
            f("RAS", 28, UpTo(2)),
            f("SVE", 32, Hidden),
            f("SEL2", 36, UpTo(0)),
            f("MPAM", 40, Hidden),
            f("AMU", 44, Hidden),
            f("DIT", 48, UpTo(1)),
            f("RME", 52, UpTo(0)),
            // 2 would bring SCXTNUM_ELx, which nobody switches.
            f("CSV2", 56, UpTo(1)),
            f("CSV3", 60, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64PFR1_EL1,
        fields: &[
            f("BT", 0, UpTo(1)),
            f("SSBS", 4, UpTo(2)),
            f("MTE", 8, Hidden),
            f("RAS_frac", 12, UpTo(1)),
            f("MPAM_frac", 16, Hidden),
            f("SME", 24, Hidden),
            f("RNDR_trap", 28, Hidden),
            f("CSV2_frac", 32, UpTo(1)),
            f("NMI", 36, Hidden),
            f("MTE_frac", 40, Hidden),
            f("GCS", 44, Hidden),
            f("THE", 48, Hidden),
            f("MTEX", 52, Hidden),
            f("DF2", 56, UpTo(0)),
            f("PFAR", 60, Hidden),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64ZFR0_EL1,
        fields: &[
            f("SVEver", 0, UpTo(0)),
            f("AES", 4, UpTo(0)),
            f("BitPerm", 16, UpTo(0)),
            f("BF16", 20, UpTo(0)),
            f("B16B16", 24, UpTo(0)),
            f("SHA3", 32, UpTo(0)),
            f("SM4", 40, UpTo(0)),
            f("I8MM", 44, UpTo(0)),
            f("F32MM", 52, UpTo(0)),
            f("F64MM", 56, UpTo(0)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64DFR0_EL1,
        fields: &[
            // Armv8.2 debug; later versions add state that is not kept. 6 is the least that there is.
            f("DebugVer", 0, Floor(6, 8)),
            f("TraceVer", 4, Hidden),
            // FEAT_PMUv3p5, the last that KVM shows.
            f("PMUVer", 8, Pmu(6)),
            f("BRPs", 12, UpTo(15)),
            f("PMSS", 16, Hidden),
            f("WRPs", 20, UpTo(15)),
            f("SEBEP", 24, Hidden),
            // One context-aware breakpoint, the fewest there can be.
            f("CTX_CMPs", 28, Hidden),
            f("PMSVer", 32, Hidden),
            signed("DoubleLock", 36, Floor(ABSENT, ABSENT)),
            f("TraceFilt", 40, Hidden),
            f("TraceBuffer", 44, Hidden),
            f("MTPMU", 48, Fixed(0)),
            f("BRBE", 52, Hidden),
            f("ExtTrcBuff", 56, Hidden),
            f("HPMN0", 60, Hidden),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64ISAR0_EL1,
        fields: &[
            f("AES", 4, UpTo(2)),
            f("SHA1", 8, UpTo(1)),
            f("SHA2", 12, UpTo(2)),
            f("CRC32", 16, UpTo(1)),
            f("Atomic", 20, UpTo(3)),
            f("TME", 24, UpTo(0)),
            f("RDM", 28, UpTo(1)),
            f("SHA3", 32, UpTo(1)),
            f("SM3", 36, UpTo(1)),
            f("SM4", 40, UpTo(1)),
            f("DP", 44, UpTo(1)),
            f("FHM", 48, UpTo(1)),
            f("TS", 52, UpTo(2)),
            f("TLB", 56, UpTo(2)),
            f("RNDR", 60, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64ISAR1_EL1,
        fields: &[
            f("DPB", 0, UpTo(2)),
            f("APA", 4, PAuth(5)),
            f("API", 8, PAuth(5)),
            f("JSCVT", 12, UpTo(1)),
            f("FCMA", 16, UpTo(1)),
            f("LRCPC", 20, UpTo(3)),
            f("GPA", 24, PAuth(1)),
            f("GPI", 28, PAuth(1)),
            f("FRINTTS", 32, UpTo(1)),
            f("SB", 36, UpTo(1)),
            // Its instructions act on a context that a guest does not own.
            f("SPECRES", 40, UpTo(0)),
            f("BF16", 44, UpTo(2)),
            f("DGH", 48, UpTo(1)),
            f("I8MM", 52, UpTo(1)),
            f("XS", 56, UpTo(1)),
            f("LS64", 60, UpTo(0)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64ISAR2_EL1,
        fields: &[
            // WFET and WFIT trap like WFE and WFI, but would need a deadline of their own.
            f("WFxT", 0, UpTo(0)),
            f("RPRES", 4, UpTo(1)),
            f("GPA3", 8, PAuth(1)),
            f("APA3", 12, PAuth(5)),
            // HCRX_EL2.MSCEn must be set for a guest that is shown this.
            f("MOPS", 16, UpTo(1)),
            f("BC", 20, UpTo(1)),
            f("PAC_frac", 24, PAuth(1)),
            f("CLRBHB", 28, UpTo(1)),
            f("SYSREG_128", 32, UpTo(0)),
            f("SYSINSTR_128", 36, UpTo(0)),
            f("PRFMSLC", 40, UpTo(0)),
            f("PCDPHINT", 44, UpTo(0)),
            f("RPRFM", 48, UpTo(1)),
            f("CSSC", 52, UpTo(2)),
            f("LUT", 56, UpTo(1)),
            f("ATS1A", 60, UpTo(0)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64ISAR3_EL1,
        fields: &[
            f("CPA", 0, Hidden),
            f("FAMINMAX", 4, UpTo(1)),
            f("TLBIW", 8, Hidden),
            f("PACM", 12, Hidden),
            f("LSFE", 16, UpTo(1)),
            f("OCCMO", 20, Hidden),
            f("LSUI", 24, UpTo(0)),
            f("FPRCVT", 28, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64MMFR0_EL1,
        fields: &[
            // 5 is 48 bits.
            f("PARange", 0, UpTo(5)),
            f("ASIDBits", 4, UpTo(2)),
            f("BigEnd", 8, UpTo(1)),
            f("SNSMem", 12, UpTo(0)),
            f("BigEndEL0", 16, UpTo(1)),
            // Up to 48 bits of address with every granule: no LPA2.
            f("TGran16", 20, UpTo(1)),
            signed("TGran64", 24, UpTo(0)),
            signed("TGran4", 28, UpTo(0)),
            // umbra walks a guest's stage 2 in software: every granule, whatever hardware has.
            f("TGran16_2", 32, Stage2Granule),
            f("TGran64_2", 36, Stage2Granule),
            f("TGran4_2", 40, Stage2Granule),
            f("ExS", 44, UpTo(0)),
            f("FGT", 56, Split(0, 1)),
            f("ECV", 60, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64MMFR1_EL1,
        fields: &[
            f("HAFDBS", 0, UpTo(2)),
            f("VMIDBits", 4, Split(0, 2)),
            f("VH", 8, Nested(1)),
            f("HPDS", 12, UpTo(2)),
            f("LO", 16, UpTo(0)),
            f("PAN", 20, UpTo(3)),
            f("SpecSEI", 24, Raised(1)),
            f("XNX", 28, Split(0, 1)),
            f("TWED", 32, UpTo(0)),
            // A promise about walks that umbra makes in software for a guest hypervisor.
            f("ETS", 36, Split(3, 0)),
            f("HCX", 40, Split(0, 1)),
            f("AFP", 44, UpTo(1)),
            f("nTLBPA", 48, UpTo(0)),
            f("TIDCP1", 52, UpTo(1)),
            f("CMOW", 56, UpTo(0)),
            f("ECBHB", 60, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64MMFR2_EL1,
        fields: &[
            f("CnP", 0, UpTo(1)),
            f("UAO", 4, UpTo(1)),
            f("LSM", 8, UpTo(1)),
            f("IESB", 12, UpTo(1)),
            f("VARange", 16, UpTo(0)),
            // CCSIDR_EL1 is made up in its 32-bit form.
            f("CCIDX", 20, Hidden),
            f("NV", 24, Hidden),
            f("ST", 28, UpTo(0)),
            f("AT", 32, UpTo(1)),
            f("IDS", 36, UpTo(1)),
            f("FWB", 40, Split(0, 1)),
            f("TTL", 48, UpTo(1)),
            // Shadow tables are invalidated by what the guest says, block by block.
            f("BBM", 52, Split(2, 0)),
            f("EVT", 56, Split(0, 2)),
            f("E0PD", 60, UpTo(1)),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64MMFR3_EL1,
        fields: &[
            // Each of these has registers; a row is opened when they are switched.
            f("TCRX", 0, UpTo(0)),
            f("SCTLRX", 4, UpTo(0)),
            f("S1PIE", 8, UpTo(0)),
            f("S2PIE", 12, Hidden),
            f("S1POE", 16, UpTo(0)),
            f("S2POE", 20, Hidden),
            f("AIE", 24, Hidden),
            f("MEC", 28, Hidden),
            f("D128", 32, Hidden),
            f("D128_2", 36, Hidden),
            f("SNERR", 40, Hidden),
            f("ANERR", 44, Hidden),
            f("SDERR", 52, Hidden),
            f("ADERR", 56, Hidden),
            f("Spec_FPACC", 60, Hidden),
        ],
    },
    IdTable {
        enc: SysReg::ID_AA64MMFR4_EL1,
        fields: &[
            f("EIESB", 4, Hidden),
            f("ASID2", 8, Hidden),
            f("HACDBS", 12, Hidden),
            f("FGWTE3", 16, Hidden),
            f("NV_frac", 20, UpTo(0)),
            // −2: E2H cannot be cleared, and HCR_EL2.NV1 is not there either.
            signed("E2H0", 24, Nested(14)),
        ],
    },
    IdTable {
        enc: SysReg::CTR_EL0,
        fields: &[
            wide("IminLine", 0, 4, UpTo(15)),
            wide("L1Ip", 14, 2, Floor(2, 3)),
            wide("DminLine", 16, 4, UpTo(15)),
            wide("ERG", 20, 4, Kept(15)),
            wide("CWG", 24, 4, Kept(15)),
            wide("IDC", 28, 1, UpTo(1)),
            wide("DIC", 29, 1, UpTo(1)),
        ],
    },
];

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_register_has_two_tables() {
        let registers: BTreeSet<SysReg> = TABLES.iter().map(|table| table.enc).collect();
        assert_eq!(registers.len(), TABLES.len());
    }

    #[test]
    fn fields_ascend_and_do_not_overlap() {
        for table in TABLES {
            let mut end = 0;
            for field in table.fields {
                assert!(field.shift >= end, "{}.{}", table.enc, field.name);
                assert!(field.width >= 1, "{}.{}", table.enc, field.name);
                end = field.shift + field.width;
                assert!(end <= 64, "{}.{}", table.enc, field.name);
            }
        }
    }

    #[test]
    fn policies_fit_their_fields() {
        for table in TABLES {
            for field in table.fields {
                let most = match field.policy {
                    UpTo(v) | PAuth(v) | Pmu(v) | Kept(v) | Fixed(v) | Nested(v) | Raised(v)
                    | NestedNamed(v) => v,
                    Split(plain, nested) => plain.max(nested),
                    Floor(least, most) => {
                        let field = f("", 0, field.policy);
                        assert!(field.order(least) <= field.order(most));
                        least.max(most)
                    }
                    Stage2Granule => 2,
                    Hidden => 0,
                    GicV3 => 1,
                };
                assert!(most < 1 << field.width, "{}.{}", table.enc, field.name);
            }
        }
    }

    #[test]
    fn id_registers_have_aligned_four_bit_fields() {
        for table in TABLES.iter().filter(|table| table.enc != SysReg::CTR_EL0) {
            for field in table.fields {
                assert_eq!(
                    (field.width, field.shift % 4),
                    (4, 0),
                    "{}.{}",
                    table.enc,
                    field.name
                );
            }
        }
    }

    #[test]
    fn signed_fields_count_from_minus_eight() {
        let field = signed("FP", 16, UpTo(1));
        assert_eq!(field.order(15), -1);
        assert_eq!(field.order(7), 7);
        assert_eq!(field.shown(0xf << 16, &Config::default()), 15);
        assert_eq!(field.shown(2 << 16, &Config::default()), 1);
        assert_eq!(f("AES", 4, UpTo(2)).order(15), 15);
    }

    #[test]
    fn each_policy_shows_what_it_says() {
        let plain = Config::default();
        let full = Config {
            pauth: true,
            nested: true,
            gicv3: true,
            pmu: true,
        };
        for (policy, there, of_plain, of_full) in [
            (UpTo(2), 3, 2, 2),
            (UpTo(2), 1, 1, 1),
            (Kept(2), 3, 2, 2),
            (Split(0, 1), 3, 0, 1),
            (Split(2, 0), 1, 1, 0),
            (PAuth(5), 3, 0, 3),
            (Pmu(6), 9, 0, 6),
            (Pmu(6), 15, 0, 0),
            (Fixed(7), 0, 7, 7),
            (Nested(2), 0, 0, 2),
            (GicV3, 0, 0, 1),
            (Hidden, 3, 0, 0),
            (Floor(1, 2), 3, 2, 2),
            (Raised(1), 0, 0, 0),
            (Stage2Granule, 3, 0, 2),
            (NestedNamed(1), 3, 0, 1),
        ] {
            let field = f("x", 8, policy);
            assert_eq!(field.shown(there << 8, &plain), of_plain, "{policy:?}");
            assert_eq!(field.shown(there << 8, &full), of_full, "{policy:?}");
        }
    }

    #[test]
    fn each_policy_takes_what_it_says() {
        for (policy, shown, taken) in [
            (UpTo(2), 2, 0b111),
            (UpTo(0), 0, 0b1),
            (Hidden, 0, 0b1),
            (Floor(1, 3), 3, 0b1110),
            (Raised(2), 1, 0b110),
            (Stage2Granule, 2, 0b110),
            (Stage2Granule, 0, 0b11),
            (NestedNamed(1), 1, 0b10),
            (Kept(2), 2, 0b100),
            (Fixed(2), 2, 0b100),
            (GicV3, 1, 0b11),
        ] {
            let field = f("x", 8, policy);
            for new in 0..16 {
                let wanted = taken >> new & 1 == 1;
                assert_eq!(field.takes(new, shown), wanted, "{policy:?}: {new}");
                assert!(new == shown || !wanted || field.writable(), "{policy:?}");
            }
        }
    }
}
