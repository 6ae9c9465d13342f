//! The descriptor table: small numbers that name open files.
//!
//! Generic over what an open file is: cloning an `F` must name the same open file (an `Arc`), since
//! dup and clone share position and flags. A removed file is handed back to the caller, so that it
//! is dropped outside whatever lock guards the table.

use crate::Errno;
use alloc::vec::Vec;

/// A descriptor: an index into one process's table.
pub type Fd = u32;

/// RLIMIT_NOFILE: enough for a VMM with as many vCPUs as a VM may have.
pub const DEFAULT_LIMIT: u32 = 4096;

#[derive(Clone, Debug)]
struct Slot<F> {
    file: F,
    cloexec: bool,
}

/// A table of open files. What always holds: no descriptor is at or above the limit.
#[derive(Clone, Debug)]
pub struct FdTable<F> {
    slots: Vec<Option<Slot<F>>>,
    limit: u32,
}

impl<F: Clone> FdTable<F> {
    /// An empty table for at most `limit` descriptors.
    pub const fn new(limit: u32) -> Self {
        Self {
            slots: Vec::new(),
            limit,
        }
    }

    /// Names `file` by the lowest free number. `EMFILE` if the table is full.
    pub fn insert(&mut self, file: F, cloexec: bool) -> Result<Fd, Errno> {
        self.insert_from(0, file, cloexec)
    }

    /// The open file behind `fd`. `EBADF` if there is none.
    pub fn get(&self, fd: Fd) -> Result<&F, Errno> {
        Ok(&self.slot(fd)?.file)
    }

    /// Whether execve closes `fd` (F_GETFD).
    pub fn cloexec(&self, fd: Fd) -> Result<bool, Errno> {
        Ok(self.slot(fd)?.cloexec)
    }

    /// Says whether execve closes `fd` (F_SETFD).
    pub fn set_cloexec(&mut self, fd: Fd, cloexec: bool) -> Result<(), Errno> {
        let slot = self.slots.get_mut(fd as usize).and_then(Option::as_mut);
        slot.ok_or(Errno::EBADF)?.cloexec = cloexec;
        Ok(())
    }

    /// Frees `fd` and hands back its file.
    pub fn remove(&mut self, fd: Fd) -> Result<F, Errno> {
        let slot = self.slots.get_mut(fd as usize).and_then(Option::take);
        Ok(slot.ok_or(Errno::EBADF)?.file)
    }

    /// dup, F_DUPFD, F_DUPFD_CLOEXEC: the lowest free number from `min` on. `EINVAL` if `min` is
    /// beyond the limit.
    pub fn dup(&mut self, fd: Fd, min: Fd, cloexec: bool) -> Result<Fd, Errno> {
        let file = self.get(fd)?.clone();
        if min >= self.limit {
            return Err(Errno::EINVAL);
        }
        self.insert_from(min, file, cloexec)
    }

    /// dup3: makes `new` name the file of `old` and hands back what it named before. `EINVAL` if
    /// they are the same number (dup2 answers that itself).
    pub fn dup3(&mut self, old: Fd, new: Fd, cloexec: bool) -> Result<Option<F>, Errno> {
        if old == new {
            return Err(Errno::EINVAL);
        }
        let file = self.get(old)?.clone();
        if new >= self.limit {
            return Err(Errno::EBADF);
        }
        self.reach(new)?;
        let slot = self.slots.get_mut(new as usize).ok_or(Errno::EBADF)?;
        Ok(slot.replace(Slot { file, cloexec }).map(|slot| slot.file))
    }

