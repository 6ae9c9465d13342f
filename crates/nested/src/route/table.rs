//! A row for every system register and system instruction that umbra traps, or that a control of a
//! guest hypervisor can trap.
//!
//! Rows ascend by encoding. Five families are rules instead, as each is one thing many times: the ID
//! space, breakpoint and watchpoint registers, performance counters, IMPLEMENTATION DEFINED encodings, TLB
//! maintenance.
//!
//! What hidden features have (trace, SPE, AMU, SVE, SME …) has no row: it is undefined to every
//! guest, and umbra says so.

use super::fine::Fine;
use super::{Coarse, cnthctl, hcr, ich, mdcr};
use umbra_arm64::pmu::is_pmu;
use umbra_arm64::sysreg::{SysReg, is_id_space, is_tlbi};

/// The fine-grained bit for an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    /// None.
    None,
    /// The same bit of HFGRTR_EL2 and HFGWTR_EL2.
    Register(u8),
    /// HFGITR_EL2.
    Instruction(u8),
    /// The same bit of HDFGRTR_EL2 and HDFGWTR_EL2.
    Debug(u8),
}

impl Bit {
    /// The register and the bit, for a read or for a write or instruction.
    pub(super) const fn bit(self, read: bool) -> Option<(Fine, u8)> {
        Some(match (self, read) {
            (Bit::None, _) => return None,
            (Bit::Register(bit), true) => (Fine::Hfgrtr, bit),
            (Bit::Register(bit), false) => (Fine::Hfgwtr, bit),
            (Bit::Instruction(bit), _) => (Fine::Hfgitr, bit),
            (Bit::Debug(bit), true) => (Fine::Hdfgrtr, bit),
            (Bit::Debug(bit), false) => (Fine::Hdfgwtr, bit),
        })
    }
}

/// What traps an encoding: any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Coarse controls.
    pub(super) coarse: [Option<Coarse>; 2],
    /// The fine-grained bit.
    pub(super) fine: Bit,
    /// HCRX_EL2.FGTnXS takes the fine-grained bit's effect away.
    pub(super) nxs: bool,
}

const fn of(fine: Bit, coarse: [Option<Coarse>; 2]) -> Row {
    Row {
        coarse,
        fine,
        nxs: false,
    }
}

const fn one(fine: Bit, coarse: Coarse) -> Row {
    of(fine, [Some(coarse), None])
}

const fn two(fine: Bit, first: Coarse, second: Coarse) -> Row {
    of(fine, [Some(first), Some(second)])
}

/// Trapped by its fine-grained bit alone.
const fn fine(fine: Bit) -> Row {
    of(fine, [None, None])
}

/// A register of the stage-1 translation (HCR_EL2.TVM, TRVM).
const fn memory(bit: u8) -> Row {
    two(
        Bit::Register(bit),
        Coarse::HcrWrite(hcr::TVM),
        Coarse::HcrRead(hcr::TRVM),
    )
}

const fn key(bit: u8) -> Row {
    one(Bit::Register(bit), Coarse::HcrClear(hcr::APK))
}

const fn error(bit: u8) -> Row {
    one(Bit::Register(bit), Coarse::Hcr(hcr::TERR))
}

const fn injection(bit: u8) -> Row {
    two(
        Bit::Register(bit),
        Coarse::Hcr(hcr::TERR),
        Coarse::HcrClear(hcr::FIEN),
    )
}

const fn debug(fine: Bit, control: u64) -> Row {
    // TDE acts as if the other three were set.
    one(fine, Coarse::Mdcr(control | mdcr::TDE))
}

const fn gic(bits: u64) -> Row {
    one(Bit::None, Coarse::Gic(bits))
}

const fn sgi() -> Row {
    two(
        Bit::None,
        Coarse::Hcr(hcr::IMO | hcr::FMO),
        Coarse::Gic(ich::TC),
    )
}

const fn enc(op1: u8, crm: u8, op2: u8) -> SysReg {
    SysReg::new(1, op1, 7, crm, op2)
}

