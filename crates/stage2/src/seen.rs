//! Which memory slots show a range of the VMM's addresses.
//!
//! A VM may have 32,767 slots, several of them on the same memory, and the VMM takes pages back one
//! `madvise` at a time. So slots are kept by size class and address: slots of one class are less
//! than twice as long as each other, so those that reach into a range begin in it or shortly before.
//!
//! ```text
//! class 12: 4 KiB … 8 KiB − 1      ├──┤ ├──┤    ├──┤
//! class 21: 2 MiB … 4 MiB − 1           ├──────────────┤
//! …                                         ▲ asked for: each class is searched from one slot's length before
//! ```
//!
//! What always holds: an entry is in the class of its length. Slots that share no memory cost two
//! looks a class beside those that are found; there are 64 classes at most.

use alloc::collections::BTreeMap;
use core::ops::Bound;

/// Where a slot stands in the order of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    class: u32,
    start: u64,
    id: u32,
}

/// The slots of a VM by where they lie in the VMM.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes of each.
    slots: BTreeMap<Place, u64>,
    /// How many are in each class.
    classes: BTreeMap<u32, u32>,
}

impl Seen {
    /// None.
    pub const fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
            classes: BTreeMap::new(),
        }
    }

    /// Slot `id` shows `bytes` of the VMM from `start` on; one without bytes shows nothing.
    pub fn insert(&mut self, id: u32, start: u64, bytes: u64) {
        let Some(class) = bytes.checked_ilog2() else {
            return;
        };
        if self
            .slots
            .insert(Place { class, start, id }, bytes)
            .is_none()
        {
            *self.classes.entry(class).or_default() += 1;
        }
    }

    /// It no longer does.
    pub fn remove(&mut self, id: u32, start: u64, bytes: u64) {
        let Some(class) = bytes.checked_ilog2() else {
            return;
        };
        if self.slots.remove(&Place { class, start, id }).is_none() {
            return;
        }
        if let Some(count) = self.classes.get_mut(&class) {
            *count -= 1;
            if *count == 0 {
                self.classes.remove(&class);
            }
        }
    }

    /// The first slot behind `after` that shows something of `start..end`, with its place to go on
    /// from. The slots may change in between.
    pub fn next(&self, start: u64, end: u64, after: Option<Place>) -> Option<(Place, u32)> {
        if start >= end {
            return None;
        }
        let first_class = after.map_or(0, |place| place.class);
        self.classes.range(first_class..).find_map(|(&class, _)| {
            // A slot of this class that reaches `start` begins less than twice the class before it.
            let reach = 2u64.checked_shl(class).filter(|&reach| reach != 0);
            let from = reach.map_or(0, |reach| start.saturating_sub(reach - 1));
            let low = Place {
                class,
                start: from,
                id: 0,
            };
            let low = match after.filter(|&after| after >= low) {
                Some(after) => Bound::Excluded(after),
                None => Bound::Included(low),
            };
            let high = Place {
                class,
                start: end,
                id: 0,
            };
            if matches!(low, Bound::Excluded(after) if after >= high) {
                return None;
            }
            let mut there = self.slots.range((low, Bound::Excluded(high)));
            there.find_map(|(&place, &bytes)| {
                (place.start.saturating_add(bytes) > start).then_some((place, place.id))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn all(seen: &Seen, start: u64, end: u64) -> Vec<u32> {
        let mut found = Vec::new();
        let mut after = None;
        while let Some((place, id)) = seen.next(start, end, after) {
            found.push(id);
            after = Some(place);
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn the_ends_do_not_belong() {
        let mut seen = Seen::new();
        seen.insert(7, 0x2000, 0x1000);
        for (start, end, found) in [
            (0, 0x2000, false),
            (0, 0x2001, true),
            (0x2fff, 0x3000, true),
            (0x3000, 0x4000, false),
            (0x2800, 0x2800, false),
        ] {
            assert_eq!(all(&seen, start, end) == [7], found, "{start:#x}");
        }
        seen.remove(7, 0x2000, 0x1000);
        assert!(all(&seen, 0, u64::MAX).is_empty() && seen.classes.is_empty());
    }

    #[test]
    fn slots_as_long_as_there_are_addresses() {
        let mut seen = Seen::new();
        seen.insert(1, 0, u64::MAX);
        seen.insert(2, u64::MAX - 1, 1);
        seen.insert(3, 5, 0);
        assert_eq!(all(&seen, u64::MAX - 1, u64::MAX), [1, 2]);
        assert_eq!(all(&seen, 5, 6), [1]);
    }

    #[test]
    fn many_slots_do_not_make_a_search_long() {
        let mut seen = Seen::new();
        for id in 0..32_767u32 {
            // Alternately one page and one of 2 MiB, one behind the other.
            let (at, bytes) = match id % 2 {
                0 => (u64::from(id) << 21, 0x1000),
                _ => (u64::from(id) << 21, 2 << 20),
            };
            seen.insert(id, at, bytes);
        }
        let at = 20_001u64 << 21;
        assert_eq!(all(&seen, at, at + 0x1000), [20_001]);
        // What a search looks at, counted: what lies in the window of each class.
        let looked_at = [12u32, 21].map(|class| {
            let place = |start| Place {
                class,
                start,
                id: 0,
            };
            let from = place(at - ((2 << class) - 1));
            seen.slots.range(from..place(at + 0x1000)).count()
        });
        assert!(looked_at.iter().sum::<usize>() <= 4, "{looked_at:?}");
    }

    proptest! {
        #[test]
        fn as_a_search_of_all_finds(
            slots in prop::collection::vec((0u64..200, 1u64..120), 0..40),
            gone in prop::collection::vec(any::<bool>(), 40),
            start in 0u64..250,
            bytes in 1u64..80,
        ) {
            let mut seen = Seen::new();
            for (id, &(at, bytes)) in (0..).zip(&slots) {
                seen.insert(id, at, bytes);
            }
            let stays = |id: u32| !gone[id as usize];
            for (id, &(at, bytes)) in (0..).zip(&slots) {
                if !stays(id) {
                    seen.remove(id, at, bytes);
                }
            }
            let end = start + bytes;
            let expected: Vec<u32> = (0u32..)
                .zip(&slots)
                .filter(|&(id, &(at, bytes))| stays(id) && at < end && at + bytes > start)
                .map(|(id, _)| id)
                .collect();
            prop_assert_eq!(all(&seen, start, end), expected);
        }
    }
}
