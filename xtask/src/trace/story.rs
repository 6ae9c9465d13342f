//! What a trace amounts to: time by storey, exits, mappings, shadow tables, memory errors.

use super::exits::{Exits, register_name};
use super::log::Log;
use super::tracks::{Tracks, VcpuId};
use std::collections::BTreeMap;
use umbra_arm64::sysreg::SysReg;
use umbra_trace::{Event, How, Injected, Record, Resolution, Shadowed, Storey, UnmapReason};

/// What a CPU spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// umbra at EL2.
    Umbra,
    /// Processes at EL0: the VMM, init.
    Process,
    /// A guest without virtual EL2.
    Guest,
    /// A guest hypervisor.
    VirtualEl2,
    /// A guest of a guest hypervisor.
    Nested,
    /// Nothing: it waits for an interrupt.
    Idle,
}

impl Class {
    /// All of them, from below.
    pub(crate) const ALL: [Class; 6] = [
        Class::Umbra,
        Class::Process,
        Class::Guest,
        Class::VirtualEl2,
        Class::Nested,
        Class::Idle,
    ];

    /// What a reader is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Umbra => "umbra",
            Class::Process => "VMM and processes",
            Class::Guest => "guest",
            Class::VirtualEl2 => "L1 (virtual EL2)",
            Class::Nested => "L2",
            Class::Idle => "idle",
        }
    }

    /// What a storey's running is.
    pub(crate) fn of(storey: Storey) -> Self {
        match storey {
            Storey::Umbra => Class::Umbra,
            Storey::Process => Class::Process,
            Storey::Guest => Class::Guest,
            Storey::VirtualEl2 => Class::VirtualEl2,
            Storey::Nested => Class::Nested,
        }
    }
}

/// Ticks by [`Class`].
pub(crate) type Times = [u64; 6];

/// How many pieces the time line has.
pub(crate) const PIECES: usize = 120;

/// An entry of a stage-2 table, when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The VM.
    pub(crate) vm: u16,
    /// The shadow table, 0 for the VM's own.
    pub(crate) context: u64,
    /// Address in L2, for a shadow.
    pub(crate) l2: Option<u64>,
    /// Address in the VM.
    pub(crate) ipa: u64,
    /// Address in the machine.
    pub(crate) pa: u64,
    /// Bytes.
    pub(crate) bytes: u64,
    /// How it came to be.
    pub(crate) how: How,
}

/// The life of a shadow table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShadowLife {
    /// When it was made, if the trace saw that.
    pub(crate) began: Option<u64>,
    /// When it went, and why.
    pub(crate) ended: Option<(u64, Shadowed)>,
    /// VTTBR_EL2 of the guest hypervisor.
    pub(crate) vttbr: u64,
    /// How often the guest hypervisor returned into it.
    pub(crate) entries: u64,
    /// Entries made in it, and their bytes.
    pub(crate) mapped: (u64, u64),
    /// TLB maintenance under its VMID while it lived.
    pub(crate) tlbis: u64,
}

/// A memory error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryError {
    /// When.
    pub(crate) time: u64,
    /// Whose.
    pub(crate) vcpu: VcpuId,
    /// In which storey.
    pub(crate) storey: Storey,
    /// The event itself.
    pub(crate) event: Event,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Story {
    /// First and last time.
    pub(crate) span: (u64, u64),
    /// Time by class, for each CPU.
    pub(crate) cpus: BTreeMap<u64, Times>,
    /// Time by class along the run, all CPUs together.
    pub(crate) pieces: Vec<Times>,
    /// Time by class, for each vCPU; umbra's is what it spent on the vCPU's exits.
    pub(crate) vcpus: BTreeMap<VcpuId, Times>,
    /// Exits.
    pub(crate) exits: Exits,
    /// Entries made, in order.
    pub(crate) mappings: Vec<Mapping>,
    /// Bytes and times that entries were taken away, by reason.
    pub(crate) unmapped: BTreeMap<UnmapReason, (u64, u64)>,
    /// Stage-2 faults by what became of them, on the VM's own table and on a shadow.
    pub(crate) resolved: BTreeMap<(Resolution, bool), u64>,
    /// Walks of a guest hypervisor's stage 2: by level, how many gave a translation, how many a fault.
    pub(crate) walks: BTreeMap<i64, (u64, u64)>,
    /// Shadow tables, by VM and number.
    pub(crate) shadows: BTreeMap<(u16, u64), ShadowLife>,
    /// Memory errors.
    pub(crate) errors: Vec<MemoryError>,
    /// TLB maintenance by instruction.
    pub(crate) tlbis: BTreeMap<String, u64>,
    /// What was injected.
    pub(crate) injected: BTreeMap<Injected, u64>,
    /// Records by their event's number.
    pub(crate) counts: BTreeMap<u16, u64>,
    /// Records that this program knows the name of, if anything, but not the meaning.
    pub(crate) unknown: u64,
    /// What is drawn.
    pub(crate) tracks: Tracks,
}

