//! What is inside the archives that machines boot with: a Debian guest's initramfs, and umbra's initrd.

use crate::cpio::Archive;
use crate::setup::{self, GuestFiles};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The init script of Debian guests on every storey.
const GUEST_INIT: &str = include_str!("../assets/guest-init");

/// A file for an archive: its path there, its content, and whether it may be executed.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    path: String,
    content: Vec<u8>,
    permissions: u32,
}

impl Item {
    /// Where it is in the archive.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A program or data file from this machine. Everything may be executed: umbra's EL0 checks the
    /// format, and a guest's data does no harm by it.
    pub(crate) fn from_file(path: &str, file: &Path) -> Result<Self> {
        let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            path: path.to_owned(),
            content,
            permissions: 0o755,
        })
    }

    /// These bytes as a program.
    pub(crate) fn program(path: &str, content: Vec<u8>) -> Self {
        Self {
            path: path.to_owned(),
            content,
            permissions: 0o755,
        }
    }

    /// These bytes as a file.
    pub(crate) fn bytes(path: &str, content: Vec<u8>) -> Self {
        Self {
            path: path.to_owned(),
            content,
            permissions: 0o644,
        }
    }

    /// Files of three pages each that a test may lose: /lib/victim-0 and so on.
    pub(crate) fn victims(count: usize) -> impl Iterator<Item = Self> {
        (0..count).map(|number| {
            let content = (0..3 * 4096).map(|at| (at ^ number) as u8).collect();
            Self::bytes(&format!("/lib/victim-{number}"), content)
        })
    }

    /// A file with this text.
    pub(crate) fn text(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            content: text.as_bytes().to_vec(),
            permissions: 0o644,
        }
    }
}

/// An archive of these files alone: umbra's initrd.
pub(crate) fn initrd(items: &[Item]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    add(&mut archive, items)?;
    Ok(archive.finish())
}

fn add(archive: &mut Archive, items: &[Item]) -> Result<()> {
    items
        .iter()
        .try_for_each(|i| archive.file(&i.path, i.permissions, &i.content))
}

/// The initramfs of a Debian guest: BusyBox, the init script, the flavour's modules, and `items`.
pub(crate) fn initramfs(ws: &Workspace, guest: &GuestFiles, items: &[Item]) -> Result<Vec<u8>> {
    let busybox = setup::busybox(ws)?;
    let mut archive = Archive::new();
    for dir in ["/proc", "/sys", "/tmp", "/dev"] {
        archive.dir(dir)?;
    }
    // Without it the kernel starts init with no standard output at all.
    archive.char_device("/dev/console", (5, 1))?;
    archive.file("/init", 0o755, GUEST_INIT.as_bytes())?;
    archive.file("/bin/busybox", 0o755, &fs::read(busybox)?)?;
    archive.symlink("/bin/sh", "busybox")?;
    for (at, module) in guest.modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        // The shell's sorted wildcard loads them in the order they need each other.
        archive.file(
            &format!("/modules/{at:02}-{name}"),
            0o644,
            &fs::read(module)?,
        )?;
    }
    add(&mut archive, items)?;
    Ok(archive.finish())
}

/// Writes an archive below `target/umbra/image/` and gives its path.
pub(crate) fn save(ws: &Workspace, name: &str, archive: &[u8]) -> Result<PathBuf> {
    let path = ws.folder("image")?.join(name);
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The command line of a Debian guest on umbra-vmm. Nothing on it turns a feature off.
pub(crate) fn cmdline(action: &str, nonce: &str) -> String {
    format!("{CONSOLE} panic=-1 umbra.do={action} umbra.nonce={nonce}")
}

/// The console of umbra-vmm's guests: a 16550, usable before the driver is up.
const CONSOLE: &str = "console=ttyS0 earlycon=uart8250,mmio,0x9000000";

/// A number nobody saw before, for a run's command line.
pub(crate) fn nonce() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context("/dev/urandom")?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::{Item, cmdline, initrd, nonce};

    #[test]
    fn the_same_files_make_the_same_archive() {
        let items = || [Item::text("/a", "x"), Item::text("/b/c", "y")];
        assert_eq!(initrd(&items()).unwrap(), initrd(&items()).unwrap());
    }

    #[test]
    fn guests_keep_every_feature() {
        let line = cmdline("poweroff", "1");
        for word in line.split(' ') {
            assert!(
                !word.contains("no") || word.starts_with("umbra.nonce="),
                "{word}"
            );
            assert!(!word.ends_with("=off") && !word.ends_with("=0"), "{word}");
        }
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
