//! The documents as a book: every page is in `docs/SUMMARY.md`, and every page that is named there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("xtask lies in the root").join("docs")
}

/// The pages that a summary names, by path.
fn named(summary: &str) -> BTreeSet<String> {
    let links = summary.lines().filter_map(|line| line.split_once("]("));
    links
        .filter_map(|(_, rest)| rest.split_once(')'))
        .map(|(path, _)| path.to_owned())
        .collect()
}

/// The pages below a folder, by path.
fn present(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![folder.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a folder of the documents can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "md") && !path.ends_with("SUMMARY.md") {
                let inside = path.strip_prefix(folder).expect("below the folder");
                found.insert(inside.to_string_lossy().into_owned());
            }
        }
    }
    found
}

#[test]
fn every_page_is_in_the_book() {
    let docs = docs();
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).expect("the book has a summary");
    assert_eq!(named(&summary), present(&docs));
}

#[test]
fn a_summary_s_links_are_found() {
    let summary = "# S\n[a](a.md)\n- [b c](d/b.md)\n- no link\n";
    let expected = ["a.md", "d/b.md"].map(str::to_owned);
    assert_eq!(named(summary), BTreeSet::from(expected));
}
