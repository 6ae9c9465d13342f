//! The files that umbra itself provides.
//!
//! Each is a [`crate::file::File`] around the bookkeeping of `umbra-linux`, with a lock and a wait
//! queue. The locks are leaves as far as files are concerned: a file never calls another one while
//! it holds its own (epoll asks the files of its list, whose locks have higher ranks).

mod device;
mod disk;
pub(crate) mod epoll;
mod eventfd;
mod memory;
mod pipe;
mod poison;
pub(crate) mod socket;
mod text;
mod timerfd;

pub(crate) mod random;
pub(crate) mod tree;
pub(crate) mod tty;

pub(crate) use device::{Full, Null, Zero};
pub(crate) use disk::DiskFile;
pub(crate) use epoll::EpollFile;
pub(crate) use eventfd::{EventFd, EventSink};
pub(crate) use memory::MemoryFile;
pub(crate) use pipe::PipeEnd;
pub(crate) use random::Random;
pub(crate) use timerfd::TimerFd;
