//! The VGICv3 device: its attributes and their order (Linux `Documentation/virt/kvm/devices/arm-vgic-v3.rst`).

use std::os::fd::OwnedFd;

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Region, ioctl, owned};

use super::asm::{Access, Asm};
use super::guest::{Answer, Machine, Vcpu};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

/// Where these checks have the distributor and the redistributors.
pub(super) const DIST: u64 = 0x0800_0000;
pub(super) const REDIST: u64 = 0x080a_0000;

pub(super) const ADDR: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_ADDR;
const CTRL: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_CTRL;
const NR_IRQS: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_NR_IRQS;
pub(super) const DIST_REGS: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
pub(super) const REDIST_REGS: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_REDIST_REGS;
pub(super) const CPU_SYSREGS: u32 = kvm::KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS;
pub(super) const ADDR_DIST: u64 = kvm::KVM_VGIC_V3_ADDR_TYPE_DIST as u64;
pub(super) const ADDR_REDIST: u64 = kvm::KVM_VGIC_V3_ADDR_TYPE_REDIST as u64;
pub(super) const ADDR_REGION: u64 = kvm::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION as u64;
const INIT: u64 = kvm::KVM_DEV_ARM_VGIC_CTRL_INIT as u64;

/// A VGICv3.
pub(super) struct Gic(OwnedFd);

impl Gic {
    pub(super) fn new(machine: &Machine) -> Answer<Self> {
        let mut create = kvm::kvm_create_device {
            type_: kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..Default::default()
        };
        ioctl(&machine.vm, abi::CREATE_DEVICE, &mut create)?;
        Ok(Self(owned(create.fd)))
    }

    /// The device of this file.
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Places its frames.
    pub(super) fn place(&self, dist: u64, redist: u64) -> Answer<()> {
        self.set(ADDR, ADDR_DIST, dist)?;
        self.set(ADDR, ADDR_REDIST, redist)
    }

    /// flags and group are halves of the first word of `struct kvm_device_attr`.
    fn call(&self, request: u32, group: u32, attr: u64, value: u64) -> Answer<u64> {
        let room = Region::new(0x2_0000)?;
        room.set_u64(0x100, value);
        let words = [u64::from(group) << 32, attr, room.address(0x100)];
        for (at, word) in words.into_iter().enumerate() {
            room.set_u64(8 * at, word);
        }
        room.ioctl(&self.0, request, 0)?;
        Ok(room.u64(0x100))
    }

    pub(super) fn set(&self, group: u32, attr: u64, value: u64) -> Answer<()> {
        self.call(abi::SET_DEVICE_ATTR, group, attr, value)
            .map(drop)
    }

    pub(super) fn get(&self, group: u32, attr: u64) -> Answer<u64> {
        self.call(abi::GET_DEVICE_ATTR, group, attr, 0)
    }

    pub(super) fn has(&self, group: u32, attr: u64) -> Answer<()> {
        self.call(abi::HAS_DEVICE_ATTR, group, attr, 0).map(drop)
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.0
    }

    pub(super) fn init(&self) -> Answer<()> {
        self.set(CTRL, INIT, 0)
    }
}

/// A machine with a GIC that works and `count` vCPUs.
pub(super) fn machine(programs: &[Asm]) -> Check<(Machine, Gic, Vec<Vcpu>)> {
    let machine = Machine::new()?;
    let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    let vcpus = (0..)
        .zip(programs)
        .map(|(id, program)| machine.vcpu_with(id, program));
    let vcpus = vcpus.collect::<Check<Vec<_>>>()?;
    granted(gic.set(ADDR, ADDR_DIST, DIST), "the distributor's address")?;
    granted(
        gic.set(ADDR, ADDR_REDIST, REDIST),
        "the redistributors' address",
    )?;
    granted(gic.set(NR_IRQS, 0, 96), "96 interrupts")?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    Ok((machine, gic, vcpus))
}

