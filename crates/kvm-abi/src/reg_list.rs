//! The list that KVM_GET_REG_LIST gives: every id that KVM_GET_ONE_REG answers for a vCPU.
//!
//! The order is Linux's: core, firmware, firmware bitmaps, timers, system registers by encoding (the
//! performance counters' behind them), then CCSIDR. A register that a core or timer id names is not listed a second time by its
//! encoding, and what the vCPU lacks is not listed at all. [`resolve`] is the way back, from an id
//! to the place its value lives in; it refuses exactly what the list leaves out.

use crate::errno::Errno;
use crate::reg::{CoreReg, FwBitmap, FwReg, RegId, RegKind, TimerId};
use umbra_arm64::idreg::{IdRegs, cache};
use umbra_arm64::pmu;
use umbra_arm64::sysreg::{Features, Reg, SysReg};

/// Where the value of a register id lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The general and vector registers, and what hangs on them.
    Core(CoreReg),
    /// The register file.
    State(Reg),
    /// The ID registers; writes by `IdRegs::accept`.
    Id(SysReg),
    /// A timer.
    Timer(TimerId),
    /// The performance counters.
    Pmu(SysReg),
    /// CCSIDR_EL1 for this selection, 32 bits; writes must not change it.
    Ccsidr(u8),
    /// A firmware pseudo-register.
    Fw(FwReg),
    /// A firmware bitmap.
    FwFeatBmap(FwBitmap),
}

const FW: [FwReg; 4] = [
    FwReg::PsciVersion,
    FwReg::Workaround1,
    FwReg::Workaround2,
    FwReg::Workaround3,
];
const BITMAPS: [FwBitmap; 4] = [
    FwBitmap::Std,
    FwBitmap::StdHyp,
    FwBitmap::VendorHyp,
    FwBitmap::VendorHyp2,
];

/// Registers whose state goes by a core or a timer id.
const fn has_other_id(reg: Reg) -> bool {
    matches!(
        reg,
        Reg::SpEl0
            | Reg::SpEl1
            | Reg::ElrEl1
            | Reg::SpsrEl1
            | Reg::CntvCtlEl0
            | Reg::CntvCvalEl0
            | Reg::CntpCtlEl0
            | Reg::CntpCvalEl0
    )
}

/// The ID registers by encoding: MIDR, REVIDR, the ID space, and those beyond it.
fn id_registers() -> impl Iterator<Item = SysReg> {
    let space = (1..8).flat_map(|crm| (0..8).map(move |op2| SysReg::new(3, 0, 0, crm, op2)));
    [SysReg::MIDR_EL1, SysReg::REVIDR_EL1]
        .into_iter()
        .chain(space)
        .chain([SysReg::CLIDR_EL1, SysReg::AIDR_EL1, SysReg::CTR_EL0])
}

/// Every place of a vCPU with `features` and `ids`, in the order of the list.
pub fn places<'a>(features: &'a Features, ids: &'a IdRegs) -> impl Iterator<Item = Place> + 'a {
    let state = Reg::by_encoding().filter(|reg| reg.exists(features) && !has_other_id(*reg));
    CoreReg::all()
        .map(Place::Core)
        .chain(FW.map(Place::Fw))
        .chain(BITMAPS.map(Place::FwFeatBmap))
        .chain(TimerId::ALL.map(Place::Timer))
        .chain(id_registers().map(Place::Id))
        .chain(state.map(Place::State))
        .chain(pmu::saved().filter(|_| features.pmu).map(Place::Pmu))
        .chain(
            (0..14)
                .filter(|select| has_cache(ids, *select))
                .map(Place::Ccsidr),
        )
}

fn has_cache(ids: &IdRegs, select: u8) -> bool {
    let (clidr, ctr) = (ids.get(SysReg::CLIDR_EL1), ids.get(SysReg::CTR_EL0));
    cache::ccsidr(clidr, ctr, select.into()).is_some()
}

