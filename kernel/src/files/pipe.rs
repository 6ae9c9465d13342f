//! pipe2: two files round one queue of bytes.

use alloc::sync::Arc;

use umbra_hw::sync::SpinLock;
use umbra_linux::fs::Stat;
use umbra_linux::pipe::{End, Pipe};
use umbra_linux::signal::{Siginfo, Signal, code};
use umbra_linux::{Errno, Readiness, Stop, uapi};

use crate::file::{Call, File};
use crate::sched::WaitQueue;
use crate::sys::user;

struct Shared {
    pipe: SpinLock<Pipe>,
    queue: WaitQueue,
}

/// One side of a pipe.
pub(crate) struct PipeEnd {
    shared: Arc<Shared>,
    end: End,
}

impl PipeEnd {
    /// A pipe: the side to read from, the side to write to.
    pub(crate) fn pair() -> Result<(Arc<Self>, Arc<Self>), Errno> {
        let shared = Arc::new(Shared {
            pipe: SpinLock::new("pipe", 70, Pipe::new()?),
            queue: WaitQueue::new(),
        });
        let end = |end| {
            Arc::new(Self {
                shared: shared.clone(),
                end,
            })
        };
        Ok((end(End::Read), end(End::Write)))
    }

    fn changed<T>(&self, done: Result<T, Stop>) -> Result<T, Stop> {
        if done.is_ok() {
            self.shared.queue.wake_all();
        }
        done
    }
}

/// FIONREAD.
const FIONREAD: u32 = 0x541b;

impl File for PipeEnd {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        if self.end != End::Read {
            return Err(Errno::EBADF.into());
        }
        let done = self.shared.pipe.lock().read(buf);
        self.changed(done)
    }

    fn write(&self, call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        if self.end != End::Write {
            return Err(Errno::EBADF.into());
        }
        let done = self.shared.pipe.lock().write(bytes);
        if done == Err(Stop::Failed(Errno::EPIPE)) {
            let info = Siginfo::from_process(Signal::PIPE, code::SI_USER, call.process.pid, 0);
            // Not a real-time signal, so it cannot be refused.
            let _ = call.thread.send(Signal::PIPE, info);
        }
        self.changed(done)
    }

    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        if request != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let queued = self.shared.pipe.lock().queued() as u32;
        user::write(call, arg, &queued)?;
        Ok(0)
    }

    fn readiness(&self) -> Readiness {
        self.shared.pipe.lock().readiness(self.end)
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.shared.queue)
    }

    fn stat(&self) -> Stat {
        let mut stat = Stat::default();
        stat.mode = uapi::S_IFIFO | 0o600;
        stat.nlink = 1;
        stat.blksize = 4096;
        stat
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.shared.pipe.lock().close(self.end);
        self.shared.queue.wake_all();
    }
}
