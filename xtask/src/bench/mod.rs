//! `cargo xtask bench`: what exits cost on umbra, beside Linux/KVM, counted from outside.
//!
//! Each session is one boot on either side: the same QEMU and its options, the same `umbra-vmm` file, the same
//! guest; only what lies at EL2 differs. Counts are instructions and memory accesses under `-icount`, so they
//! repeat; the plugin (`qemu-plugin/`) needs no help from either side. Linux gets 25 s of virtual time to become
//! quiet, and transparent huge pages always.

mod machine;
mod page;
mod record;
mod rows;

use crate::build::{self, Profile};
use crate::cli::BenchArgs;
use crate::progress::{note, step};
use crate::setup::{self, Flavour};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use machine::Side;
use rows::{ROWS, Session, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

pub(crate) use machine::{Parts, smoke};

/// The whole result, as `target/umbra/bench.json` has it.
#[derive(Debug, Serialize)]
struct Report {
    date: String,
    commit: String,
    qemu: String,
    kvm: String,
    rows: Vec<Value>,
}

/// Runs it. The status is a failure if a row could not be measured; a target that is missed is told.
pub(crate) fn run(ws: &Workspace, args: &BenchArgs) -> Result<ExitCode> {
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.qemu.as_deref())?;
    setup::guests(ws, &[Flavour::Newest])?;
    let debian = setup::guest_files(ws, Flavour::Newest)?;
    let parts = Parts {
        ws,
        qemu: &qemu,
        plugin: step("build the plugin", || build::plugin(ws))?,
        kernel: step("build umbra", || build::kernel(ws, Profile::Release))?,
        programs: step("build init and umbra-vmm", || build::programs(ws))?,
        payloads: step("build guest payloads", || build::payloads(ws))?,
        debian: Some(&debian),
    };
    let wanted = |session: Session| {
        let asked = args.filters.is_empty() || args.filters.iter().any(|w| w == session.name());
        asked && !(args.quick && session.is_long())
    };
    let mut runs = BTreeMap::new();
    for session in Session::ALL.into_iter().filter(|s| wanted(*s)) {
        for side in [Side::Umbra, Side::Kvm] {
            if args.alone && side == Side::Kvm {
                continue;
            }
            let name = format!("{} on {}", session.name(), side.name());
            let run = step(&name, || machine::run(&parts, session, side))?;
            runs.insert((session, side), run);
        }
    }
    let value = |row: &rows::Row, side| {
        let run = runs.get(&(row.session, side));
        run.and_then(|run| row.measure.value(&run.records))
    };
    let measured = ROWS.iter().filter(|row| wanted(row.session));
    let report = Report {
        date: page::today(),
        commit: page::commit(ws),
        qemu: qemu.version.clone(),
        kvm: debian.label.clone(),
        rows: measured
            .map(|row| Value::new(row, value(row, Side::Kvm), value(row, Side::Umbra)))
            .collect(),
    };
    let wall: Vec<page::Wall> = runs
        .iter()
        .map(|((session, side), run)| (session.name(), *side, run.seconds))
        .collect();
    print!("{}", page::table(&report.rows));
    if args.alone {
        return Ok(ExitCode::SUCCESS);
    }
    let path = ws.folder("")?.join("bench.json");
    let json = serde_json::to_string_pretty(&report).context("bench.json")?;
    fs::write(&path, json + "\n").with_context(|| format!("{}", path.display()))?;
    note(&format!("written: {}", ws.show(&path)));
    if args.filters.is_empty() && !args.dry {
        page::write(ws, &report, &wall, args.quick)?;
    }
    let lost: Vec<&str> = report
        .rows
        .iter()
        .filter(|row| row.kvm.is_none() || row.umbra.is_none())
        .map(|row| row.name)
        .collect();
    if lost.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: not measured: {}", lost.join("; "));
    Ok(ExitCode::FAILURE)
}
