//! A generic error status block (ACPI 6.5, 18.3.2.7) and the common platform error records in it (UEFI
//! 2.10, appendix N).
//!
//! ```text
//!   0  block status   4 raw offset   8 raw length   12 data length   16 severity
//!  20  entry: section type (a GUID), severity, …, 24 length of its data, …  64 or 72  data
//!      entry: …                                                                        │
//!      memory error section: 0 which fields are valid   8 status   16 address   24 mask
//! ```
//!
//! A block is checked as a whole before anything of it is believed: what comes out of [`Block::read`] has
//! entries that fill its data to the byte. The counts in it (entries, raw data) are firmware's, and decide nothing.

use umbra_arm64::Pa;

use crate::{bytes, u16_at, u32_at, u64_at};

/// Bytes before the first entry.
const STATUS_BYTES: usize = 20;
/// Bytes of an entry before its data; from revision 3.0 on a time follows.
const ENTRY_BYTES: usize = 64;
const ENTRY_BYTES_WITH_TIME: usize = 72;
/// Memory error section as UEFI 2.1 had it; later ones are longer.
const MEMORY_BYTES: usize = 73;
const MEMORY_BYTES_TODAY: usize = 80;

/// A5BC1114-6F64-4EDE-B863-3E83ED7C83B1, as it lies in memory.
const MEMORY_SECTION: [u8; 16] = [
    0x14, 0x11, 0xbc, 0xa5, 0x64, 0x6f, 0xde, 0x4e, 0xb8, 0x63, 0x3e, 0x83, 0xed, 0x7c, 0x83, 0xb1,
];
/// The memory error section's physical address is valid.
const ADDRESS_VALID: u64 = 1 << 1;

/// A status block that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Data is lost; whoever does not need it can go on.
    Recoverable,
    /// Nobody can go on.
    Fatal,
    /// Hardware has mended it.
    Corrected,
    /// Nothing is wrong.
    Informational,
}

impl Severity {
    /// A number that means nothing is taken for the one that costs least and still loses nothing.
    fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Fatal,
            2 => Self::Corrected,
            3 => Self::Informational,
            _ => Self::Recoverable,
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// How bad it is.
    pub severity: Severity,
    /// Whether it is about memory.
    pub is_memory: bool,
    /// The first byte that is lost, as far as it is told.
    pub address: Option<Pa>,
}

/// A status block that holds together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    entries: &'a [u8],
    severity: Severity,
}

/// An entry with its section, and the bytes that follow it.
struct Entry<'a> {
    record: Record,
    rest: &'a [u8],
}

fn first_entry(entries: &[u8]) -> Option<Entry<'_>> {
    let section: [u8; 16] = bytes(entries, 0)?;
    let severity = Severity::from_number(u32_at(entries, 16)?);
    let head = match u16_at(entries, 20)? >> 8 {
        0..3 => ENTRY_BYTES,
        _ => ENTRY_BYTES_WITH_TIME,
    };
    let length = usize::try_from(u32_at(entries, 24)?).ok()?;
    let data = entries.get(head..)?.get(..length)?;
    let rest = entries.get(head..)?.get(length..)?;
    let is_memory = section == MEMORY_SECTION;
    let mut address = None;
    if is_memory {
        let valid = u64_at(data, 0).filter(|_| data.len() >= MEMORY_BYTES)?;
        if valid & ADDRESS_VALID != 0 {
            address = Some(Pa::new(u64_at(data, 16)?));
        }
    }
    Some(Entry {
        record: Record {
            severity,
            is_memory,
            address,
        },
        rest,
    })
}

impl<'a> Block<'a> {
    /// What a status block says; `None` if it holds no error. `block` may be longer than what is used of it.
    ///
    /// # Errors
    /// [`Malformed`]: lengths that do not fit into the block or into each other, a memory error section
    /// that ends before its fields do.
    pub fn read(block: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let status = u32_at(block, 0).ok_or(Malformed)?;
        if status == 0 {
            return Ok(None);
        }
        let raw_offset = u32_at(block, 4).ok_or(Malformed)?;
        let raw_length = u32_at(block, 8).ok_or(Malformed)?;
        let length = u32_at(block, 12).ok_or(Malformed)?;
        let severity = Severity::from_number(u32_at(block, 16).ok_or(Malformed)?);
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(STATUS_BYTES))
            .ok_or(Malformed)?;
        let entries = block.get(STATUS_BYTES..end).ok_or(Malformed)?;
        // Raw data is nobody's here, but a block where it lies among the entries is not to be believed.
        let raw_end = raw_offset.checked_add(raw_length).ok_or(Malformed)?;
        let fits = raw_offset as usize >= end && raw_end as usize <= block.len();
        if raw_length != 0 && !fits {
            return Err(Malformed);
        }
        let mut rest = entries;
        while !rest.is_empty() {
            rest = first_entry(rest).ok_or(Malformed)?.rest;
        }
        Ok(Some(Self { entries, severity }))
    }

    /// How bad the whole is.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Its entries. Each takes at least 64 bytes of the block.
    pub fn records(&self) -> impl Iterator<Item = Record> + use<'a> {
        let mut rest = self.entries;
        core::iter::from_fn(move || {
            // Checked by `read`, so the walk ends where the data does.
            let entry = first_entry(rest)?;
            rest = entry.rest;
            Some(entry.record)
        })
    }
}

