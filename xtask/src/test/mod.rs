//! `cargo xtask test`: first this machine, then machines in QEMU. No retries: a test that fails
//! sometimes fails.

mod boot;
mod case;
mod cases;
mod disk;
mod firmware;
mod host;
mod judge;
mod libtest;
pub(crate) mod linked;
mod mutants;
mod network;
mod pages;
mod report;
mod sabotage;
mod terminal;

use crate::bench::{Parts, smoke};
use crate::build::{self, Profile};
use crate::cli::TestArgs;
use crate::progress::{note, step};
use crate::setup::Flavour;
use crate::workspace::Workspace;
use crate::{guest, setup};
use anyhow::{Context, Result};
use boot::{Bench, group};
use case::Case;
use report::Tally;
use std::process::ExitCode;
use std::time::Instant;

/// Which tests to run: those whose name has one of the words in it; without words all.
#[derive(Debug)]
pub(crate) struct Filter {
    words: Vec<String>,
}

impl Filter {
    /// Whether a test of this name is to run.
    pub(crate) fn takes(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| name.contains(w.as_str()))
    }
}

/// Runs the tests; the exit status is a failure if one failed or none passed.
pub(crate) fn run(ws: &Workspace, args: &TestArgs) -> Result<ExitCode> {
    let start = Instant::now();
    step("set-up", || setup::for_build(ws))?;
    let mut tally = Tally::default();
    let filter = Filter {
        words: args.filters.clone(),
    };
    stage("host", || host::run(ws, &filter, &mut tally))?;
    stage("pages", || pages::run(ws, &filter, &mut tally))?;
    if !args.host {
        let mut mutants = mutants::list(ws.root())?;
        mutants.retain(|mutant| filter.takes(&mutant.name()));
        if !mutants.is_empty() {
            stage("rules", || mutants::run(ws, &mutants, &mut tally))?;
        }
        // What does not build is a failed test too: the last line is printed in any case.
        if let Err(error) = on_target(ws, args, &filter, &mut tally) {
            tally.fail("on-target", &format!("{error:#}"));
        }
    }
    note(&format!(
        "all stages: {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(tally.finish())
}

/// One stage, and how long it took.
fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let value = work()?;
    let seconds = start.elapsed().as_secs_f64();
    note(&format!("stage {name}: {seconds:.1} s"));
    Ok(value)
}

fn on_target(ws: &Workspace, args: &TestArgs, filter: &Filter, tally: &mut Tally) -> Result<()> {
    let nonce = guest::nonce()?;
    let all = cases::all(ws, &nonce)?;
    let mut cases = all.clone();
    cases.retain(|case| filter.takes(&case.name));
    cases.retain(|case| match case.full_only.filter(|_| !args.full) {
        Some(why) => {
            tally.skip(&case.name, &format!("only with --full: {why}"));
            false
        }
        None => true,
    });
    let mut sabotages = sabotage::list(ws.root())?;
    sabotages.retain(|s| filter.takes(&s.name()));
    let counts = filter.takes(COUNTS);
    if cases.is_empty() && sabotages.is_empty() && !counts {
        return Ok(());
    }
    let qemu = setup::qemu(ws, args.qemu.as_deref())?;
    let sabotaged = |case: &&Case| sabotages.iter().any(|s| s.case == case.name);
    let wanted: Vec<Flavour> = cases
        .iter()
        .chain(all.iter().filter(sabotaged))
        .flat_map(Case::flavours)
        .collect();
    setup::guests(ws, &wanted)?;
    let payloads = step("build guest payloads", || build::payloads(ws))?;
    let programs = step("build init and umbra-vmm", || build::programs(ws))?;
    let tests = step("build test programs", || build::test_programs(ws))?;
    let umbra = counts || cases.iter().any(Case::needs_umbra);
    let kernel = match umbra {
        true => Some(step("build umbra with checks", || {
            build::kernel(ws, Profile::Checked)
        })?),
        false => None,
    };
    let mut bench = Bench {
        ws,
        qemu: &qemu,
        own_qemu: args.qemu.as_deref(),
        kernel,
        programs: &programs,
        tests: &tests,
        payloads: &payloads,
        nonce: &nonce,
    };
    stage("machines", || {
        group(cases)
            .iter()
            .try_for_each(|boot| bench.run(boot, tally))
    })?;
    if counts {
        stage(COUNTS, || {
            count(&bench, tally);
            Ok(())
        })?;
    }
    if sabotages.is_empty() {
        return Ok(());
    }
    bench.kernel = Some(step("build umbra for sabotage", || {
        build::kernel_for_sabotage(ws)
    })?);
    stage("sabotage", || {
        sabotage::run(&bench, &sabotages, &all, tally)
    })
}

/// The name of the test that `bench` can count.
const COUNTS: &str = "bench/counts";

/// Whether plugin, file format and payload fit together: every kind of exit of the payload is counted on
/// umbra. What it costs is not judged here.
fn count(bench: &Bench<'_>, tally: &mut Tally) {
    let start = Instant::now();
    let counted = || {
        let parts = Parts {
            ws: bench.ws,
            qemu: bench.qemu,
            plugin: build::plugin(bench.ws)?,
            others: Vec::new(),
            kernel: bench.kernel.clone().context("umbra was not built")?,
            programs: bench.programs.clone(),
            probe: None,
            payloads: bench.payloads.clone(),
            debian: None,
        };
        smoke(&parts)
    };
    let result = counted().map_err(|error| format!("{error:#}"));
    tally.result(COUNTS, start.elapsed().as_secs_f64(), result);
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn filters_are_parts_of_names() {
        let filter = |words: &[&str]| Filter {
            words: words.iter().map(|w| (*w).to_owned()).collect(),
        };
        assert!(filter(&[]).takes("linux/1cpu"));
        assert!(filter(&["linux/"]).takes("linux/1cpu"));
        assert!(filter(&["boot", "1cpu"]).takes("linux/1cpu"));
        assert!(!filter(&["boot"]).takes("linux/1cpu"));
    }
}
