//! The registers, beside HCR_EL2, that say what of a guest traps.
//!
//! What stands in them is cached for each CPU, and [`load`] writes what differs: going between a guest
//! hypervisor and its guest changes few of them.

use core::cell::Cell;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::regs::{insn, mrs, msr};
use crate::sabotage::{Safeguard, left_out};
use crate::{fp, idregs, percpu};

/// Their values while one guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traps {
    /// HCRX_EL2, if the machine has it.
    pub hcrx: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// CNTHCTL_EL2; [`CNTHCTL_OPEN`] is always added.
    pub cnthctl: u64,
    /// HFGRTR_EL2, HFGWTR_EL2, HFGITR_EL2, HDFGRTR_EL2, HDFGWTR_EL2, HAFGRTR_EL2, as far as the machine
    /// has them.
    pub fine: [u64; 6],
    /// FP and SIMD trap (CPTR_EL2.FPEN).
    pub fp: bool,
    /// CPACR_EL1 traps (CPTR_EL2.TCPAC).
    pub cpacr: bool,
}

/// EL0PCTEN and EL0VCTEN: processes read the counters.
pub(crate) const CNTHCTL_OPEN: u64 = 0b11;
/// EL1PCTEN and EL1PTEN: so do guests, and have the physical timer.
const CNTHCTL_GUEST: u64 = 0b11 << 10;
/// EL1TVT: the virtual timer's registers trap; with FEAT_ECV.
const CNTHCTL_VIRT_TIMER: u64 = 1 << 13;
/// EL1NVPCT and EL1NVVCT: EL1's timers by their EL02 names trap at virtual EL2, where FEAT_NV2 would keep
/// what is written without a word.
const CNTHCTL_ALIASES: u64 = 0b11 << 15;
/// HCRX_EL2.MSCEn: memory copy instructions are the guest's.
pub const MSCEN: u64 = 1 << 11;
const TPMCR: u64 = 1 << 5;
const TPM: u64 = 1 << 6;
const TDA: u64 = 1 << 9;
const TDOSA: u64 = 1 << 10;
const TDRA: u64 = 1 << 11;
const TDCC: u64 = 1 << 27;
/// HDFGRTR_EL2 and HDFGWTR_EL2: breakpoints, watchpoints, claim tags, OSECCR; what is read only.
const DEBUG_STATE: u64 = 0xf | 1 << 5 | 1 << 10;
const DEBUG_AUTHENTICATION: u64 = 1 << 6;

/// Whether the machine has FEAT_FGT.
pub fn has_fgt() -> bool {
    idregs::read(7, 0) >> 56 & 0xf != 0
}

/// Whether the machine has FEAT_ECV.
fn has_ecv() -> bool {
    idregs::read(7, 0) >> 60 != 0
}

/// Whether the machine has FEAT_AMUv1, with which HAFGRTR_EL2 comes.
fn has_amu() -> bool {
    idregs::read(4, 0) >> 44 & 0xf != 0
}

/// Whether the machine has FEAT_HCX.
fn has_hcx() -> bool {
    idregs::read(7, 1) >> 40 & 0xf != 0
}

impl Traps {
    /// The physical counter and timer trap too.
    pub fn trap_physical_timer(&mut self) {
        self.cnthctl &= !CNTHCTL_GUEST;
    }

    /// The virtual timer traps too, where the machine can do that.
    pub fn trap_virtual_timer(&mut self) {
        if has_ecv() {
            self.cnthctl |= CNTHCTL_VIRT_TIMER;
        }
    }

    /// What umbra asks for: debug and the PMU are hidden or only state (TDRA, TDOSA, TDA, TPM, TPMCR),
    /// all counters are EL2's (HPMN).
    ///
    /// A guest at virtual EL2 reaches MDSCR_EL1 without a trap if the machine can tell it from the rest
    /// of the debug registers: FEAT_NV2 keeps it in the page.
    ///
    /// `hcrx` is what HCRX_EL2 enables for this guest.
    pub fn own(virtual_el2: bool, hcrx: u64) -> Self {
        let counters = mrs!("s3_3_c9_c12_0") >> 11 & 0x1f; // PMCR_EL0.N
        let mut fine = [0; 6];
        let mdcr = if left_out(Safeguard::DebugTraps) {
            counters
        } else if virtual_el2 && has_fgt() {
            fine[3] = DEBUG_STATE | DEBUG_AUTHENTICATION;
            fine[4] = DEBUG_STATE;
            TDRA | TDOSA | TDCC | TPM | TPMCR | counters
        } else {
            TDRA | TDOSA | TDA | TPM | TPMCR | counters
        };
        Self {
            hcrx,
            mdcr,
            cnthctl: if virtual_el2 && has_ecv() {
                CNTHCTL_GUEST | CNTHCTL_ALIASES
            } else {
                CNTHCTL_GUEST
            },
            fine,
            fp: false,
            // There CPTR_EL2 is in CPACR_EL1, which must not lose bits of it.
            cpacr: virtual_el2 && !cpacr_is_whole(),
        }
    }
}

