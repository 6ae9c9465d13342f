//! From the Image's first instruction to the payload, on CPU 0 and on the others.
//!
//! The MMU goes on before the first store: every write to RAM is cacheable from then on, so no
//! cache maintenance is needed between the two worlds. The boot tables are assembled constants.

use core::arch::global_asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{MAX_CPUS, cpu, mem, mmu, psci, smp, uart};
use crate::fdt;
use crate::suite::Suite;

global_asm!(
    ".section .head, \"ax\"",
    ".global _head",
    "_head:",
    "b 1f",
    ".long 0",
    ".quad 0",            // text_offset
    ".quad __image_size", // image_size
    ".quad 2",            // little-endian, 4 KiB pages, near the start of RAM
    ".quad 0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".long 0",
    // CPU 0. x0 = device tree.
    "1: adr x1, _head",
    "ldr x2, =_head",
    "cmp x1, x2",
    "b.ne 9f",
    "mov x20, x0",
    "mov x19, xzr",
    "bl cpu_setup",
    "ldr x1, =__bss_start",
    "ldr x2, =__bss_end",
    "2: cmp x1, x2",
    "b.hs 3f",
    "stp xzr, xzr, [x1], #16",
    "b 2b",
    "3: mov x0, x20",
    "bl umbra_guest_main",
    // Somewhere else than linked: there is no way to say so, but to stop.
    "9: mov w0, #0x0008",
    "movk w0, #0x8400, lsl #16",
    "hvc #0",
    "b 9b",
    // Another CPU. x0 = its number.
    ".global umbra_guest_secondary_entry",
    "umbra_guest_secondary_entry:",
    "mov x19, x0",
    "mrs x20, sctlr_el1",
    "mrs x21, CurrentEL",
    "mrs x22, daif",
    "bl cpu_setup",
    "mov x0, x19",
    "and x1, x20, #1",
    "orr x1, x1, x21",
    "orr x1, x1, x22",
    "bl umbra_guest_secondary",
    // Registers of this CPU. x19 = its number. Leaves with its stack.
    "cpu_setup:",
    // At EL2: its E2H form, as host (TGE), so that the names of EL1's registers are EL2's own.
    "mrs x1, CurrentEL",
    "cmp x1, #8",
    "b.ne 4f",
    "ldr x1, =0x488000000", // E2H, RW, TGE
    "msr hcr_el2, x1",
    "isb",
    "msr vttbr_el2, xzr",
    "msr cntvoff_el2, xzr",
    "mrs x1, midr_el1",
    "msr vpidr_el2, x1",
    "mrs x1, mpidr_el1",
    "msr vmpidr_el2, x1",
    "4: ldr x1, =umbra_guest_vectors",
    "msr vbar_el1, x1",
    "mov x1, #3 << 20",
    "msr cpacr_el1, x1",
    "ldr x1, =0x44ff04", // MAIR: 0 device-nGnRE, 1 normal write-back, 2 normal non-cacheable
    "msr mair_el1, x1",
    // T0SZ 16, write-back inner-shareable walks, 4 KiB, no TTBR1
    "ldr x1, =0x803510",
    "mrs x2, id_aa64mmfr0_el1",
    "and x2, x2, #0xf",
    "cmp x2, #5",
    "mov x3, #5",
    "csel x2, x2, x3, lo",
    "orr x1, x1, x2, lsl #32",
    "msr tcr_el1, x1",
    "ldr x1, =umbra_guest_l0",
    "msr ttbr0_el1, x1",
    "tlbi vmalle1",
    "dsb nsh",
    "isb",
    "ldr x1, =0x30d0180d", // RES1, I, SA, C, M
    "msr sctlr_el1, x1",
    "isb",
    "ldr x1, =__stacks",
    "add x2, x19, #1",
    "add x1, x1, x2, lsl #15",
    "mov sp, x1",
    "ret",
    ".pool",
    ".section .data",
    ".balign 4096",
    ".global umbra_guest_l0",
    "umbra_guest_l0: .quad umbra_guest_l1 + 3",
    ".fill 511, 8, 0",
    // Blocks of 1 GiB: device, never executed; nothing; normal, inner shareable.
    "umbra_guest_l1: .quad 0x0060000000000401, 0, 0x80000705, 0x00600000c0000401",
    ".fill 508, 8, 0",
    ".text",
);

unsafe extern "Rust" {
    /// The payload's own entry, made by `payload!`.
    safe fn umbra_payload(suite: &mut Suite);
    /// The payload's name.
    safe fn umbra_payload_name() -> &'static str;
}

/// The hidden half of `payload!`: the symbols that boot calls.
#[macro_export]
macro_rules! entry {
    ($name:ident) => {
        // SAFETY: the name is this runtime's own, and a program has one payload.
        #[unsafe(no_mangle)]
        fn umbra_payload(suite: &mut $crate::suite::Suite) {
            $name::run(suite)
        }
        // SAFETY: as above.
        #[unsafe(no_mangle)]
        fn umbra_payload_name() -> &'static str {
            stringify!($name)
        }
    };
}

static DTB: AtomicU64 = AtomicU64::new(0);
static PANICKED: AtomicBool = AtomicBool::new(false);

/// What the device tree says of this machine.
pub fn machine() -> fdt::Machine<'static> {
    let dtb = DTB.load(Ordering::Relaxed) as *const u8;
    // SAFETY: x0 at entry is a device tree in RAM (Linux boot protocol), which nothing writes.
    let head = unsafe { core::slice::from_raw_parts(dtb, 8) };
    let size = fdt::total_size(head).unwrap_or(0).min(2 << 20);
    // SAFETY: as above; the protocol bounds it by 2 MiB.
    fdt::read(unsafe { core::slice::from_raw_parts(dtb, size) })
}

/// Whether a word is on the command line.
pub fn has_arg(word: &str) -> bool {
    machine()
        .bootargs
        .split_ascii_whitespace()
        .any(|w| w == word)
}

// SAFETY: called once, by the code above.
#[unsafe(no_mangle)]
extern "C" fn umbra_guest_main(dtb: u64) -> ! {
    DTB.store(dtb, Ordering::Relaxed);
    let found = machine();
    mem::set_fresh(found.memory);
    mmu::init();
    smp::init(found.cpus.clamp(1, MAX_CPUS));
    let mut suite = Suite::new(umbra_payload_name());
    umbra_payload(&mut suite);
    suite.finish();
    psci::system_off()
}

// SAFETY: called by the code above, on a CPU that `smp` has started.
#[unsafe(no_mangle)]
extern "C" fn umbra_guest_secondary(number: u64, entry: u64) -> ! {
    smp::secondary(number, entry)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // A second panic, here or on another CPU, must not keep the first from being heard.
    if !PANICKED.swap(true, Ordering::SeqCst) {
        uart::force_unlock();
        let name = umbra_payload_name();
        crate::println!("FAIL {name}: cpu {} panic: {info}", cpu());
        psci::system_off()
    }
    loop {
        core::hint::spin_loop();
    }
}
