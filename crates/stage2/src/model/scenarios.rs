//! Cases by name: what a random sequence rarely meets, and what the caller must not do.

use std::{vec, vec::Vec};

use umbra_arm64::{Asid, Granule, Hva, Ipa, Level, Pa, Tag, Vmid};

use super::fake::FakeTables;
use crate::{
    Attrs, Canonical, Completed, Config, Cursor, El20, Geometry, MapError, Mapped, Memory,
    PageTable, Rights, S2, Scope, TlbRequest, User,
};

const PAGE: u64 = 4 << 10;
const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const RW: Attrs = Attrs {
    accessed: false,
    ..Attrs::normal(Rights::READ_WRITE)
};

fn canonical() -> (Canonical, FakeTables) {
    let tables = FakeTables::new(Granule::K4);
    let config = Config {
        geometry: Geometry::stage2(Granule::K4, 40).unwrap(),
        output_bits: 40,
        format: S2 { xnx: true },
        tag: Tag::Vmid(Vmid::new(3)),
    };
    (PageTable::new(config, &tables).unwrap(), tables)
}

fn end(table: Canonical, tables: &FakeTables) {
    table.destroy(tables).finish(tables, |_| {});
    assert_eq!(tables.live(), 0);
}

fn fresh(table: &mut Canonical, tables: &FakeTables, addr: u64, pa: u64, size: u64) {
    let mapped = table.map(Ipa::new(addr), Pa::new(pa), size, RW, tables);
    assert!(matches!(mapped, Ok(Mapped::Fresh)), "{mapped:?}");
}

#[test]
fn lookup_tells_where_an_address_goes() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 4 * BLOCK, 0x80 * BLOCK, BLOCK);
    let leaf = table.lookup(Ipa::new(4 * BLOCK + 0x1234), &tables).unwrap();
    assert_eq!(
        (leaf.addr, leaf.pa, leaf.size, leaf.level),
        (Ipa::new(4 * BLOCK), Pa::new(0x80 * BLOCK), BLOCK, Level::L2)
    );
    assert_eq!(leaf.attrs, RW);
    assert_eq!(
        leaf.output(Ipa::new(4 * BLOCK + 0x1234)),
        Some(Pa::new(0x80 * BLOCK + 0x1234))
    );
    assert_eq!(leaf.output(Ipa::new(5 * BLOCK)), None);
    assert_eq!(leaf.output(Ipa::new(0)), None);
    assert_eq!(table.lookup(Ipa::new(5 * BLOCK), &tables), None);
    assert_eq!(table.lookup(Ipa::new(1 << 40), &tables), None);
    assert_eq!(table.lookup(Ipa::new(u64::MAX), &tables), None);
    end(table, &tables);
}

#[test]
fn bad_requests_are_refused_and_change_nothing() {
    let (mut table, tables) = canonical();
    let cases = [
        (1, 0, PAGE, MapError::Misaligned),
        (0, 1, PAGE, MapError::Misaligned),
        (PAGE, 0, BLOCK, MapError::Misaligned),
        (0, PAGE, BLOCK, MapError::Misaligned),
        (0, 0, 0, MapError::Misaligned),
        (0, 0, 2 * PAGE, MapError::Misaligned),
        (0, 0, 1 << 39, MapError::Misaligned),
        (1 << 40, 0, PAGE, MapError::InputSize),
        (u64::MAX - PAGE + 1, 0, PAGE, MapError::InputSize),
        (0, 1 << 40, PAGE, MapError::OutputSize),
        (0, 1 << 63, GIB, MapError::OutputSize),
    ];
    for (addr, pa, size, error) in cases {
        assert_eq!(
            table
                .map(Ipa::new(addr), Pa::new(pa), size, RW, &tables)
                .unwrap_err(),
            error,
            "{addr:#x} {pa:#x} {size:#x}"
        );
    }
    let odd = Attrs { software: 16, ..RW };
    assert_eq!(
        table
            .map(Ipa::new(0), Pa::new(0), PAGE, odd, &tables)
            .unwrap_err(),
        MapError::Attributes
    );
    for (addr, bytes, error) in [
        (1, PAGE, MapError::Misaligned),
        (0, 1, MapError::Misaligned),
        ((1 << 40) - PAGE, 2 * PAGE, MapError::InputSize),
        (u64::MAX - PAGE + 1, 2 * PAGE, MapError::InputSize),
    ] {
        assert_eq!(
            table.unmap(Ipa::new(addr), bytes, &tables).unwrap_err(),
            error
        );
        assert_eq!(
            table
                .protect(Ipa::new(addr), bytes, Rights::READ, &tables)
                .unwrap_err(),
            error
        );
    }
    assert!(
        table
            .evict(Ipa::new(u64::MAX), u64::MAX, &tables)
            .is_empty()
    );
    assert!(table.evict(Ipa::new(3), 0, &tables).is_empty());
    assert_eq!((table.mapped_bytes(), table.table_pages()), (0, 2));
    end(table, &tables);
}

