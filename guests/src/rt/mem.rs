//! Memory outside the image: single accesses, caches, and RAM that nobody has touched yet.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// First byte of RAM.
pub const RAM: u64 = 0x8000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a level 2 block.
pub const BLOCK: u64 = 2 << 20;

/// Bits of a physical address, as far as 48, that the machine claims (ID_AA64MMFR0_EL1.PARange).
pub fn pa_bits() -> u32 {
    [32, 36, 40, 42, 44, 48][(crate::mrs!("id_aa64mmfr0_el1") & 0xf).min(5) as usize]
}

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// Whether an address is inside the image.
pub(super) fn in_image(addr: u64) -> bool {
    (&raw const __image_start as u64..&raw const __image_end as u64).contains(&addr)
}

/// An address that no Rust object has; panics for one of the image.
pub(super) fn outside(addr: u64) -> u64 {
    assert!(!in_image(addr), "{addr:#x} belongs to the image");
    addr
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $load:literal, $store:literal) => {
        /// Loads from an address, by one plain instruction (base register only).
        pub fn $read(addr: u64) -> $type {
            let value: u64;
            let addr = outside(addr);
            // SAFETY: the address is none of Rust's; a fault is taken as an exception.
            unsafe { asm!($load, out(reg) value, in(reg) addr, options(nostack)) };
            value as $type
        }
        /// Stores to an address, by one plain instruction (base register only).
        pub fn $write(addr: u64, value: $type) {
            let addr = outside(addr);
            // SAFETY: as for the load.
            unsafe { asm!($store, in(reg) u64::from(value), in(reg) addr, options(nostack)) };
        }
    };
}

access!(read8, write8, u8, "ldrb {0:w}, [{1}]", "strb {0:w}, [{1}]");
access!(
    read16,
    write16,
    u16,
    "ldrh {0:w}, [{1}]",
    "strh {0:w}, [{1}]"
);
access!(read32, write32, u32, "ldr {0:w}, [{1}]", "str {0:w}, [{1}]");
access!(read64, write64, u64, "ldr {0}, [{1}]", "str {0}, [{1}]");

/// Makes instructions written to `addr..addr + len` executable.
pub fn sync_code(addr: u64, len: u64) {
    let step = 16;
    for line in (addr..addr + len).step_by(step) {
        crate::op!("dc cvau", line);
    }
    crate::op!("dsb ish");
    for line in (addr..addr + len).step_by(step) {
        crate::op!("ic ivau", line);
    }
    crate::op!("dsb ish");
    crate::op!("isb");
}

/// Calls code at an address, by blr: returns x0. A fetch that faults returns here too, see `probe`.
pub fn call(addr: u64, argument: u64) -> u64 {
    let mut x0 = argument;
    // SAFETY: the code is the payload's own and follows the procedure call standard.
    unsafe { asm!("blr {}", in(reg) addr, inout("x0") x0, clobber_abi("C")) };
    x0
}

static NEXT: AtomicU64 = AtomicU64::new(RAM + BLOCK);
static END: AtomicU64 = AtomicU64::new(0);

/// Says how much RAM there is; the last 2 MiB hold the device tree.
pub(super) fn set_fresh(memory: u64) {
    END.store((RAM + memory).saturating_sub(BLOCK), Ordering::Relaxed);
}

/// RAM that nothing has touched since the machine started, aligned to `align`. Never given back.
pub fn fresh(size: u64, align: u64) -> u64 {
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    let next = start + size.next_multiple_of(PAGE);
    let end = END.load(Ordering::Relaxed);
    assert!(next <= end, "this payload needs more RAM than {end:#x}");
    NEXT.store(next, Ordering::Relaxed);
    start
}
