//! Synchronous external aborts: memory that is broken.

use umbra_arm64::{Ec, Esr, FaultStatus, Gva, Level, esr::DataAbort, esr::InstructionAbort};

use crate::rules::sea_syndrome_for_vmm;

/// Whose memory an external abort was about, as far as the syndrome tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeaOwner {
    /// The host's: a table that umbra owns, a VNCR page, or anything on a machine without FEAT_RAS.
    Host,
    /// The guest's.
    Guest,
}

/// A synchronous external abort taken from a guest, parity and ECC errors included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sea<A> {
    /// By `rules::host_owns_sea`.
    pub owner: SeaOwner,
    /// What hardware reported, with the level if a walk met it.
    pub status: FaultStatus,
    /// A fetch, not a data access.
    pub instruction: bool,
    /// The access of a VNCR page.
    pub vncr: bool,
    /// The guest's virtual address, if FAR holds one (row S11). Never umbra's own address of a VNCR
    /// page.
    pub gva: Option<Gva>,
    /// The address in the space of the tables that were in force, if it is known. HPFAR_EL2 is
    /// UNKNOWN after an external abort, so it never is when hardware reports one; it is for
    /// poison that was kept unmapped (`Sea::of_poison`).
    pub address: Option<A>,
    /// The raw syndrome, kept to itself: `Sea::shown` is what leaves.
    pub(crate) esr: Esr,
}

impl<A> Sea<A> {
    pub(crate) fn new(esr: Esr, owner: SeaOwner, status: FaultStatus) -> Self {
        Self {
            owner,
            status,
            instruction: false,
            vncr: false,
            gva: None,
            address: None,
            esr,
        }
    }

    /// The abort that an access to a poisoned page stands for. The page is kept unmapped, so hardware
    /// reported a stage-2 fault at `address`; the guest must see what it would have met there: an
    /// external abort of the access, or, for the access to a stage-1 descriptor, of its walk at
    /// `stage1_level`. It is the guest's, whatever S1PTW says.
    pub fn of_poison(esr: Esr, gva: Gva, address: A, stage1_level: Option<Level>) -> Self {
        let status = stage1_level.map_or(FaultStatus::External, FaultStatus::ExternalOnWalk);
        let instruction = matches!(
            esr.ec(),
            Ec::InstructionAbortLower | Ec::InstructionAbortSame
        );
        let iss = if instruction {
            let fetch = InstructionAbort {
                set: 0,
                far_not_valid: false,
                external_type: false,
                s1ptw: false,
                status,
            };
            fetch.encode()
        } else {
            let before = DataAbort::decode(esr.iss());
            let access = DataAbort {
                access: None,
                vncr: false,
                set: 0,
                far_not_valid: false,
                external_type: false,
                s1ptw: false,
                // The walker reads; what it was asked for is not what failed.
                write: before.write && stage1_level.is_none(),
                cache_op: before.cache_op && stage1_level.is_none(),
                status,
            };
            access.encode()
        };
        Self {
            owner: SeaOwner::Guest,
            status,
            instruction,
            vncr: false,
            gva: Some(gva),
            address: Some(address),
            // Every status made above has a code.
            esr: Esr::from_parts(esr.ec(), esr.il(), iss.unwrap_or(0x10)),
        }
    }

    /// Whether a table walk met the error: the tables are replayed before `owner` is believed.
    pub const fn is_on_walk(&self) -> bool {
        self.status.is_on_walk()
    }

    /// Whether it may have gone anywhere: nobody runs on ([`Esr::is_uncontainable`]).
    pub const fn is_uncontainable(&self) -> bool {
        self.esr.is_uncontainable()
    }

    /// The syndrome that may leave to the VMM or to the guest.
    pub const fn shown(&self, vm_has_ras: bool) -> Esr {
        sea_syndrome_for_vmm(self.esr, vm_has_ras)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_arm64::{Ipa, Syndrome};

    const WRITE_FAULT: u64 = 0x9381_0047; // Data abort from below, 32-bit store, translation level 3.

    #[test]
    fn poison_is_contained_whatever_hardware_s_syndrome_was() {
        for set in 0..4 {
            let esr = Esr::new(WRITE_FAULT | set << 11);
            let sea = Sea::of_poison(esr, Gva::new(0), Ipa::new(0x1000), None);
            assert!(!sea.is_uncontainable());
        }
    }

    #[test]
    fn poison_looks_like_the_error_it_stands_for() {
        let sea = Sea::of_poison(
            Esr::new(WRITE_FAULT),
            Gva::new(0x1234),
            Ipa::new(0x5234),
            None,
        );
        assert_eq!(
            (sea.owner, sea.status, sea.instruction),
            (SeaOwner::Guest, FaultStatus::External, false)
        );
        assert_eq!(
            (sea.gva, sea.address),
            (Some(Gva::new(0x1234)), Some(Ipa::new(0x5234)))
        );
        // EC, IL, WnR and the new status; nothing of the instruction.
        assert_eq!(sea.shown(true).raw(), 0x9200_0050);
    }

    #[test]
    fn poison_in_a_guest_s_own_table_is_an_error_of_its_walk() {
        let s1ptw = 1 << 7;
        for (esr, shown) in [
            (WRITE_FAULT | s1ptw, 0x9200_0016),
            (0x8200_0007 | s1ptw, 0x8200_0016),
        ] {
            let sea = Sea::of_poison(
                Esr::new(esr),
                Gva::new(0),
                Ipa::new(0x1000),
                Some(Level::L2),
            );
            assert_eq!(
                (sea.owner, sea.shown(true).raw(), sea.is_on_walk()),
                (SeaOwner::Guest, shown, true)
            );
            let s1ptw = match sea.shown(true).syndrome() {
                Syndrome::DataAbort { abort, .. } => abort.s1ptw,
                Syndrome::InstructionAbort { abort, .. } => abort.s1ptw,
                other => panic!("{other:?}"),
            };
            assert!(!s1ptw);
        }
    }
}
