//! Stage 1, rule by rule.

use umbra_arm64::{FaultKind, GuestFault, Gva, Ipa, L2Ipa, Level, Rights};
use umbra_nested::attributes::{Attributes, Memory, Shareability};
use umbra_nested::stage1::{
    Access, BehindStage2, Kind, Mapping, Regime, Stage1Config, Stage1Regs, Untranslated, walk,
};
use umbra_nested::stage2::Stage2Config;
use umbra_nested::{Features, Purpose, Stop, Stop1};

use crate::fake::Fake;
use crate::stage2::{FEATURES, SMALL};

const M: u64 = 1;
const C: u64 = 1 << 2;
const WXN: u64 = 1 << 19;
const EE: u64 = 1 << 25;
const EPAN: u64 = 1 << 57;

/// 39 bits in each half, 4 KiB granules, 48 bits of output.
const TCR: u64 = 25 | 25 << 16 | 2 << 30 | 5 << 32;
const EPD0: u64 = 1 << 7;
const EPD1: u64 = 1 << 23;
const TBI0: u64 = 1 << 37;
const TBI1: u64 = 1 << 38;
const HA: u64 = 1 << 39;
const HD: u64 = 1 << 40;
const HPD0: u64 = 1 << 41;
const TBID0: u64 = 1 << 51;
const E0PD0: u64 = 1 << 55;

const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const AP_EL0: u64 = 1 << 6;
const AP_RO: u64 = 1 << 7;
const AF: u64 = 1 << 10;
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

const ROOT0: u64 = 0x4000_0000;
const ROOT1: u64 = 0x4000_1000;
const LEVEL2: u64 = 0x4001_0000;
const LEVEL3: u64 = 0x4002_0000;
const VA: u64 = 0x12_3456_7abc;
const OUTPUT: u64 = 0x8_0000_3000;
const TOP: u64 = 0xffff_ff80_0000_0000;

const READ: Access = Access {
    kind: Kind::Read,
    el0: false,
    pan: false,
    purpose: Purpose::Access,
};
const WRITE: Access = Access {
    kind: Kind::Write,
    ..READ
};
const FETCH: Access = Access {
    kind: Kind::Fetch,
    ..READ
};

const fn user(access: Access) -> Access {
    Access {
        el0: true,
        ..access
    }
}

const fn with_pan(access: Access) -> Access {
    Access {
        pan: true,
        ..access
    }
}

fn regs(sctlr: u64, tcr: u64) -> Stage1Regs {
    Stage1Regs {
        sctlr: sctlr | C,
        tcr,
        ttbr0: ROOT0,
        ttbr1: ROOT1,
        mair: 0xff44,
    }
}

fn entry(table: u64, shift: u32) -> u64 {
    table + ((VA >> shift) & 0x1ff) * 8
}

fn leaf_at() -> u64 {
    entry(LEVEL3, 12)
}

/// Tables that map the page of `VA`, and of `TOP | VA`, with `page` as the leaf.
fn tables(page: u64) -> Fake {
    let mut memory = Fake::new();
    for root in [ROOT0, ROOT1] {
        memory.put(entry(root, 30), LEVEL2 | TABLE);
    }
    memory
        .put(entry(LEVEL2, 21), LEVEL3 | TABLE)
        .put(leaf_at(), page);
    memory
}

fn el20(sctlr: u64, tcr: u64, features: &Features) -> Stage1Config {
    Stage1Config::new(Regime::El20, &regs(sctlr | M, tcr), 0, features)
}

fn run(
    config: &Stage1Config,
    va: u64,
    access: Access,
    memory: &mut Fake,
) -> Result<Mapping<Ipa>, Stop1> {
    walk(config, Gva::new(va), access, &mut Untranslated { memory })
}

fn go(tcr: u64, va: u64, access: Access, memory: &mut Fake) -> Result<Mapping<Ipa>, Stop1> {
    run(&el20(0, tcr, &FEATURES), va, access, memory)
}

fn fault<T>(kind: FaultKind, level: Level) -> Result<T, Stop1> {
    Err(Stop1::Stage1(Stop::Fault(GuestFault { kind, level })))
}

