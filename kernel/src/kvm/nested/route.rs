//! Whose is a trap of what a guest hypervisor runs: its own, where its controls ask for it, or umbra's.
//!
//! Hardware traps what either wants. A trap that umbra asks for always is checked against the guest
//! hypervisor's control of the same meaning; any other can only be the guest hypervisor's.

use umbra_arm64::Syndrome;
use umbra_arm64::esr::WfxKind;
use umbra_arm64::sysreg::{Reg, SysReg};

use super::super::vcpu::Hw;

/// Bits of HCR_EL2.
mod hcr {
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TWE: u64 = 1 << 14;
    pub(super) const TID1: u64 = 1 << 16;
    pub(super) const TID2: u64 = 1 << 17;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const TID4: u64 = 1 << 49;
}

/// Bits of MDCR_EL2: TDE, TDA, TDOSA, TDRA; TPM, TPMCR.
const MDCR_DEBUG: u64 = 0xf << 8;
const MDCR_PMU: u64 = 1 << 6 | 1 << 5;

/// Whether a synchronous exit goes to the guest hypervisor.
pub(in crate::kvm) fn is_theirs(hw: &Hw, syndrome: Syndrome) -> bool {
    let hcr = hw.regs.get(Reg::HcrEl2);
    match syndrome {
        Syndrome::Hvc(_) => true,
        Syndrome::Smc(_) => hcr & hcr::TSC != 0,
        Syndrome::Wfx(wfx) => match wfx.kind {
            WfxKind::Wfi | WfxKind::Wfit => hcr & hcr::TWI != 0,
            WfxKind::Wfe | WfxKind::Wfet => hcr & hcr::TWE != 0,
        },
        Syndrome::SysReg(trap) => {
            let enc = SysReg::new(trap.op0, trap.op1, trap.crn, trap.crm, trap.op2);
            register(enc, hcr, hw.regs.get(Reg::MdcrEl2))
        }
        // umbra never traps these of a guest of a guest.
        Syndrome::FpAccess
        | Syndrome::SveAccess
        | Syndrome::SmeAccess
        | Syndrome::PointerAuth
        | Syndrome::Eret(_) => true,
        _ => false,
    }
}

/// The guest hypervisor's control for a register that umbra traps always, or the answer for one that
/// it does not.
fn register(enc: SysReg, hcr: u64, mdcr: u64) -> bool {
    let control = match (enc.op0(), enc.op1(), enc.crn(), enc.crm(), enc.op2()) {
        (2, ..) => return mdcr & MDCR_DEBUG != 0,
        (3, 0, 0, 0, _) => hcr::TID1,
        (3, 0, 0, _, _) => hcr::TID3,
        (3, 1 | 2, 0, 0, 7) => hcr::TID1,
        (3, 1..=3, 0, 0, _) => hcr::TID2 | hcr::TID4,
        (3, 0, 1, 0, 1) => hcr::TACR,
        (3, 0, 10, 4, _) => hcr::TLOR,
        (3, 0, 5, 3..=5, _) => hcr::TERR,
        (3, 0, 12, 11, 5..=7) => hcr::IMO | hcr::FMO,
        (3, 0 | 3, 9, 12..=14, _) | (3, 3, 14, 8..=15, _) => return mdcr & MDCR_PMU != 0,
        (1, 0, 7, 6 | 10 | 14, 2 | 4 | 6) => hcr::TSW,
        (1 | 3, _, 11 | 15, _, _) => hcr::TIDCP,
        _ => return true,
    };
    hcr & control != 0
}
