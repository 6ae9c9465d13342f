//! From cases to boots and back: which cases share a machine, what its initrd holds, and how each
//! case came out.

use super::case::{Case, Guests, HELLO, Work};
use super::disk;
use super::firmware;
use super::judge::{Part, Passed, judge, parts};
use super::linked;
use super::network;
use super::report::{Tally, tail};
use super::terminal;
use crate::bootargs::BootArgs;
use crate::build::{self, Kernel, Payloads, Programs, TestPrograms};
use crate::cargo::shell_word;
use crate::guest::{self, Item};
use crate::hash;
use crate::image::Symbols;
use crate::memory_error::{self, Inside};
use crate::nested;
use crate::qemu::{End, Machine, Outcome};
use crate::run::vmm_command;
use crate::setup::{self, Flavour, Qemu};
use crate::trace::{self, About, Request};
use crate::transcript::Transcript;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything that boots are made of.
pub(crate) struct Bench<'a> {
    /// The workspace.
    pub(crate) ws: &'a Workspace,
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The caller's own emulator, if it is one.
    pub(crate) own_qemu: Option<&'a Path>,
    /// umbra; the reference cases do without.
    pub(crate) kernel: Option<Kernel>,
    /// The programs of EL0.
    pub(crate) programs: &'a Programs,
    /// The programs of EL0 that only tests run.
    pub(crate) tests: &'a TestPrograms,
    /// The guest payloads.
    pub(crate) payloads: &'a Payloads,
    /// What guests' reports must contain.
    pub(crate) nonce: &'a str,
}

/// What became of a case that booted alone.
pub(crate) struct Alone {
    /// The verdict.
    pub(crate) result: Result<Passed, String>,
    /// Everything the machine said.
    pub(crate) console: String,
    /// Wall time.
    pub(crate) seconds: f64,
}

/// A boot that is over.
struct Boot {
    outcome: Outcome,
    /// Its transcript.
    log: PathBuf,
    /// What it was started with.
    initrd: PathBuf,
}

/// Removes the initrd of a boot that nobody will want to repeat: all together are gigabytes.
fn discard(initrd: &Path) -> Result<()> {
    fs::remove_file(initrd).with_context(|| format!("cannot remove {}", initrd.display()))
}

/// Cases grouped into boots: those that can share one do, by kind of work and number of CPUs.
pub(crate) fn group(cases: Vec<Case>) -> Vec<Vec<Case>> {
    let mut boots: Vec<Vec<Case>> = Vec::new();
    let mut shared: BTreeMap<(String, u32), usize> = BTreeMap::new();
    for case in cases {
        let kind = case.name.split('/').next().unwrap_or_default().to_owned();
        let at = shared.get(&(kind.clone(), case.cpus)).copied();
        match at.filter(|_| case.shares_boot()) {
            Some(at) => boots[at].push(case),
            None => {
                if case.shares_boot() {
                    shared.insert((kind, case.cpus), boots.len());
                }
                boots.push(vec![case]);
            }
        }
    }
    boots
}

