//! The file system: one tree in memory.
//!
//! ```text
//!  path ──walk──► inode ──open──► OpenFile (position, flags) ──► descriptor
//!  name ───link──►  │
//!                   ├─ File     bytes of the initrd until written, then pages of its own
//!                   ├─ Dir      names
//!                   ├─ Symlink  a path
//!                   ├─ Device   whom the kernel asks instead
//!                   └─ Proc     text that the kernel makes when it is read
//! ```
//!
//! What always holds: an inode exists as long as it has a name or is held. Who keeps an [`InodeId`]
//! outside this module (an open file, a working directory, a mapping) holds it, and releases it once.
//! Directories form a tree: they have one name each.
//!
//! There is one user, root, and no lock: the kernel has the tree under a lock of its own. Memory is
//! bounded by [`Limits`], so that a process that fills /tmp gets `ENOSPC` and the kernel goes on.

mod boot;
mod change;
mod content;
mod device;
mod dir;
mod open;
mod path;
mod stat;
#[cfg(test)]
mod tests;

pub use boot::BootError;
pub use content::{Chunk, MAX_FILE};
pub use device::{Device, HugeCount, HugeSize, ProcFile};
pub use dir::NAME_MAX;
pub use open::{OpenFile, OpenFlags, Opened};
pub use path::{MAX_SYMLINKS, PATH_MAX};
pub use stat::{Access, Stat, Statx};

use crate::time::Timespec;
use crate::{Errno, uapi};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use content::Content;
use dir::Dir;

/// Names an inode for as long as it exists; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InodeId(u64);

impl InodeId {
    /// The inode number, as stat shows it.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// How much memory the tree may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Pages of file content, apart from the initrd's own bytes.
    pub pages: u64,
    /// Inodes.
    pub inodes: usize,
}

/// Who looks up a path.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Where relative paths start: the working directory, or the directory of an "at" call.
    pub dir: InodeId,
    /// The absolute path of the program, for /proc/self/exe.
    pub exe: &'a [u8],
    /// Permission bits that new files do not get.
    pub umask: u32,
}

/// What an inode is.
#[derive(Debug)]
enum Node {
    File(Content),
    Dir(Dir),
    Symlink(Vec<u8>),
    /// The name of a socket.
    Socket,
    Device(Device),
    Proc(ProcFile),
    /// The link /proc/self/exe, which points to a different place for everyone.
    ProcExe,
}

#[derive(Debug)]
struct Inode {
    node: Node,
    /// Permission bits; the kind follows from the node.
    mode: u32,
    /// Names.
    links: u32,
    /// Holds.
    holds: u32,
    accessed: Timespec,
    modified: Timespec,
    changed: Timespec,
}

/// The tree.
#[derive(Debug)]
pub struct Fs {
    inodes: BTreeMap<InodeId, Inode>,
    next: u64,
    root: InodeId,
    limits: Limits,
    /// Pages that may still be allocated.
    pages_left: u64,
    now: Timespec,
}

impl Fs {
    /// A tree of one directory.
    pub fn new(limits: Limits) -> Self {
        let root = InodeId(1);
        let now = Timespec::default();
        let node = Node::Dir(Dir::new(root));
        let inode = Inode {
            node,
            mode: 0o755,
            links: 2,
            holds: 1,
            accessed: now,
            modified: now,
            changed: now,
        };
        Self {
            inodes: BTreeMap::from([(root, inode)]),
            next: 2,
            root,
            limits,
            pages_left: limits.pages,
            now,
        }
    }

    /// The directory "/". It always exists.
    pub const fn root(&self) -> InodeId {
        self.root
    }

    /// Says what time it is (CLOCK_REALTIME), for the files that are changed from now on.
    pub const fn set_time(&mut self, now: Timespec) {
        self.now = now;
    }

    /// Keeps `id` even if its last name goes. `ENOENT` if it is gone already.
    pub fn hold(&mut self, id: InodeId) -> Result<(), Errno> {
        let inode = self.inode_mut(id)?;
        inode.holds = inode.holds.checked_add(1).ok_or(Errno::ENFILE)?;
        Ok(())
    }

    /// Ends a hold. Content without name and hold is freed here.
    pub fn release(&mut self, id: InodeId) {
        if let Ok(inode) = self.inode_mut(id) {
            inode.holds = inode.holds.saturating_sub(1);
            self.drop_if_unused(id);
        }
    }

    /// Bytes `offset..` of a file into `buf`; the number of bytes is less at the end of the file.
    /// `EISDIR`, or `EINVAL` if it is no regular file.
    pub fn read_at(&mut self, id: InodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let now = self.now;
        let inode = self.inode_mut(id)?;
        let count = inode.file()?.read(offset, buf);
        inode.accessed = now;
        Ok(count)
    }

