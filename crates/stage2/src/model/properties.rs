//! Random sequences of operations, under every configuration.

use proptest::{collection::vec, prelude::*};
use umbra_arm64::Granule;

use super::{
    harness::{Harness, Op},
    mmu::Regime,
    stream::USER,
};
use crate::{Format, Geometry, Memory, Rights, S2};

/// Page-aligned addresses that crowd round the places where tables of each level meet.
fn address(granule: Granule, geometry: Geometry) -> impl Strategy<Value = u64> {
    let (page, block) = (granule.bytes(), granule.level_bytes(umbra_arm64::Level::L2));
    let bases = [0, (1 << 30) - block, geometry.input_bytes() - 2 * block];
    (
        prop::sample::select(bases.to_vec()),
        0..2u64,
        0..6u64,
        any::<bool>(),
    )
        .prop_map(move |(base, half, n, from_end)| {
            let within = if from_end {
                block - (n + 1) * page
            } else {
                n * page
            };
            base + half * block + within
        })
}

fn bytes(granule: Granule) -> impl Strategy<Value = u64> {
    let (page, block) = (granule.bytes(), granule.level_bytes(umbra_arm64::Level::L2));
    prop_oneof![
        (1..5u64).prop_map(move |n| n * page),
        Just(block),
        (0..3u64).prop_map(move |n| block + n * page)
    ]
}

fn rights() -> impl Strategy<Value = Rights> {
    (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(read, write, exec_el0, exec_el1)| Rights {
            read,
            write,
            exec_el0,
            exec_el1,
        })
}

fn op(granule: Granule, geometry: Geometry) -> impl Strategy<Value = Op> {
    let at = move || address(granule, geometry);
    let block = granule.level_bytes(umbra_arm64::Level::L2);
    let limit = geometry.input_bytes();
    let range =
        move || (at(), bytes(granule)).prop_map(move |(at, bytes)| (at, bytes.min(limit - at)));
    let sizes = prop_oneof![4 => Just(granule.bytes()), 3 => Just(block), 1 => Just(1u64 << 30)];
    let memory = prop_oneof![6 => Just(Memory::Normal), 1 => Just(Memory::Uncached), 1 => Just(Memory::Device)];
    prop_oneof![
        6 => (at(), sizes, 0..2u64, memory, rights(), any::<bool>()).prop_map(|(at, size, bank, memory, rights, later)| {
            let at = at & !(size - 1);
            Op::Map { at, size, pa: (bank << 42) + at, memory, rights, later }
        }),
        2 => (range(), any::<bool>()).prop_map(|((at, bytes), later)| Op::Unmap { at, bytes, later }),
        2 => (range(), rights(), any::<bool>()).prop_map(|((at, bytes), rights, later)| Op::Protect { at, bytes, rights, later }),
        1 => range().prop_map(|(at, bytes)| Op::Evict { at, bytes }),
        1 => range().prop_map(|(at, bytes)| Op::WriteProtect { at, bytes }),
        2 => (at(), any::<bool>()).prop_map(|(at, later)| Op::Split { at, later }),
        2 => (at(), any::<bool>()).prop_map(move |(at, later)| Op::Collapse { at, size: block, later }),
        1 => range().prop_map(|(at, bytes)| Op::Age { at, bytes }),
        3 => (0..4usize).prop_map(Op::Advance),
        1 => (0..3usize).prop_map(Op::FailAlloc),
    ]
}

fn run<F: Format>(
    format: F,
    regime: Regime,
    geometry: Geometry,
    ops: &[Op],
) -> Result<(), TestCaseError> {
    let mut harness = Harness::new(format, regime, geometry);
    for op in ops {
        harness.step(*op).map_err(TestCaseError::fail)?;
        if let Op::Map { at, .. } = op {
            harness.touch(*at);
        }
    }
    harness.destroy().map_err(TestCaseError::fail)
}

fn sequence(granule: Granule, geometry: Geometry) -> impl Strategy<Value = std::vec::Vec<Op>> {
    vec(op(granule, geometry), 1..40)
}

fn stage2(granule: Granule, bits: u32) -> Geometry {
    Geometry::stage2(granule, bits).expect("a valid size")
}

fn user(bits: u32) -> Geometry {
    Geometry::stage1(Granule::K4, bits).expect("a valid size")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stage2_of_32_bits(ops in sequence(Granule::K4, stage2(Granule::K4, 32))) {
        run(S2 { xnx: true }, Regime::Stage2, stage2(Granule::K4, 32), &ops)?;
    }

    #[test]
    fn stage2_of_40_bits(ops in sequence(Granule::K4, stage2(Granule::K4, 40))) {
        run(S2 { xnx: true }, Regime::Stage2, stage2(Granule::K4, 40), &ops)?;
    }

    #[test]
    fn user_of_40_bits(ops in sequence(Granule::K4, user(40))) {
        run(USER, Regime::User, user(40), &ops)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stage2_with_16k_pages(ops in sequence(Granule::K16, stage2(Granule::K16, 40))) {
        run(S2 { xnx: true }, Regime::Stage2, stage2(Granule::K16, 40), &ops)?;
    }
}