/// What stands in the registers of one CPU.
pub(crate) struct Standing {
    hcrx: Cell<u64>,
    mdcr: Cell<u64>,
    cnthctl: Cell<u64>,
    fine: [Cell<u64>; 6],
    /// CPTR_EL2 once the guest is entered.
    pub(crate) cptr: Cell<u64>,
}

impl Standing {
    /// Nothing that anybody asks for, so that the first [`load`] writes every register.
    pub(crate) const fn unknown() -> Self {
        Self {
            hcrx: Cell::new(u64::MAX),
            mdcr: Cell::new(u64::MAX),
            cnthctl: Cell::new(u64::MAX),
            fine: [const { Cell::new(u64::MAX) }; 6],
            cptr: Cell::new(fp::CPTR_OPEN),
        }
    }

    /// MDCR_EL2.
    pub(crate) fn mdcr(&self) -> u64 {
        self.mdcr.get()
    }
}

/// Writes what differs from what stands there. CPTR_EL2 follows at the entry of the guest. An ISB or
/// ERET is the caller's.
pub(crate) fn load(traps: &Traps) {
    let standing = &percpu::this().traps;
    let is_new = |cell: &Cell<u64>, value: u64| cell.replace(value) != value;
    let mut fine = 0;
    for (at, cell) in standing.fine.iter().enumerate() {
        fine |= u32::from(is_new(cell, traps.fine[at])) << at;
    }
    standing.cptr.set(fp::cptr(traps.fp, traps.cpacr));
    // SAFETY: traps and enables of guests below; umbra and its processes keep what CNTHCTL_OPEN and
    // the traps of TGE = 1 give them.
    unsafe {
        if is_new(&standing.hcrx, traps.hcrx) && has_hcx() {
            msr!("s3_4_c1_c2_2", traps.hcrx);
        }
        if is_new(&standing.mdcr, traps.mdcr) {
            msr!("mdcr_el2", traps.mdcr);
        }
        if is_new(&standing.cnthctl, traps.cnthctl) {
            msr!("cnthctl_el2", traps.cnthctl | CNTHCTL_OPEN);
        }
        if fine == 0 || !has_fgt() {
            return;
        }
        macro_rules! write {
            ($at:literal, $name:literal) => {
                if fine >> $at & 1 == 1 {
                    msr!($name, traps.fine[$at]);
                }
            };
        }
        write!(0, "s3_4_c1_c1_4"); // HFGRTR_EL2
        write!(1, "s3_4_c1_c1_5"); // HFGWTR_EL2
        write!(2, "s3_4_c1_c1_6"); // HFGITR_EL2
        write!(3, "s3_4_c3_c1_4"); // HDFGRTR_EL2
        write!(4, "s3_4_c3_c1_5"); // HDFGWTR_EL2
        if has_amu() {
            write!(5, "s3_4_c3_c1_6"); // HAFGRTR_EL2
        }
    }
}

/// No guest's traps until one is loaded. MDSCR_EL1 is zero but while a guest runs that uses debugging
/// ([`debug`](crate::debug)).
pub(crate) fn init_cpu() {
    load(&Traps {
        hcrx: MSCEN,
        cnthctl: CNTHCTL_GUEST,
        ..Traps::default()
    });
    // SAFETY: debug of guests, AArch32's coprocessor traps, and a register that does nothing.
    unsafe {
        msr!("s2_0_c0_c2_2", 0); // MDSCR_EL1
        msr!("hstr_el2", 0);
        msr!("s3_0_c1_c0_1", 0); // ACTLR_EL1
        insn!("isb");
    }
}

/// Whether CPACR_EL1 keeps CPTR_EL2's TCPAC: then a guest at virtual EL2, whose CPTR_EL2 is in it, need
/// not trap (as FEAT_NV2p1 promises).
pub fn cpacr_is_whole() -> bool {
    const TCPAC: u64 = 1 << 31;
    /// 0 until it was tried, then 1 for no and 2 for yes.
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {}
        known => return known == 2,
    }
    let before = mrs!("s3_5_c1_c0_2"); // CPACR_EL12
    // SAFETY: a guest's register, put back at once.
    unsafe {
        msr!("s3_5_c1_c0_2", TCPAC);
        insn!("isb");
    }
    let found = mrs!("s3_5_c1_c0_2");
    // SAFETY: as above.
    unsafe { msr!("s3_5_c1_c0_2", before) };
    let whole = found & TCPAC != 0;
    KNOWN.store(if whole { 2 } else { 1 }, Ordering::Relaxed);
    whole
}