fn missing<T>(level: Level) -> Result<T, Stop1> {
    fault(FaultKind::Translation, level)
}

#[test]
fn bit_55_selects_the_tables() {
    for (va, root) in [(VA, ROOT0), (TOP | VA, ROOT1)] {
        let mut memory = tables(OUTPUT | PAGE | AF);
        let found = go(TCR, va, READ, &mut memory).expect("mapped").translation;
        assert_eq!(found.output, Ipa::new(OUTPUT | 0xabc));
        assert_eq!((found.level, found.bytes), (Level::L3, 4096));
        assert_eq!(memory.reads[0], entry(root, 30));
    }
}

/// TG0 and TG1 number the granules differently (Arm ARM D24.2.184).
#[test]
fn each_half_has_its_own_granule() {
    for (tg0, tg1, first_level_shift) in [(0, 2, 30), (2, 1, 36), (1, 3, 42)] {
        let tcr = 16 | 16 << 16 | tg0 << 14 | tg1 << 30 | 5 << 32;
        for va in [0x0000_5678_0000_0000, 0xffff_5678_0000_0000u64] {
            let mut memory = Fake::new();
            let outcome = go(tcr, va, READ, &mut memory);
            // 48 bits: level 0 with 4 and 16 KiB, level 1 with 64.
            let (level, shift) = match first_level_shift {
                30 => (Level::L0, 39),
                36 => (Level::L0, 47),
                _ => (Level::L1, 42),
            };
            assert_eq!(outcome, missing(level), "{va:#x}");
            let root = if va >> 55 & 1 == 0 { ROOT0 } else { ROOT1 };
            let index = (va & 0xffff_ffff_ffff) >> shift;
            let size = ((0xffff_ffff_ffffu64 >> shift) + 1) * 8;
            assert_eq!(memory.reads, [(root & !(size - 1)) + index * 8]);
        }
    }
}

#[test]
fn the_start_level_follows_from_the_input_size() {
    const K4: u64 = 0;
    const K64: u64 = 1 << 14;
    const K16: u64 = 2 << 14;
    const DS: u64 = 1 << 59;
    // Granule, input bits from … to, start level.
    for (tg, from, to, level) in [
        (K4, 16, 21, Level::L3),
        (K4, 22, 30, Level::L2),
        (K4, 31, 39, Level::L1),
        (K4, 40, 48, Level::L0),
        (K4 | DS, 49, 52, Level::Minus1),
        (K16, 16, 25, Level::L3),
        (K16, 26, 36, Level::L2),
        (K16, 37, 47, Level::L1),
        (K16, 48, 48, Level::L0),
        (K16 | DS, 49, 52, Level::L0),
        (K64, 17, 29, Level::L3),
        (K64, 30, 42, Level::L2),
        (K64, 43, 52, Level::L1),
    ] {
        for bits in from..=to {
            let mut memory = Fake::new();
            let outcome = go((64 - bits) | tg | 6 << 32, 0, READ, &mut memory);
            assert_eq!(outcome, missing(level), "{tg:#x} {bits}");
            assert_eq!(memory.reads.len(), 1);
        }
    }
}

#[test]
fn an_illegal_input_size_is_a_translation_fault_of_level_0() {
    const K64: u64 = 1 << 14;
    let small = Features {
        small_tables: false,
        lva: false,
        ..FEATURES
    };
    for (features, tcr, legal) in [
        (&FEATURES, 16, true),
        (&FEATURES, 15, false),
        (&FEATURES, 12 | 1 << 59, true),
        (&FEATURES, 11 | 1 << 59, false),
        (&FEATURES, 12 | K64, true),
        (&FEATURES, 11 | K64, false),
        (&FEATURES, 48, true),
        (&FEATURES, 49, false),
        (&FEATURES, 47 | K64, true),
        (&FEATURES, 48 | K64, false),
        (&small, 39, true),
        (&small, 40, false),
        (&small, 15 | K64, false),
    ] {
        let mut memory = Fake::new();
        let outcome = run(&el20(0, tcr | 6 << 32, features), 0, READ, &mut memory);
        assert_eq!(memory.reads.len(), usize::from(legal), "{tcr:#x}");
        assert!(legal || outcome == missing(Level::L0));
    }
}

