//! Where things are in the guest's physical address space, and where the boot files go.
//!
//! ```text
//! 0x0800_0000  GICv3 distributor, 64 KiB
//! 0x080a_0000  GICv3 redistributors, 128 KiB per vCPU
//! 0x0900_0000  16550 UART, SPI 1
//! 0x0910_0000  error injection, 64 KiB, only with --error-injection
//! 0x0a00_0000  virtio-mmio slots of 4 KiB each, SPI 16 + slot
//! 0x8000_0000  RAM: kernel (2 MiB aligned + text_offset) · initrd · … · device tree (last 2 MiB)
//! ```
//!
//! Devices stay below RAM and RAM is one block, so one memory slot describes the whole guest
//! and every access outside it is a device's or nobody's. All addresses are guest physical.

use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use crate::image::Header;

/// Guest RAM, as this process sees it.
pub type Memory = GuestMemoryMmap<()>;

/// Most virtual CPUs of one machine.
pub const MAX_CPUS: u32 = 8;
/// Most virtio-mmio slots.
pub const MAX_VIRTIO: usize = 8;

/// Base of the GICv3 distributor.
pub const GIC_DIST: u64 = 0x0800_0000;
/// Size of the GICv3 distributor.
pub const GIC_DIST_SIZE: u64 = 0x1_0000;
/// Base of the GICv3 redistributors.
pub const GIC_REDIST: u64 = 0x080a_0000;
/// Size of one vCPU's redistributor.
pub const GIC_REDIST_SIZE: u64 = 0x2_0000;
/// Interrupt identifiers the GIC has: SGIs, PPIs and SPIs together.
pub const GIC_IRQS: u32 = 128;
/// PPI (not INTID) of the virtual GIC's maintenance interrupt, when the guest has EL2.
pub const GIC_MAINTENANCE_PPI: u32 = 9;

/// Base of the UART.
pub const SERIAL: u64 = 0x0900_0000;
/// Size of the UART's window.
pub const SERIAL_SIZE: u64 = 0x1000;
/// SPI of the UART.
pub const SERIAL_SPI: u32 = 1;

/// Base of the register for error injection: the same on every storey. It has a page of any size to
/// itself.
pub const INJECTION: u64 = 0x0910_0000;
/// Size of its window.
pub const INJECTION_SIZE: u64 = 0x1_0000;

/// Base of the first virtio-mmio slot.
pub const VIRTIO: u64 = 0x0a00_0000;
/// Size of a virtio-mmio slot.
pub const VIRTIO_SIZE: u64 = 0x1000;
/// SPI of the first virtio-mmio slot.
pub const VIRTIO_SPI: u32 = 16;

/// Base of RAM.
pub const RAM: u64 = 0x8000_0000;

/// The Linux boot protocol bounds a device tree by this size and lets it lie on any 8 bytes.
pub const DTB_MAX: u64 = 2 << 20;

const INITRD_ALIGN: u64 = 64 << 10;

/// Where the boot files of one machine lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// First byte of the kernel image, which is also its entry.
    pub kernel: u64,
    /// First byte of the initial RAM disk and its size in bytes.
    pub initrd: Option<(u64, u64)>,
    /// First byte of the device tree.
    pub dtb: u64,
}

