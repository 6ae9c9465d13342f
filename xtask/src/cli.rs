//! The command line.

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Set up, build, run and test umbra.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch what building and running need: Rust targets, QEMU, guest kernels, crates.
    Setup {
        /// Change nothing; say what is missing and how to mend it.
        #[arg(long)]
        check: bool,
    },
    /// Run something on umbra in QEMU. Without a word: `linux`.
    Run {
        /// What to run.
        #[command(subcommand)]
        what: Option<Run>,
    },
    /// Make something go wrong at random, many times, on umbra in QEMU.
    Campaign {
        /// What goes wrong.
        #[command(subcommand)]
        what: Campaign,
    },
    /// Feed the fuzz targets with inputs that they have not seen, and umbra with noise from EL0.
    Fuzz(FuzzArgs),
    /// Run the tests: on the host first, then on umbra in QEMU.
    Test(TestArgs),
    /// Look at a recorded trace again: writes its JSON and its report.
    Trace(TraceArgs),
    /// Watch a guest that runs in another terminal: time by storey, exits by kind, shadow tables, memory.
    Top(TopArgs),
    /// Count what exits cost, on umbra and on Linux/KVM, and write docs/performance.md.
    Bench(BenchArgs),
    /// Build umbra as one arm64 Image, and pack an initrd for it.
    Image {
        /// Where the Image goes instead of target/umbra/image/umbra.Image.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Also pack an initrd: where it goes, then FILE=PATH pairs (a file here, its path there).
        #[arg(long, num_args = 1.., value_names = ["OUT", "FILE=PATH"])]
        initrd: Vec<String>,
    },
    /// Become another program that does not outlive its parent (`guard.rs`).
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// Arguments of `guard`.
#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// The process that asks: if the parent is another one, it is gone already.
    #[arg(long)]
    pub(crate) parent: u32,
    /// A variable of the program's environment.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<OsString>,
    /// Start a session, with standard input as its terminal.
    #[arg(long)]
    pub(crate) session: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) words: Vec<OsString>,
}

/// What can go wrong.
#[derive(Debug, Subcommand)]
pub(crate) enum Campaign {
    /// Memory: frames of every owner, beside VMs whose sums must stay right.
    MemoryError(MemoryErrorCampaign),
}

/// Arguments of `campaign memory-error`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MemoryErrorCampaign {
    /// Where the random numbers begin: the same seed makes the same campaign.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Injections.
    #[arg(long, default_value_t = 200)]
    pub(crate) count: u64,
    /// The QEMU program to use.
    #[arg(long)]
    pub(crate) qemu: Option<PathBuf>,
    /// Give up after this many seconds; without it, two for each injection and two minutes.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) time_limit: Option<u64>,
}

/// Arguments of `fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target.
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Keep what is new: write the corpora of fuzz/corpus again, merged.
    #[arg(long)]
    pub(crate) save: bool,
    /// Where the random numbers of `noise` begin.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The QEMU program to use.
    #[arg(long)]
    pub(crate) qemu: Option<PathBuf>,
    /// Only these; `noise` is the one on umbra.
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
}

/// What can be run.
#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// A Debian kernel in a VM: umbra starts umbra-vmm, which starts the guest.
    Linux(LinuxArgs),
    /// A Debian kernel whose KVM runs at virtual EL2, and in it a Debian guest of its own.
    Nested(NestedArgs),
    /// A memory error that one process of a guest's guest meets, and nobody else: tells its way storey by
    /// storey, and what was lost.
    MemoryError(MemoryErrorArgs),
    /// An arm64 Linux program as a process on umbra. Its exit status becomes this command's.
    Program(ProgramArgs),
}

/// The machine that QEMU emulates.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArgs {
    /// The QEMU program to use.
    #[arg(long)]
    pub(crate) qemu: Option<PathBuf>,
    /// Connect the terminal. Leave by ending the guest (`poweroff -f`), or with Ctrl-A X.
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// The machine's disk: a raw file, /dev/vda on umbra, and in the guest of `run linux`.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,
    /// Record what umbra does: target/umbra/run/NAME.trace.json, for ui.perfetto.dev.
    #[arg(long)]
    pub(crate) trace: bool,
    /// Record, and tell of it in one page: target/umbra/run/NAME.report.html.
    #[arg(long)]
    pub(crate) report: bool,
    /// Give up after this many seconds; without it, 900 seconds, or never with --interactive.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) time_limit: Option<u64>,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The file that a run with --trace left (NAME.trace).
    pub(crate) file: PathBuf,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The run: `linux`, `nested` or `program`. Without it, the one that was started last.
    pub(crate) run: Option<String>,
    /// Seconds between two looks.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub(crate) interval: f64,
    /// Look once, and print it.
    #[arg(long)]
    pub(crate) once: bool,
}

/// A pause that is worth it: umbra tells its numbers twice a second.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.5..=3600.0).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("from 0.5 to 3600".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

/// Arguments of `run linux`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LinuxArgs {
    /// The guest's kernel (an arm64 Image) instead of Debian's newest.
    #[arg(long)]
    pub(crate) kernel: Option<PathBuf>,
    /// The guest's initrd instead of the one with BusyBox.
    #[arg(long)]
    pub(crate) initrd: Option<PathBuf>,
    /// The guest's command line instead of the usual one.
    #[arg(long)]
    pub(crate) cmdline: Option<String>,
    /// The guest's virtual CPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    /// The guest's memory.
    #[arg(long, default_value = "512M")]
    pub(crate) memory: String,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

