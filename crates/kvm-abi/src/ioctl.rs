//! Every ioctl that KVM has on arm64: its number, its name, the files it is for.
//!
//! [`ALL`] is what `docs/abi.md` is checked against: an ioctl that the document does not mention
//! fails a test. Calls that arm64 knows only to refuse (KVM_GET_REGS …) are rows too, for they
//! answer EINVAL, not ENOTTY.

use crate::device::{CreateDevice, DeviceAttr};
use crate::ioc::Ioctl;
use crate::irq::{ArmDeviceAddr, CoalescedMmioZone, IoEventFd, IrqFd, IrqLevel, IrqRouting, Msi};
use crate::memory::{
    ClearDirtyLog, CopyMteTags, CreateGuestMemfd, DirtyLog, MemoryAttributes, PreFaultMemory,
    UserspaceMemoryRegion, UserspaceMemoryRegion2,
};
use crate::reg::{OneReg, RegList, RegMaskRange};
use crate::vcpu::{
    CounterOffset, EnableCap, GuestDebug, MpState, Regs, SignalMask, Translation, VcpuEvents,
    VcpuInit,
};

/// The file that an ioctl is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `/dev/kvm` itself.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
    /// A device made by KVM_CREATE_DEVICE.
    Device,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// The ioctl's name in Linux's header.
    pub name: &'static str,
    /// Its number.
    pub ioctl: Ioctl,
    /// The files it is for.
    pub levels: &'static [Level],
}

use Level::{Device, System, Vcpu, Vm};

