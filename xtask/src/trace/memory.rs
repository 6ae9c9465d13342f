//! The event rings, read out of the memory of a machine that did not write them itself, as one does that
//! ends or panics: of one that hangs through QEMU's monitor, of one that was left (Ctrl-A X) out of the file
//! that its memory was. No code of the machine has to work any more for that.

use super::log::Log;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use umbra_trace::RECORD_BYTES;
use umbra_trace::block::{Header, KIND_RING, KIND_SCHEMA};
use umbra_trace::schema;

/// The name of the table of rings, in kernel/src/trace.rs.
pub(crate) const RINGS: &str = "umbra_kernel::trace::RINGS";
/// Words of a ring's entry in that table: address, capacity, records written.
const WORDS: usize = 3;
/// A ring beyond this is none: the table is garbage.
const LIMIT: u64 = 1 << 30;
/// Events to show of each CPU.
const SHOWN: usize = 16;

/// Where the kernel is linked, and where QEMU's `virt` machine puts the Image.
const LINKED: u64 = 0xffff_ffff_8000_0000;
const LOADED: u64 = 0x4020_0000;
/// Where that machine's memory begins.
const RAM_BASE: u64 = 0x4000_0000;
/// The generic timer of QEMU's `-cpu max`.
const FREQUENCY: u64 = 1_000_000_000;

/// The physical address of the kernel's data at `va`.
fn physical(va: u64) -> Option<u64> {
    va.checked_sub(LINKED)?.checked_add(LOADED)
}

/// One CPU's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ring {
    cpu: u64,
    base: u64,
    capacity: u64,
    written: u64,
}

impl Ring {
    fn header(self) -> Header {
        Header {
            kind: KIND_RING,
            bytes: self.bytes(),
            cpu: self.cpu,
            frequency: FREQUENCY,
            capacity: self.capacity,
            written: self.written,
        }
    }

    fn bytes(self) -> u64 {
        self.written.min(self.capacity) * RECORD_BYTES as u64
    }
}

/// The rings that the table names.
fn rings(table: &[u8]) -> Vec<Ring> {
    let (words, _) = table.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
    words
        .chunks_exact(WORDS)
        .enumerate()
        .map(|(cpu, ring)| Ring {
            cpu: cpu as u64,
            base: ring[0],
            capacity: ring[1],
            written: ring[2],
        })
        .filter(|ring| ring.capacity.is_power_of_two() && ring.bytes() <= LIMIT)
        .collect()
}

/// What is in the rings of the machine, as a trace file. `table` is the table's address and size in
/// the kernel; `memory` gives so many bytes at a physical address.
pub(crate) fn read(
    table: (u64, u64),
    mut memory: impl FnMut(u64, u64) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let Some(at) = physical(table.0) else {
        return Ok(Vec::new());
    };
    let table = memory(at, table.1)?;
    let mut file = schema_block();
    for ring in rings(&table).into_iter().filter(|ring| ring.written > 0) {
        file.extend(ring.header().to_bytes());
        file.extend(memory(ring.base, ring.bytes())?);
    }
    Ok(file)
}

/// Writes the trace of a machine whose memory was the file `ram`, unless it has written one itself.
/// `table` as [`read`] has it.
pub(crate) fn save_from(ram: &Path, table: Option<(u64, u64)>, trace: &Path) -> Result<()> {
    let is_there = trace.metadata().is_ok_and(|trace| trace.len() > 0);
    let Some(table) = table.filter(|_| !is_there) else {
        return Ok(());
    };
    let mut ram = File::open(ram).context("the machine's memory")?;
    let bytes = read(table, |pa, bytes| {
        let at = pa.checked_sub(RAM_BASE).context("no memory lies there")?;
        ram.seek(SeekFrom::Start(at))?;
        let mut part = vec![0; usize::try_from(bytes)?];
        ram.read_exact(&mut part).context("the machine's memory")?;
        Ok(part)
    })?;
    fs::write(trace, bytes).context("cannot write the trace")
}

/// The description of the events: the machine's kernel was built from the same source.
fn schema_block() -> Vec<u8> {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = schema::write(&mut text);
    while !text.len().is_multiple_of(8) {
        text.push('\n');
    }
    let header = Header {
        kind: KIND_SCHEMA,
        bytes: text.len() as u64,
        cpu: 0,
        frequency: 0,
        capacity: 0,
        written: 0,
    };
    [header.to_bytes().to_vec(), text.into_bytes()].concat()
}

/// The last events of every CPU, oldest first, a line each.
pub(crate) fn last(file: &[u8]) -> String {
    let mut text = String::new();
    let Ok(log) = Log::read(file) else {
        return text;
    };
    for cpu in &log.cpus {
        let from = cpu.records.len().saturating_sub(SHOWN);
        for record in &cpu.records[from..] {
            let (time, shown) = (record.time, log.schema.show(record));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "event CPU {}: {time} {shown}", cpu.cpu);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{LINKED, LOADED, RINGS, Ring, last, physical, rings, schema_block};
    use umbra_trace::{Head, Record};

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn the_table_names_rings() {
        let table = words(&[0x1000, 256, 7, 0, 0, 0, 0x9000, 512, 600, 5, 3, 1]);
        let found = rings(&table);
        // A CPU that is not there has none, and 3 is no capacity.
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            Ring {
                cpu: 2,
                base: 0x9000,
                capacity: 512,
                written: 600
            }
        );
        assert_eq!((found[0].bytes(), found[1].bytes()), (7 * 64, 512 * 64));
    }

    #[test]
    fn the_last_events_come_oldest_first() {
        let mut file = schema_block();
        let ring = Ring {
            cpu: 1,
            base: 0,
            capacity: 64,
            written: 20,
        };
        file.extend(ring.header().to_bytes());
        for time in 0..20 {
            let head = Head {
                kind: 36,
                storey: 0,
                vcpu: 0,
                vm: 0,
            };
            let words = [27, 0, 0, 0, 0, 0];
            let record = Record { time, head, words };
            file.extend(record.to_words().iter().flat_map(|w| w.to_le_bytes()));
        }
        let text = last(&file);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 16, "{text}");
        assert_eq!(lines[15], "event CPU 1: 19 irq_handler_entry irq=27");
        assert_eq!(last(&[]), "");
    }

    #[test]
    fn it_is_the_kernels_layout() {
        let source: String = include_str!("../../../kernel/src/trace.rs")
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| line.split_whitespace().collect::<Vec<_>>())
            .collect();
        for part in [
            "#[repr(C)]structRing{base:AtomicU64,capacity:AtomicU64,written:AtomicU64,}",
            "staticRINGS:[Ring;MAX_CPUS]",
        ] {
            assert!(source.contains(part), "{part}");
        }
        assert!(RINGS.ends_with("trace::RINGS"));
    }

    #[test]
    fn addresses() {
        assert_eq!(physical(LINKED + 0x1000), Some(LOADED + 0x1000));
        assert_eq!(physical(0x1000), None);
    }
}
