//! Who runs next, and what is due when: the pure parts of scheduling.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod deadlines;
mod runqueue;

pub use deadlines::{Deadlines, Ticket};
pub use runqueue::{RunQueue, SLICE_NS};
