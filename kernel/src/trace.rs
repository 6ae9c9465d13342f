//! The last things each CPU did, for a panic to print.
//!
//! A ring of a few words per event and CPU, written without locks by its own CPU. In builds without
//! debug assertions nothing is recorded.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_hw::MAX_CPUS;

/// What happened, and what the two words mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Event {
    /// A guest exit: ESR, PC.
    Exit = 1,
    /// A guest stage-2 fault: IPA, ESR's status and flags.
    Fault = 2,
    /// An interrupt was acknowledged: its INTID.
    Interrupt = 3,
    /// A thread got the CPU: its number, the number of the one before.
    Switch = 4,
    /// A system call: its number, its first argument.
    Call = 5,
    /// A vCPU's registers were loaded: its index.
    Load = 6,
    /// A vCPU's registers were put away: its index.
    Put = 7,
}

const NAMES: [&str; 8] = ["-", "exit", "fault", "irq", "switch", "call", "load", "put"];
const EVENTS: usize = 64;
const WORDS: usize = 4;

// The layout is read from outside too: xtask/src/events.rs.
#[repr(C)]
struct Ring {
    next: AtomicU64,
    words: [AtomicU64; EVENTS * WORDS],
}

static RINGS: [Ring; MAX_CPUS] = [const {
    Ring {
        next: AtomicU64::new(0),
        words: [const { AtomicU64::new(0) }; EVENTS * WORDS],
    }
}; MAX_CPUS];

/// Records an event of this CPU.
#[inline]
pub(crate) fn record(event: Event, a: u64, b: u64) {
    if cfg!(debug_assertions) {
        let ring = &RINGS[umbra_hw::cpu()];
        let at = ring.next.fetch_add(1, Ordering::Relaxed) as usize % EVENTS * WORDS;
        let words = [umbra_hw::timer::ticks(), event as u64, a, b];
        for (slot, word) in ring.words[at..at + WORDS].iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
    }
}

/// Prints the last events of every CPU, oldest first.
pub(crate) fn dump() {
    for (cpu, ring) in RINGS.iter().enumerate() {
        let next = ring.next.load(Ordering::Relaxed) as usize;
        for at in next.saturating_sub(24)..next {
            let words = &ring.words[at % EVENTS * WORDS..][..WORDS];
            let [time, event, a, b] = core::array::from_fn(|n| words[n].load(Ordering::Relaxed));
            let name = NAMES.get(event as usize).copied().unwrap_or("?");
            umbra_hw::uart::print_unlocked(format_args!(
                "umbra: event CPU {cpu} {time} {name} {a:#x} {b:#x}\n"
            ));
        }
    }
}
