//! The frame table, a small one on the host.

extern crate std;
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn everything_added_can_be_taken_once() {
    let words = words(1000);
    let base = Pa::new(0x4000_0000);
    let mut frames = Frames::new(&words, base);
    frames.add(Pa::new(0x4000_3001), Pa::new(0x4000_0000 + 999 * FRAME + 5));
    assert_eq!(frames.total_frames(), 999 - 4);
    let mut seen = Vec::new();
    while let Some(pa) = frames.allocate(0, Pool::Plain, Owner::Anonymous) {
        assert!(!seen.contains(&pa));
        seen.push(pa);
    }
    assert_eq!(seen.len() as u64, frames.total_frames());
    for pa in seen {
        assert_eq!(frames.release(pa), Released::Freed);
    }
    assert_eq!(frames.free_frames(Pool::Plain), frames.total_frames());
    assert!(frames.allocate(8, Pool::Plain, Owner::Heap).is_some());
}

#[test]
fn the_largest_blocks_are_counted_taken_and_joined_again() {
    // Two gigabytes, the first short of its first page.
    let words = words(2 << MAX_ORDER);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(FRAME), Pa::new((2 << MAX_ORDER) * FRAME));
    let plain = Pool::Plain;
    assert_eq!(frames.free_blocks(MAX_ORDER, plain), 1);
    assert_eq!(frames.free_blocks(CHUNK_ORDER, plain), 1023);
    let giant = frames.allocate(MAX_ORDER, plain, Owner::Anonymous).unwrap();
    assert_eq!(giant, Pa::new(1 << 30));
    assert_eq!(frames.free_blocks(MAX_ORDER, plain), 0);
    assert_eq!(frames.free_blocks(CHUNK_ORDER, plain), 511);
    let inside = Pa::new((1 << 30) + 0x1234_5000);
    assert_eq!(
        frames.block_of(inside),
        Some((giant, MAX_ORDER, Owner::Anonymous))
    );
    frames.split(giant);
    for page in 0..1 << MAX_ORDER {
        frames.release(Pa::new((1 << 30) + page * FRAME));
    }
    assert_eq!(frames.free_blocks(MAX_ORDER, plain), 1);
}

#[test]
fn a_split_block_is_freed_frame_by_frame() {
    let words = words(1024);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(0), Pa::new(1024 * FRAME));
    let block = frames.allocate(9, Pool::Plain, Owner::Anonymous).unwrap();
    frames.split(block);
    for n in 0..512 {
        assert_eq!(
            frames
                .block_of(Pa::new(block.raw() + n * FRAME + 7))
                .unwrap()
                .1,
            0
        );
        assert_eq!(
            frames.release(Pa::new(block.raw() + n * FRAME)),
            Released::Freed
        );
    }
    assert_eq!(
        frames.allocate(10, Pool::Plain, Owner::Anonymous),
        Some(Pa::new(0))
    );
}

#[test]
fn a_converted_chunk_serves_the_table_pool_only() {
    let words = words(1024);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(0), Pa::new(1024 * FRAME));
    assert_eq!(frames.allocate(0, Pool::Table, Owner::Table), None);
    let chunk = frames
        .allocate(CHUNK_ORDER, Pool::Plain, Owner::Kernel)
        .unwrap();
    frames.convert(chunk);
    let page = frames.allocate(0, Pool::Table, Owner::Table).unwrap();
    assert_eq!(page.align_down(FRAME << CHUNK_ORDER), chunk);
    assert_eq!(frames.block_of(page), Some((page, 0, Owner::Table)));
    frames.release(page);
    assert_eq!(frames.free_frames(Pool::Table), 512);
    assert_eq!(frames.free_frames(Pool::Plain), 512);
}

#[test]
fn a_bad_frame_costs_its_page_and_never_comes_back() {
    for bad in [0, 7, 200, 511] {
        for state in ["free", "block", "pages", "converted"] {
            let words = words(1024);
            let mut frames = Frames::new(&words, Pa::new(0));
            frames.add(Pa::new(0), Pa::new(1024 * FRAME));
            let pa = Pa::new(bad * FRAME + 0x123);
            let chunk = frames.allocate(9, Pool::Plain, Owner::Anonymous).unwrap();
            assert_eq!(chunk, Pa::new(0));
            match state {
                "free" => {
                    frames.release(chunk);
                    assert_eq!(frames.retire(pa), Standing::Free);
                }
                "block" => {
                    assert_eq!(frames.retire(pa), Standing::Owned(Owner::Anonymous));
                    assert_eq!(frames.retire(pa), Standing::Owned(Owner::Anonymous));
                    assert!(frames.is_bad(pa));
                    assert_eq!(frames.retired_frames(), 0);
                    frames.release(chunk);
                }
                "pages" => {
                    frames.retire(pa);
                    frames.split(chunk);
                    for n in 0..512 {
                        assert_eq!(frames.is_bad(Pa::new(n * FRAME)), n == bad);
                        frames.release(Pa::new(n * FRAME));
                    }
                }
                _ => {
                    frames.retire(pa);
                    frames.convert(chunk);
                }
            }
            assert_eq!(
                (frames.retire(pa), frames.is_bad(pa)),
                (Standing::Retired, true)
            );
            assert_eq!(frames.retired_frames(), 1);
            let free = frames.free_frames(Pool::Plain) + frames.free_frames(Pool::Table);
            assert_eq!(free, 1023, "{state} {bad}");
            let mut seen = 0;
            for pool in [Pool::Plain, Pool::Table] {
                while let Some(got) = frames.allocate(0, pool, Owner::Anonymous) {
                    assert_ne!(got, pa.align_down(FRAME));
                    seen += 1;
                }
            }
            assert_eq!(seen, 1023);
        }
    }
}

