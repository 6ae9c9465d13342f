//! Log lines on stderr, and nothing else: no time, no colour, no configuration.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        say(&format!("{level}: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Tells the user one line, in one write so that it stays whole among others. Nobody is left
/// to tell when stderr is closed.
pub fn say(text: &str) {
    line(&format!("umbra-vmm: {text}"));
}

/// Whether the terminal leaves lines as they are: then their ends are complete here.
static RAW: AtomicBool = AtomicBool::new(false);

/// The terminal is raw from now on, or no longer.
pub fn raw(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

/// Writes a line to stderr.
pub fn line(text: &str) {
    let mut stderr = std::io::stderr();
    let end = match RAW.load(Ordering::Relaxed) && stderr.is_terminal() {
        true => "\r\n",
        false => "\n",
    };
    let _ = stderr.write_all(format!("{text}{end}").as_bytes());
}

/// Shows messages down to `level`. Later calls only change the level.
pub fn start(level: LevelFilter) {
    // It fails only when a logger is set already, and that is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
