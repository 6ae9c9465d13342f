//! A trace file: blocks one behind the other, each a header of eight words and its content.
//!
//! Words are little-endian. A reader skips blocks of a kind that it does not know and refuses a
//! version that it does not know, since nothing behind the header can then be trusted. A file that
//! ends within a block (the machine died while it wrote) is read as far as it goes.

use crate::record::{RECORD_BYTES, Record};

/// The first word of each block: "umbratrc".
pub const MAGIC: u64 = u64::from_le_bytes(*b"umbratrc");
/// Of header and record. Event descriptions have no version: they describe themselves.
pub const VERSION: u32 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Content: text, the schema.
pub const KIND_SCHEMA: u32 = 1;
/// Content: the records of one CPU's ring.
pub const KIND_RING: u32 = 2;

/// The header of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `KIND_*`; another version may know more.
    pub kind: u32,
    /// Bytes of content, a multiple of 8.
    pub bytes: u64,
    /// The CPU that wrote the ring.
    pub cpu: u64,
    /// Ticks per second of its records' times.
    pub frequency: u64,
    /// Records that the ring can hold.
    pub capacity: u64,
    /// Records that were ever written to it.
    pub written: u64,
}

/// Why a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not begin like a trace, or no longer does at this offset.
    NotATrace {
        /// Where, in bytes.
        at: usize,
    },
    /// A version that this reader does not know.
    Version(u32),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::NotATrace { at } => write!(f, "no trace of umbra at offset {at}"),
            Error::Version(version) => write!(
                f,
                "a trace of format {version}; this program reads format {VERSION}"
            ),
        }
    }
}

impl core::error::Error for Error {}

impl Header {
    /// The header's words.
    pub const fn to_words(self) -> [u64; 8] {
        [
            MAGIC,
            (VERSION as u64) << 32 | self.kind as u64,
            self.bytes,
            self.cpu,
            self.frequency,
            self.capacity,
            self.written,
            0,
        ]
    }

    /// The header's bytes in a file.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.to_words()) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES], at: usize) -> Result<Self, Error> {
        let word = |n: usize| {
            let bytes = bytes.get(8 * n..8 * n + 8).unwrap_or_default();
            bytes.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b))
        };
        if word(0) != MAGIC {
            return Err(Error::NotATrace { at });
        }
        let version = (word(1) >> 32) as u32;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        Ok(Self {
            kind: word(1) as u32,
            bytes: word(2),
            cpu: word(3),
            frequency: word(4),
            capacity: word(5),
            written: word(6),
        })
    }
}

/// A block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it says of itself.
    pub header: Header,
    /// Its content, as far as it is there.
    pub content: &'a [u8],
}

impl<'a> Block<'a> {
    /// Whether the file ends before the block does.
    pub fn is_cut(&self) -> bool {
        (self.content.len() as u64) < self.header.bytes
    }

    /// Records that the ring lost: it was full, and they were the oldest.
    pub fn dropped(&self) -> u64 {
        self.header.written.saturating_sub(self.header.capacity)
    }

    /// The records of a ring, oldest first.
    pub fn records(&self) -> impl Iterator<Item = Record> + use<'a> {
        let (records, _) = self.content.as_chunks::<RECORD_BYTES>();
        // Once the ring went round, the oldest lies where the next would be written.
        let oldest = match self.dropped() {
            0 => 0,
            _ => self
                .header
                .written
                .checked_rem(self.header.capacity)
                .unwrap_or(0),
        };
        let (newer, older) =
            records.split_at(usize::try_from(oldest).map_or(0, |at| at.min(records.len())));
        older.iter().chain(newer).map(Record::from_bytes)
    }
}

/// The blocks of a file.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Blocks<'a> {
    /// Of this file.
    pub fn of(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Result<Block<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.file.get(self.at..).filter(|rest| !rest.is_empty())?;
        let Some((header, rest)) = rest.split_first_chunk() else {
            // Too little for a header: what is cut off tells nothing, unless nothing came before.
            let at = core::mem::replace(&mut self.at, self.file.len());
            return (at == 0).then_some(Err(Error::NotATrace { at }));
        };
        let header = match Header::from_bytes(header, self.at) {
            Ok(header) => header,
            Err(error) => {
                self.at = self.file.len();
                return Some(Err(error));
            }
        };
        let bytes = usize::try_from(header.bytes).unwrap_or(usize::MAX);
        let content = rest.get(..bytes).unwrap_or(rest);
        self.at += HEADER_BYTES + content.len();
        Some(Ok(Block { header, content }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, Header, KIND_RING};

    #[test]
    fn a_full_ring_says_how_many_it_lost() {
        let ring = |written| Block {
            header: Header {
                kind: KIND_RING,
                bytes: 0,
                cpu: 0,
                frequency: 1,
                capacity: 4,
                written,
            },
            content: &[],
        };
        assert_eq!([3, 4, 5, 900].map(|n| ring(n).dropped()), [0, 0, 1, 896]);
    }
}
