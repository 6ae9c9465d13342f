//! Times as Linux passes them, and their conversion to nanoseconds.
//!
//! Inside umbra a time is a `u64` of nanoseconds: an instant counts from the start of its clock, a
//! duration from now. Both reach 584 years, so a larger request saturates, as in Linux, instead of
//! failing.

use crate::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// `struct __kernel_timespec`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Timespec {
    /// Whole seconds.
    pub sec: i64,
    /// Nanoseconds, below one second.
    pub nsec: i64,
}

impl Timespec {
    /// The time `nanos` nanoseconds after zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self {
            sec: (nanos / NANOS_PER_SEC) as i64,
            nsec: (nanos % NANOS_PER_SEC) as i64,
        }
    }

    /// As nanoseconds, at most `u64::MAX`. `EINVAL` for a negative time or a fraction of a second
    /// or more.
    pub fn to_nanos(self) -> Result<u64, Errno> {
        let sec = u64::try_from(self.sec).map_err(|_| Errno::EINVAL)?;
        let nsec = u64::try_from(self.nsec).map_err(|_| Errno::EINVAL)?;
        if nsec >= NANOS_PER_SEC {
            return Err(Errno::EINVAL);
        }
        Ok(sec.saturating_mul(NANOS_PER_SEC).saturating_add(nsec))
    }
}

/// `struct __kernel_old_timeval`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Timeval {
    /// Whole seconds.
    pub sec: i64,
    /// Microseconds, below one second.
    pub usec: i64,
}

impl Timeval {
    /// The time `nanos` nanoseconds after zero, rounded down to a microsecond.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self {
            sec: (nanos / NANOS_PER_SEC) as i64,
            usec: (nanos % NANOS_PER_SEC / 1000) as i64,
        }
    }
}

/// `struct __kernel_itimerspec`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Itimerspec {
    /// Time between later expirations; zero for none.
    pub interval: Timespec,
    /// The first expiration; zero disarms.
    pub value: Timespec,
}

/// The instant a request means: `value` itself if absolute, else `value` after `now`.
pub const fn deadline(value: u64, absolute: bool, now: u64) -> u64 {
    if absolute {
        value
    } else {
        now.saturating_add(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nanoseconds_survive_the_round_trip(nanos: u64) {
            prop_assert_eq!(Timespec::from_nanos(nanos).to_nanos(), Ok(nanos));
        }

        #[test]
        fn any_timespec_is_a_time_or_einval(sec: i64, nsec: i64) {
            let valid = sec >= 0 && (0..1_000_000_000).contains(&nsec);
            prop_assert_eq!(Timespec { sec, nsec }.to_nanos().is_ok(), valid);
        }
    }

    #[test]
    fn huge_times_saturate() {
        assert_eq!(
            Timespec {
                sec: i64::MAX,
                nsec: 0
            }
            .to_nanos(),
            Ok(u64::MAX)
        );
        assert_eq!(deadline(5, false, u64::MAX), u64::MAX);
        assert_eq!(deadline(5, true, 7), 5);
        assert_eq!(deadline(5, false, 7), 12);
    }

    #[test]
    fn timeval_rounds_down() {
        assert_eq!(
            Timeval::from_nanos(1_999_999_999),
            Timeval {
                sec: 1,
                usec: 999_999
            }
        );
    }
}
