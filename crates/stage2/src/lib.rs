//! Translation tables umbra owns: one engine for stage 2 of VMs (canonical and shadow) and for
//! stage 1 of processes at EL0.
//!
//! ```text
//!   PageTable ── root ─► [ table | block | absent | in transition | … ]
//!                            │                          ▲
//!                            ▼                          │ complete(make, &discharged)
//!                     [ page | absent … ]               │
//!                                                       │
//!   map/unmap/protect/… ──► TlbWork ── discharge ──► Discharged ── release ──► pages freed
//! ```
//!
//! What always holds:
//!
//! - An entry goes from invalid to valid without TLB work; every other change of a translation
//!   returns `TlbWork`, and a table page is freed only after that was discharged.
//! - An entry's output, size or memory type never changes from one valid value to another:
//!   break-before-make is two steps with a discharge between them, and the entry says meanwhile that
//!   it is in transition, so that a concurrent fault reports `Busy` instead of filling it.
//! - The work of an operation is proportional to the tables that are present in its range.
//! - Nothing here touches the machine. Tables are reached through [`Tables`]; invalidations are
//!   requests to the caller; so are barriers: **after an operation, and before the lock is released or
//!   anyone is told, the caller executes `dsb ishst`** (`TlbWork::discharge`'s callee does it first).
//!
//! `&mut self` stands for the lock. Hardware takes no lock: it walks at any time and sets access
//! flags, so live entries are changed by swap or compare-and-swap only.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "model"))]
extern crate std;

pub mod dirty;
mod entry;
mod format;
mod geometry;
mod heal;
mod map;
mod range;
mod resize;
mod seam;
pub mod seen;
mod table;
mod work;

#[cfg(any(test, feature = "model"))]
pub mod model;

pub use format::{Attrs, El20, Format, Memory, S2};
pub use geometry::Geometry;
pub use heal::Healed;
pub use map::{Broken, Completed, Make, MapError, Mapped};
pub use range::Change;
pub use seam::{NoMemory, Tables};
pub use table::{Config, Cursor, Leaf, PageTable};
pub use work::{Discharged, Scope, TlbRequest, TlbWork};

pub use umbra_arm64::Rights;
use umbra_arm64::{Hva, Ipa, L2Ipa};

/// A VM's own stage 2.
pub type Canonical = PageTable<S2, Ipa>;
/// The stage 2 that stands for a guest hypervisor's tables and ours, combined.
pub type Shadow = PageTable<S2, L2Ipa>;
/// The tables of a process at EL0.
pub type User = PageTable<El20, Hva>;
