//! The engine against a simple model and a TLB that forgets nothing by itself.
//!
//! - `fake`: table pages that are never used twice, so that a use after free is seen.
//! - `mmu`: hardware, written from the manual and not from the engine: after every step it caches
//!   every translation and every table pointer it can reach, from the root and from whatever it
//!   cached before. Two that contradict each other are a break-before-make violation.
//! - `extents`: what ought to be mapped.
//! - `harness`: performs an operation on engine and model, leaves some break-before-makes open, and
//!   checks after each step that the tables say what the model says, that the TLB holds nothing
//!   that the tables do not say, and that no page leaks.
//! - `heal`: table pages that go bad.
//! - `stream`: operations out of bytes, for the fuzz target, which is why the rest is there with the
//!   feature `model` too.
//! - `properties`: random sequences; `sabotage`: each invalidation left out once, and caught.

mod extents;
mod fake;
mod harness;
#[cfg(test)]
mod heal;
mod mmu;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod sabotage;
#[cfg(test)]
mod scenarios;
mod stream;

pub use stream::replay;
