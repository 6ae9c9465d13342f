//! Rules, one function each.

use umbra_arm64::{Address, Esr, FaultStatus, Gva, Hpfar};

use crate::classify::World;

/// Whether a synchronous external abort is the host's own affair, as far as the syndrome tells.
///
/// - Without FEAT_RAS, HCR_EL2.TEA is RES0: an external abort reaches EL2 only if the host's
///   memory is bad (row S5).
/// - The access of a VNCR page is the host's, unless the vCPU runs a guest of its guest, when the page is
///   the guest hypervisor's (row S6).
/// - A walk with S1PTW is the stage-2 walk for a stage-1 descriptor (row S3).
/// - Parity and ECC codes need no case: with FEAT_RAS they are not permitted (row S7).
///
/// An abort of a table walk is checked against the tables themselves before this answer is
/// believed (row S4): `Sea::is_on_walk`.
pub const fn host_owns_sea(
    ras: bool,
    world: World,
    status: FaultStatus,
    s1ptw: bool,
    vncr: bool,
) -> bool {
    if !ras {
        return true;
    }
    match world {
        World::Plain | World::VirtualEl2 if vncr => true,
        World::Plain | World::VirtualEl2 | World::Nested => status.is_on_walk() && s1ptw,
    }
}

const EC: u64 = 0x3f << 26;
const IL: u64 = 1 << 25;
const SET: u64 = 0b11 << 11;
const FNV: u64 = 1 << 10;
const EA: u64 = 1 << 9;
const CM: u64 = 1 << 8;
const WNR: u64 = 1 << 6;
const FSC: u64 = 0x3f;

/// The part of a syndrome that a VMM is shown for an external abort: an allow-list (rows S8 and S9),
/// and SET where the VM has FEAT_RAS.
///
/// Hidden are S1PTW, since genuine stage-2 aborts must not be shown (row S10), the description of the
/// instruction (ISV and what it validates), VNCR and ISS2.
pub const fn sea_syndrome_for_vmm(esr: Esr, vm_has_ras: bool) -> Esr {
    let set = if vm_has_ras { SET } else { 0 };
    Esr::new(esr.raw() & (EC | IL | FNV | EA | CM | WNR | FSC | set))
}

/// Whether hardware writes HPFAR_EL2 for a stage-2 abort (Arm ARM, R_FKLWR): translation, access flag
/// and address-size faults, and permission faults on the access to a stage-1 descriptor. After
/// anything else, external aborts included, the register is UNKNOWN.
pub const fn hpfar_is_valid(status: FaultStatus, s1ptw: bool) -> bool {
    match status {
        FaultStatus::Translation(_) | FaultStatus::AccessFlag(_) | FaultStatus::AddressSize(_) => {
            true
        }
        FaultStatus::Permission(_) => s1ptw,
        _ => false,
    }
}

/// The address that faulted, from HPFAR's page and FAR's offset in it. For the access to a stage-1
/// descriptor (`s1ptw`) FAR holds the address that was being translated, which says nothing about the
/// descriptor's place: the page alone.
pub fn fault_ipa<A: Address>(hpfar: Hpfar, far: Gva, s1ptw: bool) -> A {
    let page: A = hpfar.page();
    let offset = if s1ptw { 0 } else { far.offset_in(4096) };
    A::from_raw(page.to_raw() | offset)
}

/// Whether a stage-2 fault counts as a write. A data access says so itself (WnR). The access to a
/// stage-1 descriptor is a write only if permission was what it lacked: the walker could read the
/// table, so it wanted to set a flag in it. Until then it is a read. A fetch is none.
pub const fn is_write_fault(status: FaultStatus, s1ptw: bool, wnr: bool) -> bool {
    if s1ptw {
        matches!(status, FaultStatus::Permission(_))
    } else {
        wnr
    }
}

/// Whether a stage-2 fault wanted to execute. The access to a stage-1 descriptor on behalf of a fetch
/// is a data access (row N21).
pub const fn is_exec_fault(instruction: bool, s1ptw: bool) -> bool {
    instruction && !s1ptw
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_arm64::{Ipa, Level};

    const WORLDS: [World; 3] = [World::Plain, World::VirtualEl2, World::Nested];

    #[test]
    fn whose_an_external_abort_is() {
        for code in 0..64 {
            let status = FaultStatus::decode(code);
            for world in WORLDS {
                for n in 0..8 {
                    let (ras, s1ptw, vncr) = (n & 1 != 0, n & 2 != 0, n & 4 != 0);
                    let host_page = vncr && world != World::Nested;
                    let host_walk = s1ptw && status.is_on_walk();
                    assert_eq!(
                        host_owns_sea(ras, world, status, s1ptw, vncr),
                        !ras || host_page || host_walk,
                        "{ras} {world:?} {status:?} {s1ptw} {vncr}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_vmm_sees_the_allow_list_bit_by_bit() {
        let shown = |bit: u32, ras| sea_syndrome_for_vmm(Esr::new(1 << bit), ras).raw() != 0;
        for bit in 0..64 {
            let always = matches!(bit, 0..=5 | 6 | 8 | 9 | 10 | 25..=31);
            let with_ras = always || matches!(bit, 11 | 12);
            assert_eq!(
                (shown(bit, false), shown(bit, true)),
                (always, with_ras),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn when_hpfar_means_something() {
        for code in 0..64u8 {
            let by_status = matches!(code, 0x00..=0x0b | 0x29 | 0x2b);
            let permission = matches!(code, 0x0c..=0x0f);
            let status = FaultStatus::decode(code);
            assert_eq!(hpfar_is_valid(status, false), by_status, "{status:?}");
            assert_eq!(
                hpfar_is_valid(status, true),
                by_status || permission,
                "{status:?}"
            );
        }
    }

    #[test]
    fn the_offset_is_the_access_s_own() {
        let (hpfar, far) = (Hpfar::new(0x1230), Gva::new(0xffff_0000_0000_0abc));
        assert_eq!(fault_ipa::<Ipa>(hpfar, far, false), Ipa::new(0x12_3abc));
        assert_eq!(fault_ipa::<Ipa>(hpfar, far, true), Ipa::new(0x12_3000));
    }

    #[test]
    fn what_counts_as_a_write() {
        let (missing, forbidden) = (
            FaultStatus::Translation(Level::L3),
            FaultStatus::Permission(Level::L3),
        );
        for wnr in [false, true] {
            for status in [missing, forbidden] {
                assert_eq!(is_write_fault(status, false, wnr), wnr);
            }
            assert!(!is_write_fault(missing, true, wnr));
            assert!(!is_write_fault(
                FaultStatus::AccessFlag(Level::L3),
                true,
                wnr
            ));
            assert!(is_write_fault(forbidden, true, wnr));
        }
        assert!(is_exec_fault(true, false));
        assert!(
            !is_exec_fault(true, true)
                && !is_exec_fault(false, false)
                && !is_exec_fault(false, true)
        );
    }
}