impl Bench<'_> {
    /// Boots once and judges every case of the boot.
    pub(crate) fn run(&self, cases: &[Case], tally: &mut Tally) -> Result<()> {
        let Some(first) = cases.first() else {
            return Ok(());
        };
        if let Work::Terminal(how) = first.work {
            let start = Instant::now();
            let result = terminal::run(self.ws, self.own_qemu, how, first.limit)?;
            tally.result(&first.name, start.elapsed().as_secs_f64(), result);
            return Ok(());
        }
        if let Work::Disk(flavour) = first.work {
            let start = Instant::now();
            let result = disk::run(self, first, flavour)?;
            tally.result(&first.name, start.elapsed().as_secs_f64(), result);
            return Ok(());
        }
        let name = match cases {
            [one] => one.name.replace('/', "-"),
            _ => format!(
                "{}-{}",
                first.name.split('/').next().unwrap_or_default(),
                first.cpus
            ),
        };
        // The machine's own start, then each case's time.
        let limit = 10 + cases.iter().map(|c| c.limit).sum::<u64>();
        let Boot {
            outcome,
            log,
            initrd,
        } = self.boot(&name, cases, None, Duration::from_secs(limit))?;
        let symbols = self.symbols()?;
        let seconds = outcome.seconds / cases.len() as f64;
        let mut passed_all = true;
        for (case, result) in cases.iter().zip(self.results(cases, &outcome)?) {
            let traced = self.trace(case, &log, &outcome);
            match result.and_then(|passed| traced.map(|()| passed)) {
                Ok(passed) => {
                    tally.pass(&format!("{}{}", case.name, passed.checks()), seconds);
                    for (check, why) in &passed.skipped {
                        tally.skip(check, why);
                    }
                }
                Err(why) => {
                    passed_all = false;
                    let why = symbols.annotate(why.trim_end());
                    let log = self.ws.show(&log);
                    tally.fail(&case.name, &format!("{why}\n    see {log}"));
                }
            }
        }
        if passed_all {
            discard(&initrd)?;
        }
        Ok(())
    }

    /// Boots for one case alone, with one more word on umbra's command line. `name` names the
    /// transcript.
    pub(crate) fn run_one(
        &self,
        case: &Case,
        name: &str,
        word: Option<&str>,
        limit: Duration,
    ) -> Result<Alone> {
        let cases = std::slice::from_ref(case);
        let name = format!("{}-{name}", case.name.replace('/', "-"));
        let Boot {
            outcome, initrd, ..
        } = self.boot(&name, cases, word, limit)?;
        discard(&initrd)?;
        let result = self.results(cases, &outcome)?.remove(0);
        Ok(Alone {
            result,
            console: outcome.console,
            seconds: outcome.seconds,
        })
    }

    /// One boot.
    fn boot(
        &self,
        name: &str,
        cases: &[Case],
        word: Option<&str>,
        limit: Duration,
    ) -> Result<Boot> {
        let mut log = Transcript::new(self.ws, &format!("test-{name}"))?;
        let traced = cases.iter().any(|case| !case.events.is_empty());
        let trace = traced.then(|| Request::for_transcript(&log, true));
        let words = trace.map(|trace| trace.words());
        let has_firmware = cases.iter().any(Case::has_firmware);
        let tables = has_firmware.then(firmware::word);
        let words: Vec<&str> = words
            .iter()
            .flatten()
            .map(String::as_str)
            .chain(word)
            .chain(tables.as_deref())
            .collect();
        let mut more = cases[0].qemu_words();
        if has_firmware {
            more.extend(firmware::loader(self.ws)?);
        }
        let machine = self.machine(name, cases, &words, &mut log)?;
        let about = (limit, &self.symbols()?);
        let outcome = machine.run_with(self.qemu, &more, &mut log, about, |_| {})?;
        Ok(Boot {
            outcome,
            log: log.path().to_path_buf(),
            initrd: machine.initrd,
        })
    }

    /// Whether the trace of a case's boot decodes back, and has its events.
    fn trace(&self, case: &Case, transcript: &Path, outcome: &Outcome) -> Result<(), String> {
        if case.events.is_empty() {
            return Ok(());
        }
        let about = About::of(&case.name, &self.qemu.version, outcome);
        trace::verify(self.ws, transcript, &about, case.events).map_err(|why| format!("{why:#}"))
    }

    /// umbra's symbols, if it is umbra that boots.
    fn symbols(&self) -> Result<Symbols> {
        match &self.kernel {
            Some(kernel) => Symbols::read(&kernel.elf),
            None => Ok(Symbols::default()),
        }
    }

    fn results(&self, cases: &[Case], outcome: &Outcome) -> Result<Vec<Result<Passed, String>>> {
        let ended = |console: &str| Part {
            output: console.to_owned(),
            status: match &outcome.end {
                End::Exited(Some(status)) => Ok(*status),
                End::Exited(None) => Err("QEMU was ended by a signal".to_owned()),
                End::TimedOut(state) => Err(late(state)),
            },
        };
        match &cases[0].work {
            Work::First(..) | Work::Refused(_) => {
                Ok(vec![judge(&cases[0], &ended(&outcome.console))])
            }
            Work::Reference(_) => {
                let same = self.same_vmm(&outcome.console)?;
                let judged = judge(&cases[0], &ended(&outcome.console));
                Ok(vec![judged.and_then(|passed| same.map(|()| passed))])
            }
            Work::Oracle(_) | Work::Terminal(_) | Work::Disk(_) | Work::ReferenceSuites(_) => {
                Ok(vec![judge(&cases[0], &ended(&outcome.console))])
            }
            Work::MemoryError => {
                let followed = memory_error::follow(&outcome.console).map(drop);
                let judged = by_part(cases, outcome).into_iter();
                Ok(judged
                    .map(|judged| judged.and_then(|passed| followed.clone().map(|()| passed)))
                    .collect())
            }
            Work::Program(..)
            | Work::Payload(..)
            | Work::Linux(_)
            | Work::Network(_)
            | Work::Nested(..) => Ok(by_part(cases, outcome)),
        }
    }

    /// Whether Linux ran the very file that umbra runs.
    fn same_vmm(&self, console: &str) -> Result<Result<(), String>> {
        let line = format!("{}  /bin/umbra-vmm", hash::of_file(&self.programs.vmm)?);
        if console.lines().any(|l| l == line) {
            return Ok(Ok(()));
        }
        Ok(Err(format!(
            "Linux did not say {line:?}\n{}",
            tail(console, 40)
        )))
    }

    fn machine(
        &self,
        name: &str,
        cases: &[Case],
        words: &[&str],
        log: &mut Transcript,
    ) -> Result<Machine> {
        let file = format!("test-{name}.cpio");
        let cpus = cases[0].cpus;
        match &cases[0].work {
            Work::Oracle(tables) => return self.oracle(*tables),
            Work::Reference(flavour) => {
                return self.reference_guest(&file, *flavour, cpus, log);
            }
            Work::ReferenceSuites(suites) => {
                return self.reference_suites(&file, suites, cpus, log);
            }
            Work::First(..)
            | Work::Refused(_)
            | Work::Program(..)
            | Work::Payload(..)
            | Work::Linux(_)
            | Work::Network(_)
            | Work::Terminal(_)
            | Work::Disk(_)
            | Work::MemoryError
            | Work::Nested(..) => {}
        }
        let mut items = vec![
            Item::from_file("/bin/busybox", &setup::busybox(self.ws)?)?,
            Item::from_file("/bin/el0-threads", &self.tests.threads)?,
            Item::program("/bin/linked", linked::program()),
            Item::program(linked::LINKER, linked::linker()),
            Item::from_file("/bin/kvm-probe", &self.tests.probe)?,
            Item::text("/hello.txt", HELLO),
        ];
        items.extend(Item::victims(64));
        let append = match &cases[0].work {
            Work::First(file, args, _) => {
                let args = args.iter().map(|a| (*a).to_owned()).collect();
                BootArgs::new(file.path(), args)
                    .with("umbra.quiet")
                    .with("umbra.stdin=/hello.txt")
                    .with_all(words.iter().copied())
                    .render()?
            }
            Work::Refused(_) => BootArgs::new("/bin/busybox", vec![]).render()?,
            _ => {
                items.push(Item::from_file("/init", &self.programs.init)?);
                items.push(Item::from_file("/bin/umbra-vmm", &self.programs.vmm)?);
                log.used("umbra-vmm", &self.programs.vmm)?;
                let mut argv: Vec<String> = Vec::new();
                for (at, case) in cases.iter().enumerate() {
                    if at > 0 {
                        argv.push("---".to_owned());
                    }
                    argv.extend(self.command(case, &mut items, log)?);
                }
                BootArgs::new("/init", argv)
                    .with_all(words.iter().copied())
                    .render()?
            }
        };
        let initrd = guest::save(self.ws, &file, &guest::initrd(&items)?)?;
        let kernel = self.kernel.as_ref().context("umbra was not built")?;
        Ok(Machine {
            cpus,
            kernel: kernel.image.clone(),
            initrd,
            append,
            disk: None,
        })
    }

    /// The command that init starts for a case; what it needs goes into `items`.
    fn command(
        &self,
        case: &Case,
        items: &mut Vec<Item>,
        log: &mut Transcript,
    ) -> Result<Vec<String>> {
        match &case.work {
            Work::Program(file, args) => {
                let args = args.iter().map(|a| (*a).to_owned());
                Ok(std::iter::once(file.path().to_owned())
                    .chain(args)
                    .collect())
            }
            Work::Payload(name, options) => {
                let path = format!("/guest/{name}");
                let image = self.payloads.get(name).context("no such payload")?;
                // Several cases may run one payload.
                if !items.iter().any(|item| item.path() == path) {
                    items.push(Item::from_file(&path, image)?);
                }
                let head = ["/bin/umbra-vmm", "--kernel", &path].map(str::to_owned);
                Ok(head.into_iter().chain(options.iter().cloned()).collect())
            }
            Work::Linux(guests) => {
                items.extend(self.guest(guests.flavour, log)?);
                Ok(self.guest_commands(guests))
            }
            Work::Network(flavour) => {
                let files = setup::guest_files(self.ws, *flavour)?;
                log.used(&format!("guest kernel ({})", files.label), &files.kernel)?;
                items.extend(network::items(self.ws, &files, self.nonce)?);
                Ok(["/bin/umbra-vmm", "--config", network::SETTINGS]
                    .map(str::to_owned)
                    .into())
            }
            Work::Nested(storeys) => {
                let l1 = setup::guest_files(self.ws, storeys.l1)?;
                let l2 = setup::guest_files(self.ws, storeys.l2)?;
                log.used(&format!("L1 kernel ({})", l1.label), &l1.kernel)?;
                log.used(&format!("L2 kernel ({})", l2.label), &l2.kernel)?;
                let vmm = &self.programs.vmm;
                let initrd = nested::initramfs(self.ws, (&l1, &l2), vmm, storeys.l2_cpus)?;
                items.push(Item::from_file("/guest/Image", &l1.kernel)?);
                items.push(Item::from_file("/guest/initrd", &initrd)?);
                Ok(storeys.commands(self.nonce))
            }
            Work::MemoryError => {
                let debian = setup::guest_files(self.ws, Flavour::Newest)?;
                log.used(&format!("guest kernel ({})", debian.label), &debian.kernel)?;
                let inside = Inside {
                    vmm: &self.programs.vmm,
                    worker: &self.tests.worker,
                };
                let (l1, second) = memory_error::initramfs(self.ws, &debian, &inside)?;
                items.push(Item::from_file("/guest/Image", &debian.kernel)?);
                items.push(Item::from_file("/guest/initrd", &l1)?);
                items.push(Item::from_file("/guest/second", &second)?);
                Ok(memory_error::commands(case.cpus, self.nonce))
            }
            Work::First(..)
            | Work::Refused(_)
            | Work::Oracle(_)
            | Work::Terminal(_)
            | Work::Disk(_)
            | Work::Reference(_)
            | Work::ReferenceSuites(_) => {
                bail!("{} boots by itself", case.name)
            }
        }
    }

    /// The oracle in umbra's place.
    fn oracle(&self, tables: u32) -> Result<Machine> {
        let kernel = self.payloads.get(build::ORACLE).context("no oracle")?;
        Ok(Machine {
            cpus: 1,
            kernel: kernel.clone(),
            initrd: guest::save(self.ws, "empty.cpio", &guest::initrd(&[])?)?,
            append: format!("seed=1 tables={tables}"),
            disk: None,
        })
    }

    fn guest(&self, flavour: Flavour, log: &mut Transcript) -> Result<[Item; 2]> {
        let files = setup::guest_files(self.ws, flavour)?;
        log.used(&format!("guest kernel ({})", files.label), &files.kernel)?;
        let archive = guest::initramfs(self.ws, &files, &[])?;
        let path = guest::save(self.ws, &format!("guest-{}.cpio", flavour.name()), &archive)?;
        log.used("guest initrd", &path)?;
        Ok([
            Item::from_file("/guest/Image", &files.kernel)?,
            Item::from_file("/guest/initrd", &path)?,
        ])
    }

    /// The arguments of init that start these guests at once.
    fn guest_commands(&self, guests: &Guests) -> Vec<String> {
        let mut words = Vec::new();
        for nonce in guests.nonces(self.nonce) {
            if !words.is_empty() {
                words.push("+++".to_owned());
            }
            let (kernel, initrd) = ("/guest/Image", Some("/guest/initrd"));
            let cmdline = guest::cmdline("poweroff", &nonce);
            words.extend(vmm_command(
                kernel,
                initrd,
                &cmdline,
                guests.cpus,
                guests.memory,
            ));
            if guests.side_by_side > 1 {
                words.extend(["--console", "serial,lines=whole"].map(str::to_owned));
            }
        }
        words
    }

    /// On Linux with KVM: the same VMM, guest and command.
    fn reference_guest(
        &self,
        file: &str,
        flavour: Flavour,
        cpus: u32,
        log: &mut Transcript,
    ) -> Result<Machine> {
        let script = format!(
            "sha256sum /bin/umbra-vmm\n{}\nstatus=$?\necho \"umbra: umbra-vmm exited $status\"\nexit $status\n",
            shell_line(&self.guest_commands(&Guests::usual(flavour, cpus)))
        );
        let items = self.guest(flavour, log)?.into();
        self.reference(file, &script, items, (cpus, ""), log)
    }

    /// On Linux with KVM: the same suites, told that it is not umbra they ask.
    fn reference_suites(
        &self,
        file: &str,
        suites: &[Case],
        cpus: u32,
        log: &mut Transcript,
    ) -> Result<Machine> {
        let mut items = vec![Item::from_file("/bin/kvm-probe", &self.tests.probe)?];
        let mut script = String::new();
        for case in suites {
            let mut command = self.command(case, &mut items, log)?;
            command.retain(|word| word != "--umbra");
            if command.ends_with(&["--cmdline".to_owned(), "umbra".to_owned()]) {
                command.truncate(command.len() - 2);
            }
            let end = case.epilogue("$?");
            script.push_str(&format!("{}\necho \"{end}\"\n", shell_line(&command)));
        }
        // Linux gives guests EL2 only if it is told so at boot.
        let mode = match suites.iter().any(Case::is_nested) {
            true => " kvm-arm.mode=nested",
            false => "",
        };
        self.reference(file, &script, items, (cpus, mode), log)
    }

    /// Linux with KVM in umbra's place, on the same machine; it runs the script.
    fn reference(
        &self,
        file: &str,
        script: &str,
        more: Vec<Item>,
        (cpus, words): (u32, &str),
        log: &mut Transcript,
    ) -> Result<Machine> {
        let host = setup::guest_files(self.ws, Flavour::Newest)?;
        log.used("umbra-vmm", &self.programs.vmm)?;
        let mut items = vec![
            Item::from_file("/bin/umbra-vmm", &self.programs.vmm)?,
            Item::text("/umbra-run", script),
        ];
        items.extend(more);
        let initrd = guest::save(self.ws, file, &guest::initramfs(self.ws, &host, &items)?)?;
        let append = format!(
            "console=ttyAMA0 panic=-1 umbra.storey=L0 umbra.do=run umbra.nonce={}{words}",
            self.nonce
        );
        Ok(Machine {
            cpus,
            kernel: host.kernel,
            initrd,
            append,
            disk: None,
        })
    }
}

