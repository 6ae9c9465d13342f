//! Stage 2, rule by rule.

use umbra_arm64::{FaultKind, Granule, GuestFault, Ipa, L2Ipa, Level, Rights};
use umbra_nested::stage2::{Access, Mapping, Stage2Config, walk};
use umbra_nested::{Again, Features, Granules, MemoryError, Stop, Support};

use crate::fake::{Fake, RAM_END};

const VM: u64 = 1;
const HA: u64 = 1 << 21;
const HD: u64 = 1 << 22;
const DS: u64 = 1 << 32;
const SL2: u64 = 1 << 33;
const PS_40: u64 = 2 << 16;
const PS_48: u64 = 5 << 16;
const PS_52: u64 = 6 << 16;

const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const AF: u64 = 1 << 10;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const CONTIGUOUS: u64 = 1 << 52;
const RW: u64 = AF | READ | WRITE;

/// Everything there is.
pub(crate) const FEATURES: Features = Features {
    pa_bits: 52,
    stage1: GRANULES,
    stage2: GRANULES,
    lva: true,
    small_tables: true,
    access_flag: true,
    dirty_state: true,
    xnx: true,
    hpds: true,
    pan: true,
    epan: true,
    e0pd: true,
    tbid: true,
    fwb: true,
    xs: true,
};
const GRANULES: Granules = Granules {
    k4: Support::Lpa2,
    k16: Support::Lpa2,
    k64: Support::Present,
};
/// What umbra shows by default: 48 bits.
pub(crate) const SMALL: Features = Features {
    pa_bits: 48,
    stage1: NARROW,
    stage2: NARROW,
    lva: false,
    small_tables: false,
    ..FEATURES
};
const NARROW: Granules = Granules {
    k4: Support::Present,
    k16: Support::Present,
    k64: Support::Present,
};

/// VTCR_EL2 for 40 bits from level 1 with 4 KiB granules: what most examples here use.
const VTCR: u64 = 24 | 1 << 6 | PS_40;
/// Two concatenated tables.
const ROOT: u64 = 0x8000_2000;
const LEVEL2: u64 = 0x8001_0000;
const LEVEL3: u64 = 0x8002_0000;
const IPA: u64 = 0x2_4567_8abc;
/// Where [`three_levels`] maps it.
const OUTPUT: u64 = 0x9abc_d000;

fn config(vtcr: u64, vttbr: u64, features: &Features) -> Stage2Config {
    Stage2Config::new(vtcr, vttbr, VM, false, features)
}

fn entry(table: u64, ipa: u64, shift: u32) -> u64 {
    table + ((ipa >> shift) & 0x1ff) * 8
}

/// Tables of 4 KiB that map the page of `IPA` with `page` as the leaf.
fn three_levels(page: u64) -> Fake {
    let mut memory = Fake::new();
    memory
        .put(ROOT + (IPA >> 30) * 8, LEVEL2 | TABLE)
        .put(entry(LEVEL2, IPA, 21), LEVEL3 | TABLE)
        .put(entry(LEVEL3, IPA, 12), page);
    memory
}

fn leaf_at() -> u64 {
    entry(LEVEL3, IPA, 12)
}

fn go(vtcr: u64, access: Access, memory: &mut Fake) -> Result<Mapping, Stop> {
    let config = config(vtcr, ROOT, &FEATURES);
    walk(&config, L2Ipa::new(IPA), access, memory)
}

fn fault<T>(kind: FaultKind, level: Level) -> Result<T, Stop> {
    Err(Stop::Fault(GuestFault { kind, level }))
}

#[test]
fn a_page_is_found_through_three_levels() {
    let mut memory = three_levels(OUTPUT | PAGE | RW);
    let found = go(VTCR, Access::Read, &mut memory)
        .expect("mapped")
        .translation;
    assert_eq!(found.output, Ipa::new(OUTPUT | 0xabc));
    assert_eq!(
        (found.level, found.leaf_bytes, found.bytes),
        (Level::L3, 4096, 4096)
    );
    assert_eq!(found.rights, Rights::ALL);
    assert!(found.accessed && !found.is_contiguous());
    assert_eq!(memory.reads.len(), 3);
    assert!(memory.writes.is_empty());
}

