//! The guest's timers: whose interrupts the VMM chose, and whose counters it set.

use std::os::fd::OwnedFd;

use umbra_vmm::kvm::Region;

use super::asm::{Asm, Sys};
use super::gic::{Gic, machine};
use super::guest::{Answer, Machine, Vcpu, memory_of_kernel};
use super::irq::{Listening, each_wakes};
use super::{Check, Env, Outcome, abi, granted, refused, same};

const TIMER_CTRL: u32 = 1;
/// The attributes, and the interrupts before anybody said more: EL1's virtual and physical timer, EL2's.
const USUAL: [(u64, u32); 4] = [(0, 27), (1, 30), (2, 28), (3, 26)];
const VIRT: u64 = 0;
const PHYS: u64 = 1;

/// CTL and TVAL of the timers.
const CNTV: [Sys; 2] = [(3, 3, 14, 3, 1), (3, 3, 14, 3, 0)];
const CNTP: [Sys; 2] = [(3, 3, 14, 2, 1), (3, 3, 14, 2, 0)];
const PTIMER_CNT: u64 = abi::sys((3, 3, 14, 0, 1));
const TIMER_CNT: u64 = abi::sys((3, 3, 14, 3, 2));

/// A device-attribute call on a vCPU about its timers' interrupts.
fn call(vcpu: &OwnedFd, request: u32, attr: u64, value: u32) -> Answer<u32> {
    let room = Region::new(0x2_0000)?;
    let words = [u64::from(TIMER_CTRL) << 32, attr, room.address(0x100)];
    for (at, word) in words.into_iter().enumerate() {
        room.set_u64(8 * at, word);
    }
    room.set_u64(0x100, value.into());
    room.ioctl(vcpu, request, 0)?;
    Ok(room.u64(0x100) as u32)
}

fn set(vcpu: &Vcpu, attr: u64, irq: u32) -> Answer<u32> {
    call(&vcpu.fd, abi::SET_DEVICE_ATTR, attr, irq)
}

fn get(vcpu: &Vcpu, attr: u64) -> Answer<u32> {
    call(&vcpu.fd, abi::GET_DEVICE_ATTR, attr, 0)
}

/// Starts a timer that fires soon, and listens for `ppi`.
fn alarm([ctl, tval]: [Sys; 2], ppi: u32, listening: Listening) -> Asm {
    super::irq::listening_to(listening, |asm| {
        super::irq::enable_ppi(asm, ppi);
        asm.mov(0, 50_000).msr(tval, 0).mov(0, 1).msr(ctl, 0).isb();
    })
}

/// Runs one vCPU with `program`, after `prepare`, until it reports that `ppi` came.
fn fires(
    program: Asm,
    ppi: u32,
    prepare: impl FnOnce(&Machine, &Gic, &Vcpu) -> Outcome,
) -> Check<()> {
    let (machine, gic, mut vcpus) = machine(&[program])?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    prepare(&machine, &gic, &vcpu)?;
    same(vcpu.report()?, 0x1000, "the guest's first word")?;
    each_wakes(vcpu, &[ppi.into()], |_| Ok(()))
}

