//! Threads and processes: clone, execve, wait4, exit, and who is who.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use umbra_arm64::Hva;
use umbra_linux::Errno;
use umbra_linux::signal::{Siginfo, code};
use umbra_linux::stack::{MAX_BYTES, MAX_STRING};
use umbra_linux::time::Timeval;
use umbra_linux::wait::{Ending, Found, Pid, WNOHANG, Which, may_wait};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Args, Done, int, user};
use crate::file::Call;
use crate::files::tree;
use crate::proc::{
    self, Clone, Context, PR_MCE_KILL_DEFAULT, PR_MCE_KILL_EARLY, PR_MCE_KILL_LATE, family,
};
use crate::sched::{self, Waited};

/// The most strings of argv or envp.
const MAX_STRINGS: usize = 16 << 10;

pub(super) fn exit(context: &mut Context<'_>, a: Args) -> Done {
    let call = &context.call;
    if call.process.threads().len() <= 1 {
        call.process.end(Ending::Exited(a[0] as u8));
    } else {
        call.thread.retire();
    }
    Done::Elsewhere
}

pub(super) fn exit_group(context: &mut Context<'_>, a: Args) -> Done {
    context.call.process.end(Ending::Exited(a[0] as u8));
    Done::Elsewhere
}

pub(super) fn clone(context: &mut Context<'_>, a: Args) -> Result<u64, Errno> {
    let [flags, stack, parent_tid, tls, child_tid, _] = a;
    let args = Clone {
        flags,
        stack,
        parent_tid: Hva::new(parent_tid),
        tls,
        child_tid: Hva::new(child_tid),
    };
    proc::clone(&context.call, context.frame, context.fp, &args)
}

/// A list of strings that a null pointer ends: argv, envp.
fn strings(call: &Call<'_>, list: u64, room: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    if list == 0 {
        return Ok(strings);
    }
    loop {
        let at = list.wrapping_add(8 * strings.len() as u64);
        let pointer: u64 = user::read(call, at)?;
        if pointer == 0 {
            return Ok(strings);
        }
        if strings.len() >= MAX_STRINGS {
            return Err(Errno::E2BIG);
        }
        let limit = (*room).min(MAX_STRING);
        let string = call.process.mm().read_string(Hva::new(pointer), limit)?;
        *room = room.checked_sub(string.len() + 9).ok_or(Errno::E2BIG)?;
        // Each is small; all of them are not.
        crate::mem::admit()?;
        strings.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        strings.push(string);
    }
}

pub(super) fn execve(context: &mut Context<'_>, a: Args) -> Done {
    let call = &context.call;
    let read = || {
        let path = user::path(call, a[0])?;
        let mut room = MAX_BYTES;
        let args = strings(call, a[1], &mut room)?;
        let env = strings(call, a[2], &mut room)?;
        Ok((path, args, env))
    };
    let (path, args, env) = match read() {
        Ok(read) => read,
        Err(errno) => return Done::Failed(errno),
    };
    let find = |path: &[u8]| {
        call.process
            .with_paths(|paths| tree::find_program(paths, path))?
    };
    match proc::execute(call, context.frame, context.fp, &path, args, &env, find) {
        Ok(()) => Done::Elsewhere,
        Err(errno) => Done::Failed(errno),
    }
}

/// `struct rusage`: umbra counts nothing, so all of it is zero.
const RUSAGE_WORDS: usize = 18;

/// Waits for a child; `None` if none has ended and the call may not wait.
fn wait_for(call: &Call<'_>, which: Which, may_wait: bool) -> Result<Option<(Pid, Ending)>, Errno> {
    let look = || match family(|family| family.wait(call.process.pid, which)) {
        Ok(Found::Reaped(pid, ending)) => Some(Ok(Some((pid, ending)))),
        Ok(Found::NoneYet) if may_wait => None,
        Ok(Found::NoneYet) => Some(Ok(None)),
        Err(errno) => Some(Err(errno)),
    };
    let interrupted = || call.thread.signal_pending();
    match call.process.children.wait(None, interrupted, look) {
        Waited::Ready(found) => found,
        Waited::TimedOut | Waited::Interrupted => Err(call.thread.interrupted()),
    }
}

pub(super) fn wait4(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let may_wait = may_wait(a[2] as u32)?;
    let group = own_group(call)?;
    let which = Which::from_wait4(int(a[0]), group)?;
    let Some((pid, ending)) = wait_for(call, which, may_wait)? else {
        return Ok(0);
    };
    user::write_optional(call, a[1], &ending.status())?;
    user::write_optional(call, a[3], &[0u64; RUSAGE_WORDS])?;
    Ok(pid as u64)
}

/// waitid, with WEXITED; WNOWAIT is not known.
pub(super) fn waitid(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    const WEXITED: u32 = 4;
    const WSTOPPED_CONTINUED: u32 = 2 | 8;
    let [kind, id, info, options, usage, _] = a;
    let options = options as u32;
    if options & WEXITED == 0 || options & !(WEXITED | WSTOPPED_CONTINUED | WNOHANG) != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match kind {
        0 => Which::Any,
        1 if int(id) > 0 => Which::Child(int(id)),
        2 if int(id) > 0 => Which::Group(int(id)),
        2 if id == 0 => Which::Group(own_group(call)?),
        _ => return Err(Errno::EINVAL),
    };
    let found = wait_for(call, which, options & WNOHANG == 0)?;
    let told = found.map_or(Siginfo::default(), |(pid, ending)| match ending {
        Ending::Exited(status) => Siginfo::child(code::CLD_EXITED, pid, 0, status.into()),
        Ending::Killed { signal, .. } => {
            Siginfo::child(code::CLD_KILLED, pid, 0, signal.number().into())
        }
    });
    user::write_optional(call, info, &told)?;
    user::write_optional(call, usage, &[0u64; RUSAGE_WORDS])?;
    Ok(0)
}

