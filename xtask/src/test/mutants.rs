//! `test sabotage`, the part on this machine: rules that no machine here can provoke are broken in the
//! source.
//!
//! `crates/sabotage.txt` lists them. Each is applied to a copy of the workspace under `target/umbra/`,
//! never to the checkout; the host test that it names must pass on the copy as it is, and fail with
//! the rule broken. A rule whose line is no longer in the file is a failure too, so that the list cannot
//! outlive the code.

use super::libtest::Counts;
use super::report::{Tally, tail};
use crate::cargo::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const LIST: &str = "crates/sabotage.txt";

/// A rule, and how it is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mutant {
    /// Its name in results.
    id: String,
    /// The file, from the workspace's root.
    file: String,
    /// The package whose test must notice.
    package: String,
    /// The test.
    test: String,
    /// What is wrong then.
    what: String,
    /// The line that goes, without its indentation.
    from: String,
    /// The line in its place.
    to: String,
}

impl Mutant {
    /// The name of its result.
    pub(crate) fn name(&self) -> String {
        format!("sabotage/{}", self.id)
    }

    /// The file's text with the rule broken.
    fn apply(&self, text: &str) -> Result<String> {
        let places = text.lines().filter(|line| line.trim() == self.from).count();
        ensure!(
            places == 1,
            "{} has {places} lines {:?}, not one",
            self.file,
            self.from
        );
        let lines = text.lines().map(|line| match line.trim() == self.from {
            true => self.to.as_str(),
            false => line,
        });
        Ok(lines.flat_map(|line| [line, "\n"]).collect())
    }
}

/// The list, in its order.
pub(crate) fn list(root: &Path) -> Result<Vec<Mutant>> {
    let text = fs::read_to_string(root.join(LIST)).with_context(|| format!("no {LIST}"))?;
    parse(&text)
}

/// Breaks each rule in turn.
pub(crate) fn run(ws: &Workspace, list: &[Mutant], tally: &mut Tally) -> Result<()> {
    let copy = copy(ws)?;
    // What fails with every rule in place proves nothing when one is broken.
    let mut sound: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for mutant in list {
        let key = (mutant.package.as_str(), mutant.test.as_str());
        if let Entry::Vacant(unknown) = sound.entry(key) {
            unknown.insert(matches!(test(ws, &copy, key)?, Verdict::Passed));
        }
    }
    for mutant in list {
        let start = Instant::now();
        let key = (mutant.package.as_str(), mutant.test.as_str());
        let result = if sound.get(&key) == Some(&true) {
            caught(ws, &copy, mutant)
        } else {
            Err(format!("{} fails without any sabotage", mutant.test))
        };
        let name = format!("{} ({}: {})", mutant.name(), mutant.package, mutant.test);
        tally.result(&name, start.elapsed().as_secs_f64(), result);
    }
    Ok(())
}

/// Whether the test notices; the copy is as before afterwards.
fn caught(ws: &Workspace, copy: &Path, mutant: &Mutant) -> Result<(), String> {
    let broken = || -> Result<Verdict> {
        let file = copy.join(&mutant.file);
        let text = fs::read_to_string(&file).with_context(|| mutant.file.clone())?;
        fs::write(&file, mutant.apply(&text)?)?;
        let verdict = test(ws, copy, (&mutant.package, &mutant.test));
        fs::write(&file, text)?;
        verdict
    };
    match broken().map_err(|error| format!("{error:#}"))? {
        Verdict::Failed => Ok(()),
        Verdict::Passed => Err(format!(
            "{} did not notice that {}",
            mutant.test, mutant.what
        )),
        Verdict::NotBuilt(why) => Err(format!("does not build\n{why}")),
    }
}

/// What became of a test.
enum Verdict {
    Passed,
    Failed,
    /// It was not run at all.
    NotBuilt(String),
}

