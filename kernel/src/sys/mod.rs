//! The system calls: Linux's numbers and meanings for arm64, as far as a VMM and its tools need them.
//!
//! A call reads its arguments, checks all of them, and leaves the work to files, memory, processes.
//! One that umbra does not know answers `ENOSYS`, and the log tells of it once.

mod event;
mod fd;
pub(crate) mod futex;
pub(crate) mod info;
mod io;
pub(crate) mod lock;
mod memory;
mod message;
mod path;
mod poll;
mod process;
mod seccomp;
mod signal;
mod socket;
pub(crate) mod time;
pub(crate) mod user;

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_hw::scarce::FallibleCall;
use umbra_kvm_abi::ioctl::KVM_RUN;
use umbra_linux::Errno;
use umbra_trace::Event;

use crate::mem;
use crate::proc::Context;
use crate::trace::{self, Who};

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Done {
    /// x0.
    Value(u64),
    /// x0, negated.
    Failed(Errno),
    /// The registers are no longer those of the call (execve, rt_sigreturn, exit).
    Elsewhere,
}

impl From<Result<u64, Errno>> for Done {
    fn from(result: Result<u64, Errno>) -> Self {
        match result {
            Ok(value) => Self::Value(value),
            Err(errno) => Self::Failed(errno),
        }
    }
}

/// x0 to x5.
pub(crate) type Args = [u64; 6];

/// An `int` argument.
fn int(arg: u64) -> i32 {
    arg as u32 as i32
}

/// A descriptor: negative ones are not open.
fn descriptor(arg: u64) -> Result<u32, Errno> {
    u32::try_from(int(arg)).map_err(|_| Errno::EBADF)
}

/// Runs the call that x8 names, with the arguments in x0 to x5.
pub(crate) fn dispatch(context: &mut Context<'_>) -> Done {
    let [x0, x1, x2, x3, x4, x5, ..] = context.frame.x;
    let a: Args = [x0, x1, x2, x3, x4, x5];
    let number = context.frame.x[8];
    let call = &context.call;
    if let Some(done) = seccomp::check(call, context.frame) {
        return done;
    }
    trace::record(Who::PROCESS, move || Event::SysEnter {
        id: number as u32,
        a0: x0,
        a1: x1,
        a2: x2,
        thread: call.thread.tid as u64,
    });
    let result = if goes_on(number) {
        answer(context, number, a)
    } else {
        let _fallible = FallibleCall::begin();
        // A VM that runs goes on running: what it takes are frames.
        let runs = number == 29 && x1 as u32 == KVM_RUN.raw();
        let admitted = if runs { Ok(()) } else { mem::admit() };
        admitted
            .map_err(Into::into)
            .and_then(|()| answer(context, number, a))
    };
    let result = match result {
        Ok(value) => Ok(value),
        Err(Unanswered::Failed(errno)) => Err(errno),
        Err(Unanswered::Elsewhere) => return Done::Elsewhere,
    };
    let call = &context.call;
    trace::record(Who::PROCESS, move || Event::SysExit {
        id: number as u32,
        ret: result.unwrap_or_else(Errno::as_return_value),
        thread: call.thread.tid as u64,
    });
    result.into()
}

/// Why a call gives no value.
enum Unanswered {
    Failed(Errno),
    /// The registers are no longer those of the call.
    Elsewhere,
}

