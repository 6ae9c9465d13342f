//! Whose is a trap of what a guest hypervisor runs: its own, or umbra's.
//!
//! ```text
//!   L2 executes ──► hardware traps what umbra or the guest hypervisor wants (`Loaded`)
//!               ──► `Controls::take`: did the guest hypervisor want it? ─┬─ yes: to virtual EL2
//!                                                                       └─ no: umbra's, as for a plain guest
//! ```
//!
//! The answer is data: a row for each encoding ([`table`](mod@table)) names the coarse controls (HCR_EL2, MDCR_EL2,
//! CPTR_EL2, CNTHCTL_EL2, ICH_HCR_EL2) and the fine-grained bit ([`Fine`]) that trap it. HSTR_EL2 has no
//! row: it traps AArch32 alone, and no guest runs that.
//!
//! What always holds: a control counts only as far as the ID registers shown to the guest hypervisor say
//! that it exists ([`Masks`]). A control that traps when it is *clear* and does not exist traps nothing.

mod fine;
mod loaded;
mod table;

use umbra_arm64::esr::WfxKind;
use umbra_arm64::idreg::{IdRegs, masks};
use umbra_arm64::sysreg::{Reg, SysReg};
use umbra_arm64::{Ec, Syndrome};

pub use fine::{FINE, Fine};
pub use loaded::{Loaded, Own};

/// Bits of HCR_EL2 that trap (Arm ARM D24.2.46).
pub(crate) mod hcr {
    pub(crate) const FMO: u64 = 1 << 3;
    pub(crate) const IMO: u64 = 1 << 4;
    pub(crate) const TWI: u64 = 1 << 13;
    pub(crate) const TWE: u64 = 1 << 14;
    pub(crate) const TID1: u64 = 1 << 16;
    pub(crate) const TID2: u64 = 1 << 17;
    pub(crate) const TID3: u64 = 1 << 18;
    pub(crate) const TSC: u64 = 1 << 19;
    pub(crate) const TIDCP: u64 = 1 << 20;
    pub(crate) const TACR: u64 = 1 << 21;
    pub(crate) const TSW: u64 = 1 << 22;
    pub(crate) const TPC: u64 = 1 << 23;
    pub(crate) const TPU: u64 = 1 << 24;
    pub(crate) const TTLB: u64 = 1 << 25;
    pub(crate) const TVM: u64 = 1 << 26;
    pub(crate) const TDZ: u64 = 1 << 28;
    pub(crate) const TRVM: u64 = 1 << 30;
    pub(crate) const TLOR: u64 = 1 << 35;
    pub(crate) const TERR: u64 = 1 << 36;
    pub(crate) const APK: u64 = 1 << 40;
    pub(crate) const API: u64 = 1 << 41;
    pub(crate) const AT: u64 = 1 << 44;
    pub(crate) const FIEN: u64 = 1 << 47;
    pub(crate) const TID4: u64 = 1 << 49;
    pub(crate) const TICAB: u64 = 1 << 50;
    pub(crate) const TOCU: u64 = 1 << 52;
    pub(crate) const TTLBIS: u64 = 1 << 54;
    pub(crate) const TTLBOS: u64 = 1 << 55;
    pub(crate) const TID5: u64 = 1 << 58;
    /// Those that trap when they are clear.
    pub(crate) const REVERSED: u64 = APK | API | FIEN;
}

/// Bits of HCRX_EL2.
pub(crate) mod hcrx {
    pub(crate) const FNXS: u64 = 1 << 3;
    pub(crate) const FGT_NXS: u64 = 1 << 4;
    pub(crate) const MCE2: u64 = 1 << 10;
    pub(crate) const MSCEN: u64 = 1 << 11;
}

/// Bits of MDCR_EL2.
pub(crate) mod mdcr {
    pub(crate) const TPMCR: u64 = 1 << 5;
    pub(crate) const TPM: u64 = 1 << 6;
    pub(crate) const TDE: u64 = 1 << 8;
    pub(crate) const TDA: u64 = 1 << 9;
    pub(crate) const TDOSA: u64 = 1 << 10;
    pub(crate) const TDRA: u64 = 1 << 11;
    pub(crate) const TDCC: u64 = 1 << 27;
}

