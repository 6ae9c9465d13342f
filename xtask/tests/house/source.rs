//! Rust source without its comments and literals, so that a word can be looked for where it means
//! something.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file of the project.
pub(crate) struct Source {
    /// Path from the workspace's root.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

/// All Rust files of the project, in order.
pub(crate) fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the root");
    let mut todo = vec![root.to_path_buf()];
    let mut found = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a folder of the project can be read") {
            let path: PathBuf = entry.expect("an entry can be read").path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    todo.push(path);
                }
            } else if name.ends_with(".rs") {
                let inside = path.strip_prefix(root).expect("below the root");
                found.push(Source {
                    path: inside.to_string_lossy().into_owned(),
                    text: fs::read_to_string(&path).expect("a source file can be read"),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The text with every comment and every string's or character's content taken out; line breaks stay.
pub(crate) fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = literal(rest, out.chars().next_back());
        let (skipped, tail) = rest.split_at(skip);
        out.extend(skipped.chars().filter(|c| *c == '\n'));
        if skip == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            // Two words with a comment between them are two words.
            out.push(' ');
            rest = tail;
        }
    }
    out
}

/// The length of the comment or literal that `text` begins with, 0 if it begins with none.
fn literal(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(length) = raw_string(text) {
        return length;
    }
    if let Some(inside) = text.strip_prefix('"') {
        return 1 + quoted(inside, '"');
    }
    // 'x' and '\n' are characters, 'a in a type is a lifetime.
    let mut chars = text.chars();
    if chars.next() == Some('\'') {
        let first = chars.next();
        if first == Some('\\') || chars.next() == Some('\'') {
            return 1 + quoted(&text[1..], '\'');
        }
    }
    0
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let body = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len() + hashes + 1;
    Some(
        text[start..]
            .find(&end)
            .map_or(text.len(), |at| start + at + end.len()),
    )
}

/// The length up to and with the closing quote, escapes heeded.
fn quoted(text: &str, close: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if !escaped && c == close {
            return at + c.len_utf8();
        }
        escaped = !escaped && c == '\\';
    }
    text.len()
}

/// Whether `word` stands in the code as a word of its own.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[test]
fn comments_and_literals_are_taken_out() {
    for (text, want) in [
        ("a // b\nc", "a  \nc"),
        ("a /* b /* c */ d */ e", "a   e"),
        (r#"f("x \" y", 1)"#, "f( , 1)"),
        (
            "let c = '\\''; fn f<'a>(x: &'a u8) {}",
            "let c =  ; fn f<'a>(x: &'a u8) {}",
        ),
        ("r#\"a \" b\"# + br\"c\" + var\"d\"", "  +   + var "),
        ("'x' 'é' '\"' y", "      y"),
    ] {
        assert_eq!(code(text), want, "{text}");
    }
}

#[test]
fn words_are_whole() {
    assert!(has_word("unsafe {", "unsafe"));
    assert!(has_word("#[unsafe(no_mangle)]", "unsafe"));
    assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
    assert!(!has_word("is_unsafe", "unsafe"));
}