impl From<Errno> for Unanswered {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// Calls that are let in even when memory is out: those that end something or give it back, wait, signal,
/// look, or move bytes that are there. What they take of the heap they give back before they return.
fn goes_on(number: u64) -> bool {
    // close, fsync, exit, futex, times, signals, who one is, read and write (which look themselves), waits.
    matches!(
        number,
        22 | 57 | 61..=70 | 72..=73 | 80..=83 | 86..=87 | 93..=99 | 101 | 113..=115 | 119..=124 | 132..=139
            | 153..=160 | 163..=169 | 172..=179 | 260..=261 | 278 | 436
    )
}

/// The call itself.
fn answer(context: &mut Context<'_>, number: u64, a: Args) -> Result<u64, Unanswered> {
    let [x0, x1, x2, x3, ..] = a;
    let call = &context.call;
    // include/uapi/asm-generic/unistd.h
    let result = match number {
        17 => path::getcwd(call, a),
        19 => event::eventfd2(call, a),
        20 => poll::epoll_create1(call, a),
        21 => poll::epoll_ctl(call, a),
        22 => poll::epoll_pwait(call, a),
        23 => fd::dup(call, a),
        24 => fd::dup3(call, a),
        25 => fd::fcntl(call, a),
        29 => fd::ioctl(call, a),
        32 => lock::flock(call, a),
        34 => path::mkdirat(call, a),
        35 => path::unlinkat(call, a),
        36 => path::symlinkat(call, a),
        37 => path::linkat(call, a),
        38 => path::renameat2(call, [x0, x1, x2, x3, 0, 0]),
        43 => path::statfs(call, a),
        44 => path::fstatfs(call, a),
        45 => path::truncate(call, a),
        46 => path::ftruncate(call, a),
        47 => path::fallocate(call, a),
        48 => path::faccessat(call, [x0, x1, x2, 0, 0, 0]),
        49 => path::chdir(call, a),
        50 => path::fchdir(call, a),
        52 => path::fchmod(call, a),
        53 => path::fchmodat(call, a),
        54 | 55 => Ok(0),
        56 => path::openat(call, a),
        57 => fd::close(call, a),
        59 => fd::pipe2(call, a),
        61 => path::getdents64(call, a),
        62 => fd::lseek(call, a),
        63 => io::read(call, a),
        64 => io::write(call, a),
        65 => io::readv(call, a),
        66 => io::writev(call, a),
        67 => io::pread64(call, a),
        68 => io::pwrite64(call, a),
        69 => io::preadv(call, a),
        70 => io::pwritev(call, a),
        71 => io::sendfile(call, a),
        72 => poll::pselect6(call, a),
        73 => poll::ppoll(call, a),
        78 => path::readlinkat(call, a),
        79 => path::newfstatat(call, a),
        80 => path::fstat(call, a),
        81 => {
            crate::disk::sync_all();
            Ok(0)
        }
        82 | 83 => fd::fsync(call, a),
        85 => event::timerfd_create(call, a),
        86 => event::timerfd_settime(call, a),
        87 => event::timerfd_gettime(call, a),
        88 => path::utimensat(call, a),
        93 => return done(process::exit(context, a)),
        94 => return done(process::exit_group(context, a)),
        95 => process::waitid(call, a),
        96 => process::set_tid_address(call, a),
        98 => futex::futex(call, a),
        99 => Ok(0),
        101 => time::nanosleep(call, a),
        113 => time::clock_gettime(call, a),
        114 => time::clock_getres(call, a),
        115 => time::clock_nanosleep(call, a),
        // Scheduling policies: there is one. setscheduler, getscheduler, getparam.
        119 | 120 => Ok(0),
        122 => info::sched_setaffinity(call, a),
        123 => info::sched_getaffinity(call, a),
        124 => {
            crate::sched::yield_now();
            Ok(0)
        }
        129 => signal::kill(call, a),
        130 => signal::tkill(call, a),
        131 => signal::tgkill(call, a),
        132 => signal::sigaltstack(call, context.frame.sp, a),
        133 => signal::rt_sigsuspend(call, a),
        134 => signal::rt_sigaction(call, a),
        135 => signal::rt_sigprocmask(call, a),
        136 => signal::rt_sigpending(call, a),
        137 => signal::rt_sigtimedwait(call, a),
        139 => return done(signal::rt_sigreturn(context)),
        // setpriority, getpriority: nobody is nicer than others (20 stands for 0).
        140 => Ok(0),
        141 => Ok(20),
        // setregid … setgroups: there is one user. Asking for root is granted.
        143..=152 | 159 => info::set_ids(a),
        153 => process::times(call, a),
        154 => process::setpgid(call, a),
        155 => process::getpgid(call, a),
        156 => Ok(umbra_linux::wait::INIT as u64),
        157 => process::setsid(call, a),
        158 => Ok(0),
        160 => info::uname(call, a),
        163 => info::getrlimit(call, a),
        165 => process::getrusage(call, a),
        166 => path::umask(call, a),
        167 => process::prctl(call, a),
        168 => info::getcpu(call, a),
        169 => time::gettimeofday(call, a),
        172 => Ok(call.process.pid as u64),
        173 => process::getppid(call),
        174..=177 => Ok(0),
        178 => Ok(call.thread.tid as u64),
        179 => info::sysinfo(call, a),
        198 => socket::socket(call, a),
        199 => socket::socketpair(call, a),
        200 => socket::bind(call, a),
        201 => socket::listen(call, a),
        202 => socket::accept4(call, [x0, x1, x2, 0, 0, 0]),
        203 => socket::connect(call, a),
        204 | 205 => socket::name(call, a),
        206 => socket::send(call, a),
        207 => socket::receive(call, a),
        208 => socket::set_option(call, a),
        209 => socket::get_option(call, a),
        210 => socket::shutdown(call, a),
        211 => message::sendmsg(call, a),
        212 => message::recvmsg(call, a),
        214 => memory::brk(call, a),
        215 => memory::munmap(call, a),
        216 => memory::mremap(call, a),
        220 => process::clone(context, a),
        221 => return done(process::execve(context, a)),
        222 => memory::mmap(call, a),
        226 => memory::mprotect(call, a),
        // msync, mlock, munlock, mlockall, munlockall: nothing is ever paged out.
        227..=231 => Ok(0),
        233 => memory::madvise(call, a),
        260 => process::wait4(call, a),
        261 => info::prlimit64(call, a),
        242 => socket::accept4(call, a),
        276 => path::renameat2(call, a),
        277 => seccomp::seccomp(call, a),
        278 => info::getrandom(call, a),
        279 => memory::memfd_create(call, a),
        291 => path::statx(call, a),
        436 => fd::close_range(call, a),
        439 => path::faccessat(call, a),
        other => unknown(other),
    };
    Ok(result?)
}

/// A call that answers with registers of its own making, or fails.
fn done(done: Done) -> Result<u64, Unanswered> {
    match done {
        Done::Value(value) => Ok(value),
        Done::Failed(errno) => Err(errno.into()),
        Done::Elsewhere => Err(Unanswered::Elsewhere),
    }
}

/// Numbers that were complained of: one bit each.
static COMPLAINED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

fn unknown(number: u64) -> Result<u64, Errno> {
    let word = COMPLAINED.get((number / 64) as usize);
    let first = word.is_some_and(|word| {
        let bit = 1 << (number % 64);
        word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    });
    if first {
        log::warn!("system call {number} is not there");
    }
    Err(Errno::ENOSYS)
}