#[test]
fn a_block_maps_all_of_its_bytes() {
    let mut memory = three_levels(0);
    memory.put(entry(LEVEL2, IPA, 21), 0x4000_0000 | BLOCK | RW);
    let found = go(VTCR, Access::Read, &mut memory)
        .expect("mapped")
        .translation;
    assert_eq!(found.output, Ipa::new(0x4000_0000 | IPA & 0x1f_ffff));
    assert_eq!((found.level, found.bytes), (Level::L2, 2 << 20));
}

#[test]
fn off_is_the_identity() {
    let off = Stage2Config::new(VTCR, ROOT, 0, false, &FEATURES);
    let mut memory = Fake::new();
    let found = walk(&off, L2Ipa::new(IPA), Access::Write, &mut memory).expect("identity");
    assert_eq!(found.translation.output, Ipa::new(IPA));
    assert_eq!(found.attributes, None);
    assert!(memory.reads.is_empty() && !off.is_enabled());
    let under_dc = Stage2Config::new(VTCR, ROOT, 1 << 12, false, &FEATURES);
    assert!(under_dc.is_enabled(), "HCR_EL2.DC implies VM");
}

/// Every start level of every granule (Arm ARM, VTCR_EL2.SL0 and the tables of D8.2.9): the input
/// sizes it allows, from two entries to 16 concatenated tables.
#[test]
fn start_levels_allow_the_input_sizes_of_the_manual() {
    const K4: u64 = 0;
    const K64: u64 = 1 << 14;
    const K16: u64 = 2 << 14;
    // TG0, other bits, SL0, start level, shift of that level, smallest and biggest input.
    for (tg, other, sl0, level, shift, least, most) in [
        (K4, 0, 3, 3, 12, 16, 25),
        (K4, 0, 0, 2, 21, 22, 34),
        (K4, 0, 1, 1, 30, 31, 43),
        (K4, 0, 2, 0, 39, 40, 48),
        (K4, DS, 2, 0, 39, 40, 52),
        (K4, DS | SL2, 0, -1, 48, 49, 52),
        (K16, 0, 0, 3, 14, 16, 29),
        (K16, 0, 1, 2, 25, 26, 40),
        (K16, 0, 2, 1, 36, 37, 48),
        (K16, DS, 2, 1, 36, 37, 51),
        (K16, DS, 3, 0, 47, 48, 52),
        (K64, 0, 0, 3, 16, 17, 33),
        (K64, 0, 1, 2, 29, 30, 46),
        (K64, 0, 2, 1, 42, 43, 52),
    ] {
        for bits in 1..=56u64 {
            let vtcr = (64 - bits) | sl0 << 6 | tg | other | PS_52;
            let top = (1u64 << bits) - 1;
            let mut memory = Fake::new();
            let config = config(vtcr, 0x40_0000, &FEATURES);
            let outcome = walk(&config, L2Ipa::new(top), Access::Read, &mut memory);
            let fault_level = if (least..=most).contains(&bits) {
                // The last entry of the start table, which holds zero.
                assert_eq!(
                    memory.reads,
                    [0x40_0000 + (top >> shift) * 8],
                    "{tg:#x} {sl0} {bits}"
                );
                Level::from_number(level).expect("a level")
            } else {
                assert!(memory.reads.is_empty(), "{tg:#x} {sl0} {bits}");
                Level::L0
            };
            let expected = fault(FaultKind::Translation, fault_level);
            assert_eq!(outcome, expected, "{tg:#x} {other:#x} {sl0} {bits}");
        }
    }
}

