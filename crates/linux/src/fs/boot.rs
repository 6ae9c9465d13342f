//! The tree that umbra starts with: the initrd, and what every program expects beside it.

use super::content::Content;
use super::device::{DEVICES, PROC_FILES};
use super::{Caller, Device, Fs, InodeId, Limits, Node};
use crate::cpio::{CpioError, Entry, Reader};
use crate::time::Timespec;
use crate::{Errno, uapi};
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::fmt;

/// Why the initrd cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BootError {
    /// The archive is damaged.
    Archive(CpioError),
    /// A member could not be placed.
    Member {
        /// Its name, as far as it is text.
        name: String,
        /// Why.
        errno: Errno,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(error) => write!(f, "initrd: {error}"),
            Self::Member { name, errno } => write!(f, "initrd: cannot place {name:?}: {errno}"),
        }
    }
}

impl core::error::Error for BootError {}

impl Fs {
    /// The tree of an initrd, with /dev, /proc, /sys and /tmp. Directories that the archive leaves out are
    /// made; of two members by one name the later counts; block devices, pipes and sockets are an
    /// error, as nothing could open them.
    pub fn from_initrd(archive: &'static [u8], limits: Limits) -> Result<Self, BootError> {
        let mut fs = Self::new(limits);
        let mut linked = BTreeMap::new();
        for entry in Reader::new(archive) {
            let entry = entry.map_err(BootError::Archive)?;
            fs.place(&entry, &mut linked)
                .map_err(|errno| BootError::Member {
                    name: String::from_utf8_lossy(entry.name).into_owned(),
                    errno,
                })?;
        }
        fs.add_standard().map_err(|errno| BootError::Member {
            name: "/dev".into(),
            errno,
        })?;
        Ok(fs)
    }

    fn place(
        &mut self,
        entry: &Entry<'static>,
        linked: &mut BTreeMap<(u32, u32, u32), InodeId>,
    ) -> Result<(), Errno> {
        let caller = self.booting();
        let names = entry.name.split(|byte| *byte == b'/');
        if names.clone().any(|name| name == b"..") {
            return Err(Errno::EINVAL);
        }
        if names.clone().all(|name| name.is_empty() || name == b".") {
            return self.set_mode(self.root, entry.mode);
        }
        self.make_parents(entry.name)?;
        self.set_time(Timespec {
            sec: i64::from(entry.mtime),
            nsec: 0,
        });
        let id = match entry.kind() {
            uapi::S_IFDIR => match self.make_dir(&caller, entry.name, 0o755) {
                Err(Errno::EEXIST) => self.resolve_dir(&caller, entry.name)?,
                other => other?,
            },
            uapi::S_IFREG => self.place_file(&caller, entry, linked)?,
            uapi::S_IFLNK => {
                self.replace(&caller, entry.name)?;
                self.make_symlink(&caller, entry.name, entry.data)?
            }
            uapi::S_IFCHR => {
                self.replace(&caller, entry.name)?;
                let device = Device::from_numbers(entry.device.0, entry.device.1);
                self.make_device(&caller, entry.name, device, entry.mode)?
            }
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let time = self.now;
        self.set_mode(id, entry.mode)?;
        self.set_times(id, Some(time), Some(time))
    }

    /// A file with several names is stored once, with its bytes at one of the names, often the last.
    fn place_file(
        &mut self,
        caller: &Caller<'_>,
        entry: &Entry<'static>,
        linked: &mut BTreeMap<(u32, u32, u32), InodeId>,
    ) -> Result<InodeId, Errno> {
        self.replace(caller, entry.name)?;
        let known = if entry.links > 1 {
            linked.get(&entry.file).copied()
        } else {
            None
        };
        let id = match known.filter(|id| self.inode(*id).is_ok()) {
            Some(id) => {
                self.link(id, caller, entry.name)?;
                id
            }
            None => {
                let found = self.walk(caller, entry.name, super::path::Last::Keep)?;
                self.make_named(&found, Node::File(Content::default()), entry.mode)?
            }
        };
        if !entry.data.is_empty() {
            *self.inode_mut(id)?.file_mut()? = Content::borrowed(entry.data);
        }
        if entry.links > 1 {
            linked.insert(entry.file, id);
        }
        Ok(id)
    }

    fn replace(&mut self, caller: &Caller<'_>, path: &[u8]) -> Result<(), Errno> {
        match self.unlink(caller, path) {
            Err(Errno::ENOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<(), Errno> {
        let caller = self.booting();
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let prefix = path.get(..at).unwrap_or_default();
            if prefix.iter().all(|byte| matches!(byte, b'/' | b'.')) {
                continue;
            }
            match self.make_dir(&caller, prefix, 0o755) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// /dev, /proc, /sys and /tmp, unless the initrd has them its own way.
    fn add_standard(&mut self) -> Result<(), Errno> {
        let caller = self.booting();
        for (dir, mode) in [("dev", 0o755), ("proc/self", 0o555), ("tmp", 0o1777)] {
            self.make_parents(dir.as_bytes())?;
            match self.make_dir(&caller, dir.as_bytes(), mode) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        for (name, device, _, _, mode) in DEVICES {
            self.add_special("/dev/", name, Node::Device(*device), *mode)?;
        }
        for (path, file, mode) in PROC_FILES {
            self.make_parents(path.as_bytes())?;
            self.add_special("/", path, Node::Proc(*file), *mode)?;
        }
        self.add_special("/proc/", "self/exe", Node::ProcExe, 0o777)
    }

    /// Adds /dev/vda, or the node of a further disk: `number` is from 0, and at most 25. `EEXIST`: the
    /// initrd has something by that name.
    pub fn add_disk(&mut self, number: u8) -> Result<(), Errno> {
        let letter = b'a'.checked_add(number).filter(u8::is_ascii_lowercase);
        let path = [
            b'd',
            b'e',
            b'v',
            b'/',
            b'v',
            b'd',
            letter.ok_or(Errno::EINVAL)?,
        ];
        self.make_parents(&path)?;
        let caller = self.booting();
        self.make_device(&caller, &path, Device::Disk(number), 0o660)
            .map(drop)
    }

    fn add_special(&mut self, dir: &str, name: &str, node: Node, mode: u32) -> Result<(), Errno> {
        let path = [dir.as_bytes(), name.as_bytes()].concat();
        let found = self.walk(&self.booting(), &path, super::path::Last::Keep)?;
        if found.id.is_none() {
            self.make_named(&found, node, mode)?;
        }
        Ok(())
    }

    const fn booting(&self) -> Caller<'static> {
        Caller {
            dir: self.root,
            exe: b"/",
            umask: 0,
        }
    }
}
