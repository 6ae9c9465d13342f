//! The machine's disks: whole requests, waited for, one at a time.
//!
//! A thread that waits for a disk sleeps and looks again, at growing intervals; it cannot be
//! interrupted, as on Linux. A disk that does not answer for [`LIMIT`] is given up for good, and every
//! later request fails at once. So a bad disk costs those who use it an error, and nobody else
//! anything.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_hw::disk::{Disk, LARGEST, Request, SECTOR};
use umbra_hw::sync::SpinLock;
use umbra_linux::Errno;

use crate::{mem, sched};

/// Nanoseconds after which a disk that does not answer is given up.
const LIMIT: u64 = 30_000_000_000;
/// The first and the longest interval at which a disk is asked whether it is done, in nanoseconds.
const INTERVALS: (u64, u64) = (20_000, 2_000_000);

/// A disk that processes share.
pub(crate) struct Drive {
    disk: sched::Mutex<&'static mut Disk>,
    bytes: u64,
    read_only: bool,
}

static DRIVES: SpinLock<Vec<Arc<Drive>>> = SpinLock::new("drives", 63, Vec::new());

/// Most disks: /dev/vda to /dev/vdd.
const MOST: usize = 4;

/// Takes the disks among the machine's virtio devices, the one that QEMU was given first first.
pub(crate) fn init(devices: &[(u64, u64)]) {
    let mut devices: Vec<(u64, u64)> = devices.to_vec();
    // QEMU fills its transports from the top.
    devices.sort_unstable_by(|a, b| b.cmp(a));
    for (registers, bytes) in devices {
        mem::top_up();
        let Some(disk) = Disk::open(umbra_arm64::Pa::new(registers), bytes) else {
            continue;
        };
        let drive = Arc::new(Drive {
            bytes: disk.sectors().saturating_mul(SECTOR as u64),
            read_only: disk.is_read_only(),
            disk: sched::Mutex::new(disk),
        });
        let mut drives = DRIVES.lock();
        if drives.len() == MOST {
            break;
        }
        drives.push(drive);
    }
}

/// The disks' number.
pub(crate) fn count() -> usize {
    DRIVES.lock().len()
}

/// Disk number `index`, from 0.
pub(crate) fn drive(index: usize) -> Option<Arc<Drive>> {
    DRIVES.lock().get(index).cloned()
}

/// sync(2): what was written to any disk outlives the machine. One that fails is told by fsync alone.
pub(crate) fn sync_all() {
    let drives: Vec<Arc<Drive>> = DRIVES.lock().clone();
    for drive in drives {
        let _ = drive.flush();
    }
}

/// Runs a request to its end.
fn run(disk: &mut Disk, request: Request) -> Result<(), Errno> {
    disk.start(request).map_err(|_| Errno::EIO)?;
    let end = sched::now().saturating_add(LIMIT);
    let (mut interval, longest) = INTERVALS;
    loop {
        if let Some(done) = disk.finish() {
            return done.map_err(|why| {
                log::warn!("disk: {request:?}: {why:?}");
                Errno::EIO
            });
        }
        let now = sched::now();
        if now >= end {
            disk.give_up();
            log::error!("a disk does not answer: it is given up");
            return Err(Errno::EIO);
        }
        sched::park(Some(now.saturating_add(interval)));
        interval = (interval * 2).min(longest);
    }
}

/// The sectors that hold `len` bytes from `offset` on, as a first sector and bytes, and where in them
/// the bytes begin.
fn sectors(offset: u64, len: usize) -> (u64, usize, usize) {
    let skip = (offset % SECTOR as u64) as usize;
    (
        offset / SECTOR as u64,
        (skip + len).next_multiple_of(SECTOR),
        skip,
    )
}

impl Drive {
    /// Bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it refuses writes.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads from `offset` on, to the end at most; returns how many bytes.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left).min(LARGEST - 2 * SECTOR);
        if len == 0 {
            return Ok(0);
        }
        let (first, bytes, skip) = sectors(offset, len);
        let mut disk = self.disk.lock();
        run(&mut disk, Request::Read(first, bytes))?;
        let there = disk.buffer().get(skip..skip + len).ok_or(Errno::EIO)?;
        buf[..len].copy_from_slice(there);
        Ok(len)
    }

    /// Writes from `offset` on, to the end at most; returns how many bytes. `ENOSPC` at the end, `EPERM`
    /// where it refuses writes.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        if self.read_only {
            return Err(Errno::EPERM);
        }
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = bytes.len().min(left).min(LARGEST - 2 * SECTOR);
        if len == 0 {
            return match bytes.len() {
                0 => Ok(0),
                _ => Err(Errno::ENOSPC),
            };
        }
        let (first, whole, skip) = sectors(offset, len);
        let mut disk = self.disk.lock();
        if skip != 0 || skip + len != whole {
            // What is not written of its sectors stays.
            run(&mut disk, Request::Read(first, whole))?;
        }
        let there = disk.buffer().get_mut(skip..skip + len).ok_or(Errno::EIO)?;
        there.copy_from_slice(&bytes[..len]);
        run(&mut disk, Request::Write(first, whole))?;
        Ok(len)
    }

    /// What was written outlives the machine.
    pub(crate) fn flush(&self) -> Result<(), Errno> {
        let mut disk = self.disk.lock();
        if !disk.can_flush() {
            return Ok(());
        }
        run(&mut disk, Request::Flush)
    }
}
