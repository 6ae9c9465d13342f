//! Exceptions taken at EL1: all of the interrupted state goes to the stack, and `dispatch` decides.

use core::arch::global_asm;

use super::{irq, probe};

/// The state that an exception interrupted, as `umbra_guest_vectors` lays it on the stack.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Frame {
    /// x0 to x30.
    pub(super) x: [u64; 31],
    /// Where it will return to.
    pub(super) elr: u64,
    /// The PSTATE that it will return with.
    pub(super) spsr: u64,
    /// Number of the vector, 0 to 15: offset / 0x80.
    pub(super) vector: u64,
}

global_asm!(
    ".macro VECTOR n",
    ".balign 0x80",
    "sub sp, sp, #272",
    "stp x0, x1, [sp]",
    "mov x0, #\\n",
    "b umbra_guest_vector",
    ".endm",
    ".text",
    ".balign 2048",
    ".global umbra_guest_vectors",
    "umbra_guest_vectors:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "VECTOR \\n",
    ".endr",
    ".balign 0x80",
    "umbra_guest_vector:",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp x16, x17, [sp, #128]",
    "stp x18, x19, [sp, #144]",
    "stp x20, x21, [sp, #160]",
    "stp x22, x23, [sp, #176]",
    "stp x24, x25, [sp, #192]",
    "stp x26, x27, [sp, #208]",
    "stp x28, x29, [sp, #224]",
    "mrs x1, elr_el1",
    "stp x30, x1, [sp, #240]",
    "mrs x1, spsr_el1",
    "stp x1, x0, [sp, #256]",
    "mov x0, sp",
    "bl umbra_guest_exception",
    "ldp x1, x0, [sp, #256]",
    "msr spsr_el1, x1",
    "ldp x30, x1, [sp, #240]",
    "msr elr_el1, x1",
    "ldp x28, x29, [sp, #224]",
    "ldp x26, x27, [sp, #208]",
    "ldp x24, x25, [sp, #192]",
    "ldp x22, x23, [sp, #176]",
    "ldp x20, x21, [sp, #160]",
    "ldp x18, x19, [sp, #144]",
    "ldp x16, x17, [sp, #128]",
    "ldp x14, x15, [sp, #112]",
    "ldp x12, x13, [sp, #96]",
    "ldp x10, x11, [sp, #80]",
    "ldp x8, x9, [sp, #64]",
    "ldp x6, x7, [sp, #48]",
    "ldp x4, x5, [sp, #32]",
    "ldp x2, x3, [sp, #16]",
    "ldp x0, x1, [sp]",
    "add sp, sp, #272",
    "eret",
);

// SAFETY: called by the vectors alone, with the frame they made and nobody else sees.
#[unsafe(no_mangle)]
extern "C" fn umbra_guest_exception(frame: &mut Frame) {
    match frame.vector % 4 {
        0 => probe::synchronous(frame),
        1 => irq::taken(),
        2 => panic!("FIQ at {:#x}", frame.elr),
        _ => probe::serror(frame),
    }
}
