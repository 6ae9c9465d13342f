//! KVM's device attributes of a VGICv3, decoded (Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use umbra_arm64::Ipa;

use crate::mmio::{Frame, REDIST_STRIDE, redist_frame};
use crate::vcpus::Kicks;
use crate::vgic::{Affinity, Vgic};

/// A device attribute that names something of this VM's GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// KVM_VGIC_V3_ADDR_TYPE_DIST: guest-physical base, u64.
    DistAddr,
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST: guest-physical base of all redistributors, u64.
    RedistAddr,
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: [`RedistRegion`], u64.
    RedistRegion,
    /// KVM_DEV_ARM_VGIC_GRP_{DIST,REDIST}_REGS: a u32 at this place, with [`crate::Access::Uaccess`].
    Register(Frame, u32),
    /// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: a u64; `instr` is Op0..Op2 as in KVM_REG_ARM64_SYSREG.
    SysReg {
        /// Whose.
        vcpu: usize,
        /// Op0 in bits 15:14, Op1 in 13:11, CRn in 10:7, CRm in 6:3, Op2 in 2:0.
        instr: u16,
    },
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS: a u32.
    NrIrqs,
    /// KVM_DEV_ARM_VGIC_CTRL_INIT.
    Init,
    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES: nothing to save without LPIs.
    SavePendingTables,
    /// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, VGIC_LEVEL_INFO_LINE_LEVEL: a u32 for 32 interrupts.
    LineLevel {
        /// Whose PPIs; of no consequence for SPIs.
        vcpu: usize,
        /// First of the 32; a multiple of 32.
        intid: u32,
    },
    /// KVM_DEV_ARM_VGIC_GRP_MAINT_IRQ: a u32, a PPI.
    MaintIrq,
}

/// Why an attribute names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrError {
    /// No such group or attribute: ENXIO.
    NoAttr,
    /// No vCPU with that affinity, or a malformed INTID: EINVAL.
    Invalid,
}

/// The value of KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedistRegion {
    /// Number of redistributors; not zero.
    pub count: u32,
    /// Where the first one is; a multiple of 64 KiB.
    pub base: Ipa,
    /// Which region.
    pub index: u16,
}

impl RedistRegion {
    /// Decodes the value; `None` when count is zero or flags are not (EINVAL).
    #[must_use]
    pub const fn decode(value: u64) -> Option<Self> {
        let region = Self {
            count: (value >> 52) as u32,
            base: Ipa::new(value & 0x000f_ffff_ffff_0000),
            index: value as u16 & 0xfff,
        };
        if region.count == 0 || value & 0xf000 != 0 {
            None
        } else {
            Some(region)
        }
    }

    /// The value KVM_GET_DEVICE_ATTR answers.
    #[must_use]
    pub const fn encode(self) -> u64 {
        (self.count as u64) << 52 | self.base.raw() | self.index as u64
    }
}

/// KVM_DEV_ARM_VGIC_GRP_*.
mod group {
    pub(super) const ADDR: u32 = 0;
    pub(super) const DIST_REGS: u32 = 1;
    pub(super) const NR_IRQS: u32 = 3;
    pub(super) const CTRL: u32 = 4;
    pub(super) const REDIST_REGS: u32 = 5;
    pub(super) const CPU_SYSREGS: u32 = 6;
    pub(super) const LEVEL_INFO: u32 = 7;
    pub(super) const MAINT_IRQ: u32 = 9;
}

/// Decodes `attr` of `group` (struct kvm_device_attr). `vcpu_of` finds a vCPU by affinity: [`Vgic::vcpu_by_affinity`], or before
/// KVM_DEV_ARM_VGIC_CTRL_INIT the kernel's own list. That a register exists is for the access itself to say.
///
/// # Errors
/// See [`AttrError`].
pub fn decode_attr(
    vcpu_of: impl Fn(Affinity) -> Option<usize>,
    group: u32,
    attr: u64,
) -> Result<Attr, AttrError> {
    let low = attr as u32;
    let vcpu = || vcpu_of(Affinity((attr >> 32) as u32)).ok_or(AttrError::Invalid);
    match (group, attr) {
        (group::ADDR, 2) => Ok(Attr::DistAddr),
        (group::ADDR, 3) => Ok(Attr::RedistAddr),
        // 4 is the ITS's.
        (group::ADDR, 5) => Ok(Attr::RedistRegion),
        (group::DIST_REGS, _) => Ok(Attr::Register(Frame::Dist, low)),
        (group::REDIST_REGS, _) => {
            let vcpu = vcpu()?;
            if u64::from(low) >= REDIST_STRIDE {
                return Err(AttrError::NoAttr);
            }
            let (frame, offset) = redist_frame(vcpu, u64::from(low));
            Ok(Attr::Register(frame, offset))
        }
        (group::CPU_SYSREGS, _) => Ok(Attr::SysReg {
            vcpu: vcpu()?,
            instr: attr as u16,
        }),
        (group::NR_IRQS, _) => Ok(Attr::NrIrqs),
        (group::CTRL, 0) => Ok(Attr::Init),
        (group::CTRL, 3) => Ok(Attr::SavePendingTables),
        // Bits 31:10 say what to report: 0 is VGIC_LEVEL_INFO_LINE_LEVEL.
        (group::LEVEL_INFO, _) => match (low >> 10, low & 0x3ff) {
            (0, intid) if intid.is_multiple_of(32) => Ok(Attr::LineLevel {
                vcpu: vcpu()?,
                intid,
            }),
            _ => Err(AttrError::Invalid),
        },
        (group::MAINT_IRQ, _) => Ok(Attr::MaintIrq),
        _ => Err(AttrError::NoAttr),
    }
}

