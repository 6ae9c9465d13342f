//! futex(2): who waits for which word of memory.
//!
//! Only the bookkeeping. The caller compares the word and registers the waiter under one lock, so that
//! a wake cannot fall between the two; it parks and resumes threads itself. What always holds: a
//! waiter is registered at most once, and waiters of one word are woken first come, first served.

use crate::Errno;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use umbra_arm64::Hva;

/// FUTEX_BITSET_MATCH_ANY: a wait or wake without a bitset.
pub const MATCH_ANY: u32 = u32::MAX;

/// Which word. Two processes that share memory meet at the same key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// A word of memory that one address space has to itself, or FUTEX_PRIVATE_FLAG.
    Private {
        /// Identifies the address space.
        space: u64,
        /// The address of the word.
        addr: Hva,
    },
    /// A word of a shared mapping.
    Shared {
        /// Identifies the mapped object.
        object: u64,
        /// Bytes from the object's start.
        offset: u64,
    },
}

/// Identifies a waiting thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Waiter(pub u64);

/// What a requeue did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "the woken threads sleep until somebody resumes them"]
pub struct Requeued {
    /// The waiters to resume.
    pub woken: Vec<Waiter>,
    /// How many now wait for the other word.
    pub moved: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    waiter: Waiter,
    bitset: u32,
}

/// All waiters of the machine.
#[derive(Debug, Default)]
pub struct Futexes {
    queues: BTreeMap<Key, VecDeque<Entry>>,
    /// Where each waiter is, which a requeue changes behind its back.
    places: BTreeMap<Waiter, Key>,
}

