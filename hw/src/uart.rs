//! The PL011 console, polled for output, interrupt-driven for input.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::mmu::{self, Kind, NoTablePages};
use crate::sync::SpinLock;

const DR: usize = 0x00;
/// The flag register's offset.
pub(crate) const FR: usize = 0x18;
const IMSC: usize = 0x38;
const ICR: usize = 0x44;
const FR_RXFE: u32 = 1 << 4;
/// The transmitter is full.
pub(crate) const FR_TXFF: u32 = 1 << 5;

static BASE: AtomicU64 = AtomicU64::new(0);
static LOCK: SpinLock<()> = SpinLock::new("uart", 254, ());

fn register(offset: usize) -> Option<*mut u32> {
    let base = BASE.load(Ordering::Acquire);
    (base != 0).then_some((base as usize + offset) as *mut u32)
}

fn read(offset: usize) -> u32 {
    // SAFETY: a register of the device that `init` mapped.
    register(offset).map_or(0, |at| unsafe { at.read_volatile() })
}

fn write(offset: usize, value: u32) {
    if let Some(at) = register(offset) {
        // SAFETY: as above.
        unsafe { at.write_volatile(value) }
    }
}

/// Maps the device at `pa` and makes it the console.
///
/// # Errors
/// [`NoTablePages`].
pub fn init(pa: u64) -> Result<(), NoTablePages> {
    let base = mmu::map_device(pa, 0x1000, Kind::Device)?;
    BASE.store(base, Ordering::Release);
    Ok(())
}

fn put(byte: u8) {
    while BASE.load(Ordering::Relaxed) != 0 && read(FR) & FR_TXFF != 0 {
        core::hint::spin_loop();
    }
    write(DR, byte.into());
}

/// Writes bytes to the console as they are, one writer at a time.
pub fn write_bytes(bytes: &[u8]) {
    let _guard = LOCK.lock();
    for &byte in bytes {
        put(byte);
    }
}

/// Takes one byte of input, if there is one.
pub fn read_byte() -> Option<u8> {
    (BASE.load(Ordering::Relaxed) != 0 && read(FR) & FR_RXFE == 0).then(|| read(DR) as u8)
}

/// Asks for an interrupt when input arrives.
pub fn enable_input_interrupt() {
    write(ICR, 0x7ff);
    write(IMSC, 1 << 4 | 1 << 6);
}

struct Out;

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

/// Formats to the console, a line feed becoming CR LF.
pub fn print(args: fmt::Arguments<'_>) {
    let _guard = LOCK.lock();
    let _ = fmt::Write::write_fmt(&mut Out, args);
}

/// Formats to the console without its lock: for panics, whose CPU may be the one that holds it.
pub fn print_unlocked(args: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(&mut Out, args);
}
