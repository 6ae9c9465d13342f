//! Operations out of bytes: what the fuzz target of the engine feeds (`fuzz/`, feature `model`).
//!
//! Every input means something: the first byte chooses the configuration, then four bytes are an operation
//! (what, where, how big, how). Addresses crowd round the places where tables of each level meet.

use std::string::String;

use umbra_arm64::{Granule, Level};

use super::{
    harness::{Harness, Op},
    mmu::Regime,
};
use crate::{El20, Format, Geometry, Memory, Rights, S2};

/// More operations than this are another input.
const MAX_OPS: usize = 48;

pub(super) const USER: El20 = El20 {
    normal: 0,
    device: 1,
    uncached: 2,
};

/// The operation that four bytes stand for.
fn op([what, place, size, how]: [u8; 4], granule: Granule, input_bytes: u64) -> Op {
    let (page, block) = (granule.bytes(), granule.level_bytes(Level::L2));
    let bases = [0, (1 << 30) - block, input_bytes - 2 * block];
    let n = u64::from(place >> 4 & 0b111).min(5);
    let within = if place >> 7 == 0 {
        n * page
    } else {
        block - (n + 1) * page
    };
    let at = bases[usize::from(place & 0b11) % 3] + u64::from(place >> 2 & 1) * block + within;
    let bytes = match size % 8 {
        0 => block,
        n @ 1..=4 => u64::from(n) * page,
        n => block + u64::from(n - 5) * page,
    };
    let bit = |n: u32| how >> n & 1 != 0;
    let rights = Rights {
        read: bit(0),
        write: bit(1),
        exec_el0: bit(2),
        exec_el1: bit(3),
    };
    let later = bit(4);
    match what % 16 {
        0..=5 => {
            let leaves = [page, page, block, granule.level_bytes(Level::L1)];
            let size = leaves[usize::from(size % 4)];
            let at = at & !(size - 1);
            let memory = [Memory::Normal, Memory::Device, Memory::Uncached];
            Op::Map {
                at,
                size,
                pa: (u64::from(bit(5)) << 42) + at,
                memory: memory[usize::from(how >> 6) % 3],
                rights,
                later,
            }
        }
        6 | 7 => Op::Unmap { at, bytes, later },
        8 | 9 => Op::Protect {
            at,
            bytes,
            rights,
            later,
        },
        10 => Op::Evict { at, bytes },
        11 => Op::WriteProtect { at, bytes },
        12 => Op::Split { at, later },
        13 => Op::Collapse {
            at,
            size: block,
            later,
        },
        14 if bit(7) => Op::Age { at, bytes },
        14 => Op::FailAlloc(usize::from(how % 3)),
        _ => Op::Advance(usize::from(how % 4)),
    }
}

fn run<F: Format>(
    format: F,
    regime: Regime,
    geometry: Option<Geometry>,
    bytes: &[u8],
) -> Result<(), String> {
    let geometry = geometry.ok_or("no such size")?;
    let mut harness = Harness::new(format, regime, geometry);
    for part in bytes.as_chunks().0.iter().take(MAX_OPS) {
        let op = op(*part, geometry.granule(), geometry.input_bytes());
        harness.step(op)?;
        if let Op::Map { at, .. } = op {
            harness.touch(at);
        }
    }
    harness.destroy()
}

/// Does what `bytes` say to an engine, its model and a TLB that forgets nothing.
///
/// # Errors
/// What contradicts the model, in words.
pub fn replay(bytes: &[u8]) -> Result<(), String> {
    let Some((config, rest)) = bytes.split_first() else {
        return Ok(());
    };
    let stage2 = S2 { xnx: true };
    match config % 4 {
        0 => run(
            stage2,
            Regime::Stage2,
            Geometry::stage2(Granule::K4, 32),
            rest,
        ),
        1 => run(
            stage2,
            Regime::Stage2,
            Geometry::stage2(Granule::K4, 40),
            rest,
        ),
        2 => run(USER, Regime::User, Geometry::stage1(Granule::K4, 40), rest),
        _ => run(
            stage2,
            Regime::Stage2,
            Geometry::stage2(Granule::K16, 40),
            rest,
        ),
    }
}
