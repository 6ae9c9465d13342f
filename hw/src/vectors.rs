//! The two vector tables and the two ways into a lower exception level.
//!
//! EL0 and guests both arrive at VBAR_EL2 + 0x400, so each has a table of its own and the way in
//! selects it. Entering is a function call that returns: `umbra_enter_*` parks the caller's
//! callee-saved registers on its kernel stack, and the vector brings them back with the cause in x0.
//! SP_EL2 is therefore the running thread's kernel stack at every moment.
//!
//! An exit saves the general registers, ELR and SPSR before anything that could fault, and sets PAN,
//! which an exit from a guest leaves as the guest had it (SPAN acts only under TGE).
//!
//! Exceptions taken at EL2 itself are never interrupts (PSTATE.I stays set; waiting threads poll
//! the interrupt controller), so they are a memory access with a fix-up or a bug.

use core::arch::global_asm;

/// Cause codes that the vectors leave in x0.
pub(crate) const CAUSE_SYNC: u64 = 0;
/// An interrupt.
pub(crate) const CAUSE_IRQ: u64 = 1;
/// An SError.
pub(crate) const CAUSE_SERROR: u64 = 2;

global_asm!(
    r#"
    // Both frames begin with x0..x30, then pc and pstate (see `Frame`).
    .macro park_callee
        stp     x29, x30, [sp, #-112]!
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        stp     x23, x24, [sp, #48]
        stp     x25, x26, [sp, #64]
        stp     x27, x28, [sp, #80]
        str     x0, [sp, #96]
    .endm

    .macro load_frame
        ldp     x1, x2, [x0, #248]
        msr     elr_el2, x1
        msr     spsr_el2, x2
        ldp     x2, x3, [x0, #16]
        ldp     x4, x5, [x0, #32]
        ldp     x6, x7, [x0, #48]
        ldp     x8, x9, [x0, #64]
        ldp     x10, x11, [x0, #80]
        ldp     x12, x13, [x0, #96]
        ldp     x14, x15, [x0, #112]
        ldp     x16, x17, [x0, #128]
        ldp     x18, x19, [x0, #144]
        ldp     x20, x21, [x0, #160]
        ldp     x22, x23, [x0, #176]
        ldp     x24, x25, [x0, #192]
        ldp     x26, x27, [x0, #208]
        ldp     x28, x29, [x0, #224]
        ldr     x30, [x0, #240]
        ldp     x0, x1, [x0]
        eret
        sb_here
    .endm

    .macro sb_here                              // no speculation past ERET
        dsb     nsh
        isb
    .endm

    // The rest of an exit: x0, x1 are on the stack, x0 holds the frame, x1 the cause.
    .macro save_frame
        stp     x2, x3, [x0, #16]
        stp     x4, x5, [x0, #32]
        stp     x6, x7, [x0, #48]
        stp     x8, x9, [x0, #64]
        stp     x10, x11, [x0, #80]
        stp     x12, x13, [x0, #96]
        stp     x14, x15, [x0, #112]
        stp     x16, x17, [x0, #128]
        stp     x18, x19, [x0, #144]
        stp     x20, x21, [x0, #160]
        stp     x22, x23, [x0, #176]
        stp     x24, x25, [x0, #192]
        stp     x26, x27, [x0, #208]
        stp     x28, x29, [x0, #224]
        mrs     x2, elr_el2
        mrs     x3, spsr_el2
        stp     x30, x2, [x0, #240]
        str     x3, [x0, #256]
        ldp     x2, x3, [sp], #16
        stp     x2, x3, [x0]
        ldp     x19, x20, [sp, #16]
        ldp     x21, x22, [sp, #32]
        ldp     x23, x24, [sp, #48]
        ldp     x25, x26, [sp, #64]
        ldp     x27, x28, [sp, #80]
        ldp     x29, x30, [sp], #112
        mov     x0, x1
        ret
    .endm

    .macro exit_vector cause, label
        .balign 128
        hint    #16                             // ESB: errors up to here are recorded in DISR_EL1
        stp     x0, x1, [sp, #-16]!
        msr     pan, #1
        ldr     x0, [sp, #112]
        mov     x1, #\cause
        b       \label
    .endm

    .macro el2_vector kind
        .balign 128
        sub     sp, sp, #288
        stp     x0, x1, [sp]
        mov     x1, #\kind
        b       el2_exception
    .endm

    .macro el2_vectors
        el2_vector 4
        el2_vector 5
        el2_vector 6
        el2_vector 7
        el2_vector 0
        el2_vector 1
        el2_vector 2
        el2_vector 3
    .endm

    .macro bad_vector kind
        .balign 128
        sub     sp, sp, #288
        stp     x0, x1, [sp]
        mov     x1, #\kind
        b       el2_exception
    .endm

    .pushsection .text.vectors, "ax"
    .arch armv8.5-a+ras+pan

    .balign 2048
    .global umbra_vectors_user
umbra_vectors_user:
    el2_vectors
    exit_vector 0, user_exit
    exit_vector 1, user_exit
    bad_vector  10
    exit_vector 2, user_exit
    bad_vector  12
    bad_vector  13
    bad_vector  14
    bad_vector  15

    .balign 2048
    .global umbra_vectors_guest
umbra_vectors_guest:
    el2_vectors
    exit_vector 0, guest_exit
    exit_vector 1, guest_exit
    bad_vector  10
    exit_vector 2, guest_exit
    bad_vector  12
    bad_vector  13
    bad_vector  14
    bad_vector  15

guest_exit:
    save_frame

    // User frames carry SP_EL0 and TPIDR_EL0 behind pstate: they belong to whoever runs at EL0/EL1.
user_exit:
    str     x2, [sp, #-16]!
    mrs     x2, sp_el0
    str     x2, [x0, #264]
    mrs     x2, tpidr_el0
    str     x2, [x0, #272]
    ldr     x2, [sp], #16
    save_frame

    // extern "C" fn umbra_enter_user(frame: *mut UserFrame) -> cause
    .global umbra_enter_user
umbra_enter_user:
    park_callee
    ldp     x1, x2, [x0, #264]
    msr     sp_el0, x1
    msr     tpidr_el0, x2
    load_frame

    // extern "C" fn umbra_enter_guest(frame: *mut Frame) -> cause
    .global umbra_enter_guest
umbra_enter_guest:
    park_callee
    load_frame

    // An exception at EL2: x0, x1 saved, x1 = kind. Calls umbra_el2_exception(frame, kind),
    // which returns only where a fix-up applies, having changed the saved PC.
el2_exception:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x30, x2, [sp, #240]
    str     x3, [sp, #256]
    mov     x0, sp
    bl      umbra_el2_exception
    ldp     x2, x3, [sp, #248]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #288
    eret
    .popsection
    "#
);

unsafe extern "C" {
    static umbra_vectors_user: u8;
    static umbra_vectors_guest: u8;
    /// Runs EL0 with the registers in `frame` until its next exception.
    pub(crate) fn umbra_enter_user(frame: *mut crate::user::UserFrame) -> u64;
    /// Runs a guest with the registers in `frame` until its next exit.
    pub(crate) fn umbra_enter_guest(frame: *mut crate::guest::Frame) -> u64;
}

/// VBAR_EL2 while EL0 runs.
pub(crate) fn user_vectors() -> u64 {
    (&raw const umbra_vectors_user) as u64
}

/// VBAR_EL2 while a guest runs.
pub(crate) fn guest_vectors() -> u64 {
    (&raw const umbra_vectors_guest) as u64
}