#[test]
fn an_address_in_the_gap_is_a_translation_fault_of_level_0() {
    let mut memory = tables(OUTPUT | PAGE | AF);
    for va in [
        VA | 1 << 39,
        VA | 1 << 54,
        VA | 1 << 56,
        (TOP | VA) & !(1 << 39),
        (TOP | VA) & !(1 << 63),
    ] {
        assert_eq!(
            go(TCR, va, READ, &mut memory),
            missing(Level::L0),
            "{va:#x}"
        );
    }
    assert!(memory.reads.is_empty());
}

/// TBI ignores the top byte; TBID keeps it significant for fetches.
#[test]
fn the_top_byte_can_be_ignored() {
    let page = OUTPUT | PAGE | AF;
    let tagged = VA | 0x5a << 56;
    assert!(go(TCR | TBI0, tagged, READ, &mut tables(page)).is_ok());
    assert!(go(TCR | TBI0, tagged, FETCH, &mut tables(page)).is_ok());
    assert!(go(TCR | TBI0 | TBID0, tagged, READ, &mut tables(page)).is_ok());
    let outcome = go(TCR | TBI0 | TBID0, tagged, FETCH, &mut tables(page));
    assert_eq!(outcome, missing(Level::L0));
    let outcome = go(TCR | TBI1, tagged, READ, &mut tables(page));
    assert_eq!(outcome, missing(Level::L0), "the other half's");
    let upper = (TOP | VA) ^ 0x5a << 56;
    assert!(go(TCR | TBI1, upper, READ, &mut tables(page)).is_ok());
    let inside = VA | 1 << 54;
    let outcome = go(TCR | TBI0, inside, READ, &mut tables(page));
    assert_eq!(outcome, missing(Level::L0));
}

#[test]
fn walks_can_be_disabled_and_el0_kept_out() {
    let page = OUTPUT | PAGE | AF | AP_EL0;
    let walks = |tcr, va, access| {
        let mut memory = tables(page);
        let outcome = go(tcr, va, access, &mut memory);
        assert!(outcome.is_ok() || outcome == missing(Level::L0) && memory.reads.is_empty());
        outcome.is_ok()
    };
    assert!(!walks(TCR | EPD0, VA, READ) && walks(TCR | EPD0, TOP | VA, READ));
    assert!(walks(TCR | EPD1, VA, READ) && !walks(TCR | EPD1, TOP | VA, READ));
    assert!(walks(TCR | E0PD0, VA, READ) && !walks(TCR | E0PD0, VA, user(READ)));
    assert!(walks(TCR | E0PD0, TOP | VA, user(READ)));
    let without = Features {
        e0pd: false,
        ..FEATURES
    };
    let config = el20(0, TCR | E0PD0, &without);
    assert!(run(&config, VA, user(READ), &mut tables(page)).is_ok());
}

/// AP[2:1] (Arm ARM, "Stage 1 data accesses from EL1/EL2 and EL0").
#[test]
fn ap_permits_reads_and_writes_by_exception_level() {
    for (ap, el1, el0) in [
        (0, (true, true), (false, false)),
        (AP_EL0, (true, true), (true, true)),
        (AP_RO, (true, false), (false, false)),
        (AP_RO | AP_EL0, (true, false), (true, false)),
    ] {
        let ok = |access| {
            let outcome = go(TCR, VA, access, &mut tables(OUTPUT | PAGE | AF | ap));
            let denied = fault(FaultKind::Permission, Level::L3);
            assert!(outcome.is_ok() || outcome == denied);
            outcome.is_ok()
        };
        assert_eq!((ok(READ), ok(WRITE)), el1, "{ap:#x}");
        assert_eq!((ok(user(READ)), ok(user(WRITE))), el0, "{ap:#x}");
    }
}