#[test]
fn reserved_start_levels_fault_at_level_0() {
    for vtcr in [
        // 64 KiB has no level 0.
        20 | 3 << 6 | 1 << 14 | PS_52,
        // 16 KiB has one with DS only.
        16 | 3 << 6 | 2 << 14 | PS_52,
        // SL2 goes with SL0 = 0.
        12 | 1 << 6 | DS | SL2 | PS_52,
    ] {
        let mut memory = Fake::new();
        let config = config(vtcr, ROOT, &FEATURES);
        let outcome = walk(&config, L2Ipa::new(0), Access::Read, &mut memory);
        assert_eq!(outcome, fault(FaultKind::Translation, Level::L0));
        assert!(memory.reads.is_empty());
        assert_eq!(config.granule(), None);
    }
}

/// A small machine has no start levels for an input that it cannot have.
#[test]
fn start_levels_depend_on_the_physical_address_size() {
    for (pa_bits, tg, sl0, t0sz, legal) in [
        (42, 0, 2, 24, false),
        (44, 0, 2, 24, true),
        (40, 2 << 14, 2, 25, false),
        (42, 2 << 14, 2, 25, true),
        (42, 1 << 14, 2, 22, false),
        (44, 1 << 14, 2, 21, true),
    ] {
        let features = Features { pa_bits, ..SMALL };
        let config = config(t0sz | sl0 << 6 | tg | PS_48, ROOT, &features);
        assert_eq!(config.granule().is_some(), legal, "{pa_bits} {tg:#x}");
    }
}

#[test]
fn t0sz_is_bounded_by_the_physical_address_size_and_by_small_tables() {
    let legal = |t0sz: u64, sl0: u64, features: &Features| {
        config(t0sz | sl0 << 6 | PS_48, ROOT, features)
            .granule()
            .is_some()
    };
    let forty = Features {
        pa_bits: 40,
        ..SMALL
    };
    assert!(legal(24, 1, &forty) && !legal(23, 1, &forty));
    assert!(legal(39, 0, &SMALL) && !legal(40, 0, &SMALL));
    let small_tables = Features {
        small_tables: true,
        ..SMALL
    };
    assert!(legal(40, 0, &small_tables) && !legal(49, 3, &small_tables));
}

/// [BR6]: an address beyond the input size never aliases into the table.
#[test]
fn an_address_beyond_the_input_size_is_a_translation_fault_of_level_0() {
    let mut memory = three_levels(OUTPUT | PAGE | RW);
    for high in [1 << 40, 1 << 47, 1 << 51, 1 << 63] {
        let config = config(VTCR, ROOT, &FEATURES);
        let outcome = walk(&config, L2Ipa::new(IPA | high), Access::Read, &mut memory);
        assert_eq!(
            outcome,
            fault(FaultKind::Translation, Level::L0),
            "{high:#x}"
        );
    }
    assert!(memory.reads.is_empty());
}

/// R_BFHQH: a base beyond the output size is an address size fault of level 0.
#[test]
fn outputs_beyond_the_output_size_fault_at_the_level_that_names_them() {
    let size = |level| fault(FaultKind::AddressSize, level);
    let beyond = 1 << 40;
    let mut memory = Fake::new();
    let base = config(VTCR, beyond | ROOT, &FEATURES);
    let outcome = walk(&base, L2Ipa::new(IPA), Access::Read, &mut memory);
    assert_eq!(outcome, size(Level::L0));
    assert!(memory.reads.is_empty());

    let mut memory = three_levels(OUTPUT | PAGE | RW);
    memory.put(ROOT + (IPA >> 30) * 8, beyond | LEVEL2 | TABLE);
    assert_eq!(go(VTCR, Access::Read, &mut memory), size(Level::L1));

    let mut memory = three_levels(OUTPUT | PAGE | RW);
    memory.put(entry(LEVEL2, IPA, 21), beyond | BLOCK | RW);
    assert_eq!(go(VTCR, Access::Read, &mut memory), size(Level::L2));

    let mut memory = three_levels(beyond | PAGE | RW);
    assert_eq!(go(VTCR, Access::Read, &mut memory), size(Level::L3));
    // It goes before the access flag and the permission.
    let mut memory = three_levels(beyond | PAGE);
    assert_eq!(go(VTCR, Access::Read, &mut memory), size(Level::L3));
}

