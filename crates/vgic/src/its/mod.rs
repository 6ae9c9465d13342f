//! An interrupt translation service: from a device's message to an LPI of a vCPU (IHI 0069, chapter 5).
//!
//! ```text
//!  KVM_SIGNAL_MSI, irqfd ── (DeviceID, EventID) ─► devices ─► events ─► LPI, collection ─► vCPU ─► Vgic
//!  guest: GITS_CWRITER ──► queue in its memory ──► execute ──► the maps above
//! ```
//!
//! The maps are kept here and not in the guest's memory: what the guest gave for them is used when a
//! VMM asks for the tables to be saved. What always holds: an LPI that the [`Host`] was told to map is
//! one event's; the number of devices, events and collections is bounded, whatever the guest asks.

mod command;
mod regs;
mod tables;

use alloc::vec::Vec;

pub use command::{COMMAND_BYTES, Command};
pub use regs::{ITS_FRAME_BYTES, ItsWrite, has_its_register};
pub use tables::TableError;

use crate::lpi::{FIRST_LPI, INTID_BITS, MAX_LPIS};

/// Devices that one ITS may have at once.
const MAX_DEVICES: usize = 1024;
/// Collections that one ITS may have at once.
const MAX_COLLECTIONS: usize = 1024;
/// Bits of a DeviceID and of an EventID.
pub(crate) const ID_BITS: u32 = 16;

/// What an ITS asks of the rest of the VM.
pub trait Host {
    /// The vCPU whose redistributor has this number (GICR_TYPER.Processor_Number).
    fn vcpu_by_number(&self, number: u64) -> Option<usize>;
    /// The number of a vCPU's redistributor.
    fn number_of(&self, vcpu: usize) -> u64;
    /// INTIDs of LPIs end below this: the guest's configuration table.
    fn lpi_end(&self) -> u32;
    /// Reads guest memory. `false`: there is none.
    fn read(&mut self, at: u64, into: &mut [u8]) -> bool;
    /// Writes guest memory. `false`: there is none.
    fn write(&mut self, at: u64, from: &[u8]) -> bool;
    /// Makes an LPI, with what the guest's table says of it. `false`: no room.
    fn map(&mut self, intid: u32, vcpu: Option<usize>) -> bool;
    /// Forgets an LPI.
    fn unmap(&mut self, intid: u32);
    /// Routes an LPI.
    fn target(&mut self, intid: u32, vcpu: Option<usize>);
    /// Makes an LPI pending, or not.
    fn set_pending(&mut self, intid: u32, pending: bool);
    /// Reads what the guest's table says of an LPI.
    fn reload(&mut self, intid: u32);
}

#[derive(Clone, Debug)]
struct Event {
    id: u32,
    intid: u32,
    collection: u16,
}

#[derive(Clone, Debug)]
struct Device {
    id: u32,
    /// Guest physical; for saving.
    table: u64,
    /// Bits of its EventIDs.
    bits: u32,
    /// By id.
    events: Vec<Event>,
}

#[derive(Clone, Copy, Debug)]
struct Collection {
    id: u16,
    /// `None`: events name it, but it was not mapped yet.
    vcpu: Option<usize>,
}

/// One ITS.
#[derive(Clone, Debug, Default)]
pub struct Its {
    regs: regs::Regs,
    /// By id.
    devices: Vec<Device>,
    /// By id.
    collections: Vec<Collection>,
    events: usize,
}

/// A message to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchEvent;

impl Its {
    /// An ITS after reset.
    pub fn new() -> Self {
        Self::default()
    }

    fn device(&self, id: u32) -> Option<&Device> {
        let at = self.devices.binary_search_by_key(&id, |device| device.id);
        self.devices.get(at.ok()?)
    }

    fn device_mut(&mut self, id: u32) -> Option<&mut Device> {
        let at = self.devices.binary_search_by_key(&id, |device| device.id);
        self.devices.get_mut(at.ok()?)
    }

    fn event(&self, device: u32, event: u32) -> Option<&Event> {
        let events = &self.device(device)?.events;
        events.get(events.binary_search_by_key(&event, |event| event.id).ok()?)
    }