    /// What the file holds at `offset`, without a copy: up to the end of the page. For mapping a file.
    pub fn chunk_at(&self, id: InodeId, offset: u64) -> Result<Chunk<'_>, Errno> {
        Ok(self.inode(id)?.file()?.chunk(offset))
    }

    /// Writes `bytes` at `offset` and says how many fitted. `ENOSPC` if none did, `EFBIG` beyond
    /// [`MAX_FILE`].
    pub fn write_at(&mut self, id: InodeId, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.change_file(id, |file, pages_left| file.write(offset, bytes, pages_left))
    }

    /// ftruncate. `EINVAL` for a length beyond any file, or if it is no regular file.
    pub fn truncate(&mut self, id: InodeId, len: u64) -> Result<(), Errno> {
        self.change_file(id, |file, pages_left| file.set_len(len, pages_left))
    }

    /// fallocate: mode 0, FALLOC_FL_KEEP_SIZE, and punching holes; else `EOPNOTSUPP`. Space is not
    /// promised, as pages come on the first write.
    pub fn allocate(&mut self, id: InodeId, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        const PUNCH: u32 = uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_KEEP_SIZE;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        if end > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        self.change_file(id, |file, pages_left| match mode {
            0 if end > file.len() => file.set_len(end, pages_left),
            0 | uapi::FALLOC_FL_KEEP_SIZE => Ok(()),
            PUNCH => file.punch(offset, end, pages_left),
            _ => Err(Errno::EOPNOTSUPP),
        })
    }

    /// A regular file's length in bytes; 0 for anything else.
    pub fn len(&self, id: InodeId) -> Result<u64, Errno> {
        Ok(self.inode(id)?.size())
    }

    /// Pages of content in use, and the limit.
    pub const fn usage(&self) -> (u64, u64) {
        (self.limits.pages - self.pages_left, self.limits.pages)
    }

    fn change_file<T>(
        &mut self,
        id: InodeId,
        change: impl FnOnce(&mut Content, &mut u64) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let now = self.now;
        let inode = self.inodes.get_mut(&id).ok_or(Errno::ENOENT)?;
        let done = change(inode.file_mut()?, &mut self.pages_left)?;
        (inode.modified, inode.changed) = (now, now);
        Ok(done)
    }

    fn inode(&self, id: InodeId) -> Result<&Inode, Errno> {
        self.inodes.get(&id).ok_or(Errno::ENOENT)
    }

    fn inode_mut(&mut self, id: InodeId) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&id).ok_or(Errno::ENOENT)
    }

    fn dir(&self, id: InodeId) -> Result<&Dir, Errno> {
        match &self.inode(id)?.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// A directory that is about to change.
    fn dir_mut(&mut self, id: InodeId) -> Result<&mut Dir, Errno> {
        let now = self.now;
        let inode = self.inode_mut(id)?;
        (inode.modified, inode.changed) = (now, now);
        match &mut inode.node {
            Node::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Makes an inode without a name. The caller gives it one at once.
    fn make(&mut self, node: Node, mode: u32) -> Result<InodeId, Errno> {
        if self.inodes.len() >= self.limits.inodes {
            return Err(Errno::ENOSPC);
        }
        let id = InodeId(self.next);
        self.next = self.next.checked_add(1).ok_or(Errno::ENOSPC)?;
        let now = self.now;
        let links = if matches!(node, Node::Dir(_)) { 1 } else { 0 };
        let (accessed, modified, changed) = (now, now, now);
        let mode = mode & 0o7777;
        self.inodes.insert(
            id,
            Inode {
                node,
                mode,
                links,
                holds: 0,
                accessed,
                modified,
                changed,
            },
        );
        Ok(id)
    }

    fn drop_if_unused(&mut self, id: InodeId) {
        let Some(inode) = self.inodes.get(&id) else {
            return;
        };
        let nameless = match inode.node {
            Node::Dir(_) => inode.links < 2,
            _ => inode.links == 0,
        };
        if !nameless || inode.holds > 0 {
            return;
        }
        let gone = self.inodes.remove(&id).map(|inode| inode.node);
        if let Some(Node::File(file)) = gone {
            self.pages_left += file.pages();
        }
    }
}

impl Inode {
    const fn kind(&self) -> u32 {
        match self.node {
            Node::File(_) | Node::Proc(_) => uapi::S_IFREG,
            Node::Dir(_) => uapi::S_IFDIR,
            Node::Symlink(_) | Node::ProcExe => uapi::S_IFLNK,
            Node::Device(device) => device.kind(),
            Node::Socket => uapi::S_IFSOCK,
        }
    }

    fn size(&self) -> u64 {
        match &self.node {
            Node::File(file) => file.len(),
            Node::Symlink(target) => target.len() as u64,
            Node::Dir(_) | Node::Device(_) | Node::Socket | Node::Proc(_) | Node::ProcExe => 0,
        }
    }

    fn file(&self) -> Result<&Content, Errno> {
        match &self.node {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn file_mut(&mut self) -> Result<&mut Content, Errno> {
        match &mut self.node {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}
