//! The command line.
//!
//! Names and shapes follow what users of other VMMs already type: long options with short
//! forms, `key=value` lists separated by commas, `on|off`, sizes with a K, M or G suffix and
//! MiB without one. Every mistake is an [`Error::Usage`] that names the option and the value.

use std::path::PathBuf;

use lexopt::prelude::*;
use log::LevelFilter;

use crate::error::{Error, Result};
use crate::layout::{MAX_CPUS, MAX_VIRTIO};
use crate::switch::Mac;

/// What `--help` prints.
pub const HELP: &str = "\
umbra-vmm: run a virtual machine through /dev/kvm

usage: umbra-vmm --kernel IMAGE [options]
       umbra-vmm --config FILE [--log-level L]

  -k, --kernel F       arm64 Linux Image to boot
  -i, --initrd F       initial RAM disk (also --initramfs)
  -p, --cmdline S      kernel command line (also --params)
                       [console=ttyS0 panic=-1, or hvc0 with --console virtio]
  -c, --cpus N         virtual CPUs, 1 to 8 [1]
  -m, --memory SIZE[,hugepages=on|off|2M|1G]
                       RAM; K, M, G or MiB without suffix (also --mem); 2M and 1G ask
                       for huge pages of that size and no others [512M,hugepages=on]
      --console KIND[,lines=whole|partial]
                       serial (16550), virtio or off; whole: print lines when they
                       are complete, for several machines on one terminal
                       [serial,lines=partial]
  -d, --disk [path=]F[,ro]
                       virtio-blk disk backed by a raw file or a block device; may be
                       repeated
  -n, --net [switch=]NAME[,mac=ADDRESS]
                       virtio-net card on a switch of this process; may be repeated
      --rng            virtio-rng, with the host's random numbers
      --nested         give the guest EL2: it may run guests of its own
      --on-memory-error ACTION
                       when the guest meets a memory error: inject (an abort; the page
                       is retired), replace (an abort; then a page of zeros), stop, or
                       report (an SError); each event is a line of JSON on stderr
                       [inject]
      --error-injection
                       for tests: a 64-bit store of a guest physical address to
                       0x9100000 makes that page bad, and nobody knows; one to
                       0x9100008 makes it known to be bad
      --stats          at the end, print what the host counted, on stderr
      --config F       several machines: a JSON file, {\"machines\": [{\"name\": \"a\",
                       \"kernel\": \"Image\", \"disk\": [\"a.img\"], \"net\": [\"lan\"]}, …]};
                       the names are those of the long options
      --dump-dtb F     also write the device tree to F
      --log-level L    off, error, warn, info, debug or trace [warn]
  -h, --help           this text
  -V, --version        the version

The console is on stdin and stdout. On a terminal, Ctrl-A x ends the VM and
Ctrl-A Ctrl-A sends one Ctrl-A.

exit status: 0 guest powered off, 1 VMM error, 2 wrong usage, 32 guest reset,
33 guest crash
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Run this machine.
    Run(Box<Options>),
    /// Run the machines of this file.
    Config(PathBuf, LevelFilter),
    /// Print [`HELP`].
    Help,
    /// Print the version.
    Version,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// arm64 Linux Image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Number of virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// What RAM is made of.
    pub hugepages: HugePages,
    /// What carries the console.
    pub console: Console,
    /// Whether a line is printed only when it is complete.
    pub whole_lines: bool,
    /// Disks in the order given.
    pub disks: Vec<Disk>,
    /// Network cards in the order given.
    pub nets: Vec<Net>,
    /// Whether there is an entropy source.
    pub rng: bool,
    /// Whether the guest gets EL2.
    pub nested: bool,
    /// What to do when the guest meets a memory error.
    pub on_memory_error: OnMemoryError,
    /// Whether the guest may ask for memory errors.
    pub error_injection: bool,
    /// Whether to print what the host counted.
    pub stats: bool,
    /// Where to write the device tree.
    pub dump_dtb: Option<PathBuf>,
    /// What to log.
    pub log_level: LevelFilter,
}

/// What to do when the guest meets a memory error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMemoryError {
    /// An abort in the guest; the page is retired, and accesses to it go on failing.
    Inject,
    /// An abort in the guest; then a page of zeros takes its place.
    Replace,
    /// The VM ends.
    Stop,
    /// Only told: an SError in the guest, as without this VMM's help.
    Report,
}

