//! What a case on a booted machine is: what runs, on which machine, and what is expected of it.

use crate::nested::Storeys;
use crate::setup::Flavour;

/// The text file that programs are given, as /hello.txt.
pub(crate) const HELLO: &str = "umbra has one shadow too few\n";

/// A test program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum File {
    /// Debian's static BusyBox, /bin/busybox.
    Busybox,
    /// Our Rust std program with threads, /bin/el0-threads.
    Threads,
    /// Questions to /dev/kvm, /bin/kvm-probe.
    Probe,
    /// A program with a dynamic linker, /bin/linked.
    Linked,
}

impl File {
    /// Where it is in the initrd.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Busybox => "/bin/busybox",
            Self::Threads => "/bin/el0-threads",
            Self::Probe => "/bin/kvm-probe",
            Self::Linked => "/bin/linked",
        }
    }
}

/// How a person leaves `run linux --interactive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// By `poweroff -f` in the guest's shell, after a look round.
    PowerOff,
    /// By Ctrl-A X.
    CtrlAX,
    /// Not at all: xtask gets a SIGTERM.
    Terminated,
}

impl Leave {
    /// The last part of the case's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "interactive",
            Self::CtrlAX => "ctrl-a-x",
            Self::Terminated => "terminated",
        }
    }
}

/// Debian guests of one kind, each under a VMM of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guests {
    /// Their kernel.
    pub(crate) flavour: Flavour,
    /// Virtual CPUs of each.
    pub(crate) cpus: u32,
    /// Memory of each, as umbra-vmm takes it.
    pub(crate) memory: &'static str,
    /// How many run at the same time.
    pub(crate) side_by_side: u32,
}

impl Guests {
    /// As many CPUs as the machine has, and memory enough for anybody.
    pub(crate) fn usual(flavour: Flavour, cpus: u32) -> Self {
        Self {
            flavour,
            cpus,
            memory: "512M",
            side_by_side: 1,
        }
    }

    /// What each guest's report repeats, in the order of their commands.
    pub(crate) fn nonces(&self, nonce: &str) -> Vec<String> {
        match self.side_by_side {
            1 => vec![nonce.to_owned()],
            n => (0..n).map(|guest| format!("{nonce}-{guest}")).collect(),
        }
    }
}

/// What a case runs.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// A program that init starts on umbra.
    Program(File, Vec<&'static str>),
    /// A program as umbra's first program, quiet: what `run program` does. The console must be
    /// exactly this text.
    First(File, Vec<&'static str>, &'static str),
    /// A machine that umbra cannot run on, by further words for QEMU: umbra has to say why, and end.
    Refused(&'static [&'static str]),
    /// Debian guests on umbra-vmm on umbra.
    Linux(Guests),
    /// A disk, by a Debian guest on one machine and programs on the next.
    Disk(Flavour),
    /// Two Debian guests of one umbra-vmm, by a file of settings, on a switch.
    Network(Flavour),
    /// Debian guest hypervisors at virtual EL2, each with a guest of its own.
    Nested(Storeys),
    /// A memory error under one process of a guest's guest, and a second VM beside it.
    MemoryError,
    /// A payload, by its name, on umbra-vmm on umbra, with further options for the VMM.
    Payload(String, Vec<String>),
    /// The walks of `crates/nested` against the CPU's own on so many random tables, in umbra's place.
    Oracle(u32),
    /// `run linux --interactive` behind a terminal.
    Terminal(Leave),
    /// The same VMM and guest on Linux with KVM instead of umbra.
    Reference(Flavour),
    /// The same suites on Linux with KVM instead of umbra: what they ask, Linux answers.
    ReferenceSuites(Vec<Case>),
}

/// One test on a booted machine.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Its name, `group/what`.
    pub(crate) name: String,
    /// CPUs of the machine, and of a Linux guest on it.
    pub(crate) cpus: u32,
    /// What runs.
    pub(crate) work: Work,
    /// The exit status it must have.
    pub(crate) status: i32,
    /// Regular expressions that must match its output.
    pub(crate) expect: Vec<String>,
    /// Seconds after which it has failed.
    pub(crate) limit: u64,
    /// Why it runs only with `--full`, if so.
    pub(crate) full_only: Option<&'static str>,
    /// The events that its trace must have; none: it is not traced.
    pub(crate) events: &'static [&'static str],
    /// The machine's CPU, if not the usual one, as QEMU has it.
    pub(crate) model: Option<&'static str>,
}

