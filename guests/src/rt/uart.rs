//! Text on the 16550 at 0x0900_0000, one byte a store.
//!
//! The line status is not asked for: a virtual UART takes every byte, and each question would be
//! another exit.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::mem;

/// Transmit holding register of the UART.
pub const BASE: u64 = 0x0900_0000;
/// Scratch register: a byte that the UART keeps for its driver.
pub const SCRATCH: u64 = BASE + 7;

static BUSY: AtomicBool = AtomicBool::new(false);

struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            mem::write8(BASE, byte);
        }
        Ok(())
    }
}

/// Prints, one CPU at a time.
pub fn print(text: fmt::Arguments<'_>) {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let _ = fmt::Write::write_fmt(&mut Uart, text);
    BUSY.store(false, Ordering::Release);
}

/// For a panic, which may have interrupted whoever was printing.
pub(super) fn force_unlock() {
    BUSY.store(false, Ordering::Release);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {
        $crate::rt::uart::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
