//! The life of one vCPU thread: enter the guest, serve what it exits for, until somebody says
//! stop.
//!
//! Every exit is named. One that this program does not expect ends the VM with its number and
//! the guest's PC, never with a panic and never silently.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuExit;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, lock};
use crate::console::signal;
use crate::error::{Context, Result};
use crate::kvm::{Kicker, Vcpu, expecting};
use crate::memory_error::Policy;
use crate::stop::Stop;

/// `KVM_EXIT_ARM_SEA`, younger than the bindings.
const EXIT_ARM_SEA: u32 = 41;

/// How any thread ends the VM. The first reason given is the one that counts.
#[derive(Clone)]
pub struct StopSwitch {
    stopping: Arc<AtomicBool>,
    reason: Arc<Mutex<Option<Stop>>>,
    event: Arc<EventFd>,
}

impl StopSwitch {
    /// A switch that signals `event`.
    pub fn new(event: Arc<EventFd>) -> Self {
        StopSwitch {
            stopping: Arc::default(),
            reason: Arc::default(),
            event,
        }
    }

    /// Ends the VM.
    pub fn stop(&self, reason: Stop) {
        lock(&self.reason).get_or_insert(reason);
        self.stopping.store(true, Ordering::SeqCst);
        signal(&self.event);
    }

    /// The reason given, if any.
    pub fn reason(&self) -> Option<Stop> {
        lock(&self.reason).clone()
    }

    fn is_set(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// A running vCPU.
pub struct VcpuThread {
    thread: JoinHandle<()>,
    kicker: Kicker,
}

impl VcpuThread {
    /// Starts a vCPU on a thread of its own.
    pub fn start(
        mut vcpu: Vcpu,
        bus: Arc<Bus>,
        switch: StopSwitch,
        policy: Policy,
    ) -> Result<Self> {
        let kicker = vcpu.kicker();
        let name = format!("vcpu{}", vcpu.id);
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _guard = PanicGuard(&switch);
                let reason = run(&mut vcpu, &bus, &switch, &policy);
                if let Some(reason) = reason {
                    switch.stop(reason);
                }
            })
            .context(format!("thread {name}"))?;
        Ok(VcpuThread { thread, kicker })
    }

    /// Makes the thread end, once the switch is set.
    pub fn kick(&self) {
        self.kicker.kick(&self.thread);
    }

    /// Waits for the end.
    pub fn join(self) {
        // A panic has been reported by the guard and by the panic hook.
        let _ = self.thread.join();
    }
}

/// A vCPU thread that dies must not leave the others waiting for it.
struct PanicGuard<'a>(&'a StopSwitch);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(Stop::Failed("a vCPU thread panicked".into()));
        }
    }
}

/// Runs until the VM stops; `None` when somebody else stopped it.
fn run(vcpu: &mut Vcpu, bus: &Bus, switch: &StopSwitch, policy: &Policy) -> Option<Stop> {
    while !switch.is_set() {
        let (ended, bus_error) = expecting(|| vcpu.run());
        let served = match ended {
            Ok(VcpuExit::MmioRead(addr, data)) => {
                bus.read(addr, data);
                Served::Done
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                bus.write(addr, data);
                Served::Done
            }
            Ok(VcpuExit::Intr) => Served::Done,
            Ok(VcpuExit::Unsupported(EXIT_ARM_SEA)) => Served::MemoryError,
            Ok(VcpuExit::SystemEvent(kind, data)) => return Some(system_event(kind, data)),
            Ok(other) => Served::Problem(unexpected(other)),
            Err(e) => match e.errno() {
                libc::EINTR | libc::EAGAIN => Served::Done,
                errno => Served::Problem(failed_run(errno)),
            },
        };
        let stop = match served {
            Served::Done => Ok(None),
            Served::MemoryError => {
                let sea = vcpu.sea();
                policy.sea(vcpu, &sea)
            }
            Served::Problem(problem) => Ok(Some(Stop::Failed(problem))),
        };
        let stop = match (stop, &bus_error) {
            (Ok(None), Some(error)) => policy.bus_error(vcpu, error),
            (stop, _) => stop,
        };
        let problem = match stop {
            Ok(None) => continue,
            Ok(Some(Stop::Failed(problem))) => problem,
            Ok(Some(stop)) => return Some(stop),
            Err(e) => e.to_string(),
        };
        let at = vcpu
            .pc()
            .map_or(String::new(), |pc| format!(" (pc {pc:#x})"));
        return Some(Stop::Failed(format!("vcpu{}: {problem}{at}", vcpu.id)));
    }
    None
}

/// What an exit came to.
enum Served {
    /// The guest may go on.
    Done,
    /// The guest met a memory error.
    MemoryError,
    /// It cannot go on, and why.
    Problem(String),
}

fn unexpected(exit: VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the host cannot enter the guest: reason {reason:#x} on CPU {cpu}")
        }
        VcpuExit::InternalError => "internal error of KVM".into(),
        VcpuExit::MemoryFault { gpa, size, .. } => format!("memory fault at {gpa:#x}+{size:#x}"),
        other => format!("unexpected exit {other:?}"),
    }
}

fn failed_run(errno: i32) -> String {
    match errno {
        libc::ENOSYS => "the guest accessed a device with an instruction that the processor does \
                         not describe"
            .into(),
        libc::EFAULT => "guest memory that the host cannot provide".into(),
        libc::EHWPOISON => "guest memory that the hardware reports as broken".into(),
        _ => format!("KVM_RUN: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

fn system_event(kind: u32, data: &[u64]) -> Stop {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => Stop::PowerOff,
        KVM_SYSTEM_EVENT_RESET => Stop::Reset,
        KVM_SYSTEM_EVENT_CRASH => Stop::Crash,
        _ => Stop::Failed(format!("unexpected system event {kind} {data:x?}")),
    }
}

/// Starts all vCPUs. When one cannot start, those before it are stopped again.
pub fn start_all(
    vcpus: Vec<Vcpu>,
    bus: &Arc<Bus>,
    switch: &StopSwitch,
    policy: &Policy,
) -> Result<Vec<VcpuThread>> {
    let mut threads = Vec::new();
    for vcpu in vcpus {
        match VcpuThread::start(vcpu, bus.clone(), switch.clone(), policy.clone()) {
            Ok(thread) => threads.push(thread),
            Err(e) => {
                switch.stop(Stop::Failed(e.to_string()));
                stop_all(threads);
                return Err(e);
            }
        }
    }
    Ok(threads)
}

/// Kicks all vCPUs out of the guest and waits for their threads. The switch must be set.
pub fn stop_all(threads: Vec<VcpuThread>) {
    threads.iter().for_each(VcpuThread::kick);
    threads.into_iter().for_each(VcpuThread::join);
}
