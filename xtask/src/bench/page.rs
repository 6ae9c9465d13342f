//! Telling the result: the table on the terminal, `docs/performance.md` and its chart.
//!
//! The page is made anew each time. What a number cannot say, why a target is missed, is kept in
//! `xtask/assets/bench-notes.txt`, by the row's name; a missed target without a note is told as such.

use super::machine::{KVM_WORDS, OPTIONS, Side};
use super::rows::Value;
use super::session::Session;
use super::{Report, Told};
use crate::cargo;
use crate::progress::note;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why targets are missed: `name, unit: why`, a line each.
const NOTES: &str = include_str!("../../assets/bench-notes.txt");

/// Today, UTC, as 2026-11-21.
pub(crate) fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    date(now.map_or(0, |d| d.as_secs() / 86_400))
}

/// The date of a day since 1970, by the civil calendar.
fn date(days: u64) -> String {
    // Years begin in March here, so that the day that some have comes last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + later)
}

/// The checkout's commit, or that there is none.
pub(crate) fn commit(ws: &Workspace) -> String {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(ws.root())
        .args(["describe", "--always", "--dirty"]);
    cargo::read(&mut git).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// A number as people read it.
fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 1e6 => format!("{:.2} million", value / 1e6),
        Some(value) if value.fract() != 0.0 => format!("{value:.1}"),
        Some(value) => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.3}"))
}

fn met(value: &Value) -> &'static str {
    match value.met() {
        Some(true) => "yes",
        Some(false) => "no",
        None => "–",
    }
}

/// The table, for the terminal.
pub(crate) fn table(rows: &[Value]) -> String {
    let head = ("", "", "umbra", "Linux/KVM", "ratio", "target", "met");
    let mut text = format!(
        "{:<52} {:<13} {:>15} {:>15} {:>7} {:>7} {}\n",
        head.0, head.1, head.2, head.3, head.4, head.5, head.6
    );
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<52} {:<13} {:>15} {:>15} {:>7} {:>7} {}",
            row.name,
            row.unit,
            number(row.umbra),
            number(row.kvm),
            ratio(row.ratio),
            ratio(row.target),
            met(row)
        );
    }
    text
}

/// The notes, by name and unit.
fn notes() -> BTreeMap<(&'static str, &'static str), &'static str> {
    let lines = NOTES
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let parts = lines.filter_map(|line| {
        let (key, why) = line.split_once(": ")?;
        let (name, unit) = key.rsplit_once(", ")?;
        Some(((name, unit), why))
    });
    parts.collect()
}

/// Writes `docs/performance.md` and `docs/performance.svg`.
pub(crate) fn write(ws: &Workspace, report: &Report) -> Result<()> {
    let docs = ws.root().join("docs");
    let files = [
        ("performance.md", page(report)),
        ("performance.svg", chart(&report.rows)),
    ];
    for (name, text) in files {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        note(&format!("written: {}", ws.show(&path)));
    }
    Ok(())
}

/// The note on a row that was not measured on one side, which is named behind its name and unit.
fn note_of(lost: &str) -> Option<&'static str> {
    let (row, _) = lost.rsplit_once(", on ")?;
    let (name, unit) = row.rsplit_once(", ")?;
    notes().get(&(name, unit)).copied()
}

