//! A spin lock that knows its place on the ladder.
//!
//! Whoever comes at the right moment gets it. A ticket lock would be fair, and was tried: where CPUs
//! are themselves scheduled (an emulator or a hypervisor below, with fewer cores than CPUs), every
//! hand-over waits until the one CPU whose turn it is runs again, and four CPUs on two cores made
//! a hundredth of the progress. Critical sections here are short, and no CPU re-takes a lock in a loop.
//!
//! umbra runs with interrupts masked, so a lock is never taken by an interrupt that preempted its
//! holder. Every lock has a rank; a CPU takes locks in rising rank only (`docs/locking.md`). Builds
//! with debug assertions check that on every acquisition.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// Mutual exclusion between CPUs by spinning.
pub struct SpinLock<T: ?Sized> {
    held: AtomicBool,
    name: &'static str,
    rank: u8,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one reference at a time; the value moves between CPUs with it.
unsafe impl<T: ?Sized + Send> Sync for SpinLock<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: ?Sized + Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock. `rank` is its place on the ladder: higher is taken later.
    pub const fn new(name: &'static str, rank: u8, value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            name,
            rank,
            value: UnsafeCell::new(value),
        }
    }

    /// The value, when nobody else can hold the lock.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> SpinLock<T> {
    /// Waits for the lock.
    #[track_caller]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        ladder::enter(self.name, self.rank);
        while self.held.swap(true, Ordering::Acquire) {
            // Wait by reading, so that the line stays shared until the lock is free.
            while self.held.load(Ordering::Relaxed) {
                spin_loop();
            }
        }
        SpinGuard { lock: self }
    }

    /// The value through exclusive access to the lock itself.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

/// The right to use what a [`SpinLock`] protects.
pub struct SpinGuard<'a, T: ?Sized> {
    lock: &'a SpinLock<T>,
}

impl<T: ?Sized> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so this CPU holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` makes it the only reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        ladder::leave(self.lock.rank);
        self.lock.held.store(false, Ordering::Release);
    }
}

/// The check of lock order: per CPU, which ranks are held.
mod ladder {
    #[cfg(all(debug_assertions, target_os = "none"))]
    mod checked {
        use crate::percpu::{MAX_CPUS, cpu};
        use core::sync::atomic::{AtomicU64, Ordering};

        static HELD: [[AtomicU64; 4]; MAX_CPUS] =
            [const { [const { AtomicU64::new(0) }; 4] }; MAX_CPUS];

        #[track_caller]
        pub(super) fn enter(name: &str, rank: u8) {
            let held = &HELD[cpu()];
            for (word, value) in held.iter().enumerate() {
                let value = value.load(Ordering::Relaxed);
                let above = match (word * 64).cmp(&(rank as usize / 64 * 64)) {
                    core::cmp::Ordering::Less => 0,
                    core::cmp::Ordering::Equal => value >> (rank % 64),
                    core::cmp::Ordering::Greater => value,
                };
                assert!(
                    above == 0,
                    "lock order: taking {name} (rank {rank}) while holding rank >= it"
                );
            }
            HELD[cpu()][rank as usize / 64].fetch_or(1 << (rank % 64), Ordering::Relaxed);
        }

        pub(super) fn leave(rank: u8) {
            HELD[cpu()][rank as usize / 64].fetch_and(!(1 << (rank % 64)), Ordering::Relaxed);
        }

        pub(super) fn held_any() -> bool {
            HELD[cpu()]
                .iter()
                .any(|word| word.load(Ordering::Relaxed) != 0)
        }
    }

    #[cfg(not(all(debug_assertions, target_os = "none")))]
    mod checked {
        pub(super) fn enter(_: &str, _: u8) {}
        pub(super) fn leave(_: u8) {}
        pub(super) fn held_any() -> bool {
            false
        }
    }

    #[track_caller]
    pub(super) fn enter(name: &str, rank: u8) {
        checked::enter(name, rank);
    }
    pub(super) fn leave(rank: u8) {
        checked::leave(rank);
    }
    pub(super) fn held_any() -> bool {
        checked::held_any()
    }
}

/// Panics (in checked builds) if this CPU holds any lock: before it gives up the CPU.
#[track_caller]
pub fn assert_none_held() {
    assert!(
        !ladder::held_any(),
        "a thread gives up its CPU while it holds a lock"
    );
}
