//! `run linux`: umbra, on it umbra-vmm, in its VM a Linux kernel that reaches user space.
//!
//! The run succeeded when QEMU ends with status 0 (umbra's first program ended with 0, so the VMM
//! saw the guest power off) *and* the guest's own report with this run's nonce is in the console.

use super::status;
use crate::bootargs::BootArgs;
use crate::build::{self, Profile};
use crate::cli::LinuxArgs;
use crate::guest::{self, Item};
use crate::image::Symbols;
use crate::progress::{note, step};
use crate::qemu::{Disk, Machine, Outcome};
use crate::setup::{self, Flavour};
use crate::top;
use crate::trace::{About, Request};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The guest's parts, ours or the caller's.
struct Guest {
    kernel: PathBuf,
    label: String,
    initrd: PathBuf,
    cmdline: String,
    /// What the guest must say, unless the initrd is the caller's.
    report: Option<String>,
}

/// Runs it; the exit status is for the shell.
pub(crate) fn run(ws: &Workspace, args: &LinuxArgs) -> Result<ExitCode> {
    setup::for_build(ws)?;
    let qemu = setup::qemu(ws, args.machine.qemu.as_deref())?;
    let guest = prepare(ws, args)?;
    let kernel = step("build umbra", || build::kernel(ws, Profile::Release))?;
    let programs = step("build init and umbra-vmm", || build::programs(ws))?;
    let items = [
        Item::from_file("/init", &programs.init)?,
        Item::from_file("/bin/umbra-vmm", &programs.vmm)?,
        Item::from_file("/guest/Image", &guest.kernel)?,
        Item::from_file("/guest/initrd", &guest.initrd)?,
    ];
    let initrd = guest::save(ws, "linux.cpio", &guest::initrd(&items)?)?;
    let mut argv = vmm_command(
        "/guest/Image",
        Some("/guest/initrd"),
        &guest.cmdline,
        args.cpus,
        &args.memory,
    );
    let disk = Disk::of(args.machine.disk.as_deref())?;
    if disk.is_some() {
        argv.extend(["--disk", "/dev/vda"].map(str::to_owned));
    }
    let mut log = Transcript::new(ws, "linux")?;
    let trace = Request::of(&args.machine, &log);
    let append = BootArgs::new("/init", argv).render()?;
    let append = top::with(&log, &Request::with(trace.as_ref(), &append)?)?;
    let machine = Machine {
        cpus: args.cpus,
        kernel: kernel.image,
        initrd,
        append,
        disk,
    };

    log.used("umbra-init", &programs.init)?;
    log.used("umbra-vmm", &programs.vmm)?;
    log.used(&format!("guest kernel ({})", guest.label), &guest.kernel)?;
    log.used("guest initrd", &guest.initrd)?;
    note(&format!("guest kernel: {}; {}", guest.label, qemu.version));
    let symbols = Symbols::read(&kernel.elf)?;
    let outcome = if args.machine.interactive {
        note(
            "leave the guest with: poweroff -f; or end QEMU with Ctrl-A X; watch it with: cargo xtask top",
        );
        let limit = args.machine.time_limit.map(Duration::from_secs);
        machine.run_interactive(&qemu, &mut log, limit, trace.as_ref().map(|_| &symbols))?
    } else {
        machine.run(&qemu, &mut log, args.machine.limit(), &symbols, to_terminal)?
    };
    note(&format!("transcript: {}", ws.show(log.path())));
    if let Some(trace) = trace {
        trace.finish(ws, &About::of("linux", &qemu.version, &outcome))?;
    }
    Ok(judge(&guest, &outcome, args.machine.interactive))
}

