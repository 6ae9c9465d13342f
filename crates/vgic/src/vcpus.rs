//! Sets of vCPUs that fit two registers.

/// Most vCPUs of one VM: Linux's number.
pub const MAX_VCPUS: usize = 512;
/// vCPUs of one group.
const GROUP: usize = 64;

/// The number of a vCPU where room is dear.
pub(crate) type VcpuNumber = u16;

/// vCPUs by their index in [`crate::Config::affinities`], rounded up: who was added is in it, and where two groups of 64 have
/// members, each has those of the other too.
///
/// It says whom to kick or to sync, and either does nothing to a vCPU that has no need of it. Nearly every set is empty or has
/// one member, and each step of an exit hands one on: exact, it would be 64 bytes that are copied each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the vCPUs named must be kicked, or synced"]
pub struct VcpuSet {
    /// The members within a group; none if there is no group.
    within: u64,
    /// The groups.
    groups: u8,
}

/// The vCPUs whose list registers should be recomputed because of a call: make each leave the guest or wake up.
pub type Kicks = VcpuSet;

impl VcpuSet {
    /// The empty set.
    pub const NONE: Self = Self {
        within: 0,
        groups: 0,
    };

    /// The set of one vCPU; empty for an index that no VM can have.
    pub const fn one(vcpu: usize) -> Self {
        if vcpu >= MAX_VCPUS {
            return Self::NONE;
        }
        Self {
            within: 1 << (vcpu % GROUP),
            groups: 1 << (vcpu / GROUP),
        }
    }

    /// This set without `vcpu`, if it can be told from the others: what is left for a caller that sees to itself.
    pub const fn without(self, vcpu: usize) -> Self {
        let one = Self::one(vcpu);
        if self.groups != one.groups {
            return self;
        }
        match self.within & !one.within {
            0 => Self::NONE,
            within => Self { within, ..self },
        }
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        let one = Self::one(vcpu);
        self.within & one.within != 0 && self.groups & one.groups != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.within == 0
    }

    /// The members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let (mut groups, mut group, mut rest) = (self.groups, 0, 0u64);
        core::iter::from_fn(move || {
            while rest == 0 {
                if groups == 0 {
                    return None;
                }
                group = groups.trailing_zeros() as usize;
                groups &= groups - 1;
                rest = self.within;
            }
            let vcpu = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(GROUP * group + vcpu)
        })
    }
}

impl core::ops::BitOr for VcpuSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self {
            within: self.within | other.within,
            groups: self.groups | other.groups,
        }
    }
}

impl core::ops::BitOrAssign for VcpuSet {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn members(set: VcpuSet) -> Vec<usize> {
        set.iter().collect()
    }

    #[test]
    fn members_of_a_group_come_back_in_order_and_strangers_are_dropped() {
        for base in (0..MAX_VCPUS).step_by(GROUP) {
            let set = [63, 0, 5]
                .into_iter()
                .fold(VcpuSet::NONE, |set, vcpu| set | VcpuSet::one(base + vcpu));
            assert_eq!(members(set), [base, base + 5, base + 63]);
            assert!(set.contains(base + 5) && !set.contains(base + 4));
            assert_eq!(set.without(base + 5).without(base), VcpuSet::one(base + 63));
            assert_eq!(set.without((base + GROUP) % MAX_VCPUS), set);
            assert!(VcpuSet::one(base).without(base).is_empty());
        }
        assert_eq!(VcpuSet::one(512), VcpuSet::NONE);
        assert!(!VcpuSet::one(0).contains(512) && members(VcpuSet::NONE).is_empty());
    }

    #[test]
    fn nobody_is_forgotten_and_groups_with_the_same_members_are_exact() {
        for (one, other) in [(3, 67), (0, 448), (3, 70), (511, 0), (64, 129)] {
            let set = VcpuSet::one(one) | VcpuSet::one(other);
            assert!(set.contains(one) && set.contains(other));
            let rounded = if one % GROUP == other % GROUP { 2 } else { 4 };
            assert_eq!(members(set).len(), rounded);
            assert!(members(set).into_iter().all(|vcpu| set.contains(vcpu)));
            assert!(members(set).is_sorted());
            // Whom it cannot take out alone it leaves.
            assert_eq!(set.without(one), set);
        }
    }
}
