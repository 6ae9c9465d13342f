//! umbra's own half of the EL2&0 address space (TTBR1_EL2): who lives where, and the tables.
//!
//! ```text
//! 0xffff_8000_0000_0000  linear   kernel-owned RAM only, at PA + this base (2 MiB blocks)
//! 0xffff_ff00_0000_0000  stacks   kernel stacks, each above an unmapped guard
//! 0xffff_ffff_8000_0000  image    text R-X, constants R--, data RW-
//! 0xffff_ffff_c000_0000  devices  registers, and boot data mapped read-only
//! 0xffff_ffff_e000_0000  windows  one 2 MiB slot per CPU for clearing and filling pages
//! ```
//!
//! RAM of guests and processes is mapped nowhere here. Nothing is writable and executable at once.
//! Entries only ever go from invalid to valid, except stacks and windows, whose removal is followed
//! by TLB maintenance before the range is used again.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use umbra_arm64::Pa;

use crate::boot::IMAGE_BASE;
use crate::regs::insn;
use crate::sync::SpinLock;

/// Start of the linear map.
pub(crate) const LINEAR: u64 = 0xffff_8000_0000_0000;
/// Start of the stacks.
pub(crate) const STACKS: u64 = 0xffff_ff00_0000_0000;
/// Start of the device and boot-data mappings.
pub(crate) const DEVICES: u64 = 0xffff_ffff_c000_0000;
/// Start of the windows.
pub(crate) const WINDOWS: u64 = 0xffff_ffff_e000_0000;

const VALID: u64 = 1;
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const AF: u64 = 1 << 10;
const ISH: u64 = 3 << 8;
const READ_ONLY: u64 = 1 << 7;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What a mapping is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Read-write memory.
    Memory,
    /// Read-only memory.
    Constant,
    /// Device registers, Device-nGnRE.
    Device,
}

impl Kind {
    fn attributes(self) -> u64 {
        AF | PXN
            | UXN
            | match self {
                Kind::Memory => ISH,
                Kind::Constant => ISH | READ_ONLY,
                Kind::Device => 1 << 2,
            }
    }
}

unsafe extern "C" {
    static __boot_tables: u8;
    static __image_start: u8;
    static __image_end: u8;
}

/// Table pages for the first mappings, before there is a frame allocator.
const EARLY: usize = 16;
#[repr(C, align(4096))]
struct EarlyTables([[AtomicU64; 512]; EARLY]);
static EARLY_TABLES: EarlyTables =
    EarlyTables([const { [const { AtomicU64::new(0) }; 512] }; EARLY]);

/// Where the image lies in physical memory.
static IMAGE: AtomicU64 = AtomicU64::new(0);

struct Space {
    early_used: usize,
    donated: heapless_stack::Stack,
    next_device: u64,
}

mod heapless_stack {
    /// Physical pages given for tables; small, since a table page covers 1 GiB of linear map.
    pub(super) struct Stack {
        pages: [u64; 64],
        len: usize,
    }
    impl Stack {
        pub(super) const fn new() -> Self {
            Self {
                pages: [0; 64],
                len: 0,
            }
        }
        pub(super) fn push(&mut self, page: u64) -> bool {
            if self.len == self.pages.len() {
                return false;
            }
            self.pages[self.len] = page;
            self.len += 1;
            true
        }
        pub(super) fn pop(&mut self) -> Option<u64> {
            self.len = self.len.checked_sub(1)?;
            Some(self.pages[self.len])
        }
        pub(super) fn len(&self) -> usize {
            self.len
        }
    }
}

static SPACE: SpinLock<Space> = SpinLock::new(
    "mmu",
    250,
    Space {
        early_used: 0,
        donated: heapless_stack::Stack::new(),
        next_device: DEVICES,
    },
);

/// No page for a table is left: give some with [`donate`] and try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTablePages;

/// Physical range of the image, from the load address found at boot.
pub fn image() -> (Pa, u64) {
    let bytes = (&raw const __image_end) as u64 - (&raw const __image_start) as u64;
    (Pa::new(IMAGE.load(Ordering::Acquire)), bytes)
}

/// Physical address of something in the image.
pub(crate) fn image_pa(va: u64) -> u64 {
    va - IMAGE_BASE + IMAGE.load(Ordering::Acquire)
}

pub(crate) fn init(image: u64) {
    IMAGE.store(image, Ordering::Release);
}

/// Pages at hand for tables of the kernel half.
pub fn table_pages_left() -> usize {
    let space = SPACE.lock();
    EARLY - space.early_used + space.donated.len()
}

/// Gives a zeroed page from a linear-mapped chunk for tables. Returns false when enough are held.
pub fn donate(pa: Pa) -> bool {
    let taken = SPACE.lock().donated.push(pa.raw());
    DONATED.fetch_add(usize::from(taken), Ordering::Relaxed);
    taken
}

