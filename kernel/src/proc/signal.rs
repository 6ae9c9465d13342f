//! Sending signals, and delivering them on the way back to EL0.

use alloc::sync::Arc;

use umbra_arm64::Hva;
use umbra_hw::fp::FpState;
use umbra_hw::user::UserFrame;
use umbra_linux::Errno;
use umbra_linux::signal::{
    Delivery, FpRegs, Frame, HandlerEntry, RT_SIGFRAME_BYTES, Restored, SigactionAbi, Siginfo,
    Signal, UserRegs, code,
};
use umbra_linux::wait::{Ending, Pid};

use super::{Process, UserThread};

/// Distance from the interrupted system call's next instruction back to its SVC.
const SVC_BYTES: u64 = 4;

/// A system call that a signal may have interrupted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupted {
    /// x0 before the call, to start it again.
    pub(super) x0: u64,
}

impl Process {
    /// Sends a signal to the process as a whole: any of its threads may take it.
    pub(crate) fn send(&self, signal: Signal, info: Siginfo) -> Result<(), Errno> {
        {
            let mut signals = self.signals.lock();
            if signals.actions.ignores(signal) && !signal.is_absolute() {
                return Ok(());
            }
            signals.shared.send(signal, info)?;
        }
        let threads = self.threads();
        let willing = threads
            .iter()
            .find(|thread| !thread.mask().contains(signal));
        match willing {
            Some(thread) => thread.alert(),
            // Everybody blocks it: somebody may be waiting for it by name (rt_sigtimedwait).
            None => threads.iter().for_each(|thread| thread.alert()),
        }
        Ok(())
    }

    /// rt_sigaction.
    pub(crate) fn set_action(
        &self,
        signal: Signal,
        new: Option<SigactionAbi>,
    ) -> Result<SigactionAbi, Errno> {
        let (old, ignored) = {
            let mut signals = self.signals.lock();
            let old = signals.actions.get(signal);
            if let Some(new) = new {
                signals.actions.set(signal, new)?;
            }
            let ignored = new.is_some() && signals.actions.ignores(signal);
            if ignored {
                signals.shared.discard(signal);
            }
            (old, ignored)
        };
        if ignored {
            for thread in self.threads() {
                thread.signals.lock().pending.discard(signal);
            }
        }
        Ok(old)
    }

    /// Ends the process: its threads leave as soon as they can. The first ending counts.
    pub(crate) fn end(&self, ending: Ending) {
        self.ending.lock().get_or_insert(ending);
        self.dying
            .store(true, core::sync::atomic::Ordering::Release);
        for thread in self.threads() {
            thread.alert();
        }
    }
}

/// Sends a signal to every living process of a group.
pub(crate) fn send_to_group(group: Pid, signal: Signal, info: Siginfo) -> Result<(), Errno> {
    let members: alloc::vec::Vec<Pid> = super::family(|family| family.members(group).collect());
    let mut found = false;
    for pid in members {
        if let Some(process) = super::find(pid) {
            found = true;
            process.send(signal, info)?;
        }
    }
    if found { Ok(()) } else { Err(Errno::ESRCH) }
}

impl UserThread {
    /// Sends a signal to this thread alone.
    pub(crate) fn send(&self, signal: Signal, info: Siginfo) -> Result<(), Errno> {
        {
            let signals = self.process.signals.lock();
            let mut own = self.signals.lock();
            if signals.actions.ignores(signal) && !own.mask().contains(signal) {
                return Ok(());
            }
            own.pending.send(signal, info)?;
        }
        self.alert();
        Ok(())
    }

    /// A fault of the thread itself: gets through even if it is blocked.
    pub(crate) fn force(&self, signal: Signal, info: Siginfo) {
        {
            let mut signals = self.process.signals.lock();
            self.signals
                .lock()
                .force(signal, info, &mut signals.actions);
        }
        self.mark();
    }

    /// The thread consumed a memory error at `addr`, at EL0 or through a guest that it runs. It gets
    /// through even if it is blocked or ignored: the access would only be made again.
    pub(crate) fn memory_error(&self, addr: Hva) {
        let info = Siginfo::memory_error(code::BUS_MCEERR_AR, addr, 12);
        self.force(Signal::BUS, info);
    }

    fn next_delivery(&self) -> Option<Delivery> {
        let mut signals = self.process.signals.lock();
        let signals = &mut *signals;
        self.signals
            .lock()
            .next_delivery(&mut signals.shared, &mut signals.actions)
    }

