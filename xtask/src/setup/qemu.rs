//! The QEMU to run: the caller's, the system's own if it is new enough, else the one of the release's
//! backports, unpacked below `target/umbra/qemu/` without installing anything.

use super::apt::{Apt, Installed, codename};
use crate::cargo::read;
use crate::progress::step;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest major version with FEAT_NV2 and the rest of what umbra is tested on.
const OLDEST: u32 = 10;
const PROGRAM: &str = "qemu-system-aarch64";

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// Folder of its firmware, and the folders of its shared libraries, if it is the unpacked one.
    unpacked: Option<(PathBuf, OsString)>,
    /// What `--version` says in its first line.
    pub(crate) version: String,
}

impl Qemu {
    /// A command that starts this QEMU.
    pub(crate) fn command(&self) -> Command {
        command(&self.program, self.unpacked.as_ref())
    }

    /// The file of the program; a bare name is looked for as the system does.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        if self.program.components().count() > 1 {
            return Ok(self.program.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|folder| folder.join(&self.program));
        let found = found.find(|file| file.is_file());
        found.with_context(|| format!("{} is not in PATH", self.program.display()))
    }

    fn try_new(program: PathBuf, unpacked: Option<(PathBuf, OsString)>) -> Result<Self> {
        let text = read(command(&program, unpacked.as_ref()).arg("--version"))?;
        let version = text.lines().next().unwrap_or_default().to_owned();
        match major(&version) {
            Some(n) if n >= OLDEST => Ok(Self {
                program,
                unpacked,
                version,
            }),
            _ => bail!(
                "{} is {version:?}; umbra needs {OLDEST} or newer",
                program.display()
            ),
        }
    }
}

fn command(program: &Path, unpacked: Option<&(PathBuf, OsString)>) -> Command {
    let mut cmd = Command::new(program);
    if let Some((firmware, libraries)) = unpacked {
        // For this child alone: the libraries are of another release than the system's programs.
        cmd.env("LD_LIBRARY_PATH", libraries)
            .arg("-L")
            .arg(firmware);
    }
    cmd
}

/// The major version in "QEMU emulator version 10.0.2 (Debian …)".
fn major(version: &str) -> Option<u32> {
    version
        .split("version ")
        .nth(1)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// A QEMU that is there already: `own` if given, else the system's, else the unpacked one.
pub(crate) fn find(ws: &Workspace, own: Option<&Path>) -> Result<Option<Qemu>> {
    if let Some(program) = own {
        return Qemu::try_new(program.to_path_buf(), None).map(Some);
    }
    if let Ok(qemu) = Qemu::try_new(PathBuf::from(PROGRAM), None) {
        return Ok(Some(qemu));
    }
    let root = ws.folder("qemu")?.join("root");
    let program = root.join("usr/bin").join(PROGRAM);
    if !program.is_file() {
        return Ok(None);
    }
    let unpacked = (root.join("usr/share/qemu"), library_path(&root)?);
    Ok(Qemu::try_new(program, Some(unpacked)).ok())
}

/// Finds a QEMU or fetches one.
pub(crate) fn ensure(ws: &Workspace, own: Option<&Path>) -> Result<Qemu> {
    if let Some(qemu) = find(ws, own)? {
        return Ok(qemu);
    }
    step(
        "QEMU from the release's backports, without installing it",
        || fetch(ws),
    )?;
    find(ws, None)?.context("the QEMU that was fetched does not start")
}

fn fetch(ws: &Workspace) -> Result<()> {
    let advice = "install QEMU 10 or newer, or name one with --qemu";
    let release = codename().context(advice)?;
    let architecture = read(Command::new("dpkg").arg("--print-architecture")).context(advice)?;
    let dir = ws.folder("qemu")?;
    let suites = [release.clone(), format!("{release}-backports")];
    let apt = Apt::new(
        &dir.join("apt"),
        architecture.trim(),
        &suites,
        Installed::LikeSystem,
    )?;
    let packages = apt.would_install("qemu-system-arm")?;
    if packages.is_empty() {
        bail!("apt knows no newer qemu-system-arm in {release}-backports: {advice}");
    }
    let fresh = dir.join("root.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    for deb in apt.download(&packages)? {
        deb.unpack(&fresh)?;
    }
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::rename(&fresh, &root)?;
    fs::remove_dir_all(dir.join("apt")).context("cannot remove the package cache")
}

/// Every folder below `root` that holds a shared library, in the form of LD_LIBRARY_PATH.
fn library_path(root: &Path) -> Result<OsString> {
    let mut found = BTreeSet::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(".so") {
                found.insert(dir.clone());
            }
        }
    }
    Ok(std::env::join_paths(found)?)
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn version_lines() {
        assert_eq!(
            major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)"),
            Some(10)
        );
        assert_eq!(
            major("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)"),
            Some(7)
        );
        assert_eq!(major("something else"), None);
    }
}
