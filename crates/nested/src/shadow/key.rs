//! What makes two contexts of a guest hypervisor the same.

/// HCR_EL2.VM and DC: stage 2 is on.
const ON: u64 = 1 | 1 << 12;
/// HCR_EL2's bits that change what stage 2 means: VM, PTW, DC, CD, ID, FWB.
const MEANING: u64 = 1 | 1 << 2 | 1 << 12 | 1 << 32 | 1 << 33 | 1 << 46;
/// VTTBR_EL2.CnP: a promise to hardware, no part of the meaning.
const CNP: u64 = 1;

/// Everything that changes what an address means to what a guest hypervisor runs.
///
/// The whole of VTTBR_EL2 and not only its VMID: a guest hypervisor that uses a VMID again for other
/// tables, against the rules, gets a context of its own and no mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextKey {
    vttbr: u64,
    vtcr: u64,
    hcr: u64,
}

impl ContextKey {
    /// The key for these register values of virtual EL2. With stage 2 off its tables mean nothing, and
    /// the VMID alone counts.
    pub const fn new(vttbr: u64, vtcr: u64, hcr: u64) -> ContextKey {
        if hcr & ON == 0 {
            return ContextKey {
                vttbr: vttbr >> 48 << 48,
                vtcr: 0,
                hcr: 0,
            };
        }
        ContextKey {
            vttbr: vttbr & !CNP,
            vtcr,
            hcr: hcr & MEANING,
        }
    }

    /// Whether stage 2 translates at all.
    pub const fn is_translated(&self) -> bool {
        self.hcr & ON != 0
    }

    /// VTTBR_EL2 without CnP; of a context without translation the VMID alone.
    pub const fn vttbr(&self) -> u64 {
        self.vttbr
    }

    /// VTCR_EL2; zero without translation.
    pub const fn vtcr(&self) -> u64 {
        self.vtcr
    }

    /// The guest hypervisor's own VMID.
    pub const fn vmid(&self) -> u16 {
        (self.vttbr >> 48) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_meaning_changes_the_key() {
        let base = ContextKey::new(0x7_0000_8000_0000, 0x8005_3558, ON);
        for bit in 0..64 {
            let vttbr = ContextKey::new(0x7_0000_8000_0000 ^ 1 << bit, 0x8005_3558, ON);
            assert_eq!(vttbr == base, bit == 0, "VTTBR bit {bit}");
            let vtcr = ContextKey::new(0x7_0000_8000_0000, 0x8005_3558 ^ 1 << bit, ON);
            assert_ne!(vtcr, base, "VTCR bit {bit}");
            let hcr = ContextKey::new(0x7_0000_8000_0000, 0x8005_3558, ON ^ 1 << bit);
            assert_eq!(hcr == base, 1 << bit & MEANING == 0, "HCR bit {bit}");
        }
        assert_eq!((base.vmid(), base.is_translated()), (7, true));
        assert_eq!(base.vttbr(), 0x7_0000_8000_0000);
        assert_eq!(base.vtcr(), 0x8005_3558);
    }

    #[test]
    fn without_a_stage_2_only_the_vmid_counts() {
        let off = |vttbr, vtcr| ContextKey::new(vttbr, vtcr, 1 << 31);
        assert_eq!(off(0x7_0000_8000_0000, 1), off(0x7_0000_9000_0001, 2));
        assert_ne!(off(0x7_0000_8000_0000, 1), off(0x8_0000_8000_0000, 1));
        assert!(!off(0, 0).is_translated());
    }
}
