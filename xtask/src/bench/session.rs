//! Which guest runs for which rows, and what starts it: the same files and the same command on either side.

use super::machine::{Parts, QUIET};
use crate::guest::{self, Item};
use crate::run::vmm_command;
use anyhow::{Context, Result, bail};

/// A run of one guest, on one hypervisor and then on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Session {
    /// The payload `bench`, its RAM backed by 4 KiB pages.
    Pages,
    /// The same, backed by 2 MiB where they fit.
    Blocks,
    /// `bench` with two vCPUs that interrupt each other.
    Pair,
    /// `kvm-probe` as the VMM: what a VMM asks of a VM's memory, and what VMs take of the host's.
    Vmm,
    /// The payload `l1_bench` at virtual EL2, backed by 4 KiB pages.
    L1Pages,
    /// The same, backed by 2 MiB.
    L1Blocks,
    /// `l1_bench` with 64 guests in turn. KVM takes as long for each visit as it does for one of 16, and would need
    /// hours for all: on umbra alone.
    L1Many,
    /// `l1_bench` again, with what takes KVM billions of instructions.
    L1Costly,
    /// `kvm-probe` as the VMM: pages that it takes back while a guest's guest has more mapped. KVM drops all of it,
    /// as it does with less: on umbra alone.
    TakeBackMore,
    /// The same with less.
    TakeBack,
    /// A Debian guest to power-off, backed by 2 MiB.
    DebianBlocks,
    /// The same, backed by 4 KiB.
    DebianPages,
    /// Debian as a guest hypervisor and Debian as its guest, backed by 2 MiB at both storeys.
    NestedBlocks,
    /// The same, L1 backed by 4 KiB, and by it L2 by 2 MiB.
    NestedMixed,
    /// The same, backed by 4 KiB at both storeys.
    NestedPages,
}

impl Session {
    /// All, in the order in which they run.
    pub(crate) const ALL: [Session; 15] = [
        Session::Pages,
        Session::Blocks,
        Session::Pair,
        Session::Vmm,
        Session::L1Pages,
        Session::L1Blocks,
        Session::L1Many,
        Session::TakeBackMore,
        Session::DebianBlocks,
        Session::DebianPages,
        Session::L1Costly,
        Session::TakeBack,
        Session::NestedBlocks,
        Session::NestedMixed,
        Session::NestedPages,
    ];

    /// Its name, for filters and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Blocks => "blocks",
            Self::Pair => "pair",
            Self::Vmm => "vmm",
            Self::L1Pages => "l1-pages",
            Self::L1Blocks => "l1-blocks",
            Self::L1Many => "l1-many",
            Self::L1Costly => "l1-costly",
            Self::TakeBackMore => "take-back-more",
            Self::TakeBack => "take-back",
            Self::DebianBlocks => "debian-blocks",
            Self::DebianPages => "debian-pages",
            Self::NestedBlocks => "nested-blocks",
            Self::NestedMixed => "nested-mixed",
            Self::NestedPages => "nested-pages",
        }
    }

    /// Whether `--quick` leaves it out.
    pub(crate) fn is_long(self) -> bool {
        matches!(
            self,
            Self::L1Costly
                | Self::TakeBack
                | Self::NestedBlocks
                | Self::NestedMixed
                | Self::NestedPages
        )
    }

    /// Whether there is nothing to compare it with.
    pub(crate) fn is_umbras(self) -> bool {
        matches!(self, Self::L1Many | Self::TakeBackMore)
    }

    /// The sessions of these names, or all of them without any; `quick` leaves out the long ones.
    pub(crate) fn chosen(names: &[String], quick: bool) -> Result<Vec<Session>> {
        for name in names {
            match Self::ALL.iter().find(|session| session.name() == name) {
                None => {
                    let all = Self::ALL.map(Self::name).join(", ");
                    bail!("no session is called {name:?}; there are {all}");
                }
                Some(session) if quick && session.is_long() => {
                    bail!("--quick leaves out {name}, which was asked for by name");
                }
                Some(_) => {}
            }
        }
        let wanted = |session: &Session| match names {
            [] => !(quick && session.is_long()),
            names => names.iter().any(|name| name == session.name()),
        };
        Ok(Self::ALL.into_iter().filter(wanted).collect())
    }

    /// The guest's files and the command that starts it.
    pub(crate) fn guest(self, parts: &Parts<'_>) -> Result<(Vec<Item>, Vec<String>)> {
        match self {
            Self::Pages => plain(parts, "off"),
            Self::Blocks => plain(parts, "on"),
            Self::Pair => payload(
                parts,
                "bench",
                "--cpus 2 --memory 64M,hugepages=off --cmdline pair",
            ),
            Self::L1Pages => l1(parts, "64M,hugepages=off", "umbra"),
            Self::L1Blocks => l1(parts, "64M,hugepages=on", "umbra"),
            Self::L1Many => l1(parts, "64M,hugepages=off", "many"),
            Self::L1Costly => l1(parts, "64M,hugepages=off", "costly"),
            Self::Vmm => probe(parts, "vmm"),
            Self::TakeBackMore => probe(parts, "take-back-more"),
            Self::TakeBack => probe(parts, "take-back"),
            Self::DebianBlocks => debian(parts, "256M,hugepages=on"),
            Self::DebianPages => debian(parts, "256M,hugepages=off"),
            Self::NestedBlocks => nested(parts, "on", "on"),
            Self::NestedMixed => nested(parts, "off", "on"),
            Self::NestedPages => nested(parts, "off", "off"),
        }
    }
}

