//! The books against a plain list, and what they cost.

extern crate std;

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

use super::*;
use crate::shadow::{ContextKey, Pool};

/// Ids as the pool gives them out.
fn contexts(count: u64) -> Vec<ContextId> {
    let mut pool = Pool::new();
    (0..count)
        .map(|n| pool.insert(ContextKey::new(n << 48, 0, 1), ()).unwrap())
        .collect()
}

fn page(context: ContextId, at: u64, ipa: u64) -> Place {
    Place {
        context,
        at: L2Ipa::new(at),
        ipa: Ipa::new(ipa),
        size: Size::Page,
        leaf_shift: 12,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        context: usize,
        at: u64,
        ipa: u64,
        size: Size,
        leaf: u8,
    },
    Pop {
        context: usize,
        at: u64,
        bytes: u64,
    },
    PopLeaf {
        context: usize,
        at: u64,
    },
    PopMapping {
        ipa: u64,
        bytes: u64,
    },
}

fn address() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..3, 0u64..20).prop_map(|(giga, mega, page)| giga << 30 | mega << 21 | page << 12)
}

fn step() -> impl Strategy<Value = Step> {
    let context = 0usize..3;
    let bytes = prop::sample::select(std::vec![4096u64, 0x5000, 1 << 21, 1 << 30, 1 << 48]);
    let size = prop::sample::select(std::vec![
        Size::Page,
        Size::Page,
        Size::Page,
        Size::Block,
        Size::Giant
    ]);
    let leaf = prop::sample::select(std::vec![12u8, 12, 16, 21, 25, 30, 34]);
    prop_oneof![
        6 => (context.clone(), address(), address(), size, leaf).prop_map(|(context, at, ipa, size, leaf)| {
            let (at, ipa) = (at & !(size.bytes() - 1), ipa & !(size.bytes() - 1));
            let leaf = leaf.max(size.bytes().trailing_zeros() as u8);
            Step::Insert { context, at, ipa, size, leaf }
        }),
        1 => (context.clone(), address(), bytes.clone()).prop_map(|(context, at, bytes)| Step::Pop { context, at, bytes }),
        2 => (context, address()).prop_map(|(context, at)| Step::PopLeaf { context, at }),
        1 => (address(), bytes).prop_map(|(ipa, bytes)| Step::PopMapping { ipa, bytes }),
    ]
}

fn meets(start: u64, size: Size, from: u64, end: u64) -> bool {
    start < end && start + size.bytes() > from
}

fn all(places: &Places, ids: &[ContextId]) -> BTreeSet<Place> {
    let mut seen = BTreeSet::new();
    for id in ids {
        places.for_each(*id, L2Ipa::new(0), 1 << 48, |place| {
            assert!(seen.insert(place));
        });
    }
    let mut behind = BTreeSet::new();
    places.for_each_mapping(Ipa::new(0), 1 << 48, |place| {
        assert!(behind.insert(place));
    });
    assert_eq!(seen, behind, "both ends find the same");
    assert_eq!(seen.len(), places.len());
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_list(steps in prop::collection::vec(step(), 1..60)) {
        let ids = contexts(3);
        let (mut places, mut model) = (Places::new(), BTreeSet::<Place>::new());
        for step in steps {
            match step {
                Step::Insert { context, at, ipa, size, leaf } => {
                    let place = Place { context: ids[context], at: L2Ipa::new(at), ipa: Ipa::new(ipa), size, leaf_shift: leaf };
                    let same = |other: &Place| (other.context, other.at, other.size, other.ipa) == (place.context, place.at, place.size, place.ipa);
                    let known = model.iter().any(same);
                    if !known {
                        while let Some(gone) = places.pop(ids[context], place.at, at + size.bytes()) {
                            prop_assert!(model.remove(&gone));
                        }
                    }
                    model.retain(|other| !same(other));
                    let outcome = places.insert(place).unwrap();
                    prop_assert_eq!(outcome, if known { Insert::Known } else { Insert::Done });
                    model.insert(place);
                    prop_assert_eq!(places.find(ids[context], L2Ipa::new(at + size.bytes() - 1)), Some(place));
                }
                Step::Pop { context, at, bytes } => {
                    while let Some(gone) = places.pop(ids[context], L2Ipa::new(at), at + bytes) {
                        prop_assert!(model.remove(&gone) && meets(gone.at.raw(), gone.size, at, at + bytes));
                    }
                    prop_assert!(!model.iter().any(|place| place.context == ids[context] && meets(place.at.raw(), place.size, at, at + bytes)));
                }
                Step::PopLeaf { context, at } => {
                    let mut cursor = 0;
                    while let Some(gone) = places.pop_leaf(ids[context], L2Ipa::new(at), &mut cursor) {
                        prop_assert!(model.remove(&gone) && gone.leaf_maps(L2Ipa::new(at)), "exactly the leaf: {gone:?} for {at:#x}");
                    }
                    prop_assert!(!model.iter().any(|place| place.context == ids[context] && place.leaf_maps(L2Ipa::new(at))));
                }
                Step::PopMapping { ipa, bytes } => {
                    while let Some(gone) = places.pop_mapping(Ipa::new(ipa), bytes) {
                        prop_assert!(model.remove(&gone) && meets(gone.ipa.raw(), gone.size, ipa, ipa + bytes));
                    }
                    prop_assert!(!model.iter().any(|place| meets(place.ipa.raw(), place.size, ipa, ipa + bytes)));
                }
            }
            prop_assert_eq!(&all(&places, &ids), &model);
        }
        while let Some(gone) = places.pop_mapping(Ipa::new(0), 1 << 48) {
            prop_assert!(model.remove(&gone));
        }
        prop_assert!(places.is_empty() && places.reverse.tables() <= 1);
        prop_assert!(places.forward.iter().all(|forward| forward.index.tables() <= 1));
    }
}

