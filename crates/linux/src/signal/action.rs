//! What a process does about each signal: rt_sigaction.

use super::{COUNT, Default, SigSet, Signal};
use crate::Errno;
use umbra_arm64::Hva;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

// include/uapi/asm-generic/signal-defs.h; SA_RESTORER: arch/arm64/include/uapi/asm/signal.h
const SA_NOCLDWAIT: u64 = 0x2;
const SA_SIGINFO: u64 = 0x4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
/// SA_NOCLDSTOP and SA_EXPOSE_TAGBITS, kept without effect. Others are cleared, as Linux does, so
/// that a program can find out what is known.
const SA_KEPT: u64 = 0x1 | 0x800;
const SA_KNOWN: u64 = SA_KEPT
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_RESTORER
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;

/// The kernel's `struct sigaction` of arm64.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SigactionAbi {
    /// 0: the default; 1: ignore; else the handler's address.
    pub handler: u64,
    /// `SA_…`.
    pub flags: u64,
    /// Where a handler returns to, with SA_RESTORER.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: SigSet,
}

/// A handler, and how it wants to be entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handler {
    /// Its first instruction.
    pub entry: Hva,
    /// Where it returns to; `None` if that is the kernel's to provide (glibc gives none on arm64).
    pub restorer: Option<Hva>,
    /// Blocked while it runs, apart from the signal itself.
    pub mask: SigSet,
    /// It wants the siginfo and the context.
    pub siginfo: bool,
    /// On the alternate stack, if there is one.
    pub on_stack: bool,
    /// An interrupted system call is started again.
    pub restart: bool,
    /// The signal is not blocked while it runs.
    pub no_defer: bool,
    /// It is forgotten as soon as it runs.
    pub reset: bool,
}

/// What a process does about a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// What [`Signal::default`] says.
    Default,
    /// Nothing.
    Ignore,
    /// It runs a handler.
    Handle(Handler),
}

/// The dispositions of one process (or of those that share them by CLONE_SIGHAND).
#[derive(Clone, Debug)]
pub struct Actions([SigactionAbi; COUNT]);

impl core::default::Default for Actions {
    fn default() -> Self {
        Self::new()
    }
}

impl Actions {
    /// Every signal does what it does by default.
    pub const fn new() -> Self {
        let none = SigactionAbi {
            handler: SIG_DFL,
            flags: 0,
            restorer: 0,
            mask: SigSet::EMPTY,
        };
        Self([none; COUNT])
    }

    /// rt_sigaction's reading half.
    pub fn get(&self, signal: Signal) -> SigactionAbi {
        self.0.get(signal.index()).copied().unwrap_or_default()
    }

    /// rt_sigaction's writing half. `EINVAL` for SIGKILL and SIGSTOP. If the signal is ignored
    /// afterwards ([`Self::ignores`]), the caller discards those that are pending.
    pub fn set(&mut self, signal: Signal, action: SigactionAbi) -> Result<(), Errno> {
        if signal.is_absolute() {
            return Err(Errno::EINVAL);
        }
        let flags = action.flags & SA_KNOWN;
        let mask = action.mask.as_mask();
        if let Some(slot) = self.0.get_mut(signal.index()) {
            *slot = SigactionAbi {
                flags,
                mask,
                ..action
            };
        }
        Ok(())
    }

    /// What happens on `signal`.
    pub fn disposition(&self, signal: Signal) -> Disposition {
        let action = self.get(signal);
        let has = |flag| action.flags & flag != 0;
        match action.handler {
            SIG_DFL => Disposition::Default,
            SIG_IGN => Disposition::Ignore,
            entry => Disposition::Handle(Handler {
                entry: Hva::new(entry),
                restorer: has(SA_RESTORER).then(|| Hva::new(action.restorer)),
                mask: action.mask,
                siginfo: has(SA_SIGINFO),
                on_stack: has(SA_ONSTACK),
                restart: has(SA_RESTART),
                no_defer: has(SA_NODEFER),
                reset: has(SA_RESETHAND),
            }),
        }
    }

