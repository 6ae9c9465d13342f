//! Interrupt lines, eventfds, routing, messages (api.rst 4.25, 4.75, 4.59, 4.52, 4.71).

use crate::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct kvm_irq_level`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqLevel {
    /// What to set, see [`IrqLine`]; KVM_IRQ_LINE_STATUS answers its status here.
    pub irq: u32,
    /// 0 low, anything else high.
    pub level: u32,
}

/// The line that the `irq` of KVM_IRQ_LINE names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqLine {
    /// A vCPU's own IRQ (0) or FIQ (1) pin; only without an interrupt controller in the kernel.
    Cpu {
        /// The vCPU's id.
        vcpu: u32,
        /// 0 IRQ, 1 FIQ.
        pin: u16,
    },
    /// A shared interrupt of the GIC; INTID 32 and up.
    Spi {
        /// The INTID.
        intid: u16,
    },
    /// A vCPU's private interrupt, INTID 16 to 31.
    Ppi {
        /// The vCPU's id.
        vcpu: u32,
        /// The INTID.
        intid: u16,
    },
}

impl IrqLine {
    /// Whether `irq` names a pin of a vCPU itself, which only a VM without a GIC has; `None` for an unknown type.
    pub const fn is_of_cpu(irq: u32) -> Option<bool> {
        match irq >> 24 & 15 {
            0 => Some(true),
            1 | 2 => Some(false),
            _ => None,
        }
    }

    /// Reads `irq`: vCPU id high part in \[31:28\], type in \[27:24\], vCPU id low part in
    /// \[23:16\], number in \[15:0\].
    ///
    /// # Errors
    /// EINVAL for an unknown type and for a number that the type does not have.
    pub const fn parse(irq: u32) -> Result<Self, Errno> {
        let vcpu = (irq >> 16 & 0xff) | (irq >> 28) << 8;
        let number = irq as u16;
        match irq >> 24 & 15 {
            0 if number <= 1 => Ok(Self::Cpu { vcpu, pin: number }),
            1 if number >= 32 => Ok(Self::Spi { intid: number }),
            2 if number >= 16 && number < 32 => Ok(Self::Ppi {
                vcpu,
                intid: number,
            }),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The `irq` that names this line; the vCPU id is taken modulo 4096.
    pub const fn encode(self) -> u32 {
        let (kind, vcpu, number) = match self {
            Self::Cpu { vcpu, pin } => (0, vcpu, pin),
            Self::Spi { intid } => (1, 0, intid),
            Self::Ppi { vcpu, intid } => (2, vcpu, intid),
        };
        (vcpu >> 8 & 15) << 28 | kind << 24 | (vcpu & 0xff) << 16 | number as u32
    }
}

/// `struct kvm_irqfd`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqFd {
    /// The eventfd.
    pub fd: u32,
    /// The GSI it raises: INTID − 32 with the default routing.
    pub gsi: u32,
    /// `KVM_IRQFD_FLAG_*`.
    pub flags: u32,
    /// With [`KVM_IRQFD_FLAG_RESAMPLE`]: the eventfd that end of interrupt writes to.
    pub resamplefd: u32,
    /// Ignored.
    pub pad: [u8; 16],
}

/// Unbind.
pub const KVM_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
/// The line is level-triggered and is sampled again at end of interrupt.
pub const KVM_IRQFD_FLAG_RESAMPLE: u32 = 1 << 1;

/// `struct kvm_ioeventfd`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoEventFd {
    /// The value that must be written, with [`KVM_IOEVENTFD_FLAG_DATAMATCH`].
    pub datamatch: u64,
    /// The address, guest physical.
    pub addr: u64,
    /// Size of the write: 1, 2, 4, 8, or 0 for any.
    pub len: u32,
    /// The eventfd.
    pub fd: i32,
    /// `KVM_IOEVENTFD_FLAG_*`.
    pub flags: u32,
    /// Ignored.
    pub pad: [u8; 36],
}

/// Only the value `datamatch` signals.
pub const KVM_IOEVENTFD_FLAG_DATAMATCH: u32 = 1 << 0;
/// An I/O port. arm64 has none, so no guest ever signals such an eventfd; Linux takes it all the same.
pub const KVM_IOEVENTFD_FLAG_PIO: u32 = 1 << 1;
/// Unbind.
pub const KVM_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << 2;

impl IoEventFd {
    /// Checks what does not need the VM's state.
    ///
    /// # Errors
    /// EINVAL for unknown flags, for a length that no access has, for an address range that wraps,
    /// and for a value to compare without a length.
    pub const fn check(&self) -> Result<(), Errno> {
        let known =
            KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
        let compares = self.flags & KVM_IOEVENTFD_FLAG_DATAMATCH != 0;
        let wraps = self.addr.checked_add(self.len as u64).is_none();
        if !matches!(self.len, 0 | 1 | 2 | 4 | 8)
            || wraps
            || self.flags & !known != 0
            || (self.len == 0 && compares)
        {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    const fn compares(&self) -> bool {
        self.flags & KVM_IOEVENTFD_FLAG_DATAMATCH != 0
    }

    const fn is_same_bus(&self, other: &Self) -> bool {
        (self.flags ^ other.flags) & KVM_IOEVENTFD_FLAG_PIO == 0
    }

    /// Whether a write could signal both, which a VM does not have (EEXIST).
    pub const fn collides(&self, other: &Self) -> bool {
        let any_length = self.len == 0 || other.len == 0 || self.len == other.len;
        let any_value = !self.compares() || !other.compares() || self.datamatch == other.datamatch;
        self.is_same_bus(other) && self.addr == other.addr && any_length && any_value
    }

    /// Whether `other`, which is to be taken back, is this one; the eventfds are the caller's to compare.
    pub const fn is(&self, other: &Self) -> bool {
        self.is_same_bus(other)
            && self.addr == other.addr
            && self.len == other.len
            && self.compares() == other.compares()
            && (!self.compares() || self.datamatch == other.datamatch)
    }

    /// Whether a write of `len` bytes of `value` at `addr` signals the eventfd.
    pub const fn matches(&self, addr: u64, len: u32, value: u64) -> bool {
        self.flags & KVM_IOEVENTFD_FLAG_PIO == 0
            && self.addr == addr
            && (self.len == 0 || self.len == len)
            && (!self.compares() || self.datamatch == value)
    }
}

/// `struct kvm_irq_routing`, followed by `nr` entries.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct IrqRouting {
    /// Number of entries that follow.
    pub nr: u32,
    /// Zero.
    pub flags: u32,
}

/// `struct kvm_irq_routing_entry`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct IrqRoutingEntry {
    /// The GSI.
    pub gsi: u32,
    /// 1: a pin of the interrupt controller; 2: a message.
    pub kind: u32,
    /// `KVM_MSI_VALID_DEVID` or 0.
    pub flags: u32,
    /// Ignored.
    pub pad: u32,
    /// A pin: chip, pin. A message: address low and high, data, device id.
    pub words: [u32; 8],
}

/// Where a routing entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Pin `pin` of the GIC: INTID − 32.
    Pin {
        /// The pin.
        pin: u32,
    },
    /// A message.
    Msi(Msi),
}

/// [`Msi::devid`] is valid.
pub const KVM_MSI_VALID_DEVID: u32 = 1 << 0;

impl IrqRoutingEntry {
    /// Reads the entry.
    ///
    /// # Errors
    /// EINVAL for a kind or flag that arm64 does not have and for a chip other than 0.
    pub const fn route(&self) -> Result<Route, Errno> {
        match self.kind {
            1 if self.flags == 0 && self.words[0] == 0 => Ok(Route::Pin { pin: self.words[1] }),
            2 if self.flags & !KVM_MSI_VALID_DEVID == 0 => Ok(Route::Msi(Msi {
                address_lo: self.words[0],
                address_hi: self.words[1],
                data: self.words[2],
                flags: self.flags,
                devid: self.words[3],
                pad: [0; 12],
            })),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// `struct kvm_msi`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Msi {
    /// Address, low half: the doorbell.
    pub address_lo: u32,
    /// Address, high half.
    pub address_hi: u32,
    /// The event id.
    pub data: u32,
    /// [`KVM_MSI_VALID_DEVID`] or 0.
    pub flags: u32,
    /// The device id.
    pub devid: u32,
    /// Ignored.
    pub pad: [u8; 12],
}

/// `struct kvm_coalesced_mmio_zone`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CoalescedMmioZone {
    /// First byte, guest physical.
    pub addr: u64,
    /// Size in bytes.
    pub size: u32,
    /// 0: MMIO; 1: I/O ports.
    pub pio: u32,
}

/// `struct kvm_arm_device_addr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ArmDeviceAddr {
    /// Device in \[31:16\], kind of address in \[15:0\].
    pub id: u64,
    /// The address, guest physical.
    pub addr: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_by_type() {
        assert_eq!(IrqLine::parse(1 << 24 | 40), Ok(IrqLine::Spi { intid: 40 }));
        let ppi = IrqLine::Ppi {
            vcpu: 0x103,
            intid: 27,
        };
        assert_eq!(IrqLine::parse(1 << 28 | 2 << 24 | 3 << 16 | 27), Ok(ppi));
        for bad in [3 << 24 | 40, 1 << 24 | 31, 2 << 24 | 32, 2 << 24 | 15, 2] {
            assert_eq!(IrqLine::parse(bad), Err(Errno::EINVAL), "{bad:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_line_survives_the_round_trip(irq: u32) {
            if let Ok(line) = IrqLine::parse(irq) {
                prop_assert_eq!(IrqLine::parse(line.encode()), Ok(line));
            }
        }
    }

    #[test]
    fn an_eventfd_matches_by_address_length_and_value() {
        let any = IoEventFd {
            datamatch: 7,
            addr: 0x1000,
            len: 0,
            fd: 3,
            flags: 0,
            pad: [0; 36],
        };
        assert_eq!(any.check(), Ok(()));
        assert!(any.matches(0x1000, 2, 9) && !any.matches(0x1004, 2, 9));
        let two = IoEventFd {
            len: 2,
            flags: KVM_IOEVENTFD_FLAG_DATAMATCH,
            ..any
        };
        assert_eq!(two.check(), Ok(()));
        assert!(two.matches(0x1000, 2, 7));
        assert!(!two.matches(0x1000, 4, 7) && !two.matches(0x1000, 2, 8));
        let port = IoEventFd {
            flags: KVM_IOEVENTFD_FLAG_PIO,
            ..any
        };
        assert_eq!(port.check(), Ok(()));
        assert!(!port.matches(0x1000, 2, 9), "no guest has ports");
        for bad in [
            IoEventFd { len: 3, ..any },
            IoEventFd {
                flags: 1 << 4,
                ..any
            },
            IoEventFd {
                flags: KVM_IOEVENTFD_FLAG_DATAMATCH,
                ..any
            },
            IoEventFd {
                addr: u64::MAX,
                len: 8,
                ..any
            },
        ] {
            assert_eq!(bad.check(), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn routes_are_pins_or_messages() {
        let pin = IrqRoutingEntry {
            kind: 1,
            words: [0, 5, 0, 0, 0, 0, 0, 0],
            ..Default::default()
        };
        assert_eq!(pin.route(), Ok(Route::Pin { pin: 5 }));
        let other_chip = IrqRoutingEntry {
            words: [1, 5, 0, 0, 0, 0, 0, 0],
            ..pin
        };
        assert_eq!(other_chip.route(), Err(Errno::EINVAL));
        assert_eq!(
            IrqRoutingEntry { kind: 3, ..pin }.route(),
            Err(Errno::EINVAL)
        );
        let message = IrqRoutingEntry {
            kind: 2,
            words: [1, 2, 3, 4, 0, 0, 0, 0],
            ..pin
        };
        let Ok(Route::Msi(msi)) = message.route() else {
            panic!("a message")
        };
        assert_eq!(
            (msi.address_lo, msi.address_hi, msi.data, msi.devid),
            (1, 2, 3, 4)
        );
    }
}