#[test]
fn a_page_that_is_mapped_everywhere_is_bounded() {
    let ids = contexts(1);
    let mut places = Places::new();
    for n in 0..1000u64 {
        let place = page(ids[0], n << 12, 0x8000_0000);
        match places.insert(place).unwrap() {
            Insert::Crowded(other) => {
                assert!(n >= u64::from(CROWD) && other != place);
                assert_eq!(places.find(ids[0], other.at), None);
            }
            outcome => assert!(outcome == Insert::Done && n < u64::from(CROWD)),
        }
    }
    assert_eq!(places.len(), CROWD as usize);
}

/// The cost of taking one page back, in tables and lists looked at, does not depend on how much else
/// is mapped.
#[test]
fn one_page_costs_its_mappings() {
    let cost = |pages: u64| {
        let ids = contexts(2);
        let mut places = Places::new();
        for n in 0..pages {
            for (at, id) in ids.iter().enumerate() {
                let at = (n << 12) + ((at as u64) << 40);
                places.insert(page(*id, at, n << 12)).unwrap();
            }
        }
        super::super::radix::steps_since();
        let mut taken = 0;
        while let Some(place) = places.pop_mapping(Ipa::new((pages / 2) << 12), 4096) {
            assert_eq!(place.ipa, Ipa::new((pages / 2) << 12));
            taken += 1;
        }
        assert_eq!(taken, 2);
        super::super::radix::steps_since()
    };
    let (small, large) = (cost(16 << 20 >> 12), cost(1 << 30 >> 12));
    assert_eq!(small, large, "16 MiB and 1 GiB");
    assert!(small < 200, "{small}");
}

#[test]
fn a_leaf_of_unknown_level_costs_the_leaf() {
    let ids = contexts(1);
    let mut places = Places::new();
    // 1 GiB of leaves of 4 KiB, and one leaf of 2 MiB that is mapped in pages.
    for n in 0..(1u64 << 18) {
        let leaf_shift = if n >> 9 == 7 { 21 } else { 12 };
        let place = Place {
            leaf_shift,
            ..page(ids[0], n << 12, n << 12)
        };
        places.insert(place).unwrap();
    }
    let mut pops = |at: u64| {
        super::super::radix::steps_since();
        let (mut cursor, mut count) = (0, 0);
        while places
            .pop_leaf(ids[0], L2Ipa::new(at), &mut cursor)
            .is_some()
        {
            count += 1;
        }
        (count, super::super::radix::steps_since())
    };
    let (count, steps) = pops(0x0010_0000);
    assert!(count == 1 && steps < 100, "{count} {steps}");
    let (count, _) = pops(7 << 21 | 0x5000);
    assert_eq!(count, 512);
    let (count, _) = pops(7 << 21);
    assert_eq!(count, 0);
}
