//! The attributes of the VGICv3 device (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`).
//!
//! A (group, attribute) pair from a VMM becomes a [`VgicAttr`] or an error; nothing behind this
//! module sees a raw attribute.

use crate::device::DeviceAttr;
use crate::errno::Errno;
use umbra_arm64::sysreg::SysReg;

/// Placement of the frames.
pub const KVM_DEV_ARM_VGIC_GRP_ADDR: u32 = 0;
/// Registers of the distributor.
pub const KVM_DEV_ARM_VGIC_GRP_DIST_REGS: u32 = 1;
/// Registers of a GICv2's CPU interface.
pub const KVM_DEV_ARM_VGIC_GRP_CPU_REGS: u32 = 2;
/// Number of interrupts.
pub const KVM_DEV_ARM_VGIC_GRP_NR_IRQS: u32 = 3;
/// Commands.
pub const KVM_DEV_ARM_VGIC_GRP_CTRL: u32 = 4;
/// Registers of a redistributor.
pub const KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: u32 = 5;
/// ICC system registers.
pub const KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: u32 = 6;
/// Input levels.
pub const KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: u32 = 7;
/// Registers of an ITS.
pub const KVM_DEV_ARM_VGIC_GRP_ITS_REGS: u32 = 8;
/// The maintenance interrupt of a guest hypervisor.
pub const KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ: u32 = 9;

/// Address attribute: the distributor, 64 KiB.
pub const KVM_VGIC_V3_ADDR_TYPE_DIST: u64 = 2;
/// Address attribute: the redistributors of all vCPUs in one piece, 128 KiB each.
pub const KVM_VGIC_V3_ADDR_TYPE_REDIST: u64 = 3;
/// Address attribute: the ITS, 128 KiB.
pub const KVM_VGIC_ITS_ADDR_TYPE: u64 = 4;
/// Address attribute: one region of redistributors among several.
pub const KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: u64 = 5;
/// Size of the distributor's frame in bytes.
pub const KVM_VGIC_V3_DIST_SIZE: u64 = 0x1_0000;
/// Size of one redistributor's frames in bytes.
pub const KVM_VGIC_V3_REDIST_SIZE: u64 = 0x2_0000;

/// Command: initialise the device.
pub const KVM_DEV_ARM_VGIC_CTRL_INIT: u64 = 0;
/// Command: write the pending state of LPIs to guest memory.
pub const KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES: u64 = 3;

/// An attribute of the VGICv3 device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VgicAttr {
    /// Base of the distributor; the value is a `u64`.
    DistAddr,
    /// Base of the redistributors; the value is a `u64`.
    RedistAddr,
    /// A [`RedistRegion`] as a `u64`.
    RedistRegionAddr,
    /// A register of the distributor; the value is a `u32`.
    DistReg {
        /// Byte offset in the frame.
        offset: u32,
    },
    /// A register of a redistributor; the value is a `u32`.
    RedistReg {
        /// Which vCPU, see [`affinity`].
        affinity: u64,
        /// Byte offset in the two frames.
        offset: u32,
    },
    /// An ICC register of a vCPU; the value is a `u64`.
    CpuSysReg {
        /// Which vCPU, see [`affinity`].
        affinity: u64,
        /// The register.
        reg: SysReg,
    },
    /// Number of interrupts, private ones included; the value is a `u32`.
    NrIrqs,
    /// Initialise.
    Init,
    /// Save the pending tables.
    SavePendingTables,
    /// The input levels of 32 interrupts; the value is a `u32`.
    LevelInfo {
        /// Which vCPU, see [`affinity`]; matters below 32.
        affinity: u64,
        /// The first of the 32 INTIDs.
        intid: u16,
    },
    /// The INTID of the maintenance interrupt; the value is a `u32`.
    MaintIrq,
}

/// The affinity fields that bits \[63:32\] of an attribute hold (Aff3.Aff2.Aff1.Aff0), as MPIDR_EL1
/// has them.
pub const fn affinity(attr: u64) -> u64 {
    let packed = attr >> 32;
    packed & 0x00ff_ffff | (packed & 0xff00_0000) << 8
}

