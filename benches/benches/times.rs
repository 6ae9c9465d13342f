//! The time of each piece of work (`cargo bench -p umbra-benches`). A run is a time; `item/s` is
//! operations a second.

use divan::Bencher;
use divan::counter::ItemsCount;
use umbra_benches::{ALL, Bench};

fn main() {
    divan::main();
}

/// Every piece of work and size, by a label of its own.
struct Row {
    bench: &'static Bench,
    size: u64,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.bench.name, self.size)
    }
}

fn rows() -> impl Iterator<Item = Row> {
    ALL.iter()
        .flat_map(|bench| bench.sizes.iter().map(move |&size| Row { bench, size }))
}

#[divan::bench(args = rows(), sample_count = 5, sample_size = 1)]
fn pure(bencher: Bencher<'_, '_>, row: &Row) {
    bencher
        .with_inputs(|| (row.bench.set_up)(row.size))
        .input_counter(|work| ItemsCount::new(work.operations()))
        .bench_local_refs(|work| work.run());
}
