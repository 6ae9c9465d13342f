//! kvm-probe as the only program of a machine with checks: what `campaign` and the noise of `fuzz` share.

use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::progress::{note, step};
use crate::qemu::{Machine, Outcome};
use crate::setup;
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// What kvm-probe is to do on a machine of its own.
pub(crate) struct Probe<'a> {
    /// Names the transcript and the initrd.
    pub(crate) name: &'a str,
    /// Its arguments.
    pub(crate) words: Vec<String>,
    /// Files that it finds beside itself.
    pub(crate) items: Vec<Item>,
    /// When the machine is given up.
    pub(crate) limit: Duration,
    /// How its own lines begin, which are shown with every verdict.
    pub(crate) says: &'a str,
    /// What stands before each line that is shown.
    pub(crate) indent: &'a str,
}

impl Probe<'_> {
    /// Runs it in a build with checks, where alone things can be broken on purpose, and shows what it says.
    pub(crate) fn run(self, ws: &Workspace, qemu: Option<&Path>) -> Result<Outcome> {
        setup::for_build(ws)?;
        let qemu = setup::qemu(ws, qemu)?;
        let kernel = step("build umbra with checks", || {
            build::kernel(ws, Profile::Checked)
        })?;
        let tests = step("build kvm-probe", || build::test_programs(ws))?;
        let mut items = vec![Item::from_file("/bin/kvm-probe", &tests.probe)?];
        items.extend(self.items);
        let initrd = format!("{}.cpio", self.name);
        let machine = Machine {
            cpus: 2,
            kernel: kernel.image,
            initrd: guest::save(ws, &initrd, &guest::initrd(&items)?)?,
            append: BootArgs::new("/bin/kvm-probe", self.words).render()?,
            disk: None,
        };
        let mut log = Transcript::new(ws, self.name)?;
        log.used("kvm-probe", &tests.probe)?;
        let symbols = Symbols::read(&kernel.elf)?;
        let outcome = machine.run(&qemu, &mut log, self.limit, &symbols, |_| {})?;
        let told = [self.says, "ok ", "FAIL", "umbra: PANIC"];
        for line in outcome.console.lines() {
            if told.iter().any(|word| line.starts_with(word)) {
                println!("{}{line}", self.indent);
            }
        }
        note(&format!("transcript: {}", ws.show(log.path())));
        Ok(outcome)
    }
}
