//! The ends of threads and processes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use umbra_arm64::Hva;
use umbra_linux::Errno;
use umbra_linux::signal::{Siginfo, Signal, code};
use umbra_linux::wait::{Ending, INIT};

use super::{Process, UserThread, family, find, registry};
use crate::file::Call;
use crate::sched;
use crate::sys::futex;

impl UserThread {
    /// The thread's last act. It still has the process's address space.
    pub(super) fn leave(self: &Arc<Self>) {
        let process = &self.process;
        let word = self.clear_tid.load(Ordering::Relaxed);
        if word != 0 {
            let mm = process.mm();
            let word = Hva::new(word);
            // A bad address is the program's loss.
            if mm.write_bytes(word, &0u32.to_le_bytes()).is_ok() {
                futex::wake_all(&mm, word);
            }
        }
        let last = {
            let mut threads = process.threads.lock();
            threads.retain(|other| !Arc::ptr_eq(other, self));
            threads.is_empty()
        };
        registry::remove_thread(self.tid);
        if last {
            process.finish();
        } else {
            // execve may wait for this.
            for other in process.threads() {
                other.scheduled().unpark();
            }
        }
    }
}

impl Process {
    /// Lets a parent that waits in vfork go on.
    pub(super) fn open_gate(&self) {
        let gate = self.gate.lock().take();
        if let Some(gate) = gate {
            gate.open.store(true, Ordering::Release);
            gate.queue.wake_all();
        }
    }

    /// The last thread has left: gives everything back and tells the parent.
    fn finish(self: &Arc<Self>) {
        umbra_hw::aspace::unload();
        let mm = self.mm.lock().take();
        let files = self.files();
        let empty = Arc::new(super::process::Files::new(
            "descriptors",
            50,
            umbra_linux::fd::FdTable::new(0),
        ));
        drop(core::mem::replace(&mut *self.files.lock(), empty));
        drop(files);
        drop(mm);
        let paths = self.paths.lock().take();
        drop(paths);
        let ending = self.ending.lock().unwrap_or(Ending::Exited(0));
        if self.pid == INIT {
            end_of_machine(ending);
        }
        // Only once everything is back may the parent find the child dead; but the vfork parent
        // must not wait for ever either way.
        registry::remove(self.pid);
        let parent = family(|family| family.parent(self.pid)).unwrap_or(INIT);
        let discards = |pid| {
            find(pid).is_some_and(|process| process.signals.lock().actions.discards_children())
        };
        let (parent_discards, init_discards) = (discards(parent), discards(INIT));
        let farewell = family(|family| {
            family.exit(self.pid, ending, |pid| {
                (pid == parent && parent_discards) || (pid == INIT && init_discards)
            })
        });
        for pid in farewell.notify {
            if let Some(parent) = find(pid) {
                if let Ok(signal) = Signal::new(self.exit_signal) {
                    // Only a full queue of real-time signals refuses; the wait below finds it.
                    let _ = parent.send(signal, self.obituary(ending));
                }
                parent.children.wake_all();
            }
        }
        self.open_gate();
    }

    fn obituary(&self, ending: Ending) -> Siginfo {
        let (code, status) = match ending {
            Ending::Exited(status) => (code::CLD_EXITED, status.into()),
            Ending::Killed { signal, .. } => (code::CLD_KILLED, signal.number().into()),
        };
        Siginfo::child(code, self.pid, 0, status)
    }
}

/// The first program has ended, and the machine with it.
fn end_of_machine(ending: Ending) -> ! {
    let status = match ending {
        Ending::Exited(status) => u64::from(status),
        Ending::Killed { signal, .. } => 128 + u64::from(signal.number()),
    };
    log::info!("first program exited, status {status}");
    crate::boot::end(status)
}

/// execve by one thread of several: the others leave, and this one waits until they have.
pub(super) fn leave_alone(call: &Call<'_>) -> Result<(), Errno> {
    let others = call.process.threads();
    for other in others
        .iter()
        .filter(|other| !Arc::ptr_eq(other, call.thread))
    {
        other.doomed.store(true, Ordering::Release);
        other.alert();
    }
    drop(others);
    while call.process.threads.lock().len() > 1 {
        if call.thread.must_go() {
            return Err(Errno::EINTR);
        }
        sched::park(None);
    }
    Ok(())
}