impl Placement {
    /// Places a kernel, an initial RAM disk of `initrd` bytes and a device tree in `memory`
    /// bytes of RAM. Fails when they do not fit.
    pub fn new(header: &Header, initrd: Option<u64>, memory: u64) -> Result<Self> {
        let too_small = |what: &str, end: Option<u64>| {
            let need = end
                .and_then(|end| end.checked_add(DTB_MAX)?.checked_sub(RAM))
                .map_or("more than can be counted".into(), |n| {
                    format!("{} MiB", n.div_ceil(1 << 20))
                });
            Error::Failed(format!(
                "{what} does not fit: it needs {need} of RAM, the guest has {} MiB",
                memory >> 20
            ))
        };
        let dtb = RAM
            .checked_add(memory)
            .and_then(|end| end.checked_sub(DTB_MAX))
            .filter(|dtb| *dtb > RAM)
            .ok_or_else(|| Error::Failed("the guest has no room for a device tree".into()))?;

        let kernel = RAM.checked_add(header.text_offset);
        let kernel_end = kernel.and_then(|base| base.checked_add(header.image_size));
        let (kernel, kernel_end) = match (kernel, kernel_end) {
            (Some(base), Some(end)) if end <= dtb => (base, end),
            _ => return Err(too_small("the kernel", kernel_end)),
        };

        let initrd = match initrd {
            None => None,
            Some(size) => {
                let base = kernel_end.next_multiple_of(INITRD_ALIGN);
                match base.checked_add(size) {
                    Some(end) if end <= dtb => Some((base, size)),
                    end => return Err(too_small("the initrd", end)),
                }
            }
        };
        Ok(Placement {
            kernel,
            initrd,
            dtb,
        })
    }
}

/// The interrupt identifier of a shared peripheral interrupt.
pub const fn spi_to_intid(spi: u32) -> u32 {
    spi + 32
}

/// Base of a virtio-mmio slot.
pub const fn virtio_base(slot: usize) -> u64 {
    VIRTIO + slot as u64 * VIRTIO_SIZE
}

/// SPI of a virtio-mmio slot.
pub const fn virtio_spi(slot: usize) -> u32 {
    VIRTIO_SPI + slot as u32
}

// The windows do not overlap, and every SPI exists.
const _: () = {
    assert!(GIC_DIST + GIC_DIST_SIZE <= GIC_REDIST);
    assert!(GIC_REDIST + GIC_REDIST_SIZE * MAX_CPUS as u64 <= SERIAL);
    assert!(SERIAL + SERIAL_SIZE <= VIRTIO);
    assert!(virtio_base(MAX_VIRTIO) <= RAM);
    assert!(spi_to_intid(virtio_spi(MAX_VIRTIO)) <= GIC_IRQS);
    assert!(SERIAL_SPI < VIRTIO_SPI);
};

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn header(text_offset: u64, image_size: u64) -> Header {
        Header {
            text_offset,
            image_size,
        }
    }

    #[test]
    fn files_do_not_overlap() {
        let p = Placement::new(&header(0, 50 * MIB + 5), Some(3 * MIB + 1), 128 * MIB).unwrap();
        assert_eq!(p.kernel, RAM);
        let (base, size) = p.initrd.unwrap();
        assert!(base >= RAM + 50 * MIB + 5 && base % 4096 == 0);
        assert_eq!(size, 3 * MIB + 1);
        assert!(base + size <= p.dtb);
        assert_eq!(p.dtb, RAM + 126 * MIB);
    }

    #[test]
    fn text_offset_is_honoured() {
        let p = Placement::new(&header(0x8_0000, MIB), None, 64 * MIB).unwrap();
        assert_eq!((p.kernel, p.initrd), (RAM + 0x8_0000, None));
    }

    #[test]
    fn last_byte_that_fits_and_first_that_does_not() {
        let room = 62 * MIB;
        assert!(Placement::new(&header(0, room), None, 64 * MIB).is_ok());
        assert!(Placement::new(&header(0, room + 1), None, 64 * MIB).is_err());
        let left = room - MIB;
        assert!(Placement::new(&header(0, MIB), Some(left), 64 * MIB).is_ok());
        let e = Placement::new(&header(0, MIB), Some(left + 1), 64 * MIB).unwrap_err();
        assert!(
            e.to_string().contains("initrd") && e.to_string().contains("65 MiB"),
            "{e}"
        );
    }

    #[test]
    fn sizes_beyond_arithmetic_are_refused() {
        for h in [header(u64::MAX, 1), header(0, u64::MAX)] {
            assert!(Placement::new(&h, None, 64 * MIB).is_err());
        }
        assert!(Placement::new(&header(0, MIB), Some(u64::MAX), 64 * MIB).is_err());
        assert!(Placement::new(&header(0, 1), None, MIB).is_err());
        assert!(Placement::new(&header(0, 1), None, u64::MAX).is_err());
    }
}