use Bit::{Debug as D, Instruction as I, None as No, Register as R};
use Coarse::{Cpacr, Hcr, HcrRead, Timer, TimerClear};

#[rustfmt::skip]
pub(super) static TABLE: &[(SysReg, Row)] = &[
    // Caches and address translation. IC IALLUIS, IALLU; DC IVAC, ISW; AT S1E1R … S1E1WP; DC CSW, CISW.
    (enc(0, 1, 0), one(I(0), Hcr(hcr::TPU | hcr::TICAB))),
    (enc(0, 5, 0), one(I(1), Hcr(hcr::TPU | hcr::TOCU))),
    (enc(0, 6, 1), one(I(3), Hcr(hcr::TPC))),
    (enc(0, 6, 2), one(I(4), Hcr(hcr::TSW))),
    (enc(0, 8, 0), one(I(12), Hcr(hcr::AT))),
    (enc(0, 8, 1), one(I(13), Hcr(hcr::AT))),
    (enc(0, 8, 2), one(I(14), Hcr(hcr::AT))),
    (enc(0, 8, 3), one(I(15), Hcr(hcr::AT))),
    (enc(0, 9, 0), one(I(16), Hcr(hcr::AT))),
    (enc(0, 9, 1), one(I(17), Hcr(hcr::AT))),
    (enc(0, 10, 2), one(I(5), Hcr(hcr::TSW))),
    (enc(0, 14, 2), one(I(6), Hcr(hcr::TSW))),
    // DC ZVA, IC IVAU, DC CVAC, CVAU, CVAP, CVADP, CIVAC.
    (enc(3, 4, 1), one(I(11), Hcr(hcr::TDZ))),
    (enc(3, 5, 1), one(I(2), Hcr(hcr::TPU | hcr::TOCU))),
    (enc(3, 10, 1), one(I(54), Hcr(hcr::TPC))),
    (enc(3, 11, 1), one(I(7), Hcr(hcr::TPU | hcr::TOCU))),
    (enc(3, 12, 1), one(I(8), Hcr(hcr::TPC))),
    (enc(3, 13, 1), one(I(9), Hcr(hcr::TPC))),
    (enc(3, 14, 1), one(I(10), Hcr(hcr::TPC))),
    // Debug; breakpoints and watchpoints are a rule.
    (SysReg::OSDTRRX_EL1, debug(No, mdcr::TDA | mdcr::TDCC)),
    (SysReg::MDCCINT_EL1, debug(No, mdcr::TDA | mdcr::TDCC)),
    (SysReg::MDSCR_EL1, debug(D(4), mdcr::TDA)),
    (SysReg::OSDTRTX_EL1, debug(No, mdcr::TDA | mdcr::TDCC)),
    (SysReg::OSECCR_EL1, debug(D(10), mdcr::TDA)),
    (SysReg::MDRAR_EL1, debug(No, mdcr::TDRA)),
    (SysReg::OSLAR_EL1, debug(D(8), mdcr::TDOSA)),
    (SysReg::OSLSR_EL1, debug(D(9), mdcr::TDOSA)),
    (SysReg::OSDLR_EL1, debug(D(11), mdcr::TDOSA)),
    (SysReg::DBGPRCR_EL1, debug(D(7), mdcr::TDOSA)),
    (SysReg::DBGCLAIMSET_EL1, debug(D(5), mdcr::TDA)),
    (SysReg::DBGCLAIMCLR_EL1, debug(D(5), mdcr::TDA)),
    (SysReg::DBGAUTHSTATUS_EL1, debug(D(6), mdcr::TDA)),
    (SysReg::MDCCSR_EL0, debug(No, mdcr::TDA | mdcr::TDCC)),
    (SysReg::DBGDTR_EL0, debug(No, mdcr::TDA | mdcr::TDCC)),
    (SysReg::DBGDTRRX_EL0, debug(No, mdcr::TDA | mdcr::TDCC)),
    // Identification and control.
    (SysReg::MIDR_EL1, fine(R(25))),
    (SysReg::MPIDR_EL1, fine(R(26))),
    (SysReg::REVIDR_EL1, one(R(28), HcrRead(hcr::TID1))),
    (SysReg::SCTLR_EL1, memory(29)),
    (SysReg::ACTLR_EL1, one(No, Hcr(hcr::TACR))),
    (SysReg::CPACR_EL1, one(R(12), Cpacr)),
    (SysReg::TTBR0_EL1, memory(36)),
    (SysReg::TTBR1_EL1, memory(37)),
    (SysReg::TCR_EL1, memory(32)),
    (SysReg::APIAKEYLO_EL1, key(7)),
    (SysReg::APIAKEYHI_EL1, key(7)),
    (SysReg::APIBKEYLO_EL1, key(8)),
    (SysReg::APIBKEYHI_EL1, key(8)),
    (SysReg::APDAKEYLO_EL1, key(4)),
    (SysReg::APDAKEYHI_EL1, key(4)),
    (SysReg::APDBKEYLO_EL1, key(5)),
    (SysReg::APDBKEYHI_EL1, key(5)),
    (SysReg::APGAKEYLO_EL1, key(6)),
    (SysReg::APGAKEYHI_EL1, key(6)),
    (SysReg::ICC_PMR_EL1, gic(ich::TC)),
    (SysReg::AFSR0_EL1, memory(0)),
    (SysReg::AFSR1_EL1, memory(1)),
    (SysReg::ESR_EL1, memory(16)),
    (SysReg::ERRIDR_EL1, error(40)),
    (SysReg::ERRSELR_EL1, error(41)),
    (SysReg::ERXGSR_EL1, one(No, Hcr(hcr::TERR))),
    (SysReg::ERXFR_EL1, error(42)),
    (SysReg::ERXCTLR_EL1, error(43)),
    (SysReg::ERXSTATUS_EL1, error(44)),
    (SysReg::ERXADDR_EL1, error(49)),
    (SysReg::ERXPFGF_EL1, injection(46)),
    (SysReg::ERXPFGCTL_EL1, injection(47)),
    (SysReg::ERXPFGCDN_EL1, injection(48)),
    (SysReg::ERXMISC0_EL1, error(45)),
    (SysReg::ERXMISC1_EL1, error(45)),
    (SysReg::ERXMISC2_EL1, error(45)),
    (SysReg::ERXMISC3_EL1, error(45)),
    (SysReg::FAR_EL1, memory(17)),
    (SysReg::PAR_EL1, fine(R(27))),
    (SysReg::MAIR_EL1, memory(24)),
    (SysReg::AMAIR_EL1, memory(3)),
    (SysReg::LORSA_EL1, one(No, Hcr(hcr::TLOR))),
    (SysReg::LOREA_EL1, one(No, Hcr(hcr::TLOR))),
    (SysReg::LORN_EL1, one(No, Hcr(hcr::TLOR))),
    (SysReg::LORC_EL1, one(No, Hcr(hcr::TLOR))),
    (SysReg::LORID_EL1, one(No, Hcr(hcr::TLOR))),
    (SysReg::VBAR_EL1, fine(R(38))),
    (SysReg::ISR_EL1, fine(R(18))),
    (SysReg::ICC_IAR0_EL1, gic(ich::TALL0)),
    (SysReg::ICC_EOIR0_EL1, gic(ich::TALL0)),
    (SysReg::ICC_HPPIR0_EL1, gic(ich::TALL0)),
    (SysReg::ICC_BPR0_EL1, gic(ich::TALL0)),
    (SysReg::ICC_AP0R0_EL1, gic(ich::TALL0)),
    (SysReg::ICC_AP0R1_EL1, gic(ich::TALL0)),
    (SysReg::ICC_AP0R2_EL1, gic(ich::TALL0)),
    (SysReg::ICC_AP0R3_EL1, gic(ich::TALL0)),
    (SysReg::ICC_AP1R0_EL1, gic(ich::TALL1)),
    (SysReg::ICC_AP1R1_EL1, gic(ich::TALL1)),
    (SysReg::ICC_AP1R2_EL1, gic(ich::TALL1)),
    (SysReg::ICC_AP1R3_EL1, gic(ich::TALL1)),
    (SysReg::ICC_DIR_EL1, gic(ich::TC | ich::TDIR)),
    (SysReg::ICC_RPR_EL1, gic(ich::TC)),
    (SysReg::ICC_SGI1R_EL1, sgi()),
    (SysReg::ICC_ASGI1R_EL1, sgi()),
    (SysReg::ICC_SGI0R_EL1, sgi()),
    (SysReg::ICC_IAR1_EL1, gic(ich::TALL1)),
    (SysReg::ICC_EOIR1_EL1, gic(ich::TALL1)),
    (SysReg::ICC_HPPIR1_EL1, gic(ich::TALL1)),
    (SysReg::ICC_BPR1_EL1, gic(ich::TALL1)),
    (SysReg::ICC_CTLR_EL1, gic(ich::TC)),
    // ICC_SRE_EL2.Enable, which traps it, is fixed at 1.
    (SysReg::ICC_SRE_EL1, fine(No)),
    (SysReg::ICC_IGRPEN0_EL1, one(R(39), Coarse::Gic(ich::TALL0))),
    (SysReg::ICC_IGRPEN1_EL1, one(R(39), Coarse::Gic(ich::TALL1))),
    (SysReg::CONTEXTIDR_EL1, memory(11)),
    (SysReg::TPIDR_EL1, fine(R(33))),
    (SysReg::CCSIDR_EL1, one(R(9), Hcr(hcr::TID2 | hcr::TID4))),
    (SysReg::CLIDR_EL1, one(R(10), Hcr(hcr::TID2 | hcr::TID4))),
    (SysReg::CCSIDR2_EL1, one(R(9), Hcr(hcr::TID2 | hcr::TID4))),
    (SysReg::GMID_EL1, one(No, Hcr(hcr::TID5))),
    (SysReg::AIDR_EL1, one(R(2), HcrRead(hcr::TID1))),
    (SysReg::CSSELR_EL1, one(R(13), Hcr(hcr::TID2 | hcr::TID4))),
    (SysReg::CTR_EL0, one(R(14), Hcr(hcr::TID2))),
    (SysReg::DCZID_EL0, fine(R(15))),
    (SysReg::TPIDR_EL0, fine(R(35))),
    (SysReg::TPIDRRO_EL0, fine(R(34))),
    // The generic timer.
    (SysReg::CNTPCT_EL0, one(No, TimerClear(cnthctl::EL1PCTEN))),
    (SysReg::CNTVCT_EL0, one(No, Timer(cnthctl::EL1TVCT))),
    (SysReg::CNTPCTSS_EL0, one(No, TimerClear(cnthctl::EL1PCTEN))),
    (SysReg::CNTVCTSS_EL0, one(No, Timer(cnthctl::EL1TVCT))),
    (SysReg::CNTP_TVAL_EL0, one(No, TimerClear(cnthctl::EL1PTEN))),
    (SysReg::CNTP_CTL_EL0, one(No, TimerClear(cnthctl::EL1PTEN))),
    (SysReg::CNTP_CVAL_EL0, one(No, TimerClear(cnthctl::EL1PTEN))),
    (SysReg::CNTV_TVAL_EL0, one(No, Timer(cnthctl::EL1TVT))),
    (SysReg::CNTV_CTL_EL0, one(No, Timer(cnthctl::EL1TVT))),
    (SysReg::CNTV_CVAL_EL0, one(No, Timer(cnthctl::EL1TVT))),
];