impl Futexes {
    /// No waiters.
    pub const fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }

    /// Registers `waiter` for `key`, after the caller found the expected value in the word. `EINVAL`
    /// for an empty bitset, `EBUSY` for a waiter that waits already (a fault of the caller).
    pub fn wait(&mut self, key: Key, waiter: Waiter, bitset: u32) -> Result<(), Errno> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        if self.places.contains_key(&waiter) {
            return Err(Errno::EBUSY);
        }
        self.places.insert(waiter, key);
        self.queues
            .entry(key)
            .or_default()
            .push_back(Entry { waiter, bitset });
        Ok(())
    }

    /// Takes up to `count` waiters of `key` whose bitset meets `bitset`: the caller resumes them.
    /// `EINVAL` for an empty bitset.
    #[must_use = "the woken threads sleep until somebody resumes them"]
    pub fn wake(&mut self, key: Key, count: usize, bitset: u32) -> Result<Vec<Waiter>, Errno> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let Some(queue) = self.queues.get_mut(&key) else {
            return Ok(Vec::new());
        };
        let mut woken = Vec::new();
        queue.retain(|entry| {
            let taken = woken.len() < count && entry.bitset & bitset != 0;
            if taken {
                woken.push(entry.waiter);
            }
            !taken
        });
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        for waiter in &woken {
            self.places.remove(waiter);
        }
        Ok(woken)
    }

    /// FUTEX_REQUEUE and, after the caller's comparison, FUTEX_CMP_REQUEUE: wakes up to `wake` waiters
    /// of `from` and lets up to `requeue` of the rest wait for `to`.
    pub fn requeue(&mut self, from: Key, to: Key, wake: usize, requeue: usize) -> Requeued {
        let woken = self.wake(from, wake, MATCH_ANY).unwrap_or_default();
        if from == to {
            let waiting = self.queues.get(&from).map_or(0, VecDeque::len);
            return Requeued {
                woken,
                moved: waiting.min(requeue),
            };
        }
        let Some(mut queue) = self.queues.remove(&from) else {
            return Requeued { woken, moved: 0 };
        };
        let rest = queue.split_off(requeue.min(queue.len()));
        if !rest.is_empty() {
            self.queues.insert(from, rest);
        }
        let moved = queue.len();
        for entry in &queue {
            self.places.insert(entry.waiter, to);
        }
        if moved > 0 {
            self.queues.entry(to).or_default().append(&mut queue);
        }
        Requeued { woken, moved }
    }

    /// Forgets `waiter`, whose time is up or who got a signal. False if it was woken before: it must
    /// then report success, or a wake is lost.
    #[must_use = "false means that the waiter was woken"]
    pub fn cancel(&mut self, waiter: Waiter) -> bool {
        let Some(key) = self.places.remove(&waiter) else {
            return false;
        };
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.retain(|entry| entry.waiter != waiter);
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
        true
    }

    /// How many threads wait.
    pub fn waiting(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn key(n: u64) -> Key {
        if n.is_multiple_of(2) {
            Key::Private {
                space: 1,
                addr: Hva::new(n),
            }
        } else {
            Key::Shared {
                object: 1,
                offset: n,
            }
        }
    }

    #[test]
    fn spaces_and_kinds_are_kept_apart() {
        let mut f = Futexes::new();
        f.wait(
            Key::Private {
                space: 1,
                addr: Hva::new(8),
            },
            Waiter(1),
            MATCH_ANY,
        )
        .unwrap();
        f.wait(
            Key::Private {
                space: 2,
                addr: Hva::new(8),
            },
            Waiter(2),
            MATCH_ANY,
        )
        .unwrap();
        f.wait(
            Key::Shared {
                object: 1,
                offset: 8,
            },
            Waiter(3),
            MATCH_ANY,
        )
        .unwrap();
        let woken = f.wake(
            Key::Private {
                space: 2,
                addr: Hva::new(8),
            },
            usize::MAX,
            MATCH_ANY,
        );
        assert_eq!(woken, Ok(vec![Waiter(2)]));
        assert_eq!(f.waiting(), 2);
    }

    #[test]
    fn the_bitset_selects() {
        let mut f = Futexes::new();
        f.wait(key(0), Waiter(1), 0b01).unwrap();
        f.wait(key(0), Waiter(2), 0b10).unwrap();
        assert_eq!(f.wake(key(0), 1, 0b10), Ok(vec![Waiter(2)]));
        assert_eq!(f.wake(key(0), 1, 0), Err(Errno::EINVAL));
        assert_eq!(f.wait(key(0), Waiter(3), 0), Err(Errno::EINVAL));
        assert_eq!(f.wait(key(4), Waiter(1), 1), Err(Errno::EBUSY));
    }

    #[test]
    fn a_requeued_waiter_can_time_out_at_its_new_place() {
        let mut f = Futexes::new();
        for n in 0..4 {
            f.wait(key(0), Waiter(n), MATCH_ANY).unwrap();
        }
        let done = f.requeue(key(0), key(2), 1, 2);
        assert_eq!(
            done,
            Requeued {
                woken: vec![Waiter(0)],
                moved: 2
            }
        );
        assert!(f.cancel(Waiter(1)));
        assert!(!f.cancel(Waiter(0)), "woken before");
        assert_eq!(f.wake(key(2), 9, MATCH_ANY), Ok(vec![Waiter(2)]));
        assert_eq!(f.wake(key(0), 9, MATCH_ANY), Ok(vec![Waiter(3)]));
        assert_eq!((f.waiting(), f.queues.len()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Wait(u64, u64, u32),
        Wake(u64, usize, u32),
        Requeue(u64, u64, usize, usize),
        Cancel(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..4, 0u64..12, 1u32..8).prop_map(|(k, w, b)| Op::Wait(k, w, b)),
            2 => (0u64..4, 0usize..4, 1u32..8).prop_map(|(k, n, b)| Op::Wake(k, n, b)),
            1 => (0u64..4, 0u64..4, 0usize..3, 0usize..4).prop_map(|(a, b, n, m)| Op::Requeue(a, b, n, m)),
            1 => (0u64..12).prop_map(Op::Cancel),
        ]
    }

    proptest! {
        /// The model is one list of (key, waiter, bitset) in order of arrival.
        #[test]
        fn behaves_like_a_list(ops in prop::collection::vec(op(), 1..80)) {
            let mut f = Futexes::new();
            let mut model: Vec<(u64, u64, u32)> = Vec::new();
            for op in ops {
                match op {
                    Op::Wait(k, w, b) => {
                        let busy = model.iter().any(|e| e.1 == w);
                        prop_assert_eq!(f.wait(key(k), Waiter(w), b).is_err(), busy);
                        if !busy {
                            model.push((k, w, b));
                        }
                    }
                    Op::Wake(k, n, b) => {
                        let woken = model_take(&mut model, |e| e.0 == k && e.2 & b != 0, n);
                        prop_assert_eq!(f.wake(key(k), n, b), Ok(woken));
                    }
                    Op::Requeue(from, to, n, m) => {
                        let woken = model_take(&mut model, |e| e.0 == from, n);
                        let moved = if from == to {
                            model.iter().filter(|e| e.0 == from).count().min(m)
                        } else {
                            let mut moved: Vec<_> = model.iter().filter(|e| e.0 == from).take(m).copied().collect();
                            model.retain(|e| !moved.contains(e));
                            moved.iter_mut().for_each(|e| e.0 = to);
                            model.extend(&moved);
                            moved.len()
                        };
                        prop_assert_eq!(f.requeue(key(from), key(to), n, m), Requeued { woken, moved });
                    }
                    Op::Cancel(w) => {
                        let before = model.len();
                        model.retain(|e| e.1 != w);
                        prop_assert_eq!(f.cancel(Waiter(w)), model.len() < before);
                    }
                }
                prop_assert_eq!(f.waiting(), model.len());
            }
        }
    }

    fn model_take(
        model: &mut Vec<(u64, u64, u32)>,
        wanted: impl Fn(&(u64, u64, u32)) -> bool,
        count: usize,
    ) -> Vec<Waiter> {
        let taken: Vec<_> = model
            .iter()
            .filter(|e| wanted(e))
            .take(count)
            .copied()
            .collect();
        model.retain(|e| !taken.contains(e));
        taken.into_iter().map(|e| Waiter(e.1)).collect()
    }
}
