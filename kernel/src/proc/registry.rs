//! Every process and thread of the machine by number.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_linux::Errno;
use umbra_linux::wait::{Family, Pid};

use super::{Process, UserThread};

struct Registry {
    family: Family,
    processes: BTreeMap<Pid, Arc<Process>>,
    /// Main threads have their process's number.
    threads: BTreeMap<Pid, Arc<UserThread>>,
}

static REGISTRY: SpinLock<Registry> = SpinLock::new(
    "processes",
    20,
    Registry {
        family: Family::new(),
        processes: BTreeMap::new(),
        threads: BTreeMap::new(),
    },
);

/// Runs `f` with the table of who is whose child. Nothing that takes a lock of rank 20 or below, or
/// that waits.
pub(crate) fn family<R>(f: impl FnOnce(&mut Family) -> R) -> R {
    f(&mut REGISTRY.lock().family)
}

/// The number of a new child of `parent`.
pub(super) fn add_process(parent: Pid) -> Result<Pid, Errno> {
    let mut registry = REGISTRY.lock();
    let Registry {
        family, threads, ..
    } = &mut *registry;
    family.add(parent, |number| threads.contains_key(&number))
}

/// A number for a new thread.
pub(crate) fn new_number() -> Result<Pid, Errno> {
    let mut registry = REGISTRY.lock();
    let Registry {
        family, threads, ..
    } = &mut *registry;
    family.number(|number| threads.contains_key(&number))
}

/// Makes a process findable.
pub(super) fn insert(process: &Arc<Process>) {
    REGISTRY
        .lock()
        .processes
        .insert(process.pid, process.clone());
}

/// The process has ended: it can no longer be found.
pub(super) fn remove(pid: Pid) {
    let gone = REGISTRY.lock().processes.remove(&pid);
    drop(gone);
}

/// Makes a thread findable.
pub(super) fn insert_thread(thread: &Arc<UserThread>) {
    REGISTRY.lock().threads.insert(thread.tid, thread.clone());
}

/// The thread has ended.
pub(super) fn remove_thread(tid: Pid) {
    let gone = REGISTRY.lock().threads.remove(&tid);
    drop(gone);
}

/// The process of this number, if it lives.
pub(crate) fn find(pid: Pid) -> Option<Arc<Process>> {
    REGISTRY.lock().processes.get(&pid).cloned()
}

/// The thread of this number, if it lives.
pub(crate) fn by_tid(tid: Pid) -> Option<Arc<UserThread>> {
    REGISTRY.lock().threads.get(&tid).cloned()
}

/// Every living process.
pub(crate) fn processes() -> Vec<Arc<Process>> {
    REGISTRY.lock().processes.values().cloned().collect()
}
