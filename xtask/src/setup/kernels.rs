//! Which Debian kernel packages make a guest kernel, and which few files of them are kept.
//!
//! A kernel of one version and flavour comes in one of three layouts: all in `linux-image-V`;
//! `linux-image-V` beside `linux-binary-V`; or `linux-binary-V` (the newest only as
//! `linux-binary-unsigned-V`) beside `linux-modules-V`. The choice is made on package names alone, so
//! that it can be tested without a mirror.

use super::apt::{Apt, Deb};
use super::manifest::{Entry, Guest};
use super::version;
use crate::hash;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

/// The drivers a guest may need that Debian does not build in, in the order they must be loaded.
pub(crate) const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "rng-core",
    "virtio-rng",
    "virtio_console",
];

/// A guest kernel that set-up provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The newest kernel on the mirror, 4 KiB pages.
    Newest,
    /// The newest 6.12.
    V6_12,
    /// The newest kernel with 16 KiB pages.
    Pages16k,
}

impl Flavour {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Newest, Self::V6_12, Self::Pages16k];

    /// The folder's name below `target/umbra/guest/`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::V6_12 => "6.12",
            Self::Pages16k => "16k",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Newest | Self::V6_12 => "-arm64",
            Self::Pages16k => "-arm64-16k",
        }
    }

    /// The kernel version in a package name with this flavour's suffix and the given prefix.
    fn version_of(self, package: &str, prefix: &str) -> Option<String> {
        let version = package.strip_prefix(prefix)?.strip_suffix(self.suffix())?;
        let plain = version.starts_with(|c: char| c.is_ascii_digit())
            && !["cloud", "rt", "dbg"].iter().any(|f| version.contains(f));
        let wanted = self != Self::V6_12 || version.starts_with("6.12.");
        (plain && wanted).then(|| version.to_owned())
    }

    /// The packages that hold this flavour, newest version first, one list a version.
    fn choices(self, names: &BTreeSet<String>) -> Vec<Vec<String>> {
        let mut versions: Vec<String> = ["linux-image-", "linux-binary-", "linux-binary-unsigned-"]
            .iter()
            .flat_map(|prefix| names.iter().filter_map(|n| self.version_of(n, prefix)))
            .collect();
        versions.sort_by(|a, b| version::compare(b, a));
        versions.dedup();
        let known = |kind: &str, v: &str| {
            let name = format!("linux-{kind}-{v}{}", self.suffix());
            names.contains(&name).then_some(name)
        };
        let packages = |v: &String| {
            let binary = known("binary", v).or_else(|| known("binary-unsigned", v));
            let modules = known("modules", v);
            match (binary, modules) {
                (Some(binary), Some(modules)) => Some(vec![binary, modules]),
                (binary, _) => Some(binary.into_iter().chain([known("image", v)?]).collect()),
            }
        };
        versions.iter().filter_map(packages).collect()
    }

    /// Downloads this flavour and keeps its kernel and modules in `dir`.
    pub(crate) fn fetch(self, apt: &Apt, dir: &Path) -> Result<Guest> {
        let names: BTreeSet<String> = apt.names("linux-")?.into_iter().collect();
        for packages in self.choices(&names) {
            if packages
                .iter()
                .map(|p| apt.has(p))
                .collect::<Result<Vec<_>>>()?
                .contains(&false)
            {
                continue;
            }
            return keep(self.name(), &apt.download(&packages)?, dir);
        }
        bail!(
            "the mirror offers no kernel for the guest flavour {:?}",
            self.name()
        );
    }
}