/// A command as a line of a shell script.
fn shell_line(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|w| shell_word(w)).collect();
    words.join(" ")
}

/// Judges the cases of a shared boot, in the order in which init ran them.
fn by_part(cases: &[Case], outcome: &Outcome) -> Vec<Result<Passed, String>> {
    let (mut found, rest) = parts(&outcome.console);
    let why = match &outcome.end {
        End::TimedOut(state) => late(state),
        End::Exited(Some(status)) => {
            format!("the machine ended with status {status} before this did")
        }
        End::Exited(None) => "QEMU was ended by a signal".to_owned(),
    };
    if found.len() < cases.iter().map(Case::commands).sum() {
        found.push(Part {
            output: rest,
            status: Err(why),
        });
    }
    let mut found = found.into_iter();
    cases
        .iter()
        .map(
            |case| match Part::joined(found.by_ref().take(case.commands()).collect()) {
                Some(part) => judge(case, &part),
                None => Err("not run: the machine ended before".to_owned()),
            },
        )
        .collect()
}

/// A time-out in words; of the state the lines of the CPUs, the registers are in the transcript.
fn late(state: &str) -> String {
    let cpus: String = state
        .lines()
        .take_while(|l| {
            ["CPU ", "event ", "no registers"]
                .iter()
                .any(|w| l.starts_with(w))
        })
        .map(|l| format!("    {l}\n"))
        .collect();
    format!("the time limit came first\n{}", cpus.trim_end())
}

