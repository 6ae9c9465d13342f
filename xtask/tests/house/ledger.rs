//! `docs/requirements.md` and `docs/bugs.md` name the code and the tests that answer for each row. What they
//! name exists: a test that was renamed or a file that went away would leave the row an empty promise.

use crate::source::{Source, all};
use regex::Regex;
use std::fs;
use std::path::Path;

/// The words in code quotes that name a test, a payload, a question of kvm-probe or a file, and that
/// nothing in `sources` bears.
fn nameless(ledger: &str, sources: &[Source]) -> Vec<String> {
    let quoted = Regex::new(r"`([^`]+)`").expect("a pattern");
    // Names of tests are sentences; a single word may be anything's. Some are of code that is not a
    // function, so it is enough that something bears the name.
    let sentence = Regex::new(r"^[a-z0-9]+(_[a-z0-9]+){2,}$").expect("a pattern");
    let probe = Regex::new(r"`kvm/probe` ([a-z_/, ]+)").expect("a pattern");
    let anywhere = |pattern: String| {
        let pattern = Regex::new(&pattern);
        pattern.is_ok_and(|p| sources.iter().any(|s| p.is_match(&s.text)))
    };
    let bears = |name: &str| anywhere(format!(r"\b{}\b", regex::escape(name)));
    let defines = |name: &str| anywhere(format!(r"\bfn {}\b", regex::escape(name)));
    let ends = |path: &str| {
        let tail = format!("/{path}");
        sources
            .iter()
            .any(|s| s.path == path || s.path.ends_with(&tail))
    };
    let mut found = Vec::new();
    for word in quoted.captures_iter(ledger).map(|c| c[1].to_owned()) {
        let good = if sentence.is_match(&word) {
            bears(&word)
        } else if let Some(payload) = word.strip_prefix("payload/") {
            payload == "…" || ends(&format!("guests/src/bin/{payload}.rs"))
        } else if word.ends_with(".rs") {
            ends(&word)
        } else {
            true
        };
        if !good {
            found.push(word);
        }
    }
    for list in probe.captures_iter(ledger) {
        for question in list[1].split(',').map(str::trim) {
            let name = question.split_once('/').map_or("", |(_, name)| name);
            if !name.is_empty() && !defines(name) {
                found.push(question.to_owned());
            }
        }
    }
    found
}

#[test]
fn what_the_ledgers_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the root");
    for file in ["docs/requirements.md", "docs/bugs.md"] {
        let ledger = fs::read_to_string(root.join(file)).expect(file);
        assert_eq!(nameless(&ledger, &all()), [""; 0], "{file}");
    }
}

#[test]
fn an_empty_promise_is_found() {
    let sources = [Source {
        path: "crates/abort/src/sea.rs".into(),
        text: "fn whose_abort_it_is() {}\nfn loads() {}".into(),
    }];
    let ledger = "`sea.rs` abort: `whose_abort_it_is`; `kvm/probe` mmio/loads";
    assert_eq!(nameless(ledger, &sources), [""; 0]);
    let ledger = "`see.rs` `whose_abort_it_was` `payload/none` `kvm/probe` mmio/loads, mmio/stores";
    assert_eq!(
        nameless(ledger, &sources),
        [
            "see.rs",
            "whose_abort_it_was",
            "payload/none",
            "mmio/stores"
        ]
    );
}