impl Vgic {
    /// The lines of 32 interrupts from `intid`, for [`Attr::LineLevel`]. SGIs and what does not exist read as zero.
    #[must_use]
    pub fn line_levels(&self, vcpu: usize, intid: u32) -> u32 {
        (0..32).fold(0, |levels, bit| {
            let irq = intid
                .checked_add(bit)
                .and_then(|intid| self.irq(vcpu, intid));
            levels | u32::from(irq.is_some_and(|irq| irq.line)) << bit
        })
    }

    /// Restores the lines of 32 interrupts from `intid`. No edge is seen: the latch is restored through ISPENDR, and configuration
    /// may come later.
    pub fn set_line_levels(&mut self, vcpu: usize, intid: u32, levels: u32) -> Kicks {
        let mut kicks = Kicks::NONE;
        for (bit, intid) in (0..32).filter_map(|bit| Some((bit, intid.checked_add(bit)?))) {
            let level = levels & (1 << bit) != 0;
            let Some(irq) = self
                .irq_mut(vcpu, intid)
                .filter(|irq| intid >= 16 && irq.line != level)
            else {
                continue;
            };
            irq.line = level;
            kicks |= self.settle(vcpu, intid);
        }
        kicks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(group: u32, attr: u64) -> Result<Attr, AttrError> {
        let all = [Affinity(0), Affinity(0x0100_0203)];
        decode_attr(
            |affinity| all.iter().position(|&one| one == affinity),
            group,
            attr,
        )
    }

    const SECOND: u64 = 0x0100_0203 << 32;

    #[test]
    fn addresses_and_control() {
        assert_eq!(decode(0, 2), Ok(Attr::DistAddr));
        assert_eq!(decode(0, 3), Ok(Attr::RedistAddr));
        assert_eq!(decode(0, 5), Ok(Attr::RedistRegion));
        assert_eq!(decode(3, 0), Ok(Attr::NrIrqs));
        assert_eq!(decode(4, 0), Ok(Attr::Init));
        assert_eq!(decode(4, 3), Ok(Attr::SavePendingTables));
        assert_eq!(decode(9, 0), Ok(Attr::MaintIrq));
        // GICv2's addresses, its CPU interface, the ITS's commands and noise.
        for (group, attr) in [
            (0, 0),
            (0, 1),
            (0, 4),
            (2, 0),
            (4, 1),
            (4, 2),
            (8, 0),
            (10, 0),
            (u32::MAX, 0),
        ] {
            assert_eq!(
                decode(group, attr),
                Err(AttrError::NoAttr),
                "{group} {attr}"
            );
        }
    }

    #[test]
    fn registers_name_a_frame_and_the_mpidr_a_vcpu() {
        assert_eq!(
            decode(1, 0x100 | 77 << 32),
            Ok(Attr::Register(Frame::Dist, 0x100))
        );
        assert_eq!(
            decode(5, SECOND | 0x8),
            Ok(Attr::Register(Frame::Rd(1), 0x8))
        );
        assert_eq!(
            decode(5, 0x1_0100),
            Ok(Attr::Register(Frame::Sgi(0), 0x100))
        );
        assert_eq!(decode(5, 0x2_0000), Err(AttrError::NoAttr));
        assert_eq!(decode(5, 1 << 32), Err(AttrError::Invalid));
        assert_eq!(
            decode(6, SECOND | 0xc230),
            Ok(Attr::SysReg {
                vcpu: 1,
                instr: 0xc230
            })
        );
    }

    #[test]
    fn line_levels_come_by_32() {
        assert_eq!(
            decode(7, SECOND | 64),
            Ok(Attr::LineLevel { vcpu: 1, intid: 64 })
        );
        assert_eq!(decode(7, 65), Err(AttrError::Invalid));
        assert_eq!(decode(7, 1 << 10 | 64), Err(AttrError::Invalid));
    }

    #[test]
    fn a_region_survives_its_encoding() {
        let region = RedistRegion {
            count: 0xabc,
            base: Ipa::new(0x8_0001_0000),
            index: 0x123,
        };
        assert_eq!(RedistRegion::decode(region.encode()), Some(region));
        assert_eq!(region.encode(), 0xabc0_0008_0001_0123);
        assert_eq!(
            RedistRegion::decode(0x1_0000),
            None,
            "no redistributor in it"
        );
        assert_eq!(
            RedistRegion::decode(1 << 52 | 0x1000),
            None,
            "flags are reserved"
        );
    }
}
