//! Runs one piece of work once, for callgrind to count: `umbra-benches NAME SIZE` prints how many
//! operations that was. Without words it lists what there is.

use std::process::ExitCode;
use umbra_benches::{ALL, counted, named};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (name, size) = (words.next(), words.next());
    let Some(name) = name else {
        for bench in &ALL {
            for size in bench.sizes {
                let (operation, grows) = (bench.operation, bench.grows);
                println!("{}\t{size}\t{operation}\t{grows}", bench.name);
            }
        }
        return ExitCode::SUCCESS;
    };
    let size = size.and_then(|size| size.parse().ok());
    let (Some(bench), Some(size)) = (named(&name), size) else {
        eprintln!("umbra-benches: NAME SIZE, or nothing for a list");
        return ExitCode::FAILURE;
    };
    let mut work = (bench.set_up)(size);
    counted(&mut *work);
    println!("{}", work.operations());
    ExitCode::SUCCESS
}
