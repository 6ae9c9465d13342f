//! `run nested`: umbra, on it a kernel with KVM at virtual EL2, in it a guest of its own; Debian's or
//! the caller's.

use super::{linux::to_terminal, success};
use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::cli::NestedArgs;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::nested::{self, Storeys};
use crate::progress::{note, step};
use crate::qemu::{Disk, Machine};
use crate::setup::{self, Flavour, GuestFiles};
use crate::statistics;
use crate::top;
use crate::trace::{About, Request};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

/// Runs it; status 0 only when both storeys reported this run's nonce and everything ended with 0.
pub(crate) fn run(ws: &Workspace, args: &NestedArgs) -> Result<ExitCode> {
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.machine.qemu.as_deref())?;
    let files = |own: Option<&Path>| match own {
        Some(kernel) => Ok(GuestFiles::own(kernel)),
        None => setup::guest_files(ws, Flavour::Newest),
    };
    let outer = files(args.kernel.as_deref())?;
    let inner = files(args.l2_kernel.as_deref())?;
    let nonce = guest::nonce()?;
    let kernel = step("build umbra", || build::kernel(ws, Profile::Release))?;
    let programs = step("build init and umbra-vmm", || build::programs(ws))?;
    let storeys = Storeys {
        l1: Flavour::Newest,
        cpus: args.cpus,
        l2: Flavour::Newest,
        l2_cpus: args.l2_cpus,
        side_by_side: 1,
    };
    let l1 = nested::initramfs(ws, (&outer, &inner), &programs.vmm, storeys.l2_cpus)?;
    let items = [
        Item::from_file("/init", &programs.init)?,
        Item::from_file("/bin/umbra-vmm", &programs.vmm)?,
        Item::from_file("/guest/Image", &outer.kernel)?,
        Item::from_file("/guest/initrd", &l1)?,
    ];
    let mut log = Transcript::new(ws, "nested")?;
    let trace = Request::of(&args.machine, &log);
    let append = BootArgs::new("/init", storeys.commands(&nonce)).render()?;
    let machine = Machine {
        cpus: args.cpus,
        kernel: kernel.image,
        initrd: guest::save(ws, "nested.cpio", &guest::initrd(&items)?)?,
        append: top::with(&log, &Request::with(trace.as_ref(), &append)?)?,
        disk: Disk::of(args.machine.disk.as_deref())?,
    };
    log.used("umbra-vmm", &programs.vmm)?;
    log.used(&format!("L1 kernel ({})", outer.label), &outer.kernel)?;
    log.used(&format!("L2 kernel ({})", inner.label), &inner.kernel)?;
    note(&format!(
        "L1: {}; L2: {}; {}",
        outer.label, inner.label, qemu.version
    ));
    let symbols = Symbols::read(&kernel.elf)?;
    let outcome = machine.run(&qemu, &mut log, args.machine.limit(), &symbols, to_terminal)?;
    note(&format!("transcript: {}", ws.show(log.path())));
    if let Some(trace) = trace {
        trace.finish(ws, &About::of("nested", &qemu.version, &outcome))?;
    }
    if let Err(failed) = success(&outcome) {
        return Ok(failed);
    }
    for expected in storeys.expectations(&nonce) {
        if !regex::Regex::new(&expected)?.is_match(&outcome.console) {
            eprintln!("xtask: failed: {expected:?} is not in the console");
            return Ok(ExitCode::FAILURE);
        }
    }
    let told = statistics::tables(&outcome.console);
    for text in told.iter().filter_map(statistics::of_storeys) {
        print!("{text}");
    }
    note(&format!(
        "{} ran as L1 and {} as L2 on umbra; {:.0} s",
        outer.label, inner.label, outcome.seconds
    ));
    Ok(ExitCode::SUCCESS)
}
