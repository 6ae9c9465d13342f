//! What virtual EL2 does that umbra does for it, where a program there can say what the hardware does
//! for the same: authenticated exception returns.

use kvm_bindings::{
    KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
};

use super::asm::{Asm, EXCEPTION, REPORT, Sys};
use super::below::{ELR_EL2, SPSR_EL2, has_el2, start};
use super::guest::{Exit, Machine, RAM, Vcpu};
use super::{Check, Env, Outcome, abi, granted, holds, same};

const SCTLR_EL2: Sys = (3, 4, 1, 0, 0);
/// At virtual EL2 this is the name of its own.
const SCTLR_EL1: Sys = (3, 0, 1, 0, 0);
const TCR_EL2: Sys = (3, 4, 2, 0, 2);
const KEYS: [Sys; 4] = [
    (3, 0, 2, 1, 0),
    (3, 0, 2, 1, 1),
    (3, 0, 2, 1, 2),
    (3, 0, 2, 1, 3),
];
const SCTLR: u64 = 0x30c5_0830;
/// SCTLR_EL2.EnIA and EnIB.
const ENABLED: u64 = 0b11 << 30;
const EL2H: u64 = 0x3c9;

/// Instructions of one key: PACI<k> X0, SP; AUTI<k> X0, SP; ERETA<k>.
struct Key {
    sign: u32,
    check: u32,
    eret: u32,
}

const BOTH: [Key; 2] = [
    Key {
        sign: 0xdac1_03e0,
        check: 0xdac1_13e0,
        eret: 0xd69f_0bff,
    },
    Key {
        sign: 0xdac1_07e0,
        check: 0xdac1_17e0,
        eret: 0xd69f_0fff,
    },
];
const BR_X0: u32 = 0xd61f_0000;

/// Where something led: what was reported, or the syndrome and the place of the exception.
#[derive(Debug, PartialEq, Eq)]
enum Led {
    Reported(u64),
    Exception { esr: u64, elr: u64 },
}

/// Runs to a report of something else than x0, or to an exception.
fn led(vcpu: &Vcpu) -> Check<Led> {
    match vcpu.exits()? {
        Exit::Write {
            at: REPORT, data, ..
        } => Ok(Led::Reported(data)),
        Exit::Write { at: EXCEPTION, .. } => Ok(Led::Exception {
            esr: vcpu.x(21)?,
            elr: vcpu.x(23)?,
        }),
        other => Err(format!("{other:x?}")),
    }
}

/// Signs x0 with SP as the modifier, changes it by x1, and reports it.
fn signed(key: &Key) -> Asm {
    let mut asm = Asm::new();
    asm.mov(3, RAM + 0x800).word(0x9100_007f); // mov sp, x3
    asm.word(key.sign).word(0xca01_0000); // eor x0, x0, x1
    asm.report(0);
    asm
}

/// ERETAA and ERETAB go where the hardware's own AUTIA and AUTIB say, and fault as they do; and where
/// SCTLR_EL2 has the key off, they go where a branch goes.
pub(super) fn authenticated_returns(_: &Env) -> Outcome {
    const TARGET: u64 = 0x7a;
    const TCR: u64 = 25 | 25 << 16;
    /// TCR_EL2.TBI0, and TBID0 on top.
    const TBI: u64 = 1 << 37;
    const TBID: u64 = 1 << 51;
    if !has_el2()? {
        return Ok(());
    }
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    let features = 1 << KVM_ARM_VCPU_HAS_EL2
        | 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS
        | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    granted(vcpu.init(features), "EL2 and pointer authentication")?;
    let mut target = Asm::new();
    target.mov(9, TARGET).report(9).stop();
    let target = machine.place(&target);
    for (register, value) in KEYS.into_iter().zip(0x1234_5678_9abc_def1..) {
        vcpu.set(abi::sys(register), value)?;
    }
    let begin = |entry: u64, flip: u64, tcr: u64| -> Check<u64> {
        start(&vcpu, entry)?;
        vcpu.set(abi::sys(SCTLR_EL2), SCTLR | ENABLED)?;
        vcpu.set(abi::sys(TCR_EL2), tcr)?;
        vcpu.set(abi::x(0), target)?;
        vcpu.set(abi::x(1), flip)?;
        vcpu.report()
    };
    let mut failed = 0;
    for key in &BOTH {
        let mut by_hardware = signed(key);
        by_hardware.word(key.check).report(0).stop();
        let by_hardware = machine.place(&by_hardware);
        let mut by_return = signed(key);
        by_return
            .msr(ELR_EL2, 0)
            .mov(2, EL2H)
            .msr(SPSR_EL2, 2)
            .isb();
        let eret = by_return.here() as u64 * 4;
        by_return.word(key.eret).stop();
        let by_return = machine.place(&by_return);
        for tcr in [TCR, TCR | TBI, TCR | TBI | TBID, 0] {
            for flip in [
                0,
                1 << 40,
                1 << 47,
                1 << 48,
                1 << 54,
                1 << 56,
                1 << 63,
                0b11 << 61,
            ] {
                let what = format!("TCR_EL2 {tcr:#x}, {flip:#x} flipped");
                let value = begin(by_hardware, flip, tcr)?;
                let hardware = led(&vcpu)?;
                vcpu.complete()?;
                same(begin(by_return, flip, tcr)?, value, "what was signed")?;
                let wanted = match hardware {
                    // The exception is that of the instruction that found it.
                    Led::Exception { esr, .. } if esr >> 26 == 0x1c => {
                        failed += 1;
                        let elr = by_return + eret;
                        Led::Exception { esr, elr }
                    }
                    Led::Reported(at) if at == target => Led::Reported(TARGET),
                    other => return Err(format!("{what}: hardware says {other:x?}")),
                };
                same(led(&vcpu)?, wanted, &what)?;
                vcpu.complete()?;
            }
        }
        let mut disabled = signed(key);
        disabled.mov(4, SCTLR).msr(SCTLR_EL1, 4).isb();
        let mut branch = disabled.clone();
        branch.word(BR_X0).stop();
        disabled.msr(ELR_EL2, 0).mov(2, EL2H).msr(SPSR_EL2, 2).isb();
        disabled.word(key.eret).stop();
        let ends = [branch, disabled].map(|program| -> Check<Led> {
            begin(machine.place(&program), 0, TCR)?;
            let end = led(&vcpu)?;
            vcpu.complete()?;
            Ok(end)
        });
        let [branch, disabled] = ends;
        same(disabled?, branch?, "with the key off")?;
    }
    holds(failed > 20, || format!("only {failed} codes were wrong"))
}
