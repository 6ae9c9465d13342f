//! `cargo xtask bench`: what exits cost on umbra, beside Linux/KVM, counted from outside.
//!
//! Each session is one boot on either side: the same QEMU and its options, the same `umbra-vmm` file, the same
//! guest; only what lies at EL2 differs. Counts are instructions and memory accesses under `-icount`, so they
//! repeat; the plugin (`qemu-plugin/`) needs no help from either side. Linux gets 25 s of virtual time to become
//! quiet, and transparent huge pages always.

mod host;
mod kept;
mod list;
mod machine;
mod measure;
mod page;
mod record;
mod rows;
mod session;

use crate::build::{self, Profile};
use crate::cli::BenchArgs;
use crate::progress::{note, step};
use crate::setup::{self, Flavour};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use machine::{How, Run, Side};
use rows::{ROWS, Value};
use serde::{Deserialize, Serialize};
use session::Session;
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) use machine::{Parts, smoke};

/// The whole result, as `target/umbra/bench.json` has it.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// The command that measured it.
    command: String,
    date: String,
    commit: String,
    qemu: String,
    kvm: String,
    rows: Vec<Value>,
    sessions: Vec<Told>,
    /// Rows that have no value, each with the side.
    missing: Vec<String>,
}

/// Its file below `target/umbra/`.
const RESULT: &str = "bench.json";

/// What became of a session on one side.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    session: String,
    side: Side,
    /// Wall time of the emulator.
    seconds: Option<f64>,
    /// The day of the earlier run that this is of.
    kept: Option<String>,
    /// Why there is nothing of it.
    error: Option<String>,
}

/// Every session that ran, and those that failed with their error.
type Runs = BTreeMap<(Session, Side), Result<Run>>;

/// Runs it. The status is a failure if a row could not be measured; a target that is missed is told.
pub(crate) fn run(ws: &Workspace, args: &BenchArgs) -> Result<ExitCode> {
    if args.host {
        host::run(ws, args.dry)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.page {
        return tell_again(ws);
    }
    let chosen = Session::chosen(&args.filters, args.quick)?;
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.qemu.as_deref())?;
    setup::guests(ws, &[Flavour::Newest])?;
    let debian = setup::guest_files(ws, Flavour::Newest)?;
    let parts = Parts {
        ws,
        qemu: &qemu,
        plugin: step("build the plugin", || build::plugin(ws))?,
        others: args.plugin.clone(),
        kernel: step("build umbra", || build::kernel(ws, Profile::Release))?,
        programs: step("build init and umbra-vmm", || build::programs(ws))?,
        probe: Some(step("build kvm-probe", || build::probe(ws))?),
        payloads: step("build guest payloads", || build::payloads(ws))?,
        debian: Some(&debian),
    };
    let how = How {
        reuse: args.reuse,
        limit: Duration::from_secs(args.limit),
    };
    let mut runs = Runs::new();
    for session in &chosen {
        for side in [Side::Umbra, Side::Kvm] {
            if side == Side::Kvm && (args.alone || session.is_umbras()) {
                continue;
            }
            let name = format!("{} on {}", session.name(), side.name());
            let run = step(&name, || machine::run(&parts, *session, side, how));
            match &run {
                // The others still count.
                Err(error) => eprintln!("xtask: {name}: {error:#}"),
                Ok(run) => {
                    if let Some(date) = &run.kept {
                        note(&format!("{name}: as it ran on {date}"));
                    }
                    if args.list {
                        print!("{}", list::of(&name, &run.records));
                    }
                }
            }
            runs.insert((*session, side), run);
        }
    }
    let measured = ROWS.iter().filter(|row| chosen.contains(&row.session));
    let lost = lost(&chosen, &runs, args.alone);
    let report = Report {
        command: line(args),
        date: page::today(),
        commit: page::commit(ws),
        qemu: qemu.version.clone(),
        kvm: debian.label.clone(),
        rows: measured.map(|row| value(row, &runs)).collect(),
        sessions: runs.iter().map(|(key, run)| told(*key, run)).collect(),
        missing: lost.clone(),
    };
    print!("{}", page::table(&report.rows));
    if !args.alone {
        let path = ws.folder("")?.join(RESULT);
        let json = serde_json::to_string_pretty(&report).context("bench.json")?;
        fs::write(&path, json + "\n").with_context(|| format!("{}", path.display()))?;
        note(&format!("written: {}", ws.show(&path)));
        if args.filters.is_empty() && !args.dry {
            page::write(ws, &report)?;
        }
    }
    if lost.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: not measured:");
    lost.iter().for_each(|row| eprintln!("xtask:   {row}"));
    Ok(ExitCode::FAILURE)
}

