//! The fault map: where each stage-2 entry leads, L2 → L1 → host, and how it came to be.

use super::extents::{self, Axis, Extent, TableId};
use super::html::{Cell, Table, bytes, count, escape};
use crate::trace::story::{Mapping, Story};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use umbra_trace::How;

/// Ribbons that a figure draws.
const RIBBONS: usize = 400;
/// Tables that are drawn, of the VMs' own and of shadows.
const FIGURES: usize = 3;
/// Extents that a list names.
const ROWS: usize = 50;
/// Names along a lane.
const NAMES: usize = 5;

/// The section.
pub(super) fn section(story: &Story) -> String {
    if story.mappings.is_empty() {
        return "<section id=\"map\"><h2>Fault map</h2><p class=\"empty\">No stage-2 entry was made.</p></section>".to_owned();
    }
    let tables = extents::of(&story.mappings);
    let mut out = format!(
        "<section id=\"map\"><h2>Fault map</h2><p>{} stage-2 entries were made. Each ribbon leads from where a guest sees memory to where it is; unused addresses are taken out of each lane.</p>{}",
        count(story.mappings.len() as u64),
        colours(&story.mappings)
    );
    out.push_str(&sizes(&story.mappings));
    for shadow in [false, true] {
        let mut of_kind: Vec<_> = tables
            .iter()
            .filter(|((_, context), _)| (*context != 0) == shadow)
            .collect();
        of_kind.sort_by_key(|(_, extents)| std::cmp::Reverse(total(extents)));
        for (id, extents) in of_kind.iter().take(FIGURES) {
            out.push_str(&figure(**id, extents));
        }
        let left = of_kind.len().saturating_sub(FIGURES);
        if left > 0 {
            let what = if shadow { "shadow tables" } else { "VMs" };
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "<p class=\"note\">{left} further {what}, which map less, are not drawn.</p>"
            );
        }
    }
    out.push_str(&biggest(&tables));
    out.push_str("</section>");
    out
}

fn how_class(how: How) -> &'static str {
    match how {
        How::Load => "h-load",
        How::Store => "h-store",
        How::Fetch => "h-fetch",
        How::Permission => "h-permission",
        How::Around => "h-around",
        How::Walk => "h-walk",
    }
}

fn how_words(how: How) -> &'static str {
    match how {
        How::Load => "first touched by a load",
        How::Store => "first touched by a store",
        How::Fetch => "first touched by a fetch",
        How::Permission => "got more rights",
        How::Around => "brought along by a neighbour",
        How::Walk => "first touched by a stage-1 walk",
    }
}

/// What the colours mean, with how many entries each has.
fn colours(mappings: &[Mapping]) -> String {
    let mut counts: BTreeMap<How, (u64, u64)> = BTreeMap::new();
    for mapping in mappings {
        let (entries, sum) = counts.entry(mapping.how).or_default();
        *entries += 1;
        *sum += mapping.bytes;
    }
    let items: String = counts
        .iter()
        .map(|(how, (entries, sum))| {
            format!(
                "<li><i class=\"mark {}\"></i>{}<b>{}</b><span>{}</span></li>",
                how_class(*how),
                how_words(*how),
                count(*entries),
                bytes(*sum)
            )
        })
        .collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// Entries by size, each bar divided by how they came to be.
fn sizes(mappings: &[Mapping]) -> String {
    let mut rows: BTreeMap<(bool, u64), BTreeMap<How, u64>> = BTreeMap::new();
    for mapping in mappings {
        let row = rows
            .entry((mapping.context != 0, mapping.bytes))
            .or_default();
        *row.entry(mapping.how).or_default() += 1;
    }
    let most = rows.values().map(|row| row.values().sum::<u64>()).max();
    let most = most.unwrap_or(1) as f64;
    let mut out =
        String::from("<figure><figcaption>Entries by size</figcaption><div class=\"bars\">");
    for ((shadow, size), row) in &rows {
        let all: u64 = row.values().sum();
        let table = if *shadow { "shadow" } else { "VM’s own" };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<span>{table}, {}</span><div class=\"stack thin\" style=\"width:{:.2}%\">",
            bytes(*size),
            all as f64 * 100.0 / most
        );
        for (how, entries) in row {
            let _ = write!(
                out,
                "<div class=\"{}\" style=\"flex-grow:{entries}\" title=\"{}: {}\"></div>",
                how_class(*how),
                how_words(*how),
                count(*entries)
            );
        }
        let _ = write!(out, "</div><b>{}</b>", count(all));
    }
    out.push_str("</div></figure>");
    out
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.bytes).sum()
}

fn table_name((vm, context): TableId) -> String {
    match context {
        0 => format!("VM {vm}, its own table"),
        context => format!("VM {vm}, shadow {context}"),
    }
}