    /// Where events of a collection go. `None` also for one that nobody knows.
    fn vcpu_of(&self, collection: u16) -> Option<usize> {
        let at = self
            .collections
            .binary_search_by_key(&collection, |collection| collection.id);
        self.collections.get(at.ok()?)?.vcpu
    }

    /// A message arrived: the LPI to make pending.
    ///
    /// # Errors
    /// [`NoSuchEvent`]: the ITS is off, or nothing is mapped there.
    pub fn translate(&self, device: u32, event: u32) -> Result<u32, NoSuchEvent> {
        if !self.is_enabled() {
            return Err(NoSuchEvent);
        }
        let found = self.event(device, event).ok_or(NoSuchEvent)?;
        self.vcpu_of(found.collection).ok_or(NoSuchEvent)?;
        Ok(found.intid)
    }

    /// Takes the next command from the guest's queue and does it. `false`: there is none, or the ITS
    /// is off. A command that makes no sense is skipped, as on KVM.
    pub fn step(&mut self, host: &mut impl Host) -> bool {
        let Some(at) = self.next_command() else {
            return false;
        };
        let mut bytes = [0; COMMAND_BYTES as usize];
        if host.read(at, &mut bytes) {
            let word = |n: usize| u64::from_le_bytes(core::array::from_fn(|at| bytes[8 * n + at]));
            let words = [word(0), word(1), word(2), word(3)];
            self.execute(Command::decode(words), host);
        }
        self.command_done();
        true
    }

    fn execute(&mut self, command: Command, host: &mut impl Host) {
        match command {
            Command::MapDevice {
                device,
                table,
                bits,
                valid,
            } => {
                self.drop_device(device, host);
                if valid && bits <= ID_BITS && self.has_device_entry(device, host) {
                    self.add_device(device, table, bits);
                }
            }
            Command::MapCollection {
                collection,
                vcpu,
                valid,
            } => self.map_collection(collection, vcpu, valid, host),
            Command::MapEvent {
                device,
                event,
                intid,
                collection,
            } => {
                self.map_event(device, event, intid, collection, host);
            }
            Command::MoveEvent {
                device,
                event,
                collection,
            } => self.move_event(device, event, collection, host),
            Command::Discard { device, event } => self.discard(device, event, host),
            Command::Set { device, event } => {
                if let Some(event) = self.event(device, event) {
                    host.set_pending(event.intid, true);
                }
            }
            Command::Clear { device, event } => {
                if let Some(event) = self.event(device, event) {
                    host.set_pending(event.intid, false);
                }
            }
            Command::Reload { device, event } => {
                if let Some(event) = self.event(device, event) {
                    host.reload(event.intid);
                }
            }
            Command::ReloadAll { collection } => self
                .events()
                .filter(|event| event.collection == collection)
                .for_each(|event| host.reload(event.intid)),
            Command::MoveAll { from, to } => self.move_all(from, to, host),
            Command::Sync | Command::Unknown(_) => {}
        }
    }

    fn events(&self) -> impl Iterator<Item = &Event> {
        self.devices.iter().flat_map(|device| &device.events)
    }

    fn add_device(&mut self, id: u32, table: u64, bits: u32) -> bool {
        let at = match self.devices.binary_search_by_key(&id, |device| device.id) {
            Err(at) if self.devices.len() < MAX_DEVICES => at,
            _ => return false,
        };
        if self.devices.try_reserve(1).is_err() {
            return false;
        }
        self.devices.insert(
            at,
            Device {
                id,
                table,
                bits,
                events: Vec::new(),
            },
        );
        true
    }

    fn drop_device(&mut self, id: u32, host: &mut impl Host) {
        if let Ok(at) = self.devices.binary_search_by_key(&id, |device| device.id) {
            let device = self.devices.remove(at);
            self.events -= device.events.len();
            for event in device.events {
                host.unmap(event.intid);
            }
        }
    }

