//! Performance counters (KVM_ARM_VCPU_PMU_V3): set-up, registers, counting, the overflow interrupt.

use kvm_bindings::{KVM_ARM_VCPU_HAS_EL2, KVM_ARM_VCPU_PMU_V3, KVM_CAP_ARM_PMU_V3};
use umbra_vmm::kvm::{Region, ioctl_value};

use super::asm::{Asm, ICC_PMR_EL1, ICC_SRE_EL1, Sys};
use super::below::{self, ELR_EL2, HCR_EL2, SPSR_EL2, has_el2};
use super::gic::{DIST, Gic, REDIST};
use super::guest::{Answer, Machine, Vcpu, open};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const PMCR_EL0: Sys = (3, 3, 9, 12, 0);
const PMCNTENSET_EL0: Sys = (3, 3, 9, 12, 1);
const PMOVSCLR_EL0: Sys = (3, 3, 9, 12, 3);
const PMCEID0_EL0: Sys = (3, 3, 9, 12, 6);
const PMCCNTR_EL0: Sys = (3, 3, 9, 13, 0);
const PMCCFILTR_EL0: Sys = (3, 3, 14, 15, 7);
const MDCR_EL2: Sys = (3, 4, 1, 1, 1);
const PMINTENSET_EL1: Sys = (3, 0, 9, 14, 1);
const ICC_HPPIR1_EL1: Sys = (3, 0, 12, 12, 2);
const ICC_IGRPEN1_EL1: Sys = (3, 0, 12, 12, 7);
const CTRL: u32 = 0;
const IRQ: u64 = 0;
const INIT: u64 = 1;
const FILTER: u64 = 2;
const NR_COUNTERS: u64 = 4;
const CYCLES: u64 = 1 << 31;
/// The usual interrupt.
const PPI: u64 = 23;

struct Counted {
    machine: Machine,
    gic: Gic,
    vcpu: Vcpu,
    room: Region,
}

impl Counted {
    /// A vCPU with counters and this program; `None` where the host has none.
    fn new(program: &Asm) -> Check<Option<Self>> {
        Self::with(program, 0)
    }

    /// The same with `more` features.
    fn with(program: &Asm, more: u32) -> Check<Option<Self>> {
        let cap = ioctl_value(&open()?, abi::CHECK_EXTENSION, KVM_CAP_ARM_PMU_V3.into());
        if granted(cap, "KVM_CAP_ARM_PMU_V3")? == 0 {
            return Ok(None);
        }
        let machine = Machine::new()?;
        let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
        let vcpu = machine.bare_vcpu(0)?;
        granted(
            vcpu.init(1 << KVM_ARM_VCPU_PMU_V3 | more),
            "KVM_ARM_VCPU_INIT",
        )?;
        vcpu.start(machine.place(program))?;
        granted(gic.place(DIST, REDIST), "the GIC's frames")?;
        Ok(Some(Self {
            machine,
            gic,
            vcpu,
            room: granted(Region::new(0x2_0000), "mmap")?,
        }))
    }

    fn attr(&self, attr: u64, value: u64) -> Answer<u32> {
        self.room.set_u64(0x100, value);
        let words = [u64::from(CTRL) << 32, attr, self.room.address(0x100)];
        for (at, word) in words.into_iter().enumerate() {
            self.room.set_u64(8 * at, word);
        }
        self.room.ioctl(&self.vcpu.fd, abi::SET_DEVICE_ATTR, 0)
    }

