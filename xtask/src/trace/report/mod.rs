//! The report: one HTML file that needs nothing else, no network and no other file.
//!
//! Its size is bounded whatever the run was: every list has a limit, and says what it left out.

mod counts;
mod errors;
mod exits;
mod extents;
mod html;
mod map;
mod shadows;
mod time;

use super::About;
use super::log::Log;
use super::story::Story;
use html::{count, duration, escape};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page's text.
pub(crate) fn page(log: &Log, story: &Story, about: &About<'_>) -> String {
    let name = escape(about.name);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\"><title>umbra: {name}</title><style>{STYLE}</style></head><body>"
    );
    out.push_str(&head(log, story, about));
    if log.len() == 0 {
        out.push_str(
            "<main><section><p class=\"empty\">Nothing was recorded.</p></section></main>",
        );
    } else {
        out.push_str("<main>");
        let (_, well) = about.end;
        if !well {
            out.push_str(&counts::last(log));
        }
        out.push_str(&time::section(log, story));
        out.push_str(&exits::section(log, story));
        out.push_str(&map::section(story));
        out.push_str(&shadows::section(log, story));
        out.push_str(&errors::section(log, story));
        out.push_str(&counts::section(log, story));
        out.push_str("</main>");
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<script>{SCRIPT}</script></body></html>");
    out
}

/// Name, end, and what is to be known before anything is believed.
fn head(log: &Log, story: &Story, about: &About<'_>) -> String {
    let (end, well) = &about.end;
    let class = if *well { "good" } else { "bad" };
    let mut facts = vec![
        format!("{} CPUs", log.cpus.len()),
        format!("{} recorded", duration(log.ns(story.ticks()))),
        format!("{} events", count(log.len() as u64)),
        format!("written {}", date(SystemTime::now())),
    ];
    if !about.qemu.is_empty() {
        facts.push(escape(about.qemu));
    }
    let facts: String = facts
        .iter()
        .map(|fact| format!("<li>{fact}</li>"))
        .collect();
    let mut notes: Vec<String> = log.notes.iter().map(|note| escape(note)).collect();
    if log.dropped() > 0 {
        notes.push(format!(
            "The rings were full: the oldest {} events are lost, and times and counts are of what is left.",
            count(log.dropped())
        ));
    }
    if story.unknown > 0 {
        notes.push(format!(
            "{} events are of another version of umbra: counted by name, not understood.",
            count(story.unknown)
        ));
    }
    let notes: String = notes
        .iter()
        .map(|note| format!("<li>{note}</li>"))
        .collect();
    let notes = match notes.is_empty() {
        true => notes,
        false => format!("<ul class=\"notes\">{notes}</ul>"),
    };
    format!(
        "<header><p class=\"brand\">umbra</p><h1>{}</h1><p class=\"end {class}\">{}</p><ul class=\"facts\">{facts}</ul>{notes}</header>",
        escape(about.name),
        escape(end)
    )
}

/// The day, in UTC (days from civil, proleptic Gregorian).
fn date(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let days = (seconds / 86_400) as i64 + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests;
