//! The initrd's reader: what it says of an archive, written out again, reads the same.

use umbra_linux::cpio::{Entry, Reader};

fn field(out: &mut Vec<u8>, number: u32) {
    out.extend(format!("{number:08X}").bytes());
}

/// One entry, by the format's text.
fn write(out: &mut Vec<u8>, entry: &Entry<'_>) {
    out.extend(b"070701");
    let (major, minor, ino) = entry.file;
    let (size, name) = (entry.data.len() as u32, entry.name.len() as u32 + 1);
    for number in [
        ino,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.links,
        entry.mtime,
        size,
        major,
        minor,
        entry.device.0,
        entry.device.1,
        name,
        0,
    ] {
        field(out, number);
    }
    out.extend(entry.name);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(crate) fn run(bytes: &[u8]) {
    let mut entries = Vec::new();
    let mut failed = false;
    for entry in Reader::new(bytes) {
        assert!(!failed, "it goes on behind an error");
        match entry {
            Ok(entry) => {
                assert!(!entry.name.is_empty() && !entry.name.contains(&0));
                entries.push(entry);
            }
            Err(error) => {
                assert!(error.at < bytes.len());
                failed = true;
            }
        }
    }
    // An entry has a header of 110 bytes and a name.
    assert!(entries.len() * 112 <= bytes.len() + 3);
    let mut again = Vec::new();
    entries.iter().for_each(|entry| write(&mut again, entry));
    let read: Result<Vec<_>, _> = Reader::new(&again).collect();
    assert_eq!(read.as_deref(), Ok(entries.as_slice()));
}
