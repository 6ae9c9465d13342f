//! Which process's tables TTBR0_EL2 holds on this CPU.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_arm64::Pa;

use crate::percpu;
use crate::regs::{insn, msr};

static EMPTY: AtomicU64 = AtomicU64::new(0);

/// Sets the table that stands in when no process is current, and loads it.
pub(crate) fn set_empty(pa: u64) {
    EMPTY.store(pa, Ordering::Release);
    leave_identity();
}

/// Leaves the identity map that this CPU booted through.
pub(crate) fn leave_identity() {
    load_raw(EMPTY.load(Ordering::Acquire));
    // SAFETY: drops the identity map of boot from this CPU's TLB.
    unsafe {
        insn!("tlbi alle2");
        insn!("dsb nsh");
        insn!("isb");
    }
}

fn load_raw(ttbr: u64) {
    // SAFETY: TTBR0_EL2 maps processes only; nothing of umbra's is reached through it.
    unsafe {
        msr!("ttbr0_el2", ttbr);
        insn!("isb");
    }
    percpu::this().ttbr0.set(ttbr);
}

/// Makes the process with root table `root` and `asid` current on this CPU.
pub fn load(root: Pa, asid: u16) {
    let ttbr = root.raw() | u64::from(asid) << 48;
    if percpu::this().ttbr0.get() != ttbr {
        load_raw(ttbr);
    }
}

/// Leaves no process current.
pub fn unload() {
    let empty = EMPTY.load(Ordering::Acquire);
    if percpu::this().ttbr0.get() != empty {
        load_raw(empty);
    }
}

/// The root table that is current on this CPU, without its ASID.
pub fn current_root() -> Pa {
    Pa::new(percpu::this().ttbr0.get() & 0x0000_ffff_ffff_f000)
}
