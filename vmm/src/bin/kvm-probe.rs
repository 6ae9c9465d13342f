//! kvm-probe: asks /dev/kvm questions with tiny guests and says whether the answers are Linux's.
//!
//! The same static file runs on Linux with KVM, which is the reference, and on umbra (`--umbra`: with
//! the differences that `docs/abi.md` writes down). It prints `ok NAME` or `FAIL NAME: why` for each
//! check, then `done kvm-probe`; the exit status is 0 if every check passed. A check that hangs ends the
//! program after `--limit` seconds.

#![forbid(unsafe_code)]

use std::process::ExitCode;
#[cfg(target_arch = "aarch64")]
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

#[cfg(all(test, not(target_arch = "aarch64")))]
#[path = "../probe/asm.rs"]
mod asm;
#[cfg(target_arch = "aarch64")]
#[path = "../probe/mod.rs"]
mod probe;

#[cfg(not(target_arch = "aarch64"))]
fn main() -> ExitCode {
    eprintln!("kvm-probe: this is a build for testing; virtual machines run on aarch64 only");
    ExitCode::FAILURE
}

#[cfg(target_arch = "aarch64")]
fn main() -> ExitCode {
    match umbra_vmm::kvm::catch_kicks()
        .map_err(|e| e.to_string())
        .and_then(|()| run())
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("kvm-probe: {why}");
            ExitCode::from(2)
        }
    }
}

#[cfg(target_arch = "aarch64")]
fn number(args: &mut lexopt::Parser) -> Result<u64, String> {
    use lexopt::ValueExt;
    args.value()
        .and_then(|v| v.parse())
        .map_err(|e| e.to_string())
}

/// Ends the program when a check takes longer than `limit`: a guest that hangs hangs its thread.
#[cfg(target_arch = "aarch64")]
fn watch(watched: Arc<Mutex<(&'static str, Instant)>>, limit: Duration) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            if let Ok(at) = watched.lock()
                && at.1.elapsed() > limit
            {
                println!("FAIL {}: not done after {} s", at.0, limit.as_secs());
                println!("done kvm-probe, early");
                std::process::exit(1);
            }
        }
    });
}

/// Makes the checks that the arguments ask for; whether all passed.
#[cfg(target_arch = "aarch64")]
fn run() -> Result<bool, String> {
    use lexopt::prelude::*;
    let mut env = probe::Env {
        umbra: false,
        seed: 1,
        effort: 100,
        count: 24,
        calls: 100_000,
        seconds: None,
    };
    let (mut list, mut limit, mut filters) = (false, 120, Vec::<String>::new());
    let mut args = lexopt::Parser::from_env();
    let wrong = |e: lexopt::Error| e.to_string();
    while let Some(arg) = args.next().map_err(wrong)? {
        match arg {
            Long("umbra") => env.umbra = true,
            Long("list") => list = true,
            Long("victim") => {
                let what = args.value().map_err(wrong)?.string().map_err(wrong)?;
                return probe::heal::victim(&what).map(|()| true);
            }
            Long("measure") => {
                let what = args.value().map_err(wrong)?.string().map_err(wrong)?;
                return probe::measure::run(&what).map(|()| true);
            }
            Long("seed") => env.seed = number(&mut args)?,
            Long("limit") => limit = number(&mut args)?,
            Long("count") => env.count = number(&mut args)?,
            Long("calls") => env.calls = number(&mut args)?,
            Long("seconds") => env.seconds = Some(number(&mut args)?),
            Long("storm") => probe::storm(number(&mut args)?, number(&mut args)?),
            Long("effort") => env.effort = number(&mut args)?,
            Value(filter) => filters.push(filter.string().map_err(wrong)?),
            Long("help") | Short('h') => {
                println!(
                    "kvm-probe [--umbra] [--list] [--seed N] [--effort PERCENT] [--count N] [--calls N | --seconds N] [--limit SECONDS] [FILTER…]\n\
                     kvm-probe --measure vmm|take-back|take-back-more: work for a counter of exits, see xtask bench"
                );
                return Ok(true);
            }
            other => return Err(other.unexpected().to_string()),
        }
    }
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let rows = || probe::ALL.iter().filter(|row| wanted(row.name));
    if list {
        rows().for_each(|row| println!("{}", row.name));
        return Ok(true);
    }
    if rows().next().is_none() {
        return Err("no check has such a name".into());
    }
    let limit = Duration::from_secs(limit);
    let watched = Arc::new(Mutex::new(("", Instant::now())));
    watch(watched.clone(), limit);
    let mut passed = true;
    for row in rows() {
        *watched.lock().map_err(|e| e.to_string())? = (row.name, Instant::now());
        match (row.check)(&env) {
            Ok(()) => println!("ok {}", row.name),
            Err(why) => {
                passed = false;
                println!("FAIL {}: {why}", row.name);
            }
        }
    }
    println!("done kvm-probe");
    Ok(passed)
}
