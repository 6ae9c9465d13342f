//! One session on one side: what boots, and the plugin's file of it.

use super::record::Records;
use super::rows::{ROWS, Session};
use crate::bootargs::BootArgs;
use crate::build::{Kernel, Payloads, Programs};
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::qemu::{End, Machine, Outcome};
use crate::run::vmm_command;
use crate::setup::{GuestFiles, Qemu};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What lies at EL2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// umbra.
    pub(crate) kernel: Kernel,
    /// The programs of EL0.
    pub(crate) programs: Programs,
    /// The guest payloads.
    pub(crate) payloads: Payloads,
    /// Linux/KVM, and Debian as a guest.
    pub(crate) debian: Option<&'a GuestFiles>,
}

impl Parts<'_> {
    fn debian(&self) -> Result<&GuestFiles> {
        self.debian.context("this session needs Debian's kernel")
    }
}

/// A session that ended well.
#[derive(Debug)]
pub(crate) struct Run {
    /// What the plugin saw.
    pub(crate) records: Records,
    /// Wall time of the emulator.
    pub(crate) seconds: f64,
}

const LIMIT: Duration = Duration::from_secs(3600);

/// Virtual seconds that Linux gets before the guest starts.
const QUIET: u32 = 25;

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

/// Boots the session and reads what the plugin wrote.
pub(crate) fn run(parts: &Parts<'_>, session: Session, side: Side) -> Result<Run> {
    let name = format!("bench-{}-{}", session.name(), short(side));
    let (items, command) = guest(parts, session)?;
    let machine = match side {
        Side::Umbra => umbra(parts, &name, items, command)?,
        Side::Kvm => kvm(parts, &name, items, &command)?,
    };
    boot(parts, &name, &machine)
}

fn short(side: Side) -> &'static str {
    match side {
        Side::Umbra => "umbra",
        Side::Kvm => "kvm",
    }
}

fn boot(parts: &Parts<'_>, name: &str, machine: &Machine) -> Result<Run> {
    let out = parts.ws.folder("run")?.join(format!("{name}.exits"));
    let file = |path: &PathBuf| path.display().to_string().replace(',', ",,");
    let mut more: Vec<String> = OPTIONS.iter().map(|word| (*word).to_owned()).collect();
    more.push("-plugin".to_owned());
    more.push(format!("{},out={}", file(&parts.plugin), file(&out)));
    let mut log = Transcript::new(parts.ws, name)?;
    log.used("umbra-vmm", &parts.programs.vmm)?;
    let symbols = Symbols::default();
    let outcome = machine.run_with(parts.qemu, &more, &mut log, (LIMIT, &symbols), |_| {})?;
    check(&outcome).with_context(|| format!("see {}", parts.ws.show(log.path())))?;
    let bytes = fs::read(&out).with_context(|| format!("{}", out.display()))?;
    let records = Records::decode(&bytes)?;
    fs::remove_file(&out)?;
    Ok(Run {
        records,
        seconds: outcome.seconds,
    })
}

/// Counts of a guest that failed are worth nothing.
fn check(outcome: &Outcome) -> Result<()> {
    match &outcome.end {
        End::Exited(Some(0)) => {}
        End::Exited(status) => bail!("the machine ended with {status:?}"),
        End::TimedOut(state) => bail!("the time limit came first\n{state}"),
    }
    let ended = |line: &&str| line.starts_with("FAIL ") || line.starts_with("umbra: run exited ");
    for line in outcome.console.lines().filter(ended) {
        if line != "umbra: run exited 0" {
            bail!("{line}");
        }
    }
    Ok(())
}

/// The guest's files and the command that starts it.
fn guest(parts: &Parts<'_>, session: Session) -> Result<(Vec<Item>, Vec<String>)> {
    let payload = |name: &str, options: &str| -> Result<(Vec<Item>, Vec<String>)> {
        let path = format!("/guest/{name}");
        let image = parts.payloads.get(name).context("no such payload")?;
        let mut command = vec![
            "/bin/umbra-vmm".to_owned(),
            "--kernel".to_owned(),
            path.clone(),
        ];
        command.extend(options.split_whitespace().map(str::to_owned));
        Ok((vec![Item::from_file(&path, image)?], command))
    };
    let debian = |memory: &str| -> Result<(Vec<Item>, Vec<String>)> {
        let archive = guest::initramfs(parts.ws, parts.debian()?, &[])?;
        let initrd = guest::save(parts.ws, "bench-guest.cpio", &archive)?;
        let items = vec![
            Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
            Item::from_file("/guest/initrd", &initrd)?,
        ];
        let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.do=poweroff";
        let command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, memory);
        Ok((items, command))
    };
    let one = |pages: &str| {
        let disk = "--disk /guest/bench,ro";
        payload(
            "bench",
            &format!("--cpus 1 --memory 128M,hugepages={pages} {disk} --cmdline umbra"),
        )
    };
    match session {
        Session::Pages => one("off"),
        Session::Blocks => one("on"),
        Session::L1Pages => payload(
            "l1_bench",
            "--nested --cpus 1 --memory 64M,hugepages=off --cmdline umbra",
        ),
        Session::DebianBlocks => debian("256M,hugepages=on"),
        Session::DebianPages => debian("256M,hugepages=off"),
        Session::L1Costly => payload(
            "l1_bench",
            "--nested --cpus 1 --memory 64M,hugepages=off --cmdline costly",
        ),
        Session::NestedBlocks => nested(parts),
    }
}

/// Debian with KVM at virtual EL2, whose guest is Debian again.
fn nested(parts: &Parts<'_>) -> Result<(Vec<Item>, Vec<String>)> {
    let inner = guest::save(
        parts.ws,
        "bench-l2.cpio",
        &guest::initramfs(parts.ws, parts.debian()?, &[])?,
    )?;
    let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.storey=L2 umbra.do=poweroff";
    let command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, "256M");
    let items = [
        Item::from_file("/bin/umbra-vmm", &parts.programs.vmm)?,
        Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
        Item::from_file("/guest/initrd", &inner)?,
        Item::text("/umbra-run", &script(&command)),
    ];
    let outer = guest::save(
        parts.ws,
        "bench-l1.cpio",
        &guest::initramfs(parts.ws, parts.debian()?, &items)?,
    )?;
    let items = vec![
        Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
        Item::from_file("/guest/initrd", &outer)?,
    ];
    let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.do=run";
    let mut command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, "1024M");
    command.push("--nested".to_owned());
    Ok((items, command))
}

/// What a Linux that is a hypervisor does: becomes quiet, starts the VMM, ends with its status.
fn script(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    format!(
        "echo always > /sys/kernel/mm/transparent_hugepage/enabled\nsleep {QUIET}\n{}\n",
        words.join(" ")
    )
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
    let run = run(parts, Session::Pages, Side::Umbra)?;
    for row in ROWS.iter().filter(|row| row.session == Session::Pages) {
        let value = row.measure.value(&run.records).unwrap_or(0.0);
        if value < 10.0 {
            bail!("{}: {value} {}", row.name, row.unit);
        }
    }
    Ok(())
}
