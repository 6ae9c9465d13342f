//! A test program: fills memory, checks every word of it in each round, and says at the end whether all
//! was right. As a victim it makes one page of its own bad halfway, and expects not to live on.
//!
//! `memory-worker NAME PAGES ROUNDS [REGISTER]`. REGISTER is where `umbra-vmm --error-injection` takes the
//! physical address of the page, on the machine that this program runs on.
//!
//! Ends with status 0 and `memory-worker: NAME ok …`, or says what was wrong and ends with status 1.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, ExitCode};

/// Words in the smallest page.
const WORDS: usize = 512;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("?", String::as_str);
    match work(name, &args) {
        Ok(told) => {
            say(name, &told);
            ExitCode::SUCCESS
        }
        Err(why) => {
            say(name, &format!("FAILED: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// One line in one write, so that lines of several workers stay whole.
fn say(name: &str, text: &str) {
    let line = format!("memory-worker: {name} {text}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
}

fn number(args: &[String], at: usize, what: &str) -> Result<usize, String> {
    args.get(at)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{what} is missing"))
}

/// What word `at` holds after round `round`.
fn word(at: usize, round: usize) -> u64 {
    (at as u64 ^ (round as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn work(name: &str, args: &[String]) -> Result<String, String> {
    let (pages, rounds) = (number(args, 1, "PAGES")?, number(args, 2, "ROUNDS")?);
    let mut memory: Vec<u64> = (0..pages * WORDS).map(|at| word(at, 0)).collect();
    let mut sum = 0u64;
    for round in 1..=rounds {
        if let Some(register) = args.get(3).filter(|_| round == rounds.div_ceil(2)) {
            make_bad(name, &memory, register)?;
        }
        for (at, cell) in memory.iter_mut().enumerate() {
            if *cell != word(at, round - 1) {
                return Err(format!("word {at} is {cell:#x} in round {round}"));
            }
            *cell = word(at, round);
            sum = sum.rotate_left(1) ^ *cell;
        }
    }
    if args.len() > 3 {
        return Err("nothing came of the bad page".into());
    }
    Ok(format!("ok pages={pages} rounds={rounds} sum={sum:016x}"))
}

/// Makes a page in the middle of `memory` bad, on whatever machine it really lies in.
fn make_bad(name: &str, memory: &[u64], register: &str) -> Result<(), String> {
    let middle = memory.len() / 2 / WORDS * WORDS;
    let at = memory.get(middle..).unwrap_or_default().as_ptr() as u64;
    // The first page that begins behind it.
    let at = at.next_multiple_of(4096);
    let mut entry = [0; 8];
    let path = "/proc/self/pagemap";
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut entry, at / 4096 * 8))
        .map_err(|e| format!("{path}: {e}"))?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry >> 63 == 0 || frame == 0 {
        return Err(format!("{path} does not tell the frame of {at:#x}"));
    }
    let pa = frame << 12;
    say(
        name,
        &format!("makes its page at {at:#x} bad, physical {pa:#x}"),
    );
    let status = Command::new("/bin/busybox")
        .args(["devmem", register, "64", &format!("{pa:#x}")])
        .status()
        .map_err(|e| format!("devmem: {e}"))?;
    if !status.success() {
        return Err(format!("devmem: {status}"));
    }
    Ok(())
}
