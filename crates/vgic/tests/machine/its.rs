//! LPIs and the ITS: what a message comes to.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use umbra_vgic::{Access, FIRST_LPI, Frame, Host, Its, ItsWrite, LpiConfig, MAX_LPIS, NoSuchEvent};

use crate::machine::*;

const QUEUE: u64 = 0x1_0000;
const DEVICES: u64 = 0x2_0000;
const COLLECTIONS: u64 = 0x3_0000;
const ITT: u64 = 0x4_0000;
const VALID: u64 = 1 << 63;

/// A VM's memory, and the LPIs as the ITS told of them.
#[derive(Clone, Default)]
struct Vm {
    memory: BTreeMap<u64, u8>,
    lpis: BTreeMap<u32, Option<usize>>,
    pending: BTreeSet<u32>,
    reloads: Vec<u32>,
    no_memory: bool,
}

impl Host for Vm {
    fn vcpu_by_number(&self, number: u64) -> Option<usize> {
        // Numbers are not indices: vCPU 1 has number 5.
        [0, 5].iter().position(|&of| of == number)
    }
    fn number_of(&self, vcpu: usize) -> u64 {
        [0, 5][vcpu]
    }
    fn lpi_end(&self) -> u32 {
        1 << 14
    }
    fn read(&mut self, at: u64, into: &mut [u8]) -> bool {
        for (byte, at) in into.iter_mut().zip(at..) {
            *byte = self.memory.get(&at).copied().unwrap_or(0);
        }
        !self.no_memory
    }
    fn write(&mut self, at: u64, from: &[u8]) -> bool {
        self.memory.extend((at..).zip(from.iter().copied()));
        !self.no_memory
    }
    fn map(&mut self, intid: u32, vcpu: Option<usize>) -> bool {
        assert!(self.lpis.insert(intid, vcpu).is_none(), "{intid} twice");
        true
    }
    fn unmap(&mut self, intid: u32) {
        assert!(self.lpis.remove(&intid).is_some(), "{intid} is not there");
    }
    fn target(&mut self, intid: u32, vcpu: Option<usize>) {
        assert!(self.lpis.insert(intid, vcpu).is_some());
    }
    fn set_pending(&mut self, intid: u32, pending: bool) {
        if pending {
            self.pending.insert(intid);
        } else {
            self.pending.remove(&intid);
        }
    }
    fn reload(&mut self, intid: u32) {
        self.reloads.push(intid);
    }
}

/// An ITS that is on, with flat tables.
fn on() -> (Its, Vm) {
    let (mut its, mut vm) = (Its::new(), Vm::default());
    let mut set = |at, value| its.write(at, 8, value, false, &mut vm);
    set(0x100, VALID | DEVICES); // 512 devices
    set(0x108, VALID | COLLECTIONS);
    set(0x80, VALID | QUEUE);
    set(0, 1);
    assert_eq!(its.read(0, 4) & 1, 1);
    (its, vm)
}

fn give(its: &mut Its, vm: &mut Vm, commands: &[[u64; 4]]) {
    for words in commands {
        let at = its.read(0x88, 8);
        for (n, word) in words.iter().enumerate() {
            vm.write(QUEUE + at + 8 * n as u64, &word.to_le_bytes());
        }
        let next = (at + 32) % 4096;
        assert_eq!(its.write(0x88, 8, next, false, vm), ItsWrite::Commands);
        while its.step(vm) {}
        assert_eq!(its.read(0x90, 8), next, "GITS_CREADR");
    }
}

const fn mapd(device: u64, bits: u64) -> [u64; 4] {
    [
        8 | device << 32,
        bits - 1,
        VALID | (ITT + (device << 12)),
        0,
    ]
}
const fn mapc(collection: u64, number: u64) -> [u64; 4] {
    [9, 0, VALID | number << 16 | collection, 0]
}
const fn mapti(device: u64, event: u64, lpi: u64, collection: u64) -> [u64; 4] {
    [0xa | device << 32, event | lpi << 32, collection, 0]
}
const fn about(what: u64, device: u64, event: u64) -> [u64; 4] {
    [what | device << 32, event, 0, 0]
}

