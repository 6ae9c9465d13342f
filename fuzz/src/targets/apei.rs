//! What firmware leaves about memory errors, read a second time by nothing but the specification's offsets:
//! a status block with its records, or a table of sources.

use umbra_apei::{Block, Hest, HestError, Notification, Refused, Severity};

/// The section "platform memory" as its 16 bytes lie in memory, the first in the lowest place.
const MEMORY: (u64, u64) = (0x4ede_6f64_a5bc_1114, 0xb183_7ced_833e_63b8);

/// The number of `bytes` bytes at `at`, if they are there.
fn number(from: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let part = from.get(at..at.checked_add(bytes)?)?;
    Some(part.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b)))
}

fn severity(number: u64) -> Severity {
    [
        Severity::Recoverable,
        Severity::Fatal,
        Severity::Corrected,
        Severity::Informational,
    ]
    .get(number as usize)
    .copied()
    .unwrap_or(Severity::Recoverable)
}

/// Severity, whether it is memory, and where, of each entry; `None` where something does not fit.
fn entries(block: &[u8]) -> Option<Vec<(Severity, bool, Option<u64>)>> {
    let end = usize::try_from(20 + number(block, 12, 4)?).ok()?;
    let (raw, raw_bytes) = (number(block, 4, 4)?, number(block, 8, 4)?);
    if raw_bytes > 0 && (raw < end as u64 || raw + raw_bytes > block.len() as u64) {
        return None;
    }
    // An end in the last 4 GiB of the numbers that firmware can write is nobody's.
    if raw + raw_bytes > u64::from(u32::MAX) {
        return None;
    }
    let inside = block.get(..end)?;
    let mut found = Vec::new();
    let mut at = 20;
    while at < end {
        let of = |offset: usize, bytes: usize| number(inside, at + offset, bytes);
        let head = if of(20, 2)? >= 0x300 { 72 } else { 64 };
        let data = of(24, 4)? as usize;
        // Whether the last byte of it is there.
        of(head + data - 1, 1)?;
        let is_memory = (of(0, 8)?, of(8, 8)?) == MEMORY;
        if is_memory && data < 73 {
            return None;
        }
        let told = is_memory && of(head, 8)? & 2 != 0;
        let address = if told { of(head + 16, 8) } else { None };
        found.push((severity(of(16, 4)?), is_memory, address));
        at += head + data;
    }
    Some(found)
}

fn block(bytes: &[u8]) {
    let read = Block::read(bytes);
    let wanted = entries(bytes);
    match (number(bytes, 0, 4), read) {
        (Some(0), read) => assert_eq!(read, Ok(None)),
        (_, Ok(block)) => {
            let block = block.expect("there is an error");
            let records: Vec<_> = block
                .records()
                .map(|r| (r.severity, r.is_memory, r.address.map(|at| at.raw())))
                .collect();
            assert_eq!(Some(records), wanted);
            let whole = number(bytes, 16, 4).expect("it was read");
            assert_eq!(block.severity(), severity(whole));
        }
        (_, Err(_)) => assert_eq!(wanted, None),
    }
}

/// A register's address: 64 bits of system memory, aligned.
fn register(table: &[u8], at: usize) -> Option<u64> {
    let address = number(table, at + 4, 8)?;
    (number(table, at, 3)? == 0x4000 && address % 8 == 0).then_some(address)
}

fn table(bytes: &[u8]) {
    // Length and sum are made right, so that what lies in the table is reached.
    let mut table = bytes.to_vec();
    table.resize(table.len().max(40), 0);
    let length = table.len() as u32;
    table[..4].copy_from_slice(b"HEST");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = table[9].wrapping_sub(sum);
    let hest = Hest::read(&table).expect("length and sum are right");
    let mut at = 40;
    let mut seen = 0;
    for source in hest.sources() {
        let of = |offset: usize, bytes: usize| number(&table, at + offset, bytes).expect("inside");
        let kind = of(0, 2) as u16;
        seen += 1;
        match source {
            Err(Refused::Unreadable { kind: told }) => {
                assert_eq!(told, kind);
                at = table.len();
                continue;
            }
            Err(Refused::Kind { kind: told }) => assert!(told == kind && !matches!(kind, 9 | 10)),
            Err(Refused::Disabled { id }) => {
                assert!(u64::from(id) == of(2, 2) && of(7, 1) != 1);
            }
            Err(Refused::Register { id }) => {
                let good = register(&table, at + 20).is_some()
                    && (kind == 9 || register(&table, at + 64).is_some());
                assert!(u64::from(id) == of(2, 2) && of(7, 1) == 1 && !good);
            }
            Ok(source) => {
                assert!(matches!(kind, 9 | 10) && of(7, 1) == 1);
                assert_eq!(u64::from(source.id), of(2, 2));
                assert_eq!(Some(source.status_address.raw()), register(&table, at + 20));
                assert_eq!(u64::from(source.block_bytes), of(60, 4));
                let notification = match of(32, 1) {
                    0 => Notification::Polled {
                        interval: of(36, 4) as u32,
                    },
                    8 => Notification::Sea,
                    other => Notification::Other(other as u8),
                };
                assert_eq!(source.notification, notification);
                let told = source
                    .acknowledge
                    .map(|a| (a.register.raw(), a.preserve, a.write));
                let there = || (of(64, 12), of(76, 8), of(84, 8));
                let wanted = (kind == 10).then(there);
                let wanted = wanted.map(|(_, keep, set)| (register(&table, at + 64), keep, set));
                assert_eq!(told.map(|(r, keep, set)| (Some(r), keep, set)), wanted);
            }
        }
        at += match kind {
            6 => 48,
            7 => 44,
            8 => 56,
            9 => 64,
            10 => 92,
            _ => of(2, 2) as usize,
        };
        assert!(at <= table.len(), "a source ends beyond the table");
    }
    assert!(seen <= number(&table, 36, 4).expect("a count"));
    table[9] = table[9].wrapping_add(1);
    assert_eq!(Hest::read(&table).err(), Some(HestError::Checksum));
}

pub(crate) fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, rest)) => block(rest),
        Some((1, rest)) => table(rest),
        Some((_, rest)) => {
            let _ = Hest::read(rest).map(|hest| hest.sources().count());
        }
        None => {}
    }
}