macro_rules! ioctls {
    ($($(#[$doc:meta])* $name:ident = $ioctl:expr, [$($level:ident),+];)*) => {
        $(
            $(#[$doc])*
            pub const $name: Ioctl = $ioctl;
        )*

        /// Every ioctl.
        pub const ALL: &[Info] = &[
            $(Info { name: stringify!($name), ioctl: $name, levels: &[$($level),+] },)*
        ];
    };
}

ioctls! {
    /// Answers 12.
    KVM_GET_API_VERSION = Ioctl::none(0x00), [System];
    /// Argument: the machine type, see [`crate::memory::MachineType`]. Answers a VM file.
    KVM_CREATE_VM = Ioctl::none(0x01), [System];
    /// Argument: a capability number. Answers 0 or a positive number.
    KVM_CHECK_EXTENSION = Ioctl::none(0x03), [System, Vm];
    /// Answers the size in bytes of a vCPU's mapping.
    KVM_GET_VCPU_MMAP_SIZE = Ioctl::none(0x04), [System];
    /// Argument: the vCPU's id. Answers a vCPU file.
    KVM_CREATE_VCPU = Ioctl::none(0x41), [Vm];
    /// Copies out a slot's dirty bitmap and clears it.
    KVM_GET_DIRTY_LOG = Ioctl::write::<DirtyLog>(0x42), [Vm];
    /// Creates, moves, changes or deletes a memory slot.
    KVM_SET_USER_MEMORY_REGION = Ioctl::write::<UserspaceMemoryRegion>(0x46), [Vm];
    /// The same, with guest memory files.
    KVM_SET_USER_MEMORY_REGION2 = Ioctl::write::<UserspaceMemoryRegion2>(0x49), [Vm];
    /// Creates a GICv2, the only interrupt controller that this call knows on arm64.
    KVM_CREATE_IRQCHIP = Ioctl::none(0x60), [Vm];
    /// Sets the level of an interrupt line.
    KVM_IRQ_LINE = Ioctl::write::<IrqLevel>(0x61), [Vm];
    /// The same, and answers whether it was delivered.
    KVM_IRQ_LINE_STATUS = Ioctl::read_write::<IrqLevel>(0x67), [Vm];
    /// Adds a zone whose MMIO writes are queued.
    KVM_REGISTER_COALESCED_MMIO = Ioctl::write::<CoalescedMmioZone>(0x67), [Vm];
    /// Removes such a zone.
    KVM_UNREGISTER_COALESCED_MMIO = Ioctl::write::<CoalescedMmioZone>(0x68), [Vm];
    /// Replaces the table from GSI to interrupt.
    KVM_SET_GSI_ROUTING = Ioctl::write::<IrqRouting>(0x6a), [Vm];
    /// Binds an eventfd to a GSI.
    KVM_IRQFD = Ioctl::write::<IrqFd>(0x76), [Vm];
    /// Binds an eventfd to an MMIO address.
    KVM_IOEVENTFD = Ioctl::write::<IoEventFd>(0x79), [Vm];
    /// Runs the vCPU until it exits.
    KVM_RUN = Ioctl::none(0x80), [Vcpu];
    /// Refused on arm64 with EINVAL: use KVM_GET_ONE_REG.
    KVM_GET_REGS = Ioctl::read::<Regs>(0x81), [Vcpu];
    /// Refused on arm64 with EINVAL: use KVM_SET_ONE_REG.
    KVM_SET_REGS = Ioctl::write::<Regs>(0x82), [Vcpu];
    /// Refused on arm64 with EINVAL.
    KVM_GET_SREGS = Ioctl::read::<()>(0x83), [Vcpu];
    /// Refused on arm64 with EINVAL.
    KVM_SET_SREGS = Ioctl::write::<()>(0x84), [Vcpu];
    /// Refused on arm64 with EINVAL.
    KVM_TRANSLATE = Ioctl::read_write::<Translation>(0x85), [Vcpu];
    /// Sets the signal mask while the vCPU runs.
    KVM_SET_SIGNAL_MASK = Ioctl::write::<SignalMask>(0x8b), [Vcpu];
    /// Refused on arm64 with EINVAL.
    KVM_GET_FPU = Ioctl::read::<()>(0x8c), [Vcpu];
    /// Refused on arm64 with EINVAL.
    KVM_SET_FPU = Ioctl::write::<()>(0x8d), [Vcpu];
    /// Whether the vCPU runs, is off, or is suspended.
    KVM_GET_MP_STATE = Ioctl::read::<MpState>(0x98), [Vcpu];
    /// Switches the vCPU on, off, or to sleep.
    KVM_SET_MP_STATE = Ioctl::write::<MpState>(0x99), [Vcpu];
    /// Breakpoints and single step for a debugger outside the guest.
    KVM_SET_GUEST_DEBUG = Ioctl::write::<GuestDebug>(0x9b), [Vcpu];
    /// Pending SError.
    KVM_GET_VCPU_EVENTS = Ioctl::read::<VcpuEvents>(0x9f), [Vcpu];
    /// Makes an SError pending or injects an external abort.
    KVM_SET_VCPU_EVENTS = Ioctl::write::<VcpuEvents>(0xa0), [Vcpu];
    /// Switches a capability on.
    KVM_ENABLE_CAP = Ioctl::write::<EnableCap>(0xa3), [Vm, Vcpu];
    /// Delivers a message-signalled interrupt.
    KVM_SIGNAL_MSI = Ioctl::write::<Msi>(0xa5), [Vm];
    /// Reads one register.
    KVM_GET_ONE_REG = Ioctl::write::<OneReg>(0xab), [Vcpu];
    /// The old way to place a GICv2.
    KVM_ARM_SET_DEVICE_ADDR = Ioctl::write::<ArmDeviceAddr>(0xab), [Vm];
    /// Writes one register.
    KVM_SET_ONE_REG = Ioctl::write::<OneReg>(0xac), [Vcpu];
    /// Gives a vCPU its target and features, and resets it.
    KVM_ARM_VCPU_INIT = Ioctl::write::<VcpuInit>(0xae), [Vcpu];
    /// Answers the target to use.
    KVM_ARM_PREFERRED_TARGET = Ioctl::read::<VcpuInit>(0xaf), [Vm];
    /// Lists the register ids.
    KVM_GET_REG_LIST = Ioctl::read_write::<RegList>(0xb0), [Vcpu];
    /// Copies MTE tags.
    KVM_ARM_MTE_COPY_TAGS = Ioctl::read::<CopyMteTags>(0xb4), [Vm];
    /// Offsets the counters of all vCPUs.
    KVM_ARM_SET_COUNTER_OFFSET = Ioctl::write::<CounterOffset>(0xb5), [Vm];
    /// Which bits of the ID registers a VMM may change.
    KVM_ARM_GET_REG_WRITABLE_MASKS = Ioctl::read::<RegMaskRange>(0xb6), [Vm];
    /// Clears part of a dirty bitmap.
    KVM_CLEAR_DIRTY_LOG = Ioctl::read_write::<ClearDirtyLog>(0xc0), [Vm];
    /// Completes the configuration of SVE.
    KVM_ARM_VCPU_FINALIZE = Ioctl::write::<i32>(0xc2), [Vcpu];
    /// Makes collected dirty-ring entries available again.
    KVM_RESET_DIRTY_RINGS = Ioctl::none(0xc7), [Vm];
    /// Answers a file of binary statistics.
    KVM_GET_STATS_FD = Ioctl::none(0xce), [Vm, Vcpu];
    /// Sets attributes of a range of guest memory.
    KVM_SET_MEMORY_ATTRIBUTES = Ioctl::write::<MemoryAttributes>(0xd2), [Vm];
    /// Answers a guest memory file.
    KVM_CREATE_GUEST_MEMFD = Ioctl::read_write::<CreateGuestMemfd>(0xd4), [Vm];
    /// Populates stage 2 ahead of the guest.
    KVM_PRE_FAULT_MEMORY = Ioctl::read_write::<PreFaultMemory>(0xd5), [Vcpu];
    /// Creates a device.
    KVM_CREATE_DEVICE = Ioctl::read_write::<CreateDevice>(0xe0), [Vm];
    /// Sets an attribute.
    KVM_SET_DEVICE_ATTR = Ioctl::write::<DeviceAttr>(0xe1), [Vm, Vcpu, Device];
    /// Reads an attribute.
    KVM_GET_DEVICE_ATTR = Ioctl::write::<DeviceAttr>(0xe2), [Vm, Vcpu, Device];
    /// Whether an attribute exists.
    KVM_HAS_DEVICE_ATTR = Ioctl::write::<DeviceAttr>(0xe3), [Vm, Vcpu, Device];
}

/// The first row with the number `ioctl`, or `None` for a number that KVM does not have on arm64.
///
/// KVM_GET_ONE_REG and KVM_ARM_SET_DEVICE_ADDR have one number: only the file tells them apart.
pub fn lookup(ioctl: Ioctl) -> Option<&'static Info> {
    ALL.iter().find(|row| row.ioctl == ioctl)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::format;

    #[test]
    fn numbers_are_distinct_on_each_file() {
        for level in [System, Vm, Vcpu, Device] {
            let rows = || ALL.iter().filter(|row| row.levels.contains(&level));
            let numbers: BTreeSet<Ioctl> = rows().map(|row| row.ioctl).collect();
            assert_eq!(numbers.len(), rows().count(), "{level:?}");
        }
        assert_eq!(KVM_GET_ONE_REG, KVM_ARM_SET_DEVICE_ADDR);
    }

    /// The numbers as a program on arm64 Linux passes them.
    #[test]
    fn numbers_are_those_of_linux() {
        for (ioctl, raw) in [
            (KVM_GET_API_VERSION, 0x0000_ae00),
            (KVM_CREATE_VM, 0x0000_ae01),
            (KVM_CHECK_EXTENSION, 0x0000_ae03),
            (KVM_GET_VCPU_MMAP_SIZE, 0x0000_ae04),
            (KVM_CREATE_VCPU, 0x0000_ae41),
            (KVM_GET_DIRTY_LOG, 0x4010_ae42),
            (KVM_SET_USER_MEMORY_REGION, 0x4020_ae46),
            (KVM_SET_USER_MEMORY_REGION2, 0x40a0_ae49),
            (KVM_IRQ_LINE, 0x4008_ae61),
            (KVM_IRQ_LINE_STATUS, 0xc008_ae67),
            (KVM_REGISTER_COALESCED_MMIO, 0x4010_ae67),
            (KVM_SET_GSI_ROUTING, 0x4008_ae6a),
            (KVM_IRQFD, 0x4020_ae76),
            (KVM_IOEVENTFD, 0x4040_ae79),
            (KVM_RUN, 0x0000_ae80),
            (KVM_GET_REGS, 0x8360_ae81),
            (KVM_GET_SREGS, 0x8000_ae83),
            (KVM_TRANSLATE, 0xc018_ae85),
            (KVM_SET_SIGNAL_MASK, 0x4004_ae8b),
            (KVM_GET_MP_STATE, 0x8004_ae98),
            (KVM_SET_MP_STATE, 0x4004_ae99),
            (KVM_SET_GUEST_DEBUG, 0x4208_ae9b),
            (KVM_GET_VCPU_EVENTS, 0x8040_ae9f),
            (KVM_SET_VCPU_EVENTS, 0x4040_aea0),
            (KVM_ENABLE_CAP, 0x4068_aea3),
            (KVM_SIGNAL_MSI, 0x4020_aea5),
            (KVM_GET_ONE_REG, 0x4010_aeab),
            (KVM_SET_ONE_REG, 0x4010_aeac),
            (KVM_ARM_VCPU_INIT, 0x4020_aeae),
            (KVM_ARM_PREFERRED_TARGET, 0x8020_aeaf),
            (KVM_GET_REG_LIST, 0xc008_aeb0),
            (KVM_ARM_MTE_COPY_TAGS, 0x8030_aeb4),
            (KVM_ARM_SET_COUNTER_OFFSET, 0x4010_aeb5),
            (KVM_ARM_GET_REG_WRITABLE_MASKS, 0x8040_aeb6),
            (KVM_CLEAR_DIRTY_LOG, 0xc018_aec0),
            (KVM_ARM_VCPU_FINALIZE, 0x4004_aec2),
            (KVM_RESET_DIRTY_RINGS, 0x0000_aec7),
            (KVM_GET_STATS_FD, 0x0000_aece),
            (KVM_SET_MEMORY_ATTRIBUTES, 0x4020_aed2),
            (KVM_CREATE_GUEST_MEMFD, 0xc040_aed4),
            (KVM_PRE_FAULT_MEMORY, 0xc040_aed5),
            (KVM_CREATE_DEVICE, 0xc00c_aee0),
            (KVM_SET_DEVICE_ATTR, 0x4018_aee1),
            (KVM_GET_DEVICE_ATTR, 0x4018_aee2),
            (KVM_HAS_DEVICE_ATTR, 0x4018_aee3),
        ] {
            assert_eq!(ioctl.raw(), raw, "{ioctl:?}: {:#010x}", ioctl.raw());
        }
    }

    #[test]
    fn a_number_knows_its_name_and_size() {
        assert_eq!(format!("{KVM_RUN:?}"), "KVM_RUN");
        assert_eq!(KVM_GET_ONE_REG.arg_size(), 16);
        assert!(KVM_RUN.is_kvm() && !Ioctl::from_raw(0x5401).is_kvm());
        assert!(lookup(Ioctl::from_raw(0x5401)).is_none());
    }

    /// kvm-probe makes each of them wrong in turn: its table has them all, by name, number and files.
    #[test]
    fn the_sweep_names_every_ioctl() {
        let sweep = include_str!("../../../vmm/src/probe/sweep.rs");
        let letter = |level: &Level| match level {
            System => 's',
            Vm => 'm',
            Vcpu => 'c',
            Device => 'd',
        };
        for row in ALL {
            let letters: std::string::String = row.levels.iter().map(letter).collect();
            let line = format!(
                "(\"{}\", {:#010x}, \"{letters}\",",
                row.name,
                row.ioctl.raw()
            );
            assert_eq!(sweep.matches(&line).count(), 1, "{line}");
        }
    }

    /// The document is part of the ABI: a call that it does not mention is a call nobody decided.
    #[test]
    fn the_document_names_every_ioctl_once() {
        let document = include_str!("../../../docs/abi.md");
        for row in ALL {
            let cell = format!("| `{}` |", row.name);
            assert_eq!(document.matches(&cell).count(), 1, "{}", row.name);
        }
        for line in document.lines().filter(|line| line.starts_with("| `KVM_")) {
            let cells: std::vec::Vec<&str> = line.trim_matches('|').split('|').collect();
            let name = cells[0].trim().trim_matches('`');
            if ALL.iter().any(|row| row.name == name) {
                assert_eq!(cells.len(), 4, "{name}: ioctl | level | state | note");
                let state = cells[2].trim();
                assert!(
                    matches!(state, "done" | "partial" | "absent"),
                    "{name}: {state}"
                );
            } else {
                assert!(
                    !line.contains("| done |"),
                    "{name} is no ioctl of KVM on arm64"
                );
            }
        }
    }
}