impl OnMemoryError {
    const ALL: [Self; 4] = [Self::Inject, Self::Replace, Self::Stop, Self::Report];

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::Replace => "replace",
            Self::Stop => "stop",
            Self::Report => "report",
        }
    }
}

/// What carries the console between the guest and stdin/stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A 16550 UART (`ttyS0`).
    Serial,
    /// A virtio console (`hvc0`).
    Virtio,
    /// None.
    Off,
}

/// What RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages.
    Off,
    /// Huge pages where the host has some to spare.
    On,
    /// Huge pages of `1 << self` bytes, from the host's pool; none other.
    Pool(u8),
}

/// One `--net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// The switch's name.
    pub switch: String,
    /// The card's address; otherwise one is made up.
    pub mac: Option<Mac>,
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Raw file with the content.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Reads the arguments that follow the program's name.
pub fn parse<I>(args: I) -> Result<Request>
where
    I: IntoIterator,
    I::Item: Into<std::ffi::OsString>,
{
    let mut parser = lexopt::Parser::from_args(args);
    let (mut kernel, mut initrd, mut cmdline, mut dump_dtb) = (None, None, None, None);
    let mut config = None;
    let mut cpus = 1;
    let (mut memory, mut hugepages) = (512 << 20, HugePages::On);
    let (mut console, mut whole_lines) = (Console::Serial, false);
    let (mut disks, mut nets, mut rng) = (Vec::new(), Vec::new(), false);
    let (mut nested, mut stats) = (false, false);
    let (mut on_memory_error, mut error_injection) = (OnMemoryError::Inject, false);
    let mut log_level = LevelFilter::Warn;
    // An option that says something of one machine.
    let mut of_machine = None;

    while let Some(arg) = parser.next().map_err(usage)? {
        if !matches!(
            arg,
            Long("config" | "log-level" | "help" | "version") | Short('h' | 'V')
        ) {
            of_machine.get_or_insert_with(|| match &arg {
                Short(short) => format!("-{short}"),
                Long(long) => format!("--{long}"),
                Value(value) => format!("{value:?}"),
            });
        }
        match arg {
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Short('k') | Long("kernel") => kernel = Some(path(&mut parser)?),
            Short('i') | Long("initrd" | "initramfs") => initrd = Some(path(&mut parser)?),
            Short('p') | Long("cmdline" | "params") => cmdline = Some(text(&mut parser)?),
            Short('c') | Long("cpus") => cpus = parse_cpus(&text(&mut parser)?)?,
            Short('m') | Long("memory" | "mem") => {
                (memory, hugepages) = parse_memory(&text(&mut parser)?)?;
            }
            Long("console") => {
                (console, whole_lines) = parse_console(&text(&mut parser)?)?;
            }
            Short('d') | Long("disk") => disks.push(parse_disk(&text(&mut parser)?)?),
            Short('n') | Long("net") => nets.push(parse_net(&text(&mut parser)?)?),
            Long("rng") => rng = true,
            Long("config") => config = Some(path(&mut parser)?),
            Long("nested") => nested = true,
            Long("on-memory-error") => on_memory_error = parse_action(&text(&mut parser)?)?,
            Long("error-injection") => error_injection = true,
            Long("stats") => stats = true,
            Long("dump-dtb") => dump_dtb = Some(path(&mut parser)?),
            Long("log-level") => log_level = parse_log_level(&text(&mut parser)?)?,
            other => return Err(usage(other.unexpected())),
        }
    }

    if let Some(config) = config {
        return match of_machine {
            None => Ok(Request::Config(config, log_level)),
            Some(option) => Err(Error::Usage(format!(
                "--config {}: {option} says something of one machine; it goes into the file",
                config.display()
            ))),
        };
    }
    let kernel = kernel.ok_or_else(|| Error::Usage("--kernel is missing".into()))?;
    let virtio =
        disks.len() + nets.len() + usize::from(rng) + usize::from(console == Console::Virtio);
    if virtio > MAX_VIRTIO {
        return Err(Error::Usage(format!(
            "--disk, --net, --rng: at most {MAX_VIRTIO} virtio devices, this asks for {virtio}"
        )));
    }
    let cmdline = cmdline.unwrap_or_else(|| {
        match console {
            Console::Serial => "console=ttyS0 panic=-1",
            Console::Virtio => "console=hvc0 panic=-1",
            Console::Off => "panic=-1",
        }
        .into()
    });
    if let HugePages::Pool(shift) = hugepages
        && memory % (1 << shift) != 0
    {
        return Err(Error::Usage(format!(
            "--memory: {} MiB are not a number of huge pages of {} MiB",
            memory >> 20,
            1u64 << (shift - 20)
        )));
    }
    Ok(Request::Run(Box::new(Options {
        kernel,
        initrd,
        cmdline,
        cpus,
        memory,
        hugepages,
        console,
        whole_lines,
        disks,
        nets,
        rng,
        nested,
        on_memory_error,
        error_injection,
        stats,
        dump_dtb,
        log_level,
    })))
}

