//! Opening, and the position of an open file.

use super::path::{Found, Last};
use super::{Caller, Device, Fs, InodeId, MAX_FILE, Node, ProcFile};
use crate::{Errno, uapi};

/// The flags of openat, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenFlags {
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// O_CREAT.
    pub create: bool,
    /// O_EXCL.
    pub exclusive: bool,
    /// O_TRUNC.
    pub truncate: bool,
    /// O_APPEND.
    pub append: bool,
    /// O_NONBLOCK.
    pub nonblock: bool,
    /// O_DIRECTORY.
    pub directory: bool,
    /// O_NOFOLLOW.
    pub no_follow: bool,
    /// O_PATH: neither read nor written.
    pub path: bool,
    /// O_CLOEXEC; for the descriptor.
    pub cloexec: bool,
}

impl OpenFlags {
    /// Reads arm64's bits. Unknown ones are ignored, as openat does; `EINVAL` for O_CREAT with
    /// O_DIRECTORY, `EOPNOTSUPP` for O_TMPFILE, so that programs fall back to a named file.
    pub fn from_linux(flags: u32) -> Result<Self, Errno> {
        let has = |bits| flags & bits == bits;
        if has(uapi::O_TMPFILE) {
            return Err(Errno::EOPNOTSUPP);
        }
        if has(uapi::O_CREAT | uapi::O_DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        let base = Self {
            directory: has(uapi::O_DIRECTORY),
            no_follow: has(uapi::O_NOFOLLOW),
            cloexec: has(uapi::O_CLOEXEC),
            ..Self::default()
        };
        if has(uapi::O_PATH) {
            return Ok(Self { path: true, ..base });
        }
        let mode = flags & uapi::O_ACCMODE;
        Ok(Self {
            // Mode 3 is "neither", for ioctl only.
            read: mode == 0 || mode == uapi::O_RDWR,
            write: mode == uapi::O_WRONLY || mode == uapi::O_RDWR,
            create: has(uapi::O_CREAT),
            exclusive: has(uapi::O_EXCL),
            truncate: has(uapi::O_TRUNC),
            append: has(uapi::O_APPEND),
            nonblock: has(uapi::O_NONBLOCK),
            ..base
        })
    }

    /// What F_GETFL answers.
    pub fn to_linux(self) -> u32 {
        let access = match (self.read, self.write) {
            (true, true) => uapi::O_RDWR,
            (false, true) => uapi::O_WRONLY,
            (true, false) => 0,
            (false, false) if self.path => uapi::O_PATH,
            (false, false) => uapi::O_ACCMODE,
        };
        let bit = |on, flag| if on { flag } else { 0 };
        access
            | bit(self.append, uapi::O_APPEND)
            | bit(self.nonblock, uapi::O_NONBLOCK)
            | bit(self.directory, uapi::O_DIRECTORY)
            | bit(self.no_follow, uapi::O_NOFOLLOW)
            | uapi::O_LARGEFILE
    }

    /// F_SETFL: only these two can change.
    pub const fn set_status(&mut self, flags: u32) {
        self.append = flags & uapi::O_APPEND != 0;
        self.nonblock = flags & uapi::O_NONBLOCK != 0;
    }
}

/// What was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opened {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A device: the kernel serves it.
    Device(Device),
    /// A file of /proc or /sys: the kernel serves it.
    Proc(ProcFile),
    /// A place only (O_PATH), perhaps a symbolic link.
    Path,
}

/// An open file of this tree: what dup shares. Whoever drops it releases its inode.
#[derive(Debug)]
pub struct OpenFile {
    /// The inode, which is held.
    pub id: InodeId,
    /// What it is.
    pub kind: Opened,
    /// How it was opened.
    pub flags: OpenFlags,
    /// Where the next read or write begins; for a directory, a cookie.
    pub position: u64,
}

