//! What a Linux process is made of, without the machine it runs on.
//!
//! Everything here is bookkeeping: no file blocks, reads a clock, touches user memory or changes a
//! page table. A call that would have to wait answers [`Stop::WouldBlock`], a time is an argument,
//! user data are byte slices that the caller copies, and what must happen to the page table comes
//! back as a `#[must_use]` value. That is why every rule in this crate can be tested on any host.
//!
//! ```text
//!  exec      elf ── stack            what the first instruction finds
//!  memory    vma                     which addresses mean what
//!  files     fd ── fs ── cpio        names and contents
//!            pipe socket eventfd timerfd tty epoll     things that become ready
//!            lock                      who may use a file meanwhile
//!  threads   futex signal wait       who waits for whom
//!            seccomp                   which calls a thread may make
//!  testing   einj                    how memory errors are injected
//!  shared    errno outcome events time uapi      the words they are told in
//! ```
//!
//! What always holds: input that comes from a process or an image is checked where it enters, and no
//! such input can cause a panic.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod cpio;
pub mod einj;
pub mod elf;
pub mod epoll;
pub mod errno;
pub mod eventfd;
pub mod events;
pub mod fd;
pub mod fs;
pub mod futex;
pub mod lock;
pub mod memfd;
pub mod outcome;
pub mod pipe;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod stack;
pub mod time;
pub mod timerfd;
pub mod tty;
pub mod uapi;
pub mod vma;
pub mod wait;

pub use errno::Errno;
pub use events::{Events, Readiness};
pub use outcome::Stop;