/// VTCR_EL2.PS says less than the machine has, or more: the smaller counts.
#[test]
fn the_output_size_is_the_smaller_of_ps_and_parange() {
    let mapped = |ps: u64, pa_bits, output: u64| {
        let features = Features { pa_bits, ..SMALL };
        let config = config(VTCR & !(7 << 16) | ps << 16, ROOT, &features);
        let mut memory = three_levels(output | PAGE | RW);
        walk(&config, L2Ipa::new(IPA), Access::Read, &mut memory).is_ok()
    };
    assert!(mapped(0, 48, 0xffff_f000) && !mapped(0, 48, 1 << 32));
    assert!(mapped(1, 48, 1 << 35) && !mapped(1, 48, 1 << 36));
    assert!(mapped(5, 44, 1 << 43) && !mapped(5, 44, 1 << 44));
    assert!(mapped(7, 48, 1 << 47), "a reserved PS is as big as it gets");
}

#[test]
fn invalid_and_reserved_descriptors_are_translation_faults_at_their_level() {
    let missing = |level| fault(FaultKind::Translation, level);
    for invalid in [0b00, 0b10] {
        let mut memory = three_levels(invalid | OUTPUT | RW);
        assert_eq!(go(VTCR, Access::Read, &mut memory), missing(Level::L3));
        memory.put(entry(LEVEL2, IPA, 21), invalid | LEVEL3);
        assert_eq!(go(VTCR, Access::Read, &mut memory), missing(Level::L2));
        memory.put(ROOT + (IPA >> 30) * 8, invalid | LEVEL2);
        assert_eq!(go(VTCR, Access::Read, &mut memory), missing(Level::L1));
    }
    // 0b01 is a block above level 3, and reserved there.
    let mut memory = three_levels(BLOCK | OUTPUT | RW);
    assert_eq!(go(VTCR, Access::Read, &mut memory), missing(Level::L3));
    // No blocks of 512 GiB without DS.
    let mut memory = Fake::new();
    memory.put(0x40_0000, BLOCK | RW);
    let level0 = config(20 | 2 << 6 | PS_48, 0x40_0000, &FEATURES);
    let outcome = walk(&level0, L2Ipa::new(0), Access::Read, &mut memory);
    assert_eq!(outcome, missing(Level::L0));
}

#[test]
fn a_table_that_points_to_itself_ends_at_level_3() {
    let mut memory = Fake::new();
    for index in 0..1024 {
        memory.put(ROOT + index * 8, ROOT | TABLE | RW);
    }
    let found = go(VTCR, Access::Read, &mut memory).expect("a page in the end");
    assert_eq!(found.translation.output, Ipa::new(ROOT | 0xabc));
    assert_eq!(memory.reads.len(), 3);
}

#[test]
fn a_clear_access_flag_faults_or_is_set() {
    let clean = OUTPUT | PAGE | READ | WRITE;
    let mut memory = three_levels(clean);
    let expected = fault(FaultKind::AccessFlag, Level::L3);
    assert_eq!(go(VTCR, Access::Read, &mut memory), expected);
    assert!(memory.writes.is_empty());

    let found = go(VTCR | HA, Access::Read, &mut memory).expect("mapped");
    assert!(found.translation.accessed);
    assert_eq!(memory.get(leaf_at()), clean | AF);
    assert_eq!(memory.writes, [leaf_at()]);
    go(VTCR | HA, Access::Read, &mut memory).expect("mapped");
    assert_eq!(memory.writes.len(), 1, "once");

    let without = Features {
        access_flag: false,
        ..FEATURES
    };
    let config = config(VTCR | HA, ROOT, &without);
    let mut memory = three_levels(clean);
    let outcome = walk(&config, L2Ipa::new(IPA), Access::Read, &mut memory);
    assert_eq!(outcome, expected, "HA is RES0 without the feature");
}

