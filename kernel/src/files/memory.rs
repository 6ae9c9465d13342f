//! Memory files (memfd_create): bytes that live in memory and can be mapped by several, shared.
//!
//! A page is a frame that the file has a reference to, and so has every entry of a page table that
//! maps it. So a page outlives the file for those who have it mapped, and a file that becomes shorter
//! takes nothing away under anybody: what was cut off and is still mapped is nobody else's any more.
//!
//! The lock (rank 158) lies inside the address space's, because a fault asks for a page.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use umbra_arm64::Pa;
use umbra_frames::{FRAME, Owner};
use umbra_hw::sync::SpinLock;
use umbra_linux::fs::{MAX_FILE, Stat};
use umbra_linux::memfd::Seals;
use umbra_linux::{Errno, Stop, uapi};

use crate::file::{Call, File};
use crate::mm::{self, FilePages, MmFault};
use crate::{mem, poison};

struct Content {
    /// Frames by their place in the file, in pages.
    pages: BTreeMap<u64, Pa>,
    size: u64,
    seals: Seals,
    /// It was mapped for writing, and may still be.
    mapped_for_writing: bool,
}

/// The bytes of a memory file; what is mapped of it.
pub(crate) struct Memory(SpinLock<Content>);

impl Content {
    /// The page at `index`, made if it is not there. `ENOSPC`: memory is out.
    fn page(&mut self, index: u64) -> Result<Pa, Errno> {
        if let Some(page) = self.pages.get(&index) {
            return Ok(*page);
        }
        let page = mem::allocate_words(0, Owner::Shared).ok_or(Errno::ENOSPC)?;
        self.pages.insert(index, page);
        Ok(page)
    }

    /// Calls `f` with the page (none where nothing was written), the offset in it and a range of
    /// `0..len` for each page of `len` bytes from `offset` on.
    fn parts(
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, usize, core::ops::Range<usize>)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let at = offset + done as u64;
            let inside = (at % FRAME) as usize;
            let count = (len - done).min(FRAME as usize - inside);
            let range = done..done + count;
            done += count;
            (count > 0).then_some((at / FRAME, inside, range))
        })
    }

    fn drop_pages(&mut self, from: u64, to: u64) {
        while let Some((&index, &page)) = self.pages.range(from..to).next() {
            self.pages.remove(&index);
            mem::release(page);
        }
    }

    /// Zeros from `from` to `to` in the page that they lie in, if it is there.
    fn clear(&self, from: u64, to: u64) {
        if let Some(page) = self.pages.get(&(from / FRAME)).filter(|_| from < to) {
            let zeros = [0; FRAME as usize];
            let count = (to - from) as usize;
            mm::write_page(*page, (from % FRAME) as usize, &zeros[..count]);
        }
    }
}

impl Memory {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let content = self.0.lock();
        let left = content.size.saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for (index, inside, range) in Content::parts(offset, len) {
            match content.pages.get(&index) {
                Some(page) if poison::state_of(*page).is_some() => return Err(Errno::EIO),
                Some(page) => mm::read_page(*page, inside, &mut buf[range]),
                None => buf[range].fill(0),
            }
        }
        Ok(len)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let mut content = self.0.lock();
        let room = usize::try_from(MAX_FILE.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = bytes.len().min(room);
        if len == 0 {
            return match bytes.len() {
                0 => Ok(0),
                _ => Err(Errno::EFBIG),
            };
        }
        let end = offset + len as u64;
        content.seals.write(content.size, end)?;
        let mut done = 0;
        for (index, inside, range) in Content::parts(offset, len) {
            let page = match content.page(index) {
                Ok(page) if poison::state_of(page).is_some() => Err(Errno::EIO),
                other => other,
            };
            match page {
                Ok(page) => mm::write_page(page, inside, &bytes[range.clone()]),
                // What was done before counts.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
            done = range.end;
        }
        content.size = content.size.max(offset + done as u64);
        Ok(done)
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        let mut content = self.0.lock();
        if size > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        content.seals.resize(content.size, size)?;
        if size < content.size {
            // What comes again when it grows is zero.
            content.clear(size, size.next_multiple_of(FRAME));
            content.drop_pages(size.div_ceil(FRAME), u64::MAX);
        }
        content.size = size;
        Ok(())
    }
}

impl FilePages for Memory {
    fn read_page(&self, offset: u64, page: &mut [u8]) -> bool {
        page.fill(0);
        offset < self.0.lock().size && self.read(offset, page).is_ok()
    }

