//! Physical memory as the safe part of umbra may touch it.
//!
//! RAM is handled in chunks of 2 MiB. A chunk is in one of three states, and only gains one:
//! *plain* (of guests and processes: mapped nowhere in umbra's half, reached through a window or
//! through a process's own mapping), *table* (linear-mapped, reached as atomic words only, so two
//! users of one word are a logic error but never undefined behaviour) and *heap* (linear-mapped,
//! handed to the allocator for good).

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_arm64::Pa;

use crate::mmu::{self, Kind, LINEAR, NoTablePages, WINDOWS};
use crate::percpu;
use crate::regs::{insn, mrs};
use crate::sabotage::{Safeguard, left_out};

/// Bytes in a chunk.
pub const CHUNK: u64 = 2 << 20;
/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Physical addresses that umbra can manage: 128 GiB.
const LIMIT: u64 = 128 << 30;
const WORDS: usize = (LIMIT / CHUNK / 64) as usize;

static TABLES: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static HEAP: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static RAM: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

fn bit(map: &[AtomicU64; WORDS], pa: u64) -> bool {
    let chunk = (pa / CHUNK) as usize;
    map.get(chunk / 64)
        .is_some_and(|word| word.load(Ordering::Acquire) >> (chunk % 64) & 1 == 1)
}

fn set_bit(map: &[AtomicU64; WORDS], pa: u64) {
    let chunk = (pa / CHUNK) as usize;
    map[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Release);
}

/// Whether umbra can manage RAM at `pa`.
pub fn is_manageable(pa: Pa) -> bool {
    pa.raw() < LIMIT
}

/// Declares a chunk to be RAM that the frame allocator owns. Boot only; the image, the device tree
/// and the initrd are never in such a chunk.
pub fn declare_ram(chunk: Pa) {
    assert!(chunk.is_aligned(CHUNK) && is_manageable(chunk));
    set_bit(&RAM, chunk.raw());
}

fn is_plain(pa: u64) -> bool {
    bit(&RAM, pa) && !bit(&TABLES, pa) && !bit(&HEAP, pa)
}

/// Turns a free plain chunk into a table chunk: linear-mapped from here on, in pages, each of which can be
/// replaced (`lost`).
///
/// # Errors
/// [`NoTablePages`] when the kernel half lacks a table page for the mapping; nothing changed.
pub fn claim_tables(chunk: Pa) -> Result<(), NoTablePages> {
    assert!(
        chunk.is_aligned(CHUNK) && is_plain(chunk.raw()),
        "{chunk} is not a plain chunk"
    );
    let (va, pages) = (LINEAR + chunk.raw(), CHUNK / PAGE);
    mmu::map_pages(va, chunk.raw(), pages, Kind::Memory)?;
    set_bit(&TABLES, chunk.raw());
    Ok(())
}

/// The same for words that umbra cannot be without: the frame table, rings.
///
/// # Errors
/// [`NoTablePages`], as above.
pub fn claim_words(chunk: Pa) -> Result<(), NoTablePages> {
    assert!(
        chunk.is_aligned(CHUNK) && is_plain(chunk.raw()),
        "{chunk} is not a plain chunk"
    );
    mmu::map_block(LINEAR + chunk.raw(), chunk.raw(), Kind::Memory)?;
    set_bit(&TABLES, chunk.raw());
    Ok(())
}

/// Turns a free plain chunk into heap and returns its address.
pub(crate) fn claim_heap(chunk: Pa) -> Result<u64, NoTablePages> {
    assert!(
        chunk.is_aligned(CHUNK) && is_plain(chunk.raw()),
        "{chunk} is not a plain chunk"
    );
    let va = LINEAR + chunk.raw();
    mmu::map_block(va, chunk.raw(), Kind::Memory)?;
    set_bit(&HEAP, chunk.raw());
    Ok(va)
}

/// A page of a table chunk as 512 words.
#[inline]
pub fn table(pa: Pa) -> &'static [AtomicU64; 512] {
    assert!(
        pa.is_aligned(PAGE) && bit(&TABLES, pa.raw()),
        "{pa} is not in a table chunk"
    );
    // SAFETY: the chunk is linear-mapped for good and reached as atomics only.
    unsafe { &*((LINEAR + pa.raw()) as *const [AtomicU64; 512]) }
}

