//! Signals that were sent and not yet delivered, and who is delivered next.

use super::{Actions, AltStack, Default, Disposition, Handler, SigSet, Siginfo, Signal};
use crate::Errno;
use alloc::collections::VecDeque;

/// The most real-time signals that wait in one place (RLIMIT_SIGPENDING, so to speak).
const MAX_QUEUED: usize = 1024;

/// Signals that wait, for a thread or for a process.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    set: SigSet,
    queue: VecDeque<(Signal, Siginfo)>,
}

impl Pending {
    /// None.
    pub const fn new() -> Self {
        Self {
            set: SigSet::EMPTY,
            queue: VecDeque::new(),
        }
    }

    /// Adds a signal. One below 32 that waits already is not added again. `EAGAIN` if too many
    /// real-time signals wait.
    pub fn send(&mut self, signal: Signal, info: Siginfo) -> Result<(), Errno> {
        if !signal.is_real_time() && self.set.contains(signal) {
            return Ok(());
        }
        if signal.is_real_time() {
            // With room left for every one of the others, which are never refused.
            let room = self.queue.try_reserve(33);
            if self.queue.len() >= MAX_QUEUED || room.is_err() {
                return Err(Errno::EAGAIN);
            }
        }
        self.set = self.set.with(signal);
        self.queue.push_back((signal, info));
        Ok(())
    }

    /// Which signals wait (rt_sigpending, with the other set added).
    pub const fn set(&self) -> SigSet {
        self.set
    }

    /// Forgets every one of `signal`.
    pub fn discard(&mut self, signal: Signal) {
        self.queue.retain(|(queued, _)| *queued != signal);
        self.set = self.set.without(signal);
    }

    /// Takes the first signal of `wanted` (also rt_sigtimedwait).
    pub fn take(&mut self, wanted: SigSet) -> Option<(Signal, Siginfo)> {
        let signal = self.set.and(wanted).first()?;
        let at = self.queue.iter().position(|(queued, _)| *queued == signal);
        let taken = at.and_then(|at| self.queue.remove(at));
        if !self.queue.iter().any(|(queued, _)| *queued == signal) {
            self.set = self.set.without(signal);
        }
        taken
    }
}

/// What is to be done about a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// Enter the handler; the frame restores `saved_mask`.
    Handle {
        /// Which signal.
        signal: Signal,
        /// About it.
        info: Siginfo,
        /// The handler.
        handler: Handler,
        /// What was blocked before.
        saved_mask: SigSet,
    },
    /// End the process.
    Kill {
        /// By which signal.
        signal: Signal,
        /// About it, for the log.
        info: Siginfo,
        /// A core image would be written.
        core: bool,
    },
    /// Stop the process until SIGCONT.
    Stop(Signal),
}

/// What one thread knows of signals.
#[derive(Clone, Debug)]
pub struct ThreadSignals {
    /// Blocked signals.
    mask: SigSet,
    /// The mask before rt_sigsuspend, ppoll, epoll_pwait or KVM_RUN changed it for the call.
    suspended: Option<SigSet>,
    /// Signals sent to this thread.
    pub pending: Pending,
    /// The alternate stack.
    pub alt_stack: AltStack,
}

impl core::default::Default for ThreadSignals {
    fn default() -> Self {
        Self::new(SigSet::EMPTY)
    }
}

impl ThreadSignals {
    /// A new thread that blocks `mask`, which it has from its maker.
    pub const fn new(mask: SigSet) -> Self {
        Self {
            mask: mask.as_mask(),
            suspended: None,
            pending: Pending::new(),
            alt_stack: AltStack::NONE,
        }
    }

    /// What is blocked.
    pub const fn mask(&self) -> SigSet {
        self.mask
    }

    /// Blocks exactly this, as sigreturn does.
    pub const fn set_mask(&mut self, mask: SigSet) {
        self.mask = mask.as_mask();
    }

    /// rt_sigprocmask: SIG_BLOCK (0), SIG_UNBLOCK (1), SIG_SETMASK (2); else `EINVAL`. Answers the
    /// mask before.
    pub fn change_mask(&mut self, how: u32, set: SigSet) -> Result<SigSet, Errno> {
        let old = self.mask;
        self.mask = match how {
            0 => old.or(set),
            1 => old.and(set.complement()),
            2 => set,
            _ => return Err(Errno::EINVAL),
        }
        .as_mask();
        Ok(old)
    }

    /// Blocks `mask` for the length of one call. [`Self::end_suspension`] undoes it, or the delivery
    /// of a signal does: the handler then runs with `mask`, and its frame restores the old one.
    pub const fn suspend_with(&mut self, mask: SigSet) {
        if self.suspended.is_none() {
            self.suspended = Some(self.mask);
        }
        self.mask = mask.as_mask();
    }

