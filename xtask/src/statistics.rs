//! The tables that `umbra-vmm --stats` prints, found again in a console, and what `run nested` says of
//! them.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The numbers of one VMM: name to sum.
pub(crate) type Table = BTreeMap<String, u64>;

/// Every table in a console, in order: a VMM's ends where another begins or a line does not fit.
pub(crate) fn tables(console: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut open = false;
    for line in console.lines().map(str::trim_end) {
        if line == "statistics of the VM" {
            tables.push(Table::new());
            open = true;
        } else if let Some((name, sum)) = line.strip_prefix("  ").and_then(row) {
            if let Some(table) = tables.last_mut().filter(|_| open) {
                table.insert(name.to_owned(), sum);
            }
        } else {
            open &= line.starts_with("statistics of ");
        }
    }
    tables
}

fn row(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    Some((name, words.next()?.parse().ok()?))
}

const STOREYS: [(&str, &str); 2] = [("vel2", "virtual EL2 (L1)"), ("l2", "L2")];

/// What umbra counted while a guest hypervisor ran: `None` if this is not umbra's table.
pub(crate) fn of_storeys(table: &Table) -> Option<String> {
    let get = |name: &str| table.get(name).copied().unwrap_or(0);
    table.get("exits_vel2_eret")?;
    let mut text = String::new();
    for (storey, name) in STOREYS {
        let prefix = format!("exits_{storey}_");
        let kinds: Vec<(&str, u64)> = table
            .iter()
            .filter_map(|(name, count)| Some((name.strip_prefix(&prefix)?, *count)))
            .collect();
        let all: u64 = kinds.iter().map(|(_, count)| count).sum();
        let seconds = get(&format!("time_{storey}_ns")) as f64 / 1e9;
        let _ = writeln!(text, "{name}: {seconds:.1} s, {all} exits");
        for (kind, count) in kinds {
            let _ = writeln!(text, "  {:<20} {count:>9}", kind.replace('_', " "));
        }
    }
    let _ = writeln!(
        text,
        "shadow faults: {}, of them {} given to L1; entries made {}",
        get("shadow_faults"),
        get("shadow_faults_reflected"),
        get("shadow_fills"),
    );
    let _ = writeln!(
        text,
        "fault-around: {} entries made ahead, {} hits, {} never used",
        get("shadow_ahead_made"),
        get("shadow_ahead_used"),
        get("shadow_ahead_unused"),
    );
    let _ = writeln!(
        text,
        "fault-around of L1's own memory: {} made ahead, {} hits, {} never used",
        get("canonical_ahead_made"),
        get("canonical_ahead_used"),
        get("canonical_ahead_unused"),
    );
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "boot\n\
        statistics of the VM\r\n\
        statistics of 1 vCPU\r\n\
        \x20 exits                                        7\r\n\
        umbra: run exited 0\r\n\
        \x20 exits                                        9\r\n\
        statistics of the VM\n\
        \x20 shadow_fills                                12\n\
        \x20 shadow_ahead_made                            5\n\
        statistics of 2 vCPUs\n\
        \x20 exits_vel2_eret                             30   10 20\n\
        \x20 exits_l2_wfx                                 3   1 2\n\
        \x20 time_l2_ns                          2500000000   1 2 ns\n\
        umbra: off\n";

    #[test]
    fn tables_are_found_in_a_console() {
        let tables = tables(CONSOLE);
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[0], Table::from([("exits".to_owned(), 7)]));
        assert_eq!(tables[1]["exits_vel2_eret"], 30);
        assert_eq!(of_storeys(&tables[0]), None);
    }

    #[test]
    fn the_storeys_are_told() {
        let text = of_storeys(&tables(CONSOLE)[1]).unwrap();
        for line in [
            "virtual EL2 (L1): 0.0 s, 30 exits",
            "L2: 2.5 s, 3 exits",
            "  wfx                          3",
            "shadow faults: 0, of them 0 given to L1; entries made 12",
            "fault-around: 5 entries made ahead, 0 hits, 0 never used",
        ] {
            assert!(text.lines().any(|told| told == line), "{line:?} in\n{text}");
        }
    }
}
