//! Clocks and sleeping.
//!
//! Every clock is the machine's counter. CLOCK_REALTIME is set once, at boot, from the machine's
//! real-time clock; without one it starts at 1970 with the counter. Nobody else can set it.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_linux::Errno;
use umbra_linux::time::{NANOS_PER_SEC, Timespec, Timeval, deadline};

use super::{Args, user};
use crate::file::Call;
use crate::sched;

/// A clock that can be asked and waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Clock {
    /// CLOCK_REALTIME and its relatives.
    Real,
    /// CLOCK_MONOTONIC, CLOCK_BOOTTIME and their relatives.
    Monotonic,
}

/// Nanoseconds from 1970 to the counter's zero.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// Says what time it is, in seconds since 1970.
pub(crate) fn set_realtime(seconds: u32) {
    let nanos = u64::from(seconds) * NANOS_PER_SEC;
    EPOCH.store(nanos.saturating_sub(sched::now()), Ordering::Relaxed);
}

/// Nanoseconds since 1970, as far as umbra knows.
pub(crate) fn realtime() -> u64 {
    sched::now().saturating_add(EPOCH.load(Ordering::Relaxed))
}

/// The same when the counter was at `ticks`.
pub(crate) fn realtime_at(ticks: u64) -> u64 {
    umbra_hw::timer::ticks_to_ns(ticks).saturating_add(EPOCH.load(Ordering::Relaxed))
}

impl Clock {
    /// The clock of this number. `EINVAL`.
    pub(crate) fn from_linux(id: u64) -> Result<Self, Errno> {
        match id as u32 {
            // REALTIME, REALTIME_COARSE, REALTIME_ALARM, TAI.
            0 | 5 | 8 | 11 => Ok(Self::Real),
            // MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE, BOOTTIME, BOOTTIME_ALARM.
            1 | 4 | 6 | 7 | 9 => Ok(Self::Monotonic),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Nanoseconds of this clock.
    pub(crate) fn now(self) -> u64 {
        match self {
            Self::Real => realtime(),
            Self::Monotonic => sched::now(),
        }
    }

    /// The instant `at` of this clock in nanoseconds of `sched::now`.
    pub(crate) fn to_monotonic(self, at: u64) -> u64 {
        let ahead = at.saturating_sub(self.now());
        sched::now().saturating_add(ahead)
    }
}

/// CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID: time since the process began, which bounds
/// what it can have used.
const CPU_CLOCKS: core::ops::RangeInclusive<u32> = 2..=3;

pub(super) fn clock_gettime(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let now = if CPU_CLOCKS.contains(&(a[0] as u32)) {
        sched::now().saturating_sub(call.process.started)
    } else {
        Clock::from_linux(a[0])?.now()
    };
    user::write(call, a[1], &Timespec::from_nanos(now))?;
    Ok(0)
}

pub(super) fn clock_getres(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    if !CPU_CLOCKS.contains(&(a[0] as u32)) {
        Clock::from_linux(a[0])?;
    }
    user::write_optional(call, a[1], &Timespec::from_nanos(1))?;
    Ok(0)
}

pub(super) fn gettimeofday(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    user::write_optional(call, a[0], &Timeval::from_nanos(realtime()))?;
    // struct timezone: none.
    user::write_optional(call, a[1], &[0u32; 2])?;
    Ok(0)
}

/// Sleeps until `until`, in nanoseconds of `sched::now`; `EINTR` if a signal comes first.
fn sleep(call: &Call<'_>, until: u64) -> Result<(), Errno> {
    while sched::now() < until {
        if call.thread.signal_pending() {
            return Err(Errno::EINTR);
        }
        sched::park(Some(until));
    }
    Ok(())
}

/// Sleeps, and on a signal tells what is left.
fn sleep_for(call: &Call<'_>, nanos: u64, rest: u64) -> Result<u64, Errno> {
    let until = sched::now().saturating_add(nanos);
    if let Err(errno) = sleep(call, until) {
        let left = until.saturating_sub(sched::now());
        user::write_optional(call, rest, &Timespec::from_nanos(left))?;
        return Err(errno);
    }
    Ok(0)
}

pub(super) fn nanosleep(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let wanted: Timespec = user::read(call, a[0])?;
    sleep_for(call, wanted.to_nanos()?, a[1])
}

pub(super) fn clock_nanosleep(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const TIMER_ABSTIME: u64 = 1;
    let clock = Clock::from_linux(a[0])?;
    let wanted: Timespec = user::read(call, a[2])?;
    let nanos = wanted.to_nanos()?;
    if a[1] & TIMER_ABSTIME == 0 {
        return sleep_for(call, nanos, a[3]);
    }
    // Started again after a handler, it ends at the same instant.
    sleep(call, clock.to_monotonic(nanos)).map_err(|_| call.thread.interrupted())?;
    Ok(0)
}

/// A relative timeout as an instant of `sched::now`; `None` for a null pointer.
pub(super) fn timeout(call: &Call<'_>, from: u64) -> Result<Option<u64>, Errno> {
    let Some(spec) = user::read_optional::<Timespec>(call, from)? else {
        return Ok(None);
    };
    Ok(Some(deadline(spec.to_nanos()?, false, sched::now())))
}

/// A timeout in milliseconds, negative for none.
pub(super) fn timeout_millis(millis: i32) -> Option<u64> {
    let millis = u64::try_from(millis).ok()?;
    Some(sched::now().saturating_add(millis.saturating_mul(NANOS_PER_SEC / 1000)))
}
