//! The FP/SIMD registers: umbra never uses them, so they stay with whoever used them last.
//!
//! At most one `FpState` is *loaded* on a CPU. A guest runs with its own loaded (FP is untrapped
//! there); EL0 traps on first use while somebody else's are loaded. A thread that leaves its CPU
//! calls [`save`], so a state is never loaded on two CPUs.

use alloc::boxed::Box;
use core::arch::asm;
use core::cell::UnsafeCell;

use crate::percpu;
use crate::regs::{insn, msr};
use crate::sabotage::{Safeguard, left_out};

/// V0–V31, FPSR and FPCR as values.
#[derive(Clone, Debug, Default)]
#[repr(C, align(16))]
pub struct FpRegs {
    /// V0 to V31, little endian.
    pub v: [u128; 32],
    /// Floating-point status.
    pub fpsr: u64,
    /// Floating-point control.
    pub fpcr: u64,
}

/// The FP registers of a thread or a vCPU, in memory or loaded. Boxed: the hardware side keeps the
/// address while they are loaded, so they must not move.
#[derive(Debug, Default)]
pub struct FpState(Box<UnsafeCell<FpRegs>>);

// SAFETY: the registers are reached through `&mut self`, and by `save` on the CPU that has them
// loaded, which the owner runs before it goes elsewhere.
unsafe impl Send for FpState {}
// SAFETY: `&self` gives no access to the registers.
unsafe impl Sync for FpState {}

impl FpState {
    /// Whether this state is in the registers of this CPU.
    pub fn is_loaded(&self) -> bool {
        percpu::this().fp_owner.get() == self.0.get() as usize
    }

    /// The registers, brought to memory first if they are loaded here.
    pub fn regs(&mut self) -> &mut FpRegs {
        if self.is_loaded() {
            save();
        }
        self.0.get_mut()
    }

    /// Puts this state into the registers, saving the one that was there.
    #[inline]
    pub fn load(&mut self) {
        if !self.is_loaded() {
            self.load_anew();
        }
    }

    #[inline(never)]
    fn load_anew(&mut self) {
        save();
        let base = self.0.get();
        // SAFETY: reads the 528 bytes of `self`; umbra itself has no live FP values (softfloat).
        unsafe {
            asm!(
                ".arch_extension fp",
                "ldp q0, q1, [{b}], #32", "ldp q2, q3, [{b}], #32", "ldp q4, q5, [{b}], #32",
                "ldp q6, q7, [{b}], #32", "ldp q8, q9, [{b}], #32", "ldp q10, q11, [{b}], #32",
                "ldp q12, q13, [{b}], #32", "ldp q14, q15, [{b}], #32", "ldp q16, q17, [{b}], #32",
                "ldp q18, q19, [{b}], #32", "ldp q20, q21, [{b}], #32", "ldp q22, q23, [{b}], #32",
                "ldp q24, q25, [{b}], #32", "ldp q26, q27, [{b}], #32", "ldp q28, q29, [{b}], #32",
                "ldp q30, q31, [{b}], #32",
                "ldp {s}, {c}, [{b}]", "msr fpsr, {s}", "msr fpcr, {c}",
                b = inout(reg) base => _, s = out(reg) _, c = out(reg) _, options(nostack, readonly)
            );
        }
        percpu::this().fp_owner.set(base as usize);
    }
}

impl Drop for FpState {
    fn drop(&mut self) {
        let this = percpu::this();
        if this.fp_owner.get() == self.0.get() as usize {
            this.fp_owner.set(0);
        }
    }
}

/// Writes the loaded state, if any, back to its owner; then nobody's is loaded on this CPU.
pub fn save() {
    let this = percpu::this();
    let owner = this.fp_owner.get();
    if owner == 0 {
        return;
    }
    if left_out(Safeguard::FpSave) {
        this.fp_owner.set(0);
        return;
    }
    // SAFETY: `owner` is the address of a live `FpState`: it is set by `load` and cleared here and
    // in `drop`; the state is loaded on this CPU only, so nobody else reads or writes it meanwhile.
    unsafe {
        asm!(
            ".arch_extension fp",
            "stp q0, q1, [{b}], #32", "stp q2, q3, [{b}], #32", "stp q4, q5, [{b}], #32",
            "stp q6, q7, [{b}], #32", "stp q8, q9, [{b}], #32", "stp q10, q11, [{b}], #32",
            "stp q12, q13, [{b}], #32", "stp q14, q15, [{b}], #32", "stp q16, q17, [{b}], #32",
            "stp q18, q19, [{b}], #32", "stp q20, q21, [{b}], #32", "stp q22, q23, [{b}], #32",
            "stp q24, q25, [{b}], #32", "stp q26, q27, [{b}], #32", "stp q28, q29, [{b}], #32",
            "stp q30, q31, [{b}], #32",
            "mrs {s}, fpsr", "mrs {c}, fpcr", "stp {s}, {c}, [{b}]",
            b = inout(reg) owner => _, s = out(reg) _, c = out(reg) _, options(nostack)
        );
    }
    this.fp_owner.set(0);
}

/// FP untrapped, SVE, SME and trace trapped, whatever firmware left.
pub(crate) fn init_cpu() {
    percpu::this().fp_trap.set(true);
    trap_el0(false);
}

/// CPTR_EL2 of a guest that uses FP and CPACR_EL1 as it likes.
pub(crate) const CPTR_OPEN: u64 = 0b11 << 20;

/// CPTR_EL2 of a guest whose FP use traps at every level (FPEN = 0b00), or whose use of CPACR_EL1.
pub(crate) const fn cptr(fp: bool, cpacr: bool) -> u64 {
    const TCPAC: u64 = 1 << 31;
    let fpen = if fp { 0 } else { CPTR_OPEN };
    if cpacr { fpen | TCPAC } else { fpen }
}

/// Makes CPTR_EL2 a guest's, for the time it runs.
#[inline(never)]
pub(crate) fn trap_guest(cptr: u64) {
    // SAFETY: umbra uses no FP; an ERET follows.
    unsafe { msr!("cptr_el2", cptr) };
}

/// Ends [`trap_guest`].
pub(crate) fn trap_nothing() {
    percpu::this().fp_trap.set(true);
    trap_el0(false);
}

/// Traps FP use at EL0 under TGE (CPTR_EL2.FPEN = 0b01) or not (0b11). Guests are never trapped.
pub(crate) fn trap_el0(trap: bool) {
    let this = percpu::this();
    if this.fp_trap.get() != trap {
        let fpen = if trap { 0b01 } else { 0b11 };
        // SAFETY: CPTR_EL2 (E2H form): FPEN alone; SVE, SME and trace stay trapped as set here.
        unsafe { msr!("cptr_el2", fpen << 20) };
        this.fp_trap.set(trap);
        // SAFETY: a barrier.
        unsafe { insn!("isb") };
    }
}