fn page(report: &Report) -> String {
    let (lost, line) = (&report.missing, &report.command);
    let mut text = format!(
        "# Performance\n\n\
         What exits cost on umbra and on Linux/KVM, in instructions and memory accesses of the hypervisor (and of the VMM, where \
         it takes part).\nWritten by `{line}` on {} at {}. Measured in an emulator: there are no cycles and no caches \
         in these numbers,\nand no ratio here says how much faster anything is on hardware. Part of the difference is not merit: KVM \
         also carries preemption points,\nSRCU, tracing hooks and a general memory management that umbra does not have.\n\n\
         ![umbra over Linux/KVM, row by row](performance.svg)\n\n## The figures\n\n",
        report.date, report.commit,
    );
    text.push_str("| row | of | umbra | Linux/KVM | umbra ÷ KVM | target | met |\n|---|---|---|---|---|---|---|\n");
    for row in &report.rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.unit,
            number(row.umbra),
            number(row.kvm),
            ratio(row.ratio),
            row.target
                .map_or_else(|| "–".to_owned(), |t| format!("≤ {t:.3}")),
            met(row)
        );
    }
    text.push_str(
        "\nA value of an operation is the median of its exits (of a guest's guest: of everything from its exit to its next \
         entry); an exit is counted\nfrom the first instruction of the vector to the ERET that enters the guest again. An LDP is \
         one access, DC ZVA none. A target is a limit\nfor umbra over what KVM 7.3.4 took when the limits were set.\n",
    );
    text.push_str("\n## Targets that are missed, and why\n\n");
    let notes = notes();
    let mut missed = report
        .rows
        .iter()
        .filter(|row| row.met() == Some(false))
        .peekable();
    if missed.peek().is_none() {
        text.push_str("None.\n");
    }
    for row in missed {
        let why = notes.get(&(row.name.as_str(), row.unit.as_str())).copied();
        let why = why.unwrap_or("not explained yet.");
        let _ = writeln!(text, "* **{}, {}:** {why}", row.name, row.unit);
    }
    if !lost.is_empty() {
        text.push_str("\n## Rows that are missing\n\n");
        for told in &report.sessions {
            if let Some(error) = &told.error {
                let first = error.lines().next().unwrap_or_default();
                let _ = writeln!(
                    text,
                    "* {} on {} failed: {first}",
                    told.session,
                    told.side.name()
                );
            }
        }
        for row in lost {
            let _ = match note_of(row) {
                Some(why) => writeln!(text, "* **{row}:** {why}"),
                None => writeln!(text, "* {row}"),
            };
        }
    }
    text.push_str(&wall(&report.sessions));
    let _ = write!(
        text,
        "\n## How to repeat it\n\n\
         * `cargo xtask bench`; `--quick` leaves out KVM on KVM, `--alone` KVM altogether. `target/umbra/bench.json` holds the rows.\n\
         * {}. Both sides: xtask's usual machine with `-smp 1 {}`.\n\
         * umbra: the profile that users run, umbra-vmm as its first program.\n\
         * Linux/KVM: {}, `{KVM_WORDS}`; transparent huge pages *always*, 25 s of virtual time to become quiet (work left over \
         from booting doubles the means).\n\
         * The same file of `umbra-vmm` and the same guests on both. `hugepages=off` takes a guest's RAM out of huge pages.\n\
         * The payloads are `guests/src/bin/bench.rs` and `l1_bench.rs`. They execute `orr xzr, xzr, x30`, which does nothing, before and \
         after each row.\n\
         * The counting is done by a TCG plugin, `qemu-plugin/`, that neither side knows of: an ERET at EL2 to a lower level with \
         HCR_EL2.TGE = 0 and VM = 1\n  is an entry, the next vector of the lower half of VBAR_EL2's table is the exit.\n\
         * Rows without KVM's value are umbra's alone where KVM 7.3.4 drops all that it has in shadows: 2.1 × 10⁹ instructions each \
         time that a page is\n  taken from a VM with EL2, or a third context of its guests is visited.\n\
         * KVM's counts vary by a few where a timer or an RCU callback falls into a row; its medians do not.\n",
        report.qemu,
        OPTIONS.join(" "),
        report.kvm,
    );
    text
}

fn wall(sessions: &[Told]) -> String {
    let mut text = "\n## Wall time of the emulator\n\nPaired, never alone; it tells of the emulator as much as of what runs \
                    on it, and of what else ran beside it.\n\n| session | umbra | Linux/KVM, with its own boot |\n|---|---|---|\n"
        .to_owned();
    for session in Session::ALL {
        let of = |side| {
            let found = sessions
                .iter()
                .find(|told| told.session == session.name() && told.side == side);
            let seconds = found.and_then(|told| Some((told.seconds?, told.kept.as_deref())));
            match seconds {
                None => "–".to_owned(),
                Some((seconds, None)) => format!("{seconds:.0} s"),
                Some((seconds, Some(date))) => format!("{seconds:.0} s (kept, {date})"),
            }
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            session.name(),
            of(Side::Umbra),
            of(Side::Kvm)
        );
    }
    text
}

