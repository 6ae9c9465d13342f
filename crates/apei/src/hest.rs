//! The hardware error source table (ACPI 6.5, 18.3.2): which error sources there are.
//!
//! ```text
//!   0  header of every ACPI table (36)   36 how many sources   40  source, source, …
//!   generic source: 0 kind (9; 10: version 2)  2 id  7 enabled  20 where the status block is told
//!                  32 how it notifies  60 bytes of the block    version 2: 64 acknowledgement
//! ```
//!
//! Only generic sources say what a kernel can read without a driver; the others are passed over by the
//! lengths that the specification gives them. One whose length is not known ends the walk, and says so.

use umbra_arm64::Pa;

use crate::{bytes, u16_at, u32_at, u64_at};

/// Bytes of the header of an ACPI table.
pub const HEADER_BYTES: usize = 36;
const FIRST_SOURCE: usize = 40;

/// Why a table is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HestError {
    /// It does not begin with HEST.
    Signature,
    /// Its length is less than its header's, or more than there is.
    Length,
    /// Its bytes do not add up to 0.
    Checksum,
}

/// Why an error source is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its kind has no length that is known, or it ends beyond the table: nothing after it is found.
    Unreadable {
        /// Its kind.
        kind: u16,
    },
    /// Not a generic source.
    Kind {
        /// Its kind.
        kind: u16,
    },
    /// The firmware has switched it off.
    Disabled {
        /// The source's id.
        id: u16,
    },
    /// A register that is not 64 bits of system memory.
    Register {
        /// The source's id.
        id: u16,
    },
}

/// How a source says that it has something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// Not at all: it is looked at every so often.
    Polled {
        /// Milliseconds in between.
        interval: u32,
    },
    /// By the synchronous external abort of whoever consumed the error.
    Sea,
    /// In another way, by its number.
    Other(u8),
}

/// How firmware is told that its block was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledge {
    /// Where the register is: 64 bits.
    pub register: Pa,
    /// The bits of it that stay.
    pub preserve: u64,
    /// The bits of it that are set.
    pub write: u64,
}

/// A generic hardware error source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its number.
    pub id: u16,
    /// How it notifies.
    pub notification: Notification,
    /// Where the address of its status block is: 64 bits.
    pub status_address: Pa,
    /// Bytes of the status block, at most.
    pub block_bytes: u32,
    /// Version 2: how to acknowledge.
    pub acknowledge: Option<Acknowledge>,
}

/// The table.
#[derive(Clone, Copy, Debug)]
pub struct Hest<'a> {
    sources: &'a [u8],
    count: u32,
}

/// The length that an ACPI table's header gives it.
pub fn table_bytes(header: &[u8; HEADER_BYTES]) -> u32 {
    u32::from_le_bytes([header[4], header[5], header[6], header[7]])
}

impl<'a> Hest<'a> {
    /// The table at the start of `bytes`.
    ///
    /// # Errors
    /// [`HestError`].
    pub fn read(table: &'a [u8]) -> Result<Self, HestError> {
        let header: [u8; HEADER_BYTES] = bytes(table, 0).ok_or(HestError::Length)?;
        if header[..4] != *b"HEST" {
            return Err(HestError::Signature);
        }
        let length = usize::try_from(table_bytes(&header)).map_err(|_| HestError::Length)?;
        let table = table.get(..length).ok_or(HestError::Length)?;
        let count = u32_at(table, HEADER_BYTES).ok_or(HestError::Length)?;
        let sources = table.get(FIRST_SOURCE..).ok_or(HestError::Length)?;
        match table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) {
            0 => Ok(Self { sources, count }),
            _ => Err(HestError::Checksum),
        }
    }

    /// Its sources, and why some are not used.
    pub fn sources(&self) -> impl Iterator<Item = Result<Source, Refused>> + use<'a> {
        let mut rest = self.sources;
        // The length ends the walk too: the count is the firmware's.
        let mut left = self.count;
        core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let kind = u16_at(rest, 0)?;
            let step = source_bytes(rest, kind).and_then(|length| rest.split_at_checked(length));
            let Some((source, after)) = step else {
                left = 0;
                return Some(Err(Refused::Unreadable { kind }));
            };
            rest = after;
            Some(read_source(source, kind))
        })
    }
}

