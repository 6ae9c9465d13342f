//! How an ioctl number is put together (`include/uapi/asm-generic/ioctl.h`).
//!
//! ```text
//!   31 30 29           16 15      8 7       0
//!   ┌─────┬──────────────┬─────────┬─────────┐
//!   │ dir │ size of arg  │ 0xAE    │ number  │     dir: 1 the kernel reads the argument (_IOW),
//!   └─────┴──────────────┴─────────┴─────────┘          2 it writes it (_IOR), 3 both, 0 no pointer
//! ```
//!
//! KVM's directions are not always what the call does (KVM_GET_DEVICE_ATTR is `_IOW`); the number
//! is the ABI, so it is what counts here.

use core::fmt;

/// The type byte of every KVM ioctl.
pub const KVMIO: u8 = 0xae;

/// The number of an ioctl.
///
/// The system call's argument is 64 bits wide; Linux looks at the low 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ioctl(u32);

impl Ioctl {
    const fn build(dir: u32, number: u8, size: usize) -> Self {
        assert!(size < 1 << 14, "an ioctl's argument is smaller than 16 KiB");
        Self(dir << 30 | (size as u32) << 16 | (KVMIO as u32) << 8 | number as u32)
    }

    /// `_IO`: the argument is a plain number.
    pub const fn none(number: u8) -> Self {
        Self::build(0, number, 0)
    }

    /// `_IOW`: the argument points to a `T`.
    pub const fn write<T>(number: u8) -> Self {
        Self::build(1, number, size_of::<T>())
    }

    /// `_IOR`: the argument points to a `T`.
    pub const fn read<T>(number: u8) -> Self {
        Self::build(2, number, size_of::<T>())
    }

    /// `_IOWR`: the argument points to a `T`.
    pub const fn read_write<T>(number: u8) -> Self {
        Self::build(3, number, size_of::<T>())
    }

    /// From the second argument of the system call.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The number as a program passes it.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The size in bytes of what the argument points to; 0 for a plain number.
    pub const fn arg_size(self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }

    /// Whether this is an ioctl of KVM at all.
    pub const fn is_kvm(self) -> bool {
        (self.0 >> 8) as u8 == KVMIO
    }
}

impl fmt::Debug for Ioctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::ioctl::lookup(*self) {
            Some(row) => f.write_str(row.name),
            None => write!(f, "ioctl {:#010x}", self.0),
        }
    }
}