#[test]
fn what_is_not_ram_is_not_retired() {
    let words = words(8);
    let mut frames = Frames::new(&words, Pa::new(0x4000_0000));
    assert_eq!(frames.retire(Pa::new(0x0c80_0000)), Standing::Reserved);
    assert_eq!(frames.retire(Pa::new(0x4000_0000)), Standing::Reserved);
    assert!(!frames.is_bad(Pa::new(0x4000_0000)));
}

#[test]
fn what_was_left_behind_is_found_by_its_label() {
    let words = words(1024);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(0), Pa::new(1024 * FRAME));
    let mut take = |order, label| {
        let pa = frames.allocate(order, Pool::Plain, Owner::Anonymous);
        frames.label(pa.unwrap(), label);
        pa.unwrap()
    };
    let (block, page, other) = (take(9, 5), take(0, 5), take(0, 6));
    let (lost, bad) = (take(3, 5), take(0, 5));
    let unlabelled = frames.allocate(0, Pool::Plain, Owner::Heap).unwrap();
    frames.split(block);
    frames.hold(lost);
    frames.retire(bad);
    for kept in [page, other, Pa::new(block.raw() + 17 * FRAME + 8)] {
        frames.mark(kept);
    }
    // 511 pages of the block, 8 of what was lost, the bad one.
    assert_eq!(frames.sweep(5), 520);
    for kept in [page, other, unlabelled, Pa::new(block.raw() + 17 * FRAME)] {
        assert!(frames.block_of(kept).is_some(), "{kept}");
    }
    for gone in [lost, block, bad] {
        assert!(frames.block_of(gone).is_none(), "{gone}");
    }
    assert_eq!(frames.retired_frames(), 1);
    assert_eq!(frames.free_frames(Pool::Plain), 1024 - 5);
    // A mark holds once.
    assert_eq!(frames.sweep(5), 2);
    assert_eq!((frames.sweep(6), frames.sweep(6)), (0, 1));
    assert_eq!(frames.references(unlabelled), 1);
}

#[test]
fn runs_and_frames_are_found_by_their_owner() {
    let words = words(1024);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(0), Pa::new(1024 * FRAME));
    let heap = frames.allocate(9, Pool::Plain, Owner::Heap).unwrap();
    let more = frames.allocate(3, Pool::Plain, Owner::Heap).unwrap();
    let table = frames.allocate(0, Pool::Plain, Owner::Table).unwrap();
    frames.label(table, 7);
    let mut seen = Vec::new();
    frames.for_each_run(|start, end, owner| seen.push((start.raw(), end.raw(), owner)));
    assert_eq!((heap.raw(), more.raw()), (0, 512 * FRAME));
    let end = 520 * FRAME;
    let page = (table.raw(), table.raw() + FRAME, Owner::Table);
    assert_eq!(seen, [(0, end, Owner::Heap), page]);
    for nth in [0, 5] {
        assert_eq!(
            frames.nth_of(Owner::Table, nth, |label| label == 7),
            Some(table)
        );
    }
    assert_eq!(frames.nth_of(Owner::Table, 0, |label| label == 8), None);
    frames.retire(table);
    assert_eq!(frames.nth_of(Owner::Table, 0, |_| true), None);
}

#[test]
fn references_keep_a_block() {
    let words = words(16);
    let mut frames = Frames::new(&words, Pa::new(0));
    frames.add(Pa::new(0), Pa::new(16 * FRAME));
    let pa = frames.allocate(1, Pool::Plain, Owner::Anonymous).unwrap();
    frames.hold(pa);
    assert_eq!(frames.references(pa), 2);
    assert_eq!(frames.release(pa), Released::Shared);
    assert_eq!(frames.release(pa), Released::Freed);
}

proptest! {
    #[test]
    fn blocks_never_overlap(operations in prop::collection::vec((0u8..6, 0usize..64, any::<bool>()), 1..200)) {
        let words = words(512);
        let mut frames = Frames::new(&words, Pa::new(0x8000_0000));
        frames.add(Pa::new(0x8000_0000), Pa::new(0x8000_0000 + 500 * FRAME));
        let mut held: Vec<(Pa, u8)> = Vec::new();
        for (order, pick, take) in operations {
            if take {
                if let Some(pa) = frames.allocate(order, Pool::Plain, Owner::Anonymous) {
                    prop_assert!(pa.is_aligned(FRAME << order));
                    for &(other, size) in &held {
                        let disjoint = pa.raw() + (FRAME << order) <= other.raw() || other.raw() + (FRAME << size) <= pa.raw();
                        prop_assert!(disjoint, "{pa:?} overlaps {other:?}");
                    }
                    held.push((pa, order));
                }
            } else if !held.is_empty() {
                let (pa, order) = held.swap_remove(pick % held.len());
                prop_assert_eq!(frames.block_of(pa).map(|block| block.1), Some(order));
                frames.release(pa);
            }
            let used: u64 = held.iter().map(|&(_, order)| 1u64 << order).sum();
            prop_assert_eq!(frames.free_frames(Pool::Plain) + used, 500);
        }
        for (pa, _) in held {
            frames.release(pa);
        }
        prop_assert_eq!(frames.free_frames(Pool::Plain), 500);
    }
}
