//! The trace as JSON of the Trace Event format, which Perfetto (ui.perfetto.dev) and Chrome read.
//!
//! Every event goes through a [`Checker`] on its way out: begins have ends, times rise on each track,
//! each track has a name. A file that breaks one of them is an error, not a file.

use super::log::Log;
use super::tracks::{Item, Place, Track, Tracks};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// The process of what CPUs did.
const MACHINE: u64 = 1;
/// VM n is process `VMS + n`.
const VMS: u64 = 1000;

/// Process and thread of a track.
type Id = (u64, u64);

fn id(track: Track) -> Id {
    match track {
        Track::Cpu(cpu) => (MACHINE, cpu + 1),
        Track::Vcpu(vcpu, lane) => {
            let thread = u64::from(vcpu.vcpu) * 8 + lane as u64 + 1;
            (VMS + u64::from(vcpu.vm), thread)
        }
    }
}

fn names(track: Track) -> (String, String) {
    match track {
        Track::Cpu(cpu) => ("machine".to_owned(), format!("CPU {cpu}")),
        Track::Vcpu(vcpu, lane) => (
            format!("VM {}", vcpu.vm),
            format!("vCPU {} · {}", vcpu.vcpu, lane.name()),
        ),
    }
}

/// What makes a list of events a trace that tools can show.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    named: BTreeSet<Id>,
    /// Open spans and the last time, in nanoseconds.
    tracks: BTreeMap<Id, (u64, f64)>,
    /// Begins seen.
    pub(crate) spans: u64,
    /// Instants seen.
    pub(crate) instants: u64,
}

/// What of an event the rules are about.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    phase: &'a str,
    id: Id,
    name: &'a str,
    /// In microseconds.
    time: f64,
}

impl Checker {
    /// Takes the next event.
    fn take(&mut self, event: &Seen<'_>) -> Result<()> {
        let Seen {
            phase,
            id,
            name,
            time,
        } = *event;
        if phase == "M" {
            if name == "thread_name" {
                self.named.insert(id);
            }
            return Ok(());
        }
        if !self.named.contains(&id) {
            bail!("the track of {event:?} has no name");
        }
        let (open, last) = self.tracks.entry(id).or_insert((0, f64::MIN));
        if time < *last {
            bail!("time falls at {event:?}, after {last}");
        }
        *last = time;
        match phase {
            "B" => {
                if name.is_empty() {
                    bail!("a span without a name: {event:?}");
                }
                *open += 1;
                self.spans += 1;
            }
            "E" => match open.checked_sub(1) {
                Some(left) => *open = left,
                None => bail!("an end without a begin: {event:?}"),
            },
            "i" => self.instants += 1,
            other => bail!("an event of phase {other:?}"),
        }
        Ok(())
    }

    /// After the last one.
    fn finish(&self) -> Result<()> {
        match self.tracks.iter().find(|(_, (open, _))| *open != 0) {
            Some((id, _)) => bail!("a span of track {id:?} has no end"),
            None => Ok(()),
        }
    }
}

/// Reads a file back and checks it.
pub(crate) fn check(text: &str) -> Result<Checker> {
    let file: Value = serde_json::from_str(text).context("no JSON")?;
    let events = file["traceEvents"].as_array().context("no traceEvents")?;
    let mut checker = Checker::default();
    for event in events {
        let phase = event["ph"].as_str().context("an event without a phase")?;
        let id = event["pid"].as_u64().zip(event["tid"].as_u64());
        let time = event["ts"].as_f64();
        checker.take(&Seen {
            phase,
            id: id.with_context(|| format!("an event of no track: {event}"))?,
            name: event["name"].as_str().unwrap_or_default(),
            time: match time {
                Some(time) => time,
                None if phase == "M" => 0.0,
                None => bail!("an event without a time: {event}"),
            },
        })?;
    }
    checker.finish()?;
    Ok(checker)
}

/// Writes the file.
pub(crate) fn write(log: &Log, tracks: &Tracks, out: impl Write) -> Result<Checker> {
    let mut writer = Writer {
        log,
        tracks,
        start: log.span().map_or(0, |(first, _)| first),
        checker: Checker::default(),
        out,
        first: true,
    };
    writer.all()?;
    writer.checker.finish()?;
    Ok(writer.checker)
}

struct Writer<'a, W> {
    log: &'a Log,
    tracks: &'a Tracks,
    start: u64,
    checker: Checker,
    out: W,
    first: bool,
}

