//! The few words of HTML that the report is made of, and numbers as people read them.

use std::fmt::Write as _;

/// Text that may stand anywhere in HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A number with its thousands apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            // A narrow space that does not break.
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Three significant digits, so that columns can be compared.
fn significant(value: f64) -> String {
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Nanoseconds with a unit.
pub(crate) fn duration(ns: f64) -> String {
    let (value, unit) = match ns {
        0.0 => return "0".to_owned(),
        ns if ns < 999.5 => (ns, "ns"),
        ns if ns < 999.5e3 => (ns / 1e3, "µs"),
        ns if ns < 999.5e6 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let text = match unit {
        "ns" => format!("{value:.0}"),
        _ => significant(value),
    };
    format!("{text}\u{a0}{unit}")
}

/// Bytes with a unit; whole ones stay whole.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (size, unit) in UNITS {
        if bytes >= size {
            let text = match bytes % size {
                0 => count(bytes / size),
                _ => significant(bytes as f64 / size as f64),
            };
            return format!("{text}\u{a0}{unit}");
        }
    }
    format!("{bytes}\u{a0}B")
}

/// A part of a whole.
pub(crate) fn share(part: f64, whole: f64) -> String {
    let percent = if whole > 0.0 {
        part * 100.0 / whole
    } else {
        0.0
    };
    match percent {
        0.0 => "0\u{a0}%".to_owned(),
        p if p < 0.05 => "<\u{202f}0.1\u{a0}%".to_owned(),
        p => format!("{p:.1}\u{a0}%"),
    }
}

/// A cell of a table: what is shown, and what it is sorted by.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    html: String,
    key: Option<f64>,
}

impl Cell {
    /// Words.
    pub(crate) fn text(text: &str) -> Self {
        Self {
            html: escape(text),
            key: None,
        }
    }

    /// Something typed letter by letter: addresses, names of registers.
    pub(crate) fn code(text: &str) -> Self {
        Self {
            html: format!("<code>{}</code>", escape(text)),
            key: None,
        }
    }

    /// A number, shown as `text`.
    pub(crate) fn number(key: f64, text: &str) -> Self {
        Self {
            html: escape(text),
            key: Some(key),
        }
    }

    /// How many.
    pub(crate) fn count(number: u64) -> Self {
        Self::number(number as f64, &count(number))
    }

    /// An address.
    pub(crate) fn address(address: Option<u64>) -> Self {
        match address {
            Some(address) => Self {
                html: format!("<code>{address:#x}</code>"),
                key: Some(address as f64),
            },
            None => Self {
                html: "–".to_owned(),
                key: Some(-1.0),
            },
        }
    }

    /// A coloured mark before it.
    pub(crate) fn marked(mut self, class: &str) -> Self {
        self.html = format!("<i class=\"mark {class}\"></i>{}", self.html);
        self
    }

    /// A bar behind it, `share` of the cell's width.
    pub(crate) fn bar(mut self, share: f64) -> Self {
        let width = (share * 100.0).clamp(0.0, 100.0);
        self.html = format!(
            "<span class=\"bar\" style=\"--w:{width:.1}%\">{}</span>",
            self.html
        );
        self
    }
}

/// A table whose columns can be sorted by a click.
#[derive(Debug)]
pub(crate) struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With these columns.
    pub(crate) fn new(caption: &str, head: &[&str]) -> Self {
        Self {
            caption: caption.to_owned(),
            head: head.iter().map(|h| (*h).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether it has no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As HTML; nothing for a table without rows.
    pub(crate) fn html(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>",
            escape(&self.caption)
        );
        for (at, head) in self.head.iter().enumerate() {
            let numeric = self
                .rows
                .iter()
                .all(|row| row.get(at).is_some_and(|c| c.key.is_some()));
            let class = if numeric { " class=\"n\"" } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "<th{class} scope=\"col\"><button type=\"button\">{}</button></th>",
                escape(head)
            );
        }
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            for cell in row {
                let _ = match cell.key {
                    Some(key) => write!(out, "<td class=\"n\" data-v=\"{key}\">{}</td>", cell.html),
                    None => write!(out, "<td>{}</td>", cell.html),
                };
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{Cell, Table, bytes, count, duration, escape, share};

    #[test]
    fn numbers_have_units() {
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        for (ns, text) in [
            (0.0, "0"),
            (7.0, "7 ns"),
            (1753.0, "1.75 µs"),
            (12_481_742.0, "12.5 ms"),
            (999_600.0, "1.00 ms"),
            (2.5e11, "250 s"),
        ] {
            assert_eq!(duration(ns).replace('\u{a0}', " "), text);
        }
        for (number, text) in [
            (12, "12 B"),
            (4096, "4 KiB"),
            (2 << 20, "2 MiB"),
            (1536, "1.50 KiB"),
        ] {
            assert_eq!(bytes(number).replace('\u{a0}', " "), text);
        }
        assert_eq!(share(1.0, 3.0), "33.3\u{a0}%");
        assert_eq!(share(1.0, 0.0), "0\u{a0}%");
        assert_eq!(share(1.0, 1e6), "<\u{202f}0.1\u{a0}%");
    }

    #[test]
    fn nothing_gets_out_of_a_cell() {
        let mut table = Table::new("<b>", &["a\"", "n"]);
        assert_eq!(table.html(), "");
        table.row(vec![Cell::text("<script>"), Cell::count(1000)]);
        let html = table.html();
        assert!(
            !html.contains("<script>") && !html.contains("<b>"),
            "{html}"
        );
        assert!(html.contains("data-v=\"1000\""), "{html}");
        assert_eq!(escape("a&b'"), "a&amp;b&#39;");
    }
}