pub(super) fn to_terminal(bytes: &[u8]) {
    // A closed terminal is no reason to end the run: the transcript goes on.
    let mut out = std::io::stdout();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn prepare(ws: &Workspace, args: &LinuxArgs) -> Result<Guest> {
    let own = (args.kernel.as_deref(), args.initrd.as_deref());
    let debian = match own {
        (Some(_), Some(_)) => None,
        _ => Some(setup::guest_files(ws, Flavour::Newest)?),
    };
    let (kernel, label) = match (own.0, &debian) {
        (Some(kernel), _) => (kernel.to_path_buf(), "the caller's own".to_owned()),
        (None, debian) => {
            let files = debian.as_ref().context("no kernel")?;
            (files.kernel.clone(), files.label.clone())
        }
    };
    let nonce = guest::nonce()?;
    let action = if args.machine.interactive {
        "shell"
    } else {
        "poweroff"
    };
    let ours = guest::cmdline(action, &nonce);
    let (initrd, report) = match (own.1, &debian) {
        (Some(initrd), _) => (initrd.to_path_buf(), None),
        (None, debian) => {
            let mut files = debian.clone().context("no initrd")?;
            if own.0.is_some() {
                // Debian's modules fit Debian's kernel alone.
                files.modules.clear();
            }
            let archive = guest::initramfs(ws, &files, &[])?;
            (
                guest::save(ws, "guest.cpio", &archive)?,
                Some(report(args.cpus, &nonce)),
            )
        }
    };
    let cmdline = match (&args.cmdline, &report) {
        (Some(own), Some(_)) => format!("{own} umbra.do={action} umbra.nonce={nonce}"),
        (Some(own), None) => own.clone(),
        (None, _) => ours,
    };
    Ok(Guest {
        kernel,
        label,
        initrd,
        cmdline,
        report,
    })
}

/// What a guest's init says, as a regular expression.
pub(crate) fn report(cpus: u32, nonce: &str) -> String {
    format!(r"(?m)^umbra: storey=L1 cpus={cpus} mem=\d+MiB nonce={nonce}$")
}

/// The command that starts a guest on umbra-vmm, on umbra or on Linux.
pub(crate) fn vmm_command(
    kernel: &str,
    initrd: Option<&str>,
    cmdline: &str,
    cpus: u32,
    memory: &str,
) -> Vec<String> {
    let mut argv = vec![
        "/bin/umbra-vmm".to_owned(),
        "--kernel".to_owned(),
        kernel.to_owned(),
    ];
    let mut add = |option: &str, value: &str| argv.extend([option.to_owned(), value.to_owned()]);
    if let Some(initrd) = initrd {
        add("--initrd", initrd);
    }
    if !cmdline.is_empty() {
        add("--cmdline", cmdline);
    }
    add("--cpus", &cpus.to_string());
    add("--memory", memory);
    add("--console", "serial");
    argv
}

/// What init says of a VMM whose guest powered off.
const POWERED_OFF: &str = "umbra-init: 1 /bin/umbra-vmm exited 0";

fn judge(guest: &Guest, outcome: &Outcome, interactive: bool) -> ExitCode {
    let status = match status(outcome) {
        Ok(status) => status,
        Err(failed) => return failed,
    };
    let said = guest.report.as_ref().is_none_or(|report| {
        regex::Regex::new(report).is_ok_and(|report| report.is_match(&outcome.console))
    });
    if status != 0 {
        eprintln!("xtask: failed: status {status}");
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    if !said {
        eprintln!("xtask: failed: the guest's report with this run's nonce is not in the console");
        return ExitCode::FAILURE;
    }
    if interactive && !outcome.console.contains(POWERED_OFF) {
        note(&format!(
            "{} ran on umbra; QEMU was ended after {:.0} s",
            guest.label, outcome.seconds
        ));
        return ExitCode::SUCCESS;
    }
    note(&format!(
        "{} ran on umbra and powered off after {:.0} s",
        guest.label, outcome.seconds
    ));
    ExitCode::SUCCESS
}

/// A path's last part, the name that a file keeps in an initrd.
pub(crate) fn file_name(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(|n| n.to_str())
        .with_context(|| format!("{} has no plain file name", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{report, vmm_command};
    use regex::Regex;

    #[test]
    fn the_report_is_one_whole_line_with_this_nonce() {
        let wanted = Regex::new(&report(2, "0123")).unwrap();
        assert!(wanted.is_match("x\numbra: storey=L1 cpus=2 mem=470MiB nonce=0123\n"));
        assert!(!wanted.is_match("umbra: storey=L1 cpus=1 mem=470MiB nonce=0123\n"));
        assert!(!wanted.is_match("umbra: storey=L1 cpus=2 mem=470MiB nonce=01234\n"));
        // The command line itself, as Linux prints it, is no report.
        assert!(!wanted.is_match("Kernel command line: console=ttyS0 umbra.nonce=0123\n"));
    }

    #[test]
    fn vmm_options() {
        let argv = vmm_command("/k", None, "", 1, "64M").join(" ");
        assert_eq!(
            argv,
            "/bin/umbra-vmm --kernel /k --cpus 1 --memory 64M --console serial"
        );
    }
}
