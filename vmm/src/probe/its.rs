//! An interrupt translation service: devices' messages become LPIs; its tables and registers.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings as kvm;
use umbra_vmm::kvm::{Region, ioctl, owned};

use super::asm::Asm;
use super::gic::{DIST, Gic, REDIST, machine};
use super::guest::{Answer, Machine, RAM, Vcpu};
use super::irq::{each_wakes, event, irqfd_call, lpi_listener};
use super::{Check, Env, Outcome, abi, granted, holds, refused, same};

const ITS: u64 = 0x0900_0000;
const DOORBELL: u64 = ITS + 0x1_0040;
const VALID: u64 = 1 << 63;
/// Offsets of tables in the machine's memory.
const PROPERTIES: usize = 0x10_0000;
const PENDING: usize = 0x12_0000;
const DEVICES: usize = 0x13_0000;
const COLLECTIONS: usize = 0x14_0000;
const EVENTS: usize = 0x15_0000;
const QUEUE: usize = 0x16_0000;
const DEVICE: u64 = 5;
const LPI: u64 = 8200;

struct Its(OwnedFd);

impl Its {
    fn new(machine: &Machine) -> Answer<Self> {
        let mut create = kvm::kvm_create_device {
            type_: kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
            ..Default::default()
        };
        ioctl(&machine.vm, abi::CREATE_DEVICE, &mut create)?;
        Ok(Self(owned(create.fd)))
    }

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

    fn set(&self, group: u32, attr: u64, value: u64) -> Answer<()> {
        self.call(abi::SET_DEVICE_ATTR, group, attr, value)
            .map(drop)
    }

    fn place(&self, base: u64) -> Answer<()> {
        self.set(0, 4, base)
    }

    fn control(&self, what: u64) -> Answer<()> {
        self.set(4, what, 0)
    }

    fn register(&self, offset: u64) -> Answer<u64> {
        self.call(abi::GET_DEVICE_ATTR, 8, offset, 0)
    }

    fn set_register(&self, offset: u64, value: u64) -> Answer<()> {
        self.set(8, offset, value)
    }
}

const SAVE: u64 = 1;
const RESTORE: u64 = 2;
const RESET: u64 = 4;

/// A machine whose ITS has event 3 of device 5 at vCPU 0, by its tables, and a guest that takes LPIs.
fn mapped() -> Check<(Machine, Gic, Its, Vcpu)> {
    let program = lpi_listener(RAM + PROPERTIES as u64, RAM + PENDING as u64);
    let (machine, gic, mut vcpus) = machine(&[program])?;
    let its = granted(Its::new(&machine), "an ITS")?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    same(vcpu.report()?, 0x1000, "the guest's first word")?;
    granted(its.place(ITS), "its place")?;
    granted(its.control(0), "KVM_DEV_ARM_VGIC_CTRL_INIT")?;
    let at = |offset: usize| RAM + offset as u64;
    machine.ram.set_u8(PROPERTIES + (LPI - 8192) as usize, 0xa1);
    machine.ram.set_u64(EVENTS + 3 * 8, LPI << 16 | 7);
    machine.ram.set_u64(
        DEVICES + DEVICE as usize * 8,
        VALID | (at(EVENTS) >> 8) << 5 | 3,
    );
    machine.ram.set_u64(COLLECTIONS, VALID | 7);
    machine.ram.set_u64(COLLECTIONS + 8, 0);
    for (register, table) in [(0x100, DEVICES), (0x108, COLLECTIONS), (0x80, QUEUE)] {
        granted(its.set_register(register, VALID | at(table)), "a table")?;
    }
    granted(its.control(RESTORE), "KVM_DEV_ARM_ITS_RESTORE_TABLES")?;
    granted(its.set_register(0, 1), "GITS_CTLR")?;
    Ok((machine, gic, its, vcpu))
}

fn message(machine: &Machine, address: u64, event: u64, flags: u64, device: u64) -> Answer<u32> {
    let words = [address, event | flags << 32, device, 0];
    ioctl(&machine.vm, abi::SIGNAL_MSI, &mut { words })
}

