//! A set of vCPUs by index.

/// Most vCPUs of one VM. The set is one word; widen it here when a VM is to have more.
pub const MAX_VCPUS: usize = 64;

/// vCPUs by their index in [`crate::Config::affinities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the vCPUs named must be kicked, or synced"]
pub struct VcpuSet(u64);

/// The vCPUs whose list registers should be recomputed because of a call: make each leave the guest or wake up.
pub type Kicks = VcpuSet;

impl VcpuSet {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// The set of one vCPU; empty for an index that no VM can have.
    pub const fn one(vcpu: usize) -> Self {
        if vcpu < MAX_VCPUS {
            Self(1 << vcpu)
        } else {
            Self(0)
        }
    }

    /// Adds `vcpu`.
    pub const fn insert(&mut self, vcpu: usize) {
        self.0 |= Self::one(vcpu).0;
    }

    /// This set without `vcpu`: what is left for a caller that sees to itself.
    pub const fn without(self, vcpu: usize) -> Self {
        Self(self.0 & !Self::one(vcpu).0)
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        self.0 & Self::one(vcpu).0 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let vcpu = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(vcpu)
        })
    }
}

impl core::ops::BitOr for VcpuSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::ops::BitOrAssign for VcpuSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn members_come_back_in_order_and_strangers_are_dropped() {
        let mut set = VcpuSet::one(63) | VcpuSet::one(0);
        set.insert(5);
        set.insert(64);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(set.contains(5) && !set.contains(4) && !set.contains(64));
        assert_eq!(set.without(5).iter().collect::<Vec<_>>(), [0, 63]);
        assert!(VcpuSet::one(64).is_empty() && !set.is_empty());
    }
}