#[test]
fn a_message_goes_from_device_and_event_to_an_lpi_of_a_vcpu() {
    let (mut its, mut vm) = on();
    give(
        &mut its,
        &mut vm,
        &[mapd(7, 4), mapc(3, 5), mapti(7, 2, 8200, 3)],
    );
    assert_eq!(its.translate(7, 2), Ok(8200));
    assert_eq!(vm.lpis, BTreeMap::from([(8200, Some(1))]));
    for (device, event) in [(7, 3), (6, 2), (7, 1 << 16)] {
        assert_eq!(its.translate(device, event), Err(NoSuchEvent));
    }
    // INT, CLEAR, INV, MOVI, DISCARD.
    give(&mut its, &mut vm, &[about(3, 7, 2)]);
    assert!(vm.pending.contains(&8200));
    give(&mut its, &mut vm, &[about(4, 7, 2), about(0xc, 7, 2)]);
    assert!(vm.pending.is_empty() && vm.reloads == [8200]);
    give(&mut its, &mut vm, &[mapc(0, 0), [1 | 7 << 32, 2, 0, 0]]);
    assert_eq!(vm.lpis[&8200], Some(0));
    give(&mut its, &mut vm, &[[0xe, 0, 0, 5 << 16]]);
    assert_eq!(vm.lpis[&8200], Some(1), "MOVALL");
    give(&mut its, &mut vm, &[about(0xf, 7, 2)]);
    assert!(vm.lpis.is_empty());
    assert_eq!(its.translate(7, 2), Err(NoSuchEvent));
}

#[test]
fn what_makes_no_sense_is_skipped() {
    let (mut its, mut vm) = on();
    give(&mut its, &mut vm, &[mapc(0, 0), mapd(1, 2)]);
    for bad in [
        mapti(2, 0, 8192, 0),    // no such device
        mapti(1, 4, 8192, 0),    // beyond its events
        mapti(1, 0, 8191, 0),    // no LPI
        mapti(1, 0, 1 << 14, 0), // beyond the guest's table
        mapti(1, 0, 8192, 8192), // beyond the collections
        mapd(8192, 4),           // beyond the devices
        mapd(3, 17),             // more events than there are
        [0x55, 1, 2, 3],
    ] {
        give(&mut its, &mut vm, &[bad]);
        assert!(vm.lpis.is_empty(), "{bad:x?}");
    }
    // A collection may come later; until then nothing is delivered.
    give(&mut its, &mut vm, &[mapti(1, 0, 8192, 9)]);
    assert_eq!(its.translate(1, 0), Err(NoSuchEvent));
    give(&mut its, &mut vm, &[mapc(9, 5)]);
    assert_eq!((its.translate(1, 0), vm.lpis[&8192]), (Ok(8192), Some(1)));
    // One LPI is one event's.
    give(&mut its, &mut vm, &[mapti(1, 1, 8192, 0)]);
    assert_eq!(its.translate(1, 1), Err(NoSuchEvent));
    // A number that is no processor's.
    give(&mut its, &mut vm, &[mapc(9, 1)]);
    assert_eq!(vm.lpis[&8192], Some(1));
}

#[test]
fn tables_that_change_are_forgotten_and_written_back_are_not() {
    let (mut its, mut vm) = on();
    give(
        &mut its,
        &mut vm,
        &[mapd(7, 4), mapc(3, 5), mapti(7, 2, 8200, 3)],
    );
    its.write(0, 4, 0, false, &mut vm);
    assert_eq!(its.translate(7, 2), Err(NoSuchEvent), "off");
    for at in [0x100, 0x108] {
        let same = its.read(at, 8);
        its.write(at, 8, same, false, &mut vm);
    }
    assert_eq!(vm.lpis[&8200], Some(1));
    its.write(0x108, 8, VALID | COLLECTIONS | 1, false, &mut vm);
    assert_eq!(vm.lpis[&8200], None);
    its.write(0x100, 8, VALID | DEVICES | 1, false, &mut vm);
    assert!(vm.lpis.is_empty());
}

/// Guests look which sizes of pages stay as they were written, and KVM offers one.
#[test]
fn pages_of_tables_have_64_kib() {
    let (mut its, mut vm) = (Its::new(), Vm::default());
    for at in [0x100, 0x108] {
        assert_eq!(its.read(at, 8) >> 8 & 3, 2, "after a reset");
        for size in 0..4 {
            its.write(at, 8, VALID | DEVICES | size << 8, false, &mut vm);
            assert_eq!(its.read(at, 8) >> 8 & 3, 2);
        }
    }
}

