//! Advisory locks of open files: ranges of bytes (fcntl with `F_OFD_…`), and whole files (flock).
//!
//! Both kinds belong to an open file, whoever shares it, and end with it; they do not see each other
//! (fcntl(2), "Open file description locks"; flock(2)). What always holds: of one kind and file, no byte has a
//! writer and another holder, and an owner's ranges do not overlap.

use crate::Errno;
use alloc::vec::Vec;

/// The most locks that one open file holds.
const MOST: usize = 1024;

/// What a lock keeps others from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Others may read.
    Shared,
    /// Nobody else.
    Exclusive,
}

/// Bytes of a file, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// The last; `u64::MAX` for all that will ever be.
    pub last: u64,
}

impl Range {
    /// A whole file.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// What `l_start`, counted from `base`, and `l_len` mean. `EINVAL`: before the file's start. `EOVERFLOW`: beyond
    /// what can be told.
    pub fn new(base: i64, start: i64, len: i64) -> Result<Self, Errno> {
        let start = base.checked_add(start).ok_or(Errno::EOVERFLOW)?;
        let (first, last) = match len {
            0 => (start, None),
            len if len > 0 => (start, Some(start.checked_add(len - 1))),
            len => (
                start.checked_add(len).ok_or(Errno::EINVAL)?,
                Some(start.checked_sub(1)),
            ),
        };
        let number = |at: i64| u64::try_from(at).map_err(|_| Errno::EINVAL);
        Ok(Self {
            first: number(first)?,
            last: match last {
                None => u64::MAX,
                Some(last) => number(last.ok_or(Errno::EOVERFLOW)?)?,
            },
        })
    }

    /// `l_start` and `l_len` for it.
    pub fn start_and_len(self) -> (i64, i64) {
        let len = match self.last {
            u64::MAX => 0,
            last => last.wrapping_sub(self.first).wrapping_add(1) as i64,
        };
        (self.first as i64, len)
    }

