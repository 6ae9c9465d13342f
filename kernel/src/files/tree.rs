//! The tree of files: one for the machine, under one lock.
//!
//! The lock's rank lies above the address space's, because a page fault reads from files. So it is
//! never held while user memory is touched; bytes cross in the kernel's buffers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_arm64::Pa;
use umbra_hw::sync::SpinLock;
use umbra_linux::fs::{
    BootError, Chunk, Device, Fs, InodeId, Limits, OpenFile, OpenFlags, Opened, ProcFile,
};
use umbra_linux::time::Timespec;
use umbra_linux::{Errno, Stop, uapi};

use super::{DiskFile, Full, Null, Random, Zero, poison, text, tty};
use crate::file::{Call, Description, File};
use crate::mm::{FilePages, Object};
use crate::proc::Paths;

static TREE: SpinLock<Option<Fs>> = SpinLock::new("tree", 160, None);

/// Makes the tree from the initrd. `pages` bounds what files may take of memory.
/// `at` is where the initrd lies in memory.
pub(crate) fn init(archive: &'static [u8], at: Pa, pages: u64) -> Result<(), BootError> {
    for (word, value) in ARCHIVE.iter().zip([
        archive.as_ptr().addr() as u64,
        at.raw(),
        archive.len() as u64,
    ]) {
        word.store(value, Ordering::Relaxed);
    }
    let limits = Limits {
        pages,
        inodes: 1 << 16,
    };
    let mut fs = Fs::from_initrd(archive, limits)?;
    // A node that cannot be made is a disk that nobody sees.
    for number in 0..crate::disk::count() as u8 {
        if let Err(errno) = fs.add_disk(number) {
            log::error!("disk {number} gets no node: {errno}");
        }
    }
    *TREE.lock() = Some(fs);
    Ok(())
}

/// The initrd: its address, its place in memory, its bytes.
static ARCHIVE: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// A page of it is known to be bad.
static BAD: AtomicBool = AtomicBool::new(false);

/// Where the initrd lies in memory, if there is one.
pub(crate) fn archive() -> Option<(Pa, Pa)> {
    let [_, at, bytes] = ARCHIVE.each_ref().map(|word| word.load(Ordering::Relaxed));
    (bytes > 0).then(|| (Pa::new(at), Pa::new(at + bytes)))
}

/// Whether the frame holds something of the initrd.
pub(crate) fn archive_holds(frame: Pa) -> bool {
    let frame = frame.align_down(4096);
    archive().is_some_and(|(start, end)| start.align_down(4096) <= frame && frame < end)
}

/// A page of it is bad: from now on every read looks.
pub(crate) fn archive_went_bad() {
    BAD.store(true, Ordering::Release);
}

/// Copies bytes of a file. `EIO` where the memory that holds them is bad.
fn copy(to: &mut [u8], from: &[u8]) -> Result<(), Errno> {
    if BAD.load(Ordering::Acquire) {
        let [start, at, bytes] = ARCHIVE.each_ref().map(|word| word.load(Ordering::Relaxed));
        let first = from.as_ptr().addr() as u64;
        if let Some(offset) = first.checked_sub(start).filter(|&offset| offset < bytes) {
            let first = (at + offset) & !4095;
            let end = at + offset + to.len() as u64;
            for page in (first..end).step_by(4096) {
                if crate::poison::state_of(Pa::new(page)).is_some() {
                    crate::poison::consume(Pa::new(page));
                    return Err(Errno::EIO);
                }
            }
        }
    }
    umbra_hw::copy::copy_constant(to, from).map_err(|_| Errno::EIO)
}

/// Where the initrd holds the second page of the file at `path`; `ENXIO` if it does not.
pub(crate) fn in_archive(path: &[u8]) -> Result<Pa, Errno> {
    let [start, at, bytes] = ARCHIVE.each_ref().map(|word| word.load(Ordering::Relaxed));
    with(|fs| {
        let caller = umbra_linux::fs::Caller {
            dir: fs.root(),
            exe: b"",
            umask: 0,
        };
        let id = fs.resolve(&caller, path)?;
        match fs.chunk_at(id, 4096)? {
            Chunk::Bytes(held) => (held.as_ptr().addr() as u64)
                .checked_sub(start)
                .filter(|&offset| offset < bytes)
                .map(|offset| Pa::new(at + offset))
                .ok_or(Errno::ENXIO),
            Chunk::Zeros(_) => Err(Errno::ENXIO),
        }
    })
}

