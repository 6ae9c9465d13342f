//! The life of shadow tables: when each was there, and what was done with it.

use super::html::{Cell, Table, bytes, count, duration};
use crate::trace::log::Log;
use crate::trace::story::{ShadowLife, Story};
use std::fmt::Write as _;

/// Lives that are drawn and listed.
const ROWS: usize = 40;

/// The section.
pub(super) fn section(log: &Log, story: &Story) -> String {
    let mut lives: Vec<(&(u16, u64), &ShadowLife)> = story.shadows.iter().collect();
    let head = "<section id=\"shadows\"><h2>Shadow tables</h2>";
    if lives.is_empty() {
        return format!(
            "{head}<p class=\"empty\">No guest hypervisor used a stage 2.</p></section>"
        );
    }
    let number = lives.len();
    let ended = lives
        .iter()
        .filter(|(_, life)| life.ended.is_some())
        .count();
    lives.sort_by_key(|(_, life)| std::cmp::Reverse((life.entries, life.mapped.0)));
    lives.truncate(ROWS);
    lives.sort_by_key(|(id, life)| (life.began, **id));
    let left = number - lives.len();
    let mut out = format!(
        "{head}<p>{} in all, of which {} ended within the run. A bar lasts from the first use of a table to its end.</p><div class=\"lives\">",
        count(number as u64),
        count(ended as u64)
    );
    let mut table = Table::new(
        "Shadow tables",
        &[
            "Table",
            "VMID of L1",
            "From",
            "Until",
            "End",
            "Entered",
            "Entries made",
            "Mapped",
            "TLBIs",
        ],
    );
    for (id, life) in lives {
        out.push_str(&bar(log, story, *id, life));
        table.row(row(log, story, *id, life));
    }
    let end = duration(log.ns(story.ticks()));
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<div class=\"axis\"><span>0 s</span><span>{end}</span></div></div>"
    );
    if left > 0 {
        let _ = write!(
            out,
            "<p class=\"note\">Sampled: the {ROWS} that were entered most; {left} are left out.</p>"
        );
    }
    out.push_str(&table.html());
    out.push_str("</section>");
    out
}

fn bar(log: &Log, story: &Story, (vm, context): (u16, u64), life: &ShadowLife) -> String {
    let (start, whole) = (story.span.0, story.ticks().max(1) as f64);
    let place = |time: u64| time.saturating_sub(start) as f64 * 100.0 / whole;
    let from = life.began.map_or(0.0, place);
    let to = life.ended.map_or(100.0, |(time, _)| place(time));
    let width = (to - from).max(0.3);
    let length = log.ns(((to - from) / 100.0 * whole) as u64);
    format!(
        "<div class=\"life\"><span>VM {vm} #{context}</span><div><i style=\"left:{from:.2}%;width:{width:.2}%\" title=\"{}\"></i></div></div>",
        duration(length)
    )
}

fn row(log: &Log, story: &Story, (vm, context): (u16, u64), life: &ShadowLife) -> Vec<Cell> {
    let at = |time: Option<u64>, without: &str| match time {
        Some(time) => {
            let ticks = time.saturating_sub(story.span.0);
            Cell::number(ticks as f64, &duration(log.ns(ticks)))
        }
        None => Cell::number(-1.0, without),
    };
    vec![
        Cell::text(&format!("VM {vm} #{context}")),
        Cell::count(life.vttbr >> 48),
        at(life.began, "before"),
        at(life.ended.map(|(time, _)| time), "–"),
        Cell::text(life.ended.map_or("lives", |(_, why)| why.name())),
        Cell::count(life.entries),
        Cell::count(life.mapped.0),
        Cell::number(life.mapped.1 as f64, &bytes(life.mapped.1)),
        Cell::count(life.tlbis),
    ]
}
