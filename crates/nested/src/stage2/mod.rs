//! Stage 2 as a guest hypervisor has it: its own control registers and its own tables.
//!
//! ```text
//!   VTCR_EL2 VTTBR_EL2 HCR_EL2 SCTLR_EL2.EE ──► Stage2Config ──┐
//!                                              L2Ipa, Access ──┴─► walk ──► Ipa, rights, size, attributes
//!                                                                     └──► Stop (fault kind and level)
//! ```
//!
//! [`walk()`] is the only function in umbra that turns an `L2Ipa` into an `Ipa` (rows N4, N6). It is
//! a transcription of what the manual says hardware does (Arm ARM D8.2.3, AArch64.S2Translate), so
//! the fault it ends in is the one that the guest hypervisor must be given, and a configuration that
//! the manual calls invalid is a fault like any other.

mod around;
mod config;
mod walk;

pub use around::{Around, Neighbour, WINDOW, around};
pub use config::Stage2Config;
pub use walk::{Access, Mapping, walk};
