//! Set-up: everything a run needs that is not in the checkout, fetched once, kept under `target/`.
//!
//! Nothing needs root and nothing is installed. What is there is not asked for again, so a second
//! run is offline; a newer package on the mirror is never an error.

mod apt;
mod kernels;
mod manifest;
mod qemu;
mod rust;
mod sources;
mod version;

use crate::cargo::{command, read, run, show};
use crate::progress::{note, step};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use apt::{Apt, Installed};
use manifest::{Entry, Guest, Manifest};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use kernels::{Flavour, MODULES};
pub(crate) use qemu::Qemu;

const BUSYBOX: &str = "busybox";

/// The files of a Debian guest that set-up keeps.
#[derive(Debug, Clone)]
pub(crate) struct GuestFiles {
    /// The kernel, an arm64 Image.
    pub(crate) kernel: PathBuf,
    /// Package and version of the kernel.
    pub(crate) label: String,
    /// Module files in the order they are loaded.
    pub(crate) modules: Vec<PathBuf>,
}

impl GuestFiles {
    /// A kernel that the caller brings, without modules.
    pub(crate) fn own(kernel: &Path) -> Self {
        Self {
            kernel: kernel.to_path_buf(),
            label: format!("the caller's {}", kernel.display()),
            modules: Vec::new(),
        }
    }
}

/// `cargo xtask setup`: everything that any command needs.
pub(crate) fn all(ws: &Workspace) -> Result<()> {
    rust::ensure(ws)?;
    let qemu = qemu::ensure(ws, None)?;
    note(&qemu.version);
    guests(ws, &Flavour::ALL)?;
    crates(ws)?;
    print_guests(ws)
}

/// What building needs: targets and crates.
pub(crate) fn for_build(ws: &Workspace) -> Result<()> {
    rust::ensure(ws)?;
    crates(ws)
}

/// The QEMU to use, `own` if given.
pub(crate) fn qemu(ws: &Workspace, own: Option<&Path>) -> Result<Qemu> {
    qemu::ensure(ws, own)
}

/// BusyBox and the kernels of these flavours; fetches what is missing.
pub(crate) fn guests(ws: &Workspace, flavours: &[Flavour]) -> Result<()> {
    let dir = ws.folder("guest")?;
    let mut manifest = Manifest::read(&dir);
    let flavours: Vec<Flavour> = flavours
        .iter()
        .copied()
        .filter(|f| manifest.present(&dir, f.name()).is_none())
        .collect();
    let busybox = manifest.present(&dir, BUSYBOX).is_some();
    if busybox && flavours.is_empty() {
        return Ok(());
    }
    let state = dir.join("apt");
    let apt = step(
        "package lists of this Debian release and the next, for arm64",
        || {
            Apt::new(
                &state,
                "arm64",
                &apt::suites(&apt::codename()?),
                Installed::Nothing,
            )
        },
    )?;
    if !busybox {
        let guest = step("busybox-static for guests", || fetch_busybox(&apt, &dir))?;
        manifest.record(&dir, guest)?;
    }
    for flavour in flavours {
        let guest = step(&format!("guest kernel {}", flavour.name()), || {
            flavour.fetch(&apt, &dir.join(flavour.name()))
        })?;
        manifest.record(&dir, guest)?;
    }
    fs::remove_dir_all(&state).context("cannot remove the package cache")
}

fn fetch_busybox(apt: &Apt, dir: &Path) -> Result<Guest> {
    let dir = dir.join(BUSYBOX);
    fs::create_dir_all(&dir)?;
    let mut entries = Vec::new();
    for deb in apt.download(&["busybox-static".to_owned()])? {
        deb.each_file(|path, data| {
            if !matches!(path, "bin/busybox" | "usr/bin/busybox") {
                return Ok(());
            }
            let mut bytes = Vec::new();
            data.read_to_end(&mut bytes)?;
            fs::write(dir.join(BUSYBOX), &bytes)?;
            entries.push(Entry {
                file: BUSYBOX.to_owned(),
                package: deb.name.clone(),
                version: deb.version.clone(),
                size: bytes.len() as u64,
                sha256: crate::hash::of_bytes(&bytes),
            });
            Ok(())
        })?;
    }
    if entries.len() != 1 {
        bail!(
            "busybox-static holds {} busybox programs, not one",
            entries.len()
        );
    }
    Ok(Guest {
        flavour: BUSYBOX.to_owned(),
        entries,
    })
}

