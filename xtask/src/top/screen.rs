//! The screen of `top`, as text: the machine's memory, time by storey, the shadow pool, exits by kind,
//! and every other number by its own name.

use super::snapshot::{Interval, Snapshot};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What runs: the times' names, the exits' prefixes, and what a reader is shown.
const STOREYS: [(&str, &str, &str); 3] = [
    ("time_el1_ns", "exits_el1_", "guest"),
    ("time_vel2_ns", "exits_vel2_", "L1"),
    ("time_l2_ns", "exits_l2_", "L2"),
];
const WAITING: &str = "halt_wait_ns";
/// Sums of what is shown anyway.
const SUMS: [&str; 4] = ["exits", "hvc_exit_stat", "wfe_exit_stat", "wfi_exit_stat"];
/// Shown in a line of their own.
const POOL: [&str; 6] = [
    "shadow_contexts",
    "shadow_entries",
    "shadow_table_pages",
    "shadow_contexts_made",
    "shadow_contexts_given_up",
    "shadow_fills",
];
const HOST: [&str; 5] = ["time_ns", "cpus", "frames", "frames_free", "frames_retired"];
/// Kinds of exits that a screen has room for.
const KINDS: usize = 14;

/// The whole screen of the run `name`.
pub(super) fn screen(name: &str, interval: &Interval<'_>) -> String {
    let mut out = String::new();
    machine(&mut out, name, interval.now);
    storeys(&mut out, interval);
    pools(&mut out, interval);
    exits(&mut out, interval);
    others(&mut out, interval);
    out
}

// Writing to a String cannot fail: every `let _` below.

fn machine(out: &mut String, name: &str, now: &Snapshot) {
    let host = |name| now.get("host", name).unwrap_or(0);
    let _ = writeln!(
        out,
        "umbra: {name}, up {:.1} s of its own time, {} CPUs; memory {} MiB, {} MiB free, {} bad frames",
        now.time() as f64 / 1e9,
        host("cpus"),
        host("frames") >> 8,
        host("frames_free") >> 8,
        host("frames_retired"),
    );
}

/// Where the time of each vCPU went: a storey's holds umbra's work for it; the rest is the VMM's, and
/// that of whoever else has the CPU.
fn storeys(out: &mut String, interval: &Interval<'_>) {
    let vcpus = interval.now.owners(true);
    if vcpus.is_empty() {
        out.push_str("\nno VM\n");
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<16}{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}",
        "time by storey", "guest", "L1", "L2", "waiting", "other", "exits/s"
    );
    for vcpu in vcpus {
        let part = |name| interval.percent(interval.grown(vcpu, name));
        let [guest, l1, l2] = STOREYS.map(|(time, ..)| part(time));
        let waiting = part(WAITING);
        let other = (100.0 - guest - l1 - l2 - waiting).max(0.0);
        let _ = write!(out, "{:<16}", vcpu.replace('/', " "));
        for part in [guest, l1, l2, waiting, other] {
            let _ = write!(out, "{part:>7.1} %");
        }
        let exits = interval.rate(interval.grown(vcpu, "exits"));
        let _ = writeln!(out, "{exits:>11}");
    }
}

fn pools(out: &mut String, interval: &Interval<'_>) {
    for vm in interval.now.owners(false) {
        let all = |name| interval.now.get(vm, name).unwrap_or(0);
        if all("shadow_contexts_made") == 0 {
            continue;
        }
        let _ = writeln!(
            out,
            "\nshadow pool of {vm}: tables {} ({} KiB), entries {}; tables made {}, given up {}; entries filled {}/s",
            all("shadow_contexts"),
            all("shadow_table_pages") * 4,
            all("shadow_entries"),
            all("shadow_contexts_made"),
            all("shadow_contexts_given_up"),
            interval.rate(interval.grown(vm, "shadow_fills")),
        );
    }
}

/// Every kind of exit of all vCPUs, the most frequent first.
fn exits(out: &mut String, interval: &Interval<'_>) {
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (whose, name, stat) in interval.now.all() {
        let storey = STOREYS
            .iter()
            .find_map(|(_, prefix, storey)| Some((storey, name.strip_prefix(prefix)?)));
        if let Some((storey, kind)) = storey {
            let sum = kinds
                .entry(format!("{storey}: {}", words(kind)))
                .or_default();
            sum.0 += interval.grown(whose, name);
            sum.1 += stat.value;
        }
    }
    let mut rows: Vec<_> = kinds.into_iter().filter(|(_, sum)| sum.1 > 0).collect();
    rows.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    let grown: u64 = rows.iter().map(|(_, sum)| sum.0).sum();
    table(out, "exits by kind", &rows, KINDS, |sum| {
        let share = sum.0 as f64 * 100.0 / grown.max(1) as f64;
        let rate = interval.rate(sum.0);
        format!("{rate:>9}{:>12}{share:>8.1} %", sum.1)
    });
}

