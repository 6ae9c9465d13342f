//! Pages of a table that go bad.

use core::sync::atomic::Ordering::Acquire;
use std::{vec, vec::Vec};

use umbra_arm64::{Granule, Ipa, Pa, Rights, Tag, Vmid};

use super::fake::FakeTables;
use crate::{Attrs, Canonical, Config, Geometry, S2, Tables};

const BLOCK: u64 = 2 << 20;

fn table(tables: &FakeTables) -> Canonical {
    let config = Config {
        geometry: Geometry::stage2(Granule::K4, 40).unwrap(),
        output_bits: 48,
        format: S2 { xnx: false },
        tag: Tag::Vmid(Vmid::new(7)),
    };
    let mut table = Canonical::new(config, tables).unwrap();
    // Two GiBs, pages and blocks in each.
    for at in [0, 4096, BLOCK, 1 << 30, (1 << 30) + 3 * BLOCK + 4096] {
        let bytes = if at == BLOCK { BLOCK } else { 4096 };
        let attrs = Attrs::normal(Rights {
            read: true,
            write: true,
            exec_el0: false,
            exec_el1: false,
        });
        let pa = Pa::new(0x10_0000_0000 + at);
        assert!(table.map(Ipa::new(at), pa, bytes, attrs, tables).is_ok());
    }
    table
}

fn leaves(table: &Canonical, tables: &FakeTables) -> Vec<u64> {
    let mut found = vec![];
    table.visit(Ipa::new(0), 1 << 40, tables, |leaf| {
        found.push(leaf.addr.raw())
    });
    found
}

/// Every table page below the root.
fn pages(table: &mut Canonical, tables: &FakeTables) -> Vec<Pa> {
    let mut all = vec![];
    let healed = table.cut_unsound(
        tables,
        &mut |page| {
            all.push(page);
            true
        },
        &mut |_, _, _| {},
    );
    let nothing = healed.cuts == 0 && !healed.orphans && healed.old_root.is_none();
    assert!(nothing && healed.work.is_empty(), "nothing was refused");
    healed.work.finish(tables, |_| {});
    let mut seen = vec![];
    table.visit_tables(tables, &mut |page| seen.push(page));
    seen.sort_unstable();
    let mut asked = all.clone();
    asked.sort_unstable();
    assert_eq!(asked, seen, "every page was asked about");
    all.retain(|page| {
        !(0..table.geometry().root_tables()).any(|part| table.root_part(part) == *page)
    });
    all
}

#[test]
fn a_bad_page_costs_what_hangs_on_it() {
    let fresh = FakeTables::new(Granule::K4);
    let count = pages(&mut table(&fresh), &fresh).len();
    // Level 2 of each GiB, level 3 of three blocks.
    assert_eq!(count, 5);
    for bad in 0..count {
        let tables = FakeTables::new(Granule::K4);
        let mut table = table(&tables);
        let page = pages(&mut table, &tables)[bad];
        let before = leaves(&table, &tables);
        let mut told = vec![];
        let healed = table.cut_unsound(
            &tables,
            &mut |child| child != page,
            &mut |cut, at, bytes| told.push((cut, at, bytes)),
        );
        let mut requests = 0;
        healed.work.finish(&tables, |_| requests += 1);
        assert_eq!((healed.cuts, told.len(), requests), (1, 1, 1));
        assert!(healed.old_root.is_none());
        let (cut, at, bytes) = told[0];
        assert_eq!(cut, page);
        let after = leaves(&table, &tables);
        // What was told is what is gone, and all of it.
        let gone = |leaf: &u64| (at..at + bytes).contains(leaf);
        assert!(before.iter().all(|leaf| gone(leaf) != after.contains(leaf)));
        // A lost table of level 2 leaves those of level 3 behind.
        assert_eq!(healed.orphans, bytes > BLOCK);
        assert!(after.len() < before.len() && after.iter().all(|at| before.contains(at)));
        let bytes: u64 = after
            .iter()
            .map(|&at| if at == BLOCK { BLOCK } else { 4096 })
            .sum();
        assert_eq!(table.mapped_bytes(), bytes);
        assert_eq!(table.table_pages(), 2 + pages(&mut table, &tables).len());
        // What was lost is mapped again, and the table can be taken down.
        let attrs = Attrs::normal(Rights {
            read: true,
            write: false,
            exec_el0: false,
            exec_el1: false,
        });
        for at in before.into_iter().filter(|at| !after.contains(at)) {
            let bytes = if at == BLOCK { BLOCK } else { 4096 };
            let pa = Pa::new(0x20_0000_0000 + at);
            assert!(table.map(Ipa::new(at), pa, bytes, attrs, &tables).is_ok());
        }
        table.destroy(&tables).finish(&tables, |_| {});
    }
}

