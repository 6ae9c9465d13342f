//! Memory: mmap and its relatives.

use umbra_abort::Poison;
use umbra_arm64::Hva;
use umbra_linux::vma::{Backing, PAGE, Placement, Prot, Request, Traits};
use umbra_linux::{Errno, uapi};

use super::{Args, descriptor};
use crate::file::Call;
use crate::mm::{MmFault, Object};

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
    if flags & uapi::MAP_HUGETLB != 0 {
        // There is no pool of huge pages; blocks are used wherever they fit.
        return Err(Errno::ENOMEM);
    }
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
            // Writes to a shared file mapping would have to reach the file.
            (Object::File(_), true) if prot.contains(Prot::WRITE) => return Err(Errno::ENODEV),
            (object, _) => Backing::Private { object, offset },
        }
    };
    let mm = call.process.mm();
    let span = mm.map(Request {
        place: Placement::from_linux(Hva::new(addr), flags),
        len,
        prot,
        backing,
        traits: Traits {
            no_reserve: flags & uapi::MAP_NORESERVE != 0,
            grows_down: flags & uapi::MAP_GROWSDOWN != 0,
            ..Traits::default()
        },
    })?;
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
        crate::poison::report(frame, Poison::Known)?;
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
