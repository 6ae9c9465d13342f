//! From the Image's first instruction at EL2 to `main`, and exceptions that nobody asked for.

use core::arch::global_asm;
use core::panic::PanicInfo;

use super::{exit, println};

global_asm!(
    ".section .head, \"ax\"",
    ".global _head",
    "_head:",
    "b 1f",
    ".long 0",
    ".quad 0",            // text_offset
    ".quad __image_size", // image_size
    ".quad 2",            // little-endian, 4 KiB pages
    ".quad 0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".long 0",
    "1: mrs x0, CurrentEL",
    "cmp x0, #8",
    "b.ne 9f",
    "mov x0, #1 << 34", // E2H
    "orr x0, x0, #1 << 31",
    "msr hcr_el2, x0",
    "isb",
    "ldr x0, =0x30c50830", // the bits that are 1, and the MMU off
    "msr sctlr_el2, x0",
    "msr tpidr_el2, xzr",
    "ldr x0, =umbra_oracle_vectors",
    "msr vbar_el2, x0",
    "isb",
    "ldr x0, =__stack",
    "mov sp, x0",
    "ldr x1, =__bss_start",
    "ldr x2, =__bss_end",
    "2: cmp x1, x2",
    "b.hs 3f",
    "stp xzr, xzr, [x1], #16",
    "b 2b",
    "3: bl umbra_oracle_main",
    "9: wfi",
    "b 9b",
    ".pool",
    ".text",
    ".balign 2048",
    "umbra_oracle_vectors:",
    ".fill 128, 4, 0", // from SP_EL0: not used
    // Synchronous, this level: an AT that took an abort, or a mistake.
    "msr tpidr_el0, x16",
    "mrs x16, tpidr_el2",
    "cbz x16, 4f",
    "mrs x7, esr_el2",
    "br x16",
    "4: mrs x0, esr_el2",
    "mrs x1, elr_el2",
    "mrs x2, far_el2",
    "b umbra_oracle_exception",
    ".balign 2048",
);

// SAFETY: called once, by the code above.
#[unsafe(no_mangle)]
extern "C" fn umbra_oracle_main() -> ! {
    exit(crate::main_at_el2().into())
}

// SAFETY: called by the vector above, which has nothing to return to.
#[unsafe(no_mangle)]
extern "C" fn umbra_oracle_exception(esr: u64, elr: u64, far: u64) -> ! {
    println!("FAIL oracle: exception esr {esr:#x} elr {elr:#x} far {far:#x}");
    exit(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAIL oracle: {info}");
    exit(1)
}
