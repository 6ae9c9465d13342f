//! Address spaces of processes: what the map of areas promises, made true page by page.
//!
//! One lock per address space (rank 150) guards areas and tables alike. Whoever derives something
//! from a page here (a VM's stage 2) does so inside that lock, by [`Mm::with_page`], and is told
//! under the same lock before the page changes or goes: what a guest can reach never outlives what
//! its VMM maps, and `munmap` takes effect in the guest before it returns.

mod object;
mod pages;
mod space;
mod user;

pub(crate) use object::{FilePages, Object, SharedPages, read_page, write_page};
pub(crate) use space::{Breakage, Mm, MmFault, Notifier, PageView, Present};
pub(crate) use user::Failed;