impl Case {
    pub(super) fn new(name: &str, cpus: u32, work: Work, limit: u64, expect: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            cpus,
            work,
            status: 0,
            expect: expect.iter().map(|e| (*e).to_owned()).collect(),
            limit,
            full_only: None,
            events: &[],
            model: None,
        }
    }

    /// The same on a machine with this CPU.
    pub(super) fn on(mut self, model: &'static str) -> Self {
        self.model = Some(model);
        self
    }

    /// Further words for QEMU.
    pub(crate) fn qemu_words(&self) -> Vec<String> {
        let refused = match self.work {
            Work::Refused(words) => words,
            _ => &[],
        };
        let model = self.model.map(|model| ["-cpu", model]);
        let words = model.iter().flatten().chain(refused);
        words.map(|word| (*word).to_owned()).collect()
    }

    /// The same, traced, under another name.
    pub(super) fn traced(&self, name: &str, events: &'static [&'static str]) -> Self {
        Self {
            name: name.to_owned(),
            events,
            ..self.clone()
        }
    }

    pub(super) fn status(mut self, status: i32) -> Self {
        self.status = status;
        self
    }

    pub(super) fn full_only(mut self, why: &'static str) -> Self {
        self.full_only = Some(why);
        self
    }

    /// Whether it is a suite of checks that runs on Linux too.
    pub(super) fn is_suite(&self) -> bool {
        // Memory errors can be injected on umbra alone: QEMU has no EINJ. Noise at length is umbra's too.
        let alone = [
            "kvm/poison",
            "kvm/below",
            "kvm/ghes",
            "kvm/heal",
            "kvm/campaign",
            "kvm/noise-10-million",
        ];
        let alone = alone.contains(&self.name.as_str()) || self.name.starts_with("policy/");
        matches!(self.work, Work::Payload(..) | Work::Program(File::Probe, _)) && !alone
    }

    /// How many commands of init it is.
    pub(crate) fn commands(&self) -> usize {
        match &self.work {
            Work::Nested(storeys) => storeys.side_by_side as usize,
            Work::Linux(guests) => guests.side_by_side as usize,
            Work::MemoryError => 2,
            _ => 1,
        }
    }

    /// Whether it needs a hypervisor that gives its guest EL2.
    pub(crate) fn is_nested(&self) -> bool {
        matches!(&self.work, Work::Payload(_, options) if options.iter().any(|o| o == "--nested"))
    }

    /// The guest kernels it needs.
    pub(crate) fn flavours(&self) -> Vec<Flavour> {
        match self.work {
            Work::Program(..)
            | Work::First(..)
            | Work::Refused(_)
            | Work::Payload(..)
            | Work::Oracle(_) => vec![],
            Work::Linux(guests) => vec![guests.flavour],
            Work::Network(flavour) | Work::Disk(flavour) => vec![flavour],
            Work::Nested(storeys) => vec![storeys.l1, storeys.l2],
            Work::Reference(guest) => vec![Flavour::Newest, guest],
            Work::MemoryError | Work::Terminal(_) | Work::ReferenceSuites(_) => {
                vec![Flavour::Newest]
            }
        }
    }

    /// Whether its machine has firmware's tables of error sources.
    pub(crate) fn has_firmware(&self) -> bool {
        matches!(self.work, Work::Program(File::Probe, _))
    }

    /// Whether it boots umbra.
    pub(crate) fn needs_umbra(&self) -> bool {
        !matches!(
            self.work,
            Work::Terminal(_) | Work::Oracle(_) | Work::Reference(_) | Work::ReferenceSuites(_)
        )
    }

    /// Whether it shares its boot with others of its kind. A Linux guest does not: what it leaves
    /// behind would be the next one's start.
    pub(crate) fn shares_boot(&self) -> bool {
        if self.model.is_some() {
            return false;
        }
        match &self.work {
            // A boot's banner is a boot's own.
            Work::Program(..) => !self.name.starts_with("boot/"),
            Work::Payload(..) => self.events.is_empty(),
            Work::First(..)
            | Work::Refused(_)
            | Work::Linux(_)
            | Work::Network(_)
            | Work::Disk(_)
            | Work::Nested(..)
            | Work::MemoryError
            | Work::Oracle(_)
            | Work::Terminal(_)
            | Work::Reference(_)
            | Work::ReferenceSuites(_) => false,
        }
    }

    /// The same with fewer rounds of what is repeated: a safeguard that is always missing shows soon.
    pub(crate) fn shortened(mut self) -> Self {
        if let Work::Program(File::Probe, args) = &mut self.work {
            args.extend(["--effort", "20"]);
        }
        self
    }

    /// What the reference's script says of this case when it is done.
    pub(crate) fn epilogue(&self, status: &str) -> String {
        format!("umbra: {} exited {status}", self.name)
    }
}
