//! One thread of a process, apart from its registers.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use umbra_hw::sync::SpinLock;
use umbra_linux::Errno;
use umbra_linux::seccomp::Chain;
use umbra_linux::signal::{AltStack, SigSet, Siginfo, Signal, ThreadSignals};
use umbra_linux::wait::Pid;

use super::Process;
use super::process::prod;
use crate::sched;

/// When a thread hears of a memory error that somebody else found (prctl(2), PR_MCE_KILL): when it
/// meets it.
pub(crate) const PR_MCE_KILL_LATE: u8 = 0;
/// At once.
pub(crate) const PR_MCE_KILL_EARLY: u8 = 1;
/// As the machine has it, which is late.
pub(crate) const PR_MCE_KILL_DEFAULT: u8 = 2;

/// A thread of a process.
pub(crate) struct UserThread {
    pub(crate) tid: Pid,
    pub(crate) process: Arc<Process>,
    scheduled: Arc<sched::Thread>,
    pub(super) signals: SpinLock<ThreadSignals>,
    /// There may be a signal to deliver, or an end to meet: the cheap half of
    /// [`Self::signal_pending`].
    attention: AtomicBool,
    /// This thread has to go although the process stays (execve by another).
    pub(super) doomed: AtomicBool,
    /// The word to clear and wake at the end (CLONE_CHILD_CLEARTID); 0 for none.
    pub(crate) clear_tid: AtomicU64,
    /// The call in progress was interrupted and may be started again after the handler.
    restartable: AtomicBool,
    /// The mask has to come back after the call in progress.
    suspended: AtomicBool,
    /// PR_MCE_KILL_LATE, _EARLY or _DEFAULT: when it hears of memory errors that somebody else found.
    pub(crate) memory_error_word: AtomicU8,
    /// What it may call, if it has said so; inherited.
    pub(crate) filters: SpinLock<Option<Chain>>,
    /// There are filters: the cheap half.
    pub(crate) is_filtered: AtomicBool,
    /// Set by PR_SET_NAME.
    pub(crate) name: SpinLock<[u8; 16]>,
}

impl UserThread {
    pub(super) fn new(
        tid: Pid,
        process: Arc<Process>,
        scheduled: Arc<sched::Thread>,
        signals: ThreadSignals,
        name: [u8; 16],
    ) -> Arc<Self> {
        Arc::new(Self {
            tid,
            process,
            scheduled,
            signals: SpinLock::new("thread signals", 42, signals),
            attention: AtomicBool::new(true),
            doomed: AtomicBool::new(false),
            clear_tid: AtomicU64::new(0),
            restartable: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            memory_error_word: AtomicU8::new(PR_MCE_KILL_DEFAULT),
            filters: SpinLock::new("filters", 113, None),
            is_filtered: AtomicBool::new(false),
            name: SpinLock::new("thread name", 108, name),
        })
    }

    /// Gives the thread these filters of its system calls.
    pub(crate) fn filter(&self, chain: Chain) {
        let old = self.filters.lock().replace(chain);
        self.is_filtered.store(true, Ordering::Relaxed);
        drop(old);
    }

    /// The thread that the scheduler knows.
    pub(crate) fn scheduled(&self) -> &Arc<sched::Thread> {
        &self.scheduled
    }

    /// Whether a signal waits that the thread would act on, or its end: whatever it does for long
    /// has to stop with `EINTR`. Cheap while nothing has happened.
    pub(crate) fn signal_pending(&self) -> bool {
        if !self.attention.load(Ordering::Acquire) {
            return false;
        }
        if self.must_go() {
            return true;
        }
        let shared = self.process.signals.lock();
        let own = self.signals.lock();
        let pending = own.is_interrupted(&shared.shared, &shared.actions);
        if !pending {
            // Under both locks: a sender adds its signal first, and sets this after.
            self.attention.store(false, Ordering::Release);
            // The end is announced without these locks.
            if self.must_go() {
                self.attention.store(true, Ordering::Release);
                return true;
            }
        }
        pending
    }