pub(super) fn messages(_: &Env) -> Outcome {
    let (machine, _gic, _its, vcpu) = mapped()?;
    let send = |event| message(&machine, DOORBELL, event, 1, DEVICE);
    same(granted(send(4), "a message to nothing")?, 0, "it is taken")?;
    each_wakes(vcpu, &[LPI; 20], |_| {
        same(granted(send(3), "KVM_SIGNAL_MSI")?, 1, "it is taken")
    })
}

pub(super) fn irqfd(_: &Env) -> Outcome {
    let (machine, _gic, _its, vcpu) = mapped()?;
    let event = event()?;
    let room = granted(Region::new(0x2_0000), "mmap")?;
    // One entry: GSI 2000, a message with a DeviceID.
    for (at, word) in [(0, 1), (8, 2000), (12, 2), (16, 1)] {
        room.set_u32(at, word);
    }
    for (at, word) in [(24, DOORBELL as u32), (28, 0), (32, 3), (36, DEVICE as u32)] {
        room.set_u32(at, word);
    }
    granted(
        room.ioctl(&machine.vm, abi::SET_GSI_ROUTING, 0),
        "KVM_SET_GSI_ROUTING",
    )?;
    granted(
        irqfd_call(&machine, event.as_raw_fd() as u32, 2000, 0),
        "KVM_IRQFD",
    )?;
    each_wakes(vcpu, &[LPI; 10], |_| {
        event.write(1).map_err(|e| format!("eventfd: {e}"))
    })
}

pub(super) fn saved(_: &Env) -> Outcome {
    let (machine, _gic, its, _vcpu) = mapped()?;
    let tables = [DEVICES + DEVICE as usize * 8, COLLECTIONS, EVENTS + 3 * 8];
    let before = tables.map(|at| machine.ram.u64(at));
    for at in tables {
        machine.ram.set_u64(at, 0);
    }
    granted(its.control(SAVE), "KVM_DEV_ARM_ITS_SAVE_TABLES")?;
    same(
        tables.map(|at| machine.ram.u64(at)),
        before,
        "what is saved",
    )?;
    granted(its.control(RESET), "KVM_DEV_ARM_ITS_CTRL_RESET")?;
    same(granted(its.register(0), "GITS_CTLR")? & 1, 0, "it is on")?;
    same(
        granted(its.register(0x100), "GITS_BASER0")? >> 63,
        0,
        "a table",
    )?;
    let sent = message(&machine, DOORBELL, 3, 1, DEVICE);
    refused(sent, libc::EBUSY, "a message after a reset")
}

pub(super) fn errors(_: &Env) -> Outcome {
    let (machine, _gic, _vcpus) = machine(&[Asm::new()])?;
    let send = |address, flags| message(&machine, address, 0, flags, 0);
    holds(send(DOORBELL, 1).is_err(), || {
        "a message without an ITS".into()
    })?;
    refused(send(DOORBELL, 2), libc::EINVAL, "a flag of no meaning")?;
    let its = granted(Its::new(&machine), "an ITS")?;
    refused(its.register(0), libc::ENXIO, "a register of no place")?;
    refused(its.place(ITS + 0x1000), libc::EINVAL, "a place + 4 KiB")?;
    refused(its.place(1 << 47), libc::E2BIG, "a place beyond the VM")?;
    granted(its.place(ITS), "a place")?;
    refused(its.place(ITS), libc::EEXIST, "a second place")?;
    refused(
        send(DOORBELL, 0),
        libc::EINVAL,
        "a message without a device",
    )?;
    refused(send(DIST, 1), libc::EINVAL, "a message to no ITS")?;
    refused(send(REDIST, 1), libc::EINVAL, "a message to another frame")?;
    refused(its.register(0x10), libc::ENXIO, "no register")?;
    refused(its.register(0x84), libc::EINVAL, "half a register")?;
    refused(its.set(4, 3, 0), libc::ENXIO, "no control")?;
    refused(its.set(7, 0, 0), libc::ENXIO, "no group")?;
    // Without tables there is nothing to save; registers that make no sense are refused.
    granted(its.set_register(0, 1), "GITS_CTLR without tables")?;
    same(granted(its.register(0), "GITS_CTLR")? & 1, 0, "it is on")?;
    refused(its.set_register(4, 0xf000), libc::EINVAL, "a revision")?;
    granted(its.control(SAVE), "saving nothing").map(drop)
}