/// Lets `pa`, where nothing answers, be a page of a table, to see what becomes of it. False without memory
/// for tables.
pub fn pretend_table(pa: Pa) -> bool {
    let va = LINEAR + pa.raw();
    if !bit(&TABLES, pa.raw()) {
        if mmu::map_pages(va, pa.raw(), 1, Kind::Memory).is_err() {
            return false;
        }
        set_bit(&TABLES, pa.raw());
    }
    crate::lost::pretend(pa);
    true
}

/// Whether every word of a page of a table chunk can be read: an external abort is an answer here, not
/// the end.
pub fn is_readable(pa: Pa) -> bool {
    if !pa.is_aligned(PAGE) || !bit(&TABLES, pa.raw()) {
        return false;
    }
    !crate::lost::is_lost(pa)
        && (0..PAGE / 8).all(|word| crate::copy::is_readable(LINEAR + pa.raw() + 8 * word))
}

/// Words of a run of pages within one table chunk (the frame table, rings).
pub fn words(pa: Pa, bytes: u64) -> &'static [AtomicU64] {
    assert!(pa.is_aligned(8) && bytes.is_multiple_of(8));
    let mut at = pa.align_down(CHUNK).raw();
    while at < pa.raw() + bytes {
        assert!(bit(&TABLES, at), "{pa} + {bytes:#x} is not in table chunks");
        at += CHUNK;
    }
    // SAFETY: as for `table`; the chunks are contiguous in the linear map.
    unsafe {
        core::slice::from_raw_parts(
            (LINEAR + pa.raw()) as *const AtomicU64,
            (bytes / 8) as usize,
        )
    }
}

/// Clears a page of a table chunk.
pub fn clear_table(pa: Pa) {
    for word in table(pa) {
        word.store(0, Ordering::Relaxed);
    }
}

/// Physical address of heap memory that a reference points to.
pub(crate) fn heap_pa(va: u64) -> Option<u64> {
    let pa = va.checked_sub(LINEAR)?;
    bit(&HEAP, pa).then_some(pa)
}

/// Runs `f` with a plain page range (inside one chunk) mapped at this CPU's window.
fn with_window<R>(pa: Pa, bytes: u64, f: impl FnOnce(*mut u8) -> R) -> R {
    let end = pa.raw() + bytes;
    assert!(
        bytes > 0 && pa.raw() / CHUNK == (end - 1) / CHUNK && is_plain(pa.raw()),
        "{pa} + {bytes:#x} is not plain memory"
    );
    let this = percpu::this();
    assert!(!this.window_busy.replace(true), "the window is in use");
    let first = pa.align_down(PAGE);
    let pages = (end - first.raw()).div_ceil(PAGE);
    let slot = WINDOWS + percpu::cpu() as u64 * CHUNK;
    let va = slot + first.offset_in(CHUNK);
    mmu::window_map(va, first.raw(), pages);
    let result = f((va + pa.offset_in(PAGE)) as *mut u8);
    mmu::window_unmap(va, pages);
    this.window_busy.set(false);
    result
}

/// Clears plain memory inside one chunk: `bytes` a multiple of the page size.
pub fn clear(pa: Pa, bytes: u64) {
    assert!(pa.is_aligned(PAGE) && bytes.is_multiple_of(PAGE));
    if left_out(Safeguard::Clear) {
        return;
    }
    let zva = mrs!("dczid_el0");
    let has_mops = crate::idregs::read(6, 2) >> 16 & 0xf != 0;
    with_window(pa, bytes, |at| {
        if has_mops {
            // SAFETY: inside the window, which maps `bytes` writable bytes.
            unsafe {
                core::arch::asm!(
                    ".arch_extension mops",
                    "setp [{at}]!, {left}!, xzr",
                    "setm [{at}]!, {left}!, xzr",
                    "sete [{at}]!, {left}!, xzr",
                    at = inout(reg) at => _, left = inout(reg) bytes => _, options(nostack)
                );
            }
        } else if zva & 1 << 4 == 0 {
            let step = 4u64 << (zva & 0xf);
            let end = at as u64 + bytes;
            let mut at = at as u64;
            while at < end {
                // A page is at least two of the largest blocks (2 KiB), and eight of most.
                // SAFETY: inside the window, which maps `bytes` writable bytes, whole pages.
                unsafe {
                    if step <= PAGE / 8 {
                        core::arch::asm!(
                            ".rept 8", "dc zva, {at}", "add {at}, {at}, {step}", ".endr",
                            at = inout(reg) at, step = in(reg) step, options(nostack)
                        );
                    } else {
                        core::arch::asm!(
                            ".rept 2", "dc zva, {at}", "add {at}, {at}, {step}", ".endr",
                            at = inout(reg) at, step = in(reg) step, options(nostack)
                        );
                    }
                }
            }
        } else {
            // SAFETY: as above.
            unsafe { core::ptr::write_bytes(at, 0, bytes as usize) };
        }
    });
    // SAFETY: a barrier: the zeroes are visible before the page is mapped for anybody.
    unsafe { insn!("dsb ishst") };
}

