//! `cargo xtask run`: one machine for a person to look at.

mod campaign;
mod linux;
mod memory_error;
mod nested;
mod probe;
mod program;

pub(crate) use campaign::run as campaign;
pub(crate) use linux::{report, run as linux, vmm_command};
pub(crate) use memory_error::run as memory_error;
pub(crate) use nested::run as nested;
pub(crate) use probe::Probe;
pub(crate) use program::run as program;

use crate::cli::MachineArgs;
use crate::qemu::{End, Outcome};
use std::process::ExitCode;
use std::time::Duration;

/// Exit status when the time limit ends a run, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

impl MachineArgs {
    /// How long a run without a terminal may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.time_limit.unwrap_or(900))
    }
}

/// The status that the machine gave itself. Where it gave none, that has been said, and the status of the
/// whole run is the error.
fn status(outcome: &Outcome) -> Result<i32, ExitCode> {
    match &outcome.end {
        End::Exited(Some(status)) => Ok(*status),
        End::Exited(None) => {
            eprintln!("xtask: QEMU was ended by a signal");
            Err(ExitCode::FAILURE)
        }
        End::TimedOut(state) => {
            let seconds = outcome.seconds;
            eprintln!("xtask: the time limit came after {seconds:.0} s\n{state}");
            Err(ExitCode::from(TIMED_OUT))
        }
    }
}

/// As `status`; any status but 0 has been said too.
fn success(outcome: &Outcome) -> Result<(), ExitCode> {
    match status(outcome)? {
        0 => Ok(()),
        status => {
            eprintln!("xtask: failed: status {status}");
            Err(ExitCode::FAILURE)
        }
    }
}
