//! The ID registers that a guest sees, all from one table.
//!
//! ```text
//!   hardware's values ──┐
//!                       ├─► shown() ─► IdRegs ─┬─► trapped reads, KVM_GET_ONE_REG
//!   what the VM is for ─┘    (table)           ├─► features(): which registers exist
//!                                              └─► masks: which bits of a register exist
//! ```
//!
//! What always holds: a field that the table does not name reads as zero; a field shown from
//! hardware is never above what hardware has; everything else in umbra that depends on a guest's
//! features asks these values, so that no two places can disagree. KVM_SET_ONE_REG may lower a
//! field marked writable ([`IdRegs::accept`]); what depends on it follows by itself.
//!
//! Arm ARM D24.2 ("General system control registers"), D24.1.3 ("Principles of the ID scheme").

pub mod cache;
pub mod masks;
mod table;

pub use table::{Field, IdTable, Policy, TABLES};

use crate::sysreg::{Features, SysReg};

/// What a VM is for, as far as its ID registers depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Pointer authentication was asked for.
    pub pauth: bool,
    /// Virtual EL2 was asked for.
    pub nested: bool,
    /// The VM has a GICv3.
    pub gicv3: bool,
    /// Performance counters were asked for.
    pub pmu: bool,
}

/// The number of encodings in op0 3, op1 0, CRn 0, CRm 0–7.
const SPACE: usize = 64;

/// A set of values of the identification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRegs {
    space: [u64; SPACE],
    clidr: u64,
    aidr: u64,
    ctr: u64,
    dczid: u64,
}

impl Default for IdRegs {
    fn default() -> Self {
        Self {
            space: [0; SPACE],
            clidr: 0,
            aidr: 0,
            ctr: 0,
            dczid: 0,
        }
    }
}

/// The registers to read from hardware to fill an [`IdRegs`].
pub const SOURCES: &[SysReg] = &[
    SysReg::MIDR_EL1,
    SysReg::REVIDR_EL1,
    SysReg::ID_AA64PFR0_EL1,
    SysReg::ID_AA64PFR1_EL1,
    SysReg::ID_AA64PFR2_EL1,
    SysReg::ID_AA64DFR0_EL1,
    SysReg::ID_AA64ISAR0_EL1,
    SysReg::ID_AA64ISAR1_EL1,
    SysReg::ID_AA64ISAR2_EL1,
    SysReg::ID_AA64ISAR3_EL1,
    SysReg::ID_AA64MMFR0_EL1,
    SysReg::ID_AA64MMFR1_EL1,
    SysReg::ID_AA64MMFR2_EL1,
    SysReg::ID_AA64MMFR3_EL1,
    SysReg::ID_AA64MMFR4_EL1,
    SysReg::AIDR_EL1,
    SysReg::CTR_EL0,
    SysReg::DCZID_EL0,
];

impl IdRegs {
    fn place(&self, enc: SysReg) -> Option<&u64> {
        match enc {
            SysReg::CLIDR_EL1 => Some(&self.clidr),
            SysReg::AIDR_EL1 => Some(&self.aidr),
            SysReg::CTR_EL0 => Some(&self.ctr),
            SysReg::DCZID_EL0 => Some(&self.dczid),
            _ if enc.op0() == 3 && enc.op1() == 0 && enc.crn() == 0 && enc.crm() < 8 => self
                .space
                .get(usize::from(enc.crm()) << 3 | usize::from(enc.op2())),
            _ => None,
        }
    }

    /// The value of the register `enc`; zero for an encoding that identifies nothing.
    pub fn get(&self, enc: SysReg) -> u64 {
        self.place(enc).copied().unwrap_or(0)
    }

    /// Sets the value of the register `enc`; answers whether there is such a register.
    pub fn set(&mut self, enc: SysReg, value: u64) -> bool {
        let place = match enc {
            SysReg::CLIDR_EL1 => &mut self.clidr,
            SysReg::AIDR_EL1 => &mut self.aidr,
            SysReg::CTR_EL0 => &mut self.ctr,
            SysReg::DCZID_EL0 => &mut self.dczid,
            _ if self.place(enc).is_some() => {
                &mut self.space[usize::from(enc.crm()) << 3 | usize::from(enc.op2())]
            }
            _ => return false,
        };
        *place = value;
        true
    }

    /// The four-bit field of `enc` that starts at bit `shift`, unsigned.
    pub fn field(&self, enc: SysReg, shift: u32) -> u64 {
        self.get(enc) >> shift & 15
    }

