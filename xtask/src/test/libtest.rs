//! Reading what `cargo test` prints: libtest's result lines.

/// What one or more test programs counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u32,
    /// Tests that failed.
    pub(crate) failed: u32,
    /// Tests marked to be ignored.
    pub(crate) ignored: u32,
}

impl Counts {
    /// Adds one line of output, if it is a summary ("test result: ok. 3 passed; 0 failed; 1 ignored; …").
    pub(crate) fn line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        let Some((_, numbers)) = rest.split_once(". ") else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, word)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Whether a line is worth showing while tests run: which program, failures, and what they said.
pub(crate) fn is_news(line: &str) -> bool {
    let passed = line.starts_with("test ") && line.ends_with(" ... ok");
    let empty = line.is_empty() || line.starts_with("running ");
    !passed && !empty && !line.starts_with("test result: ok.")
}

#[cfg(test)]
mod tests {
    use super::{Counts, is_news};

    #[test]
    fn summaries_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test c - should panic ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.11s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "a test says: test result: ok",
        ] {
            counts.line(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 7,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn only_news_is_shown() {
        assert!(!is_news("test a::b ... ok"));
        assert!(!is_news("test result: ok. 3 passed; 0 failed"));
        assert!(is_news("test a::b ... FAILED"));
        assert!(is_news("test a::b ... ignored"));
        assert!(is_news("assertion failed: x"));
    }
}
