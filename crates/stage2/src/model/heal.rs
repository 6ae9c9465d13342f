//! Pages of a table that go bad.

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
    let (cuts, work) = table.cut_unsound(
        tables,
        &mut |page| {
            all.push(page);
            true
        },
        &mut |_| {},
    );
    assert!(cuts == 0 && work.is_empty(), "nothing was refused");
    work.finish(tables, |_| {});
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
        let (cuts, work) = table.cut_unsound(&tables, &mut |child| child != page, &mut |cut| {
            told.push(cut)
        });
        let mut requests = 0;
        work.finish(&tables, |_| requests += 1);
        assert_eq!((cuts, told, requests), (1, vec![page], 1));
        let after = leaves(&table, &tables);
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
    let work = table.misdirect(nowhere, &tables).unwrap();
    work.finish(&tables, |_| {});
    let (cuts, work) = table.cut_unsound(&tables, &mut |child| child != nowhere, &mut |_| {});
    work.finish(&tables, |_| {});
    assert_eq!(cuts, 1);
    assert_eq!(leaves(&table, &tables).len(), 2);
    table.destroy(&tables).finish(&tables, |_| {});
    assert_eq!(tables.live(), 0);
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
    assert!(empty.misdirect(nowhere, &tables).is_none());
    let _ = tables.table(empty.root());
}
