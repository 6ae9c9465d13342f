//! Breakpoints, watchpoints and single step of what runs (Arm ARM D2).
//!
//! Guests' accesses to these registers trap, so hardware never changes a value: they are written before an
//! entry that needs them, and afterwards MDSCR_EL1 alone is cleared, which switches all of them off. It is
//! zero whenever umbra or one of its processes runs, whose debug exceptions would be EL2's.

use crate::regs::{insn, msr};
use crate::sabotage::{Safeguard, left_out};
use crate::{idregs, percpu};

/// MDSCR_EL1: software step.
pub const MDSCR_SS: u64 = 1 << 0;
/// MDSCR_EL1: debug exceptions of the level that takes them too.
pub const MDSCR_KDE: u64 = 1 << 13;
/// MDSCR_EL1: breakpoints and watchpoints.
pub const MDSCR_MDE: u64 = 1 << 15;
/// MDCR_EL2.TDE: debug exceptions go to EL2.
const TDE: u64 = 1 << 8;
/// DBGBCR: E, PMC, BAS, HMC, SSC, LBN, BT.
const BCR: u64 = 0xff_e1e7;
/// DBGWCR: E, PAC, LSC, BAS, HMC, SSC, LBN, WT, MASK.
const WCR: u64 = 0x1f1f_ffff;

/// The debug registers while a guest runs.
#[derive(Clone, Debug, Default)]
pub struct DebugRegs {
    /// MDSCR_EL1: of it SS, KDE and MDE.
    pub mdscr: u64,
    /// Debug exceptions go to EL2, and so do BRK instructions.
    pub to_el2: bool,
    /// `DBGBVR<n>_EL1`.
    pub bvr: [u64; 16],
    /// `DBGBCR<n>_EL1`.
    pub bcr: [u64; 16],
    /// `DBGWVR<n>_EL1`.
    pub wvr: [u64; 16],
    /// `DBGWCR<n>_EL1`.
    pub wcr: [u64; 16],
}

/// How many breakpoints the machine has.
pub fn breakpoints() -> usize {
    (idregs::read(5, 0) >> 12 & 0xf) as usize + 1
}

/// How many watchpoints the machine has.
pub fn watchpoints() -> usize {
    (idregs::read(5, 0) >> 20 & 0xf) as usize + 1
}

macro_rules! write_numbered {
    ($number:expr, $op2:literal, $value:expr, $($n:literal)*) => {
        match $number {
            // SAFETY: a value that means nothing until MDSCR_EL1 is written.
            $($n => unsafe { msr!(concat!("s2_0_c0_c", $n, "_", $op2), $value) },)*
            _ => {}
        }
    };
}

macro_rules! write_each {
    ($values:expr, $count:expr, $op2:literal, $allowed:expr) => {
        for (number, value) in $values.iter().take($count).enumerate() {
            write_numbered!(number, $op2, value & $allowed, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
    };
}

impl DebugRegs {
    /// Right before the guest is entered. Away from the exits of guests that nobody debugs.
    #[inline(never)]
    pub(crate) fn load(&self) {
        if self.mdscr & MDSCR_MDE != 0 {
            write_each!(self.bvr, breakpoints(), "4", u64::MAX);
            write_each!(self.bcr, breakpoints(), "5", BCR);
            write_each!(self.wvr, watchpoints(), "6", u64::MAX);
            write_each!(self.wcr, watchpoints(), "7", WCR);
        }
        let mdcr = percpu::this().traps.mdcr();
        let wanted = self.mdscr & (MDSCR_SS | MDSCR_KDE | MDSCR_MDE);
        // SAFETY: until ERET, debug exceptions would be of a lower level's, or EL2's own, which PSTATE.D
        // masks since umbra was entered; nobody sets KDE for EL2.
        unsafe {
            if self.to_el2 {
                msr!("mdcr_el2", mdcr | TDE);
                msr!("s2_0_c0_c2_2", wanted & !MDSCR_KDE);
            } else {
                msr!("s2_0_c0_c2_2", wanted);
            }
            insn!("isb");
        }
    }

    /// Right after it left.
    #[inline(never)]
    pub(crate) fn unload(&self) {
        if left_out(Safeguard::DebugOff) {
            return;
        }
        let mdcr = percpu::this().traps.mdcr();
        // SAFETY: no debug exceptions from here on; MDCR_EL2 is as its cache says.
        unsafe {
            msr!("s2_0_c0_c2_2", 0);
            if self.to_el2 {
                msr!("mdcr_el2", mdcr);
            }
            insn!("isb");
        }
    }
}
