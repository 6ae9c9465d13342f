//! `cargo xtask fuzz`: libFuzzer on every target of `fuzz/`, then noise on a booted umbra.
//!
//! ```text
//!  fuzz/corpus/T.hex ──► target/umbra/fuzz/T/seeds/ ──► libFuzzer ──► T/new/ ──(--save: merged)──► T.hex
//!                                                           └──► T/crash-… : one more line of T.hex
//! ```
//!
//! libFuzzer wants to know which edges an input takes. Stable rustc has LLVM's pass for that and a flag that
//! names passes, so no nightly is needed (design note 9).

use crate::cargo::command;
use crate::cli::FuzzArgs;
use crate::progress::step;
use crate::qemu::End;
use crate::run::Probe;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The target that is no function but a booted umbra.
const NOISE: &str = "noise";

/// Bytes of an input at most: a long one is read by nobody.
const MAX_LEN: usize = 512;

/// Bytes of a committed corpus at most; the shortest inputs are kept.
const MAX_CORPUS: usize = 60 << 10;

/// The same for the table engine, whose model looks at every entry after every step.
const MAX_CORPUS_OF_TABLES: usize = 4 << 10;

/// LLVM's pass and what it is to count: edges, in bytes that lie side by side, and what is compared with
/// what. One codegen unit, because the pass runs on each.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebuginfo=line-tables-only",
];

/// Runs it; status 0 only if nothing was found.
pub(crate) fn run(ws: &Workspace, args: &FuzzArgs) -> Result<ExitCode> {
    let mut targets = targets(ws)?;
    targets.push(NOISE.to_owned());
    if let Some(wrong) = args.targets.iter().find(|name| !targets.contains(*name)) {
        bail!("no target {wrong}; there are {}", targets.join(", "));
    }
    targets.retain(|name| args.targets.is_empty() || args.targets.contains(name));
    let mut found = 0;
    if targets.iter().any(|name| name != NOISE) {
        let fuzzer = step("build the fuzzer", || build_fuzzer(ws))?;
        for name in targets.iter().filter(|name| *name != NOISE) {
            found += usize::from(!Fuzz::new(ws, name)?.run(&fuzzer, args)?);
        }
    }
    if targets.iter().any(|name| name == NOISE) {
        found += usize::from(!noise(ws, args)?);
    }
    println!("{} targets, {found} failed", targets.len());
    Ok(ExitCode::from(u8::from(found > 0)))
}

