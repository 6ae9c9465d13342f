//! /dev/vda and its neighbours: the machine's disks as block devices.
//!
//! Unlike other files they make their caller wait themselves, and uninterruptibly; see
//! [`crate::disk`]. There is no cache: what a write has returned from, the disk has, and `fsync` makes
//! it outlive the machine.

use alloc::sync::Arc;

use umbra_hw::disk::SECTOR;
use umbra_hw::sync::SpinLock;
use umbra_linux::{Errno, Stop, uapi};

use crate::disk::Drive;
use crate::file::{Call, File};
use crate::sys::user;

// include/uapi/linux/fs.h
const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKFLSBUF: u32 = 0x1261;
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// An open disk.
pub(crate) struct DiskFile {
    drive: Arc<Drive>,
    position: SpinLock<u64>,
}

impl DiskFile {
    /// At its start.
    pub(crate) fn new(drive: Arc<Drive>) -> Self {
        Self {
            drive,
            position: SpinLock::new("disk position", 64, 0),
        }
    }
}

impl File for DiskFile {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let at = *self.position.lock();
        let done = self.drive.read(at, buf)?;
        *self.position.lock() = at + done as u64;
        Ok(done)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let at = *self.position.lock();
        let done = self.drive.write(at, bytes)?;
        *self.position.lock() = at + done as u64;
        Ok(done)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        self.drive.read(offset, buf)
    }

    fn write_at(&self, _call: &Call<'_>, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.drive.write(offset, bytes)
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let mut position = self.position.lock();
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => *position,
            uapi::SEEK_END => self.drive.bytes(),
            _ => return Err(Errno::EINVAL),
        };
        let to = base.checked_add_signed(offset);
        *position = to
            .filter(|&to| to <= self.drive.bytes())
            .ok_or(Errno::EINVAL)?;
        Ok(*position)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.drive.flush()
    }

    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        match request {
            BLKGETSIZE64 => user::write(call, arg, &self.drive.bytes())?,
            BLKGETSIZE => user::write(call, arg, &(self.drive.bytes() / SECTOR as u64))?,
            BLKSSZGET | BLKPBSZGET => user::write(call, arg, &(SECTOR as u32))?,
            BLKROGET => user::write(call, arg, &u32::from(self.drive.is_read_only()))?,
            BLKFLSBUF => self.drive.flush()?,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }
}
