//! The FP and SIMD registers. Rust code here is built without them, so what a test puts there stays
//! until somebody else takes it.

use core::arch::global_asm;

/// q0 to q31, then FPCR and FPSR.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fp {
    /// q0 to q31, low half first.
    pub q: [[u64; 2]; 32],
    /// FPCR.
    pub fpcr: u64,
    /// FPSR.
    pub fpsr: u64,
}

global_asm!(
    ".arch armv8-a+fp+simd",
    ".text",
    ".macro FPREGS op",
    ".irp n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30",
    "FPPAIR \\op, \\n, %(\\n + 1)",
    ".endr",
    ".endm",
    ".altmacro",
    ".macro FPPAIR op, a, b",
    "\\op q\\a, q\\b, [x0, #(\\a * 16)]",
    ".endm",
    "umbra_guest_fp_load:",
    "FPREGS ldp",
    "add x0, x0, #512",
    "ldp x1, x2, [x0]",
    "msr fpcr, x1",
    "msr fpsr, x2",
    "ret",
    "umbra_guest_fp_store:",
    "FPREGS stp",
    "mrs x1, fpcr",
    "mrs x2, fpsr",
    "add x0, x0, #512",
    "stp x1, x2, [x0]",
    "ret",
    ".noaltmacro",
);

unsafe extern "C" {
    fn umbra_guest_fp_load(from: &Fp);
    fn umbra_guest_fp_store(to: &mut Fp);
}

impl Fp {
    /// A value of its own for each register.
    pub fn pattern(seed: u64) -> Self {
        let mut q = [[0; 2]; 32];
        for (n, q) in (1u64..).zip(&mut q) {
            *q = [seed.rotate_left(n as u32) ^ n, seed.wrapping_mul(n * 2 + 1)];
        }
        Fp {
            q,
            // Flush to zero and default NaN; cumulative underflow and inexact.
            fpcr: 3 << 24,
            fpsr: 1 << 3 | 1 << 4,
        }
    }

    /// Puts these values into the registers.
    pub fn load(&self) {
        // SAFETY: reads the structure alone; Rust code uses none of the registers written.
        unsafe { umbra_guest_fp_load(self) }
    }

    /// The values in the registers.
    pub fn stored() -> Self {
        let mut fp = Fp {
            q: [[0; 2]; 32],
            fpcr: 0,
            fpsr: 0,
        };
        // SAFETY: writes the structure alone.
        unsafe { umbra_guest_fp_store(&mut fp) }
        fp
    }
}