#[test]
fn two_levels_reach_as_far_as_their_pages_are_there() {
    let (mut its, mut vm) = (Its::new(), Vm::default());
    its.write(0x100, 8, VALID | 1 << 62 | DEVICES, false, &mut vm);
    its.write(0x108, 8, VALID | COLLECTIONS, false, &mut vm);
    its.write(0x80, 8, VALID | QUEUE, false, &mut vm);
    its.write(0, 4, 1, false, &mut vm);
    // Devices 8192 to 16383 have a page.
    vm.write(DEVICES + 8, &(VALID | 0x9_0000).to_le_bytes());
    give(&mut its, &mut vm, &[mapc(0, 0), mapd(5, 4), mapd(9000, 4)]);
    give(
        &mut its,
        &mut vm,
        &[mapti(5, 0, 8192, 0), mapti(9000, 0, 8193, 0)],
    );
    assert_eq!(its.translate(5, 0), Err(NoSuchEvent));
    assert_eq!(its.translate(9000, 0), Ok(8193));
    its.save_tables(&mut vm).unwrap();
    let mut entry = [0; 8];
    vm.read(0x9_0000 + 8 * (9000 - 8192), &mut entry);
    assert_eq!(u64::from_le_bytes(entry) >> 63, 1);
}

#[test]
fn a_device_whose_page_is_gone_is_left_out_of_what_is_saved() {
    let (mut its, mut vm) = (Its::new(), Vm::default());
    its.write(0x100, 8, VALID | 1 << 62 | DEVICES, false, &mut vm);
    its.write(0x108, 8, VALID | COLLECTIONS, false, &mut vm);
    its.write(0x80, 8, VALID | QUEUE, false, &mut vm);
    its.write(0, 4, 1, false, &mut vm);
    let pages = [0x9_0000, 0xa_0000, 0xb_0000];
    for (page, n) in pages.iter().zip(0..) {
        vm.write(DEVICES + 8 * n, &(VALID | page).to_le_bytes());
    }
    let ids = [5, 8192, 16384 + 2];
    give(&mut its, &mut vm, &ids.map(|id| mapd(id, 4)));
    vm.write(DEVICES + 8, &[0; 8]);
    its.save_tables(&mut vm).unwrap();
    let mut entry = |at: u64| {
        let mut bytes = [0; 8];
        assert!(vm.read(at, &mut bytes));
        u64::from_le_bytes(bytes)
    };
    // The first leads to the third, whose chain ends; nothing was written for the second.
    assert_eq!(entry(pages[0] + 8 * 5) >> 49, 1 << 14 | (ids[2] - ids[0]));
    assert_eq!(entry(pages[2] + 8 * 2) >> 49, 1 << 14);
    assert_eq!(entry(pages[1]), 0);
}

/// A GIC that takes LPIs, and the interrupt on its way.
#[test]
fn an_lpi_is_taken_like_any_edge() {
    let mut machine = Machine::new(2, 4, false);
    machine.write(Frame::Dist, 0x0, 2);
    assert_eq!(machine.read(Frame::Rd(0), 0), 0);
    machine.write(Frame::Rd(0), 0, 1);
    assert_eq!(machine.read(Frame::Rd(0), 0), 0, "no LPIs without an ITS");
    machine.vgic.allow_lpis();
    assert_eq!(machine.read(Frame::Dist, 4) >> 17 & 0x7d, 1 | 15 << 2);
    machine.write_sized(Frame::Rd(0), 0x70, 8, 0x8000_0000 | 15);
    assert_eq!(machine.vgic.lpi_config_at(8193), Some(0x8000_0001));
    assert_eq!(machine.vgic.lpi_config_at(8191), None);
    machine.write(Frame::Rd(1), 0, 1);
    assert_eq!(
        [0, 1, 1, 2].map(|vcpu| machine.vgic.take_lpi_start(vcpu)),
        [false, true, false, false]
    );
    // On already: its tables stay where they are.
    machine.write_sized(Frame::Rd(1), 0x70, 8, 0x9000_0000 | 15);
    assert_eq!(machine.vgic.lpi_config_at(8192), Some(0x8000_0000));

    let kicks = machine
        .vgic
        .map_lpi(8300, Some(1), LpiConfig(0xa1))
        .unwrap();
    machine.kick(kicks);
    let kicks = machine.vgic.set_lpi_pending(8300, true);
    assert!(kicks.contains(1) && !kicks.contains(0));
    machine.kick(kicks);
    machine.settle();
    assert_eq!(machine.cpus[1].iar(), 8300);
    machine.cpus[1].eoir(8300);
    machine.settle();
    assert_eq!(machine.cpus[1].iar(), 1023);
    // Disabled: it waits, and comes once enabled.
    let kicks = machine.vgic.configure_lpi(8300, LpiConfig(0xa0));
    machine.kick(kicks);
    let kicks = machine.vgic.set_lpi_pending(8300, true);
    machine.kick(kicks);
    machine.settle();
    assert_eq!(machine.cpus[1].iar(), 1023);
    assert!(machine.vgic.is_lpi_pending(8300));
    let kicks = machine.vgic.configure_lpi(8300, LpiConfig(0xa1));
    machine.kick(kicks);
    machine.settle();
    assert_eq!(machine.cpus[1].iar(), 8300);
    // Gone while it is in a list register; its place is used again only after.
    let kicks = machine.vgic.unmap_lpi(8300);
    machine.kick(kicks);
    machine.cpus[1].eoir(8300);
    machine.settle();
    let kicks = machine
        .vgic
        .map_lpi(8301, Some(0), LpiConfig(0xa1))
        .unwrap();
    machine.kick(kicks);
    assert!(
        machine.vgic.set_lpi_pending(8301, true).is_empty(),
        "vCPU 0 takes none"
    );
    assert_eq!(machine.vgic.next_lpi(0), Some((8301, Some(0))));
    assert_eq!(
        machine.vgic.mmio_read(Access::Guest, Frame::Rd(1), 0, 4),
        Ok(1)
    );
}

