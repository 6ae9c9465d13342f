//! The record of what set-up fetched: `target/umbra/guest/manifest.json`.
//!
//! It is what makes the second run cheap and offline: a flavour is there when the manifest lists it
//! and every listed file has the recorded size. The recorded sha256 is printed and goes into transcripts.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// One kept file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Name in the flavour's folder.
    pub(crate) file: String,
    /// The Debian package it came from.
    pub(crate) package: String,
    /// That package's version.
    pub(crate) version: String,
    /// Size in bytes.
    pub(crate) size: u64,
    /// SHA-256, hexadecimal.
    pub(crate) sha256: String,
}

/// A folder of kept files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// The folder's name.
    pub(crate) flavour: String,
    /// Its files.
    pub(crate) entries: Vec<Entry>,
}

/// All folders below `target/umbra/guest/`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest {
    guests: Vec<Guest>,
}

impl Manifest {
    const FILE: &str = "manifest.json";

    /// Reads the manifest in `dir`; one that is absent or broken is empty, and its files fetched anew.
    pub(crate) fn read(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join(Self::FILE)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The flavour's record, if all its files are in `dir`.
    pub(crate) fn present(&self, dir: &Path, flavour: &str) -> Option<&Guest> {
        let guest = self.guests.iter().find(|g| g.flavour == flavour)?;
        let there = |e: &Entry| {
            fs::metadata(dir.join(flavour).join(&e.file)).is_ok_and(|m| m.len() == e.size)
        };
        guest.entries.iter().all(there).then_some(guest)
    }

    /// Puts a flavour's record in place of an older one and writes the manifest.
    pub(crate) fn record(&mut self, dir: &Path, guest: Guest) -> Result<()> {
        self.guests.retain(|g| g.flavour != guest.flavour);
        self.guests.push(guest);
        // Written beside and renamed, so that an interrupted run leaves the old one or the new one.
        let (file, fresh) = (dir.join(Self::FILE), dir.join("manifest.new"));
        fs::write(&fresh, serde_json::to_string_pretty(self)?)
            .context("cannot write the manifest")?;
        fs::rename(&fresh, &file).context("cannot write the manifest")
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Guest, Manifest};

    #[test]
    fn a_flavour_is_there_only_with_all_its_bytes() {
        let dir = std::env::temp_dir().join(format!("umbra-manifest-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("newest")).unwrap();
        let entry = Entry {
            file: "Image".into(),
            package: "linux-image".into(),
            version: "1".into(),
            size: 3,
            sha256: String::new(),
        };
        let guest = Guest {
            flavour: "newest".into(),
            entries: vec![entry],
        };
        Manifest::default().record(&dir, guest.clone()).unwrap();
        let manifest = Manifest::read(&dir);
        assert_eq!(manifest.present(&dir, "newest"), None, "no file yet");
        std::fs::write(dir.join("newest/Image"), "ab").unwrap();
        assert_eq!(manifest.present(&dir, "newest"), None, "cut short");
        std::fs::write(dir.join("newest/Image"), "abc").unwrap();
        assert_eq!(manifest.present(&dir, "newest"), Some(&guest));
        assert_eq!(manifest.present(&dir, "16k"), None);
        std::fs::write(dir.join("manifest.json"), "{ broken").unwrap();
        assert_eq!(Manifest::read(&dir).present(&dir, "newest"), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
