//! A VM's memory slots: which of its addresses are the VMM's memory, and which of their pages were
//! written (KVM_MEM_LOG_DIRTY_PAGES).
//!
//! What always holds: no two slots share an address, so the one at an address is found by order; a
//! slot has a log if and only if it says `logging`. Nothing here knows of tables: [`Change`] says
//! what a caller has to do to them, under the same lock.

use alloc::collections::BTreeMap;

use umbra_abort::SlotRange;
use umbra_arm64::{Hva, Ipa};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_linux::vma::Span;
use umbra_stage2::dirty::{self, DirtyLog, PAGES_PER_WORD};
use umbra_stage2::seen::{Place, Seen};

/// Bytes of a page of the log.
pub(super) const PAGE: u64 = 4096;

/// One memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// First address in the VM.
    pub(super) base: Ipa,
    /// Bytes.
    pub(super) bytes: u64,
    /// Where it lies in the VMM.
    pub(super) hva: Hva,
    /// The guest may not write it.
    pub(super) read_only: bool,
    /// Writes are logged, so only what was written is writable, page by page.
    pub(super) logging: bool,
}

impl Slot {
    pub(super) fn contains(&self, ipa: Ipa) -> bool {
        ipa.offset_from(self.base)
            .is_some_and(|offset| offset < self.bytes)
    }

    /// The VMM's address for an address of the VM in this slot.
    pub(super) fn hva_of(&self, ipa: Ipa) -> Option<Hva> {
        self.hva.checked_add(ipa.offset_from(self.base)?)
    }

    /// Pages of the slot.
    pub(super) fn pages(&self) -> u64 {
        self.bytes / PAGE
    }

    /// Where it lies, as it bounds a mapping.
    pub(super) fn range(&self) -> SlotRange {
        if left_out(Safeguard::MappingSlot) {
            return SlotRange {
                ipa: Ipa::new(0),
                hva: Hva::new(0),
                bytes: u64::MAX,
            };
        }
        SlotRange {
            ipa: self.base,
            hva: self.hva,
            bytes: self.bytes,
        }
    }

    /// Whether a mapping of it may have the right to write.
    pub(super) fn may_be_written(&self) -> bool {
        !self.read_only || left_out(Safeguard::ReadOnlySlot)
    }

    fn end(&self) -> u64 {
        self.base.raw().saturating_add(self.bytes)
    }
}

/// Why a slot was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotError {
    /// It overlaps another (EEXIST).
    Overlap,
    /// It cannot be changed that way (EINVAL).
    Invalid,
    /// There is no such slot to delete (EINVAL).
    Missing,
}

/// What a change of slots asks of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Nothing,
    /// What is mapped of the range goes.
    Evict(Ipa, u64),
    /// What is mapped of the range is read only.
    Protect(Ipa, u64),
}

/// A stretch of a VM's addresses that is one slot, with its number, or that none shares.
#[derive(Clone, Copy)]
struct Stretch {
    base: u64,
    bytes: u64,
    slot: Option<(u32, Slot)>,
}

impl Stretch {
    const NONE: Self = Self {
        base: 0,
        bytes: 0,
        slot: None,
    };

    const fn contains(&self, ipa: Ipa) -> bool {
        ipa.raw().wrapping_sub(self.base) < self.bytes
    }
}

