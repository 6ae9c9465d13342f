//! Pages of tables that umbra itself could not read: a page of zeros takes their place in umbra's half.
//!
//! ```text
//!  umbra's walk reads a page ─► external abort at EL2 ─► what can be written of the page is cleared
//!                                                        a spare page is mapped in its place
//!                                                        no TLB knows what the page said
//!                             the walk goes on: nothing is mapped there any more
//!  the kernel, later ─► cuts the page off its table, retires it, and gives the spare back (`forget`)
//! ```
//!
//! What always holds: from the abort on neither umbra nor hardware acts on what stood in the page, so whatever
//! is unmapped meanwhile is unmapped. What umbra writes to such a page reaches nobody; so tables are looked at
//! ([`generation`]) before something is mapped. Only pages of table chunks can be replaced so: the frame table, the
//! heap and the stacks cannot, and an abort there is the end.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_arm64::Pa;

use crate::copy;
use crate::mem::PAGE;
use crate::mmu::{self, LINEAR};
use crate::regs::insn;

/// Pages that can be lost and not yet forgotten at the same time. One more is the end.
const SPARES: usize = 32;

#[repr(C, align(4096))]
struct Spares([[AtomicU64; 512]; SPARES]);

static SPARE: Spares = Spares([const { [const { AtomicU64::new(0) }; 512] }; SPARES]);
/// The physical page that each spare stands for, with bit 0 set; 0 where it stands for none.
static LOST: [AtomicU64; SPARES] = [const { AtomicU64::new(0) }; SPARES];
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// The page that only pretends to be one ([`crate::mem::pretend_table`]), for which any number of tables may have
/// an entry.
static PRETENDED: AtomicU64 = AtomicU64::new(0);
/// Held while an entry of umbra's half is changed here. Not a `SpinLock`: it is taken where any may be held, and
/// nothing is taken inside.
static BUSY: AtomicBool = AtomicBool::new(false);

fn locked<R>(f: impl FnOnce() -> R) -> R {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let result = f();
    BUSY.store(false, Ordering::Release);
    result
}

/// How many pages were ever lost: who has looked at a table since need not look again.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Whether a spare stands for the page at `pa`.
pub fn is_lost(pa: Pa) -> bool {
    let page = pa.align_down(PAGE).raw() | 1;
    LOST.iter().any(|lost| lost.load(Ordering::Acquire) == page)
}

/// Nothing names the page at `pa` any more: its spare can stand for another.
pub fn forget(pa: Pa) {
    let page = pa.align_down(PAGE).raw();
    locked(|| {
        if let Some(lost) = LOST
            .iter()
            .find(|lost| lost.load(Ordering::Relaxed) == page | 1)
        {
            let pretended = PRETENDED.load(Ordering::Relaxed) == page;
            let descriptor = if pretended { mmu::memory_page(page) } else { 0 };
            if let Some(entry) = mmu::page_entry(LINEAR + page) {
                replace(entry, LINEAR + page, descriptor);
            }
            lost.store(0, Ordering::Release);
        }
    });
}

fn clear(page: u64) {
    for word in 0..PAGE / 8 {
        // What cannot be written cannot be read by hardware either.
        let _ = copy::clear_word(LINEAR + page + 8 * word);
    }
}

/// Clears a page of a table that nothing of umbra's names any more, but a register of hardware may.
pub fn scrub(pa: Pa) {
    let page = pa.align_down(PAGE).raw();
    if mmu::page_entry(LINEAR + page).is_some_and(|entry| entry.load(Ordering::Acquire) & 1 == 1) {
        clear(page);
    }
}

/// The page at `pa` is no memory, and mapped only to be lost, again and again.
pub(crate) fn pretend(pa: Pa) {
    PRETENDED.store(pa.raw(), Ordering::Relaxed);
    forget(pa);
}

/// Breaks and makes an entry of umbra's half.
fn replace(entry: &AtomicU64, va: u64, descriptor: u64) {
    entry.store(0, Ordering::Release);
    // SAFETY: TLB maintenance of umbra's own regime for the one page; whoever comes by meanwhile waits in
    // `mend` until the new entry is there.
    unsafe {
        insn!("dsb ishst");
        insn!("tlbi vae2is, {}", va >> 12 & 0xfff_ffff_ffff);
        insn!("dsb ish");
        insn!("isb");
    }
    entry.store(descriptor, Ordering::Release);
    // SAFETY: barriers: the new entry is visible to the walker from here on.
    unsafe {
        insn!("dsb ishst");
        insn!("isb");
    }
}

/// An access of umbra's own to `va` was aborted with syndrome `esr`. True if it can be made again.
pub(crate) fn mend(va: u64, esr: u64) -> bool {
    const EXTERNAL: u64 = 0x10;
    const TRANSLATION_L3: u64 = 0x07;
    const FNV: u64 = 1 << 10;
    let status = esr & 0x3f;
    if esr & FNV != 0 || !matches!(status, EXTERNAL | TRANSLATION_L3) {
        return false;
    }
    let Some(page) = va.checked_sub(LINEAR).map(|pa| pa & !(PAGE - 1)) else {
        return false;
    };
    let Some(entry) = mmu::page_entry(LINEAR + page) else {
        return false;
    };
    locked(|| {
        let is_mapped = entry.load(Ordering::Acquire) & 1 == 1;
        if is_lost(Pa::new(page)) || status == TRANSLATION_L3 && is_mapped {
            // Another CPU was first.
            return true;
        }
        let free = LOST
            .iter()
            .position(|lost| lost.load(Ordering::Relaxed) == 0);
        let Some(free) = free.filter(|_| status == EXTERNAL) else {
            return false;
        };
        clear(page);
        let spare = &SPARE.0[free];
        for word in spare {
            word.store(0, Ordering::Relaxed);
        }
        let pa = mmu::image_pa(core::ptr::from_ref(spare) as u64);
        replace(entry, LINEAR + page, mmu::memory_page(pa));
        // SAFETY: removes cached translations, of all guests and all processes.
        unsafe {
            insn!("tlbi alle1is");
            insn!("tlbi alle2is");
            insn!("dsb ish");
            insn!("isb");
        }
        LOST[free].store(page | 1, Ordering::Release);
        GENERATION.fetch_add(1, Ordering::AcqRel);
        true
    })
}
