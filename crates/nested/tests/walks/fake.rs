//! The memory of a VM: RAM in one piece, with pages that can be made bad in every way, and with other
//! CPUs that write at bad moments.

use std::collections::{BTreeMap, BTreeSet};

use umbra_arm64::Ipa;
use umbra_nested::{GuestMemory, MemoryError};

/// Pages that fail, by what they answer.
#[derive(Default)]
struct Bad {
    poisoned: BTreeSet<u64>,
    away: BTreeSet<u64>,
    read_only: BTreeSet<u64>,
}

/// What another CPU does right before a compare-and-swap: the new value of the word.
type Race = Box<dyn FnMut(u64) -> u64>;

/// RAM reaches from 0 to this address; behind it is nothing.
pub(crate) const RAM_END: u64 = 1 << 40;

/// A fake memory.
#[derive(Default)]
pub(crate) struct Fake {
    words: BTreeMap<u64, u64>,
    bad: Bad,
    race: Option<Race>,
    /// Addresses that were read, in order.
    pub(crate) reads: Vec<u64>,
    /// Addresses that were swapped successfully, in order.
    pub(crate) writes: Vec<u64>,
}

const fn page(address: u64) -> u64 {
    address & !0xfff
}

impl Fake {
    /// An empty memory: every word is zero.
    pub(crate) fn new() -> Fake {
        Fake::default()
    }

    /// Puts `word` at `address`.
    pub(crate) fn put(&mut self, address: u64, word: u64) -> &mut Fake {
        assert_eq!(address % 8, 0);
        self.words.insert(address, word);
        self
    }

    /// The word at `address`.
    pub(crate) fn get(&self, address: u64) -> u64 {
        self.words.get(&address).copied().unwrap_or(0)
    }

    /// The page of `address` holds a memory error.
    pub(crate) fn poison(&mut self, address: u64) -> &mut Fake {
        self.bad.poisoned.insert(page(address));
        self
    }

    /// The page of `address` is not there at the moment.
    pub(crate) fn send_away(&mut self, address: u64) -> &mut Fake {
        self.bad.away.insert(page(address));
        self
    }

    /// The page of `address` lies in a read-only slot.
    pub(crate) fn make_read_only(&mut self, address: u64) -> &mut Fake {
        self.bad.read_only.insert(page(address));
        self
    }

    /// Before each compare-and-swap another CPU writes what `race` makes of the word.
    pub(crate) fn race(&mut self, race: impl FnMut(u64) -> u64 + 'static) -> &mut Fake {
        self.race = Some(Box::new(race));
        self
    }

    fn check(&self, address: u64) -> Result<(), MemoryError> {
        assert_eq!(address % 8, 0, "a descriptor is aligned: {address:#x}");
        if address >= RAM_END {
            Err(MemoryError::NotMapped)
        } else if self.bad.poisoned.contains(&page(address)) {
            Err(MemoryError::Poisoned)
        } else if self.bad.away.contains(&page(address)) {
            Err(MemoryError::Retry)
        } else {
            Ok(())
        }
    }
}

impl GuestMemory for Fake {
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError> {
        self.reads.push(at.raw());
        self.check(at.raw())?;
        Ok(self.get(at.raw()))
    }

    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        let at = at.raw();
        self.check(at)?;
        if self.bad.read_only.contains(&page(at)) {
            return Err(MemoryError::ReadOnly);
        }
        if let Some(race) = &mut self.race {
            let raced = race(self.words.get(&at).copied().unwrap_or(0));
            self.words.insert(at, raced);
        }
        let actual = self.get(at);
        if actual != old {
            return Ok(Err(actual));
        }
        self.writes.push(at);
        self.words.insert(at, new);
        Ok(Ok(()))
    }
}
