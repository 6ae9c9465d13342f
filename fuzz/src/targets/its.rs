//! An ITS that is given commands, against three maps that do what each command's page in the manual says
//! (IHI 0069, "ITS commands"). Then what it saves is restored into another.

use std::collections::BTreeMap;

use umbra_vgic::{Host, Its, ItsWrite};

use crate::tape::Tape;

const QUEUE: u64 = 0x1_0000;
pub(crate) const DEVICES: u64 = 0x2_0000;
pub(crate) const COLLECTIONS: u64 = 0x3_0000;
const ITT: u64 = 0x4_0000;
pub(crate) const VALID: u64 = 1 << 63;
/// Entries of eight bytes in the one page of 64 KiB that each table has.
const TABLE: u64 = 8192;
const LPIS: core::ops::Range<u64> = 8192..1 << 14;
/// Numbers of the vCPUs' redistributors: they are not indices.
const NUMBERS: [u64; 2] = [0, 5];

/// A VM's memory, and its LPIs as the ITS told of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vm {
    memory: BTreeMap<u64, u8>,
    pub(crate) lpis: BTreeMap<u32, Option<usize>>,
    /// What memory holds where nothing was written.
    pub(crate) fill: Vec<u8>,
}

impl Host for Vm {
    fn vcpu_by_number(&self, number: u64) -> Option<usize> {
        NUMBERS.iter().position(|&of| of == number)
    }
    fn number_of(&self, vcpu: usize) -> u64 {
        NUMBERS[vcpu]
    }
    fn lpi_end(&self) -> u32 {
        LPIS.end as u32
    }
    fn read(&mut self, at: u64, into: &mut [u8]) -> bool {
        for (byte, at) in into.iter_mut().zip(at..) {
            let filled = self.fill.get(at as usize % self.fill.len().max(1));
            let here = self.memory.get(&at).or(filled);
            *byte = here.copied().unwrap_or(0);
        }
        at < 1 << 40
    }
    fn write(&mut self, at: u64, from: &[u8]) -> bool {
        self.memory.extend((at..).zip(from.iter().copied()));
        at < 1 << 40
    }
    fn map(&mut self, intid: u32, vcpu: Option<usize>) -> bool {
        assert!(LPIS.contains(&intid.into()), "{intid} is no LPI");
        assert!(self.lpis.insert(intid, vcpu).is_none(), "{intid} twice");
        true
    }
    fn unmap(&mut self, intid: u32) {
        assert!(self.lpis.remove(&intid).is_some(), "{intid} is not there");
    }
    fn target(&mut self, intid: u32, vcpu: Option<usize>) {
        assert!(self.lpis.insert(intid, vcpu).is_some(), "{intid} is new");
    }
    fn set_pending(&mut self, intid: u32, _pending: bool) {
        assert!(self.lpis.contains_key(&intid), "{intid} is not there");
    }
    fn reload(&mut self, intid: u32) {
        assert!(self.lpis.contains_key(&intid), "{intid} is not there");
    }
}

/// An ITS that is on, with one page for each table and for the queue.
pub(crate) fn on(vm: &mut Vm) -> Its {
    let mut its = Its::new();
    for (at, value) in [
        (0x100, VALID | DEVICES),
        (0x108, VALID | COLLECTIONS),
        (0x80, VALID | QUEUE),
        (0, 1),
    ] {
        its.write(at, 8, value, false, vm);
    }
    its
}

/// What the commands come to.
#[derive(Debug, Default)]
struct Model {
    /// DeviceID: bits of its EventIDs.
    devices: BTreeMap<u64, u32>,
    /// (DeviceID, EventID): LPI, collection.
    events: BTreeMap<(u64, u64), (u64, u64)>,
    collections: BTreeMap<u64, usize>,
    /// Where each LPI goes: MOVALL moves it without its collection.
    lpis: BTreeMap<u32, Option<usize>>,
    moved_all: bool,
    /// A device's table is where no memory is, or where others may be: what is saved need not come back.
    astray: bool,
}

impl Model {
    fn drop_events(&mut self, which: impl Fn(u64, u64) -> bool) {
        let lpis = &mut self.lpis;
        self.events.retain(|(device, event), (lpi, _)| {
            let goes = which(*device, *event);
            if goes {
                lpis.remove(&(*lpi as u32));
            }
            !goes
        });
    }

    fn retarget(&mut self, collection: u64) {
        let vcpu = self.collections.get(&collection).copied();
        for (lpi, of) in self.events.values() {
            if *of == collection {
                self.lpis.insert(*lpi as u32, vcpu);
            }
        }
    }

    fn map(&mut self, device: u64, event: u64, lpi: u64, collection: u64) {
        let fits = self
            .devices
            .get(&device)
            .is_some_and(|bits| event >> bits == 0);
        let free = !self.events.contains_key(&(device, event))
            && self.events.values().all(|(taken, _)| *taken != lpi);
        if fits && free && LPIS.contains(&lpi) && collection < TABLE {
            self.events.insert((device, event), (lpi, collection));
            let vcpu = self.collections.get(&collection).copied();
            self.lpis.insert(lpi as u32, vcpu);
        }
    }