impl Story {
    /// A story of this span, of CPUs that did nothing yet.
    pub(crate) fn new(log: &Log) -> Self {
        Self {
            span: log.span().unwrap_or((0, 0)),
            pieces: vec![Times::default(); PIECES],
            ..Self::default()
        }
    }

    /// Ticks from the first event to the last.
    pub(crate) fn ticks(&self) -> u64 {
        self.span.1 - self.span.0
    }

    /// Time by class, all CPUs together.
    pub(crate) fn times(&self) -> Times {
        let mut all = Times::default();
        for times in self.cpus.values() {
            for (sum, ticks) in all.iter_mut().zip(times) {
                *sum += ticks;
            }
        }
        all
    }

    /// A CPU did something of `class` in `[from, to)`.
    pub(crate) fn spend(&mut self, cpu: u64, class: Class, from: u64, to: u64) {
        let ticks = to.saturating_sub(from);
        self.cpus.entry(cpu).or_default()[class as usize] += ticks;
        let (start, length) = (self.span.0, self.ticks().max(1));
        let piece = |time: u64| {
            let at = u128::from(time - start) * PIECES as u128 / u128::from(length);
            (at as usize).min(PIECES - 1)
        };
        let edge = |n: usize| start + (u128::from(length) * n as u128 / PIECES as u128) as u64;
        let (first, last) = (piece(from.max(start)), piece(to.max(start)));
        for n in first..=last {
            let begin = if n == first { from } else { edge(n) };
            let end = if n == last { to } else { edge(n + 1) };
            self.pieces[n][class as usize] += end.saturating_sub(begin);
        }
    }

    /// What an event adds that has nothing to do with who runs where.
    pub(crate) fn count(&mut self, record: &Record, event: &Event) {
        let vm = record.head.vm;
        match *event {
            Event::Map {
                l2,
                ipa,
                pa,
                bytes,
                how,
                context,
            } => {
                self.mappings.push(Mapping {
                    vm,
                    context,
                    l2: l2.map(|at| at.raw()),
                    ipa: ipa.raw(),
                    pa: pa.raw(),
                    bytes: bytes.0,
                    how,
                });
                if how != How::Around {
                    *self
                        .resolved
                        .entry((Resolution::Mapped, l2.is_some()))
                        .or_default() += 1;
                }
                if context != 0 {
                    let (entries, sum) = &mut self.shadow(vm, context).mapped;
                    *entries += 1;
                    *sum += bytes.0;
                }
            }
            Event::Unmap { bytes, reason, .. } => {
                let (times, sum) = self.unmapped.entry(reason).or_default();
                *times += 1;
                *sum += bytes.0;
            }
            Event::Mmio { .. } => {
                let below = record.head.storey == Storey::Nested as u8;
                *self.resolved.entry((Resolution::Mmio, below)).or_default() += 1;
            }
            Event::Resolved { l2, resolution, .. } => {
                *self.resolved.entry((resolution, l2.is_some())).or_default() += 1;
            }
            Event::Walk { level, status, .. } => {
                let (good, bad) = self.walks.entry(level as i64).or_default();
                *(if status == 0 { good } else { bad }) += 1;
            }
            Event::Shadow {
                context,
                what,
                vttbr,
                ..
            } => {
                let life = self.shadow(vm, context);
                match what {
                    Shadowed::Created => {
                        life.began = Some(record.time);
                        life.vttbr = vttbr;
                    }
                    Shadowed::OverBudget | Shadowed::Reclaimed | Shadowed::VmGone => {
                        life.ended = Some((record.time, what));
                    }
                }
            }
            Event::NestedEret { context, .. } if context != 0 => {
                self.shadow(vm, context).entries += 1;
            }
            Event::Tlbi { op, vmid, .. } => {
                let register = SysReg::from_id(op as u16);
                *self.tlbis.entry(register_name(register)).or_default() += 1;
                let living = self.shadows.iter_mut().filter(|((of, _), life)| {
                    *of == vm && life.ended.is_none() && life.vttbr >> 48 == u64::from(vmid)
                });
                living.for_each(|(_, life)| life.tlbis += 1);
            }
            Event::Inject { kind, .. } => *self.injected.entry(kind).or_default() += 1,
            Event::Sea { .. } => self.errors.push(MemoryError {
                time: record.time,
                vcpu: VcpuId {
                    vm,
                    vcpu: record.head.vcpu,
                },
                storey: Storey::from_number(record.head.storey).unwrap_or(Storey::Umbra),
                event: *event,
            }),
            _ => {}
        }
    }

    fn shadow(&mut self, vm: u16, context: u64) -> &mut ShadowLife {
        self.shadows.entry((vm, context)).or_default()
    }
}