    /// Acts on what waits, before the thread goes back to EL0. Returns false if it must not.
    /// `interrupted` is the system call it comes from, if that ended with `EINTR`; `fault` the
    /// address and syndrome of the exception it comes from.
    pub(super) fn deliver(
        self: &Arc<Self>,
        frame: &mut UserFrame,
        fp: &mut FpState,
        mut interrupted: Option<Interrupted>,
        fault: Option<(Hva, u64)>,
    ) -> bool {
        loop {
            if !self.signal_pending() {
                if self.end_suspension() {
                    continue;
                }
                break;
            }
            if self.must_go() {
                return false;
            }
            match self.next_delivery() {
                None => {}
                Some(Delivery::Handle {
                    signal,
                    info,
                    handler,
                    saved_mask,
                }) => {
                    if let Some(call) = interrupted.take()
                        && handler.restart
                    {
                        frame.pc = frame.pc.wrapping_sub(SVC_BYTES);
                        frame.x[0] = call.x0;
                    }
                    let entry = HandlerEntry {
                        signal,
                        info,
                        handler,
                        saved_mask,
                        fault,
                        trampoline: Hva::new(
                            self.process
                                .trampoline
                                .load(core::sync::atomic::Ordering::Relaxed),
                        ),
                    };
                    if self.enter_handler(&entry, frame, fp).is_err() {
                        self.process.end(Ending::Killed {
                            signal: Signal::SEGV,
                            core: true,
                        });
                        return false;
                    }
                }
                Some(Delivery::Kill { signal, core, info }) => {
                    log::debug!(
                        "process {} thread {} killed by {signal:?}, code {}, pc {:#x}",
                        self.process.pid,
                        self.tid,
                        info.code,
                        frame.pc
                    );
                    self.process.end(Ending::Killed { signal, core });
                    return false;
                }
                // Job control needs a parent that watches for it; umbra's processes go on.
                Some(Delivery::Stop(_)) => {}
            }
        }
        if let Some(call) = interrupted {
            // No handler ran: the call starts again and nobody notices.
            frame.pc = frame.pc.wrapping_sub(SVC_BYTES);
            frame.x[0] = call.x0;
        }
        true
    }

    fn enter_handler(
        &self,
        entry: &HandlerEntry,
        frame: &mut UserFrame,
        fp: &mut FpState,
    ) -> Result<(), Errno> {
        let alt = self.signals.lock().alt_stack;
        let built = Frame::build(entry, &regs_of(frame), &fp_of(fp), &alt)?;
        self.process.mm().write_bytes(built.addr, &built.bytes)?;
        put_regs(frame, &built.regs);
        Ok(())
    }

    /// rt_sigreturn: takes the registers back from the frame at the stack pointer.
    pub(crate) fn sigreturn(&self, frame: &mut UserFrame, fp: &mut FpState) -> Result<(), Errno> {
        let mut bytes = alloc::vec![0u8; RT_SIGFRAME_BYTES];
        self.process
            .mm()
            .read_bytes(Hva::new(frame.sp), &mut bytes)?;
        let restored = Restored::parse(&bytes)?;
        put_regs(frame, &restored.regs);
        let regs = fp.regs();
        regs.fpsr = restored.fp.fpsr.into();
        regs.fpcr = restored.fp.fpcr.into();
        for (to, from) in regs.v.iter_mut().zip(&restored.fp.v) {
            *to = u128::from(from[0]) | u128::from(from[1]) << 64;
        }
        {
            let mut own = self.signals.lock();
            own.set_mask(restored.mask);
            if let Some(alt) = restored.alt_stack {
                own.alt_stack = alt;
            }
        }
        self.mask_changed();
        Ok(())
    }

    /// A bad frame, or another end that is the thread's own doing.
    pub(crate) fn force_segv(&self) {
        self.force(Signal::SEGV, Siginfo::plain(Signal::SEGV, code::SI_KERNEL));
    }
}

fn regs_of(frame: &UserFrame) -> UserRegs {
    UserRegs {
        x: frame.x,
        sp: frame.sp,
        pc: frame.pc,
        pstate: frame.pstate,
    }
}

fn put_regs(frame: &mut UserFrame, regs: &UserRegs) {
    frame.x = regs.x;
    frame.sp = regs.sp;
    frame.pc = regs.pc;
    frame.pstate = regs.pstate;
}

fn fp_of(fp: &mut FpState) -> FpRegs {
    let regs = fp.regs();
    let mut out = FpRegs {
        fpsr: regs.fpsr as u32,
        fpcr: regs.fpcr as u32,
        v: [[0; 2]; 32],
    };
    for (to, from) in out.v.iter_mut().zip(&regs.v) {
        *to = [*from as u64, (*from >> 64) as u64];
    }
    out
}
