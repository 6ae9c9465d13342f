//! The rest in numbers: what faults came to, walks, injections, TLB maintenance, and every event there
//! was; and of a run that ended badly the last events of each CPU.

use super::html::{Cell, Table, bytes, escape};
use crate::trace::log::Log;
use crate::trace::story::Story;
use std::fmt::Write as _;

/// Kinds of TLB maintenance to list.
const ROWS: usize = 40;
/// Last events of a CPU.
const LAST: usize = 24;

/// The section.
pub(super) fn section(log: &Log, story: &Story) -> String {
    let mut out = String::from("<section id=\"counts\"><h2>In numbers</h2><div class=\"tables\">");
    let mut faults = Table::new("Stage-2 faults", &["Became", "On", "Faults"]);
    for ((resolution, shadow), number) in &story.resolved {
        let table = if *shadow {
            "a shadow"
        } else {
            "the VM’s own table"
        };
        faults.row(vec![
            Cell::text(resolution.name()),
            Cell::text(table),
            Cell::count(*number),
        ]);
    }
    let mut gone = Table::new("Entries taken away", &["Why", "Times", "Range"]);
    for (reason, (times, sum)) in &story.unmapped {
        gone.row(vec![
            Cell::text(reason.name()),
            Cell::count(*times),
            Cell::number(*sum as f64, &bytes(*sum)),
        ]);
    }
    let mut walks = Table::new("Walks of L1’s stage 2", &["Level", "Translated", "Fault"]);
    for (level, (good, bad)) in &story.walks {
        walks.row(vec![
            Cell::number(*level as f64, &level.to_string()),
            Cell::count(*good),
            Cell::count(*bad),
        ]);
    }
    let mut injected = Table::new("Injected by umbra", &["What", "Times"]);
    for (kind, number) in &story.injected {
        injected.row(vec![Cell::text(kind.name()), Cell::count(*number)]);
    }
    let mut tlbis = Table::new("L1’s TLB maintenance", &["Instruction", "Times"]);
    for (name, number) in story.tlbis.iter().take(ROWS) {
        tlbis.row(vec![Cell::code(name), Cell::count(*number)]);
    }
    for table in [faults, gone, walks, injected, tlbis, events(log, story)] {
        out.push_str(&table.html());
    }
    out.push_str("</div></section>");
    out
}

/// Every event by name: the file's, where this program does not know it.
fn events(log: &Log, story: &Story) -> Table {
    let mut table = Table::new("All events", &["Event", "Records", "Known"]);
    for (kind, number) in &story.counts {
        let known = match log.schema.is_own(*kind) {
            true => "yes",
            false => "of another version",
        };
        table.row(vec![
            Cell::code(&log.schema.name(*kind)),
            Cell::count(*number),
            Cell::text(known),
        ]);
    }
    table
}

/// What each CPU did last.
pub(super) fn last(log: &Log) -> String {
    let mut out = String::from("<section id=\"last\"><h2>The last events</h2>");
    for cpu in &log.cpus {
        let from = cpu.records.len().saturating_sub(LAST);
        // Writing to a String cannot fail.
        let _ = write!(out, "<h3>CPU {}</h3><pre tabindex=\"0\">", cpu.cpu);
        let end = log.span().map_or(0, |(_, end)| end);
        for record in &cpu.records[from..] {
            let before = log.ns(end - record.time) / 1e3;
            let _ = writeln!(out, "−{before:.3} µs  {}", escape(&log.schema.show(record)));
        }
        out.push_str("</pre>");
    }
    out.push_str("</section>");
    out
}
