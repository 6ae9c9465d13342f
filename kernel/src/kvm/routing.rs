//! Where a GSI leads: KVM_SET_GSI_ROUTING, and what raises one.
//!
//! Until the VMM says otherwise GSI n is pin n of the GIC, INTID n + 32. A table replaces all of it;
//! a GSI that the table does not name leads nowhere.

use alloc::collections::BTreeMap;

use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::irq::{IrqRouting, IrqRoutingEntry, Route};
use umbra_linux::Errno;

use super::read_struct;
use super::vm::abi;
use crate::mm::Mm;

/// Entries of a table, and numbers of GSIs: Linux's KVM_MAX_IRQ_ROUTES.
pub(super) const MAX_ROUTES: u32 = 4096;
/// Pins of the GIC: INTIDs 32 to 1019.
const PINS: u32 = 988;

/// The routes of a VM.
pub(super) struct Routes {
    table: SpinLock<Option<BTreeMap<u32, Route>>>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            table: SpinLock::new("gsi routes", 107, None),
        }
    }

    /// KVM_SET_GSI_ROUTING. `EINVAL`: flags, too many entries, two for one GSI, or one that this GIC
    /// does not have; `EFAULT`.
    pub(super) fn set(&self, mm: &Mm, arg: u64) -> Result<u64, Errno> {
        let head = read_struct::<IrqRouting>(mm, arg)?;
        if head.nr > MAX_ROUTES || head.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let mut table = BTreeMap::new();
        let mut at = arg;
        let mut step = size_of::<IrqRouting>() as u64;
        for _ in 0..head.nr {
            at = at.checked_add(step).ok_or(Errno::EFAULT)?;
            step = size_of::<IrqRoutingEntry>() as u64;
            // Each is small; thousands of them are not.
            crate::mem::admit()?;
            let entry = read_struct::<IrqRoutingEntry>(mm, at)?;
            let route = abi(entry.route())?;
            let beyond = matches!(route, Route::Pin { pin } if pin >= PINS);
            if beyond || entry.gsi >= MAX_ROUTES || table.insert(entry.gsi, route).is_some() {
                return Err(Errno::EINVAL);
            }
        }
        *self.table.lock() = Some(table);
        Ok(0)
    }

    /// Where `gsi` leads.
    pub(super) fn of(&self, gsi: u32) -> Option<Route> {
        match self.table.lock().as_ref() {
            Some(table) => table.get(&gsi).copied(),
            None => (gsi < PINS).then_some(Route::Pin { pin: gsi }),
        }
    }
}
