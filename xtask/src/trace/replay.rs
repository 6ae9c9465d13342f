//! Going through a trace in order of time: who ran where, and what each exit cost.
//!
//! ```text
//!             kvm_entry                      user_enter
//!   umbra ──────────────► guest    umbra ──────────────► process      cpu_idle: umbra ◄──► idle
//!         ◄──────────────                ◄──────────────
//!             kvm_exit                       user_exit
//! ```
//!
//! An exit's cost is umbra's time on that CPU from the exit to the next entry of the vCPU. What
//! the VMM does meanwhile is counted for itself. Where the thread gives the CPU up, the count ends.

use super::exits::{reason, refined};
use super::log::Log;
use super::story::{Class, Story};
use super::tracks::{Lane, Place, Track, VcpuId};
use std::collections::HashMap;
use umbra_trace::{Event, How, IdleState, MmioBy, Record, Resolution, Storey};

/// What a CPU does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Umbra,
    Process(u64),
    Guest(VcpuId, Storey),
    Idle,
}

/// An exit that is being seen to.
#[derive(Debug)]
struct Handling {
    vcpu: VcpuId,
    storey: Storey,
    reason: String,
    resolution: Option<Resolution>,
    by: Option<MmioBy>,
    umbra: u64,
    vmm: u64,
}

#[derive(Debug)]
struct Cpu {
    number: u64,
    doing: Doing,
    since: u64,
    handling: Option<Handling>,
}

/// Goes through all of it.
pub(crate) fn replay(log: &Log) -> Story {
    let mut story = Story::new(log);
    let mut player = Player {
        story: &mut story,
        threads: HashMap::new(),
    };
    let mut cpus: Vec<Cpu> = log
        .cpus
        .iter()
        .map(|cpu| Cpu {
            number: cpu.cpu,
            doing: Doing::Umbra,
            since: cpu.records.first().map_or(0, |record| record.time),
            handling: None,
        })
        .collect();
    for cpu in &cpus {
        if cpu.since > 0 {
            player.show(cpu, cpu.since, None);
        }
    }
    let mut next = vec![0usize; log.cpus.len()];
    while let Some(at) = earliest(log, &next) {
        let record = &log.cpus[at].records[next[at]];
        let place = (at as u32, next[at] as u32);
        next[at] += 1;
        *player.story.counts.entry(record.head.kind).or_default() += 1;
        match log.schema.event(record) {
            Some(event) => player.take(&mut cpus[at], record, &event, place),
            None => player.unknown(&cpus[at], record, place),
        }
    }
    let end = player.story.span.1;
    for cpu in &mut cpus {
        player.account(cpu, end);
        player.handled(cpu, end);
    }
    story.tracks.finish(end);
    story
}

/// The CPU whose next record is the earliest.
fn earliest(log: &Log, next: &[usize]) -> Option<usize> {
    let heads = log.cpus.iter().zip(next).enumerate();
    heads
        .filter_map(|(at, (cpu, next))| Some((cpu.records.get(*next)?.time, at)))
        .min()
        .map(|(_, at)| at)
}

struct Player<'a> {
    story: &'a mut Story,
    /// Threads that are known to run a vCPU.
    threads: HashMap<u64, VcpuId>,
}

