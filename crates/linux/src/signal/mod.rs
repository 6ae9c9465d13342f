//! Signals: which there are, what a process does about them, and how a handler is entered.
//!
//! ```text
//!   send ──► Pending (of a thread or the process) ──next_delivery──► handler │ kill │ stop │ nothing
//!                                   ▲ Mask                              │
//!                                   └────────── sigreturn ◄── frame ────┘
//! ```

mod action;
mod altstack;
mod frame;
mod pending;
mod siginfo;

pub use action::{Actions, Disposition, Handler, SigactionAbi};
pub use altstack::AltStack;
pub use frame::{
    FRAME_BYTES, FpRegs, Frame, HandlerEntry, MIN_SIGNAL_STACK, RT_SIGFRAME_BYTES, Restored,
    UserRegs, user_pstate,
};
pub use pending::{Delivery, Pending, ThreadSignals};
pub use siginfo::{Siginfo, code};

use crate::Errno;
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of signals: 1 to 64.
pub const COUNT: usize = 64;

/// A signal, 1 to 64 (`include/uapi/asm-generic/signal.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

macro_rules! signals {
    ($($name:ident $number:literal $default:ident $doc:literal,)*) => {
        impl Signal {
            $(#[doc = $doc] pub const $name: Self = Self($number);)*
        }

        const TABLE: &[(u8, &str, Default)] = &[$(($number, stringify!($name), Default::$default),)*];
    };
}

signals! {
    HUP 1 Terminate "The terminal is gone.",
    INT 2 Terminate "Interrupt from the keyboard.",
    QUIT 3 Core "Quit from the keyboard.",
    ILL 4 Core "An instruction that does not exist.",
    TRAP 5 Core "A breakpoint.",
    ABRT 6 Core "abort(3).",
    BUS 7 Core "An access that the memory could not serve.",
    FPE 8 Core "An arithmetic error.",
    KILL 9 Terminate "The end; cannot be handled or blocked.",
    USR1 10 Terminate "The program's own.",
    SEGV 11 Core "An access to memory that is not there or not allowed.",
    USR2 12 Terminate "The program's own.",
    PIPE 13 Terminate "A write to a pipe that nobody reads.",
    ALRM 14 Terminate "alarm(2).",
    TERM 15 Terminate "A request to end.",
    STKFLT 16 Terminate "Unused.",
    CHLD 17 Ignore "A child has ended.",
    CONT 18 Continue "Go on after a stop.",
    STOP 19 Stop "Stop; cannot be handled or blocked.",
    TSTP 20 Stop "Stop from the keyboard.",
    TTIN 21 Stop "A read from the background.",
    TTOU 22 Stop "A write from the background.",
    URG 23 Ignore "Urgent data.",
    XCPU 24 Core "Too much time used.",
    XFSZ 25 Core "A file grew too large.",
    VTALRM 26 Terminate "A timer of used time.",
    PROF 27 Terminate "A profiling timer.",
    WINCH 28 Ignore "The window changed its size.",
    IO 29 Terminate "Input is there.",
    PWR 30 Terminate "Power is failing.",
    SYS 31 Core "A bad system call.",
}

/// What happens by default (signal(7)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Default {
    /// The process ends.
    Terminate,
    /// The process ends, and leaves a core image where there is one.
    Core,
    /// Nothing.
    Ignore,
    /// The process stops.
    Stop,
    /// The process goes on.
    Continue,
}

impl Signal {
    /// The first real-time signal: from here on each one sent is delivered.
    pub const RT_MIN: Self = Self(32);

    /// The signal of this number. `EINVAL` outside 1 to 64.
    pub fn new(number: u32) -> Result<Self, Errno> {
        match u8::try_from(number) {
            Ok(number @ 1..=64) => Ok(Self(number)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// 1 to 64.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// What happens if the process says nothing.
    pub fn default(self) -> Default {
        self.entry().map_or(Default::Terminate, |entry| entry.2)
    }

    /// Neither handled, ignored nor blocked: SIGKILL and SIGSTOP.
    pub fn is_absolute(self) -> bool {
        self == Self::KILL || self == Self::STOP
    }

    const fn index(self) -> usize {
        self.0 as usize - 1
    }

    fn is_real_time(self) -> bool {
        self >= Self::RT_MIN
    }

    fn entry(self) -> Option<&'static (u8, &'static str, Default)> {
        TABLE.iter().find(|entry| entry.0 == self.0)
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "SIGRT{}", self.0),
        }
    }
}

