//! Calls that take a path, and those on files of the tree.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_linux::fs::{Access, Caller, Fs, InodeId};
use umbra_linux::time::Timespec;
use umbra_linux::{Errno, uapi};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Args, descriptor, int, user};
use crate::file::{Call, Description};
use crate::files::MemoryFile;
use crate::files::tree::{self, TreeFile};

/// The directory that relative paths of an "at" call start from, and who asks. Held as long as this
/// lives, so that another thread's chdir or close does not take it away.
struct Start {
    dir: InodeId,
    exe: Vec<u8>,
    umask: u32,
}

/// /proc/TID and /proc/PID of the caller are /proc/self; other threads have no directory.
fn own_path(call: &Call<'_>, path: Vec<u8>) -> Vec<u8> {
    let Some(rest) = path.strip_prefix(b"/proc/") else {
        return path;
    };
    let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    let number = core::str::from_utf8(number)
        .ok()
        .and_then(|n| n.parse().ok());
    if number == Some(call.thread.tid) || number == Some(call.process.pid) {
        [b"/proc/self", rest].concat()
    } else {
        path
    }
}

impl Start {
    fn new(call: &Call<'_>, dir: u64, path: &[u8]) -> Result<Self, Errno> {
        let file = if int(dir) == uapi::AT_FDCWD || path.starts_with(b"/") {
            None
        } else {
            Some(call.process.description(descriptor(dir)?)?)
        };
        call.process.with_paths(|paths| {
            let dir = match &file {
                Some(file) => file.inode.ok_or(Errno::ENOTDIR)?,
                None => paths.dir,
            };
            tree::with(|fs| fs.hold(dir))?;
            Ok(Self {
                dir,
                exe: paths.exe.clone(),
                umask: paths.umask,
            })
        })?
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            dir: self.dir,
            exe: &self.exe,
            umask: self.umask,
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        tree::release(self.dir);
    }
}

/// Reads the path at `path` and runs `f` on it, with the tree.
fn at<R>(
    call: &Call<'_>,
    dir: u64,
    path: u64,
    f: impl FnOnce(&mut Fs, &Caller<'_>, &[u8]) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let path = user::path(call, path)?;
    let start = Start::new(call, dir, &path)?;
    tree::with(|fs| f(fs, &start.caller(), &path))
}

/// The inode that a "stat" kind of call means.
fn target(call: &Call<'_>, dir: u64, path: u64, flags: u32) -> Result<Target, Errno> {
    let path = if path == 0 && flags & uapi::AT_EMPTY_PATH != 0 {
        Vec::new()
    } else {
        user::path(call, path)?
    };
    if path.is_empty() && flags & uapi::AT_EMPTY_PATH != 0 {
        if int(dir) == uapi::AT_FDCWD {
            return Ok(Target::Inode(call.process.with_paths(|paths| paths.dir)?));
        }
        let file = call.process.description(descriptor(dir)?)?;
        return Ok(match file.inode {
            Some(id) => Target::Inode(id),
            None => Target::Nameless(file),
        });
    }
    let start = Start::new(call, dir, &path)?;
    let caller = start.caller();
    tree::with(|fs| {
        if flags & uapi::AT_SYMLINK_NOFOLLOW != 0 {
            fs.resolve_no_follow(&caller, &path)
        } else {
            fs.resolve(&caller, &path)
        }
    })
    .map(Target::Inode)
}

enum Target {
    Inode(InodeId),
    Nameless(alloc::sync::Arc<Description>),
}

pub(super) fn openat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let path = own_path(call, user::path(call, a[1])?);
    let start = Start::new(call, a[0], &path)?;
    let (file, cloexec) = tree::open(call, &path, &start.caller(), a[2] as u32, a[3] as u32)?;
    Ok(call.process.install_description(file, cloexec)?.into())
}

pub(super) fn getcwd(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let dir = call.process.with_paths(|paths| paths.dir)?;
    let mut path = tree::with(|fs| fs.path_of(dir))?;
    path.push(0);
    if path.len() as u64 > a[1] {
        return Err(Errno::ERANGE);
    }
    call.process.mm().write_bytes(Hva::new(a[0]), &path)?;
    Ok(path.len() as u64)
}

fn change_dir(call: &Call<'_>, new: InodeId) -> Result<u64, Errno> {
    let old = call
        .process
        .with_paths(|paths| core::mem::replace(&mut paths.dir, new))?;
    tree::release(old);
    Ok(0)
}