/// Any private interrupts, as long as each timer has its own.
pub(super) fn interrupts(_: &Env) -> Outcome {
    let bare = Machine::new()?;
    let vcpu = bare.vcpu_with(0, &Asm::new())?;
    refused(set(&vcpu, VIRT, 20), libc::EINVAL, "one without a GIC")?;

    let mut reports = Asm::new();
    reports.report(31).stop();
    let (_machine, _gic, vcpus) = machine(&[reports.clone(), reports])?;
    let [first, second] = &vcpus[..] else {
        return Err("not two vCPUs".into());
    };
    for (attr, irq) in USUAL {
        same(get(first, attr), Ok(irq), "what is usual")?;
        granted(
            call(&first.fd, abi::HAS_DEVICE_ATTR, attr, 0),
            "KVM_HAS_DEVICE_ATTR",
        )?;
    }
    refused(get(first, 4), libc::ENXIO, "a fifth timer")?;
    refused(set(first, 4, 20), libc::ENXIO, "its interrupt")?;
    for irq in [0, 15, 32, 1 << 16] {
        refused(
            set(first, VIRT, irq),
            libc::EINVAL,
            "what is no private interrupt",
        )?;
    }
    granted(set(first, VIRT, 30), "the physical timer's")?;
    same(get(second, VIRT), Ok(30), "the other vCPU's")?;
    refused(first.run(), libc::EINVAL, "two timers with one interrupt")?;
    granted(set(second, PHYS, 27), "the virtual timer's")?;
    first.report()?;
    refused(set(second, VIRT, 20), libc::EBUSY, "one after a vCPU ran")?;
    second.report().map(drop)
}

/// They are those that the guest takes.
pub(super) fn chosen_interrupts(_: &Env) -> Outcome {
    for (attr, timer, ppi) in [(VIRT, CNTV, 17), (PHYS, CNTP, 31)] {
        let program = alarm(timer, ppi, Listening::Asleep);
        fires(program, ppi, |_, _, vcpu| {
            granted(set(vcpu, attr, ppi), "an interrupt").map(drop)
        })?;
    }
    Ok(())
}

/// Counters that are anywhere: far ahead of the machine's, and behind. The guest sleeps, or looks again and again.
pub(super) fn counters_set(_: &Env) -> Outcome {
    for (counter, timer, ppi) in [(TIMER_CNT, CNTV, 27), (PTIMER_CNT, CNTP, 30)] {
        for count in [0, 1 << 55, 1 << 62] {
            for listening in [Listening::Asleep, Listening::Awake] {
                fires(alarm(timer, ppi, listening), ppi, |_, _, vcpu| {
                    vcpu.set(counter, count)
                })
                .map_err(|e| format!("from {count:#x}, {listening:?}, {ppi}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// What umbra watches for a VM, and will for years, does not keep the VM.
pub(super) fn far_alarm(env: &Env) -> Outcome {
    const CNTV_CVAL: Sys = (3, 3, 14, 3, 2);
    if !env.umbra {
        return Ok(());
    }
    let mut asm = Asm::new();
    asm.mov(0, u64::MAX >> 1).msr(CNTV_CVAL, 0);
    asm.mov(0, 1)
        .msr(CNTV[0], 0)
        .isb()
        .report(0)
        .report(0)
        .stop();
    let once = || -> Check<i64> {
        let (machine, gic, vcpus) = machine(&[asm.clone()])?;
        for vcpu in &vcpus {
            vcpu.set(TIMER_CNT, 1 << 55)?;
            vcpu.report()?;
            vcpu.report()?;
        }
        drop((vcpus, gic, machine));
        Ok(memory_of_kernel()?.frames)
    };
    // The first may leave what later ones use again.
    once()?;
    let free = once()?;
    for _ in 0..8 {
        same(once()?, free, "KiB of frames that are free afterwards")?;
    }
    Ok(())
}

/// KVM_ARM_SET_COUNTER_OFFSET with extremes: both timers fire all the same.
pub(super) fn offset_set(_: &Env) -> Outcome {
    for offset in [1, 1 << 63, u64::MAX, 1 << 40] {
        for (timer, ppi) in [(CNTV, 27), (CNTP, 30)] {
            let program = alarm(timer, ppi, Listening::Asleep);
            fires(program, ppi, |machine, _, _| {
                let room = granted(Region::new(0x2_0000), "mmap")?;
                room.set_u64(0, offset);
                granted(
                    room.ioctl(&machine.vm, abi::SET_COUNTER_OFFSET, 0),
                    "KVM_ARM_SET_COUNTER_OFFSET",
                )
                .map(drop)
            })
            .map_err(|e| format!("offset {offset:#x}, {ppi}: {e}"))?;
        }
    }
    Ok(())
}