static DONATED: AtomicUsize = AtomicUsize::new(0);

/// Pages that were given for tables of the kernel half; they stay tables for good.
pub fn donated_pages() -> usize {
    DONATED.load(Ordering::Relaxed)
}

fn table(pa: u64) -> &'static [AtomicU64; 512] {
    let image_bytes = (&raw const __image_end) as u64 - IMAGE_BASE;
    let va = match pa.checked_sub(IMAGE.load(Ordering::Acquire)) {
        Some(offset) if offset < image_bytes => IMAGE_BASE + offset,
        _ => LINEAR + pa,
    };
    // SAFETY: `pa` is a table page of this half: one of the boot or early tables in the image,
    // or a donated page, which is mapped in the linear map and given for this use alone.
    unsafe { &*(va as *const [AtomicU64; 512]) }
}

fn root() -> u64 {
    image_pa((&raw const __boot_tables) as u64 + 2 * 4096)
}

/// The entry that maps the page at `va`; `None` where there is no table of pages.
pub(crate) fn page_entry(va: u64) -> Option<&'static AtomicU64> {
    let mut at = root();
    for level in 0..3 {
        let descriptor = table(at)[(va >> (39 - 9 * level)) as usize & 511].load(Ordering::Acquire);
        if descriptor & TABLE != TABLE {
            return None;
        }
        at = descriptor & ADDRESS;
    }
    Some(&table(at)[(va >> 12) as usize & 511])
}

/// The physical address that `va` of umbra's half means; `None` where nothing is mapped.
pub(crate) fn physical(va: u64) -> Option<u64> {
    let mut at = root();
    for level in 0..4 {
        let shift = 39 - 9 * level;
        let descriptor = table(at)[(va >> shift) as usize & 511].load(Ordering::Acquire);
        let leaf = level == 3 || descriptor & TABLE == BLOCK;
        at = descriptor & ADDRESS;
        if descriptor & VALID == 0 {
            return None;
        }
        if leaf {
            return Some(at + (va & ((1 << shift) - 1)));
        }
    }
    None
}

/// What maps a page of memory at `pa`.
pub(crate) fn memory_page(pa: u64) -> u64 {
    pa | Kind::Memory.attributes() | PAGE
}

impl Space {
    fn new_table(&mut self) -> Result<u64, NoTablePages> {
        if self.early_used < EARLY {
            let va = (&raw const EARLY_TABLES.0[self.early_used]) as u64;
            self.early_used += 1;
            return Ok(image_pa(va));
        }
        self.donated.pop().ok_or(NoTablePages)
    }

    /// The entry for `va` at level 3, or at level 2 when `block`.
    fn entry(&mut self, va: u64, block: bool) -> Result<&'static AtomicU64, NoTablePages> {
        let mut table = self::table(root());
        let last = if block { 2 } else { 3 };
        for level in 0..last {
            let entry = &table[(va >> (39 - 9 * level)) as usize & 511];
            let mut descriptor = entry.load(Ordering::Relaxed);
            if descriptor & VALID == 0 {
                descriptor = self.new_table()? | TABLE;
                entry.store(descriptor, Ordering::Release);
            }
            assert!(
                descriptor & TABLE == TABLE,
                "a block lies where {va:#x} needs a table"
            );
            table = self::table(descriptor & ADDRESS);
        }
        Ok(&table[(va >> (39 - 9 * last)) as usize & 511])
    }

    fn set(&mut self, va: u64, pa: u64, kind: Kind, block: bool) -> Result<(), NoTablePages> {
        let entry = self.entry(va, block)?;
        let kind_bits = if block { BLOCK } else { PAGE };
        assert!(
            entry.load(Ordering::Relaxed) & VALID == 0,
            "{va:#x} is mapped already"
        );
        entry.store(pa | kind.attributes() | kind_bits, Ordering::Release);
        Ok(())
    }
}

fn publish() {
    // SAFETY: barriers only: the new entries are visible to the walker from here on.
    unsafe {
        insn!("dsb ishst");
        insn!("isb");
    }
}

/// Maps `pages` pages.
pub(crate) fn map_pages(va: u64, pa: u64, pages: u64, kind: Kind) -> Result<(), NoTablePages> {
    let mut space = SPACE.lock();
    for page in 0..pages {
        space.set(va + page * 4096, pa + page * 4096, kind, false)?;
    }
    publish();
    Ok(())
}

/// Maps one 2 MiB block.
pub(crate) fn map_block(va: u64, pa: u64, kind: Kind) -> Result<(), NoTablePages> {
    SPACE.lock().set(va, pa, kind, true)?;
    publish();
    Ok(())
}

