//! What an area's pages come from, when they are not simply anonymous.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use umbra_arm64::Pa;
use umbra_frames::{FRAME, Owner};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_linux::Errno;

use super::MmFault;
use crate::mem;

/// The bytes of a file, for mappings.
pub(crate) trait FilePages: Send + Sync {
    /// Fills `page` with the file's bytes from `offset` on; zeroes beyond the end. Returns false
    /// where the whole page lies beyond the end (SIGBUS).
    fn read_page(&self, offset: u64, page: &mut [u8]) -> bool;

    /// The page at `offset` itself, for shared mappings: a page of table memory that the file holds.
    fn shared_page(&self, _offset: u64) -> Result<Pa, MmFault> {
        Err(MmFault::BeyondFile)
    }

    /// Whether a shared mapping may be written; from then on it may be any time. `ENODEV`: the file's
    /// bytes are not kept in pages that could be mapped.
    fn share_for_writing(&self) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }
}

/// Reads bytes of a page of table memory. Who has it mapped may change them meanwhile.
pub(crate) fn read_page(page: Pa, offset: usize, out: &mut [u8]) {
    let words = umbra_hw::mem::table(page);
    for (at, byte) in (offset..).zip(out) {
        *byte = words[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8];
    }
}

/// Writes bytes into a page of table memory. Only those named change, unless somebody who has it mapped
/// writes into the same eight at the same time.
pub(crate) fn write_page(page: Pa, offset: usize, bytes: &[u8]) {
    let words = umbra_hw::mem::table(page);
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done;
        let in_word = at % 8;
        let count = (8 - in_word).min(bytes.len() - done);
        let mut value = words[at / 8].load(Ordering::Relaxed).to_le_bytes();
        value[in_word..in_word + count].copy_from_slice(&bytes[done..done + count]);
        words[at / 8].store(u64::from_le_bytes(value), Ordering::Relaxed);
        done += count;
    }
}

/// What an area maps.
#[derive(Clone)]
pub(crate) enum Object {
    /// A file's bytes.
    File(Arc<dyn FilePages>),
    /// Pages that umbra shares with the process.
    Shared(Arc<SharedPages>),
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => Arc::ptr_eq(a, b),
            (Self::Shared(a), Self::Shared(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Pages that a process maps and umbra reads and writes by word: a vCPU's run page.
pub(crate) struct SharedPages {
    pages: Vec<Pa>,
    /// What a mapping shows behind them.
    behind: Option<Arc<SharedPages>>,
}

impl SharedPages {
    /// `count` cleared pages; `None` when memory is out.
    pub(crate) fn new(count: usize) -> Option<Arc<Self>> {
        Self::before(count, None)
    }

    /// `count` cleared pages with others behind them.
    pub(crate) fn before(count: usize, behind: Option<Arc<SharedPages>>) -> Option<Arc<Self>> {
        let mut pages = Vec::new();
        for _ in 0..count {
            match mem::allocate_words(0, Owner::Shared) {
                Some(page) => pages.push(page),
                None => {
                    drop(Self { pages, behind });
                    return None;
                }
            }
        }
        Some(Arc::new(Self { pages, behind }))
    }

    /// Whether one of them is bad.
    pub(crate) fn is_bad(&self) -> bool {
        self.pages
            .iter()
            .any(|&page| umbra_hw::lost::is_lost(page) || crate::poison::state_of(page).is_some())
    }

    /// Physical page at `offset` bytes.
    pub(crate) fn page(&self, offset: u64) -> Option<Pa> {
        let index = usize::try_from(offset / FRAME).ok()?;
        match (self.pages.get(index), &self.behind) {
            (Some(page), _) => Some(*page),
            (None, Some(behind)) => behind.page(offset - self.pages.len() as u64 * FRAME),
            (None, None) => None,
        }
    }

    /// Reads bytes. The process may change them meanwhile.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        for (index, byte) in out.iter_mut().enumerate() {
            let at = offset + index;
            if let Some(page) = self.page(at as u64) {
                let word =
                    umbra_hw::mem::table(page)[at % FRAME as usize / 8].load(Ordering::Relaxed);
                *byte = word.to_le_bytes()[at % 8];
            }
        }
    }

    /// Changes four bytes at an aligned offset and nothing beside them, whatever the process writes.
    pub(crate) fn store_u32(&self, offset: usize, value: u32) {
        let Some(page) = self.page(offset as u64) else {
            return;
        };
        let shift = if offset % 8 == 4 { 32 } else { 0 };
        let change = |word: u64| Some(word & !(0xffff_ffff << shift) | u64::from(value) << shift);
        let word = &umbra_hw::mem::table(page)[offset % FRAME as usize / 8];
        let _ = word.fetch_update(Ordering::Release, Ordering::Relaxed, change);
    }

    /// Writes bytes; what lies outside is dropped. Only the bytes named change, unless the process
    /// writes into the same eight at the same time.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        let mut index = 0;
        while index < bytes.len() {
            let at = offset + index;
            let in_word = at % 8;
            let count = (8 - in_word).min(bytes.len() - index);
            if let Some(page) = self.page(at as u64) {
                let word = &umbra_hw::mem::table(page)[at % FRAME as usize / 8];
                let mut value = word.load(Ordering::Relaxed).to_le_bytes();
                value[in_word..in_word + count].copy_from_slice(&bytes[index..index + count]);
                word.store(u64::from_le_bytes(value), Ordering::Relaxed);
            }
            index += count;
        }
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        if left_out(Safeguard::RunPage) {
            return;
        }
        for page in self.pages.drain(..) {
            mem::release(page);
        }
    }
}
