//! One chosen instruction, executed with chosen general registers.
//!
//! The instruction is patched into a small routine in RAM, so every encoding can be tried and every
//! register watched: what comes back is x0 to x30, NZCV and SP as the instruction left them.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use super::{Fault, MAX_CPUS, cpu, expect, mem};

/// General registers round the instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regs {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Condition flags, bits 31:28.
    pub nzcv: u64,
    /// Stack pointer, behind the instruction minus before it: 0 if it was kept.
    pub sp_moved: u64,
}

impl Regs {
    /// Registers with a value of its own in each, from `seed`.
    pub fn pattern(seed: u64) -> Self {
        let mut x = [0; 31];
        for (n, x) in (1u64..).zip(&mut x) {
            *x = (n * 0x0101_0101_0101_0101) ^ seed.rotate_left(n as u32);
        }
        Regs {
            x,
            nzcv: (seed & 0xf) << 28,
            sp_moved: 0,
        }
    }
}

global_asm!(
    ".text",
    ".balign 16",
    "umbra_guest_exec:",
    "stp x29, x30, [sp, #-128]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mov x1, sp",
    "stp x0, x1, [sp, #96]",
    "ldr x1, [x0, #248]",
    "msr nzcv, x1",
    "ldp x2, x3, [x0, #16]",
    "ldp x4, x5, [x0, #32]",
    "ldp x6, x7, [x0, #48]",
    "ldp x8, x9, [x0, #64]",
    "ldp x10, x11, [x0, #80]",
    "ldp x12, x13, [x0, #96]",
    "ldp x14, x15, [x0, #112]",
    "ldp x16, x17, [x0, #128]",
    "ldp x18, x19, [x0, #144]",
    "ldp x20, x21, [x0, #160]",
    "ldp x22, x23, [x0, #176]",
    "ldp x24, x25, [x0, #192]",
    "ldp x26, x27, [x0, #208]",
    "ldp x28, x29, [x0, #224]",
    "ldr x30, [x0, #240]",
    "ldp x0, x1, [x0]",
    "umbra_guest_exec_slot:",
    "nop",
    "str x0, [sp, #112]",
    "ldr x0, [sp, #96]",
    "stp x2, x3, [x0, #16]",
    "stp x4, x5, [x0, #32]",
    "stp x6, x7, [x0, #48]",
    "stp x8, x9, [x0, #64]",
    "stp x10, x11, [x0, #80]",
    "stp x12, x13, [x0, #96]",
    "stp x14, x15, [x0, #112]",
    "stp x16, x17, [x0, #128]",
    "stp x18, x19, [x0, #144]",
    "stp x20, x21, [x0, #160]",
    "stp x22, x23, [x0, #176]",
    "stp x24, x25, [x0, #192]",
    "stp x26, x27, [x0, #208]",
    "stp x28, x29, [x0, #224]",
    "str x30, [x0, #240]",
    "str x1, [x0, #8]",
    "ldr x1, [sp, #112]",
    "str x1, [x0]",
    "mrs x1, nzcv",
    "str x1, [x0, #248]",
    "ldr x1, [sp, #104]",
    "mov x2, sp",
    "sub x1, x2, x1",
    "str x1, [x0, #256]",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #128",
    "ret",
    "umbra_guest_exec_end:",
);

unsafe extern "C" {
    static umbra_guest_exec: u8;
    static umbra_guest_exec_slot: u8;
    static umbra_guest_exec_end: u8;
}

/// Words of one routine, more than it has.
const ROOM: usize = 128;

#[repr(align(4096))]
struct Code(UnsafeCell<[[u32; ROOM]; MAX_CPUS]>);

// SAFETY: each CPU touches its own element alone.
unsafe impl Sync for Code {}

static CODE: Code = Code(UnsafeCell::new([[0; ROOM]; MAX_CPUS]));