/// Writes `data` into plain memory at `pa`, within one chunk.
pub fn fill(pa: Pa, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    with_window(pa, data.len() as u64, |at| {
        // SAFETY: the window maps `data.len()` writable bytes; umbra holds no reference to them.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
    });
    // SAFETY: a barrier, as in `clear`.
    unsafe { insn!("dsb ishst") };
}

/// Reads plain memory at `pa`, within one chunk.
pub fn read(pa: Pa, data: &mut [u8]) {
    if data.is_empty() {
        return;
    }
    with_window(pa, data.len() as u64, |at| {
        // SAFETY: as in `fill`. Another CPU may write the page meanwhile (it is a guest's or a
        // process's); the bytes are then any mixture, which every reader here expects.
        unsafe { core::ptr::copy_nonoverlapping(at, data.as_mut_ptr(), data.len()) };
    });
}

/// Makes data written through any mapping visible to instruction fetches from plain memory at `pa`.
pub fn sync_instructions(pa: Pa, bytes: u64) {
    let ctr = mrs!("ctr_el0");
    let dic = ctr >> 29 & 1 == 1;
    let idc = ctr >> 28 & 1 == 1;
    if dic && idc {
        return;
    }
    let line = 4u64 << (ctr >> 16 & 0xf);
    let (mut from, end) = (pa.raw(), pa.raw() + bytes);
    while from < end && !idc {
        let part = (CHUNK - from % CHUNK).min(end - from);
        with_window(Pa::new(from), part, |at| {
            let mut offset = 0;
            while offset < part {
                // SAFETY: cache maintenance by address inside the window.
                unsafe { insn!("dc cvau, {}", at as u64 + offset) };
                offset += line;
            }
        });
        from += part;
    }
    // SAFETY: barriers and I-cache maintenance; aliasing caches need the whole of it.
    unsafe {
        insn!("dsb ish");
        if !dic {
            insn!("ic ialluis");
            insn!("dsb ish");
        }
        insn!("isb");
    }
}

/// Bytes of boot data and device registers together that can be mapped.
pub const BOOT_DATA_LIMIT: u64 = WINDOWS - mmu::DEVICES;

/// Boot data (device tree, initrd) that the loader left in RAM: mapped read-only for good.
///
/// # Errors
/// [`NoTablePages`] as for every mapping.
pub fn boot_data(pa: Pa, bytes: u64) -> Result<&'static [u8], NoTablePages> {
    let end = pa.raw() + bytes;
    let mut chunk = pa.align_down(CHUNK).raw();
    while chunk < end {
        assert!(
            !bit(&RAM, chunk),
            "boot data at {pa} lies in allocatable RAM"
        );
        chunk += CHUNK;
    }
    let va = mmu::map_device(pa.raw(), bytes, Kind::Constant)?;
    // SAFETY: mapped read-only just now, never unmapped, and its chunks are never declared RAM.
    Ok(unsafe { core::slice::from_raw_parts(va as *const u8, bytes as usize) })
}

/// Memory that firmware shares with umbra (error status blocks and their registers), as words that both write:
/// mapped for good. `pa` and `bytes` are multiples of eight; `None` if that is not so, or if any of it is
/// RAM that the frame allocator owns.
///
/// # Errors
/// [`NoTablePages`] as for every mapping.
pub fn firmware_words(pa: Pa, bytes: u64) -> Result<Option<&'static [AtomicU64]>, NoTablePages> {
    let Some(end) = pa.raw().checked_add(bytes) else {
        return Ok(None);
    };
    let first = pa.align_down(CHUNK).raw();
    let owned = (first..end).step_by(CHUNK as usize).any(|at| bit(&RAM, at));
    if !pa.is_aligned(8) || !bytes.is_multiple_of(8) || end > LIMIT || owned {
        return Ok(None);
    }
    let va = mmu::map_device(pa.raw(), bytes, Kind::Memory)?;
    // SAFETY: mapped just now, never unmapped, aligned as the address is; its chunks are not RAM of the
    // allocator and become none after boot, so nobody has a reference to it that is not to atomics.
    Ok(Some(unsafe {
        core::slice::from_raw_parts(va as *const AtomicU64, (bytes / 8) as usize)
    }))
}