    /// The call ended without a signal.
    pub const fn end_suspension(&mut self) {
        if let Some(mask) = self.suspended.take() {
            self.mask = mask;
        }
    }

    /// Whether a signal waits that would do something: a sleep is then interrupted.
    pub fn is_interrupted(&self, shared: &Pending, actions: &Actions) -> bool {
        let mut waiting = self.pending.set.or(shared.set).and(self.mask.complement());
        while let Some(signal) = waiting.first() {
            if !actions.ignores(signal) {
                return true;
            }
            waiting = waiting.without(signal);
        }
        false
    }

    /// Takes the next signal that does something, the thread's own before the process's, and blocks
    /// what its handler wants blocked. `None`: go on, after [`Self::end_suspension`].
    pub fn next_delivery(
        &mut self,
        shared: &mut Pending,
        actions: &mut Actions,
    ) -> Option<Delivery> {
        loop {
            let wanted = self.mask.complement();
            let (signal, info) = self.pending.take(wanted).or_else(|| shared.take(wanted))?;
            match actions.disposition(signal) {
                Disposition::Ignore => {}
                Disposition::Handle(handler) => {
                    return Some(self.enter(signal, info, handler, actions));
                }
                Disposition::Default => match signal.default() {
                    Default::Ignore | Default::Continue => {}
                    Default::Stop => return Some(Delivery::Stop(signal)),
                    Default::Terminate => {
                        return Some(Delivery::Kill {
                            signal,
                            info,
                            core: false,
                        });
                    }
                    Default::Core => {
                        return Some(Delivery::Kill {
                            signal,
                            info,
                            core: true,
                        });
                    }
                },
            }
        }
    }

    /// A fault of the thread itself: if it is blocked or ignored the process cannot go on, so the
    /// default is restored and the signal gets through (force_sig in Linux).
    pub fn force(&mut self, signal: Signal, info: Siginfo, actions: &mut Actions) {
        if self.mask.contains(signal) || actions.disposition(signal) == Disposition::Ignore {
            actions.reset(signal);
            self.mask = self.mask.without(signal);
        }
        self.pending.discard(signal);
        // Cannot fail: it is not a real-time signal, or its queue is empty now.
        let _ = self.pending.send(signal, info);
    }

