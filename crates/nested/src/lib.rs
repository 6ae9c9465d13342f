//! Tables and registers a guest hypervisor owns.
//!
//! ```text
//!   Gva ──stage1::walk──► L2Ipa ──stage2::walk──► Ipa        EL1&0 of a guest's guest
//!   Gva ──stage1::walk──────────────────────────► Ipa        EL2&0 of the guest hypervisor itself
//!         at::translate: either or both, as PAR_EL1 tells it
//!         shadow: the books of what both stages 2 come to, per context
//! ```
//!
//! What always holds: nothing here trusts a bit that a guest wrote. Decoding a control register cannot
//! fail, a walk visits each level at most once, every access to guest memory may fail
//! ([`GuestMemory`]), and every outcome is a translation, the fault that the architecture names, or
//! the request to come back ([`Again`]). Nothing panics, and nothing loops.
//!
//! The walks follow the manual's pseudocode (Arm ARM, AArch64.S1Translate and AArch64.S2Translate);
//! `tests/` holds them against a transcription of it.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "shadow")]
extern crate alloc;

pub mod at;
pub mod attributes;
mod descend;
mod features;
mod layout;
mod memory;
pub mod pauth;
pub mod route;
#[cfg(feature = "shadow")]
pub mod shadow;
pub mod stage1;
pub mod stage2;
mod stop;

pub use descend::{Purpose, Tables};
pub use features::{Features, Granules, Support};
pub use memory::{GuestMemory, MemoryError};
pub use stop::{Again, Stop, Stop1};
