//! What firmware says of hardware errors, as ACPI's Platform Error Interfaces lay it out in memory.
//!
//! ```text
//!   HEST ─► source: how it notifies, where its status block is told, how it is acknowledged    hest
//!              └─► status block ─► data entries ─► sections: one says which memory is bad       cper
//! ```
//!
//! Written against ACPI 6.5 chapter 18 and UEFI 2.10 appendix N. What always holds:
//!
//! - what firmware left is an allegation: every length is compared with what is really there, and
//!   nothing is read beyond it;
//! - the work is bounded by the bytes that are handed in: each step of each walk consumes some;
//! - nothing here acts, and nothing here knows where the bytes came from.
#![no_std]
#![forbid(unsafe_code)]

mod cper;
mod hest;

pub use cper::{Block, MEMORY_ERROR_BYTES, Malformed, Record, Severity, memory_error};
pub use hest::{
    Acknowledge, HEADER_BYTES, Hest, HestError, Notification, Refused, Source, table_bytes,
};

/// `N` bytes at `at`, if they are there.
fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn u32_at(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], at: usize) -> Option<u64> {
    bytes(from, at).map(u64::from_le_bytes)
}
