//! Stage 1, on this machine: format, lints for every target, and all host tests (among them the
//! structural ones of `xtask/tests/`).

use super::Filter;
use super::libtest::{Counts, is_news};
use super::report::{Tally, tail};
use crate::cargo::{command, show};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The lints: a name and the cargo words. Warnings are errors everywhere.
const LINTS: [(&str, &[&str]); 4] = [
    ("host/fmt", &["fmt", "--all", "--check"]),
    (
        "host/clippy",
        &[
            "clippy",
            "--locked",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "host/clippy-el2",
        &[
            "clippy",
            "--locked",
            "--quiet",
            "-p",
            "umbra-kernel",
            "-p",
            "umbra-hw",
            "-p",
            "umbra-guests",
            "-p",
            "umbra-oracle",
            "--target",
            "aarch64-unknown-none-softfloat",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "host/clippy-el0",
        &[
            "clippy",
            "--locked",
            "--quiet",
            "-p",
            "umbra-init",
            "-p",
            "umbra-vmm",
            "--target",
            "aarch64-unknown-linux-musl",
            "--",
            "-D",
            "warnings",
        ],
    ),
];

/// Runs what the filter takes of this stage.
pub(crate) fn run(ws: &Workspace, filter: &Filter, tally: &mut Tally) -> Result<()> {
    for (name, words) in LINTS {
        if filter.takes(name) {
            let start = Instant::now();
            let result = quiet(command(ws).args(words));
            tally.result(name, start.elapsed().as_secs_f64(), result);
        }
    }
    if filter.takes("host/test") {
        tests(ws, tally)?;
    }
    Ok(())
}

/// Runs a command whose output matters only if it fails.
fn quiet(cmd: &mut Command) -> Result<(), String> {
    // Colours have no place in an excerpt; rustfmt looks at TERM alone.
    cmd.env("TERM", "dumb").env("CARGO_TERM_COLOR", "never");
    let out = cmd
        .output()
        .map_err(|e| format!("cannot start {}: {e}", show(cmd)))?;
    if out.status.success() {
        return Ok(());
    }
    let text = [out.stdout, out.stderr].concat();
    Err(format!(
        "{}\n{}",
        show(cmd),
        tail(&String::from_utf8_lossy(&text), 60)
    ))
}

/// Runs all host tests, shows what fails, and counts each of them.
fn tests(ws: &Workspace, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    let mut cmd = command(ws);
    cmd.args([
        "test",
        "--locked",
        "--quiet",
        "--workspace",
        "--no-fail-fast",
        "--",
        "--format=pretty",
    ]);
    let mut child = cmd
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let mut counts = Counts::default();
    let out = child.stdout.take().context("cargo test gives no output")?;
    for line in BufReader::new(out).lines() {
        let line = line?;
        counts.line(&line);
        if is_news(&line) {
            println!("{line}");
        }
    }
    let good = child.wait()?.success();
    tally.add(counts.passed, counts.failed, counts.ignored);
    let Counts {
        passed,
        failed,
        ignored,
    } = counts;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "     host/test: {passed} passed, {failed} failed, {ignored} ignored ({seconds:.1} s)"
    );
    if !good && failed == 0 {
        // A test program that did not build, or died, has no summary line.
        tally.fail("host/test", &format!("{} failed", show(&cmd)));
    }
    Ok(())
}
