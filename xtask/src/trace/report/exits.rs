//! Exits by kind: how many, what each cost.

use super::html::{Cell, Table, count, duration, share};
use super::time::class_name;
use crate::trace::exits::Row;
use crate::trace::log::Log;
use crate::trace::story::{Class, Story};
use crate::trace::tracks::Lane;

/// Kinds that the table has.
const ROWS: usize = 100;

/// The section.
pub(super) fn section(log: &Log, story: &Story) -> String {
    let rows = story.exits.rows();
    if rows.is_empty() {
        return "<section id=\"exits\"><h2>Exits by kind</h2><p class=\"empty\">No guest was left.</p></section>".to_owned();
    }
    let number: u64 = rows.iter().map(|row| row.count).sum();
    let total: u64 = rows.iter().map(|row| row.total).sum();
    let most = rows.iter().map(|row| row.total).max().unwrap_or(1);
    let mut table = Table::new(
        "Exits by kind, the dearest first",
        &[
            "Exit",
            "Exits",
            "umbra’s time",
            "Share",
            "From",
            "Least",
            "Median",
            "99 %",
            "Most",
            "VMM’s time",
        ],
    );
    for row in rows.iter().take(ROWS) {
        table.row(cells(log, row, total, most));
    }
    let left = rows.len().saturating_sub(ROWS);
    let rest = match left {
        0 => String::new(),
        _ => format!(
            "<p class=\"note\">The {left} cheapest of {} kinds are left out.</p>",
            rows.len()
        ),
    };
    format!(
        "<section id=\"exits\"><h2>Exits by kind</h2><p>{} exits cost umbra {}. A cost is umbra’s time from the exit to the next entry; where the thread gave up its CPU, the count ends there.</p>{}{rest}</section>",
        count(number),
        duration(log.ns(total)),
        table.html()
    )
}

fn cells(log: &Log, row: &Row, total: u64, most: u64) -> Vec<Cell> {
    let time = |ticks: u64| Cell::number(ticks as f64, &duration(log.ns(ticks)));
    let [least, median, late, worst] = row.quantiles.map(time);
    vec![
        Cell::text(&row.reason).marked(class_name(Class::of(row.storey))),
        Cell::count(row.count),
        time(row.total).bar(row.total as f64 / most.max(1) as f64),
        Cell::number(row.total as f64, &share(row.total as f64, total as f64)),
        Cell::text(Lane::of(row.storey).map_or("?", Lane::name)),
        least,
        median,
        late,
        worst,
        time(row.vmm),
    ]
}