/// Reads from a file, before or without opening it.
pub(crate) fn read_at(id: InodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    with(|fs| read(fs, id, offset, buf))
}

/// Reads from a file: how many bytes came before its end, or before memory that is bad (`EIO` if none did).
fn read(fs: &Fs, id: InodeId, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Some(at) = offset.checked_add(done as u64) else {
            break;
        };
        let count = match fs.chunk_at(id, at)? {
            Chunk::Bytes(bytes) => {
                let count = bytes.len().min(rest.len());
                match copy(&mut rest[..count], &bytes[..count]) {
                    Err(errno) if done == 0 => return Err(errno),
                    Err(_) => return Ok(done),
                    Ok(()) => count,
                }
            }
            Chunk::Zeros(count) => {
                let count = count.min(rest.len());
                rest[..count].fill(0);
                count
            }
        };
        if count == 0 {
            break;
        }
        done += count;
    }
    Ok(done)
}

/// Runs `f` with the tree. Nothing in it may wait or touch user memory.
pub(crate) fn with<R>(f: impl FnOnce(&mut Fs) -> R) -> R {
    let mut tree = TREE.lock();
    let fs = tree
        .as_mut()
        .expect("the tree is made before the first process");
    fs.set_time(Timespec::from_nanos(crate::sys::time::realtime()));
    f(fs)
}

/// Ends a hold on an inode.
pub(crate) fn release(id: InodeId) {
    with(|fs| fs.release(id));
}

/// A path for the log.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .utf8_chunks()
            .try_for_each(|chunk| f.write_str(chunk.valid()))
    }
}

/// The program at `path`, and its absolute path as far as the tree can tell.
pub(crate) fn find_program(paths: &Paths, path: &[u8]) -> Result<(InodeId, Vec<u8>), Errno> {
    with(|fs| {
        let caller = paths.caller();
        let id = fs.resolve(&caller, path)?;
        let exe = if path.starts_with(b"/") {
            path.to_vec()
        } else {
            let mut exe = fs.path_of(paths.dir)?;
            if exe != b"/" {
                exe.push(b'/');
            }
            exe.extend_from_slice(path);
            exe
        };
        Ok((id, exe))
    })
}

/// An inode's bytes for mappings; holds the inode.
pub(crate) struct Pages(InodeId);

impl Pages {
    /// Holds `id`, which must be a regular file (`EACCES`).
    pub(crate) fn new(id: InodeId) -> Result<Arc<Self>, Errno> {
        with(|fs| {
            fs.chunk_at(id, 0).map_err(|_| Errno::EACCES)?;
            fs.hold(id)
        })?;
        Ok(Arc::new(Self(id)))
    }
}

impl FilePages for Pages {
    fn read_page(&self, offset: u64, page: &mut [u8]) -> bool {
        with(|fs| {
            let Ok(length) = fs.len(self.0) else {
                return false;
            };
            // What lies beyond the end is zero already; a page that cannot be read as a whole is none.
            let there = length.saturating_sub(offset).min(page.len() as u64);
            there > 0 && read(fs, self.0, offset, page) == Ok(there as usize)
        })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        release(self.0);
    }
}

/// An open file or directory of the tree. The description holds the inode.
pub(crate) struct TreeFile {
    open: SpinLock<OpenFile>,
    id: InodeId,
}

