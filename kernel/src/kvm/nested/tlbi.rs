//! TLB maintenance by a guest at virtual EL2.
//!
//! Its own translations (EL2&0) are EL1&0 entries of the hardware under the VM's VMID, so they are
//! removed there. Every operation is widened to the Inner Shareable domain, any ASID and any level,
//! which removes more than was asked, never less.

use umbra_arm64::sysreg::SysReg;
use umbra_hw::tlb;

/// What an operation names (Arm ARM C5.5, op0 1, CRn 8 or 9).
enum Scope {
    /// One address, by its operand.
    Address,
    /// A range, by its operand.
    Range,
    /// Everything of the regime.
    All,
    /// A guest hypervisor's own stage 2.
    Stage2,
}

fn scope(enc: SysReg) -> Scope {
    match (enc.op1(), enc.crm(), enc.op2()) {
        // op1 4: IPAS2(L)E1 and their ranges, ALLE1, VMALLS12E1.
        (4, 0 | 4, _) => Scope::Stage2,
        (4, 1 | 3 | 7, 4 | 6) => Scope::Stage2,
        // By address: VAE1, VAAE1, VALE1, VAALE1; VAE2, VALE2.
        (0, 1 | 3 | 7, 1 | 3 | 5 | 7) | (4, 1 | 3 | 7, 1 | 5) => Scope::Address,
        (0 | 4, 2 | 5 | 6, _) => Scope::Range,
        _ => Scope::All,
    }
}

/// Performs a trapped TLBI with its operand. The vCPU's stage 2 is loaded on this CPU.
pub(super) fn perform(enc: SysReg, operand: u64, vttbr: u64) {
    tlb::Stage2::with(vttbr, |stage2| match scope(enc) {
        Scope::Address => stage2.guest_address(operand),
        Scope::Range => stage2.guest_range(operand),
        Scope::All => stage2.guest_all(),
        // Nothing of a guest hypervisor's stage 2 is held yet.
        Scope::Stage2 => {}
    });
}
