//! KVM_SET_GUEST_DEBUG, and the debugging that a guest does itself.

use kvm_bindings::{
    KVM_CAP_GUEST_DEBUG_HW_BPS, KVM_CAP_GUEST_DEBUG_HW_WPS, KVM_CAP_SET_GUEST_DEBUG,
    KVM_CAP_SET_GUEST_DEBUG2, KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use umbra_vmm::kvm::{ioctl, ioctl_value};

use super::asm::{Access, Asm, Sys};
use super::guest::{EL1H, Exit, Machine, RAM, Vcpu, open};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const MDSCR_EL1: Sys = (2, 0, 0, 2, 2);
const OSLAR_EL1: Sys = (2, 0, 1, 0, 4);
const MIDR_EL1: Sys = (3, 0, 0, 0, 0);
const ID_AA64PFR0_EL1: Sys = (3, 0, 0, 4, 0);
const DBGBVR0_EL1: Sys = (2, 0, 0, 0, 4);
const DBGBCR0_EL1: Sys = (2, 0, 0, 0, 5);
/// A place where nothing answers.
const HOLE: u64 = 0x2000_0000;
/// MDSCR_EL1: single step, kernel debugging, monitor debugging.
const SS: u64 = 1;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;
/// Enabled, EL1, four bytes.
const BREAKPOINT: u64 = 0xf << 5 | 1 << 1 | 1;
/// Enabled, EL1, loads and stores, eight bytes.
const WATCHPOINT: u64 = 0xff << 5 | 3 << 3 | 1 << 1 | 1;

const STEP: u64 = 0x32;

fn debug(vcpu: &Vcpu, change: impl FnOnce(&mut kvm_guest_debug)) -> Result<u32, i32> {
    let mut debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE,
        ..Default::default()
    };
    change(&mut debug);
    ioctl(&vcpu.fd, abi::SET_GUEST_DEBUG, &mut debug)
}

fn step(vcpu: &Vcpu) -> Outcome {
    granted(
        debug(vcpu, |d| d.control |= KVM_GUESTDBG_SINGLESTEP),
        "KVM_GUESTDBG_SINGLESTEP",
    )
    .map(drop)
}

fn off(vcpu: &Vcpu) -> Outcome {
    granted(debug(vcpu, |d| d.control = 0), "control 0").map(drop)
}

/// Runs until a debug exit: its exception class, and FAR.
fn event(vcpu: &Vcpu) -> Check<(u64, u64)> {
    same(
        vcpu.exits()?,
        Exit::Other {
            reason: KVM_EXIT_DEBUG,
        },
        "the exit",
    )?;
    same(
        vcpu.page.u32(abi::run::FLAGS_WORD) >> 16,
        1,
        "the page's flags",
    )?;
    Ok((
        u64::from(vcpu.page.u32(abi::run::DEBUG_HSR) >> 26),
        vcpu.page.u64(abi::run::DEBUG_FAR),
    ))
}

fn stepped_to(vcpu: &Vcpu, wanted: u64, what: &str) -> Outcome {
    same(event(vcpu)?.0, STEP, what)?;
    same(vcpu.get(abi::PC)?, wanted, what)
}

pub(super) fn errors(_: &Env) -> Outcome {
    let kvm = open()?;
    let cap = |number: u32| ioctl_value(&kvm, abi::CHECK_EXTENSION, number.into());
    same(
        cap(KVM_CAP_SET_GUEST_DEBUG),
        Ok(1),
        "KVM_CAP_SET_GUEST_DEBUG",
    )?;
    same(
        cap(KVM_CAP_SET_GUEST_DEBUG2),
        Ok(KVM_GUESTDBG_ENABLE
            | KVM_GUESTDBG_SINGLESTEP
            | KVM_GUESTDBG_USE_SW_BP
            | KVM_GUESTDBG_USE_HW),
        "KVM_CAP_SET_GUEST_DEBUG2",
    )?;
    for number in [KVM_CAP_GUEST_DEBUG_HW_BPS, KVM_CAP_GUEST_DEBUG_HW_WPS] {
        let count = granted(cap(number), "a number of comparators")?;
        holds((1..=16).contains(&count), || format!("{count} comparators"))?;
    }
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(debug(&vcpu, |_| ()), "before KVM_ARM_VCPU_INIT")?;
    for flag in [2..16, 18..32].into_iter().flatten() {
        refused(
            debug(&vcpu, |d| d.control |= 1 << flag),
            libc::EINVAL,
            &format!("flag {flag}"),
        )?;
    }
    Ok(())
}

