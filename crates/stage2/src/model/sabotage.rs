//! The checker is proved by breaking it: each scripted change passes as it is, and fails when any one
//! of its invalidations never reaches the hardware.

use std::{vec, vec::Vec};

use umbra_arm64::Granule;

use super::{
    harness::{Harness, Op},
    mmu::Regime,
};
use crate::{Geometry, Memory, Rights, S2};

const PAGE: u64 = 4 << 10;
const BLOCK: u64 = 2 << 20;

fn map(at: u64, size: u64, pa: u64, rights: Rights) -> Op {
    Op::Map {
        at,
        size,
        pa,
        memory: Memory::Normal,
        rights,
        later: false,
    }
}

fn play(script: &[Op], lost: Option<usize>) -> (Result<(), std::string::String>, usize) {
    let geometry = Geometry::stage2(Granule::K4, 40).expect("a valid size");
    let mut harness = Harness::new(S2 { xnx: true }, Regime::Stage2, geometry);
    harness.lost.extend(lost);
    let result = script.iter().try_for_each(|op| harness.step(*op));
    (result, harness.requests)
}

/// Each script with the number of invalidations that it makes.
fn scripts() -> Vec<(&'static str, Vec<Op>, usize)> {
    let (ro, rw) = (Rights::READ, Rights::READ_WRITE);
    // Neighbours, so that no table becomes empty and makes a leaf's invalidation redundant.
    let far = map(8 * BLOCK, BLOCK, 0, ro);
    let pages = [
        far,
        map(0, PAGE, 0, rw),
        map(PAGE, PAGE, BLOCK, rw),
        map(2 * PAGE, PAGE, 0, rw),
    ];
    let block = [map(BLOCK, BLOCK, BLOCK, rw)];
    let with = |start: &[Op], op: Op| start.iter().copied().chain([op]).collect::<Vec<_>>();
    vec![
        (
            "unmap a page",
            with(
                &pages,
                Op::Unmap {
                    at: PAGE,
                    bytes: PAGE,
                    later: false,
                },
            ),
            1,
        ),
        (
            "unmap two pages apart",
            with(
                &with(
                    &pages,
                    Op::Unmap {
                        at: 0,
                        bytes: PAGE,
                        later: false,
                    },
                ),
                Op::Unmap {
                    at: 2 * PAGE,
                    bytes: PAGE,
                    later: false,
                },
            ),
            2,
        ),
        (
            "unmap a whole table",
            with(
                &pages,
                Op::Unmap {
                    at: 0,
                    bytes: BLOCK,
                    later: false,
                },
            ),
            1,
        ),
        (
            "evict a block",
            with(
                &block,
                Op::Evict {
                    at: BLOCK + PAGE,
                    bytes: PAGE,
                },
            ),
            1,
        ),
        (
            "write-protect a page",
            with(
                &pages,
                Op::WriteProtect {
                    at: PAGE,
                    bytes: PAGE,
                },
            ),
            1,
        ),
        (
            "tighten a page",
            with(
                &pages,
                Op::Protect {
                    at: PAGE,
                    bytes: PAGE,
                    rights: ro,
                    later: false,
                },
            ),
            1,
        ),
        (
            "tighten by mapping",
            with(&pages, map(PAGE, PAGE, BLOCK, ro)),
            1,
        ),
        (
            "change an output",
            with(&pages, map(PAGE, PAGE, 5 * BLOCK, rw)),
            1,
        ),
        (
            "unmap within a block",
            with(
                &block,
                Op::Unmap {
                    at: BLOCK + PAGE,
                    bytes: PAGE,
                    later: false,
                },
            ),
            1,
        ),
        (
            "tighten within a block",
            with(
                &block,
                Op::Protect {
                    at: BLOCK,
                    bytes: PAGE,
                    rights: ro,
                    later: false,
                },
            ),
            1,
        ),
        (
            "split",
            with(
                &block,
                Op::Split {
                    at: BLOCK,
                    later: false,
                },
            ),
            1,
        ),
        (
            "unmap the last page of a table",
            vec![
                far,
                map(0, PAGE, 0, rw),
                Op::Unmap {
                    at: 0,
                    bytes: PAGE,
                    later: false,
                },
            ],
            1,
        ),
        ("block over a table", with(&pages, map(0, BLOCK, 0, rw)), 1),
    ]
}

#[test]
fn scripts_pass_unharmed() {
    for (name, script, requests) in scripts() {
        let (result, made) = play(&script, None);
        assert_eq!((result, made), (Ok(()), requests), "{name}");
    }
}

#[test]
fn every_lost_invalidation_is_caught() {
    for (name, script, requests) in scripts() {
        for lost in 0..requests {
            let (result, _) = play(&script, Some(lost));
            assert!(result.is_err(), "{name}: nobody missed invalidation {lost}");
        }
    }
}