/// Bits of CPTR_EL2 in its E2H form.
pub(crate) mod cptr {
    /// FPEN\[0\]: clear traps FP at EL1 and EL0, whatever FPEN\[1\] says.
    pub(crate) const FPEN: u64 = 1 << 20;
    pub(crate) const TCPAC: u64 = 1 << 31;
}

/// Bits of CNTHCTL_EL2 in its E2H form.
pub(crate) mod cnthctl {
    pub(crate) const EL1PCTEN: u64 = 1 << 10;
    pub(crate) const EL1PTEN: u64 = 1 << 11;
    pub(crate) const EL1TVT: u64 = 1 << 13;
    pub(crate) const EL1TVCT: u64 = 1 << 14;
}

/// Bits of ICH_HCR_EL2.
pub(crate) mod ich {
    pub(crate) const TC: u64 = 1 << 10;
    pub(crate) const TALL0: u64 = 1 << 11;
    pub(crate) const TALL1: u64 = 1 << 12;
    pub(crate) const TDIR: u64 = 1 << 14;
}

/// What of the controls exists for one guest hypervisor. Worked out once, as its ID registers do not
/// change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    hcr: masks::Res,
    hcrx: u64,
    mdcr: u64,
    cptr: u64,
    cnthctl: u64,
    fine: [u64; 6],
}

impl Default for Masks {
    /// Of a guest that is shown nothing.
    fn default() -> Self {
        Self::of(&IdRegs::default())
    }
}

impl Masks {
    /// For a guest hypervisor that is shown `ids`.
    pub fn of(ids: &IdRegs) -> Self {
        let nothing = masks::Res {
            res0: u64::MAX,
            res1: 0,
        };
        let res = |reg| masks::res(reg, ids).unwrap_or(nothing);
        Self {
            hcr: res(Reg::HcrEl2),
            hcrx: res(Reg::HcrxEl2).valid(),
            mdcr: res(Reg::MdcrEl2).valid(),
            cptr: res(Reg::CptrEl2).valid(),
            cnthctl: res(Reg::CnthctlEl2).valid(),
            fine: FINE.map(|fine| fine.valid(ids)),
        }
    }

    /// HCR_EL2 as it reads to the architecture, of what the guest hypervisor wrote.
    pub const fn hcr(&self, written: u64) -> u64 {
        self.hcr.sanitise(written)
    }

    /// The controls, from the registers that the guest hypervisor wrote.
    #[inline]
    pub fn controls(&self, written: &Written) -> Controls {
        let hcr = self.hcr(written.hcr);
        Controls {
            hcr,
            hcr_traps: hcr | hcr::REVERSED & self.hcr.res0,
            hcrx: written.hcrx & self.hcrx,
            mdcr: written.mdcr & self.mdcr,
            cptr: written.cptr & self.cptr,
            cnthctl: written.cnthctl & self.cnthctl,
            ich_hcr: written.ich_hcr,
            fine: core::array::from_fn(|at| written.fine[at] & self.fine[at]),
        }
    }
}

/// The registers with controls, as the guest hypervisor wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// HCR_EL2.
    pub hcr: u64,
    /// HCRX_EL2.
    pub hcrx: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// CPTR_EL2.
    pub cptr: u64,
    /// CNTHCTL_EL2.
    pub cnthctl: u64,
    /// ICH_HCR_EL2.
    pub ich_hcr: u64,
    /// HFGRTR_EL2, HFGWTR_EL2, HFGITR_EL2, HDFGRTR_EL2, HDFGWTR_EL2, HAFGRTR_EL2: the order of [`FINE`].
    pub fine: [u64; 6],
}

/// What a guest hypervisor asks to be told of, its reserved bits read as the architecture has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// HCR_EL2.
    pub hcr: u64,
    /// The same with the reversed controls set that do not exist.
    hcr_traps: u64,
    hcrx: u64,
    mdcr: u64,
    cptr: u64,
    cnthctl: u64,
    ich_hcr: u64,
    fine: [u64; 6],
}

/// A coarse control: one condition under which an access traps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coarse {
    /// Any of these bits of HCR_EL2 is set.
    Hcr(u64),
    /// … and it is a read.
    HcrRead(u64),
    /// … and it is a write.
    HcrWrite(u64),
    /// All of these bits of HCR_EL2 are clear.
    HcrClear(u64),
    /// Any of these bits of MDCR_EL2 is set.
    Mdcr(u64),
    /// CPTR_EL2.TCPAC.
    Cpacr,
    /// Any of these bits of CNTHCTL_EL2 is set.
    Timer(u64),
    /// This bit of CNTHCTL_EL2 is clear.
    TimerClear(u64),
    /// Any of these bits of ICH_HCR_EL2 is set.
    Gic(u64),
}

