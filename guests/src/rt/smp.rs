//! The other CPUs: started by PSCI, given functions to run.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{MAX_CPUS, cpu, mmu, psci, timer};

/// Milliseconds after which a CPU that does not answer is lost.
const PATIENCE: u64 = 5000;

/// Work for another CPU.
pub type Job = fn(u64);

struct Mailbox {
    job: AtomicUsize,
    argument: AtomicU64,
}

static MAILBOXES: [Mailbox; MAX_CPUS] = [const {
    Mailbox {
        job: AtomicUsize::new(0),
        argument: AtomicU64::new(0),
    }
}; MAX_CPUS];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
static ENTRY_STATES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

unsafe extern "C" {
    static umbra_guest_secondary_entry: u8;
}

pub(super) fn init(count: usize) {
    COUNT.store(count, Ordering::Relaxed);
}

/// CPUs of this machine.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Where a CPU that PSCI starts has to begin; it wants its number as context.
pub fn entry() -> u64 {
    &raw const umbra_guest_secondary_entry as u64
}

/// Times that any secondary CPU has come up.
pub fn started() -> u64 {
    STARTED.load(Ordering::Acquire)
}

/// Starts a CPU and waits until it takes jobs. The PSCI status, or `None` if it never came.
pub fn start(cpu: usize) -> Option<i32> {
    let before = started();
    let number = cpu as u64;
    let status = psci::call(psci::CPU_ON, [number, entry(), number]);
    if status != psci::SUCCESS {
        return Some(status);
    }
    timer::wait_for(PATIENCE, || started() > before).then_some(status)
}

/// Gives an idle CPU a job.
pub fn begin(cpu: usize, job: Job, argument: u64) {
    let mailbox = &MAILBOXES[cpu];
    mailbox.argument.store(argument, Ordering::Relaxed);
    mailbox.job.store(job as usize, Ordering::Release);
    crate::op!("dsb ish");
    crate::op!("sev");
}

/// Waits until a CPU has done its job; false if it takes too long.
pub fn wait(cpu: usize) -> bool {
    timer::wait_for(PATIENCE, || MAILBOXES[cpu].job.load(Ordering::Acquire) == 0)
}

/// Runs a job on a CPU to its end.
pub fn run(cpu: usize, job: Job, argument: u64) -> bool {
    begin(cpu, job, argument);
    wait(cpu)
}

/// How a CPU found itself at its last start: SCTLR_EL1.M in bit 0, CurrentEL in 3:2, DAIF in 9:6.
pub fn entry_state(cpu: usize) -> u64 {
    ENTRY_STATES[cpu].load(Ordering::Relaxed)
}

pub(super) fn secondary(number: u64, entry: u64) -> ! {
    assert!(
        number as usize == cpu(),
        "CPU {} got {number} as its context",
        cpu()
    );
    ENTRY_STATES[cpu()].store(entry, Ordering::Relaxed);
    mmu::enter();
    STARTED.fetch_add(1, Ordering::Release);
    let mailbox = &MAILBOXES[cpu()];
    loop {
        let job = mailbox.job.load(Ordering::Acquire);
        if job == 0 {
            crate::op!("wfe");
            continue;
        }
        // SAFETY: only `begin` stores here, and it stores a `Job`.
        let run: Job = unsafe { core::mem::transmute(job) };
        run(mailbox.argument.load(Ordering::Relaxed));
        mailbox.job.store(0, Ordering::Release);
    }
}

/// Turns this CPU off, as a job; comes back only if PSCI refuses, with its status. Its mailbox is emptied
/// first, so that whoever waits for the job knows.
pub fn off() -> i32 {
    MAILBOXES[cpu()].job.store(0, Ordering::Release);
    psci::call(psci::CPU_OFF, [0; 3])
}

/// Adds to a counter in any memory, by load-exclusive and store-exclusive.
pub fn add_exclusive(addr: u64, value: u64) {
    let addr = super::mem::outside(addr);
    // SAFETY: the address is none of Rust's.
    unsafe {
        asm!(
            "2: ldaxr {old}, [{addr}]",
            "add {old}, {old}, {value}",
            "stlxr {failed:w}, {old}, [{addr}]",
            "cbnz {failed:w}, 2b",
            old = out(reg) _, failed = out(reg) _, addr = in(reg) addr, value = in(reg) value,
            options(nostack)
        );
    }
}

/// Adds to a counter in any memory, by one atomic instruction (FEAT_LSE). Gives the old value.
pub fn add_atomic(addr: u64, value: u64) -> u64 {
    let addr = super::mem::outside(addr);
    let old;
    // SAFETY: the address is none of Rust's.
    unsafe {
        asm!(
            ".arch_extension lse",
            "ldaddal {value}, {old}, [{addr}]",
            old = out(reg) old, addr = in(reg) addr, value = in(reg) value,
            options(nostack)
        );
    }
    old
}
