//! The 64-bit Arm architecture as data.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod granule;
pub mod sysreg;
pub mod tag;
pub mod vncr;

pub use addr::{Address, Gva, Hva, Ipa, Kva, L2Ipa, Pa};
pub use granule::{Granule, Level};
pub use tag::{Asid, Tag, Vmid};