impl File for TreeFile {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let mut open = self.open.lock();
        if open.kind == Opened::Dir {
            return Err(Errno::EISDIR.into());
        }
        if !open.flags.read {
            return Err(Errno::EBADF.into());
        }
        let count = with(|fs| read(fs, self.id, open.position, buf))?;
        open.position += count as u64;
        Ok(count)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let mut open = self.open.lock();
        Ok(with(|fs| open.write(fs, bytes))?)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let open = self.open.lock();
        if !open.flags.read {
            return Err(Errno::EBADF);
        }
        with(|fs| read(fs, self.id, offset, buf))
    }

    fn write_at(&self, _call: &Call<'_>, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let open = self.open.lock();
        with(|fs| open.write_at(fs, offset, bytes))
    }

    fn mmap(&self, _offset: u64, _bytes: u64) -> Result<Object, Errno> {
        let open = self.open.lock();
        if !open.flags.read {
            return Err(Errno::EACCES);
        }
        drop(open);
        Ok(Object::File(Pages::new(self.id)?))
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let mut open = self.open.lock();
        if open.kind == Opened::Dir {
            // A directory's position is a cookie: it can be put back where it was.
            if whence != uapi::SEEK_SET {
                return Err(Errno::EINVAL);
            }
            open.position = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            return Ok(open.position);
        }
        with(|fs| open.seek(fs, offset, whence))
    }

    fn read_dir(&self, room: usize, out: &mut Vec<u8>) -> Result<(), Errno> {
        let mut open = self.open.lock();
        if open.kind != Opened::Dir {
            return Err(Errno::ENOTDIR);
        }
        let position = open.position;
        open.position = with(|fs| fs.read_dir(self.id, position, room, out))?;
        Ok(())
    }

    fn set_status(&self, flags: u32) {
        self.open.lock().flags.set_status(flags);
    }
}

impl TreeFile {
    /// Whether it was opened for writing.
    pub(crate) fn is_writable(&self) -> bool {
        self.open.lock().flags.write
    }
}

/// openat: finds, perhaps makes, and opens.
pub(crate) fn open(
    call: &Call<'_>,
    path: &[u8],
    caller: &umbra_linux::fs::Caller<'_>,
    flags: u32,
    mode: u32,
) -> Result<(Arc<Description>, bool), Errno> {
    let parsed = OpenFlags::from_linux(flags)?;
    let open = with(|fs| fs.open(caller, path, parsed, mode))?;
    let id = open.id;
    let shown = parsed.to_linux();
    let file: Arc<dyn File> = match open.kind {
        Opened::File | Opened::Dir | Opened::Path => Arc::new(TreeFile {
            open: SpinLock::new("open file", 64, open),
            id,
        }),
        Opened::Device(device) => match device_file(device) {
            Ok(file) => file,
            Err(errno) => {
                release(id);
                return Err(errno);
            }
        },
        Opened::Proc(ProcFile::PageMap) => Arc::new(poison::PageMap),
        Opened::Proc(which) => match poison::Control::new(which) {
            Some(control) => Arc::new(control),
            None => Arc::new(text::Text::new(text::make(call, which)?)),
        },
    };
    Ok((Description::of_tree(file, shown, id), parsed.cloexec))
}

/// Opens a file or device of the tree for reading, before there is a process.
pub(crate) fn open_input(paths: &Paths, path: &[u8]) -> Result<Arc<Description>, Errno> {
    let flags = OpenFlags::from_linux(uapi::O_RDONLY)?;
    let open = with(|fs| fs.open(&paths.caller(), path, flags, 0))?;
    let id = open.id;
    let file: Arc<dyn File> = match open.kind {
        Opened::File => Arc::new(TreeFile {
            open: SpinLock::new("open file", 64, open),
            id,
        }),
        Opened::Device(device) => device_file(device).inspect_err(|_| release(id))?,
        Opened::Dir | Opened::Path | Opened::Proc(_) => {
            release(id);
            return Err(Errno::EINVAL);
        }
    };
    Ok(Description::of_tree(file, uapi::O_RDONLY, id))
}

fn device_file(device: Device) -> Result<Arc<dyn File>, Errno> {
    Ok(match device {
        Device::Null => Arc::new(Null),
        Device::Zero => Arc::new(Zero),
        Device::Full => Arc::new(Full),
        Device::Random | Device::Urandom => Arc::new(Random),
        Device::Tty | Device::Console => tty::console(),
        Device::Kvm => return crate::kvm::open(),
        Device::Disk(number) => {
            let drive = crate::disk::drive(number.into()).ok_or(Errno::ENXIO)?;
            Arc::new(DiskFile::new(drive))
        }
        Device::Unknown { .. } => return Err(Errno::ENXIO),
    })
}
