//! The error numbers that KVM calls answer (`include/uapi/asm-generic/errno*.h`).

use core::fmt;

/// A positive Linux error number; a system call returns it negated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Errno = Errno($value);
            )*
        }

        const NAMES: &[(Errno, &str)] = &[$((Errno::$name, stringify!($name)),)*];
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such register, device attribute or file";
    EINTR = 4, "Interrupted by a signal or by `immediate_exit`";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such device, address or attribute";
    E2BIG = 7, "The caller's list is too short";
    ENOEXEC = 8, "The vCPU was not initialised before it was run";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Try again";
    ENOMEM = 12, "Out of memory";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "Already exists, or overlaps what exists";
    ENODEV = 19, "No such device";
    EINVAL = 22, "Invalid argument";
    EMFILE = 24, "Too many open files";
    ENOTTY = 25, "No such ioctl on this file";
    ENOSPC = 28, "No space left";
    ERANGE = 34, "Out of range";
    ENOSYS = 38, "Function not implemented";
    EOPNOTSUPP = 95, "Operation not supported";
}

impl Errno {
    /// The number, positive.
    pub const fn number(self) -> i32 {
        self.0 as i32
    }

    /// What the system call returns in x0.
    pub const fn to_return(self) -> i64 {
        -(self.0 as i64)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|row| row.0 == *self) {
            Some(row) => f.write_str(row.1),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn numbers_ascend_and_print_by_name() {
        assert!(NAMES.windows(2).all(|pair| pair[0].0.0 < pair[1].0.0));
        assert_eq!(format!("{}", Errno::ENOEXEC), "ENOEXEC");
        assert_eq!(Errno::EINVAL.to_return(), -22);
    }
}
