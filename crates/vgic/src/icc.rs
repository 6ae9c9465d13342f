//! The CPU interface by the names a VMM saves and restores it with: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS
//! (Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst).
//!
//! The values are those of the guest's ICC_* registers, the state is ICH_VMCR_EL2 and the active priorities.

use umbra_arm64::sysreg::SysReg;

use crate::cpuif::{CpuIf, Vtr};

/// A register of the CPU interface that holds state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IccReg {
    /// ICC_PMR_EL1.
    Pmr,
    /// ICC_BPR0_EL1.
    Bpr0,
    /// ICC_BPR1_EL1.
    Bpr1,
    /// `ICC_AP0R<n>_EL1`.
    Ap0r(u8),
    /// `ICC_AP1R<n>_EL1`.
    Ap1r(u8),
    /// ICC_CTLR_EL1.
    Ctlr,
    /// ICC_SRE_EL1.
    Sre,
    /// ICC_IGRPEN0_EL1.
    Igrpen0,
    /// ICC_IGRPEN1_EL1.
    Igrpen1,
}

/// The value or the register is not one that this machine can give its guests: EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidIcc;

/// ICC_SRE_EL1: system registers are in use, nothing is bypassed. All of it is fixed.
const SRE: u64 = 0b111;
/// ICC_SRE_EL1.SRE.
const SRE_SRE: u64 = 1;

/// ICC_CTLR_EL1.CBPR.
const CTLR_CBPR: u64 = 1 << 0;
/// ICC_CTLR_EL1.EOImode.
const CTLR_EOI_MODE: u64 = 1 << 1;
/// ICC_CTLR_EL1.PRIbits.
const CTLR_PRI_BITS: u32 = 8;
/// ICC_CTLR_EL1.IDbits.
const CTLR_ID_BITS: u32 = 11;
/// ICC_CTLR_EL1.SEIS.
const CTLR_SEIS: u64 = 1 << 14;
/// ICC_CTLR_EL1.A3V.
const CTLR_A3V: u64 = 1 << 15;

impl IccReg {
    /// The register of this encoding; `None` for one without state of its own, or no ICC register: ENXIO.
    #[must_use]
    pub fn from_enc(enc: SysReg) -> Option<Self> {
        Some(match enc {
            SysReg::ICC_PMR_EL1 => Self::Pmr,
            SysReg::ICC_BPR0_EL1 => Self::Bpr0,
            SysReg::ICC_BPR1_EL1 => Self::Bpr1,
            SysReg::ICC_AP0R0_EL1 => Self::Ap0r(0),
            SysReg::ICC_AP0R1_EL1 => Self::Ap0r(1),
            SysReg::ICC_AP0R2_EL1 => Self::Ap0r(2),
            SysReg::ICC_AP0R3_EL1 => Self::Ap0r(3),
            SysReg::ICC_AP1R0_EL1 => Self::Ap1r(0),
            SysReg::ICC_AP1R1_EL1 => Self::Ap1r(1),
            SysReg::ICC_AP1R2_EL1 => Self::Ap1r(2),
            SysReg::ICC_AP1R3_EL1 => Self::Ap1r(3),
            SysReg::ICC_CTLR_EL1 => Self::Ctlr,
            SysReg::ICC_SRE_EL1 => Self::Sre,
            SysReg::ICC_IGRPEN0_EL1 => Self::Igrpen0,
            SysReg::ICC_IGRPEN1_EL1 => Self::Igrpen1,
            _ => return None,
        })
    }
}

/// Whether there is an active priority register `n`: 32 preemption levels each (IHI 0069, "`ICH_AP0R<n>_EL2`").
fn has_apr(n: u8, vtr: Vtr) -> bool {
    let priority_bits = vtr.pri_bits() + 1;
    n < 1 << priority_bits.saturating_sub(5).min(2)
}

