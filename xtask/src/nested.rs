//! Two storeys: a Debian kernel whose KVM runs at virtual EL2, and in it the same umbra-vmm with a
//! Debian guest of its own. What `run nested` and the tests share.

use crate::guest::{self, Item};
use crate::run::vmm_command;
use crate::setup::{Flavour, GuestFiles};
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Memory of the guest hypervisor, which holds both guests' files.
pub(crate) const L1_MEMORY: &str = "1024M";
/// Memory of its guest.
const L2_MEMORY: &str = "256M";

/// Who runs on whom: kernels and virtual CPUs of a guest hypervisor and of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storeys {
    /// The guest hypervisor's kernel.
    pub(crate) l1: Flavour,
    /// Its virtual CPUs, and the machine's.
    pub(crate) cpus: u32,
    /// Its guest's kernel.
    pub(crate) l2: Flavour,
    /// Its guest's virtual CPUs.
    pub(crate) l2_cpus: u32,
    /// How many such pairs run at the same time, each under a VMM of its own.
    pub(crate) side_by_side: u32,
}

impl Storeys {
    /// The nonce of each pair, in the order of their commands.
    fn nonces(&self, nonce: &str) -> Vec<String> {
        match self.side_by_side {
            1 => vec![nonce.to_owned()],
            n => (0..n).map(|pair| format!("{nonce}-{pair}")).collect(),
        }
    }

    /// What the console must hold, as regular expressions: KVM's own word, and for each pair both
    /// reports with its nonce; the end of each guest's VMM.
    pub(crate) fn expectations(&self, nonce: &str) -> Vec<String> {
        let report = |storey: &str, cpus: u32, nonce: &str| {
            format!(r"(?m)^umbra: storey={storey} cpus={cpus} mem=\d+MiB nonce={nonce}$")
        };
        let once = "VHE mode initialized(?s:.*)".repeat(self.side_by_side as usize);
        let ended = "(?m:^)umbra: run exited 0(?s:.*)".repeat(self.side_by_side as usize);
        let reports = self.nonces(nonce).into_iter().flat_map(|nonce| {
            [
                report("L1", self.cpus, &nonce),
                report("L2", self.l2_cpus, &nonce),
            ]
        });
        [once, ended].into_iter().chain(reports).collect()
    }

    /// The arguments of init that start every pair at once.
    pub(crate) fn commands(&self, nonce: &str) -> Vec<String> {
        let mut words = Vec::new();
        for nonce in self.nonces(nonce) {
            if !words.is_empty() {
                words.push("+++".to_owned());
            }
            words.extend(self.command(&nonce));
        }
        words
    }

    /// The command that starts one guest hypervisor. Its kernel keeps quiet until user space: what it
    /// printed would be mixed with its guest's.
    fn command(&self, nonce: &str) -> Vec<String> {
        let cmdline = format!("console=ttyS0 quiet panic=-1 umbra.do=run umbra.nonce={nonce}");
        let mut argv = vmm_command(
            "/guest/Image",
            Some("/guest/initrd"),
            &cmdline,
            self.cpus,
            L1_MEMORY,
        );
        argv.extend(["--nested", "--stats"].map(str::to_owned));
        if self.side_by_side > 1 {
            argv.extend(["--console", "serial,lines=whole"].map(str::to_owned));
        }
        argv
    }
}

/// The initramfs of the guest hypervisor: umbra-vmm, its guest's kernel and initramfs, and the script
/// that starts them and ends with the guest's status.
pub(crate) fn initramfs(
    ws: &Workspace,
    (l1, l2): (&GuestFiles, &GuestFiles),
    vmm: &Path,
    cpus: u32,
) -> Result<PathBuf> {
    let inner = guest::save(ws, "nested-l2.cpio", &guest::initramfs(ws, l2, &[])?)?;
    let cmdline =
        "console=ttyS0 quiet panic=-1 umbra.do=poweroff umbra.storey=L2 umbra.nonce=$nonce";
    let mut command = vmm_command(
        "/guest/Image",
        Some("/guest/initrd"),
        cmdline,
        cpus,
        L2_MEMORY,
    );
    command.push("--stats".to_owned());
    let words: Vec<String> = command.iter().map(|word| format!("\"{word}\"")).collect();
    // The nonce is the guest hypervisor's own, from its command line.
    let script = format!(
        "dmesg | grep -E 'kvm \\[|EL2'\nsha256sum /bin/umbra-vmm\nnonce=$(value umbra.nonce none)\n{}\n",
        words.join(" ")
    );
    let items = [
        Item::from_file("/bin/umbra-vmm", vmm)?,
        Item::from_file("/guest/Image", &l2.kernel)?,
        Item::from_file("/guest/initrd", &inner)?,
        Item::text("/umbra-run", &script),
    ];
    let archive = guest::initramfs(ws, l1, &items)?;
    guest::save(ws, "nested-l1.cpio", &archive)
}