/// Bytes of the source that `rest` begins with, never 0.
fn source_bytes(rest: &[u8], kind: u16) -> Option<usize> {
    match kind {
        6 => Some(48),
        7 => Some(44),
        8 => Some(56),
        GENERIC => Some(64),
        GENERIC_2 => Some(92),
        // Those of other architectures, which end in lists.
        0..6 | 11 => None,
        // From here on every source says it itself.
        12.. => Some(usize::from(u16_at(rest, 2)?)).filter(|&length| length >= 4),
    }
}

const GENERIC: u16 = 9;
const GENERIC_2: u16 = 10;

fn read_source(source: &[u8], kind: u16) -> Result<Source, Refused> {
    if !matches!(kind, GENERIC | GENERIC_2) {
        return Err(Refused::Kind { kind });
    }
    let unreadable = Refused::Unreadable { kind };
    let id = u16_at(source, 2).ok_or(unreadable)?;
    if source.get(7) != Some(&1) {
        return Err(Refused::Disabled { id });
    }
    let status_address = register(source, 20).ok_or(Refused::Register { id })?;
    let notification = match source.get(32).ok_or(unreadable)? {
        0 => Notification::Polled {
            interval: u32_at(source, 36).ok_or(unreadable)?,
        },
        8 => Notification::Sea,
        &other => Notification::Other(other),
    };
    let acknowledge = if kind == GENERIC_2 {
        Some(Acknowledge {
            register: register(source, 64).ok_or(Refused::Register { id })?,
            preserve: u64_at(source, 76).ok_or(unreadable)?,
            write: u64_at(source, 84).ok_or(unreadable)?,
        })
    } else {
        None
    };
    Ok(Source {
        id,
        notification,
        status_address,
        block_bytes: u32_at(source, 60).ok_or(unreadable)?,
        acknowledge,
    })
}

