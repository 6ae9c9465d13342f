//! What an abort was, and what to do about it.
//!
//! ```text
//!   Esr, Far, Hpfar ──► classify ──► Abort ──┬─► Sea          whose, and what the VMM may see
//!                                            ├─► Stage2Fault ─┬─► resolve_canonical ──► Action
//!                                            ├─► SError       ├─► resolve_shadow ──► Action, or reflect
//!                                            └─► …            └─► mapping_size
//! ```
//!
//! What always holds:
//!
//! - Classification is total and comes first. Every value that the syndrome register can hold
//!   becomes a named outcome; nothing here panics, and nothing of the guest has changed by then.
//! - After `classify` nobody looks at the raw syndrome again. What hardware does not vouch for (an
//!   IPA, an address) is `None`.
//! - Everything is a pure function. A rule of the architecture or of the project is one small
//!   function with a name and a citation, in [`rules`]; canonical and shadow resolution share them.
#![no_std]
#![forbid(unsafe_code)]

pub mod rules;

mod classify;
mod device;
mod poison;
mod reflect;
mod resolve;
mod sea;
mod serror;
mod shadow;
mod size;

pub use classify::{Abort, Context, Stage2Fault, Stage2Kind, VncrFault, World, classify};
pub use device::{DeviceAccess, device_access};
pub use poison::{Entry as BadFrame, Poison, Registry as BadFrames, Reported};
pub use reflect::{Reflection, reflect};
pub use resolve::{Action, Capabilities, Slot, resolve_canonical};
pub use sea::{Sea, SeaOwner};
pub use serror::SErrorEffect;
pub use shadow::{ShadowAction, Wanted, resolve_shadow, shadow_rights};
pub use size::{SizeRequest, SlotRange, mapping_size};
