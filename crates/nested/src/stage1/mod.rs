//! Stage 1 as a guest has it: EL1&0 of a guest's guest, EL2&0 (and EL2) of a guest hypervisor.
//!
//! The same walk serves all three; they differ in where the tables lie ([`Untranslated`],
//! [`BehindStage2`]), and so in the type of address that comes out. It is needed for AT, for
//! VNCR_EL2, and to find the descriptor that a fault on a walk was about.
//!
//! It is a transcription of what the manual says hardware does (Arm ARM D8.2.2, D8.4,
//! AArch64.S1Translate). HCR_EL2.NV1 is not there: it is RES0 for our guests.

mod config;
mod permission;
mod tables;
mod walk;

pub use config::{Regime, Stage1Config, Stage1Regs};
pub use tables::{BehindStage2, Untranslated};
pub use walk::{Access, Kind, Mapping, walk};