    /// Whether the signal has no effect, so that it need not be kept or wake anyone.
    pub fn ignores(&self, signal: Signal) -> bool {
        match self.disposition(signal) {
            Disposition::Ignore => true,
            Disposition::Default => signal.default() == Default::Ignore,
            Disposition::Handle(_) => false,
        }
    }

    /// Whether ended children are forgotten without a wait.
    pub fn discards_children(&self) -> bool {
        let action = self.get(Signal::CHLD);
        action.handler == SIG_IGN || action.flags & SA_NOCLDWAIT != 0
    }

    /// execve: handlers are gone with the program; what was ignored stays ignored.
    pub fn reset_for_exec(&mut self) {
        for action in &mut self.0 {
            let handler = if action.handler == SIG_IGN {
                SIG_IGN
            } else {
                SIG_DFL
            };
            *action = SigactionAbi {
                handler,
                ..SigactionAbi::default()
            };
        }
    }

    pub(super) fn reset(&mut self, signal: Signal) {
        if let Some(slot) = self.0.get_mut(signal.index()) {
            slot.handler = SIG_DFL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(flags: u64) -> SigactionAbi {
        SigactionAbi {
            handler: 0x1000,
            flags,
            restorer: 0x2000,
            mask: SigSet::EMPTY.complement(),
        }
    }

    #[test]
    fn the_layout_is_arm64s() {
        assert_eq!(size_of::<SigactionAbi>(), 32);
    }

    #[test]
    fn each_flag_reaches_its_field() {
        let mut actions = Actions::new();
        let mut with = |flags| {
            actions.set(Signal::USR1, handler(flags)).unwrap();
            match actions.disposition(Signal::USR1) {
                Disposition::Handle(handler) => handler,
                other => panic!("{other:?}"),
            }
        };
        let plain = with(0);
        assert!(!plain.mask.contains(Signal::KILL));
        assert_eq!(plain.restorer, None);
        assert_eq!(with(SA_RESTORER).restorer, Some(Hva::new(0x2000)));
        assert_eq!(
            with(SA_SIGINFO),
            Handler {
                siginfo: true,
                ..plain
            }
        );
        assert_eq!(
            with(SA_ONSTACK),
            Handler {
                on_stack: true,
                ..plain
            }
        );
        assert_eq!(
            with(SA_RESTART),
            Handler {
                restart: true,
                ..plain
            }
        );
        assert_eq!(
            with(SA_NODEFER),
            Handler {
                no_defer: true,
                ..plain
            }
        );
        assert_eq!(
            with(SA_RESETHAND),
            Handler {
                reset: true,
                ..plain
            }
        );
    }

    #[test]
    fn unknown_flags_read_back_as_zero() {
        let mut actions = Actions::new();
        actions
            .set(Signal::USR1, handler(0x400 | SA_RESTART))
            .unwrap();
        assert_eq!(actions.get(Signal::USR1).flags, SA_RESTART);
        assert_eq!(actions.set(Signal::KILL, handler(0)), Err(Errno::EINVAL));
    }

    #[test]
    fn exec_keeps_only_what_was_ignored() {
        let mut actions = Actions::new();
        actions.set(Signal::USR1, handler(SA_RESTART)).unwrap();
        actions
            .set(
                Signal::INT,
                SigactionAbi {
                    handler: SIG_IGN,
                    ..handler(0)
                },
            )
            .unwrap();
        assert!(actions.ignores(Signal::INT) && !actions.ignores(Signal::USR1));
        actions.reset_for_exec();
        assert_eq!(actions.disposition(Signal::USR1), Disposition::Default);
        assert_eq!(actions.disposition(Signal::INT), Disposition::Ignore);
        assert!(actions.ignores(Signal::CHLD) && !actions.ignores(Signal::TERM));
    }

    #[test]
    fn children_are_discarded_if_ignored_or_unwanted() {
        let mut actions = Actions::new();
        assert!(!actions.discards_children());
        actions.set(Signal::CHLD, handler(SA_NOCLDWAIT)).unwrap();
        assert!(actions.discards_children());
        actions
            .set(
                Signal::CHLD,
                SigactionAbi {
                    handler: SIG_IGN,
                    ..handler(0)
                },
            )
            .unwrap();
        assert!(actions.discards_children());
    }
}
