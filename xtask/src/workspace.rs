//! Where things lie: the workspace's root, cargo's target directory, and the folders that
//! xtask owns below it.
//!
//! Everything that xtask makes is under `target/umbra/`, so that `cargo clean` undoes all of it and
//! nothing outside the checkout is ever written.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The checkout that this xtask serves.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the workspace from cargo's environment, else from the current directory.
    pub(crate) fn find() -> Result<Self> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_dir().context("no current directory")?,
        };
        let Some(root) = start
            .ancestors()
            .find(|dir| dir.join("rust-toolchain.toml").is_file())
        else {
            bail!("{} is not inside umbra's checkout", start.display());
        };
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(dir).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self {
            root: root.to_path_buf(),
            target,
        })
    }

    /// The checkout's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A folder below `target/umbra/`, made if it is not there.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target.join("umbra").join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// `path` as people like to read it: relative to the root where it lies below it.
    pub(crate) fn show<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
