//! seccomp: a thread's filters of its own system calls. What they are is `umbra_linux::seccomp`'s; VMMs keep
//! themselves, and a guest that got hold of them, to the calls that they need.

use core::sync::atomic::Ordering;

use umbra_arm64::Hva;
use umbra_hw::user::UserFrame;
use umbra_linux::Errno;
use umbra_linux::seccomp::{ARCH, Action, Chain, Data, Filter, Insn, MOST};
use umbra_linux::signal::{Siginfo, Signal};
use umbra_linux::wait::Ending;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Args, Done, user};
use crate::file::Call;

// include/uapi/linux/seccomp.h
const SET_MODE_FILTER: u64 = 1;
const GET_ACTION_AVAIL: u64 = 2;
const FLAG_TSYNC: u64 = 1;
const FLAG_LOG: u64 = 1 << 1;
const FLAG_SPEC_ALLOW: u64 = 1 << 2;
const FLAG_TSYNC_ESRCH: u64 = 1 << 4;
const KILLED: Ending = Ending::Killed {
    signal: Signal::SYS,
    core: true,
};

/// `struct sock_fprog`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Program {
    len: u16,
    pad: [u16; 3],
    code: u64,
}

/// What the current thread's filters make of its call; `None`: it is made.
#[inline]
pub(super) fn check(call: &Call<'_>, frame: &UserFrame) -> Option<Done> {
    if !call.thread.is_filtered.load(Ordering::Relaxed) {
        return None;
    }
    judge(call, frame)
}

#[cold]
fn judge(call: &Call<'_>, frame: &UserFrame) -> Option<Done> {
    let chain = call.thread.filters.lock().clone()?;
    let [x0, x1, x2, x3, x4, x5, ..] = frame.x;
    let number = frame.x[8] as u32;
    let decided = chain.decide(&Data {
        number,
        arch: ARCH,
        pc: frame.pc,
        args: [x0, x1, x2, x3, x4, x5],
    });
    match decided {
        Action::Allow => None,
        Action::Errno(0) => Some(Done::Value(0)),
        Action::Errno(code) => Some(Errno::from_code(code).map_or(Done::Value(0), Done::Failed)),
        Action::Nobody => Some(Done::Failed(Errno::ENOSYS)),
        Action::Trap(reason) => {
            let info = Siginfo::bad_call(Hva::new(frame.pc), number, ARCH, reason);
            call.thread.force(Signal::SYS, info);
            Some(Done::Elsewhere)
        }
        Action::KillThread if call.process.threads().len() > 1 => {
            log::warn!("thread {} was not allowed call {number}", call.thread.tid);
            call.thread.retire();
            Some(Done::Elsewhere)
        }
        Action::KillThread | Action::KillProcess => {
            log::warn!("process {} was not allowed call {number}", call.process.pid);
            call.process.end(KILLED);
            Some(Done::Elsewhere)
        }
    }
}

/// seccomp. `EINVAL`: another operation or flag, or no sound program.
pub(super) fn seccomp(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    match a[0] {
        SET_MODE_FILTER => set(call, a[1], a[2]),
        GET_ACTION_AVAIL if a[1] == 0 => {
            let action: u32 = user::read(call, a[2])?;
            if Action::is_available(action) {
                Ok(0)
            } else {
                Err(Errno::EOPNOTSUPP)
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

/// One more filter for the thread; with FLAG_TSYNC for all threads of the process, if none has others than the
/// caller's: else the number of one that has.
pub(super) fn set(call: &Call<'_>, flags: u64, from: u64) -> Result<u64, Errno> {
    if flags & !(FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW | FLAG_TSYNC_ESRCH) != 0 {
        return Err(Errno::EINVAL);
    }
    let program: Program = user::read(call, from)?;
    let len = usize::from(program.len);
    if len == 0 || len > MOST {
        return Err(Errno::EINVAL);
    }
    let mut code = alloc::vec![Insn::new_zeroed(); len];
    call.process
        .mm()
        .read_bytes(Hva::new(program.code), code.as_mut_bytes())?;
    let older = call.thread.filters.lock().clone();
    let newer = Chain::with(older.clone(), Filter::new(code)?)?;
    if flags & FLAG_TSYNC == 0 {
        call.thread.filter(newer);
        return Ok(0);
    }
    let threads = call.process.threads();
    for other in &threads {
        let theirs = other.filters.lock().clone();
        let is_older = match (&theirs, &older) {
            (None, _) => true,
            (Some(theirs), Some(older)) => older.continues(theirs),
            (Some(_), None) => false,
        };
        if !is_older {
            return if flags & FLAG_TSYNC_ESRCH != 0 {
                Err(Errno::ESRCH)
            } else {
                Ok(other.tid as u64)
            };
        }
    }
    for other in threads {
        other.filter(newer.clone());
    }
    Ok(0)
}
