//! Register frames as the guest and the VMM reach them: addressing, sizes, refusals. The registers are in `regs`.

use crate::banks::{Bank, Span};
use crate::regs::{DIST, RD, Reg, Region, SGI, find};
use crate::vcpus::{Kicks, VcpuSet};
use crate::vgic::Vgic;

/// Bytes of one redistributor: its RD and its SGI frame.
pub const REDIST_STRIDE: u64 = 0x2_0000;

/// One 64 KiB register frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// GICD_*.
    Dist,
    /// GICR_* of the RD_base frame of a vCPU.
    Rd(usize),
    /// GICR_* of the SGI_base frame of a vCPU. Offsets are relative to this frame: KVM's less 0x1_0000.
    Sgi(usize),
}

/// Who makes the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest. Sizes and places the architecture does not define read as zero and ignore writes.
    Guest,
    /// The guest, after syncing did not help for some rounds: answers from what is known instead of [`Refusal::NeedsSync`].
    GuestStale,
    /// The VMM, through KVM_DEV_ARM_VGIC_GRP_{DIST,REDIST}_REGS, with every vCPU stopped and synced.
    Uaccess,
}

/// Why an access was not made. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// These vCPUs have an interrupt in question in their list registers: sync them, then try again.
    NeedsSync(VcpuSet),
    /// No such register: ENXIO. For [`Access::Uaccess`] alone.
    NoRegister,
    /// A read-only field would change in a register where KVM insists (GICD_IIDR): EINVAL. For [`Access::Uaccess`] alone.
    Invalid,
    /// The same where it could have been chosen while there was no GIC yet (GICD_TYPER2): EBUSY. For [`Access::Uaccess`] alone.
    Settled,
}

/// Where in a contiguous run of redistributors `offset` (bytes from the first) falls: the how-manieth redistributor, as a frame
/// whose vCPU counts from `first_vcpu`, and the offset in that frame.
#[must_use]
pub fn redist_frame(first_vcpu: usize, offset: u64) -> (Frame, u32) {
    let vcpu = first_vcpu.saturating_add((offset / REDIST_STRIDE) as usize);
    let within = (offset % REDIST_STRIDE) as u32;
    if within < 0x1_0000 {
        (Frame::Rd(vcpu), within)
    } else {
        (Frame::Sgi(vcpu), within - 0x1_0000)
    }
}

/// Whether every vCPU should be out of the guest, and kept out, while this access is made: writes to the active state. Unlike
/// after [`Refusal::NeedsSync`] alone, none can then take the interrupt between the sync and the second try.
#[must_use]
pub fn needs_all_stopped(frame: Frame, offset: u32, write: bool) -> bool {
    let reg = find(regions(frame), offset).map(|region| region.reg);
    write && matches!(reg, Some(Reg::Bank(Bank::SetActive | Bank::ClearActive)))
}

/// Whether there is a register at `offset` of `frame` that a VMM may read or write by 32 bits (KVM_HAS_DEVICE_ATTR); that
/// the vCPU of the frame exists is for the caller to know.
#[must_use]
pub fn has_register(frame: Frame, offset: u32) -> bool {
    find(regions(frame), offset).is_some_and(|region| region.allows(offset, 4))
}

/// GICD_IIDR and GICR_IIDR: product "u", implementer Arm as KVM has it, for want of a JEP106 code of our own.
const IIDR: u32 = (b'u' as u32) << 24 | 0x43b;
/// The distributor's registers that a VMM may read before there is a GIC (KVM_DEV_ARM_VGIC_CTRL_INIT), and write back: GICD_IIDR
/// and GICD_TYPER2.
#[must_use]
pub fn known_early(frame: Frame, offset: u32) -> Option<u32> {
    let reg = find(regions(frame), offset).map(|region| region.reg);
    match reg {
        Some(Reg::Iidr) if frame == Frame::Dist => Some(IIDR),
        Some(Reg::GicdTyper2) => Some(0),
        _ => None,
    }
}

/// GICD_PIDR2 and GICR_PIDR2: architecture revision 3.
const PIDR2_GICV3: u64 = 0x3b;

impl Frame {
    /// Whose private interrupts the frame shows. The distributor shows none: any vCPU will do.
    const fn vcpu(self) -> usize {
        match self {
            Self::Dist => 0,
            Self::Rd(vcpu) | Self::Sgi(vcpu) => vcpu,
        }
    }
}

const fn regions(frame: Frame) -> &'static [Region] {
    match frame {
        Frame::Dist => DIST,
        Frame::Rd(_) => RD,
        Frame::Sgi(_) => SGI,
    }
}