impl Controls {
    fn coarse(&self, control: Coarse, read: bool) -> bool {
        match control {
            Coarse::Hcr(bits) => self.hcr_traps & bits != 0,
            Coarse::HcrRead(bits) => read && self.hcr_traps & bits != 0,
            Coarse::HcrWrite(bits) => !read && self.hcr_traps & bits != 0,
            Coarse::HcrClear(bits) => self.hcr_traps & bits == 0,
            Coarse::Mdcr(bits) => self.mdcr & bits != 0,
            Coarse::Cpacr => self.cptr & cptr::TCPAC != 0,
            Coarse::Timer(bits) => self.cnthctl & bits != 0,
            Coarse::TimerClear(bit) => self.cnthctl & bit == 0,
            Coarse::Gic(bits) => self.ich_hcr & bits != 0,
        }
    }

    /// Whether a bit of a fine-grained control traps. Every control that can be shown traps when set;
    /// those with the other sense belong to features that are hidden (`fine::HIDDEN`).
    fn fine(&self, fine: Fine, bit: u8) -> bool {
        self.fine[fine as usize] >> bit & 1 == 1
    }

    /// Whether the guest hypervisor wants to know of an access to a system register, or of a system
    /// instruction, by its guest.
    pub fn takes_register(&self, enc: SysReg, read: bool) -> bool {
        let Some(row) = table::row(enc) else {
            return false;
        };
        row.coarse
            .iter()
            .flatten()
            .any(|&control| self.coarse(control, read))
            || row
                .fine
                .bit(read)
                .is_some_and(|(fine, bit)| self.fine(fine, bit))
                && !(row.nxs && self.hcrx & hcrx::FGT_NXS != 0)
    }

    /// Whether a synchronous exit of its guest, not an abort, goes to the guest hypervisor. `el0`: the
    /// guest was at EL0.
    pub fn takes(&self, syndrome: Syndrome, el0: bool) -> bool {
        match syndrome {
            Syndrome::SysReg(trap) => self.takes_register(trap.reg, trap.read),
            // HCD does not exist where EL3 does, and EL3 is shown.
            Syndrome::Hvc(_) => true,
            Syndrome::Smc(_) => self.hcr_traps & hcr::TSC != 0,
            Syndrome::Wfx(wfx) => match wfx.kind {
                WfxKind::Wfi | WfxKind::Wfit => self.hcr_traps & hcr::TWI != 0,
                WfxKind::Wfe | WfxKind::Wfet => self.hcr_traps & hcr::TWE != 0,
            },
            Syndrome::Svc(_) => self.fine(Fine::Hfgitr, fine::svc(el0)),
            Syndrome::Eret(_) => self.fine(Fine::Hfgitr, fine::ERET),
            Syndrome::FpAccess => self.traps_fp(),
            Syndrome::PointerAuth => self.hcr_traps & hcr::API == 0,
            // Hidden from every guest: undefined to it, by umbra.
            Syndrome::SveAccess | Syndrome::SmeAccess => false,
            Syndrome::Other(ec) => match ec {
                Ec::BreakpointLower | Ec::StepLower | Ec::WatchpointLower | Ec::Brk => {
                    self.mdcr & mdcr::TDE != 0
                }
                Ec::MemoryCopy => self.hcrx & hcrx::MCE2 != 0,
                _ => false,
            },
            // Aborts have a decision of their own.
            Syndrome::InstructionAbort { .. }
            | Syndrome::DataAbort { .. }
            | Syndrome::SError(_)
            | Syndrome::IllegalState => false,
        }
    }

    /// Whether FP and SIMD of its guest trap (CPTR_EL2.FPEN with TGE clear).
    pub const fn traps_fp(&self) -> bool {
        self.cptr & cptr::FPEN == 0
    }

    /// Whether it takes interrupts of its guest, whose list registers are then its own.
    pub const fn routes_interrupts(&self) -> bool {
        self.hcr & (hcr::IMO | hcr::FMO) != 0
    }
}

#[cfg(test)]
mod tests;
