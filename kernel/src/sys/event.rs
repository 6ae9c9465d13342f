//! eventfd2 and timerfd_*.

use umbra_linux::time::Itimerspec;
use umbra_linux::{Errno, uapi};

use super::time::Clock;
use super::{Args, descriptor, user};
use crate::file::{Call, Description};
use crate::files::{EventFd, TimerFd};

const EFD_SEMAPHORE: u32 = 1;
const TFD_TIMER_ABSTIME: u32 = 1;
const TFD_TIMER_CANCEL_ON_SET: u32 = 2;
const STATUS: u32 = uapi::O_CLOEXEC | uapi::O_NONBLOCK;

pub(super) fn eventfd2(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[1] as u32;
    if flags & !(STATUS | EFD_SEMAPHORE) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = EventFd::new(a[0] as u32, flags & EFD_SEMAPHORE != 0);
    let status = uapi::O_RDWR | flags & uapi::O_NONBLOCK;
    let fd = call
        .process
        .install_description(Description::new(file, status), flags & uapi::O_CLOEXEC != 0)?;
    Ok(fd.into())
}

pub(super) fn timerfd_create(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[1] as u32;
    if flags & !STATUS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = TimerFd::new(Clock::from_linux(a[0])?);
    let status = uapi::O_RDWR | flags & uapi::O_NONBLOCK;
    let fd = call
        .process
        .install_description(Description::new(file, status), flags & uapi::O_CLOEXEC != 0)?;
    Ok(fd.into())
}

pub(super) fn timerfd_settime(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let flags = a[1] as u32;
    if flags & !(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let spec: Itimerspec = user::read(call, a[2])?;
    let file = call.process.description(descriptor(a[0])?)?;
    let timer: &TimerFd = file.downcast().ok_or(Errno::EINVAL)?;
    let old = timer.settime(spec, flags & TFD_TIMER_ABSTIME != 0)?;
    user::write_optional(call, a[3], &old)?;
    Ok(0)
}

pub(super) fn timerfd_gettime(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let file = call.process.description(descriptor(a[0])?)?;
    let timer: &TimerFd = file.downcast().ok_or(Errno::EINVAL)?;
    user::write(call, a[1], &timer.gettime())?;
    Ok(0)
}
