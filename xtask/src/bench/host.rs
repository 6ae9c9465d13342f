//! `cargo xtask bench --host`: the pure parts on this machine, as the work grows (`benches/`), and
//! `docs/host-benches.md`.
//!
//! Instructions are counted by callgrind, from the outside and inside one function only, so they
//! repeat; times are divan's, and are of this machine.

use super::page::{commit, today};
use crate::cargo;
use crate::progress::{note, step};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGE: &str = "docs/host-benches.md";
/// Who does the same job, and is shown beside it.
const PEER: &str = "-aarch64-paging";

/// One thing that was counted.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    size: u64,
    operation: String,
    grows: String,
    /// Instructions of one operation.
    cost: f64,
}

/// Counts, takes times, and writes the page unless `dry`.
pub(super) fn run(ws: &Workspace, dry: bool) -> Result<()> {
    let valgrind = cargo::read(Command::new("valgrind").arg("--version"))
        .context("callgrind is needed: apt-get install valgrind")?;
    let program = step("build the benches", || build(ws))?;
    let list = cargo::read(&mut Command::new(&program))?;
    let mut rows = Vec::new();
    for line in list.lines() {
        let mut words = line.split('\t').map(str::to_owned);
        let mut word = || words.next().context("the benches list something else");
        let (name, size, operation, grows) = (word()?, word()?, word()?, word()?);
        let cost = count(&program, &name, &size)?;
        println!("{name:<24} {size:>10} {cost:>10.1} instructions for {operation}");
        rows.push(Row {
            name,
            size: size.parse().context("a size")?,
            operation,
            grows,
            cost,
        });
    }
    let times = step("take the times", || {
        let words = [
            "bench",
            "--locked",
            "-p",
            "umbra-benches",
            "--bench",
            "times",
        ];
        cargo::read(cargo::command(ws).args(words))
    })?;
    println!("{}", times.trim_end());
    if dry {
        return Ok(());
    }
    let about = [
        format!("{} at {}", today(), commit(ws)),
        valgrind.trim().to_owned(),
        processor(),
    ];
    let path = ws.root().join(PAGE);
    fs::write(&path, page(&rows, &times, &about)).context(PAGE)?;
    note(&format!("written: {PAGE}"));
    Ok(())
}

fn build(ws: &Workspace) -> Result<PathBuf> {
    let words = ["build", "--locked", "--release", "-p", "umbra-benches"];
    cargo::run(cargo::command(ws).args(words))?;
    Ok(ws.target().join("release/umbra-benches"))
}

/// Instructions of one operation.
fn count(program: &Path, name: &str, size: &str) -> Result<f64> {
    let out = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=umbra_benches::counted*",
        ])
        .arg(program)
        .args([name, size])
        .output()
        .context("valgrind")?;
    let operations = String::from_utf8_lossy(&out.stdout);
    let said = String::from_utf8_lossy(&out.stderr);
    let operations: Option<u64> = operations.trim().parse().ok();
    match (collected(&said), operations) {
        (Some(all @ 1..), Some(operations @ 1..)) => Ok(all as f64 / operations as f64),
        _ => bail!("{name} {size} could not be counted:\n{said}"),
    }
}

/// The sum in callgrind's last words: `Collected : 4321`.
fn collected(said: &str) -> Option<u64> {
    let (_, rest) = said.rsplit_once("Collected :")?;
    rest.lines().next()?.trim().parse().ok()
}

/// What the times were taken on.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The page's text.
fn page(rows: &[Row], times: &str, about: &[String; 3]) -> String {
    let [date, valgrind, processor] = about;
    let mut out = format!(
        "# The pure parts on a host\n\n\
        What the parts that decide something cost on the machine that builds umbra, as the work grows. Written by \
        `cargo xtask bench --host` on {date}.\nInstructions are {arch}'s, counted by callgrind ({valgrind}) inside the run alone, \
        set-up left out; they repeat. What counts\nis how a column grows: a page taken back must cost its own mappings, never \
        those of the others. `aarch64-paging`, an engine for a\nprogram's own tables, does three of the jobs too: without a TLB's \
        part, without break-before-make of live entries, without freeing\ntables that become empty.\n",
        arch = std::env::consts::ARCH,
    );
    let mut last = "";
    for row in rows.iter().filter(|row| !row.name.ends_with(PEER)) {
        let beside = format!("{}{PEER}", row.name);
        let beside = rows
            .iter()
            .find(|other| other.name == beside && other.size == row.size);
        if row.name != last {
            last = &row.name;
            let (name, operation, grows) = (&row.name, &row.operation, &row.grows);
            let head = match beside {
                Some(_) => ("| aarch64-paging ", "|---"),
                None => ("", ""),
            };
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "\n## {name}: {operation}\n\n| {grows} | umbra, instructions {}|\n|---|---{}|\n",
                head.0, head.1
            );
        }
        let beside = beside.map_or_else(String::new, |beside| format!("| {:.1} ", beside.cost));
        let _ = writeln!(out, "| {} | {:.1} {beside}|", grouped(row.size), row.cost);
    }
    let _ = write!(
        out,
        "\n## Times\n\n`cargo bench -p umbra-benches`, by divan, on {processor}. A line is a piece of work and its size; \
        `item/s` are operations a second.\nThey are this machine's, and those of its other work in that minute.\n\n```text\n{}\n```\n",
        times.trim_end()
    );
    out
}

/// 10000 as 10,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Row, collected, grouped, page};

    #[test]
    fn callgrinds_sum_is_found() {
        let said = "==1== \n==1== Events    : Ir\n==1== Collected : 4321\n==1== \n==1== I   refs:      4,321\n";
        assert_eq!(collected(said), Some(4321));
        assert_eq!(collected("valgrind: no such file"), None);
    }

    #[test]
    fn the_peer_stands_beside_the_same_size() {
        let row = |name: &str, size, cost| Row {
            name: name.to_owned(),
            size,
            operation: "one page".to_owned(),
            grows: "pages".to_owned(),
            cost,
        };
        let rows = [
            row("map", 1, 10.0),
            row("map", 4096, 12.0),
            row("map-aarch64-paging", 4096, 20.0),
            row("map-aarch64-paging", 1, 30.0),
            row("pool", 64, 5.5),
        ];
        let about = ["a", "b", "c"].map(str::to_owned);
        let page = page(&rows, "times\n", &about);
        for line in [
            "## map: one page",
            "| pages | umbra, instructions | aarch64-paging |",
            "| 1 | 10.0 | 30.0 |",
            "| 4,096 | 12.0 | 20.0 |",
            "| pages | umbra, instructions |",
            "| 64 | 5.5 |",
        ] {
            assert!(page.lines().any(|told| told == line), "{line} in\n{page}");
        }
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
