//! What an open file is to the rest of umbra, whoever provides it: the tree, a pipe, /dev/kvm.
//!
//! Nothing here waits. An operation that cannot go on says [`Stop::WouldBlock`]; the system call
//! then sleeps on the file's queue, or answers `EAGAIN` if the open file is non-blocking. Whoever
//! changes a file's readiness wakes its queue after the change, with no lock held. Bytes cross in
//! the kernel's own buffers, so no file touches user memory except through the caller's `Mm`.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use umbra_linux::epoll::FileId;
use umbra_linux::fs::{InodeId, Stat};
use umbra_linux::{Errno, Events, Readiness, Stop, uapi};

use crate::mm;
use crate::proc::{Process, UserThread};
use crate::sched::{Thread, WaitQueue};

/// On whose behalf a file is used: the current thread and its process.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) process: &'a Arc<Process>,
    pub(crate) thread: &'a Arc<UserThread>,
}

/// An open file. Every operation has a default that says what Linux says of a file without it.
pub(crate) trait File: core::any::Any + Send + Sync {
    /// read: from the file's own position, if it has one.
    fn read(&self, _call: &Call<'_>, _buf: &mut [u8]) -> Result<usize, Stop> {
        Err(Errno::EINVAL.into())
    }

    /// write: at the file's own position, if it has one.
    fn write(&self, _call: &Call<'_>, _bytes: &[u8]) -> Result<usize, Stop> {
        Err(Errno::EINVAL.into())
    }

    /// pread64.
    fn read_at(&self, _call: &Call<'_>, _offset: u64, _buf: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::ESPIPE)
    }

    /// pwrite64.
    fn write_at(&self, _call: &Call<'_>, _offset: u64, _bytes: &[u8]) -> Result<usize, Errno> {
        Err(Errno::ESPIPE)
    }

    /// ioctl. `arg` is whatever the request means by it, often an address of the process.
    fn ioctl(&self, _call: &Call<'_>, _request: u32, _arg: u64) -> Result<u64, Errno> {
        Err(Errno::ENOTTY)
    }

    /// mmap: what `bytes` from `offset` are, for a mapping.
    fn mmap(&self, _offset: u64, _bytes: u64) -> Result<mm::Object, Errno> {
        Err(Errno::ENODEV)
    }

    /// The state for poll. A file that never makes anyone wait is always ready.
    fn readiness(&self) -> Readiness {
        Readiness {
            events: Events::READABLE | Events::WRITABLE,
            generation: 0,
        }
    }

    /// Who waits for a change of readiness. `None`: it never changes.
    fn queue(&self) -> Option<&WaitQueue> {
        None
    }

    /// When readiness next changes by itself, in nanoseconds of `sched::now`.
    fn next_change(&self) -> Option<u64> {
        None
    }

    /// Puts `me` wherever a change of readiness wakes it.
    fn enter_queues(&self, me: &Arc<Thread>) {
        if let Some(queue) = self.queue() {
            queue.enter(me);
        }
    }

    /// Undoes [`Self::enter_queues`].
    fn leave_queues(&self, me: &Arc<Thread>) {
        if let Some(queue) = self.queue() {
            queue.leave(me);
        }
    }

    /// lseek.
    fn seek(&self, _offset: i64, _whence: u32) -> Result<u64, Errno> {
        Err(Errno::ESPIPE)
    }

    /// fsync: what was written outlives the machine, as far as that can be.
    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether shared mappings of it are its own pages.
    fn is_memory(&self) -> bool {
        false
    }

    /// fstat of a file that is not in the tree.
    fn stat(&self) -> Stat {
        // An anonymous inode: no kind, readable and writable by its owner.
        let mut stat = Stat::default();
        stat.mode = 0o600;
        stat.nlink = 1;
        stat.blksize = 4096;
        stat
    }

    /// getdents64: appends entries, at most `room` bytes.
    fn read_dir(&self, _room: usize, _out: &mut alloc::vec::Vec<u8>) -> Result<(), Errno> {
        Err(Errno::ENOTDIR)
    }

    /// F_SETFL changed O_APPEND or O_NONBLOCK.
    fn set_status(&self, _flags: u32) {}
}

/// An open file description: what dup and clone share.
pub(crate) struct Description {
    /// Never used twice.
    pub(crate) id: FileId,
    pub(crate) file: Arc<dyn File>,
    /// As F_GETFL shows them.
    flags: AtomicU32,
    /// What was opened, if it has a name in the tree; held.
    pub(crate) inode: Option<InodeId>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Description {
    /// Opens `file` with these `O_…` flags.
    pub(crate) fn new(file: Arc<dyn File>, flags: u32) -> Arc<Self> {
        Arc::new(Self {
            id: FileId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            file,
            flags: AtomicU32::new(flags & !uapi::O_CLOEXEC),
            inode: None,
        })
    }

    /// Opens `file`, which is what the tree has at `inode`; takes over the hold on that.
    pub(crate) fn of_tree(file: Arc<dyn File>, flags: u32, inode: InodeId) -> Arc<Self> {
        Arc::new(Self {
            id: FileId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            file,
            flags: AtomicU32::new(flags),
            inode: Some(inode),
        })
    }

    /// F_GETFL.
    pub(crate) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// F_SETFL.
    pub(crate) fn set_flags(&self, flags: u32) {
        const CHANGEABLE: u32 = uapi::O_APPEND | uapi::O_NONBLOCK;
        let kept = self.flags() & !CHANGEABLE;
        self.flags
            .store(kept | flags & CHANGEABLE, Ordering::Relaxed);
        self.file.set_status(flags);
    }

    /// Whether the caller would rather have `EAGAIN` than wait.
    pub(crate) fn is_nonblocking(&self) -> bool {
        self.flags() & uapi::O_NONBLOCK != 0
    }

    /// The file as what it really is.
    pub(crate) fn downcast<T: File>(&self) -> Option<&T> {
        downcast(&*self.file)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        crate::sys::lock::release(self.id);
        if let Some(id) = self.inode {
            crate::files::tree::release(id);
        }
    }
}

/// A file as what it really is.
pub(crate) fn downcast<T: File>(file: &dyn File) -> Option<&T> {
    let any: &dyn core::any::Any = file;
    any.downcast_ref()
}

/// Waits until `attempt` no longer says [`Stop::WouldBlock`]: a blocking call on `description`. A
/// signal ends it with `EINTR`, after which the call may be started again.
pub(crate) fn block_on<T>(
    call: &Call<'_>,
    description: &Description,
    mut attempt: impl FnMut() -> Result<T, Stop>,
) -> Result<T, Errno> {
    let file = &description.file;
    match attempt() {
        Err(Stop::WouldBlock) if !description.is_nonblocking() => {}
        other => return other.map_err(Stop::without_waiting),
    }
    let me = crate::sched::current();
    let result = loop {
        file.enter_queues(&me);
        match attempt() {
            Err(Stop::WouldBlock) => {}
            other => break other.map_err(Stop::without_waiting),
        }
        if call.thread.signal_pending() {
            break Err(call.thread.interrupted());
        }
        crate::sched::park(file.next_change());
    };
    file.leave_queues(&me);
    result
}
