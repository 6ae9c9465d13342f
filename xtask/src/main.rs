//! `cargo xtask`: every command that umbra's README names.
//!
//! ```text
//! setup ─► rust targets, QEMU, guest kernels ──┐
//! build ─► ELF ─► image (flat arm64 Image) ────┤
//! cpio, guest ─► initrd, guest initramfs ──────┼─► qemu ─► transcript ─► run: one machine
//!                                              └───────────────────────► test: many, judged
//! ```
//!
//! The tool is safe Rust and asks the host for git, rustup, a linker `cc` (for xtask itself) and,
//! where QEMU or guest kernels are to be fetched, Debian's apt and dpkg.
#![forbid(unsafe_code)]

mod bench;
mod bootargs;
mod build;
mod cargo;
mod cli;
mod cpio;
mod fuzz;
mod guard;
mod guest;
mod hash;
mod image;
mod memory_error;
mod nested;
mod progress;
mod qemu;
mod qmp;
mod run;
mod setup;
mod statistics;
mod test;
mod top;
mod trace;
mod transcript;
mod workspace;

use anyhow::Result;
use clap::Parser;
use cli::{Campaign, Cli, Command, Run};
use std::process::ExitCode;
use workspace::Workspace;

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Command::Guard(args) = &cli.command {
        return guard::become_it(args);
    }
    let ws = Workspace::find()?;
    match cli.command {
        Command::Guard(_) => {}
        Command::Setup { check: true } => setup::check(&ws)?,
        Command::Setup { check: false } => setup::all(&ws)?,
        Command::Run { what: None } => return run::linux(&ws, &cli::LinuxArgs::default()),
        Command::Run {
            what: Some(Run::Linux(args)),
        } => return run::linux(&ws, &args),
        Command::Run {
            what: Some(Run::Nested(args)),
        } => return run::nested(&ws, &args),
        Command::Run {
            what: Some(Run::MemoryError(args)),
        } => return run::memory_error(&ws, &args),
        Command::Run {
            what: Some(Run::Program(args)),
        } => return run::program(&ws, &args),
        Command::Bench(args) => return bench::run(&ws, &args),
        Command::Campaign {
            what: Campaign::MemoryError(args),
        } => return run::campaign(&ws, &args),
        Command::Fuzz(args) => return fuzz::run(&ws, &args),
        Command::Test(args) => return test::run(&ws, &args),
        Command::Trace(args) => trace::command(&ws, &args)?,
        Command::Top(args) => top::command(&ws, &args)?,
        Command::Image { out, initrd } => build::image_command(&ws, out, &initrd)?,
    }
    Ok(ExitCode::SUCCESS)
}