/// What traps `enc`; `None` where no guest hypervisor has a say.
pub(super) fn row(enc: SysReg) -> Option<Row> {
    family(enc).or_else(|| {
        let at = TABLE.binary_search_by_key(&enc, |row| row.0).ok()?;
        Some(TABLE[at].1)
    })
}

/// The row of an encoding that is one of many of its kind.
pub(super) fn family(enc: SysReg) -> Option<Row> {
    if is_id_space(enc) {
        return Some(one(No, HcrRead(hcr::TID3)));
    }
    if is_tlbi(enc) {
        return tlbi(enc);
    }
    if is_pmu(enc) {
        return Some(counters(enc));
    }
    // IMPLEMENTATION DEFINED (Arm ARM D18.3, C5.1.3).
    if matches!(enc.op0(), 1 | 3) && matches!(enc.crn(), 11 | 15) {
        return Some(one(No, Hcr(hcr::TIDCP)));
    }
    if (enc.op0(), enc.op1(), enc.crn()) == (2, 0, 0) {
        let bit = match enc.op2() {
            4 => 1, // DBGBVR<n>_EL1
            5 => 0, // DBGBCR<n>_EL1
            6 => 3, // DBGWVR<n>_EL1
            7 => 2, // DBGWCR<n>_EL1
            _ => return None,
        };
        return Some(debug(D(bit), mdcr::TDA));
    }
    None
}

