//! The initrd: a cpio archive in the "newc" form (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst).
//!
//! A reader, not an unpacker: entries borrow the archive, so that files of the initrd cost no memory
//! until they are written to. Several archives may follow each other, with zeros between.

use crate::uapi;
use core::fmt;

const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &[u8] = b"TRAILER!!!";

/// One member of an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The path, without its terminating zero; may start with "/" or "./".
    pub name: &'a [u8],
    /// Kind and permissions (`S_IF…`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// How many names the file has; those of one file share `file`.
    pub links: u32,
    /// Which file, within this archive: device numbers and inode.
    pub file: (u32, u32, u32),
    /// For a device node: its major and minor number.
    pub device: (u32, u32),
    /// The file's bytes, or the symbolic link's target.
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// The kind of file: one of `S_IF…`.
    pub const fn kind(&self) -> u32 {
        self.mode & uapi::S_IFMT
    }
}

/// Why an archive cannot be read on, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpioError {
    /// Bytes from the start of the archive to the header in question.
    pub at: usize,
    /// What is wrong with it.
    pub what: Problem,
}

/// What is wrong with a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// No newc header; a compressed archive, perhaps.
    Magic,
    /// A field that is no hexadecimal number.
    Number,
    /// The name has no end.
    Name,
    /// The archive ends early.
    Truncated,
}

impl fmt::Display for CpioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            Problem::Magic => "not an uncompressed newc cpio header",
            Problem::Number => "a header field is not a hexadecimal number",
            Problem::Name => "a name is empty or without end",
            Problem::Truncated => "the archive ends in the middle of an entry",
        };
        write!(f, "{what} at byte {:#x}", self.at)
    }
}

impl core::error::Error for CpioError {}

/// Iterates over the members of `archive`. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    archive: &'a [u8],
    at: usize,
    broken: bool,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `archive`.
    pub const fn new(archive: &'a [u8]) -> Self {
        Self {
            archive,
            at: 0,
            broken: false,
        }
    }

    fn entry(&self) -> Result<(Entry<'a>, usize), Problem> {
        let header = self.slice(self.at, HEADER)?;
        let (magic, fields) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(Problem::Magic);
        }
        let mut numbers = [0u32; 13];
        for (number, digits) in numbers.iter_mut().zip(fields.chunks_exact(8)) {
            *number = hex(digits).ok_or(Problem::Number)?;
        }
        let [
            ino,
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            major,
            minor,
            rmajor,
            rminor,
            name_len,
            _,
        ] = numbers;
        let name_at = self.at + HEADER;
        let name = self.slice(name_at, name_len as usize)?;
        let name = match name.split_last() {
            Some((0, name)) if !name.is_empty() && !name.contains(&0) => name,
            _ => return Err(Problem::Name),
        };
        let data_at = padded(name_at, name_len)?;
        let data = self.slice(data_at, size as usize)?;
        // The last entry's padding may be missing.
        let next = padded(data_at, size)?.min(self.archive.len());
        let entry = Entry {
            name,
            mode,
            uid,
            gid,
            mtime,
            links,
            file: (major, minor, ino),
            device: (rmajor, rminor),
            data,
        };
        Ok((entry, next))
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], Problem> {
        let end = at.checked_add(len).ok_or(Problem::Truncated)?;
        self.archive.get(at..end).ok_or(Problem::Truncated)
    }

    fn skip_zeros(&mut self) {
        let rest = self.archive.get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|&&byte| byte == 0).count();
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.broken && self.at < self.archive.len() {
            match self.entry() {
                Ok((entry, next)) => {
                    self.at = next;
                    if entry.name != TRAILER {
                        return Some(Ok(entry));
                    }
                    self.skip_zeros();
                }
                Err(what) => {
                    self.broken = true;
                    return Some(Err(CpioError { at: self.at, what }));
                }
            }
        }
        None
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    // `from_str_radix` alone would allow a sign.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

fn padded(at: usize, len: u32) -> Result<usize, Problem> {
    at.checked_add(len as usize)
        .and_then(|end| end.checked_next_multiple_of(4))
        .ok_or(Problem::Truncated)
}

