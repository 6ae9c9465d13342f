//! Saving an ITS into the guest's tables and restoring it from them, in KVM's layout of revision 0
//! (`Documentation/virt/kvm/devices/arm-vgic-its.rst`, "ITS Table Entry Layout").
//!
//! ```text
//!  device      valid 63 | next 62:49 | table address 51:8 in 48:5 | bits − 1 in 4:0
//!  event       next 63:48 | LPI 47:16 | collection 15:0            an LPI of 0: no entry
//!  collection  valid 63 | processor 51:16 | collection 15:0        the first that is not valid ends
//! ```
//! `next` is the distance to the next entry that is there, 0 for the last one.

use super::regs::ENTRY_BYTES;
use super::{Device, Event, Host, ID_BITS, Its};

const VALID: u64 = 1 << 63;

/// Why tables could not be saved or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Guest memory is not there: EFAULT.
    Memory,
    /// What stands in the tables makes no sense, or the tables have no room: EINVAL.
    Invalid,
}

fn read_entry(host: &mut impl Host, at: u64) -> Result<u64, TableError> {
    let mut bytes = [0; 8];
    if host.read(at, &mut bytes) {
        Ok(u64::from_le_bytes(bytes))
    } else {
        Err(TableError::Memory)
    }
}

fn write_entry(host: &mut impl Host, at: u64, entry: u64) -> Result<(), TableError> {
    if host.write(at, &entry.to_le_bytes()) {
        Ok(())
    } else {
        Err(TableError::Memory)
    }
}

/// The distance from `id` to `next`, as an entry has it.
fn distance(id: u32, next: Option<u32>, most: u64) -> u64 {
    next.map_or(0, |next| u64::from(next - id).min(most))
}

impl Its {
    /// KVM_DEV_ARM_ITS_SAVE_TABLES.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn save_tables(&self, host: &mut impl Host) -> Result<(), TableError> {
        let devices = self.device_table();
        // From the last one back: the next that is written is known then. One whose page of the second level the
        // guest has taken away since is left out, as no message of its can come from what is restored.
        let mut next = None;
        for device in self.devices.iter().rev() {
            let Some(place) = devices.entry(device.id.into(), host) else {
                continue;
            };
            self.save_events(device, host)?;
            let entry = VALID
                | distance(device.id, next, 0x3fff) << 49
                | device.table >> 8 << 5
                | u64::from(device.bits - 1);
            write_entry(host, place, entry)?;
            next = Some(device.id);
        }
        let table = self.collection_table();
        let mapped = self
            .collections
            .iter()
            .filter_map(|collection| Some((collection.id, collection.vcpu?)));
        let mut count = 0;
        for (id, vcpu) in mapped {
            let place = table.entry(count, host).ok_or(TableError::Invalid)?;
            let entry = VALID | host.number_of(vcpu) << 16 | u64::from(id);
            write_entry(host, place, entry)?;
            count += 1;
        }
        match table.entry(count, host) {
            Some(end) => write_entry(host, end, 0),
            None => Ok(()),
        }
    }

    fn save_events(&self, device: &Device, host: &mut impl Host) -> Result<(), TableError> {
        for (at, event) in device.events.iter().enumerate() {
            let next = device.events.get(at + 1).map(|next: &Event| next.id);
            let entry = distance(event.id, next, 0xffff) << 48
                | u64::from(event.intid) << 16
                | u64::from(event.collection);
            write_entry(
                host,
                device.table + u64::from(event.id) * ENTRY_BYTES,
                entry,
            )?;
        }
        Ok(())
    }

    /// KVM_DEV_ARM_ITS_RESTORE_TABLES: the registers were restored before.
    ///
    /// # Errors
    /// See [`TableError`]; what was restored by then stays.
    pub fn restore_tables(&mut self, host: &mut impl Host) -> Result<(), TableError> {
        self.restore_collections(host)?;
        let table = self.device_table();
        let mut id = 0;
        while id < table.entries().min(1 << ID_BITS) {
            let Some(place) = table.entry(id, host) else {
                // A page of the second level that is not there.
                id = (id / table.per_page() + 1) * table.per_page();
                if !table.is_indirect() {
                    break;
                }
                continue;
            };
            let entry = read_entry(host, place)?;
            if entry & VALID == 0 {
                id += 1;
                continue;
            }
            self.restore_device(id as u32, entry, host)?;
            match entry >> 49 & 0x3fff {
                0 => break,
                next => id += next,
            }
        }
        Ok(())
    }

    fn restore_collections(&mut self, host: &mut impl Host) -> Result<(), TableError> {
        let table = self.collection_table();
        for at in 0..table.entries() {
            let Some(place) = table.entry(at, host) else {
                return Ok(());
            };
            let entry = read_entry(host, place)?;
            if entry & VALID == 0 {
                return Ok(());
            }
            let vcpu = host.vcpu_by_number(entry >> 16 & 0xffff_ffff);
            if vcpu.is_none() || !self.set_collection(entry as u16, vcpu) {
                return Err(TableError::Invalid);
            }
        }
        Ok(())
    }

    fn restore_device(
        &mut self,
        id: u32,
        entry: u64,
        host: &mut impl Host,
    ) -> Result<(), TableError> {
        let table = (entry >> 5 & 0xfff_ffff_ffff) << 8;
        let bits = (entry & 0x1f) as u32 + 1;
        if bits > ID_BITS || !self.add_device(id, table, bits) {
            return Err(TableError::Invalid);
        }
        let mut event = 0u64;
        while event >> bits == 0 {
            let entry = read_entry(host, table + event * ENTRY_BYTES)?;
            let intid = (entry >> 16) as u32;
            if intid == 0 {
                event += 1;
                continue;
            }
            if !self.map_event(id, event as u32, intid, entry as u16, host) {
                return Err(TableError::Invalid);
            }
            match entry >> 48 {
                0 => break,
                next => event += next,
            }
        }
        Ok(())
    }
}
