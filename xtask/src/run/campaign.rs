//! `campaign memory-error`: memory errors of every kind at random on one machine, beside VMs that compute.

use super::{linux::to_terminal, success};
use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::cli::MemoryErrorCampaign;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::progress::{note, step};
use crate::qemu::Machine;
use crate::setup;
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::ExitCode;
use std::time::Duration;

/// Runs it; status 0 only if every owner got what is promised and nobody else noticed.
pub(crate) fn run(ws: &Workspace, args: &MemoryErrorCampaign) -> Result<ExitCode> {
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.qemu.as_deref())?;
    // Tables are broken on purpose in a build with checks only.
    let kernel = step("build umbra with checks", || {
        build::kernel(ws, Profile::Checked)
    })?;
    let tests = step("build kvm-probe", || build::test_programs(ws))?;
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
    let mut items = vec![Item::from_file("/bin/kvm-probe", &tests.probe)?];
    items.extend(Item::victims(64));
    let machine = Machine {
        cpus: 2,
        kernel: kernel.image,
        initrd: guest::save(ws, "campaign.cpio", &guest::initrd(&items)?)?,
        append: BootArgs::new("/bin/kvm-probe", words.map(str::to_owned).to_vec()).render()?,
        disk: None,
    };
    let mut log = Transcript::new(ws, "campaign")?;
    log.used("kvm-probe", &tests.probe)?;
    note(&format!("seed {}, {} injections", args.seed, args.count));
    let symbols = Symbols::read(&kernel.elf)?;
    let limit = Duration::from_secs(limit + 60);
    let outcome = machine.run(&qemu, &mut log, limit, &symbols, |_| {})?;
    for line in outcome.console.lines() {
        let told = ["campaign:", "ok ", "FAIL", "umbra: PANIC"];
        if told.iter().any(|word| line.starts_with(word)) {
            to_terminal(format!("{line}\n").as_bytes());
        }
    }
    note(&format!("transcript: {}", ws.show(log.path())));
    if let Err(failed) = success(&outcome) {
        return Ok(failed);
    }
    note(&format!("umbra is alive after {:.0} s", outcome.seconds));
    Ok(ExitCode::SUCCESS)
}
