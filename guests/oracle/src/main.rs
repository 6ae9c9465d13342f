//! The AT oracle: `umbra_nested`'s walks against the CPU's own AT instructions, on random tables.
//!
//! It boots at EL2 in umbra's place and asks one question thousands of times: given these registers and
//! these tables, is PAR_EL1 of the software walk the CPU's, bit for bit, and is memory left the same
//! (access flags)? Stage 1 and 2, EL1&0 and EL2&0, every granule and start level the CPU has.
//!
//! Boot arguments: `seed=N` (1), `tables=N` (20000), `first=N` (0), `show=N` (3 differences are told
//! in full), `trace=1` (each question is told before it is asked). `seed=1 first=17 tables=1` repeats
//! table 17 of seed 1 by itself.
//!
//! At the end the same oracle is asked about walks with one rule broken, and must notice each.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(unused))]

#[cfg(target_os = "none")]
mod coverage;
#[cfg(target_os = "none")]
mod difference;
#[cfg(target_os = "none")]
mod generate;
#[cfg(target_os = "none")]
mod oracle;
#[cfg(target_os = "none")]
mod rng;
#[cfg(target_os = "none")]
mod rt;
#[cfg(target_os = "none")]
mod world;

#[cfg(target_os = "none")]
use oracle::main_at_el2;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("at_oracle runs at EL2 of an emulated machine: see `cargo xtask test oracle/`");
}
