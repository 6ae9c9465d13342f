//! What vCPUs and VMs count, and the files in which a VMM reads it (KVM_GET_STATS_FD, api.rst 4.134).
//!
//! The names are Linux's where Linux has the same; the rest are umbra's own: exits by kind and time by
//! storey, and what becomes of shadow entries. Counters of a vCPU are written by the thread that runs it
//! and read by anybody; a file's values are those of the moment it is read.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use umbra_abort::World;
use umbra_hw::guest::Exit;
use umbra_hw::sync::SpinLock;
use umbra_hw::timer;
use umbra_kvm_abi::stats::{Stat, render};
use umbra_linux::{Errno, Stop, uapi};

use super::vcpu::Vcpu;
use super::vm::Vm;
use crate::file::{Call, File};

/// A number that one thread at a time changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub(super) fn count(&self) {
        self.add(1);
    }

    #[inline]
    fn add(&self, more: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(more);
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Storeys by number: a plain guest, virtual EL2, what it runs.
const STOREYS: usize = 3;

const fn storey(world: World) -> usize {
    match world {
        World::Plain => 0,
        World::VirtualEl2 => 1,
        World::Nested => 2,
    }
}

/// Exits by kind.
const KINDS: [&str; 11] = [
    "interrupt",
    "serror",
    "wfx",
    "hvc",
    "smc",
    "sysreg",
    "eret",
    "fp",
    "data_abort",
    "instruction_abort",
    "other",
];
const STOREY_NAMES: [&str; STOREYS] = ["el1", "vel2", "l2"];
const WFX: usize = 2;
const HVC: usize = 3;

/// Classes of exceptions (ESR_ELx.EC).
const CLASSES: usize = 64;
/// A class that no exception has, for interrupts, and that of SErrors.
const INTERRUPT: usize = 0x3f;
const SERROR: usize = 0x2f;

/// The kind of an exit by its class.
const KIND_OF_CLASS: [u8; CLASSES] = {
    let mut kinds = [10; CLASSES];
    kinds[INTERRUPT] = 0;
    kinds[SERROR] = 1;
    kinds[0x01] = WFX as u8;
    kinds[0x07] = 7;
    kinds[0x16] = HVC as u8;
    kinds[0x17] = 4;
    kinds[0x18] = 5;
    kinds[0x1a] = 6;
    kinds[0x20] = 9;
    kinds[0x24] = 8;
    kinds
};

/// Exits of one storey by class: that is what an exit has at hand, and the kinds follow when somebody reads.
#[derive(Debug)]
struct Exits([Counter; CLASSES]);

impl Default for Exits {
    fn default() -> Self {
        Self([const { Counter(AtomicU64::new(0)) }; CLASSES])
    }
}

impl Exits {
    fn of_kind(&self, kind: usize) -> u64 {
        let classes = self.0.iter().zip(KIND_OF_CLASS);
        let these = classes.filter(|&(_, of)| usize::from(of) == kind);
        these.map(|(count, _)| count.get()).sum()
    }
}

/// What one vCPU counts.
#[derive(Debug, Default)]
pub(super) struct VcpuStats {
    exits: [Exits; STOREYS],
    /// In ticks of the machine's counter.
    time: [Counter; STOREYS],
    /// When the storey that runs began, in ticks, and which: 0 while none does.
    since: Counter,
    running: Counter,
    /// Device accesses that the VMM answers.
    pub(super) mmio_user: Counter,
    /// Device accesses that umbra answers.
    pub(super) mmio_kernel: Counter,
    /// KVM_RUN left for a signal.
    pub(super) signals: Counter,
    /// Waits for an interrupt (WFI), how many and how long.
    waits: Counter,
    wait_time: Counter,
    /// Stage-2 faults on a shadow.
    pub(super) shadow_faults: Counter,
    /// Of those, given to the guest hypervisor.
    pub(super) reflected: Counter,
}

impl VcpuStats {
    /// The guest left.
    #[inline]
    pub(super) fn exit(&self, world: World, exit: &Exit) {
        let class = match exit {
            Exit::Irq => INTERRUPT,
            Exit::SError { .. } => SERROR,
            Exit::Sync { esr, .. } => (esr >> 26) as usize % CLASSES,
        };
        self.exits[storey(world)].0[class].count();
    }

    /// From now on a storey has the vCPU, in umbra's own work for it too.
    pub(super) fn begin(&self, world: World) {
        let now = timer::ticks();
        self.end_at(now);
        self.since.0.store(now, Ordering::Relaxed);
        let mark = storey(world) as u64 + 1;
        self.running.0.store(mark, Ordering::Relaxed);
    }

    /// No storey has it.
    pub(super) fn end(&self) {
        self.end_at(timer::ticks());
    }

    fn end_at(&self, now: u64) {
        let mark = self.running.0.swap(0, Ordering::Relaxed) as usize;
        if let Some(time) = mark.checked_sub(1).and_then(|at| self.time.get(at)) {
            time.add(now.saturating_sub(self.since.get()));
        }
    }

    /// The vCPU slept for so many nanoseconds.
    pub(super) fn waited(&self, time: u64) {
        self.waits.count();
        self.wait_time.add(time);
    }

    fn of_kind(&self, kind: usize) -> u64 {
        self.exits.iter().map(|exits| exits.of_kind(kind)).sum()
    }

    fn list<'a>(&self, names: &'a Names) -> Vec<Stat<'a>> {
        let all = (0..KINDS.len()).map(|kind| self.of_kind(kind)).sum();
        let mut stats = alloc::vec![
            Stat::count("halt_wakeup", self.waits.get()),
            Stat::nanoseconds("halt_wait_ns", self.wait_time.get()),
            Stat::count("hvc_exit_stat", self.of_kind(HVC)),
            // WFE does not trap.
            Stat::count("wfe_exit_stat", 0),
            Stat::count("wfi_exit_stat", self.of_kind(WFX)),
            Stat::count("mmio_exit_user", self.mmio_user.get()),
            Stat::count("mmio_exit_kernel", self.mmio_kernel.get()),
            Stat::count("signal_exits", self.signals.get()),
            Stat::count("exits", all),
            Stat::count("shadow_faults", self.shadow_faults.get()),
            Stat::count("shadow_faults_reflected", self.reflected.get()),
        ];
        for (time, name) in self.time.iter().zip(TIME_NAMES) {
            stats.push(Stat::nanoseconds(name, timer::ticks_to_ns(time.get())));
        }
        for (exits, names) in self.exits.iter().zip(names) {
            for (kind, name) in names.iter().enumerate() {
                stats.push(Stat::count(name, exits.of_kind(kind)));
            }
        }
        stats
    }
}

