//! epoll: a list of interests, and what of it is ready.
//!
//! An interest is keyed by (descriptor, open file), as in Linux, so that a descriptor that was closed
//! and reused does not inherit it. The list asks for readiness when somebody waits instead of being
//! told of every change: with the few files a VMM has this is cheaper than wait-queue callbacks, and an
//! edge is still an edge, because [`Readiness::generation`] counts what happened in between.

use crate::fd::Fd;
use crate::{Errno, Events, Readiness};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most events one wait may ask for: `INT_MAX / sizeof(struct epoll_event)` (`fs/eventpoll.c`).
pub const MAX_EVENTS: u32 = i32::MAX as u32 / size_of::<EpollEvent>() as u32;

/// What an exclusive interest may ask for (`EPOLLEXCLUSIVE_OK_BITS` in `fs/eventpoll.c`).
const EXCLUSIVE_ALLOWS: Events = Events::IN
    .union(Events::OUT)
    .union(Events::ALWAYS)
    .union(Events::WAKEUP)
    .union(Events::EDGE)
    .union(Events::EXCLUSIVE);

/// `struct epoll_event` of arm64, where it is not packed.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EpollEvent {
    /// [`Events`], as bits.
    pub events: u32,
    /// Zero.
    pub pad: u32,
    /// Whatever the process gave.
    pub data: u64,
}

/// Names an open file for as long as it is open: its identity, not its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FileId(pub u64);

#[derive(Debug)]
struct Interest {
    wanted: Events,
    data: u64,
    /// The generation that was last reported, for edges.
    seen: Option<u64>,
    /// A oneshot interest that has fired.
    silent: bool,
}

/// One epoll object.
#[derive(Debug, Default)]
pub struct Epoll {
    interests: BTreeMap<(Fd, FileId), Interest>,
    /// Where the next collection starts, so that a ready file at the front cannot starve the rest.
    cursor: Option<(Fd, FileId)>,
}

impl Epoll {
    /// An epoll object without interests.
    pub const fn new() -> Self {
        Self {
            interests: BTreeMap::new(),
            cursor: None,
        }
    }

    /// EPOLL_CTL_ADD. `EEXIST` if the file is in the list under this descriptor.
    pub fn add(&mut self, fd: Fd, file: FileId, event: EpollEvent) -> Result<(), Errno> {
        let interest = Interest::new(event);
        if interest.wanted.contains(Events::EXCLUSIVE)
            && !EXCLUSIVE_ALLOWS.contains(interest.wanted)
        {
            return Err(Errno::EINVAL);
        }
        if self.interests.contains_key(&(fd, file)) {
            return Err(Errno::EEXIST);
        }
        self.interests.insert((fd, file), interest);
        Ok(())
    }

    /// EPOLL_CTL_MOD. `ENOENT` if the file is not in the list. Re-arms a oneshot and makes the present
    /// state an edge.
    pub fn modify(&mut self, fd: Fd, file: FileId, event: EpollEvent) -> Result<(), Errno> {
        let interest = self.interests.get_mut(&(fd, file)).ok_or(Errno::ENOENT)?;
        let new = Interest::new(event);
        if (new.wanted | interest.wanted).contains(Events::EXCLUSIVE) {
            return Err(Errno::EINVAL);
        }
        *interest = new;
        Ok(())
    }

    /// EPOLL_CTL_DEL. `ENOENT` if the file is not in the list.
    pub fn remove(&mut self, fd: Fd, file: FileId) -> Result<(), Errno> {
        self.interests
            .remove(&(fd, file))
            .map(drop)
            .ok_or(Errno::ENOENT)
    }

    /// Up to `max` events of files that are ready, in turn. `ready` says how a file stands, or `None`
    /// once it is closed; its interest is then dropped.
    pub fn collect(
        &mut self,
        max: usize,
        mut ready: impl FnMut(FileId) -> Option<Readiness>,
    ) -> Vec<EpollEvent> {
        let mut found = Vec::new();
        for key in self.keys_in_turn() {
            if found.len() >= max {
                break;
            }
            let Some(interest) = self.interests.get_mut(&key) else {
                continue;
            };
            match ready(key.1) {
                None => drop(self.interests.remove(&key)),
                Some(state) => {
                    if let Some(event) = interest.take(state) {
                        found.push(event);
                        self.cursor = Some(key);
                    }
                }
            }
        }
        found
    }

    /// Whether [`Self::collect`] would find anything: the state for poll on the epoll file itself.
    pub fn is_ready(&self, mut ready: impl FnMut(FileId) -> Option<Readiness>) -> bool {
        self.interests.iter().any(|(key, interest)| {
            ready(key.1).is_some_and(|state| interest.looks(state).is_some())
        })
    }