/// Bytes of [`memory_error`].
pub const MEMORY_ERROR_BYTES: usize = STATUS_BYTES + ENTRY_BYTES_WITH_TIME + MEMORY_BYTES_TODAY;

/// The status block that firmware leaves for one uncorrected, recoverable error in memory at `address`.
pub fn memory_error(address: Pa) -> [u8; MEMORY_ERROR_BYTES] {
    const UNCORRECTABLE: u32 = 1;
    const ONE_ENTRY: u32 = 1 << 4;
    const RECOVERABLE: u32 = 0;
    const REVISION: u16 = 0x300;
    let mut block = [0; MEMORY_ERROR_BYTES];
    let mut put = |at: usize, value: &[u8]| block[at..at + value.len()].copy_from_slice(value);
    let section = (MEMORY_BYTES_TODAY as u32).to_le_bytes();
    put(0, &(UNCORRECTABLE | ONE_ENTRY).to_le_bytes());
    put(
        12,
        &((ENTRY_BYTES_WITH_TIME + MEMORY_BYTES_TODAY) as u32).to_le_bytes(),
    );
    put(16, &RECOVERABLE.to_le_bytes());
    put(STATUS_BYTES, &MEMORY_SECTION);
    put(STATUS_BYTES + 16, &RECOVERABLE.to_le_bytes());
    put(STATUS_BYTES + 20, &REVISION.to_le_bytes());
    put(STATUS_BYTES + 24, &section);
    let data = STATUS_BYTES + ENTRY_BYTES_WITH_TIME;
    put(data, &ADDRESS_VALID.to_le_bytes());
    put(data + 16, &address.raw().to_le_bytes());
    block
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// An entry, put together from the specification's offsets.
    fn entry(section: [u8; 16], revision: u16, severity: u32, data: &[u8]) -> Vec<u8> {
        let mut entry = vec![0xee; if revision >= 0x300 { 72 } else { 64 }];
        entry[..16].copy_from_slice(&section);
        entry[16..20].copy_from_slice(&severity.to_le_bytes());
        entry[20..22].copy_from_slice(&revision.to_le_bytes());
        entry[24..28].copy_from_slice(&(data.len() as u32).to_le_bytes());
        entry.extend_from_slice(data);
        entry
    }

    fn memory(valid: u64, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xdd; bytes];
        data[..8].copy_from_slice(&valid.to_le_bytes());
        data[16..24].copy_from_slice(&address.to_le_bytes());
        data
    }

    fn block(entries: &[Vec<u8>]) -> Vec<u8> {
        let data: Vec<u8> = entries.concat();
        let mut block = vec![0; 20];
        block[0] = 1;
        block[12..16].copy_from_slice(&(data.len() as u32).to_le_bytes());
        block.extend_from_slice(&data);
        block
    }

    fn records(block: &[u8]) -> Vec<Record> {
        Block::read(block).unwrap().unwrap().records().collect()
    }

    #[test]
    fn a_memory_error_says_where() {
        let at = |address| Record {
            severity: Severity::Recoverable,
            is_memory: true,
            address,
        };
        let full = block(&[
            entry(MEMORY_SECTION, 0x201, 0, &memory(0x2, 0x4000_1234, 73)),
            entry(MEMORY_SECTION, 0x300, 0, &memory(!0, 0x5000, 80)),
            entry(MEMORY_SECTION, 0x300, 0, &memory(!0x2, 0x6000, 80)),
        ]);
        let wanted = [Some(0x4000_1234), Some(0x5000), None];
        let wanted = wanted.map(|address| at(address.map(Pa::new)));
        assert_eq!(records(&full), wanted);
    }

    #[test]
    fn other_sections_are_passed_over() {
        let full = block(&[
            entry([7; 16], 0x300, 1, &[]),
            entry([9; 16], 0x100, 2, &[1, 2, 3]),
            entry(MEMORY_SECTION, 0x300, 3, &memory(2, 0x7000, 80)),
        ]);
        let seen = records(&full);
        let severities: Vec<_> = seen.iter().map(|record| record.severity).collect();
        let wanted = [
            Severity::Fatal,
            Severity::Corrected,
            Severity::Informational,
        ];
        assert_eq!(severities, wanted);
        assert_eq!(
            seen.iter().map(|r| r.is_memory).collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[test]
    fn no_error_and_no_entries() {
        assert_eq!(Block::read(&[0; 20]), Ok(None));
        // A status alone: something happened, and nothing is said of it.
        assert_eq!(records(&block(&[])), []);
        assert_eq!(Block::read(&[1, 0, 0]), Err(Malformed));
        assert_eq!(Block::read(&[]), Err(Malformed));
    }

    #[test]
    fn lengths_that_lie() {
        let good = block(&[entry(MEMORY_SECTION, 0x300, 0, &memory(2, 0x7000, 80))]);
        let with = |at: usize, value: u32| {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Block::read(&bad).map(|block| block.is_some())
        };
        assert_eq!(with(12, 152), Ok(true));
        for length in [1, 63, 71, 72, 151, 153, 1 << 20, u32::MAX, u32::MAX - 19] {
            assert_eq!(with(12, length), Err(Malformed), "data length {length}");
        }
        for length in [0, 72, 79, 81, 1 << 31, u32::MAX] {
            assert_eq!(with(20 + 24, length), Err(Malformed), "section of {length}");
        }
        // Raw data among the entries, and beyond the block.
        assert_eq!(with(8, 1), Err(Malformed));
        assert_eq!(with(8, u32::MAX), Err(Malformed));
        // An offset of nothing is no offset.
        assert_eq!(with(4, u32::MAX), Ok(true));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let block = memory_error(Pa::new(0x1_4567_8000));
        let read = Block::read(&block).unwrap().unwrap();
        assert_eq!(read.severity(), Severity::Recoverable);
        let wanted = Record {
            severity: Severity::Recoverable,
            is_memory: true,
            address: Some(Pa::new(0x1_4567_8000)),
        };
        assert_eq!(read.records().collect::<Vec<_>>(), [wanted]);
        // As the test's own encoder has it, but for what nobody reads.
        let data = memory(2, 0x1_4567_8000, 80);
        let other = super::tests::block(&[entry(MEMORY_SECTION, 0x300, 0, &data)]);
        for range in [12..16, 16..20, 20..42, 44..48, 92..100, 108..116] {
            assert_eq!(block[range.clone()], other[range.clone()], "{range:?}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_bounded(
            mut block in prop::collection::vec(any::<u8>(), 0..600),
            length in 0u32..700,
            section in 0u32..200,
            memory in any::<bool>(),
        ) {
            // Half of the time the lengths are near the truth and the section is memory's.
            if memory && block.len() > 48 {
                block[4..12].fill(0);
                block[12..16].copy_from_slice(&length.to_le_bytes());
                block[20..36].copy_from_slice(&MEMORY_SECTION);
                block[44..48].copy_from_slice(&section.to_le_bytes());
            }
            if let Ok(Some(read)) = Block::read(&block) {
                let count = read.records().count();
                prop_assert!(count * ENTRY_BYTES + STATUS_BYTES <= block.len());
                for record in read.records() {
                    if let Some(address) = record.address {
                        let said = address.raw().to_le_bytes();
                        prop_assert!(block.windows(8).any(|bytes| bytes == said));
                    }
                }
            }
        }

        #[test]
        fn one_wrong_byte_never_reads_beyond(
            at in 0..MEMORY_ERROR_BYTES, value in any::<u8>(), cut in 0..=MEMORY_ERROR_BYTES,
        ) {
            let mut block = memory_error(Pa::new(0x4000_0000));
            block[at] = value;
            if let Ok(Some(read)) = Block::read(&block[..cut]) {
                prop_assert!(read.records().count() <= 2);
            }
        }

        #[test]
        fn every_entry_is_found(
            entries in prop::collection::vec((any::<bool>(), 0usize..40, any::<u64>(), 0u32..4), 0..12)
        ) {
            let built: Vec<Vec<u8>> = entries
                .iter()
                .map(|&(is_memory, more, address, severity)| match is_memory {
                    true => entry(MEMORY_SECTION, 0x300, severity, &memory(2, address, 73 + more)),
                    false => entry([3; 16], 0x201, severity, &vec![0x11; more]),
                })
                .collect();
            let seen = records(&block(&built));
            prop_assert_eq!(seen.len(), entries.len());
            for (record, (is_memory, _, address, severity)) in seen.iter().zip(entries) {
                prop_assert_eq!(record.is_memory, is_memory);
                prop_assert_eq!(record.address, is_memory.then(|| Pa::new(address)));
                prop_assert_eq!(record.severity, Severity::from_number(severity));
            }
        }
    }
}
