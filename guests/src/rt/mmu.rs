//! Stage 1 of EL1&0: mappings for experiments, beside the identity map that boot made.
//!
//! Tables have 4 KiB pages and four levels (48 bits). A table made on the way to a leaf comes from
//! RAM that nothing has touched (see `mem::fresh`), so that each is also a first touch by the
//! table walker or by the store that fills it, as the test likes.

use core::sync::atomic::{AtomicU64, Ordering};

use super::mem;

/// First virtual address that the identity map leaves free; 512 GiB from here on are.
pub const WINDOW: u64 = 1 << 39;

/// Valid leaf at level 3, or table.
pub const PAGE_OR_TABLE: u64 = 3;
/// Valid leaf at levels 1 and 2.
pub const BLOCK: u64 = 1;
/// Normal write-back memory, inner shareable, accessed, read, write and execute at EL1.
pub const NORMAL: u64 = 1 << 2 | 3 << 8 | 1 << 10;
/// Normal non-cacheable memory, otherwise the same.
pub const NON_CACHEABLE: u64 = 2 << 2 | 3 << 8 | 1 << 10;
/// Device memory, accessed, read and write at EL1.
pub const DEVICE: u64 = 1 << 10 | 3 << 53;
/// Output address of a descriptor.
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

static NEXT_WINDOW: AtomicU64 = AtomicU64::new(WINDOW);
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Moves the root out of the image, so that tables are ordinary memory for these functions.
pub(super) fn init() {
    let root = crate::mrs!("ttbr0_el1");
    let copy = mem::fresh(mem::PAGE, mem::PAGE);
    for at in (0..mem::PAGE).step_by(8) {
        // SAFETY: the boot root is a table of 512 entries in the image, which nothing writes.
        let entry = unsafe { ((root + at) as *const u64).read() };
        mem::write64(copy + at, entry);
    }
    ROOT.store(copy, Ordering::Relaxed);
    descriptor(WINDOW, 1);
    enter();
}

/// Makes this CPU use the tables.
pub(super) fn enter() {
    crate::op!("dsb ishst");
    let root = ROOT.load(Ordering::Relaxed);
    // SAFETY: the root maps the image and all that boot mapped, at the same addresses.
    unsafe { core::arch::asm!("msr ttbr0_el1, {}", "isb", in(reg) root, options(nostack)) };
    invalidate();
}

/// Forgets all translations, on all CPUs.
pub fn invalidate() {
    crate::op!("dsb ishst");
    crate::op!("tlbi vmalle1is");
    crate::op!("dsb ish");
    crate::op!("isb");
}

/// Forgets the translation of one page on all CPUs.
pub fn invalidate_page(va: u64) {
    crate::op!("dsb ishst");
    crate::op!("tlbi vaae1is", va >> 12 & 0xfff_ffff_ffff);
    crate::op!("dsb ish");
    crate::op!("isb");
}

/// A free virtual range of 1 GiB, with no table below level 1.
pub fn window() -> u64 {
    NEXT_WINDOW.fetch_add(1 << 30, Ordering::Relaxed)
}

/// The address of the descriptor of `va` at `level` (1 to 3); tables above are made if need be.
pub fn descriptor(va: u64, level: u32) -> u64 {
    assert!(va >= WINDOW, "{va:#x} belongs to the identity map");
    let mut table = ROOT.load(Ordering::Relaxed);
    for above in 0..level {
        let at = index(table, va, above);
        let mut entry = mem::read64(at);
        if entry & 1 == 0 {
            entry = empty_table() | PAGE_OR_TABLE;
            set(at, entry);
        }
        assert!(
            entry & 3 == PAGE_OR_TABLE,
            "{va:#x} has a block at level {above}"
        );
        table = entry & OUTPUT;
    }
    index(table, va, level)
}

/// Zeroed memory for a table.
pub fn empty_table() -> u64 {
    let table = mem::fresh(mem::PAGE, mem::PAGE);
    for at in (0..mem::PAGE).step_by(8) {
        mem::write64(table + at, 0);
    }
    table
}

fn index(table: u64, va: u64, level: u32) -> u64 {
    table + (va >> (39 - 9 * level) & 0x1ff) * 8
}

/// Writes a descriptor and waits until walks see it.
pub fn set(descriptor: u64, value: u64) {
    mem::write64(descriptor, value);
    crate::op!("dsb ishst");
    crate::op!("isb");
}

/// Maps a page that is not mapped.
pub fn map(va: u64, pa: u64, attributes: u64) {
    set(descriptor(va, 3), pa | attributes | PAGE_OR_TABLE);
}

/// Maps one page of a fresh window and gives its virtual address.
pub fn map_new(pa: u64, attributes: u64) -> u64 {
    let va = window();
    map(va, pa, attributes);
    va
}

/// Runs something while TCR_EL1.IPS says this (Arm ARM, TCR_EL1).
pub fn with_output_size(ips: u64, run: impl FnOnce()) {
    let tcr = crate::mrs!("tcr_el1");
    let changed = tcr & !(7 << 32) | (ips & 7) << 32;
    // SAFETY: every encoding leaves at least 32 bits of output, where the image lies.
    unsafe { core::arch::asm!("msr tcr_el1, {}", "isb", in(reg) changed, options(nostack)) };
    invalidate();
    run();
    // SAFETY: the value that was there.
    unsafe { core::arch::asm!("msr tcr_el1, {}", "isb", in(reg) tcr, options(nostack)) };
    invalidate();
}