fn fetches(sctlr: u64, tcr: u64, memory: impl Fn() -> Fake) -> (bool, bool) {
    let config = el20(sctlr, tcr, &FEATURES);
    (
        run(&config, VA, user(FETCH), &mut memory()).is_ok(),
        run(&config, VA, FETCH, &mut memory()).is_ok(),
    )
}

#[test]
fn execute_never_by_exception_level() {
    for (bits, el0, el1) in [
        (0, true, true),
        (UXN, false, true),
        (PXN, true, false),
        (UXN | PXN, false, false),
        // What EL0 can write is never executable above it.
        (AP_EL0, true, false),
        (AP_EL0 | AP_RO, true, true),
    ] {
        let found = fetches(0, TCR, || tables(OUTPUT | PAGE | AF | bits));
        assert_eq!(found, (el0, el1), "{bits:#x}");
    }
}

#[test]
fn wxn_takes_execution_from_what_is_writable() {
    for (bits, el0, el1) in [
        (0, true, false),
        (AP_RO, true, true),
        (AP_EL0, false, false),
        (AP_EL0 | AP_RO, true, true),
    ] {
        let found = fetches(WXN, TCR, || tables(OUTPUT | PAGE | AF | bits));
        assert_eq!(found, (el0, el1), "{bits:#x}");
    }
}

/// APTable, UXNTable and PXNTable limit what is below; HPD switches that off.
#[test]
fn table_descriptors_limit_permissions() {
    const PXN_TABLE: u64 = 1 << 59;
    const UXN_TABLE: u64 = 1 << 60;
    const AP_NO_EL0: u64 = 1 << 61;
    const AP_READ_ONLY: u64 = 1 << 62;
    let memory = |limit| {
        let mut memory = tables(OUTPUT | PAGE | AF | AP_EL0);
        memory.put(entry(ROOT0, 30), LEVEL2 | TABLE | limit);
        memory
    };
    let rights = |tcr, limit, access| {
        go(tcr, VA, access, &mut memory(limit)).map(|found| found.translation.rights)
    };
    let denied = fault(FaultKind::Permission, Level::L3);
    assert_eq!(rights(TCR, AP_READ_ONLY, WRITE), denied);
    assert_eq!(rights(TCR, AP_NO_EL0, user(READ)), denied);
    assert!(rights(TCR, AP_READ_ONLY, user(READ)).is_ok());
    assert!(rights(TCR, AP_NO_EL0, WRITE).is_ok());
    assert_eq!(fetches(0, TCR, || memory(UXN_TABLE)), (false, false));
    // Not writable by EL0 any more, and so executable above.
    assert_eq!(fetches(0, TCR, || memory(AP_NO_EL0)), (true, true));
    assert_eq!(
        fetches(0, TCR, || memory(AP_NO_EL0 | PXN_TABLE)),
        (true, false)
    );
    let everything = PXN_TABLE | UXN_TABLE | AP_NO_EL0 | AP_READ_ONLY;
    assert!(rights(TCR | HPD0, everything, user(WRITE)).is_ok());
    let without = Features {
        hpds: false,
        ..FEATURES
    };
    let config = el20(0, TCR | HPD0, &without);
    assert!(run(&config, VA, user(WRITE), &mut memory(everything)).is_err());
}

#[test]
fn pan_keeps_privileged_data_accesses_from_user_pages() {
    let kept_out = |bits, sctlr, access, features: &Features| {
        let config = el20(sctlr, TCR, features);
        run(&config, VA, access, &mut tables(OUTPUT | PAGE | AF | bits)).is_err()
    };
    for access in [READ, WRITE] {
        assert!(kept_out(AP_EL0, 0, with_pan(access), &FEATURES));
        assert!(!kept_out(AP_EL0, 0, access, &FEATURES));
        assert!(!kept_out(AP_EL0, 0, with_pan(user(access)), &FEATURES));
        assert!(!kept_out(UXN, 0, with_pan(access), &FEATURES));
        // EPAN counts pages that EL0 may only execute.
        assert!(!kept_out(0, 0, with_pan(access), &FEATURES));
        assert!(kept_out(0, EPAN, with_pan(access), &FEATURES));
        assert!(!kept_out(UXN, EPAN, with_pan(access), &FEATURES));
    }
    assert!(!kept_out(AP_EL0 | AP_RO, 0, with_pan(FETCH), &FEATURES));
    let pan_only = Features {
        epan: false,
        ..FEATURES
    };
    assert!(!kept_out(0, EPAN, with_pan(READ), &pan_only));
    let none = Features {
        pan: false,
        epan: false,
        ..FEATURES
    };
    assert!(!kept_out(AP_EL0, 0, with_pan(READ), &none));
}

