//! TLB maintenance by a guest at virtual EL2.
//!
//! Its own translations (EL2&0) are EL1&0 entries of the hardware under the VM's VMID; those of what
//! it runs are under the VMIDs of shadows, or under the second VMID where it runs something without a
//! stage 2. Every operation is widened to the Inner Shareable domain, any ASID and any level, which
//! removes more than was asked, never less. Its own stage 2 is invalidated by unmapping from shadows,
//! complete before the instruction is.

use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_arm64::tlbi::{self, TlbiRange};
use umbra_arm64::{Granule, L2Ipa};
use umbra_hw::tlb;

use super::super::events;
use super::super::vcpu::Vcpu;
use umbra_nested::shadow::Tlbi;

/// HCR_EL2.TGE.
const TGE: u64 = 1 << 27;
/// HCR_EL2.VM and DC.
const STAGE2: u64 = 1 | 1 << 12;

/// What an operation names (Arm ARM C5.5, op0 1, CRn 8 or 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// One address of stage 1, by its operand.
    Address,
    /// A range of stage 1, by its operand.
    Range,
    /// Everything of stage 1.
    All,
    /// One address of stage 2.
    Ipa,
    /// A range of stage 2.
    IpaRange,
    /// Both stages of the current VMID.
    Vmid,
    /// Both stages of every VMID.
    Everything,
}

/// By op1 (EL1 or EL2), CRm and op2: this is asked more often than anything else of a guest hypervisor.
static SCOPES: [[Scope; 128]; 2] = {
    let mut scopes = [[Scope::All; 128]; 2];
    let mut at = 0;
    while at < 256 {
        let enc = SysReg::new(
            1,
            4 * (at / 128) as u8,
            8,
            (at % 128 / 8) as u8,
            (at % 8) as u8,
        );
        scopes[at / 128][at % 128] = named_by(enc);
        at += 1;
    }
    scopes
};

fn scope(enc: SysReg) -> Scope {
    SCOPES[usize::from(enc.op1() >> 2 & 1)][usize::from(enc.id() & 0x7f)]
}

const fn named_by(enc: SysReg) -> Scope {
    match (enc.op1(), enc.crm(), enc.op2()) {
        (4, 0 | 4, 1 | 5) if enc.crm() == 0 => Scope::Ipa,
        (4, 0, 2 | 6) | (4, 4, 2 | 6) => Scope::IpaRange,
        // IPAS2E1 and IPAS2LE1: Inner Shareable at CRm 0, local and Outer Shareable at CRm 4.
        (4, 4, 0 | 1 | 4 | 5) => Scope::Ipa,
        (4, 4, 3 | 7) => Scope::IpaRange,
        (4, 1 | 3 | 7, 4) => Scope::Everything,
        (4, 1 | 3 | 7, 6) => Scope::Vmid,
        (0, 1 | 3 | 7, 1 | 3 | 5 | 7) | (4, 1 | 3 | 7, 1 | 5) => Scope::Address,
        (0 | 4, 2 | 5 | 6, _) => Scope::Range,
        _ => Scope::All,
    }
}

/// Performs a trapped TLBI with its operand.
#[inline]
pub(super) fn perform(vcpu: &Vcpu, enc: SysReg, operand: u64) {
    events::tlbi(vcpu, enc, operand);
    let scope = scope(enc);
    let of_stage1 = matches!(scope, Scope::Address | Scope::Range | Scope::All);
    // Virtual EL2's own for EL2 operations and under TGE, else that of what it runs.
    if of_stage1 && (enc.op1() == 4 || vcpu.hw.lock().regs.get(Reg::HcrEl2) & TGE != 0) {
        forget_stage1(vcpu.vm.vttbr(), scope, operand);
    } else {
        perform_below(vcpu, scope, operand);
    }
}

/// The same, of what the guest hypervisor runs.
#[inline(never)]
fn perform_below(vcpu: &Vcpu, scope: Scope, operand: u64) {
    let (hcr, vttbr, vtcr) = {
        let hw = vcpu.hw.lock();
        (
            hw.regs.get(Reg::HcrEl2),
            hw.regs.get(Reg::VttbrEl2),
            hw.regs.get(Reg::VtcrEl2),
        )
    };
    let vmid = (vttbr >> 48) as u16;
    match scope {
        Scope::Ipa => {
            let named = tlbi::decode_ipa::<L2Ipa>(operand);
            let bytes = named
                .leaf
                .map_or(granule(vtcr).bytes(), |(granule, level)| {
                    granule.level_bytes(level)
                });
            let start = named.page.align_down(bytes);
            let end = start.raw().saturating_add(bytes);
            unmap(vcpu, Some(vmid), Some((start, end)));
        }
        Scope::IpaRange => {
            // The reserved granule promises nothing; everything, to be safe.
            let range = TlbiRange::decode(operand).map(|(range, _)| {
                let end = range.start.saturating_add(range.bytes());
                (L2Ipa::new(range.start), end)
            });
            unmap(vcpu, Some(vmid), range);
        }
        Scope::Vmid => unmap(vcpu, Some(vmid), None),
        Scope::Everything => unmap(vcpu, None, None),
        Scope::Address | Scope::Range | Scope::All => {}
    }
    let forget = |vttbr| forget_stage1(vttbr, scope, operand);
    match scope {
        Scope::Ipa | Scope::IpaRange => {}
        Scope::Everything => {
            let memory = vcpu.vm.memory.lock();
            memory.shadows.vttbrs(None).for_each(forget);
            memory.vttbrs().1.into_iter().for_each(forget);
        }
        Scope::Address | Scope::Range | Scope::All | Scope::Vmid => {
            let memory = vcpu.vm.memory.lock();
            if hcr & STAGE2 == 0 {
                memory.vttbrs().1.into_iter().for_each(forget);
            } else {
                memory.shadows.vttbrs(Some(vmid)).for_each(forget);
            }
        }
    }
}

/// Forgets what the operation names of stage 1, under one VMID of hardware.
fn forget_stage1(vttbr: u64, scope: Scope, operand: u64) {
    tlb::Stage2::with(vttbr, |stage2| match scope {
        Scope::Address => stage2.guest_address(operand),
        Scope::Range => stage2.guest_range(operand),
        _ => stage2.guest_all(),
    });
}

/// Unmaps from shadows what a TLBI of stage 2 names, in portions; complete on return.
fn unmap(vcpu: &Vcpu, vmid: Option<u16>, range: Option<(L2Ipa, u64)>) {
    let mut tlbi = Tlbi::new(vmid, range);
    loop {
        let mut memory = vcpu.vm.memory.lock();
        if memory.shadows.invalidate(&mut tlbi) {
            return;
        }
        drop(memory);
        crate::irq::poll();
    }
}

/// The granule of VTCR_EL2.TG0.
fn granule(vtcr: u64) -> Granule {
    match vtcr >> 14 & 3 {
        1 => Granule::K64,
        2 => Granule::K16,
        _ => Granule::K4,
    }
}
