//! What a run was, in a few lines for a terminal.

use super::exits::Row;
use super::log::Log;
use super::story::{Class, Story};
use super::tracks::Lane;
use std::fmt::Write as _;

/// Kinds of exits to name.
const ROWS: usize = 8;

/// The lines.
pub(crate) fn lines(log: &Log, story: &Story) -> String {
    let mut text = String::new();
    let times = story.times();
    let all = times.iter().sum::<u64>().max(1);
    let shares: Vec<String> = Class::ALL
        .iter()
        .filter(|class| times[**class as usize] > 0)
        .map(|class| {
            let share = times[*class as usize] as f64 * 100.0 / all as f64;
            format!("{} {share:.1} %", class.name())
        })
        .collect();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "time of all CPUs: {}", shares.join(", "));
    let rows = story.exits.rows();
    let _ = writeln!(text, "{:>9} {:>12}  exit", "count", "median ns");
    for row in rows.iter().take(ROWS) {
        let _ = writeln!(text, "{}", line(log, row));
    }
    if rows.len() > ROWS {
        let _ = writeln!(text, "{:>9} further kinds", rows.len() - ROWS);
    }
    for (kind, count) in &story.counts {
        if !log.schema.is_own(*kind) {
            let name = log.schema.name(*kind);
            let _ = writeln!(text, "{count:>9} events of another version: {name}");
        }
    }
    text
}

fn line(log: &Log, row: &Row) -> String {
    let storey = Lane::of(row.storey).map_or("?", Lane::name);
    let median = log.ns(row.quantiles[1]);
    format!("{:>9} {median:>12.0}  {storey}: {}", row.count, row.reason)
}

#[cfg(test)]
mod tests {
    use super::super::replay::replay;
    use super::super::sample::{File, at};
    use super::{Log, lines};
    use umbra_trace::{Event, ExitKind, Storey};

    #[test]
    fn a_run_in_lines() {
        let guest = Storey::Guest;
        let exit = Event::Exit {
            kind: ExitKind::Trap,
            ec: 0x16,
            pc: 0,
            esr: 0x5a00_0000,
        };
        let records = [
            at(0, guest, Event::Entry { pc: 0 }),
            at(75, guest, exit),
            at(100, guest, Event::Entry { pc: 0 }),
        ];
        let log = Log::read(&File::described().ring(0, 8, &records).0).unwrap();
        let text = lines(&log, &replay(&log));
        assert!(text.contains("umbra 25.0 %, guest 75.0 %"), "{text}");
        assert!(
            text.contains("        1           25  guest (EL1): HVC"),
            "{text}"
        );
    }
}