#[test]
fn rights_are_those_of_the_level_that_asks() {
    let rights = |access| {
        go(
            TCR,
            VA,
            access,
            &mut tables(OUTPUT | PAGE | AF | AP_RO | AP_EL0 | UXN),
        )
        .expect("mapped")
        .translation
        .rights
    };
    let expected = Rights {
        exec_el1: true,
        ..Rights::READ
    };
    assert_eq!(rights(READ), expected);
    assert_eq!(rights(user(READ)), expected);
    let kernel_page = go(TCR, VA, READ, &mut tables(OUTPUT | PAGE | AF)).expect("mapped");
    assert_eq!(kernel_page.translation.rights, Rights::ALL);
}

#[test]
fn the_access_flag_and_dirty_state() {
    let old = OUTPUT | PAGE | AP_RO | DBM;
    let outcome = go(TCR, VA, READ, &mut tables(old));
    assert_eq!(outcome, fault(FaultKind::AccessFlag, Level::L3));
    let mut memory = tables(old);
    let found = go(TCR | HA, VA, READ, &mut memory).expect("mapped");
    assert!(found.translation.accessed && memory.get(leaf_at()) == old | AF);
    let outcome = go(TCR | HA, VA, WRITE, &mut memory);
    assert_eq!(outcome, fault(FaultKind::Permission, Level::L3));

    let managed = TCR | HA | HD;
    let found = go(managed, VA, READ, &mut memory).expect("mapped");
    assert!(!found.translation.rights.write, "still clean");
    let at = Access {
        purpose: Purpose::At,
        ..WRITE
    };
    go(managed, VA, at, &mut memory).expect("an AT finds it writable");
    assert_eq!(memory.get(leaf_at()), old | AF, "… and leaves it clean");
    let found = go(managed, VA, WRITE, &mut memory).expect("mapped");
    assert!(found.translation.rights.write);
    assert_eq!(memory.get(leaf_at()), (old | AF) & !AP_RO);
}

#[test]
fn outputs_are_bounded_by_ips_and_the_machine() {
    let beyond = |ips: u64, page: u64| {
        let tcr = TCR & !(7 << 32) | ips << 32;
        let config = el20(0, tcr, &SMALL);
        let outcome = run(&config, VA, READ, &mut tables(page | PAGE | AF));
        assert!(outcome.is_ok() || outcome == fault(FaultKind::AddressSize, Level::L3));
        outcome.is_err()
    };
    assert!(beyond(0, 1 << 32) && !beyond(1, 1 << 32) && beyond(1, 1 << 36));
    assert!(!beyond(6, 1 << 47));
    let mut high = regs(M, TCR & !(7 << 32));
    high.ttbr0 |= 1 << 32;
    let config = Stage1Config::new(Regime::El20, &high, 0, &FEATURES);
    let mut memory = Fake::new();
    let outcome = run(&config, VA, READ, &mut memory);
    assert_eq!(outcome, fault(FaultKind::AddressSize, Level::L0));
    assert!(memory.reads.is_empty());
}

#[test]
fn big_endian_tables() {
    let mut memory = Fake::new();
    memory
        .put(entry(ROOT0, 30), (LEVEL2 | TABLE).swap_bytes())
        .put(entry(LEVEL2, 21), (LEVEL3 | TABLE).swap_bytes())
        .put(leaf_at(), (OUTPUT | PAGE).swap_bytes());
    let config = el20(EE, TCR | HA, &FEATURES);
    assert!(run(&config, VA, READ, &mut memory).is_ok());
    assert_eq!(memory.get(leaf_at()), (OUTPUT | PAGE | AF).swap_bytes());
}

