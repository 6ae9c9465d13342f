//! One AT instruction under registers of any content.
//!
//! ```text
//!   MMU off ─► registers ─► TLBI ─► PAN, SCTLR_EL2 ─► AT ─► PAR_EL1 ─┬─► SCTLR_EL2, HCR_EL2 as before
//!                                                        └─ abort: ESR ┘
//! ```
//!
//! In between, code is fetched through the lower half of EL2&0, which maps the image read-only (WXN
//! must not matter) in whichever byte order SCTLR_EL2.EE asks for. No data is touched there.

use core::arch::global_asm;

use umbra_nested::at::Op;

/// The registers and the instruction. The fields' places are known to the code below.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Question {
    /// SCTLR, TCR, TTBR0, TTBR1, MAIR of EL1.
    pub(crate) el1: [u64; 5],
    /// The same of EL2. TTBR0 and the lower half of TCR are replaced by the oracle's own.
    pub(crate) el2: [u64; 5],
    /// HCR_EL2.
    pub(crate) hcr: u64,
    /// VTCR_EL2.
    pub(crate) vtcr: u64,
    /// VTTBR_EL2.
    pub(crate) vttbr: u64,
    /// The address asked about.
    pub(crate) va: u64,
    /// PSTATE.PAN, in place.
    pub(crate) pan: u64,
}

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// PAR_EL1.
    Par(u64),
    /// ESR_EL2 of the exception.
    Abort(u64),
}

/// The bits of TCR_EL2 that the oracle's own half needs: 39 bits of 4 KiB pages.
const OWN_TCR: u64 = 25;
/// TCR_EL2's fields of the lower half: T0SZ, EPD0, caching, TG0, E0PD0.
const LOWER_HALF: u64 = 0xffff | 1 << 55;

global_asm!(
    ".macro STUB instruction",
    "\\instruction, x3",
    "b 7f",
    ".endm",
    ".text",
    ".arch armv8.2-a+pan",
    // x0 = question, x1 = number of the instruction, x2 = TTBR0_EL2. Gives PAR_EL1, ESR_EL2 or 0.
    "umbra_oracle_ask:",
    "adr x4, 6f",
    "add x4, x4, x1, lsl #3",
    "ldp x8, x9, [x0]",
    "msr sctlr_el12, x8",
    "msr tcr_el12, x9",
    "ldp x8, x9, [x0, #16]",
    "msr ttbr0_el12, x8",
    "msr ttbr1_el12, x9",
    "ldp x8, x9, [x0, #32]",
    "msr mair_el12, x8",
    "mov x10, x9", // SCTLR_EL2
    "ldp x8, x9, [x0, #48]",
    "msr tcr_el2, x8",
    "msr ttbr0_el2, x2",
    "ldp x8, x9, [x0, #64]",
    "msr s3_4_c2_c0_1, x8", // TTBR1_EL2
    "msr mair_el2, x9",
    "ldp x8, x9, [x0, #80]",
    "mrs x11, hcr_el2",
    "msr hcr_el2, x8",
    "msr vtcr_el2, x9",
    "ldp x8, x3, [x0, #96]",
    "msr vttbr_el2, x8",
    "ldr x5, [x0, #112]",
    "mrs x6, sctlr_el2",
    "adr x8, 8f",
    "msr tpidr_el2, x8",
    "mov x7, #0",
    "mov x0, #0",
    "isb",
    "tlbi alle1",
    "tlbi alle2",
    "dsb sy",
    "isb",
    "msr s3_0_c4_c2_3, x5", // PAN
    "msr sctlr_el2, x10",
    "isb",
    "br x4",
    "6:",
    "STUB \"at s1e1r\"",
    "STUB \"at s1e1w\"",
    "STUB \"at s1e0r\"",
    "STUB \"at s1e0w\"",
    "STUB \"at s1e1rp\"",
    "STUB \"at s1e1wp\"",
    "STUB \"at s1e2r\"",
    "STUB \"at s1e2w\"",
    "STUB \"at s12e1r\"",
    "STUB \"at s12e1w\"",
    "STUB \"at s12e0r\"",
    "STUB \"at s12e0w\"",
    "7: isb",
    "mrs x0, par_el1",
    "8: msr sctlr_el2, x6",
    "isb",
    "msr hcr_el2, x11",
    "msr tpidr_el2, xzr",
    "msr s3_0_c4_c2_3, xzr",
    "isb",
    "mov x1, x7",
    "ret",
    ".data",
    ".balign 4096",
    // The GiB of the image: block, accessed, read-only, attribute 7; and the same, big-endian.
    "umbra_oracle_little: .quad 0, 0x4000049d",
    ".fill 510, 8, 0",
    "umbra_oracle_big: .quad 0, 0x9d04004000000000",
    ".fill 510, 8, 0",
    ".text",
);

/// What [`umbra_oracle_ask`] gives back in x0 and x1.
#[repr(C)]
struct Raw {
    par: u64,
    esr: u64,
}

unsafe extern "C" {
    fn umbra_oracle_ask(question: *const Question, number: u64, ttbr0: *const u8) -> Raw;
    static umbra_oracle_little: u8;
    static umbra_oracle_big: u8;
}

impl Question {
    /// The same with what the oracle itself needs while it asks: its half of EL2&0, and attribute 7
    /// as write-back memory.
    pub(crate) fn asked(mut self) -> Question {
        self.el2[1] = self.el2[1] & !LOWER_HALF | OWN_TCR;
        self.el2[4] |= 0xff << 56;
        self
    }
}

/// Executes instruction number `number` of [`Op::TABLE`] under the registers of `question`, which must
/// be [`Question::asked`].
pub(crate) fn ask(question: &Question, number: usize) -> Answer {
    assert!(number < Op::TABLE.len());
    let big_endian = question.el2[0] >> 25 & 1 != 0;
    let own = if big_endian {
        &raw const umbra_oracle_big
    } else {
        &raw const umbra_oracle_little
    };
    // SAFETY: the code runs under its own half of EL2&0, touches no memory but the question before the
    // MMU is on, and restores every register that Rust's execution depends on. The walks that the
    // instruction makes may write to the pool (access flags), where no Rust object is.
    let raw = unsafe { umbra_oracle_ask(question, number as u64, own) };
    match raw.esr {
        0 => Answer::Par(raw.par),
        esr => Answer::Abort(esr),
    }
}
