//! One session on one side: what boots, and the plugin's file of it.

use super::kept;
use super::record::Records;
use super::rows::{ROWS, WRITE_AFTER_READ};
use super::session::{Session, script};
use crate::bootargs::BootArgs;
use crate::build::{Kernel, Payloads, Programs};
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::progress::note;
use crate::qemu::{End, Machine, Outcome};
use crate::setup::{GuestFiles, Qemu};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What lies at EL2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// umbra.
    Umbra,
    /// Debian's newest kernel with KVM.
    Kvm,
}

impl Side {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Umbra => "umbra",
            Self::Kvm => "Linux/KVM",
        }
    }
}

/// What all sessions are made of.
pub(crate) struct Parts<'a> {
    /// The workspace.
    pub(crate) ws: &'a Workspace,
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The plugin that counts.
    pub(crate) plugin: PathBuf,
    /// Others that run beside it, as QEMU's option has them.
    pub(crate) others: Vec<String>,
    /// umbra.
    pub(crate) kernel: Kernel,
    /// The programs of EL0.
    pub(crate) programs: Programs,
    /// `kvm-probe`, which is a VMM here.
    pub(crate) probe: Option<PathBuf>,
    /// The guest payloads.
    pub(crate) payloads: Payloads,
    /// Linux/KVM, and Debian as a guest.
    pub(crate) debian: Option<&'a GuestFiles>,
}

impl Parts<'_> {
    pub(crate) fn debian(&self) -> Result<&GuestFiles> {
        self.debian.context("this session needs Debian's kernel")
    }
}

/// A session that ended well.
#[derive(Debug)]
pub(crate) struct Run {
    /// What the plugin saw.
    pub(crate) records: Records,
    /// What the guest or its VMM said in lines of [`said`].
    pub(crate) said: BTreeMap<String, f64>,
    /// Wall time of the emulator.
    pub(crate) seconds: f64,
    /// The day on which it ran, if that was another run of the bench.
    pub(crate) kept: Option<String>,
}

/// How a session is to be run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Take what KVM did in an earlier run with the same files.
    pub(crate) reuse: bool,
    /// When a machine is given up.
    pub(crate) limit: Duration,
}

/// Virtual seconds that Linux gets before the guest starts.
pub(crate) const QUIET: u32 = 25;

/// What both sides' machines have, beside what every machine of xtask has.
pub(crate) const OPTIONS: [&str; 6] = [
    "-M",
    "dtb-randomness=off",
    "-seed",
    "1",
    "-icount",
    "shift=0,sleep=off,align=off",
];

/// Linux/KVM's own words on the command line.
pub(crate) const KVM_WORDS: &str = "console=ttyAMA0 quiet nokaslr kvm-arm.mode=nested panic=-1";

/// Boots the session and reads what the plugin wrote. What KVM did is kept for later runs.
pub(crate) fn run(parts: &Parts<'_>, session: Session, side: Side, how: How) -> Result<Run> {
    let name = format!("bench-{}-{}", session.name(), short(side));
    let (items, command) = session.guest(parts)?;
    match side {
        Side::Umbra => {
            let machine = umbra(parts, &name, items, command)?;
            boot(parts, &name, &machine, side, how)
        }
        Side::Kvm => {
            let machine = kvm(parts, &name, items, &command)?;
            let key = kept::key(parts, &machine)?;
            if how.reuse {
                if let Some(run) = kept::load(parts.ws, session, &key)? {
                    return Ok(run);
                }
                note(&format!("{name}: nothing is kept of these files"));
            }
            let run = boot(parts, &name, &machine, side, how)?;
            kept::save(
                parts.ws,
                session,
                &key,
                &run,
                &plugins_file(parts.ws, &name)?,
            )?;
            Ok(run)
        }
    }
}

fn plugins_file(ws: &Workspace, name: &str) -> Result<PathBuf> {
    Ok(ws.folder("run")?.join(format!("{name}.exits")))
}

fn short(side: Side) -> &'static str {
    match side {
        Side::Umbra => "umbra",
        Side::Kvm => "kvm",
    }
}

fn boot(parts: &Parts<'_>, name: &str, machine: &Machine, side: Side, how: How) -> Result<Run> {
    let out = plugins_file(parts.ws, name)?;
    let file = |path: &PathBuf| path.display().to_string().replace(',', ",,");
    let mut more: Vec<String> = OPTIONS.iter().map(|word| (*word).to_owned()).collect();
    more.push("-plugin".to_owned());
    more.push(format!("{},out={}", file(&parts.plugin), file(&out)));
    let others = parts.others.iter();
    more.extend(others.flat_map(|other| ["-plugin".to_owned(), other.clone()]));
    let mut log = Transcript::new(parts.ws, name)?;
    log.used("umbra-vmm", &parts.programs.vmm)?;
    let symbols = Symbols::default();
    let outcome = machine.run_with(parts.qemu, &more, &mut log, (how.limit, &symbols), |_| {})?;
    check(&outcome, side).with_context(|| format!("see {}", parts.ws.show(log.path())))?;
    let bytes = fs::read(&out).with_context(|| format!("{}", out.display()))?;
    let mut said = said(&outcome.console);
    let archive = fs::metadata(&machine.initrd)?.len();
    said.insert(ARCHIVE.to_owned(), archive as f64 / 1024.0);
    Ok(Run {
        records: Records::decode(&bytes)?,
        said,
        seconds: outcome.seconds,
        kept: None,
    })
}