#[test]
fn with_the_mmu_off_addresses_are_physical() {
    let off = Stage1Config::new(Regime::El20, &regs(0, TCR | TBI0), 0, &SMALL);
    let mut memory = Fake::new();
    let found = run(&off, 0xffff_1234_5678, READ, &mut memory).expect("flat");
    assert_eq!(found.translation.output, Ipa::new(0xffff_1234_5678));
    assert_eq!(found.translation.rights, Rights::ALL);
    assert_eq!(found.attributes, Attributes::OFF);
    let tagged = run(&off, 0x5a00_0000_0000_1000, READ, &mut memory).expect("tagged");
    assert_eq!(tagged.translation.output, Ipa::new(0x1000));
    for va in [1 << 48, 1 << 54, 1 << 63] {
        // The upper half has no TBI1 here, so its top byte counts.
        let outcome = run(&off, va, READ, &mut memory);
        let expected = va == 1 << 63;
        assert_eq!(outcome.is_ok(), expected, "{va:#x}");
        assert!(expected || outcome == fault(FaultKind::AddressSize, Level::L0));
    }
    assert!(memory.reads.is_empty());
}

/// HCR_EL2.DC and TGE switch stage 1 of EL1&0 off; DC makes memory cacheable.
#[test]
fn the_hypervisor_switches_stage_1_off() {
    const DC: u64 = 1 << 12;
    const TGE: u64 = 1 << 27;
    for (hcr, attributes) in [
        (DC, Attributes::DEFAULT_CACHEABLE),
        (TGE, Attributes::OFF),
        (DC | TGE, Attributes::DEFAULT_CACHEABLE),
    ] {
        let config = Stage1Config::new(Regime::El10, &regs(M, TCR), hcr, &FEATURES);
        let found = run(&config, VA, READ, &mut Fake::new()).expect("flat");
        assert_eq!(
            (found.translation.output, found.attributes),
            (Ipa::new(VA), attributes)
        );
        let own = Stage1Config::new(Regime::El20, &regs(M, TCR), hcr, &FEATURES);
        assert!(
            run(&own, VA, READ, &mut Fake::new()).is_err(),
            "EL2&0 does not mind"
        );
    }
}

/// EL2 without E2H: one half, TCR_EL2 laid out its own way, no EL0.
#[test]
fn the_el2_regime() {
    const PS_48: u64 = 5 << 16;
    const TBI: u64 = 1 << 20;
    const HA_EL2: u64 = 1 << 21;
    let go = |tcr, va, access, memory: &mut Fake| {
        let config = Stage1Config::new(Regime::El2, &regs(M, tcr), 0, &FEATURES);
        run(&config, va, access, memory)
    };
    let tcr = 25 | PS_48;
    let page = OUTPUT | PAGE | AF;
    let mut memory = tables(page | PXN | AP_EL0);
    let found = go(tcr, VA, FETCH, &mut memory).expect("PXN and AP[1] mean nothing");
    assert_eq!(
        found.translation.rights,
        Rights {
            exec_el0: false,
            ..Rights::ALL
        }
    );
    assert!(
        go(tcr, VA, FETCH, &mut tables(page | UXN)).is_err(),
        "bit 54 is XN"
    );
    assert!(go(tcr, VA, WRITE, &mut tables(page | AP_RO)).is_err());
    assert_eq!(go(tcr, TOP | VA, READ, &mut memory), missing(Level::L0));
    assert!(go(tcr | TBI, VA | 0xff << 56, READ, &mut tables(page)).is_ok());
    let upper = go(tcr | TBI, VA | 1 << 55, READ, &mut tables(page));
    assert_eq!(upper, missing(Level::L0), "bit 55 is an address bit");
    assert!(go(tcr | HA_EL2, VA, READ, &mut tables(page & !AF)).is_ok());
}