/// Removes page mappings and waits until no CPU can use them.
pub(crate) fn unmap_pages(va: u64, pages: u64) {
    let mut space = SPACE.lock();
    for page in 0..pages {
        let va = va + page * 4096;
        if let Ok(entry) = space.entry(va, false) {
            entry.store(0, Ordering::Release);
            // SAFETY: TLB maintenance of umbra's own regime, by address, any ASID.
            unsafe {
                insn!("dsb ishst");
                insn!("tlbi vae2is, {}", va >> 12 & 0xfff_ffff_ffff);
            }
        }
    }
    // SAFETY: barriers.
    unsafe {
        insn!("dsb ish");
        insn!("isb");
    }
}

/// An address of umbra's own at which nothing answers, to see what becomes of it: `pa` is no memory and no
/// device. `None` without memory for tables.
pub fn nowhere(pa: umbra_arm64::Pa) -> Option<u64> {
    static AT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    let known = AT.load(core::sync::atomic::Ordering::Acquire);
    if known != 0 {
        return Some(known);
    }
    let at = map_device(pa.raw(), 0x1000, Kind::Device).ok()?;
    AT.store(at, core::sync::atomic::Ordering::Release);
    Some(at)
}

/// Maps physical memory that is not RAM of ours (device registers, boot data) for good. What spans a
/// block is mapped by blocks, so that a large initrd costs no more tables than a small one. The area
/// for it is as large as its part of the address space; what does not fit is refused.
pub(crate) fn map_device(pa: u64, bytes: u64, kind: Kind) -> Result<u64, NoTablePages> {
    const BLOCK: u64 = 2 << 20;
    let start = pa & !0xfff;
    let bytes = (pa + bytes - start).next_multiple_of(4096);
    let va = {
        let mut space = SPACE.lock();
        // Where virtual and physical address agree within a block, blocks fit.
        let skew = (start.wrapping_sub(space.next_device)) % BLOCK;
        let va = space.next_device + if bytes >= BLOCK { skew } else { 0 };
        let end = va.checked_add(bytes).filter(|&end| end <= WINDOWS);
        space.next_device = end.ok_or(NoTablePages)?;
        va
    };
    let mut done = 0;
    while done < bytes {
        let (at, from) = (va + done, start + done);
        let whole = bytes - done >= BLOCK && at % BLOCK == 0 && from % BLOCK == 0;
        if whole {
            map_block(at, from, kind)?;
            done += BLOCK;
        } else {
            map_pages(at, from, 1, kind)?;
            done += 4096;
        }
    }
    Ok(va + (pa - start))
}

/// Drops the identity map of boot: TTBR0 gets an empty table until a process comes.
pub(crate) fn drop_identity() {
    static EMPTY: EarlyTables1 = EarlyTables1([const { AtomicU64::new(0) }; 512]);
    let pa = image_pa((&raw const EMPTY.0) as u64);
    crate::aspace::set_empty(pa);
}

#[repr(C, align(4096))]
struct EarlyTables1([AtomicU64; 512]);

/// Maps pages at this CPU's window. The slot is this CPU's alone, so no other CPU may hold stale
/// entries for it; the caller unmaps before the next use.
pub(crate) fn window_map(va: u64, pa: u64, pages: u64) {
    window_edit(va, pages, |page| {
        (pa + page * 4096) | Kind::Memory.attributes() | PAGE
    });
    publish();
}

/// Removes what [`window_map`] put there, with local TLB maintenance: no other CPU uses the slot.
pub(crate) fn window_unmap(va: u64, pages: u64) {
    window_edit(va, pages, |_| 0);
    // SAFETY: barriers and TLB maintenance of umbra's own regime for addresses of this slot.
    unsafe {
        insn!("dsb nshst");
        for page in 0..pages {
            insn!("tlbi vae2, {}", ((va >> 12) + page) & 0xfff_ffff_ffff);
        }
        insn!("dsb nsh");
        insn!("isb");
    }
}

fn window_edit(va: u64, pages: u64, descriptor: impl Fn(u64) -> u64) {
    let cached = &crate::percpu::this().window_table;
    if cached.get().is_null() {
        let mut space = SPACE.lock();
        let entry = space
            .entry(va & !0x1f_ffff, false)
            .expect("windows have their tables from boot on");
        cached.set(core::ptr::from_ref(entry).cast());
    }
    // SAFETY: a slot is 2 MiB aligned, so its 512 entries are one table page, which `entry` returned
    // the start of; each CPU has one slot, and table pages of this half live for ever.
    let table = unsafe { &*cached.get() };
    let index = (va >> 12 & 511) as usize;
    for page in 0..pages {
        table[index + page as usize].store(descriptor(page), Ordering::Release);
    }
}

/// Makes the tables of this CPU's window, so that using it cannot fail later.
pub(crate) fn prepare_window(cpu: usize) -> Result<(), NoTablePages> {
    let va = WINDOWS + cpu as u64 * (2 << 20);
    SPACE.lock().entry(va, false).map(|_| ())
}
