//! What the pure parts cost on this machine, as the work grows: one list of things to measure, which
//! `benches/times.rs` takes the time of and `main.rs` is counted in (callgrind).
//!
//! A piece of work is set up, then run once; only the run is measured. Where the crate
//! `aarch64-paging` does the same job, its figure is the row below.

mod books;
mod decide;
mod engine;
mod peer;
mod walker;

/// Something that was set up and can be run once.
pub trait Work {
    /// How many operations a run is.
    fn operations(&self) -> u64;
    /// The run.
    fn run(&mut self);
}

/// One thing to measure.
#[derive(Debug)]
pub struct Bench {
    /// What it is called.
    pub name: &'static str,
    /// What an operation is.
    pub operation: &'static str,
    /// What grows.
    pub grows: &'static str,
    /// How far.
    pub sizes: &'static [u64],
    /// Makes the work of a size.
    pub set_up: fn(u64) -> Box<dyn Work>,
}

const LEVELS: &[u64] = &[1, 2, 3, 4];
const ENTRIES: &[u64] = &[1, 64, 4096, 262_144];
const MAPPINGS: &[u64] = &[1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const CONTEXTS: &[u64] = &[1, 2, 16, 64];

/// All of them, in the order in which they are shown.
pub static ALL: [Bench; 12] = [
    bench("walk", "a look at one address", "levels", LEVELS, |n| {
        Box::new(engine::Look::new(n))
    }),
    bench(
        "walk-aarch64-paging",
        "a look at one address",
        "levels",
        LEVELS,
        |n| Box::new(peer::Look::new(n)),
    ),
    bench(
        "walk-guest-tables",
        "a walk of a guest hypervisor's stage 2",
        "levels",
        LEVELS,
        |n| Box::new(walker::Walks::new(n)),
    ),
    bench("map", "one page of 4 KiB", "pages", ENTRIES, |n| {
        Box::new(engine::Map::new(n))
    }),
    bench(
        "map-aarch64-paging",
        "one page of 4 KiB",
        "pages",
        ENTRIES,
        |n| Box::new(peer::Map::new(n)),
    ),
    bench("unmap", "one page of 4 KiB", "pages", ENTRIES, |n| {
        Box::new(engine::Unmap::new(n))
    }),
    bench(
        "unmap-aarch64-paging",
        "one page of 4 KiB",
        "pages",
        ENTRIES,
        |n| Box::new(peer::Unmap::new(n)),
    ),
    bench(
        "reverse-note",
        "one more mapping",
        "mappings in the books",
        MAPPINGS,
        |n| Box::new(books::Note::new(n)),
    ),
    bench(
        "reverse-take-back",
        "one page of the VM, with the mapping it has",
        "mappings in the books",
        MAPPINGS,
        |n| Box::new(books::TakeBack::new(n)),
    ),
    bench(
        "pool",
        "a context found by its key, and let go",
        "contexts in turn",
        CONTEXTS,
        |n| Box::new(decide::InTurn::new(n)),
    ),
    bench("classify", "one abort", "of every syndrome", &[1], |_| {
        Box::new(decide::Classify::new())
    }),
    bench(
        "resolve",
        "one abort, classified too",
        "of every syndrome",
        &[1],
        |_| Box::new(decide::Resolve::new()),
    ),
];

const fn bench(
    name: &'static str,
    operation: &'static str,
    grows: &'static str,
    sizes: &'static [u64],
    set_up: fn(u64) -> Box<dyn Work>,
) -> Bench {
    Bench {
        name,
        operation,
        grows,
        sizes,
        set_up,
    }
}

/// The one of this name.
pub fn named(name: &str) -> Option<&'static Bench> {
    ALL.iter().find(|bench| bench.name == name)
}

/// Runs the work. What callgrind is told to count, by this name.
#[inline(never)]
pub fn counted(work: &mut dyn Work) {
    work.run();
}

#[cfg(test)]
mod tests {
    use super::{ALL, named};

    #[test]
    fn each_has_a_name_of_its_own_and_runs() {
        for bench in &ALL {
            assert!(std::ptr::eq(named(bench.name).unwrap(), bench));
            for size in &bench.sizes[..bench.sizes.len().min(3)] {
                // The work itself asserts that it did what it says.
                let mut work = (bench.set_up)(*size);
                assert!(work.operations() > 0, "{} {size}", bench.name);
                super::counted(&mut *work);
            }
        }
    }
}