/// A generic address (ACPI 6.5, 5.2.3.2): the space, bits, offset, access size, address. Only whole,
/// aligned doublewords of system memory are taken.
fn register(source: &[u8], at: usize) -> Option<Pa> {
    let [space, bits, offset, _access]: [u8; 4] = bytes(source, at)?;
    let address = u64_at(source, at + 4)?;
    (space == 0 && bits == 64 && offset == 0 && address.is_multiple_of(8)).then(|| Pa::new(address))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn gas(address: u64) -> [u8; 12] {
        let mut gas = [0, 64, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0];
        gas[4..].copy_from_slice(&address.to_le_bytes());
        gas
    }

    fn generic(kind: u16, id: u16, notification: u8) -> Vec<u8> {
        let mut source = vec![0; if kind == 10 { 92 } else { 64 }];
        source[..2].copy_from_slice(&kind.to_le_bytes());
        source[2..4].copy_from_slice(&id.to_le_bytes());
        source[7] = 1;
        source[20..32].copy_from_slice(&gas(0x1000));
        source[32] = notification;
        source[33] = 28;
        source[36..40].copy_from_slice(&50u32.to_le_bytes());
        source[60..64].copy_from_slice(&1024u32.to_le_bytes());
        if kind == 10 {
            source[64..76].copy_from_slice(&gas(0x2000));
            source[76..84].copy_from_slice(&(!1u64).to_le_bytes());
            source[84..92].copy_from_slice(&1u64.to_le_bytes());
        }
        source
    }

    fn table(count: u32, sources: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0; 40];
        table[..4].copy_from_slice(b"HEST");
        table[8] = 1;
        table[36..40].copy_from_slice(&count.to_le_bytes());
        table.extend_from_slice(&sources.concat());
        let length = table.len() as u32;
        table[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
        table
    }

    fn sources(table: &[u8]) -> Vec<Result<Source, Refused>> {
        Hest::read(table).unwrap().sources().collect()
    }

    #[test]
    fn generic_sources_are_read() {
        let seen = sources(&table(2, &[generic(10, 0, 8), generic(9, 1, 0)]));
        let first = Source {
            id: 0,
            notification: Notification::Sea,
            status_address: Pa::new(0x1000),
            block_bytes: 1024,
            acknowledge: Some(Acknowledge {
                register: Pa::new(0x2000),
                preserve: !1,
                write: 1,
            }),
        };
        let second = Source {
            id: 1,
            notification: Notification::Polled { interval: 50 },
            acknowledge: None,
            ..first
        };
        assert_eq!(seen, [Ok(first), Ok(second)]);
    }

    #[test]
    fn the_others_are_passed_over() {
        let other = |kind: u16, bytes: usize| {
            let mut source = vec![0; bytes];
            source[..2].copy_from_slice(&kind.to_le_bytes());
            source[2..4].copy_from_slice(&(bytes as u16).to_le_bytes());
            source
        };
        let (off, mut elsewhere) = (generic(9, 4, 8), generic(10, 5, 11));
        let off = [&off[..7], &[0], &off[8..]].concat();
        elsewhere[64] = 1;
        let all = [
            other(6, 48),
            other(7, 44),
            other(8, 56),
            other(12, 20),
            off,
            elsewhere,
            generic(9, 6, 11),
            other(11, 48),
            generic(9, 7, 8),
        ];
        let seen = sources(&table(9, &all));
        let kinds = [6, 7, 8, 12].map(|kind| Err(Refused::Kind { kind }));
        assert_eq!(seen[..4], kinds);
        assert_eq!(seen[4], Err(Refused::Disabled { id: 4 }));
        assert_eq!(seen[5], Err(Refused::Register { id: 5 }));
        assert_eq!(seen[6].unwrap().notification, Notification::Other(11));
        // What nobody knows the length of hides what follows.
        assert_eq!(seen[7..], [Err(Refused::Unreadable { kind: 11 })]);
    }

    #[test]
    fn registers_are_whole_doublewords_of_memory() {
        for (at, value) in [(20, 1), (21, 32), (22, 1), (24, 4)] {
            let mut source = generic(9, 3, 8);
            source[at] = value;
            let seen = sources(&table(1, &[source]));
            assert_eq!(seen, [Err(Refused::Register { id: 3 })], "byte {at}");
        }
    }

    #[test]
    fn tables_that_are_none() {
        let good = table(1, &[generic(10, 0, 8)]);
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            Hest::read(&bad).map(|_| ())
        };
        assert_eq!(with(0, b'T'), Err(HestError::Signature));
        assert_eq!(with(9, good[9].wrapping_add(1)), Err(HestError::Checksum));
        assert_eq!(with(4, 0), Err(HestError::Length));
        assert_eq!(with(7, 0xff), Err(HestError::Length));
        assert_eq!(Hest::read(&good[..35]).map(|_| ()), Err(HestError::Length));
        // A count beyond the table ends with the table, a count of none is believed.
        assert_eq!(sources(&table(u32::MAX, &[generic(9, 0, 8)])).len(), 1);
        assert_eq!(sources(&table(0, &[generic(9, 0, 8)])), []);
    }

    proptest! {
        #[test]
        fn nonsense_ends(bytes in prop::collection::vec(any::<u8>(), 0..400), count in any::<u32>()) {
            let table = table(count, &[bytes]);
            let Ok(hest) = Hest::read(&table) else {
                return Err(TestCaseError::fail("a table that adds up"));
            };
            // The shortest step is that of a source that gives its own length.
            prop_assert!(hest.sources().count() <= table.len() / 4 + 1);
        }

        #[test]
        fn a_wrong_byte_is_found(at in 0usize..132, flip in 1u8..) {
            let mut bad = table(1, &[generic(10, 0, 8)]);
            bad[at] ^= flip;
            prop_assert!(Hest::read(&bad).is_err());
        }

        #[test]
        fn kinds_and_lengths_that_lie(kind in 0u16..20, length in 0u16..200, cut in 0usize..200) {
            let mut source = generic(10, 0, 8);
            source[..2].copy_from_slice(&kind.to_le_bytes());
            source[2..4].copy_from_slice(&length.to_le_bytes());
            source.truncate(cut);
            let table = table(3, &[source]);
            prop_assert!(Hest::read(&table).unwrap().sources().count() <= 3);
        }
    }
}
