//! The virtual CPU interface as EL2 sees it: ICH_VTR_EL2, ICH_VMCR_EL2, ICH_HCR_EL2 (IHI 0069, "AArch64 virtualization
//! control System registers").

use bitfield_struct::bitfield;

/// ICH_VTR_EL2: what the hardware has. Build it with `Vtr::from_bits` of the register.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Vtr {
    /// Number of list registers, minus one.
    #[bits(5)]
    pub list_regs: u8,
    #[bits(14)]
    __: u16,
    /// ICH_HCR_EL2.TDIR is implemented.
    pub tds: bool,
    /// No direct injection of virtual interrupts.
    pub nv4: bool,
    /// Affinity level 3 may be other than zero.
    pub a3v: bool,
    /// SErrors are generated locally.
    pub seis: bool,
    /// Virtual INTID bits: 0 is 16, 1 is 24.
    #[bits(3)]
    pub id_bits: u8,
    /// Virtual preemption bits, minus one.
    #[bits(3)]
    pub pre_bits: u8,
    /// Virtual priority bits, minus one.
    #[bits(3)]
    pub pri_bits: u8,
    #[bits(32)]
    __: u32,
}

impl Vtr {
    /// The bits of a priority that are stored.
    #[must_use]
    pub const fn priority_mask(self) -> u8 {
        // pri_bits is at least 4: five bits of priority are the least an implementation has.
        let unimplemented = 7 - self.pri_bits();
        0xff << unimplemented
    }
}

/// ICH_VMCR_EL2: the guest's view of ICC_PMR, ICC_BPR, ICC_CTLR and ICC_IGRPEN.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Vmcr {
    /// VENG0: group 0 is signalled.
    pub group0: bool,
    /// VENG1: group 1 is signalled.
    pub group1: bool,
    /// VAckCtl.
    pub ack_ctl: bool,
    /// VFIQEn.
    pub fiq_en: bool,
    /// VCBPR.
    pub cbpr: bool,
    #[bits(4)]
    __: u8,
    /// VEOIM: the guest drops priority and deactivates in two steps.
    pub eoi_mode: bool,
    #[bits(8)]
    __: u8,
    /// VBPR1.
    #[bits(3)]
    pub bpr1: u8,
    /// VBPR0.
    #[bits(3)]
    pub bpr0: u8,
    /// VPMR: only interrupts with a smaller number are signalled.
    #[bits(8)]
    pub pmr: u8,
    #[bits(32)]
    __: u32,
}

/// Bits of ICH_HCR_EL2 that [`crate::Vgic::flush`] wants; every other bit (En and traps of the kernel's own) is the kernel's.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct HcrBits {
    /// En: the virtual CPU interface works.
    pub en: bool,
    /// UIE: maintenance interrupt when at most one list register is in use.
    pub uie: bool,
    /// LRENPIE: maintenance interrupt when EOIcount is not zero.
    pub lrenpie: bool,
    /// NPIE: maintenance interrupt when no list register is pending.
    pub npie: bool,
    #[bits(6)]
    __: u8,
    /// TC: the registers common to both groups trap (ICC_DIR, ICC_CTLR, ICC_PMR, ICC_RPR, the SGI registers).
    pub tc: bool,
    #[bits(3)]
    __: u8,
    /// TDIR: ICC_DIR_EL1 traps.
    pub tdir: bool,
    #[bits(12)]
    __: u16,
    /// EOIcount: deactivations of interrupts that were in no list register.
    #[bits(5)]
    pub eoi_count: u8,
    #[bits(32)]
    __: u32,
}

/// The part of the CPU interface that lives in system registers and travels with the vCPU. Default is its reset value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuIf {
    /// ICH_VMCR_EL2.
    pub vmcr: Vmcr,
    /// `ICH_AP0R<n>_EL2`: active priorities of group 0.
    pub ap0r: [u32; 4],
    /// `ICH_AP1R<n>_EL2`: active priorities of group 1.
    pub ap1r: [u32; 4],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_manual_puts_them() {
        assert_eq!(Vmcr::new().with_eoi_mode(true).into_bits(), 1 << 9);
        assert_eq!(Vmcr::new().with_bpr1(7).into_bits(), 7 << 18);
        assert_eq!(Vmcr::new().with_bpr0(7).into_bits(), 7 << 21);
        assert_eq!(Vmcr::new().with_pmr(0xff).into_bits(), 0xff << 24);
        assert_eq!(Vmcr::new().with_cbpr(true).into_bits(), 1 << 4);
        assert_eq!(HcrBits::new().with_lrenpie(true).into_bits(), 1 << 2);
        assert_eq!(HcrBits::new().with_npie(true).into_bits(), 1 << 3);
        assert_eq!(HcrBits::new().with_tc(true).into_bits(), 1 << 10);
        assert_eq!(HcrBits::new().with_tdir(true).into_bits(), 1 << 14);
        assert_eq!(HcrBits::new().with_eoi_count(31).into_bits(), 31 << 27);
        assert_eq!(Vtr::new().with_tds(true).into_bits(), 1 << 19);
        assert_eq!(Vtr::new().with_a3v(true).into_bits(), 1 << 21);
        assert_eq!(Vtr::new().with_id_bits(7).into_bits(), 7 << 23);
        assert_eq!(Vtr::new().with_pre_bits(7).into_bits(), 7 << 26);
        assert_eq!(Vtr::new().with_pri_bits(7).into_bits(), 7 << 29);
    }

    #[test]
    fn five_bits_of_priority_are_steps_of_eight() {
        assert_eq!(Vtr::new().with_pri_bits(4).priority_mask(), 0xf8);
        assert_eq!(Vtr::new().with_pri_bits(7).priority_mask(), 0xff);
    }
}
