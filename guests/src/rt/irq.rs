//! Interrupts as they are taken: acknowledged, counted, given to the payload's handler, ended.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::gic;
use super::{MAX_CPUS, cpu};

/// INTID of "nothing to acknowledge".
pub const SPURIOUS: u32 = 1023;

/// What a payload does with an interrupt between its acknowledgement and its end.
pub type Handler = fn(u32);

static HANDLER: AtomicUsize = AtomicUsize::new(0);
static TAKEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Sets what all CPUs do with an interrupt.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as usize, Relaxed);
}

/// Interrupts that this CPU has taken.
pub fn count() -> u64 {
    TAKEN[cpu()].load(Relaxed)
}

/// Lets interrupts in.
pub fn unmask() {
    crate::op!("msr daifclr, #2");
}

/// Keeps interrupts out.
pub fn mask() {
    crate::op!("msr daifset, #2");
}

/// Whether an interrupt waits for this CPU (ISR_EL1.I).
pub fn waiting() -> bool {
    crate::mrs!("isr_el1") & 1 << 7 != 0
}

pub(super) fn taken() {
    let intid = gic::acknowledge();
    if intid == SPURIOUS {
        return;
    }
    TAKEN[cpu()].fetch_add(1, Relaxed);
    let handler = HANDLER.load(Relaxed);
    assert!(handler != 0, "interrupt {intid}, and nobody handles it");
    // SAFETY: only `set_handler` stores here, and it stores a `Handler`.
    let handler: Handler = unsafe { core::mem::transmute(handler) };
    handler(intid);
    gic::end(intid);
}
