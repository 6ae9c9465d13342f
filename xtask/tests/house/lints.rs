//! What no source file may hold, checked on every Rust file of the project.

use crate::source::{Source, all, code, has_word};

/// Where `unsafe` may stand: the machine, the VMM's mappings, the payloads' start code.
fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("hw/")
        || path == "vmm/src/kvm.rs"
        || path.starts_with("vmm/src/kvm/")
        || path == "guests/src/rt.rs"
        || path.starts_with("guests/src/rt/")
        || path.starts_with("guests/oracle/src/rt/")
        || path.starts_with("qemu-plugin/src/")
}

/// Files whose crate must forbid `unsafe` itself, so that the compiler keeps the rule too.
fn must_forbid_unsafe(path: &str) -> bool {
    let crate_root = path.starts_with("crates/") && path.ends_with("/src/lib.rs");
    crate_root
        || matches!(
            path,
            "kernel/src/main.rs" | "init/src/main.rs" | "xtask/src/main.rs"
        )
}

/// The one way to say so of a bare-metal program: on the host it is a stub `main` and all else in it
/// is unused there; its own target sees every warning. (Without the string's content, see `code`.)
const STUB_ON_HOST: &str = "#![cfg_attr(not(target_os=),allow(unused))]";

const LINES: usize = 800;

/// What is wrong with a file, in words.
fn complaints(source: &Source) -> Vec<String> {
    let Source { path, text } = source;
    let code = code(text);
    let mut found = Vec::new();
    if has_word(&code, "unsafe") && !may_be_unsafe(path) {
        found.push(format!("{path}: unsafe outside the unsafe island"));
    }
    if must_forbid_unsafe(path) && !code.contains("#![forbid(unsafe_code)]") {
        found.push(format!("{path}: no #![forbid(unsafe_code)]"));
    }
    for open in ["todo", "unimplemented", "dbg"] {
        if has_word(&code, open) && code.contains(&format!("{open}!")) {
            found.push(format!("{path}: {open}!"));
        }
    }
    let tight: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let tight = tight.replace(STUB_ON_HOST, "");
    for off in [
        "#[ignore",
        "allow(dead_code",
        "allow(unused",
        "allow(warnings",
    ] {
        if tight.contains(off) {
            found.push(format!("{path}: {off}"));
        }
    }
    if text.lines().count() > LINES {
        found.push(format!("{path}: more than {LINES} lines"));
    }
    if !text.starts_with("//!") {
        found.push(format!("{path}: does not begin by saying what it is"));
    }
    found
}

#[test]
fn every_source_file_keeps_the_rules() {
    let sources = all();
    assert!(sources.len() > 20, "the walk found the project");
    let found: Vec<String> = sources.iter().flat_map(complaints).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_rule_finds_its_breach() {
    let file = |path: &str, text: &str| Source {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    for (path, text) in [
        ("kernel/src/mm.rs", "//! A.\nfn f() { unsafe { g() } }\n"),
        ("crates/arm64/src/lib.rs", "//! A.\n#![no_std]\n"),
        ("vmm/src/a.rs", "//! A.\nfn f() { todo!() }\n"),
        ("vmm/src/a.rs", "//! A.\n#[ignore]\nfn f() {}\n"),
        ("vmm/src/a.rs", "//! A.\n#[allow( dead_code )]\nfn f() {}\n"),
        ("vmm/src/a.rs", "fn f() {}\n"),
        ("vmm/src/a.rs", &format!("//! A.\n{}", "\n".repeat(LINES))),
    ] {
        assert_eq!(complaints(&file(path, text)).len(), 1, "{path}: {text:.60}");
    }
    for (path, text) in [
        ("hw/src/tlb.rs", "//! A.\nfn f() { unsafe { g() } }\n"),
        ("vmm/src/kvm.rs", "//! A.\nunsafe impl Send for X {}\n"),
        (
            "kernel/src/mm.rs",
            "//! A.\n// unsafe in words, todo!() too\nlet s = \"unsafe\";\n",
        ),
        ("kernel/src/main.rs", "//! A.\n#![forbid(unsafe_code)]\n"),
        (
            "kernel/src/a.rs",
            "//! A.\n#![cfg_attr(not(target_os = \"none\"), allow(unused))]\n",
        ),
    ] {
        assert_eq!(complaints(&file(path, text)), [""; 0], "{path}: {text:.60}");
    }
}
