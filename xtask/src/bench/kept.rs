//! What KVM did, kept for `--reuse`: its side changes only with the files that it runs, and takes hours.
//!
//! One run of each session is kept below `target/umbra/bench-kvm/`: the plugin's file, and beside it the key and
//! what the plugin does not know. A run is taken only if every file of it is the same, by SHA-256: QEMU, the
//! plugin, Linux, the archive with VMM, guest and script; and the words on both command lines.

use super::machine::{OPTIONS, Parts, Run};
use super::page::today;
use super::record::Records;
use super::session::Session;
use crate::hash;
use crate::qemu::Machine;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is kept beside the plugin's file.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Kept {
    key: String,
    date: String,
    seconds: f64,
    said: BTreeMap<String, f64>,
}

/// What this machine runs, in one word.
pub(crate) fn key(parts: &Parts<'_>, machine: &Machine) -> Result<String> {
    let text = [
        parts.qemu.version.clone(),
        hash::of_file(&parts.qemu.file()?)?,
        hash::of_file(&parts.plugin)?,
        hash::of_file(&machine.kernel)?,
        hash::of_file(&machine.initrd)?,
        machine.cpus.to_string(),
        machine.append.clone(),
        OPTIONS.join(" "),
    ];
    Ok(hash::of_bytes(text.join("\n").as_bytes()))
}

fn files(ws: &Workspace, session: Session) -> Result<(PathBuf, PathBuf)> {
    let folder = ws.folder("bench-kvm")?;
    let of = |ending: &str| folder.join(format!("{}.{ending}", session.name()));
    Ok((of("json"), of("exits")))
}

/// Keeps a run, whose records are in the file `exits`, over what was kept of the session.
pub(crate) fn save(
    ws: &Workspace,
    session: Session,
    key: &str,
    run: &Run,
    exits: &Path,
) -> Result<()> {
    let (head, records) = files(ws, session)?;
    write((&head, &records), key, run, exits)
}

/// The run that is kept of these files.
pub(crate) fn load(ws: &Workspace, session: Session, key: &str) -> Result<Option<Run>> {
    let (head, records) = files(ws, session)?;
    read((&head, &records), key)
}

fn write((head, records): (&Path, &Path), key: &str, run: &Run, exits: &Path) -> Result<()> {
    let kept = Kept {
        key: key.to_owned(),
        date: today(),
        seconds: run.seconds,
        said: run.said.clone(),
    };
    // The head comes last: without it nothing is kept.
    if head.exists() {
        fs::remove_file(head).with_context(|| format!("{}", head.display()))?;
    }
    fs::copy(exits, records).with_context(|| format!("{}", records.display()))?;
    let text = serde_json::to_string_pretty(&kept).context("what is kept")?;
    fs::write(head, text + "\n").with_context(|| format!("{}", head.display()))
}

fn read((head, records): (&Path, &Path), key: &str) -> Result<Option<Run>> {
    // Nothing kept, or by another version of this program.
    let Ok(text) = fs::read_to_string(head) else {
        return Ok(None);
    };
    let Ok(kept) = serde_json::from_str::<Kept>(&text) else {
        return Ok(None);
    };
    if kept.key != key {
        return Ok(None);
    }
    let bytes = fs::read(records).with_context(|| format!("{}", records.display()))?;
    Ok(Some(Run {
        records: Records::decode(&bytes)?,
        said: kept.said,
        seconds: kept.seconds,
        kept: Some(kept.date),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_comes_back_by_its_key_alone() {
        let folder = std::env::temp_dir().join(format!("umbra-kept-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (head, records) = (folder.join("a.json"), folder.join("a.exits"));
        let (paths, exits) = ((head.as_path(), records.as_path()), folder.join("b.exits"));
        assert!(read(paths, "k").unwrap().is_none());
        fs::write(&exits, b"umbexit2").unwrap();
        let run = Run {
            records: Records::decode(b"umbexit2").unwrap(),
            said: BTreeMap::from([("vm".to_owned(), 1.5)]),
            seconds: 2.5,
            kept: None,
        };
        write(paths, "k", &run, &exits).unwrap();
        let back = read(paths, "k").unwrap().unwrap();
        assert_eq!((back.seconds, back.said), (run.seconds, run.said.clone()));
        assert_eq!(back.records, run.records);
        assert!(back.kept.is_some());
        assert!(read(paths, "l").unwrap().is_none(), "other files");
        // A file that is damaged is an error, not a table of zeros.
        fs::write(&records, b"umbexit2?").unwrap();
        assert!(read(paths, "k").is_err());
        fs::write(&head, "{}").unwrap();
        assert!(read(paths, "k").unwrap().is_none());
        fs::remove_dir_all(&folder).unwrap();
    }
}
