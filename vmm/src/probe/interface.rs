//! The GIC as several vCPUs have it, and as a virtual EL2 does: where redistributors end, who may end an interrupt, the
//! maintenance interrupt, and what a VMM saves of EL2's interface.

use std::thread;

use kvm_bindings as kvm;

use super::asm::{Access, Asm, Cond, ICC_EOIR1_EL1, ICC_IAR1_EL1, Sys};
use super::below::has_el2;
use super::gic::{
    ADDR, ADDR_DIST, ADDR_REDIST, ADDR_REGION, CPU_SYSREGS, DIST, DIST_REGS, Gic, REDIST,
    REDIST_REGS,
};
use super::guest::{Machine, RAM, Runner};
use super::irq::{Listening, each_wakes, enable_ppi, listening_to};
use super::{Check, Env, Outcome, abi, granted, refused, same};

const HAS_EL2: u32 = 1 << kvm::KVM_ARM_VCPU_HAS_EL2;
const MAINT_IRQ: u32 = 9;
const ICC_CTLR_EL1: Sys = (3, 0, 12, 12, 4);
const ICC_DIR_EL1: Sys = (3, 0, 12, 11, 1);
const ICH_HCR_EL2: Sys = (3, 4, 12, 11, 0);
const ICH_VTR_EL2: Sys = (3, 4, 12, 11, 1);
const SPI: u64 = 40;

/// A register of the CPU interface of vCPU 0 as an attribute.
fn register(sys: Sys) -> u64 {
    abi::sys(sys) & 0xffff
}

/// A region of redistributors as an attribute's value.
const fn region(count: u64, base: u64, index: u64) -> u64 {
    count << 52 | base | index
}

/// GICR_TYPER.Last, also where regions of any index touch.
pub(super) fn last_redistributors(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpus = (0..6).map(|id| machine.vcpu_with(id, &Asm::new()));
    let _vcpus = vcpus.collect::<Check<Vec<_>>>()?;
    let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    let lasts = || -> Check<u64> {
        (0..6).try_fold(0, |lasts, vcpu| {
            let typer = granted(gic.get(REDIST_REGS, vcpu << 32 | 8), "GICR_TYPER")?;
            Ok(lasts | (typer >> 4 & 1) << vcpu)
        })
    };
    same(lasts()?, 0, "without a region")?;
    for (value, wanted) in [
        (region(2, 0x10_0000, 0), 0b00_0010),
        (region(2, 0x24_0000, 1), 0b00_1010),
        // Where it ends, the second begins.
        (region(2, 0x20_0000, 2), 0b00_1010),
    ] {
        granted(gic.set(ADDR, ADDR_REGION, value), "a region")?;
        same(lasts()?, wanted, "the last of each run")?;
    }
    Ok(())
}

/// One piece for all redistributors, placed for fewer vCPUs than there are in the end.
pub(super) fn redistributors_grow(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut reports = Asm::new();
    reports.report(31).stop();
    let first = machine.vcpu_with(0, &reports)?;
    let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    let end = 1 << 40;
    granted(
        gic.set(ADDR, ADDR_REDIST, end - 3 * 0x2_0000),
        "room for three",
    )?;
    granted(gic.set(ADDR, ADDR_DIST, 0), "the distributor's address")?;
    let more = (1..4).map(|id| machine.vcpu_with(id, &reports));
    let _more = more.collect::<Check<Vec<_>>>()?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    refused(first.run(), libc::EINVAL, "the fourth beyond the VM")
}

/// What of the distributor a VMM asks before the GIC is made.
pub(super) fn early_registers(_: &Env) -> Outcome {
    const TYPER: u64 = 4;
    const IIDR: u64 = 8;
    const TYPER2: u64 = 12;
    let machine = Machine::new()?;
    let _vcpu = machine.vcpu_with(0, &Asm::new())?;
    let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    let early = [IIDR, TYPER2].map(|at| gic.get(DIST_REGS, at));
    for (at, value) in [IIDR, TYPER2].into_iter().zip(early) {
        let value = granted(value, "an identification")?;
        granted(gic.set(DIST_REGS, at, value), "the same")?;
        refused(
            gic.set(DIST_REGS, at, value ^ 1 << 31),
            libc::EINVAL,
            "another",
        )?;
    }
    refused(gic.get(DIST_REGS, TYPER), libc::EBUSY, "anything else")?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    refused(
        gic.set(DIST_REGS, TYPER2, 1 << 8),
        libc::EBUSY,
        "a feature of it then",
    )?;
    same(
        [IIDR, TYPER2].map(|at| gic.get(DIST_REGS, at)),
        early,
        "once there is one",
    )
}

/// Waits, without an exit, until the word at `at` is `value`.
fn await_word(asm: &mut Asm, at: u64, value: u64) {
    asm.mov(1, at).mov(2, value);
    let top = asm.here();
    let there = asm.ldr(0, 1).cmp(0, 2).if_cond(Cond::Equal);
    asm.back(top).land(there);
}

fn set_word(asm: &mut Asm, at: u64, value: u64) {
    asm.mov(0, value).mov(1, at).dsb().str(0, 1).dsb();
}