/// An archive writer for tests.
#[cfg(test)]
pub(crate) mod pack {
    use super::*;
    use std::format;
    use std::vec::Vec;

    pub(crate) fn entry(out: &mut Vec<u8>, e: &Entry<'_>) {
        let (major, minor, ino) = e.file;
        let fields = [
            ino,
            e.mode,
            e.uid,
            e.gid,
            e.links,
            e.mtime,
            e.data.len() as u32,
            major,
            minor,
            e.device.0,
            e.device.1,
            e.name.len() as u32 + 1,
            0,
        ];
        out.extend(MAGIC);
        for field in fields {
            out.extend(format!("{field:08X}").bytes());
        }
        out.extend(e.name);
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(e.data);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    pub(crate) fn simple<'a>(name: &'a [u8], mode: u32, data: &'a [u8]) -> Entry<'a> {
        let (uid, gid, mtime, links) = (0, 0, 0, 1);
        Entry {
            name,
            mode,
            uid,
            gid,
            mtime,
            links,
            file: (0, 0, 0),
            device: (0, 0),
            data,
        }
    }

    pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for e in entries {
            entry(&mut out, e);
        }
        entry(&mut out, &simple(TRAILER, 0, b""));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::pack::{archive, simple};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn read(bytes: &[u8]) -> Result<Vec<Entry<'_>>, CpioError> {
        Reader::new(bytes).collect()
    }

    proptest! {
        #[test]
        fn what_was_packed_is_read(
            members in prop::collection::vec(
                ("[a-z/.]{1,40}", any::<u32>(), any::<[u32; 8]>(), prop::collection::vec(any::<u8>(), 0..50)),
                0..6,
            ),
            gap in 0usize..600,
        ) {
            let entries: Vec<Entry<'_>> = members.iter().map(|(name, mode, n, data)| Entry {
                name: name.as_bytes(),
                mode: *mode,
                uid: n[0],
                gid: n[1],
                mtime: n[2],
                links: n[3],
                file: (n[4], n[5], n[6]),
                device: (n[7], n[0]),
                data,
            }).collect();
            let mut bytes = archive(&entries);
            prop_assert_eq!(read(&bytes), Ok(entries.clone()));
            bytes.resize(bytes.len() + gap * 4, 0);
            bytes.extend(archive(&entries));
            prop_assert_eq!(read(&bytes), Ok([&entries[..], &entries[..]].concat()));
        }

        #[test]
        fn a_cut_archive_is_an_error_or_shorter(cut in 0usize..400) {
            let whole = archive(&[
                simple(b"bin/sh", 0o100755, &[7; 33]),
                simple(b"etc", 0o40755, b""),
            ]);
            let cut = cut.min(whole.len());
            let all = read(&whole).unwrap();
            match read(&whole[..cut]) {
                Ok(some) => prop_assert!(all.starts_with(&some)),
                Err(error) => prop_assert_eq!(error.what, Problem::Truncated),
            }
        }

        #[test]
        fn noise_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..120, byte: u8) {
            let _ = read(&bytes);
            let mut good = archive(&[simple(b"a", 0o100644, b"data")]);
            good[at] = byte;
            let _ = read(&good);
            bytes.splice(0..0, MAGIC.iter().copied());
            let _ = read(&bytes);
        }
    }

    #[test]
    fn each_problem_has_its_name_and_place() {
        let good = archive(&[simple(b"abc", 0o100644, b"data")]);
        let broken = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes).unwrap_err()
        };
        assert_eq!(
            broken(5, b'2'),
            CpioError {
                at: 0,
                what: Problem::Magic
            }
        );
        assert_eq!(broken(8, b'+').what, Problem::Number);
        assert_eq!(broken(113, b'x').what, Problem::Name);
        assert_eq!(broken(111, 0).what, Problem::Name);
        assert_eq!(
            broken(HEADER + 4 + 2 + 4, b'x'),
            CpioError {
                at: 120,
                what: Problem::Magic
            }
        );
        assert_eq!(read(&[0x1f, 0x8b]).unwrap_err().what, Problem::Truncated);
    }
}
