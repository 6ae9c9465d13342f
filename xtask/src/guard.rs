//! A child that ends when its parent does: `xtask guard … -- PROGRAM ARGUMENTS`.
//!
//! QEMU must not go on when xtask is killed. Linux sends a signal of one's choice when the parent
//! dies, but only a process itself can ask for that, before it becomes the program; std offers no
//! safe hook there. So the child is xtask once more, which asks and then becomes the program. The signal is
//! SIGTERM: on it QEMU gives the terminal back as it was.
//!
//! Elsewhere than on Linux the program is started all the same, without that promise.

use crate::cli::GuardArgs;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Flags of a guarded program.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// It leads a session of its own, with its standard input as the terminal.
    pub(crate) session: bool,
}

/// The command that is this xtask again, also when cargo has replaced its file since it was started: a
/// test run builds xtask anew.
#[cfg(target_os = "linux")]
pub(crate) fn itself() -> Result<Command> {
    let mut own = Command::new("/proc/self/exe");
    own.arg0("xtask");
    Ok(own)
}

/// The command that is this xtask again.
#[cfg(not(target_os = "linux"))]
pub(crate) fn itself() -> Result<Command> {
    let own = std::env::current_exe().context("xtask does not find itself")?;
    Ok(Command::new(own))
}

/// The command that starts `cmd` guarded: its program, arguments and environment, nothing else of it.
/// The thread that spawns it has to outlive it: the kernel counts that thread as the parent.
pub(crate) fn command(cmd: &Command, options: Options) -> Result<Command> {
    let mut guarded = itself()?;
    guarded.args(["guard", "--parent", &std::process::id().to_string()]);
    if options.session {
        guarded.arg("--session");
    }
    for (name, value) in cmd.get_envs() {
        // Removals are not needed here: nobody asks for one.
        let mut pair = name.to_owned();
        pair.push("=");
        pair.push(value.unwrap_or_default());
        guarded.arg("--env").arg(pair);
    }
    guarded
        .arg("--")
        .arg(cmd.get_program())
        .args(cmd.get_args());
    Ok(guarded)
}

/// The child's side. Returns only if the program cannot be started.
pub(crate) fn become_it(args: &GuardArgs) -> Result<ExitCode> {
    die_with(args.parent)?;
    if args.session {
        let input = rustix::stdio::stdin();
        rustix::process::setsid().context("no session of its own")?;
        rustix::process::ioctl_tiocsctty(input).context("standard input is no terminal")?;
    }
    let (program, words) = args.words.split_first().context("no program")?;
    let mut cmd = Command::new(program);
    cmd.args(words);
    for pair in &args.env {
        let (name, value) = split(pair)?;
        cmd.env(name, value);
    }
    let error = cmd.exec();
    Err(error).with_context(|| format!("cannot start {}", program.to_string_lossy()))
}

#[cfg(target_os = "linux")]
fn die_with(parent: u32) -> Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM)).context("no signal at the parent's end")?;
    // It may have died before the signal was asked for.
    if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(parent) {
        bail!("the parent is gone");
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn die_with(_: u32) -> Result<()> {
    Ok(())
}

fn split(pair: &OsString) -> Result<(&str, &str)> {
    pair.to_str()
        .and_then(|pair| pair.split_once('='))
        .with_context(|| format!("{} is not NAME=VALUE", pair.to_string_lossy()))
}