impl From<Place> for RegId {
    fn from(place: Place) -> Self {
        Self::from(match place {
            Place::Core(reg) => RegKind::Core(reg),
            Place::State(reg) => RegKind::Sysreg(reg.info().enc),
            Place::Id(enc) | Place::Pmu(enc) => RegKind::Sysreg(enc),
            Place::Timer(timer) => RegKind::Timer(timer),
            Place::Ccsidr(select) => RegKind::Ccsidr(select),
            Place::Fw(reg) => RegKind::Fw(reg),
            Place::FwFeatBmap(bitmap) => RegKind::FwFeatBmap(bitmap),
        })
    }
}

/// Finds the place that `id` names for a vCPU with `features` and `ids`.
///
/// # Errors
/// What [`RegId::parse`] answers, and ENOENT for a register that this vCPU does not have.
pub fn resolve(id: RegId, features: &Features, ids: &IdRegs) -> Result<Place, Errno> {
    match id.parse()? {
        RegKind::Core(reg) => Ok(Place::Core(reg)),
        RegKind::Timer(timer) => Ok(Place::Timer(timer)),
        RegKind::Fw(reg) => Ok(Place::Fw(reg)),
        RegKind::FwFeatBmap(bitmap) => Ok(Place::FwFeatBmap(bitmap)),
        RegKind::Ccsidr(select) if has_cache(ids, select) => Ok(Place::Ccsidr(select)),
        RegKind::Sysreg(enc) if id_registers().any(|listed| listed == enc) => Ok(Place::Id(enc)),
        RegKind::Sysreg(enc) if features.pmu && pmu::saved().any(|listed| listed == enc) => {
            Ok(Place::Pmu(enc))
        }
        RegKind::Sysreg(enc) => match Reg::from_enc(enc) {
            Some(reg) if reg.exists(features) && !has_other_id(reg) => Ok(Place::State(reg)),
            _ => Err(Errno::ENOENT),
        },
        RegKind::Ccsidr(_) | RegKind::Sve(_) => Err(Errno::ENOENT),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn vcpu(nested: bool) -> (Features, IdRegs) {
        let mut ids = IdRegs::default();
        ids.set(SysReg::CLIDR_EL1, cache::clidr(0));
        ids.set(SysReg::ID_AA64PFR0_EL1, u64::from(nested) << 8);
        (ids.features(), ids)
    }

    #[test]
    fn every_listed_id_is_distinct_and_leads_back() {
        for nested in [false, true] {
            let (features, ids) = vcpu(nested);
            let list: Vec<Place> = places(&features, &ids).collect();
            let distinct: BTreeSet<RegId> = list.iter().map(|place| RegId::from(*place)).collect();
            assert_eq!(distinct.len(), list.len());
            for place in list {
                assert_eq!(resolve(RegId::from(place), &features, &ids), Ok(place));
            }
        }
    }

    #[test]
    fn no_system_register_answers_that_is_not_listed() {
        let (features, ids) = vcpu(false);
        let listed: BTreeSet<RegId> = places(&features, &ids).map(RegId::from).collect();
        for raw in 0..=u16::MAX {
            let id = RegId(0x6030_0000_0013_0000 | u64::from(raw));
            assert_eq!(
                resolve(id, &features, &ids).is_ok(),
                listed.contains(&id),
                "{id:?}"
            );
        }
    }

    #[test]
    fn el2_is_listed_for_vcpus_that_have_it() {
        let id = RegId::from(RegKind::Sysreg(SysReg::HCR_EL2));
        let (features, ids) = vcpu(false);
        assert_eq!(resolve(id, &features, &ids), Err(Errno::ENOENT));
        let (features, ids) = vcpu(true);
        assert_eq!(resolve(id, &features, &ids), Ok(Place::State(Reg::HcrEl2)));
    }

    #[test]
    fn what_a_core_id_names_has_no_second_id() {
        let (features, ids) = vcpu(false);
        for enc in [
            SysReg::SP_EL0,
            SysReg::SP_EL1,
            SysReg::ELR_EL1,
            SysReg::SPSR_EL1,
        ] {
            let id = RegId::from(RegKind::Sysreg(enc));
            assert_eq!(resolve(id, &features, &ids), Err(Errno::ENOENT), "{enc}");
        }
    }
}