    const fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is left of it before and behind `cut`, which it meets.
    fn without(self, cut: Self) -> impl Iterator<Item = Self> {
        let before = cut.first.checked_sub(1).filter(|&last| last >= self.first);
        let behind = cut.last.checked_add(1).filter(|&first| first <= self.last);
        let before = before.map(|last| Self { last, ..self });
        let behind = behind.map(|first| Self { first, ..self });
        before.into_iter().chain(behind)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lock<F> {
    file: F,
    owner: u64,
    range: Range,
    kind: Kind,
}

/// All locks of one sort. `F` names a file, a number the open file that owns a lock.
#[derive(Debug)]
pub struct Locks<F>(Vec<Lock<F>>);

impl<F: Copy + Eq> Default for Locks<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Copy + Eq> Locks<F> {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The lock of another that `kind` on `range` would meet.
    pub fn against(&self, file: F, owner: u64, range: Range, kind: Kind) -> Option<(Range, Kind)> {
        let other = self.0.iter().find(|held| {
            held.file == file
                && held.owner != owner
                && held.range.meets(range)
                && (held.kind == Kind::Exclusive || kind == Kind::Exclusive)
        })?;
        Some((other.range, other.kind))
    }

    /// Sets what the owner has of `range`; `None` gives it up. `EAGAIN`: another has it. `ENOLCK`: too many.
    pub fn set(
        &mut self,
        file: F,
        owner: u64,
        range: Range,
        kind: Option<Kind>,
    ) -> Result<(), Errno> {
        if let Some(kind) = kind
            && self.against(file, owner, range, kind).is_some()
        {
            return Err(Errno::EAGAIN);
        }
        let is_own = |held: &Lock<F>| held.file == file && held.owner == owner;
        // One in the middle of another makes three.
        if kind.is_some() && self.0.iter().filter(|held| is_own(held)).count() + 2 > MOST {
            return Err(Errno::ENOLCK);
        }
        let cut: Vec<Lock<F>> = self
            .0
            .extract_if(.., |held| is_own(held) && held.range.meets(range))
            .collect();
        for lock in cut {
            let left = lock.range.without(range);
            self.0.extend(left.map(|range| Lock { range, ..lock }));
        }
        self.0.extend(kind.map(|kind| Lock {
            file,
            owner,
            range,
            kind,
        }));
        Ok(())
    }

    /// The open file ends. Returns whether it had any.
    pub fn release(&mut self, owner: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|held| held.owner != owner);
        self.0.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    #[test]
    fn starts_and_lengths() {
        assert_eq!(Range::new(0, 100, 1), Ok(range(100, 100)));
        assert_eq!(Range::new(10, 5, 0), Ok(range(15, u64::MAX)));
        assert_eq!(Range::new(10, 0, -10), Ok(range(0, 9)));
        assert_eq!(Range::new(10, 0, -11), Err(Errno::EINVAL));
        assert_eq!(Range::new(0, -1, 1), Err(Errno::EINVAL));
        assert_eq!(Range::new(1, i64::MAX, 1), Err(Errno::EOVERFLOW));
        assert_eq!(Range::new(0, i64::MAX, 2), Err(Errno::EOVERFLOW));
        assert_eq!(range(3, 4).start_and_len(), (3, 2));
        assert_eq!(Range::ALL.start_and_len(), (0, 0));
    }

    #[test]
    fn readers_share_and_a_writer_does_not() {
        let mut locks = Locks::new();
        let all = Range::ALL;
        assert_eq!(locks.set('a', 1, all, Some(Kind::Shared)), Ok(()));
        assert_eq!(locks.set('a', 2, all, Some(Kind::Shared)), Ok(()));
        assert_eq!(
            locks.set('a', 1, all, Some(Kind::Exclusive)),
            Err(Errno::EAGAIN)
        );
        assert_eq!(locks.set('b', 1, all, Some(Kind::Exclusive)), Ok(()));
        assert_eq!(locks.set('a', 2, all, None), Ok(()));
        assert_eq!(locks.set('a', 1, all, Some(Kind::Exclusive)), Ok(()));
        assert_eq!(
            locks.against('a', 2, range(7, 7), Kind::Shared),
            Some((all, Kind::Exclusive))
        );
        assert!(locks.release(1));
        assert!(!locks.release(1));
        assert_eq!(locks.against('b', 2, all, Kind::Exclusive), None);
    }

    #[test]
    fn nobody_holds_more_than_the_most() {
        let mut locks = Locks::new();
        let mut last = Ok(());
        for n in 0..2000 {
            last = locks.set((), 1, range(2 * n, 2 * n), Some(Kind::Shared));
        }
        assert_eq!(last, Err(Errno::ENOLCK));
        assert_eq!(locks.set((), 1, range(10, 20), None), Ok(()));
    }

    proptest! {
        /// Against a byte-wise model.
        #[test]
        fn as_if_each_byte_had_its_own(
            calls in prop::collection::vec((0u64..3, 0u64..16, 0u64..16, 0u8..3), 0..60)
        ) {
            let mut locks = Locks::new();
            let mut bytes = [[None; 16]; 3];
            for (owner, a, b, kind) in calls {
                let (first, last) = (a.min(b), a.max(b));
                let kind = [None, Some(Kind::Shared), Some(Kind::Exclusive)][usize::from(kind)];
                let span = first as usize..=last as usize;
                let others = || (0..3).filter(|&other| other != owner as usize);
                let conflict = kind.is_some_and(|kind| others().any(|other| {
                    bytes[other][span.clone()].iter().flatten().any(|&held| {
                        kind == Kind::Exclusive || held == Kind::Exclusive
                    })
                }));
                let result = locks.set((), owner, range(first, last), kind);
                prop_assert_eq!(result, if conflict { Err(Errno::EAGAIN) } else { Ok(()) });
                if !conflict {
                    bytes[owner as usize][span].fill(kind);
                }
                for (owner, row) in bytes.iter().enumerate() {
                    for (at, held) in row.iter().enumerate() {
                        let at = range(at as u64, at as u64);
                        let own: Vec<_> = locks.0.iter()
                            .filter(|lock| lock.owner == owner as u64 && lock.range.meets(at))
                            .map(|lock| lock.kind)
                            .collect();
                        prop_assert_eq!(own, held.iter().copied().collect::<Vec<_>>());
                    }
                }
            }
        }
    }
}
