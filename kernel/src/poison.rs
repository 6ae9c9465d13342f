//! Memory that is broken: who is told, and what is taken from whom.
//!
//! ```text
//!   EINJ notrigger ─► plant  ─┐                    ┌─ free: retired at once
//!   firmware, hwpoison ─► report ─┤► registry, frame table ─┤
//!   MADV_HWPOISON ─► report  ─┘                    └─ a process's: unmapped from it and from every VM
//! ```
//!
//! What always holds: a bad frame is in the registry (or counted as one too many) and marked in the
//! frame table *before* it is taken from its users; so whoever gets a frame later gets another one,
//! and whoever had it faults on the next access. The access that faults consumes the error.
//!
//! Hardware raises the abort itself; a planted error has to be met. QEMU does not route a
//! guest's abort to EL2 (HCR_EL2.TEA), so a planted page is kept out of all tables and the fault stands
//! for the abort (`umbra_abort::Sea::of_poison`). From there on the two are one path.

use alloc::sync::Arc;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_abort::{BadFrame, BadFrames, Poison, Reported};
use umbra_arm64::{Hva, Pa};
use umbra_frames::{FRAME, Owner, Standing};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_linux::Errno;
use umbra_linux::einj::number;
use umbra_linux::signal::{Siginfo, Signal, code};

use crate::files::tree;
use crate::mm::{Breakage, Mm};
use crate::{mem, proc};

/// A physical address where nothing answers, on the machine that tests run on.
pub(crate) const NOWHERE: Pa = Pa::new(0x0c80_0000);

/// Bad frames that are listed. More are retired all the same.
const LISTED: usize = 16 << 10;

static REGISTRY: SpinLock<BadFrames<LISTED>> = SpinLock::new("bad frames", 195, BadFrames::new());
/// Whether anything was ever listed.
static LISTS: AtomicBool = AtomicBool::new(false);
/// Errors that hardware corrected.
static CORRECTED: AtomicU64 = AtomicU64::new(0);

/// An error may have gone anywhere: the machine stops.
pub(crate) fn uncontainable() -> ! {
    panic!("an uncontainable memory error: nothing that umbra holds can be trusted")
}

/// What is known of the frame that `pa` lies in.
pub(crate) fn state_of(pa: Pa) -> Option<Poison> {
    if !LISTS.load(Ordering::Acquire) {
        return None;
    }
    REGISTRY.lock().get(pa).map(|entry| entry.poison)
}

/// Somebody consumed the error at `pa`. Answers what was known of the frame.
pub(crate) fn consume(pa: Pa) -> Poison {
    let entry = {
        let mut registry = REGISTRY.lock();
        registry.consumed(pa);
        registry.get(pa)
    };
    if let Some(entry) = entry.filter(|entry| entry.consumed == 1) {
        // Once a frame: whoever runs into it again and again must not fill the console.
        log::warn!("the memory error at {} is consumed", entry.frame);
    }
    // A frame that is not listed is one too many: it is known by its place in a table of bad pages.
    entry.map_or(Poison::Known, |entry| entry.poison)
}

/// An error that hardware corrected: counted.
pub(crate) fn corrected(pa: Pa) {
    let count = CORRECTED.fetch_add(1, Ordering::Relaxed) + 1;
    log::info!("memory error at {pa}: corrected ({count} so far)");
}

fn enlist(frame: Pa, poison: Poison) -> Reported {
    LISTS.store(true, Ordering::Release);
    REGISTRY.lock().report(frame, poison)
}

/// umbra found a page of a table bad. It is its owner's to take from where it is.
pub(crate) fn found(pa: Pa) {
    if enlist(pa.align_down(FRAME), Poison::Known) == Reported::New {
        log::warn!("memory error at {pa}: a page of tables");
    }
}

/// The frame of `pa` is bad. `ENXIO`: not memory that umbra could take from anybody; `ENOMEM`: no
/// memory to cut its block, and nothing has changed for its user.
pub(crate) fn report(pa: Pa, poison: Poison) -> Result<(), Errno> {
    report_but(pa, poison, None).map(drop)
}

/// The same; `consumer`, who has met the error and is told of that, gets no early word of it.
/// Answers how new the news is.
pub(crate) fn report_but(
    pa: Pa,
    poison: Poison,
    consumer: Option<&Arc<Mm>>,
) -> Result<Reported, Errno> {
    let frame = pa.align_down(FRAME);
    if tree::archive_holds(frame) {
        // A page of the files that umbra was booted with: who reads it is told (EIO).
        let news = enlist(frame, poison);
        tree::archive_went_bad();
        return Ok(news);
    }
    if !mem::is_ram(frame) {
        return Err(Errno::ENXIO);
    }
    let owner = mem::owner(frame);
    if owner.is_some_and(is_own) {
        fail_stop(frame, owner);
    }
    let news = enlist(frame, poison);
    let standing = if left_out(Safeguard::PoisonRetire) {
        mem::standing(frame)
    } else {
        mem::retire(frame)
    };
    if news == Reported::Before {
        return Ok(news);
    }
    log::warn!("memory error at {frame}: {poison:?}, {standing:?}");
    match standing {
        Standing::Owned(Owner::Anonymous | Owner::Shared) => {
            take_from_processes(frame, poison, consumer)?
        }
        Standing::Owned(Owner::Table) => heal_tables(),
        Standing::Owned(Owner::Heap | Owner::Stack | Owner::Kernel) => fail_stop(frame, owner),
        Standing::Free | Standing::Retired | Standing::Reserved => {}
    }
    Ok(news)
}