impl CpuIf {
    /// The value of `reg` as a guest on hardware with `vtr` would read it.
    ///
    /// # Errors
    /// [`InvalidIcc`]: an active priority register that the hardware lacks.
    pub fn icc(&self, reg: IccReg, vtr: Vtr) -> Result<u64, InvalidIcc> {
        let vmcr = self.vmcr;
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        Ok(match reg {
            IccReg::Pmr => vmcr.pmr().into(),
            IccReg::Bpr0 => vmcr.bpr0().into(),
            // With CBPR both groups use BPR0, and BPR1 shows one more than that.
            IccReg::Bpr1 if vmcr.cbpr() => u64::from(vmcr.bpr0() + 1).min(7),
            IccReg::Bpr1 => vmcr.bpr1().into(),
            IccReg::Ap0r(n) => apr(&self.ap0r, n, vtr)?.into(),
            IccReg::Ap1r(n) => apr(&self.ap1r, n, vtr)?.into(),
            IccReg::Ctlr => {
                flag(vmcr.cbpr(), CTLR_CBPR)
                    | flag(vmcr.eoi_mode(), CTLR_EOI_MODE)
                    | u64::from(vtr.pri_bits()) << CTLR_PRI_BITS
                    | u64::from(vtr.id_bits()) << CTLR_ID_BITS
                    | flag(vtr.seis(), CTLR_SEIS)
                    | flag(vtr.a3v(), CTLR_A3V)
            }
            IccReg::Sre => SRE,
            IccReg::Igrpen0 => vmcr.group0().into(),
            IccReg::Igrpen1 => vmcr.group1().into(),
        })
    }

    /// Restores `reg`. Bits that hold no state are dropped.
    ///
    /// # Errors
    /// [`InvalidIcc`]: an active priority register that the hardware lacks, an ICC_CTLR_EL1 of hardware with more priority or INTID
    /// bits or other kinds of affinity or SErrors, an ICC_SRE_EL1 with the system registers off.
    pub fn set_icc(&mut self, reg: IccReg, vtr: Vtr, value: u64) -> Result<(), InvalidIcc> {
        match reg {
            IccReg::Pmr => self.vmcr.set_pmr(value as u8),
            IccReg::Bpr0 => self.vmcr.set_bpr0(value as u8 & 7),
            // Not the guest's to set either while CBPR makes it a shadow of BPR0.
            IccReg::Bpr1 if self.vmcr.cbpr() => {}
            IccReg::Bpr1 => self.vmcr.set_bpr1(value as u8 & 7),
            IccReg::Ap0r(n) => *apr_mut(&mut self.ap0r, n, vtr)? = value as u32,
            IccReg::Ap1r(n) => *apr_mut(&mut self.ap1r, n, vtr)? = value as u32,
            IccReg::Ctlr => {
                let same_machine = value >> CTLR_PRI_BITS & 7 <= u64::from(vtr.pri_bits())
                    && value >> CTLR_ID_BITS & 7 <= u64::from(vtr.id_bits())
                    && (value & CTLR_SEIS != 0) == vtr.seis()
                    && (value & CTLR_A3V != 0) == vtr.a3v();
                if !same_machine {
                    return Err(InvalidIcc);
                }
                self.vmcr.set_cbpr(value & CTLR_CBPR != 0);
                self.vmcr.set_eoi_mode(value & CTLR_EOI_MODE != 0);
            }
            IccReg::Sre if value & SRE_SRE == 0 => return Err(InvalidIcc),
            IccReg::Sre => {}
            IccReg::Igrpen0 => self.vmcr.set_group0(value & 1 != 0),
            IccReg::Igrpen1 => self.vmcr.set_group1(value & 1 != 0),
        }
        Ok(())
    }
}

fn apr(words: &[u32; 4], n: u8, vtr: Vtr) -> Result<u32, InvalidIcc> {
    let word = words.get(usize::from(n)).filter(|_| has_apr(n, vtr));
    word.copied().ok_or(InvalidIcc)
}

