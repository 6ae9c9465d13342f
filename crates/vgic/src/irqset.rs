//! A set of interrupts below INTID 1024 as a bitmap: no allocation, no duplicates by construction.

const WORDS: usize = 16;

/// Interrupts by INTID, 0 to 1023; others are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqSet {
    words: [u64; WORDS],
    /// A bit for each word that has a member: most sets have none or one, and are asked often.
    inhabited: u16,
}

impl IrqSet {
    /// No members.
    pub const EMPTY: Self = Self {
        words: [0; WORDS],
        inhabited: 0,
    };

    /// Adds or removes `intid`.
    pub fn set(&mut self, intid: u32, member: bool) {
        let at = intid as usize / 64;
        if let Some(word) = self.words.get_mut(at) {
            let bit = 1 << (intid % 64);
            if member {
                *word |= bit
            } else {
                *word &= !bit
            }
            self.inhabited = self.inhabited & !(1 << at) | u16::from(*word != 0) << at;
        }
    }

    /// Whether `intid` is a member.
    #[must_use]
    pub fn contains(&self, intid: u32) -> bool {
        self.words
            .get(intid as usize / 64)
            .is_some_and(|word| word & (1 << (intid % 64)) != 0)
    }

    /// Whether an SPI is a member: anything from INTID 32.
    #[must_use]
    pub const fn has_spi(&self) -> bool {
        self.inhabited & !1 != 0 || self.words[0] >> 32 != 0
    }

    /// Whether there is no member.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.inhabited == 0
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let (mut words, mut at, mut rest) = (bits(self.inhabited.into()), 0, bits(0));
        core::iter::from_fn(move || {
            loop {
                if let Some(bit) = rest.next() {
                    return Some(at * 64 + bit);
                }
                at = words.next()?;
                rest = bits(self.words[at as usize]);
            }
        })
    }
}

/// The numbers of the bits that are set, ascending.
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
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
        for intid in [0, 64, 500, 1023] {
            assert!(!set.is_empty());
            set.set(intid, false);
        }
        assert_eq!(set, IrqSet::EMPTY);
        assert!(set.is_empty() && set.iter().next().is_none());
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