    /// The files a waiter has to be woken by, each once or more.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.interests
            .iter()
            .filter(|(_, i)| !i.silent)
            .map(|(key, _)| key.1)
    }

    fn keys_in_turn(&self) -> Vec<(Fd, FileId)> {
        let mut keys: Vec<_> = self.interests.keys().copied().collect();
        if let Some(last) = self.cursor {
            let next = keys.partition_point(|key| *key <= last);
            keys.rotate_left(next);
        }
        keys
    }
}

impl Interest {
    fn new(event: EpollEvent) -> Self {
        Self {
            wanted: Events::from_bits_truncate(event.events),
            data: event.data,
            seen: None,
            silent: false,
        }
    }

    fn looks(&self, state: Readiness) -> Option<Events> {
        let old = self.wanted.contains(Events::EDGE) && self.seen == Some(state.generation);
        let events = state.events.reported_to(self.wanted);
        (!self.silent && !old && !events.is_empty()).then_some(events)
    }

    fn take(&mut self, state: Readiness) -> Option<EpollEvent> {
        let events = self.looks(state)?;
        self.seen = Some(state.generation);
        self.silent = self.wanted.contains(Events::ONESHOT);
        Some(EpollEvent {
            events: events.bits(),
            pad: 0,
            data: self.data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventfd::EventFd;

    const FILE: FileId = FileId(9);

    fn event(events: Events, data: u64) -> EpollEvent {
        EpollEvent {
            events: events.bits(),
            pad: 0,
            data,
        }
    }

    fn data(found: &[EpollEvent]) -> Vec<u64> {
        found.iter().map(|e| e.data).collect()
    }

    #[test]
    fn the_event_has_the_layout_of_arm64() {
        assert_eq!(size_of::<EpollEvent>(), 16);
        assert_eq!(core::mem::offset_of!(EpollEvent, data), 8);
    }

    #[test]
    fn level_reports_while_it_lasts_and_edge_once_a_change() {
        for (flags, second) in [(Events::IN, 1), (Events::IN | Events::EDGE, 0)] {
            let mut e = EventFd::new(1, false);
            let mut p = Epoll::new();
            p.add(3, FILE, event(flags, 7)).unwrap();
            assert_eq!(
                p.collect(8, |_| Some(e.readiness())),
                [event(Events::IN, 7)]
            );
            assert_eq!(p.is_ready(|_| Some(e.readiness())), second == 1);
            assert_eq!(p.collect(8, |_| Some(e.readiness())).len(), second);
            // Still readable, but written again: an edge.
            e.write(1).unwrap();
            assert_eq!(p.collect(8, |_| Some(e.readiness())).len(), 1);
        }
    }

    #[test]
    fn oneshot_is_silent_until_modified() {
        let e = EventFd::new(1, false);
        let mut p = Epoll::new();
        p.add(3, FILE, event(Events::IN | Events::ONESHOT, 1))
            .unwrap();
        assert_eq!(p.collect(8, |_| Some(e.readiness())).len(), 1);
        assert_eq!(p.collect(8, |_| Some(e.readiness())).len(), 0);
        assert_eq!(p.files().count(), 0);
        p.modify(3, FILE, event(Events::IN | Events::ONESHOT, 2))
            .unwrap();
        assert_eq!(data(&p.collect(8, |_| Some(e.readiness()))), [2]);
    }

    #[test]
    fn a_closed_file_leaves_the_list_and_its_number_can_be_reused() {
        let mut p = Epoll::new();
        p.add(3, FILE, event(Events::IN, 1)).unwrap();
        assert_eq!(p.add(3, FILE, event(Events::IN, 1)), Err(Errno::EEXIST));
        p.add(3, FileId(10), event(Events::IN, 2)).unwrap();
        let state = Readiness {
            events: Events::IN,
            generation: 0,
        };
        assert_eq!(
            data(&p.collect(8, |file| (file != FILE).then_some(state))),
            [2]
        );
        assert_eq!(p.modify(3, FILE, event(Events::IN, 1)), Err(Errno::ENOENT));
        assert_eq!(p.remove(3, FILE), Err(Errno::ENOENT));
        assert_eq!(p.remove(3, FileId(10)), Ok(()));
    }

    #[test]
    fn a_small_buffer_sees_every_ready_file_in_turn() {
        let mut p = Epoll::new();
        for n in 0..3 {
            p.add(n, FileId(u64::from(n)), event(Events::IN, u64::from(n)))
                .unwrap();
        }
        let state = |_| {
            Some(Readiness {
                events: Events::IN,
                generation: 0,
            })
        };
        let turns: Vec<u64> = (0..6).flat_map(|_| data(&p.collect(1, state))).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn exclusive_is_checked_as_linux_does() {
        let mut p = Epoll::new();
        let exclusive = Events::EXCLUSIVE | Events::IN;
        assert_eq!(
            p.add(1, FILE, event(exclusive | Events::ONESHOT, 0)),
            Err(Errno::EINVAL)
        );
        p.add(1, FILE, event(exclusive | Events::EDGE, 0)).unwrap();
        assert_eq!(p.modify(1, FILE, event(Events::IN, 0)), Err(Errno::EINVAL));
    }
}
