//! Running a process at EL0.

use crate::boot::HCR_TGE;
use crate::regs::{mrs, msr};
use crate::vectors::{self, CAUSE_IRQ, CAUSE_SERROR, CAUSE_SYNC};
use crate::{fp, guest, percpu};

/// The registers of a thread at EL0. The assembly knows the layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UserFrame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Program counter.
    pub pc: u64,
    /// PSTATE as in SPSR_EL2; only the flags and SSBS, DIT, BTYPE are the thread's to choose.
    pub pstate: u64,
    /// SP_EL0.
    pub sp: u64,
    /// TPIDR_EL0, the thread pointer.
    pub tpidr: u64,
}

const _: () = assert!(core::mem::offset_of!(UserFrame, sp) == 264);

/// PSTATE bits that EL0 may have: N Z C V, TCO, DIT, SSBS, BTYPE, SS is not among them.
pub const USER_PSTATE: u64 = 0xf000_0000 | 1 << 25 | 1 << 24 | 1 << 12 | 0b11 << 10;

impl UserFrame {
    /// A thread that starts at `pc` with stack pointer `sp`.
    pub const fn new(pc: u64, sp: u64) -> Self {
        Self {
            x: [0; 31],
            pc,
            pstate: 0,
            sp,
            tpidr: 0,
        }
    }
}

/// Why EL0 stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserExit {
    /// A synchronous exception: the syndrome and FAR_EL2, read at once.
    Sync {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2.
        far: u64,
    },
    /// A physical interrupt is pending; nothing was acknowledged.
    Irq,
    /// A physical SError with its syndrome.
    SError {
        /// ESR_EL2.
        esr: u64,
    },
}

/// Runs EL0 until its next exception. `fp` are the thread's FP registers, loaded on first use.
pub fn run(frame: &mut UserFrame, fp: &mut fp::FpState) -> UserExit {
    loop {
        let exit = run_once(frame, fp);
        // An FP access with the registers elsewhere (EC 0x07): load them and go on.
        if let UserExit::Sync { esr, .. } = exit
            && esr >> 26 == 0x07
        {
            fp.load();
            continue;
        }
        return exit;
    }
}

fn run_once(frame: &mut UserFrame, fp: &mut fp::FpState) -> UserExit {
    let this = percpu::this();
    guest::set_hcr(this.hcr.get() | HCR_TGE);
    fp::trap_el0(!fp.is_loaded());
    set_vbar(vectors::user_vectors());
    frame.pstate &= USER_PSTATE;
    // SAFETY: the frame is ours for the call and its PSTATE is EL0's (mode bits are zero); EL0 can
    // reach only what TTBR0_EL2 maps for it.
    let cause = unsafe { vectors::umbra_enter_user(frame) };
    match cause {
        CAUSE_SYNC => UserExit::Sync {
            esr: mrs!("esr_el2"),
            far: mrs!("far_el2"),
        },
        CAUSE_IRQ => UserExit::Irq,
        CAUSE_SERROR => UserExit::SError {
            esr: mrs!("esr_el2"),
        },
        other => unreachable!("the vectors leave one of three causes, not {other}"),
    }
}

/// Selects the vector table; an ERET follows, which synchronises.
pub(crate) fn set_vbar(vbar: u64) {
    let this = percpu::this();
    if this.vbar.get() != vbar {
        // SAFETY: one of the two tables of `vectors`.
        unsafe { msr!("vbar_el2", vbar) };
        this.vbar.set(vbar);
    }
}
