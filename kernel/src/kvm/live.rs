//! The VMs that there are, for whoever wants to look at all of them while they run ([`crate::live`]).
//!
//! Kept only where somebody is to look. A VM is not held alive by it.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::stats::Stat;

use super::vm::Vm;
use super::{events, stats};

static VMS: SpinLock<Vec<Weak<Vm>>> = SpinLock::new("vms", 60, Vec::new());

/// A VM was made. One that finds no memory here is not shown.
pub(super) fn register(vm: &Arc<Vm>) {
    if !crate::live::is_on() {
        return;
    }
    let mut vms = VMS.lock();
    vms.retain(|vm| vm.strong_count() > 0);
    if vms.try_reserve(1).is_ok() {
        vms.push(Arc::downgrade(vm));
    }
}

/// Every statistic of every VM, with whom it is of. No lock may be held.
pub(crate) fn each(mut tell: impl FnMut(&str, &Stat<'_>)) {
    // The last reference to a VM may be one of these: they go when the lock is free.
    let vms: Vec<Arc<Vm>> = VMS.lock().iter().filter_map(Weak::upgrade).collect();
    for vm in vms {
        stats::live(&vm, events::vm_number(vm.vttbr()), &mut tell);
    }
}
