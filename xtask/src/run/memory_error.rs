//! `run memory-error`: one page goes bad under one process of a guest's guest.

use super::{linux::to_terminal, success};
use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::cli::MemoryErrorArgs;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::memory_error::{self, Inside};
use crate::progress::{note, step};
use crate::qemu::{Disk, Machine};
use crate::setup::{self, Flavour};
use crate::trace::{About, Request};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::Result;
use std::process::ExitCode;

/// Runs it; status 0 only if that one process was lost and nothing else.
pub(crate) fn run(ws: &Workspace, args: &MemoryErrorArgs) -> Result<ExitCode> {
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.machine.qemu.as_deref())?;
    let debian = setup::guest_files(ws, Flavour::Newest)?;
    let nonce = guest::nonce()?;
    let kernel = step("build umbra", || build::kernel(ws, Profile::Release))?;
    let programs = step("build init and umbra-vmm", || build::programs(ws))?;
    let tests = step("build the worker", || build::test_programs(ws))?;
    let inside = Inside {
        vmm: &programs.vmm,
        worker: &tests.worker,
    };
    let (l1, second) = memory_error::initramfs(ws, &debian, &inside)?;
    let items = [
        Item::from_file("/init", &programs.init)?,
        Item::from_file("/bin/umbra-vmm", &programs.vmm)?,
        Item::from_file("/guest/Image", &debian.kernel)?,
        Item::from_file("/guest/initrd", &l1)?,
        Item::from_file("/guest/second", &second)?,
    ];
    let commands = memory_error::commands(args.cpus, &nonce);
    let mut log = Transcript::new(ws, "memory-error")?;
    let trace = Request::of(&args.machine, &log);
    let append = BootArgs::new("/init", commands).render()?;
    let machine = Machine {
        cpus: args.cpus,
        kernel: kernel.image,
        initrd: guest::save(ws, "memory-error.cpio", &guest::initrd(&items)?)?,
        append: Request::with(trace.as_ref(), &append)?,
        disk: Disk::of(args.machine.disk.as_deref())?,
    };
    log.used("umbra-vmm", &programs.vmm)?;
    log.used(&format!("guest kernel ({})", debian.label), &debian.kernel)?;
    note(&format!("guests: {}; {}", debian.label, qemu.version));
    let symbols = Symbols::read(&kernel.elf)?;
    let outcome = machine.run(&qemu, &mut log, args.machine.limit(), &symbols, to_terminal)?;
    note(&format!("transcript: {}", ws.show(log.path())));
    if let Some(trace) = trace {
        trace.finish(ws, &About::of("memory-error", &qemu.version, &outcome))?;
    }
    if let Err(failed) = success(&outcome) {
        return Ok(failed);
    }
    match memory_error::follow(&outcome.console) {
        Ok(text) => {
            print!("\n{text}");
            note(&format!("one process was lost; {:.0} s", outcome.seconds));
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            eprintln!("xtask: failed: {why}");
            Ok(ExitCode::FAILURE)
        }
    }
}
