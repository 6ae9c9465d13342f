//! What the threads of a program share.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_hw::sync::SpinLock;
use umbra_linux::fd::FdTable;
use umbra_linux::fs::{Caller, InodeId};
use umbra_linux::signal::{Actions, Pending};
use umbra_linux::wait::{Ending, Pid};
use umbra_linux::{Errno, uapi};

use super::UserThread;
use super::thread::PR_MCE_KILL_EARLY;
use crate::file::{Description, File};
use crate::files::tree;
use crate::mm::Mm;
use crate::sched::{Thread, WaitQueue};

/// Where a process stands in the tree of files.
pub(crate) struct Paths {
    /// The working directory, held.
    pub(crate) dir: InodeId,
    /// Permission bits that new files do not get.
    pub(crate) umask: u32,
    /// Absolute path of the program.
    pub(crate) exe: Vec<u8>,
}

impl Paths {
    /// As who a relative path is looked up.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller {
            dir: self.dir,
            exe: &self.exe,
            umask: self.umask,
        }
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        tree::release(self.dir);
    }
}

/// What a process does about signals, and those sent to it as a whole.
pub(crate) struct Signals {
    pub(crate) actions: Actions,
    pub(crate) shared: Pending,
}

/// A descriptor table, which `CLONE_FILES` lets processes share.
pub(crate) type Files = SpinLock<FdTable<Arc<Description>>>;

/// Opened when a process no longer uses its parent's address space (vfork).
#[derive(Default)]
pub(crate) struct Gate {
    pub(super) open: AtomicBool,
    pub(super) queue: WaitQueue,
}

/// A process: an address space, files, signal actions, and threads that share them.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// `None` once the last thread has left.
    pub(super) mm: SpinLock<Option<Arc<Mm>>>,
    pub(super) files: SpinLock<Arc<Files>>,
    pub(crate) paths: SpinLock<Option<Paths>>,
    pub(super) signals: SpinLock<Signals>,
    pub(super) threads: SpinLock<Vec<Arc<UserThread>>>,
    /// How it will have ended, once that is decided.
    pub(super) ending: SpinLock<Option<Ending>>,
    /// Set after `ending`: every thread leaves as soon as it can.
    pub(super) dying: AtomicBool,
    /// Parents sleep here in wait4.
    pub(crate) children: WaitQueue,
    pub(super) gate: SpinLock<Option<Arc<Gate>>>,
    /// Sent to the parent at the end; 0 for none.
    pub(super) exit_signal: u32,
    /// Where handlers without a restorer return to.
    pub(super) trampoline: AtomicU64,
    /// When it began, in nanoseconds.
    pub(crate) started: u64,
}

impl Process {
    /// The address space. Only for the process's own threads, which keep it alive.
    pub(crate) fn mm(&self) -> Arc<Mm> {
        let mm = self.mm.lock().clone();
        mm.expect("a process has its address space until its last thread leaves")
    }

    /// The address space, unless the last thread has left.
    pub(crate) fn try_mm(&self) -> Option<Arc<Mm>> {
        self.mm.lock().clone()
    }

    /// The thread that asked to hear of memory errors before anybody here meets them.
    pub(crate) fn early_thread(&self) -> Option<Arc<UserThread>> {
        let early = |thread: &&Arc<UserThread>| {
            thread.memory_error_word.load(Ordering::Relaxed) == PR_MCE_KILL_EARLY
        };
        self.threads.lock().iter().find(early).cloned()
    }

    /// The descriptor table.
    pub(crate) fn files(&self) -> Arc<Files> {
        self.files.lock().clone()
    }

    /// Opens a descriptor for `file`, readable and writable.
    pub(crate) fn install(&self, file: Arc<dyn File>, cloexec: bool) -> Result<u32, Errno> {
        self.install_description(Description::new(file, uapi::O_RDWR), cloexec)
    }

    /// Opens a descriptor for an open file.
    pub(crate) fn install_description(
        &self,
        file: Arc<Description>,
        cloexec: bool,
    ) -> Result<u32, Errno> {
        // A file that does not fit is dropped after the table's lock, as its drop may take others.
        let files = self.files();
        let spare = file.clone();
        let result = files.lock().insert(file, cloexec);
        drop(spare);
        result
    }

    /// The file behind a descriptor.
    pub(crate) fn file(&self, fd: u32) -> Result<Arc<dyn File>, Errno> {
        Ok(self.description(fd)?.file.clone())
    }

    /// The open file behind a descriptor.
    pub(crate) fn description(&self, fd: u32) -> Result<Arc<Description>, Errno> {
        self.files().lock().get(fd).cloned()
    }

    /// Runs `f` with the process's place in the tree. Takes the lock (rank 52).
    pub(crate) fn with_paths<R>(&self, f: impl FnOnce(&mut Paths) -> R) -> Result<R, Errno> {
        self.paths.lock().as_mut().map(f).ok_or(Errno::ESRCH)
    }

    /// Whether its end is decided.
    pub(crate) fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }

    /// Its threads, those that still run.
    pub(crate) fn threads(&self) -> Vec<Arc<UserThread>> {
        self.threads.lock().clone()
    }
}

/// What the scheduler knows of a thread of a process: whose address space it needs. Apart from
/// [`UserThread`], which refers to the scheduled thread in turn.
pub(super) struct Seat(pub(super) Arc<Process>);

impl crate::sched::Task for Seat {
    fn load_address_space(&self) {
        match &*self.0.mm.lock() {
            Some(mm) => mm.load(),
            None => umbra_hw::aspace::unload(),
        }
    }
}

/// Wakes a thread of a process wherever it is: asleep, or at EL0, or in a guest.
pub(super) fn prod(thread: &Arc<Thread>) {
    thread.unpark();
    crate::sched::kick(thread.cpu());
}
