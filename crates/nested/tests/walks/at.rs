//! AT and PAR_EL1.

use std::collections::BTreeSet;

use umbra_arm64::sysreg::SysReg;
use umbra_arm64::{FaultStatus, Gva, Ipa, Level};
use umbra_nested::Again;
use umbra_nested::at::{Context, Op, Par, translate};
use umbra_nested::stage1::Stage1Regs;

use crate::fake::{Fake, RAM_END};
use crate::stage2::SMALL;

const E2H: u64 = 1 << 34;
const TGE: u64 = 1 << 27;
const VM: u64 = 1;
const F: u64 = 1;
const PTW: u64 = 1 << 8;
const S: u64 = 1 << 9;
const RES1: u64 = 1 << 11;

/// 39 bits, 4 KiB, level 1 first, 48 bits of output; write-back is attribute 1.
const TCR: u64 = 25 | 5 << 32;
const VTCR: u64 = 24 | 1 << 6 | 5 << 16;
const ROOT1: u64 = 0x1000_0000;
const ROOT2: u64 = 0x1000_1000;
const STAGE2_ROOT: u64 = 0x1000_2000;
/// A block of 1 GiB: write-back, inner shareable, accessed.
const BLOCK: u64 = 0b01 | 1 << 2 | 3 << 8 | 1 << 10;
const AP_EL0: u64 = 1 << 6;
const AP_RO: u64 = 1 << 7;
const S2_RW: u64 = 3 << 6;
/// Stage 2, write-back.
const S2_WB: u64 = 0b1111 << 2;
const S2_SHARED: u64 = 3 << 8;
const S2_AF: u64 = 1 << 10;
const VA: u64 = 0x1234_5678;

fn regs(root: u64) -> Stage1Regs {
    Stage1Regs {
        sctlr: 1 | 1 << 2,
        tcr: TCR,
        ttbr0: root,
        ttbr1: 0,
        mair: 0xff00,
    }
}

fn context(hcr: u64) -> Context {
    Context {
        features: SMALL,
        hcr: E2H | hcr,
        el1: regs(ROOT1),
        el2: regs(ROOT2),
        vtcr: VTCR,
        vttbr: STAGE2_ROOT,
        pan: false,
    }
}

const S1E1R: Op = Op::S1E1 {
    write: false,
    pan: false,
};
const S1E1RP: Op = Op::S1E1 {
    write: false,
    pan: true,
};
const S12E1R: Op = Op::S12E1 { write: false };
const S12E1W: Op = Op::S12E1 { write: true };

/// EL1's 0 is L2's 1 GiB; EL2's 0 is 5 GiB; L2's 1 GiB is 3 GiB, and its 0 is 0 (for the tables).
fn memory() -> Fake {
    let mut memory = Fake::new();
    memory
        .put(ROOT1, 0x4000_0000 | BLOCK)
        .put(ROOT2, 0x1_4000_0000 | BLOCK)
        .put(STAGE2_ROOT, 0b01 | S2_RW | S2_WB | S2_SHARED | S2_AF)
        .put(
            STAGE2_ROOT + 8,
            0xc000_0000 | 0b01 | S2_RW | S2_WB | S2_SHARED | S2_AF,
        );
    memory
}

fn run(op: Op, context: &Context, memory: &mut Fake) -> Par {
    translate(op, Gva::new(VA), context, memory).expect("all pages are there")
}

fn address(par: Par) -> Option<u64> {
    par.fault()
        .is_none()
        .then_some(par.raw() & 0x000f_ffff_ffff_f000)
}

const PAGE: u64 = VA & !0xfff;

