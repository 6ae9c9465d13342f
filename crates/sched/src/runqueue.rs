//! The threads of one CPU that want to run, by how much they ran.
//!
//! Each thread carries its *runtime*: nanoseconds it has run, on the queue's scale. The one with the
//! least runs next, for a slice. A thread that slept comes back no further behind than one slice, so
//! it runs soon but cannot starve others for as long as it slept.

use alloc::collections::BTreeMap;

/// How long a thread runs before another that waits gets its turn, in nanoseconds.
pub const SLICE_NS: u64 = 4_000_000;

/// A queue of `T`s ordered by runtime; equal runtimes in order of arrival.
#[derive(Debug)]
pub struct RunQueue<T> {
    threads: BTreeMap<(u64, u64), T>,
    arrivals: u64,
    /// Runtime below which nobody enters: that of the last thread taken.
    floor: u64,
}

impl<T> Default for RunQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> RunQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            threads: BTreeMap::new(),
            arrivals: 0,
            floor: 0,
        }
    }

    /// Adds a thread with its runtime and returns the runtime it was given here.
    pub fn push(&mut self, thread: T, runtime: u64) -> u64 {
        let runtime = runtime.max(self.floor.saturating_sub(SLICE_NS));
        self.arrivals += 1;
        self.threads.insert((runtime, self.arrivals), thread);
        runtime
    }

    /// Takes the thread that ran least.
    pub fn pop(&mut self) -> Option<T> {
        let ((runtime, _), thread) = self.threads.pop_first()?;
        self.floor = self.floor.max(runtime);
        Some(thread)
    }

    /// Takes the thread that would run last, of those that `may_move`, for a CPU that has nothing to
    /// do.
    pub fn steal(&mut self, may_move: impl Fn(&T) -> bool) -> Option<T> {
        let (&key, _) = self
            .threads
            .iter()
            .rev()
            .find(|(_, thread)| may_move(thread))?;
        self.threads.remove(&key)
    }

    /// Runtime below which nobody enters, for a thread that comes from another queue.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Runtime of the thread that would run next.
    pub fn least(&self) -> Option<u64> {
        self.threads
            .first_key_value()
            .map(|((runtime, _), _)| *runtime)
    }

    /// Threads waiting.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_evenly() {
        let mut queue = RunQueue::new();
        let mut ran = [0u64; 3];
        let mut at = [0u64; 3];
        for thread in 0..3 {
            queue.push(thread, 0);
        }
        for _ in 0..300 {
            let thread: usize = queue.pop().unwrap();
            ran[thread] += 1;
            at[thread] += SLICE_NS;
            at[thread] = queue.push(thread, at[thread]);
        }
        assert_eq!(ran, [100, 100, 100]);
    }

    #[test]
    fn a_long_sleeper_does_not_starve_others() {
        let mut queue = RunQueue::new();
        let mut busy = 0;
        queue.push("busy", 0);
        for _ in 0..1000 {
            queue.pop();
            busy += SLICE_NS;
            queue.push("busy", busy);
        }
        let mut slept = queue.push("slept", 0);
        let mut turns = 0;
        while queue.pop() == Some("slept") {
            slept += SLICE_NS;
            slept = queue.push("slept", slept);
            turns += 1;
            assert!(turns < 5);
        }
        assert!(turns >= 1);
    }

    #[test]
    fn equals_run_in_order_of_arrival() {
        let mut queue = RunQueue::new();
        for n in 0..5 {
            queue.push(n, 7);
        }
        for n in 0..5 {
            assert_eq!(queue.pop(), Some(n));
        }
        assert!(queue.is_empty() && queue.steal(|_| true).is_none());
    }
}