#[test]
fn a_permission_fault_leaves_the_access_flag_alone() {
    let clean = OUTPUT | PAGE | READ;
    let mut memory = three_levels(clean);
    let outcome = go(VTCR | HA, Access::Write, &mut memory);
    assert_eq!(outcome, fault(FaultKind::Permission, Level::L3));
    assert_eq!(memory.get(leaf_at()), clean);
}

#[test]
fn dirty_state_is_managed_for_writes_to_leaves_with_dbm() {
    let clean = OUTPUT | PAGE | AF | READ | DBM;
    let managed = VTCR | HA | HD;
    let mut memory = three_levels(clean);
    let found = go(managed, Access::Read, &mut memory).expect("mapped");
    assert!(!found.translation.rights.write, "a read leaves it clean");
    go(managed, Access::AtWrite, &mut memory).expect("an AT finds it writable");
    assert!(memory.writes.is_empty(), "… and leaves it clean as well");

    let found = go(managed, Access::Write, &mut memory).expect("writable");
    assert!(found.translation.rights.write);
    assert_eq!(memory.get(leaf_at()), clean | WRITE);

    let denied = fault(FaultKind::Permission, Level::L3);
    for vtcr in [VTCR, VTCR | HA, VTCR | HD] {
        assert_eq!(go(vtcr, Access::Write, &mut three_levels(clean)), denied);
    }
    let without_dbm = &mut three_levels(clean & !DBM);
    assert_eq!(go(managed, Access::Write, without_dbm), denied);
    let without = Features {
        dirty_state: false,
        ..FEATURES
    };
    let config = config(managed, ROOT, &without);
    let outcome = walk(
        &config,
        L2Ipa::new(IPA),
        Access::Write,
        &mut three_levels(clean),
    );
    assert_eq!(outcome, denied);
}

#[test]
fn s2ap_permits_reads_and_writes_separately() {
    let denied = fault(FaultKind::Permission, Level::L3);
    for (ap, read, write) in [
        (0, false, false),
        (READ, true, false),
        (WRITE, false, true),
        (READ | WRITE, true, true),
    ] {
        for (access, permitted) in [
            (Access::Read, read),
            (Access::Write, write),
            (Access::AtRead, read),
            (Access::AtWrite, write),
            (Access::WalkRead, read),
            (Access::AtWalkRead, read),
            (Access::WalkUpdate, read && write),
            (Access::FetchEl0, true),
            (Access::FetchEl1, true),
            (Access::Probe, true),
        ] {
            let outcome = go(VTCR, access, &mut three_levels(OUTPUT | PAGE | AF | ap));
            if permitted {
                let rights = outcome.expect("permitted").translation.rights;
                assert_eq!((rights.read, rights.write), (read, write));
            } else {
                assert_eq!(outcome, denied, "{access:?} {ap:#x}");
            }
        }
    }
}

/// XN[1:0] (FEAT_XNX): 00 both, 01 EL0 only, 10 neither, 11 EL1 only. Without it bit 53 is ignored.
#[test]
fn execute_never_by_exception_level() {
    for (xn, with, without) in [
        (0b00, (true, true), (true, true)),
        (0b01, (true, false), (true, true)),
        (0b10, (false, false), (false, false)),
        (0b11, (false, true), (false, false)),
    ] {
        for (xnx, (el0, el1)) in [(true, with), (false, without)] {
            let features = Features { xnx, ..FEATURES };
            let config = config(VTCR, ROOT, &features);
            for (access, permitted) in [(Access::FetchEl0, el0), (Access::FetchEl1, el1)] {
                let mut memory = three_levels(OUTPUT | PAGE | RW | xn << 53);
                let outcome = walk(&config, L2Ipa::new(IPA), access, &mut memory);
                assert_eq!(outcome.is_ok(), permitted, "{xn:02b} {xnx} {access:?}");
            }
        }
    }
}