pub(super) fn set_tid_address(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    call.thread.clear_tid.store(a[0], Ordering::Relaxed);
    Ok(call.thread.tid as u64)
}

pub(super) fn getppid(call: &Call<'_>) -> Result<u64, Errno> {
    Ok(family(|family| family.parent(call.process.pid)).unwrap_or(0) as u64)
}

fn own_group(call: &Call<'_>) -> Result<Pid, Errno> {
    family(|family| family.group(call.process.pid)).ok_or(Errno::ESRCH)
}

pub(super) fn setpgid(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    family(|family| family.set_group(call.process.pid, int(a[0]), int(a[1])))?;
    Ok(0)
}

pub(super) fn getpgid(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let pid = match int(a[0]) {
        0 => call.process.pid,
        pid => pid,
    };
    let group = family(|family| family.group(pid)).ok_or(Errno::ESRCH)?;
    Ok(group as u64)
}

/// setsid: there is one session; the caller gets a group of its own.
pub(super) fn setsid(call: &Call<'_>, _a: Args) -> Result<u64, Errno> {
    let pid = call.process.pid;
    if own_group(call)? == pid {
        return Err(Errno::EPERM);
    }
    family(|family| family.set_group(pid, pid, pid))?;
    Ok(pid as u64)
}

/// `struct tms`, in ticks of 10 ms: what bounds the time used from above, as umbra does not count it
/// by process.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Tms {
    user: i64,
    system: i64,
    children_user: i64,
    children_system: i64,
}

const TICK_NANOS: u64 = 10_000_000;

pub(super) fn times(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let now = sched::now();
    let ran = now.saturating_sub(call.process.started) / TICK_NANOS;
    let tms = Tms {
        user: ran.cast_signed(),
        ..Tms::default()
    };
    user::write_optional(call, a[0], &tms)?;
    Ok(now / TICK_NANOS)
}

pub(super) fn getrusage(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let mut usage = [0u64; RUSAGE_WORDS];
    const RUSAGE_CHILDREN: i32 = -1;
    if int(a[0]) != RUSAGE_CHILDREN {
        let ran = Timeval::from_nanos(sched::now().saturating_sub(call.process.started));
        usage[0] = ran.sec.cast_unsigned();
        usage[1] = ran.usec.cast_unsigned();
        // ru_maxrss, in KiB.
        usage[4] = call.process.mm().resident_bytes() >> 10;
    }
    user::write(call, a[1], &usage)?;
    Ok(0)
}

pub(super) fn prctl(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    // include/uapi/linux/prctl.h
    const PR_SET_NAME: u64 = 15;
    const PR_GET_NAME: u64 = 16;
    const PR_GET_SECCOMP: u64 = 21;
    const PR_SET_SECCOMP: u64 = 22;
    const PR_MCE_KILL: u64 = 33;
    const PR_MCE_KILL_GET: u64 = 34;
    const PR_SET_NO_NEW_PRIVS: u64 = 38;
    const PR_GET_NO_NEW_PRIVS: u64 = 39;
    const SECCOMP_FILTER: u64 = 2;
    match a[0] {
        PR_SET_NAME => {
            let mut name = [0; 16];
            let limit = name.len() - 1;
            // A longer name is cut.
            for (index, byte) in name.iter_mut().take(limit).enumerate() {
                *byte = user::read(call, a[1].wrapping_add(index as u64))?;
                if *byte == 0 {
                    break;
                }
            }
            *call.thread.name.lock() = name;
            Ok(0)
        }
        PR_GET_NAME => {
            let name = *call.thread.name.lock();
            user::write(call, a[1], &name)?;
            Ok(0)
        }
        PR_GET_SECCOMP if call.thread.is_filtered.load(Ordering::Relaxed) => Ok(SECCOMP_FILTER),
        PR_GET_SECCOMP => Ok(0),
        PR_SET_SECCOMP if a[1] == SECCOMP_FILTER => super::seccomp::set(call, 0, a[2]),
        // PR_MCE_KILL_CLEAR (0) and PR_MCE_KILL_SET (1).
        PR_MCE_KILL if a[3] | a[4] == 0 => {
            let word = match (a[1], a[2]) {
                (0, 0) | (1, 2) => PR_MCE_KILL_DEFAULT,
                (1, 0) => PR_MCE_KILL_LATE,
                (1, 1) => PR_MCE_KILL_EARLY,
                _ => return Err(Errno::EINVAL),
            };
            call.thread.memory_error_word.store(word, Ordering::Relaxed);
            Ok(0)
        }
        PR_MCE_KILL_GET if a[1] | a[2] | a[3] | a[4] == 0 => {
            Ok(call.thread.memory_error_word.load(Ordering::Relaxed).into())
        }
        // Nothing here could give privileges, so the promise not to take any is kept.
        PR_SET_NO_NEW_PRIVS if a[1] == 1 => Ok(0),
        PR_GET_NO_NEW_PRIVS => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
