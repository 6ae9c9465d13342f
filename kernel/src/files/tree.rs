//! The tree of files: one for the machine, under one lock.
//!
//! The lock's rank lies above the address space's, because a page fault reads from files. So it is
//! never held while user memory is touched; bytes cross in the kernel's buffers.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

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
pub(crate) fn init(archive: &'static [u8], pages: u64) -> Result<(), BootError> {
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
            let mut done = 0;
            while let Some(rest) = page.get_mut(done..).filter(|rest| !rest.is_empty()) {
                match fs.chunk_at(self.0, offset.saturating_add(done as u64)) {
                    Ok(Chunk::Bytes(bytes)) if !bytes.is_empty() => {
                        let count = bytes.len().min(rest.len());
                        rest[..count].copy_from_slice(&bytes[..count]);
                        done += count;
                    }
                    Ok(Chunk::Zeros(count)) if count > 0 => done += count.min(rest.len()),
                    _ => break,
                }
            }
            offset < length
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
        Ok(with(|fs| open.read(fs, buf))?)
    }

    fn write(&self, _call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        let mut open = self.open.lock();
        Ok(with(|fs| open.write(fs, bytes))?)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let open = self.open.lock();
        with(|fs| open.read_at(fs, offset, buf))
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
            None => Arc::new(text::Text::new(text::make(call, which))),
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