/// ICC_DIR_EL1 of one vCPU ends what another has active, though nobody saw that it has EOImode = 1.
pub(super) fn deactivated_elsewhere(_: &Env) -> Outcome {
    const FLAG: u64 = RAM + 0x80;
    let mode = |asm: &mut Asm| {
        asm.mov(0, 2).msr(ICC_CTLR_EL1, 0).isb();
    };
    let takes = listening_to(Listening::Not, |asm| {
        mode(asm);
        await_word(asm, FLAG, 1);
        let pending = 1 << (SPI - 32);
        asm.mov(0, pending)
            .mov(1, DIST + 0x204)
            .access(Access::StrW, 0, 1); // GICD_ISPENDR1
        let top = asm.here();
        let taken = asm
            .mrs(0, ICC_IAR1_EL1)
            .dsb()
            .mov(2, SPI)
            .cmp(0, 2)
            .if_cond(Cond::Equal);
        asm.back(top).land(taken).msr(ICC_EOIR1_EL1, 0).isb();
        set_word(asm, FLAG, 2);
        await_word(asm, FLAG, 3);
        // GICD_ISACTIVER1
        asm.mov(1, DIST + 0x304)
            .access(Access::LdrW, 0, 1)
            .report(0);
    });
    let mut ends = Asm::new();
    mode(&mut ends);
    set_word(&mut ends, FLAG, 1);
    await_word(&mut ends, FLAG, 2);
    ends.mov(0, SPI).msr(ICC_DIR_EL1, 0).isb();
    set_word(&mut ends, FLAG, 3);
    ends.report(31).stop();
    let (_machine, _gic, mut vcpus) = super::gic::machine(&[takes, ends])?;
    let (ends, takes) = (vcpus.pop(), vcpus.pop());
    let (takes, ends) = (takes.ok_or("no vCPU")?, ends.ok_or("no second vCPU")?);
    thread::scope(|scope| {
        let takes = Runner::spawn(scope, move || takes.report());
        let ends = Runner::spawn(scope, move || ends.report());
        ends.join()??;
        same(takes.join()??, 0, "what is active in the end")
    })
}

/// The maintenance interrupt of a guest hypervisor is the one that the VMM says.
pub(super) fn maintenance(_: &Env) -> Outcome {
    if !has_el2()? {
        return Ok(());
    }
    for ppi in [25, 21] {
        let machine = Machine::new()?;
        let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
        let program = listening_to(Listening::Asleep, |asm| {
            enable_ppi(asm, ppi);
            // En, UIE: none of the list registers holds anything.
            asm.mov(0, 3).msr(ICH_HCR_EL2, 0).isb();
        });
        let vcpu = machine.bare_vcpu(0)?;
        granted(vcpu.init(HAS_EL2), "a vCPU with EL2")?;
        vcpu.set(abi::PSTATE, 0x3c9)?;
        vcpu.set(abi::PC, machine.place(&program))?;
        granted(gic.place(DIST, REDIST), "the frames")?;
        if ppi != 25 {
            granted(gic.set(MAINT_IRQ, 0, ppi.into()), "an interrupt")?;
        }
        granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
        same(vcpu.report()?, 0x1000, "the guest's first word")?;
        each_wakes(vcpu, &[ppi.into()], |_| Ok(()))?;
    }
    Ok(())
}

/// What a VMM saves and restores of the interface with which a guest hypervisor drives its guest's.
pub(super) fn of_el2(_: &Env) -> Outcome {
    const ICH_LR3_EL2: Sys = (3, 4, 12, 12, 3);
    const ICH_VMCR_EL2: Sys = (3, 4, 12, 11, 7);
    const ICH_AP1R0_EL2: Sys = (3, 4, 12, 9, 0);
    const ICH_AP1R3_EL2: Sys = (3, 4, 12, 9, 3);
    const VBAR_EL2: Sys = (3, 4, 12, 0, 0);
    if !has_el2()? {
        return Ok(());
    }
    for features in [HAS_EL2, 0] {
        let machine = Machine::new()?;
        let vcpu = machine.bare_vcpu(0)?;
        granted(vcpu.init(features), "KVM_ARM_VCPU_INIT")?;
        let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
        granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
        let has = |sys| gic.has(CPU_SYSREGS, register(sys));
        refused(has(VBAR_EL2), libc::ENXIO, "a register of the vCPU's")?;
        if features == 0 {
            refused(has(ICH_LR3_EL2), libc::ENXIO, "EL2's where there is none")?;
            continue;
        }
        let state = [
            (ICH_HCR_EL2, 1),
            (ICH_LR3_EL2, 0x5000_0000_0000_0021),
            (ICH_VMCR_EL2, 0xff00_0002),
            (ICH_AP1R0_EL2, 0x10),
        ];
        for (sys, value) in state {
            granted(has(sys), "KVM_HAS_DEVICE_ATTR")?;
            granted(gic.set(CPU_SYSREGS, register(sys), value), "its value")?;
        }
        for (sys, value) in state {
            same(gic.get(CPU_SYSREGS, register(sys)), Ok(value), "its value")?;
        }
        let vtr = granted(gic.get(CPU_SYSREGS, register(ICH_VTR_EL2)), "ICH_VTR_EL2")?;
        let set_vtr = |value| gic.set(CPU_SYSREGS, register(ICH_VTR_EL2), value);
        granted(set_vtr(vtr), "the same")?;
        refused(set_vtr(vtr ^ 1), libc::EINVAL, "another")?;
        if vtr >> 29 < 6 {
            granted(has(ICH_AP1R3_EL2), "a register for priorities")?;
            refused(
                gic.get(CPU_SYSREGS, register(ICH_AP1R3_EL2)),
                libc::EINVAL,
                "one for priorities that there are not",
            )?;
        }
    }
    Ok(())
}
