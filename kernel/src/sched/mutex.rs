//! Mutual exclusion for as long as a thread likes, blocking included.
//!
//! The value leaves the lock while somebody has it: that keeps the type free of `unsafe`, and the
//! holder owns the value rather than borrowing it.

use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};

use umbra_hw::sync::SpinLock;

use super::{WaitQueue, Waited};

/// A value that one thread at a time may use; others sleep.
pub(crate) struct Mutex<T> {
    slot: SpinLock<Option<Box<T>>>,
    waiters: WaitQueue,
}

/// The right to use the value of a [`Mutex`].
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` only in `drop`.
    value: Option<Box<T>>,
}

impl<T> Mutex<T> {
    /// A free mutex.
    pub(crate) fn new(value: T) -> Self {
        Self {
            slot: SpinLock::new("mutex", 112, Some(Box::new(value))),
            waiters: WaitQueue::new(),
        }
    }

    /// Waits for the value; `None` when `interrupted` says so first.
    pub(crate) fn lock_unless(
        &self,
        interrupted: impl FnMut() -> bool,
    ) -> Option<MutexGuard<'_, T>> {
        match self
            .waiters
            .wait(None, interrupted, || self.slot.lock().take())
        {
            Waited::Ready(value) => Some(MutexGuard {
                mutex: self,
                value: Some(value),
            }),
            Waited::TimedOut | Waited::Interrupted => None,
        }
    }

    /// The value, if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let value = self.slot.lock().take()?;
        Some(MutexGuard {
            mutex: self,
            value: Some(value),
        })
    }

    /// Waits for the value.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        match self.lock_unless(|| false) {
            Some(guard) => guard,
            None => unreachable!("a wait that nothing interrupts ends with the value"),
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
            .as_ref()
            .expect("a guard has its value until it is dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
            .as_mut()
            .expect("a guard has its value until it is dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        *self.mutex.slot.lock() = self.value.take();
        self.mutex.waiters.wake_one();
    }
}
