//! timerfd(2): a deadline that can be read.
//!
//! The object holds no clock. Every call is told `now`, in nanoseconds of the clock the timer was
//! made for, and expirations are counted from it when somebody looks; [`TimerFd::next_deadline`]
//! says when looking is worth while.

use crate::time::{Itimerspec, Timespec, deadline};
use crate::{Errno, Events, Readiness, Stop};

/// One timerfd object.
#[derive(Debug, Default)]
pub struct TimerFd {
    /// The first expiration that nobody has read.
    deadline: Option<u64>,
    /// Nanoseconds between expirations; zero for a single one.
    interval: u64,
    /// Expirations that were read or forgotten, and settings: with the expirations that wait, this
    /// only ever grows, and so tells edges apart.
    past: u64,
}

impl TimerFd {
    /// A timer that is not armed.
    pub const fn new() -> Self {
        Self {
            deadline: None,
            interval: 0,
            past: 0,
        }
    }

    /// timerfd_settime: forgets unread expirations, arms or disarms, and answers what
    /// [`Self::gettime`] would have said. `EINVAL` for a malformed time; the timer then stays.
    pub fn settime(
        &mut self,
        spec: Itimerspec,
        absolute: bool,
        now: u64,
    ) -> Result<Itimerspec, Errno> {
        let (value, interval) = (spec.value.to_nanos()?, spec.interval.to_nanos()?);
        let old = self.gettime(now);
        let forgotten = self.expirations(now);
        self.deadline = (value != 0).then(|| deadline(value, absolute, now));
        self.interval = interval;
        self.past = self.past.wrapping_add(forgotten).wrapping_add(1);
        Ok(old)
    }

    /// timerfd_gettime: the time to the next expiration, and the interval.
    pub fn gettime(&self, now: u64) -> Itimerspec {
        let value = match self.deadline {
            None => 0,
            Some(at) if at > now => at - now,
            // Expired and single: nothing is to come.
            Some(_) if self.interval == 0 => 0,
            Some(at) => self.interval - (now - at) % self.interval,
        };
        Itimerspec {
            interval: Timespec::from_nanos(self.interval),
            value: Timespec::from_nanos(value),
        }
    }

    /// Takes the number of expirations since the last read.
    pub fn read(&mut self, now: u64) -> Result<u64, Stop> {
        let count = self.expirations(now);
        if count == 0 {
            return Err(Stop::WouldBlock);
        }
        self.past = self.past.wrapping_add(count);
        self.deadline = match self.deadline {
            Some(at) if self.interval != 0 => {
                Some(at.saturating_add(self.interval.saturating_mul(count)))
            }
            _ => None,
        };
        Ok(count)
    }

    /// The next instant, after `now`, at which the state for poll changes.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let at = self.deadline?;
        if at > now {
            return Some(at);
        }
        let behind = (now - at).checked_div(self.interval)?;
        at.checked_add(self.interval.checked_mul(behind.checked_add(1)?)?)
    }

    /// The state for poll. Each expiration is an edge.
    pub fn readiness(&self, now: u64) -> Readiness {
        let count = self.expirations(now);
        let mut events = Events::empty();
        events.set(Events::IN, count > 0);
        Readiness {
            events,
            generation: self.past.wrapping_add(count),
        }
    }

    fn expirations(&self, now: u64) -> u64 {
        match self.deadline {
            Some(at) if at <= now => (now - at)
                .checked_div(self.interval)
                .map_or(1, |n| n.saturating_add(1)),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(value: u64, interval: u64) -> Itimerspec {
        Itimerspec {
            interval: Timespec::from_nanos(interval),
            value: Timespec::from_nanos(value),
        }
    }

    #[test]
    fn a_single_timer_expires_once() {
        let mut t = TimerFd::new();
        t.settime(spec(10, 0), false, 100).unwrap();
        assert_eq!(t.read(109), Err(Stop::WouldBlock));
        assert_eq!(t.next_deadline(109), Some(110));
        assert_eq!(t.readiness(110).events, Events::IN);
        assert_eq!(t.next_deadline(110), None);
        assert_eq!(t.read(500), Ok(1));
        assert_eq!(t.read(600), Err(Stop::WouldBlock));
    }

    #[test]
    fn an_interval_counts_and_keeps_its_phase() {
        let mut t = TimerFd::new();
        t.settime(spec(10, 4), true, 0).unwrap();
        assert_eq!(t.read(19), Ok(3));
        assert_eq!(t.gettime(19), spec(3, 4));
        assert_eq!(t.read(22), Ok(1));
        assert_eq!(t.next_deadline(30), Some(34));
    }

    #[test]
    fn an_absolute_time_in_the_past_expires_at_once() {
        let mut t = TimerFd::new();
        t.settime(spec(10, 0), true, 100).unwrap();
        assert_eq!(t.read(100), Ok(1));
    }

    #[test]
    fn settime_disarms_and_reports_the_old_time() {
        let mut t = TimerFd::new();
        t.settime(spec(10, 5), false, 0).unwrap();
        assert_eq!(t.settime(spec(0, 0), false, 4), Ok(spec(6, 5)));
        assert_eq!(t.readiness(1000).events, Events::empty());
        let bad = Itimerspec {
            interval: Timespec { sec: 0, nsec: -1 },
            ..spec(1, 0)
        };
        assert_eq!(t.settime(bad, false, 0), Err(Errno::EINVAL));
    }

    #[test]
    fn each_expiration_is_an_edge() {
        let mut t = TimerFd::new();
        t.settime(spec(10, 10), false, 0).unwrap();
        let first = t.readiness(10).generation;
        assert_eq!(t.readiness(19).generation, first);
        let second = t.readiness(20).generation;
        assert_ne!(second, first);
        // Reading is not an edge; arming again, even for an earlier instant, leads to one.
        t.read(20).unwrap();
        assert_eq!(t.readiness(20).generation, second);
        t.settime(spec(9, 0), true, 20).unwrap();
        assert!(t.readiness(20).generation > second);
    }

    proptest! {
        #[test]
        fn reads_add_up_to_the_elapsed_intervals(
            first in 1u64..50, interval in 1u64..20, looks in prop::collection::vec(0u64..30, 1..20)
        ) {
            let mut t = TimerFd::new();
            t.settime(spec(first, interval), true, 0).unwrap();
            let (mut now, mut total) = (0, 0);
            for step in looks {
                now += step;
                total += t.read(now).unwrap_or(0);
                let due = if now < first { 0 } else { (now - first) / interval + 1 };
                prop_assert_eq!(total, due);
            }
        }

        #[test]
        fn extreme_times_do_not_overflow(value: u64, interval: u64, now: u64) {
            let mut t = TimerFd::new();
            t.settime(spec(value, interval), true, 0).unwrap();
            t.gettime(now);
            t.readiness(now);
            if let Some(next) = t.next_deadline(now) {
                prop_assert!(next > now);
            }
            t.read(now).ok();
        }
    }
}
