//! Progress of long steps, on standard error: the name when a step starts, the seconds when it ends.
//!
//! Standard output stays free for what a command is asked to print (a program's output, test results).

use anyhow::Result;
use std::time::Instant;

/// Runs one step and says how long it took. A step that fails says so by its error alone.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("xtask: {name} …");
    let value = work()?;
    eprintln!("xtask: {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(value)
}

/// One line of information.
pub(crate) fn note(text: &str) {
    eprintln!("xtask: {text}");
}