/// A register of the performance counters (Arm ARM D24.2.59, HDFGRTR_EL2). What PMSELR_EL0 selects is trapped as
/// an event counter.
fn counters(enc: SysReg) -> Row {
    let bit = match enc {
        SysReg::PMCR_EL0 => {
            return two(D(21), Coarse::Mdcr(mdcr::TPM), Coarse::Mdcr(mdcr::TPMCR));
        }
        SysReg::PMCCFILTR_EL0 => 14,
        SysReg::PMCCNTR_EL0 => 15,
        SysReg::PMCNTENSET_EL0 | SysReg::PMCNTENCLR_EL0 => 16,
        SysReg::PMINTENSET_EL1 | SysReg::PMINTENCLR_EL1 => 17,
        SysReg::PMOVSSET_EL0 | SysReg::PMOVSCLR_EL0 => 18,
        SysReg::PMSELR_EL0 => 19,
        SysReg::PMSWINC_EL0 => 20,
        SysReg::PMMIR_EL1 => 22,
        SysReg::PMUSERENR_EL0 => 57,
        SysReg::PMCEID0_EL0 | SysReg::PMCEID1_EL0 => 58,
        SysReg::PMXEVTYPER_EL0 => 13,
        SysReg::PMXEVCNTR_EL0 => 12,
        numbered if numbered.crm() >= 12 => 13,
        _ => 12,
    };
    one(D(bit), Coarse::Mdcr(mdcr::TPM))
}