    fn shared_page(&self, offset: u64) -> Result<Pa, MmFault> {
        let mut content = self.0.lock();
        if offset >= content.size {
            return Err(MmFault::BeyondFile);
        }
        let page = content.page(offset / FRAME);
        let page = page.map_err(|_| MmFault::NoMemory)?;
        if poison::state_of(page).is_some() {
            return Err(MmFault::Poisoned(page, poison::consume(page)));
        }
        Ok(page)
    }

    fn share_for_writing(&self) -> Result<(), Errno> {
        let mut content = self.0.lock();
        content.seals.map_for_writing()?;
        content.mapped_for_writing = true;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.get_mut().drop_pages(0, u64::MAX);
    }
}

/// An open memory file.
pub(crate) struct MemoryFile {
    memory: Arc<Memory>,
    position: SpinLock<u64>,
}

impl MemoryFile {
    /// An empty one.
    pub(crate) fn new(seals: Seals) -> Arc<Self> {
        let content = Content {
            pages: BTreeMap::new(),
            size: 0,
            seals,
            mapped_for_writing: false,
        };
        Arc::new(Self {
            memory: Arc::new(Memory(SpinLock::new("memory file", 158, content))),
            position: SpinLock::new("memory position", 64, 0),
        })
    }

    /// ftruncate.
    pub(crate) fn resize(&self, size: u64) -> Result<(), Errno> {
        self.memory.resize(size)
    }

    /// fallocate: reserving nothing, which is allowed, or punching a hole. `EOPNOTSUPP`, `EPERM`.
    pub(crate) fn allocate(&self, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        const KEEP_SIZE: u32 = 1;
        const PUNCH_HOLE: u32 = 2;
        let end = offset.checked_add(len).filter(|&end| end <= MAX_FILE);
        let end = end.ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        match mode {
            0 => {
                let size = self.memory.0.lock().size;
                if end > size {
                    self.memory.resize(end)?;
                }
            }
            KEEP_SIZE => {}
            mode if mode == KEEP_SIZE | PUNCH_HOLE => {
                let mut content = self.memory.0.lock();
                content.seals.write(content.size, 0)?;
                let (first, last) = (offset.next_multiple_of(FRAME), end / FRAME * FRAME);
                content.clear(offset, first.min(end));
                content.clear(last.max(offset), end);
                content.drop_pages(first / FRAME, (last / FRAME).max(first / FRAME));
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    /// F_GET_SEALS.
    pub(crate) fn seals(&self) -> u32 {
        self.memory.0.lock().seals.bits()
    }

    /// F_ADD_SEALS.
    pub(crate) fn add_seals(&self, more: u32) -> Result<(), Errno> {
        let mut content = self.memory.0.lock();
        let mapped = content.mapped_for_writing;
        content.seals.add(more, mapped)
    }
}

impl File for MemoryFile {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let mut position = self.position.lock();
        let done = self.memory.read(*position, buf)?;
        *position += done as u64;
        Ok(done)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let mut position = self.position.lock();
        let done = self.memory.write(*position, bytes)?;
        *position += done as u64;
        Ok(done)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.memory.read(offset, buf)
    }

    fn write_at(&self, _call: &Call<'_>, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.memory.write(offset, bytes)
    }

    fn mmap(&self, _offset: u64, _bytes: u64) -> Result<mm::Object, Errno> {
        Ok(mm::Object::File(self.memory.clone()))
    }

    fn is_memory(&self) -> bool {
        true
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let mut position = self.position.lock();
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => *position,
            uapi::SEEK_END => self.memory.0.lock().size,
            _ => return Err(Errno::EINVAL),
        };
        let to = base.checked_add_signed(offset);
        *position = to.filter(|&to| to <= MAX_FILE).ok_or(Errno::EINVAL)?;
        Ok(*position)
    }

    fn stat(&self) -> Stat {
        let content = self.memory.0.lock();
        let mut stat = Stat::default();
        stat.mode = uapi::S_IFREG | 0o777;
        stat.nlink = 0;
        stat.size = content.size.cast_signed();
        stat.blksize = 4096;
        stat.blocks = (content.pages.len() as u64 * (FRAME / 512)).cast_signed();
        stat
    }
}
