//! Reading and writing a process's memory from the kernel: the fallible copies of `hw`, with pages
//! brought in where they are missing.

use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_hw::copy::{self, Fault};
use umbra_linux::Errno;
use umbra_linux::vma::Prot;

use super::Mm;

impl Mm {
    /// Runs `access` until it succeeds or its page cannot be had. The address space must be this
    /// CPU's.
    fn retry<R>(
        &self,
        prot: Prot,
        mut access: impl FnMut() -> Result<R, Fault>,
    ) -> Result<R, Errno> {
        debug_assert!(self.is_loaded(), "a copy through another process's tables");
        let mut last = None;
        loop {
            match access() {
                Ok(value) => return Ok(value),
                Err(Fault::BadAddress) => return Err(Errno::EFAULT),
                Err(Fault::Abort { at, esr }) => {
                    // FSC 0x10–0x1f: an external abort, on the access or on the walk. The page is bad.
                    if esr & 0x30 == 0x10 {
                        return Err(Errno::EFAULT);
                    }
                    self.fault(at, prot).map_err(|_| Errno::EFAULT)?;
                    // A fault that comes back although the page is there would never end.
                    if last.replace((at, esr)) == Some((at, esr)) {
                        return Err(Errno::EFAULT);
                    }
                }
            }
        }
    }

    /// Copies from the process. `EFAULT` where it may not read.
    pub(crate) fn read_bytes(&self, from: Hva, to: &mut [u8]) -> Result<(), Errno> {
        self.retry(Prot::READ, || copy::copy_in(to, from))
    }

    /// Copies to the process. `EFAULT` where it may not write.
    pub(crate) fn write_bytes(&self, to: Hva, from: &[u8]) -> Result<(), Errno> {
        self.retry(Prot::WRITE, || copy::copy_out(to, from))
    }

    /// Reads an aligned word of `1 << log2` bytes in one access.
    pub(crate) fn read_word(&self, from: Hva, log2: u8) -> Result<u64, Errno> {
        self.retry(Prot::READ, || copy::load(from, log2))
    }

    /// Compare-and-exchange of an aligned 64-bit word; returns what was there.
    pub(crate) fn compare_exchange_u64(
        &self,
        at: Hva,
        expected: u64,
        new: u64,
    ) -> Result<u64, Errno> {
        self.retry(Prot::WRITE, || {
            copy::compare_exchange_u64(at, expected, new)
        })
    }

    /// Reads a string up to its NUL, at most `limit` bytes; `E2BIG` beyond.
    pub(crate) fn read_string(&self, from: Hva, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        let mut at = from;
        loop {
            // Up to the end of the page, so that a string may end just before a hole.
            let mut chunk = [0u8; 64];
            let room = (4096 - at.offset_in(4096)).min(chunk.len() as u64) as usize;
            self.read_bytes(at, &mut chunk[..room])?;
            if let Some(end) = chunk[..room].iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&chunk[..end]);
                return if text.len() > limit {
                    Err(Errno::E2BIG)
                } else {
                    Ok(text)
                };
            }
            text.extend_from_slice(&chunk[..room]);
            if text.len() > limit {
                return Err(Errno::E2BIG);
            }
            at = at.checked_add(room as u64).ok_or(Errno::EFAULT)?;
        }
    }
}