#[test]
fn encodings_are_unique_and_those_of_the_manual() {
    let encodings: BTreeSet<SysReg> = Op::TABLE.iter().map(|(enc, _)| *enc).collect();
    assert_eq!(encodings.len(), Op::TABLE.len());
    for (enc, op) in Op::TABLE {
        assert_eq!(Op::from_enc(enc), Some(op));
        assert_eq!((enc.op0(), enc.crn()), (1, 7));
    }
    // AT S12E0W is 1, C7, C8, 4, 7; AT S1E1A and AT S1E3R are not there.
    assert_eq!(
        Op::from_enc(SysReg::new(1, 4, 7, 8, 7)),
        Some(Op::S12E0 { write: true })
    );
    assert_eq!(Op::from_enc(SysReg::new(1, 0, 7, 9, 2)), None);
    assert_eq!(Op::from_enc(SysReg::new(1, 6, 7, 8, 0)), None);
}

#[test]
fn the_regime_depends_on_e2h_and_tge() {
    let (guest_s1, own, both) = (
        Some(0x4000_0000 | PAGE),
        Some(0x1_4000_0000 | PAGE),
        Some(0xc000_0000 | PAGE),
    );
    let el0 = Op::S1E0 { write: false };
    for (hcr, op, expected) in [
        (VM, S1E1R, guest_s1),
        (VM, S12E1R, both),
        (VM, Op::S1E2 { write: false }, own),
        (VM | TGE, S1E1R, own),
        (VM | TGE, S12E1R, own),
        (VM | TGE, Op::S1E2 { write: false }, own),
        (0, S12E1R, guest_s1),
        // Stage 1 off under DC; stage 2 on.
        (1 << 12, S1E1R, Some(PAGE)),
        (VM, el0, None),
    ] {
        let found = run(op, &context(hcr), &mut memory());
        assert_eq!(address(found), expected, "{hcr:#x} {op:?}");
    }
    // Without E2H, TGE does not make EL2 a host; EL1&0 is off.
    let context = Context {
        hcr: TGE,
        ..context(0)
    };
    assert_eq!(address(run(S1E1R, &context, &mut memory())), Some(PAGE));
}

#[test]
fn a_success_reports_address_attributes_and_shareability() {
    let par = run(S12E1R, &context(VM), &mut memory()).raw();
    assert_eq!(par & F, 0);
    assert_eq!(par >> 56, 0xff);
    assert_eq!(par >> 7 & 3, 0b11);
    assert_ne!(par & RES1, 0);
    assert_eq!(par & 0x00f0_0000_0000_0000, 0);
    // Device memory is reported outer shareable.
    let mut device = memory();
    device.put(ROOT1, (0x4000_0000 | BLOCK) & !(7 << 2));
    let par = run(S12E1R, &context(VM), &mut device).raw();
    assert_eq!((par >> 56, par >> 7 & 3), (0x00, 0b10));
}

#[test]
fn a_fault_of_stage_1_has_neither_s_nor_ptw() {
    let mut memory = memory();
    memory.put(ROOT1, 0);
    for op in [S1E1R, S12E1R] {
        let par = run(op, &context(VM), &mut memory);
        assert_eq!(par.fault(), Some(FaultStatus::Translation(Level::L1)));
        assert_eq!(par.raw(), RES1 | 0b000101 << 1 | F);
        assert!(!par.is_external());
    }
}

#[test]
fn a_fault_of_stage_2_has_s_and_on_a_walk_ptw() {
    let mut tables = memory();
    tables.put(STAGE2_ROOT, 0);
    for op in [S1E1R, S12E1R] {
        let par = run(op, &context(VM), &mut tables).raw();
        assert_eq!(par, RES1 | S | PTW | 0b000101 << 1 | F);
    }
    let mut output = memory();
    output.put(STAGE2_ROOT + 8, 0xc000_0000 | 0b01 | 1 << 6 | S2_AF);
    let par = run(S12E1W, &context(VM), &mut output).raw();
    assert_eq!(par, RES1 | S | 0b001101 << 1 | F, "permission, level 1");
    assert!(address(run(S12E1R, &context(VM), &mut output)).is_some());
    assert!(address(run(S1E1R, &context(VM), &mut output)).is_some());
}

