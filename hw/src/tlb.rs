//! TLB maintenance, by the regime it is for.
//!
//! umbra's own regime (EL2&0: its half and its processes) is maintained by the EL2 forms, which do
//! not depend on HCR_EL2.TGE. A guest's regime is reached only with TGE=0 and its VMID loaded
//! (Arm ARM D8.17): [`Stage2`] sees to both and puts back what was there.

use umbra_arm64::Pa;

use crate::boot::HCR_TGE;
use crate::regs::{insn, mrs, msr};
use crate::sabotage::{Safeguard, left_out};
use crate::{guest, percpu};

/// Maintenance of EL2&0 entries of one process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    asid: u16,
}

impl Process {
    /// For the process with this ASID.
    pub const fn new(asid: u16) -> Self {
        Self { asid }
    }

    /// Forgets pages `[va, va + pages * 4 KiB)`, on every CPU, and waits.
    pub fn pages(self, va: u64, pages: u64) {
        if left_out(Safeguard::ProcessPages) {
            return;
        }
        if pages > 128 {
            return Self::everything();
        }
        let asid = u64::from(self.asid) << 48;
        // SAFETY: TLB maintenance removes cached translations; it cannot make one.
        unsafe {
            insn!("dsb ishst");
            for page in 0..pages {
                insn!(
                    "tlbi vae2is, {}",
                    asid | (((va >> 12) + page) & 0xfff_ffff_ffff)
                );
            }
            insn!("dsb ish");
            insn!("isb");
        }
    }

    /// Forgets every EL2 entry on every CPU, and waits.
    pub fn everything() {
        // SAFETY: as above.
        unsafe {
            insn!("dsb ishst");
            insn!("tlbi alle2is");
            insn!("dsb ish");
            insn!("isb");
        }
    }
}

/// The TLB entries of one VMID, for the time of a closure.
#[derive(Debug)]
pub struct Stage2(());

/// A TLBI was executed, under this VMID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    /// What VTTBR_EL2 named when it was.
    pub vmid: u16,
}

impl Issued {
    fn now() -> Option<Self> {
        Some(Self {
            vmid: (mrs!("vttbr_el2") >> 48) as u16,
        })
    }
}

impl Stage2 {
    /// Runs `work` with the VMID of `vttbr` loaded and TGE clear, then waits for its effects on
    /// every CPU and puts back what was loaded before.
    pub fn with<R>(vttbr: u64, work: impl FnOnce(&Stage2) -> R) -> R {
        let this = percpu::this();
        let old_hcr = this.hcr.get();
        let old_vttbr = this.vttbr.get();
        let is_host = old_hcr & HCR_TGE != 0;
        if is_host {
            guest::set_hcr(old_hcr & !HCR_TGE);
        }
        if old_vttbr != vttbr {
            guest::set_vttbr(vttbr);
        }
        // SAFETY: barriers; table changes before this call are visible to every walker first.
        unsafe {
            insn!("dsb ishst");
            insn!("isb");
        }
        let result = work(&Stage2(()));
        // SAFETY: a barrier.
        unsafe { insn!("isb") };
        if old_vttbr != vttbr {
            guest::set_vttbr(old_vttbr);
        }
        if is_host {
            guest::set_hcr(old_hcr);
        }
        result
    }

    /// Forgets stage-2 and combined entries of 4 KiB pages from `ipa`; `ttl` is the level hint of
    /// the operand (0 where unknown). Complete for every CPU on return; says whether it was done.
    pub fn ipa(&self, ipa: u64, step: u64, count: u64, ttl: u64) -> Option<Issued> {
        if left_out(Safeguard::Stage2Range) {
            return None;
        }
        // SAFETY: TLB maintenance removes cached translations only.
        unsafe {
            for index in 0..count {
                let operand = (ipa + index * step) >> 12 & 0xf_ffff_ffff | (ttl & 0xf) << 44;
                insn!("tlbi ipas2e1is, {}", operand);
            }
            insn!("dsb ish");
            // Combined entries are tagged by VA: only the whole VMID's stage 1 covers them.
            insn!("tlbi vmalle1is");
            insn!("dsb ish");
        }
        Issued::now()
    }

    /// Forgets stage-1 and stage-2 entries of the VMID on every CPU; says whether it was done.
    pub fn all(&self) -> Option<Issued> {
        if left_out(Safeguard::Stage2All) {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            insn!("tlbi vmalls12e1is");
            insn!("dsb ish");
        }
        Issued::now()
    }

    /// Forgets stage-1 entries for the address of a TLBI operand, any ASID, on every CPU.
    pub fn guest_address(&self, operand: u64) {
        // SAFETY: as above.
        unsafe {
            insn!("tlbi vaae1is, {}", operand & 0xfff_ffff_ffff);
            insn!("dsb ish");
        }
    }

    /// Forgets stage-1 entries for the range of a TLBI operand, any ASID, on every CPU.
    pub fn guest_range(&self, operand: u64) {
        // SAFETY: as above. TLBI RVAAE1IS; only a guest that was shown FEAT_TLBIRANGE asks.
        unsafe {
            insn!("sys #0, c8, c2, #3, {}", operand & 0xffff_ffff_ffff);
            insn!("dsb ish");
        }
    }

    /// Forgets every stage-1 entry of the VMID, on every CPU.
    pub fn guest_all(&self) {
        // SAFETY: as above.
        unsafe {
            insn!("tlbi vmalle1is");
            insn!("dsb ish");
        }
    }

    /// Forgets, on this CPU alone, the VMID's stage-1 entries and the instruction cache: another
    /// vCPU with the same VMID ran here before.
    pub fn local(&self) {
        // SAFETY: as above.
        unsafe {
            insn!("tlbi vmalle1");
            insn!("ic iallu");
            insn!("dsb nsh");
        }
    }
}

/// Makes table entries that became valid visible to every walker.
pub fn publish() {
    // SAFETY: barriers.
    unsafe {
        insn!("dsb ishst");
        insn!("isb");
    }
}

/// The value of VTTBR_EL2 for a root table and a VMID.
pub fn vttbr(root: Pa, vmid: u16) -> u64 {
    root.raw() | u64::from(vmid) << 48
}

/// Forgets everything of every guest on this CPU. Boot only.
pub(crate) fn guests_local() {
    // SAFETY: as above; `secure_entry` code has no guest loaded.
    unsafe {
        insn!("tlbi alle1");
        insn!("dsb nsh");
        insn!("isb");
        msr!("vttbr_el2", 0);
    }
}
