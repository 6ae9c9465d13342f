//! The VNCR page: where FEAT_NV2 turns a guest hypervisor's register accesses into memory.
//!
//! With HCR_EL2.{NV,NV2} = {1,1} an MSR or MRS at vEL2 of a register listed here becomes a store or
//! load in the 4 KiB page at VNCR_EL2.BADDR, without a trap (Arm ARM, "Memory-mapped locations of
//! transformed registers", table D8-84 onwards). So the page is at once the register file of vEL2
//! and the save area of L2's EL1 state. Everything in it is the guest's word: sanitise at use.
//!
//! EL1 registers are listed by their plain EL1 encoding, although a hypervisor with E2H set reaches
//! the slot by the `_EL12` or `_EL02` name.

use crate::sysreg::SysReg;

/// Size and alignment of the page, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// Number of 64-bit slots in the page.
pub const SLOTS: usize = PAGE_SIZE / 8;

/// Every redirected register: byte offset in the page, register. Ascending by offset.
pub const TABLE: &[(u16, SysReg)] = &[
    (0x020, SysReg::VTTBR_EL2),
    (0x040, SysReg::VTCR_EL2),
    (0x050, SysReg::VMPIDR_EL2),
    (0x060, SysReg::CNTVOFF_EL2),
    (0x078, SysReg::HCR_EL2),
    (0x080, SysReg::HSTR_EL2),
    (0x088, SysReg::VPIDR_EL2),
    (0x090, SysReg::TPIDR_EL2),
    (0x0a0, SysReg::HCRX_EL2),
    (0x0b0, SysReg::VNCR_EL2),
    (0x100, SysReg::CPACR_EL1),
    (0x108, SysReg::CONTEXTIDR_EL1),
    (0x110, SysReg::SCTLR_EL1),
    (0x118, SysReg::ACTLR_EL1),
    (0x120, SysReg::TCR_EL1),
    (0x128, SysReg::AFSR0_EL1),
    (0x130, SysReg::AFSR1_EL1),
    (0x138, SysReg::ESR_EL1),
    (0x140, SysReg::MAIR_EL1),
    (0x148, SysReg::AMAIR_EL1),
    (0x158, SysReg::MDSCR_EL1),
    (0x160, SysReg::SPSR_EL1),
    (0x168, SysReg::CNTV_CVAL_EL0),
    (0x170, SysReg::CNTV_CTL_EL0),
    (0x178, SysReg::CNTP_CVAL_EL0),
    (0x180, SysReg::CNTP_CTL_EL0),
    (0x188, SysReg::SCXTNUM_EL1),
    (0x190, SysReg::TFSR_EL1),
    (0x1a0, SysReg::HDFGRTR2_EL2),
    (0x1b0, SysReg::HDFGWTR2_EL2),
    (0x1b8, SysReg::HFGRTR_EL2),
    (0x1c0, SysReg::HFGWTR_EL2),
    (0x1c8, SysReg::HFGITR_EL2),
    (0x1d0, SysReg::HDFGRTR_EL2),
    (0x1d8, SysReg::HDFGWTR_EL2),
    (0x1e0, SysReg::ZCR_EL1),
    (0x1e8, SysReg::HAFGRTR_EL2),
    (0x200, SysReg::TTBR0_EL1),
    (0x210, SysReg::TTBR1_EL1),
    (0x220, SysReg::FAR_EL1),
    (0x230, SysReg::ELR_EL1),
    (0x240, SysReg::SP_EL1),
    (0x250, SysReg::VBAR_EL1),
    (0x270, SysReg::TCR2_EL1),
    (0x278, SysReg::SCTLR2_EL1),
    (0x290, SysReg::PIRE0_EL1),
    (0x2a0, SysReg::PIR_EL1),
    (0x2a8, SysReg::POR_EL1),
    (0x2c0, SysReg::HFGRTR2_EL2),
    (0x2c8, SysReg::HFGWTR2_EL2),
    (0x310, SysReg::HFGITR2_EL2),
    (0x400, SysReg::ICH_LR0_EL2),
    (0x408, SysReg::ICH_LR1_EL2),
    (0x410, SysReg::ICH_LR2_EL2),
    (0x418, SysReg::ICH_LR3_EL2),
    (0x420, SysReg::ICH_LR4_EL2),
    (0x428, SysReg::ICH_LR5_EL2),
    (0x430, SysReg::ICH_LR6_EL2),
    (0x438, SysReg::ICH_LR7_EL2),
    (0x440, SysReg::ICH_LR8_EL2),
    (0x448, SysReg::ICH_LR9_EL2),
    (0x450, SysReg::ICH_LR10_EL2),
    (0x458, SysReg::ICH_LR11_EL2),
    (0x460, SysReg::ICH_LR12_EL2),
    (0x468, SysReg::ICH_LR13_EL2),
    (0x470, SysReg::ICH_LR14_EL2),
    (0x478, SysReg::ICH_LR15_EL2),
    (0x480, SysReg::ICH_AP0R0_EL2),
    (0x488, SysReg::ICH_AP0R1_EL2),
    (0x490, SysReg::ICH_AP0R2_EL2),
    (0x498, SysReg::ICH_AP0R3_EL2),
    (0x4a0, SysReg::ICH_AP1R0_EL2),
    (0x4a8, SysReg::ICH_AP1R1_EL2),
    (0x4b0, SysReg::ICH_AP1R2_EL2),
    (0x4b8, SysReg::ICH_AP1R3_EL2),
    (0x4c0, SysReg::ICH_HCR_EL2),
    (0x4c8, SysReg::ICH_VMCR_EL2),
    (0x500, SysReg::VDISR_EL2),
    (0x508, SysReg::VSESR_EL2),
    (0x800, SysReg::PMBLIMITR_EL1),
    (0x828, SysReg::PMSCR_EL1),
    (0x880, SysReg::TRFCR_EL1),
    (0x900, SysReg::MPAM1_EL1),
    (0x930, SysReg::MPAMHCR_EL2),
    (0x938, SysReg::MPAMVPMV_EL2),
    (0x940, SysReg::MPAMVPM0_EL2),
    (0x948, SysReg::MPAMVPM1_EL2),
    (0x950, SysReg::MPAMVPM2_EL2),
    (0x958, SysReg::MPAMVPM3_EL2),
    (0x960, SysReg::MPAMVPM4_EL2),
    (0x968, SysReg::MPAMVPM5_EL2),
    (0x970, SysReg::MPAMVPM6_EL2),
    (0x978, SysReg::MPAMVPM7_EL2),
    (0xb10, SysReg::ICH_HFGITR_EL2),
    (0xb18, SysReg::ICH_HFGRTR_EL2),
    (0xb20, SysReg::ICH_HFGWTR_EL2),
];