/// Slots by number, by address in the VM and by address in the VMM, and their logs.
pub(super) struct Slots {
    by_id: BTreeMap<u32, Slot>,
    by_base: BTreeMap<u64, u32>,
    by_hva: Seen,
    logs: BTreeMap<u32, DirtyLog>,
    /// Bytes of all.
    bytes: u64,
    /// The last stretch that was looked for and is no slot, and the last that is one: a guest's accesses
    /// to devices are all in the one, its first touches mostly in the other. No change of slots leaves them.
    found: [Stretch; 2],
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self {
            by_id: BTreeMap::new(),
            by_base: BTreeMap::new(),
            by_hva: Seen::new(),
            logs: BTreeMap::new(),
            bytes: 0,
            found: [Stretch::NONE; 2],
        }
    }

    /// The stretch that `ipa` lies in.
    #[inline]
    fn find(&mut self, ipa: Ipa) -> &Stretch {
        let found = self.found.iter().position(|found| found.contains(ipa));
        let at = found.unwrap_or_else(|| self.search(ipa));
        &self.found[at % 2]
    }

    /// The same by search; where among `found` it is from now on.
    #[inline(never)]
    fn search(&mut self, ipa: Ipa) -> usize {
        let slot = |id: &u32| Some((*id, *self.by_id.get(id)?));
        let before = self.by_base.range(..=ipa.raw()).next_back();
        let before = before.and_then(|(_, id)| slot(id));
        let there = before.filter(|(_, slot)| slot.contains(ipa));
        let (base, end) = match there {
            Some((_, slot)) => (slot.base.raw(), slot.end()),
            None => {
                let mut behind = self.by_base.range(ipa.raw()..);
                let end = behind.next().map_or(u64::MAX, |(&base, _)| base);
                (before.map_or(0, |(_, slot)| slot.end()), end)
            }
        };
        let at = usize::from(there.is_some());
        self.found[at] = Stretch {
            base,
            bytes: end - base,
            slot: there,
        };
        at
    }

    /// Whether `ipa` lies in a slot.
    pub(super) fn is_memory(&mut self, ipa: Ipa) -> bool {
        self.find(ipa).slot.is_some()
    }

    /// The slot that `ipa` lies in.
    pub(super) fn at(&mut self, ipa: Ipa) -> Option<Slot> {
        self.find(ipa).slot.map(|(_, slot)| slot)
    }

    fn is_taken(&self, id: u32, slot: &Slot) -> bool {
        self.by_base
            .range(..slot.end())
            .rev()
            .filter(|&(_, &other)| other != id)
            .map(|(_, other)| self.by_id.get(other))
            .next()
            .flatten()
            .is_some_and(|other| other.end() > slot.base.raw())
    }

    /// Creates, moves, changes or (with `None`) deletes slot `id`. A slot that logs brings a
    /// `log`, for the case that it begins to; one whose pages are all set protects nothing yet.
    pub(super) fn set(
        &mut self,
        id: u32,
        slot: Option<Slot>,
        log: Option<DirtyLog>,
    ) -> Result<Change, SlotError> {
        if !left_out(Safeguard::SlotFound) {
            self.found = [Stretch::NONE; 2];
        }
        let old = self.by_id.get(&id).copied();
        let Some(slot) = slot else {
            let old = old.ok_or(SlotError::Missing)?;
            self.by_id.remove(&id);
            self.by_base.remove(&old.base.raw());
            self.by_hva.remove(id, old.hva.raw(), old.bytes);
            self.logs.remove(&id);
            self.bytes = self.bytes.saturating_sub(old.bytes);
            return Ok(Change::Evict(old.base, old.bytes));
        };
        if slot.logging && log.is_none() {
            return Err(SlotError::Invalid);
        }
        if let Some(old) = old
            && (old.bytes != slot.bytes || old.hva != slot.hva || old.read_only != slot.read_only)
        {
            // Only its place in the VM and its log may change.
            return Err(SlotError::Invalid);
        }
        if self.is_taken(id, &slot) {
            return Err(SlotError::Overlap);
        }
        let change = match old {
            None => Change::Nothing,
            Some(old) if old.base != slot.base => Change::Evict(old.base, old.bytes),
            // Pages become blocks again, by new faults.
            Some(old) if old.logging && !slot.logging => Change::Evict(old.base, old.bytes),
            Some(old) if !old.logging && slot.logging => {
                if log.as_ref().is_some_and(|log| log.word(0) & 1 == 1) {
                    Change::Nothing
                } else {
                    Change::Protect(old.base, old.bytes)
                }
            }
            Some(_) => Change::Nothing,
        };
        match old {
            Some(old) => {
                self.by_base.remove(&old.base.raw());
            }
            None => self.bytes = self.bytes.saturating_add(slot.bytes),
        }
        match log.filter(|_| slot.logging) {
            // A log that is there goes on.
            Some(log) => {
                self.logs.entry(id).or_insert(log);
            }
            None => {
                self.logs.remove(&id);
            }
        }
        self.by_base.insert(slot.base.raw(), id);
        self.by_hva.insert(id, slot.hva.raw(), slot.bytes);
        self.by_id.insert(id, slot);
        Ok(change)
    }

    /// Bytes of all slots.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slot `id` and its log.
    pub(super) fn log(&mut self, id: u32) -> Option<(Slot, &mut DirtyLog)> {
        Some((*self.by_id.get(&id)?, self.logs.get_mut(&id)?))
    }

    /// The page at `ipa` is about to be written, or was.
    pub(super) fn mark(&mut self, ipa: Ipa) {
        let Some((id, slot)) = self.find(ipa).slot else {
            return;
        };
        if let (Some(log), Some(offset)) = (self.logs.get_mut(&id), ipa.offset_from(slot.base)) {
            log.mark(offset / PAGE);
        }
    }

    /// What the VM sees of the VMM's pages of `span`, in the first slot behind `after` that shows any;
    /// with the place to go on from. One at a time: there may be more than a list holds.
    pub(super) fn next_seen_of(
        &self,
        span: Span,
        after: Option<Place>,
    ) -> Option<(Place, Ipa, u64)> {
        let (start, end) = (span.start().raw(), span.end().raw());
        let (place, id) = self.by_hva.next(start, end, after)?;
        let slot = self.by_id.get(&id)?;
        let first = slot.hva.raw().max(start);
        let last = slot.hva.raw().saturating_add(slot.bytes).min(end);
        let base = slot.base.raw() + (first - slot.hva.raw());
        Some((place, Ipa::new(base), last - first))
    }
}

/// The pages of `slot` that bits of consecutive words name, from word `first` on: the smallest range
/// of addresses that holds them all.
pub(super) fn range_of(slot: &Slot, first: u64, bits: &[u64]) -> Option<(Ipa, u64)> {
    let low = bits.iter().position(|&word| word != 0)?;
    let high = bits.iter().rposition(|&word| word != 0)?;
    let (from, _) = dirty::hull(bits[low])?;
    let (last, count) = dirty::hull(bits[high])?;
    let from = (first + low as u64) * PAGES_PER_WORD + from;
    let to = (first + high as u64) * PAGES_PER_WORD + last + count;
    Some((slot.base.checked_add(from * PAGE)?, (to - from) * PAGE))
}