    /// Frees every descriptor that execve closes, and hands back the files.
    pub fn sweep_cloexec(&mut self) -> Vec<F> {
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.take_if(|slot| slot.cloexec))
            .map(|slot| slot.file)
            .collect()
    }

    /// close_range: frees `first..=last` and hands back the files.
    pub fn remove_range(&mut self, first: Fd, last: Fd) -> Result<Vec<F>, Errno> {
        if first > last {
            return Err(Errno::EINVAL);
        }
        Ok(self
            .slots
            .iter_mut()
            .skip(first as usize)
            .take((last - first) as usize + 1)
            .filter_map(Option::take)
            .map(|slot| slot.file)
            .collect())
    }

    /// Every open descriptor, from the lowest.
    pub fn iter(&self) -> impl Iterator<Item = (Fd, &F)> {
        self.slots
            .iter()
            .zip(0..)
            .filter_map(|(slot, fd)| Some((fd, &slot.as_ref()?.file)))
    }

    /// RLIMIT_NOFILE.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    fn slot(&self, fd: Fd) -> Result<&Slot<F>, Errno> {
        self.slots
            .get(fd as usize)
            .and_then(Option::as_ref)
            .ok_or(Errno::EBADF)
    }

    fn insert_from(&mut self, min: Fd, file: F, cloexec: bool) -> Result<Fd, Errno> {
        let taken = self
            .slots
            .iter()
            .skip(min as usize)
            .take_while(|slot| slot.is_some())
            .count();
        let fd = u32::try_from(taken)
            .ok()
            .and_then(|n| min.checked_add(n))
            .ok_or(Errno::EMFILE)?;
        if fd >= self.limit {
            return Err(Errno::EMFILE);
        }
        self.reach(fd)?;
        let slot = self.slots.get_mut(fd as usize).ok_or(Errno::EMFILE)?;
        *slot = Some(Slot { file, cloexec });
        Ok(fd)
    }

    fn reach(&mut self, fd: Fd) -> Result<(), Errno> {
        let needed = fd as usize + 1;
        if let Some(more) = needed
            .checked_sub(self.slots.len())
            .filter(|&more| more > 0)
        {
            self.slots.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
            self.slots.resize_with(needed, || None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;

    #[test]
    fn the_lowest_free_number_is_taken() {
        let mut t = FdTable::new(8);
        assert_eq!(
            (
                t.insert('a', false),
                t.insert('b', false),
                t.insert('c', false)
            ),
            (Ok(0), Ok(1), Ok(2))
        );
        assert_eq!(t.remove(1), Ok('b'));
        assert_eq!(t.insert('d', false), Ok(1));
        assert_eq!(t.dup(0, 5, true), Ok(5));
        assert_eq!(t.cloexec(5), Ok(true));
        assert_eq!(t.cloexec(0), Ok(false));
    }

    #[test]
    fn a_clone_does_not_share_numbers() {
        let mut t = FdTable::new(8);
        t.insert('a', false).unwrap();
        let mut child = t.clone();
        child.remove(0).unwrap();
        assert_eq!(t.get(0), Ok(&'a'));
        assert_eq!(child.get(0), Err(Errno::EBADF));
    }

    #[test]
    fn exec_sweeps_only_marked_files() {
        let mut t = FdTable::new(8);
        t.insert('a', true).unwrap();
        t.insert('b', false).unwrap();
        t.insert('c', false).unwrap();
        t.set_cloexec(2, true).unwrap();
        assert_eq!(t.sweep_cloexec(), vec!['a', 'c']);
        assert_eq!(t.iter().collect::<Vec<_>>(), vec![(1, &'b')]);
    }

    #[test]
    fn numbers_beyond_the_limit_are_refused_as_linux_does() {
        let mut t = FdTable::new(2);
        t.insert('a', false).unwrap();
        assert_eq!(t.dup(0, 2, false), Err(Errno::EINVAL));
        assert_eq!(t.dup3(0, 2, false), Err(Errno::EBADF));
        assert_eq!(t.dup3(0, u32::MAX, false), Err(Errno::EBADF));
        assert_eq!(t.dup3(0, 0, false), Err(Errno::EINVAL));
        assert_eq!(t.dup3(1, 1, false), Err(Errno::EINVAL));
        t.insert('b', false).unwrap();
        assert_eq!(t.insert('c', false), Err(Errno::EMFILE));
        assert_eq!(t.remove_range(1, 0), Err(Errno::EINVAL));
        assert_eq!(t.remove_range(0, u32::MAX), Ok(vec!['a', 'b']));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(bool),
        Remove(Fd),
        Dup(Fd, Fd, bool),
        Dup3(Fd, Fd, bool),
        Sweep,
        Range(Fd, Fd),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => any::<bool>().prop_map(Op::Insert),
            2 => (0u32..14).prop_map(Op::Remove),
            2 => (0u32..14, 0u32..14, any::<bool>()).prop_map(|(a, b, c)| Op::Dup(a, b, c)),
            2 => (0u32..14, 0u32..14, any::<bool>()).prop_map(|(a, b, c)| Op::Dup3(a, b, c)),
            1 => Just(Op::Sweep),
            1 => (0u32..14, 0u32..14).prop_map(|(a, b)| Op::Range(a, b)),
        ]
    }

    const LIMIT: u32 = 10;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..80)) {
            let mut table = FdTable::new(LIMIT);
            let mut model: BTreeMap<Fd, (u32, bool)> = BTreeMap::new();
            let free = |model: &BTreeMap<Fd, (u32, bool)>, min| {
                (min..LIMIT).find(|fd| !model.contains_key(fd)).ok_or(Errno::EMFILE)
            };
            for (file, op) in (0u32..).zip(ops) {
                match op {
                    Op::Insert(cloexec) => {
                        let expected = free(&model, 0);
                        prop_assert_eq!(table.insert(file, cloexec), expected);
                        if let Ok(fd) = expected {
                            model.insert(fd, (file, cloexec));
                        }
                    }
                    Op::Remove(fd) => {
                        let expected = model.remove(&fd).map(|entry| entry.0).ok_or(Errno::EBADF);
                        prop_assert_eq!(table.remove(fd), expected);
                    }
                    Op::Dup(fd, min, cloexec) => {
                        let got = table.dup(fd, min, cloexec);
                        match model.get(&fd).copied() {
                            None => prop_assert_eq!(got, Err(Errno::EBADF)),
                            Some(_) if min >= LIMIT => prop_assert_eq!(got, Err(Errno::EINVAL)),
                            Some((file, _)) => {
                                let expected = free(&model, min);
                                prop_assert_eq!(got, expected);
                                if let Ok(new) = expected {
                                    model.insert(new, (file, cloexec));
                                }
                            }
                        }
                    }
                    Op::Dup3(old, new, cloexec) => {
                        let got = table.dup3(old, new, cloexec);
                        if let (Ok(before), Some((file, _))) = (&got, model.get(&old).copied()) {
                            let replaced = model.insert(new, (file, cloexec)).map(|entry| entry.0);
                            prop_assert_eq!(*before, replaced);
                        } else {
                            prop_assert!(old == new || new >= LIMIT || !model.contains_key(&old));
                        }
                    }
                    Op::Sweep => {
                        let swept: Vec<u32> = model.values().filter(|e| e.1).map(|e| e.0).collect();
                        model.retain(|_, e| !e.1);
                        prop_assert_eq!(table.sweep_cloexec(), swept);
                    }
                    Op::Range(first, last) => {
                        let gone: Vec<u32> =
                            model.iter().filter(|(fd, _)| (first..=last).contains(fd)).map(|(_, e)| e.0).collect();
                        model.retain(|fd, _| !(first..=last).contains(fd));
                        let expected = if first > last { Err(Errno::EINVAL) } else { Ok(gone) };
                        prop_assert_eq!(table.remove_range(first, last), expected);
                    }
                }
                prop_assert!(table.iter().map(|(fd, file)| (fd, *file)).eq(model.iter().map(|(fd, e)| (*fd, e.0))));
                for (fd, entry) in &model {
                    prop_assert_eq!(table.cloexec(*fd), Ok(entry.1));
                }
            }
        }
    }
}
