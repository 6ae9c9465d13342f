//! Making vCPUs, and the order of their calls.

use kvm_bindings::{
    KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_CAP_ARM_EL1_32BIT,
    KVM_CAP_MAX_VCPU_ID, KVM_CAP_MAX_VCPUS, KVM_CAP_NR_VCPUS, KVM_MP_STATE_STOPPED,
    kvm_vcpu_events, kvm_vcpu_init,
};
use umbra_vmm::kvm::{ioctl, ioctl_value, owned};

use super::asm::{SCTLR_EL1, TTBR0_EL1};
use super::guest::{EL1H, Machine, create_vm, open};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

fn capability(number: u32) -> Check<u64> {
    let kvm = open()?;
    let answer = ioctl_value(&kvm, abi::CHECK_EXTENSION, number.into());
    granted(answer, "KVM_CHECK_EXTENSION").map(u64::from)
}

pub(super) fn ids(_: &Env) -> Outcome {
    let (most, ids) = (
        capability(KVM_CAP_MAX_VCPUS)?,
        capability(KVM_CAP_MAX_VCPU_ID)?,
    );
    let usual = capability(KVM_CAP_NR_VCPUS)?;
    holds(usual >= 1 && usual <= most && most <= ids, || {
        format!("{usual} vCPUs recommended, {most} possible, {ids} ids")
    })?;
    let vm = create_vm()?;
    let create = |id: u64| ioctl_value(&vm, abi::CREATE_VCPU, id).map(owned);
    let _first = granted(create(0), "vCPU 0")?;
    refused(create(0), libc::EEXIST, "vCPU 0 again")?;
    let _last = granted(create(ids - 1), "the last id")?;
    refused(create(ids - 1), libc::EEXIST, "the last id again")?;
    for id in [ids, ids + 1, u64::from(u32::MAX), u64::MAX] {
        refused(create(id), libc::EINVAL, &format!("vCPU {id:#x}"))?;
    }
    // The id stays taken while the VM lives, whoever closed the file.
    drop(granted(create(1), "vCPU 1")?);
    refused(create(1), libc::EEXIST, "vCPU 1 after it was closed")
}

pub(super) fn before_init(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    refused(vcpu.run(), libc::ENOEXEC, "KVM_RUN")?;
    refused(vcpu.try_get(abi::PC), libc::ENOEXEC, "KVM_GET_ONE_REG")?;
    refused(vcpu.try_set(abi::PC, 0), libc::ENOEXEC, "KVM_SET_ONE_REG")?;
    refused(
        ioctl(&vcpu.fd, abi::GET_REG_LIST, &mut 0u64),
        libc::ENOEXEC,
        "KVM_GET_REG_LIST",
    )?;
    let mut events = kvm_vcpu_events::default();
    let answer = ioctl(&vcpu.fd, abi::SET_VCPU_EVENTS, &mut events);
    refused(answer, libc::ENOEXEC, "KVM_SET_VCPU_EVENTS")?;
    same(vcpu.mp_state()?, 0, "the MP state")?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT").map(drop)
}

pub(super) fn bad_init(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    let init = |target: u32, word: usize, bits: u32| {
        let mut init = kvm_vcpu_init {
            target,
            ..Default::default()
        };
        init.features[word] = bits;
        vcpu.init_with(&mut init)
    };
    refused(init(6, 0, 0), libc::EINVAL, "target 6")?;
    refused(init(u32::MAX, 0, 0), libc::EINVAL, "target u32::MAX")?;
    refused(init(5, 0, 1 << 31), libc::ENOENT, "feature 31")?;
    refused(init(5, 1, 1), libc::ENOENT, "feature 32")?;
    refused(init(5, 6, 1 << 31), libc::ENOENT, "the last feature")?;
    if capability(KVM_CAP_ARM_EL1_32BIT)? == 0 {
        refused(
            init(5, 0, 1 << KVM_ARM_VCPU_EL1_32BIT),
            libc::EINVAL,
            "AArch32 at EL1",
        )?;
    }
    refused(vcpu.run(), libc::ENOEXEC, "KVM_RUN after refusals")?;
    granted(init(5, 0, 1 << KVM_ARM_VCPU_PSCI_0_2), "a good one").map(drop)
}

pub(super) fn differing_features(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let (first, second) = (machine.bare_vcpu(0)?, machine.bare_vcpu(1)?);
    granted(first.init(0), "the first")?;
    let mut plain = kvm_vcpu_init {
        target: 5,
        ..Default::default()
    };
    refused(
        second.init_with(&mut plain),
        libc::EINVAL,
        "a second without PSCI",
    )?;
    granted(
        second.init(1 << KVM_ARM_VCPU_POWER_OFF),
        "a second that begins switched off",
    )?;
    same(second.mp_state()?, KVM_MP_STATE_STOPPED, "its MP state")?;
    refused(
        first.init_with(&mut plain),
        libc::EINVAL,
        "the first, otherwise",
    )?;
    granted(
        first.init(1 << KVM_ARM_VCPU_POWER_OFF),
        "the first, switched off",
    )
    .map(drop)
}

pub(super) fn init_again_resets(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
    let watched = [
        abi::x(0),
        abi::x(30),
        abi::PC,
        abi::PSTATE,
        abi::sys(SCTLR_EL1),
    ];
    let mut before = Vec::new();
    for id in watched {
        before.push(vcpu.get(id)?);
    }
    same(before[3], EL1H, "PSTATE after reset")?;
    for id in [abi::x(0), abi::x(30), abi::PC, abi::sys(TTBR0_EL1)] {
        vcpu.set(id, 0x1234_5670)?;
    }
    vcpu.set(abi::PSTATE, 0x3c4)?;
    vcpu.set(abi::sys(SCTLR_EL1), before[4] ^ 1 << 2)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT again")?;
    for (id, wanted) in watched.into_iter().zip(before) {
        same(vcpu.get(id)?, wanted, &format!("register {id:#x}"))?;
    }
    Ok(())
}

pub(super) fn preferred_target(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let mut init = kvm_vcpu_init {
        target: 77,
        features: [77; 7],
    };
    granted(
        ioctl(&machine.vm, abi::PREFERRED_TARGET, &mut init),
        "the call",
    )?;
    same((init.target, init.features), (5, [0; 7]), "the target")
}

/// Calls of other architectures that arm64 knows only to refuse.
pub(super) fn refused_calls(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let vcpu = machine.bare_vcpu(0)?;
    granted(vcpu.init(0), "KVM_ARM_VCPU_INIT")?;
    let room = granted(umbra_vmm::kvm::Region::new(1 << 20), "mmap")?;
    for request in [abi::GET_REGS, abi::SET_REGS, 0x8000_ae83, 0x8000_ae8c] {
        refused(
            room.ioctl(&vcpu.fd, request, 0),
            libc::EINVAL,
            &format!("{request:#x}"),
        )?;
    }
    Ok(())
}
