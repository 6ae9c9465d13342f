//! HPFAR_EL2: the page of the intermediate physical address that faulted (Arm ARM, HPFAR_EL2).
//!
//! Whether the register means anything after a given abort is not told here but by
//! `hpfar_is_valid` in the abort crate.

use crate::addr::Address;

/// A value of HPFAR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hpfar(u64);

/// FIPA, bits 43:4, holds address bits 51:12 (47:12 without 52-bit addresses; the rest reads as zero).
const FIPA: u64 = 0x0000_0fff_ffff_fff0;

impl Hpfar {
    /// The value read from the register.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The value that names the page of `address`, with every other bit clear.
    pub fn from_page<A: Address>(address: A) -> Self {
        Self((address.to_raw() >> 12 << 4) & FIPA)
    }

    /// The value as read or made.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The 4 KiB page that faulted. The caller says in whose space: that of the tables which
    /// VTTBR_EL2 named at the time.
    pub fn page<A: Address>(self) -> A {
        A::from_raw((self.0 & FIPA) >> 4 << 12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Ipa, L2Ipa};

    #[test]
    fn fipa_holds_bits_51_to_12() {
        assert_eq!(Hpfar::new(0x10).page::<Ipa>(), Ipa::new(0x1000));
        assert_eq!(
            Hpfar::new(u64::MAX).page::<Ipa>(),
            Ipa::new(0x000f_ffff_ffff_f000)
        );
        assert_eq!(Hpfar::from_page(L2Ipa::new(0x4000_1fff)).raw(), 0x40_0010);
        assert_eq!(Hpfar::from_page(Ipa::new(u64::MAX)).raw(), FIPA);
        // NS (bit 63) and the reserved bits are not part of the address.
        assert_eq!(Hpfar::new(1 << 63 | 0xf).page::<Ipa>(), Ipa::new(0));
    }
}
