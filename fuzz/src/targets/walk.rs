//! The walks of tables that a guest hypervisor owns, and AT, against the transcription of the manual's
//! pseudocode. The input is the dice: features, registers and addresses are its first words.

use umbra_nested::at::Op;
use umbra_nested::stage1::Regime;

use crate::check::{Coverage, at_case, operands, stage1_case, stage2_case};
use crate::generate::{self, Rng};
use crate::manual::Regs;
use crate::tape::Tape;

pub(crate) fn stage1(bytes: &[u8]) {
    let (which, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let regimes = [Regime::El10, Regime::El20, Regime::El2];
    let regime = regimes[usize::from(*which) % 3];
    stage1_case(Rng::on_tape(rest), regime, &mut Coverage::default());
}

pub(crate) fn stage2(bytes: &[u8]) {
    stage2_case(Rng::on_tape(bytes), &mut Coverage::default());
}

/// Registers of any content at all: the next 15 words of the input.
pub(crate) fn at(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let (_, op) = Op::TABLE[usize::from(tape.u8()) % Op::TABLE.len()];
    let flags = tape.u8();
    let regs = Regs {
        hcr: tape.u64(),
        vtcr: tape.u64(),
        vttbr: tape.u64(),
        el1: core::array::from_fn(|_| tape.u64()),
        el2: core::array::from_fn(|_| tape.u64()),
    };
    let va = tape.u64();
    let mut rng = Rng::on_tape(tape.0);
    let mut case = generate::case(&mut rng, flags & 1 != 0);
    let va = if flags & 2 != 0 {
        case.regs = regs;
        va
    } else {
        let own = matches!(op, Op::S1E2 { .. });
        let tcr = if own {
            case.regs.el2[1]
        } else {
            case.regs.el1[1]
        };
        generate::va(&mut rng, tcr, false)
    };
    let (par, complete) = at_case(op, va, flags & 4 != 0, &case);
    // PAR_EL1.S, a fault of stage 2: only where the instruction has one, or a walk went through it.
    let second = complete && par & 0x201 == 0x201;
    assert!(
        !second || operands(op).el != 2,
        "EL2 has no stage 2: {par:#x}"
    );
}