    fn complete(&self) -> Outcome {
        granted(self.gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
        granted(self.attr(IRQ, PPI), "the interrupt")?;
        granted(self.attr(INIT, 0), "KVM_ARM_VCPU_PMU_V3_INIT").map(drop)
    }
}

pub(super) fn set_up(_: &Env) -> Outcome {
    let mut asm = Asm::new();
    asm.mrs(0, PMCR_EL0).report(0).mrs(0, PMCEID0_EL0).report(0);
    let Some(counted) = Counted::new(&asm)? else {
        return Ok(());
    };
    let vcpu = &counted.vcpu;
    let version = vcpu.get(abi::sys((3, 0, 0, 5, 0)))? >> 8 & 0xf;
    holds((1..15).contains(&version), || {
        format!("ID_AA64DFR0_EL1.PMUVer is {version}")
    })?;
    refused(counted.attr(INIT, 0), libc::ENODEV, "before the GIC is")?;
    granted(counted.gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    refused(vcpu.run(), libc::EINVAL, "KVM_RUN before it is initialised")?;
    refused(counted.attr(INIT, 0), libc::ENXIO, "without an interrupt")?;
    refused(counted.attr(IRQ, 15), libc::EINVAL, "an SGI")?;
    granted(counted.attr(IRQ, PPI), "a PPI")?;
    refused(counted.attr(IRQ, PPI), libc::EBUSY, "a second time")?;
    refused(counted.attr(9, 0), libc::ENXIO, "another attribute")?;
    let counters = vcpu.get(abi::sys(PMCR_EL0))? >> 11 & 0x1f;
    refused(
        counted.attr(NR_COUNTERS, counters + 1),
        libc::EINVAL,
        "more counters",
    )?;
    granted(counted.attr(NR_COUNTERS, 1), "one counter")?;
    // Cycles, event 0x11, are denied.
    granted(counted.attr(FILTER, 1 << 32 | 1 << 16 | 0x11), "a filter")?;
    refused(
        counted.attr(FILTER, 2 << 32 | 1 << 16),
        libc::EINVAL,
        "action 2",
    )?;
    granted(counted.attr(INIT, 0), "KVM_ARM_VCPU_PMU_V3_INIT")?;
    refused(counted.attr(INIT, 0), libc::EBUSY, "again")?;
    same(vcpu.report()? >> 11 & 0x1f, 1, "PMCR_EL0.N in the guest")?;
    same(
        vcpu.report()? >> 0x11 & 1,
        0,
        "PMCEID0_EL0 of a denied event",
    )
}

/// Cycles go by for the guest, and stand while it does not ask.
pub(super) fn cycles(_: &Env) -> Outcome {
    let mut asm = Asm::new();
    asm.mov(0, CYCLES).msr(PMCNTENSET_EL0, 0);
    asm.mov(0, 5).msr(PMCR_EL0, 0).isb();
    asm.mov(1, 1000);
    let top = asm.here();
    asm.sub(1, 1, 1).back_unless_zero(1, top);
    asm.mrs(0, PMCCNTR_EL0).report(0);
    asm.mov(0, 0).msr(PMCR_EL0, 0).isb();
    asm.mrs(0, PMCCNTR_EL0)
        .report(0)
        .mrs(0, PMCCNTR_EL0)
        .report(0);
    let Some(counted) = Counted::new(&asm)? else {
        return Ok(());
    };
    counted.complete()?;
    let vcpu = &counted.vcpu;
    let running = vcpu.report()?;
    holds(running > 100, || format!("{running} cycles"))?;
    let stopped = vcpu.report()?;
    holds(stopped >= running, || format!("{stopped} after {running}"))?;
    same(vcpu.report()?, stopped, "a counter that is stopped")?;
    same(
        vcpu.get(abi::sys(PMCCNTR_EL0))?,
        stopped,
        "by KVM_GET_ONE_REG",
    )
}

/// The overflow of a counter that counts interrupts; clearing it lowers the line.
pub(super) fn overflow(_: &Env) -> Outcome {
    let mut asm = Asm::new();
    asm.mov(0, 7).msr(ICC_SRE_EL1, 0).isb();
    asm.mov(0, 0xf0).msr(ICC_PMR_EL1, 0);
    asm.mov(0, 1).msr(ICC_IGRPEN1_EL1, 0).isb();
    for (at, value) in [
        (DIST, 0x12),
        (REDIST + 0x14, 0),
        (REDIST + 0x1_0080, 0xffff_ffff),
        (REDIST + 0x1_0100, 1 << PPI),
    ] {
        asm.mov(0, value)
            .mov(1, at)
            .access(super::asm::Access::StrW, 0, 1);
    }
    asm.mov(0, CYCLES)
        .msr(PMCNTENSET_EL0, 0)
        .msr(PMINTENSET_EL1, 0);
    asm.mov(0, (-20_000i64) as u64).msr(PMCCNTR_EL0, 0);
    asm.mov(0, 1 | 1 << 6).msr(PMCR_EL0, 0).isb();
    // Interrupts stay masked: the pending one is looked for.
    let top = asm.here();
    let there = asm
        .mrs(0, ICC_HPPIR1_EL1)
        .mov(2, 1023)
        .cmp(0, 2)
        .if_cond(super::asm::Cond::NotEqual);
    asm.back(top).land(there).report(0);
    asm.mrs(0, PMOVSCLR_EL0).report(0);
    asm.mov(0, CYCLES).msr(PMOVSCLR_EL0, 0).isb().dsb();
    asm.mrs(0, ICC_HPPIR1_EL1).report(0);
    let Some(counted) = Counted::new(&asm)? else {
        return Ok(());
    };
    counted.complete()?;
    let vcpu = &counted.vcpu;
    same(vcpu.report()?, PPI, "the pending interrupt")?;
    same(vcpu.report()?, CYCLES, "PMOVSCLR_EL0")?;
    same(vcpu.report()?, 1023, "after it was cleared")
}

/// A guest hypervisor's MDCR_EL2: EL1 finds fewer counters, virtual EL2 counts where NSH says and rests where HPMD
/// says, TPM tells of EL1's accesses.
pub(super) fn divided(_: &Env) -> Outcome {
    const EL2H: u64 = 0x3c9;
    const EL1H: u64 = 0x3c5;
    const NSH: u64 = 1 << 27;
    const HPMD: u64 = 1 << 17;
    const TPM: u64 = 1 << 6;
    const TRAPPED: u64 = 0x18;
    if !has_el2()? {
        return Ok(());
    }
    /// Cycles from zero over a loop, with this filter.
    fn counted(asm: &mut Asm, filter: u64) {
        asm.mov(0, filter).msr(PMCCFILTR_EL0, 0);
        asm.mov(0, 0).msr(PMCCNTR_EL0, 0).isb().mov(1, 1000);
        let top = asm.here();
        asm.sub(1, 1, 1).back_unless_zero(1, top);
        asm.mrs(0, PMCCNTR_EL0).report(0);
    }
    let mut asm = Asm::new();
    asm.mrs(0, MDCR_EL2).report(0).mrs(0, PMCR_EL0).report(0);
    asm.mov(0, CYCLES).msr(PMCNTENSET_EL0, 0);
    // E and DP, which lets the cycle counter rest where HPMD says.
    asm.mov(0, 1 | 1 << 5 | 1 << 6).msr(PMCR_EL0, 0).isb();
    counted(&mut asm, 0);
    counted(&mut asm, NSH);
    asm.mov(0, HPMD | 2).msr(MDCR_EL2, 0).isb();
    counted(&mut asm, NSH);
    asm.mov(0, 0).msr(PMCCFILTR_EL0, 0).eret();
    let Some(machine) = Counted::with(&asm, 1 << KVM_ARM_VCPU_HAS_EL2)? else {
        return Ok(());
    };
    machine.complete()?;
    let vcpu = &machine.vcpu;
    below::start(vcpu, vcpu.get(abi::PC)?)?;
    vcpu.set(abi::sys(HCR_EL2), 1 << 31 | 1 << 34)?;
    let mut el1 = Asm::new();
    el1.mrs(0, PMCR_EL0).report(0);
    counted(&mut el1, 1 << 31);
    counted(&mut el1, 0);
    el1.stop();
    vcpu.set(abi::sys(ELR_EL2), machine.machine.place(&el1))?;
    vcpu.set(abi::sys(SPSR_EL2), EL1H)?;
    let all = vcpu.get(abi::sys(PMCR_EL0))? >> 11 & 0x1f;
    same(vcpu.report()? & 0x1f, all, "MDCR_EL2.HPMN at first")?;
    same(vcpu.report()? >> 11 & 0x1f, all, "PMCR_EL0.N at EL2")?;
    same(vcpu.report()?, 0, "cycles of EL2 without NSH")?;
    let with = vcpu.report()?;
    holds(with > 100, || format!("{with} cycles of EL2 with NSH"))?;
    same(vcpu.report()?, 0, "cycles of EL2 with NSH and HPMD")?;
    same(vcpu.report()? >> 11 & 0x1f, 2, "PMCR_EL0.N at EL1")?;
    same(vcpu.report()?, 0, "cycles of EL1 that P keeps out")?;
    let below = vcpu.report()?;
    holds(below > 100, || format!("{below} cycles of EL1"))?;
    // TPM, set by the VMM: EL2 reads on, EL1's access comes to EL2's vectors, and not to EL1's.
    let mut again = Asm::new();
    again.mrs(0, PMCR_EL0).report(0).eret();
    let mut trapped = Asm::new();
    trapped.mrs(0, PMCR_EL0).report(0).stop();
    vcpu.go_to(machine.machine.place(&again))?;
    vcpu.set(abi::sys(MDCR_EL2), TPM | all)?;
    vcpu.set(abi::sys(ELR_EL2), machine.machine.place(&trapped))?;
    vcpu.set(abi::sys(SPSR_EL2), EL1H)?;
    vcpu.set(abi::PSTATE, EL2H)?;
    same(
        vcpu.report()? >> 11 & 0x1f,
        all,
        "PMCR_EL0.N at EL2 with TPM",
    )?;
    let taken = vcpu.exception()?;
    same(taken.esr >> 26, TRAPPED, "the class of EL1's access")?;
    same(vcpu.get(abi::PSTATE)?, EL2H, "where it was taken")
}