#[test]
fn a_failed_allocation_leaves_nothing_behind() {
    for fail in 0..2 {
        let (mut table, tables) = canonical();
        tables.fail_in.set(Some(fail));
        assert_eq!(
            table
                .map(Ipa::new(0), Pa::new(0), PAGE, RW, &tables)
                .unwrap_err(),
            MapError::NoMemory
        );
        assert_eq!((table.mapped_bytes(), tables.live()), (0, 2));
        end(table, &tables);
    }
    // Two 1 GiB blocks, cut at both ends: four tables, of which the n-th cannot be had.
    for fail in 0..4 {
        let (mut table, tables) = canonical();
        fresh(&mut table, &tables, 0, 0, GIB);
        fresh(&mut table, &tables, GIB, GIB, GIB);
        tables.fail_in.set(Some(fail));
        assert_eq!(
            table
                .unmap(Ipa::new(PAGE), 2 * GIB - 2 * PAGE, &tables)
                .unwrap_err(),
            MapError::NoMemory
        );
        assert_eq!(
            (table.mapped_bytes(), tables.live(), table.table_pages()),
            (2 * GIB, 2, 2)
        );
        end(table, &tables);
    }
}

#[test]
fn a_fault_between_the_halves_is_told_to_retry() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, BLOCK);
    let broken = table.split(Ipa::new(0), &tables).unwrap().unwrap();
    for addr in [0, PAGE, BLOCK - PAGE] {
        assert!(table.in_transition(Ipa::new(addr), &tables));
        assert_eq!(table.lookup(Ipa::new(addr), &tables), None);
        assert_eq!(
            table
                .map(Ipa::new(addr), Pa::new(0), PAGE, RW, &tables)
                .unwrap_err(),
            MapError::Busy
        );
    }
    assert!(!table.in_transition(Ipa::new(BLOCK), &tables));
    assert!(
        table.age(Ipa::new(0), PAGE, &tables),
        "what is in transition was just used"
    );
    assert_eq!(broken.finish(&mut table, &tables, |_| {}), Completed::Made);
    assert_eq!(
        table
            .lookup(Ipa::new(PAGE), &tables)
            .map(|leaf| (leaf.pa, leaf.size)),
        Some((Pa::new(PAGE), PAGE))
    );
    end(table, &tables);
}

#[test]
fn an_overtaken_break_is_cancelled() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, BLOCK);
    let first = table.split(Ipa::new(0), &tables).unwrap().unwrap();
    let first_done = first.work.discharge(|_| {});
    table
        .evict(Ipa::new(0), BLOCK, &tables)
        .finish(&tables, |_| {});
    fresh(&mut table, &tables, 0, 7 * BLOCK, BLOCK);
    let second = table.split(Ipa::new(0), &tables).unwrap().unwrap();
    // The entry is in transition again, but not for the first break.
    assert_eq!(
        table.complete(first.make, &first_done, &tables),
        Completed::Cancelled
    );
    first_done.release(&tables);
    assert_eq!(second.finish(&mut table, &tables, |_| {}), Completed::Made);
    assert_eq!(
        table.lookup(Ipa::new(PAGE), &tables).map(|leaf| leaf.pa),
        Some(Pa::new(7 * BLOCK + PAGE))
    );
    end(table, &tables);
}

#[test]
fn a_break_outlives_its_table() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, GIB);
    let broken = table.unmap(Ipa::new(0), PAGE, &tables).unwrap();
    broken.work.finish(&tables, |_| {});
    table.destroy(&tables).finish(&tables, |_| {});
    for make in broken.makes.into_iter().flatten() {
        make.abandon(&tables);
    }
    assert_eq!(tables.live(), 0);
}