pub(super) fn chdir(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let cwd = uapi::AT_FDCWD as u32 as u64;
    let dir = at(call, cwd, a[0], |fs, caller, path| {
        let dir = fs.resolve_dir(caller, path)?;
        fs.hold(dir).map(|()| dir)
    })?;
    change_dir(call, dir)
}

pub(super) fn fchdir(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    let id = file.inode.ok_or(Errno::ENOTDIR)?;
    tree::with(|fs| {
        fs.path_of(id)?;
        fs.hold(id)
    })?;
    change_dir(call, id)
}

pub(super) fn mkdirat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    at(call, a[0], a[1], |fs, caller, path| {
        fs.make_dir(caller, path, a[2] as u32).map(|_| 0)
    })
}

pub(super) fn unlinkat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[2] as u32;
    if flags & !uapi::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    at(call, a[0], a[1], |fs, caller, path| {
        if flags & uapi::AT_REMOVEDIR != 0 {
            fs.remove_dir(caller, path)
        } else {
            fs.unlink(caller, path)
        }
        .map(|()| 0)
    })
}

pub(super) fn symlinkat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let to = user::path(call, a[0])?;
    at(call, a[1], a[2], |fs, caller, path| {
        fs.make_symlink(caller, path, &to).map(|_| 0)
    })
}

pub(super) fn linkat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [old_dir, old, new_dir, new, flags, _] = a;
    let flags = flags as u32;
    if flags & !(uapi::AT_SYMLINK_FOLLOW | uapi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let follow = if flags & uapi::AT_SYMLINK_FOLLOW != 0 {
        0
    } else {
        uapi::AT_SYMLINK_NOFOLLOW
    };
    let Target::Inode(id) = target(call, old_dir, old, flags & uapi::AT_EMPTY_PATH | follow)?
    else {
        return Err(Errno::EXDEV);
    };
    at(call, new_dir, new, |fs, caller, path| {
        fs.link(id, caller, path).map(|()| 0)
    })
}

pub(super) fn renameat2(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [old_dir, old, new_dir, new, flags, _] = a;
    let (old, new) = (user::path(call, old)?, user::path(call, new)?);
    let from = Start::new(call, old_dir, &old)?;
    let to = Start::new(call, new_dir, &new)?;
    tree::with(|fs| fs.rename((&from.caller(), &old), (&to.caller(), &new), flags as u32))?;
    Ok(0)
}

pub(super) fn readlinkat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let link = at(call, a[0], a[1], |fs, caller, path| {
        fs.read_link(caller, path)
    })?;
    let room = usize::try_from(int(a[3])).unwrap_or(0);
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    let shown = &link[..link.len().min(room)];
    call.process.mm().write_bytes(Hva::new(a[2]), shown)?;
    Ok(shown.len() as u64)
}

pub(super) fn faccessat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let access = Access::from_bits(a[2] as u32).ok_or(Errno::EINVAL)?;
    match target(call, a[0], a[1], a[3] as u32)? {
        Target::Inode(id) => tree::with(|fs| fs.check_access(id, access))?,
        Target::Nameless(_) => {}
    }
    Ok(0)
}

const STAT_FLAGS: u32 = uapi::AT_SYMLINK_NOFOLLOW
    | uapi::AT_NO_AUTOMOUNT
    | uapi::AT_EMPTY_PATH
    | uapi::AT_STATX_SYNC_TYPE;

pub(super) fn newfstatat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if a[3] as u32 & !STAT_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let stat = match target(call, a[0], a[1], a[3] as u32)? {
        Target::Inode(id) => tree::with(|fs| fs.stat(id))?,
        Target::Nameless(file) => file.file.stat(),
    };
    user::write(call, a[2], &stat)?;
    Ok(0)
}

pub(super) fn fstat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    let stat = match file.inode {
        Some(id) => tree::with(|fs| fs.stat(id))?,
        None => file.file.stat(),
    };
    user::write(call, a[1], &stat)?;
    Ok(0)
}

/// statx: always the basic fields, whatever was asked for.
pub(super) fn statx(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[2] as u32;
    if flags & !STAT_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let statx = match target(call, a[0], a[1], flags)? {
        Target::Inode(id) => tree::with(|fs| fs.statx(id))?,
        Target::Nameless(file) => file.file.stat().into(),
    };
    user::write(call, a[4], &statx)?;
    Ok(0)
}

