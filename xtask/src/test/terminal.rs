//! `run linux --interactive` as a person meets it: behind a real terminal (a pseudo-terminal whose
//! other end is the test), typed at, and left in each way that the README names.
//!
//! The terminal must be found afterwards as it was, and nobody may hold it still: QEMU would, if it
//! outlived xtask.

use super::case::Leave;
use super::report::tail;
use crate::guard;
use crate::qemu::forward;
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use regex::Regex;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, tcgetattr};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long xtask and QEMU may take to go.
const FAREWELL: Duration = Duration::from_secs(30);

/// One person at one terminal.
struct Dialogue {
    terminal: File,
    output: Receiver<Vec<u8>>,
    /// Everything that was shown.
    shown: String,
    /// How much of it was looked at.
    seen: usize,
    deadline: Instant,
}

impl Dialogue {
    /// Waits for a text in what was not looked at yet.
    fn expect(&mut self, text: &str) -> Result<()> {
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                self.seen += at + text.len();
                return Ok(());
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                // The parts may cut a character in two; what is expected has none of those.
                Ok(part) => self.shown.push_str(&String::from_utf8_lossy(&part)),
                Err(RecvTimeoutError::Timeout) => bail!("{text:?} was not shown in time"),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended before {text:?}"),
            }
        }
    }

    fn enter(&mut self, keys: &str) -> Result<()> {
        self.terminal.write_all(keys.as_bytes()).context("typing")
    }

    /// Waits until no process has the terminal open.
    fn abandoned(&mut self) -> Result<()> {
        let deadline = Instant::now() + FAREWELL;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(part) => self.shown.push_str(&String::from_utf8_lossy(&part)),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("a process still holds the terminal"),
            }
        }
    }
}

/// Runs the dialogue; an error says what was not as it should be, with the last lines shown.
pub(super) fn run(
    ws: &Workspace,
    qemu: Option<&Path>,
    how: Leave,
    limit: u64,
) -> Result<Result<(), String>> {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no pseudo-terminal")?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let name = ptsname(&terminal, Vec::new())?;
    let mut cmd = guard::itself()?;
    cmd.args(["run", "linux", "--interactive"]);
    if matches!(how, Leave::CtrlAX) {
        cmd.arg("--trace");
    }
    if let Some(qemu) = qemu {
        cmd.arg("--qemu").arg(qemu);
    }
    let mut child = {
        let end = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let mut cmd = guard::command(&cmd, guard::Options { session: true })?;
        cmd.current_dir(ws.root());
        cmd.stdin(Stdio::from(end()?));
        cmd.stdout(Stdio::from(end()?)).stderr(Stdio::from(end()?));
        cmd.spawn().context("cannot start xtask")?
    };
    let terminal = File::from(terminal);
    let before = tcgetattr(&terminal)?;
    let (sender, output) = channel();
    forward(terminal.try_clone()?, sender);
    let mut talk = Dialogue {
        terminal,
        output,
        shown: String::new(),
        seen: 0,
        deadline: Instant::now() + Duration::from_secs(limit),
    };
    let pid = Pid::from_child(&child);
    let said = converse(&mut talk, how, pid);
    if said.is_err() {
        // What is left of it is not to be waited for; its QEMU goes with it.
        child.kill()?;
    }
    let gone = talk.abandoned();
    let status = child.wait()?;
    let mut log = Transcript::new(ws, &format!("test-run-{}", how.name()))?;
    log.console(talk.shown.as_bytes())?;
    let after = tcgetattr(&talk.terminal)?;
    Ok(said
        .and(gone)
        .and_then(|()| ended_well(how, status))
        .and_then(|()| same(&before, &after))
        .and_then(|()| traced(how, &talk.shown))
        .map_err(|why| format!("{why:#}\n{}", tail(&talk.shown.replace('\r', ""), 40))))
}

fn converse(talk: &mut Dialogue, how: Leave, xtask: Pid) -> Result<()> {
    match how {
        Leave::PowerOff => {
            talk.expect("leave it with: poweroff -f")?;
            talk.expect("~ # ")?;
            talk.enter("echo six$((6*7))\r")?;
            // A line ends with one CR, however many terminals it went through.
            talk.expect("\nsix42\r\n")?;
            // The shell reads keys one by one and gives the terminal its lines back for a command.
            talk.enter("echo begin; cat\r")?;
            talk.expect("\nbegin\r")?;
            // What is typed comes back twice: from the guest's terminal and from cat.
            talk.enter("hello\r")?;
            talk.expect("\nhello\r")?;
            talk.expect("\nhello\r")?;
            // The guest's shell gets it, not QEMU or xtask.
            talk.enter("\x03")?;
            talk.expect("^C")?;
            talk.expect("~ # ")?;
            talk.enter("echo it ended with $?\r")?;
            talk.expect("\nit ended with 130\r")?;
            watched()?;
            talk.enter("poweroff -f\r")
        }
        Leave::CtrlAX => {
            // After the whole of the guest's report, which the run's status asks for.
            talk.expect("leave it with: poweroff -f")?;
            talk.enter("\x01x")
        }
        Leave::Terminated => {
            // The terminal is QEMU's by now.
            talk.expect("umbra: storey=L1")?;
            kill_process(xtask, Signal::TERM).context("kill")
        }
    }
}

/// A look from another terminal, which the guest's does not notice.
fn watched() -> Result<()> {
    let mut cmd = guard::itself()?;
    let out = cmd.args(["top", "linux", "--once"]).output();
    let out = out.context("cannot start xtask")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let has = |line: &str| Regex::new(&format!("(?m)^{line}")).is_ok_and(|l| l.is_match(&text));
    for line in SCREEN {
        if !out.status.success() || !has(line) {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("top shows no {line:?}: {text}{said}");
        }
    }
    Ok(())
}

/// What `top` shows of a guest that waits in its shell, as regular expressions.
const SCREEN: [&str; 5] = [
    r"umbra: linux, up \d+\.\d s of its own time, 2 CPUs; memory 4\d{3} MiB, [1-9]\d+ MiB free, 0 bad frames$",
    r"vm-1 vcpu-0 +[\d.]+ % +0\.0 % +0\.0 % +[1-9][\d.]+ % +[\d.]+ % +\d+$",
    r"exits by kind",
    r"guest: data abort +\d+ +[1-9]\d+",
    r"vm-1 mmio_exit_user +\d+ +[1-9]\d+$",
];

/// A run that was left in the middle has its trace all the same.
fn traced(how: Leave, shown: &str) -> Result<()> {
    let events = Regex::new(r"\d{4,} events \(\d+ lost\), \d{4,} spans")?;
    match matches!(how, Leave::CtrlAX) && !events.is_match(shown) {
        true => bail!("no trace of the run"),
        false => Ok(()),
    }
}

fn ended_well(how: Leave, status: ExitStatus) -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let good = match how {
        Leave::PowerOff | Leave::CtrlAX => status.success(),
        Leave::Terminated => status.signal() == Some(Signal::TERM.as_raw()),
    };
    match good {
        true => Ok(()),
        false => bail!("xtask ended with {status}"),
    }
}

fn same(before: &Termios, after: &Termios) -> Result<()> {
    let modes = |t: &Termios| (t.input_modes, t.output_modes, t.local_modes);
    if modes(before) != modes(after) {
        bail!(
            "the terminal was {:?} and is {:?}",
            modes(before),
            modes(after)
        );
    }
    Ok(())
}
