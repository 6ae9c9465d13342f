//! `campaign memory-error`: memory errors of every kind at random on one machine, beside VMs that compute.

use super::probe::Probe;
use super::success;
use crate::cli::MemoryErrorCampaign;
use crate::guest::Item;
use crate::progress::note;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Runs it; status 0 only if every owner got what is promised and nobody else noticed.
pub(crate) fn run(ws: &Workspace, args: &MemoryErrorCampaign) -> Result<ExitCode> {
    let limit = args.time_limit.unwrap_or(120 + args.count * 2);
    let words = [
        "--umbra",
        "campaign/memory_error",
        "--seed",
        &args.seed.to_string(),
        "--count",
        &args.count.to_string(),
        "--limit",
        &limit.to_string(),
    ];
    note(&format!("seed {}, {} injections", args.seed, args.count));
    let probe = Probe {
        name: "campaign",
        words: words.map(str::to_owned).to_vec(),
        items: Item::victims(64).collect(),
        limit: Duration::from_secs(limit + 60),
        says: "campaign:",
        indent: "",
    };
    let outcome = probe.run(ws, args.qemu.as_deref())?;
    if let Err(failed) = success(&outcome) {
        return Ok(failed);
    }
    note(&format!("umbra is alive after {:.0} s", outcome.seconds));
    Ok(ExitCode::SUCCESS)
}
