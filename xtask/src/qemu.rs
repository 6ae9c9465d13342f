//! One machine, from its description to its end: QEMU's command line, the console it prints, a time
//! limit, and what to say of a machine that hangs.

use crate::guard;
use crate::image::Symbols;
use crate::setup::Qemu;
use crate::top;
use crate::trace::memory;
use crate::transcript::Transcript;
use crate::{cargo, qmp};
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The machine umbra is developed on: GICv3 and EL2, every feature QEMU has but SVE and SME, which
/// umbra hides from guests. `pauth-impdef=on` replaces a slow cipher and changes nothing else.
const MACHINE: [&str; 12] = [
    "-M",
    "virt,virtualization=on,gic-version=3",
    "-cpu",
    "max,sve=off,sme=off,pauth-impdef=on",
    "-accel",
    "tcg",
    "-m",
    RAM,
    "-nographic",
    "-nic",
    "none",
    "-no-reboot",
];

/// Its memory, in KiB.
pub(crate) const MEMORY: u64 = 4 << 20;

const RAM: &str = "4G";

/// How long a machine may go on after its limit for its registers to be read.
const GRACE: Duration = Duration::from_secs(15);

/// A machine to start.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// CPUs.
    pub(crate) cpus: u32,
    /// The kernel that starts at EL2: umbra's Image, or Linux's.
    pub(crate) kernel: PathBuf,
    /// The initrd.
    pub(crate) initrd: PathBuf,
    /// The boot arguments.
    pub(crate) append: String,
    /// The disk, if it has one.
    pub(crate) disk: Option<Disk>,
}

/// A machine's disk (virtio-blk over virtio-mmio).
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// The raw file behind it, which is written to.
    pub(crate) file: PathBuf,
    /// A sector that cannot be read, for tests.
    pub(crate) bad_sector: Option<u64>,
}

impl Disk {
    /// The disk of this file, if one is named; it must be there.
    pub(crate) fn of(file: Option<&Path>) -> Result<Option<Self>> {
        let Some(file) = file else {
            return Ok(None);
        };
        let metadata = file.metadata();
        let metadata = metadata.with_context(|| format!("--disk {}", file.display()))?;
        anyhow::ensure!(metadata.is_file(), "--disk {}: no file", file.display());
        Ok(Some(Self {
            file: file.to_path_buf(),
            bad_sector: None,
        }))
    }

    fn arguments(&self) -> [String; 6] {
        let file = json!({ "driver": "file", "filename": self.file });
        let file = match self.bad_sector {
            None => file,
            Some(sector) => json!({
                "driver": "blkdebug",
                "image": file,
                "inject-error": [
                    { "event": "none", "iotype": "read", "errno": 5, "sector": sector }
                ],
            }),
        };
        let disk = json!({ "driver": "raw", "node-name": "disk0", "file": file });
        [
            // As Virtio 1 has it, not as its drafts.
            "-global",
            "virtio-mmio.force-legacy=false",
            "-blockdev",
            &disk.to_string(),
            "-device",
            "virtio-blk-device,drive=disk0",
        ]
        .map(str::to_owned)
    }
}

/// How a machine ended.
#[derive(Debug)]
pub(crate) enum End {
    /// QEMU ended by itself, with this exit status (`None`: by a signal).
    Exited(Option<i32>),
    /// The limit came first. The text says what all CPUs were doing.
    TimedOut(String),
}

/// A machine's end and everything its console said.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The end.
    pub(crate) end: End,
    /// The console, without carriage returns.
    pub(crate) console: String,
    /// Wall time.
    pub(crate) seconds: f64,
}

