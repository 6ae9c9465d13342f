//! Random registers and tables: the walkers against the transcription, cell by cell.
//!
//! Every cell that the architecture has must be hit, or the test fails: agreement about cases that never
//! come is worth nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;
use umbra_nested::at::Op;
use umbra_nested::stage1::Regime;

use crate::check::{Coverage, at_case, exists, operands, stage1_case, stage2_case};
use crate::generate::{self, Rng};
use crate::manual::Regs;

const OUTCOMES: [&str; 6] = [
    "translation",
    "access flag",
    "permission",
    "address size",
    "external",
    "success",
];

impl Coverage {
    /// Fails on an empty cell of `regime`.
    fn check(&self, regime: &'static str, outcomes: &[&'static str]) {
        let mut empty = Vec::new();
        for granule in [12, 14, 16] {
            for outcome in outcomes {
                for level in -1..=3 {
                    let hits = self.0.get(&(regime, granule, *outcome, level));
                    if let Some(hits) = hits {
                        println!("{regime} {granule} {outcome} {level}: {hits}");
                    } else if exists(granule, outcome, level) {
                        empty.push((granule, *outcome, level));
                    }
                }
            }
        }
        assert!(empty.is_empty(), "{regime}: never hit: {empty:?}");
    }
}

#[test]
fn stage_2_agrees_with_the_manual_in_every_cell() {
    let mut coverage = Coverage::default();
    for seed in 0..60_000 {
        stage2_case(Rng::new(seed), &mut coverage);
    }
    coverage.check("stage 2", &OUTCOMES);
}

#[test]
fn stage_1_of_el10_agrees_with_the_manual_in_every_cell() {
    let mut coverage = Coverage::default();
    for seed in 0..150_000 {
        stage1_case(Rng::new(seed), Regime::El10, &mut coverage);
    }
    coverage.check("EL1&0", &OUTCOMES);
    coverage.check("stage 2 on a walk", &OUTCOMES[..5]);
}

#[test]
fn stage_1_of_el20_agrees_with_the_manual_in_every_cell() {
    let mut coverage = Coverage::default();
    for seed in 0..60_000 {
        stage1_case(Rng::new(seed), Regime::El20, &mut coverage);
    }
    coverage.check("EL2&0", &OUTCOMES);
}

#[test]
fn stage_1_of_el2_agrees_with_the_manual_in_every_cell() {
    let mut coverage = Coverage::default();
    for seed in 0..60_000 {
        stage1_case(Rng::new(seed), Regime::El2, &mut coverage);
    }
    coverage.check("EL2", &OUTCOMES);
}

#[test]
fn at_agrees_with_the_manual() {
    let mut successes = 0;
    let mut second_stage_faults = 0;
    let mut attributes = BTreeMap::<u64, u64>::new();
    for seed in 0..250_000 {
        let mut rng = Rng::new(seed);
        let case = generate::case(&mut rng, seed % 8 == 0);
        let (_, op) = rng.pick(&Op::TABLE);
        let own = matches!(op, Op::S1E2 { .. });
        let tcr = if own {
            case.regs.el2[1]
        } else {
            case.regs.el1[1]
        };
        let va = generate::va(&mut rng, tcr, false);
        let (par, complete) = at_case(op, va, rng.percent(50), &case);
        if complete && par & 1 == 0 && operands(op).stage12 {
            successes += 1;
            *attributes.entry(par >> 56).or_default() += 1;
        }
        // S and PTW: in stage 2, not on a walk.
        second_stage_faults += u64::from(par & 0x301 == 0x201);
    }
    println!("{successes} successes, {second_stage_faults} faults of stage 2: {attributes:x?}");
    assert!(successes > 1_000 && second_stage_faults > 1_000);
    assert!(attributes.len() > 20, "{attributes:x?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Registers of any content: no panic, no loop, and the same outcome as the manual's.
    #[test]
    fn any_registers_at_all(
        seed: u64,
        hcr: u64,
        vtcr: u64,
        vttbr: u64,
        el1: [u64; 5],
        el2: [u64; 5],
        va: u64,
        pan: bool,
        op in 0..Op::TABLE.len(),
    ) {
        let mut case = generate::case(&mut Rng::new(seed), false);
        case.regs = Regs { hcr, vtcr, vttbr, el1, el2 };
        at_case(Op::TABLE[op].1, va, pan, &case);
    }
}

/// A tape comes first, word by word, and then goes on as random numbers that depend on it.
#[test]
fn a_tape_is_the_dice() {
    let mut one = Rng::on_tape(&[1, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!((one.word(), one.word()), (1, 7));
    let mut two = Rng::on_tape(&[2]);
    assert_eq!(two.word(), 2);
    assert_ne!(one.word(), two.word());
    for tape in 0..=255 {
        stage2_case(Rng::on_tape(&[tape; 300]), &mut Coverage::default());
    }
}
