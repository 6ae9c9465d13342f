//! What virtual EL2 does that umbra does for it: authenticated exception returns, SErrors of the VMM's and
//! of its own, virtual interrupts, and tables in its byte order.

use kvm_bindings::{
    KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
};

use umbra_vmm::kvm::Region;

use super::asm::{self, Asm, EXCEPTION, REPORT, Sys};
use super::below::{ABOVE, ELR_EL2, HCR, SPSR_EL2, STAGE2, has_el2, nested, start};
use super::events::set;
use super::guest::{Exit, Machine, RAM, Vcpu, kicked};
use super::poison::{DATA, memory};
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
const EL1: u64 = 0x3c5;
const EL0: u64 = 0x3c0;

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

/// ERETAA and ERETAB go where the hardware's own AUTIA or AUTIB and a branch go, and fault as they do: with
/// FEAT_FPAC at the check, without it at the address that it spoilt; and where SCTLR_EL2 has the key off,
/// they go where a branch goes.
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
        by_hardware.word(key.check).word(BR_X0).stop();
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
                failed += u32::from(hardware != Led::Reported(TARGET));
                let wanted = match hardware {
                    // The exception is that of the instruction that found it.
                    Led::Exception { esr, .. } if esr >> 26 == 0x1c => {
                        let elr = by_return + eret;
                        Led::Exception { esr, elr }
                    }
                    other => other,
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

/// MIDR_EL1, the first of the identification registers.
const ID_SPACE: Sys = (3, 0, 0, 0, 0);
const HCR_EL2: Sys = (3, 4, 1, 1, 0);
const VSESR_EL2: Sys = (3, 4, 5, 2, 3);
const VDISR_EL2: Sys = (3, 4, 12, 1, 1);
const DISR_EL1: Sys = (3, 0, 12, 1, 1);
const ISR_EL1: Sys = (3, 0, 12, 1, 0);
const TGE: u64 = 1 << 27;
const AMO: u64 = 1 << 5;
const VSE: u64 = 1 << 8;
/// PSTATE.A.
const MASKED: u64 = 1 << 8;
const ESB: u32 = 0xd503_221f;
/// msr daifclr, #4.
const UNMASK: u32 = 0xd503_44ff;
const MODE: u64 = 0xf;
/// What an SError says: implementation defined.
const ISS: u64 = 1 << 24 | 0x5a_1234;
/// A deferred one, in DISR_EL1.
const DEFERRED: u64 = 1 << 31 | ISS;

/// A vCPU at virtual EL2 with L1's stage 2 in `data`, as `below` has it.
struct Stage {
    machine: Machine,
    data: Region,
    vcpu: Vcpu,
}

impl Stage {
    fn new(hcr: u64) -> Check<Self> {
        let (machine, data) = (Machine::new()?, memory(true)?);
        granted(machine.add(&data, DATA, 0), "a slot")?;
        let vcpu = nested(&machine, &data, 0, HCR | hcr)?;
        Ok(Self {
            machine,
            data,
            vcpu,
        })
    }

    /// Virtual EL2, or its EL0, begins `program` at `pstate`.
    fn begin(&self, program: &Asm, pstate: u64) -> Outcome {
        self.vcpu.set(abi::PSTATE, pstate)?;
        self.vcpu.set(abi::PC, self.machine.place(program))
    }

    /// What virtual EL2 returns to.
    fn returns_to(&self, program: &Asm, pstate: u64) -> Outcome {
        self.vcpu
            .set(abi::sys(ELR_EL2), self.machine.place(program))?;
        self.vcpu.set(abi::sys(SPSR_EL2), pstate)
    }

    /// The VMM makes an SError.
    fn strike(&self) -> Outcome {
        let answer = set(&self.vcpu, |e| {
            e.exception.serror_pending = 1;
            e.exception.serror_has_esr = 1;
            e.exception.serror_esr = ISS;
        });
        granted(answer, "an SError").map(drop)
    }

    /// An SError is taken next, by this entry of the vectors, at this level.
    fn taken(&self, vector: u64, level: u64, what: &str) -> Outcome {
        let seen = self.vcpu.exception()?;
        let mode = self.vcpu.get(abi::PSTATE)? & MODE;
        let wanted = (vector, 0x2f << 26 | 1 << 25 | ISS, level << 2 | 1);
        same((seen.vector, seen.esr, mode), wanted, what)
    }
}

/// Reports 1, again and again.
fn reporting() -> Asm {
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(0, 1).report(0).back(top);
    asm
}

/// An SError that the VMM makes reaches virtual EL2 from every context in which it is virtual EL2's, and
/// what it runs where not.
pub(super) fn serrors_of_the_vmm(_: &Env) -> Outcome {
    const SAME_LEVEL: u64 = 7;
    const LOWER: u64 = 11;
    if !has_el2()? {
        return Ok(());
    }
    for (hcr, pstate, vector, what) in [
        (TGE, EL2H, SAME_LEVEL, "virtual EL2, a host"),
        (0, EL2H, SAME_LEVEL, "virtual EL2"),
        (TGE, EL0, LOWER, "EL0 of a host"),
    ] {
        let stage = Stage::new(hcr)?;
        stage.begin(&reporting(), pstate & !MASKED)?;
        stage.vcpu.report()?;
        stage.strike()?;
        stage.taken(vector, 2, what)?;
        // Masked it waits.
        let stage = Stage::new(hcr)?;
        let mut asm = Asm::new();
        asm.mov(0, 1).report(0).report(0).word(UNMASK).stop();
        stage.begin(&asm, pstate)?;
        stage.vcpu.report()?;
        stage.strike()?;
        stage.vcpu.report()?;
        if pstate == EL2H {
            stage.taken(vector, 2, &format!("{what}, once it is unmasked"))?;
        }
    }
    for (hcr, pstate, vector, level, what) in [
        (AMO, EL1, LOWER, 2, "L2, routed"),
        (AMO, EL0, LOWER, 2, "EL0 of L2, routed"),
        (0, EL1 & !MASKED, SAME_LEVEL, 1, "L2"),
        (0, EL0 & !MASKED, LOWER, 1, "EL0 of L2"),
    ] {
        let stage = Stage::new(hcr)?;
        stage.returns_to(&reporting(), pstate)?;
        stage.vcpu.report()?;
        stage.strike()?;
        stage.taken(vector, level, what)?;
        // Masked at virtual EL2, which returns to it.
        let stage = Stage::new(hcr)?;
        let mut asm = Asm::new();
        asm.mov(0, 1).report(0).eret();
        stage.begin(&asm, EL2H)?;
        stage.returns_to(&reporting(), pstate)?;
        stage.vcpu.report()?;
        stage.strike()?;
        stage.taken(vector, level, &format!("{what}, on the way there"))?;
    }
    Ok(())
}

/// An SError that L1 makes for L2 (HCR_EL2.VSE) is taken, deferred by ESB, or waits, as the architecture
/// says; and each level has a DISR_EL1 of its own.
pub(super) fn serrors_of_l1(_: &Env) -> Outcome {
    const HCR_ALL: u64 = HCR | AMO | VSE;
    if !has_el2()? {
        return Ok(());
    }
    let stage = |hcr: u64, program: &Asm, pstate: u64| -> Check<Stage> {
        let stage = Stage::new(hcr)?;
        stage.vcpu.set(abi::sys(VSESR_EL2), ISS)?;
        stage.returns_to(program, pstate)?;
        Ok(stage)
    };
    let vse = |stage: &Stage| Ok::<_, String>(stage.vcpu.get(abi::sys(HCR_EL2))? & VSE);
    let taken = stage(HCR_ALL, &reporting(), EL1 & !MASKED)?;
    taken.taken(7, 1, "a virtual SError")?;
    same(vse(&taken)?, 0, "HCR_EL2.VSE once it was taken")?;
    let taken = stage(HCR_ALL, &reporting(), EL0 & !MASKED)?;
    taken.taken(11, 1, "a virtual SError of L2's EL0")?;
    for (hcr, pstate, what) in [
        (VSE, EL1 & !MASKED, "without AMO"),
        (AMO | VSE, EL1, "while L2 has it masked"),
    ] {
        let waits = stage(hcr, &reporting(), pstate)?;
        for _ in 0..3 {
            same(waits.vcpu.report()?, 1, what)?;
        }
        same(vse(&waits)?, VSE, &format!("HCR_EL2.VSE {what}"))?;
    }

    let mut program = Asm::new();
    program.mrs(0, ISR_EL1).report(0).word(ESB);
    program
        .mrs(0, DISR_EL1)
        .report(0)
        .report(0)
        .mrs(0, DISR_EL1)
        .report(0);
    program
        .mov(0, 0)
        .msr(DISR_EL1, 0)
        .mrs(0, ISR_EL1)
        .report(0)
        .stop();
    let defers = stage(HCR_ALL, &program, EL1)?;
    same(defers.vcpu.report()? >> 8 & 1, 1, "ISR_EL1.A of L2")?;
    same(defers.vcpu.report()?, DEFERRED, "DISR_EL1 of L2 after ESB")?;
    same(vse(&defers)?, 0, "HCR_EL2.VSE after ESB")?;
    // What it says lies in VDISR_EL2, and stays where the registers are put away.
    same(defers.vcpu.get(abi::sys(VDISR_EL2))?, DEFERRED, "VDISR_EL2")?;
    same(defers.vcpu.report()?, DEFERRED, "a word that L2 had")?;
    same(
        defers.vcpu.report()?,
        DEFERRED,
        "DISR_EL1 of L2, read again",
    )?;
    same(
        defers.vcpu.report()? >> 8 & 1,
        0,
        "ISR_EL1.A of L2 in the end",
    )?;
    same(
        defers.vcpu.get(abi::sys(VDISR_EL2))?,
        0,
        "VDISR_EL2 in the end",
    )?;

    // Virtual EL2 defers one of the VMM's; L2 has no part of it.
    let mut own = Asm::new();
    own.mov(0, 1).report(0).word(ESB).mrs(0, DISR_EL1).report(0);
    own.mrs(0, VDISR_EL2).report(0).eret();
    let mut below = Asm::new();
    below.mrs(0, DISR_EL1).report(0).stop();
    for (hcr, seen) in [(AMO, 0), (0, DEFERRED)] {
        let stage = stage(hcr, &below, EL1)?;
        stage.begin(&own, EL2H)?;
        stage.vcpu.report()?;
        stage.strike()?;
        same(stage.vcpu.report()?, DEFERRED, "DISR_EL1 of virtual EL2")?;
        same(stage.vcpu.report()?, 0, "VDISR_EL2")?;
        // Without AMO there is but one DISR_EL1.
        same(stage.vcpu.report()?, seen, "DISR_EL1 of L2")?;
    }
    Ok(())
}

/// HCR_EL2.VI and VF are interrupts of L2 where IMO and FMO are set, and nothing elsewhere.
pub(super) fn virtual_interrupts(_: &Env) -> Outcome {
    const FMO: u64 = 1 << 3;
    const IMO: u64 = 1 << 4;
    const VF: u64 = 1 << 6;
    const VI: u64 = 1 << 7;
    if !has_el2()? {
        return Ok(());
    }
    for (hcr, unmask, shown, vector) in [
        (IMO | FMO | VI, 2, VI, Some(5)),
        (IMO | FMO | VF, 1, VF, Some(6)),
        (IMO | FMO, 3, 0, None),
        (VI | VF, 3, 0, None),
    ] {
        let stage = Stage::new(hcr)?;
        let mut asm = Asm::new();
        asm.mrs(0, ISR_EL1)
            .report(0)
            .unmask(unmask)
            .report(31)
            .stop();
        stage.returns_to(&asm, EL1)?;
        same(stage.vcpu.report()?, shown, "ISR_EL1 of L2")?;
        match vector {
            Some(vector) => {
                let seen = stage.vcpu.exception()?;
                let mode = stage.vcpu.get(abi::PSTATE)? & MODE;
                same((seen.vector, mode), (vector, EL1 & MODE), "the interrupt")?;
            }
            None => same(stage.vcpu.report()?, 0, "what is not an interrupt")?,
        }
    }
    Ok(())
}

/// A walk of virtual EL2's own tables, or of EL1's, that leaves memory is an external abort of the walk, with its level.
pub(super) fn walks_beyond_memory(_: &Env) -> Outcome {
    const TABLES: usize = 0;
    const SOMEWHERE: u64 = 2 << 30;
    /// T0SZ of three levels, EPD1, 40 bits of output.
    const TCR: u64 = 25 | 1 << 23 | 2 << 32;
    const BLOCK: u64 = 1 | 3 << 8 | 1 << 10;
    const MAIR_EL2: Sys = (3, 4, 10, 2, 0);
    const TTBR0_EL2: Sys = (3, 4, 2, 0, 0);
    const CURRENT_EL: u64 = 0x25;
    for el2 in [false, true] {
        if el2 && !has_el2()? {
            continue;
        }
        let machine = Machine::new()?;
        let vcpu = machine.bare_vcpu(0)?;
        let features = if el2 { 1 << KVM_ARM_VCPU_HAS_EL2 } else { 0 };
        granted(vcpu.init(features), "KVM_ARM_VCPU_INIT")?;
        // Devices, memory, and a table where there is neither.
        for (at, entry) in [1 << 2 | BLOCK, RAM | BLOCK, (SOMEWHERE + 0x5000) | 3]
            .into_iter()
            .enumerate()
        {
            machine.ram.set_u64(TABLES + 8 * at, entry);
        }
        let mut asm = Asm::new();
        asm.mov(1, SOMEWHERE + (5 << 21)).ldr(0, 1).report(0);
        let entry = machine.place(&asm);
        let registers = if el2 {
            start(&vcpu, entry)?;
            [MAIR_EL2, TTBR0_EL2, TCR_EL2, SCTLR_EL2]
        } else {
            vcpu.start(entry)?;
            [asm::MAIR_EL1, asm::TTBR0_EL1, asm::TCR_EL1, asm::SCTLR_EL1]
        };
        let values = [0xff, RAM + TABLES as u64, TCR, SCTLR | 1];
        for (register, value) in registers.into_iter().zip(values) {
            vcpu.set(abi::sys(register), value)?;
        }
        let seen = vcpu.exception()?;
        same(
            (seen.esr >> 26, seen.esr & 0x3f, seen.far),
            (CURRENT_EL, 0x16, SOMEWHERE + (5 << 21)),
            "class, status and address",
        )?;
    }
    Ok(())
}

/// With SCTLR_EL2.EE L1's stage 2 is big-endian: for L2's accesses, and for AT.
pub(super) fn big_endian_tables(_: &Env) -> Outcome {
    const EE: u64 = 1 << 25;
    const AT_S12E1R: u32 = 0xd50c_7880;
    const PAR_EL1: Sys = (3, 0, 7, 4, 0);
    if !has_el2()? {
        return Ok(());
    }
    for (ee, swapped) in [(false, false), (true, true), (true, false), (false, true)] {
        let stage = Stage::new(0)?;
        if swapped {
            for at in [0, 8, 40].map(|offset| STAGE2 + offset) {
                stage.data.set_u64(at, stage.data.u64(at).swap_bytes());
            }
        }
        let sctlr = SCTLR | if ee { EE } else { 0 };
        stage.vcpu.set(abi::sys(SCTLR_EL2), sctlr)?;
        // What L1 stores is big-endian, too.
        let said = |value: u64| if ee { value.swap_bytes() } else { value };
        let mut asm = Asm::new();
        asm.mov(1, RAM + ABOVE).word(AT_S12E1R | 1).isb();
        asm.mrs(0, PAR_EL1).report(0).eret();
        stage.begin(&asm, EL2H)?;
        let mut below = Asm::new();
        below.mov(1, RAM + ABOVE + 0x100).ldr(0, 1).report(0).stop();
        stage.returns_to(&below, EL1)?;
        stage.machine.ram.set_u64(0x100, 0x1234);
        let par = said(stage.vcpu.report()?);
        let what = format!("EE={ee}, tables swapped={swapped}");
        if ee == swapped {
            same((par & 1, par << 16 >> 28), (0, RAM >> 12), &what)?;
            same(stage.vcpu.report()?, 0x1234, &what)?;
        } else {
            same(par & 1, 1, &what)?;
            let exit = stage.vcpu.exits()?;
            let told = matches!(exit, Exit::Write { at: EXCEPTION, .. });
            holds(told, || format!("{what}: {exit:x?}"))?;
            // A fault of L2's first fetch, at virtual EL2.
            let seen = (stage.vcpu.x(20)?, stage.vcpu.x(21)? >> 26);
            same(seen, (8, 0x20), &what)?;
        }
    }
    Ok(())
}

/// A vCPU that stands in L2 is saved register by register and goes on as another, which has to find out
/// by them that it is not at virtual EL2.
pub(super) fn restored_below(_: &Env) -> Outcome {
    const TPIDR_EL1: Sys = (3, 0, 13, 0, 4);
    if !has_el2()? {
        return Ok(());
    }
    for pstate in [EL1, EL0] {
        let stage = Stage::new(0)?;
        let mut asm = Asm::new();
        let again = asm.here();
        asm.add(5, 5, 1).report(5);
        asm.back(again);
        stage.returns_to(&asm, pstate)?;
        let first = &stage.vcpu;
        first.set(abi::x(5), 0)?;
        first.set(abi::sys(TPIDR_EL1), 0x7e57)?;
        for n in 1..4 {
            same(first.report()?, n, "what L2 counts")?;
        }
        first.complete()?;
        same(first.get(abi::PSTATE)?, pstate, "PSTATE of L2")?;
        let second = stage.machine.bare_vcpu(1)?;
        granted(second.init(1 << KVM_ARM_VCPU_HAS_EL2), "a vCPU with EL2")?;
        let list = granted(Region::new(1 << 16), "mmap")?;
        list.set_u64(0, 4000);
        granted(
            list.ioctl(&first.fd, abi::GET_REG_LIST, 0),
            "KVM_GET_REG_LIST",
        )?;
        for n in 1..=list.u64(0) as usize {
            let id = list.u64(8 * n);
            // Who it is stays.
            let identity = abi::sys(ID_SPACE)..abi::sys(ID_SPACE) + 0x80;
            if abi::bytes_of(id) <= 8 && !identity.contains(&id) {
                second.set(id, first.get(id)?)?;
            }
        }
        same(second.get(abi::PSTATE)?, pstate, "PSTATE as it was set")?;
        same(second.report()?, 4, "what L2 counts then")?;
        same(
            second.get(abi::sys(TPIDR_EL1))?,
            0x7e57,
            "a register of L2's",
        )?;
        // And back to virtual EL2, where the VMM wants it.
        second.complete()?;
        let mut asm = Asm::new();
        asm.mrs(0, HCR_EL2).report(0);
        start(&second, stage.machine.place(&asm))?;
        same(second.report()?, HCR, "HCR_EL2 at virtual EL2")?;
    }
    Ok(())
}

/// A vCPU that stands in L2 is initialised again: it is at virtual EL2 and sees the VM's own space.
pub(super) fn init_again_below(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    let stage = Stage::new(0)?;
    stage.returns_to(&reporting(), EL1)?;
    let vcpu = &stage.vcpu;
    vcpu.report()?;
    vcpu.complete()?;
    granted(
        vcpu.init(1 << KVM_ARM_VCPU_HAS_EL2),
        "KVM_ARM_VCPU_INIT again",
    )?;
    // An address that only the VM's own space has, for the first time.
    let fresh = DATA as usize + 0x4_0000;
    stage.data.set_u64(0x4_0000, 41);
    let mut asm = Asm::new();
    asm.mov(1, fresh as u64).ldr(0, 1).report(0);
    start(vcpu, stage.machine.place(&asm))?;
    let Stage { vcpu, data, .. } = stage;
    let seen = kicked(move || {
        (0..200)
            .find_map(|_| vcpu.report().ok())
            .ok_or("virtual EL2 makes no progress")
    })??;
    drop(data);
    same(seen, 41, "what virtual EL2 reads")
}
