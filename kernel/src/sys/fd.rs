//! Descriptors: close, dup, fcntl, ioctl, lseek, pipe2.

use umbra_linux::{Errno, uapi};

use super::{Args, descriptor, int, lock, user};
use crate::file::{Call, Description};

use crate::files::{MemoryFile, PipeEnd};

// include/uapi/asm-generic/fcntl.h, include/uapi/linux/fcntl.h
const F_DUPFD: u64 = 0;
const F_GETFD: u64 = 1;
const F_SETFD: u64 = 2;
const F_GETFL: u64 = 3;
const F_SETFL: u64 = 4;
const F_GETLK: u64 = 5;
const F_SETLK: u64 = 6;
const F_SETLKW: u64 = 7;
const F_OFD_GETLK: u64 = 36;
const F_OFD_SETLK: u64 = 37;
const F_OFD_SETLKW: u64 = 38;
const F_ADD_SEALS: u64 = 1033;
const F_GET_SEALS: u64 = 1034;
const F_DUPFD_CLOEXEC: u64 = 1030;
const FD_CLOEXEC: u64 = 1;
// include/uapi/asm-generic/ioctls.h
const FIONBIO: u32 = 0x5421;
const FIONCLEX: u32 = 0x5450;
const FIOCLEX: u32 = 0x5451;

pub(super) fn close(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let fd = descriptor(a[0])?;
    let removed = call.process.files().lock().remove(fd)?;
    // Outside the table's lock: this may be the end of the file.
    drop(removed);
    Ok(0)
}

/// close_range, without CLOSE_RANGE_UNSHARE.
pub(super) fn close_range(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const CLOEXEC: u64 = 4;
    let (first, last) = (a[0] as u32, a[1] as u32);
    if first > last || a[2] & !CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let files = call.process.files();
    if a[2] & CLOEXEC != 0 {
        let mut table = files.lock();
        let open: alloc::vec::Vec<u32> = table
            .iter()
            .map(|(fd, _)| fd)
            .filter(|fd| (first..=last).contains(fd))
            .collect();
        for fd in open {
            table.set_cloexec(fd, true)?;
        }
        return Ok(0);
    }
    let last = last.min(files.lock().limit());
    let removed = if first <= last {
        files.lock().remove_range(first, last)?
    } else {
        alloc::vec::Vec::new()
    };
    drop(removed);
    Ok(0)
}

pub(super) fn dup(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let fd = descriptor(a[0])?;
    Ok(call.process.files().lock().dup(fd, 0, false)?.into())
}

pub(super) fn dup3(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (old, new) = (descriptor(a[0])?, descriptor(a[1])?);
    let flags = a[2] as u32;
    if flags & !uapi::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let replaced = call
        .process
        .files()
        .lock()
        .dup3(old, new, flags & uapi::O_CLOEXEC != 0)?;
    drop(replaced);
    Ok(new.into())
}

pub(super) fn fcntl(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let fd = descriptor(a[0])?;
    let files = call.process.files();
    let file = call.process.description(fd)?;
    match a[1] {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            let least = u32::try_from(int(a[2])).map_err(|_| Errno::EINVAL)?;
            let copy = files.lock().dup(fd, least, a[1] == F_DUPFD_CLOEXEC)?;
            Ok(copy.into())
        }
        F_GETFD => Ok(files.lock().cloexec(fd)?.into()),
        F_SETFD => {
            files.lock().set_cloexec(fd, a[2] & FD_CLOEXEC != 0)?;
            Ok(0)
        }
        F_GETFL => Ok(file.flags().into()),
        F_SETFL => {
            file.set_flags(a[2] as u32);
            Ok(0)
        }
        F_GET_SEALS | F_ADD_SEALS => {
            let memory = file.downcast::<MemoryFile>().ok_or(Errno::EINVAL)?;
            if a[1] == F_ADD_SEALS {
                memory.add_seals(a[2] as u32)?;
                return Ok(0);
            }
            Ok(memory.seals().into())
        }
        F_OFD_GETLK => lock::get_range(call, &file, a[2]),
        F_OFD_SETLK | F_OFD_SETLKW => lock::set_range(call, &file, a[2], a[1] == F_OFD_SETLKW),
        // A process's own are granted: the files are the machine's own and shared by design.
        F_SETLK | F_SETLKW => Ok(0),
        F_GETLK => {
            const F_UNLCK: u16 = 2;
            user::write(call, a[2], &F_UNLCK)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn fsync(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    file.file.sync().map(|()| 0)
}

pub(super) fn ioctl(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let fd = descriptor(a[0])?;
    let file = call.process.description(fd)?;
    let request = a[1] as u32;
    match request {
        FIOCLEX | FIONCLEX => {
            let files = call.process.files();
            files.lock().set_cloexec(fd, request == FIOCLEX)?;
            Ok(0)
        }
        FIONBIO => {
            let on: u32 = user::read(call, a[2])?;
            let flags = file.flags() & !uapi::O_NONBLOCK;
            file.set_flags(if on != 0 {
                flags | uapi::O_NONBLOCK
            } else {
                flags
            });
            Ok(0)
        }
        _ => file.file.ioctl(call, request, a[2]),
    }
}

pub(super) fn lseek(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    file.file.seek(a[1] as i64, a[2] as u32)
}

pub(super) fn pipe2(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[1] as u32;
    if flags & !(uapi::O_CLOEXEC | uapi::O_NONBLOCK | uapi::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let (read, write) = PipeEnd::pair()?;
    let status = flags & uapi::O_NONBLOCK;
    let cloexec = flags & uapi::O_CLOEXEC != 0;
    let read = call
        .process
        .install_description(Description::new(read, status), cloexec)?;
    let install = call
        .process
        .install_description(Description::new(write, status | uapi::O_WRONLY), cloexec)
        .and_then(|write| {
            user::write(call, a[0], &[read, write]).inspect_err(|_| forget(call, write))
        });
    install.inspect_err(|_| forget(call, read))?;
    Ok(0)
}

/// Takes back a descriptor that the process was never told of.
fn forget(call: &Call<'_>, fd: u32) {
    let removed = call.process.files().lock().remove(fd);
    drop(removed);
}