#[test]
fn split_and_collapse_are_inverse() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, GIB, 2 * GIB, GIB);
    let before = table.lookup(Ipa::new(GIB), &tables);
    for at in [GIB, GIB + BLOCK] {
        table
            .split(Ipa::new(at), &tables)
            .unwrap()
            .unwrap()
            .finish(&mut table, &tables, |_| {});
    }
    table
        .split(Ipa::new(GIB), &tables)
        .unwrap()
        .unwrap()
        .finish(&mut table, &tables, |_| {});
    assert_eq!((table.mapped_bytes(), table.table_pages()), (GIB, 5));
    assert!(
        table.split(Ipa::new(GIB), &tables).unwrap().is_none(),
        "a page stays a page"
    );
    assert!(
        table
            .collapse(Ipa::new(GIB), GIB, &tables)
            .unwrap()
            .is_none(),
        "its second level holds tables"
    );
    for (at, size) in [(GIB, BLOCK), (GIB + BLOCK, BLOCK), (GIB, GIB)] {
        let broken = table
            .collapse(Ipa::new(at + PAGE), size, &tables)
            .unwrap()
            .unwrap();
        assert_eq!(broken.finish(&mut table, &tables, |_| {}), Completed::Made);
    }
    assert_eq!(
        (table.lookup(Ipa::new(GIB), &tables), table.table_pages()),
        (before, 2)
    );
    end(table, &tables);
}

#[test]
fn collapse_wants_one_block() {
    let spoil: [fn(&mut Canonical, &FakeTables); 3] = [
        |table, tables| {
            table
                .evict(Ipa::new(BLOCK - PAGE), PAGE, tables)
                .finish(tables, |_| {})
        },
        |table, tables| {
            table
                .write_protect(Ipa::new(PAGE), PAGE, tables)
                .finish(tables, |_| {})
        },
        |table, tables| match table
            .map(Ipa::new(0), Pa::new(7 * BLOCK), PAGE, RW, tables)
            .unwrap()
        {
            Mapped::Broken(broken) => {
                assert_eq!(broken.finish(table, tables, |_| {}), Completed::Made)
            }
            other => panic!("{other:?}"),
        },
    ];
    for spoil in spoil {
        let (mut table, tables) = canonical();
        fresh(&mut table, &tables, 0, 0, BLOCK);
        table
            .split(Ipa::new(0), &tables)
            .unwrap()
            .unwrap()
            .finish(&mut table, &tables, |_| {});
        spoil(&mut table, &tables);
        assert!(
            table
                .collapse(Ipa::new(0), BLOCK, &tables)
                .unwrap()
                .is_none()
        );
        end(table, &tables);
    }
    let (mut table, tables) = canonical();
    for n in 0..512 {
        fresh(&mut table, &tables, n * PAGE, (n + 1) * PAGE, PAGE);
    }
    assert!(
        table
            .collapse(Ipa::new(0), BLOCK, &tables)
            .unwrap()
            .is_none(),
        "the output is not aligned"
    );
    end(table, &tables);
}

#[test]
fn the_access_flag_is_hardware_s_to_set_and_ours_to_clear() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, PAGE);
    let accessed = |table: &Canonical| table.lookup(Ipa::new(0), &tables).unwrap().attrs.accessed;
    assert!(!accessed(&table) && !table.age(Ipa::new(0), PAGE, &tables));
    assert!(table.make_young(Ipa::new(5), &tables) && accessed(&table));
    // Neither a repeated map nor a change of rights forgets it.
    assert!(matches!(
        table.map(Ipa::new(0), Pa::new(0), PAGE, RW, &tables),
        Ok(Mapped::Unchanged)
    ));
    table
        .write_protect(Ipa::new(0), PAGE, &tables)
        .finish(&tables, |_| {});
    assert!(accessed(&table));
    assert!(table.age(Ipa::new(0), GIB, &tables) && !accessed(&table));
    assert!(!table.age(Ipa::new(0), GIB, &tables));
    // One accessed page among others is enough, wherever it stands.
    fresh(&mut table, &tables, PAGE, 0, PAGE);
    for accessed in [0, PAGE] {
        assert!(table.make_young(Ipa::new(accessed), &tables));
        assert!(table.age(Ipa::new(0), 2 * PAGE, &tables));
    }
    assert!(
        !table.make_young(Ipa::new(2 * PAGE), &tables),
        "nothing there"
    );
    end(table, &tables);
}