/// [BR7], [BR12]: whatever VTTBR_EL2 and VTCR_EL2 say, the instruction completes.
#[test]
fn bad_stage_2_registers_are_a_fault_and_not_a_loop() {
    let nowhere = Context {
        vttbr: RAM_END,
        ..context(VM)
    };
    for op in [S1E1R, S12E1R] {
        let par = run(op, &nowhere, &mut memory());
        assert_eq!(par.fault(), Some(FaultStatus::ExternalOnWalk(Level::L1)));
        assert!(par.is_external());
        assert_eq!(par.raw() & (S | PTW), S | PTW);
    }
    for vtcr in [0, VTCR | 0x3f, VTCR | 3 << 6, u64::MAX] {
        let bad = Context {
            vtcr,
            ..context(VM)
        };
        for op in [S1E1R, S12E1R] {
            let par = run(op, &bad, &mut memory());
            assert_eq!(par.fault(), Some(FaultStatus::Translation(Level::L0)));
        }
    }
    let too_big = Context {
        vtcr: VTCR & !(7 << 16),
        vttbr: 1 << 33,
        ..context(VM)
    };
    let par = run(S12E1R, &too_big, &mut memory());
    assert_eq!(par.fault(), Some(FaultStatus::AddressSize(Level::L0)));
}

#[test]
fn permissions_are_asked_for_by_exception_level_and_direction() {
    let writable = |bits, op| {
        let mut memory = memory();
        memory.put(ROOT1, 0x4000_0000 | BLOCK | bits);
        run(op, &context(VM), &mut memory).fault().is_none()
    };
    let el1 = |write| Op::S1E1 { write, pan: false };
    let el0 = |write| Op::S1E0 { write };
    for (bits, expected) in [
        (0, [true, true, false, false]),
        (AP_EL0, [true, true, true, true]),
        (AP_RO, [true, false, false, false]),
        (AP_RO | AP_EL0, [true, false, true, false]),
    ] {
        let found = [el1(false), el1(true), el0(false), el0(true)].map(|op| writable(bits, op));
        assert_eq!(found, expected, "{bits:#x}");
        let both = [
            S12E1R,
            S12E1W,
            Op::S12E0 { write: false },
            Op::S12E0 { write: true },
        ];
        assert_eq!(both.map(|op| writable(bits, op)), expected, "{bits:#x}");
    }
}

/// AT S1E1RP honours PSTATE.PAN; AT S1E1R does not.
#[test]
fn only_the_pan_forms_honour_pan() {
    let mut memory = memory();
    memory.put(ROOT1, 0x4000_0000 | BLOCK | AP_EL0);
    for (op, pan, permitted) in [
        (S1E1R, true, true),
        (S1E1RP, true, false),
        (S1E1RP, false, true),
    ] {
        let context = Context { pan, ..context(VM) };
        let found = run(op, &context, &mut memory);
        assert_eq!(found.fault().is_none(), permitted, "{op:?} {pan}");
    }
}

#[test]
fn an_at_sets_access_flags_but_marks_nothing_dirty() {
    const HA_HD: u64 = 3 << 39;
    const DBM: u64 = 1 << 51;
    let mut context = context(VM);
    context.el1.tcr |= HA_HD;
    context.vtcr |= 3 << 21;
    let mut memory = memory();
    let first = (0x4000_0000 | BLOCK | AP_RO | DBM) & !(1 << 10);
    let second = 0xc000_0000 | 0b01 | 1 << 6 | S2_WB | DBM;
    memory.put(ROOT1, first).put(STAGE2_ROOT + 8, second);
    assert!(run(S12E1W, &context, &mut memory).fault().is_none());
    assert_eq!(memory.get(ROOT1), first | 1 << 10);
    assert_eq!(memory.get(STAGE2_ROOT + 8), second | 1 << 10);
}

#[test]
fn a_page_that_is_away_is_asked_for() {
    let mut memory = memory();
    memory.send_away(STAGE2_ROOT);
    let outcome = translate(S12E1R, Gva::new(VA), &context(VM), &mut memory);
    assert_eq!(outcome, Err(Again::Memory(Ipa::new(STAGE2_ROOT))));
}
