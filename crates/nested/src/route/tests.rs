//! The rows of the trap table against each other, the manual's reserved bits, and a model of routing.

extern crate std;
use super::fine::{ERET, HIDDEN, READ_ONLY, RESERVED, svc};
use super::table::{Bit, TABLE, family, row};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;
use umbra_arm64::esr::SysRegTrap;
use umbra_arm64::idreg::{self, Config};
use umbra_arm64::sysreg::{Features, TrapAction, is_id_space, trap};

/// What a guest hypervisor is shown on a machine that has everything.
fn everything() -> IdRegs {
    let mut hw = IdRegs::default();
    for enc in idreg::SOURCES {
        hw.set(*enc, 0x3333_3333_3333_3333);
    }
    idreg::shown(
        &hw,
        &Config {
            pauth: true,
            nested: true,
            gicv3: true,
            pmu: true,
        },
    )
}

/// Each register as `of` says.
fn written(of: impl Fn(Reg) -> u64) -> Written {
    Written {
        hcr: of(Reg::HcrEl2),
        hcrx: of(Reg::HcrxEl2),
        mdcr: of(Reg::MdcrEl2),
        cptr: of(Reg::CptrEl2),
        cnthctl: of(Reg::CnthctlEl2),
        ich_hcr: of(Reg::IchHcrEl2),
        fine: FINE.map(|fine| of(fine.register())),
    }
}

fn with(values: &[(Reg, u64)]) -> Controls {
    Masks::of(&everything()).controls(&written(|reg| {
        let of = values.iter().find(|value| value.0 == reg);
        of.map_or(0, |value| value.1)
    }))
}

#[test]
fn the_fine_registers_have_the_order_that_writers_know() {
    let order = [
        Reg::HfgrtrEl2,
        Reg::HfgwtrEl2,
        Reg::HfgitrEl2,
        Reg::HdfgrtrEl2,
        Reg::HdfgwtrEl2,
        Reg::HafgrtrEl2,
    ];
    assert_eq!(FINE.map(Fine::register), order);
}

fn all_encodings() -> impl Iterator<Item = SysReg> {
    (0..=u16::MAX).map(SysReg::from_id)
}

fn shown(fine: Fine) -> u64 {
    fine.shown()
}

/// Those that trap nothing when they are zero, so that other controls show alone.
const QUIET: [(Reg, u64); 2] = [
    (Reg::HcrEl2, 1 << 40 | 1 << 41 | 1 << 47),
    (Reg::CnthctlEl2, 3 << 10),
];

#[test]
fn rows_ascend_and_no_family_has_a_row_too() {
    for pair in TABLE.windows(2) {
        assert!(pair[0].0 < pair[1].0, "{} then {}", pair[0].0, pair[1].0);
    }
    for (enc, _) in TABLE {
        assert!(family(*enc).is_none(), "{enc} has two rows");
    }
}

#[test]
fn everything_that_umbra_traps_has_a_row() {
    let features = Features {
        pauth: true,
        ras: true,
        el2: false,
        ecv: true,
        lor: true,
        gicv3: true,
        breakpoints: 16,
        watchpoints: 16,
        ..Features::default()
    };
    for enc in all_encodings().filter(|enc| !is_id_space(*enc)) {
        let traps = [false, true].map(|write| trap(enc, write, &features));
        // Plain state traps only where one of the table's controls makes it.
        let named = traps
            .iter()
            .any(|action| !matches!(action, TrapAction::Undef | TrapAction::State(_)));
        assert!(!named || row(enc).is_some(), "{enc} has no row");
    }
}

