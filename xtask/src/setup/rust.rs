//! The Rust side of set-up: targets and components of the toolchain that `rust-toolchain.toml` names.
//!
//! Rustup's automatic installation may be switched off, so everything is asked for by name.

use crate::cargo::{read, run};
use crate::progress::step;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// Toolchain, components and targets of `rust-toolchain.toml`.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    channel: String,
    components: Vec<String>,
    targets: Vec<String>,
}

/// What is missing, with the command that mends it.
pub(crate) fn missing(ws: &Workspace) -> Result<Vec<(String, Command)>> {
    let wanted = wanted(ws)?;
    let installed = |what: &str| -> Option<Vec<String>> {
        let mut cmd = rustup(ws);
        cmd.args([what, "list", "--installed", "--toolchain", &wanted.channel]);
        Some(read(&mut cmd).ok()?.lines().map(str::to_owned).collect())
    };
    let Some(targets) = installed("target") else {
        let mut cmd = rustup(ws);
        cmd.args([
            "toolchain",
            "install",
            &wanted.channel,
            "--profile",
            "minimal",
        ]);
        cmd.args(["--component", &wanted.components.join(",")]);
        cmd.args(["--target", &wanted.targets.join(",")]);
        return Ok(vec![(format!("the toolchain {}", wanted.channel), cmd)]);
    };
    let components = installed("component").unwrap_or_default();
    let mut out = Vec::new();
    let mut add = |what: &str, names: Vec<&String>| {
        if !names.is_empty() {
            let mut cmd = rustup(ws);
            cmd.args([what, "add", "--toolchain", &wanted.channel])
                .args(&names);
            let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
            out.push((format!("the Rust {what} {}", names.join(", ")), cmd));
        }
    };
    // Components are listed as NAME-HOST.
    let has = |name: &String| {
        components
            .iter()
            .any(|c| c == name || c.starts_with(&format!("{name}-")))
    };
    add(
        "component",
        wanted.components.iter().filter(|c| !has(c)).collect(),
    );
    add(
        "target",
        wanted
            .targets
            .iter()
            .filter(|t| !targets.contains(t))
            .collect(),
    );
    Ok(out)
}

/// Adds what is missing.
pub(crate) fn ensure(ws: &Workspace) -> Result<()> {
    for (what, mut cmd) in missing(ws)? {
        step(&what, || run(&mut cmd))?;
    }
    Ok(())
}

fn rustup(ws: &Workspace) -> Command {
    let mut cmd = Command::new("rustup");
    cmd.current_dir(ws.root());
    cmd
}

fn wanted(ws: &Workspace) -> Result<Wanted> {
    let file = ws.root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    parse(&text)
        .context("rust-toolchain.toml has no channel, components and targets, each on one line")
}

/// Reads the three keys, each on a line of its own as our file has them.
fn parse(text: &str) -> Option<Wanted> {
    let value = |key: &str| {
        text.lines().find_map(|l| {
            l.split_once('=')
                .filter(|(k, _)| k.trim() == key)
                .map(|(_, v)| v)
        })
    };
    let strings = |v: &str| {
        v.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    Some(Wanted {
        channel: strings(value("channel")?).into_iter().next()?,
        components: strings(value("components")?),
        targets: strings(value("targets")?),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn our_own_toolchain_file() {
        let wanted = parse(include_str!("../../../rust-toolchain.toml")).unwrap();
        assert_eq!(wanted.channel.split('.').count(), 3, "an exact version");
        assert!(
            wanted
                .targets
                .contains(&"aarch64-unknown-none-softfloat".to_owned())
        );
        assert!(
            wanted
                .targets
                .contains(&"aarch64-unknown-linux-musl".to_owned())
        );
        assert!(wanted.components.contains(&"clippy".to_owned()));
        assert_eq!(parse("[toolchain]\n"), None);
    }
}
