//! Calls of every kind, from several threads of a process that is made to be thrown away: system calls and
//! ioctls, half of them sensible, on files that other threads close meanwhile, with VMs that really run.
//!
//! ```text
//!  kvm-probe ── a VM that sums its memory, all the time
//!      └── kvm-probe --storm SEED CALLS     life after life: three threads of noise, interrupted every 2 ms
//! ```
//!
//! Nothing particular has to happen. Each life ends when its calls are made; when it is over, every frame and
//! the kernel's heap is where it was, but for the shape of a few lists; and the sums were right. The first
//! few lives are not judged: lists that umbra keeps for ever grow to their size in them.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{fs, thread};

use umbra_vmm::kvm::{ABOVE_MAPPED, Ground, Region, interrupt, playground, this_thread};

use super::guest::{KernelMemory, Runner, at_rest, memory_of_kernel};
use super::noise::{Random, alive};
use super::shapes::{self, Call};
use super::{Check, Env, Outcome, campaign, granted, holds};

/// Calls of one life.
const LIFE: u64 = 10_000;
/// Threads of one.
const THREADS: u64 = 3;
/// Lives that fill what is kept for ever: lists of each CPU's, names and numbers of files.
const WARM_UP: u64 = 3;
/// Lives that are judged at least.
const JUDGED: u64 = 7;
/// Bytes of the nodes by which trees of the same content differ.
pub(super) const NODES: i64 = 4 << 10;
/// A call that is interrupted over and over has to end within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a life says what it was about when it could not go on.
const LAST_WORDS: &str = "/storm.log";
/// Names that the noise uses in /.
const OWN: [&str; 9] = [
    "/n0", "/n1", "/n2", "/n3", "/n4", "/n5", "/n6", "/n7", "/nd",
];

