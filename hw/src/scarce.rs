//! Memory that is made scarce on purpose: the nth allocation of the calls in progress fails, as if there
//! were none left. In builds with checks only; in others nothing here ever says so.
//!
//! Counted are frames and large blocks of the heap. Small blocks do not fail ([`crate::heap`]).

use core::sync::atomic::{AtomicU64, Ordering};

/// How many allocations are left until one fails that would have succeeded; 0: none is to fail.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Calls in progress whose allocations may be made to fail.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Lets the `n`-th allocation from now on that a [`FallibleCall`] makes fail, 0 for none. False: this build
/// cannot.
#[must_use]
pub fn fail_nth(n: u64) -> bool {
    if cfg!(debug_assertions) {
        LEFT.store(n, Ordering::Relaxed);
    }
    cfg!(debug_assertions)
}

/// How many allocations are left until one fails; 0 when it has, or none is to.
pub fn left() -> u64 {
    LEFT.load(Ordering::Relaxed)
}

/// A call in progress: only what is allocated meanwhile can be made to fail, so that the process
/// which asks for it lives to see it.
#[derive(Debug)]
pub struct FallibleCall(());

impl FallibleCall {
    /// Begins.
    pub fn begin() -> Self {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for FallibleCall {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the allocation about to be made fails. Counts it.
pub fn must_fail() -> bool {
    cfg!(debug_assertions)
        && CALLS.load(Ordering::Relaxed) != 0
        && LEFT
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok_and(|n| n == 1)
}
