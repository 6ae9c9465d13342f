//! Tracks: what ran on a CPU, and what a vCPU's storeys did, each as spans that do not overlap.
//!
//! A track has at most one open span. Opening another ends the first, and the end of the trace ends
//! the last, so every begin has its end whatever was lost.

use std::collections::HashMap;
use umbra_trace::Storey;

/// A vCPU: the number of its VM, and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VcpuId {
    /// The VM.
    pub(crate) vm: u16,
    /// The vCPU.
    pub(crate) vcpu: u16,
}

/// Which part of a vCPU's house.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Lane {
    /// umbra, seeing to an exit.
    Umbra,
    /// Its thread in the VMM.
    Vmm,
    /// A guest without virtual EL2.
    Guest,
    /// A guest hypervisor.
    VirtualEl2,
    /// A guest of a guest hypervisor.
    Nested,
}

impl Lane {
    /// The lane of what runs; `None` for what is no vCPU's.
    pub(crate) fn of(storey: Storey) -> Option<Self> {
        match storey {
            Storey::Umbra | Storey::Process => None,
            Storey::Guest => Some(Self::Guest),
            Storey::VirtualEl2 => Some(Self::VirtualEl2),
            Storey::Nested => Some(Self::Nested),
        }
    }

    /// What a reader is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Umbra => "umbra (EL2)",
            Self::Vmm => "VMM (EL0)",
            Self::Guest => "guest (EL1)",
            Self::VirtualEl2 => "L1 (virtual EL2)",
            Self::Nested => "L2",
        }
    }
}

/// Which track.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Track {
    /// What a CPU did.
    Cpu(u64),
    /// A storey of a vCPU.
    Vcpu(VcpuId, Lane),
}

/// A record by its place: index of the CPU's log, index in it.
pub(crate) type Place = (u32, u32);

/// One thing on a track, in order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    /// A span begins.
    Begin {
        /// When.
        time: u64,
        /// Number of its label.
        label: u32,
        /// The record that began it.
        place: Option<Place>,
    },
    /// The open span ends.
    End {
        /// When.
        time: u64,
    },
    /// A record of its own.
    Instant {
        /// When.
        time: u64,
        /// The record.
        place: Place,
    },
}

impl Item {
    /// When.
    pub(crate) fn time(&self) -> u64 {
        match *self {
            Item::Begin { time, .. } | Item::End { time } | Item::Instant { time, .. } => time,
        }
    }
}

#[derive(Debug, Default)]
struct Line {
    items: Vec<Item>,
    open: Option<usize>,
}

/// All tracks of a trace.
#[derive(Debug, Default)]
pub(crate) struct Tracks {
    lines: HashMap<Track, Line>,
    labels: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Tracks {
    /// The number of a label.
    pub(crate) fn label(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        self.labels.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    /// The label of a number.
    pub(crate) fn text(&self, label: u32) -> &str {
        self.labels.get(label as usize).map_or("?", String::as_str)
    }

    /// A span begins; one that is open ends.
    pub(crate) fn begin(&mut self, track: Track, time: u64, text: &str, place: Option<Place>) {
        self.end(track, time, None);
        let label = self.label(text);
        let line = self.lines.entry(track).or_default();
        line.open = Some(line.items.len());
        line.items.push(Item::Begin { time, label, place });
    }

    /// The open span of the track ends, if there is one; it is called `text` from now on.
    pub(crate) fn end(&mut self, track: Track, time: u64, text: Option<&str>) {
        let label = text.map(|text| self.label(text));
        let Some(line) = self.lines.get_mut(&track) else {
            return;
        };
        let Some(open) = line.open.take() else { return };
        if let (Some(new), Some(Item::Begin { label, .. })) = (label, line.items.get_mut(open)) {
            *label = new;
        }
        line.items.push(Item::End { time });
    }

    /// A record that is shown for itself.
    pub(crate) fn instant(&mut self, track: Track, time: u64, place: Place) {
        let line = self.lines.entry(track).or_default();
        line.items.push(Item::Instant { time, place });
    }

    /// Ends every open span.
    pub(crate) fn finish(&mut self, time: u64) {
        let open: Vec<Track> = self.lines.keys().copied().collect();
        for track in open {
            self.end(track, time, None);
        }
    }

    /// The tracks in order, with what is on them.
    pub(crate) fn in_order(&self) -> Vec<(Track, &[Item])> {
        let mut all: Vec<_> = self
            .lines
            .iter()
            .map(|(track, line)| (*track, line.items.as_slice()))
            .collect();
        all.sort_by_key(|(track, _)| *track);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{Item, Track, Tracks};

    #[test]
    fn a_track_has_one_open_span_and_none_in_the_end() {
        let mut tracks = Tracks::default();
        let cpu = Track::Cpu(0);
        tracks.end(cpu, 1, None);
        tracks.begin(cpu, 2, "a", None);
        tracks.begin(cpu, 5, "b", None);
        tracks.instant(cpu, 6, (0, 3));
        tracks.end(cpu, 7, Some("c"));
        tracks.begin(cpu, 8, "a", None);
        tracks.finish(9);
        let [(_, items)] = tracks.in_order()[..] else {
            panic!("one track")
        };
        let shape: Vec<(u64, &str)> = items
            .iter()
            .map(|item| match item {
                Item::Begin { time, label, .. } => (*time, tracks.text(*label)),
                Item::End { time } => (*time, "end"),
                Item::Instant { time, .. } => (*time, "instant"),
            })
            .collect();
        let expected = [
            (2, "a"),
            (5, "end"),
            (5, "c"),
            (6, "instant"),
            (7, "end"),
            (8, "a"),
            (9, "end"),
        ];
        assert_eq!(shape, expected);
    }
}
