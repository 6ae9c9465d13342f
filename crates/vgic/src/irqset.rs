//! A set of interrupts below INTID 1024 as a bitmap: no allocation, no duplicates by construction.

const WORDS: usize = 16;

/// Interrupts by INTID, 0 to 1023; others are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqSet([u64; WORDS]);

impl IrqSet {
    /// Adds or removes `intid`.
    pub fn set(&mut self, intid: u32, member: bool) {
        if let Some(word) = self.0.get_mut(intid as usize / 64) {
            let bit = 1 << (intid % 64);
            if member { *word |= bit } else { *word &= !bit }
        }
    }

    /// Whether `intid` is a member.
    #[must_use]
    pub fn contains(&self, intid: u32) -> bool {
        self.0
            .get(intid as usize / 64)
            .is_some_and(|word| word & (1 << (intid % 64)) != 0)
    }

    /// Whether an SPI is a member: anything from INTID 32.
    #[must_use]
    pub fn has_spi(&self) -> bool {
        self.0[0] >> 32 != 0 || self.0[1..].iter().any(|&word| word != 0)
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<> {
        let words = self.0;
        let mut at = 0;
        let mut rest = words[0];
        core::iter::from_fn(move || {
            while rest == 0 {
                at += 1;
                rest = *words.get(at)?;
            }
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            Some(at as u32 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn members_come_back_in_order_and_strangers_are_dropped() {
        let mut set = IrqSet::default();
        assert!(set.is_empty());
        for intid in [1023, 0, 63, 64, 500, 1024, u32::MAX] {
            set.set(intid, true);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 500, 1023]);
        set.set(63, false);
        assert!(!set.contains(63) && set.contains(64) && !set.contains(1024));
        assert!(!set.is_empty());
    }

    #[test]
    fn spis_start_at_32() {
        for (intid, spi) in [
            (0, false),
            (31, false),
            (32, true),
            (64, true),
            (1019, true),
        ] {
            let mut set = IrqSet::default();
            set.set(intid, true);
            assert_eq!(set.has_spi(), spi, "INTID {intid}");
        }
    }
}
