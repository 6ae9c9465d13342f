//! The fine-grained trap registers (FEAT_FGT, Arm ARM D24.2.55 to D24.2.64): which bits there are, what
//! each needs to exist, and which never do.
//!
//! A bit of a feature that the guest hypervisor is not shown is RES0. Features that umbra shows nobody
//! are listed by their bits alone ([`HIDDEN`]): all bits with the reversed sense (clear traps) are
//! among them, so for umbra's guests a fine-grained trap is a set bit.

use umbra_arm64::idreg::IdRegs;
use umbra_arm64::sysreg::{Reg, SysReg};

/// A fine-grained trap register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Fine {
    /// HFGRTR_EL2: reads.
    Hfgrtr,
    /// HFGWTR_EL2: writes.
    Hfgwtr,
    /// HFGITR_EL2: instructions.
    Hfgitr,
    /// HDFGRTR_EL2: reads of debug registers.
    Hdfgrtr,
    /// HDFGWTR_EL2: writes of debug registers.
    Hdfgwtr,
    /// HAFGRTR_EL2: reads of activity monitors.
    Hafgrtr,
}

/// All of them, in the order of their numbers.
pub const FINE: [Fine; 6] = [
    Fine::Hfgrtr,
    Fine::Hfgwtr,
    Fine::Hfgitr,
    Fine::Hdfgrtr,
    Fine::Hdfgwtr,
    Fine::Hafgrtr,
];

use Fine::{Hafgrtr, Hdfgrtr, Hdfgwtr, Hfgitr, Hfgrtr, Hfgwtr};

/// HFGITR_EL2.ERET.
pub(super) const ERET: u8 = 51;

/// HFGITR_EL2.SVC_EL0 or SVC_EL1.
pub(super) const fn svc(el0: bool) -> u8 {
    if el0 { 52 } else { 53 }
}

/// A condition on ID registers.
type When = fn(&IdRegs) -> bool;

fn always(_: &IdRegs) -> bool {
    true
}
fn pauth(ids: &IdRegs) -> bool {
    ids.has_pauth()
}
fn ras(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64PFR0_EL1, 28) != 0
}
fn rasv1p1(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64PFR0_EL1, 28) >= 2
}
fn gic(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64PFR0_EL1, 24) != 0
}
fn dpb(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64ISAR1_EL1, 0) >= 1
}
fn dpb2(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64ISAR1_EL1, 0) >= 2
}
fn pan2(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64MMFR1_EL1, 20) >= 2
}
fn pmu(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64DFR0_EL1, 8) != 0
}
fn tlbios(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64ISAR0_EL1, 56) >= 1
}
fn tlbirange(ids: &IdRegs) -> bool {
    ids.field(SysReg::ID_AA64ISAR0_EL1, 56) >= 2
}

