//! eventfd(2): a counter that can be waited for.
//!
//! The counter never reaches `u64::MAX`; a write that would take it there waits.

use crate::{Errno, Events, Readiness, Stop};

/// The largest value the counter holds.
const MAX: u64 = u64::MAX - 1;

/// One eventfd object. Shared by descriptors; EFD_NONBLOCK belongs to the open file.
#[derive(Debug)]
pub struct EventFd {
    count: u64,
    semaphore: bool,
    generation: u64,
}

impl EventFd {
    /// A counter at `initial`; `semaphore` (EFD_SEMAPHORE) makes each read take one.
    pub const fn new(initial: u32, semaphore: bool) -> Self {
        Self {
            count: initial as u64,
            semaphore,
            generation: 0,
        }
    }

    /// Takes the counter (or one, for a semaphore), which must not be zero.
    pub fn read(&mut self) -> Result<u64, Stop> {
        if self.count == 0 {
            return Err(Stop::WouldBlock);
        }
        let taken = if self.semaphore { 1 } else { self.count };
        self.count -= taken;
        self.touch();
        Ok(taken)
    }

    /// Adds `value`. `EINVAL` for `u64::MAX`, which no counter could ever hold.
    pub fn write(&mut self, value: u64) -> Result<(), Stop> {
        if value == u64::MAX {
            return Err(Errno::EINVAL.into());
        }
        if value > MAX - self.count {
            return Err(Stop::WouldBlock);
        }
        self.count += value;
        self.touch();
        Ok(())
    }

    /// Adds `value` on behalf of the kernel (an irqfd's resample, an ioeventfd): never waits, and
    /// a full counter stays full.
    pub fn signal(&mut self, value: u64) {
        self.count = self.count.saturating_add(value).min(MAX);
        self.touch();
    }

    /// The state for poll.
    pub fn readiness(&self) -> Readiness {
        let mut events = Events::empty();
        events.set(Events::IN, self.count > 0);
        events.set(Events::OUT, self.count < MAX);
        Readiness {
            events,
            generation: self.generation,
        }
    }

    fn touch(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_takes_the_whole_counter() {
        let mut e = EventFd::new(3, false);
        e.write(4).unwrap();
        assert_eq!(e.read(), Ok(7));
        assert_eq!(e.read(), Err(Stop::WouldBlock));
    }

    #[test]
    fn a_semaphore_gives_one_at_a_time() {
        let mut e = EventFd::new(2, true);
        assert_eq!(
            (e.read(), e.read(), e.read()),
            (Ok(1), Ok(1), Err(Stop::WouldBlock))
        );
    }

    #[test]
    fn a_full_counter_makes_writers_wait_but_not_the_kernel() {
        let mut e = EventFd::new(0, false);
        assert_eq!(e.write(u64::MAX), Err(Stop::Failed(Errno::EINVAL)));
        e.write(u64::MAX - 1).unwrap();
        assert_eq!(e.write(1), Err(Stop::WouldBlock));
        assert_eq!(e.readiness().events, Events::IN);
        e.signal(5);
        assert_eq!(e.read(), Ok(u64::MAX - 1));
        assert_eq!(e.readiness().events, Events::OUT);
    }

    #[test]
    fn every_write_is_an_edge_even_if_already_readable() {
        let mut e = EventFd::new(1, false);
        let before = e.readiness();
        e.write(1).unwrap();
        assert_eq!(e.readiness().events, before.events);
        assert_ne!(e.readiness().generation, before.generation);
    }
}
