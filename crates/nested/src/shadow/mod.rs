//! The books of shadow stage 2: which contexts there are, and what each of them maps.
//!
//! ```text
//!   VTTBR VTCR HCR ──► ContextKey ──► Pool ──► context (its table is the owner's)
//!
//!   Ipa ──► reverse index ──► Place ─ Place ─ …      every shadow entry that maps a page of the VM
//!                              │ ▲
//!   context, L2Ipa ──► forward index                 the same entries by where they are
//! ```
//!
//! What always holds: a [`Places`] entry exists exactly as long as its leaf in the shadow table; it is
//! found from both ends without a search; and to take back, protect or age one page of the VM costs
//! as much as it has mappings, however much else is mapped.
//!
//! Nothing here touches a table or a TLB: the owner changes its tables and these books under one lock.

mod ghost;
mod key;
mod places;
mod pool;
mod radix;
mod tlbi;

pub use ghost::{GHOSTS, Ghost, Ghosts};
pub use key::ContextKey;
pub use places::{CROWD, Insert, Place, Places, Size};
pub use pool::{ContextId, MOST_CONTEXTS, Pool};
pub use radix::OutOfMemory;
pub use tlbi::{Part, Tlbi};
