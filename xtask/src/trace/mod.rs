//! What umbra recorded of a run (`--trace`, `--report`): read back, drawn, told.
//!
//! ```text
//!   kernel/src/trace.rs ─► NAME.trace ─► Log ─► replay ─► Story ─┬─► NAME.trace.json  (Perfetto)
//!   memory.rs, if it hangs ─┘                                    └─► NAME.report.html
//! ```

mod chrome;
mod exits;
mod log;
pub(crate) mod memory;
mod replay;
mod report;
pub(crate) mod sample;
mod story;
mod summary;
mod tracks;

use crate::bootargs;
use crate::cli::{MachineArgs, TraceArgs};
use crate::progress::{note, step};
use crate::qemu::{End, Outcome};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use chrome::Checker;
use log::Log;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// MiB of the ring of each CPU. A boot of two storeys writes about that much.
const RING_MIB: u64 = 64;

/// What a run is to record.
#[derive(Debug)]
pub(crate) struct Request {
    file: PathBuf,
    report: bool,
}

impl Request {
    /// By the command line, of the run with this transcript. `None`: nothing.
    pub(crate) fn of(args: &MachineArgs, transcript: &Transcript) -> Option<Self> {
        (args.trace || args.report).then(|| Self::for_transcript(transcript, args.report))
    }

    /// Of the run with this transcript.
    pub(crate) fn for_transcript(transcript: &Transcript, report: bool) -> Self {
        let file = transcript.path().with_extension("trace");
        // What an older run left there is not this one's.
        let _ = fs::remove_file(&file);
        Self { file, report }
    }

    /// The words for umbra's command line.
    pub(crate) fn words(&self) -> [String; 2] {
        [
            format!("umbra.trace={RING_MIB}"),
            format!("umbra.trace.file={}", self.file.display()),
        ]
    }

    /// The boot arguments of a run of which this is wanted, or nothing is.
    pub(crate) fn with(request: Option<&Self>, append: &str) -> Result<String> {
        let Some(request) = request else {
            return Ok(append.to_owned());
        };
        let words = request.words();
        let words: Result<Vec<String>> = words.iter().map(|word| bootargs::quote(word)).collect();
        Ok(format!("{} {append}", words?.join(" ")))
    }

    /// After the run: what it left becomes files that people can look at.
    pub(crate) fn finish(&self, ws: &Workspace, about: &About<'_>) -> Result<()> {
        step("read the trace", || {
            look(ws, &self.file, self.report, about)
        })
    }
}

/// What a report says of the run besides its events.
#[derive(Debug)]
pub(crate) struct About<'a> {
    /// What ran.
    pub(crate) name: &'a str,
    /// How it ended, in a sentence, and whether that is well.
    pub(crate) end: (String, bool),
    /// The emulator.
    pub(crate) qemu: &'a str,
}

impl<'a> About<'a> {
    /// Of a run that ended so.
    pub(crate) fn of(name: &'a str, qemu: &'a str, outcome: &Outcome) -> Self {
        let seconds = outcome.seconds;
        let end = match &outcome.end {
            End::Exited(Some(0)) => (format!("ended after {seconds:.0} s"), true),
            End::Exited(Some(status)) if outcome.console.contains("umbra: PANIC") => (
                format!("umbra panicked after {seconds:.0} s, status {status}"),
                false,
            ),
            End::Exited(Some(status)) => (
                format!("ended after {seconds:.0} s, status {status}"),
                false,
            ),
            End::Exited(None) => ("QEMU was ended by a signal".to_owned(), false),
            End::TimedOut(_) => (
                format!("stopped by the time limit after {seconds:.0} s"),
                false,
            ),
        };
        Self { name, end, qemu }
    }
}

/// `cargo xtask trace`: an existing file.
pub(crate) fn command(ws: &Workspace, args: &TraceArgs) -> Result<()> {
    let name = args.file.file_stem().and_then(|name| name.to_str());
    let about = About {
        name: name.unwrap_or("trace"),
        end: ("read from a file".to_owned(), true),
        qemu: "",
    };
    look(ws, &args.file, true, &about)
}

fn look(ws: &Workspace, file: &Path, report: bool, about: &About<'_>) -> Result<()> {
    // A machine that died before it opened the file left none: an empty trace.
    let bytes = match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let log = Log::read(&bytes).with_context(|| format!("{}", file.display()))?;
    drop(bytes);
    let story = replay::replay(&log);
    let json = file.with_extension("trace.json");
    let checked = draw(&log, &story.tracks, &json)?;
    note(&format!(
        "{} events ({} lost), {} spans: {} (open it in ui.perfetto.dev)",
        log.len(),
        log.dropped(),
        checked.spans,
        ws.show(&json)
    ));
    for problem in &log.notes {
        note(problem);
    }
    eprint!("{}", summary::lines(&log, &story));
    if report {
        let page = file.with_extension("report.html");
        tell(&log, &story, about, &page)?;
        note(&format!("report: {}", ws.show(&page)));
    }
    Ok(())
}

/// After a traced run that is a test: reads everything back, and writes all that `look` does.
/// `events` are names that must be there.
pub(crate) fn verify(
    ws: &Workspace,
    transcript: &Path,
    about: &About<'_>,
    events: &[&str],
) -> Result<()> {
    let file = transcript.with_extension("trace");
    let bytes = fs::read(&file).with_context(|| format!("no trace {}", ws.show(&file)))?;
    let log = Log::read(&bytes)?;
    if let Some(problem) = log.notes.first() {
        bail!("{problem}");
    }
    let story = replay::replay(&log);
    if story.unknown > 0 {
        bail!("{} events are not what this version writes", story.unknown);
    }
    let names: BTreeSet<String> = story.counts.keys().map(|n| log.schema.name(*n)).collect();
    for event in events {
        if !names.contains(*event) {
            bail!("no {event} in the trace");
        }
    }
    let json = file.with_extension("trace.json");
    let written = draw(&log, &story.tracks, &json)?;
    let read = chrome::check(&fs::read_to_string(&json)?).context("the JSON read back")?;
    if (written.spans, written.instants) != (read.spans, read.instants) || read.spans == 0 {
        bail!(
            "{} spans and {} instants were written, {} and {} read back",
            written.spans,
            written.instants,
            read.spans,
            read.instants
        );
    }
    tell(&log, &story, about, &file.with_extension("report.html"))
}

fn tell(log: &Log, story: &story::Story, about: &About<'_>, page: &Path) -> Result<()> {
    let text = report::page(log, story, about);
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// The report of a file's bytes, as text.
pub(crate) fn page_of(bytes: &[u8], about: &About<'_>) -> Result<String> {
    let log = Log::read(bytes)?;
    Ok(report::page(&log, &replay::replay(&log), about))
}

fn draw(log: &Log, tracks: &tracks::Tracks, json: &Path) -> Result<Checker> {
    let out = File::create(json).with_context(|| format!("cannot write {}", json.display()))?;
    chrome::write(log, tracks, BufWriter::new(out))
}