#[test]
fn there_is_a_limit_and_it_is_given_back() {
    let mut machine = Machine::new(1, 4, false);
    machine.vgic.allow_lpis();
    let all = FIRST_LPI..FIRST_LPI + MAX_LPIS as u32;
    for intid in all.clone() {
        assert!(machine.vgic.map_lpi(intid, Some(0), LpiConfig(0)).is_ok());
    }
    assert!(
        machine
            .vgic
            .map_lpi(all.end, Some(0), LpiConfig(0))
            .is_err()
    );
    let _ = machine.vgic.unmap_lpi(FIRST_LPI + 5);
    assert!(machine.vgic.map_lpi(all.end, Some(0), LpiConfig(0)).is_ok());
}

fn command() -> impl Strategy<Value = [u64; 4]> {
    let small = || prop_oneof![0u64..6, any::<u64>()];
    let kind = prop_oneof![Just(8u64), Just(9), Just(10), Just(10), Just(10), 0u64..16];
    (
        kind,
        small(),
        small(),
        8190u64..8200,
        small(),
        any::<bool>(),
    )
        .prop_map(|(kind, device, event, lpi, third, valid)| {
            let v = if valid { VALID } else { 0 };
            match kind {
                8 => [8 | device << 32, 3, v | (ITT + (device << 12)), 0],
                9 => [9, 0, v | ((third & 1) * 5) << 16 | event & 3, 0],
                10 => [10 | device << 32, event & 15 | lpi << 32, third & 3, 0],
                _ => [
                    kind | device << 32,
                    event & 15,
                    third,
                    third.rotate_left(16),
                ],
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The host's LPIs are the events (its asserts say the rest), whatever is asked; and what is saved
    /// is restored.
    #[test]
    fn saved_and_restored_it_is_the_same(commands in prop::collection::vec(command(), 0..60)) {
        let (mut its, mut vm) = on();
        give(&mut its, &mut vm, &commands);
        let translations = |its: &Its| {
            let pairs = (0..8).flat_map(|device| (0..16).map(move |event| (device, event)));
            pairs.map(|(d, e)| its.translate(d, e)).collect::<Vec<_>>()
        };
        its.save_tables(&mut vm).unwrap();
        let (mut other, mut fresh) = on();
        fresh.memory = vm.memory.clone();
        other.restore_tables(&mut fresh).unwrap();
        let known = |at: u32| at < 8;
        let far = commands.iter().any(|c| !known((c[0] >> 32) as u32));
        if !far {
            prop_assert_eq!(translations(&its), translations(&other));
            prop_assert_eq!(&vm.lpis, &fresh.lpis);
        }
        other.reset(&mut fresh);
        prop_assert!(fresh.lpis.is_empty());
    }

    #[test]
    fn any_table_is_restored_or_refused(words in prop::collection::vec(any::<u64>(), 1..40)) {
        let (mut its, mut vm) = on();
        for (n, word) in words.iter().enumerate() {
            for table in [DEVICES, COLLECTIONS] {
                vm.write(table + 8 * n as u64, &word.to_le_bytes());
            }
        }
        let _ = its.restore_tables(&mut vm);
        vm.no_memory = true;
        let _ = its.save_tables(&mut vm);
        its.reset(&mut vm);
        prop_assert!(vm.lpis.is_empty());
    }

    #[test]
    fn any_register_takes_any_value(writes in prop::collection::vec((0u32..0x180, any::<u64>(), any::<bool>()), 0..40)) {
        let (mut its, mut vm) = on();
        for (at, value, vmm) in writes {
            for len in [1, 2, 4, 8] {
                let _ = its.write(at, len, value, vmm, &mut vm);
                let _ = its.read(at, len);
            }
            for _ in 0..64 {
                its.step(&mut vm);
            }
        }
    }
}
