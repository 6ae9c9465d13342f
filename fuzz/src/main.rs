//! libFuzzer around one target: the one that UMBRA_FUZZ_TARGET names. Arguments are libFuzzer's own.
//! `cargo xtask fuzz` builds and calls it.

#![no_main]

use std::sync::OnceLock;
use umbra_fuzz::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn choose() {
    let name = std::env::var("UMBRA_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("UMBRA_FUZZ_TARGET names no target");
        std::process::exit(2);
    };
    TARGET.get_or_init(|| target);
}

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(bytes);
    }
});