#[test]
fn every_fine_bit_is_a_row_s_or_hidden_or_reserved() {
    let mut used: BTreeMap<Fine, u64> = BTreeMap::new();
    for enc in all_encodings() {
        let Some(row) = row(enc) else { continue };
        for read in [false, true] {
            if let Some((fine, bit)) = row.fine.bit(read) {
                *used.entry(fine).or_default() |= 1 << bit;
            }
        }
    }
    // Two instructions that are no system instructions.
    *used.entry(Fine::Hfgitr).or_default() |= 1 << ERET | 1 << svc(true) | 1 << svc(false);
    for (at, fine) in FINE.into_iter().enumerate() {
        assert_eq!(fine as usize, at);
        let hidden = HIDDEN.iter().filter(|row| row.0 == fine);
        let hidden = hidden.fold(0, |bits, row| {
            assert_eq!(bits & row.1, 0, "{fine:?}: {} twice", row.2);
            bits | row.1
        });
        let reserved = RESERVED[at].1;
        assert_eq!(RESERVED[at].0, fine);
        // A row's bit is in both registers of a pair; one of the two may not have it.
        let used = used.get(&fine).copied().unwrap_or(0);
        assert_eq!(used & !reserved, shown(fine), "{fine:?}: rows and bits");
        assert_eq!(shown(fine) & hidden, 0, "{fine:?}");
        assert_eq!((shown(fine) | hidden) & reserved, 0, "{fine:?}");
        assert_eq!(shown(fine) | hidden | reserved, u64::MAX, "{fine:?}: gaps");
    }
}

#[test]
fn no_guest_hypervisor_can_set_a_hidden_or_reserved_bit() {
    let masks = Masks::of(&everything());
    let controls = masks.controls(&written(|_| u64::MAX));
    for (at, fine) in FINE.into_iter().enumerate() {
        assert_eq!(controls.fine[at] & !shown(fine), 0, "{fine:?}");
    }
    let nothing = Masks::default().controls(&written(|_| u64::MAX));
    assert_eq!(nothing.fine, [0; 6], "without FEAT_FGT");
}

#[test]
fn a_write_of_what_cannot_be_written_has_no_bit() {
    let controls = with(&[QUIET[0], QUIET[1], (Reg::HfgwtrEl2, READ_ONLY)]);
    assert!(all_encodings().all(|enc| !controls.takes_register(enc, false)));
}

