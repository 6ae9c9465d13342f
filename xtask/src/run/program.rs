//! `run program`: one arm64 Linux program as a process on umbra.
//!
//! The program is umbra's first program, `umbra.quiet` keeps umbra's own lines off the console, and
//! `umbra.exit=semihosting` makes QEMU end with the program's exit status. So standard output is the
//! program's and so is the status.

use super::linux::file_name;
use super::status;
use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::cli::ProgramArgs;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::progress::{note, step};
use crate::qemu::{Disk, Machine};
use crate::setup;
use crate::top;
use crate::trace::{About, Request};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Where the program's standard input lies in the initrd.
const STDIN: &str = "/.stdin";

/// Runs it; the exit status is the program's.
pub(crate) fn run(ws: &Workspace, args: &ProgramArgs) -> Result<ExitCode> {
    let elf = std::fs::read(&args.path)
        .with_context(|| format!("cannot read {}", args.path.display()))?;
    check(&elf, &args.path, |linker| {
        args.with.iter().any(|word| gives(word, linker))
    })?;
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.machine.qemu.as_deref())?;
    let kernel = step("build umbra", || build::kernel(ws, Profile::Release))?;
    let mut log = Transcript::new(ws, "program")?;
    log.used("program", &args.path)?;
    let mut machine = machine(ws, "program", kernel.image, args)?;
    let trace = Request::of(&args.machine, &log);
    machine.append = Request::with(trace.as_ref(), &machine.append)?;
    let symbols = Symbols::read(&kernel.elf)?;
    let outcome = if args.machine.interactive {
        machine.append = top::with(&log, &machine.append)?;
        let limit = args.machine.time_limit.map(Duration::from_secs);
        machine.run_interactive(&qemu, &mut log, limit, trace.as_ref().map(|_| &symbols))?
    } else {
        let mut out = std::io::stdout();
        machine.run(&qemu, &mut log, args.machine.limit(), &symbols, |bytes| {
            // The console is a terminal and ends its lines with CR LF; what a program wrote had none.
            let bytes: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\r').collect();
            // Nobody reading any more is no reason to end the program: the transcript goes on.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        })?
    };
    note(&format!("transcript: {}", ws.show(log.path())));
    if let Some(trace) = trace {
        trace.finish(ws, &About::of("program", &qemu.version, &outcome))?;
    }
    match status(&outcome) {
        Ok(status) => Ok(ExitCode::from(u8::try_from(status & 0xff)?)),
        Err(failed) => Ok(failed),
    }
}

/// The machine that runs the program on the umbra of this Image; `name` names its initrd.
pub(crate) fn machine(
    ws: &Workspace,
    name: &str,
    image: PathBuf,
    args: &ProgramArgs,
) -> Result<Machine> {
    let path = format!("/bin/{}", file_name(&args.path)?);
    let mut items = vec![Item::from_file(&path, &args.path)?];
    for word in &args.with {
        let (file, at) = placed(word)?;
        put(&mut items, &file, &at)?;
    }
    let mut words = BootArgs::new(&path, args.args.clone()).with("umbra.quiet");
    if let Some(bytes) = input(args.stdin.as_deref())? {
        items.push(Item::bytes(STDIN, bytes));
        words = words.with(&format!("umbra.stdin={STDIN}"));
    } else if !args.machine.interactive {
        words = words.with("umbra.stdin=/dev/null");
    }
    let initrd = guest::save(ws, &format!("{name}.cpio"), &guest::initrd(&items)?)?;
    let append = words.render()?;
    Ok(Machine {
        cpus: args.cpus,
        kernel: image,
        initrd,
        append,
        disk: Disk::of(args.machine.disk.as_deref())?,
    })
}

/// A file at its path; of a directory, what is in it.
fn put(items: &mut Vec<Item>, file: &Path, at: &str) -> Result<()> {
    if !file.is_dir() {
        items.push(Item::from_file(at, file)?);
        return Ok(());
    }
    let entries =
        std::fs::read_dir(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.sort();
    for file in files {
        put(
            items,
            &file,
            &format!("{}/{}", at.trim_end_matches('/'), file_name(&file)?),
        )?;
    }
    Ok(())
}

/// The bytes of the program's standard input, if it is to have any.
fn input(stdin: Option<&Path>) -> Result<Option<Vec<u8>>> {
    let Some(path) = stdin else {
        return Ok(None);
    };
    if path != Path::new("-") {
        let bytes = std::fs::read(path);
        return bytes
            .map(Some)
            .with_context(|| format!("cannot read {}", path.display()));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    Ok(Some(bytes))
}

/// A file of `--with` and its path in the initrd: its own name in /, or what stands behind `=`.
fn placed(word: &str) -> Result<(PathBuf, String)> {
    match word.split_once('=') {
        // A file whose own name holds the sign.
        _ if Path::new(word).exists() => {
            let file = PathBuf::from(word);
            let at = format!("/{}", file_name(&file)?);
            Ok((file, at))
        }
        Some((file, at)) if at.starts_with('/') => Ok((PathBuf::from(file), at.to_owned())),
        Some((_, at)) => bail!("--with {word}: {at:?} is no absolute path"),
        None => bail!("--with {word}: there is no such file"),
    }
}

/// Whether this word of `--with` puts a file at `path`.
fn gives(word: &str, path: &str) -> bool {
    let mut items = Vec::new();
    placed(word)
        .is_ok_and(|(file, at)| path.starts_with(&at) && put(&mut items, &file, &at).is_ok())
        && items.iter().any(|item| item.path() == path)
}

/// Refuses what umbra could not start anyway, with a reason. `there`: whether a path will be there.
fn check(elf: &[u8], path: &Path, there: impl Fn(&str) -> bool) -> Result<()> {
    use object::elf::{EM_AARCH64, FileHeader64, PT_INTERP};
    use object::read::elf::{FileHeader, ProgramHeader};
    let name = path.display();
    let Ok(header) = FileHeader64::<object::Endianness>::parse(elf) else {
        bail!("{name} is no 64-bit ELF program");
    };
    let endian = header.endian()?;
    if header.e_machine(endian) != EM_AARCH64 {
        bail!("{name} is a program for another architecture than arm64");
    }
    let named = header
        .program_headers(endian, elf)?
        .iter()
        .find(|p| p.p_type(endian) == PT_INTERP)
        .and_then(|p| p.data(endian, elf).ok())
        .map(|path| {
            String::from_utf8_lossy(path)
                .trim_end_matches('\0')
                .to_owned()
        });
    match named {
        Some(linker) if !there(&linker) => bail!(
            "{name} is linked dynamically, by {linker}: give that and the libraries with --with (a directory \
             gives all that is in it)"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check, placed};
    use std::path::Path;

    #[test]
    fn files_go_where_they_are_told() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert_eq!(placed(manifest).unwrap().1, "/Cargo.toml");
        let (file, at) = placed("box=/bin/sh").unwrap();
        assert_eq!((file.to_str(), at.as_str()), (Some("box"), "/bin/sh"));
        assert!(placed("box=bin/sh").is_err() && placed("/no/such/file").is_err());
    }

    #[test]
    fn what_is_no_arm64_program_is_refused_by_name() {
        let say = |bytes: &[u8]| {
            check(bytes, Path::new("prog"), |_| false)
                .unwrap_err()
                .to_string()
        };
        assert!(say(b"#!/bin/sh\n").contains("no 64-bit ELF"));
        // This test itself is a program of the host's.
        if cfg!(target_arch = "x86_64") {
            let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
            assert!(say(&own).contains("another architecture"));
        }
        let linked = crate::test::linked::program();
        assert!(say(&linked).contains("by /lib/linker"));
        assert!(check(&linked, Path::new("prog"), |path| path == "/lib/linker").is_ok());
    }
}
