//! The virtual CPU interface of this CPU: ICH_* registers.

use crate::regs::{insn, mrs, msr};

/// List registers that any implementation can have.
pub const MAX_LRS: usize = 16;

/// What ICH_VTR_EL2 says this machine has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// List registers.
    pub list_registers: usize,
    /// Priority bits.
    pub priority_bits: u32,
    /// INTID bits.
    pub id_bits: u32,
}

/// ICH_VTR_EL2.
pub fn vtr() -> u64 {
    mrs!("s3_4_c12_c11_1")
}

/// What ICH_VTR_EL2 says.
pub fn limits() -> Limits {
    let vtr = mrs!("s3_4_c12_c11_1");
    Limits {
        list_registers: (vtr & 0x1f) as usize + 1,
        priority_bits: (vtr >> 29 & 7) as u32 + 1,
        id_bits: if vtr >> 23 & 7 == 1 { 24 } else { 16 },
    }
}

macro_rules! each_lr {
    ($m:ident) => {
        $m!(0, "s3_4_c12_c12_0");
        $m!(1, "s3_4_c12_c12_1");
        $m!(2, "s3_4_c12_c12_2");
        $m!(3, "s3_4_c12_c12_3");
        $m!(4, "s3_4_c12_c12_4");
        $m!(5, "s3_4_c12_c12_5");
        $m!(6, "s3_4_c12_c12_6");
        $m!(7, "s3_4_c12_c12_7");
        $m!(8, "s3_4_c12_c13_0");
        $m!(9, "s3_4_c12_c13_1");
        $m!(10, "s3_4_c12_c13_2");
        $m!(11, "s3_4_c12_c13_3");
        $m!(12, "s3_4_c12_c13_4");
        $m!(13, "s3_4_c12_c13_5");
        $m!(14, "s3_4_c12_c13_6");
        $m!(15, "s3_4_c12_c13_7");
    };
}

/// Reads list register `n`.
pub fn read_lr(n: usize) -> u64 {
    let mut value = 0;
    macro_rules! read {
        ($n:literal, $name:literal) => {
            if n == $n {
                value = mrs!($name);
            }
        };
    }
    each_lr!(read);
    value
}

/// Writes list register `n`.
pub fn write_lr(n: usize, value: u64) {
    macro_rules! write {
        ($n:literal, $name:literal) => {
            if n == $n {
                // SAFETY: affects virtual interrupts only.
                unsafe { msr!($name, value) };
            }
        };
    }
    each_lr!(write);
}

/// Reads ICH_ELRSR_EL2: a bit per empty list register.
pub fn empty_lrs() -> u64 {
    mrs!("s3_4_c12_c11_5")
}

/// Reads ICH_HCR_EL2.
pub fn read_hcr() -> u64 {
    mrs!("s3_4_c12_c11_0")
}

/// Writes ICH_HCR_EL2. With En clear, nothing virtual is signalled.
pub fn write_hcr(value: u64) {
    // SAFETY: affects virtual interrupts only.
    unsafe {
        msr!("s3_4_c12_c11_0", value);
        insn!("isb");
    }
}

/// Reads ICH_VMCR_EL2.
pub fn read_vmcr() -> u64 {
    mrs!("s3_4_c12_c11_7")
}

/// Writes ICH_VMCR_EL2.
pub fn write_vmcr(value: u64) {
    // SAFETY: affects virtual interrupts only.
    unsafe { msr!("s3_4_c12_c11_7", value) };
}

macro_rules! each_apr {
    ($m:ident) => {
        $m!(0, "s3_4_c12_c8_0", "s3_4_c12_c9_0");
        $m!(1, "s3_4_c12_c8_1", "s3_4_c12_c9_1");
        $m!(2, "s3_4_c12_c8_2", "s3_4_c12_c9_2");
        $m!(3, "s3_4_c12_c8_3", "s3_4_c12_c9_3");
    };
}

/// Reads the active priorities into `to(group, n, value)`; only as many as the priority bits call for.
#[inline(always)]
pub fn read_aprs(priority_bits: u32, mut to: impl FnMut(usize, u16, u64)) {
    let count = 1 << priority_bits.saturating_sub(5).min(2);
    macro_rules! read {
        ($n:literal, $zero:literal, $one:literal) => {
            if $n < count {
                to(0, $n, mrs!($zero));
                to(1, $n, mrs!($one));
            }
        };
    }
    each_apr!(read);
}

/// Writes the active priorities from `of(group, n)`; only as many as the priority bits call for.
#[inline(always)]
pub fn write_aprs(priority_bits: u32, of: impl Fn(usize, u16) -> u64) {
    let count = 1 << priority_bits.saturating_sub(5).min(2);
    macro_rules! write {
        ($n:literal, $zero:literal, $one:literal) => {
            if $n < count {
                // SAFETY: affects virtual interrupts only.
                unsafe {
                    msr!($zero, of(0, $n));
                    msr!($one, of(1, $n));
                }
            }
        };
    }
    each_apr!(write);
}