/// Every coarse bit takes exactly the encodings whose rows name it.
#[test]
fn each_coarse_bit_takes_its_own() {
    let taken = |reg: Reg, value: u64, read: bool| -> BTreeSet<SysReg> {
        let base = QUIET
            .iter()
            .find(|quiet| quiet.0 == reg)
            .map_or(0, |quiet| quiet.1);
        let mut values = std::vec![(reg, base ^ value)];
        values.extend(QUIET);
        let controls = with(&values);
        all_encodings()
            .filter(|enc| controls.takes_register(*enc, read))
            .collect()
    };
    for (reg, bits, read, sample, count) in [
        (Reg::HcrEl2, hcr::TVM, false, SysReg::TTBR0_EL1, 11),
        (Reg::HcrEl2, hcr::TRVM, true, SysReg::SCTLR_EL1, 11),
        (Reg::HcrEl2, hcr::TVM, true, SysReg::TTBR0_EL1, 0),
        (Reg::HcrEl2, hcr::TID1, true, SysReg::AIDR_EL1, 2),
        (Reg::HcrEl2, hcr::TID2, true, SysReg::CTR_EL0, 5),
        (Reg::HcrEl2, hcr::TID4, false, SysReg::CSSELR_EL1, 4),
        (Reg::HcrEl2, hcr::TID3, true, SysReg::ID_AA64PFR0_EL1, 56),
        (Reg::HcrEl2, hcr::TACR, true, SysReg::ACTLR_EL1, 1),
        (Reg::HcrEl2, hcr::TSW, false, SysReg::DC_CISW, 3),
        (
            Reg::HcrEl2,
            hcr::TTLB,
            false,
            SysReg::new(1, 0, 8, 7, 0),
            60,
        ),
        (
            Reg::HcrEl2,
            hcr::TTLBIS,
            false,
            SysReg::new(1, 0, 9, 3, 1),
            20,
        ),
        (
            Reg::HcrEl2,
            hcr::TTLBOS,
            false,
            SysReg::new(1, 0, 8, 1, 0),
            20,
        ),
        (
            Reg::HcrEl2,
            hcr::TIDCP,
            true,
            SysReg::new(3, 5, 15, 2, 1),
            4096,
        ),
        (Reg::HcrEl2, hcr::TERR, true, SysReg::ERRIDR_EL1, 14),
        (Reg::HcrEl2, hcr::APK, true, SysReg::APIAKEYLO_EL1, 10),
        (Reg::HcrEl2, hcr::FIEN, false, SysReg::ERXPFGCTL_EL1, 3),
        (Reg::HcrEl2, hcr::IMO, false, SysReg::ICC_SGI1R_EL1, 3),
        (Reg::MdcrEl2, mdcr::TDA, true, SysReg::DBGBVR0_EL1, 64 + 11),
        (Reg::MdcrEl2, mdcr::TDOSA, true, SysReg::OSLSR_EL1, 4),
        (Reg::MdcrEl2, mdcr::TDRA, true, SysReg::MDRAR_EL1, 1),
        (Reg::MdcrEl2, mdcr::TDCC, true, SysReg::MDCCSR_EL0, 6),
        (Reg::MdcrEl2, mdcr::TDE, true, SysReg::MDSCR_EL1, 64 + 16),
        (Reg::MdcrEl2, mdcr::TPM, true, SysReg::PMCCNTR_EL0, 79),
        (Reg::MdcrEl2, mdcr::TPMCR, true, SysReg::PMCR_EL0, 1),
        (Reg::CptrEl2, cptr::TCPAC, false, SysReg::CPACR_EL1, 1),
        (
            Reg::CnthctlEl2,
            cnthctl::EL1PCTEN,
            true,
            SysReg::CNTPCT_EL0,
            2,
        ),
        (
            Reg::CnthctlEl2,
            cnthctl::EL1PTEN,
            true,
            SysReg::CNTP_CTL_EL0,
            3,
        ),
        (
            Reg::CnthctlEl2,
            cnthctl::EL1TVT,
            true,
            SysReg::CNTV_CTL_EL0,
            3,
        ),
        (
            Reg::CnthctlEl2,
            cnthctl::EL1TVCT,
            true,
            SysReg::CNTVCT_EL0,
            2,
        ),
        (Reg::IchHcrEl2, ich::TC, true, SysReg::ICC_PMR_EL1, 7),
        (Reg::IchHcrEl2, ich::TALL0, true, SysReg::ICC_IAR0_EL1, 9),
        (Reg::IchHcrEl2, ich::TALL1, true, SysReg::ICC_IAR1_EL1, 9),
        (Reg::IchHcrEl2, ich::TDIR, false, SysReg::ICC_DIR_EL1, 1),
    ] {
        let taken = taken(reg, bits, read);
        assert_eq!(taken.contains(&sample), count > 0, "{sample} by {bits:#x}");
        assert_eq!(taken.len(), count, "{:?} {bits:#x}: {taken:?}", reg);
    }
}

#[test]
fn each_fine_bit_takes_its_own_row_in_its_own_direction() {
    for (enc, row) in TABLE {
        for read in [false, true] {
            let Some((fine, bit)) = row.fine.bit(read) else {
                continue;
            };
            let mut values = std::vec![(fine.register(), 1 << bit)];
            values.extend(QUIET);
            let controls = with(&values);
            let there = shown(fine) >> bit & 1 == 1;
            assert_eq!(controls.takes_register(*enc, read), there, "{enc}");
            if !matches!(row.fine, Bit::Instruction(_)) {
                assert!(!controls.takes_register(*enc, !read), "{enc}");
            }
        }
    }
}

