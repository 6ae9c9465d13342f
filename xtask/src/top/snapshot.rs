//! What umbra wrote last into its live file (kernel/src/live.rs), and how it differs from before.
//!
//! Nothing is assumed of the names: what this program has no place for is told under its own name, with
//! the file's own word for what kind of number it is.

use std::collections::BTreeMap;

/// One number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// `count` and `ns` only grow, a `level` goes up and down; another version may say others.
    pub(super) kind: String,
    pub(super) value: u64,
}

/// All of a moment: by whose it is (`host`, `vm-1`, `vm-1/vcpu-0`) and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    stats: BTreeMap<(String, String), Stat>,
}

impl Snapshot {
    /// Of a file's text. `None`: it is being written, or is none of umbra's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix("umbra-live 1\n")?.strip_suffix("end\n")?;
        let mut stats = BTreeMap::new();
        for line in body.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [whose, name, kind, value] = words[..] else {
                return None;
            };
            let value = value.parse().ok()?;
            let kind = kind.to_owned();
            stats.insert((whose.to_owned(), name.to_owned()), Stat { kind, value });
        }
        Some(Self { stats })
    }

    /// A number of somebody's.
    pub(super) fn get(&self, whose: &str, name: &str) -> Option<u64> {
        let key = (whose.to_owned(), name.to_owned());
        self.stats.get(&key).map(|stat| stat.value)
    }

    /// Time of the machine, in nanoseconds.
    pub(super) fn time(&self) -> u64 {
        self.get("host", "time_ns").unwrap_or(0)
    }

    /// Everything there is: whose, name, number.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str, &Stat)> {
        let each = self.stats.iter();
        each.map(|((whose, name), stat)| (whose.as_str(), name.as_str(), stat))
    }

    /// The VMs, or the vCPUs of all of them, in the order of their names.
    pub(super) fn owners(&self, vcpus: bool) -> Vec<&str> {
        let mut owners: Vec<&str> = self.all().map(|(whose, ..)| whose).collect();
        owners.dedup();
        owners.retain(|whose| whose.starts_with("vm-") && whose.contains('/') == vcpus);
        owners
    }
}

/// Two moments.
#[derive(Debug)]
pub(super) struct Interval<'a> {
    pub(super) before: &'a Snapshot,
    pub(super) now: &'a Snapshot,
}

impl Interval<'_> {
    /// Nanoseconds of the machine between them.
    pub(super) fn ns(&self) -> u64 {
        self.now.time().saturating_sub(self.before.time())
    }

    /// By how much a number grew; what was not there before began at nothing.
    pub(super) fn grown(&self, whose: &str, name: &str) -> u64 {
        let now = self.now.get(whose, name).unwrap_or(0);
        now.saturating_sub(self.before.get(whose, name).unwrap_or(0))
    }

    /// So many in the interval, as so many a second.
    pub(super) fn rate(&self, number: u64) -> u64 {
        match self.ns() {
            0 => 0,
            ns => (u128::from(number) * 1_000_000_000 / u128::from(ns)) as u64,
        }
    }

    /// A time of the interval as percent of it.
    pub(super) fn percent(&self, time: u64) -> f64 {
        time as f64 * 100.0 / self.ns().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::{Interval, Snapshot};

    pub(in crate::top) fn of(lines: &str) -> Snapshot {
        Snapshot::parse(&format!("umbra-live 1\n{lines}end\n")).unwrap()
    }

    #[test]
    fn only_a_whole_file_is_read() {
        let text = "umbra-live 1\nhost time_ns ns 5\nvm-1/vcpu-0 exits count 7\nend\n";
        let snapshot = Snapshot::parse(text).unwrap();
        assert_eq!((snapshot.time(), snapshot.all().count()), (5, 2));
        assert_eq!(snapshot.get("vm-1/vcpu-0", "exits"), Some(7));
        for cut in 0..text.len() {
            assert_eq!(Snapshot::parse(&text[..cut]), None, "{cut}");
        }
        assert_eq!(Snapshot::parse(&text.replace("live 1", "live 2")), None);
        assert_eq!(Snapshot::parse(&text.replace(" 7", " seven")), None);
    }

    #[test]
    fn an_interval_has_rates() {
        let before = of("host time_ns ns 1000000000\nvm-1 shadow_fills count 10\n");
        let now = of(
            "host time_ns ns 3000000000\nvm-1 shadow_fills count 30\nvm-2/vcpu-0 exits count 8\n",
        );
        let both = Interval {
            before: &before,
            now: &now,
        };
        assert_eq!(both.ns(), 2_000_000_000);
        assert_eq!(both.rate(both.grown("vm-1", "shadow_fills")), 10);
        assert_eq!(both.grown("vm-2/vcpu-0", "exits"), 8);
        assert_eq!(both.percent(500_000_000), 25.0);
        assert_eq!(now.owners(false), ["vm-1"]);
        assert_eq!(now.owners(true), ["vm-2/vcpu-0"]);
        // A machine that began anew went back in time.
        let back = Interval {
            before: &now,
            now: &before,
        };
        assert_eq!((back.ns(), back.rate(5)), (0, 0));
    }
}