impl Machine {
    fn command(&self, qemu: &Qemu) -> Command {
        let mut cmd = qemu.command();
        cmd.args(MACHINE).arg("-smp").arg(self.cpus.to_string());
        cmd.arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd);
        cmd.arg("-append").arg(&self.append);
        if let Some(disk) = &self.disk {
            cmd.args(disk.arguments());
        }
        cmd.args(["-semihosting-config", "enable=on,target=native"]);
        cmd
    }

    fn head(&self, qemu: &Qemu, cmd: &Command, log: &mut Transcript) -> Result<()> {
        log.line(&qemu.version)?;
        log.line(&cargo::show(cmd))?;
        log.used("kernel", &self.kernel)?;
        log.used("initrd", &self.initrd)
    }

    /// Runs the machine without input, to a time limit.
    pub(crate) fn run(
        &self,
        qemu: &Qemu,
        log: &mut Transcript,
        limit: Duration,
        symbols: &Symbols,
        sink: impl FnMut(&[u8]),
    ) -> Result<Outcome> {
        self.run_with(qemu, &[], log, (limit, symbols), sink)
    }

    /// The same with further words for QEMU. Each part of its console goes into the transcript and to `sink`.
    pub(crate) fn run_with(
        &self,
        qemu: &Qemu,
        more: &[String],
        log: &mut Transcript,
        (limit, symbols): (Duration, &Symbols),
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Outcome> {
        let mut cmd = self.command(qemu);
        cmd.args(more);
        let socket = log.path().with_extension("qmp");
        // The kernel's limit for a socket's path is 107 bytes; a deeper checkout does without.
        let monitor = socket.as_os_str().len() < 100;
        if monitor {
            let socket = option_value(&socket);
            cmd.arg("-qmp")
                .arg(format!("unix:{socket},server=on,wait=off"));
        }
        self.head(qemu, &cmd, log)?;
        let mut cmd = guard::command(&cmd, guard::Options::default())?;
        let start = Instant::now();
        cmd.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = cmd.spawn().context("cannot start QEMU")?;
        let output = follow(&mut child);
        let mut console = Vec::new();
        let mut take = |bytes: &[u8]| -> Result<()> {
            console.extend_from_slice(bytes);
            sink(bytes);
            log.console(bytes)
        };
        let end = match drain(&output, start + limit, &mut take) {
            Ok(true) => End::Exited(child.wait()?.code()),
            Ok(false) => {
                let state = if monitor {
                    state(&socket, symbols)
                } else {
                    String::new()
                };
                drain(
                    &output,
                    Instant::now() + Duration::from_millis(200),
                    &mut take,
                )?;
                stop(&mut child)?;
                End::TimedOut(state)
            }
            Err(error) => {
                stop(&mut child)?;
                return Err(error);
            }
        };
        // QEMU removes its socket itself, but not when it is killed.
        let _ = std::fs::remove_file(&socket);
        top::over(log.path());
        let seconds = start.elapsed().as_secs_f64();
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        if !console.ends_with('\n') {
            log.console(b"\n")?;
        }
        match &end {
            End::Exited(status) => {
                log.line(&format!("ended after {seconds:.1} s, status {status:?}"))?
            }
            End::TimedOut(state) => {
                log.line(&format!("stopped after {seconds:.1} s: time limit"))?;
                log.console(state.as_bytes())?;
            }
        }
        Ok(Outcome {
            end,
            console,
            seconds,
        })
    }

    /// Runs the machine with the terminal as its console; Ctrl-A X ends it. QEMU keeps the log. With the
    /// kernel's symbols it is a traced run, whose events are to be had however it ends.
    pub(crate) fn run_interactive(
        &self,
        qemu: &Qemu,
        log: &mut Transcript,
        limit: Option<Duration>,
        traced: Option<&Symbols>,
    ) -> Result<Outcome> {
        let mut cmd = self.command(qemu);
        // Who leaves by Ctrl-A X ends QEMU there and then; the machine's memory has to outlive it.
        let ram = log.path().with_extension("ram");
        if traced.is_some() {
            cmd.arg("-object").arg(format!(
                "memory-backend-file,id=ram,size={RAM},share=on,mem-path={}",
                option_value(&ram)
            ));
            cmd.args(["-M", "memory-backend=ram"]);
        }
        let path = log.path().to_path_buf();
        let file = option_value(&path);
        cmd.arg("-chardev");
        cmd.arg(format!(
            "stdio,id=console,mux=on,signal=off,logfile={file},logappend=on"
        ));
        cmd.args([
            "-serial",
            "chardev:console",
            "-mon",
            "chardev=console,mode=readline",
        ]);
        self.head(qemu, &cmd, log)?;
        let mut cmd = guard::command(&cmd, guard::Options::default())?;
        let start = Instant::now();
        let mut child = cmd.spawn().context("cannot start QEMU")?;
        let end = loop {
            if let Some(status) = child.try_wait()? {
                break End::Exited(status.code());
            }
            if limit.is_some_and(|limit| start.elapsed() > limit) {
                stop(&mut child)?;
                break End::TimedOut(String::new());
            }
            whole_lines();
            std::thread::sleep(Duration::from_millis(50));
        };
        let seconds = start.elapsed().as_secs_f64();
        top::over(&path);
        if let Some(symbols) = traced {
            let saved = memory::save_from(
                &ram,
                symbols.data(memory::RINGS),
                &path.with_extension("trace"),
            );
            // As large as the machine.
            let _ = std::fs::remove_file(&ram);
            saved?;
        }
        let console = std::fs::read(&path).context("cannot read the transcript")?;
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        log.line(&format!("ended after {seconds:.1} s"))?;
        Ok(Outcome {
            end,
            console,
            seconds,
        })
    }
}