#[test]
fn software_bits_ride_along() {
    let (mut table, tables) = canonical();
    let marked = Attrs {
        software: 0b1010,
        ..RW
    };
    assert!(matches!(
        table.map(Ipa::new(0), Pa::new(0), BLOCK, marked, &tables),
        Ok(Mapped::Fresh)
    ));
    let change = table
        .protect(Ipa::new(PAGE), PAGE, Rights::READ, &tables)
        .unwrap();
    change.finish(&mut table, &tables, |_| {});
    for addr in [0, PAGE] {
        assert_eq!(
            table
                .lookup(Ipa::new(addr), &tables)
                .unwrap()
                .attrs
                .software,
            0b1010
        );
    }
    assert!(matches!(
        table.map(Ipa::new(0), Pa::new(0), PAGE, RW, &tables),
        Ok(Mapped::Unchanged)
    ));
    assert_eq!(
        table.lookup(Ipa::new(0), &tables).unwrap().attrs.software,
        0
    );
    end(table, &tables);
}

#[test]
fn emptied_tables_are_given_back() {
    let (mut table, tables) = canonical();
    for n in 0..64 {
        fresh(&mut table, &tables, n * GIB, 0, PAGE);
    }
    assert_eq!(table.table_pages(), 2 + 2 * 64);
    for n in 0..64 {
        table
            .evict(Ipa::new(n * GIB), PAGE, &tables)
            .finish(&tables, |_| {});
    }
    assert_eq!((table.table_pages(), tables.live()), (2, 2));
    end(table, &tables);
}

#[test]
fn requests_are_as_small_as_the_change() {
    let (mut table, tables) = canonical();
    for n in 0..4 {
        fresh(&mut table, &tables, n * PAGE, n * PAGE, PAGE);
    }
    let mut seen: Vec<TlbRequest> = vec![];
    let change = table.unmap(Ipa::new(PAGE), 2 * PAGE, &tables).unwrap();
    change.finish(&mut table, &tables, |request| seen.push(*request));
    let scope = Scope::Range {
        addr: PAGE,
        bytes: 2 * PAGE,
        level: Some(Level::L3),
        leaf_only: true,
    };
    assert_eq!(
        seen,
        [TlbRequest {
            tag: Tag::Vmid(Vmid::new(3)),
            scope
        }]
    );
    fresh(&mut table, &tables, GIB, GIB, GIB);
    seen.clear();
    let split = table.split(Ipa::new(GIB + PAGE), &tables).unwrap().unwrap();
    split.finish(&mut table, &tables, |request| seen.push(*request));
    let scope = Scope::Range {
        addr: GIB,
        bytes: GIB,
        level: Some(Level::L1),
        leaf_only: true,
    };
    assert_eq!(
        seen,
        [TlbRequest {
            tag: Tag::Vmid(Vmid::new(3)),
            scope
        }]
    );
    // Too many places to list: everything under the tag, once.
    for n in 0..32 {
        fresh(&mut table, &tables, BLOCK + 2 * n * PAGE, 0, PAGE);
    }
    seen.clear();
    table
        .write_protect(Ipa::new(BLOCK), BLOCK, &tables)
        .finish(&tables, |request| seen.push(*request));
    assert_eq!(
        seen,
        [TlbRequest {
            tag: Tag::Vmid(Vmid::new(3)),
            scope: Scope::All
        }]
    );
    end(table, &tables);
}

#[test]
fn works_of_one_table_merge() {
    let (mut table, tables) = canonical();
    let (mut other, more) = canonical();
    other.retag(Tag::Vmid(Vmid::new(4)));
    for n in 0..3 {
        fresh(&mut table, &tables, n * GIB, 0, BLOCK);
    }
    let mut work = table.evict(Ipa::new(0), PAGE, &tables);
    let next = table.split(Ipa::new(GIB), &tables).unwrap().unwrap();
    let last = table.split(Ipa::new(2 * GIB), &tables).unwrap().unwrap();
    work.merge(next.work, &tables).unwrap();
    work.merge(last.work, &tables).unwrap();
    fresh(&mut other, &more, 0, 0, BLOCK);
    let foreign = work
        .merge(other.evict(Ipa::new(0), PAGE, &more), &tables)
        .unwrap_err();
    foreign.finish(&more, |_| {});
    let mut requests = 0;
    let discharged = work.discharge(|_| requests += 1);
    assert_eq!(requests, 3);
    for make in [last.make, next.make] {
        assert_eq!(table.complete(make, &discharged, &tables), Completed::Made);
    }
    discharged.release(&tables);
    end(table, &tables);
    end(other, &more);
}

