//! A trace file, read: every CPU's records in order, and what the file says its events are.
//!
//! Nothing is assumed of the file. What cannot be read is told in `notes` and left out.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use umbra_trace::block::{Block, Blocks, KIND_RING, KIND_SCHEMA};
use umbra_trace::schema::{self, Entry};
use umbra_trace::{Event, Record};

/// A trace.
#[derive(Debug)]
pub(crate) struct Log {
    /// Ticks per second.
    pub(crate) frequency: u64,
    /// The rings, by CPU.
    pub(crate) cpus: Vec<CpuLog>,
    /// What the events are.
    pub(crate) schema: Schema,
    /// What is wrong with the file, in sentences.
    pub(crate) notes: Vec<String>,
}

/// One CPU's ring.
#[derive(Debug)]
pub(crate) struct CpuLog {
    /// Its number.
    pub(crate) cpu: u64,
    /// Events that the ring lost because it was full: the oldest.
    pub(crate) dropped: u64,
    /// The others, times rising.
    pub(crate) records: Vec<Record>,
}

/// The file's own descriptions.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    entries: BTreeMap<u16, Described>,
}

#[derive(Debug)]
struct Described {
    name: String,
    fields: Vec<(String, String)>,
    /// This program knows the event by its own type.
    own: bool,
}

impl Log {
    /// Reads a file's bytes. An empty file is an empty trace.
    pub(crate) fn read(file: &[u8]) -> Result<Self> {
        let mut log = Self {
            frequency: 0,
            cpus: Vec::new(),
            schema: Schema::default(),
            notes: Vec::new(),
        };
        let mut described = false;
        for block in Blocks::of(file) {
            let block = match block {
                Ok(block) => block,
                // Without a first block this is no trace; after one it is a damaged one.
                Err(error) if !described && log.cpus.is_empty() => bail!("{error}"),
                Err(error) => {
                    log.notes.push(format!("The file is damaged: {error}."));
                    break;
                }
            };
            if block.is_cut() {
                log.notes.push(
                    "The file ends early: the machine stopped while it was written.".to_owned(),
                );
            }
            match block.header.kind {
                KIND_SCHEMA => {
                    log.schema = Schema::parse(&String::from_utf8_lossy(block.content));
                    described = true;
                }
                KIND_RING => log.ring(&block),
                kind => log.notes.push(format!(
                    "A part of kind {kind} is of another version of umbra: left out."
                )),
            }
        }
        if !described && !log.cpus.is_empty() {
            let note = "The file does not describe its events: they are shown by number.";
            log.notes.push(note.to_owned());
        }
        log.cpus.sort_by_key(|cpu| cpu.cpu);
        Ok(log)
    }

    fn ring(&mut self, block: &Block<'_>) {
        let header = block.header;
        if self.frequency == 0 {
            self.frequency = header.frequency;
        } else if self.frequency != header.frequency {
            let cpu = header.cpu;
            let note = format!("CPU {cpu} counts time at another rate: its times are wrong.");
            self.notes.push(note);
        }
        let mut records: Vec<Record> = Vec::new();
        let mut torn = 0u64;
        for record in block.records() {
            // Written while the file was: older than what lies before it, or half of one.
            if records.last().is_some_and(|last| record.time < last.time) {
                torn += 1;
            } else {
                records.push(record);
            }
        }
        if torn > 0 {
            let cpu = header.cpu;
            let note = format!("CPU {cpu}: {torn} events out of order in time were left out.");
            self.notes.push(note);
        }
        self.cpus.push(CpuLog {
            cpu: header.cpu,
            dropped: block.dropped(),
            records,
        });
    }

    /// Records, as many as are there.
    pub(crate) fn len(&self) -> usize {
        self.cpus.iter().map(|cpu| cpu.records.len()).sum()
    }

    /// Events that were lost because a ring was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.cpus.iter().map(|cpu| cpu.dropped).sum()
    }

    /// The first and the last time.
    pub(crate) fn span(&self) -> Option<(u64, u64)> {
        let first = self.cpus.iter().filter_map(|cpu| cpu.records.first());
        let last = self.cpus.iter().filter_map(|cpu| cpu.records.last());
        Some((first.map(|r| r.time).min()?, last.map(|r| r.time).max()?))
    }

    /// Ticks as nanoseconds.
    pub(crate) fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e9 / self.frequency.max(1) as f64
    }
}