#[test]
fn memory_attributes_come_from_mair() {
    let page = |bits| OUTPUT | PAGE | AF | bits;
    let attributes = |sctlr: u64, bits: u64, access| {
        let mut own = regs(M, TCR);
        own.sctlr = M | sctlr;
        // Attr0 normal non-cacheable, Attr1 write-back, Attr2 Device-nGnRnE.
        let config = Stage1Config::new(Regime::El20, &own, 0, &FEATURES);
        run(&config, VA, access, &mut tables(page(bits)))
            .expect("mapped")
            .attributes
    };
    assert_eq!(attributes(C, 0, READ).memory, Memory::NON_CACHEABLE);
    let write_back = attributes(C, 1 << 2 | 3 << 8, READ);
    assert_eq!(
        (write_back.memory, write_back.shareability),
        (Memory::WRITE_BACK, Shareability::Inner)
    );
    assert_eq!(
        attributes(0, 1 << 2, READ).memory,
        Memory::NON_CACHEABLE,
        "C = 0"
    );
    assert!(matches!(
        attributes(0, 2 << 2, READ).memory,
        Memory::Device(_)
    ));
    assert_eq!(
        attributes(C, 1 << 2, FETCH).memory,
        Memory::NON_CACHEABLE,
        "I = 0"
    );
    assert_eq!(
        attributes(C | 1 << 12, 1 << 2, FETCH).memory,
        Memory::WRITE_BACK
    );
    assert_eq!(
        attributes(C | 1 << 12, 2 << 2, FETCH).memory,
        Memory::NON_CACHEABLE
    );
}

/// Stage 2 between: 40 bits from level 1, a 1 GiB block that maps L2's 0x4000_0000 to 0x8000_0000.
const STAGE2_ROOT: u64 = 0x1_0000_2000;
const STAGE2_BLOCK: u64 = STAGE2_ROOT + 8;
const MOVED: u64 = 0x4000_0000;
const VTCR: u64 = 24 | 1 << 6 | 5 << 16;
const S2_READ: u64 = 1 << 6;
const S2_WRITE: u64 = 1 << 7;

fn behind(page: u64, block: u64) -> Fake {
    let mut memory = Fake::new();
    memory
        .put(STAGE2_BLOCK, block)
        .put(entry(ROOT0, 30) + MOVED, LEVEL2 | TABLE)
        .put(entry(LEVEL2, 21) + MOVED, LEVEL3 | TABLE)
        .put(leaf_at() + MOVED, page);
    memory
}

fn go_behind(
    tcr: u64,
    vtcr: u64,
    access: Access,
    memory: &mut Fake,
) -> Result<Mapping<L2Ipa>, Stop1> {
    let config = Stage1Config::new(Regime::El10, &regs(M, tcr), 1, &FEATURES);
    let stage2 = Stage2Config::new(vtcr, STAGE2_ROOT, 1, false, &FEATURES);
    let mut tables = BehindStage2 {
        config: &stage2,
        memory,
    };
    walk(&config, Gva::new(VA), access, &mut tables)
}

const BLOCK: u64 = 0x8000_0000 | 0b01 | 1 << 10;

#[test]
fn tables_behind_stage_2_are_translated() {
    let mut memory = behind(OUTPUT | PAGE | AF, BLOCK | S2_READ);
    let found = go_behind(TCR, VTCR, READ, &mut memory).expect("mapped");
    assert_eq!(found.translation.output, L2Ipa::new(OUTPUT | 0xabc));
    // Each of three descriptors costs a read of stage 2 and one of its own.
    assert_eq!(memory.reads.len(), 6);
}

#[test]
fn a_fault_of_stage_2_on_the_way_names_the_descriptor() {
    let mut memory = behind(OUTPUT | PAGE | AF, 0);
    let stop = go_behind(TCR, VTCR, READ, &mut memory);
    let expected = Stop1::Stage2 {
        stop: Stop::Fault(GuestFault {
            kind: FaultKind::Translation,
            level: Level::L1,
        }),
        ipa: L2Ipa::new(entry(ROOT0, 30)),
        level: Level::L1,
    };
    assert_eq!(stop, Err(expected));
}

