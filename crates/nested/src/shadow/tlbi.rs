//! A guest hypervisor's TLBI of its own stage 2: what has to go, context by context, in an order that
//! can be left off and taken up again.
//!
//! ```text
//!   begin ──► every fill that walked before is void
//!   for each context of the VMID:
//!     the leaf at the first address ─ the leaf at the last ─ everything between
//! ```
//!
//! The leaves at both ends are the guest hypervisor's own, which may be larger than what the operand
//! names (Arm ARM D8.17: an entry goes if any address that it translates is named). What is filled
//! while the work is left off was walked after it began, so it may stay or go.

use umbra_arm64::L2Ipa;

use super::pool::{ContextId, Pool};

/// What is due in one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Every entry of the guest hypervisor's leaf at this address.
    Leaf(L2Ipa),
    /// Every entry that meets the range: first address and end.
    Range(L2Ipa, u64),
}

/// End of the space that shadows have.
const END: u64 = 1 << 48;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Tlbi {
    vmid: Option<u16>,
    range: Option<(u64, u64)>,
    begun: bool,
    index: usize,
    part: u8,
    /// How far the part that is due has come; its meaning is the worker's, 0 at first.
    pub cursor: u64,
}

impl Tlbi {
    /// For one VMID or all, of a range (first address and end) or everything.
    pub fn new(vmid: Option<u16>, range: Option<(L2Ipa, u64)>) -> Tlbi {
        Tlbi {
            vmid,
            range: range.map(|(start, end)| (start.raw(), end.min(END))),
            begun: false,
            index: 0,
            part: 0,
            cursor: 0,
        }
    }

    /// Voids the fills that began before, the first time.
    pub fn begin<T>(&mut self, pool: &mut Pool<T>) {
        if core::mem::replace(&mut self.begun, true) {
            return;
        }
        let mut from = 0;
        while let Some(id) = pool.next_of_vmid(self.vmid, from) {
            pool.advance(id);
            from = id.index() + 1;
        }
    }

    /// What is due. `None`: it is complete.
    pub fn due<T>(&mut self, pool: &Pool<T>) -> Option<(ContextId, Part)> {
        let id = pool.next_of_vmid(self.vmid, self.index)?;
        if id.index() != self.index {
            (self.index, self.part, self.cursor) = (id.index(), 0, 0);
        }
        let part = match (self.range, self.part) {
            (None, _) => Part::Range(L2Ipa::new(0), END),
            (Some((start, _)), 0) => Part::Leaf(L2Ipa::new(start)),
            (Some((_, end)), 1) => Part::Leaf(L2Ipa::new(end.saturating_sub(1))),
            (Some((start, end)), _) => Part::Range(L2Ipa::new(start), end),
        };
        Some((id, part))
    }

    /// What was due is done.
    pub fn done(&mut self) {
        self.cursor = 0;
        self.part += 1;
        // What meets a single page of 4 KiB is what its leaf has.
        let is_page = |(start, end): (u64, u64)| start >> 12 == end.saturating_sub(1) >> 12;
        if self.part == 3 || self.range.is_none_or(is_page) {
            (self.index, self.part) = (self.index + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests;