/// What has no place above, by its own name: all vCPUs together.
fn others(out: &mut String, interval: &Interval<'_>) {
    let mut rest: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for (whose, name, stat) in interval.now.all() {
        let (owner, _) = whose.split_once('/').unwrap_or((whose, ""));
        let is_shown = match owner {
            "host" => HOST.contains(&name),
            _ if whose.contains('/') => {
                let is_storeys = |(time, prefix, _): &(&str, &str, &str)| {
                    name == *time || name.starts_with(prefix)
                };
                name == WAITING || SUMS.contains(&name) || STOREYS.iter().any(is_storeys)
            }
            _ => POOL.contains(&name),
        };
        if !is_shown {
            let key = (format!("{owner} {name}"), stat.kind.clone());
            let sum = rest.entry(key).or_default();
            sum.0 += interval.grown(whose, name);
            sum.1 += stat.value;
        }
    }
    let rows: Vec<_> = rest.into_iter().filter(|(_, sum)| sum.1 > 0).collect();
    let rows: Vec<_> = rows
        .into_iter()
        .map(|((name, kind), sum)| (name, (kind, sum)))
        .collect();
    table(out, "counters", &rows, usize::MAX, |(kind, sum)| {
        let rate = interval.rate(sum.0);
        match kind.as_str() {
            "count" => format!("{rate:>9}{:>12}", sum.1),
            // A level has no rate; what another version counts is told in its own words.
            "level" => format!("{:>9}{:>12}", "", sum.1),
            kind => format!("{:>9}{:>12} {kind}", "", sum.1),
        }
    });
}

fn table<T>(
    out: &mut String,
    title: &str,
    rows: &[(String, T)],
    most: usize,
    numbers: impl Fn(&T) -> String,
) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title:<34}{:>9}{:>12}", "/s", "in all");
    for (name, row) in rows.iter().take(most) {
        let _ = writeln!(out, "{name:<34}{}", numbers(row));
    }
    if rows.len() > most {
        let _ = writeln!(out, "… and {} kinds that are rarer", rows.len() - most);
    }
}

fn words(kind: &str) -> String {
    match kind {
        "wfx" => "WFI".to_owned(),
        "hvc" | "smc" | "eret" => kind.to_uppercase(),
        "fp" => "FP access".to_owned(),
        "sysreg" => "system register".to_owned(),
        "serror" => "SError".to_owned(),
        kind => kind.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::screen;
    use crate::top::snapshot::{Interval, Snapshot};

    fn of(seconds: u64, fills: u64, exits: u64) -> Snapshot {
        let text = format!(
            "umbra-live 1\nhost time_ns ns {}\nhost cpus level 2\nhost frames level 1048576\nhost frames_free level 524288\n\
            host frames_retired level 0\nvm-1 shadow_contexts level 2\nvm-1 shadow_contexts_made count 3\n\
            vm-1 shadow_fills count {fills}\nvm-1/vcpu-0 exits count {exits}\nvm-1/vcpu-0 exits_l2_sysreg count {exits}\n\
            vm-1/vcpu-0 time_l2_ns ns {}\nvm-1/vcpu-0 halt_wait_ns ns {}\nvm-1/vcpu-0 mmio_exit_user count {exits}\n\
            vm-1 moons_seen furlongs 42\nend\n",
            seconds * 1_000_000_000,
            seconds * 250_000_000,
            seconds * 500_000_000,
        );
        Snapshot::parse(&text).unwrap()
    }

    #[test]
    fn everything_has_its_place() {
        let (before, now) = (of(2, 10, 1000), of(4, 50, 3000));
        let interval = Interval {
            before: &before,
            now: &now,
        };
        let text = screen("linux", &interval);
        for part in [
            "umbra: linux, up 4.0 s of its own time, 2 CPUs; memory 4096 MiB, 2048 MiB free, 0 bad frames",
            "vm-1 vcpu-0         0.0 %    0.0 %   25.0 %   50.0 %   25.0 %       1000",
            "shadow pool of vm-1: tables 2 (0 KiB), entries 0; tables made 3, given up 0; entries filled 20/s",
            "L2: system register                    1000        3000   100.0 %",
            "vm-1 mmio_exit_user                    1000        3000",
            "vm-1 moons_seen                                      42 furlongs",
        ] {
            assert!(text.lines().any(|line| line == part), "{part:?} in\n{text}");
        }
        assert!(!text.contains("time_ns"), "{text}");
        // Nothing but a machine: no VM yet.
        let bare = Snapshot::parse("umbra-live 1\nhost time_ns ns 1\nend\n").unwrap();
        let interval = Interval {
            before: &bare,
            now: &bare,
        };
        assert!(screen("linux", &interval).contains("no VM"));
    }
}
