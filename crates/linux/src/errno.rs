//! The error numbers of Linux, as one type.
//!
//! The numbers are those of `include/uapi/asm-generic/errno-base.h` and `errno.h`, which arm64 uses
//! unchanged. The host of the tests uses them too, so the generated constants are safe on both.

use core::fmt;
use linux_raw_sys::errno as raw;

/// The reason a system call failed. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(u16);

macro_rules! errors {
    ($($name:ident $text:literal,)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Self = Self(raw::$name as u16);)*
        }

        /// Number, name and meaning of every error this crate and its users speak of.
        const TABLE: &[(u16, &str, &str)] = &[$((raw::$name as u16, stringify!($name), $text),)*];
    };
}

errors! {
    EPERM "operation not permitted",
    ENOENT "no such file or directory",
    ESRCH "no such process",
    EINTR "interrupted system call",
    EIO "input/output error",
    ENXIO "no such device or address",
    E2BIG "argument list too long",
    ENOEXEC "exec format error",
    EBADF "bad file descriptor",
    ECHILD "no child processes",
    EAGAIN "resource temporarily unavailable",
    ENOMEM "cannot allocate memory",
    EACCES "permission denied",
    EFAULT "bad address",
    EBUSY "device or resource busy",
    EEXIST "file exists",
    EXDEV "cross-device link",
    ENODEV "no such device",
    ENOTDIR "not a directory",
    EISDIR "is a directory",
    EINVAL "invalid argument",
    ENFILE "too many open files in system",
    EMFILE "too many open files",
    ENOTTY "inappropriate ioctl for device",
    ETXTBSY "text file busy",
    EFBIG "file too large",
    ENOSPC "no space left on device",
    ESPIPE "illegal seek",
    EROFS "read-only file system",
    EMLINK "too many links",
    EPIPE "broken pipe",
    ERANGE "numerical result out of range",
    EDEADLK "resource deadlock avoided",
    ENAMETOOLONG "file name too long",
    ENOLCK "no locks available",
    ENOSYS "function not implemented",
    ENOTEMPTY "directory not empty",
    ELOOP "too many levels of symbolic links",
    EOVERFLOW "value too large for defined data type",
    EOPNOTSUPP "operation not supported",
    ENOTSOCK "socket operation on non-socket",
    ENOPROTOOPT "protocol not available",
    EPROTONOSUPPORT "protocol not supported",
    ESOCKTNOSUPPORT "socket type not supported",
    EAFNOSUPPORT "address family not supported",
    EADDRINUSE "address already in use",
    EISCONN "socket is already connected",
    ENOTCONN "socket is not connected",
    ETOOMANYREFS "too many references: cannot splice",
    ECONNREFUSED "connection refused",
    ETIMEDOUT "connection timed out",
    ECANCELED "operation canceled",
    EHWPOISON "memory page has hardware error",
}

impl Errno {
    /// The error of this number, if it is one that Linux's ABI can carry (1 to 4095).
    pub const fn from_code(code: u16) -> Option<Self> {
        if code == 0 || code > 4095 {
            None
        } else {
            Some(Self(code))
        }
    }

    /// The positive number.
    pub const fn code(self) -> u16 {
        self.0
    }

    /// What x0 holds when a system call returns this error: the number, negated.
    pub const fn as_return_value(self) -> u64 {
        (-(self.0 as i64)) as u64
    }

    fn entry(self) -> Option<&'static (u16, &'static str, &'static str)> {
        TABLE.iter().find(|entry| entry.0 == self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((_, name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::string::ToString;

    #[test]
    fn numbers_are_those_of_asm_generic() {
        for (errno, number) in [
            (Errno::EPERM, 1),
            (Errno::EAGAIN, 11),
            (Errno::EPIPE, 32),
            (Errno::EDEADLK, 35),
            (Errno::ENOSYS, 38),
            (Errno::ELOOP, 40),
            (Errno::EOPNOTSUPP, 95),
            (Errno::EHWPOISON, 133),
        ] {
            assert_eq!(errno.code(), number);
        }
    }

    #[test]
    fn the_table_has_no_duplicates_and_fits_the_return_range() {
        let numbers: BTreeSet<u16> = TABLE.iter().map(|entry| entry.0).collect();
        assert_eq!(numbers.len(), TABLE.len());
        assert!(numbers.iter().all(|&n| (1..4096).contains(&n)));
    }

    #[test]
    fn return_value_is_negative() {
        assert_eq!(Errno::ENOENT.as_return_value(), u64::MAX - 1);
        assert_eq!(
            Errno::ENOENT.to_string(),
            "no such file or directory (ENOENT)"
        );
    }
}