/// A set of signals: `sigset_t` as system calls pass it, 8 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct SigSet(u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);

    /// Those that the thread's own instruction caused; they are delivered before others, so that the
    /// handler finds the state that caused them.
    const SYNCHRONOUS: Self = Self::EMPTY
        .with(Signal::SEGV)
        .with(Signal::BUS)
        .with(Signal::ILL)
        .with(Signal::TRAP)
        .with(Signal::FPE)
        .with(Signal::SYS);

    /// Bit n - 1 stands for signal n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n - 1 stands for signal n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// This and one more.
    pub const fn with(self, signal: Signal) -> Self {
        Self(self.0 | 1 << signal.index())
    }

    /// This but one.
    pub const fn without(self, signal: Signal) -> Self {
        Self(self.0 & !(1 << signal.index()))
    }

    /// Those in either.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in this.
    pub const fn complement(self) -> Self {
        Self(!self.0)
    }

    /// Whether it is in the set.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & 1 << signal.index() != 0
    }

    /// Whether none is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// As a mask: SIGKILL and SIGSTOP cannot be blocked.
    pub const fn as_mask(self) -> Self {
        self.without(Signal::KILL).without(Signal::STOP)
    }

    /// The signal to deliver first.
    fn first(self) -> Option<Signal> {
        let urgent = self.and(Self::SYNCHRONOUS);
        let from = if urgent.is_empty() { self } else { urgent };
        let index = from.0.trailing_zeros();
        Signal::new(index + 1).ok().filter(|_| !from.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::format;

    #[test]
    fn the_table_names_each_standard_signal_once() {
        let numbers: BTreeSet<u8> = TABLE.iter().map(|entry| entry.0).collect();
        assert!(numbers.into_iter().eq(1..32));
        assert_eq!(TABLE.len(), 31);
    }

    #[test]
    fn numbers_agree_with_the_generated_ones() {
        use linux_raw_sys::general as raw;
        for (ours, theirs) in [
            (Signal::BUS, raw::SIGBUS),
            (Signal::USR1, raw::SIGUSR1),
            (Signal::SEGV, raw::SIGSEGV),
            (Signal::CHLD, raw::SIGCHLD),
            (Signal::TSTP, raw::SIGTSTP),
            (Signal::WINCH, raw::SIGWINCH),
            (Signal::SYS, raw::SIGSYS),
        ] {
            assert_eq!(u32::from(ours.number()), theirs);
        }
        assert_eq!(
            format!("{:?} {:?}", Signal::SEGV, Signal(34)),
            "SIGSEGV SIGRT34"
        );
    }

    #[test]
    fn only_1_to_64_are_signals() {
        assert_eq!(Signal::new(0), Err(Errno::EINVAL));
        assert_eq!(Signal::new(65), Err(Errno::EINVAL));
        assert_eq!(Signal::new(256 + 9), Err(Errno::EINVAL));
        assert_eq!(Signal::new(9), Ok(Signal::KILL));
        assert_eq!(Signal(64).default(), Default::Terminate);
        assert_eq!(Signal::CHLD.default(), Default::Ignore);
    }

    #[test]
    fn sets_pick_synchronous_signals_first() {
        let set = SigSet::EMPTY
            .with(Signal::HUP)
            .with(Signal::SEGV)
            .with(Signal(64));
        assert_eq!(set.first(), Some(Signal::SEGV));
        assert_eq!(set.without(Signal::SEGV).first(), Some(Signal::HUP));
        assert_eq!(SigSet::EMPTY.with(Signal(64)).first(), Some(Signal(64)));
        assert_eq!(SigSet::EMPTY.first(), None);
        let mask = SigSet::EMPTY.complement().as_mask();
        assert!(!mask.contains(Signal::KILL) && !mask.contains(Signal::STOP));
        assert_eq!(mask.bits().count_ones(), 62);
    }
}
