//! Seam 1: what the engine asks of the machine.

use core::sync::atomic::AtomicU64;

use umbra_arm64::{Pa, Tag};

/// No table page could be had. The operation that reports it has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Table pages: reached by physical address, allocated, freed.
///
/// The engine never touches a page that it did not get from `alloc`, and never one that it gave
/// back. A "page" here is one table of the configured granule.
pub trait Tables {
    /// The entries of the table page at `pa`: exactly as many as the granule says (512 for 4 KiB).
    ///
    /// A concatenated root is asked for table by table. Atomics, because hardware walks the same
    /// words and sets the access flag in them.
    fn table(&self, pa: Pa) -> &[AtomicU64];

    /// Allocates `pages` contiguous zeroed table pages, aligned to their total size (`pages` is a
    /// power of two, at most 16), for the table that has `tag`.
    fn alloc(&self, pages: usize, tag: Tag) -> Result<Pa, NoMemory>;

    /// Takes back what one call of `alloc` gave.
    fn free(&self, pa: Pa, pages: usize);
}