/// [BR5]: a walk of stage 1 is a data access, even if a fetch caused it.
#[test]
fn reading_a_stage_1_descriptor_needs_no_right_to_execute() {
    let mut memory = three_levels(OUTPUT | PAGE | RW | 0b10 << 53);
    assert!(go(VTCR, Access::WalkRead, &mut memory).is_ok());
    assert!(go(VTCR, Access::WalkUpdate, &mut memory).is_ok());
}

/// HCR_EL2.PTW: a walk of stage 1 in device memory is a permission fault.
#[test]
fn protected_walks_do_not_touch_device_memory() {
    const PTW: u64 = 1 << 2;
    const TGE: u64 = 1 << 27;
    const FWB: u64 = 1 << 46;
    const DEVICE: u64 = 0b0001 << 2;
    const NORMAL: u64 = 0b1111 << 2;
    // Device memory only by the rules without FWB; with FWB bit 4 of the descriptor says so.
    const DEVICE_BY_FWB: u64 = 0b1001 << 2;
    for (hcr, memattr, access, permitted) in [
        (PTW, DEVICE, Access::WalkRead, false),
        (PTW, DEVICE, Access::WalkUpdate, false),
        (PTW, DEVICE, Access::AtWalkRead, false),
        (PTW, DEVICE, Access::Read, true),
        (PTW, NORMAL, Access::WalkRead, true),
        (PTW, DEVICE_BY_FWB, Access::WalkRead, true),
        (PTW | FWB, DEVICE_BY_FWB, Access::WalkRead, false),
        (0, DEVICE, Access::WalkRead, true),
        (PTW | TGE, DEVICE, Access::WalkRead, true),
    ] {
        let config = Stage2Config::new(VTCR, ROOT, VM | hcr, false, &FEATURES);
        let mut memory = three_levels(OUTPUT | PAGE | RW | memattr);
        let outcome = walk(&config, L2Ipa::new(IPA), access, &mut memory);
        assert_eq!(
            outcome.is_ok(),
            permitted,
            "{hcr:#x} {memattr:#x} {access:?}"
        );
    }
}

#[test]
fn big_endian_tables_are_read_and_marked_in_their_order() {
    let clean = OUTPUT | PAGE | READ;
    let mut memory = Fake::new();
    memory
        .put(ROOT + (IPA >> 30) * 8, (LEVEL2 | TABLE).swap_bytes())
        .put(entry(LEVEL2, IPA, 21), (LEVEL3 | TABLE).swap_bytes())
        .put(leaf_at(), clean.swap_bytes());
    let config = Stage2Config::new(VTCR | HA, ROOT, VM, true, &FEATURES);
    let found = walk(&config, L2Ipa::new(IPA), Access::Read, &mut memory).expect("mapped");
    assert_eq!(found.translation.output, Ipa::new(OUTPUT | 0xabc));
    assert_eq!(memory.get(leaf_at()), (clean | AF).swap_bytes());
}

#[test]
fn the_contiguous_hint_widens_what_is_reported() {
    for (page, bytes) in [
        // IPA lies in page 8 of its group of 16.
        (0x9abc_8000, 64 << 10),
        // Misprogrammed: it is page 13 of the output's group. The hint is not believed.
        (0x9abc_d000, 4 << 10),
    ] {
        let mut memory = three_levels(page | PAGE | RW | CONTIGUOUS);
        let found = go(VTCR, Access::Read, &mut memory)
            .expect("mapped")
            .translation;
        assert_eq!((found.output, found.bytes), (Ipa::new(page | 0xabc), bytes));
        assert_eq!(found.leaf_bytes, 4 << 10);
        assert_eq!(found.is_contiguous(), bytes != 4 << 10);
    }
}