    fn map_collection(&mut self, id: u16, vcpu: u64, valid: bool, host: &mut impl Host) {
        let vcpu = host.vcpu_by_number(vcpu).filter(|_| valid);
        if valid && (vcpu.is_none() || !self.has_collection_entry(id)) {
            return;
        }
        self.set_collection(id, vcpu);
        for event in self.events().filter(|event| event.collection == id) {
            host.target(event.intid, vcpu);
        }
        if !valid {
            self.forget_collection(id);
        }
    }

    /// Collections that are not mapped stay only while events name them.
    fn forget_collection(&mut self, id: u16) {
        if !self.events().any(|event| event.collection == id) {
            self.collections
                .retain(|collection| collection.id != id || collection.vcpu.is_some());
        }
    }

    fn set_collection(&mut self, id: u16, vcpu: Option<usize>) -> bool {
        match self
            .collections
            .binary_search_by_key(&id, |collection| collection.id)
        {
            Ok(at) => self.collections[at].vcpu = vcpu,
            Err(at) => {
                let full = self.collections.len() >= MAX_COLLECTIONS;
                if full || self.collections.try_reserve(1).is_err() {
                    return false;
                }
                self.collections.insert(at, Collection { id, vcpu });
            }
        }
        true
    }

    fn map_event(
        &mut self,
        device: u32,
        id: u32,
        intid: u32,
        collection: u16,
        host: &mut impl Host,
    ) -> bool {
        let inside = (FIRST_LPI..host.lpi_end().min(1 << INTID_BITS)).contains(&intid);
        let taken = self.events().any(|event| event.intid == intid);
        let fits = self
            .device(device)
            .is_some_and(|device| id >> device.bits == 0);
        if !inside
            || taken
            || !fits
            || self.events >= MAX_LPIS
            || self.event(device, id).is_some()
            || !self.has_collection_entry(collection)
        {
            return false;
        }
        let vcpu = self.vcpu_of(collection);
        if vcpu.is_none() && !self.set_collection(collection, None) {
            return false;
        }
        let Some(device) = self.device_mut(device) else {
            return false;
        };
        if device.events.try_reserve(1).is_err() || !host.map(intid, vcpu) {
            return false;
        }
        let at = device.events.partition_point(|event| event.id < id);
        device.events.insert(
            at,
            Event {
                id,
                intid,
                collection,
            },
        );
        self.events += 1;
        true
    }

    fn move_event(&mut self, device: u32, id: u32, collection: u16, host: &mut impl Host) {
        let Some(vcpu) = self.vcpu_of(collection) else {
            return;
        };
        let Some(device) = self.device_mut(device) else {
            return;
        };
        if let Ok(at) = device.events.binary_search_by_key(&id, |event| event.id) {
            let event = &mut device.events[at];
            event.collection = collection;
            host.target(event.intid, Some(vcpu));
        }
    }

    fn discard(&mut self, device: u32, id: u32, host: &mut impl Host) {
        let Some(device) = self.device_mut(device) else {
            return;
        };
        if let Ok(at) = device.events.binary_search_by_key(&id, |event| event.id) {
            let event = device.events.remove(at);
            self.events -= 1;
            host.unmap(event.intid);
        }
    }

    fn move_all(&mut self, from: u64, to: u64, host: &mut impl Host) {
        let (Some(from), Some(to)) = (host.vcpu_by_number(from), host.vcpu_by_number(to)) else {
            return;
        };
        let moved = |collection: u16| self.vcpu_of(collection) == Some(from);
        for event in self.events().filter(|event| moved(event.collection)) {
            host.target(event.intid, Some(to));
        }
    }

    /// Forgets every device and event.
    fn drop_devices(&mut self, host: &mut impl Host) {
        for device in core::mem::take(&mut self.devices) {
            for event in device.events {
                host.unmap(event.intid);
            }
        }
        self.events = 0;
    }

    /// As after reset, the frame's place apart: KVM_DEV_ARM_ITS_CTRL_RESET, and the end of an ITS.
    pub fn reset(&mut self, host: &mut impl Host) {
        self.drop_devices(host);
        *self = Self::default();
    }
}