/// What is known of every run, beside what is said: the size of the files that the machine was given, in KiB.
pub(crate) const ARCHIVE: &str = "archive, KiB";

/// Lines `measured NAME = NUMBER` of a console.
fn said(console: &str) -> BTreeMap<String, f64> {
    let values = console.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("measured ")?.split_once(" = ")?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    values.collect()
}

/// What a side's console says when the guest and its VMM ended well. A QEMU that was told to stop says nothing
/// and has status 0 too.
fn good_end(side: Side) -> &'static str {
    match side {
        Side::Umbra => "umbra: first program exited, status 0",
        Side::Kvm => "umbra: run exited 0",
    }
}

/// Counts of a guest that failed, or was not done, are worth nothing.
fn check(outcome: &Outcome, side: Side) -> Result<()> {
    match &outcome.end {
        End::Exited(Some(0)) => {}
        End::Exited(status) => bail!("the machine ended with {status:?}"),
        End::TimedOut(state) => bail!("the time limit came first\n{state}"),
    }
    let bad = |line: &&str| {
        let ended = line.starts_with("umbra: run exited ") && *line != good_end(Side::Kvm);
        ended || line.starts_with("FAIL ")
    };
    if let Some(line) = outcome.console.lines().find(bad) {
        bail!("{line}");
    }
    if !outcome.console.lines().any(|line| line == good_end(side)) {
        bail!("the machine ended before its guest");
    }
    Ok(())
}

fn umbra(
    parts: &Parts<'_>,
    name: &str,
    mut items: Vec<Item>,
    command: Vec<String>,
) -> Result<Machine> {
    items.push(Item::from_file("/bin/umbra-vmm", &parts.programs.vmm)?);
    let (first, rest) = command.split_first().context("no command")?;
    Ok(Machine {
        cpus: 1,
        kernel: parts.kernel.image.clone(),
        initrd: guest::save(parts.ws, &format!("{name}.cpio"), &guest::initrd(&items)?)?,
        append: BootArgs::new(first, rest.to_vec()).render()?,
        disk: None,
    })
}

fn kvm(parts: &Parts<'_>, name: &str, mut items: Vec<Item>, command: &[String]) -> Result<Machine> {
    items.push(Item::from_file("/bin/umbra-vmm", &parts.programs.vmm)?);
    items.push(Item::text("/umbra-run", &script(command)));
    let archive = guest::initramfs(parts.ws, parts.debian()?, &items)?;
    Ok(Machine {
        cpus: 1,
        kernel: parts.debian()?.kernel.clone(),
        initrd: guest::save(parts.ws, &format!("{name}.cpio"), &archive)?,
        append: format!("{KVM_WORDS} umbra.storey=L0 umbra.do=run"),
        disk: None,
    })
}

/// A short look whether plugin, format and payload fit: everything that the payload does on umbra is
/// counted, and costs something.
pub(crate) fn smoke(parts: &Parts<'_>) -> Result<()> {
    let how = How {
        reuse: false,
        limit: Duration::from_secs(600),
    };
    let run = run(parts, Session::Pages, Side::Umbra, how)?;
    for row in ROWS.iter().filter(|row| row.session == Session::Pages) {
        let value = row.measure.value(&run).unwrap_or(0.0);
        if value < 10.0 && row.name != WRITE_AFTER_READ {
            bail!("{}: {value} {}", row.name, row.unit);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(console: &str) -> Outcome {
        Outcome {
            end: End::Exited(Some(0)),
            console: console.to_owned(),
            seconds: 1.0,
        }
    }

    #[test]
    fn a_guest_that_failed_counts_for_nothing() {
        let error = |text: &str, side| {
            let answer = check(&outcome(text), side);
            answer.err().map(|error| error.to_string())
        };
        assert_eq!(error("ok sgi\numbra: run exited 0\n", Side::Kvm), None);
        let whole = "ok sgi\numbra: run exited 0\numbra: first program exited, status 0\n";
        assert_eq!(error(whole, Side::Umbra), None);
        for side in [Side::Umbra, Side::Kvm] {
            let failed = format!("FAIL timer: late\n{whole}");
            assert_eq!(error(&failed, side).unwrap(), "FAIL timer: late");
            let failed = format!("umbra: run exited 1\n{whole}");
            assert_eq!(error(&failed, side).unwrap(), "umbra: run exited 1");
            assert!(
                error("ok sgi\n", side)
                    .unwrap()
                    .contains("before its guest")
            );
        }
        // L2 ended well, and L1 did not.
        assert!(error("umbra: run exited 0\n", Side::Umbra).is_some());
        let crashed = Outcome {
            end: End::Exited(Some(1)),
            ..outcome(whole)
        };
        assert!(check(&crashed, Side::Umbra).is_err());
        let hung = Outcome {
            end: End::TimedOut("CPU 0: pc 0x40".into()),
            ..outcome(whole)
        };
        let error = check(&hung, Side::Umbra).unwrap_err().to_string();
        assert!(
            error.contains("time limit") && error.contains("CPU 0"),
            "{error}"
        );
    }

    #[test]
    fn what_is_said_in_lines_of_its_own_is_a_value() {
        let values =
            said("x\nmeasured vm, KiB = 12.5\nmeasured a\nmeasured b = c\nmeasured d = 7\n");
        assert_eq!(
            values.into_iter().collect::<Vec<_>>(),
            [("d".into(), 7.0), ("vm, KiB".into(), 12.5)]
        );
    }
}
