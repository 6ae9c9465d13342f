//! Signals: sending, blocking, handling, waiting for them.

use umbra_linux::Errno;
use umbra_linux::signal::{AltStack, SigSet, SigactionAbi, Siginfo, Signal, code};

use super::{Args, Done, int, user};
use crate::file::Call;
use crate::proc::{self, Context, family};
use crate::sched;

/// Bytes of a signal mask.
const MASK_BYTES: u64 = 8;

fn check_mask_bytes(bytes: u64) -> Result<(), Errno> {
    if bytes == MASK_BYTES {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// The signal to send; `None` for 0, which only asks whether one could.
fn wanted(arg: u64) -> Result<Option<Signal>, Errno> {
    match arg as u32 {
        0 => Ok(None),
        number => Signal::new(number).map(Some),
    }
}

fn send_to_process(call: &Call<'_>, pid: i32, signal: Option<Signal>) -> Result<(), Errno> {
    let Some(process) = proc::find(pid) else {
        // One that has ended and was not waited for takes signals without effect.
        return if family(|family| family.group(pid)).is_some() {
            Ok(())
        } else {
            Err(Errno::ESRCH)
        };
    };
    match signal {
        Some(signal) => process.send(signal, from(call, signal, code::SI_USER)),
        None => Ok(()),
    }
}

fn from(call: &Call<'_>, signal: Signal, code: i32) -> Siginfo {
    Siginfo::from_process(signal, code, call.process.pid, 0)
}

pub(super) fn kill(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let (pid, signal) = (int(a[0]), wanted(a[1])?);
    let group = match pid {
        -1 => {
            for process in proc::processes() {
                let spared =
                    process.pid == call.process.pid || process.pid == umbra_linux::wait::INIT;
                if !spared && let Some(signal) = signal {
                    process.send(signal, from(call, signal, code::SI_USER))?;
                }
            }
            return Ok(0);
        }
        0 => family(|family| family.group(call.process.pid)).ok_or(Errno::ESRCH)?,
        pid if pid < 0 => pid.checked_neg().ok_or(Errno::ESRCH)?,
        pid => return send_to_process(call, pid, signal).map(|()| 0),
    };
    match signal {
        Some(signal) => {
            proc::send_to_group(group, signal, from(call, signal, code::SI_USER))?;
        }
        None if family(|family| family.members(group).next().is_none()) => {
            return Err(Errno::ESRCH);
        }
        None => {}
    }
    Ok(0)
}

fn send_to_thread(
    call: &Call<'_>,
    group: Option<i32>,
    tid: i32,
    signal: u64,
) -> Result<u64, Errno> {
    if tid <= 0 || group.is_some_and(|group| group <= 0) {
        return Err(Errno::EINVAL);
    }
    let signal = wanted(signal)?;
    let thread = proc::by_tid(tid)
        .filter(|thread| group.is_none_or(|group| thread.process.pid == group))
        .ok_or(Errno::ESRCH)?;
    if let Some(signal) = signal {
        thread.send(signal, from(call, signal, code::SI_TKILL))?;
    }
    Ok(0)
}

pub(super) fn tkill(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    send_to_thread(call, None, int(a[0]), a[1])
}

pub(super) fn tgkill(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    send_to_thread(call, Some(int(a[0])), int(a[1]), a[2])
}

pub(super) fn rt_sigaction(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_mask_bytes(a[3])?;
    let signal = Signal::new(a[0] as u32)?;
    let new: Option<SigactionAbi> = user::read_optional(call, a[1])?;
    let old = call.process.set_action(signal, new)?;
    user::write_optional(call, a[2], &old)?;
    Ok(0)
}

pub(super) fn rt_sigprocmask(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_mask_bytes(a[3])?;
    let new: Option<SigSet> = user::read_optional(call, a[1])?;
    let old = match new {
        Some(set) => call.thread.change_mask(a[0] as u32, set)?,
        None => call.thread.mask(),
    };
    user::write_optional(call, a[2], &old)?;
    Ok(0)
}

pub(super) fn rt_sigpending(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_mask_bytes(a[1])?;
    let waiting = call.thread.waiting_signals().and(call.thread.mask());
    user::write(call, a[0], &waiting)?;
    Ok(0)
}

pub(super) fn rt_sigsuspend(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_mask_bytes(a[1])?;
    let mask: SigSet = user::read(call, a[0])?;
    call.thread.suspend_with(mask);
    while !call.thread.signal_pending() {
        sched::park(None);
    }
    Err(Errno::EINTR)
}

pub(super) fn rt_sigtimedwait(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    check_mask_bytes(a[3])?;
    let set: SigSet = user::read(call, a[0])?;
    let set = set.as_mask();
    let until = super::time::timeout(call, a[2])?;
    loop {
        if let Some((signal, info)) = call.thread.take_signal(set) {
            user::write_optional(call, a[1], &info)?;
            return Ok(signal.number().into());
        }
        if call.thread.signal_pending() {
            return Err(Errno::EINTR);
        }
        if until.is_some_and(|at| sched::now() >= at) {
            return Err(Errno::EAGAIN);
        }
        sched::park(until);
    }
}

pub(super) fn rt_sigreturn(context: &mut Context<'_>) -> Done {
    let thread = context.call.thread;
    if thread.sigreturn(context.frame, context.fp).is_err() {
        thread.force_segv();
    }
    Done::Elsewhere
}

pub(super) fn sigaltstack(call: &Call<'_>, sp: u64, a: Args) -> Result<u64, Errno> {
    let new: Option<AltStack> = user::read_optional(call, a[0])?;
    let old = call.thread.change_alt_stack(sp, new)?;
    user::write_optional(call, a[1], &old)?;
    Ok(0)
}