/// A group bigger than the input space cannot be: the hint is not believed.
#[test]
fn the_contiguous_hint_is_bounded_by_the_input_size() {
    // 16 blocks of 1 GiB need 34 bits; there are 33.
    for (bits, bytes) in [(33, 1 << 30), (34, 16 << 30)] {
        let vtcr = (64 - bits) | 1 << 6 | PS_48;
        let mut memory = Fake::new();
        memory.put(0x40_0000, BLOCK | RW | CONTIGUOUS);
        let config = config(vtcr, 0x40_0000, &FEATURES);
        let found = walk(&config, L2Ipa::new(0x123), Access::Read, &mut memory).expect("mapped");
        assert_eq!(found.translation.bytes, bytes);
    }
}

#[test]
fn blocks_and_addresses_of_52_bits() {
    // 4 KiB with DS: 512 GiB at level 0, bits 51:50 of the output in 9:8, 49:48 in place.
    let mut memory = Fake::new();
    memory.put(0x40_0000, BLOCK | AF | READ | 0b10 << 8 | 1 << 48);
    let ds = config(20 | 2 << 6 | PS_52 | DS, 0x40_0000, &FEATURES);
    let found = walk(&ds, L2Ipa::new(0x55), Access::Read, &mut memory).expect("mapped");
    assert_eq!(found.translation.output, Ipa::new(1 << 51 | 1 << 48 | 0x55));
    assert_eq!(found.translation.leaf_bytes, 512 << 30);
    // 64 KiB with FEAT_LPA: 4 TiB at level 1, bits 51:48 in 15:12.
    let mut memory = Fake::new();
    memory.put(0x40_0000, BLOCK | AF | READ | 0b1001 << 12);
    let lpa = config(16 | 2 << 6 | 1 << 14 | PS_52, 0x40_0000, &FEATURES);
    let found = walk(&lpa, L2Ipa::new(0x55), Access::Read, &mut memory).expect("mapped");
    assert_eq!(found.translation.output, Ipa::new(1 << 51 | 1 << 48 | 0x55));
    assert_eq!(found.translation.leaf_bytes, 4 << 40);
    // The same with an output size of 48 bits: out of range.
    let narrow = config(16 | 2 << 6 | 1 << 14 | PS_48, 0x40_0000, &FEATURES);
    let outcome = walk(&narrow, L2Ipa::new(0x55), Access::Read, &mut memory);
    assert_eq!(outcome, fault(FaultKind::AddressSize, Level::L1));
    // VTTBR_EL2[5:2] are bits 51:48 of the base, which then is aligned to 64 bytes.
    let mut memory = Fake::new();
    let high = config(16 | 2 << 6 | 1 << 14 | PS_52, 0x40_0000 | 1 << 2, &FEATURES);
    let outcome = walk(&high, L2Ipa::new(0), Access::Read, &mut memory);
    assert_eq!(memory.reads, [1 << 48 | 0x40_0000]);
    assert!(outcome.is_err());
}

#[test]
fn an_unreadable_descriptor_is_an_external_abort_at_its_level() {
    for (entry, level) in [
        (ROOT + (IPA >> 30) * 8, Level::L1),
        (entry(LEVEL2, IPA, 21), Level::L2),
        (leaf_at(), Level::L3),
    ] {
        let external = Ok(GuestFault {
            kind: FaultKind::ExternalOnWalk,
            level,
        });
        let mut memory = three_levels(OUTPUT | PAGE | RW);
        memory.poison(entry);
        let stop = go(VTCR, Access::Read, &mut memory).expect_err("poison");
        assert_eq!(stop.fault(), external);
        assert_eq!(stop.poisoned(), Some(Ipa::new(entry)));

        let mut memory = three_levels(OUTPUT | PAGE | RW);
        memory.send_away(entry);
        let stop = go(VTCR, Access::Read, &mut memory).expect_err("away");
        assert_eq!(stop.fault(), Err(Again::Memory(Ipa::new(entry))));
        assert_eq!(stop.poisoned(), None);
    }
    let nowhere = config(VTCR & !(7 << 16) | PS_48, RAM_END | ROOT, &FEATURES);
    let stop = walk(&nowhere, L2Ipa::new(0), Access::Read, &mut Fake::new());
    assert_eq!(
        stop,
        Err(Stop::Memory {
            at: Ipa::new(RAM_END | ROOT),
            level: Level::L1,
            error: MemoryError::NotMapped,
        })
    );
}

