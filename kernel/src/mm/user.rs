//! Reading and writing a process's memory from the kernel: the fallible copies of `hw`, with pages
//! brought in where they are missing.

use alloc::vec::Vec;

use umbra_arm64::Hva;
use umbra_hw::copy::{self, Fault};
use umbra_linux::Errno;
use umbra_linux::vma::Prot;

use super::{Mm, MmFault};

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Not there, or not allowed.
    BadAddress,
    /// The memory is broken.
    Poisoned,
}

impl From<Failed> for Errno {
    /// A system call that meets broken memory in its arguments fails as for a bad address, as in Linux.
    /// Firmware is heard soon, as locks may be held. (Whoever tells the two apart asks it at once.)
    fn from(failed: Failed) -> Self {
        if failed == Failed::Poisoned {
            crate::ghes::later();
        }
        Self::EFAULT
    }
}

impl Mm {
    /// Runs `access` until it succeeds or its page cannot be had. The address space must be this
    /// CPU's.
    fn retry<R>(
        &self,
        prot: Prot,
        mut access: impl FnMut() -> Result<R, Fault>,
    ) -> Result<R, Failed> {
        debug_assert!(self.is_loaded(), "a copy through another process's tables");
        let mut last = None;
        loop {
            match access() {
                Ok(value) => return Ok(value),
                Err(Fault::BadAddress) => return Err(Failed::BadAddress),
                Err(Fault::Abort { at, esr }) => {
                    // FSC 0x10–0x1f: an external abort, on the access or on the walk. The page is bad.
                    if esr & 0x30 == 0x10 {
                        // Unless it was the walk of the process's own tables, which are looked at.
                        if esr & 0x3c == 0x14 && self.heal() > 0 {
                            continue;
                        }
                        return Err(Failed::Poisoned);
                    }
                    self.fault(at, prot).map_err(|fault| match fault {
                        MmFault::Poisoned(..) => Failed::Poisoned,
                        _ => Failed::BadAddress,
                    })?;
                    // A fault that comes back although the page is there would never end.
                    if last.replace((at, esr)) == Some((at, esr)) {
                        return Err(Failed::BadAddress);
                    }
                }
            }
        }
    }

    /// Copies from the process. `EFAULT` where it may not read.
    pub(crate) fn read_bytes(&self, from: Hva, to: &mut [u8]) -> Result<(), Errno> {
        Ok(self.retry(Prot::READ, || copy::copy_in(to, from))?)
    }

    /// Copies to the process. `EFAULT` where it may not write.
    pub(crate) fn write_bytes(&self, to: Hva, from: &[u8]) -> Result<(), Errno> {
        Ok(self.retry(Prot::WRITE, || copy::copy_out(to, from))?)
    }

    /// Reads an aligned word of `1 << log2` bytes in one access.
    pub(crate) fn read_word(&self, from: Hva, log2: u8) -> Result<u64, Errno> {
        Ok(self.walk_read(from, log2)?)
    }

    /// As [`Self::read_word`], for whoever has to tell broken memory from memory that is not there.
    pub(crate) fn walk_read(&self, from: Hva, log2: u8) -> Result<u64, Failed> {
        self.retry(Prot::READ, || copy::load(from, log2))
    }

    /// Compare-and-exchange of an aligned 64-bit word; returns what was there.
    pub(crate) fn compare_exchange_u64(
        &self,
        at: Hva,
        expected: u64,
        new: u64,
    ) -> Result<u64, Failed> {
        self.retry(Prot::WRITE, || {
            copy::compare_exchange_u64(at, expected, new)
        })
    }

    /// Reads a string up to its NUL, at most `limit` bytes; `E2BIG` beyond.
    pub(crate) fn read_string(&self, from: Hva, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        let mut at = from;
        let add = |text: &mut Vec<u8>, bytes: &[u8]| {
            text.try_reserve(bytes.len()).map_err(|_| Errno::ENOMEM)?;
            text.extend_from_slice(bytes);
            Ok::<_, Errno>(())
        };
        loop {
            // Up to the end of the page, so that a string may end just before a hole.
            let mut chunk = [0u8; 64];
            let room = (4096 - at.offset_in(4096)).min(chunk.len() as u64) as usize;
            self.read_bytes(at, &mut chunk[..room])?;
            if let Some(end) = chunk[..room].iter().position(|&byte| byte == 0) {
                add(&mut text, &chunk[..end])?;
                return if text.len() > limit {
                    Err(Errno::E2BIG)
                } else {
                    Ok(text)
                };
            }
            add(&mut text, &chunk[..room])?;
            if text.len() > limit {
                return Err(Errno::E2BIG);
            }
            at = at.checked_add(room as u64).ok_or(Errno::EFAULT)?;
        }
    }
}
