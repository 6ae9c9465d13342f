//! Which regime an AT asks about, and its two walks.

use umbra_arm64::sysreg::SysReg;
use umbra_arm64::{Gva, L2Ipa};

use super::Par;
use crate::descend::Purpose;
use crate::features::Features;
use crate::memory::GuestMemory;
use crate::stage1::{self, BehindStage2, Kind, Regime, Stage1Config, Stage1Regs, Untranslated};
use crate::stage2::{self, Stage2Config};
use crate::stop::{Again, Stop1};

const HCR_TGE: u64 = 1 << 27;
const HCR_E2H: u64 = 1 << 34;
const SCTLR_EE: u64 = 1 << 25;

/// An AT instruction (Arm ARM C5.5). `write` asks about a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// AT S1E1R, S1E1W, S1E1RP, S1E1WP.
    S1E1 {
        /// About a store.
        write: bool,
        /// The form that honours PSTATE.PAN (FEAT_PAN2).
        pan: bool,
    },
    /// AT S1E0R, S1E0W.
    S1E0 {
        /// About a store.
        write: bool,
    },
    /// AT S1E2R, S1E2W.
    S1E2 {
        /// About a store.
        write: bool,
    },
    /// AT S12E1R, S12E1W.
    S12E1 {
        /// About a store.
        write: bool,
    },
    /// AT S12E0R, S12E0W.
    S12E0 {
        /// About a store.
        write: bool,
    },
}

impl Op {
    /// Every instruction with its encoding.
    pub const TABLE: [(SysReg, Op); 12] = [
        (
            at(0, 8, 0),
            Op::S1E1 {
                write: false,
                pan: false,
            },
        ),
        (
            at(0, 8, 1),
            Op::S1E1 {
                write: true,
                pan: false,
            },
        ),
        (at(0, 8, 2), Op::S1E0 { write: false }),
        (at(0, 8, 3), Op::S1E0 { write: true }),
        (
            at(0, 9, 0),
            Op::S1E1 {
                write: false,
                pan: true,
            },
        ),
        (
            at(0, 9, 1),
            Op::S1E1 {
                write: true,
                pan: true,
            },
        ),
        (at(4, 8, 0), Op::S1E2 { write: false }),
        (at(4, 8, 1), Op::S1E2 { write: true }),
        (at(4, 8, 4), Op::S12E1 { write: false }),
        (at(4, 8, 5), Op::S12E1 { write: true }),
        (at(4, 8, 6), Op::S12E0 { write: false }),
        (at(4, 8, 7), Op::S12E0 { write: true }),
    ];

    /// The instruction with encoding `enc`; `None` for what is not one (FEAT_ATS1A is never shown).
    pub fn from_enc(enc: SysReg) -> Option<Op> {
        Op::TABLE
            .iter()
            .find(|(known, _)| *known == enc)
            .map(|(_, op)| *op)
    }

    const fn is_write(self) -> bool {
        match self {
            Op::S1E1 { write, .. }
            | Op::S1E0 { write }
            | Op::S1E2 { write }
            | Op::S12E1 { write }
            | Op::S12E0 { write } => write,
        }
    }

    const fn is_el0(self) -> bool {
        matches!(self, Op::S1E0 { .. } | Op::S12E0 { .. })
    }

    const fn is_two_stage(self) -> bool {
        matches!(self, Op::S12E1 { .. } | Op::S12E0 { .. })
    }

    const fn honours_pan(self) -> bool {
        matches!(self, Op::S1E1 { pan: true, .. })
    }

    /// The regime that the instruction asks about under `hcr` (Arm ARM C5.5, "AT S1E1R" and others).
    const fn regime(self, hcr: u64) -> Regime {
        let e2h = hcr & HCR_E2H != 0;
        let host = e2h && hcr & HCR_TGE != 0;
        match self {
            Op::S1E2 { .. } if e2h => Regime::El20,
            Op::S1E2 { .. } => Regime::El2,
            Op::S1E1 { .. } | Op::S1E0 { .. } | Op::S12E1 { .. } | Op::S12E0 { .. } if host => {
                Regime::El20
            }
            Op::S1E1 { .. } | Op::S1E0 { .. } | Op::S12E1 { .. } | Op::S12E0 { .. } => Regime::El10,
        }
    }
}