#[test]
fn a_descriptor_that_cannot_be_marked_is_an_external_abort() {
    let mut memory = three_levels(OUTPUT | PAGE | READ);
    memory.make_read_only(leaf_at());
    let stop = go(VTCR | HA, Access::Read, &mut memory).expect_err("read-only");
    assert_eq!(
        stop.fault().map(|fault| fault.kind),
        Ok(FaultKind::ExternalOnWalk)
    );
    let mut memory = three_levels(OUTPUT | PAGE | READ | AF);
    memory.make_read_only(leaf_at());
    assert!(
        go(VTCR | HA, Access::Read, &mut memory).is_ok(),
        "nothing to mark"
    );
}

#[test]
fn a_descriptor_that_changes_under_the_walk_is_judged_again() {
    // Another CPU takes the page away right before the access flag is set.
    let mut memory = three_levels(OUTPUT | PAGE | READ);
    memory.race(|_| 0);
    let outcome = go(VTCR | HA, Access::Read, &mut memory);
    assert_eq!(outcome, fault(FaultKind::Translation, Level::L3));
    // It makes the page read-only, or moves it.
    let mut memory = three_levels(OUTPUT | PAGE | READ | WRITE);
    memory.race(|word| word & !WRITE);
    let outcome = go(VTCR | HA, Access::Write, &mut memory);
    assert_eq!(outcome, fault(FaultKind::Permission, Level::L3));
    let mut memory = three_levels(OUTPUT | PAGE | READ);
    memory.race(|word| word & 0xfff | 0x5000_0000);
    let found = go(VTCR | HA, Access::Read, &mut memory).expect("moved");
    assert_eq!(found.translation.output, Ipa::new(0x5000_0abc));
    assert_eq!(memory.get(leaf_at()), 0x5000_0000 | PAGE | READ | AF);
}

#[test]
fn endless_contention_ends() {
    let rival = || {
        let mut memory = three_levels(OUTPUT | PAGE | READ);
        memory.race(|word| word ^ 1 << 55);
        memory
    };
    let mut memory = rival();
    let stop = go(VTCR | HA, Access::Read, &mut memory).expect_err("contended");
    assert_eq!(stop.fault(), Err(Again::Contended));
    assert!(memory.reads.len() < 100);
    // An AT may leave the access flag clear, and completes.
    for access in [Access::AtRead, Access::AtWalkRead] {
        let found = go(VTCR | HA, access, &mut rival()).expect("complete");
        assert!(!found.translation.accessed);
    }
}

#[test]
fn a_probe_changes_nothing_and_forbids_nothing() {
    let mut memory = three_levels(OUTPUT | PAGE | READ | DBM);
    for vtcr in [VTCR, VTCR | HA | HD] {
        let found = go(vtcr, Access::Probe, &mut memory)
            .expect("there")
            .translation;
        assert!(!found.accessed && found.rights.read && !found.rights.write);
    }
    assert!(memory.writes.is_empty());
    let missing = go(VTCR, Access::Probe, &mut three_levels(0));
    assert_eq!(missing, fault(FaultKind::Translation, Level::L3));
}

#[test]
fn a_granule_that_is_not_there_is_replaced() {
    let only_64k = Granules {
        k4: Support::Absent,
        k16: Support::Absent,
        k64: Support::Present,
    };
    let features = Features {
        stage2: only_64k,
        ..FEATURES
    };
    for tg in 0..4 {
        let config = config(24 | 1 << 6 | tg << 14 | PS_48, ROOT, &features);
        assert_eq!(config.granule(), Some(Granule::K64), "{tg}");
    }
    let reserved = config(VTCR | 3 << 14, ROOT, &FEATURES);
    assert_eq!(reserved.granule(), Some(Granule::K4));
}