#[test]
fn tlb_maintenance_without_xs_can_be_let_off() {
    let plain = SysReg::new(1, 0, 8, 3, 1);
    let nxs = SysReg::new(1, 0, 9, 3, 1);
    let bit = 1 << 29;
    let mut values = std::vec![(Reg::HfgitrEl2, bit)];
    values.extend(QUIET);
    assert!(with(&values).takes_register(plain, false));
    assert!(with(&values).takes_register(nxs, false));
    values.push((Reg::HcrxEl2, hcrx::FGT_NXS));
    assert!(with(&values).takes_register(plain, false));
    assert!(!with(&values).takes_register(nxs, false));
}

#[test]
fn instructions_go_where_their_control_says() {
    let none = with(&QUIET);
    let wfi = Syndrome::Wfx(umbra_arm64::esr::Wfx::decode(0));
    let wfe = Syndrome::Wfx(umbra_arm64::esr::Wfx::decode(1));
    let fp_on = (Reg::CptrEl2, cptr::FPEN);
    let debug = Syndrome::Other(Ec::WatchpointLower);
    for (syndrome, el0, value) in [
        (wfi, false, (Reg::HcrEl2, QUIET[0].1 | hcr::TWI)),
        (wfe, true, (Reg::HcrEl2, QUIET[0].1 | hcr::TWE)),
        (
            Syndrome::Smc(0),
            false,
            (Reg::HcrEl2, QUIET[0].1 | hcr::TSC),
        ),
        (Syndrome::Svc(0), true, (Reg::HfgitrEl2, 1 << 52)),
        (Syndrome::Svc(0), false, (Reg::HfgitrEl2, 1 << 53)),
        (Syndrome::Eret(0), false, (Reg::HfgitrEl2, 1 << ERET)),
        (
            Syndrome::PointerAuth,
            true,
            (Reg::HcrEl2, QUIET[0].1 & !hcr::API),
        ),
        (debug, true, (Reg::MdcrEl2, mdcr::TDE)),
        (Syndrome::Other(Ec::Brk), true, (Reg::MdcrEl2, mdcr::TDE)),
        (
            Syndrome::Other(Ec::MemoryCopy),
            true,
            (Reg::HcrxEl2, hcrx::MCE2),
        ),
    ] {
        assert!(!none.takes(syndrome, el0), "{syndrome:?}");
        let mut values = std::vec![value];
        values.extend(QUIET);
        assert!(with(&values).takes(syndrome, el0), "{syndrome:?}");
    }
    assert!(none.takes(Syndrome::Hvc(0), false));
    assert!(none.takes(Syndrome::FpAccess, false));
    assert!(!with(&[fp_on]).takes(Syndrome::FpAccess, false));
    assert!(!with(&[(Reg::HfgitrEl2, 1 << 52)]).takes(Syndrome::Svc(0), false));
}

#[test]
fn a_reversed_control_that_is_not_there_traps_nothing() {
    let without = Masks::of(&idreg::shown(
        &everything(),
        &Config {
            pauth: false,
            nested: true,
            gicv3: true,
            pmu: true,
        },
    ));
    let controls = without.controls(&Written::default());
    assert!(!controls.takes(Syndrome::PointerAuth, true));
    assert!(!controls.takes_register(SysReg::APIAKEYLO_EL1, true));
    assert!(with(&[]).takes_register(SysReg::APIAKEYLO_EL1, true));
}

const OWN: Own = Own {
    hcr: 1 << 34 | 1 << 31 | hcr::API | hcr::APK | hcr::TSC | 1,
    hcrx: hcrx::MSCEN,
    mdcr: mdcr::TDRA,
    cnthctl: cnthctl::EL1PCTEN | cnthctl::EL1PTEN,
    fine: [0, 0, 0, 0xf, 0xf, 0],
    cpacr: false,
};

