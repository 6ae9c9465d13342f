//! KVM_SET_VCPU_EVENTS: external aborts and SErrors that the VMM makes.

use kvm_bindings::{KVM_CAP_ARM_INJECT_SERROR_ESR, kvm_vcpu_events};
use umbra_vmm::kvm::{ioctl, ioctl_value};

use super::asm::Asm;
use super::guest::{Exit, Machine, Vcpu, open};
use super::{Check, Env, Outcome, abi, granted, refused, same};

const HOLE: u64 = 0x2000_0040;

fn get(vcpu: &Vcpu) -> Check<kvm_vcpu_events> {
    let mut events = kvm_vcpu_events::default();
    granted(
        ioctl(&vcpu.fd, abi::GET_VCPU_EVENTS, &mut events),
        "KVM_GET_VCPU_EVENTS",
    )?;
    Ok(events)
}

pub(super) fn set(vcpu: &Vcpu, change: impl FnOnce(&mut kvm_vcpu_events)) -> Result<u32, i32> {
    let mut events = kvm_vcpu_events::default();
    change(&mut events);
    ioctl(&vcpu.fd, abi::SET_VCPU_EVENTS, &mut events)
}

fn has_esr() -> Check<bool> {
    let cap = u64::from(KVM_CAP_ARM_INJECT_SERROR_ESR);
    let answer = ioctl_value(&open()?, abi::CHECK_EXTENSION, cap);
    Ok(granted(answer, "KVM_CAP_ARM_INJECT_SERROR_ESR")? > 0)
}

/// Out of the blue: the guest sees it on the instruction that it was about to run.
pub(super) fn external_abort(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1).report(0).stop();
    let vcpu = machine.vcpu_with(0, &asm)?;
    vcpu.report()?;
    granted(
        set(&vcpu, |e| e.exception.ext_dabt_pending = 1),
        "ext_dabt_pending",
    )?;
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr >> 26, seen.esr & 0x3f),
        (4, 0x25, 0x10),
        "the abort",
    )?;
    same(
        get(&vcpu)?.exception.ext_dabt_pending,
        0,
        "ext_dabt_pending afterwards",
    )
}

/// Instead of an answer to an MMIO read.
pub(super) fn external_abort_of_mmio(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 0x77).mov(1, HOLE);
    let at = 4 * asm.here() as u64;
    asm.ldr(0, 1).report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    same(vcpu.exits()?, Exit::Read { at: HOLE, bytes: 8 }, "the load")?;
    granted(
        set(&vcpu, |e| e.exception.ext_dabt_pending = 1),
        "ext_dabt_pending",
    )?;
    vcpu.answer(0x99);
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr >> 26, seen.esr & 0x3f),
        (4, 0x25, 0x10),
        "the abort",
    )?;
    same((seen.far, seen.elr), (HOLE, entry + at), "FAR and ELR")?;
    same(vcpu.x(0)?, 0x77, "x0: the load did not happen")
}

pub(super) fn serror(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.unmask(4).isb().back(top);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let with_esr = has_esr()?;
    let answer = set(&vcpu, |e| {
        e.exception.serror_pending = 1;
        e.exception.serror_has_esr = with_esr.into();
        e.exception.serror_esr = if with_esr { 0x12_3456 } else { 0 };
    });
    granted(answer, "an SError")?;
    let events = get(&vcpu)?.exception;
    same(events.serror_pending, 1, "serror_pending")?;
    let seen = vcpu.exception()?;
    same((seen.vector, seen.esr >> 26), (7, 0x2f), "the SError")?;
    if with_esr {
        same(seen.esr & 0x1ff_ffff, 0x12_3456, "its syndrome")?;
    }
    same(
        get(&vcpu)?.exception.serror_pending,
        0,
        "serror_pending afterwards",
    )
}

/// It waits until the guest unmasks it.
pub(super) fn serror_masked(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1)
        .report(0)
        .mov(0, 2)
        .report(0)
        .unmask(4)
        .isb()
        .stop();
    let vcpu = machine.vcpu_with(0, &asm)?;
    granted(set(&vcpu, |e| e.exception.serror_pending = 1), "an SError")?;
    same(vcpu.report()?, 1, "a report")?;
    same(
        get(&vcpu)?.exception.serror_pending,
        1,
        "serror_pending, masked",
    )?;
    same(vcpu.report()?, 2, "another")?;
    same(vcpu.exception()?.vector, 7, "the vector")
}

pub(super) fn before_init(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    refused(
        set(&vcpu, |e| e.exception.serror_pending = 1),
        libc::ENOEXEC,
        "setting",
    )?;
    let mut events = kvm_vcpu_events::default();
    refused(
        ioctl(&vcpu.fd, abi::GET_VCPU_EVENTS, &mut events),
        libc::ENOEXEC,
        "getting",
    )
}

pub(super) fn bad_values(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, Asm::new().stop())?;
    refused(
        set(&vcpu, |e| e.reserved[11] = 1),
        libc::EINVAL,
        "a reserved word",
    )?;
    refused(
        set(&vcpu, |e| e.exception.pad[4] = 1),
        libc::EINVAL,
        "padding",
    )?;
    if has_esr()? {
        let wide = set(&vcpu, |e| {
            e.exception.serror_pending = 1;
            e.exception.serror_has_esr = 1;
            e.exception.serror_esr = 1 << 25;
        });
        refused(wide, libc::EINVAL, "a syndrome of 26 bits")?;
    }
    same(
        get(&vcpu)?.exception.serror_pending,
        0,
        "serror_pending after refusals",
    )
}
