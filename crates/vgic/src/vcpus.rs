//! A set of vCPUs by index.

/// Most vCPUs of one VM: Linux's number.
pub const MAX_VCPUS: usize = 512;
const WORDS: usize = MAX_VCPUS / 64;

/// The number of a vCPU where room is dear.
pub(crate) type VcpuNumber = u16;

/// vCPUs by their index in [`crate::Config::affinities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the vCPUs named must be kicked, or synced"]
pub struct VcpuSet([u64; WORDS]);

/// The vCPUs whose list registers should be recomputed because of a call: make each leave the guest or wake up.
pub type Kicks = VcpuSet;

impl VcpuSet {
    /// The empty set.
    pub const NONE: Self = Self([0; WORDS]);

    /// The set of one vCPU; empty for an index that no VM can have.
    pub const fn one(vcpu: usize) -> Self {
        let mut set = Self::NONE;
        set.insert(vcpu);
        set
    }

    /// Adds `vcpu`.
    pub const fn insert(&mut self, vcpu: usize) {
        if vcpu < MAX_VCPUS {
            self.0[vcpu / 64] |= 1 << (vcpu % 64);
        }
    }

    /// Adds or removes `vcpu`.
    pub(crate) const fn set(&mut self, vcpu: usize, member: bool) {
        if member {
            self.insert(vcpu);
        } else {
            *self = self.without(vcpu);
        }
    }

    /// This set without `vcpu`: what is left for a caller that sees to itself.
    pub const fn without(mut self, vcpu: usize) -> Self {
        if vcpu < MAX_VCPUS {
            self.0[vcpu / 64] &= !(1 << (vcpu % 64));
        }
        self
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        vcpu < MAX_VCPUS && self.0[vcpu / 64] >> (vcpu % 64) & 1 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    #[inline]
    pub fn is_empty(self) -> bool {
        // Word by word: as a comparison of arrays it would be one of bytes, and nearly every set is empty.
        self.0.into_iter().fold(0, |all, word| all | word) == 0
    }

    /// The members in ascending order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let (mut word, mut rest) = (0, self.0[0]);
        // Past the last word where there is nothing to come.
        if self.is_empty() {
            word = WORDS;
        }
        core::iter::from_fn(move || {
            while rest == 0 {
                word += 1;
                rest = *self.0.get(word)?;
            }
            let vcpu = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(64 * word + vcpu)
        })
    }
}

impl core::ops::BitOr for VcpuSet {
    type Output = Self;
    fn bitor(mut self, other: Self) -> Self {
        self |= other;
        self
    }
}

impl core::ops::BitOrAssign for VcpuSet {
    fn bitor_assign(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn members_come_back_in_order_and_strangers_are_dropped() {
        let mut set = VcpuSet::one(511) | VcpuSet::one(0) | VcpuSet::one(64);
        set.insert(5);
        set.insert(512);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 64, 511]);
        assert!(set.contains(5) && !set.contains(4) && !set.contains(512));
        assert_eq!(
            set.without(5).without(64).iter().collect::<Vec<_>>(),
            [0, 511]
        );
        assert!(VcpuSet::one(512).is_empty() && !set.is_empty());
    }
}