    /// Which optional registers a vCPU with these values has.
    pub fn features(&self) -> Features {
        let has = |enc, shift| self.field(enc, shift) != 0;
        let mmfr3 = SysReg::ID_AA64MMFR3_EL1;
        let dfr0 = SysReg::ID_AA64DFR0_EL1;
        Features {
            pauth: self.has_pauth(),
            ras: has(SysReg::ID_AA64PFR0_EL1, 28),
            tcr2: has(mmfr3, 0),
            sctlr2: has(mmfr3, 4),
            s1pie: has(mmfr3, 8),
            s1poe: has(mmfr3, 16),
            breakpoints: self.field(dfr0, 12) as u8 + 1,
            watchpoints: self.field(dfr0, 20) as u8 + 1,
            el2: has(SysReg::ID_AA64PFR0_EL1, 8),
            hcx: has(SysReg::ID_AA64MMFR1_EL1, 40),
            fgt: has(SysReg::ID_AA64MMFR0_EL1, 56),
            fgt2: self.field(SysReg::ID_AA64MMFR0_EL1, 56) >= 2,
            recursive: has(SysReg::ID_AA64MMFR2_EL1, 24),
            ecv: has(SysReg::ID_AA64MMFR0_EL1, 60),
            lor: has(SysReg::ID_AA64MMFR1_EL1, 16),
            gicv3: has(SysReg::ID_AA64PFR0_EL1, 24),
            pmu: has(dfr0, 8),
        }
    }

    /// Whether any kind of address or generic authentication is there.
    pub fn has_pauth(&self) -> bool {
        let isar1 = self.get(SysReg::ID_AA64ISAR1_EL1);
        let isar2 = self.get(SysReg::ID_AA64ISAR2_EL1);
        isar1 & 0xff00_0ff0 != 0 || isar2 & 0xff00 != 0
    }

    /// Whether a VMM may write `value` to the register `enc`, `self` being what was shown at first.
    ///
    /// Every field must be what was shown, or, if it is writable, lower ([`Field::takes`]); a bit that no
    /// field names must be zero. CLIDR_EL1 is any hierarchy that needs what CTR_EL0 says, or more. The caller
    /// answers EINVAL for `false`.
    pub fn accept(&self, enc: SysReg, value: u64) -> bool {
        let shown = self.get(enc);
        if enc == SysReg::CLIDR_EL1 {
            return cache::is_hierarchy(value, self.ctr);
        }
        let Some(table) = TABLES.iter().find(|table| table.enc == enc) else {
            return value == shown;
        };
        let named = table
            .fields
            .iter()
            .fold(0, |mask, field| mask | field.mask());
        value & !named == shown & !named
            && table.fields.iter().all(|field| {
                let (new, old) = (field.extract(value), field.extract(shown));
                field.takes(new, old)
            })
    }
}

/// The bits of the register `enc` that a VMM may change: the mask that
/// KVM_ARM_GET_REG_WRITABLE_MASKS gives.
pub fn writable_mask(enc: SysReg) -> u64 {
    let Some(table) = TABLES.iter().find(|table| table.enc == enc) else {
        return 0;
    };
    table
        .fields
        .iter()
        .filter(|field| field.writable())
        .fold(0, |mask, f| mask | f.mask())
}

/// What a VM of kind `config` is shown on hardware that reads as `hw`.
pub fn shown(hw: &IdRegs, config: &Config) -> IdRegs {
    let mut ids = IdRegs::default();
    for enc in [
        SysReg::MIDR_EL1,
        SysReg::REVIDR_EL1,
        SysReg::AIDR_EL1,
        SysReg::DCZID_EL0,
    ] {
        ids.set(enc, hw.get(enc));
    }
    for table in TABLES {
        let value = table.fields.iter().fold(0, |value, field| {
            value | field.place(field.shown(hw.get(table.enc), config))
        });
        ids.set(table.enc, value);
    }
    // Bit 31 of CTR_EL0 is RES1.
    ids.ctr |= 1 << 31;
    ids.clidr = cache::clidr(ids.ctr);
    ids
}

