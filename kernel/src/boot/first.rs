//! The first program.

use super::tree::Machine;
use crate::sched;

/// Starts the first program that the command line names.
pub(crate) fn start(machine: &Machine) {
    let arguments = machine.bootargs.first_program();
    sched::spawn(None, move || {
        log::info!("first program {arguments:?}");
        super::end(0)
    });
}