/// One instruction at a time: a plain one, one that traps, a device access, an exception.
pub(super) fn single_step(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1).mrs(1, ID_AA64PFR0_EL1).mov(2, HOLE);
    let load = 4 * asm.here() as u64;
    asm.ldr(3, 2).hvc();
    let last = 4 * asm.here() as u64;
    asm.mov(0, 7).report(0).word(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    step(&vcpu)?;
    for at in (4..=load).step_by(4) {
        stepped_to(&vcpu, entry + at, "a plain step")?;
    }
    same(
        vcpu.get(abi::PSTATE)?,
        EL1H,
        "PSTATE: the step's bit is not the guest's",
    )?;
    same(vcpu.exits()?, Exit::Read { at: HOLE, bytes: 8 }, "the load")?;
    vcpu.answer(0x99);
    stepped_to(&vcpu, entry + load + 4, "after the load")?;
    same(vcpu.x(3)?, 0x99, "x3")?;
    stepped_to(&vcpu, entry + last, "after HVC")?;
    off(&vcpu)?;
    same(vcpu.report()?, 7, "the report")
}

/// BRK, a breakpoint and a watchpoint of the VMM's.
pub(super) fn of_the_vmm(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1);
    let here = 4 * asm.here() as u64;
    asm.mov(1, RAM + 8).mov(2, 5).access(Access::StrW, 2, 1);
    let brk = 4 * asm.here() as u64;
    asm.word(0xd420_0000).report(2);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    granted(
        debug(&vcpu, |d| {
            d.control |= KVM_GUESTDBG_USE_HW | KVM_GUESTDBG_USE_SW_BP;
            d.arch.dbg_bvr[0] = entry + here;
            d.arch.dbg_bcr[0] = BREAKPOINT;
            d.arch.dbg_wvr[0] = RAM + 8;
            d.arch.dbg_wcr[0] = WATCHPOINT;
        }),
        "a breakpoint and a watchpoint",
    )?;
    same(event(&vcpu)?.0, 0x30, "the breakpoint")?;
    same(vcpu.get(abi::PC)?, entry + here, "where it is")?;
    granted(
        debug(&vcpu, |d| {
            d.control |= KVM_GUESTDBG_USE_HW;
            d.arch.dbg_wvr[0] = RAM + 8;
            d.arch.dbg_wcr[0] = WATCHPOINT;
        }),
        "the watchpoint alone",
    )?;
    same(event(&vcpu)?, (0x34, RAM + 8), "the watchpoint")?;
    same(machine.ram.u32(8), 0, "the word that is watched")?;
    granted(debug(&vcpu, |_| ()), "neither")?;
    same(event(&vcpu)?.0, 0x3c, "BRK")?;
    same(vcpu.get(abi::PC)?, entry + brk, "where it is")?;
    // The guest's own again: its vectors take it.
    off(&vcpu)?;
    let seen = vcpu.exception()?;
    same((seen.vector, seen.esr >> 26), (4, 0x3c), "BRK of the guest")
}

/// What a guest sets itself: a breakpoint, then a step, then both behind the OS lock.
pub(super) fn of_the_guest(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    for locked in [false, true] {
        let mut asm = Asm::new();
        asm.mov(0, u64::from(locked)).msr(OSLAR_EL1, 0);
        asm.mov(1, KDE | MDE).mov(2, BREAKPOINT).mov(3, 0);
        // Where the breakpoint is comes in x4.
        asm.msr(DBGBVR0_EL1, 4).msr(DBGBCR0_EL1, 2);
        asm.msr(MDSCR_EL1, 1).isb().unmask(8);
        let at = 4 * asm.here() as u64;
        asm.mrs(5, MIDR_EL1).mov(0, 9).report(0);
        let entry = machine.place(&asm);
        let vcpu = machine.vcpu(u64::from(locked), entry)?;
        vcpu.set(abi::x(4), entry + at)?;
        if locked {
            same(vcpu.report()?, 9, "behind the lock nothing breaks")?;
        } else {
            let seen = vcpu.exception()?;
            same(
                (seen.vector, seen.esr >> 26, seen.elr),
                (4, 0x31, entry + at),
                "the breakpoint",
            )?;
        }
    }
    let mut asm = Asm::new();
    asm.mov(1, KDE | SS).msr(MDSCR_EL1, 1).isb().unmask(8);
    let at = 4 * asm.here() as u64;
    asm.word(0xd503_201f).report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(2, entry)?;
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr >> 26, seen.elr),
        (4, 0x33, entry + at),
        "a step that is pending from the start",
    )
}