/// One life, in its own process.
fn life(seed: u64, calls: u64) -> Outcome {
    let program = std::env::args().next().ok_or("no name of one's own")?;
    let status = Command::new(program)
        .args(["--storm", &seed.to_string(), &calls.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| format!("a process for the noise: {e}"))?;
    for name in OWN {
        if fs::remove_file(name).is_err() {
            let _ = fs::remove_dir_all(name);
        }
    }
    let words = fs::read_to_string(LAST_WORDS).unwrap_or_default();
    let _ = fs::remove_file(LAST_WORDS);
    holds(status.success(), || {
        format!("the life of seed {seed} ended with {status}: {words}")
    })
}

/// Lives, until as many calls were made as are wanted. None of them leaves anything.
fn lives(env: &Env) -> Outcome {
    let start = Instant::now();
    let more = |calls: u64| match env.seconds {
        Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
        None => calls < env.rounds(env.calls),
    };
    for n in 0..WARM_UP {
        life(env.seed + n, LIFE)?;
    }
    let before = at_rest()?;
    let mut heaps = Vec::new();
    let (mut calls, mut seed) = (WARM_UP * LIFE, env.seed + WARM_UP);
    while more(calls) || seed < env.seed + WARM_UP + JUDGED {
        life(seed, LIFE)?;
        calls += LIFE;
        let now = settled(before)?;
        holds(same_but_for_nodes(before, now), || {
            format!("seed {seed} left something behind: {before:?}, then {now:?}")
        })?;
        heaps.push(now.heap - before.heap);
        seed += 1;
    }
    // What grows with every life, however little, ends above all that was seen at first.
    let (first, last) = heaps.split_at(heaps.len() / 2);
    holds(last.iter().min() <= first.iter().max(), || {
        format!("the heap grows with every life: {heaps:?}")
    })?;
    let rate = calls * 1000 / (start.elapsed().as_millis() as u64).max(1);
    let (low, high) = (heaps.iter().min(), heaps.iter().max());
    println!(
        "noise: {calls} calls, {rate} a second; no frame is left of any of them, and of the heap {low:?} to {high:?} bytes"
    );
    Ok(())
}

/// Whether the same is free, but for the shape of umbra's lists of names and processes: a tree of the same
/// content may have a node more or less, by the order in which that came.
fn same_but_for_nodes(before: KernelMemory, now: KernelMemory) -> bool {
    (now.frames, now.stacks) == (before.frames, before.stacks)
        && (now.heap - before.heap).abs() <= NODES
}

/// What the kernel has once the last thread of a life is gone: that may take a moment longer than its
/// parent's wait. Waits for what was there `before`, but not for ever.
fn settled(before: KernelMemory) -> Check<KernelMemory> {
    let start = Instant::now();
    loop {
        let now = memory_of_kernel()?;
        if same_but_for_nodes(before, now) || start.elapsed() > Duration::from_secs(2) {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn everything(env: &Env) -> Outcome {
    // Linux's own memory is not counted like this, and its root is nobody to make noise as.
    if !env.umbra {
        return Ok(());
    }
    let (stop, sums) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = thread::scope(|scope| {
        let neighbour = Runner::spawn(scope, || campaign::worker(&stop, &sums));
        let result = lives(env);
        stop.store(true, Relaxed);
        result.and(neighbour.join()?)
    });
    println!("noise: {} right sums of a neighbour", sums.load(Relaxed));
    result?;
    holds(sums.load(Relaxed) > 0, || {
        "the neighbour did not run".into()
    })?;
    alive()
}

/// What one thread is about, for the last words.
#[derive(Default)]
struct Progress {
    calls: AtomicU64,
    number: AtomicU64,
    args: [AtomicU64; 6],
}

impl Progress {
    fn begin(&self, call: &Call) {
        self.number.store(call.number, Relaxed);
        for (place, arg) in self.args.iter().zip(call.args) {
            place.store(arg, Relaxed);
        }
        self.calls.fetch_add(1, Relaxed);
    }

    fn words(&self) -> String {
        let args = self.args.each_ref().map(|arg| arg.load(Relaxed));
        let (calls, number) = (self.calls.load(Relaxed), self.number.load(Relaxed));
        format!("call {calls}: system call {number} {args:x?}\n")
    }
}

/// One thread's noise.
fn thread_of_noise(seed: u64, calls: u64, play: (u64, u64), progress: &Progress) -> Outcome {
    let scratch = granted(Region::new(shapes::SCRATCH), "mmap")?;
    let ground = Ground {
        scratch: &scratch,
        play: play.0,
        play_bytes: play.1,
    };
    let mut random = Random(seed);
    shapes::names(&scratch);
    let mut make = |call: Call| {
        if !ground.allows(call.number, &call.args) {
            return Err(libc::EPERM);
        }
        progress.begin(&call);
        ground.call(call.number, call.args)
    };
    while progress.calls.load(Relaxed) < calls {
        // What it answers is nobody's business here.
        if random.below(200) == 0 {
            let _ = shapes::a_vm(&mut random, &ground, &mut make);
        } else {
            let _ = make(shapes::next(&mut random, &ground));
        }
    }
    // The noise may have unmapped parts of what other threads mapped, never of this.
    std::mem::forget(scratch);
    Ok(())
}

/// `kvm-probe --storm SEED CALLS`: one life. Ends the process.
pub(crate) fn storm(seed: u64, calls: u64) -> ! {
    const PLAY: usize = 16 << 20;
    let progress: [Progress; THREADS as usize] = Default::default();
    let play = playground(PLAY).unwrap_or(ABOVE_MAPPED);
    let status = thread::scope(|scope| {
        let mut seeds = Random(seed);
        let threads: Vec<_> = progress
            .iter()
            .map(|progress| {
                let seed = seeds.next();
                let (tell, told) = std::sync::mpsc::channel();
                let thread = scope.spawn(move || {
                    let _ = tell.send(this_thread());
                    thread_of_noise(seed, calls / THREADS, (play, PLAY as u64), progress)
                });
                (thread, told.recv(), progress)
            })
            .collect();
        let mut seen = [(0, Instant::now()); THREADS as usize];
        while threads.iter().any(|(thread, ..)| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(2));
            for ((thread, id, progress), seen) in threads.iter().zip(&mut seen) {
                let calls = progress.calls.load(Relaxed);
                if thread.is_finished() || calls != seen.0 {
                    *seen = (calls, Instant::now());
                } else if let Ok(id) = id {
                    interrupt(*id);
                }
                if seen.1.elapsed() > PATIENCE {
                    let words: String = threads.iter().map(|(_, _, p)| p.words()).collect();
                    let _ = fs::write(LAST_WORDS, words);
                    std::process::exit(3);
                }
            }
        }
        let good = threads
            .into_iter()
            .all(|(thread, ..)| matches!(thread.join(), Ok(Ok(()))));
        i32::from(!good)
    });
    std::process::exit(status)
}