/// A mask from bit `low` to bit `high`, both included.
const fn span(low: u32, high: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

const fn bit(at: u32) -> u64 {
    1 << at
}

/// Bits of HFGRTR_EL2 for registers that cannot be written: RES0 in HFGWTR_EL2.
pub(super) const READ_ONLY: u64 = bit(2)
    | span(9, 10)
    | span(14, 15)
    | bit(18)
    | bit(21)
    | span(25, 26)
    | bit(28)
    | bit(40)
    | bit(42)
    | bit(46);

const REGISTERS: [(u64, When); 5] = [
    (
        span(0, 3) | span(9, 18) | span(24, 29) | span(32, 38),
        always,
    ),
    (span(4, 8), pauth),
    (bit(39), gic),
    (span(40, 46) | bit(49), ras),
    (span(47, 48), rasv1p1),
];

const INSTRUCTIONS: [(u64, When); 6] = [
    (
        span(0, 7) | span(10, 15) | span(28, 33) | span(42, 47) | span(51, 54),
        always,
    ),
    (bit(8), dpb),
    (bit(9), dpb2),
    (span(16, 17), pan2),
    (span(18, 23), tlbios),
    (span(24, 27) | span(34, 41), tlbirange),
];

/// Debug: breakpoints and watchpoints, MDSCR, claim tags, DBGPRCR, OSECCR, OSDLR.
const DEBUG: u64 = span(0, 5) | bit(7) | span(10, 11);
/// DBGAUTHSTATUS and OSLSR are read, OSLAR is written.
const DEBUG_READ: u64 = DEBUG | bit(6) | bit(9);
const DEBUG_WRITE: u64 = DEBUG | bit(8);

const COUNTERS: u64 = span(12, 19) | bit(57);
const READS_OF_DEBUG: [(u64, When); 2] =
    [(DEBUG_READ, always), (COUNTERS | bit(22) | bit(58), pmu)];
const WRITES_OF_DEBUG: [(u64, When); 2] = [(DEBUG_WRITE, always), (COUNTERS | span(20, 21), pmu)];

/// The bits of features that umbra shows to no guest, and why; the reversed ones among them.
#[cfg(test)]
pub(super) const HIDDEN: &[(Fine, u64, &str)] = &[
    (Hfgrtr, span(19, 23), "limited ordering regions: LOR"),
    (
        Hfgwtr,
        span(19, 20) | span(22, 23),
        "limited ordering regions: LOR",
    ),
    (Hfgrtr, span(30, 31), "SCXTNUM: CSV2 below 2"),
    (Hfgwtr, span(30, 31), "SCXTNUM: CSV2 below 2"),
    (Hfgrtr, bit(50), "ACCDATA: LS64"),
    (Hfgwtr, bit(50), "ACCDATA: LS64"),
    (Hfgrtr, span(52, 53), "GCS"),
    (Hfgwtr, span(52, 53), "GCS"),
    (Hfgrtr, span(54, 55), "SME"),
    (Hfgwtr, span(54, 55), "SME"),
    (Hfgrtr, bit(56), "RCWMASK: THE"),
    (Hfgwtr, bit(56), "RCWMASK: THE"),
    (Hfgrtr, span(57, 61), "S1PIE, S1POE, S2POE"),
    (Hfgwtr, span(57, 61), "S1PIE, S1POE, S2POE"),
    (Hfgrtr, span(62, 63), "MAIR2, AMAIR2: AIE"),
    (Hfgwtr, span(62, 63), "MAIR2, AMAIR2: AIE"),
    (Hfgitr, span(48, 50) | bit(60), "prediction: SPECRES"),
    (Hfgitr, span(55, 56), "BRBE"),
    (Hfgitr, span(57, 59), "GCS"),
    (Hfgitr, bit(62), "AT S1E1A: ATS1A"),
    (Hfgitr, bit(63), "PSB: SPE"),
    (Hdfgrtr, span(23, 32) | span(62, 63), "SPE"),
    (Hdfgwtr, span(23, 29) | span(31, 32) | bit(62), "SPE"),
    (Hdfgrtr, span(33, 37) | span(40, 41) | span(43, 48), "trace"),
    (
        Hdfgwtr,
        bit(33) | span(35, 37) | span(41, 42) | span(44, 46) | span(48, 49),
        "trace",
    ),
    (Hdfgrtr, span(49, 56), "trace filter and buffer"),
    (Hdfgwtr, bit(50) | span(52, 56), "trace buffer"),
    (Hdfgrtr, span(59, 61), "BRBE"),
    (Hdfgwtr, span(60, 61), "BRBE"),
    (Hafgrtr, span(0, 4) | span(17, 49), "AMU"),
];

/// Bits that no feature has.
#[cfg(test)]
pub(super) const RESERVED: [(Fine, u64); 6] = [
    (Hfgrtr, bit(51)),
    (Hfgwtr, bit(51) | READ_ONLY),
    (Hfgitr, bit(61)),
    (Hdfgrtr, bit(8) | span(20, 21) | span(38, 39) | bit(42)),
    (
        Hdfgwtr,
        bit(6)
            | bit(9)
            | bit(22)
            | bit(30)
            | bit(34)
            | span(38, 40)
            | bit(43)
            | bit(47)
            | bit(51)
            | span(58, 59)
            | bit(63),
    ),
    (Hafgrtr, span(5, 16) | span(50, 63)),
];

impl Fine {
    /// The register's place in a vCPU's file.
    pub const fn register(self) -> Reg {
        match self {
            Hfgrtr => Reg::HfgrtrEl2,
            Hfgwtr => Reg::HfgwtrEl2,
            Hfgitr => Reg::HfgitrEl2,
            Hdfgrtr => Reg::HdfgrtrEl2,
            Hdfgwtr => Reg::HdfgwtrEl2,
            Hafgrtr => Reg::HafgrtrEl2,
        }
    }

    /// The bits that exist for a guest hypervisor that is shown `ids`.
    pub fn valid(self, ids: &IdRegs) -> u64 {
        if ids.field(SysReg::ID_AA64MMFR0_EL1, 56) == 0 {
            return 0;
        }
        let of = |rows: &[(u64, When)]| {
            let there = rows.iter().filter(|(_, when)| when(ids));
            there.fold(0, |bits, (mask, _)| bits | mask)
        };
        match self {
            Hfgrtr => of(&REGISTERS),
            Hfgwtr => of(&REGISTERS) & !READ_ONLY,
            Hfgitr => of(&INSTRUCTIONS),
            Hdfgrtr => of(&READS_OF_DEBUG),
            Hdfgwtr => of(&WRITES_OF_DEBUG),
            Hafgrtr => 0,
        }
    }

    /// The bits that some guest hypervisor can be shown.
    #[cfg(test)]
    pub(super) fn shown(self) -> u64 {
        let of = |rows: &[(u64, When)]| rows.iter().fold(0, |bits, (mask, _)| bits | mask);
        match self {
            Hfgrtr => of(&REGISTERS),
            Hfgwtr => of(&REGISTERS) & !READ_ONLY,
            Hfgitr => of(&INSTRUCTIONS),
            Hdfgrtr => of(&READS_OF_DEBUG),
            Hdfgwtr => of(&WRITES_OF_DEBUG),
            Hafgrtr => 0,
        }
    }
}
