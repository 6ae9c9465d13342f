//! Two storeys: a Debian kernel whose KVM runs at virtual EL2, and in it the same umbra-vmm with a
//! Debian guest of its own. What `run nested` and the tests share.

use crate::guest::{self, Item};
use crate::run::vmm_command;
use crate::setup::GuestFiles;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Memory of the guest hypervisor, which holds both guests' files.
pub(crate) const L1_MEMORY: &str = "1024M";
/// Memory of its guest.
const L2_MEMORY: &str = "256M";

/// The guest hypervisor's command line. Its kernel keeps quiet until user space: what it printed
/// would be mixed with its guest's.
pub(crate) fn cmdline(nonce: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 umbra.do=run umbra.nonce={nonce}")
}

/// The initramfs of the guest hypervisor: umbra-vmm, its guest's kernel and initramfs, and the script
/// that starts them and ends with the guest's status.
pub(crate) fn initramfs(
    ws: &Workspace,
    (l1, l2): (&GuestFiles, &GuestFiles),
    vmm: &Path,
    cpus: u32,
    nonce: &str,
) -> Result<PathBuf> {
    let inner = guest::save(ws, "nested-l2.cpio", &guest::initramfs(ws, l2, &[])?)?;
    let cmdline = format!(
        "console=ttyS0 quiet panic=-1 umbra.do=poweroff umbra.storey=L2 umbra.nonce={nonce}"
    );
    let command = vmm_command(
        "/guest/Image",
        Some("/guest/initrd"),
        &cmdline,
        cpus,
        L2_MEMORY,
    );
    let words: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "dmesg | grep -E 'kvm \\[|EL2'\nsha256sum /bin/umbra-vmm\n{}\n",
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

/// The command that starts the guest hypervisor.
pub(crate) fn command(cpus: u32, nonce: &str) -> Vec<String> {
    let mut argv = vmm_command(
        "/guest/Image",
        Some("/guest/initrd"),
        &cmdline(nonce),
        cpus,
        L1_MEMORY,
    );
    argv.push("--nested".to_owned());
    argv
}

/// What both storeys must say, as regular expressions: KVM's own word, both reports with this run's
/// nonce, and the status of the guest's VMM.
pub(crate) fn expectations(l1_cpus: u32, l2_cpus: u32, nonce: &str) -> [String; 4] {
    let report = |storey: &str, cpus: u32| {
        format!(r"(?m)^umbra: storey={storey} cpus={cpus} mem=\d+MiB nonce={nonce}$")
    };
    [
        "VHE mode initialized".to_owned(),
        report("L1", l1_cpus),
        report("L2", l2_cpus),
        "(?m)^umbra: run exited 0$".to_owned(),
    ]
}