pub(super) fn created_once(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let create = |type_: u32, flags: u32| {
        let mut create = kvm::kvm_create_device {
            type_,
            flags,
            ..Default::default()
        };
        ioctl(&machine.vm, abi::CREATE_DEVICE, &mut create).map(|_| owned(create.fd))
    };
    let v3 = kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
    refused(create(777, 0), libc::ENODEV, "a device that is none")?;
    granted(ioctl_test(&machine, v3), "KVM_CREATE_DEVICE_TEST")?;
    let _gic = granted(create(v3, 0), "a GICv3")?;
    refused(create(v3, 0), libc::EEXIST, "a second one")?;
    holds(
        create(kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, 0).is_err(),
        || "a GICv2 beside the GICv3 was granted".into(),
    )
}

/// Whether it could be made, without making it: no file comes of it.
fn ioctl_test(machine: &Machine, type_: u32) -> Answer<()> {
    let flags = kvm::KVM_CREATE_DEVICE_TEST;
    let mut create = kvm::kvm_create_device {
        type_,
        fd: u32::MAX,
        flags,
    };
    ioctl(&machine.vm, abi::CREATE_DEVICE, &mut create).map(drop)
}

pub(super) fn addresses(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let _vcpu = machine.vcpu_with(0, Asm::new().stop())?;
    let gic = granted(Gic::new(&machine), "a GIC")?;
    same(
        granted(gic.get(ADDR, ADDR_DIST), "the address before")?,
        u64::MAX,
        "the address before",
    )?;
    for (attr, at, errno, what) in [
        (
            ADDR_DIST,
            DIST + 0x1000,
            libc::EINVAL,
            "a distributor at 4 KiB",
        ),
        (
            ADDR_REDIST,
            REDIST + 0x1000,
            libc::EINVAL,
            "redistributors at 4 KiB",
        ),
        (
            ADDR_DIST,
            1 << 40,
            libc::E2BIG,
            "a distributor beyond the VM",
        ),
        (
            ADDR_REDIST,
            1 << 40,
            libc::E2BIG,
            "redistributors beyond the VM",
        ),
        (99, DIST, libc::ENXIO, "an address of no kind"),
        (0, DIST, libc::ENXIO, "the distributor of a GICv2"),
    ] {
        refused(gic.set(ADDR, attr, at), errno, what)?;
    }
    granted(gic.set(ADDR, ADDR_DIST, DIST), "a distributor")?;
    same(
        granted(gic.get(ADDR, ADDR_DIST), "its address")?,
        DIST,
        "its address",
    )?;
    refused(
        gic.set(ADDR, ADDR_DIST, DIST),
        libc::EEXIST,
        "the same again",
    )?;
    refused(
        gic.set(ADDR, ADDR_REDIST, DIST),
        libc::EINVAL,
        "redistributors over the distributor",
    )?;
    // Regions: count in 63:52, base, flags 0, index in 11:0.
    refused(
        gic.set(ADDR, ADDR_REGION, REDIST),
        libc::EINVAL,
        "a region of none",
    )?;
    refused(
        gic.set(ADDR, ADDR_REGION, 1 << 52 | REDIST | 1),
        libc::EINVAL,
        "region 1 first",
    )?;
    refused(
        gic.set(ADDR, ADDR_REGION, 1 << 52 | REDIST | 1 << 12),
        libc::EINVAL,
        "flags",
    )?;
    granted(gic.set(ADDR, ADDR_REGION, 1 << 52 | REDIST), "region 0")?;
    refused(
        gic.set(ADDR, ADDR_REGION, 1 << 52 | REDIST),
        libc::EINVAL,
        "region 0 again",
    )?;
    let next = REDIST + 0x2_0000;
    refused(
        gic.set(ADDR, ADDR_REDIST, next),
        libc::EINVAL,
        "the old address beside regions",
    )?;
    granted(gic.set(ADDR, ADDR_REGION, 3 << 52 | next | 1), "region 1").map(drop)
}

