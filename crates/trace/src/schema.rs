//! What a file says of its events: a line each, `number name field=format …`.
//!
//! The writer's descriptions travel with the records. A reader decodes an event into its own type
//! only where both describe it alike ([`Entry::is_own`]); any other it shows by the file's words.

use core::fmt::{self, Write};

use crate::event::{DESCRIPTIONS, Description};
use crate::word::NO_ADDRESS;

/// This version's description of an event.
pub fn own(number: u16) -> Option<&'static Description> {
    let at = DESCRIPTIONS
        .binary_search_by_key(&number, |description| description.number)
        .ok()?;
    DESCRIPTIONS.get(at)
}

/// Writes the descriptions of this version's events.
///
/// # Errors
/// The writer's.
pub fn write(out: &mut impl Write) -> fmt::Result {
    for Description {
        number,
        name,
        fields,
    } in DESCRIPTIONS
    {
        write!(out, "{number} {name}")?;
        for (field, format) in *fields {
            write!(out, " {field}={format}")?;
        }
        out.write_char('\n')?;
    }
    Ok(())
}

/// An event as a file describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: &'a str,
    fields: &'a str,
}

impl<'a> Entry<'a> {
    /// A line of a schema. `None` where it is none.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (number, rest) = line.split_once(' ')?;
        let (name, fields) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Self {
            number: number.parse().ok()?,
            name,
            fields,
        })
    }

    /// Name and format of each field.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.fields
            .split_ascii_whitespace()
            .map(|field| field.split_once('=').unwrap_or((field, "x")))
    }

    /// Whether this version's event of that number is the same: its name, and every field that this
    /// version knows, alike and in the same place. More fields or more alternatives may follow.
    pub fn is_own(&self) -> bool {
        let Some(own) = own(self.number).filter(|own| own.name == self.name) else {
            return false;
        };
        let mut theirs = self.fields();
        own.fields.iter().all(|&(name, format)| {
            theirs.next().is_some_and(|(their_name, their_format)| {
                their_name == name
                    && their_format
                        .strip_prefix(format)
                        .is_some_and(|more| more.is_empty() || more.starts_with('|'))
            })
        })
    }
}

/// Shows a word as its format says; a format that is not known, as hexadecimal.
///
/// # Errors
/// The writer's.
pub fn show_word(out: &mut impl Write, format: &str, word: u64) -> fmt::Result {
    if let Some(choices) = format.strip_prefix("e:|") {
        let at = usize::try_from(word).unwrap_or(usize::MAX);
        return match choices.split('|').nth(at) {
            Some(choice) => out.write_str(choice),
            None => write!(out, "{word}?"),
        };
    }
    if let Some(flags) = format.strip_prefix("f:|") {
        let mut left = word;
        let mut first = true;
        for (bit, flag) in flags.split('|').enumerate().take(64) {
            if word >> bit & 1 == 1 {
                left &= !(1 << bit);
                write!(out, "{}{flag}", if first { "" } else { "," })?;
                first = false;
            }
        }
        return match (first, left) {
            (true, 0) => out.write_char('-'),
            (_, 0) => Ok(()),
            (true, _) => write!(out, "{left:#x}?"),
            (false, _) => write!(out, ",{left:#x}?"),
        };
    }
    match format {
        "d" | "b" => write!(out, "{word}"),
        "a" if word == NO_ADDRESS => out.write_char('-'),
        _ => write!(out, "{word:#x}"),
    }
}

/// Shows an event of this version: its name without the system, then its fields.
pub(crate) fn show(out: &mut impl Write, number: u16, words: &[u64; 6]) -> fmt::Result {
    let Some(own) = own(number) else {
        return write!(out, "event-{number} {words:x?}");
    };
    let name = own.name.split_once(':').map_or(own.name, |(_, name)| name);
    out.write_str(name)?;
    for ((field, format), word) in own.fields.iter().zip(words) {
        write!(out, " {field}=")?;
        show_word(out, format, *word)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Entry, own};

    #[test]
    fn the_same_number_under_another_name_is_another_event() {
        let ours = own(36).unwrap();
        assert_eq!(ours.name, "irq:irq_handler_entry");
        let is_own = |line| Entry::parse(line).unwrap().is_own();
        assert!(is_own("36 irq:irq_handler_entry irq=d"));
        assert!(!is_own("36 irq:softirq_entry irq=d"));
        assert!(!is_own("36 irq:irq_handler_entry vector=d"));
    }
}