const fn at(op1: u8, crm: u8, op2: u8) -> SysReg {
    SysReg::new(1, op1, 7, crm, op2)
}

/// The state of the vCPU that an AT depends on, all of it the guest hypervisor's own.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// What its ID registers show.
    pub features: Features,
    /// HCR_EL2.
    pub hcr: u64,
    /// The EL1 registers of its guest.
    pub el1: Stage1Regs,
    /// Its own EL2 registers.
    pub el2: Stage1Regs,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// PSTATE.PAN where the instruction executes.
    pub pan: bool,
}

/// What an AT ends in: PAR_EL1, or a page to bring in first.
type Outcome = Result<Par, Again>;

/// Executes `op` for `va` (Arm ARM AArch64.AT). Sets access flags where the tables ask for that, and
/// never marks anything dirty.
pub fn translate(op: Op, va: Gva, context: &Context, memory: &mut impl GuestMemory) -> Outcome {
    let regime = op.regime(context.hcr);
    let access = stage1::Access {
        kind: if op.is_write() {
            Kind::Write
        } else {
            Kind::Read
        },
        el0: op.is_el0(),
        pan: op.honours_pan() && context.pan,
        purpose: Purpose::At,
    };
    let regs = match regime {
        Regime::El10 => &context.el1,
        Regime::El20 | Regime::El2 => &context.el2,
    };
    let config = Stage1Config::new(regime, regs, context.hcr, &context.features);
    match regime {
        Regime::El10 => guest(op, va, access, &config, context, memory),
        Regime::El20 | Regime::El2 => own(va, access, &config, context, memory),
    }
}

/// EL2&0 or EL2: one stage, of tables in the VM's own space.
fn own(
    va: Gva,
    access: stage1::Access,
    config: &Stage1Config,
    context: &Context,
    memory: &mut impl GuestMemory,
) -> Outcome {
    match stage1::walk(config, va, access, &mut Untranslated { memory }) {
        Ok(mapping) => Ok(Par::success(
            mapping.translation.output.raw(),
            mapping.attributes,
            context.features.xs,
        )),
        Err(stop) => failure(stop),
    }
}

/// EL1&0: stage 1 behind stage 2, and stage 2 of the output if `op` asks for it.
fn guest(
    op: Op,
    va: Gva,
    access: stage1::Access,
    config: &Stage1Config,
    context: &Context,
    memory: &mut impl GuestMemory,
) -> Outcome {
    let stage2 = Stage2Config::new(
        context.vtcr,
        context.vttbr,
        context.hcr,
        context.el2.sctlr & SCTLR_EE != 0,
        &context.features,
    );
    let mut tables = BehindStage2 {
        config: &stage2,
        memory,
    };
    let first = match stage1::walk(config, va, access, &mut tables) {
        Ok(mapping) => mapping,
        Err(stop) => return failure(stop),
    };
    let ipa = first.translation.output;
    if op.is_two_stage() {
        return second(ipa, op, &first, &stage2, context, memory);
    }
    // While stage 2 is on, hardware need not widen the shareability at stage 1; it makes no difference
    // to PAR_EL1, which reports device and uncached memory as outer shareable.
    Ok(Par::success(
        ipa.raw(),
        first.attributes,
        context.features.xs,
    ))
}

fn second(
    ipa: L2Ipa,
    op: Op,
    first: &stage1::Mapping<L2Ipa>,
    stage2: &Stage2Config,
    context: &Context,
    memory: &mut impl GuestMemory,
) -> Outcome {
    let access = if op.is_write() {
        stage2::Access::AtWrite
    } else {
        stage2::Access::AtRead
    };
    match stage2::walk(stage2, ipa, access, memory) {
        Ok(mapping) => {
            let attributes = mapping
                .attributes
                .map_or(first.attributes, |second| second.combine(first.attributes));
            Ok(Par::success(
                mapping.translation.output.raw(),
                attributes,
                context.features.xs,
            ))
        }
        Err(stop) => stop.fault().map(|fault| Par::failure(fault, true, false)),
    }
}

fn failure(stop: Stop1) -> Outcome {
    match stop {
        Stop1::Stage1(stop) => stop.fault().map(|fault| Par::failure(fault, false, false)),
        Stop1::Stage2 { stop, .. } => stop.fault().map(|fault| Par::failure(fault, true, true)),
    }
}