#[test]
fn merged_works_free_all_their_pages() {
    let (mut table, tables) = canonical();
    for n in 0..4 * 3 {
        fresh(&mut table, &tables, n / 3 * GIB + n % 3 * BLOCK, 0, PAGE);
    }
    let mut work = table.evict(Ipa::new(0), GIB, &tables);
    for n in 1..4 {
        let next = table.evict(Ipa::new(n * GIB), GIB, &tables);
        work.merge(next, &tables).unwrap();
        // Merging an empty work changes nothing.
        let nothing = table.evict(Ipa::new(n * GIB), GIB, &tables);
        work.merge(nothing, &tables).unwrap();
    }
    assert_eq!((work.waiting(), table.table_pages()), (4 * 4, 2));
    work.finish(&tables, |_| {});
    assert_eq!(tables.live(), 2);
    end(table, &tables);
}

#[test]
fn parked_pages_keep_their_frame() {
    let tables = FakeTables::new(Granule::K4);
    let format = El20 {
        normal: 0,
        device: 1,
        uncached: 2,
    };
    let geometry = Geometry::stage1(Granule::K4, 48).unwrap();
    let tag = Tag::Asid(Asid::new(1));
    let mut user: User = PageTable::new(
        Config {
            geometry,
            output_bits: 48,
            format,
            tag,
        },
        &tables,
    )
    .unwrap();
    assert!(matches!(
        user.map(Hva::new(0), Pa::new(PAGE), PAGE, RW, &tables),
        Ok(Mapped::Fresh)
    ));
    let mut requests = 0;
    for (rights, owed) in [
        (Rights::NONE, 1),
        (Rights::NONE, 1),
        (Rights::READ, 1),
        (Rights::NONE, 2),
    ] {
        let change = user.protect(Hva::new(0), PAGE, rights, &tables).unwrap();
        change.finish(&mut user, &tables, |_| requests += 1);
        let leaf = user.lookup(Hva::new(0), &tables).unwrap();
        assert_eq!(
            (leaf.pa, leaf.attrs.rights, requests),
            (Pa::new(PAGE), rights, owed)
        );
    }
    let change = user.unmap(Hva::new(0), PAGE, &tables).unwrap();
    assert_eq!(user.mapped_bytes(), 0);
    change.finish(&mut user, &tables, |_| {});
    user.destroy(&tables).finish(&tables, |_| {});
    assert_eq!(tables.live(), 0);
}

#[test]
fn device_and_normal_memory_never_alias_in_one_step() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, PAGE);
    let device = Attrs {
        memory: Memory::Device,
        ..RW
    };
    let Ok(Mapped::Broken(broken)) = table.map(Ipa::new(0), Pa::new(0), PAGE, device, &tables)
    else {
        panic!("the memory type changed in place");
    };
    assert_eq!(broken.finish(&mut table, &tables, |_| {}), Completed::Made);
    end(table, &tables);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "dropped without being discharged")]
fn forgotten_work_explodes() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, PAGE);
    drop(table.evict(Ipa::new(0), PAGE, &tables));
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "left in transition")]
fn a_forgotten_make_explodes() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, BLOCK);
    let broken = table.split(Ipa::new(0), &tables).unwrap().unwrap();
    broken.work.finish(&tables, |_| {});
    drop(broken.make);
}

#[test]
#[should_panic(expected = "without its own TLB work")]
fn make_refuses_the_wrong_discharge() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 0, 0, BLOCK);
    fresh(&mut table, &tables, BLOCK, BLOCK, BLOCK);
    let first = table.split(Ipa::new(0), &tables).unwrap().unwrap();
    let second = table.split(Ipa::new(BLOCK), &tables).unwrap().unwrap();
    let wrong = first.work.discharge(|_| {});
    table.complete(second.make, &wrong, &tables);
}

