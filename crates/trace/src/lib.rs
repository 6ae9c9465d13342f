//! What umbra did, as typed events: the records that the kernel writes and that `xtask` reads.
//!
//! ```text
//!   Event ── encode ──► Record: 8 words ──► a ring in memory ──► Block: header, records ──► a file
//!     ▲                                                                                        │
//!     └─ decode, if the file's own description of the event is the reader's ◄── Schema ◄───────┘
//! ```
//!
//! A record has a fixed size, so a ring needs no bookkeeping but a count, and a torn or overwritten
//! one spoils nothing behind it. A file carries the description of its events (`schema`): an event
//! that the reader does not know, or knows otherwise, is shown by the file's name and fields. It is
//! never read as something that it is not.
//!
//! Names and fields are those of Linux's tracepoints where Linux has one; see `event`.
#![no_std]
#![forbid(unsafe_code)]

pub mod block;
mod event;
mod record;
pub mod schema;
mod word;

pub use event::{DESCRIPTIONS, Description, Event};
pub use record::{Head, RECORD_BYTES, RECORD_WORDS, Record, Storey};
pub use word::{
    Bytes, ExitKind, How, IdleState, Injected, MmioBy, MmioKind, NestedException, Owner,
    Resolution, Rights, SeaPath, Shadowed, UnmapReason, Word,
};