/// Executes `instruction` with these registers, and says what exception it took, if one.
///
/// It may be anything that goes on behind itself, leaves SP alone and writes memory outside the
/// image only.
pub fn exec(instruction: u32, regs: &mut Regs) -> Option<Fault> {
    let start = &raw const umbra_guest_exec;
    let length = &raw const umbra_guest_exec_end as usize - start as usize;
    let slot = (&raw const umbra_guest_exec_slot as usize - start as usize) / 4;
    assert!(length <= ROOM * 4);
    // SAFETY: this CPU's element, inside the static.
    let code = unsafe { CODE.0.get().cast::<[u32; ROOM]>().add(cpu()) };
    // SAFETY: the element is this CPU's alone.
    if unsafe { code.cast::<u32>().read_volatile() } == 0 {
        // SAFETY: the routine is `length` bytes of instructions without PC-relative operands, and
        // the element has room for them.
        unsafe { core::ptr::copy_nonoverlapping(start, code.cast::<u8>(), length) };
        mem::sync_code(code as u64, length as u64);
    }
    // SAFETY: the slot is inside the element.
    let slot = unsafe { code.cast::<u32>().add(slot) };
    // SAFETY: as above.
    unsafe { slot.write_volatile(instruction) };
    mem::sync_code(slot as u64, 4);
    // SAFETY: the element holds that routine, which follows the procedure call standard.
    let run: extern "C" fn(&mut Regs) = unsafe { core::mem::transmute(code) };
    expect(|| run(regs))
}

/// `mrs x0, S<op0>_<op1>_C<crn>_C<crm>_<op2>` by its 16 bits of encoding, op0 first.
pub const fn mrs(encoding: u32) -> u32 {
    0xd520_0000 | (encoding & 0xffff) << 5
}

/// `msr S<op0>_<op1>_C<crn>_C<crm>_<op2>, x0` by its encoding.
pub const fn msr(encoding: u32) -> u32 {
    0xd500_0000 | (encoding & 0xffff) << 5
}

/// The encoding of a system register.
pub const fn sys(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Returns by `eret` to the next instruction, in this SPSR's state.
pub fn exception_return(spsr: u64) {
    // SAFETY: an illegal state is reported before the next instruction, and the handler mends it;
    // a legal one that is not this state's own would lose the stack, so callers pass none.
    unsafe {
        core::arch::asm!(
            "adr {scratch}, 2f",
            "msr elr_el1, {scratch}",
            "msr spsr_el1, {spsr}",
            "isb",
            "eret",
            "2: nop",
            scratch = out(reg) _, spsr = in(reg) spsr, options(nostack)
        );
    }
}

/// Loads by SP_EL0 as stack pointer from an address.
pub fn load_by_stack_pointer(addr: u64) {
    let addr = mem::outside(addr);
    // SAFETY: SP_EL1 is kept, and interrupts, which would use it, are masked by the caller;
    // a synchronous exception switches to it by itself.
    unsafe {
        core::arch::asm!(
            "msr sp_el0, {addr}",
            "msr spsel, #0",
            "ldr {addr}, [sp]",
            "msr spsel, #1",
            addr = inout(reg) addr => _, options(nostack)
        );
    }
}

/// Returns by `eret` from mode `here` to `there`, the same level with SP_EL0 as its stack pointer, and
/// by another `eret` back, all masked.
pub fn through_other_stack(here: u64, there: u64) {
    // SAFETY: nothing is pushed in between, interrupts are masked, and a synchronous exception
    // switches to the usual stack pointer by itself.
    unsafe {
        core::arch::asm!(
            "adr {scratch}, 2f",
            "msr elr_el1, {scratch}",
            "msr spsr_el1, {there}",
            "isb",
            "eret",
            "2: adr {scratch}, 3f",
            "msr elr_el1, {scratch}",
            "msr spsr_el1, {here}",
            "isb",
            "eret",
            "3: nop",
            scratch = out(reg) _,
            there = in(reg) there | 0x3c0,
            here = in(reg) here | 0x3c0,
            options(nostack)
        );
    }
}