/// The lanes of a table and the ribbons between them.
fn figure(id: TableId, extents: &[Extent]) -> String {
    let mut shown: Vec<&Extent> = extents.iter().collect();
    shown.sort_by_key(|extent| std::cmp::Reverse(extent.bytes));
    let left = shown.len().saturating_sub(RIBBONS);
    let rest: u64 = shown.iter().skip(RIBBONS).map(|extent| extent.bytes).sum();
    shown.truncate(RIBBONS);
    let axis = |of: fn(&Extent) -> Option<u64>| {
        let ranges = shown.iter().filter_map(|e| Some((of(e)?, e.bytes)));
        Axis::of(ranges)
    };
    let lanes = [
        (
            "L2",
            axis(|e| e.l2),
            (|e: &Extent| e.l2) as fn(&Extent) -> Option<u64>,
        ),
        ("VM (L1)", axis(|e| Some(e.ipa)), |e: &Extent| Some(e.ipa)),
        ("host", axis(|e| Some(e.pa)), |e: &Extent| Some(e.pa)),
    ];
    let lanes = if id.1 == 0 { &lanes[1..] } else { &lanes[..] };
    let name = escape(&table_name(id));
    let mut out = format!(
        "<figure class=\"map\"><figcaption>{name}: {} in {} runs of entries</figcaption>",
        bytes(total(extents)),
        count(extents.len() as u64)
    );
    for (at, (title, axis, of)) in lanes.iter().enumerate() {
        out.push_str(&lane(title, axis));
        if let Some((_, below, below_of)) = lanes.get(at + 1) {
            let ribbons = ribbons(&shown, (axis, *of), (below, *below_of));
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "<svg class=\"ribbons\" viewBox=\"0 0 1000 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"Where the addresses lead\">{ribbons}</svg>"
            );
        }
    }
    if left > 0 {
        let _ = write!(
            out,
            "<p class=\"note\">Sampled: the {RIBBONS} largest runs; {} smaller ones with {} together are not drawn.</p>",
            count(left as u64),
            bytes(rest)
        );
    }
    out.push_str("</figure>");
    out
}

/// One space: its used stretches, the largest of them named.
fn lane(title: &str, axis: &Axis) -> String {
    let mut bars = String::new();
    for (start, length, at) in axis.clusters() {
        let width = axis.place(start.saturating_add(*length)) - at;
        // Writing to a String cannot fail.
        let _ = write!(
            bars,
            "<i style=\"left:{:.2}%;width:{:.2}%\" title=\"{start:#x}, {}\"></i>",
            at * 100.0,
            width * 100.0,
            bytes(*length)
        );
    }
    // Names that have room: each a sixth of the width away from the one before.
    let mut names = String::new();
    let mut free = 0.0;
    for (start, length, at) in axis.clusters().iter().take(NAMES * 20) {
        if *at >= free && *at < 0.85 {
            let _ = write!(
                names,
                "<span style=\"left:{:.2}%\"><code>{start:#x}</code> {}</span>",
                at * 100.0,
                bytes(*length)
            );
            free = at + 1.0 / NAMES as f64;
        }
    }
    format!(
        "<div class=\"lane\"><b>{title}</b><div class=\"track\">{bars}</div><div class=\"names\">{names}</div></div>"
    )
}

type Side<'a> = (&'a Axis, fn(&Extent) -> Option<u64>);

fn ribbons(extents: &[&Extent], above: Side<'_>, below: Side<'_>) -> String {
    let mut out = String::new();
    for extent in extents {
        let ends = |(axis, of): Side<'_>| {
            let start = of(extent)?;
            let (from, to) = (axis.place(start), axis.place(start + extent.bytes));
            // Even one page is to be seen.
            Some((from * 1000.0, (to * 1000.0).max(from * 1000.0 + 0.8)))
        };
        if let (Some((a, b)), Some((c, d))) = (ends(above), ends(below)) {
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "<path class=\"{}\" d=\"M{a:.1} 0H{b:.1}L{d:.1} 100H{c:.1}z\"><title>{}</title></path>",
                how_class(extent.how),
                title(extent)
            );
        }
    }
    out
}

fn title(extent: &Extent) -> String {
    let l2 = extent
        .l2
        .map_or_else(String::new, |l2| format!("{l2:#x} → "));
    format!(
        "{l2}{:#x} → {:#x}: {} in entries of {}, {}",
        extent.ipa,
        extent.pa,
        bytes(extent.bytes),
        bytes(extent.size),
        how_words(extent.how)
    )
}

/// The largest extents of all tables.
fn biggest(tables: &BTreeMap<TableId, Vec<Extent>>) -> String {
    let mut all: Vec<(TableId, Extent)> = tables
        .iter()
        .flat_map(|(id, extents)| extents.iter().map(|extent| (*id, *extent)))
        .collect();
    all.sort_by_key(|(_, extent)| std::cmp::Reverse(extent.bytes));
    let caption = match all.len() {
        n if n > ROWS => format!("The {ROWS} largest of {} runs of entries", count(n as u64)),
        _ => "Runs of entries".to_owned(),
    };
    let head = ["Table", "L2", "VM (L1)", "Host", "Bytes", "Entry", "How"];
    let mut table = Table::new(&caption, &head);
    for (id, extent) in all.iter().take(ROWS) {
        table.row(vec![
            Cell::text(&table_name(*id)),
            Cell::address(extent.l2),
            Cell::address(Some(extent.ipa)),
            Cell::address(Some(extent.pa)),
            Cell::number(extent.bytes as f64, &bytes(extent.bytes)),
            Cell::number(extent.size as f64, &bytes(extent.size)),
            Cell::text(how_words(extent.how)).marked(how_class(extent.how)),
        ]);
    }
    table.html()
}