fn usage(e: lexopt::Error) -> Error {
    Error::Usage(e.to_string())
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf> {
    let value = parser.value().map_err(usage)?;
    if value.is_empty() {
        return Err(Error::Usage("a file name is empty".into()));
    }
    Ok(value.into())
}

fn text(parser: &mut lexopt::Parser) -> Result<String> {
    parser.value().map_err(usage)?.string().map_err(usage)
}

fn parse_cpus(value: &str) -> Result<u32> {
    match value.parse() {
        Ok(n) if (1..=MAX_CPUS).contains(&n) => Ok(n),
        _ => Err(Error::Usage(format!(
            "--cpus {value}: expected a number from 1 to {MAX_CPUS}"
        ))),
    }
}

/// A size in bytes: digits and an optional K, M, G (or nothing: MiB).
fn parse_size(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' | b'k' => (&value[..value.len() - 1], 10),
        b'M' | b'm' => (&value[..value.len() - 1], 20),
        b'G' | b'g' => (&value[..value.len() - 1], 30),
        _ => (value, 20),
    };
    // u64's own parser would also take a leading plus sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_memory(value: &str) -> Result<(u64, HugePages)> {
    let bad = |why: &str| Error::Usage(format!("--memory {value}: {why}"));
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let size = parse_size(first.strip_prefix("size=").unwrap_or(first))
        .ok_or_else(|| bad("expected a size such as 512M"))?;
    if size < 32 << 20 {
        return Err(bad("less than 32 MiB"));
    }
    if size > 512 << 30 {
        return Err(bad("more than 512 GiB"));
    }
    if size % (2 << 20) != 0 {
        return Err(bad("not a multiple of 2 MiB"));
    }
    let mut hugepages = HugePages::On;
    for part in parts {
        hugepages = match part {
            "hugepages=on" => HugePages::On,
            "hugepages=off" => HugePages::Off,
            "hugepages=2M" => HugePages::Pool(21),
            "hugepages=1G" => HugePages::Pool(30),
            _ => return Err(bad(&format!("unknown setting {part:?}"))),
        };
    }
    Ok((size, hugepages))
}

fn parse_console(value: &str) -> Result<(Console, bool)> {
    let bad = |why: &str| Error::Usage(format!("--console {value}: {why}"));
    let mut parts = value.split(',');
    let console = match parts.next().unwrap_or_default() {
        "serial" => Console::Serial,
        "virtio" => Console::Virtio,
        "off" => Console::Off,
        _ => return Err(bad("expected serial, virtio or off")),
    };
    let mut whole_lines = false;
    for part in parts {
        whole_lines = match part {
            "lines=whole" => true,
            "lines=partial" => false,
            _ => return Err(bad(&format!("unknown setting {part:?}"))),
        };
    }
    Ok((console, whole_lines))
}

fn parse_action(value: &str) -> Result<OnMemoryError> {
    let known = OnMemoryError::ALL.into_iter();
    let found = known.clone().find(|action| action.name() == value);
    found.ok_or_else(|| {
        Error::Usage(format!(
            "--on-memory-error {value}: expected inject, replace, stop or report"
        ))
    })
}

fn parse_disk(value: &str) -> Result<Disk> {
    let bad = |why: &str| Error::Usage(format!("--disk {value}: {why}"));
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let path = first.strip_prefix("path=").unwrap_or(first);
    if path.is_empty() {
        return Err(bad("the file name is empty"));
    }
    let mut read_only = false;
    for part in parts {
        read_only = match part {
            "ro" | "readonly=on" => true,
            "rw" | "readonly=off" => false,
            _ => return Err(bad(&format!("unknown setting {part:?}"))),
        };
    }
    Ok(Disk {
        path: path.into(),
        read_only,
    })
}

