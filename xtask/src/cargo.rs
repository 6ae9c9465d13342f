//! Child processes: cargo with a clean environment, and commands whose failure must explain itself.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::process::{Command, Output};

/// A cargo command in the workspace's root.
///
/// A RUSTFLAGS of the caller would replace the flags that `.cargo/config.toml` gives the bare-metal
/// target (LSE, static relocation), and the kernel would be another one than the one documented. So
/// every spelling of it is removed.
pub(crate) fn command(ws: &Workspace) -> Command {
    let mut cmd = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cmd.current_dir(ws.root())
        .env("CARGO_TARGET_DIR", ws.target());
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if is_rustflags(name) {
            cmd.env_remove(name);
        }
    }
    cmd
}

fn is_rustflags(name: &str) -> bool {
    name == "RUSTFLAGS"
        || name == "CARGO_ENCODED_RUSTFLAGS"
        || name == "CARGO_BUILD_RUSTFLAGS"
        || (name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS"))
}

/// Runs a command with its output on the terminal; an error if it fails.
pub(crate) fn run(cmd: &mut Command) -> Result<()> {
    let status = cmd
        .status()
        .with_context(|| format!("cannot start {}", show(cmd)))?;
    if !status.success() {
        bail!("{} failed: {status}", show(cmd));
    }
    Ok(())
}

/// Runs a command and gives its standard output; the error carries its standard error.
pub(crate) fn read(cmd: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = cmd
        .output()
        .with_context(|| format!("cannot start {}", show(cmd)))?;
    if !status.success() {
        bail!(
            "{} failed: {status}\n{}",
            show(cmd),
            String::from_utf8_lossy(&stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A command as one would type it, for messages and transcripts.
pub(crate) fn show(cmd: &Command) -> String {
    let mut words = vec![cmd.get_program()];
    words.extend(cmd.get_args());
    let words: Vec<String> = words
        .iter()
        .map(|w| shell_word(&w.to_string_lossy()))
        .collect();
    words.join(" ")
}

/// Quotes a word for a POSIX shell, if it needs that.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::{is_rustflags, shell_word};

    #[test]
    fn every_spelling_of_rustflags_is_known() {
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_RUSTFLAGS",
        ] {
            assert!(is_rustflags(name), "{name}");
        }
        assert!(!is_rustflags("CARGO_TARGET_DIR"));
        assert!(!is_rustflags("RUSTDOCFLAGS"));
    }

    #[test]
    fn shell_words() {
        assert_eq!(shell_word("-M"), "-M");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