/// MPIDR_EL1 of the vCPU with this id: 16 vCPUs to the lowest affinity level, so that a single
/// ICC_SGI1R_EL1 write reaches them; then 256 to each level above. Bit 31 is RES1.
pub const fn mpidr(vcpu_id: u32) -> u64 {
    let id = vcpu_id as u64;
    1 << 31 | (id & 15) | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIGS: [Config; 3] = [
        Config {
            pauth: false,
            nested: false,
            gicv3: false,
            pmu: false,
        },
        Config {
            pauth: true,
            nested: false,
            gicv3: true,
            pmu: true,
        },
        Config {
            pauth: true,
            nested: true,
            gicv3: true,
            pmu: true,
        },
    ];

    fn hardware(fill: impl Fn(SysReg) -> u64) -> IdRegs {
        let mut hw = IdRegs::default();
        for enc in SOURCES {
            assert!(hw.set(*enc, fill(*enc)), "{enc}");
        }
        hw
    }

    fn field(ids: &IdRegs, enc: SysReg, name: &str) -> u64 {
        let table = TABLES
            .iter()
            .find(|table| table.enc == enc)
            .expect("a table");
        let field = table
            .fields
            .iter()
            .find(|field| field.name == name)
            .expect("a field");
        field.extract(ids.get(enc))
    }

    #[test]
    fn what_must_stay_hidden_is_hidden_on_hardware_that_has_everything() {
        // 1 in every field is "present" for all of these.
        let hw = hardware(|_| 0x1111_1111_1111_1111);
        for config in &CONFIGS {
            let ids = shown(&hw, config);
            for (enc, name, value) in [
                (SysReg::ID_AA64PFR0_EL1, "SVE", 0),
                (SysReg::ID_AA64PFR0_EL1, "AMU", 0),
                (SysReg::ID_AA64PFR0_EL1, "MPAM", 0),
                (SysReg::ID_AA64PFR0_EL1, "RME", 0),
                (SysReg::ID_AA64PFR0_EL1, "EL0", 1),
                (SysReg::ID_AA64PFR0_EL1, "EL1", 1),
                (SysReg::ID_AA64PFR1_EL1, "MTE", 0),
                (SysReg::ID_AA64PFR1_EL1, "SME", 0),
                (SysReg::ID_AA64PFR1_EL1, "GCS", 0),
                (SysReg::ID_AA64DFR0_EL1, "PMUVer", config.pmu.into()),
                (SysReg::ID_AA64DFR0_EL1, "PMSVer", 0),
                (SysReg::ID_AA64DFR0_EL1, "BRBE", 0),
                (SysReg::ID_AA64DFR0_EL1, "TraceBuffer", 0),
                (SysReg::ID_AA64DFR0_EL1, "DoubleLock", 15),
                (SysReg::ID_AA64ISAR1_EL1, "LS64", 0),
                (SysReg::ID_AA64ISAR1_EL1, "SPECRES", 0),
                (SysReg::ID_AA64MMFR2_EL1, "NV", 0),
                (SysReg::ID_AA64MMFR3_EL1, "D128", 0),
                (SysReg::ID_AA64MMFR3_EL1, "S1PIE", 0),
            ] {
                assert_eq!(field(&ids, enc, name), value, "{enc}.{name}");
            }
            assert_eq!(ids.get(SysReg::ID_AA64ZFR0_EL1), 0);
            assert_eq!(ids.get(SysReg::ID_PFR0_EL1), 0, "no AArch32");
        }
    }

    #[test]
    fn el2_is_shown_to_a_guest_hypervisor_only() {
        let hw = hardware(|_| 0x1111_1111_1111_1111);
        let plain = shown(&hw, &CONFIGS[1]);
        let nested = shown(&hw, &CONFIGS[2]);
        for (enc, name, value) in [
            (SysReg::ID_AA64PFR0_EL1, "EL2", 1),
            (SysReg::ID_AA64PFR0_EL1, "EL3", 1),
            (SysReg::ID_AA64MMFR0_EL1, "FGT", 1),
            (SysReg::ID_AA64MMFR0_EL1, "TGran4_2", 2),
            (SysReg::ID_AA64MMFR1_EL1, "VH", 1),
            (SysReg::ID_AA64MMFR1_EL1, "HCX", 1),
            (SysReg::ID_AA64MMFR2_EL1, "FWB", 1),
            (SysReg::ID_AA64MMFR4_EL1, "E2H0", 14),
        ] {
            assert_eq!(field(&nested, enc, name), value, "{enc}.{name}");
            assert_eq!(field(&plain, enc, name), 0, "{enc}.{name}");
        }
        assert!(nested.features().el2 && !plain.features().el2);
        assert!(nested.features().hcx && nested.features().fgt && nested.features().ras);
    }

    #[test]
    fn pointer_authentication_and_the_gic_follow_the_vm() {
        let hw = hardware(|_| 0x1111_1111_1111_1111);
        let without = shown(&hw, &CONFIGS[0]).features();
        let with = shown(&hw, &CONFIGS[1]).features();
        assert!(!without.pauth && with.pauth);
        assert!(!without.gicv3 && with.gicv3);
    }

    #[test]
    fn the_physical_address_range_is_at_most_48_bits() {
        for (hw, guest) in [(0, 0), (2, 2), (5, 5), (6, 5), (7, 5)] {
            let ids = shown(&hardware(|_| hw), &CONFIGS[1]);
            assert_eq!(field(&ids, SysReg::ID_AA64MMFR0_EL1, "PARange"), guest);
        }
    }

    #[test]
    fn a_missing_granule_stays_missing() {
        // TGran4 and TGran64 are signed: 15 means absent; TGran16 is not: 0 means absent.
        let hw = hardware(|_| 0xff0f_ffff);
        let ids = shown(&hw, &CONFIGS[1]);
        assert_eq!(field(&ids, SysReg::ID_AA64MMFR0_EL1, "TGran4"), 15);
        assert_eq!(field(&ids, SysReg::ID_AA64MMFR0_EL1, "TGran64"), 15);
        let without_16 = shown(&hardware(|_| 0), &CONFIGS[1]);
        assert_eq!(field(&without_16, SysReg::ID_AA64MMFR0_EL1, "TGran16"), 0);
        assert_eq!(field(&without_16, SysReg::ID_AA64MMFR0_EL1, "TGran4"), 0);
    }

    #[test]
    fn a_vmm_may_lower_but_not_raise_or_invent() {
        let ids = shown(&hardware(|_| 0x1111_1111_1111_1111), &CONFIGS[1]);
        let isar0 = ids.get(SysReg::ID_AA64ISAR0_EL1);
        assert!(ids.accept(SysReg::ID_AA64ISAR0_EL1, isar0));
        assert!(
            ids.accept(SysReg::ID_AA64ISAR0_EL1, isar0 & !(15 << 4)),
            "without AES"
        );
        assert!(
            !ids.accept(SysReg::ID_AA64ISAR0_EL1, isar0 + (1 << 4)),
            "more AES"
        );
        assert!(
            !ids.accept(SysReg::ID_AA64ISAR0_EL1, isar0 | 1),
            "a bit without a name"
        );
        let pfr0 = ids.get(SysReg::ID_AA64PFR0_EL1);
        assert!(
            !ids.accept(SysReg::ID_AA64PFR0_EL1, pfr0 & !15),
            "EL0 is not writable"
        );
        assert!(
            !ids.accept(SysReg::ID_AA64PFR0_EL1, pfr0 | 0xff << 16),
            "FP cannot be taken away"
        );
        let mmfr1 = shown(&hardware(|_| 0), &CONFIGS[1]);
        assert!(
            mmfr1.accept(SysReg::ID_AA64MMFR1_EL1, 1 << 24),
            "SpecSEI is what may happen"
        );
        assert!(!ids.accept(SysReg::ID_PFR0_EL1, 1));
        assert!(ids.accept(SysReg::ID_PFR0_EL1, 0));
    }

    #[test]
    fn affinities_are_unique_and_sixteen_to_a_group() {
        assert_eq!(mpidr(0), 1 << 31);
        assert_eq!(mpidr(15), 1 << 31 | 15);
        assert_eq!(mpidr(16), 1 << 31 | 1 << 8);
        assert_eq!(mpidr(4096), 1 << 31 | 1 << 16);
    }

    proptest! {
        #[test]
        fn shown_is_within_hardware(words in prop::collection::vec(any::<u64>(), SOURCES.len()), which in 0usize..3) {
            let at = |enc| SOURCES.iter().position(|source| *source == enc).unwrap_or(0);
            let hw = hardware(|enc| words[at(enc)]);
            let ids = shown(&hw, &CONFIGS[which]);
            for table in TABLES {
                for field in table.fields {
                    let (new, old) = (field.extract(ids.get(table.enc)), field.extract(hw.get(table.enc)));
                    let absent = !field.signed && new == 0;
                    prop_assert!(
                        field.is_fixed() || absent || field.order(new) <= field.order(old),
                        "{}.{}: {} shown, {} there", table.enc, field.name, new, old
                    );
                }
            }
        }

        #[test]
        fn an_accepted_value_differs_in_writable_bits_only(value: u64, at in 0usize..TABLES.len()) {
            let enc = TABLES[at].enc;
            let ids = shown(&hardware(|_| u64::MAX >> 1), &CONFIGS[2]);
            for candidate in [value, ids.get(enc) & value] {
                if ids.accept(enc, candidate) {
                    prop_assert_eq!((candidate ^ ids.get(enc)) & !writable_mask(enc), 0);
                }
            }
        }
    }
}
