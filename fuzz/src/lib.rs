//! The fuzz targets: pure logic that reads what a guest, a VMM, a file or the loader says, each against a
//! model or a second reading of the manual.
//!
//! ```text
//!  cargo xtask fuzz ──► libFuzzer (src/main.rs, feature `libfuzzer`) ──┐
//!  cargo test -p umbra-fuzz ──► corpus/TARGET.hex, line by line ───────┴─► TARGETS[…].run(bytes)
//! ```
//!
//! What always holds: a target takes any bytes, ends soon, keeps nothing between two calls, and panics if
//! what it looks at contradicts its model. A line that once made one panic stays in its corpus.
//! `docs/design-notes/0009-fuzzing.md` says why libFuzzer, and how it is built without nightly.
#![forbid(unsafe_code)]

extern crate alloc;

// The tests' own models: a transcription of the manual's walks, the dice for it, and a modelled GIC.
#[path = "../../crates/nested/tests/walks/check.rs"]
mod check;
#[path = "../../crates/nested/tests/walks/generate.rs"]
mod generate;
#[path = "../../crates/vgic/tests/machine/machine.rs"]
mod machine;
#[path = "../../crates/nested/tests/walks/manual/mod.rs"]
mod manual;
#[path = "../../crates/vgic/tests/machine/model.rs"]
mod model;
#[path = "../../crates/nested/tests/walks/registers.rs"]
mod registers;

mod tape;
mod targets {
    pub(crate) mod abi;
    pub(crate) mod apei;
    pub(crate) mod boot;
    pub(crate) mod cpio;
    pub(crate) mod descriptor;
    pub(crate) mod elf;
    pub(crate) mod esr;
    pub(crate) mod gic;
    pub(crate) mod its;
    pub(crate) mod its_tables;
    pub(crate) mod stage2;
    pub(crate) mod tlbi;
    pub(crate) mod walk;
}

/// Something to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Takes any bytes; panics if what they come to is wrong.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:literal: $run:path;)*) => {
        /// Every target.
        pub const TARGETS: &[Target] = &[$(Target { name: $name, run: $run },)*];
    };
}

targets! {
    "abi": targets::abi::run;
    "apei": targets::apei::run;
    "at": targets::walk::at;
    "boot": targets::boot::run;
    "cpio": targets::cpio::run;
    "descriptor": targets::descriptor::run;
    "elf": targets::elf::run;
    "esr": targets::esr::run;
    "gic": targets::gic::run;
    "its": targets::its::run;
    "its-tables": targets::its_tables::run;
    "stage1": targets::walk::stage1;
    "stage2": targets::walk::stage2;
    "tables": targets::stage2::run;
    "tlbi": targets::tlbi::run;
}