fn apr_mut(words: &mut [u32; 4], n: u8, vtr: Vtr) -> Result<&mut u32, InvalidIcc> {
    let word = words.get_mut(usize::from(n)).filter(|_| has_apr(n, vtr));
    word.ok_or(InvalidIcc)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five bits of priority, 16 of INTID, Aff3.
    const VTR: Vtr = Vtr::new().with_pri_bits(4).with_a3v(true);

    #[test]
    fn what_is_set_is_read_and_nothing_else_moves() {
        for (reg, value, vmcr) in [
            (IccReg::Pmr, 0xf8, 0xf8 << 24),
            (IccReg::Bpr0, 5, 5 << 21),
            (IccReg::Bpr1, 6, 6 << 18),
            (IccReg::Igrpen0, 1, 1),
            (IccReg::Igrpen1, 1, 2),
        ] {
            let mut cpuif = CpuIf::default();
            assert_eq!(cpuif.set_icc(reg, VTR, value), Ok(()));
            assert_eq!(cpuif.icc(reg, VTR), Ok(value), "{reg:?}");
            assert_eq!(cpuif.vmcr.into_bits(), vmcr, "{reg:?}");
        }
    }

    #[test]
    fn control_shows_the_machine_and_keeps_two_bits() {
        let mut cpuif = CpuIf::default();
        let machine = 4 << 8 | 1 << 15;
        assert_eq!(cpuif.icc(IccReg::Ctlr, VTR), Ok(machine));
        assert_eq!(cpuif.set_icc(IccReg::Ctlr, VTR, machine | 3), Ok(()));
        assert_eq!(cpuif.vmcr.into_bits(), 1 << 4 | 1 << 9);
        assert_eq!(cpuif.icc(IccReg::Ctlr, VTR), Ok(machine | 3));
    }

    #[test]
    fn control_of_a_better_machine_is_refused() {
        for (value, granted) in [
            (4 << 8 | 1 << 15, true),
            (3 << 8 | 1 << 15, true),
            (5 << 8 | 1 << 15, false),
            (4 << 8 | 1 << 11 | 1 << 15, false),
            (4 << 8 | 1 << 14 | 1 << 15, false),
            (4 << 8, false),
        ] {
            let mut cpuif = CpuIf::default();
            let result = cpuif.set_icc(IccReg::Ctlr, VTR, value | 1);
            assert_eq!(result.is_ok(), granted, "{value:#x}");
            assert_eq!(
                cpuif.vmcr.cbpr(),
                granted,
                "a refused write changes nothing"
            );
        }
    }

    #[test]
    fn bpr1_follows_bpr0_while_they_are_common() {
        let mut cpuif = CpuIf::default();
        cpuif.vmcr = cpuif.vmcr.with_bpr0(7).with_bpr1(2).with_cbpr(true);
        assert_eq!(cpuif.icc(IccReg::Bpr1, VTR), Ok(7));
        assert_eq!(cpuif.set_icc(IccReg::Bpr1, VTR, 4), Ok(()));
        assert_eq!(cpuif.vmcr.bpr1(), 2);
        cpuif.vmcr.set_bpr0(3);
        assert_eq!(cpuif.icc(IccReg::Bpr1, VTR), Ok(4));
    }

    #[test]
    fn active_priorities_are_as_many_as_the_bits_call_for() {
        for (pri_bits, count) in [(4, 1), (5, 2), (6, 4), (7, 4)] {
            let vtr = VTR.with_pri_bits(pri_bits);
            for n in 0..4 {
                let mut cpuif = CpuIf::default();
                let there = n < count;
                assert_eq!(cpuif.set_icc(IccReg::Ap0r(n), vtr, 0xa0).is_ok(), there);
                assert_eq!(cpuif.set_icc(IccReg::Ap1r(n), vtr, 0xa1).is_ok(), there);
                if there {
                    assert_eq!(cpuif.ap0r[usize::from(n)], 0xa0);
                    assert_eq!(cpuif.icc(IccReg::Ap1r(n), vtr), Ok(0xa1));
                } else {
                    assert_eq!(cpuif, CpuIf::default());
                    assert_eq!(cpuif.icc(IccReg::Ap1r(n), vtr), Err(InvalidIcc));
                }
            }
        }
    }

    #[test]
    fn system_registers_cannot_be_switched_off() {
        let mut cpuif = CpuIf::default();
        assert_eq!(cpuif.icc(IccReg::Sre, VTR), Ok(7));
        assert_eq!(cpuif.set_icc(IccReg::Sre, VTR, 7), Ok(()));
        assert_eq!(cpuif.set_icc(IccReg::Sre, VTR, 6), Err(InvalidIcc));
    }

    #[test]
    fn names_with_state_and_without() {
        assert_eq!(
            IccReg::from_enc(SysReg::ICC_AP1R3_EL1),
            Some(IccReg::Ap1r(3))
        );
        for enc in [
            SysReg::ICC_IAR1_EL1,
            SysReg::ICC_RPR_EL1,
            SysReg::ICC_SGI1R_EL1,
            SysReg::SCTLR_EL1,
        ] {
            assert_eq!(IccReg::from_enc(enc), None, "{enc}");
        }
    }
}