    fn command(&mut self, words: [u64; 4]) {
        let (device, event) = (words[0] >> 32, words[1] & 0xffff_ffff);
        let (valid, collection) = (words[2] >> 63 != 0, words[2] & 0xffff);
        let vcpu = |word: u64| {
            let number = word >> 16 & 0x7_ffff_ffff;
            NUMBERS.iter().position(|of| *of == number)
        };
        match words[0] & 0xff {
            // MAPD
            0x08 => {
                self.drop_events(|of, _| of == device);
                self.devices.remove(&device);
                let bits = (words[1] & 0x1f) as u32 + 1;
                if valid && bits <= 16 && device < TABLE {
                    self.devices.insert(device, bits);
                    let table = words[2] & 0x000f_ffff_ffff_ff00;
                    self.astray |= table != ITT + (device << 12);
                }
            }
            // MAPC
            0x09 => match (valid, vcpu(words[2])) {
                (true, Some(vcpu)) if collection < TABLE => {
                    self.collections.insert(collection, vcpu);
                    self.retarget(collection);
                }
                (true, _) => {}
                (false, _) => {
                    self.collections.remove(&collection);
                    self.retarget(collection);
                }
            },
            // MAPTI, MAPI
            0x0a => self.map(device, event, words[1] >> 32, collection),
            0x0b => self.map(device, event, event, collection),
            // MOVI
            0x01 if self.collections.contains_key(&collection) => {
                if let Some((lpi, of)) = self.events.get_mut(&(device, event)) {
                    *of = collection;
                    let vcpu = self.collections.get(&collection).copied();
                    self.lpis.insert(*lpi as u32, vcpu);
                }
            }
            // MOVALL
            0x0e => {
                if let (Some(from), Some(to)) = (vcpu(words[2]), vcpu(words[3])) {
                    self.moved_all = true;
                    for (lpi, of) in self.events.values() {
                        if self.collections.get(of) == Some(&from) {
                            self.lpis.insert(*lpi as u32, Some(to));
                        }
                    }
                }
            }
            // DISCARD
            0x0f => self.drop_events(|of, id| (of, id) == (device, event)),
            _ => {}
        }
    }

    fn translate(&self, device: u64, event: u64) -> Option<u32> {
        let (lpi, collection) = self.events.get(&(device, event))?;
        self.collections.get(collection)?;
        Some(*lpi as u32)
    }
}

/// A command of few numbers, so that they meet, or of any.
fn command(tape: &mut Tape<'_>) -> [u64; 4] {
    let kind = tape.u8();
    if kind >= 0xf0 {
        return core::array::from_fn(|_| tape.u64());
    }
    let (device, event, more) = (tape.u8(), tape.u8(), tape.u8());
    let valid = if more & 0x80 != 0 { 0 } else { VALID };
    let device = u64::from(device & 7) | u64::from(device >> 7) << 13;
    let first = u64::from(kind & 0xf) | device << 32;
    let collection = u64::from(more & 3) | u64::from(more >> 6 & 1) << 13;
    let number = NUMBERS[usize::from(more >> 4 & 1)] << 16;
    let id = u64::from(event & 0x1f);
    match kind & 0xf {
        8 => [
            first,
            u64::from(event & 0x1f),
            valid | (ITT + (device << 12)),
            0,
        ],
        9 => [first, 0, valid | number | collection, 0],
        10 => [
            first,
            id | (8190 + u64::from(event >> 4)) << 32,
            collection,
            0,
        ],
        11 => [first, 8190 + u64::from(event & 0xf), collection, 0],
        14 => [first, 0, number, NUMBERS[usize::from(event & 1)] << 16],
        _ => [first, id, collection, 0],
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let mut vm = Vm::default();
    let mut its = on(&mut vm);
    let mut model = Model::default();
    for _ in 0..100 {
        if tape.is_empty() {
            break;
        }
        let words = command(&mut tape);
        model.command(words);
        let at = its.read(0x88, 8);
        for (n, word) in words.iter().enumerate() {
            vm.write(QUEUE + at + 8 * n as u64, &word.to_le_bytes());
        }
        let next = (at + 32) % 4096;
        assert_eq!(its.write(0x88, 8, next, false, &mut vm), ItsWrite::Commands);
        while its.step(&mut vm) {}
        assert_eq!(its.read(0x90, 8), next, "GITS_CREADR");
        assert_eq!(vm.lpis, model.lpis, "{words:x?}");
    }
    for (device, event) in model
        .events
        .keys()
        .copied()
        .chain([(0, 0), (1, 3), (TABLE, 0)])
    {
        let seen = its.translate(device as u32, event as u32).ok();
        assert_eq!(seen, model.translate(device, event), "{device} {event}");
    }
    // EventIDs of up to 16 bits take half a MiB: tables that overlap are the guest's own fault.
    if model.astray || model.devices.values().any(|bits| *bits > 9) {
        let _ = its.save_tables(&mut vm);
        return;
    }
    its.save_tables(&mut vm)
        .expect("there is room for all of it");
    let mut fresh = Vm {
        lpis: BTreeMap::new(),
        ..vm.clone()
    };
    let mut other = on(&mut fresh);
    other.restore_tables(&mut fresh).expect("it was saved");
    for (device, event) in model.events.keys() {
        let seen = other.translate(*device as u32, *event as u32).ok();
        assert_eq!(
            seen,
            model.translate(*device, *event),
            "restored: {device} {event}"
        );
    }
    if !model.moved_all {
        assert_eq!(fresh.lpis, model.lpis);
    }
    other.reset(&mut fresh);
    assert!(fresh.lpis.is_empty());
}
