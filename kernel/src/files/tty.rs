//! The console as a terminal.
//!
//! There is one, and one foreground process group. Output goes to the port in whole buffers, so that
//! the lines of several processes stay whole; it never waits, as the port is polled.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, Ordering};

use umbra_hw::sync::SpinLock;
use umbra_linux::fs::Stat;
use umbra_linux::signal::{Siginfo, Signal, code};
use umbra_linux::tty::{Termios, Tty, Winsize};
use umbra_linux::wait::{INIT, Pid};
use umbra_linux::{Errno, Readiness, Stop, uapi};

use crate::file::{Call, File};
use crate::proc::{family, send_to_group};
use crate::sched::WaitQueue;
use crate::sys::user;

static TTY: SpinLock<Tty> = SpinLock::new("tty", 72, Tty::new());
static QUEUE: WaitQueue = WaitQueue::new();
static FOREGROUND: AtomicI32 = AtomicI32::new(INIT);

// include/uapi/asm-generic/ioctls.h
const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540a;
const TCFLSH: u32 = 0x540b;
const TIOCSCTTY: u32 = 0x540e;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const FIONREAD: u32 = 0x541b;
const TIOCGSID: u32 = 0x5429;
/// TCFLSH: input, both.
const TCIFLUSH: u64 = 0;
const TCIOFLUSH: u64 = 2;

/// Bytes have come in at the port. Called with no lock held.
pub(crate) fn input(bytes: &[u8]) {
    let mut echo = Vec::new();
    let mut signals: heapless::Vec<Signal, 8> = heapless::Vec::new();
    {
        let mut tty = TTY.lock();
        for &byte in bytes {
            if let Some(signal) = tty.input(byte, &mut echo) {
                // More than a few at once say nothing new.
                let _ = signals.push(signal);
            }
        }
    }
    umbra_hw::uart::write_bytes(&echo);
    for signal in signals {
        let info = Siginfo::plain(signal, code::SI_KERNEL);
        // A group without living members has nobody to tell.
        let _ = send_to_group(FOREGROUND.load(Ordering::Relaxed), signal, info);
    }
    QUEUE.wake_all();
}

/// Bytes that go to the console under one hold of its lock.
const CONSOLE_PART: usize = 256;

/// The terminal as a file.
pub(crate) struct Console;

/// Opens the terminal.
pub(crate) fn console() -> Arc<dyn File> {
    Arc::new(Console)
}

impl File for Console {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        TTY.lock().read(buf)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let mut port = Vec::new();
        port.try_reserve(bytes.len() * 2)
            .map_err(|_| Errno::ENOMEM)?;
        TTY.lock().output(bytes, &mut port);
        // The device is slow and its lock is everybody's: between two parts, others have their turn.
        for part in port.chunks(CONSOLE_PART) {
            umbra_hw::uart::write_bytes(part);
            crate::irq::poll();
            crate::sched::preempt_point();
        }
        Ok(bytes.len())
    }

    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        match request {
            TCGETS => {
                let termios = TTY.lock().termios();
                user::write(call, arg, &termios)?;
            }
            TCSETS | TCSETSW | TCSETSF => {
                let termios: Termios = user::read(call, arg)?;
                let mut tty = TTY.lock();
                if request == TCSETSF {
                    tty.flush_input();
                }
                tty.set_termios(termios);
                drop(tty);
                QUEUE.wake_all();
            }
            TCFLSH if arg == TCIFLUSH || arg == TCIOFLUSH => TTY.lock().flush_input(),
            // Output never waits, and there is no break, no flow control and no other session.
            TCFLSH | TCSBRK | TCXONC | TIOCSCTTY => {}
            TIOCGPGRP => user::write(call, arg, &FOREGROUND.load(Ordering::Relaxed))?,
            TIOCSPGRP => {
                let group: Pid = user::read(call, arg)?;
                if !family(|family| family.members(group).next().is_some()) {
                    return Err(Errno::ESRCH);
                }
                FOREGROUND.store(group, Ordering::Relaxed);
            }
            TIOCGSID => user::write(call, arg, &INIT)?,
            TIOCGWINSZ => {
                let size = TTY.lock().winsize;
                user::write(call, arg, &size)?;
            }
            TIOCSWINSZ => {
                let size: Winsize = user::read(call, arg)?;
                let changed = core::mem::replace(&mut TTY.lock().winsize, size) != size;
                if changed {
                    let info = Siginfo::plain(Signal::WINCH, code::SI_KERNEL);
                    let _ = send_to_group(FOREGROUND.load(Ordering::Relaxed), Signal::WINCH, info);
                }
            }
            FIONREAD => {
                let queued = TTY.lock().queued() as u32;
                user::write(call, arg, &queued)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn readiness(&self) -> Readiness {
        TTY.lock().readiness()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&QUEUE)
    }

    fn stat(&self) -> Stat {
        let mut stat = Stat::default();
        stat.mode = uapi::S_IFCHR | 0o620;
        stat.nlink = 1;
        // /dev/console: 5, 1.
        stat.rdev = 5 << 8 | 1;
        stat.blksize = 1024;
        stat
    }
}
