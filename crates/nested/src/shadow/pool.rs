//! The contexts of one VM: found by key, by id and by VMID, given up least recently used first.
//!
//! A context that a vCPU runs in is in use and never given up. As every vCPU is in one context at
//! most, and a VM has no more vCPUs than [`MOST_CONTEXTS`], there is always one to give up.

use alloc::vec::Vec;

use super::key::ContextKey;

/// Contexts that a VM may have at once.
pub const MOST_CONTEXTS: usize = 64;

/// Names a context for good: an id is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(u64);

impl ContextId {
    /// Its place in the pool, below [`MOST_CONTEXTS`]; used again when it is gone.
    pub const fn index(self) -> usize {
        (self.0 % MOST_CONTEXTS as u64) as usize
    }

    /// The number itself, for records.
    pub const fn number(self) -> u64 {
        self.0
    }
}

struct Member<T> {
    id: ContextId,
    key: ContextKey,
    users: u32,
    used_at: u64,
    seq: u64,
    value: T,
}

/// Contexts with something of the owner's each. See the module.
pub struct Pool<T> {
    members: Vec<Option<Member<T>>>,
    /// By the low bits of the VMID: which members have it, a bit each.
    by_vmid: [u64; MOST_CONTEXTS],
    clock: u64,
    generation: u64,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn bucket(vmid: u16) -> usize {
    usize::from(vmid) % MOST_CONTEXTS
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    })
}

impl<T> Pool<T> {
    /// None.
    pub const fn new() -> Pool<T> {
        Pool {
            members: Vec::new(),
            by_vmid: [0; MOST_CONTEXTS],
            clock: 0,
            generation: 0,
        }
    }

    /// Takes the context with this key into use, if there is one.
    pub fn acquire(&mut self, key: &ContextKey) -> Option<ContextId> {
        self.clock += 1;
        let members = &mut self.members;
        let at = bits(self.by_vmid[bucket(key.vmid())]).find(|&at| {
            members[at]
                .as_ref()
                .is_some_and(|member| member.key == *key)
        })?;
        let member = members[at].as_mut()?;
        member.users += 1;
        member.used_at = self.clock;
        Some(member.id)
    }

    /// Adds a context, in use; gives `value` back where all places are taken, or memory is.
    pub fn insert(&mut self, key: ContextKey, value: T) -> Result<ContextId, T> {
        let at = match self.members.iter().position(Option::is_none) {
            Some(at) => at,
            None if self.members.len() < MOST_CONTEXTS && self.members.try_reserve(1).is_ok() => {
                self.members.push(None);
                self.members.len() - 1
            }
            None => return Err(value),
        };
        self.clock += 1;
        self.generation += 1;
        let id = ContextId(self.generation * MOST_CONTEXTS as u64 + at as u64);
        self.by_vmid[bucket(key.vmid())] |= 1 << at;
        self.members[at] = Some(Member {
            id,
            key,
            users: 1,
            used_at: self.clock,
            seq: 0,
            value,
        });
        Ok(id)
    }

    /// Whether every place is taken.
    pub fn is_full(&self) -> bool {
        self.members.len() == MOST_CONTEXTS && self.members.iter().all(Option::is_some)
    }

    /// The context that has been out of use longest.
    pub fn victim(&self) -> Option<ContextId> {
        self.members
            .iter()
            .flatten()
            .filter(|member| member.users == 0)
            .min_by_key(|member| member.used_at)
            .map(|member| member.id)
    }

    /// Takes a context out of the pool.
    pub fn remove(&mut self, id: ContextId) -> Option<T> {
        let slot = self.members.get_mut(id.index())?;
        let member = slot.take_if(|member| member.id == id)?;
        self.by_vmid[bucket(member.key.vmid())] &= !(1 << id.index());
        Some(member.value)
    }

    /// A vCPU no longer runs in it.
    pub fn release(&mut self, id: ContextId) {
        if let Some(member) = self.member(id) {
            member.users = member.users.saturating_sub(1);
        }
    }

    fn member(&mut self, id: ContextId) -> Option<&mut Member<T>> {
        self.members
            .get_mut(id.index())?
            .as_mut()
            .filter(|member| member.id == id)
    }

    /// What belongs to a context.
    pub fn get(&mut self, id: ContextId) -> Option<&mut T> {
        self.member(id).map(|member| &mut member.value)
    }

    /// The sequence that a fill has to find unchanged when it installs what it walked.
    pub fn sequence(&mut self, id: ContextId) -> Option<u64> {
        self.member(id).map(|member| member.seq)
    }

    /// The guest hypervisor invalidates: fills that walked before are void.
    pub fn advance(&mut self, id: ContextId) {
        if let Some(member) = self.member(id) {
            member.seq += 1;
        }
    }

