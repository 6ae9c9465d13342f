//! Building the four kinds of binaries: the EL2 kernel and the guest payloads (bare metal, turned
//! into Images), and the programs of EL0 (static musl executables).
//!
//! Each is built by an explicit `-p … --target …`, because one workspace build cannot give packages
//! different targets on stable cargo.

use crate::cargo::{command, run};
use crate::cpio::Archive;
use crate::workspace::Workspace;
use crate::{hash, image, setup};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const BARE: &str = "aarch64-unknown-none-softfloat";
const LINUX: &str = "aarch64-unknown-linux-musl";

/// How umbra's kernel is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What users run.
    Release,
    /// Release with debug assertions and overflow checks: what tests run.
    Checked,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "kernel",
            Self::Checked => "checked",
        }
    }
}

/// umbra's kernel, built.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The flat arm64 Image that QEMU loads.
    pub(crate) image: PathBuf,
    /// The linked file, for symbols.
    pub(crate) elf: PathBuf,
}

/// Builds the EL2 kernel.
pub(crate) fn kernel(ws: &Workspace, profile: Profile) -> Result<Kernel> {
    kernel_with(ws, profile, profile.name(), &[])
}

/// Builds the EL2 kernel with checks and with safeguards that its command line can leave out.
pub(crate) fn kernel_for_sabotage(ws: &Workspace) -> Result<Kernel> {
    kernel_with(
        ws,
        Profile::Checked,
        "sabotage",
        &["--features", "sabotage"],
    )
}

fn kernel_with(ws: &Workspace, profile: Profile, name: &str, more: &[&str]) -> Result<Kernel> {
    let mut cmd = command(ws);
    cmd.args(["build", "--locked", "-p", "umbra-kernel", "--target", BARE]);
    run(cmd.args(["--profile", profile.name()]).args(more))?;
    let built = ws
        .target()
        .join(BARE)
        .join(profile.name())
        .join("umbra-kernel");
    let folder = ws.folder("image")?;
    // Cargo puts builds with other features at the same place: this one's symbols are kept apart.
    let elf = folder.join(format!("umbra-{name}.elf"));
    fs::copy(&built, &elf).with_context(|| format!("cannot write {}", elf.display()))?;
    let image = folder.join(format!("umbra-{name}.Image"));
    image::write(&elf, &image)?;
    Ok(Kernel { image, elf })
}

/// The static programs that run on umbra at EL0, and on Linux just the same.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The first program: starts and reaps the others.
    pub(crate) init: PathBuf,
    /// The virtual machine monitor.
    pub(crate) vmm: PathBuf,
}

/// Builds the programs of EL0.
pub(crate) fn programs(ws: &Workspace) -> Result<Programs> {
    let [init, vmm] = el0(ws, ["umbra-init", "umbra-vmm"])?;
    Ok(Programs { init, vmm })
}

/// Programs of EL0 that only tests run.
#[derive(Debug, Clone)]
pub(crate) struct TestPrograms {
    /// std's threads and what they rest on.
    pub(crate) threads: PathBuf,
    /// Questions to /dev/kvm.
    pub(crate) probe: PathBuf,
    /// Checks its memory, and may make a page of it bad.
    pub(crate) worker: PathBuf,
}

/// Builds `kvm-probe` alone.
pub(crate) fn probe(ws: &Workspace) -> Result<PathBuf> {
    let [probe] = el0(ws, ["kvm-probe"])?;
    Ok(probe)
}

/// Builds the test programs of EL0.
pub(crate) fn test_programs(ws: &Workspace) -> Result<TestPrograms> {
    let [threads, probe, worker] = el0(ws, ["el0-threads", "kvm-probe", "memory-worker"])?;
    Ok(TestPrograms {
        threads,
        probe,
        worker,
    })
}

/// Builds these programs of umbra-init and umbra-vmm, and nothing else that lies beside them.
fn el0<const N: usize>(ws: &Workspace, names: [&str; N]) -> Result<[PathBuf; N]> {
    let mut cmd = command(ws);
    cmd.args(["build", "--locked", "--release", "--target", LINUX]);
    cmd.args(["-p", "umbra-init", "-p", "umbra-vmm"]);
    run(cmd.args(names.iter().flat_map(|name| ["--bin", name])))?;
    let folder = ws.target().join(LINUX).join("release");
    Ok(names.map(|name| folder.join(name)))
}

/// Builds the QEMU plugin that counts exits, for this machine.
pub(crate) fn plugin(ws: &Workspace) -> Result<PathBuf> {
    let mut cmd = command(ws);
    run(cmd.args(["build", "--locked", "--release", "-p", "umbra-qemu-plugin"]))?;
    let found = ["libumbra_exits.so", "libumbra_exits.dylib"]
        .map(|name| ws.target().join("release").join(name));
    let there = found.into_iter().find(|path| path.is_file());
    there.context("the plugin was built, and is not where it should be")
}

/// The Images of the guest payloads, by name.
pub(crate) type Payloads = BTreeMap<String, PathBuf>;

/// The payloads' source files, by the name they have in guests/src/bin without the ending.
pub(crate) fn payload_sources(ws: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let dir = ws.root().join("guests/src/bin");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
        {
            found.push((stem.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The program that compares the walks of tables with the CPU's own, at EL2 in umbra's place.
pub(crate) const ORACLE: &str = "at_oracle";

/// Builds all guest payloads, and the oracle.
pub(crate) fn payloads(ws: &Workspace) -> Result<Payloads> {
    run(command(ws).args([
        "build",
        "--locked",
        "--release",
        "-p",
        "umbra-guests",
        "-p",
        "umbra-oracle",
        "--bins",
        "--target",
        BARE,
    ]))?;
    let folder = ws.folder("image")?;
    let mut built = Payloads::new();
    let guests = payload_sources(ws)?.into_iter().map(|(name, _)| name);
    for name in guests.chain([ORACLE.to_owned()]) {
        let image = folder.join(format!("payload-{name}.Image"));
        image::write(&ws.target().join(BARE).join("release").join(&name), &image)?;
        built.insert(name, image);
    }
    Ok(built)
}

/// `cargo xtask image`: the Image of the release kernel, and an initrd if one is asked for.
pub(crate) fn image_command(ws: &Workspace, out: Option<PathBuf>, initrd: &[String]) -> Result<()> {
    setup::for_build(ws)?;
    let kernel = kernel(ws, Profile::Release)?;
    let out = match out {
        Some(out) => out,
        None => ws.folder("image")?.join("umbra.Image"),
    };
    fs::copy(&kernel.image, &out).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: sha256 {}", ws.show(&out), hash::of_file(&out)?);
    let Some((to, pairs)) = initrd.split_first() else {
        return Ok(());
    };
    fs::write(to, pack(pairs)?).with_context(|| format!("cannot write {to}"))?;
    println!("{to}: sha256 {}", hash::of_file(Path::new(to))?);
    Ok(())
}

/// A cpio archive of FILE=PATH pairs. Files keep whether they may be executed.
fn pack(pairs: &[String]) -> Result<Vec<u8>> {
    use std::os::unix::fs::PermissionsExt;
    let mut archive = Archive::new();
    for pair in pairs {
        let Some((file, path)) = pair.rsplit_once('=') else {
            bail!("{pair:?} is not of the form FILE=PATH");
        };
        let content = fs::read(file).with_context(|| format!("cannot read {file}"))?;
        let executable = fs::metadata(file)?.permissions().mode() & 0o111 != 0;
        archive.file(path, if executable { 0o755 } else { 0o644 }, &content)?;
    }
    Ok(archive.finish())
}