#[test]
fn marking_a_descriptor_needs_write_permission_at_stage_2() {
    let old = OUTPUT | PAGE;
    let denied = Stop1::Stage2 {
        stop: Stop::Fault(GuestFault {
            kind: FaultKind::Permission,
            level: Level::L1,
        }),
        ipa: L2Ipa::new(leaf_at()),
        level: Level::L3,
    };
    let mut memory = behind(old, BLOCK | S2_READ);
    assert_eq!(go_behind(TCR | HA, VTCR, READ, &mut memory), Err(denied));
    let mut memory = behind(old, BLOCK | S2_READ | S2_WRITE);
    assert!(go_behind(TCR | HA, VTCR, READ, &mut memory).is_ok());
    assert_eq!(memory.get(leaf_at() + MOVED), old | AF);
    // With dirty state managed at stage 2, the page of the table becomes dirty.
    let mut memory = behind(old, BLOCK | S2_READ | DBM);
    assert!(go_behind(TCR | HA, VTCR | 3 << 21, READ, &mut memory).is_ok());
    assert_eq!(memory.get(STAGE2_BLOCK), BLOCK | S2_READ | DBM | S2_WRITE);
}

#[test]
fn an_unreadable_descriptor_belongs_to_its_stage() {
    let mut memory = behind(OUTPUT | PAGE | AF, BLOCK | S2_READ);
    memory.poison(leaf_at() + MOVED);
    let stop = go_behind(TCR, VTCR, READ, &mut memory).expect_err("poison in stage 1");
    let Stop1::Stage1(inner) = stop else {
        panic!("{stop:?}");
    };
    assert_eq!(inner.poisoned(), Some(Ipa::new(leaf_at() + MOVED)));
    let external = |level| {
        Ok(GuestFault {
            kind: FaultKind::ExternalOnWalk,
            level,
        })
    };
    assert_eq!(inner.fault(), external(Level::L3));

    let mut memory = behind(OUTPUT | PAGE | AF, BLOCK | S2_READ);
    memory.poison(STAGE2_BLOCK);
    let stop = go_behind(TCR, VTCR, READ, &mut memory).expect_err("poison in stage 2");
    let Stop1::Stage2 {
        stop: inner,
        ipa,
        level,
    } = stop
    else {
        panic!("{stop:?}");
    };
    assert_eq!(inner.fault(), external(Level::L1));
    assert_eq!((ipa, level), (L2Ipa::new(entry(ROOT0, 30)), Level::L1));
}

#[test]
fn endless_contention_ends() {
    let rival = || {
        let mut memory = tables(OUTPUT | PAGE);
        memory.race(|word| word ^ 1 << 55);
        memory
    };
    let outcome = go(TCR | HA, VA, READ, &mut rival());
    assert_eq!(outcome, Err(Stop1::Stage1(Stop::Contended)));
    let at = Access {
        purpose: Purpose::At,
        ..READ
    };
    let found = go(TCR | HA, VA, at, &mut rival()).expect("an AT completes");
    assert!(!found.translation.accessed);
    // At both stages at once.
    let mut memory = behind(OUTPUT | PAGE, BLOCK & !AF | S2_READ | S2_WRITE);
    memory.race(|word| word ^ 1 << 55);
    let found = go_behind(TCR | HA, VTCR | 1 << 21, at, &mut memory).expect("an AT completes");
    assert!(!found.translation.accessed);
}

#[test]
fn a_probe_changes_nothing_and_forbids_nothing() {
    let probe = Access {
        purpose: Purpose::Probe,
        ..user(WRITE)
    };
    // Neither stage has its access flag set, and neither permits this.
    let mut memory = behind(OUTPUT | PAGE, BLOCK & !AF);
    for (tcr, vtcr) in [(TCR, VTCR), (TCR | HA | HD, VTCR | 3 << 21)] {
        let found = go_behind(tcr, vtcr, probe, &mut memory)
            .expect("there")
            .translation;
        assert_eq!(found.output, L2Ipa::new(OUTPUT | 0xabc));
        assert!(!found.accessed && !found.rights.read && !found.rights.write);
    }
    assert!(memory.writes.is_empty());
}
