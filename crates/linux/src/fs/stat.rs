//! What a file is: fstat, statx, faccessat, and the times.

use super::{Device, Fs, InodeId, Node};
use crate::Errno;
use crate::time::Timespec;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device number that the tree goes by.
const DEVICE_MINOR: u32 = 1;
const BLOCK_SIZE: u32 = 4096;
/// STATX_BASIC_STATS (`include/uapi/linux/stat.h`).
const STATX_BASIC_STATS: u32 = 0x7ff;

/// `struct stat` of arm64 (`include/uapi/asm-generic/stat.h`): 128 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Stat {
    /// The file system's device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Kind and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For a device node: which device.
    pub rdev: u64,
    pad1: u64,
    /// Bytes.
    pub size: i64,
    /// A good size for reads.
    pub blksize: i32,
    pad2: i32,
    /// 512-byte units in use.
    pub blocks: i64,
    /// Last read.
    pub atime: Timespec,
    /// Last change of the content.
    pub mtime: Timespec,
    /// Last change of anything.
    pub ctime: Timespec,
    unused: [u32; 2],
}

/// `struct statx_timestamp`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: i32,
}

impl From<Timespec> for StatxTime {
    fn from(time: Timespec) -> Self {
        Self {
            sec: time.sec,
            nsec: u32::try_from(time.nsec).unwrap_or(0),
            pad: 0,
        }
    }
}

/// `struct statx`: 256 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    spare0: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    rest: [u64; 14],
}

/// Major and minor number of a device number as `struct stat` has it (`new_decode_dev`).
const fn decoded(device: u64) -> (u32, u32) {
    let device = device as u32;
    (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}

impl From<Stat> for Statx {
    /// The basic fields: all that there is of any file.
    fn from(stat: Stat) -> Self {
        let (rdev_major, rdev_minor) = decoded(stat.rdev);
        let (dev_major, dev_minor) = decoded(stat.dev);
        Self {
            mask: STATX_BASIC_STATS,
            blksize: stat.blksize.cast_unsigned(),
            nlink: stat.nlink,
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode as u16,
            ino: stat.ino,
            size: stat.size.cast_unsigned(),
            blocks: stat.blocks.cast_unsigned(),
            atime: stat.atime.into(),
            ctime: stat.ctime.into(),
            mtime: stat.mtime.into(),
            rdev_major,
            rdev_minor,
            dev_major,
            dev_minor,
            ..Self::default()
        }
    }
}

bitflags! {
    /// What faccessat asks about.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Access: u32 {
        /// X_OK.
        const EXEC = 1;
        /// W_OK.
        const WRITE = 2;
        /// R_OK.
        const READ = 4;
    }
}

impl Fs {
    /// fstat.
    pub fn stat(&self, id: InodeId) -> Result<Stat, Errno> {
        let inode = self.inode(id)?;
        let size = inode.size();
        Ok(Stat {
            dev: u64::from(DEVICE_MINOR),
            ino: id.number(),
            mode: inode.kind() | inode.mode,
            nlink: inode.links,
            rdev: self.device(id).map_or(0, Device::encoded),
            size: size.cast_signed(),
            blksize: BLOCK_SIZE.cast_signed(),
            blocks: size.div_ceil(512).cast_signed(),
            atime: inode.accessed,
            mtime: inode.modified,
            ctime: inode.changed,
            ..Stat::default()
        })
    }

    /// statx: always the basic fields, whatever was asked for.
    pub fn statx(&self, id: InodeId) -> Result<Statx, Errno> {
        Ok(self.stat(id)?.into())
    }

    /// faccessat, and what execve asks before it runs a file: root may do everything but execute a file
    /// that nobody may execute (`EACCES`).
    pub fn check_access(&self, id: InodeId, access: Access) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        let executable = inode.mode & 0o111 != 0 || matches!(inode.node, Node::Dir(_));
        if access.contains(Access::EXEC) && !executable {
            Err(Errno::EACCES)
        } else {
            Ok(())
        }
    }

    /// fchmodat.
    pub fn set_mode(&mut self, id: InodeId, mode: u32) -> Result<(), Errno> {
        let now = self.now;
        let inode = self.inode_mut(id)?;
        inode.mode = mode & 0o7777;
        inode.changed = now;
        Ok(())
    }

    /// utimensat: `None` leaves a time as it is.
    pub fn set_times(
        &mut self,
        id: InodeId,
        accessed: Option<Timespec>,
        modified: Option<Timespec>,
    ) -> Result<(), Errno> {
        let now = self.now;
        let inode = self.inode_mut(id)?;
        inode.accessed = accessed.unwrap_or(inode.accessed);
        inode.modified = modified.unwrap_or(inode.modified);
        inode.changed = now;
        Ok(())
    }

    fn device(&self, id: InodeId) -> Option<Device> {
        match self.inode(id).ok()?.node {
            Node::Device(device) => Some(device),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn layouts_are_arm64s() {
        assert_eq!(size_of::<Stat>(), 128);
        assert_eq!((offset_of!(Stat, mode), offset_of!(Stat, nlink)), (16, 20));
        assert_eq!((offset_of!(Stat, rdev), offset_of!(Stat, size)), (32, 48));
        assert_eq!(
            (offset_of!(Stat, blocks), offset_of!(Stat, atime)),
            (64, 72)
        );
        assert_eq!(size_of::<Statx>(), 256);
        assert_eq!((offset_of!(Statx, mode), offset_of!(Statx, size)), (28, 40));
        assert_eq!(
            (offset_of!(Statx, atime), offset_of!(Statx, rdev_major)),
            (64, 128)
        );
    }

    #[test]
    fn statx_says_what_stat_does() {
        let mut stat = Stat {
            mode: 0o20620,
            nlink: 1,
            blksize: 1024,
            size: 7,
            ..Stat::default()
        };
        for (major, minor) in [(10, 232), (0x123, 0x4_5678)] {
            stat.rdev = Device::Unknown { major, minor }.encoded();
            let statx = Statx::from(stat);
            assert_eq!((statx.rdev_major, statx.rdev_minor), (major, minor));
            assert_eq!((statx.mode, statx.nlink, statx.size), (0o20620, 1, 7));
            assert_eq!((statx.blksize, statx.mask), (1024, 0x7ff));
        }
    }
}