/// Lets the terminal leave lines as the machine ends them, once QEMU has it: QEMU asks for a CR before
/// each line feed, and the machine's console has sent one. QEMU gives the terminal back as it found it.
fn whole_lines() {
    use rustix::termios::{LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(mut modes) = tcgetattr(&stdin) else {
        return;
    };
    let is_qemus = !modes.local_modes.contains(LocalModes::ICANON);
    if is_qemus && modes.output_modes.contains(OutputModes::OPOST) {
        modes.output_modes.remove(OutputModes::OPOST);
        // A terminal that is gone needs no lines.
        let _ = tcsetattr(&stdin, OptionalActions::Now, &modes);
    }
}

/// A path as the value of one of QEMU's options, in which a comma begins the next.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn stop(child: &mut Child) -> Result<()> {
    // It may have ended in the meantime; then there is nothing to kill.
    let _ = child.kill();
    child.wait().context("QEMU")?;
    Ok(())
}

/// Forwards the child's standard output and error, in the order they come.
fn follow(child: &mut Child) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    if let Some(out) = child.stdout.take() {
        forward(out, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        forward(err, sender);
    }
    receiver
}

/// Sends what can be read, in the parts in which it comes, until the end.
pub(crate) fn forward(mut from: impl Read + Send + 'static, to: Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut part) {
            if to.send(part[..n].to_vec()).is_err() {
                return;
            }
        }
    });
}

/// Takes output until it ends (`true`) or the deadline comes (`false`).
fn drain(
    output: &Receiver<Vec<u8>>,
    deadline: Instant,
    take: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    loop {
        match output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => take(&bytes)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

/// What the CPUs of a machine that hangs are doing: a line each, umbra's last events, then all
/// registers.
fn state(socket: &Path, symbols: &Symbols) -> String {
    let (sender, receiver) = channel();
    let (path, ring) = (socket.to_path_buf(), symbols.data(memory::RINGS));
    std::thread::spawn(move || sender.send(ask(&path, ring)));
    let (registers, events) = match receiver.recv_timeout(GRACE) {
        Ok(Ok(answers)) => answers,
        Ok(Err(error)) => return format!("no registers: {error:#}\n"),
        Err(_) => return "no registers: QEMU does not answer\n".to_owned(),
    };
    let mut text = String::new();
    for (cpu, pc) in qmp::program_counters(&registers) {
        let name = symbols
            .name(pc)
            .unwrap_or_else(|| "not in umbra's kernel".to_owned());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "CPU {cpu}: pc {pc:#018x} {name}");
    }
    text + &events + &registers
}

/// The registers and umbra's last events, the latter from the rings that the table at `rings` (address
/// and size) names. A run's own trace goes to its file, as it would have in the end.
fn ask(socket: &Path, rings: Option<(u64, u64)>) -> Result<(String, String)> {
    let mut monitor = qmp::Monitor::connect(socket)?;
    let registers = monitor.registers()?;
    let Some(rings) = rings else {
        return Ok((registers, String::new()));
    };
    let scratch = socket.with_extension("ring");
    let file = memory::read(rings, |pa, bytes| monitor.memory(pa, bytes, &scratch))?;
    let trace = socket.with_extension("trace");
    if trace.exists() {
        std::fs::write(&trace, &file).context("cannot write the trace")?;
    }
    Ok((registers, memory::last(&file)))
}
