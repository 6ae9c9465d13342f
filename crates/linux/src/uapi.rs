//! Numbers of the Linux user ABI on arm64.
//!
//! Written out, not taken from generated bindings, because the bindings follow the machine that runs
//! the tests, and some of these differ between arm64 and x86-64. Each group names the header it is
//! from (paths in the Linux source tree).

// include/uapi/asm-generic/fcntl.h; the four that arm64 moves are in arch/arm64/include/uapi/asm/fcntl.h.
/// Sockets with names in the tree (`include/linux/socket.h`).
pub const AF_UNIX: u16 = 1;
/// A stream of bytes.
pub const SOCK_STREAM: u32 = 1;
/// Level of the options that every socket has.
pub const SOL_SOCKET: u32 = 1;
/// Option: the kind of socket.
pub const SO_TYPE: u32 = 3;
/// Option: the error that waits.
pub const SO_ERROR: u32 = 4;
/// shutdown: reads end.
pub const SHUT_RD: u32 = 0;
/// shutdown: writes end.
pub const SHUT_WR: u32 = 1;
/// shutdown: both.
pub const SHUT_RDWR: u32 = 2;
/// Do not wait this time.
pub const MSG_DONTWAIT: u32 = 0x40;
/// No SIGPIPE.
pub const MSG_NOSIGNAL: u32 = 0x4000;

/// The access mode's two bits.
pub const O_ACCMODE: u32 = 0o3;
/// Open for reading only.
pub const O_RDONLY: u32 = 0;
/// Open for writing only.
pub const O_WRONLY: u32 = 0o1;
/// Open for reading and writing.
pub const O_RDWR: u32 = 0o2;
/// Create the file if it does not exist.
pub const O_CREAT: u32 = 0o100;
/// With O_CREAT: the file must not exist.
pub const O_EXCL: u32 = 0o200;
/// Do not make it the controlling terminal.
pub const O_NOCTTY: u32 = 0o400;
/// Cut to length zero.
pub const O_TRUNC: u32 = 0o1000;
/// Each write goes to the end.
pub const O_APPEND: u32 = 0o2000;
/// Do not wait.
pub const O_NONBLOCK: u32 = 0o4000;
/// Writes reach the disk with their data.
pub const O_DSYNC: u32 = 0o10000;
/// It must be a directory (arm64's own value).
pub const O_DIRECTORY: u32 = 0o40000;
/// It must not be a symbolic link (arm64's own value).
pub const O_NOFOLLOW: u32 = 0o100000;
/// Past the page cache (arm64's own value).
pub const O_DIRECT: u32 = 0o200000;
/// Files beyond 2 GiB (arm64's own value).
pub const O_LARGEFILE: u32 = 0o400000;
/// Leave the access time.
pub const O_NOATIME: u32 = 0o1000000;
/// Closed by execve.
pub const O_CLOEXEC: u32 = 0o2000000;
/// Writes reach the disk; contains O_DSYNC.
pub const O_SYNC: u32 = 0o4010000;
/// A place in the tree, not its content.
pub const O_PATH: u32 = 0o10000000;
/// A file without a name; contains O_DIRECTORY.
pub const O_TMPFILE: u32 = 0o20000000 | O_DIRECTORY;

// include/uapi/linux/fcntl.h
/// Relative paths start at the working directory.
pub const AT_FDCWD: i32 = -100;
/// Do not follow the last symbolic link.
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
/// unlinkat: remove a directory.
pub const AT_REMOVEDIR: u32 = 0x200;
/// faccessat2: check with the effective ids.
pub const AT_EACCESS: u32 = 0x200;
/// linkat: follow the last symbolic link.
pub const AT_SYMLINK_FOLLOW: u32 = 0x400;
/// Do not mount.
pub const AT_NO_AUTOMOUNT: u32 = 0x800;
/// An empty path means the descriptor itself.
pub const AT_EMPTY_PATH: u32 = 0x1000;
/// statx: how fresh (any value does).
pub const AT_STATX_SYNC_TYPE: u32 = 0x6000;

// include/uapi/linux/fs.h
/// renameat2: do not replace.
pub const RENAME_NOREPLACE: u32 = 1;
/// lseek from the start.
pub const SEEK_SET: u32 = 0;
/// lseek from the position.
pub const SEEK_CUR: u32 = 1;
/// lseek from the end.
pub const SEEK_END: u32 = 2;

// include/uapi/linux/falloc.h
/// Leave the length.
pub const FALLOC_FL_KEEP_SIZE: u32 = 1;
/// Make a hole.
pub const FALLOC_FL_PUNCH_HOLE: u32 = 2;

