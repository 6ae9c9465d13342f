//! From the transcription's registers to the walkers' configurations.

use umbra_nested::Features;
use umbra_nested::at::Context;
use umbra_nested::stage1::{Regime, Stage1Config, Stage1Regs};
use umbra_nested::stage2::Stage2Config;

use crate::manual::Regs;

/// The five registers of a stage 1.
pub(crate) fn stage1_regs([sctlr, tcr, ttbr0, ttbr1, mair]: [u64; 5]) -> Stage1Regs {
    Stage1Regs {
        sctlr,
        tcr,
        ttbr0,
        ttbr1,
        mair,
    }
}

/// Stage 1 of `regime`.
pub(crate) fn stage1(regs: &Regs, regime: Regime, features: &Features) -> Stage1Config {
    let own = match regime {
        Regime::El10 => regs.el1,
        Regime::El20 | Regime::El2 => regs.el2,
    };
    Stage1Config::new(regime, &stage1_regs(own), regs.hcr, features)
}

/// Stage 2.
pub(crate) fn stage2(regs: &Regs, features: &Features) -> Stage2Config {
    let big_endian = regs.el2[0] >> 25 & 1 != 0;
    Stage2Config::new(regs.vtcr, regs.vttbr, regs.hcr, big_endian, features)
}

/// All of it, for AT.
pub(crate) fn context(regs: &Regs, features: &Features, pan: bool) -> Context {
    Context {
        features: *features,
        hcr: regs.hcr,
        el1: stage1_regs(regs.el1),
        el2: stage1_regs(regs.el2),
        vtcr: regs.vtcr,
        vttbr: regs.vttbr,
        pan,
    }
}
