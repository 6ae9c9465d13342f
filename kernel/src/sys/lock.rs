//! Locks of open files: flock, and fcntl's F_OFD_GETLK, F_OFD_SETLK and F_OFD_SETLKW. The rules are
//! `umbra_linux::lock`'s. VMMs keep each other from a disk's file so.

use umbra_hw::sync::SpinLock;
use umbra_linux::epoll::FileId;
use umbra_linux::fs::InodeId;
use umbra_linux::lock::{Kind, Locks, Range};
use umbra_linux::{Errno, uapi};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Args, descriptor, user};
use crate::file::{Call, Description};
use crate::files::tree;
use crate::sched::{WaitQueue, Waited};

/// A file, by its inode or, if it has none, by who opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Tree(InodeId),
    Other(FileId),
}

#[derive(Debug)]
struct Tables {
    ranges: Locks<Key>,
    whole: Locks<Key>,
}

static TABLES: SpinLock<Tables> = SpinLock::new(
    "file locks",
    116,
    Tables {
        ranges: Locks::new(),
        whole: Locks::new(),
    },
);
/// Who waits for any of them.
static GIVEN_UP: WaitQueue = WaitQueue::new();

// include/uapi/asm-generic/fcntl.h
const F_RDLCK: u16 = 0;
const F_WRLCK: u16 = 1;
const F_UNLCK: u16 = 2;

/// `struct flock`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Flock {
    kind: u16,
    whence: u16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    end: u32,
}

fn key(file: &Description) -> Key {
    file.inode.map_or(Key::Other(file.id), Key::Tree)
}

/// An open file ends, and its locks with it.
pub(crate) fn release(file: FileId) {
    let any = {
        let mut tables = TABLES.lock();
        tables.ranges.release(file.0) | tables.whole.release(file.0)
    };
    if any {
        GIVEN_UP.wake_all();
    }
}

/// Sets a lock, or waits until it can be had.
fn set(
    call: &Call<'_>,
    may_wait: bool,
    mut attempt: impl FnMut(&mut Tables) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    let look = || match attempt(&mut TABLES.lock()) {
        Err(Errno::EAGAIN) if may_wait => None,
        result => Some(result),
    };
    let interrupted = || call.thread.signal_pending();
    match GIVEN_UP.wait(None, interrupted, look) {
        Waited::Ready(result) => result.map(|()| {
            // What was given up or lowered may be another's now.
            GIVEN_UP.wake_all();
            0
        }),
        Waited::TimedOut | Waited::Interrupted => Err(call.thread.interrupted()),
    }
}

/// flock.
pub(super) fn flock(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const LOCK_SH: u64 = 1;
    const LOCK_EX: u64 = 2;
    const LOCK_NB: u64 = 4;
    const LOCK_UN: u64 = 8;
    let file = call.process.description(descriptor(a[0])?)?;
    let kind = match a[1] & 0xffff_ffff & !LOCK_NB {
        LOCK_SH => Some(Kind::Shared),
        LOCK_EX => Some(Kind::Exclusive),
        LOCK_UN => None,
        _ => return Err(Errno::EINVAL),
    };
    set(call, a[1] & LOCK_NB == 0, |tables| {
        tables.whole.set(key(&file), file.id.0, Range::ALL, kind)
    })
}

fn range(file: &Description, lock: &Flock) -> Result<Range, Errno> {
    let base = match u32::from(lock.whence) {
        uapi::SEEK_SET => 0,
        uapi::SEEK_CUR => file.file.seek(0, uapi::SEEK_CUR)? as i64,
        uapi::SEEK_END => match file.inode {
            Some(id) => tree::with(|fs| fs.len(id))? as i64,
            None => file.file.stat().size,
        },
        _ => return Err(Errno::EINVAL),
    };
    Range::new(base, lock.start, lock.len)
}

fn kind(lock: &Flock) -> Result<Option<Kind>, Errno> {
    match lock.kind {
        F_RDLCK => Ok(Some(Kind::Shared)),
        F_WRLCK => Ok(Some(Kind::Exclusive)),
        F_UNLCK => Ok(None),
        _ => Err(Errno::EINVAL),
    }
}

/// F_OFD_SETLK, and F_OFD_SETLKW, which may wait.
pub(super) fn set_range(
    call: &Call<'_>,
    file: &Description,
    from: u64,
    may_wait: bool,
) -> Result<u64, Errno> {
    let lock: Flock = user::read(call, from)?;
    let (range, kind) = (range(file, &lock)?, kind(&lock)?);
    if lock.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let access = file.flags() & uapi::O_ACCMODE;
    match kind {
        Some(Kind::Shared) if access == uapi::O_WRONLY => return Err(Errno::EBADF),
        Some(Kind::Exclusive) if access == uapi::O_RDONLY => return Err(Errno::EBADF),
        _ => {}
    }
    set(call, may_wait, |tables| {
        tables.ranges.set(key(file), file.id.0, range, kind)
    })
}

/// F_OFD_GETLK: whose lock would be in the way, or that none would.
pub(super) fn get_range(call: &Call<'_>, file: &Description, at: u64) -> Result<u64, Errno> {
    let mut lock: Flock = user::read(call, at)?;
    let range = range(file, &lock)?;
    let kind = kind(&lock)?.ok_or(Errno::EINVAL)?;
    if lock.pid != 0 {
        return Err(Errno::EINVAL);
    }
    let other = TABLES
        .lock()
        .ranges
        .against(key(file), file.id.0, range, kind);
    match other {
        None => lock.kind = F_UNLCK,
        Some((range, kind)) => {
            lock.kind = match kind {
                Kind::Shared => F_RDLCK,
                Kind::Exclusive => F_WRLCK,
            };
            lock.whence = 0;
            (lock.start, lock.len) = range.start_and_len();
            // It is nobody's in particular.
            lock.pid = -1;
        }
    }
    user::write(call, at, &lock)?;
    Ok(0)
}