// include/uapi/linux/stat.h
/// The bits of a mode that tell the kind.
pub const S_IFMT: u32 = 0o170000;
/// A named pipe.
pub const S_IFIFO: u32 = 0o010000;
/// A character device.
pub const S_IFCHR: u32 = 0o020000;
/// A directory.
pub const S_IFDIR: u32 = 0o040000;
/// A block device.
pub const S_IFBLK: u32 = 0o060000;
/// A regular file.
pub const S_IFREG: u32 = 0o100000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120000;
/// A socket.
pub const S_IFSOCK: u32 = 0o140000;

// include/uapi/linux/mman.h and asm-generic/mman*.h
/// mmap: other processes see writes.
pub const MAP_SHARED: u32 = 0x01;
/// mmap: writes stay private.
pub const MAP_PRIVATE: u32 = 0x02;
/// mmap: as MAP_SHARED, and unknown flags are errors.
pub const MAP_SHARED_VALIDATE: u32 = 0x03;
/// mmap: the bits that tell the three above apart.
pub const MAP_TYPE: u32 = 0x0f;
/// mmap: exactly here.
pub const MAP_FIXED: u32 = 0x10;
/// mmap: no file.
pub const MAP_ANONYMOUS: u32 = 0x20;
/// mmap: a stack.
pub const MAP_GROWSDOWN: u32 = 0x100;
/// mmap: promise no memory.
pub const MAP_NORESERVE: u32 = 0x4000;
/// mmap: bring pages in now.
pub const MAP_POPULATE: u32 = 0x8000;
/// mmap: from the pool of large pages.
pub const MAP_HUGETLB: u32 = 0x4_0000;
/// mmap: exactly here, if free.
pub const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
/// mremap: may move.
pub const MREMAP_MAYMOVE: u32 = 1;
/// mremap: exactly there.
pub const MREMAP_FIXED: u32 = 2;
/// madvise: nothing special.
pub const MADV_NORMAL: u32 = 0;
/// madvise: random order.
pub const MADV_RANDOM: u32 = 1;
/// madvise: from the front.
pub const MADV_SEQUENTIAL: u32 = 2;
/// madvise: soon.
pub const MADV_WILLNEED: u32 = 3;
/// madvise: give up now.
pub const MADV_DONTNEED: u32 = 4;
/// madvise: may be given up.
pub const MADV_FREE: u32 = 8;
/// madvise: not for children.
pub const MADV_DONTFORK: u32 = 10;
/// madvise: for children again.
pub const MADV_DOFORK: u32 = 11;
/// madvise: by blocks.
pub const MADV_HUGEPAGE: u32 = 14;
/// madvise: not by blocks.
pub const MADV_NOHUGEPAGE: u32 = 15;
/// madvise: not in a core image.
pub const MADV_DONTDUMP: u32 = 16;
/// madvise: in a core image again.
pub const MADV_DODUMP: u32 = 17;
/// madvise: bring in for reading.
pub const MADV_POPULATE_READ: u32 = 22;
/// madvise: bring in for writing.
pub const MADV_POPULATE_WRITE: u32 = 23;
/// madvise: the page has a memory error.
pub const MADV_HWPOISON: u32 = 100;

// arch/arm64/include/uapi/asm/mman.h
/// mmap, mprotect: branch targets are marked.
pub const PROT_BTI: u32 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The generated bindings are the host's, so only numbers that all architectures share can be
    /// compared with them.
    #[test]
    fn shared_numbers_agree_with_the_generated_ones() {
        use linux_raw_sys::general as raw;
        for (ours, theirs) in [
            (O_CREAT, raw::O_CREAT),
            (O_EXCL, raw::O_EXCL),
            (O_TRUNC, raw::O_TRUNC),
            (O_APPEND, raw::O_APPEND),
            (O_NONBLOCK, raw::O_NONBLOCK),
            (O_CLOEXEC, raw::O_CLOEXEC),
            (O_SYNC, raw::O_SYNC),
            (O_PATH, raw::O_PATH),
            (AT_SYMLINK_NOFOLLOW, raw::AT_SYMLINK_NOFOLLOW),
            (AT_REMOVEDIR, raw::AT_REMOVEDIR),
            (AT_EMPTY_PATH, raw::AT_EMPTY_PATH),
            (S_IFLNK, raw::S_IFLNK),
            (S_IFREG, raw::S_IFREG),
            (MAP_FIXED, raw::MAP_FIXED),
            (MAP_ANONYMOUS, raw::MAP_ANONYMOUS),
            (MAP_NORESERVE, raw::MAP_NORESERVE),
            (MAP_POPULATE, raw::MAP_POPULATE),
            (MAP_HUGETLB, raw::MAP_HUGETLB),
            (MAP_FIXED_NOREPLACE, raw::MAP_FIXED_NOREPLACE),
            (MADV_FREE, raw::MADV_FREE),
            (MADV_HUGEPAGE, raw::MADV_HUGEPAGE),
            (MADV_POPULATE_WRITE, raw::MADV_POPULATE_WRITE),
            (MADV_HWPOISON, raw::MADV_HWPOISON),
        ] {
            assert_eq!(ours, theirs);
        }
    }
}