#[test]
fn hardware_traps_what_either_wants() {
    let quiet = OWN.below(&with(&[
        QUIET[0],
        QUIET[1],
        (Reg::HcrxEl2, hcrx::MSCEN),
        (Reg::CptrEl2, cptr::FPEN),
    ]));
    assert_eq!(quiet, OWN.alone(), "nothing asked for");
    let all = OWN.below(&with(&[
        (Reg::HcrEl2, !(hcr::API | hcr::APK)),
        (Reg::MdcrEl2, u64::MAX),
        (Reg::CptrEl2, cptr::TCPAC),
        (Reg::CnthctlEl2, cnthctl::EL1TVT),
        (Reg::HfgrtrEl2, u64::MAX),
    ]));
    assert_eq!(all.hcr & (hcr::API | hcr::APK), 0);
    assert_eq!(all.hcr & NEVER, OWN.hcr & NEVER, "umbra's own bits");
    assert_eq!(
        all.mdcr,
        mdcr::TDE | mdcr::TDA | mdcr::TDOSA | mdcr::TDRA | mdcr::TDCC
    );
    assert!(all.cpacr && all.fp);
    assert_eq!(all.cnthctl, cnthctl::EL1TVT);
    assert_eq!(all.hcrx, 0, "memory copies are off unless both want them");
    assert_eq!(all.fine, [shown(Fine::Hfgrtr), 0, 0, 0xf, 0xf, 0]);
}

#[test]
fn virtual_interrupts_need_their_routing() {
    let hcr = |value| OWN.below(&with(&[(Reg::HcrEl2, value)])).hcr & 0b111 << 6;
    assert_eq!(hcr(0b111 << 6), 0);
    assert_eq!(hcr(0b111 << 6 | hcr::IMO), 1 << 7);
    assert_eq!(hcr(0b111 << 6 | hcr::FMO), 1 << 6);
    assert_eq!(hcr(hcr::FMO | hcr::IMO), 0);
}

/// TGE, CD, ID, E2H, RW, NV, NV1, NV2.
const NEVER: u64 = 1 << 27 | 0b11 << 31 | 0b11 << 33 | 0b11 << 42 | 1 << 45;

proptest! {
    /// What the guest hypervisor takes, hardware traps: else it would never be asked.
    #[test]
    fn what_is_taken_is_trapped(hcr_value: u64, hfgrtr: u64, hdfgwtr: u64, mdcr_value: u64) {
        let controls = with(&[
            (Reg::HcrEl2, hcr_value),
            (Reg::HfgrtrEl2, hfgrtr),
            (Reg::HdfgwtrEl2, hdfgwtr),
            (Reg::MdcrEl2, mdcr_value),
        ]);
        let loaded = OWN.below(&controls);
        const TRAPS: u64 = 0x3f << 13 & !(1 << 15) | 0xff << 19 & !(1 << 27);
        prop_assert_eq!(loaded.hcr & TRAPS, OWN.hcr & TRAPS | controls.hcr & TRAPS);
        for (mine, theirs) in loaded.fine.iter().zip(controls.fine) {
            prop_assert_eq!(mine & theirs, theirs);
        }
        prop_assert_eq!(loaded.mdcr & controls.mdcr & (0xf << 8), controls.mdcr & (0xf << 8));
    }

    /// Any syndrome has an answer.
    #[test]
    fn nothing_panics(iss in 0u32..1 << 22, value: u64, el0: bool) {
        let controls = with(&[(Reg::HcrEl2, value), (Reg::HfgitrEl2, value)]);
        let _ = controls.takes(Syndrome::SysReg(SysRegTrap::decode(iss)), el0);
    }
}

/// So that a new register of arm64's table is not forgotten here.
#[test]
fn the_rows_are_these() {
    let rows: Vec<_> = TABLE.iter().map(|row| row.0).collect();
    assert!(rows.iter().all(|enc| row(*enc).is_some()));
    assert_eq!(
        row(SysReg::new(3, 3, 4, 4, 0)),
        None,
        "FPCR has a class of its own"
    );
}