pub(super) fn init_order(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let gic = granted(Gic::new(&machine), "a GIC")?;
    granted(gic.set(ADDR, ADDR_DIST, DIST), "a distributor")?;
    granted(gic.set(ADDR, ADDR_REDIST, REDIST), "redistributors")?;
    let _vcpu = machine.vcpu_with(0, Asm::new().stop())?;
    for (count, what) in [(16, "16"), (63, "63"), (1056, "1056"), (65, "65")] {
        refused(
            gic.set(NR_IRQS, 0, count),
            libc::EINVAL,
            &format!("{what} interrupts"),
        )?;
    }
    granted(gic.set(NR_IRQS, 0, 128), "128 interrupts")?;
    refused(gic.set(NR_IRQS, 0, 128), libc::EBUSY, "their number again")?;
    same(
        granted(gic.get(NR_IRQS, 0), "their number")? as u32,
        128,
        "their number",
    )?;
    granted(gic.init(), "init")?;
    granted(gic.init(), "init again")?;
    refused(gic.set(NR_IRQS, 0, 256), libc::EBUSY, "a number after that")?;
    // Without a vCPU there is nothing to wait for.
    let empty = Machine::new()?;
    granted(
        granted(Gic::new(&empty), "a GIC")?.init(),
        "init without a vCPU",
    )?;
    refused(
        empty.bare_vcpu(0).map_err(|_| libc::EBUSY),
        libc::EBUSY,
        "a vCPU after that",
    )
}

pub(super) fn vcpu_after_init(_: &Env) -> Outcome {
    let (machine, _gic, _vcpus) = machine(&[Asm::new()])?;
    let answer = umbra_vmm::kvm::ioctl_value(&machine.vm, abi::CREATE_VCPU, 1).map(owned);
    refused(answer, libc::EBUSY, "a vCPU after the GIC's init")
}