impl Player<'_> {
    fn take(&mut self, cpu: &mut Cpu, record: &Record, event: &Event, place: Place) {
        let time = record.time;
        self.story.count(record, event);
        let vcpu = VcpuId {
            vm: record.head.vm,
            vcpu: record.head.vcpu,
        };
        let storey = Storey::from_number(record.head.storey).unwrap_or(Storey::Umbra);
        match *event {
            Event::Entry { .. } => {
                self.change(cpu, time, Doing::Guest(vcpu, storey), place);
                self.handled(cpu, time);
            }
            Event::Exit { kind, esr, .. } => {
                self.change(cpu, time, Doing::Umbra, place);
                self.handled(cpu, time);
                let reason = reason(kind, esr);
                let lane = Track::Vcpu(vcpu, Lane::Umbra);
                self.story.tracks.begin(lane, time, &reason, Some(place));
                cpu.handling = Some(Handling {
                    vcpu,
                    storey,
                    reason,
                    resolution: None,
                    by: None,
                    umbra: 0,
                    vmm: 0,
                });
            }
            Event::UserEnter { thread, .. } => {
                self.change(cpu, time, Doing::Process(thread), place);
            }
            Event::UserExit { .. } => self.change(cpu, time, Doing::Umbra, place),
            Event::Idle { state } => {
                self.handled(cpu, time);
                let doing = match state {
                    IdleState::Enter => Doing::Idle,
                    IdleState::Exit => Doing::Umbra,
                };
                self.change(cpu, time, doing, place);
            }
            Event::Switch { .. } => {
                self.account(cpu, time);
                self.handled(cpu, time);
            }
            Event::UserspaceExit { thread, .. } => {
                self.threads.insert(thread, vcpu);
                self.instant(cpu, time, place);
            }
            Event::Resolved { resolution, .. } => {
                if let Some(handling) = &mut cpu.handling {
                    handling.resolution = Some(resolution);
                }
                self.instant(cpu, time, place);
            }
            Event::Map { how, .. } if how != How::Around => {
                if let Some(handling) = &mut cpu.handling {
                    handling.resolution = Some(Resolution::Mapped);
                }
                self.instant(cpu, time, place);
            }
            Event::Mmio { by, .. } => {
                if let Some(handling) = &mut cpu.handling {
                    handling.by = Some(by);
                }
                self.instant(cpu, time, place);
            }
            _ => self.instant(cpu, time, place),
        }
    }

    fn unknown(&mut self, cpu: &Cpu, record: &Record, place: Place) {
        self.story.unknown += 1;
        self.instant(cpu, record.time, place);
    }

    /// A record of its own goes to the exit that is being seen to, else to the CPU.
    fn instant(&mut self, cpu: &Cpu, time: u64, place: Place) {
        let track = match &cpu.handling {
            Some(handling) if cpu.doing == Doing::Umbra => Track::Vcpu(handling.vcpu, Lane::Umbra),
            _ => Track::Cpu(cpu.number),
        };
        self.story.tracks.instant(track, time, place);
    }

    /// Books the time since the last change.
    fn account(&mut self, cpu: &mut Cpu, time: u64) {
        let ticks = time.saturating_sub(cpu.since);
        let class = match cpu.doing {
            Doing::Umbra => Class::Umbra,
            Doing::Process(_) => Class::Process,
            Doing::Guest(_, storey) => Class::of(storey),
            Doing::Idle => Class::Idle,
        };
        self.story.spend(cpu.number, class, cpu.since, time);
        let owner = match (cpu.doing, &mut cpu.handling) {
            (Doing::Guest(vcpu, _), _) => Some(vcpu),
            (Doing::Umbra, Some(handling)) => {
                handling.umbra += ticks;
                Some(handling.vcpu)
            }
            (Doing::Process(_), Some(handling)) => {
                handling.vmm += ticks;
                Some(handling.vcpu)
            }
            (Doing::Process(thread), None) => self.threads.get(&thread).copied(),
            (Doing::Umbra, None) | (Doing::Idle, _) => None,
        };
        if let Some(vcpu) = owner {
            self.story.vcpus.entry(vcpu).or_default()[class as usize] += ticks;
        }
        cpu.since = time;
    }

    fn change(&mut self, cpu: &mut Cpu, time: u64, doing: Doing, place: Place) {
        self.account(cpu, time);
        if let Some(lane) = self.lane(cpu) {
            self.story.tracks.end(lane, time, None);
        }
        cpu.doing = doing;
        self.show(cpu, time, Some(place));
    }

    /// The vCPU's track that what the CPU does belongs to.
    fn lane(&self, cpu: &Cpu) -> Option<Track> {
        match cpu.doing {
            Doing::Guest(vcpu, storey) => Some(Track::Vcpu(vcpu, Lane::of(storey)?)),
            Doing::Process(thread) => {
                let vcpu = self.threads.get(&thread)?;
                Some(Track::Vcpu(*vcpu, Lane::Vmm))
            }
            Doing::Umbra | Doing::Idle => None,
        }
    }

    fn show(&mut self, cpu: &Cpu, time: u64, place: Option<Place>) {
        let text = match cpu.doing {
            Doing::Umbra => "umbra".to_owned(),
            Doing::Process(thread) => format!("thread {thread}"),
            Doing::Guest(vcpu, storey) => format!(
                "{} of vCPU {}",
                Lane::of(storey).map_or("?", Lane::name),
                vcpu.vcpu
            ),
            Doing::Idle => "idle".to_owned(),
        };
        let track = Track::Cpu(cpu.number);
        self.story.tracks.begin(track, time, &text, None);
        if let Some(lane) = self.lane(cpu) {
            self.story.tracks.begin(lane, time, "runs", place);
        }
    }

    /// The exit was seen to, as far as this CPU can tell.
    fn handled(&mut self, cpu: &mut Cpu, time: u64) {
        let Some(handling) = cpu.handling.take() else {
            return;
        };
        let text = refined(&handling.reason, handling.resolution, handling.by);
        let lane = Track::Vcpu(handling.vcpu, Lane::Umbra);
        self.story.tracks.end(lane, time, Some(&text));
        self.story
            .exits
            .add(handling.storey, text, handling.umbra, handling.vmm);
    }
}