/// Bars of the ratios, with a tick at the target; KVM is the right edge.
fn chart(rows: &[Value]) -> String {
    let rows: Vec<(&Value, f64)> = rows.iter().filter_map(|r| Some((r, r.ratio?))).collect();
    const LABEL: f64 = 400.0;
    const WIDTH: f64 = 400.0;
    const STEP: f64 = 22.0;
    let height = STEP * (rows.len() as f64 + 2.0);
    let total = LABEL + WIDTH + 80.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{total}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LABEL}\" y=\"15\" fill=\"#333\">umbra ÷ Linux/KVM (the right edge is KVM, a red line the target)</text>\n\
         <rect x=\"{LABEL}\" y=\"{STEP}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#eee\"/>\n",
        height - 2.0 * STEP
    );
    for (at, (row, ratio)) in rows.iter().enumerate() {
        let y = STEP * (at as f64 + 1.0);
        let base = y + 15.0;
        let width = ratio.min(1.15) * WIDTH;
        let fill = if row.met() == Some(false) {
            "#d08a3c"
        } else {
            "#3c78b4"
        };
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\" fill=\"#333\">{}, {}</text>\
             <rect x=\"{LABEL}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{base}\" fill=\"#333\">{ratio:.2}</text>",
            LABEL - 8.0,
            row.name,
            row.unit,
            y + 4.0,
            LABEL + width + 5.0,
        );
        if let Some(target) = row.target {
            let x = LABEL + target * WIDTH;
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#c00\" stroke-width=\"2\"/>",
                y + 2.0,
                y + 20.0
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::ROWS;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_778), "2026-11-21");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(Some(255.0)), "255");
        assert_eq!(number(Some(57_780.0)), "57,780");
        assert_eq!(number(Some(8.1)), "8.1");
        assert_eq!(number(Some(3_870_000.0)), "3.87 million");
        assert_eq!(number(None), "–");
    }

    #[test]
    fn notes_name_rows() {
        let lines = NOTES
            .lines()
            .filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
        assert_eq!(
            notes().len(),
            lines.count(),
            "a line is not: name, unit: why"
        );
        for (name, unit) in notes().keys() {
            let known = ROWS
                .iter()
                .any(|row| row.name == *name && row.unit == *unit);
            assert!(known, "no row: {name}, {unit}");
        }
    }

    fn report() -> Report {
        let rows = ROWS
            .iter()
            .map(|row| Value::new(row, Some(100.0), Some(99.0)));
        let told = |session, side, seconds, error: Option<&str>| Told {
            session: str::to_owned(session),
            side,
            seconds,
            kept: None,
            error: error.map(str::to_owned),
        };
        Report {
            command: "cargo xtask bench --quick".into(),
            missing: vec![],
            date: "2026-11-21".into(),
            commit: "0".into(),
            qemu: "QEMU".into(),
            kvm: "Debian".into(),
            rows: rows.collect(),
            sessions: vec![
                told("pages", Side::Umbra, Some(3.2), None),
                Told {
                    kept: Some("2026-11-20".into()),
                    ..told("pages", Side::Kvm, Some(8.0), None)
                },
                told(
                    "blocks",
                    Side::Kvm,
                    None,
                    Some("the time limit came first\nx0 = 5"),
                ),
            ],
        }
    }

    #[test]
    fn a_miss_is_told_with_its_cause_and_the_chart_is_whole() {
        let report = report();
        // It goes through the file.
        let text = serde_json::to_string(&report).unwrap();
        let text = page(&serde_json::from_str(&text).unwrap());
        assert!(text.contains("Written by `cargo xtask bench --quick` on 2026-11-21 at 0."));
        assert!(text.contains("* **hypercall that nobody owns, instructions:** "));
        assert!(text.contains("| pages | 3 s | 8 s (kept, 2026-11-20) |"));
        assert!(!text.contains("Rows that are missing"));
        let svg = chart(&report.rows);
        assert_eq!(svg.matches("<text").count(), 2 * ROWS.len() + 1);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_cause() {
        let mut report = report();
        report.rows[0] = Value::new(&ROWS[0], None, Some(1.0));
        report.missing = vec!["a row, exits, on Linux/KVM".into()];
        let text = page(&report);
        assert!(text.contains("* blocks on Linux/KVM failed: the time limit came first\n"));
        assert!(text.contains("\n* a row, exits, on Linux/KVM\n"));
        let (name, unit) = *notes().keys().next().expect("there are notes");
        report.missing = vec![format!("{name}, {unit}, on Linux/KVM")];
        let told = format!(
            "\n* **{name}, {unit}, on Linux/KVM:** {}\n",
            notes()[&(name, unit)]
        );
        assert!(page(&report).contains(&told));
        assert!(text.contains(&format!(
            "| {} | {} | 1 | – | – |",
            ROWS[0].name, ROWS[0].unit
        )));
    }
}
