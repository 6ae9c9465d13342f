//! eventfd, and its use inside umbra: a VM's irqfd listens to one, an ioeventfd signals one.

use alloc::sync::{Arc, Weak};

use umbra_hw::sync::SpinLock;
use umbra_linux::{Errno, Events, Readiness, Stop, eventfd};

use crate::file::{Call, File};
use crate::sched::WaitQueue;

/// Somebody in umbra who is told when an eventfd is written.
pub(crate) trait EventSink: Send + Sync {
    /// The counter went up. Called with no lock held.
    fn signalled(&self);
}

/// One eventfd.
pub(crate) struct EventFd {
    counter: SpinLock<eventfd::EventFd>,
    queue: WaitQueue,
    sink: SpinLock<Option<Weak<dyn EventSink>>>,
}

impl EventFd {
    /// A counter at `initial`.
    pub(crate) fn new(initial: u32, semaphore: bool) -> Arc<Self> {
        Arc::new(Self {
            counter: SpinLock::new("eventfd", 74, eventfd::EventFd::new(initial, semaphore)),
            queue: WaitQueue::new(),
            sink: SpinLock::new("eventfd sink", 75, None),
        })
    }

    /// Adds `by` on behalf of umbra: never waits.
    pub(crate) fn signal(&self, by: u64) {
        self.counter.lock().signal(by);
        self.tell();
    }

    /// Takes the counter, or `None` if it is zero.
    pub(crate) fn take(&self) -> Option<u64> {
        let taken = self.counter.lock().read().ok();
        if taken.is_some() {
            self.queue.wake_all();
        }
        taken
    }

    /// Tells `sink` of writes from now on, as long as it lives. `EBUSY` if somebody else is told:
    /// the first would take what the second waits for.
    pub(crate) fn watch(&self, sink: &Arc<dyn EventSink>) -> Result<(), Errno> {
        {
            let mut watcher = self.sink.lock();
            if watcher
                .as_ref()
                .is_some_and(|other| other.strong_count() > 0)
            {
                return Err(Errno::EBUSY);
            }
            *watcher = Some(Arc::downgrade(sink));
        }
        // What was written before counts too.
        let written = self.counter.lock().readiness().events.contains(Events::IN);
        if written {
            sink.signalled();
        }
        Ok(())
    }

    fn tell(&self) {
        self.queue.wake_all();
        let sink = self.sink.lock().as_ref().and_then(Weak::upgrade);
        if let Some(sink) = sink {
            sink.signalled();
        }
    }
}

impl File for EventFd {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let room = buf.get_mut(..8).ok_or(Errno::EINVAL)?;
        let value = self.counter.lock().read()?;
        room.copy_from_slice(&value.to_le_bytes());
        self.queue.wake_all();
        Ok(8)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let value = bytes.first_chunk().ok_or(Errno::EINVAL)?;
        self.counter.lock().write(u64::from_le_bytes(*value))?;
        self.tell();
        Ok(8)
    }

    fn readiness(&self) -> Readiness {
        self.counter.lock().readiness()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }
}