/// The static arm64 BusyBox.
pub(crate) fn busybox(ws: &Workspace) -> Result<PathBuf> {
    guests(ws, &[])?;
    Ok(ws.folder("guest")?.join(BUSYBOX).join(BUSYBOX))
}

/// A flavour's files; fetched if they are missing.
pub(crate) fn guest_files(ws: &Workspace, flavour: Flavour) -> Result<GuestFiles> {
    guests(ws, &[flavour])?;
    let dir = ws.folder("guest")?;
    let manifest = Manifest::read(&dir);
    let guest = manifest
        .present(&dir, flavour.name())
        .context("the guest's files went away")?;
    let find = |name: &str| guest.entries.iter().find(|e| e.file == name);
    let image = find("Image").context("the guest has no kernel")?;
    let at = |name: &str| dir.join(flavour.name()).join(name);
    let files: Vec<String> = MODULES.iter().map(|m| format!("{m}.ko")).collect();
    Ok(GuestFiles {
        kernel: at("Image"),
        label: format!("{} {}", image.package, image.version),
        modules: files
            .iter()
            .filter(|f| find(f).is_some())
            .map(|f| at(f))
            .collect(),
    })
}

fn crates(ws: &Workspace) -> Result<()> {
    run(command(ws).args(["fetch", "--locked", "--quiet"]))
        .context("the crates of Cargo.lock could not be fetched")
}

fn print_guests(ws: &Workspace) -> Result<()> {
    let dir = ws.folder("guest")?;
    let manifest = Manifest::read(&dir);
    let names = Flavour::ALL.iter().map(|f| f.name()).chain([BUSYBOX]);
    for guest in names.filter_map(|name| manifest.present(&dir, name)) {
        // Modules are listed in the manifest alone.
        for e in guest.entries.iter().filter(|e| !e.file.ends_with(".ko")) {
            let Entry {
                package,
                version,
                sha256,
                ..
            } = e;
            println!(
                "guest {}: {package} {version}, sha256 {sha256}",
                guest.flavour
            );
        }
    }
    Ok(())
}

/// `cargo xtask setup --check`: says what is missing and how to mend it; an error if anything is.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let mut missing: Vec<(String, String)> = rust::missing(ws)?
        .iter()
        .map(|(what, cmd)| (what.clone(), show(cmd)))
        .collect();
    // The one thing that set-up cannot fetch without root: rustc links xtask itself, a program of
    // this machine, with the system's cc. Everything for arm64 is linked with Rust's own rust-lld.
    match read(std::process::Command::new("cc").arg("--version")) {
        Ok(text) => println!("there:   {}", text.lines().next().unwrap_or("cc")),
        Err(_) => missing.push((
            "the linker cc, which rustup itself asks for".to_owned(),
            "apt-get install gcc libc6-dev (as root)".to_owned(),
        )),
    }
    let setup = || "cargo xtask setup".to_owned();
    match qemu::find(ws, None)? {
        Some(qemu) => println!("there:   {}", qemu.version),
        None => missing.push(("QEMU 10 or newer".to_owned(), setup())),
    }
    let dir = ws.folder("guest")?;
    let manifest = Manifest::read(&dir);
    for name in Flavour::ALL.iter().map(|f| f.name()).chain([BUSYBOX]) {
        match manifest.present(&dir, name).and_then(|g| g.entries.first()) {
            Some(entry) => println!("there:   guest {name}: {} {}", entry.package, entry.version),
            None => missing.push((format!("guest {name}"), setup())),
        }
    }
    let mut fetch = command(ws);
    fetch.args(["fetch", "--locked", "--offline", "--quiet"]);
    if fetch.output().is_ok_and(|out| out.status.success()) {
        println!("there:   the crates of Cargo.lock");
    } else {
        missing.push(("crates of Cargo.lock".to_owned(), setup()));
    }
    for (what, mend) in &missing {
        println!("missing: {what}; mend it with: {mend}");
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} missing", missing.len());
}