fn test(ws: &Workspace, copy: &Path, (package, test): (&str, &str)) -> Result<Verdict> {
    let cargo = || -> Command {
        let mut cmd = command(ws);
        // Cargo names what it builds by the place inside the workspace: with the checkout's own target
        // directory, a broken crate would pass for the sound one.
        cmd.current_dir(copy)
            .env("CARGO_TARGET_DIR", copy.with_file_name("target"));
        cmd.args(["test", "--locked", "--quiet", "--lib", "-p", package]);
        cmd
    };
    let mut build = cargo();
    let built = build
        .arg("--no-run")
        .output()
        .context("cannot start cargo")?;
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr).into_owned();
        return Ok(Verdict::NotBuilt(tail(&why, 20)));
    }
    let mut run = cargo();
    let ran = run.args(["--", "--format=pretty", test]);
    let ran = ran.output().context("cannot start cargo")?;
    let mut counts = Counts::default();
    String::from_utf8_lossy(&ran.stdout)
        .lines()
        .for_each(|line| counts.line(line));
    Ok(match counts {
        Counts { failed: 1.., .. } => Verdict::Failed,
        Counts { passed: 1.., .. } => Verdict::Passed,
        _ => Verdict::NotBuilt(format!("{package} has no test {test}")),
    })
}

/// A fresh copy of the sources; what was built of an earlier one stays beside it.
fn copy(ws: &Workspace) -> Result<PathBuf> {
    let copy = ws.folder("mutants")?.join("source");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| format!("cannot clear {}", copy.display()))?;
    }
    copy_tree(ws.root(), &copy, ws.target()).context("cannot copy the sources")?;
    Ok(copy)
}

fn copy_tree(from: &Path, to: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        if path == target || name == "target" || name == ".git" {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&path, &to.join(name), target)?;
        } else if kind.is_file() {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let mut found: Vec<Mutant> = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let [head, what, from, to] = paragraph else {
            if paragraph.is_empty() {
                continue;
            }
            bail!("{LIST}: {paragraph:?} is not four lines");
        };
        let words: Vec<&str> = head.split_whitespace().collect();
        let ([id, file, package, test], Some(from), Some(to)) = (
            words.as_slice(),
            from.strip_prefix("- "),
            to.strip_prefix("+ "),
        ) else {
            bail!("{LIST}: {head:?} is not: id, file, package, test; what; - line; + line");
        };
        ensure!(
            found.iter().all(|other| other.id != *id),
            "{LIST}: {id} is twice there"
        );
        found.push(Mutant {
            id: (*id).to_owned(),
            file: (*file).to_owned(),
            package: (*package).to_owned(),
            test: (*test).to_owned(),
            what: (*what).to_owned(),
            from: from.trim().to_owned(),
            to: to.to_owned(),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::parse;

    const ONE: &str = "# a remark\n\nno-ras a/b.rs pkg a_test\nwithout RAS as with it\n- if !ras {\n+ if false {\n";

    #[test]
    fn a_line_takes_the_place_of_another() {
        let list = parse(ONE).unwrap();
        assert_eq!(list[0].name(), "sabotage/no-ras");
        let broken = list[0]
            .apply("fn f() {\n    if !ras {\n    }\n}\n")
            .unwrap();
        assert_eq!(broken, "fn f() {\nif false {\n    }\n}\n");
    }

    #[test]
    fn a_line_must_be_there_once() {
        let mutant = &parse(ONE).unwrap()[0];
        assert!(mutant.apply("if ras {\n").is_err());
        assert!(mutant.apply("if !ras {\nif !ras {\n").is_err());
    }

    #[test]
    fn the_list_is_well_formed() {
        assert!(parse(&format!("{ONE}\n{ONE}")).is_err(), "twice");
        assert!(parse("a b c\nwhat\n- x\n+ y\n").is_err());
        assert!(parse("a b c d\n- x\n+ y\n").is_err());
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        for mutant in super::list(root.as_ref()).unwrap() {
            let file = std::path::Path::new(root).join(&mutant.file);
            let text = std::fs::read_to_string(file).unwrap();
            mutant.apply(&text).unwrap();
            let test = format!("fn {}(", mutant.test);
            let tests = std::path::Path::new(root).join("crates");
            let package = mutant.package.trim_start_matches("umbra-");
            let sources = tests.join(package).join("src");
            assert!(has(&sources, &test), "{}: no {test}", mutant.id);
        }
    }

    fn has(folder: &std::path::Path, word: &str) -> bool {
        std::fs::read_dir(folder).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                return has(&path, word);
            }
            std::fs::read_to_string(path).is_ok_and(|text| text.contains(word))
        })
    }
}
