//! Counting and printing results: one line a test, and a last line that machines read.

use std::process::ExitCode;

/// How many tests came out how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// A test passed.
    pub(crate) fn pass(&mut self, name: &str, seconds: f64) {
        self.passed += 1;
        println!("ok   {name} ({seconds:.1} s)");
    }

    /// A test failed; `why` may have many lines.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        self.failed += 1;
        println!("FAIL {name}: {}", why.trim_end());
    }

    /// A test was not run.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("skip {name}: {why}");
    }

    /// One result, as a `Result`.
    pub(crate) fn result(&mut self, name: &str, seconds: f64, result: Result<(), String>) {
        match result {
            Ok(()) => self.pass(name, seconds),
            Err(why) => self.fail(name, &why),
        }
    }

    /// Adds what another harness counted and printed.
    pub(crate) fn add(&mut self, passed: u32, failed: u32, skipped: u32) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// Prints the last line. Nothing passed is a failure: it means that nothing was tested.
    pub(crate) fn finish(self) -> ExitCode {
        println!("{}", self.line());
        if self.good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    fn line(self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The last `count` lines of a text, indented.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..]
        .iter()
        .map(|l| format!("    | {l}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Tally, tail};

    #[test]
    fn nothing_tested_is_no_success() {
        let mut tally = Tally::default();
        assert!(!tally.good());
        tally.skip("a", "why");
        assert!(!tally.good());
        tally.pass("b", 0.0);
        assert!(tally.good());
        tally.add(2, 0, 0);
        assert_eq!(tally.line(), "3 passed, 0 failed, 1 skipped");
        tally.fail("c", "why");
        assert!(!tally.good());
    }

    #[test]
    fn tails() {
        assert_eq!(tail("a\nb\nc\n", 2), "    | b\n    | c\n");
        assert_eq!(tail("a", 9), "    | a\n");
    }
}
