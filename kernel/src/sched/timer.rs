//! Time: deadlines of threads and of whatever else wants to be called.

use alloc::sync::Arc;

use umbra_hw::MAX_CPUS;
use umbra_hw::sync::SpinLock;
use umbra_sched::{Deadlines, Ticket};

use super::cpu::slice_end;
use super::thread::Thread;

/// Something that happens at a time. Called with no lock held, on the CPU that set the alarm.
pub(crate) trait Due: Send + Sync {
    /// The time has come.
    fn due(self: Arc<Self>);
}

impl Due for Thread {
    fn due(self: Arc<Self>) {
        self.unpark();
    }
}

/// Names an alarm, to cancel it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alarm {
    cpu: usize,
    ticket: Ticket,
}

static DEADLINES: [SpinLock<Deadlines<Arc<dyn Due>>>; MAX_CPUS] =
    [const { SpinLock::new("deadlines", 135, Deadlines::new()) }; MAX_CPUS];

/// Nanoseconds since the machine's counter started.
pub(crate) fn now() -> u64 {
    umbra_hw::timer::now_ns()
}

/// Calls `what` at `at`, in nanoseconds of [`now`].
pub(crate) fn alarm(at: u64, what: Arc<dyn Due>) -> Alarm {
    let cpu = umbra_hw::cpu();
    let ticket = DEADLINES[cpu].lock().add(at, what);
    rearm();
    Alarm { cpu, ticket }
}

/// Takes an alarm back; it may just have gone off.
pub(crate) fn cancel(alarm: Alarm) {
    drop(DEADLINES[alarm.cpu].lock().cancel(alarm.ticket));
}

/// Sets this CPU's timer for what comes first.
pub(crate) fn rearm() {
    let next = DEADLINES[umbra_hw::cpu()].lock().next();
    let end = slice_end();
    umbra_hw::timer::set_deadline(match (next, end) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    });
}

/// Runs what is due on this CPU: the timer interrupt.
pub(crate) fn expire() {
    let cpu = umbra_hw::cpu();
    loop {
        let due = DEADLINES[cpu].lock().expired(now());
        match due {
            Some(what) => what.due(),
            None => break,
        }
    }
    super::cpu::request_resched(cpu);
    rearm();
}