impl Fs {
    /// openat: opens, and holds what was opened. `mode` is for a file that is made now.
    pub fn open(
        &mut self,
        caller: &Caller<'_>,
        path: &[u8],
        flags: OpenFlags,
        mode: u32,
    ) -> Result<OpenFile, Errno> {
        let keep = flags.no_follow || (flags.create && flags.exclusive);
        let found = self.walk(caller, path, if keep { Last::Keep } else { Last::Follow })?;
        let id = match found.id {
            Some(_) if flags.create && flags.exclusive => return Err(Errno::EEXIST),
            Some(id) => id,
            None if flags.create => self.create(caller, &found, mode)?,
            None => return Err(Errno::ENOENT),
        };
        self.open_inode(id, flags)
    }

    /// Opens an inode that is known already.
    pub fn open_inode(&mut self, id: InodeId, flags: OpenFlags) -> Result<OpenFile, Errno> {
        let kind = match &self.inode(id)?.node {
            Node::Dir(_) if flags.write || flags.create || flags.truncate => {
                return Err(Errno::EISDIR);
            }
            Node::Dir(_) => Opened::Dir,
            _ if flags.directory => return Err(Errno::ENOTDIR),
            _ if flags.path => Opened::Path,
            Node::Symlink(_) | Node::ProcExe => return Err(Errno::ELOOP),
            Node::File(_) => Opened::File,
            Node::Device(Device::Unknown { .. }) | Node::Socket => return Err(Errno::ENXIO),
            Node::Device(device) => Opened::Device(*device),
            Node::Proc(file) if flags.write && !file.is_writable() => return Err(Errno::EACCES),
            Node::Proc(file) => Opened::Proc(*file),
        };
        if flags.truncate && kind == Opened::File {
            self.truncate(id, 0)?;
        }
        self.hold(id)?;
        let kind = if flags.path { Opened::Path } else { kind };
        Ok(OpenFile {
            id,
            kind,
            flags,
            position: 0,
        })
    }

    fn create(&mut self, caller: &Caller<'_>, found: &Found, mode: u32) -> Result<InodeId, Errno> {
        if found.slash {
            return Err(Errno::EISDIR);
        }
        let node = Node::File(super::Content::default());
        self.make_named(found, node, mode & !caller.umask)
    }
}

impl OpenFile {
    /// read on a regular file, from the position. `EBADF` if it was not opened for reading.
    pub fn read(&mut self, fs: &mut Fs, buf: &mut [u8]) -> Result<usize, Errno> {
        let count = self.read_at(fs, self.position, buf)?;
        self.position += count as u64;
        Ok(count)
    }

    /// pread64.
    pub fn read_at(&self, fs: &mut Fs, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        if !self.flags.read {
            return Err(Errno::EBADF);
        }
        fs.read_at(self.id, offset, buf)
    }

    /// write on a regular file, from the position or at the end (O_APPEND). `EBADF` if it was not
    /// opened for writing.
    pub fn write(&mut self, fs: &mut Fs, bytes: &[u8]) -> Result<usize, Errno> {
        if !self.flags.write {
            return Err(Errno::EBADF);
        }
        let start = if self.flags.append {
            fs.len(self.id)?
        } else {
            self.position
        };
        let count = fs.write_at(self.id, start, bytes)?;
        self.position = start + count as u64;
        Ok(count)
    }

    /// pwrite64. As in Linux, O_APPEND wins over the offset.
    pub fn write_at(&self, fs: &mut Fs, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        if !self.flags.write {
            return Err(Errno::EBADF);
        }
        let start = if self.flags.append {
            fs.len(self.id)?
        } else {
            offset
        };
        fs.write_at(self.id, start, bytes)
    }

    /// lseek. `EINVAL` for an unknown whence or a position outside `0..=`[`MAX_FILE`].
    pub fn seek(&mut self, fs: &Fs, offset: i64, whence: u32) -> Result<u64, Errno> {
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => self.position,
            uapi::SEEK_END => fs.len(self.id)?,
            _ => return Err(Errno::EINVAL),
        };
        let position = base.checked_add_signed(offset).filter(|at| *at <= MAX_FILE);
        self.position = position.ok_or(Errno::EINVAL)?;
        Ok(self.position)
    }
}