/// What the exits of each storey are called, by kind.
type Names = [[String; KINDS.len()]; STOREYS];

fn names() -> Names {
    STOREY_NAMES.map(|storey| KINDS.map(|kind| format!("exits_{storey}_{kind}")))
}

const TIME_NAMES: [&str; STOREYS] = ["time_el1_ns", "time_vel2_ns", "time_l2_ns"];

fn file(id: &str, stats: &[Stat<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    render(id, stats, |piece| bytes.extend_from_slice(piece));
    bytes
}

fn of_vm(id: &str, vm: &Vm) -> Vec<u8> {
    let (shadows, canonical) = {
        let memory = vm.memory.lock();
        (memory.shadows.summary(), memory.ahead())
    };
    let counts = shadows.counts;
    let stats = [
        Stat::count("shadow_fills", counts.fills),
        Stat::count("shadow_ahead_made", counts.ahead),
        Stat::count("shadow_ahead_used", counts.ahead_used),
        Stat::count("shadow_ahead_unused", counts.ahead_unused),
        Stat::count("shadow_contexts_made", counts.made),
        Stat::count("shadow_contexts_given_up", counts.given_up),
        Stat::level("shadow_contexts", shadows.contexts),
        Stat::level("shadow_entries", shadows.entries),
        Stat::level("shadow_table_pages", shadows.table_pages),
        Stat::count("canonical_ahead_made", canonical.made),
        Stat::count("canonical_ahead_used", canonical.used),
        Stat::count("canonical_ahead_unused", canonical.unused),
    ];
    file(id, &stats)
}

/// A VM and its vCPUs for [`crate::live`]: each statistic with whom it is of. Nobody is held up for long,
/// so what takes a look at every entry is not among them.
pub(super) fn live(vm: &Vm, number: u16, mut tell: impl FnMut(&str, &Stat<'_>)) {
    let shadows = vm.memory.lock().shadows.overview();
    let counts = shadows.counts;
    let id = format!("vm-{number}");
    for stat in [
        Stat::count("shadow_fills", counts.fills),
        Stat::count("shadow_ahead_made", counts.ahead),
        Stat::count("shadow_contexts_made", counts.made),
        Stat::count("shadow_contexts_given_up", counts.given_up),
        Stat::level("shadow_contexts", shadows.contexts),
        Stat::level("shadow_entries", shadows.entries),
        Stat::level("shadow_table_pages", shadows.table_pages),
    ] {
        tell(&id, &stat);
    }
    let names = names();
    for vcpu in vm.all_vcpus() {
        let id = format!("vm-{number}/vcpu-{}", vcpu.id);
        for stat in vcpu.stats.list(&names) {
            tell(&id, &stat);
        }
    }
}

/// Whose statistics a file shows.
enum Source {
    Vm(Arc<Vm>),
    Vcpu(Arc<Vcpu>),
}

/// An open statistics file.
pub(super) struct StatsFile {
    source: Source,
    /// `kvm-PID`, and for a vCPU `/vcpu-ID` behind it.
    id: String,
    position: SpinLock<u64>,
}

impl StatsFile {
    /// That of a VM.
    pub(super) fn of_vm(vm: &Arc<Vm>, pid: i32) -> StatsFile {
        StatsFile::new(Source::Vm(vm.clone()), format!("kvm-{pid}"))
    }

    /// That of a vCPU.
    pub(super) fn of_vcpu(vcpu: &Arc<Vcpu>, pid: i32) -> StatsFile {
        let id = format!("kvm-{pid}/vcpu-{}", vcpu.id);
        StatsFile::new(Source::Vcpu(vcpu.clone()), id)
    }

    fn new(source: Source, id: String) -> StatsFile {
        StatsFile {
            source,
            id,
            position: SpinLock::new("stats", 66, 0),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        crate::mem::top_up();
        match &self.source {
            Source::Vm(vm) => of_vm(&self.id, vm),
            Source::Vcpu(vcpu) => file(&self.id, &vcpu.stats.list(&names())),
        }
    }

    fn copy(&self, offset: u64, to: &mut [u8]) -> usize {
        let bytes = self.bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        let count = rest.len().min(to.len());
        to[..count].copy_from_slice(&rest[..count]);
        count
    }
}

impl File for StatsFile {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        let position = *self.position.lock();
        let count = self.copy(position, buf);
        *self.position.lock() = position + count as u64;
        Ok(count)
    }

    fn read_at(&self, _call: &Call<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.copy(offset, buf))
    }

    fn seek(&self, offset: i64, whence: u32) -> Result<u64, Errno> {
        let mut position = self.position.lock();
        let base = match whence {
            uapi::SEEK_SET => 0,
            uapi::SEEK_CUR => *position,
            _ => return Err(Errno::EINVAL),
        };
        *position = base.checked_add_signed(offset).ok_or(Errno::EINVAL)?;
        Ok(*position)
    }
}
