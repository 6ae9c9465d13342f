//! The guest's time: offsets of its counters, interrupts of its timers, stolen time, the host's clock.

use kvm_bindings::{KVM_CAP_COUNTER_OFFSET, KVM_CAP_PTP_KVM, KVM_CAP_STEAL_TIME};
use umbra_vmm::kvm::{Region, ioctl_value};

use super::asm::{Asm, Sys};
use super::guest::{Answer, Machine, RAM, Vcpu, open};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const CNTPCT_EL0: Sys = (3, 3, 14, 0, 1);
const CNTVCT_EL0: Sys = (3, 3, 14, 0, 2);
/// KVM_REG_ARM_PTIMER_CNT and KVM_REG_ARM_TIMER_CNT, which Linux exchanged with the compare value's id.
const PTIMER_CNT: u64 = abi::sys((3, 3, 14, 0, 1));
const TIMER_CNT: u64 = abi::sys((3, 3, 14, 3, 2));
const PVTIME_CTRL: u32 = 2;
/// Ticks that pass in a check at most.
const SOON: u64 = 1 << 40;

fn capability(number: u32) -> Check<u32> {
    let answer = ioctl_value(&open()?, abi::CHECK_EXTENSION, number.into());
    granted(answer, "KVM_CHECK_EXTENSION")
}

/// A device-attribute call on a vCPU; its value lies at 0x100 of the room.
fn attr(vcpu: &Vcpu, request: u32, group: u32, attr: u64, room: &Region) -> Answer<u32> {
    let words = [u64::from(group) << 32, attr, room.address(0x100)];
    for (at, word) in words.into_iter().enumerate() {
        room.set_u64(8 * at, word);
    }
    room.ioctl(&vcpu.fd, request, 0)
}

/// Reports both counters.
fn counters() -> Asm {
    let mut asm = Asm::new();
    asm.isb().mrs(0, CNTPCT_EL0).report(0);
    asm.isb().mrs(0, CNTVCT_EL0).report(0);
    asm
}

fn near(seen: u64, wanted: u64, what: &str) -> Outcome {
    holds(seen.wrapping_sub(wanted) < SOON, || {
        format!("{what}: {seen:#x}, set to {wanted:#x}")
    })
}

pub(super) fn offsets(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &counters())?;
    let (physical, virt) = (1 << 60, 1 << 50);
    vcpu.set(TIMER_CNT, virt)?;
    if capability(KVM_CAP_COUNTER_OFFSET)? == 0 {
        vcpu.report()?;
        return near(vcpu.report()?, virt, "CNTVCT_EL0");
    }
    vcpu.set(PTIMER_CNT, physical)?;
    near(vcpu.report()?, physical, "CNTPCT_EL0")?;
    near(vcpu.report()?, virt, "CNTVCT_EL0")?;
    near(vcpu.get(PTIMER_CNT)?, physical, "KVM_REG_ARM_PTIMER_CNT")?;

    let machine = Machine::new()?;
    let vcpu = machine.vcpu_with(0, &counters())?;
    let room = granted(Region::new(0x2_0000), "mmap")?;
    let set = |offset: u64, reserved: u64| {
        room.set_u64(0, offset);
        room.set_u64(8, reserved);
        room.ioctl(&machine.vm, abi::SET_COUNTER_OFFSET, 0)
    };
    refused(set(0, 1), libc::EINVAL, "something where zero should be")?;
    granted(set(1 << 60, 0), "an offset")?;
    // It is for good.
    vcpu.set(TIMER_CNT, virt)?;
    let machines = vcpu.report()?.wrapping_add(1 << 60);
    holds(machines < 1 << 60, || {
        format!("CNTPCT_EL0 lags {machines:#x} behind")
    })?;
    near(vcpu.report()?.wrapping_add(1 << 60), machines, "CNTVCT_EL0")
}

pub(super) fn stolen(_: &Env) -> Outcome {
    if capability(KVM_CAP_STEAL_TIME)? == 0 {
        return Ok(());
    }
    const FEATURES: u64 = 0xc500_0020;
    const ST: u64 = 0xc500_0021;
    const AT: u64 = RAM + 0x40;
    let machine = Machine::new()?;
    let room = granted(Region::new(0x2_0000), "mmap")?;
    let mut asm = Asm::new();
    for (function, argument) in [
        (0x8000_0001, FEATURES),
        (FEATURES, ST),
        (ST, 0),
        (FEATURES, 7),
    ] {
        asm.mov(0, function).mov(1, argument).hvc().report(0);
    }
    let vcpu = machine.vcpu_with(0, &asm)?;
    let set = |at: u64| {
        room.set_u64(0x100, at);
        attr(&vcpu, abi::SET_DEVICE_ATTR, PVTIME_CTRL, 0, &room)
    };
    let get = || -> Answer<u64> {
        attr(&vcpu, abi::GET_DEVICE_ATTR, PVTIME_CTRL, 0, &room)?;
        Ok(room.u64(0x100))
    };
    same(get(), Ok(u64::MAX), "before it has a place")?;
    refused(set(AT | 8), libc::EINVAL, "not aligned")?;
    refused(set(0x100), libc::EINVAL, "where no memory is")?;
    refused(
        attr(&vcpu, abi::HAS_DEVICE_ATTR, PVTIME_CTRL, 1, &room),
        libc::ENXIO,
        "another attribute",
    )?;
    granted(set(AT), "a place")?;
    same(get(), Ok(AT), "the place")?;
    refused(set(AT), libc::EEXIST, "a second place")?;
    machine.ram.set_u64(0x40, 7);
    same(vcpu.report()?, 0, "that the call is there")?;
    same(vcpu.report()?, 0, "that stolen time is there")?;
    same(vcpu.report()?, AT, "its place")?;
    same(machine.ram.u64(0x40), 0, "revision and attributes")?;
    same(vcpu.report()?, u64::MAX, "another feature")
}

/// The clock's two words and the counter's two.
pub(super) fn clock(_: &Env) -> Outcome {
    if capability(KVM_CAP_PTP_KVM)? == 0 {
        return Ok(());
    }
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mov(0, 0x8600_0001).mov(1, 0).hvc();
    asm.mov_reg(10, 0)
        .mov_reg(11, 1)
        .mov_reg(12, 2)
        .mov_reg(13, 3);
    asm.isb().mrs(14, CNTVCT_EL0).report(14);
    asm.mov(0, 0x8600_0001).mov(1, 2).hvc().report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    let before = std::time::SystemTime::now();
    let counter = vcpu.report()?;
    let after = std::time::SystemTime::now();
    let nanos = |at: std::time::SystemTime| {
        at.duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
    };
    let told = vcpu.x(10)? << 32 | vcpu.x(11)?;
    holds(nanos(before) <= told && told <= nanos(after), || {
        format!(
            "the clock said {told} between {} and {}",
            nanos(before),
            nanos(after)
        )
    })?;
    let ticks = vcpu.x(12)? << 32 | vcpu.x(13)?;
    holds(ticks <= counter && counter - ticks < SOON, || {
        format!("the counter was {ticks:#x}, then {counter:#x}")
    })?;
    same(vcpu.report()? as i32, -1, "a third counter")
}