fn payload(parts: &Parts<'_>, name: &str, options: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let path = format!("/guest/{name}");
    let image = parts.payloads.get(name).context("no such payload")?;
    let mut command = vec![
        "/bin/umbra-vmm".to_owned(),
        "--kernel".to_owned(),
        path.clone(),
    ];
    command.extend(options.split_whitespace().map(str::to_owned));
    Ok((vec![Item::from_file(&path, image)?], command))
}

fn plain(parts: &Parts<'_>, pages: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let disk = "--disk /guest/bench,ro";
    let options = format!("--cpus 1 --memory 128M,hugepages={pages} {disk} --cmdline umbra");
    payload(parts, "bench", &options)
}

fn l1(parts: &Parts<'_>, memory: &str, word: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let options = format!("--nested --cpus 1 --memory {memory} --cmdline {word}");
    payload(parts, "l1_bench", &options)
}

fn probe(parts: &Parts<'_>, what: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let probe = parts.probe.as_ref().context("kvm-probe was not built")?;
    let path = "/bin/kvm-probe";
    let command = [path, "--measure", what].map(str::to_owned).to_vec();
    Ok((vec![Item::from_file(path, probe)?], command))
}

fn debian(parts: &Parts<'_>, memory: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let archive = guest::initramfs(parts.ws, parts.debian()?, &[])?;
    let initrd = guest::save(parts.ws, "bench-guest.cpio", &archive)?;
    let items = vec![
        Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
        Item::from_file("/guest/initrd", &initrd)?,
    ];
    let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.do=poweroff";
    let command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, memory);
    Ok((items, command))
}

/// Debian with KVM at virtual EL2, its RAM in huge pages or not (`outer`), whose guest is Debian again.
fn nested(parts: &Parts<'_>, outer: &str, inner: &str) -> Result<(Vec<Item>, Vec<String>)> {
    let archive = guest::save(
        parts.ws,
        "bench-l2.cpio",
        &guest::initramfs(parts.ws, parts.debian()?, &[])?,
    )?;
    let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.storey=L2 umbra.do=poweroff";
    let memory = format!("256M,hugepages={inner}");
    let command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, &memory);
    let items = [
        Item::from_file("/bin/umbra-vmm", &parts.programs.vmm)?,
        Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
        Item::from_file("/guest/initrd", &archive)?,
        Item::text("/umbra-run", &script(&command)),
    ];
    let archive = guest::save(
        parts.ws,
        "bench-l1.cpio",
        &guest::initramfs(parts.ws, parts.debian()?, &items)?,
    )?;
    let items = vec![
        Item::from_file("/guest/Image", &parts.debian()?.kernel)?,
        Item::from_file("/guest/initrd", &archive)?,
    ];
    let line = "console=ttyS0 quiet nokaslr panic=-1 umbra.do=run";
    let memory = format!("1024M,hugepages={outer}");
    let mut command = vmm_command("/guest/Image", Some("/guest/initrd"), line, 1, &memory);
    command.push("--nested".to_owned());
    Ok((items, command))
}

/// What a Linux that is a hypervisor does: becomes quiet, starts the VMM, ends with its status.
pub(crate) fn script(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    format!(
        "echo always > /sys/kernel/mm/transparent_hugepage/enabled\nsleep {QUIET}\n{}\n",
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn sessions_are_chosen_by_their_whole_names() {
        let every: BTreeSet<_> = Session::ALL.iter().map(|s| s.name()).collect();
        assert_eq!(every.len(), Session::ALL.len());
        assert_eq!(Session::chosen(&[], false).unwrap(), Session::ALL);
        let quick = Session::chosen(&[], true).unwrap();
        assert!(quick.contains(&Session::L1Blocks) && !quick.contains(&Session::NestedBlocks));
        let two = Session::chosen(&names(&["pages", "debian-pages"]), false).unwrap();
        assert_eq!(two, [Session::Pages, Session::DebianPages]);
    }

    #[test]
    fn what_cannot_be_chosen_is_an_error_that_says_why() {
        let error = |words, quick| {
            let answer = Session::chosen(&names(words), quick);
            answer.unwrap_err().to_string()
        };
        let unknown = error(&["page"], false);
        assert!(
            unknown.contains("\"page\"") && unknown.contains("nested-blocks"),
            "{unknown}"
        );
        assert!(error(&["pages", "l1-costly"], true).contains("--quick leaves out l1-costly"));
    }

    #[test]
    fn a_hypervisor_becomes_quiet_first() {
        let text = script(&names(&["/bin/x", "a b"]));
        assert!(text.ends_with("\nsleep 25\n'/bin/x' 'a b'\n"), "{text}");
    }
}
