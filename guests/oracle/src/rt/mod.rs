//! The machine for the oracle: EL2 of QEMU's `virt` board, and nothing below or beside it.
//!
//! What always holds: E2H is set, the MMU of EL2 is off, interrupts are masked, and only CPU 0 runs.
//! [`ask`] turns the MMU on for one AT and off again, so no Rust code ever runs under registers that
//! a case chose. Tables lie in [`POOL`], which no Rust object shares.

mod boot;
mod heap;
mod instruction;

use core::arch::asm;
use core::fmt;

pub(crate) use instruction::{Answer, Question, ask};

/// Where tables lie: on a boundary of every block size below 2 GiB, in RAM that nothing else uses.
pub(crate) const POOL: u64 = 0x8000_0000;
/// Bytes of the pool.
pub(crate) const POOL_BYTES: u64 = 4 << 20;

/// Data register of the board's PL011.
const UART: *mut u32 = 0x0900_0000 as *mut u32;

/// Whether a word lies in the pool.
pub(crate) fn in_pool(at: u64) -> bool {
    at.is_multiple_of(8) && (POOL..POOL + POOL_BYTES).contains(&at)
}

/// The word at `at`, which must lie in the pool.
pub(crate) fn read(at: u64) -> u64 {
    assert!(in_pool(at), "{at:#x} is not in the pool");
    // SAFETY: the pool is RAM (the machine has at least 2 GiB) that no Rust object lies in.
    unsafe { (at as *const u64).read_volatile() }
}

/// Writes the word at `at`, which must lie in the pool.
pub(crate) fn write(at: u64, word: u64) {
    assert!(in_pool(at), "{at:#x} is not in the pool");
    // SAFETY: as for reading.
    unsafe { (at as *mut u64).write_volatile(word) };
}

struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the PL011 of the board; QEMU's takes every byte at once.
            unsafe { UART.write_volatile(byte.into()) };
        }
        Ok(())
    }
}

/// Prints.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(&mut Uart, text);
}

/// Prints a line.
macro_rules! println {
    ($($text:tt)*) => {
        $crate::rt::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use println;

/// A semihosting call (Arm semihosting 2.0, "The semihosting interface").
fn semihosting(operation: u64, parameter: *mut u64) -> u64 {
    let result;
    // SAFETY: the caller's block is what the operation asks for; QEMU reads and writes it alone.
    unsafe {
        asm!("hlt #0xf000", inout("x0") operation => result, in("x1") parameter, options(nostack));
    }
    result
}

/// The words of the command line; SYS_GET_CMDLINE gives QEMU's `-append` behind the kernel's name.
pub(crate) fn command_line(buffer: &mut [u8; 512]) -> &str {
    let mut block = [buffer.as_mut_ptr() as u64, buffer.len() as u64];
    if semihosting(0x15, block.as_mut_ptr()) != 0 {
        return "";
    }
    let length = (block[1] as usize).min(buffer.len());
    core::str::from_utf8(&buffer[..length]).unwrap_or_default()
}

/// Ends the machine with this status (SYS_EXIT, ADP_Stopped_ApplicationExit).
pub(crate) fn exit(status: u64) -> ! {
    let mut block = [0x2_0026, status];
    semihosting(0x18, block.as_mut_ptr());
    loop {
        core::hint::spin_loop();
    }
}

/// The machine's ID register with op0=3, op1=0, CRn=0, CRm=7, op2=`op2`, or one of CRm=6 if `isar`.
pub(crate) fn id_register(isar: bool, op2: u8) -> u64 {
    macro_rules! read {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: reading an ID register changes nothing.
            unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }};
    }
    match (isar, op2) {
        (false, 0) => read!("id_aa64mmfr0_el1"),
        (false, 1) => read!("id_aa64mmfr1_el1"),
        (false, 2) => read!("id_aa64mmfr2_el1"),
        (true, 0) => read!("id_aa64isar0_el1"),
        (true, 1) => read!("id_aa64isar1_el1"),
        (true, 2) => read!("s3_0_c0_c6_2"),
        _ => 0,
    }
}
