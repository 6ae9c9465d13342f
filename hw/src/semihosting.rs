//! Arm semihosting: what an emulator or a debugger does for the machine that it runs (Arm document
//! "Semihosting for AArch32 and AArch64").
//!
//! Only where the command line says that it is there: without it the instruction is undefined.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

const SYS_OPEN: u64 = 0x01;
const SYS_CLOSE: u64 = 0x02;
const SYS_WRITE: u64 = 0x05;
const SYS_EXIT_EXTENDED: u64 = 0x20;
/// fopen's "wb".
const MODE_WRITE: u64 = 5;
const FAILED: u64 = u64::MAX;
/// Bytes of a file's name, its end marker included.
const NAME: usize = 512;

fn call(operation: u64, block: &[u64]) -> u64 {
    let result;
    // SAFETY: the host reads the words of `block` and the memory that they name, which the callers
    // below borrow, and writes nothing but x0.
    unsafe {
        asm!("hlt #0xf000", inout("x0") operation => result, in("x1") block.as_ptr(), options(nostack));
    }
    result
}

/// Ends the emulator with `status`.
pub fn exit(status: u64) -> ! {
    /// ADP_Stopped_ApplicationExit.
    const APPLICATION_EXIT: u64 = 0x2_0026;
    call(SYS_EXIT_EXTENDED, &[APPLICATION_EXIT, status]);
    crate::psci::stop()
}

/// A file of the host, open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFile(u64);

impl HostFile {
    /// Makes the file, or empties it. `None`: the host refuses, or the name is too long.
    pub fn create(name: &str) -> Option<Self> {
        let mut text = [0u8; NAME];
        text.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        if name.len() == NAME {
            return None;
        }
        let block = [text.as_ptr().addr() as u64, MODE_WRITE, name.len() as u64];
        match call(SYS_OPEN, &block) {
            FAILED => None,
            handle => Some(Self(handle)),
        }
    }

    /// The file that [`HostFile::number`] named.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The host's number for it.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Appends bytes. Returns whether all were written.
    pub fn write(self, bytes: &[u8]) -> bool {
        let block = [self.0, bytes.as_ptr().addr() as u64, bytes.len() as u64];
        call(SYS_WRITE, &block) == 0
    }

    /// Appends words, as they lie in memory. Returns whether all were written.
    pub fn write_words(self, words: &[AtomicU64]) -> bool {
        let bytes = core::mem::size_of_val(words) as u64;
        let block = [self.0, words.as_ptr().addr() as u64, bytes];
        call(SYS_WRITE, &block) == 0
    }

    /// Closes it.
    pub fn close(self) {
        call(SYS_CLOSE, &[self.0]);
    }
}
