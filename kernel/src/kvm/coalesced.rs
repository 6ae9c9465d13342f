//! KVM_REGISTER_COALESCED_MMIO: a guest's writes that wait in a ring for the VMM instead of leaving to it.
//!
//! The ring is a page that every vCPU's mapping shows behind its run page (`struct kvm_coalesced_mmio_ring`).
//! The VMM moves `first`, umbra `last`; both words are the VMM's to change at any time, so each is read once
//! and checked.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::irq::CoalescedMmioZone;
use umbra_linux::Errno;

use crate::mm::SharedPages;

/// Offset of `last`, behind `first`.
const LAST: usize = 4;
/// Where the entries begin, and their size.
const ENTRIES: usize = 8;
const ENTRY: usize = 24;
/// Entries of a ring; one stays free.
const MOST: u32 = ((4096 - ENTRIES) / ENTRY) as u32;

/// The zones of a VM and its ring.
/// Zones of a VM: devices that a bus of Linux's has room for (NR_IOBUS_DEVS).
const MOST_ZONES: usize = 1000;

pub(super) struct Coalesced {
    pub(super) ring: Arc<SharedPages>,
    zones: SpinLock<Vec<CoalescedMmioZone>>,
}

/// Whether `inner` lies in `zone`.
fn covers(zone: &CoalescedMmioZone, address: u64, bytes: u32) -> bool {
    let end = |at: u64, bytes: u32| at.checked_add(bytes.into());
    match (end(address, bytes), end(zone.addr, zone.size)) {
        (Some(end), Some(zones)) => zone.addr <= address && end <= zones,
        _ => false,
    }
}

impl Coalesced {
    /// No zones, an empty ring; `None` when memory is out.
    pub(super) fn new() -> Option<Self> {
        Some(Self {
            ring: SharedPages::new(1)?,
            zones: SpinLock::new("coalesced zones", 102, Vec::new()),
        })
    }

    /// Adds a zone. `EINVAL`: neither memory nor ports; `ENOSPC`: too many, as on Linux; `ENOMEM`.
    pub(super) fn register(&self, zone: &CoalescedMmioZone) -> Result<(), Errno> {
        if zone.pio > 1 {
            return Err(Errno::EINVAL);
        }
        let mut zones = self.zones.lock();
        if zones.len() >= MOST_ZONES {
            return Err(Errno::ENOSPC);
        }
        zones.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        zones.push(*zone);
        Ok(())
    }

    /// Takes back every zone that `zone` lies in; none is no error, as on Linux. `EINVAL` as above.
    pub(super) fn unregister(&self, zone: &CoalescedMmioZone) -> Result<(), Errno> {
        if zone.pio > 1 {
            return Err(Errno::EINVAL);
        }
        let gone = |other: &CoalescedMmioZone| {
            other.pio == zone.pio && covers(other, zone.addr, zone.size)
        };
        self.zones.lock().retain(|other| !gone(other));
        Ok(())
    }

    /// Queues a guest's write, if it is in a zone and the ring has room.
    pub(super) fn queue(&self, address: u64, bytes: u32, value: u64) -> bool {
        let zones = self.zones.lock();
        let found = |zone: &CoalescedMmioZone| zone.pio == 0 && covers(zone, address, bytes);
        if !zones.iter().any(found) {
            return false;
        }
        let word = |at: usize| {
            let mut word = [0; 4];
            self.ring.read(at, &mut word);
            u32::from_le_bytes(word)
        };
        let last = word(LAST);
        let next = last.wrapping_add(1) % MOST;
        if last >= MOST || next == word(0) {
            return false;
        }
        let at = ENTRIES + last as usize * ENTRY;
        self.ring.write(at, &address.to_le_bytes());
        self.ring.write(at + 8, &u64::from(bytes).to_le_bytes());
        self.ring.write(at + 16, &value.to_le_bytes());
        self.ring.store_u32(LAST, next);
        true
    }
}
