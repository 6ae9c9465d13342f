//! The 64-bit Arm architecture as data.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;

pub use addr::{Gva, Hva, Ipa, Kva, L2Ipa, Pa};
