//! pipe2(2): a bounded queue of bytes between two sets of open files.
//!
//! What always holds: at most [`CAPACITY`] bytes are queued, and a write of at most [`PIPE_BUF`]
//! bytes goes in whole or not at all. The counts of readers and writers are of open files, kept by
//! whoever opens and closes them.

use crate::{Errno, Events, Readiness, Stop};
use alloc::collections::VecDeque;

/// Bytes that a pipe holds (Linux's default: sixteen pages).
pub const CAPACITY: usize = 64 * 1024;
/// Writes up to this many bytes are atomic (`include/uapi/linux/limits.h`).
pub const PIPE_BUF: usize = 4096;

/// Which side of a pipe an open file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The side that is read from.
    Read,
    /// The side that is written to.
    Write,
}

/// One pipe.
#[derive(Debug)]
pub struct Pipe {
    bytes: VecDeque<u8>,
    readers: u32,
    writers: u32,
    generation: u64,
}

impl Pipe {
    /// An empty pipe with one reader and one writer. `ENOMEM` if there is no room for its buffer.
    pub fn new() -> Result<Self, Errno> {
        let mut bytes = VecDeque::new();
        bytes
            .try_reserve_exact(CAPACITY)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            bytes,
            readers: 1,
            writers: 1,
            generation: 0,
        })
    }

    /// Takes up to `buf.len()` bytes; 0 is the end: empty, and no writer left.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Stop> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.bytes.is_empty() {
            return if self.writers == 0 {
                Ok(0)
            } else {
                Err(Stop::WouldBlock)
            };
        }
        let count = buf.len().min(self.bytes.len());
        for (to, from) in buf.iter_mut().zip(self.bytes.drain(..count)) {
            *to = from;
        }
        self.touch();
        Ok(count)
    }

    /// Queues bytes of `buf` and says how many. `EPIPE` if no reader is left; SIGPIPE is then the
    /// caller's to send. A longer write than [`PIPE_BUF`] may be cut: a blocking caller continues
    /// with the rest.
    pub fn write(&mut self, buf: &[u8]) -> Result<usize, Stop> {
        if self.readers == 0 {
            return Err(Errno::EPIPE.into());
        }
        let room = CAPACITY - self.bytes.len();
        let needed = if buf.len() <= PIPE_BUF { buf.len() } else { 1 };
        if room < needed {
            return Err(Stop::WouldBlock);
        }
        let count = buf.len().min(room);
        self.bytes.extend(buf.iter().take(count));
        if count > 0 {
            self.touch();
        }
        Ok(count)
    }

    /// One more open file on `end`. `ENFILE` if they can no longer be counted.
    pub fn open(&mut self, end: End) -> Result<(), Errno> {
        let count = self.count_mut(end);
        *count = count.checked_add(1).ok_or(Errno::ENFILE)?;
        Ok(())
    }

    /// One open file on `end` fewer. The last one on a side wakes the other.
    pub fn close(&mut self, end: End) {
        let count = self.count_mut(end);
        *count = count.saturating_sub(1);
        self.touch();
    }

    /// Bytes waiting (FIONREAD).
    pub fn queued(&self) -> usize {
        self.bytes.len()
    }

    /// The state for poll of an open file on `end`.
    pub fn readiness(&self, end: End) -> Readiness {
        let mut events = Events::empty();
        match end {
            End::Read => {
                events.set(Events::READABLE, !self.bytes.is_empty());
                events.set(Events::HUP, self.writers == 0);
            }
            End::Write => {
                // Room for an atomic write: a writer that is told so must not block.
                events.set(Events::WRITABLE, CAPACITY - self.bytes.len() >= PIPE_BUF);
                events.set(Events::ERR, self.readers == 0);
            }
        }
        Readiness {
            events,
            generation: self.generation,
        }
    }

    fn count_mut(&mut self, end: End) -> &mut u32 {
        match end {
            End::Read => &mut self.readers,
            End::Write => &mut self.writers,
        }
    }

    fn touch(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn small_writes_are_all_or_nothing() {
        let mut p = Pipe::new().unwrap();
        assert_eq!(p.write(&vec![1; CAPACITY - 10]), Ok(CAPACITY - 10));
        assert_eq!(p.write(&[2; 11]), Err(Stop::WouldBlock));
        assert_eq!(p.write(&[2; PIPE_BUF + 1]), Ok(10));
        assert_eq!(p.write(&[2; PIPE_BUF + 1]), Err(Stop::WouldBlock));
        assert_eq!(p.readiness(End::Write).events, Events::empty());
    }

    #[test]
    fn the_last_writer_is_the_end_and_the_last_reader_is_epipe() {
        let mut p = Pipe::new().unwrap();
        let mut buf = [0; 4];
        p.open(End::Write).unwrap();
        p.write(b"ab").unwrap();
        p.close(End::Write);
        assert_eq!(p.read(&mut buf), Ok(2));
        assert_eq!(p.read(&mut buf), Err(Stop::WouldBlock));
        p.close(End::Write);
        assert_eq!(p.read(&mut buf), Ok(0));
        assert_eq!(p.readiness(End::Read).events, Events::HUP);
        p.close(End::Read);
        assert_eq!(p.write(b"x"), Err(Stop::Failed(Errno::EPIPE)));
        assert_eq!(
            p.readiness(End::Write).events,
            Events::WRITABLE | Events::ERR
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_come_out_as_they_went_in(
            ops in prop::collection::vec((any::<bool>(), 0usize..30_000), 1..60)
        ) {
            let mut p = Pipe::new().unwrap();
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (write, len) in ops {
                if write {
                    let data: Vec<u8> = (0..len).map(|i| next.wrapping_add(i as u8)).collect();
                    let room = CAPACITY - model.len();
                    match p.write(&data) {
                        Ok(n) => {
                            prop_assert_eq!(n, len.min(room));
                            prop_assert!(len > PIPE_BUF || n == len);
                            model.extend(&data[..n]);
                            next = next.wrapping_add(n as u8);
                        }
                        Err(stop) => {
                            prop_assert_eq!(stop, Stop::WouldBlock);
                            prop_assert!(room == 0 || (len <= PIPE_BUF && len > room));
                        }
                    }
                } else {
                    let mut buf = vec![0; len];
                    match p.read(&mut buf) {
                        Ok(n) => {
                            prop_assert_eq!(n, len.min(model.len()));
                            prop_assert!(model.drain(..n).eq(buf[..n].iter().copied()));
                        }
                        Err(stop) => {
                            prop_assert_eq!(stop, Stop::WouldBlock);
                            prop_assert!(model.is_empty());
                        }
                    }
                }
                prop_assert_eq!(p.queued(), model.len());
                prop_assert_eq!(p.readiness(End::Read).events.contains(Events::IN), !model.is_empty());
            }
        }
    }
}
