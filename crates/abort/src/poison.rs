//! Which frames of memory are known to be bad, and how far the news has spread.
//!
//! ```text
//!   nothing ──plant──► Latent ──reported by firmware or by its owner──► Known
//!      └────────────── reported ────────────────────────────────────────► ▲
//! ```
//!
//! What always holds: a frame is listed once and never leaves the list, so it survives the VM it was
//! in; `Known` never goes back to `Latent`. The list is bounded: what does not fit is counted, and
//! is bad all the same (the frame table retires it).
//!
//! Whoever accesses a *latent* page consumes the error: a synchronous external abort. A *known* page was
//! taken from everybody before: an access is a bus error of the process that it belonged to.

use umbra_arm64::Pa;

const PAGE: u64 = 4096;

/// How far the news of a bad frame has spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Poison {
    /// Nobody has noticed: the next access consumes the error.
    Latent,
    /// The kernel knows: accesses are stopped before they reach it.
    Known,
}

/// One bad frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The frame's first byte.
    pub frame: Pa,
    /// How far the news has spread.
    pub poison: Poison,
    /// How often it was consumed.
    pub consumed: u32,
}

/// What [`Registry::report`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The frame is bad from now on.
    New,
    /// It was latent and is known now.
    Spread,
    /// Nothing new.
    Before,
    /// It does not fit into the list.
    Full,
}

/// The list, in order of addresses.
#[derive(Debug)]
pub struct Registry<const N: usize> {
    entries: [Entry; N],
    len: usize,
    unlisted: u64,
}

impl<const N: usize> Default for Registry<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Registry<N> {
    /// No bad frames.
    pub const fn new() -> Self {
        let nothing = Entry {
            frame: Pa::new(0),
            poison: Poison::Latent,
            consumed: 0,
        };
        Self {
            entries: [nothing; N],
            len: 0,
            unlisted: 0,
        }
    }

    fn find(&self, frame: Pa) -> Result<usize, usize> {
        self.entries()
            .binary_search_by_key(&frame.raw(), |entry| entry.frame.raw())
    }

    /// The frame that `pa` lies in is bad.
    pub fn report(&mut self, pa: Pa, poison: Poison) -> Reported {
        let frame = pa.align_down(PAGE);
        match self.find(frame) {
            Ok(at) if self.entries[at].poison < poison => {
                self.entries[at].poison = poison;
                Reported::Spread
            }
            Ok(_) => Reported::Before,
            Err(_) if self.len == N => {
                self.unlisted = self.unlisted.saturating_add(1);
                Reported::Full
            }
            Err(at) => {
                self.entries.copy_within(at..self.len, at + 1);
                self.entries[at] = Entry {
                    frame,
                    poison,
                    consumed: 0,
                };
                self.len += 1;
                Reported::New
            }
        }
    }

    /// What is known of the frame that `pa` lies in.
    pub fn get(&self, pa: Pa) -> Option<Entry> {
        let at = self.find(pa.align_down(PAGE)).ok()?;
        Some(self.entries[at])
    }

    /// The first bad frame of `[pa, pa + bytes)`.
    pub fn first_in(&self, pa: Pa, bytes: u64) -> Option<Entry> {
        let start = pa.align_down(PAGE);
        let end = pa.raw().saturating_add(bytes);
        let at = match self.find(start) {
            Ok(at) | Err(at) => at,
        };
        let entry = *self.entries().get(at)?;
        (entry.frame.raw() < end).then_some(entry)
    }

    /// Somebody consumed the error in the frame that `pa` lies in.
    pub fn consumed(&mut self, pa: Pa) {
        if let Ok(at) = self.find(pa.align_down(PAGE)) {
            let count = &mut self.entries[at].consumed;
            *count = count.saturating_add(1);
        }
    }

    /// Every bad frame that is listed.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    /// Bad frames that did not fit.
    pub fn unlisted(&self) -> u64 {
        self.unlisted
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    #[test]
    fn news_spreads_and_is_never_forgotten() {
        let mut registry = Registry::<4>::new();
        let pa = Pa::new(0x4000_1234);
        assert_eq!(registry.get(pa), None);
        assert_eq!(registry.report(pa, Poison::Latent), Reported::New);
        assert_eq!(registry.report(pa, Poison::Latent), Reported::Before);
        registry.consumed(pa);
        assert_eq!(registry.report(pa, Poison::Known), Reported::Spread);
        assert_eq!(registry.report(pa, Poison::Latent), Reported::Before);
        let entry = registry.get(Pa::new(0x4000_1fff)).unwrap();
        assert_eq!(
            entry,
            Entry {
                frame: Pa::new(0x4000_1000),
                poison: Poison::Known,
                consumed: 1
            }
        );
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut registry = Registry::<2>::new();
        for n in 0..5 {
            registry.report(Pa::new(n * PAGE), Poison::Known);
        }
        assert_eq!((registry.entries().len(), registry.unlisted()), (2, 3));
        registry.consumed(Pa::new(4 * PAGE));
        assert_eq!(registry.report(Pa::new(0), Poison::Known), Reported::Before);
    }

    #[test]
    fn ranges_find_the_first_bad_frame() {
        let mut registry = Registry::<8>::new();
        registry.report(Pa::new(0x5000), Poison::Latent);
        registry.report(Pa::new(0x3000), Poison::Latent);
        let first = |at, bytes| {
            registry
                .first_in(Pa::new(at), bytes)
                .map(|entry| entry.frame.raw())
        };
        assert_eq!(first(0, 0x3000), None);
        assert_eq!(first(0, 0x3001), Some(0x3000));
        assert_eq!(first(0x3fff, 1), Some(0x3000));
        assert_eq!(first(0x4000, 0x1000), None);
        assert_eq!(first(0x4000, 0x20_0000), Some(0x5000));
        assert_eq!(first(0x6000, u64::MAX), None);
    }

    #[test]
    fn it_agrees_with_a_map() {
        let mut registry = Registry::<32>::new();
        let mut model = BTreeMap::new();
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..2000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let (pa, known) = (Pa::new(seed % 0x4_0000), seed >> 40 & 1 == 1);
            let poison = if known { Poison::Known } else { Poison::Latent };
            let frame = pa.raw() / PAGE;
            let full = registry.report(pa, poison) == Reported::Full;
            assert_eq!(full, model.len() == 32 && !model.contains_key(&frame));
            if !full {
                let entry = model.entry(frame).or_insert(poison);
                *entry = (*entry).max(poison);
            }
            let listed: Vec<_> = registry
                .entries()
                .iter()
                .map(|entry| (entry.frame.raw() / PAGE, entry.poison))
                .collect();
            assert!(listed.into_iter().eq(model.iter().map(|(&f, &p)| (f, p))));
        }
    }
}