impl<W: Write> Writer<'_, W> {
    fn all(&mut self) -> Result<()> {
        let about = json!({
            "umbra": "times are the machine's, from its first event on",
            "dropped": self.log.dropped(),
            "notes": self.log.notes,
        });
        write!(
            self.out,
            "{{\"displayTimeUnit\":\"ns\",\"otherData\":{about},\"traceEvents\":["
        )?;
        for (track, items) in self.tracks.in_order() {
            let id = id(track);
            let (process, thread) = names(track);
            self.meta(id, "process_name", &json!({ "name": process }))?;
            self.meta(id, "thread_name", &json!({ "name": thread }))?;
            self.meta(id, "thread_sort_index", &json!({ "sort_index": id.1 }))?;
            for item in items {
                self.item(id, item)?;
            }
        }
        writeln!(self.out, "\n]}}")?;
        Ok(())
    }

    fn meta(&mut self, id: Id, name: &str, args: &Value) -> Result<()> {
        self.begin("M", id, name, 0.0)?;
        write!(self.out, ",\"args\":{args}}}")?;
        Ok(())
    }

    fn item(&mut self, id: Id, item: &Item) -> Result<()> {
        // Microseconds, as the format has it.
        let time = self.log.ns(item.time().saturating_sub(self.start)) / 1000.0;
        let tracks = self.tracks;
        match *item {
            Item::Begin { label, place, .. } => {
                self.begin("B", id, tracks.text(label), time)?;
                if let Some(place) = place {
                    self.args(place)?;
                }
            }
            Item::End { .. } => self.begin("E", id, "", time)?,
            Item::Instant { place, .. } => {
                let record = self.record(place);
                let name = record.map(|record| self.log.schema.name(record.head.kind));
                self.begin("i", id, &name.unwrap_or_default(), time)?;
                write!(self.out, ",\"s\":\"t\"")?;
                self.args(place)?;
            }
        }
        write!(self.out, "}}")?;
        Ok(())
    }

    fn record(&self, (cpu, at): Place) -> Option<&'_ umbra_trace::Record> {
        self.log.cpus.get(cpu as usize)?.records.get(at as usize)
    }

    fn args(&mut self, place: Place) -> Result<()> {
        let fields = self
            .record(place)
            .map(|record| self.log.schema.fields(record));
        write!(self.out, ",\"args\":{{")?;
        for (at, (name, value)) in fields.into_iter().flatten().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(self.out, "{comma}{}:{}", text(&name), text(&value))?;
        }
        write!(self.out, "}}")?;
        Ok(())
    }

    /// The part that all events have; the event is open.
    fn begin(&mut self, phase: &str, id: Id, name: &str, time: f64) -> Result<()> {
        self.checker.take(&Seen {
            phase,
            id,
            name,
            time,
        })?;
        let comma = if std::mem::take(&mut self.first) {
            ""
        } else {
            ","
        };
        let (pid, tid) = id;
        write!(
            self.out,
            "{comma}\n{{\"ph\":\"{phase}\",\"pid\":{pid},\"tid\":{tid}"
        )?;
        if phase != "M" {
            write!(self.out, ",\"ts\":{time:.3}")?;
        }
        if !name.is_empty() {
            write!(self.out, ",\"name\":{}", text(name))?;
        }
        Ok(())
    }
}

/// A text as JSON has it.
fn text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::check;
    use serde_json::{Value, json};

    fn verdict(events: Value) -> String {
        match check(&json!({ "traceEvents": events }).to_string()) {
            Ok(checker) => format!("{} {}", checker.spans, checker.instants),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn each_rule_finds_its_breach() {
        let name = json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {} });
        let begin = |ts: u64| json!({ "ph": "B", "name": "a", "pid": 1, "tid": 1, "ts": ts });
        let end = |ts: u64| json!({ "ph": "E", "pid": 1, "tid": 1, "ts": ts });
        let instant = json!({ "ph": "i", "name": "x", "pid": 1, "tid": 1, "ts": 2 });
        assert_eq!(verdict(json!([name, begin(1), instant, end(2)])), "1 1");
        assert_eq!(verdict(json!([])), "0 0");
        for (events, why) in [
            (json!([name, begin(1)]), "has no end"),
            (json!([name, end(1)]), "end without a begin"),
            (json!([name, begin(3), end(2)]), "time falls"),
            (json!([begin(1), end(2)]), "has no name"),
            (
                json!([name, { "ph": "B", "pid": 1, "tid": 1, "ts": 1 }]),
                "without a name",
            ),
            (
                json!([name, { "ph": "X", "pid": 1, "tid": 1, "ts": 1 }]),
                "of phase",
            ),
            (json!([{ "ph": "B", "ts": 1 }]), "of no track"),
            (
                json!([name, { "ph": "B", "name": "a", "pid": 1, "tid": 1 }]),
                "without a time",
            ),
        ] {
            let said = verdict(events);
            assert!(said.contains(why), "{said} is not {why}");
        }
        assert!(check("[").is_err());
    }
}