/// A vCPU whose file was closed keeps its place: those behind it do not move up.
pub(super) fn closed_vcpu(_: &Env) -> Outcome {
    const AFFINITY_INFO: u64 = 0xc400_0004;
    let machine = Machine::new()?;
    let gic = granted(Gic::new(&machine), "KVM_CREATE_DEVICE")?;
    let closed = machine.bare_vcpu(0)?;
    let more = 1 << kvm::KVM_ARM_VCPU_POWER_OFF;
    granted(closed.init(more), "KVM_ARM_VCPU_INIT")?;
    drop(closed);
    let mut asm = Asm::new();
    // GICR_TYPER of the second redistributor, then PSCI about the vCPU that was closed.
    asm.mov(1, REDIST + 0x2_0000 + 8).ldr(0, 1).report(0);
    asm.mov(0, AFFINITY_INFO).mov(1, 0).mov(2, 0);
    asm.hvc().report(0);
    let vcpu = machine.vcpu_with(1, &asm)?;
    granted(gic.set(ADDR, ADDR_DIST, DIST), "the distributor's address")?;
    granted(gic.set(ADDR, ADDR_REDIST, REDIST), "redistributors")?;
    granted(gic.init(), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    for affinity in [0, 1] {
        let typer = gic.get(REDIST_REGS, affinity << 32 | 8);
        let typer = granted(typer, "GICR_TYPER of either vCPU")? as u32;
        same(typer >> 8 & 0xffff, affinity as u32, "Processor_Number")?;
    }
    let typer = vcpu.report()?;
    same(typer >> 32, 1, "affinity of the second redistributor")?;
    same(typer >> 8 & 0xffff, 1, "its Processor_Number")?;
    same(vcpu.report()?, 1, "AFFINITY_INFO of the closed vCPU: off")
}

/// The first KVM_RUN finds that not every vCPU has a redistributor.
pub(super) fn too_few_redistributors(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let gic = granted(Gic::new(&machine), "a GIC")?;
    let vcpu = machine.vcpu_with(0, Asm::new().mov(0, 1).report(0))?;
    let _second = machine.vcpu_with(1, Asm::new().stop())?;
    granted(gic.set(ADDR, ADDR_DIST, DIST), "a distributor")?;
    granted(
        gic.set(ADDR, ADDR_REGION, 1 << 52 | REDIST),
        "one redistributor",
    )?;
    granted(gic.init(), "init")?;
    refused(vcpu.run(), libc::ENXIO, "KVM_RUN")
}

/// A VM without a GIC: ID_AA64PFR0_EL1 says so, and its registers are undefined.
pub(super) fn none(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut asm = Asm::new();
    asm.mrs(0, (3, 0, 0, 4, 0))
        .report(0)
        .mrs(0, super::asm::ICC_PMR_EL1)
        .report(0);
    let vcpu = machine.vcpu_with(0, &asm)?;
    same(vcpu.report()? >> 24 & 0xf, 0, "ID_AA64PFR0_EL1.GIC")?;
    let seen = vcpu.exception()?;
    same(
        (seen.vector, seen.esr >> 26),
        (4, 0),
        "reading ICC_PMR_EL1: undefined",
    )
}

/// Registers by the device and by the guest are the same registers.
pub(super) fn registers(_: &Env) -> Outcome {
    let mut asm = Asm::new();
    asm.mov(1, DIST + 0x104)
        .access(Access::LdrW, 0, 1)
        .report(0); // GICD_ISENABLER1
    asm.mov(0, 0x300)
        .mov(1, DIST + 0x184)
        .access(Access::StrW, 0, 1); // GICD_ICENABLER1
    asm.mov(1, DIST + 0x420)
        .mov(0, 0xa8)
        .access(Access::StrB, 0, 1)
        .report(0); // priority of 32
    asm.mov(1, REDIST + 8).ldr(0, 1).report(0); // GICR_TYPER
    let (_machine, gic, vcpus) = machine(&[asm])?;
    let vcpu = &vcpus[0];
    let typer = granted(gic.get(DIST_REGS, 4), "GICD_TYPER")? as u32;
    same(typer & 0x1f, 96 / 32 - 1, "GICD_TYPER.ITLinesNumber")?;
    granted(gic.set(DIST_REGS, 0x104, 0xff00), "GICD_ISENABLER1")?;
    same(
        granted(gic.get(DIST_REGS, 0x104), "it again")? as u32,
        0xff00,
        "GICD_ISENABLER1",
    )?;
    same(vcpu.report()?, 0xff00, "GICD_ISENABLER1 in the guest")?;
    vcpu.report()?;
    same(
        granted(gic.get(DIST_REGS, 0x104), "it again")? as u32,
        0xfc00,
        "after the guest",
    )?;
    same(
        granted(gic.get(DIST_REGS, 0x420), "a priority")? as u32,
        0xa8,
        "the priority",
    )?;
    same(vcpu.report()? >> 4 & 1, 1, "GICR_TYPER.Last in the guest")?;
    let waker = granted(gic.get(REDIST_REGS, 0x14), "GICR_WAKER")? as u32;
    granted(gic.set(REDIST_REGS, 0x14, waker.into()), "GICR_WAKER")?;
    // ICC_PMR_EL1 by its encoding.
    let pmr = 0xc000 | 4 << 7 | 6 << 3;
    granted(gic.set(CPU_SYSREGS, pmr, 0xf0), "ICC_PMR_EL1")?;
    same(
        granted(gic.get(CPU_SYSREGS, pmr), "it again")?,
        0xf0,
        "ICC_PMR_EL1",
    )?;
    refused(
        gic.get(CPU_SYSREGS, 0xc000),
        libc::ENOENT,
        "MIDR_EL1 as a GIC register",
    )?;
    refused(
        gic.get(REDIST_REGS, 7 << 32 | 0x14),
        libc::EINVAL,
        "a redistributor of no vCPU",
    )
}

pub(super) fn bad_attributes(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let gic = granted(Gic::new(&machine), "a GIC")?;
    refused(gic.has(99, 0), libc::ENXIO, "a group of no kind")?;
    refused(gic.set(99, 0, 0), libc::ENXIO, "setting it")?;
    refused(gic.get(99, 0), libc::ENXIO, "reading it")?;
    refused(gic.has(CTRL, 99), libc::ENXIO, "a command of no kind")?;
    refused(gic.has(ADDR, 99), libc::ENXIO, "an address of no kind")?;
    for (group, attr) in [
        (ADDR, ADDR_DIST),
        (ADDR, ADDR_REDIST),
        (CTRL, INIT),
        (NR_IRQS, 0),
    ] {
        granted(
            gic.has(group, attr),
            &format!("attribute {attr} of group {group}"),
        )?;
    }
    let _vcpu = machine.vcpu_with(0, Asm::new().stop())?;
    refused(gic.get(DIST_REGS, 4), libc::EBUSY, "a register before init")
}