/// The byte offset of `reg` in the VNCR page, or `None` where it is not redirected to memory.
///
/// Walks the table: for constants and for start-up, not for the way of an exit.
pub const fn offset_of(reg: SysReg) -> Option<u16> {
    let mut at = 0;
    while at < TABLE.len() {
        if TABLE[at].1.id() == reg.id() {
            return Some(TABLE[at].0);
        }
        at += 1;
    }
    None
}

/// The register at byte `offset`, or `None` where the page holds nothing there.
pub fn reg_at(offset: u16) -> Option<SysReg> {
    let at = TABLE.binary_search_by_key(&offset, |row| row.0).ok()?;
    Some(TABLE[at].1)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn offsets_ascend_are_aligned_and_lie_in_the_page() {
        for pair in TABLE.windows(2) {
            assert!(
                pair[0].0 < pair[1].0,
                "{:#x} then {:#x}",
                pair[0].0,
                pair[1].0
            );
        }
        for &(offset, reg) in TABLE {
            assert_eq!(offset % 8, 0, "{reg}");
            assert!((offset as usize) < PAGE_SIZE, "{reg}");
        }
    }

    #[test]
    fn no_register_has_two_slots() {
        let regs: BTreeSet<SysReg> = TABLE.iter().map(|row| row.1).collect();
        assert_eq!(regs.len(), TABLE.len());
    }

    #[test]
    fn only_el1_el2_and_the_el1_timers_are_redirected() {
        for &(_, reg) in TABLE {
            let timer = reg.op1() == 3 && reg.crn() == 14;
            let mdscr = reg == SysReg::MDSCR_EL1;
            assert!(matches!(reg.op1(), 0 | 4) || timer || mdscr, "{reg}");
        }
    }

    #[test]
    fn both_directions_agree() {
        for &(offset, reg) in TABLE {
            assert_eq!(offset_of(reg), Some(offset));
            assert_eq!(reg_at(offset), Some(reg));
        }
        assert_eq!(offset_of(SysReg::SCTLR_EL2), None);
        assert_eq!(reg_at(0), None);
    }
}
