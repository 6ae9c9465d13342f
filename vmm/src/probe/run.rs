//! KVM_RUN itself: what ends it, and power.

use std::thread;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use umbra_vmm::kvm::ioctl_value;

use super::asm::{Asm, TPIDR_EL1};
use super::guest::{Exit, Machine, Runner, kicked};
use super::{Env, Outcome, abi, granted, holds, refused, same};

const PSCI_VERSION: u64 = 0x8400_0000;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

fn forever() -> Asm {
    let mut asm = Asm::new();
    asm.stop();
    asm
}

pub(super) fn argument(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &forever())?;
    refused(
        ioctl_value(&vcpu.fd, abi::RUN, 1),
        libc::EINVAL,
        "KVM_RUN with an argument",
    )
}

pub(super) fn immediate_exit(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 1).report(0);
    let entry = machine.place(&asm);
    let vcpu = machine.vcpu(0, entry)?;
    vcpu.set_immediate_exit(1);
    for _ in 0..3 {
        refused(vcpu.run(), libc::EINTR, "KVM_RUN")?;
        same(vcpu.get(abi::PC)?, entry, "PC")?;
    }
    vcpu.set_immediate_exit(0);
    same(vcpu.report()?, 1, "without it")
}

pub(super) fn signal(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &forever())?;
    let (answer, intr) = kicked(move || (vcpu.run(), vcpu.reason_is_intr()))?;
    refused(answer, libc::EINTR, "KVM_RUN")?;
    holds(intr, || "the exit reason is not KVM_EXIT_INTR".into())
}

fn system_call(function: u64, kind: u32) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, function).hvc().report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let other = machine.vcpu_with(1, &forever())?;
    same(vcpu.exits()?, Exit::SystemEvent { kind }, "the exit")?;
    // The whole VM is off now.
    for vcpu in [&vcpu, &other] {
        same(
            vcpu.mp_state()?,
            KVM_MP_STATE_STOPPED,
            "the MP state of a vCPU",
        )?;
    }
    Ok(())
}

pub(super) fn system_off(_: &Env) -> Outcome {
    system_call(SYSTEM_OFF, KVM_SYSTEM_EVENT_SHUTDOWN)
}

pub(super) fn system_reset(_: &Env) -> Outcome {
    system_call(SYSTEM_RESET, KVM_SYSTEM_EVENT_RESET)
}

pub(super) fn psci_version(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    let top = asm.here();
    asm.mov(0, PSCI_VERSION).hvc().report(0);
    asm.mov(0, 0x8400_0777).hvc().report(0).back(top);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let shown = vcpu.get(abi::firmware(0))?;
    holds((0x1_0000..=0x1_0003).contains(&shown), || {
        format!("PSCI version {shown:#x}")
    })?;
    same(vcpu.report()?, shown, "PSCI_VERSION")?;
    same(
        vcpu.report()? as i32,
        -1,
        "an unknown function: not supported",
    )?;
    vcpu.set(abi::firmware(0), 2)?;
    same(vcpu.report()?, 2, "PSCI_VERSION, set to 0.2")?;
    refused(
        vcpu.try_set(abi::firmware(0), 0x7_0000),
        libc::EINVAL,
        "version 7",
    )
}

/// The second vCPU's thread waits in KVM_RUN until the first switches it on.
pub(super) fn cpu_on(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut second = Asm::new();
    second.report(0).mov(0, CPU_OFF).hvc().report(0);
    let target = machine.place(&second);
    let mut first = Asm::new();
    first
        .mov(0, CPU_ON)
        .mov(1, 1)
        .mov(2, target)
        .mov(3, 0xc0de)
        .hvc()
        .report(0);
    first
        .mov(0, CPU_ON)
        .mov(1, 1)
        .mov(2, target)
        .mov(3, 1)
        .hvc()
        .report(0);
    first
        .mov(0, CPU_ON)
        .mov(1, 7)
        .mov(2, target)
        .mov(3, 1)
        .hvc()
        .report(0);
    let wait = first.here();
    first
        .mov(0, AFFINITY_INFO)
        .mov(1, 1)
        .mov(2, 0)
        .hvc()
        .back_if_zero(0, wait)
        .report(0);
    let one = machine.vcpu_with(0, &first)?;
    let two = machine.bare_vcpu(1)?;
    granted(two.init(1 << KVM_ARM_VCPU_POWER_OFF), "KVM_ARM_VCPU_INIT")?;
    two.start(0xdead_0000)?;
    two.set(abi::sys(TPIDR_EL1), 5)?;
    thread::scope(|scope| {
        let (go, until) = std::sync::mpsc::channel();
        let runner = Runner::spawn(scope, move || -> Outcome {
            same(two.report()?, 0xc0de, "x0 of the second, the context")?;
            until.recv().map_err(|_| "the first failed")?;
            // CPU_OFF: it sleeps until a signal.
            refused(two.run(), libc::EINTR, "KVM_RUN of a vCPU that is off")?;
            same(two.mp_state()?, KVM_MP_STATE_STOPPED, "its MP state")
        });
        let ask = || -> Outcome {
            same(one.report()? as i32, 0, "CPU_ON")?;
            same(one.report()? as i32, -4, "CPU_ON again: already on")?;
            same(
                one.report()? as i32,
                -2,
                "CPU_ON of a CPU that is not there",
            )?;
            go.send(()).map_err(|_| "the second failed")?;
            same(one.report()?, 1, "AFFINITY_INFO after CPU_OFF")
        };
        let asked = ask();
        drop(go);
        let ran = runner.finish()?;
        asked.and(ran)
    })
}

pub(super) fn mp_state(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 9).report(0).mov(0, 10).report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    same(vcpu.mp_state()?, KVM_MP_STATE_RUNNABLE, "at first")?;
    same(vcpu.report()?, 9, "a report")?;
    granted(vcpu.set_mp_state(KVM_MP_STATE_STOPPED), "stopping it")?;
    same(vcpu.mp_state()?, KVM_MP_STATE_STOPPED, "then")?;
    for state in [1, 2, 4, 99, u32::MAX] {
        refused(
            vcpu.set_mp_state(state),
            libc::EINVAL,
            &format!("state {state}"),
        )?;
    }
    thread::scope(|scope| {
        let runner = Runner::spawn(scope, move || (vcpu.run(), vcpu));
        thread::sleep(Duration::from_millis(20));
        let slept = !runner.is_finished();
        let (answer, vcpu) = runner.finish()?;
        holds(slept, || "a stopped vCPU ran".into())?;
        refused(answer, libc::EINTR, "KVM_RUN of a stopped vCPU")?;
        granted(vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE), "starting it")?;
        same(vcpu.report()?, 10, "and it goes on")
    })
}

/// Where a vCPU that was switched on will begin shows before it has run.
pub(super) fn cpu_on_shows(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, CPU_ON)
        .mov(1, 1)
        .mov(2, 0xfeed_f00d)
        .mov(3, 0xdead)
        .hvc()
        .report(0);
    let one = machine.vcpu_with(0, &asm)?;
    let two = machine.bare_vcpu(1)?;
    granted(two.init(1 << KVM_ARM_VCPU_POWER_OFF), "a stopped vCPU")?;
    same(one.report()?, 0, "CPU_ON")?;
    same(two.get(abi::PC)?, 0xfeed_f00d, "its PC")?;
    same(two.x(0)?, 0xdead, "its x0")
}
