//! One event a line, as JSON, on stderr: for programs that watch a VMM.

use std::fmt::Write as _;

use crate::logger;

/// A line in the making: an object of names and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(String);

impl Line {
    /// An event of this kind. Names and texts are this program's own: none needs escaping but quotes,
    /// backslashes and control characters, which become spaces.
    pub fn new(event: &str) -> Self {
        Line(String::from("{")).text("event", event)
    }

    fn name(mut self, name: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        let _ = write!(self.0, "\"{name}\":");
        self
    }

    /// A text.
    #[must_use]
    pub fn text(self, name: &str, text: &str) -> Self {
        let plain: String = text
            .chars()
            .map(|c| {
                if c == '"' || c == '\\' || c.is_control() {
                    ' '
                } else {
                    c
                }
            })
            .collect();
        let mut line = self.name(name);
        let _ = write!(line.0, "\"{plain}\"");
        line
    }

    /// A number.
    #[must_use]
    pub fn number(self, name: &str, number: u64) -> Self {
        let mut line = self.name(name);
        let _ = write!(line.0, "{number}");
        line
    }

    /// An address or a register, which JSON's numbers are too small for: a text in hexadecimal, or
    /// null.
    #[must_use]
    pub fn address(self, name: &str, address: impl Into<Option<u64>>) -> Self {
        let mut line = self.name(name);
        let _ = match address.into() {
            Some(address) => write!(line.0, "\"{address:#x}\""),
            None => write!(line.0, "null"),
        };
        line
    }

    /// Writes it, in one write, so that it stays whole among others.
    pub fn say(self) {
        logger::line(&format!("{}}}", self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_a_line() {
        let line = Line::new("memory-error")
            .number("vcpu", 1)
            .address("gpa", 0x8000_0000)
            .address("l2_ipa", None)
            .text("why", "a \"b\"\n\\");
        assert_eq!(
            line.0,
            r#"{"event":"memory-error","vcpu":1,"gpa":"0x80000000","l2_ipa":null,"why":"a  b   ""#
        );
    }
}
