//! The first program.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use umbra_arm64::Pa;

use super::tree::Machine;
use crate::files::{random, tree};
use crate::{mem, proc, sched};

/// Exit status of the machine when there is no first program to run: as a shell says it.
const STATUS_NOT_FOUND: u64 = 127;
/// What the first program finds in its environment.
const ENVIRONMENT: [&[u8]; 3] = [
    b"HOME=/",
    b"PATH=/bin:/sbin:/usr/bin:/usr/sbin",
    b"TERM=linux",
];

/// Starts the first program that the command line names.
pub(crate) fn start(machine: &Machine) {
    let arguments = machine.bootargs.first_program();
    let stdin = machine.bootargs.stdin();
    mem::top_up();
    let archive: &'static [u8] = match machine.initrd {
        Some((start, bytes)) => match umbra_hw::mem::boot_data(start, bytes) {
            Ok(archive) => archive,
            Err(_) => {
                log::error!(
                    "the initrd of {} MiB is too large: umbra has room for less than {} MiB",
                    bytes >> 20,
                    umbra_hw::mem::BOOT_DATA_LIMIT >> 20
                );
                super::end(STATUS_NOT_FOUND);
            }
        },
        None => &[],
    };
    random::seed(&machine.rng_seed);
    random::seed(&umbra_hw::timer::ticks().to_le_bytes());
    let (_, frames) = mem::frame_counts();
    // Files live on umbra's own heap: they get a quarter of memory at most.
    if let Err(error) = tree::init(
        archive,
        machine.initrd.map_or(Pa::new(0), |(at, _)| at),
        frames / 4,
    ) {
        log::error!("{error}");
        super::end(STATUS_NOT_FOUND);
    }
    // Loading a program makes its address space current, which only a thread may do.
    let started = sched::spawn(None, move || {
        log::info!("first program {arguments:?}");
        let arguments: Vec<Vec<u8>> = arguments
            .into_iter()
            .map(alloc::string::String::into_bytes)
            .collect();
        let environment: Vec<Vec<u8>> = ENVIRONMENT.iter().map(|&text| text.to_owned()).collect();
        let path = arguments.first().cloned().unwrap_or_default();
        let stdin = stdin.as_ref().map(|path| path.as_bytes());
        if let Err(errno) = proc::first(&path, arguments, &environment, stdin) {
            log::error!(
                "the first program {} does not start: {errno}",
                tree::Shown(&path)
            );
            super::end(STATUS_NOT_FOUND);
        }
    });
    if started.is_none() {
        log::error!("no memory for the first program");
        super::end(STATUS_NOT_FOUND);
    }
}
