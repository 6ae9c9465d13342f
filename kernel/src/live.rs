//! What umbra counts, for a person who watches (`cargo xtask top`): where the command line says
//! `umbra.live=PATH`, a thread writes all of it to that file of the emulator's host twice a second.
//!
//! Lines of whom, name, kind and value, between a first and a last line that a reader finds only in a
//! whole file. Names and not places say what a number is, so that a reader of another version shows
//! what it does not know as it is.
//!
//! Without that word nothing runs and nothing is kept: the counters are those of KVM_GET_STATS_FD.

use alloc::string::String;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use umbra_hw::semihosting::HostFile;
use umbra_kvm_abi::stats::{KVM_STATS_TYPE_INSTANT, KVM_STATS_UNIT_SECONDS, Stat};

use crate::boot::BootArgs;
use crate::sched::{self, WaitQueue};
use crate::{kvm, mem};

const INTERVAL_NS: u64 = 500_000_000;

static ON: AtomicBool = AtomicBool::new(false);
/// Nobody wakes who waits here: time does.
static PACE: WaitQueue = WaitQueue::new();

/// Whether somebody watches. The same from the end of boot on.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Starts it, if it is wanted. Once, when threads can be started.
pub(crate) fn start(arguments: &BootArgs<'_>) {
    let Some(path) = arguments.live_file() else {
        return;
    };
    ON.store(true, Ordering::Relaxed);
    if sched::spawn(None, move || keep(&path)).is_none() {
        log::error!("no memory for the thread that tells what is counted");
    }
}

fn keep(path: &str) {
    loop {
        let text = snapshot();
        match HostFile::create(path) {
            Some(file) => {
                // A file that could not be written whole lacks its last line.
                file.write(text.as_bytes());
                file.close();
            }
            None => {
                log::error!("the file for live statistics, {path}, cannot be made");
                return;
            }
        }
        drop(text);
        PACE.wait(Some(sched::now() + INTERVAL_NS), || false, || None::<()>);
    }
}

fn snapshot() -> String {
    mem::top_up();
    let mut text = String::from("umbra-live 1\n");
    let mut tell = |whose: &str, stat: &Stat<'_>| {
        let kind = match stat.flags {
            flags if flags & 0xf == KVM_STATS_TYPE_INSTANT => "level",
            flags if flags & 0xf0 == KVM_STATS_UNIT_SECONDS => "ns",
            _ => "count",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{whose} {} {kind} {}", stat.name, stat.value);
    };
    let (free, frames) = mem::frame_counts();
    for stat in [
        Stat::nanoseconds("time_ns", sched::now()),
        Stat::level("cpus", sched::cpus() as u64),
        Stat::level("frames", frames),
        Stat::level("frames_free", free),
        Stat::level("frames_retired", mem::retired_frames()),
    ] {
        tell("host", &stat);
    }
    kvm::each_statistic(&mut tell);
    text.push_str("end\n");
    text
}
