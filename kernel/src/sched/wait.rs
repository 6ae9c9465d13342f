//! Waiting for a condition that other threads make true.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use umbra_hw::sync::SpinLock;

use super::thread::Thread;
use super::{cpu, timer};

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited<T> {
    /// The condition held, with this value.
    Ready(T),
    /// The deadline passed first.
    TimedOut,
    /// The thread was asked to stop waiting (a signal).
    Interrupted,
}

/// The threads that wait for one thing.
pub(crate) struct WaitQueue {
    waiters: SpinLock<VecDeque<Arc<Thread>>>,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// Nobody waits.
    pub(crate) const fn new() -> Self {
        Self {
            waiters: SpinLock::new("wait queue", 110, VecDeque::new()),
        }
    }

    /// Waits until `ready` gives a value. `interrupted` is asked before each sleep. The condition is
    /// looked at after this thread is in the queue, so a wake between the two is not lost.
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<u64>,
        mut interrupted: impl FnMut() -> bool,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Waited<T> {
        let me = cpu::current();
        let result = loop {
            self.enter(&me);
            if let Some(value) = ready() {
                break Waited::Ready(value);
            }
            if interrupted() {
                break Waited::Interrupted;
            }
            if deadline.is_some_and(|at| timer::now() >= at) {
                break Waited::TimedOut;
            }
            cpu::park(deadline);
        };
        self.leave(&me);
        result
    }

    /// Puts the current thread into the queue, once: for waiting on several queues by `park`.
    pub(crate) fn enter(&self, me: &Arc<Thread>) {
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|other| Arc::ptr_eq(other, me)) {
            waiters.push_back(me.clone());
        }
    }

    /// Takes the thread out of the queue.
    pub(crate) fn leave(&self, me: &Arc<Thread>) {
        self.waiters.lock().retain(|other| !Arc::ptr_eq(other, me));
    }

    /// Wakes the thread that waits longest. Returns whether there was one.
    pub(crate) fn wake_one(&self) -> bool {
        let first = self.waiters.lock().pop_front();
        match first {
            Some(thread) => {
                thread.unpark();
                true
            }
            None => false,
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        let waiters = core::mem::take(&mut *self.waiters.lock());
        for thread in waiters {
            thread.unpark();
        }
    }
}