/// Writes the page of the last run again: its texts are another matter than its numbers.
fn tell_again(ws: &Workspace) -> Result<ExitCode> {
    let path = ws.folder("")?.join(RESULT);
    let text = fs::read_to_string(&path);
    let text = text.with_context(|| format!("{}: run cargo xtask bench first", ws.show(&path)))?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{} is of another version", ws.show(&path)))?;
    let unknown = report.rows.iter().find(|value| {
        let is = |row: &&rows::Row| row.name == value.name && row.unit == value.unit;
        !ROWS.iter().any(|row| is(&row))
    });
    if let Some(value) = unknown {
        anyhow::bail!("{}: no row is called {:?}", ws.show(&path), value.name);
    }
    let short = ROWS.iter().filter(|row| !row.session.is_long());
    anyhow::ensure!(
        report.rows.len() >= short.count(),
        "{} has only some of the sessions",
        ws.show(&path)
    );
    page::write(ws, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn value(row: &rows::Row, runs: &Runs) -> Value {
    let of = |side| {
        let run = runs.get(&(row.session, side))?.as_ref().ok()?;
        row.measure.value(run)
    };
    Value::new(row, of(Side::Kvm), of(Side::Umbra))
}

fn told((session, side): (Session, Side), run: &Result<Run>) -> Told {
    let ended = run.as_ref().ok();
    Told {
        session: session.name().to_owned(),
        side,
        seconds: ended.map(|run| run.seconds),
        kept: ended.and_then(|run| run.kept.clone()),
        error: run.as_ref().err().map(|error| format!("{error:#}")),
    }
}

/// The rows that should have a value and have none, each with the side.
fn lost(chosen: &[Session], runs: &Runs, alone: bool) -> Vec<String> {
    let mut lost = Vec::new();
    for row in ROWS.iter().filter(|row| chosen.contains(&row.session)) {
        for side in [Side::Umbra, Side::Kvm] {
            let asked = side == Side::Umbra || !(alone || row.session.is_umbras());
            let run = runs.get(&(row.session, side)).and_then(|r| r.as_ref().ok());
            if asked && run.and_then(|run| row.measure.value(run)).is_none() {
                lost.push(format!("{}, {}, on {}", row.name, row.unit, side.name()));
            }
        }
    }
    lost
}

/// The command line, as the page gives it.
fn line(args: &BenchArgs) -> String {
    let words = [(args.quick, " --quick"), (args.reuse, " --reuse")];
    let words = words.into_iter().filter(|(given, _)| *given);
    words.fold("cargo xtask bench".to_owned(), |line, (_, word)| {
        line + word
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use record::Records;

    fn run(bytes: &[u8]) -> Run {
        Run {
            records: Records::decode(bytes).unwrap(),
            said: BTreeMap::new(),
            seconds: 1.0,
            kept: None,
        }
    }

    #[test]
    fn a_session_that_crashed_costs_its_own_rows_alone() {
        // Enough marks that every row of the session has a value.
        let mut file = b"umbexit2".to_vec();
        for kind in [2u8].into_iter().chain([1; 60]) {
            file.extend([&[kind][..], &[0; 63]].concat());
        }
        let runs = Runs::from([
            ((Session::Blocks, Side::Umbra), Ok(run(&file))),
            ((Session::Blocks, Side::Kvm), Ok(run(&file))),
            ((Session::Pages, Side::Umbra), Ok(run(&file))),
            (
                (Session::Pages, Side::Kvm),
                Err(anyhow!("the machine ended with None")),
            ),
        ]);
        let chosen = [Session::Pages, Session::Blocks];
        let rows = |session| ROWS.iter().filter(move |row| row.session == session);
        let lost = lost(&chosen, &runs, false);
        assert_eq!(lost.len(), rows(Session::Pages).count(), "{lost:?}");
        assert!(
            lost.contains(&"hypercall that nobody owns, instructions, on Linux/KVM".to_owned())
        );
        assert!(rows(Session::Blocks).all(|row| value(row, &runs).kvm.is_some()));
        assert!(rows(Session::Pages).all(|row| value(row, &runs).umbra.is_some()));
        let told: Vec<Told> = runs.iter().map(|(key, run)| told(*key, run)).collect();
        let failed: Vec<_> = told.iter().filter(|told| told.error.is_some()).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].session, "pages");
        assert_eq!(failed[0].side, Side::Kvm);
        assert!(
            super::lost(&chosen, &runs, true).is_empty(),
            "nobody asked for KVM"
        );
    }
}