/// Keeps the kernel and the listed modules of some packages in `dir`.
fn keep(flavour: &str, debs: &[Deb], dir: &Path) -> Result<Guest> {
    fs::create_dir_all(dir)?;
    let mut entries = Vec::new();
    for deb in debs {
        let mut save = |name: &str, bytes: Vec<u8>| -> Result<()> {
            entries.push(Entry {
                file: name.to_owned(),
                package: deb.name.clone(),
                version: deb.version.clone(),
                size: bytes.len() as u64,
                sha256: hash::of_bytes(&bytes),
            });
            fs::write(dir.join(name), bytes).with_context(|| format!("{}", dir.display()))
        };
        deb.each_file(|path, data| {
            let name = path.rsplit('/').next().unwrap_or(path);
            if name.starts_with("vmlinuz") {
                let mut bytes = Vec::new();
                data.read_to_end(&mut bytes)?;
                return save("Image", bytes);
            }
            let Some(module) = module_of(name) else {
                return Ok(());
            };
            let bytes = decompress(name, data).with_context(|| path.to_owned())?;
            save(&format!("{module}.ko"), bytes)
        })?;
    }
    let image = fs::read(dir.join("Image")).context("the packages hold no kernel")?;
    if image.get(0x38..0x3c) != Some(b"ARM\x64") {
        bail!("the kernel of {flavour} is no plain arm64 Image");
    }
    Ok(Guest {
        flavour: flavour.to_owned(),
        entries,
    })
}

/// The listed module whose file this is.
fn module_of(file: &str) -> Option<&'static str> {
    let (stem, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz").then_some(())?;
    MODULES
        .into_iter()
        .find(|m| m.replace('-', "_") == stem.replace('-', "_"))
}

fn decompress(name: &str, data: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes)?;
    if !name.ends_with(".xz") {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    match lzma_rs::xz_decompress(&mut BufReader::new(Cursor::new(bytes)), &mut out) {
        Ok(()) => Ok(out),
        Err(error) => bail!("xz: {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Flavour, module_of};
    use std::collections::BTreeSet;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_newest_unsigned_pair_comes_before_an_older_signed_one() {
        let names = names(&[
            "linux-image-7.2.12+deb13-arm64",
            "linux-binary-7.2.12+deb13-arm64",
            "linux-binary-unsigned-7.2.12+deb13-arm64",
            "linux-modules-7.2.12+deb13-arm64",
            "linux-binary-unsigned-7.3.4+deb13-arm64",
            "linux-modules-7.3.4+deb13-arm64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-arm64",
            "linux-binary-unsigned-7.3.4+deb13-arm64-16k",
        ]);
        let choices = Flavour::Newest.choices(&names);
        assert_eq!(
            choices[0],
            [
                "linux-binary-unsigned-7.3.4+deb13-arm64",
                "linux-modules-7.3.4+deb13-arm64"
            ]
        );
        assert_eq!(
            choices[1],
            [
                "linux-binary-7.2.12+deb13-arm64",
                "linux-modules-7.2.12+deb13-arm64"
            ]
        );
        assert_eq!(choices.len(), 2);
        assert!(
            Flavour::Pages16k.choices(&names).is_empty(),
            "a kernel without its modules"
        );
    }

    #[test]
    fn older_layouts_and_the_6_12_line() {
        let names = names(&[
            "linux-image-6.1.0-50-arm64",
            "linux-image-6.12.95+deb12-arm64",
            "linux-image-6.12.107+deb13-arm64",
            "linux-image-6.12.107+deb13-arm64-dbg",
            "linux-image-6.12.107+deb13-rt-arm64",
            "linux-image-6.12.107+deb13-arm64-unsigned",
            "linux-image-7.1.8+deb13-arm64",
            "linux-binary-7.1.8+deb13-arm64",
            "linux-image-7.1.8+deb13-arm64-16k",
        ]);
        assert_eq!(
            Flavour::V6_12.choices(&names)[0],
            ["linux-image-6.12.107+deb13-arm64"]
        );
        assert_eq!(
            Flavour::Newest.choices(&names)[0],
            [
                "linux-binary-7.1.8+deb13-arm64",
                "linux-image-7.1.8+deb13-arm64"
            ]
        );
        assert_eq!(
            Flavour::Pages16k.choices(&names),
            [["linux-image-7.1.8+deb13-arm64-16k"]]
        );
    }

    #[test]
    fn module_files() {
        assert_eq!(module_of("virtio_mmio.ko.xz"), Some("virtio_mmio"));
        assert_eq!(module_of("virtio-rng.ko"), Some("virtio-rng"));
        assert_eq!(module_of("rng_core.ko"), Some("rng-core"));
        assert_eq!(module_of("virtio_mmio.ko.sig"), None);
        assert_eq!(module_of("ext4.ko.xz"), None);
    }
}