#[test]
fn a_misdirected_entry_is_found() {
    let tables = FakeTables::new(Granule::K4);
    let mut table = table(&tables);
    let nowhere = Pa::new(0x0c80_0000);
    for (near, left) in [(Some(Ipa::new(4096)), 3), (None, 2)] {
        let work = table.misdirect(near, nowhere, &tables).unwrap();
        work.finish(&tables, |_| {});
        let healed = table.cut_unsound(&tables, &mut |child| child != nowhere, &mut |_, _, _| {});
        healed.work.finish(&tables, |_| {});
        assert_eq!(healed.cuts, 1);
        assert_eq!(leaves(&table, &tables).len(), left);
    }
    let kept = table.table_pages();
    table.destroy(&tables).finish(&tables, |_| {});
    // What was lost is its owner's to find: level 3 of a block, level 2 of a GiB.
    assert_eq!((tables.live(), kept), (2, 5));
    let mut empty = Canonical::new(
        Config {
            geometry: Geometry::stage2(Granule::K4, 40).unwrap(),
            output_bits: 48,
            format: S2 { xnx: false },
            tag: Tag::Vmid(Vmid::new(7)),
        },
        &tables as &FakeTables,
    )
    .unwrap();
    assert!(empty.misdirect(None, nowhere, &tables).is_none());
    let _ = tables.table(empty.root());
}

/// A root of several pages, one of which is bad: the others' tables hang on the new one.
#[test]
fn a_bad_root_is_replaced() {
    let tables = FakeTables::new(Granule::K4);
    let mut table = table(&tables);
    let parts = table.geometry().root_tables();
    assert_eq!(parts, 2);
    let last = Ipa::new(1 << 39);
    let attrs = Attrs::normal(Rights {
        read: true,
        write: false,
        exec_el0: false,
        exec_el1: false,
    });
    let mapped = table.map(last, Pa::new(0x30_0000_0000), 4096, attrs, &tables);
    assert!(mapped.is_ok());
    let (old, tag) = (table.root(), table.tag());
    let mut told = vec![];
    let healed = table.cut_unsound(&tables, &mut |page| page != old, &mut |_, at, bytes| {
        told.push((at, bytes));
    });
    assert_eq!(
        (healed.cuts, healed.orphans, healed.old_root),
        (1, true, Some(old))
    );
    assert_eq!((healed.work.tag(), told), (tag, vec![(0, 1 << 39)]));
    healed.work.finish(&tables, |_| {});
    assert_ne!(table.root(), old);
    assert_eq!(leaves(&table, &tables), vec![last.raw()]);
    // Who still has the old one finds nothing in what could be read of it.
    let second = Pa::new(old.raw() + 4096);
    assert!(
        tables
            .table(second)
            .iter()
            .all(|slot| slot.load(Acquire) == 0)
    );
    // Without memory for another it stays.
    let sound = table.root();
    tables.fail_in.set(Some(0));
    let healed = table.cut_unsound(&tables, &mut |page| page != sound, &mut |_, _, _| {});
    assert_eq!(
        (healed.cuts, healed.old_root, table.root()),
        (0, None, sound)
    );
    healed.work.finish(&tables, |_| {});
    let live = tables.live();
    tables.free(old, parts);
    assert_eq!(tables.live(), live - parts);
    table.destroy(&tables).finish(&tables, |_| {});
}
