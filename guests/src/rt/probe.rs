//! Expecting an exception: a closure is run, and the first exception it takes comes back as a value.
//!
//! Execution goes on behind the instruction that faulted (a load leaves its register as it was),
//! or, if fetching was what faulted, where x30 points: probes of a fetch branch there with blr.
//! So it does after an undefined instruction outside the image, which is a page of zeroes executed.
//! An SError leaves the instruction to be executed again, unless the next one finds it there still.
//! An exception that nobody expects is a panic.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::vectors::Frame;
use super::{MAX_CPUS, cpu, mem};

/// Exceptions that one probe may take; more is a loop.
const LIMIT: u64 = 100;

const PSTATE_IL: u64 = 1 << 20;

/// How an exception arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Synchronously.
    Sync,
    /// As an SError interrupt.
    SError,
}

/// An exception that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How it arrived.
    pub kind: Kind,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, which means something for aborts and misaligned addresses alone.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// Exceptions that the same probe took in all.
    pub count: u64,
}

impl Fault {
    /// Exception class.
    pub fn ec(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Fault status code of an abort.
    pub fn fsc(&self) -> u64 {
        self.esr & 0x3f
    }
}

struct Probe {
    armed: AtomicBool,
    count: AtomicU64,
    serror: AtomicBool,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
    spsr: AtomicU64,
}

static PROBES: [Probe; MAX_CPUS] = [const {
    Probe {
        armed: AtomicBool::new(false),
        count: AtomicU64::new(0),
        serror: AtomicBool::new(false),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        elr: AtomicU64::new(0),
        spsr: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Runs a probe; `None` if it took no exception. What the probe returns means nothing if it did.
pub fn expect<T>(probe: impl FnOnce() -> T) -> Option<Fault> {
    let mine = &PROBES[cpu()];
    mine.count.store(0, Relaxed);
    mine.armed.store(true, Relaxed);
    crate::op!("isb");
    let _ = probe();
    // An asynchronous abort, if one comes, comes by here.
    crate::op!("dsb sy");
    crate::op!("isb");
    mine.armed.store(false, Relaxed);
    let count = mine.count.load(Relaxed);
    (count > 0).then(|| Fault {
        kind: if mine.serror.load(Relaxed) {
            Kind::SError
        } else {
            Kind::Sync
        },
        esr: mine.esr.load(Relaxed),
        far: mine.far.load(Relaxed),
        elr: mine.elr.load(Relaxed),
        spsr: mine.spsr.load(Relaxed),
        count,
    })
}

fn record(frame: &Frame, serror: bool) {
    let (esr, far) = (crate::mrs!("esr_el1"), crate::mrs!("far_el1"));
    let mine = &PROBES[cpu()];
    if !mine.armed.load(Relaxed) {
        panic!(
            "exception: vector {} esr {esr:#x} far {far:#x} elr {:#x} spsr {:#x} x30 {:#x}",
            frame.vector, frame.elr, frame.spsr, frame.x[30]
        );
    }
    let count = mine.count.load(Relaxed);
    if count == 0 {
        mine.serror.store(serror, Relaxed);
        mine.esr.store(esr, Relaxed);
        mine.far.store(far, Relaxed);
        mine.elr.store(frame.elr, Relaxed);
        mine.spsr.store(frame.spsr, Relaxed);
    }
    assert!(
        count < LIMIT,
        "a probe does not end: esr {esr:#x} elr {:#x}",
        frame.elr
    );
    mine.count.store(count + 1, Relaxed);
}

pub(super) fn synchronous(frame: &mut Frame) {
    record(frame, false);
    match crate::mrs!("esr_el1") >> 26 & 0x3f {
        // Instruction abort, misaligned PC.
        0x20..=0x22 => frame.elr = frame.x[30],
        0 if !mem::in_image(frame.elr) => frame.elr = frame.x[30],
        // Illegal state: ELR is where the bad return went, nothing has been executed there.
        0x0e => frame.spsr &= !PSTATE_IL,
        // SVC, and at EL2 HVC, return behind themselves.
        0x15 | 0x16 => {}
        _ => frame.elr += 4,
    }
}

pub(super) fn serror(frame: &mut Frame) {
    record(frame, true);
    let mine = &PROBES[cpu()];
    // One that comes back where the first came from is of that instruction's own making.
    let again = mine.count.load(Relaxed) > 1 && mine.elr.load(Relaxed) == frame.elr;
    if again {
        frame.elr += 4;
    }
}
