//! `cargo xtask run`: one machine for a person to look at.

mod campaign;
mod linux;
mod memory_error;
mod nested;
mod program;

pub(crate) use campaign::run as campaign;
pub(crate) use linux::{report, run as linux, vmm_command};
pub(crate) use memory_error::run as memory_error;
pub(crate) use nested::run as nested;
pub(crate) use program::run as program;

use crate::cli::MachineArgs;
use std::time::Duration;

/// Exit status when the time limit ends a run, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

impl MachineArgs {
    /// How long a run without a terminal may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.time_limit.unwrap_or(900))
    }
}
