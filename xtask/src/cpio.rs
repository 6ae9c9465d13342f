//! A writer for the `newc` cpio format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`), the
//! archive that umbra's initrd and every guest's initramfs is.
//!
//! The archive's bytes depend on names, modes and content alone (no time, no owner), so that the
//! same input gives the same sha256.

use anyhow::{Result, bail};
use std::collections::BTreeSet;

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file. `path` is absolute in the archive's file system; missing parents are made.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(path, S_IFREG | permissions, (0, 0), content)
    }

    /// Adds a directory, if it is not there yet.
    pub(crate) fn dir(&mut self, path: &str) -> Result<()> {
        if self.names.contains(path.trim_matches('/')) {
            return Ok(());
        }
        self.entry(path, S_IFDIR | 0o755, (0, 0), b"")
    }

    /// Adds a symbolic link at `path` to `target`.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device with its major and minor number.
    pub(crate) fn char_device(&mut self, path: &str, device: (u32, u32)) -> Result<()> {
        self.entry(path, S_IFCHR | 0o600, device, b"")
    }

    /// The finished archive: the entries and the trailer, padded to 512 bytes as other writers do.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        // The trailer's fields are small constants: pushing it cannot fail.
        self.push("TRAILER!!!", 0, (0, 0), 0, b"");
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
        let name = path.trim_matches('/');
        let odd = |part: &str| part.is_empty() || part == "." || part == "..";
        if !path.starts_with('/') || name.split('/').any(odd) || name.contains('\0') {
            bail!("{path:?} is no path for an archive: it must be absolute, without . and ..");
        }
        let Ok(size) = u32::try_from(data.len()) else {
            bail!(
                "{path} has {} bytes, more than a cpio archive can hold",
                data.len()
            );
        };
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.dir(&format!("/{parent}"))?;
        }
        if !self.names.insert(name.to_owned()) {
            bail!("{path} is twice in the archive");
        }
        self.push(name, mode, device, size, data);
        Ok(())
    }

    fn push(&mut self, name: &str, mode: u32, device: (u32, u32), size: u32, data: &[u8]) {
        let inode = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use proptest::prelude::*;

    /// A reader of its own, straight from the format's description.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut out) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701", "magic at {at}");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0), "the name ends with NUL");
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            at = (data + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec()));
        }
    }

    #[test]
    fn parents_come_before_their_children_and_once() {
        let mut archive = Archive::new();
        archive.file("/usr/lib/a", 0o644, b"A").unwrap();
        archive.file("/usr/lib/b", 0o755, b"BB").unwrap();
        archive.symlink("/bin/sh", "busybox").unwrap();
        archive.char_device("/dev/console", (5, 1)).unwrap();
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let names: Vec<_> = entries(&bytes)
            .into_iter()
            .map(|(n, m, _)| (n, m))
            .collect();
        let want = [
            ("usr", 0o040_755),
            ("usr/lib", 0o040_755),
            ("usr/lib/a", 0o100_644),
            ("usr/lib/b", 0o100_755),
            ("bin", 0o040_755),
            ("bin/sh", 0o120_777),
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
        ];
        assert_eq!(names, want.map(|(n, m)| (n.to_owned(), m)));
    }

    #[test]
    fn bad_paths_and_doubles_are_refused() {
        let mut archive = Archive::new();
        for path in ["a", "", "/", "/a//b", "/a/../b", "/./a", "/a\0b"] {
            assert!(archive.file(path, 0o644, b"").is_err(), "{path:?}");
        }
        archive.file("/a", 0o644, b"").unwrap();
        assert!(archive.file("/a", 0o644, b"").is_err());
    }

    proptest! {
        #[test]
        fn content_comes_back(files in prop::collection::btree_map("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40), 0..5)) {
            let mut archive = Archive::new();
            for (name, data) in &files {
                archive.file(&format!("/{name}"), 0o600, data).unwrap();
            }
            let got: Vec<_> = entries(&archive.finish()).into_iter().map(|(n, _, d)| (n, d)).collect();
            prop_assert_eq!(got, files.into_iter().collect::<Vec<_>>());
        }
    }
}