#[test]
fn a_leaf_alone_is_removed_and_its_table_stays() {
    let (mut table, tables) = canonical();
    fresh(&mut table, &tables, 4 * BLOCK, 0x80 * BLOCK, BLOCK);
    fresh(&mut table, &tables, 8 * BLOCK, 0x90 * BLOCK, PAGE);
    fresh(&mut table, &tables, 8 * BLOCK + PAGE, 0xa0 * BLOCK, PAGE);
    let pages = table.table_pages();
    let mut work = table.work();
    for (addr, size, level) in [
        (4 * BLOCK + PAGE, BLOCK, Level::L2),
        (8 * BLOCK, PAGE, Level::L3),
        (8 * BLOCK + PAGE, PAGE, Level::L3),
    ] {
        let leaf = table
            .remove_leaf(Ipa::new(addr), &mut work, &tables)
            .unwrap();
        assert_eq!((leaf.size, leaf.level), (size, level));
        assert_eq!(table.lookup(Ipa::new(addr), &tables), None);
        assert!(
            table
                .remove_leaf(Ipa::new(addr), &mut work, &tables)
                .is_none()
        );
    }
    assert_eq!((table.mapped_bytes(), table.table_pages()), (0, pages));
    let mut asked = Vec::new();
    work.finish(&tables, |request| asked.push(request.scope));
    let leaf = |addr, bytes, level| Scope::Range {
        addr,
        bytes,
        level: Some(level),
        leaf_only: true,
    };
    let (block, pages) = (
        leaf(4 * BLOCK, BLOCK, Level::L2),
        leaf(8 * BLOCK, 2 * PAGE, Level::L3),
    );
    assert_eq!(asked, [block, pages]);
    table
        .evict(Ipa::new(0), 1 << 40, &tables)
        .finish(&tables, |_| {});
    assert_eq!(table.table_pages(), table.geometry().root_tables());
    end(table, &tables);
}

#[test]
fn pages_round_one_are_filled_where_nothing_is() {
    let (mut table, tables) = canonical();
    let near = 8 * BLOCK + 3 * PAGE;
    let nothing = |_| -> Option<(Pa, Attrs, ())> { panic!("nobody asks") };
    let all = |()| true;
    assert_eq!(
        table.fill_near(Ipa::new(near), 16 * PAGE, &tables, nothing, all),
        0
    );
    fresh(&mut table, &tables, near, 0xa0 * BLOCK, PAGE);
    fresh(&mut table, &tables, near + PAGE, 0xb0 * BLOCK, PAGE);
    let (mut asked, mut allowed) = (Vec::new(), Vec::new());
    let pick = |addr: Ipa| {
        let n = (addr.raw() - 8 * BLOCK) / PAGE;
        asked.push(n);
        let pa = match n {
            5 => return None,
            // Beyond the machine.
            6 => 1 << 40,
            n => 0xc0 * BLOCK + n * PAGE,
        };
        Some((Pa::new(pa), RW, n))
    };
    let made = table.fill_near(Ipa::new(near), 16 * PAGE, &tables, pick, |n| {
        allowed.push(n);
        n != 7
    });
    let others: Vec<u64> = (0..16).filter(|n| ![3, 4].contains(n)).collect();
    let writable: Vec<u64> = others
        .iter()
        .copied()
        .filter(|n| ![5, 6].contains(n))
        .collect();
    assert_eq!((asked, allowed, made), (others, writable, 11));
    let pa = |n: u64| {
        table
            .lookup(Ipa::new(8 * BLOCK + n * PAGE), &tables)
            .map(|leaf| leaf.pa)
    };
    assert_eq!(
        (pa(3), pa(4)),
        (Some(Pa::new(0xa0 * BLOCK)), Some(Pa::new(0xb0 * BLOCK)))
    );
    assert_eq!((pa(5), pa(6), pa(7), pa(16)), (None, None, None, None));
    assert_eq!(pa(15), Some(Pa::new(0xc0 * BLOCK + 15 * PAGE)));
    assert_eq!(table.mapped_bytes(), 13 * PAGE);
    // What lies beside the last look is found as by a walk.
    let mut cursor = Cursor::default();
    for n in [3, 4, 5, 15, 512, 513, 0] {
        let at = Ipa::new(8 * BLOCK + n * PAGE);
        let found = table.lookup_near(&mut cursor, at, &tables);
        assert_eq!(found, table.lookup(at, &tables), "page {n}");
    }
    // A block has no pages round it.
    fresh(&mut table, &tables, 4 * BLOCK, 0x80 * BLOCK, BLOCK);
    assert_eq!(
        table.fill_near(Ipa::new(4 * BLOCK), 16 * PAGE, &tables, nothing, all),
        0
    );
    let block = table.lookup_near(&mut cursor, Ipa::new(4 * BLOCK + PAGE), &tables);
    assert_eq!(block.map(|leaf| leaf.size), Some(BLOCK));
    end(table, &tables);
}