/// TLB maintenance of the EL1&0 regime (Arm ARM C5.5); that of EL2 is undefined at EL1.
fn tlbi(enc: SysReg) -> Option<Row> {
    /// VMALLE1, VAE1, ASIDE1, VAAE1, VALE1, VAALE1 by op2, and the range forms RVAE1, RVAAE1, RVALE1,
    /// RVAALE1.
    const ONE: [Option<u8>; 8] = [
        Some(0),
        Some(1),
        Some(2),
        Some(3),
        None,
        Some(4),
        None,
        Some(5),
    ];
    const RANGE: [Option<u8>; 8] = [None, Some(0), None, Some(1), None, Some(2), None, Some(3)];
    if enc.op1() != 0 {
        return None;
    }
    let (forms, first, domain) = match enc.crm() {
        1 => (ONE, 18, hcr::TTLBOS),
        2 => (RANGE, 34, hcr::TTLBIS),
        3 => (ONE, 28, hcr::TTLBIS),
        5 => (RANGE, 24, hcr::TTLBOS),
        6 => (RANGE, 38, 0),
        7 => (ONE, 42, 0),
        _ => return None,
    };
    let bit = first + forms[usize::from(enc.op2())]?;
    Some(Row {
        nxs: enc.crn() == 9,
        ..one(I(bit), Hcr(hcr::TTLB | domain))
    })
}