    fn enter(
        &mut self,
        signal: Signal,
        info: Siginfo,
        handler: Handler,
        actions: &mut Actions,
    ) -> Delivery {
        let saved_mask = self.suspended.take().unwrap_or(self.mask);
        self.mask = self.mask.or(handler.mask);
        if !handler.no_defer {
            self.mask = self.mask.with(signal).as_mask();
        }
        if handler.reset {
            actions.reset(signal);
        }
        Delivery::Handle {
            signal,
            info,
            handler,
            saved_mask,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SigactionAbi, code};
    use super::*;
    use umbra_arm64::Hva;

    fn info(signal: Signal, value: i32) -> Siginfo {
        Siginfo::from_process(signal, code::SI_USER, value, 0)
    }

    fn handled(signals: &[Signal], flags: u64) -> Actions {
        let mut actions = Actions::new();
        for signal in signals {
            let action = SigactionAbi {
                handler: 0x1000,
                flags,
                ..SigactionAbi::default()
            };
            actions.set(*signal, action).unwrap();
        }
        actions
    }

    fn next(t: &mut ThreadSignals, p: &mut Pending, a: &mut Actions) -> Option<(Signal, SigSet)> {
        match t.next_delivery(p, a)? {
            Delivery::Handle {
                signal, saved_mask, ..
            } => Some((signal, saved_mask)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn standard_signals_merge_and_real_time_ones_queue() {
        let rt = Signal::new(40).unwrap();
        let mut p = Pending::new();
        for n in 0..2 {
            p.send(Signal::USR1, info(Signal::USR1, n)).unwrap();
            p.send(rt, info(rt, n)).unwrap();
        }
        let all = SigSet::EMPTY.complement();
        assert_eq!(p.take(all), Some((Signal::USR1, info(Signal::USR1, 0))));
        assert_eq!(p.take(all), Some((rt, info(rt, 0))));
        assert_eq!(p.take(all), Some((rt, info(rt, 1))));
        assert_eq!((p.take(all), p.set()), (None, SigSet::EMPTY));
        for _ in 0..MAX_QUEUED {
            p.send(rt, info(rt, 0)).unwrap();
        }
        assert_eq!(p.send(rt, info(rt, 0)), Err(Errno::EAGAIN));
        p.send(Signal::TERM, info(Signal::TERM, 0)).unwrap();
        p.discard(rt);
        assert_eq!(p.set(), SigSet::EMPTY.with(Signal::TERM));
    }

    #[test]
    fn a_handler_blocks_its_signal_unless_it_says_otherwise() {
        const SA_NODEFER: u64 = 0x4000_0000;
        for (flags, blocked) in [(0, true), (SA_NODEFER, false)] {
            let (mut t, mut p) = (ThreadSignals::default(), Pending::new());
            let mut a = handled(&[Signal::USR1], flags);
            p.send(Signal::USR1, info(Signal::USR1, 1)).unwrap();
            assert!(t.is_interrupted(&p, &a));
            assert_eq!(
                next(&mut t, &mut p, &mut a),
                Some((Signal::USR1, SigSet::EMPTY))
            );
            assert_eq!(t.mask().contains(Signal::USR1), blocked);
            p.send(Signal::USR1, info(Signal::USR1, 2)).unwrap();
            assert_eq!(t.is_interrupted(&p, &a), !blocked);
            assert_eq!(next(&mut t, &mut p, &mut a).is_some(), !blocked);
        }
    }

    #[test]
    fn a_suspended_mask_is_what_the_frame_restores() {
        let (mut t, mut p) = (
            ThreadSignals::new(SigSet::EMPTY.with(Signal::USR1)),
            Pending::new(),
        );
        let mut a = handled(&[Signal::USR1], 0);
        p.send(Signal::USR1, info(Signal::USR1, 1)).unwrap();
        assert_eq!(next(&mut t, &mut p, &mut a), None);
        t.suspend_with(SigSet::EMPTY);
        let old = SigSet::EMPTY.with(Signal::USR1);
        assert_eq!(next(&mut t, &mut p, &mut a), Some((Signal::USR1, old)));
        t.set_mask(old);
        t.suspend_with(SigSet::EMPTY);
        t.end_suspension();
        assert_eq!(t.mask(), old);
    }

    #[test]
    fn defaults_kill_stop_or_vanish() {
        let (mut t, mut p, mut a) = (ThreadSignals::default(), Pending::new(), Actions::new());
        p.send(Signal::WINCH, info(Signal::WINCH, 1)).unwrap();
        assert!(!t.is_interrupted(&p, &a));
        assert_eq!(t.next_delivery(&mut p, &mut a), None);
        p.send(Signal::TSTP, info(Signal::TSTP, 1)).unwrap();
        assert_eq!(
            t.next_delivery(&mut p, &mut a),
            Some(Delivery::Stop(Signal::TSTP))
        );
        for (signal, core) in [
            (Signal::TERM, false),
            (Signal::ABRT, true),
            (Signal::KILL, false),
        ] {
            t.set_mask(
                SigSet::EMPTY
                    .complement()
                    .without(Signal::TERM)
                    .without(Signal::ABRT),
            );
            p.send(signal, info(signal, 1)).unwrap();
            let kill = Delivery::Kill {
                signal,
                info: info(signal, 1),
                core,
            };
            assert_eq!(t.next_delivery(&mut p, &mut a), Some(kill));
        }
    }

    #[test]
    fn a_reset_handler_runs_once() {
        let (mut t, mut p) = (ThreadSignals::default(), Pending::new());
        let mut a = handled(&[Signal::USR1], 0x8000_0000);
        p.send(Signal::USR1, info(Signal::USR1, 1)).unwrap();
        assert!(next(&mut t, &mut p, &mut a).is_some());
        assert_eq!(a.disposition(Signal::USR1), Disposition::Default);
    }

    #[test]
    fn a_forced_fault_cannot_be_blocked() {
        let (mut t, mut p) = (
            ThreadSignals::new(SigSet::EMPTY.with(Signal::SEGV)),
            Pending::new(),
        );
        let mut a = handled(&[Signal::SEGV], 0);
        let fault = Siginfo::fault(Signal::SEGV, code::SEGV_MAPERR, Hva::new(8));
        t.force(Signal::SEGV, fault, &mut a);
        let kill = Delivery::Kill {
            signal: Signal::SEGV,
            info: fault,
            core: true,
        };
        assert_eq!(t.next_delivery(&mut p, &mut a), Some(kill));
        // Not blocked: the handler gets it.
        let mut t = ThreadSignals::default();
        let mut a = handled(&[Signal::SEGV], 0);
        t.force(Signal::SEGV, fault, &mut a);
        assert!(next(&mut t, &mut p, &mut a).is_some());
    }

    #[test]
    fn masks_change_as_asked() {
        let usr1 = SigSet::EMPTY.with(Signal::USR1);
        let mut t = ThreadSignals::default();
        assert_eq!(t.change_mask(0, usr1.with(Signal::KILL)), Ok(SigSet::EMPTY));
        assert_eq!(t.change_mask(1, SigSet::EMPTY), Ok(usr1));
        assert_eq!(t.change_mask(1, usr1), Ok(usr1));
        assert_eq!(t.change_mask(2, usr1), Ok(SigSet::EMPTY));
        assert_eq!(t.change_mask(3, usr1), Err(Errno::EINVAL));
    }
}
