//! From the loader to the first program.

mod args;
mod first;
mod tree;

use core::sync::atomic::{AtomicBool, Ordering};

use umbra_arm64::Pa;

pub(crate) use args::BootArgs;
use umbra_hw::MAX_CPUS;

use crate::{console, ghes, irq, mem, sched, trace};

/// Exit status of the machine after a panic.
pub(crate) const STATUS_PANIC: u64 = 70;
/// Exit status of the machine for a command line that asks what this build cannot do.
const STATUS_USAGE: u64 = 2;
/// Exit status of a machine that umbra cannot run on (EX_UNAVAILABLE of sysexits.h).
const STATUS_MACHINE: u64 = 69;

static SEMIHOSTING: AtomicBool = AtomicBool::new(false);

/// Ends the machine: with `status` where somebody listens, else by switching off.
pub(crate) fn end(status: u64) -> ! {
    trace::save();
    if SEMIHOSTING.load(Ordering::Relaxed) {
        umbra_hw::semihosting::exit(status);
    }
    umbra_hw::psci::system_off()
}

/// Ends a machine that lacks what umbra cannot do without.
fn unusable(why: &str) -> ! {
    log::error!("this machine cannot carry umbra: {why}");
    end(STATUS_MACHINE)
}

/// The way of a CPU that umbra cannot run on, which `umbra_hw` then names: where its last words go. Nothing
/// is set up, so this may neither log nor lock.
pub(crate) fn refused(device_tree: &[u8]) -> umbra_hw::Farewell {
    let machine = tree::Machine::read(device_tree);
    umbra_hw::Farewell {
        console: machine.console.map(|(base, _)| base),
        status: machine.bootargs.semihosting().then_some(STATUS_MACHINE),
    }
}

/// The boot CPU's way.
pub(crate) fn primary(device_tree: Pa) -> ! {
    // The tree's size is in its header; the specification lets a loader use up to 2 MiB.
    let header =
        umbra_hw::mem::boot_data(device_tree, 8).expect("the early tables cover the header");
    let size = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let blob = umbra_hw::mem::boot_data(device_tree, u64::from(size).min(2 << 20))
        .expect("the early tables cover the device tree");
    let machine = tree::Machine::read(blob);
    if let Some((base, interrupt)) = machine.console {
        console::init(base, interrupt);
    }
    if machine.bootargs.quiet() {
        console::set_quiet();
    }
    SEMIHOSTING.store(machine.bootargs.semihosting(), Ordering::Relaxed);
    log::info!("umbra {} at EL2", env!("CARGO_PKG_VERSION"));
    if let Some(id) = machine.bootargs.sabotage() {
        if !umbra_hw::sabotage::select(id) {
            log::error!("this build cannot leave out {id}");
            end(STATUS_USAGE);
        }
        log::info!("sabotaged: {id}");
    }

    if machine.too_much {
        unusable("the device tree names more than 16 ranges of RAM or 64 that are reserved");
    }
    if machine.ram.is_empty() {
        unusable("the device tree names no memory");
    }
    let Some((distributor, redistributors, bytes)) = machine.gic else {
        unusable("the device tree names no GICv3 (QEMU: -M virt,gic-version=3)");
    };
    let mut reserved: heapless::Vec<_, { tree::RESERVED + 16 }> =
        machine.reserved.iter().copied().collect();
    let loaded = [umbra_hw::image(), (device_tree, u64::from(size))];
    for range in loaded.into_iter().chain(machine.initrd) {
        reserved
            .push(range)
            .expect("there is room behind the tree's");
    }
    let firmware = firmware(&machine, &reserved);
    for range in firmware.reserved() {
        reserved.push(range).expect("there is room for firmware's");
    }
    mem::init(&machine.ram, &reserved);
    let (free, total) = mem::frame_counts();
    log::info!("memory: {} MiB, {} MiB free", total >> 8, free >> 8);

    trace::init(&machine.bootargs, machine.cpus.len());
    if let Some(clock) = machine.clock {
        // Without the time of day everything else works.
        match umbra_hw::rtc::read(clock) {
            Ok(seconds) => crate::sys::time::set_realtime(seconds),
            Err(_) => log::warn!("the real-time clock cannot be mapped"),
        }
    }
    umbra_hw::gic::init(distributor, redistributors, bytes).expect("tables cover the GIC");
    sched::start();
    irq::init_cpu();
    console::enable_input();
    let own = umbra_hw::affinity();
    let others = machine.cpus.iter().filter(|&&mpidr| mpidr != own);
    for (index, &mpidr) in (1..MAX_CPUS).zip(others) {
        if let Err(error) = sched::bring_up(index, mpidr) {
            log::error!("CPU {index} (MPIDR {mpidr:#x}) does not come up: {error}");
        }
    }
    log::info!("{} CPUs up", sched::cpus());
    if machine.cpus_left > 0 {
        log::warn!(
            "{} more CPUs stay off: umbra runs {MAX_CPUS}",
            machine.cpus_left
        );
    }
    ghes::start(firmware);
    crate::disk::init(&machine.virtio);
    crate::live::start(&machine.bootargs);
    first::start(&machine);
    sched::idle()
}

/// What firmware's tables say, if the command line names them. They lie in RAM where nothing else does.
fn firmware(machine: &tree::Machine, taken: &[(Pa, u64)]) -> ghes::Found {
    let end = |&(start, bytes): &(Pa, u64)| start.raw().saturating_add(bytes);
    let usable = |pa: Pa, bytes: u64| {
        let range = (pa, bytes);
        let inside = |ram: &(Pa, u64)| pa >= ram.0 && end(&range) <= end(ram);
        let meets = |other: &(Pa, u64)| pa.raw() < end(other) && end(&range) > other.0.raw();
        machine.ram.iter().any(inside) && !taken.iter().any(meets)
    };
    match machine.bootargs.hest() {
        None => ghes::Found::default(),
        Some(Ok(at)) => ghes::find(at, usable),
        Some(Err(word)) => {
            log::error!("umbra.hest={word}: no address");
            ghes::Found::default()
        }
    }
}

/// Every further CPU's way.
pub(crate) fn secondary() -> ! {
    irq::init_cpu();
    sched::start();
    sched::idle()
}