impl Schema {
    fn parse(text: &str) -> Self {
        let entries = text.lines().filter_map(Entry::parse).map(|entry| {
            let described = Described {
                name: entry.name.to_owned(),
                fields: entry
                    .fields()
                    .map(|(name, format)| (name.to_owned(), format.to_owned()))
                    .collect(),
                own: entry.is_own(),
            };
            (entry.number, described)
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// The record as this program's own type, where the file means the same by it.
    pub(crate) fn event(&self, record: &Record) -> Option<Event> {
        let own = self.entries.get(&record.head.kind)?.own;
        own.then(|| Event::decode(record.head.kind, &record.words))?
    }

    /// The event's name, by the file; its number where the file has none.
    pub(crate) fn name(&self, kind: u16) -> String {
        match self.entries.get(&kind) {
            Some(described) => described.name.clone(),
            None => format!("event {kind}"),
        }
    }

    /// Whether this program knows the event by its own type.
    pub(crate) fn is_own(&self, kind: u16) -> bool {
        self.entries.get(&kind).is_some_and(|entry| entry.own)
    }

    /// The event's name and its fields, each as the file says.
    pub(crate) fn fields(&self, record: &Record) -> Vec<(String, String)> {
        let Some(described) = self.entries.get(&record.head.kind) else {
            return vec![("words".to_owned(), format!("{:x?}", record.words))];
        };
        let shown = described.fields.iter().zip(record.words);
        shown
            .map(|((name, format), word)| {
                let mut text = String::new();
                // Writing to a String cannot fail.
                let _ = schema::show_word(&mut text, format, word);
                (name.clone(), text)
            })
            .collect()
    }

    /// The event in a line.
    pub(crate) fn show(&self, record: &Record) -> String {
        let name = self.name(record.head.kind);
        let mut line = name
            .split_once(':')
            .map_or(name.as_str(), |(_, name)| name)
            .to_owned();
        for (field, value) in self.fields(record) {
            // Writing to a String cannot fail.
            let _ = write!(line, " {field}={value}");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{File, at};
    use super::Log;
    use umbra_trace::{Event, Record, Storey};

    fn irq(time: u64) -> Record {
        at(time, Storey::Umbra, Event::Interrupt { irq: 27 })
    }

    #[test]
    fn a_file_is_read() {
        let file = File::described().ring(1, 8, &[irq(5), irq(6)]).ring(
            0,
            8,
            &[irq(1), irq(9), irq(3), irq(10)],
        );
        let log = Log::read(&file.0).unwrap();
        assert_eq!(log.cpus.len(), 2);
        assert_eq!((log.cpus[0].cpu, log.cpus[0].records.len()), (0, 3));
        assert_eq!(
            (log.len(), log.dropped(), log.span()),
            (5, 0, Some((1, 10)))
        );
        assert_eq!(
            log.notes,
            ["CPU 0: 1 events out of order in time were left out."]
        );
        let event = log.schema.event(&log.cpus[1].records[0]);
        assert_eq!(event, Some(Event::Interrupt { irq: 27 }));
    }

    #[test]
    fn nothing_is_an_empty_trace_and_rubbish_is_none() {
        let log = Log::read(&[]).unwrap();
        assert_eq!((log.len(), log.span()), (0, None));
        let error = Log::read(&[b'#'; 80]).unwrap_err().to_string();
        assert!(error.contains("no trace of umbra"), "{error}");
    }

    #[test]
    fn a_full_ring_says_what_it_lost() {
        let file = File::described().ring_of(0, 2, 5, &[irq(3), irq(2)]);
        let log = Log::read(&file.0).unwrap();
        assert_eq!(log.dropped(), 3);
        assert_eq!(log.cpus[0].records[0].time, 2);
    }

    #[test]
    fn a_file_that_ends_early_is_read_so_far() {
        let mut file = File::described().ring(0, 8, &[irq(1), irq(2)]).0;
        file.truncate(file.len() - 70);
        let log = Log::read(&file).unwrap();
        assert_eq!(log.len(), 0);
        assert!(log.notes[0].contains("ends early"));
        let mut file = File::described().ring(0, 8, &[irq(1), irq(2)]).0;
        file.extend([1; 90]);
        let log = Log::read(&file).unwrap();
        assert_eq!(log.len(), 2);
        assert!(log.notes[0].contains("damaged"));
    }

    #[test]
    fn another_version_s_events_are_shown_by_its_words() {
        let text = "36 irq:irq_handler_entry irq=d cpu=d\n6 kvm:kvm_halt why=e:|idle|off\n";
        let mut halt = irq(2);
        halt.head.kind = 6;
        halt.words = [1, 2, 3, 4, 5, 6];
        let mut nameless = halt;
        nameless.head.kind = 900;
        let file = File::with_schema(text).ring(0, 8, &[irq(1), halt, nameless]);
        let log = Log::read(&file.0).unwrap();
        let records = &log.cpus[0].records;
        // More fields than we know: still ours. Another name: never ours, though the number is.
        assert!(log.schema.event(&records[0]).is_some());
        assert_eq!(
            log.schema.show(&records[0]),
            "irq_handler_entry irq=27 cpu=0"
        );
        assert_eq!(log.schema.event(&records[1]), None);
        assert_eq!(log.schema.show(&records[1]), "kvm_halt why=off");
        assert_eq!(
            log.schema.show(&records[2]),
            "event 900 words=[1, 2, 3, 4, 5, 6]"
        );
        // Without descriptions: by number alone.
        let log = Log::read(&File::default().ring(0, 8, &[irq(1)]).0).unwrap();
        assert_eq!(log.schema.event(&log.cpus[0].records[0]), None);
        assert!(log.notes[0].contains("by number"));
    }
}