#[cfg(test)]
mod tests {
    use super::{by_part, group};
    use crate::qemu::{End, Outcome};
    use crate::test::case::{Case, File, Work};

    fn case(name: &str, cpus: u32, work: Work) -> Case {
        Case {
            model: None,
            name: name.into(),
            cpus,
            work,
            status: 0,
            expect: vec![],
            limit: 1,
            full_only: None,
            events: &[],
        }
    }

    fn program(name: &str, cpus: u32) -> Case {
        case(name, cpus, Work::Program(File::Busybox, vec![]))
    }

    #[test]
    fn cases_share_a_boot_by_kind_and_cpus() {
        let boots = group(vec![
            program("boot/1cpu", 2),
            program("program/a", 2),
            program("program/b", 2),
            program("program/c", 1),
            case("program/first", 2, Work::First(File::Busybox, vec![], "")),
            program("boot/2cpu", 2),
            program("program/d", 2),
        ]);
        let names: Vec<Vec<&str>> = boots
            .iter()
            .map(|b| b.iter().map(|c| c.name.as_str()).collect())
            .collect();
        assert_eq!(
            names,
            [
                vec!["boot/1cpu"],
                vec!["program/a", "program/b", "program/d"],
                vec!["program/c"],
                vec!["program/first"],
                vec!["boot/2cpu"],
            ]
        );
    }

    #[test]
    fn a_hanging_case_fails_and_so_do_those_behind_it() {
        let cases = [program("p/a", 2), program("p/b", 2), program("p/c", 2)];
        let console = "x\numbra-init: 1 /bin/busybox exited 0\nhangs here\n".to_owned();
        let end = End::TimedOut("CPU 0: pc 0x0 idle\n\nCPU#0 …".into());
        let results = by_part(
            &cases,
            &Outcome {
                end,
                console,
                seconds: 1.0,
            },
        );
        assert_eq!(results.len(), 3);
        assert!(results[0].is_ok());
        let why = results[1].clone().unwrap_err();
        assert!(
            why.contains("time limit") && why.contains("pc 0x0 idle") && why.contains("hangs here")
        );
        assert!(!why.contains("CPU#0"));
        assert!(results[2].clone().unwrap_err().contains("not run"));
    }
}
