//! Memory: mmap and its relatives.

use alloc::vec::Vec;

use umbra_abort::Poison;
use umbra_arm64::{Hva, Pa};
use umbra_frames::{MAX_ORDER, Owner};
use umbra_linux::memfd::{self, Seals};
use umbra_linux::vma::{Backing, HugeAdvice, PAGE, Placement, Prot, Request, Span, Traits};
use umbra_linux::{Errno, uapi};

use super::{Args, descriptor};
use crate::file::{Call, Description};
use crate::files::MemoryFile;
use crate::mm::{Mm, MmFault, Object};
use crate::{irq, mem, sched};

pub(super) fn brk(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    Ok(call.process.mm().brk(Hva::new(a[0])).raw())
}

pub(super) fn mmap(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [addr, len, prot, flags, fd, offset] = a;
    let (prot, flags) = (Prot::from_linux(prot as u32)?, flags as u32);
    let shared = match flags & uapi::MAP_TYPE {
        uapi::MAP_PRIVATE => false,
        uapi::MAP_SHARED | uapi::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    let huge = huge_page(flags)?;
    let len = match huge {
        Some(page) => len.checked_next_multiple_of(page).ok_or(Errno::ENOMEM)?,
        None => len,
    };
    let backing = if flags & uapi::MAP_ANONYMOUS != 0 {
        // Processes share memory only as a whole, so nobody can tell shared from private here.
        Backing::Anon
    } else {
        let file = call.process.description(descriptor(fd)?)?;
        if offset % PAGE != 0 {
            return Err(Errno::EINVAL);
        }
        match (file.file.mmap(offset, len)?, shared) {
            (object @ Object::Shared(_), true) => Backing::Shared { object, offset },
            (Object::File(pages), true) if file.file.is_memory() => {
                // Rights may be asked for later (mprotect).
                pages.share_for_writing().or_else(|errno| {
                    let asked = prot.contains(Prot::WRITE);
                    if asked { Err(errno) } else { Ok(()) }
                })?;
                let object = Object::File(pages);
                Backing::Shared { object, offset }
            }
            // Writes to a shared file mapping would have to reach the file.
            (Object::File(_), true) if prot.contains(Prot::WRITE) => return Err(Errno::ENODEV),
            (object, _) => Backing::Private { object, offset },
        }
    };
    let giants = match (&backing, huge) {
        (Backing::Anon, Some(GIANT)) if !prot.is_empty() => Giants::take(len / GIANT)?,
        _ => Giants::default(),
    };
    let mm = call.process.mm();
    let request = Request {
        place: Placement::from_linux(Hva::new(addr), flags),
        len,
        prot,
        backing,
        traits: Traits {
            no_reserve: flags & uapi::MAP_NORESERVE != 0,
            grows_down: flags & uapi::MAP_GROWSDOWN != 0,
            huge: match huge {
                Some(_) => HugeAdvice::Prefer,
                None => HugeAdvice::Default,
            },
        },
    };
    let span = match huge {
        Some(page) if flags & (uapi::MAP_FIXED | uapi::MAP_FIXED_NOREPLACE) == 0 => {
            map_aligned(&mm, request, page)?
        }
        Some(page) if !addr.is_multiple_of(page) => return Err(Errno::EINVAL),
        _ => mm.map(request)?,
    };
    giants.place(&mm, span);
    if flags & uapi::MAP_POPULATE != 0 {
        let how = if prot.contains(Prot::WRITE) {
            uapi::MADV_POPULATE_WRITE
        } else {
            uapi::MADV_POPULATE_READ
        };
        // What cannot be had now comes on the first touch, or fails there.
        let _ = mm.advise(span.start(), span.bytes(), how);
    }
    Ok(span.start().raw())
}

/// Pages of 1 GiB.
const GIANT: u64 = 1 << 30;

/// Memory in pieces of 1 GiB that is still nobody's; what is not placed is given back.
#[derive(Default)]
struct Giants(Vec<Pa>);

impl Giants {
    /// Takes and clears so many. `ENOMEM`.
    fn take(count: u64) -> Result<Self, Errno> {
        let mut giants = Self::default();
        if count > mem::free_blocks(MAX_ORDER) {
            return Err(Errno::ENOMEM);
        }
        for _ in 0..count {
            let pa = mem::allocate_plain(MAX_ORDER, Owner::Anonymous).ok_or(Errno::ENOMEM)?;
            giants.0.push(pa);
            // It lasts, so it is done where others can have their turn, and not at a fault.
            for chunk in (pa.raw()..pa.raw() + GIANT).step_by(umbra_hw::mem::CHUNK as usize) {
                umbra_hw::mem::clear(Pa::new(chunk), umbra_hw::mem::CHUNK);
                irq::poll();
                sched::preempt_point();
            }
        }
        Ok(giants)
    }

    /// Makes them the pages of `span`, from its start on. Where somebody was there first, what he has
    /// stays.
    fn place(mut self, mm: &Mm, span: Span) {
        let mut at = span.start();
        while let Some(pa) = self.0.pop() {
            if !mm.place(at, pa, GIANT) {
                mem::release(pa);
            }
            match at.checked_add(GIANT) {
                Some(next) => at = next,
                None => return,
            }
        }
    }
}

impl Drop for Giants {
    fn drop(&mut self) {
        for pa in self.0.drain(..) {
            mem::release(pa);
        }
    }
}

/// The size of the pages that MAP_HUGETLB asks for. `EINVAL` for one that there is not.
///
/// There is no pool that an administrator fills: the pool is what is free. Pages of 2 MiB come on
/// demand, in the largest blocks there are, as on a Linux that overcommits them. Pages of 1 GiB come
/// with the call or not at all; what of them is discarded or cut later comes again in smaller ones.
fn huge_page(flags: u32) -> Result<Option<u64>, Errno> {
    const MAP_HUGE_SHIFT: u32 = 26;
    if flags & uapi::MAP_HUGETLB == 0 {
        return Ok(None);
    }
    match flags >> MAP_HUGE_SHIFT {
        0 | 21 => Ok(Some(2 << 20)),
        30 => Ok(Some(1 << 30)),
        _ => Err(Errno::EINVAL),
    }
}

/// Maps at a multiple of `page`: somewhere larger, and gives back what is too much at both ends.
fn map_aligned(mm: &Mm, request: Request<Object>, page: u64) -> Result<Span, Errno> {
    let len = request.len;
    let whole = len.checked_add(page).ok_or(Errno::ENOMEM)?;
    let got = mm.map(Request {
        len: whole,
        ..request
    })?;
    let start = got.start().align_up(page).ok_or(Errno::ENOMEM)?;
    let end = start.checked_add(len).ok_or(Errno::ENOMEM)?;
    let head = start.offset_from(got.start()).unwrap_or(0);
    let tail = got.end().offset_from(end).unwrap_or(0);
    if head != 0 {
        mm.unmap(got.start(), head)?;
    }
    if tail != 0 {
        mm.unmap(end, tail)?;
    }
    Span::new(start, len).ok_or(Errno::ENOMEM)
}

/// memfd_create. The name is for people who look at /proc, of which there is none here.
pub(super) fn memfd_create(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[1] as u32;
    let seals = Seals::new(flags)?;
    let name = call
        .process
        .mm()
        .read_string(Hva::new(a[0]), memfd::NAME_MAX);
    name.map_err(|errno| match errno {
        Errno::E2BIG => Errno::EINVAL,
        other => other,
    })?;
    let file = Description::new(MemoryFile::new(seals), uapi::O_RDWR);
    let cloexec = flags & memfd::MFD_CLOEXEC != 0;
    Ok(call.process.install_description(file, cloexec)?.into())
}

pub(super) fn munmap(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    call.process.mm().unmap(Hva::new(a[0]), a[1])?;
    Ok(0)
}

pub(super) fn mprotect(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if a[1] == 0 {
        return Ok(0);
    }
    let prot = Prot::from_linux(a[2] as u32)?;
    call.process.mm().protect(Hva::new(a[0]), a[1], prot)?;
    Ok(0)
}

pub(super) fn madvise(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if a[1] == 0 {
        return Ok(0);
    }
    if a[2] as u32 == uapi::MADV_HWPOISON {
        return poison(call, Hva::new(a[0]), a[1]);
    }
    call.process
        .mm()
        .advise(Hva::new(a[0]), a[1], a[2] as u32)?;
    Ok(0)
}

/// MADV_HWPOISON: each page of the range is bad from now on, and the caller is told as if it had met
/// the error (SIGBUS), as on Linux.
fn poison(call: &Call<'_>, at: Hva, bytes: u64) -> Result<u64, Errno> {
    let end = bytes
        .checked_next_multiple_of(PAGE)
        .and_then(|bytes| at.checked_add(bytes))
        .ok_or(Errno::EINVAL)?;
    if !at.is_aligned(PAGE) {
        return Err(Errno::EINVAL);
    }
    let mm = call.process.mm();
    let mut page = at;
    while page < end {
        match mm.with_page(page, Prot::READ, |_| ()) {
            // A page that is known to be bad is news to nobody; one that was planted is, from here on.
            Ok(()) | Err(MmFault::Poisoned(..)) => {}
            Err(_) => return Err(Errno::EFAULT),
        }
        let frame = mm
            .frame_at(page)
            .or_else(|| mm.bad_at(page).map(|(frame, _)| frame))
            .ok_or(Errno::EFAULT)?;
        crate::poison::report_but(frame, Poison::Known, Some(&mm))?;
        call.thread.memory_error(page);
        page = page.checked_add(PAGE).ok_or(Errno::EINVAL)?;
    }
    Ok(0)
}

pub(super) fn mremap(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [from, old, new, flags, to, _] = a;
    let mm = call.process.mm();
    let at = mm.remap(Hva::new(from), old, new, flags as u32, Hva::new(to))?;
    Ok(at.raw())
}
