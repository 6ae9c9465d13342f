//! `cargo xtask test`: first this machine, then machines in QEMU. No retries: a test that fails
//! sometimes fails.

mod boot;
mod cases;
mod host;
mod judge;
mod libtest;
mod report;
mod sabotage;

use crate::build::{self, Profile};
use crate::cli::TestArgs;
use crate::progress::{note, step};
use crate::workspace::Workspace;
use crate::{guest, setup};
use anyhow::{Result, bail};
use boot::{Bench, group};
use cases::Case;
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
    setup::for_build(ws)?;
    let mut tally = Tally::default();
    let (sabotage, words) = match args.filters.split_first() {
        Some((first, rest)) if first == "sabotage" => (true, rest.to_vec()),
        _ => (false, args.filters.clone()),
    };
    let filter = Filter { words };
    if sabotage && args.host {
        bail!("sabotage needs booted machines: it cannot be combined with --host");
    }
    if !sabotage {
        host::run(ws, &filter, &mut tally)?;
    }
    if !args.host {
        // What does not build is a failed test too: the last line is printed in any case.
        if let Err(error) = on_target(ws, args, sabotage, &filter, &mut tally) {
            tally.fail("on-target", &format!("{error:#}"));
        }
    }
    note(&format!(
        "all stages: {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(tally.finish())
}

fn on_target(
    ws: &Workspace,
    args: &TestArgs,
    sabotage: bool,
    filter: &Filter,
    tally: &mut Tally,
) -> Result<()> {
    let payloads = step("build guest payloads", || build::payloads(ws))?;
    let nonce = guest::nonce()?;
    let mut cases = cases::all(&nonce, payloads)?;
    if !sabotage {
        cases.retain(|case| filter.takes(&case.name));
        cases.retain(|case| match case.full_only.filter(|_| !args.full) {
            Some(why) => {
                tally.skip(&case.name, &format!("only with --full: {why}"));
                false
            }
            None => true,
        });
    }
    if cases.is_empty() {
        return Ok(());
    }
    let qemu = setup::qemu(ws, args.qemu.as_deref())?;
    let programs = step("build init and umbra-vmm", || build::programs(ws))?;
    if sabotage {
        return sabotage::run(ws, &qemu, &programs, &nonce, &cases, tally);
    }
    let kernel = match cases.iter().any(Case::needs_umbra) {
        true => Some(step("build umbra with checks", || {
            build::kernel(ws, Profile::Checked, None)
        })?),
        false => None,
    };
    let bench = Bench {
        ws,
        qemu: &qemu,
        kernel: kernel.as_ref(),
        programs: &programs,
        nonce: &nonce,
    };
    for boot in group(cases) {
        bench.run(&boot, tally)?;
    }
    Ok(())
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
