//! timerfd: becomes readable by itself.
//!
//! No alarm is set for it: whoever waits for it parks until [`File::next_change`].

use alloc::sync::Arc;

use umbra_hw::sync::SpinLock;
use umbra_linux::time::Itimerspec;
use umbra_linux::{Errno, Readiness, Stop, timerfd};

use crate::file::{Call, File};
use crate::sched::WaitQueue;
use crate::sys::time::Clock;

/// One timerfd.
pub(crate) struct TimerFd {
    timer: SpinLock<timerfd::TimerFd>,
    queue: WaitQueue,
    clock: Clock,
}

impl TimerFd {
    /// A timer of `clock`, not armed.
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            timer: SpinLock::new("timerfd", 76, timerfd::TimerFd::new()),
            queue: WaitQueue::new(),
            clock,
        })
    }

    /// timerfd_settime.
    pub(crate) fn settime(&self, spec: Itimerspec, absolute: bool) -> Result<Itimerspec, Errno> {
        let old = self
            .timer
            .lock()
            .settime(spec, absolute, self.clock.now())?;
        self.queue.wake_all();
        Ok(old)
    }

    /// timerfd_gettime.
    pub(crate) fn gettime(&self) -> Itimerspec {
        self.timer.lock().gettime(self.clock.now())
    }
}

impl File for TimerFd {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let room = buf.get_mut(..8).ok_or(Errno::EINVAL)?;
        let count = self.timer.lock().read(self.clock.now())?;
        room.copy_from_slice(&count.to_le_bytes());
        Ok(8)
    }

    fn readiness(&self) -> Readiness {
        self.timer.lock().readiness(self.clock.now())
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn next_change(&self) -> Option<u64> {
        let at = self.timer.lock().next_deadline(self.clock.now())?;
        Some(self.clock.to_monotonic(at))
    }
}
