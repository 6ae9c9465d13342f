//! Processes: the Linux view of a program, on umbra's threads.
//!
//! ```text
//!   registry ──► Process ──► UserThread ──► sched::Thread
//!   (numbers)      │ mm        │ mask, own signals
//!                  │ files     └ its loop (`run`): EL0 ─► fault │ system call │ interrupt ─► signals ─► EL0
//!                  │ paths
//!                  └ actions, shared signals
//! ```
//!
//! A thread's registers live on its own kernel stack, in its loop; nobody else touches them. Whoever
//! wants something of a running thread (a signal, its end) leaves word in its `UserThread`, unparks
//! it and kicks its CPU: the loop looks before it goes back to EL0, and every wait looks before it
//! sleeps.

mod emulate;
mod exec;
mod exit;
mod fault;
mod features;
mod process;
mod registry;
mod run;
mod signal;
mod start;
mod thread;

pub(crate) use exec::{Program, execute};
pub(crate) use process::{Paths, Process};
pub(crate) use registry::{by_tid, family, find, new_number, processes};
pub(crate) use run::Context;
pub(crate) use signal::send_to_group;
pub(crate) use start::{Clone, clone, first, thread_count};
pub(crate) use thread::{PR_MCE_KILL_DEFAULT, PR_MCE_KILL_EARLY, PR_MCE_KILL_LATE, UserThread};