/// Whether an owner is umbra itself, so that nothing can be trusted any more.
fn is_own(owner: Owner) -> bool {
    matches!(owner, Owner::Heap | Owner::Stack | Owner::Kernel)
}

/// The end, with the frame's name.
fn fail_stop(frame: Pa, owner: Option<Owner>) -> ! {
    panic!(
        "memory error at {frame}, which umbra itself lives in ({owner:?}): nothing it holds can be trusted"
    )
}

fn take_from_processes(frame: Pa, poison: Poison, consumer: Option<&Arc<Mm>>) -> Result<(), Errno> {
    for process in proc::processes() {
        let Some(mm) = process.try_mm() else {
            continue;
        };
        while mm.take_bad(frame)?.is_some() {}
        let met = consumer.is_some_and(|consumer| Arc::ptr_eq(consumer, &mm));
        let listener = process
            .early_thread()
            .filter(|_| poison == Poison::Known && !met && !left_out(Safeguard::EarlyWord));
        if let Some(thread) = listener {
            // Also where it was taken when nobody knew yet.
            for at in mm.places_of_bad(frame) {
                thread.send(
                    Signal::BUS,
                    Siginfo::memory_error(code::BUS_MCEERR_AO, at, 12),
                )?;
            }
        }
    }
    Ok(())
}

/// A table page is bad: the process or VM whose it is makes it anew. A root is retired when its owner ends.
fn heal_tables() {
    for process in proc::processes() {
        if let Some(mm) = process.try_mm() {
            mm.heal_tables();
        }
    }
}

/// Breaks something of the calling process's on purpose, so that hardware raises a real external abort:
/// `page ADDRESS`, `stage2-root`, `stage2-table`, `shadow-table`, `vncr`, `process-table ADDRESS`; or makes pages of
/// tables known to be bad: `stage2-root-page`, and `vm-table N` of any VM; or plants an error where the initrd holds
/// the second page of a file: `file PATH`. `EOPNOTSUPP` outside a build
/// with checks.
pub(crate) fn break_on_purpose(mm: &Mm, text: &[u8]) -> Result<(), Errno> {
    if !cfg!(debug_assertions) {
        return Err(Errno::EOPNOTSUPP);
    }
    let what = match text.trim_ascii() {
        b"stage2-root" => Breakage::Root,
        b"stage2-table" => Breakage::Table,
        b"shadow-table" => Breakage::Shadow,
        b"vncr" => Breakage::Vncr,
        b"stage2-root-page" => Breakage::RootPage,
        page => {
            if let Some(path) = page.strip_prefix(b"file ") {
                let page = tree::in_archive(path)?;
                return report(page, Poison::Latent);
            }
            if let Some(nth) = page.strip_prefix(b"vm-table ") {
                let page = mem::nth_vm_table(number(nth)?).ok_or(Errno::ENOENT)?;
                return report(page, Poison::Known);
            }
            if let Some(at) = page.strip_prefix(b"process-table ") {
                return mm.misdirect_table(Hva::new(number(at)?), NOWHERE);
            }
            let at = page.strip_prefix(b"page ").ok_or(Errno::EINVAL)?;
            return mm.misdirect(Hva::new(number(at)?), NOWHERE);
        }
    };
    mm.break_on_purpose(what);
    Ok(())
}

/// What umbra cannot be without, and where it keeps what it can: a line a range.
pub(crate) fn ranges() -> alloc::string::String {
    let mut text = alloc::string::String::new();
    let mut line = |start: Pa, end: Pa, what: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:#x}-{:#x} {what}", start.raw(), end.raw());
    };
    let (image, bytes) = umbra_hw::image();
    line(image, Pa::new(image.raw() + bytes), "fail-stop image");
    let (start, end) = mem::frame_table();
    line(start, end, "fail-stop frame table");
    if let Some((start, end)) = tree::archive() {
        line(start, end, "files");
    }
    // Collected first: a text grows on the heap, and the frame table is locked meanwhile.
    let mut runs = alloc::vec::Vec::with_capacity(256);
    mem::for_each_run(|start, end, owner| {
        if is_own(owner) && runs.len() < runs.capacity() {
            runs.push((start, end, owner));
        }
    });
    for (start, end, owner) in runs {
        line(
            start,
            end,
            match owner {
                Owner::Heap => "fail-stop heap",
                Owner::Stack => "fail-stop stack",
                _ => "fail-stop own tables and rings",
            },
        );
    }
    text
}

/// The list, as a text: a line a frame.
pub(crate) fn list() -> alloc::string::String {
    let mut text = alloc::string::String::new();
    let (entries, unlisted) = {
        let registry = REGISTRY.lock();
        (registry.entries().to_vec(), registry.unlisted())
    };
    for BadFrame {
        frame,
        poison,
        consumed,
    } in entries
    {
        let owner = mem::owner(frame);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:#x} {poison:?} consumed={consumed} owner={owner:?}",
            frame.raw()
        );
    }
    let _ = writeln!(
        text,
        "retired={} unlisted={unlisted} corrected={}",
        mem::retired_frames(),
        CORRECTED.load(Ordering::Relaxed)
    );
    text
}
