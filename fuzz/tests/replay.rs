//! Every line of every corpus, as `cargo test` runs it.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use umbra_fuzz::TARGETS;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// A line's bytes: hexadecimal digits. What follows a blank or `#` is for people.
fn bytes(line: &str) -> Option<Vec<u8>> {
    let digits = line.split([' ', '#']).next()?;
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

#[test]
fn what_was_found_once_is_right_now() {
    let mut wrong = Vec::new();
    for target in TARGETS {
        let file = corpora().join(format!("{}.hex", target.name));
        let text = fs::read_to_string(&file).expect("each target has a corpus");
        assert!(text.lines().count() > 1, "{} is empty", file.display());
        for (at, line) in text.lines().enumerate() {
            let input = bytes(line).expect("hexadecimal digits");
            if catch_unwind(|| (target.run)(&input)).is_err() {
                wrong.push(format!("corpus/{}.hex:{}", target.name, at + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn the_corpora_are_those_of_the_targets_and_small() {
    let names: BTreeSet<String> = TARGETS.iter().map(|t| format!("{}.hex", t.name)).collect();
    let (mut found, mut size) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(corpora()).expect("the corpora are there") {
        let entry = entry.expect("an entry can be read");
        found.insert(entry.file_name().to_string_lossy().into_owned());
        size += entry.metadata().expect("a file").len();
    }
    assert_eq!(found, names);
    assert!(size < 1 << 20, "{size} bytes are too many to keep");
}