    /// Whether the thread may not go back to EL0.
    pub(super) fn must_go(&self) -> bool {
        self.doomed.load(Ordering::Acquire) || self.process.is_dying()
    }

    /// Makes the thread, which is the current one, look at its signals before it leaves the kernel.
    pub(super) fn mark(&self) {
        self.attention.store(true, Ordering::Release);
    }

    /// Makes the thread look at its signals, wherever it is.
    pub(super) fn alert(&self) {
        self.attention.store(true, Ordering::Release);
        prod(&self.scheduled);
    }

    /// The error of a call that a signal interrupted and that may be started again (SA_RESTART).
    pub(crate) fn interrupted(&self) -> Errno {
        self.restartable.store(true, Ordering::Relaxed);
        Errno::EINTR
    }

    /// Takes the mark that [`Self::interrupted`] left.
    pub(super) fn take_restartable(&self) -> bool {
        self.restartable.swap(false, Ordering::Relaxed)
    }

    /// Blocks exactly `mask` (bit n - 1 for signal n) and answers what was blocked before.
    pub(crate) fn replace_mask(&self, mask: u64) -> u64 {
        let mut own = self.signals.lock();
        let old = own.mask();
        own.set_mask(SigSet::from_bits(mask));
        drop(own);
        self.mask_changed();
        old.bits()
    }

    /// Blocks `mask` for the length of a call, after which the loop restores the old one unless a
    /// handler's frame does.
    pub(crate) fn suspend_with(&self, mask: SigSet) {
        self.signals.lock().suspend_with(mask);
        self.suspended.store(true, Ordering::Relaxed);
        self.mask_changed();
    }

    /// No handler took the mask along: restores it. Returns whether there was one to restore.
    pub(super) fn end_suspension(&self) -> bool {
        if !self.suspended.swap(false, Ordering::Relaxed) {
            return false;
        }
        self.signals.lock().end_suspension();
        self.mask_changed();
        true
    }

    /// rt_sigprocmask. Answers the mask before.
    pub(crate) fn change_mask(&self, how: u32, set: SigSet) -> Result<SigSet, Errno> {
        let old = self.signals.lock().change_mask(how, set)?;
        self.mask_changed();
        Ok(old)
    }

    /// Signals sent to this thread or its process, blocked or not.
    pub(crate) fn waiting_signals(&self) -> SigSet {
        let shared = self.process.signals.lock();
        let own = self.signals.lock();
        own.pending.set().or(shared.shared.set())
    }

    /// Takes a waiting signal of `wanted` (rt_sigtimedwait).
    pub(crate) fn take_signal(&self, wanted: SigSet) -> Option<(Signal, Siginfo)> {
        let mut shared = self.process.signals.lock();
        let mut own = self.signals.lock();
        own.pending
            .take(wanted)
            .or_else(|| shared.shared.take(wanted))
    }

    /// sigaltstack of a thread whose stack pointer is `sp`. Answers the stack before. `EPERM` while
    /// the thread is on it.
    pub(crate) fn change_alt_stack(
        &self,
        sp: u64,
        new: Option<AltStack>,
    ) -> Result<AltStack, Errno> {
        let mut own = self.signals.lock();
        let old = own.alt_stack.reported(sp);
        if let Some(new) = new {
            if own.alt_stack.holds(sp) {
                return Err(Errno::EPERM);
            }
            own.alt_stack = new.requested()?;
        }
        Ok(old)
    }

    /// exit: this thread ends, the process goes on.
    pub(crate) fn retire(&self) {
        self.doomed.store(true, Ordering::Release);
        self.mark();
    }

    /// What is blocked.
    pub(crate) fn mask(&self) -> SigSet {
        self.signals.lock().mask()
    }

    /// After a change of the mask: this thread looks again, and if it now blocks what was sent to
    /// the process, another has to look.
    pub(crate) fn mask_changed(&self) {
        self.attention.store(true, Ordering::Release);
        let waiting = self.process.signals.lock().shared.set();
        if waiting.and(self.mask()).is_empty() {
            return;
        }
        for thread in self.process.threads() {
            if thread.tid != self.tid {
                thread.alert();
            }
        }
    }
}