impl Vgic {
    /// Reads `len` bytes (1, 2, 4 or 8) at `offset` of `frame`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn mmio_read(
        &self,
        access: Access,
        frame: Frame,
        offset: u32,
        len: u8,
    ) -> Result<u64, Refusal> {
        let Some(region) = self.locate(access, frame, offset, len)? else {
            return Ok(0);
        };
        let value = match region.reg {
            Reg::Zero | Reg::GicdTyper2 => 0,
            Reg::GicdCtlr => u64::from(self.gicd_ctlr()),
            Reg::GicdTyper => u64::from(self.gicd_typer()),
            Reg::Iidr => u64::from(IIDR),
            Reg::Pidr2 => PIDR2_GICV3,
            Reg::Irouter => part(self.irouter((offset - region.start) / 8), offset, len),
            Reg::GicrCtlr => self.gicr_ctlr(frame.vcpu()),
            Reg::Propbaser => part(self.lpis.propbaser, offset, len),
            Reg::Pendbaser => part(self.pendbaser(frame.vcpu()), offset, len),
            Reg::GicrTyper => part(self.gicr_typer(frame.vcpu()), offset, len),
            Reg::Bank(bank) => self.read_bank(
                access,
                bank,
                span(region, bank, frame, offset, len),
                frame == Frame::Dist,
            )?,
        };
        Ok(value)
    }

    /// Writes the low `len` bytes (1, 2, 4 or 8) of `value` at `offset` of `frame`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn mmio_write(
        &mut self,
        access: Access,
        frame: Frame,
        offset: u32,
        len: u8,
        value: u64,
    ) -> Result<Kicks, Refusal> {
        let Some(region) = self.locate(access, frame, offset, len)? else {
            return Ok(Kicks::NONE);
        };
        match region.reg {
            // The VMM writes back what it read, to learn whether this GIC is the one it saved.
            Reg::Iidr | Reg::GicdTyper2 if access == Access::Uaccess && frame == Frame::Dist => {
                let same =
                    self.mmio_read(access, frame, offset, len)? == value & u64::from(u32::MAX);
                match region.reg {
                    _ if same => Ok(Kicks::NONE),
                    Reg::GicdTyper2 => Err(Refusal::Settled),
                    _ => Err(Refusal::Invalid),
                }
            }
            Reg::Zero
            | Reg::GicdTyper
            | Reg::GicdTyper2
            | Reg::Iidr
            | Reg::Pidr2
            | Reg::GicrTyper => Ok(Kicks::NONE),
            Reg::GicdCtlr => Ok(self.set_gicd_ctlr(value as u32)),
            Reg::GicrCtlr => Ok(self.set_gicr_ctlr(frame.vcpu(), value)),
            Reg::Propbaser => {
                let value = with_part(self.lpis.propbaser, offset, len, value);
                self.set_propbaser(frame.vcpu(), value);
                Ok(Kicks::NONE)
            }
            Reg::Pendbaser => {
                let value = with_part(self.pendbaser(frame.vcpu()), offset, len, value);
                self.set_pendbaser(frame.vcpu(), value);
                Ok(Kicks::NONE)
            }
            Reg::Irouter => {
                let intid = (offset - region.start) / 8;
                Ok(self.set_irouter(intid, with_part(self.irouter(intid), offset, len, value)))
            }
            Reg::Bank(bank) => self.write_bank(
                access,
                bank,
                span(region, bank, frame, offset, len),
                frame == Frame::Dist,
                value,
            ),
        }
    }

    fn locate(
        &self,
        access: Access,
        frame: Frame,
        offset: u32,
        len: u8,
    ) -> Result<Option<&'static Region>, Refusal> {
        let exists = match frame {
            Frame::Dist => true,
            Frame::Rd(vcpu) | Frame::Sgi(vcpu) => vcpu < self.nr_vcpus(),
        };
        let found =
            find(regions(frame), offset).filter(|region| exists && region.allows(offset, len));
        match found {
            None if access == Access::Uaccess => Err(Refusal::NoRegister),
            found => Ok(found),
        }
    }
}

/// The interrupts whose fields `len` bytes at `offset` hold.
fn span(region: &Region, bank: Bank, frame: Frame, offset: u32, len: u8) -> Span {
    let width = bank.width();
    Span {
        vcpu: frame.vcpu(),
        first: (offset - region.start) * 8 / width,
        count: u32::from(len) * 8 / width,
    }
}

/// The 4 or 8 bytes at `offset` of a 64-bit register.
const fn part(reg: u64, offset: u32, len: u8) -> u64 {
    match (len, offset % 8) {
        (8, _) => reg,
        (_, 0) => reg & 0xffff_ffff,
        _ => reg >> 32,
    }
}

/// `reg` with the 4 or 8 bytes at `offset` replaced.
const fn with_part(reg: u64, offset: u32, len: u8, value: u64) -> u64 {
    match (len, offset % 8) {
        (8, _) => value,
        (_, 0) => reg & !0xffff_ffff | value & 0xffff_ffff,
        _ => reg & 0xffff_ffff | value << 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_finds_registers_by_words() {
        for (frame, offset, there) in [
            (Frame::Dist, 0x0, true),
            (Frame::Dist, 0x1, false),
            (Frame::Dist, 0x402, false),
            (Frame::Dist, 0x6104, true),
            (Frame::Dist, 0x14, false),
            (Frame::Rd(7), 0xc, true),
            (Frame::Rd(7), 0x80, false),
            (Frame::Sgi(0), 0x80, true),
            (Frame::Sgi(0), 0x84, false),
        ] {
            assert_eq!(has_register(frame, offset), there, "{frame:?} {offset:#x}");
        }
    }
}