impl Default for LinuxArgs {
    fn default() -> Self {
        let machine = MachineArgs {
            qemu: None,
            interactive: false,
            disk: None,
            trace: false,
            report: false,
            time_limit: None,
        };
        Self {
            kernel: None,
            initrd: None,
            cmdline: None,
            cpus: 2,
            memory: "512M".into(),
            machine,
        }
    }
}

/// Arguments of `run nested`.
#[derive(Debug, Clone, Args)]
pub(crate) struct NestedArgs {
    /// CPUs of the machine, and virtual CPUs of the guest hypervisor.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    /// Virtual CPUs of the guest hypervisor's guest.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) l2_cpus: u32,
    /// The guest hypervisor's kernel (an arm64 Image with KVM) instead of Debian's newest.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel of the guest hypervisor's guest instead of Debian's newest.
    #[arg(long, value_name = "FILE")]
    pub(crate) l2_kernel: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

/// Arguments of `run memory-error`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MemoryErrorArgs {
    /// CPUs of the machine, and virtual CPUs of the guest hypervisor.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

/// Arguments of `run program`.
#[derive(Debug, Args)]
pub(crate) struct ProgramArgs {
    /// The program: an arm64 Linux ELF, static, or with its dynamic linker and libraries by --with. It runs as
    /// /bin/NAME in the directory /.
    pub(crate) path: PathBuf,
    /// A file to put into the directory / under its own name, or at the path behind `=`, or a directory with all
    /// that is in it; may be given again.
    #[arg(long, value_name = "FILE[=PATH]")]
    pub(crate) with: Vec<String>,
    /// The program's standard input: a file, or `-` for one's own, read to its end before the program starts.
    /// Without this flag it is empty.
    #[arg(long, value_name = "FILE", conflicts_with = "interactive")]
    pub(crate) stdin: Option<PathBuf>,
    /// CPUs of the machine.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The program's arguments.
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Leave out what takes long: KVM on KVM, and guests of guests that are Debian.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Change nothing in docs/; the table and target/umbra/bench.json alone.
    #[arg(long)]
    pub(crate) dry: bool,
    /// umbra alone, which takes seconds: what a change did. Nothing is compared or written.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Take KVM's side from target/umbra/bench-kvm/ where an earlier run with the very same files kept it.
    #[arg(long, conflicts_with = "alone")]
    pub(crate) reuse: bool,
    /// Measure nothing: write docs/performance.md again from target/umbra/bench.json.
    #[arg(long, exclusive = true)]
    pub(crate) page: bool,
    /// Print all counts of each session, by cause and between which marks.
    #[arg(long)]
    pub(crate) list: bool,
    /// A further QEMU plugin for all machines, with its options (FILE,out=FILE): another counter, to compare.
    #[arg(long, value_name = "FILE[,OPTION…]", conflicts_with = "reuse")]
    pub(crate) plugin: Vec<String>,
    /// Seconds after which a machine is given up; its rows are missing then, and the others are told.
    #[arg(long, value_name = "SECONDS", default_value_t = 7200, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// The pure parts on this machine instead, as the work grows, and docs/host-benches.md. Needs valgrind.
    #[arg(long, conflicts_with_all = ["quick", "alone", "qemu", "filters"])]
    pub(crate) host: bool,
    /// The QEMU program to use. It must have been built with plugins.
    #[arg(long)]
    pub(crate) qemu: Option<PathBuf>,
    /// Only these sessions: pages, blocks, pair, vmm, l1-pages, l1-blocks, l1-many, take-back-more, l1-costly, take-back,
    /// debian-blocks, debian-pages, nested-blocks, nested-mixed, nested-pages. Then docs/ stays as it is.
    #[arg(value_name = "SESSION")]
    pub(crate) filters: Vec<String>,
}

/// Arguments of `test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Only what runs on this machine, without QEMU.
    #[arg(long)]
    pub(crate) host: bool,
    /// Also the cases that are left out for their length.
    #[arg(long)]
    pub(crate) full: bool,
    /// The QEMU program to use.
    #[arg(long)]
    pub(crate) qemu: Option<PathBuf>,
    /// Only tests with one of these in their name. `sabotage` takes those that leave out each
    /// safeguard of umbra in turn and demand that another test notices.
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, LinuxArgs, Run};
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn linux_defaults_are_the_same_with_and_without_the_word() {
        let cli = Cli::parse_from(["xtask", "run", "linux"]);
        let Command::Run {
            what: Some(Run::Linux(args)),
        } = cli.command
        else {
            panic!("parsed as something else");
        };
        assert_eq!(format!("{args:?}"), format!("{:?}", LinuxArgs::default()));
    }

    #[test]
    fn a_programs_own_options_are_its_own() {
        let words = [
            "xtask", "run", "program", "a.out", "--with", "f", "--", "--cpus", "-x",
        ];
        let Command::Run {
            what: Some(Run::Program(args)),
        } = Cli::parse_from(words).command
        else {
            panic!("parsed as something else");
        };
        assert_eq!(args.args, ["--cpus", "-x"]);
        assert_eq!(args.cpus, 2);
    }
}