impl VgicAttr {
    /// Reads group and attribute.
    ///
    /// # Errors
    /// ENXIO for a group or attribute that VGICv3 does not have, a misaligned offset among them;
    /// EINVAL for an INTID that no group of 32 starts with.
    pub fn parse(attr: &DeviceAttr) -> Result<Self, Errno> {
        let offset = attr.attr as u32;
        let affinity = affinity(attr.attr);
        match (attr.group, attr.attr) {
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST) => Ok(Self::DistAddr),
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST) => Ok(Self::RedistAddr),
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION) => {
                Ok(Self::RedistRegionAddr)
            }
            (KVM_DEV_ARM_VGIC_GRP_DIST_REGS | KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, _)
                if !offset.is_multiple_of(4) =>
            {
                Err(Errno::ENXIO)
            }
            (KVM_DEV_ARM_VGIC_GRP_DIST_REGS, _) => Ok(Self::DistReg { offset }),
            (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, _) => Ok(Self::RedistReg { affinity, offset }),
            (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, _) => Ok(Self::CpuSysReg {
                affinity,
                reg: SysReg::from_id(attr.attr as u16),
            }),
            (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, _) => Ok(Self::NrIrqs),
            (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT) => Ok(Self::Init),
            (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES) => {
                Ok(Self::SavePendingTables)
            }
            (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, _) if offset >> 10 == 0 => {
                let intid = (offset & 0x3ff) as u16;
                if intid.is_multiple_of(32) {
                    Ok(Self::LevelInfo { affinity, intid })
                } else {
                    Err(Errno::EINVAL)
                }
            }
            (KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ, _) => Ok(Self::MaintIrq),
            _ => Err(Errno::ENXIO),
        }
    }
}

/// A region of redistributors: how many, where, which of the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedistRegion {
    /// Number of redistributors, at least 1.
    pub count: u16,
    /// First byte, guest physical; a multiple of 64 KiB.
    pub base: u64,
    /// Index of the region, 0 to 4095; regions are given in order.
    pub index: u16,
}

impl RedistRegion {
    /// Reads the value: count in \[63:52\], base in \[51:16\], flags (zero) in \[15:12\], index in
    /// \[11:0\].
    ///
    /// # Errors
    /// EINVAL for nonzero flags and for a count of zero.
    pub const fn parse(value: u64) -> Result<Self, Errno> {
        let region = Self {
            count: (value >> 52) as u16,
            base: value & 0x000f_ffff_ffff_0000,
            index: (value & 0xfff) as u16,
        };
        if region.count == 0 || value >> 12 & 15 != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(region)
    }
}

/// Whether `count` is a number of interrupts that a VGICv3 can have: 64 to 1024 in steps of 32.
pub const fn is_valid_nr_irqs(count: u32) -> bool {
    count >= 64 && count <= 1024 && count.is_multiple_of(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(group: u32, attr: u64) -> Result<VgicAttr, Errno> {
        VgicAttr::parse(&DeviceAttr {
            flags: 0,
            group,
            attr,
            addr: 0,
        })
    }

    #[test]
    fn attributes_are_read_by_group() {
        assert_eq!(parse(0, 2), Ok(VgicAttr::DistAddr));
        assert_eq!(parse(0, 5), Ok(VgicAttr::RedistRegionAddr));
        assert_eq!(parse(1, 0x100), Ok(VgicAttr::DistReg { offset: 0x100 }));
        assert_eq!(
            parse(5, 0x0102_0304 << 32 | 0x1_0080),
            Ok(VgicAttr::RedistReg {
                affinity: 0x01_0002_0304,
                offset: 0x1_0080
            })
        );
        assert_eq!(
            parse(6, 1 << 32 | u64::from(SysReg::ICC_PMR_EL1.id())),
            Ok(VgicAttr::CpuSysReg {
                affinity: 1,
                reg: SysReg::ICC_PMR_EL1
            })
        );
        assert_eq!(parse(4, 0), Ok(VgicAttr::Init));
        assert_eq!(
            parse(7, 64),
            Ok(VgicAttr::LevelInfo {
                affinity: 0,
                intid: 64
            })
        );
        assert_eq!(parse(9, 0), Ok(VgicAttr::MaintIrq));
    }

    #[test]
    fn what_vgicv3_lacks_is_refused() {
        for (group, attr, errno) in [
            (0, 0, Errno::ENXIO),
            (0, 4, Errno::ENXIO),
            (1, 0x101, Errno::ENXIO),
            (2, 0, Errno::ENXIO),
            (4, 1, Errno::ENXIO),
            (7, 65, Errno::EINVAL),
            (7, 1 << 10, Errno::ENXIO),
            (8, 0, Errno::ENXIO),
            (10, 0, Errno::ENXIO),
        ] {
            assert_eq!(parse(group, attr), Err(errno), "{group} {attr:#x}");
        }
    }

    #[test]
    fn a_region_has_a_count_and_no_flags() {
        let region = RedistRegion {
            count: 8,
            base: 0x80a_0000,
            index: 1,
        };
        assert_eq!(RedistRegion::parse(8 << 52 | 0x80a_0000 | 1), Ok(region));
        assert_eq!(RedistRegion::parse(0x80a_0000), Err(Errno::EINVAL));
        assert_eq!(
            RedistRegion::parse(8 << 52 | 0x80a_0000 | 1 << 12),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn interrupts_come_in_thirty_twos() {
        assert!(is_valid_nr_irqs(64) && is_valid_nr_irqs(1024) && is_valid_nr_irqs(96));
        assert!(!is_valid_nr_irqs(32) && !is_valid_nr_irqs(1056) && !is_valid_nr_irqs(65));
    }
}
