//! A fault that a guest hypervisor is told about: ESR_EL2, FAR_EL2 and HPFAR_EL2 as it reads them.
//!
//! The syndrome is hardware's with the fault status replaced by the kind and level of the walk of the
//! guest hypervisor's own tables (row N22), and of the rest only what the architecture defines for
//! such a fault (row N23): hardware may tell umbra more than it would tell virtual EL2.

use umbra_arm64::{Esr, FaultStatus, GuestFault, Gva, Hpfar, L2Ipa};

use crate::classify::Stage2Fault;

/// What virtual EL2 finds in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// ESR_EL2.
    pub esr: Esr,
    /// FAR_EL2: the virtual address of the access, also where the walk for it faulted.
    pub far: Gva,
    /// HPFAR_EL2: the page that stage 2 was asked for; with S1PTW that of the stage-1 descriptor.
    /// After a permission fault without S1PTW, and after an external abort, the architecture leaves
    /// the register UNKNOWN: the page all the same.
    pub hpfar: Hpfar,
}

const EC: u64 = 0x3f << 26;
const IL: u64 = 1 << 25;
/// ISV, SAS, SSE, SRT, SF, AR.
const DESCRIPTION: u64 = 0x3ff << 14 | 1 << 24;
const CM: u64 = 1 << 8;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;
const ISV: u64 = 1 << 24;

/// Which bits of hardware's syndrome hold for the guest hypervisor's fault (Arm ARM, ESR_EL2, ISS
/// encodings of instruction and data aborts).
const fn kept(esr: Esr, fault: &Stage2Fault<L2Ipa>, status: FaultStatus) -> u64 {
    if fault.instruction {
        return EC | IL | S1PTW;
    }
    // ISV is 0 for the walk's own access, and for an external abort with FEAT_RAS.
    let described = esr.raw() & ISV != 0 && !fault.s1ptw && !status.is_sea();
    EC | IL | CM | S1PTW | WNR | if described { DESCRIPTION } else { 0 }
}

/// What virtual EL2 is told of `fault`, taken with the syndrome `esr` at `at`, when the walk of its
/// tables ended in `walked`.
pub fn reflect(esr: Esr, fault: &Stage2Fault<L2Ipa>, at: L2Ipa, walked: GuestFault) -> Reflection {
    let status = walked.status();
    // Every status that a walk can end in has a code; an external abort for one that had none.
    let code = u64::from(status.encode().unwrap_or(0x10));
    Reflection {
        esr: Esr::new(esr.raw() & kept(esr, fault, status) | code),
        far: fault.gva,
        hpfar: Hpfar::from_page(at.align_down(4096)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Abort, Context, World, classify};
    use umbra_arm64::{FaultKind, Level};

    const FAR: Gva = Gva::new(0xffff_8000_0123_4abc);
    const AT: L2Ipa = L2Ipa::new(0x8765_4abc);
    const KINDS: [(FaultKind, u64); 5] = [
        (FaultKind::AddressSize, 0x00),
        (FaultKind::Translation, 0x04),
        (FaultKind::AccessFlag, 0x08),
        (FaultKind::Permission, 0x0c),
        (FaultKind::ExternalOnWalk, 0x14),
    ];

    fn fault(esr: Esr) -> Stage2Fault<L2Ipa> {
        let context = Context {
            ras: true,
            world: World::Nested,
        };
        match classify::<L2Ipa>(esr, FAR, Some(Hpfar::from_page(AT)), context) {
            Abort::Stage2(fault) => fault,
            other => panic!("{other:?}"),
        }
    }

    fn told(raw: u64, kind: FaultKind, level: Level) -> u64 {
        let esr = Esr::new(raw);
        let told = reflect(esr, &fault(esr), AT, GuestFault { kind, level });
        assert_eq!(told.far, FAR);
        assert_eq!(told.hpfar.raw(), 0x0008_7654 << 4);
        told.esr.raw()
    }

    #[test]
    fn kind_and_level_are_those_of_the_walk() {
        // A store of w5, 32 bits, translation fault of level 3 on the shadow.
        let hardware = 0x9385_0047;
        for (kind, code) in KINDS {
            for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
                let esr = told(hardware, kind, level);
                assert_eq!(
                    esr & 0x3f,
                    code | level.number() as u64,
                    "{kind:?} {level:?}"
                );
                assert_eq!(esr >> 25, hardware >> 25);
                assert_eq!(esr >> 6 & 1, 1, "WnR stays");
                let described = kind != FaultKind::ExternalOnWalk;
                assert_eq!(esr >> 14 & 0x7ff == hardware >> 14 & 0x7ff, described);
                assert_eq!(esr >> 24 & 1 == 1, described, "ISV");
            }
        }
    }

    /// Bit by bit: set alone in an otherwise plain syndrome, is it still there?
    #[test]
    fn only_architectural_bits_pass() {
        for (ec, keeps) in [(0x24u64, &[6, 7, 8][..]), (0x20, &[7])] {
            for bit in (6..24).chain(32..64) {
                let raw = ec << 26 | IL | 1 << bit | 0x07;
                let esr = told(raw, FaultKind::Translation, Level::L2);
                assert_eq!(
                    esr >> bit & 1 == 1,
                    keeps.contains(&bit),
                    "EC {ec:#x} bit {bit}"
                );
                assert_eq!(esr & 0x3f, 0x06);
            }
        }
        // The description passes as a whole, with ISV.
        let raw = 0x24 << 26 | IL | DESCRIPTION | 0x07;
        assert_eq!(told(raw, FaultKind::Translation, Level::L3), raw);
    }

    #[test]
    fn the_walk_s_own_access_has_no_description() {
        let raw = 0x24 << 26 | IL | DESCRIPTION | S1PTW | WNR | 0x07;
        let esr = told(raw, FaultKind::Translation, Level::L1);
        assert_eq!(esr, 0x24 << 26 | IL | S1PTW | WNR | 0x05);
        let fetch = 0x20 << 26 | IL | S1PTW | 0x0f;
        assert_eq!(
            told(fetch, FaultKind::Permission, Level::L3),
            0x20 << 26 | IL | S1PTW | 0x0f
        );
    }
}