fn parse_net(value: &str) -> Result<Net> {
    let bad = |why: &str| Error::Usage(format!("--net {value}: {why}"));
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let switch = first.strip_prefix("switch=").unwrap_or(first);
    if switch.is_empty() || switch.contains('=') {
        return Err(bad("expected the name of a switch"));
    }
    let mut mac = None;
    for part in parts {
        let text = part
            .strip_prefix("mac=")
            .ok_or_else(|| bad(&format!("unknown setting {part:?}")))?;
        mac = Some(parse_mac(text).ok_or_else(|| {
            bad("expected the address of one card, such as mac=02:00:00:00:00:01")
        })?);
    }
    Ok(Net {
        switch: switch.into(),
        mac,
    })
}

/// Six bytes in hexadecimal with colons between; not a group's, and not all zeros.
fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = digits
            .then(|| u8::from_str_radix(part, 16).ok())
            .flatten()?;
    }
    let one = mac[0] & 1 == 0 && mac != Mac::default();
    (parts.next().is_none() && one).then_some(mac)
}

fn parse_log_level(value: &str) -> Result<LevelFilter> {
    value.parse().map_err(|_| {
        Error::Usage(format!(
            "--log-level {value}: expected off, error, warn, info, debug or trace"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Options {
        match parse(args.iter().copied()) {
            Ok(Request::Run(options)) => *options,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn refused(args: &[&str]) -> String {
        match parse(args.iter().copied()) {
            Err(Error::Usage(text)) => text,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let o = run(&["-k", "Image"]);
        assert_eq!(o.kernel, PathBuf::from("Image"));
        assert_eq!(
            (o.cpus, o.memory, o.hugepages),
            (1, 512 << 20, HugePages::On)
        );
        assert!(o.nets.is_empty() && !o.rng);
        assert_eq!((o.console, o.whole_lines), (Console::Serial, false));
        assert_eq!(o.cmdline, "console=ttyS0 panic=-1");
        assert_eq!(
            (o.on_memory_error, o.error_injection),
            (OnMemoryError::Inject, false)
        );
        assert!(o.initrd.is_none() && o.disks.is_empty() && !o.nested && !o.stats);
    }

    #[test]
    fn every_option_in_long_and_short_form() {
        let long = run(&[
            "--kernel=K",
            "--initrd=I",
            "--cmdline=a b",
            "--cpus=8",
            "--memory=1G,hugepages=off",
            "--console=virtio,lines=whole",
            "--disk=path=D,ro",
            "--net=switch=lan,mac=02:00:00:00:00:aB",
            "--rng",
            "--dump-dtb=T",
            "--log-level=debug",
            "--nested",
            "--on-memory-error=replace",
            "--error-injection",
            "--stats",
        ]);
        let short = run(&[
            "-kK",
            "-i",
            "I",
            "-p",
            "a b",
            "-c8",
            "-m",
            "1024,hugepages=off",
            "--console",
            "virtio,lines=whole",
            "-d",
            "D,ro",
            "-n",
            "lan,mac=02:00:00:00:00:ab",
            "--rng",
            "--dump-dtb",
            "T",
            "--log-level",
            "debug",
            "--stats",
            "--nested",
            "--on-memory-error",
            "replace",
            "--error-injection",
        ]);
        assert_eq!(long, short);
        assert_eq!(
            (long.cpus, long.memory, long.hugepages),
            (8, 1 << 30, HugePages::Off)
        );
        assert_eq!((long.console, long.whole_lines), (Console::Virtio, true));
        assert_eq!(
            long.disks,
            [Disk {
                path: "D".into(),
                read_only: true
            }]
        );
        let alias = run(&[
            "-k",
            "K",
            "--initramfs",
            "I",
            "--params",
            "x",
            "--mem",
            "64M",
        ]);
        assert_eq!(alias.initrd, Some("I".into()));
        assert_eq!((alias.cmdline.as_str(), alias.memory), ("x", 64 << 20));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Some(512 << 20));
        assert_eq!(parse_size("65536K"), Some(64 << 20));
        assert_eq!(parse_size("2g"), Some(2 << 30));
        for bad in [
            "",
            "M",
            "-1",
            "+5",
            "1T",
            "0x10",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    /// Wrong values of each option that has one, and a word that the message must have.
    const WRONG: [(&str, &str, &str); 34] = [
        ("--kernel", "", "empty"),
        ("--initrd", "", "empty"),
        ("--initramfs", "", "empty"),
        ("--cpus", "0", "1 to 8"),
        ("--cpus", "9", "1 to 8"),
        ("--cpus", "two", "two"),
        ("--cpus", "-1", "1 to 8"),
        ("--memory", "31M", "32 MiB"),
        ("--memory", "513G", "512 GiB"),
        ("--memory", "33M", "2 MiB"),
        ("--memory", "lots", "512M"),
        ("--memory", "64M,huge=1", "huge=1"),
        ("--memory", "64M,hugepages=4K", "hugepages=4K"),
        ("--memory", "512M,hugepages=1G", "1024 MiB"),
        ("--mem", "", "512M"),
        ("--console", "tty", "serial, virtio or off"),
        ("--console", "serial,lines=3", "lines=3"),
        ("--disk", "path=", "empty"),
        ("--disk", "D,wo", "wo"),
        ("--net", "", "name of a switch"),
        ("--net", "lan,mac", "\"mac\""),
        ("--net", "tap=tap0", "name of a switch"),
        ("--net", "lan,mac=02:00:00:00:00", "02:00:00:00:00:01"),
        ("--net", "lan,mac=02:00:00:00:00:0g", "02:00:00:00:00:01"),
        ("--net", "lan,mac=02:00:00:00:00:+1", "02:00:00:00:00:01"),
        ("--net", "lan,mac=01:00:00:00:00:01", "one card"),
        ("--net", "lan,mac=00:00:00:00:00:00", "one card"),
        ("--on-memory-error", "panic", "replace"),
        ("--dump-dtb", "", "empty"),
        ("--log-level", "loud", "trace"),
        ("--config", "", "empty"),
        ("--nested", "on", "--nested"),
        ("--stats", "on", "--stats"),
        ("--rng", "1", "--rng"),
    ];

    #[test]
    fn each_wrong_value_names_its_option() {
        for (option, value, word) in WRONG {
            let arg = format!("{option}={value}");
            let text = refused(&["-kK", &arg]);
            assert!(text.contains(word), "{arg}: {text}");
            let told = [option, "--memory"].iter().any(|name| text.contains(name));
            assert!(told || word == "empty", "{arg}: {text}");
        }
        for (args, word) in [
            (vec!["-k", "K", "--frobnicate"], "frobnicate"),
            (vec!["-k", "K", "-x"], "-x"),
            (vec!["-k", "K", "extra"], "extra"),
            (vec!["-k", "K", "--error-injection=no"], "error-injection"),
            (vec!["-k"], "-k"),
            (vec![], "--kernel"),
            (vec!["--config", "F", "-c", "2"], "-c says something"),
            (vec!["-k", "K", "--config", "F"], "-k says something"),
            (vec!["--config", "F", "more"], "more"),
        ] {
            let text = refused(&args);
            assert!(text.contains(word), "{args:?}: {text}");
        }
        let many = ["-dD"; MAX_VIRTIO];
        for further in ["--console=virtio", "--rng", "--net=lan"] {
            let args = [&["-kK", further][..], &many].concat();
            assert!(refused(&args).contains("virtio devices"), "{further}");
        }
    }

    #[test]
    fn each_option_of_the_help_is_tried() {
        // What takes no value, and what takes any.
        const FREE: [&str; 5] = ["help", "version", "error-injection", "cmdline", "params"];
        let words = HELP.split(|c: char| !(c.is_alphanumeric() || c == '-'));
        let options = words
            .filter_map(|word| word.strip_prefix("--"))
            .filter(|w| !w.is_empty());
        for option in options {
            let tried = WRONG.iter().any(|(name, ..)| name[2..] == *option);
            assert!(tried || FREE.contains(&option), "--{option}");
        }
    }

    #[test]
    fn several_machines_are_a_file() {
        let request = parse(["--config", "F", "--log-level", "info"]);
        assert_eq!(request, Ok(Request::Config("F".into(), LevelFilter::Info)));
    }

    #[test]
    fn huge_pages_of_each_size() {
        for (text, pages) in [("2M", HugePages::Pool(21)), ("1G", HugePages::Pool(30))] {
            let arg = format!("-m2G,hugepages={text}");
            assert_eq!(run(&["-kK", &arg]).hugepages, pages);
        }
    }

    #[test]
    fn help_and_version_win() {
        assert_eq!(parse(["--help"]), Ok(Request::Help));
        assert_eq!(parse(["-k", "K", "-V"]), Ok(Request::Version));
    }
}
