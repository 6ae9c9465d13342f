//! `cargo xtask top`: what a machine that runs does at the moment, in a terminal of its own, so that the
//! guest's is left alone.
//!
//! umbra writes what it counts into a file beside the transcript, twice a second (kernel/src/live.rs); this
//! reads it. Nothing is asked of the machine, and it does not notice who looks.

mod screen;
mod snapshot;

use crate::bootargs;
use crate::cli::TopArgs;
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use screen::screen;
use snapshot::{Interval, Snapshot};
use std::fs;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const EXTENSION: &str = "live";
/// A machine that wrote nothing for so long is gone, or stopped.
const SILENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The boot arguments of a run with this transcript, which can then be watched.
pub(crate) fn with(transcript: &Transcript, append: &str) -> Result<String> {
    let file = file(transcript.path());
    let word = bootargs::quote(&format!("umbra.live={}", file.display()))?;
    Ok(format!("{word} {append}"))
}

/// The run with this transcript is over.
pub(crate) fn over(transcript: &Path) {
    // A run that was not to be watched has none.
    let _ = fs::remove_file(file(transcript));
}

fn file(transcript: &Path) -> PathBuf {
    transcript.with_extension(EXTENSION)
}

/// Watches until the machine ends.
pub(crate) fn command(ws: &Workspace, args: &TopArgs) -> Result<()> {
    let path = find(ws, args.run.as_deref())?;
    let name = path.file_stem().and_then(|name| name.to_str());
    let name = name.unwrap_or("run").to_owned();
    let interval = Duration::from_millis((args.interval * 1000.0) as u64);
    let Some(mut before) = next(&path, None, Duration::ZERO)? else {
        bail!("{name} has ended");
    };
    loop {
        let Some(now) = next(&path, Some(&before), interval)? else {
            eprintln!("xtask: {name} has ended");
            return Ok(());
        };
        let both = Interval {
            before: &before,
            now: &now,
        };
        if !show(&screen(&name, &both), args.once)? || args.once {
            return Ok(());
        }
        before = now;
    }
}

/// The live file of this run, or of the one that wrote last.
fn find(ws: &Workspace, name: Option<&str>) -> Result<PathBuf> {
    let folder = ws.folder("run")?;
    if let Some(name) = name {
        let path = folder.join(format!("{name}.{EXTENSION}"));
        return match path.exists() {
            true => Ok(path),
            false => bail!("{name} does not run (no {})", ws.show(&path)),
        };
    }
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&folder).context("the folder of runs")? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == EXTENSION) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = found.into_iter().max().map(|(_, path)| path);
    newest.context(
        "nothing runs that can be watched: start `cargo xtask run linux --interactive` first",
    )
}

/// The first whole snapshot that is newer than `before`, not earlier than after `pause`. `None`: the run
/// is over.
fn next(path: &Path, before: Option<&Snapshot>, pause: Duration) -> Result<Option<Snapshot>> {
    let start = Instant::now();
    std::thread::sleep(pause);
    loop {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let snapshot = Snapshot::parse(&text);
        let is_news = |new: &Snapshot| before.is_none_or(|before| new.time() != before.time());
        if let Some(snapshot) = snapshot.filter(is_news) {
            return Ok(Some(snapshot));
        }
        if start.elapsed() > pause + SILENCE {
            bail!(
                "nothing new for {} s: the machine is gone, or stands still",
                SILENCE.as_secs()
            );
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Shows a screen, over the last one where it is a terminal. False: nobody reads any more.
fn show(text: &str, once: bool) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    let text = match !once && out.is_terminal() {
        // Home, each line to its end, then all below.
        true => format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")),
        false => format!("{text}\n"),
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("the terminal"),
    }
}
