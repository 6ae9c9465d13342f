//! epoll: a list of files to ask, and where to sleep until asking again makes sense.
//!
//! An epoll file does not go into another one: `EINVAL`, where Linux follows such chains a little
//! way. No VMM uses it, and without it a list has no cycles.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_linux::epoll::{Epoll, EpollEvent, FileId};
use umbra_linux::{Errno, Events, Readiness};

use crate::file::{Description, File};
use crate::sched::{Thread, WaitQueue};

#[derive(Default)]
struct List {
    epoll: Epoll,
    /// Weak: a closed file leaves the list by itself.
    files: BTreeMap<FileId, Weak<Description>>,
}

/// One epoll object.
pub(crate) struct EpollFile {
    list: SpinLock<List>,
    queue: WaitQueue,
}

/// What epoll_ctl is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    /// EPOLL_CTL_ADD.
    Add(EpollEvent),
    /// EPOLL_CTL_MOD.
    Modify(EpollEvent),
    /// EPOLL_CTL_DEL.
    Remove,
}

impl EpollFile {
    /// An empty list.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            list: SpinLock::new("epoll", 68, List::default()),
            queue: WaitQueue::new(),
        })
    }

    /// epoll_ctl.
    pub(crate) fn control(
        &self,
        fd: u32,
        file: &Arc<Description>,
        control: Control,
    ) -> Result<(), Errno> {
        if file.downcast::<Self>().is_some() {
            return Err(Errno::EINVAL);
        }
        // Regular files and directories are always ready: EPERM in Linux.
        if file.downcast::<super::tree::TreeFile>().is_some() {
            return Err(Errno::EPERM);
        }
        {
            let mut list = self.list.lock();
            match control {
                Control::Add(event) => {
                    list.epoll.add(fd, file.id, event)?;
                    list.files.insert(file.id, Arc::downgrade(file));
                }
                Control::Modify(event) => list.epoll.modify(fd, file.id, event)?,
                Control::Remove => list.epoll.remove(fd, file.id)?,
            }
        }
        self.queue.wake_all();
        Ok(())
    }

    /// What is ready now, at most `max` events.
    pub(crate) fn collect(&self, max: usize) -> Vec<EpollEvent> {
        // Upgraded references are dropped after the lock: the last one may close a file.
        let members = self.members();
        let mut list = self.list.lock();
        let List { epoll, files } = &mut *list;
        let found = epoll.collect(max, |id| {
            members
                .iter()
                .find(|file| file.id == id)
                .map(|file| file.file.readiness())
        });
        files.retain(|_, file| file.strong_count() > 0);
        drop(list);
        found
    }

    fn members(&self) -> Vec<Arc<Description>> {
        let list = self.list.lock();
        list.files.values().filter_map(Weak::upgrade).collect()
    }
}

impl File for EpollFile {
    fn readiness(&self) -> Readiness {
        let members = self.members();
        let list = self.list.lock();
        let ready = list.epoll.is_ready(|id| {
            members
                .iter()
                .find(|file| file.id == id)
                .map(|file| file.file.readiness())
        });
        drop(list);
        let mut events = Events::empty();
        events.set(Events::READABLE, ready);
        Readiness {
            events,
            generation: 0,
        }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn next_change(&self) -> Option<u64> {
        self.members()
            .iter()
            .filter_map(|file| file.file.next_change())
            .min()
    }

    fn enter_queues(&self, me: &Arc<Thread>) {
        self.queue.enter(me);
        for file in self.members() {
            file.file.enter_queues(me);
        }
    }

    fn leave_queues(&self, me: &Arc<Thread>) {
        self.queue.leave(me);
        for file in self.members() {
            file.file.leave_queues(me);
        }
    }
}
