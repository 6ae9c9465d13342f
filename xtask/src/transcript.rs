//! The transcript of a run: `target/umbra/run/<name>.log`. First what ran (command line, versions and
//! sha256 of every file), then the console with all storeys in it, then how it ended.

use crate::hash;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An open transcript.
#[derive(Debug)]
pub(crate) struct Transcript {
    path: PathBuf,
    file: File,
}

impl Transcript {
    /// Starts the transcript of the run `name`, over an older one.
    pub(crate) fn new(ws: &Workspace, name: &str) -> Result<Self> {
        let name = name.replace('/', "-");
        let path = ws.folder("run")?.join(format!("{name}.log"));
        drop(File::create(&path).with_context(|| format!("cannot write {}", path.display()))?);
        // In append mode, so that QEMU may log its console into the same file.
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A line of the head or the end.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.file, "# {text}").context("cannot write the transcript")
    }

    /// A file that the run uses, with its sha256.
    pub(crate) fn used(&mut self, what: &str, file: &Path) -> Result<()> {
        self.line(&format!(
            "{what}: {} sha256 {}",
            file.display(),
            hash::of_file(file)?
        ))
    }

    /// A part of the console.
    pub(crate) fn console(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .context("cannot write the transcript")
    }
}
