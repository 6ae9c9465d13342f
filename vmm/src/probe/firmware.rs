//! Firmware calls: which of them the VMM handles, and what it may know of them.

use kvm_bindings::KVM_EXIT_HYPERCALL;
use umbra_vmm::kvm::{Region, ioctl_value};

use super::asm::Asm;
use super::guest::{Answer, Exit, Machine, create_vm};
use super::{Env, Outcome, abi, granted, refused, same};

const SYSTEM_OFF: u64 = 0x8400_0008;
const VERSION: u64 = 0x8400_0000;
const KERNEL: u8 = 0;
const NOBODY: u8 = 1;
const VMM: u8 = 2;

/// KVM_ARM_VM_SMCCC_FILTER.
fn filter(
    vm: &std::os::fd::OwnedFd,
    request: u32,
    attr: u64,
    (base, count, action): (u64, u64, u8),
) -> Answer<()> {
    let room = Region::new(0x2_0000)?;
    for (at, word) in [0, attr, room.address(0x100)].into_iter().enumerate() {
        room.set_u64(8 * at, word);
    }
    room.set_u64(0x100, base | count << 32);
    room.set_u8(0x108, action);
    room.ioctl(vm, request, 0).map(drop)
}

pub(super) fn filtered(_: &Env) -> Outcome {
    let machine = Machine::new()?;
    let set =
        |base, count, action| filter(&machine.vm, abi::SET_DEVICE_ATTR, 0, (base, count, action));
    granted(set(SYSTEM_OFF, 1, VMM), "SYSTEM_OFF to the VMM")?;
    granted(set(VERSION, 1, NOBODY), "PSCI_VERSION to nobody")?;
    let mut asm = Asm::new();
    asm.mov(0, VERSION).hvc().report(0);
    asm.mov(0, SYSTEM_OFF).hvc().report(0).stop();
    let vcpu = machine.vcpu_with(0, &asm)?;
    same(vcpu.report()? as i32, -1, "a call that nobody handles")?;
    let exit = Exit::Other {
        reason: KVM_EXIT_HYPERCALL,
    };
    same(vcpu.exits()?, exit, "a call that the VMM handles")?;
    same(vcpu.page.u64(32), SYSTEM_OFF, "its function")?;
    vcpu.set(abi::x(0), 77)?;
    same(vcpu.report()?, 77, "what the VMM answers")?;
    refused(
        set(0x8400_0001, 1, VMM),
        libc::EBUSY,
        "a filter for a VM that has run",
    )
}

pub(super) fn filter_errors(_: &Env) -> Outcome {
    let vm = create_vm()?;
    let set = |base, count, action| filter(&vm, abi::SET_DEVICE_ATTR, 0, (base, count, action));
    granted(
        filter(&vm, abi::HAS_DEVICE_ATTR, 0, (0, 0, 0)),
        "KVM_HAS_DEVICE_ATTR",
    )?;
    for request in [abi::HAS_DEVICE_ATTR, abi::SET_DEVICE_ATTR] {
        refused(
            filter(&vm, request, 1, (0, 0, 0)),
            libc::ENXIO,
            "attribute 1",
        )?;
    }
    granted(set(0x8400_0010, 16, VMM), "a range")?;
    for (base, count, action, errno, what) in [
        (0x8400_001f, 1, KERNEL, libc::EEXIST, "its last function"),
        (0x8400_0000, 64, KERNEL, libc::EEXIST, "a range round it"),
        (0x8000_0000, 1, VMM, libc::EEXIST, "the architecture's"),
        (0x8400_0040, 0, VMM, libc::EINVAL, "nothing"),
        (0xffff_ffff, 2, VMM, libc::EINVAL, "a range that wraps"),
        (0x8400_0040, 1, 3, libc::EINVAL, "action 3"),
    ] {
        refused(set(base, count, action), errno, what)?;
    }
    refused(
        ioctl_value(&vm, abi::SET_DEVICE_ATTR, 8),
        libc::EFAULT,
        "a bad pointer",
    )
}
