//! Mappings put together: neighbours in every space that came to be in the same way are one extent.

use crate::trace::story::Mapping;
use std::collections::BTreeMap;
use umbra_trace::How;

/// A run of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First address in L2, for a shadow.
    pub(super) l2: Option<u64>,
    /// First address in the VM.
    pub(super) ipa: u64,
    /// First address in the machine.
    pub(super) pa: u64,
    /// All bytes.
    pub(super) bytes: u64,
    /// Bytes of an entry.
    pub(super) size: u64,
    /// How they came to be.
    pub(super) how: How,
}

/// A table: its VM, and its context or 0.
pub(super) type TableId = (u16, u64);

/// The extents of each table, by address. Of an entry that was made several times, the last counts;
/// one that got more rights is still what it was.
pub(super) fn of(mappings: &[Mapping]) -> BTreeMap<TableId, Vec<Extent>> {
    let mut entries: BTreeMap<(TableId, u64), Extent> = BTreeMap::new();
    for mapping in mappings {
        let at = mapping.l2.unwrap_or(mapping.ipa);
        let entry = Extent {
            l2: mapping.l2,
            ipa: mapping.ipa,
            pa: mapping.pa,
            bytes: mapping.bytes,
            size: mapping.bytes,
            how: mapping.how,
        };
        let known = entries.entry(((mapping.vm, mapping.context), at));
        known
            .and_modify(|old| {
                let how = if entry.how == How::Permission {
                    old.how
                } else {
                    entry.how
                };
                *old = Extent { how, ..entry };
            })
            .or_insert(entry);
    }
    let mut tables: BTreeMap<TableId, Vec<Extent>> = BTreeMap::new();
    for ((table, _), entry) in entries {
        let extents = tables.entry(table).or_default();
        match extents.last_mut() {
            Some(last) if continues(last, &entry) => last.bytes += entry.bytes,
            _ => extents.push(entry),
        }
    }
    tables
}

fn continues(last: &Extent, next: &Extent) -> bool {
    let after = |base: u64| base.checked_add(last.bytes);
    (last.how, last.size) == (next.how, next.size)
        && last.l2.map(after) == next.l2.map(Some)
        && after(last.ipa) == Some(next.ipa)
        && after(last.pa) == Some(next.pa)
}

/// An axis with the unused stretches of a space taken out.
#[derive(Debug)]
pub(super) struct Axis {
    /// First address, bytes, and where that begins, of the whole width 1.
    clusters: Vec<(u64, u64, f64)>,
    /// Width of a byte.
    scale: f64,
}

/// The width of a stretch that was taken out.
const GAP: f64 = 0.02;

impl Axis {
    /// For these ranges: address and bytes. What lies closer than a sixteenth of all that is used
    /// stays together.
    pub(super) fn of(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut ranges: Vec<(u64, u64)> = ranges.collect();
        ranges.sort_unstable();
        let used: u64 = ranges
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let near = (used / 16).max(1 << 16);
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, bytes) in ranges {
            let end = start.saturating_add(bytes);
            match merged.last_mut() {
                Some((_, last)) if start <= last.saturating_add(near) => *last = end.max(*last),
                _ => merged.push((start, end)),
            }
        }
        let gaps = GAP * merged.len().saturating_sub(1) as f64;
        // With very many stretches the gaps share half of the width.
        let gap = if gaps > 0.5 {
            0.5 / (merged.len() - 1) as f64
        } else {
            GAP
        };
        let length: f64 = merged.iter().map(|(start, end)| (end - start) as f64).sum();
        let scale = (1.0 - gap * merged.len().saturating_sub(1) as f64) / length.max(1.0);
        let mut at = 0.0;
        let clusters = merged
            .into_iter()
            .map(|(start, end)| {
                let cluster = (start, end - start, at);
                at += (end - start) as f64 * scale + gap;
                cluster
            })
            .collect();
        Self { clusters, scale }
    }

    /// Where an address lies, from 0 to 1.
    pub(super) fn place(&self, address: u64) -> f64 {
        let before = self
            .clusters
            .partition_point(|(start, ..)| *start <= address);
        match before.checked_sub(1).and_then(|at| self.clusters.get(at)) {
            Some((start, bytes, at)) => at + (address - start).min(*bytes) as f64 * self.scale,
            None => 0.0,
        }
    }

    /// First address, bytes and place of each stretch.
    pub(super) fn clusters(&self) -> &[(u64, u64, f64)] {
        &self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, of};
    use crate::trace::story::Mapping;
    use umbra_trace::How;

    fn page(ipa: u64, pa: u64, how: How) -> Mapping {
        Mapping {
            vm: 1,
            context: 0,
            l2: None,
            ipa,
            pa,
            bytes: 4096,
            how,
        }
    }

    #[test]
    fn neighbours_in_every_space_are_one() {
        let tables = of(&[
            page(0x1000, 0x9000, How::Load),
            page(0x2000, 0xa000, How::Load),
            page(0x3000, 0xb000, How::Store),
            page(0x4000, 0xf000, How::Store),
            // Again with more rights: still a load's.
            page(0x1000, 0x9000, How::Permission),
        ]);
        let extents: Vec<(u64, u64, How)> = tables[&(1, 0)]
            .iter()
            .map(|e| (e.ipa, e.bytes, e.how))
            .collect();
        let expected = [
            (0x1000, 0x2000, How::Load),
            (0x3000, 0x1000, How::Store),
            (0x4000, 0x1000, How::Store),
        ];
        assert_eq!(extents, expected);
    }

    #[test]
    fn an_axis_leaves_out_what_is_not_used() {
        let axis = Axis::of([(0x1000_0000, 0x10_0000), (1 << 40, 0x10_0000)].into_iter());
        assert_eq!(axis.clusters().len(), 2);
        assert_eq!(axis.place(0x1000_0000), 0.0);
        assert!((axis.place(0x1010_0000) - 0.49).abs() < 1e-9);
        assert!((axis.place(1 << 40) - 0.51).abs() < 1e-9);
        assert!((axis.place((1 << 40) + 0x10_0000) - 1.0).abs() < 1e-9);
        assert_eq!(Axis::of(std::iter::empty()).place(7), 0.0);
        let many = Axis::of((0..1000).map(|n| (n << 40, 4096)));
        assert!(many.place(u64::MAX) <= 1.0 + 1e-9);
    }
}
