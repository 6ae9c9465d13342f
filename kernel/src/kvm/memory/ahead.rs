//! Mapping ahead of accesses: what lies round a page that faulted and is in the VMM's memory already.
//!
//! Only pages that are there are taken, with the rights a read of their own would have got and the
//! access flag clear, so nothing is brought in, nothing is marked, and hardware says later whether it
//! was worth it. Memory that was new a moment ago has no such neighbours: nobody looks then.

use umbra_arm64::{Hva, Ipa, Level, Pa, Rights};
use umbra_stage2::{Attrs, Canonical};

use super::super::events;
use super::super::ghost::{self, Made};
use super::super::slots::{PAGE, Slot};
use super::{Memory, Wanted};
use crate::mem::TablePages;
use crate::mm::{PageView, Present};

/// Bytes round a fault, naturally aligned.
const WINDOW: u64 = 64 << 10;
const PAGES: usize = (WINDOW / PAGE) as usize;
/// The software bit of such a leaf.
const AHEAD: u8 = 1;

/// How many were made; of those that are gone or were asked about, how many were used, and how many
/// were not.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kvm) struct AheadCounts {
    pub(in crate::kvm) made: u64,
    pub(in crate::kvm) used: u64,
    pub(in crate::kvm) unused: u64,
}

impl AheadCounts {
    const fn live(&self) -> u64 {
        self.made.saturating_sub(self.used + self.unused)
    }

    /// A leaf is gone, or replaced because of an access that it did not allow.
    pub(super) fn gone(&mut self, attrs: Attrs) {
        if attrs.software & AHEAD == 0 {
        } else if attrs.accessed {
            self.used += 1;
        } else {
            self.unused += 1;
        }
    }

    /// What lies in the range is about to go.
    pub(super) fn going(&mut self, table: &Canonical, base: Ipa, bytes: u64) {
        if self.live() != 0 {
            table.visit(base, bytes, &TablePages, |leaf| self.gone(leaf.attrs));
        }
    }
}

impl Memory {
    /// Maps what is present round `ipa`, which was just mapped by a page.
    pub(super) fn map_ahead(
        &mut self,
        ipa: Ipa,
        slot: &Slot,
        wanted: Wanted,
        present: Present<'_>,
    ) {
        let first = ipa.align_down(WINDOW);
        let Some((hva, skipped)) = window_of(slot, first) else {
            return;
        };
        let mut there: [Option<PageView>; PAGES] = [None; PAGES];
        present.visit(hva, WINDOW - skipped, |view| {
            let from = view.start.raw().max(hva.raw());
            let end = view.start.raw().saturating_add(view.bytes);
            for at in (from..end).step_by(PAGE as usize) {
                let index = (at - hva.raw() + skipped) / PAGE;
                if let Some(place) = there.get_mut(index as usize) {
                    *place = Some(view);
                }
            }
        });
        let vttbr = self.vttbr;
        let Self { table, ahead, .. } = self;
        let Some(table) = table else {
            return;
        };
        let pick = |at: Ipa| {
            let view = there[(at.offset_in(WINDOW) / PAGE) as usize].as_ref()?;
            let hva = slot.contains(at).then(|| slot.hva_of(at)).flatten()?;
            let pa = view.pa.checked_add(hva.offset_from(view.start)?)?;
            let attrs = attrs(pa, slot, view, wanted);
            let ghost = Made {
                vttbr,
                addr: at.raw(),
                level: Level::L3,
                pa,
                rights: attrs.rights,
                vm: events::vm_number(vttbr),
                source: at,
            };
            Some((pa, attrs, ghost))
        };
        let made = table.fill_near(ipa, WINDOW, &TablePages, pick, |ghost| {
            ghost::fresh(&ghost);
            true
        });
        ahead.made += made as u64;
    }

    /// The counts, with what is still there.
    pub(in crate::kvm) fn ahead(&self) -> AheadCounts {
        let mut counts = self.ahead;
        if let Some(table) = &self.table {
            counts.going(table, Ipa::new(0), 1 << 48);
        }
        counts
    }
}

/// The VMM's address of the window at `first`, or of the part of it that begins with the slot, and how
/// many bytes come before that.
fn window_of(slot: &Slot, first: Ipa) -> Option<(Hva, u64)> {
    let skipped = slot.base.offset_from(first).unwrap_or(0);
    let hva = slot.hva_of(first.checked_add(skipped)?)?;
    Some((hva, skipped))
}

fn attrs(pa: Pa, slot: &Slot, view: &PageView, wanted: Wanted) -> Attrs {
    if wanted.exec {
        umbra_hw::mem::sync_instructions(pa, PAGE);
    }
    let rights = Rights {
        read: true,
        write: view.writable && slot.may_be_written() && !slot.logging,
        exec_el0: wanted.exec,
        exec_el1: wanted.exec,
    };
    Attrs {
        accessed: false,
        software: AHEAD,
        ..Attrs::normal(rights)
    }
}