/// The inode behind a descriptor that was opened for writing.
fn writable(call: &Call<'_>, fd: u64) -> Result<InodeId, Errno> {
    let file = call.process.description(descriptor(fd)?)?;
    match file.downcast::<TreeFile>() {
        Some(open) if open.is_writable() => file.inode.ok_or(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

/// The memory file behind a descriptor, if it is one.
fn memory(call: &Call<'_>, fd: u64) -> Result<Option<Arc<MemoryFile>>, Errno> {
    let file = call.process.description(descriptor(fd)?)?;
    let file: Arc<dyn core::any::Any + Send + Sync> = file.file.clone();
    Ok(file.downcast::<MemoryFile>().ok())
}

fn length(arg: u64) -> Result<u64, Errno> {
    if arg > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(arg)
}

pub(super) fn truncate(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let length = length(a[1])?;
    let cwd = uapi::AT_FDCWD as u32 as u64;
    at(call, cwd, a[0], |fs, caller, path| {
        let id = fs.resolve(caller, path)?;
        fs.truncate(id, length).map(|()| 0)
    })
}

pub(super) fn ftruncate(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if let Some(memory) = memory(call, a[0])?.as_deref() {
        memory.resize(length(a[1])?)?;
        return Ok(0);
    }
    let (id, length) = (writable(call, a[0])?, length(a[1])?);
    tree::with(|fs| fs.truncate(id, length))?;
    Ok(0)
}

pub(super) fn fallocate(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if let Some(memory) = memory(call, a[0])?.as_deref() {
        memory.allocate(a[1] as u32, length(a[2])?, length(a[3])?)?;
        return Ok(0);
    }
    let id = writable(call, a[0]).map_err(|_| Errno::EBADF)?;
    let (offset, len) = (length(a[2])?, length(a[3])?);
    tree::with(|fs| fs.allocate(id, a[1] as u32, offset, len))?;
    Ok(0)
}

pub(super) fn getdents64(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const LARGEST: u64 = 64 << 10;
    let file = call.process.description(descriptor(a[0])?)?;
    let mut entries = Vec::new();
    let room = a[2].min(LARGEST) as usize;
    file.file.read_dir(room, &mut entries)?;
    call.process.mm().write_bytes(Hva::new(a[1]), &entries)?;
    Ok(entries.len() as u64)
}

pub(super) fn umask(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let old = call
        .process
        .with_paths(|paths| core::mem::replace(&mut paths.umask, a[0] as u32 & 0o777))?;
    Ok(old.into())
}

pub(super) fn fchmod(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    if let Some(id) = file.inode {
        tree::with(|fs| fs.set_mode(id, a[1] as u32))?;
    }
    Ok(0)
}

pub(super) fn fchmodat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    at(call, a[0], a[1], |fs, caller, path| {
        let id = fs.resolve(caller, path)?;
        fs.set_mode(id, a[2] as u32).map(|()| 0)
    })
}

pub(super) fn utimensat(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    // include/linux/stat.h
    const UTIME_NOW: i64 = (1 << 30) - 1;
    const UTIME_OMIT: i64 = (1 << 30) - 2;
    let now = Timespec::from_nanos(super::time::realtime());
    let times = match user::read_optional::<[Timespec; 2]>(call, a[2])? {
        None => [Some(now); 2],
        Some(times) => times.map(|time| match time.nsec {
            UTIME_NOW => Some(now),
            UTIME_OMIT => None,
            _ => Some(time),
        }),
    };
    let flags = a[3] as u32 | if a[1] == 0 { uapi::AT_EMPTY_PATH } else { 0 };
    match target(call, a[0], a[1], flags)? {
        Target::Inode(id) => tree::with(|fs| fs.set_times(id, times[0], times[1]))?,
        Target::Nameless(_) => {}
    }
    Ok(0)
}

/// `struct statfs64` of arm64.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Statfs {
    kind: u64,
    block: u64,
    blocks: u64,
    free: u64,
    available: u64,
    files: u64,
    files_free: u64,
    id: [u32; 2],
    name_length: u64,
    fragment: u64,
    flags: u64,
    spare: [u64; 4],
}

fn describe_tree() -> Statfs {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let (used, limit) = tree::with(|fs| fs.usage());
    let free = limit.saturating_sub(used);
    Statfs {
        kind: TMPFS_MAGIC,
        block: 4096,
        blocks: limit,
        free,
        available: free,
        name_length: 255,
        fragment: 4096,
        ..Statfs::default()
    }
}

pub(super) fn statfs(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let cwd = uapi::AT_FDCWD as u32 as u64;
    at(call, cwd, a[0], |fs, caller, path| fs.resolve(caller, path))?;
    user::write(call, a[1], &describe_tree())?;
    Ok(0)
}

pub(super) fn fstatfs(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    call.process.description(descriptor(a[0])?)?;
    user::write(call, a[1], &describe_tree())?;
    Ok(0)
}