/// The names of the targets: those of their corpora.
fn targets(ws: &Workspace) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(ws.root().join("fuzz/corpus"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".hex").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// What this machine is called by rustc. With a target named, build scripts are not instrumented.
fn host(ws: &Workspace) -> Result<String> {
    let mut rustc = Command::new("rustc");
    let out = rustc.arg("-vV").current_dir(ws.root()).output();
    let out = String::from_utf8(out.context("cannot start rustc")?.stdout)?;
    let host = out.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

fn build_fuzzer(ws: &Workspace) -> Result<PathBuf> {
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("libFuzzer is C++: a compiler `c++` is missing (apt-get install g++)");
    }
    let host = host(ws)?;
    let folder = ws.folder("fuzz")?.join("build");
    let mut cmd = command(ws);
    cmd.args(["build", "--locked", "--quiet", "-p", "umbra-fuzz"])
        .args(["--features", "libfuzzer", "--profile", "checked"])
        .args(["--target", &host])
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    crate::cargo::run(&mut cmd)?;
    Ok(folder.join(host).join("checked/umbra-fuzz"))
}

/// The bytes of a corpus's line; what follows a blank or `#` is for people.
fn from_hex(line: &str) -> Option<Vec<u8>> {
    let digits = line.split([' ', '#']).next()?;
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One target, its committed inputs and its folder.
struct Fuzz<'a> {
    name: &'a str,
    corpus: PathBuf,
    folder: PathBuf,
}

impl<'a> Fuzz<'a> {
    fn new(ws: &Workspace, name: &'a str) -> Result<Self> {
        let folder = ws.folder("fuzz")?.join(name);
        let _ = fs::remove_dir_all(&folder);
        for part in ["seeds", "new", "merged"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let corpus = ws.root().join(format!("fuzz/corpus/{name}.hex"));
        Ok(Self {
            name,
            corpus,
            folder,
        })
    }

    fn fuzzer(&self, program: &Path) -> Command {
        let mut cmd = Command::new(program);
        cmd.env("UMBRA_FUZZ_TARGET", self.name)
            .current_dir(&self.folder)
            .args(["-artifact_prefix=./", &format!("-max_len={MAX_LEN}")]);
        cmd
    }

    /// Feeds it for as long as was asked. Whether nothing was found.
    fn run(&self, program: &Path, args: &FuzzArgs) -> Result<bool> {
        let text = fs::read_to_string(&self.corpus)?;
        for (n, line) in text.lines().enumerate() {
            let bytes = from_hex(line).with_context(|| format!("{}:{}", self.name, n + 1))?;
            fs::write(self.folder.join(format!("seeds/{n:05}")), bytes)?;
        }
        let mut cmd = self.fuzzer(program);
        cmd.arg(format!("-max_total_time={}", args.seconds))
            .args(["-print_final_stats=1", "-timeout=10"])
            .args(["new", "seeds"]);
        let mut child = cmd.stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut tail = Vec::new();
        let (mut runs, mut edges) = (String::from("0"), String::new());
        for line in BufReader::new(child.stderr.take().context("no output")?).lines() {
            let line = line.unwrap_or_default();
            if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
                number.trim().clone_into(&mut runs);
            }
            if let Some(at) = line.split_once("cov: ") {
                at.1.split(' ').next().unwrap_or("").clone_into(&mut edges);
            }
            tail.push(line);
        }
        let good = child.wait()?.success();
        println!(
            "{:>4} {}: {runs} inputs, {edges} edges",
            if good { "ok" } else { "FAIL" },
            self.name
        );
        if !good {
            self.tell(&tail)?;
        } else if args.save {
            self.save(program, &text)?;
        }
        Ok(good)
    }

    /// What was found, and how to keep it.
    fn tell(&self, tail: &[String]) -> Result<()> {
        let said = tail.iter().position(|line| line.contains("panicked at"));
        let said = said.unwrap_or(tail.len().saturating_sub(12));
        tail[said..]
            .iter()
            .take(8)
            .for_each(|l| eprintln!("     {l}"));
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.is_file() {
                let input = to_hex(&fs::read(&path)?);
                eprintln!(
                    "     fuzz/corpus/{}.hex, for `cargo test -p umbra-fuzz`:",
                    self.name
                );
                eprintln!("{input}");
            }
        }
        Ok(())
    }

    /// Writes the corpus again: what is needed of it and of what was found. A line with words for people
    /// stays as it is.
    fn save(&self, program: &Path, text: &str) -> Result<()> {
        let mut cmd = self.fuzzer(program);
        cmd.args(["-merge=1", "merged", "seeds", "new"])
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        if !cmd.status()?.success() {
            bail!("{}: libFuzzer cannot merge its corpus", self.name);
        }
        let mut lines: BTreeSet<String> = text
            .lines()
            .filter(|line| line.contains('#'))
            .map(str::to_owned)
            .collect();
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.join("merged"))? {
            found.push(to_hex(&fs::read(entry?.path())?));
        }
        found.sort_by_key(|line| (line.len(), line.clone()));
        let mut room = match self.name {
            "tables" => MAX_CORPUS_OF_TABLES,
            _ => MAX_CORPUS,
        };
        for line in found {
            if lines.insert(line.clone()) {
                room = room.saturating_sub(line.len() + 1);
            }
            if room == 0 {
                break;
            }
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&self.corpus, text)?;
        Ok(())
    }
}

/// Noise from EL0 on umbra, in a build with checks. Whether nothing was found.
fn noise(ws: &Workspace, args: &FuzzArgs) -> Result<bool> {
    let seconds = args.seconds.to_string();
    let seed = args.seed.to_string();
    let limit = args.seconds * 2 + 120;
    let words = [
        "--umbra",
        "noise/",
        "--seconds",
        &seconds,
        "--seed",
        &seed,
        "--limit",
        &limit.to_string(),
    ];
    let probe = Probe {
        name: "fuzz-noise",
        words: words.map(str::to_owned).to_vec(),
        items: Vec::new(),
        limit: Duration::from_secs(8 * limit),
        says: "noise:",
        indent: "     ",
    };
    let outcome = probe.run(ws, args.qemu.as_deref())?;
    let good = matches!(outcome.end, End::Exited(Some(0)));
    println!("{:>4} {NOISE}", if good { "ok" } else { "FAIL" });
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::{from_hex, to_hex};

    #[test]
    fn lines_of_a_corpus_are_bytes_and_words_for_people() {
        assert_eq!(from_hex("00ff7f"), Some(vec![0, 255, 127]));
        assert_eq!(from_hex("0a # why"), Some(vec![10]));
        assert_eq!(from_hex(""), Some(vec![]));
        assert_eq!((from_hex("0"), from_hex("zz")), (None, None));
        assert_eq!(to_hex(&[0, 255, 127]), "00ff7f");
    }
}
