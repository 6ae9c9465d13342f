//! Decisions: what an abort was, what to do about it, and which context a guest hypervisor means.

use std::hint::black_box;

use umbra_abort::{Abort, Capabilities, Context, Slot, World, classify, resolve_canonical};
use umbra_arm64::{Esr, Gva, Hpfar, Ipa};
use umbra_nested::shadow::{ContextKey, Pool};

use crate::Work;

const CONTEXT: Context = Context {
    ras: true,
    world: World::Plain,
};
const HPFAR: u64 = 0x8000_0000 >> 8;

/// Every class with every fault status, loads and stores, described and not.
fn syndromes() -> Vec<Esr> {
    const BITS: [u64; 4] = [0, 1 << 6, 1 << 7, 1 << 24];
    let mut all = Vec::new();
    for class in 0..64 {
        for status in 0..64 {
            all.extend(BITS.map(|bits| Esr::new(class << 26 | 1 << 25 | bits | status)));
        }
    }
    all
}

/// Classifies each.
pub(crate) struct Classify(Vec<Esr>);

impl Classify {
    pub(crate) fn new() -> Self {
        Self(syndromes())
    }
}

fn judge(esr: Esr) -> Abort<Ipa> {
    classify(esr, Gva::new(0x1234), Some(Hpfar::new(HPFAR)), CONTEXT)
}

impl Work for Classify {
    fn operations(&self) -> u64 {
        self.0.len() as u64
    }

    fn run(&mut self) {
        for esr in &self.0 {
            black_box(judge(*black_box(esr)));
        }
    }
}

/// Those that are a stage-2 fault with an address: classifies and resolves each.
pub(crate) struct Resolve(Vec<Esr>);

impl Resolve {
    pub(crate) fn new() -> Self {
        let faults = syndromes().into_iter().filter(|esr| match judge(*esr) {
            Abort::Stage2(fault) => fault.address.is_some(),
            _ => false,
        });
        Self(faults.collect())
    }
}

impl Work for Resolve {
    fn operations(&self) -> u64 {
        self.0.len() as u64
    }

    fn run(&mut self) {
        for esr in &self.0 {
            let Abort::Stage2(fault) = judge(*black_box(esr)) else {
                unreachable!("it was one");
            };
            let at = fault.address.unwrap_or(Ipa::new(0));
            let slot = black_box(Slot::Ram { writable: true });
            black_box(resolve_canonical(&fault, at, slot, Capabilities::default()));
        }
    }
}

/// A guest hypervisor that runs so many guests in turn.
pub(crate) struct InTurn {
    pool: Pool<()>,
    keys: Vec<ContextKey>,
}

/// Switches of one run.
const SWITCHES: usize = 1000;

impl InTurn {
    pub(crate) fn new(contexts: u64) -> Self {
        let key = |vmid| ContextKey::new(vmid << 48 | vmid << 20, 0x8000_3559, 1);
        let keys: Vec<ContextKey> = (1..=contexts).map(key).collect();
        let mut pool = Pool::new();
        for key in &keys {
            let id = pool.insert(*key, ()).expect("a place");
            pool.release(id);
        }
        Self { pool, keys }
    }
}

impl Work for InTurn {
    fn operations(&self) -> u64 {
        SWITCHES as u64
    }

    fn run(&mut self) {
        for key in self.keys.iter().cycle().take(SWITCHES) {
            let id = self.pool.acquire(black_box(key)).expect("it is there");
            self.pool.release(black_box(id));
        }
    }
}
