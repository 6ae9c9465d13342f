//! Reading and writing system registers by name.
//!
//! With E2H set, the `_EL1` names of SCTLR, TTBRn, TCR, MAIR, VBAR, CPACR, CNTKCTL … and the `_EL0`
//! timer names reach EL2's own registers. A guest's are reached by `_EL12` and `_EL02`, which are
//! spelled by encoding here so that no name can be mistaken for the other (Arm ARM D8.1.8).

/// Reads a system register.
macro_rules! mrs {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading a system register has no effect on memory; the ones read in this crate
        // have no side effects but those their callers want.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register. The caller states, in a `SAFETY` comment, why the write is sound.
macro_rules! msr {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
    }};
}

/// Runs one instruction without operands (a barrier, a cache or TLB operation).
macro_rules! insn {
    ($text:literal) => {
        core::arch::asm!($text, options(nostack, preserves_flags))
    };
    ($text:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!($text, in(reg) value, options(nostack, preserves_flags));
    }};
}

pub(crate) use {insn, mrs, msr};
