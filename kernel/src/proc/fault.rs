//! Exceptions of EL0 that are not system calls: pages to bring in, else signals.

use alloc::sync::Arc;

use umbra_arm64::{Esr, Hva};
use umbra_hw::user::UserFrame;
use umbra_linux::signal::{Siginfo, Signal, code};
use umbra_linux::vma::Prot;

use super::{UserThread, emulate};
use crate::mm::MmFault;
use crate::{poison, sched};

/// Exception classes (Arm ARM, ESR_EL2.EC).
mod ec {
    pub(super) const UNKNOWN: u64 = 0x00;
    pub(super) const WFX: u64 = 0x01;
    pub(super) const SYSTEM: u64 = 0x18;
    pub(super) const FETCH_LOWER: u64 = 0x20;
    pub(super) const PC_ALIGNMENT: u64 = 0x22;
    pub(super) const DATA_LOWER: u64 = 0x24;
    pub(super) const SP_ALIGNMENT: u64 = 0x26;
    pub(super) const FP: u64 = 0x2c;
    pub(super) const BRK: u64 = 0x3c;
}

/// Fault status codes, without the level (ISS.DFSC).
mod fsc {
    pub(super) const TRANSLATION: u64 = 0x04;
    pub(super) const ACCESS_FLAG: u64 = 0x08;
    pub(super) const PERMISSION: u64 = 0x0c;
    pub(super) const EXTERNAL: u64 = 0x10;
    pub(super) const EXTERNAL_WALK: u64 = 0x14;
    pub(super) const ALIGNMENT: u64 = 0x21;
}

/// Handles the exception. Where it becomes a signal, returns the address and the syndrome for the
/// handler's frame.
pub(super) fn handle(
    thread: &Arc<UserThread>,
    frame: &mut UserFrame,
    esr: u64,
    far: u64,
) -> Option<(Hva, u64)> {
    let pc = Hva::new(frame.pc);
    let signal = |signal, code, at: Hva| {
        thread.force(signal, Siginfo::fault(signal, code, at));
        Some((at, esr))
    };
    match esr >> 26 {
        ec::DATA_LOWER => {
            let access = if esr & 1 << 6 != 0 {
                Prot::WRITE
            } else {
                Prot::READ
            };
            // A cache operation reports as a write but needs only to read.
            let access = if esr & 1 << 8 != 0 {
                Prot::READ
            } else {
                access
            };
            abort(thread, esr, Hva::new(untagged(far)), access)
        }
        ec::FETCH_LOWER => abort(thread, esr, Hva::new(far), Prot::EXEC),
        ec::WFX => {
            // WFI would stop the CPU for others: it only gives up the turn.
            frame.pc = frame.pc.wrapping_add(4);
            sched::yield_now();
            None
        }
        ec::SYSTEM if emulate::system(frame, esr) => None,
        ec::UNKNOWN | ec::SYSTEM => signal(Signal::ILL, code::ILL_ILLOPC, pc),
        ec::PC_ALIGNMENT | ec::SP_ALIGNMENT => signal(Signal::BUS, code::BUS_ADRALN, pc),
        ec::FP => signal(Signal::FPE, 0, pc),
        ec::BRK => signal(Signal::TRAP, code::TRAP_BRKPT, pc),
        _ => signal(Signal::ILL, code::ILL_ILLOPC, pc),
    }
}

/// Without the top byte, which EL0 may use for itself (TBI).
fn untagged(addr: u64) -> u64 {
    if addr >> 55 & 1 == 0 {
        addr & !(0xff << 56)
    } else {
        addr
    }
}

fn abort(thread: &UserThread, esr: u64, at: Hva, access: Prot) -> Option<(Hva, u64)> {
    let status = esr & 0x3f;
    let (signal, code) = match status & !3 {
        _ if Esr::new(esr).is_uncontainable() => poison::uncontainable(),
        _ if status == fsc::ALIGNMENT => (Signal::BUS, code::BUS_ADRALN),
        // On the access, or on its walk. Made again, it finds what firmware or a look at the tables has
        // taken out.
        _ if status == fsc::EXTERNAL || status & !3 == fsc::EXTERNAL_WALK => {
            let mm = thread.process.mm();
            let on_walk = status & !3 == fsc::EXTERNAL_WALK;
            if crate::ghes::claim(&mm) || on_walk && mm.heal() > 0 {
                return None;
            }
            thread.memory_error(at);
            return Some((at, esr));
        }
        fsc::TRANSLATION | fsc::ACCESS_FLAG | fsc::PERMISSION => {
            match thread.process.mm().fault(at, access) {
                Ok(()) => {
                    thread.process.mm().follow();
                    return None;
                }
                Err(MmFault::NotMapped) => (Signal::SEGV, code::SEGV_MAPERR),
                Err(MmFault::NotAllowed) => (Signal::SEGV, code::SEGV_ACCERR),
                Err(MmFault::BeyondFile) => (Signal::BUS, code::BUS_ADRERR),
                Err(MmFault::Poisoned(..)) => {
                    if crate::ghes::claim(&thread.process.mm()) {
                        return None;
                    }
                    thread.memory_error(at);
                    return Some((at, esr));
                }
                Err(MmFault::NoMemory) => {
                    log::error!("process {}: out of memory", thread.process.pid);
                    (Signal::KILL, code::SI_KERNEL)
                }
            }
        }
        // Address size, TLB conflict, an unsupported exclusive: nothing that could be mended.
        _ => (Signal::SEGV, code::SEGV_MAPERR),
    };
    thread.force(signal, Siginfo::fault(signal, code, at));
    Some((at, esr))
}
