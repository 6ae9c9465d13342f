//! What ought to be mapped: input ranges with an output and attributes.

use std::{vec, vec::Vec};

use crate::{Memory, Rights, table::Span};

/// A run of input addresses that maps to a run of output addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) pa: u64,
    pub(super) memory: Memory,
    pub(super) rights: Rights,
}

impl Extent {
    fn cut(self, span: Span) -> Option<Extent> {
        let (start, end) = (self.start.max(span.start), self.end.min(span.end));
        (start < end).then(|| Extent {
            start,
            end,
            pa: self.pa + (start - self.start),
            ..self
        })
    }
}

/// Extents in order, none meets another.
#[derive(Clone, Debug, Default)]
pub(super) struct Extents(Vec<Extent>);

impl Extents {
    pub(super) fn slice(&self, span: Span) -> Vec<Extent> {
        self.0
            .iter()
            .filter_map(|extent| extent.cut(span))
            .collect()
    }

    pub(super) fn remove(&mut self, span: Span) {
        let outside = |extent: &Extent| {
            let before = Span {
                start: 0,
                end: span.start,
            };
            let after = Span {
                start: span.end,
                end: u64::MAX,
            };
            vec![extent.cut(before), extent.cut(after)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        self.0 = self.0.iter().flat_map(outside).collect();
    }

    /// Maps `new` instead of whatever was there.
    pub(super) fn insert(&mut self, new: Extent) {
        self.remove(Span {
            start: new.start,
            end: new.end,
        });
        let at = self.0.partition_point(|extent| extent.start < new.start);
        self.0.insert(at, new);
    }

    pub(super) fn change(&mut self, span: Span, change: impl Fn(Rights) -> Rights) {
        for extent in self.slice(span) {
            self.insert(Extent {
                rights: change(extent.rights),
                ..extent
            });
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|extent| extent.end - extent.start).sum()
    }

    /// The same mapping in as few extents as possible.
    pub(super) fn normal(&self) -> Vec<Extent> {
        let mut out: Vec<Extent> = Vec::new();
        for next in &self.0 {
            match out.last_mut() {
                Some(last)
                    if last.end == next.start
                        && last.pa + (last.end - last.start) == next.pa
                        && (last.memory, last.rights) == (next.memory, next.rights) =>
                {
                    last.end = next.end;
                }
                _ => out.push(*next),
            }
        }
        out
    }

    /// Without the extents that `keep` refuses.
    pub(super) fn filtered(&self, keep: impl Fn(&Extent) -> bool) -> Extents {
        Extents(
            self.0
                .iter()
                .filter(|extent| keep(extent))
                .copied()
                .collect(),
        )
    }
}

impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut all: Vec<Extent> = extents.into_iter().collect();
        all.sort_by_key(|extent| extent.start);
        Extents(all)
    }
}
