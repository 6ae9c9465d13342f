//! The first program: starts the commands that its arguments name, and reaps them.
//!
//! For each command one line tells its end, on stderr so that no command's output is mixed
//! with it: `umbra-init: N PATH exited STATUS` or `umbra-init: N PATH killed by signal S`.
//! Its own status is that of the first command, by number, that failed (128 + S for a signal,
//! 127 when the program cannot be started), else 0. A failure does not keep later commands
//! from running: one boot answers many questions. Commands that run at the same time are
//! awaited, and told of, in their order.
//!
//! Children are started by std alone, which on musl means posix_spawn: clone with CLONE_VM and
//! CLONE_VFORK, then execve. No shell, no fork, no orphans to adopt: a VMM has none.

#![forbid(unsafe_code)]

mod plan;

use std::io::{ErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

/// What a shell answers for a program that is not there.
const NOT_FOUND: u8 = 127;
/// What this program answers for arguments it cannot read.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let groups = match plan::parse(std::env::args_os().skip(1)) {
        Ok(groups) => groups,
        Err(e) => {
            say(&format!(
                "{e}; usage: init [--] CMD ARGS… [--- CMD ARGS…] [+++ CMD ARGS…]"
            ));
            return ExitCode::from(USAGE);
        }
    };
    let mut status = 0;
    let mut number = 1;
    for group in &groups {
        let started: Vec<Running> = (number..)
            .zip(group)
            .map(|(number, command)| Running::start(number, command))
            .collect();
        number += group.len();
        for running in started {
            let ended = running.wait();
            if status == 0 {
                status = ended;
            }
        }
    }
    ExitCode::from(status)
}

/// One line in one write, so that lines of several processes stay whole. Nobody is left to
/// tell when stderr is closed.
fn say(text: &str) {
    let line = format!("umbra-init: {text}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A command that was started, or could not be.
struct Running {
    number: usize,
    path: String,
    child: std::io::Result<Child>,
}

impl Running {
    fn start(number: usize, command: &plan::Command) -> Self {
        let (program, args) = command.split_first().expect("a plan has no empty command");
        Running {
            number,
            path: program.to_string_lossy().into_owned(),
            child: Command::new(program).args(args).spawn(),
        }
    }

    /// Waits for its end, tells it, and returns the status that stands for it.
    fn wait(self) -> u8 {
        let Running {
            number,
            path,
            child,
        } = self;
        let mut child = match child {
            Ok(child) => child,
            Err(e) => {
                let why = match e.kind() {
                    ErrorKind::NotFound => "no such program".into(),
                    _ => e.to_string(),
                };
                say(&format!("{number} {path}: {why}"));
                return NOT_FOUND;
            }
        };
        match child.wait() {
            Ok(status) => {
                let (text, code) = describe(status);
                say(&format!("{number} {path} {text}"));
                code
            }
            Err(e) => {
                say(&format!("{number} {path}: cannot wait for it: {e}"));
                1
            }
        }
    }
}

/// The words and the status for an end.
fn describe(status: ExitStatus) -> (String, u8) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (format!("exited {code}"), low_byte(code)),
        (None, Some(signal)) => (
            format!("killed by signal {signal}"),
            low_byte(signal.saturating_add(128)),
        ),
        (None, None) => ("ended".into(), 1),
    }
}

/// A status as the parent will see it, but never a failure that looks like success.
fn low_byte(code: i32) -> u8 {
    match code & 0xff {
        0 if code != 0 => 1,
        // Masked to eight bits, so it fits.
        low => low as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_words() {
        let exited = |code: i32| describe(ExitStatus::from_raw(code << 8));
        assert_eq!(exited(0), ("exited 0".into(), 0));
        assert_eq!(exited(33), ("exited 33".into(), 33));
        let killed = |signal| describe(ExitStatus::from_raw(signal));
        assert_eq!(killed(9), ("killed by signal 9".into(), 137));
        assert_eq!(killed(11), ("killed by signal 11".into(), 139));
    }

    #[test]
    fn no_failure_becomes_success() {
        assert_eq!(
            (low_byte(0), low_byte(1), low_byte(255), low_byte(256)),
            (0, 1, 255, 1)
        );
    }
}
