//! One type for every address space, so that the compiler keeps them apart.
//!
//! None of the types converts from a bare integer by `From`, and none has arithmetic operators: an
//! address changes its space only in a function whose job that is, and every offset is a checked
//! call that a reader can see.

use core::fmt;

/// What code that serves several address spaces (a table engine) may do with an address of any of
/// them. Which space it is stays in the type.
pub trait Address: Copy + Ord + fmt::Debug + sealed::Sealed {
    /// Names the address `raw`, in bytes from the start of the space.
    fn from_raw(raw: u64) -> Self;
    /// The address as a number of bytes from the start of the space.
    fn to_raw(self) -> u64;
}

mod sealed {
    /// Keeps `Address` to the types of this file.
    pub trait Sealed {}
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Names the address `raw`, in bytes from the start of this space.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The address as a number of bytes from the start of this space.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` above, or `None` where that leaves 64 bits.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Bytes from `base` up to this address, or `None` where it lies below `base`.
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// Rounded down to a multiple of `size`, a power of two in bytes.
            pub const fn align_down(self, size: u64) -> Self {
                debug_assert!(size.is_power_of_two());
                Self(self.0 & !(size - 1))
            }

            /// Rounded up to a multiple of `size`, a power of two in bytes; `None` on overflow.
            pub const fn align_up(self, size: u64) -> Option<Self> {
                match self.0.checked_add(size - 1) {
                    Some(raw) => Some(Self(raw & !(size - 1))),
                    None => None,
                }
            }

            /// Whether the address is a multiple of `size`, a power of two in bytes.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The low bits, below `size`, a power of two in bytes.
            pub const fn offset_in(self, size: u64) -> u64 {
                self.0 & (size - 1)
            }
        }

        impl sealed::Sealed for $name {}

        impl Address for $name {
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }

            fn to_raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#018x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#018x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// A virtual address of a guest, as its own stage 1 sees it.
    Gva
}
address! {
    /// An intermediate physical address of a guest of a guest: the input of the stage 2 that a
    /// guest hypervisor owns.
    L2Ipa
}
address! {
    /// A physical address of a VM: the space of its memory slots, the input of its canonical
    /// stage 2.
    Ipa
}
address! {
    /// A physical address of the machine.
    Pa
}
address! {
    /// A virtual address of a process at EL0 (a VMM).
    Hva
}
address! {
    /// A virtual address of umbra itself, at EL2.
    Kva
}
