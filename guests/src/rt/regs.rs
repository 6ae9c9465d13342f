//! System registers and instructions without operands, by the assembler's names.

/// Reads a system register by its name.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register changes no memory; one that is not there takes an exception,
        // which `expect` catches. Not `pure`: registers change by themselves.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack))
        };
        value
    }};
}

/// Writes a system register by its name, and synchronises.
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: payloads write registers that do not move the memory Rust lives in; those that
        // do (translation) are written by `rt::mmu` alone.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack))
        };
    }};
}

/// Executes an instruction without Rust-visible operands (barriers, hints, cache and TLB operations).
#[macro_export]
macro_rules! op {
    ($text:literal) => {
        // SAFETY: a barrier, a hint or maintenance: it reorders or forgets nothing that Rust
        // relies on, and clobbers no register.
        unsafe { core::arch::asm!($text, options(nostack)) }
    };
    ($text:literal, $operand:expr) => {{
        let operand: u64 = $operand;
        // SAFETY: as above, with one address or value as its operand.
        unsafe { core::arch::asm!(concat!($text, ", {}"), in(reg) operand, options(nostack)) }
    }};
}
