//! The documents as a book: every page is in `docs/SUMMARY.md`, every page that is named there is, and what
//! a page or the root's own documents link to is there, heading included. Pages of the book link to nothing
//! outside it, where a built book would have nothing.

use regex::Regex;
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

/// A heading's name in links: small letters and digits, words joined by `-`, all else left out.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let names = headings.map(|line| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        text.chars().filter(kept).collect::<String>()
    });
    names.map(|name| name.replace(' ', "-")).collect()
}

/// The links of `page`, which lies in `folder`, that lead nowhere, or out of `within`.
fn broken(page: &str, folder: &Path, within: &Path) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)\s]*)\)").expect("a pattern");
    let leads = |target: &str| {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let text = if file.is_empty() {
            Some(page.to_owned())
        } else {
            let Ok(path) = folder.join(file).canonicalize() else {
                return false;
            };
            if !path.starts_with(within) {
                return false;
            }
            fs::read_to_string(path).ok()
        };
        anchor.is_empty() || text.is_some_and(|text| anchors(&text).contains(anchor))
    };
    let links = link.captures_iter(page).map(|c| c[1].to_owned());
    let here = links.filter(|target| !target.contains("://"));
    here.filter(|target| !leads(target)).collect()
}

#[test]
fn links_lead_somewhere() {
    let docs = docs().canonicalize().expect("docs/ is there");
    let root = docs.parent().expect("docs/ lies in the root");
    let outside = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name));
    let inside = present(&docs).into_iter().map(|page| docs.join(page));
    for path in outside.into_iter().chain(inside) {
        let page = fs::read_to_string(&path).expect("a page can be read");
        let folder = path.parent().expect("a page lies in a folder");
        let within = if path.starts_with(&docs) { &docs } else { root };
        let found = broken(&page, folder, within);
        assert_eq!(found, [""; 0], "{}", path.display());
    }
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let docs = docs().canonicalize().expect("docs/ is there");
    let page = "# A page's head\n[a](abi.md) [b](#a-pages-head) [c](https://example.org/x)\n\
                [d](none.md) [e](#none) [f](../README.md) [g](abi.md#none)\n";
    let expected = ["none.md", "#none", "../README.md", "abi.md#none"];
    assert_eq!(broken(page, &docs, &docs), expected);
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