    /// The contexts of one of the guest hypervisor's VMIDs, or all.
    pub fn of_vmid(&self, vmid: Option<u16>) -> impl Iterator<Item = ContextId> + use<'_, T> {
        self.values_of(vmid).map(|(id, _)| id)
    }

    /// The same, with each context's own.
    pub fn values_of(&self, vmid: Option<u16>) -> impl Iterator<Item = (ContextId, &T)> {
        let candidates = vmid.map_or(u64::MAX, |vmid| self.by_vmid[bucket(vmid)]);
        bits(candidates)
            .filter_map(|at| self.members.get(at)?.as_ref())
            .filter(move |member| vmid.is_none_or(|vmid| member.key.vmid() == vmid))
            .map(|member| (member.id, &member.value))
    }

    /// The first context of a VMID (or of any) whose index is at least `from`: a loop over contexts
    /// that changes the pool meanwhile.
    pub fn next_of_vmid(&self, vmid: Option<u16>, from: usize) -> Option<ContextId> {
        self.of_vmid(vmid).find(|id| id.index() >= from)
    }

    /// Every context's own.
    pub fn values(&self) -> impl Iterator<Item = (ContextId, &T)> {
        self.values_of(None)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn key(vmid: u16, root: u64) -> ContextKey {
        ContextKey::new(u64::from(vmid) << 48 | root << 12, 0, 1)
    }

    #[derive(Clone, Copy, Debug)]
    struct Known {
        id: ContextId,
        key: ContextKey,
        users: u32,
        used_at: usize,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        /// A guest hypervisor that goes from context to context, against a list.
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec((0u8..4, 0u16..3, 0u64..60, any::<prop::sample::Index>()), 1..400)) {
            let mut pool = Pool::new();
            let mut known: Vec<Known> = Vec::new();
            let mut gone: Vec<ContextId> = Vec::new();
            for (now, (step, vmid, root, which)) in steps.into_iter().enumerate() {
                // VMIDs that share a bucket, and one that does not.
                let key = key([1, 65, 7][usize::from(vmid)], root);
                match step {
                    0 | 1 => {
                        let expected = known.iter().position(|known| known.key == key);
                        let found = pool.acquire(&key);
                        prop_assert_eq!(found, expected.map(|at| known[at].id));
                        if let Some(at) = expected {
                            known[at].users += 1;
                            known[at].used_at = now;
                            continue;
                        }
                        prop_assert_eq!(pool.is_full(), known.len() == MOST_CONTEXTS);
                        if pool.is_full() {
                            let oldest = known.iter().filter(|known| known.users == 0).min_by_key(|known| known.used_at);
                            prop_assert_eq!(pool.victim(), oldest.map(|known| known.id));
                            let Some(victim) = pool.victim() else { continue };
                            prop_assert!(pool.remove(victim).is_some());
                            known.retain(|known| known.id != victim);
                            gone.push(victim);
                        }
                        let id = pool.insert(key, now).unwrap();
                        known.push(Known { id, key, users: 1, used_at: now });
                    }
                    2 if !known.is_empty() => {
                        let at = which.index(known.len());
                        pool.release(known[at].id);
                        known[at].users = known[at].users.saturating_sub(1);
                    }
                    _ if !known.is_empty() => {
                        let id = known[which.index(known.len())].id;
                        let before = pool.sequence(id).unwrap();
                        pool.advance(id);
                        prop_assert_eq!(pool.sequence(id), Some(before + 1));
                    }
                    _ => {}
                }
                for vmid in [None, Some(1), Some(65), Some(7), Some(2)] {
                    let mut listed: Vec<_> = pool.of_vmid(vmid).collect();
                    let mut expected: Vec<_> = known.iter()
                        .filter(|known| vmid.is_none_or(|vmid| known.key.vmid() == vmid))
                        .map(|known| known.id).collect();
                    listed.sort();
                    expected.sort();
                    prop_assert_eq!(listed, expected);
                }
                for id in &gone {
                    prop_assert!(pool.get(*id).is_none() && pool.sequence(*id).is_none());
                }
            }
        }
    }

    #[test]
    fn as_many_as_there_may_be_and_none_in_use_is_given_up() {
        let mut pool = Pool::new();
        let ids: Vec<_> = (0..MOST_CONTEXTS as u64)
            .map(|n| pool.insert(key(1, n), n).unwrap())
            .collect();
        assert!(pool.is_full() && pool.insert(key(1, 99), 99).is_err());
        assert_eq!(pool.victim(), None);
        pool.release(ids[5]);
        assert_eq!(pool.victim(), Some(ids[5]));
        assert_eq!(pool.remove(ids[5]), Some(5));
        let next = pool.insert(key(2, 0), 100).unwrap();
        assert_eq!(next.index(), ids[5].index());
        assert_ne!(next, ids[5]);
    }
}
