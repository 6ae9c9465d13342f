//! What each CPU runs.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use umbra_hw::MAX_CPUS;
use umbra_hw::sync::SpinLock;
use umbra_hw::thread::Context;
use umbra_sched::{RunQueue, SLICE_NS};
use umbra_trace::{Event, IdleState};

use super::thread::{self, State, Thread};
use super::timer;
use crate::irq;
use crate::trace::{self, Who};

struct Cpu {
    queue: SpinLock<RunQueue<Arc<Thread>>>,
    /// The thread that runs. Changed by this CPU only; the lock is for `current` of this CPU too.
    current: SpinLock<Option<Arc<Thread>>>,
    idle: SpinLock<Option<Arc<Thread>>>,
    resched: AtomicBool,
    is_idle: AtomicBool,
    online: AtomicBool,
    /// When the current thread's turn began, in nanoseconds.
    since: AtomicU64,
}

static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        queue: SpinLock::new("run queue", 130, RunQueue::new()),
        current: SpinLock::new("current", 140, None),
        idle: SpinLock::new("idle", 141, None),
        resched: AtomicBool::new(false),
        is_idle: AtomicBool::new(false),
        online: AtomicBool::new(false),
        since: AtomicU64::new(0),
    }
}; MAX_CPUS];

static ONLINE: AtomicUsize = AtomicUsize::new(0);

fn this() -> &'static Cpu {
    &CPUS[umbra_hw::cpu()]
}

/// CPUs that are up.
pub(crate) fn cpus() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// Declares this CPU's boot flow to be its idle thread.
pub(crate) fn start() {
    let cpu = umbra_hw::cpu();
    let context = STARTING[cpu].lock().take().unwrap_or(Context::boot());
    let idle = Thread::idle(cpu, context);
    *this().idle.lock() = Some(idle.clone());
    *this().current.lock() = Some(idle);
    this().online.store(true, Ordering::Release);
    ONLINE.fetch_add(1, Ordering::AcqRel);
}

static STARTING: [SpinLock<Option<Context>>; MAX_CPUS] =
    [const { SpinLock::new("starting", 143, None) }; MAX_CPUS];

/// Starts CPU `index` with this MPIDR affinity on a stack of its own, and waits until it is up.
pub(crate) fn bring_up(index: usize, mpidr: u64) -> Result<(), i64> {
    let context = thread::new_context().ok_or(-1i64)?;
    let stack = context.boot_stack().ok_or(-1i64)?;
    *STARTING[index].lock() = Some(context);
    umbra_hw::psci::cpu_on(mpidr, index, stack)?;
    let deadline = timer::now() + 2_000_000_000;
    while !CPUS[index].online.load(Ordering::Acquire) {
        if timer::now() > deadline {
            return Err(-2);
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// The thread that calls this.
pub(crate) fn current() -> Arc<Thread> {
    this()
        .current
        .lock()
        .clone()
        .expect("a CPU that is up runs a thread")
}

/// Puts a runnable thread into a queue and sees that a CPU looks at it.
pub(super) fn enqueue(thread: Arc<Thread>) {
    let cpu = place(&thread);
    thread.cpu.store(cpu, Ordering::Relaxed);
    thread.queued.store(timer::now(), Ordering::Relaxed);
    {
        let mut queue = CPUS[cpu].queue.lock();
        let runtime = queue.push(thread.clone(), thread.runtime.load(Ordering::Relaxed));
        thread.runtime.store(runtime, Ordering::Relaxed);
    }
    CPUS[cpu].resched.store(true, Ordering::Release);
    if cpu == umbra_hw::cpu() {
        timer::rearm();
    } else {
        irq::send(cpu, irq::Sgi::Reschedule);
    }
}

/// Where a thread should run, of the CPUs that it may run on: its last CPU if that is idle, else any idle one, else the shortest
/// queue, its last CPU first. One that parked but has not left its CPU yet stays there: a CPU that
/// took it would have to wait for that one to switch away, and two that each take what the other is
/// leaving would wait for ever.
fn place(thread: &Thread) -> usize {
    let last = thread.cpu.load(Ordering::Relaxed);
    if thread.is_on_cpu() {
        return last;
    }
    let stays = thread.may_run_on(last);
    if stays && CPUS[last].is_idle.load(Ordering::Acquire) && CPUS[last].queue.lock().is_empty() {
        return last;
    }
    let count = cpus();
    let mut best = last;
    let mut best_length = if stays {
        CPUS[last].queue.lock().len()
    } else {
        usize::MAX
    };
    for (cpu, state) in CPUS.iter().enumerate().take(count) {
        if !state.online.load(Ordering::Acquire) || !thread.may_run_on(cpu) {
            continue;
        }
        let length = state.queue.lock().len();
        if state.is_idle.load(Ordering::Acquire) && length == 0 {
            return cpu;
        }
        if length < best_length {
            best = cpu;
            best_length = length;
        }
    }
    best
}

/// Lets `thread` run on these CPUs only, of which at least one is up: the caller at once, another when it wakes next.
pub(crate) fn set_affinity(thread: &Thread, cpus: u64) {
    thread.affinity.store(cpus, Ordering::Relaxed);
    // The alarm wakes it when its CPU has left it, and so anywhere ([`place`]).
    while thread.id == current().id && !thread.may_run_on(umbra_hw::cpu()) {
        park(Some(timer::now()));
    }
}

/// Asks CPU `cpu` to look at its queue at its next exit.
pub(crate) fn request_resched(cpu: usize) {
    CPUS[cpu].resched.store(true, Ordering::Release);
}

/// Makes CPU `cpu` leave EL0 or its guest, if it is there.
pub(crate) fn kick(cpu: usize) {
    if cpu != umbra_hw::cpu() {
        irq::send(cpu, irq::Sgi::Kick);
    }
}

/// Whether the timer has to end the current thread's slice, and when.
pub(super) fn slice_end() -> Option<u64> {
    let this = this();
    // Once a look at the queue was asked for, another interrupt would say nothing new.
    let asked = this.resched.load(Ordering::Acquire);
    if asked || this.is_idle.load(Ordering::Relaxed) || this.queue.lock().is_empty() {
        return None;
    }
    Some(this.since.load(Ordering::Relaxed) + SLICE_NS)
}

/// Says while the caller stays on this CPU whether it was asked to look at its queue.
pub(crate) fn asked() -> &'static AtomicBool {
    &this().resched
}

/// Whether another thread should have this CPU now. The caller then gives it up by [`yield_now`].
pub(crate) fn preempt_due() -> bool {
    let this = this();
    if !this.resched.load(Ordering::Acquire) && !slice_over() {
        return false;
    }
    let waiting = !this.queue.lock().is_empty();
    this.resched.store(false, Ordering::Release);
    if !waiting {
        return false;
    }
    offer();
    if !slice_over() && !fresh_is_due() {
        timer::rearm();
        return false;
    }
    true
}

/// On the way back to EL0 or a guest: lets another thread run if it is its turn. Returns whether
/// this thread was away.
pub(crate) fn preempt_point() -> bool {
    let due = preempt_due();
    if due {
        yield_now();
    }
    due
}

fn slice_over() -> bool {
    timer::now() >= this().since.load(Ordering::Relaxed) + SLICE_NS
        && !this().queue.lock().is_empty()
}

/// Whether a thread that just woke has run less than the current one by more than a slice's half.
fn fresh_is_due() -> bool {
    let this = this();
    let current = current();
    let ran = timer::now().saturating_sub(this.since.load(Ordering::Relaxed));
    let runtime = current.runtime.load(Ordering::Relaxed) + ran;
    this.queue
        .lock()
        .least()
        .is_some_and(|least| least + SLICE_NS / 2 < runtime)
}

/// Lets another thread run, if one waits.
pub(crate) fn yield_now() {
    schedule(true);
}

/// Waits until somebody calls [`Thread::unpark`], which may have happened before; or `deadline`.
pub(crate) fn park(deadline: Option<u64>) {
    let thread = current();
    {
        let mut permit = thread.permit.lock();
        if permit.pending {
            permit.pending = false;
            return;
        }
        permit.state = State::Parked;
    }
    let alarm = deadline.map(|at| timer::alarm(at, thread.clone()));
    schedule(false);
    if let Some(alarm) = alarm {
        timer::cancel(alarm);
    }
    // An alarm or a waker that came after the first leaves its permit behind; the callers' loops
    // look at their conditions again, so at worst they look once too often.
}

/// Ends the current thread.
pub(crate) fn exit() -> ! {
    let thread = current();
    thread.permit.lock().state = State::Dead;
    drop(thread);
    schedule(false);
    unreachable!("a dead thread ran")
}

/// Picks the next thread and switches to it. With `requeue` the current one stays runnable.
fn schedule(requeue: bool) {
    umbra_hw::sync::assert_none_held();
    let this = this();
    let now = timer::now();
    let current = current();
    let is_idle = current.id == 0;
    let ran = now.saturating_sub(this.since.load(Ordering::Relaxed));
    if !is_idle {
        current.runtime.fetch_add(ran, Ordering::Relaxed);
        current.ran.fetch_add(ran, Ordering::Relaxed);
        current.queued.store(now, Ordering::Relaxed);
    }
    let next = {
        let mut queue = this.queue.lock();
        if requeue && !is_idle {
            let runtime = queue.push(current.clone(), current.runtime.load(Ordering::Relaxed));
            current.runtime.store(runtime, Ordering::Relaxed);
        }
        queue.pop()
    };
    let next = next.or_else(steal);
    let next = match next {
        Some(next) => next,
        None if is_idle => return,
        None => this
            .idle
            .lock()
            .clone()
            .expect("every CPU has an idle thread"),
    };
    this.since.store(now, Ordering::Relaxed);
    this.resched.store(false, Ordering::Release);
    this.is_idle.store(next.id == 0, Ordering::Release);
    timer::rearm();
    if Arc::ptr_eq(&next, &current) {
        return;
    }
    let waited = now.saturating_sub(next.queued.load(Ordering::Relaxed));
    next.waited.fetch_add(waited, Ordering::Relaxed);
    next.turns.fetch_add(1, Ordering::Relaxed);
    umbra_hw::fp::save();
    next.cpu.store(umbra_hw::cpu(), Ordering::Relaxed);
    next.load_address_space();
    *this.current.lock() = Some(next.clone());
    let (leaves, comes) = (&current, &next);
    trace::record(Who::UMBRA, move || Event::Switch {
        previous: leaves.id,
        next: comes.id,
    });
    umbra_hw::thread::switch(current, next);
    // The thread that was left can be taken elsewhere only now.
    offer();
}

/// Wakes a CPU that has nothing to do, if a thread waits here that it could take. A CPU that became
/// idle looked at the queues itself, but not at threads that were still being left (see [`steal`]).
fn offer() {
    if this().queue.lock().is_empty() {
        return;
    }
    // Against `idle`, which declares itself and then looks at the queues.
    fence(Ordering::SeqCst);
    let me = umbra_hw::cpu();
    let idle = |&cpu: &usize| cpu != me && CPUS[cpu].is_idle.load(Ordering::Relaxed);
    if let Some(cpu) = (0..cpus()).find(idle) {
        irq::send(cpu, irq::Sgi::Reschedule);
    }
}

/// With nothing of its own to do, a CPU takes a thread from the longest queue, but none that its
/// CPU has not left yet (see [`place`]).
fn steal() -> Option<Arc<Thread>> {
    let me = umbra_hw::cpu();
    let victim = (0..cpus())
        .filter(|&cpu| cpu != me)
        .max_by_key(|&cpu| CPUS[cpu].queue.lock().len())?;
    CPUS[victim]
        .queue
        .lock()
        .steal(|thread| !thread.is_on_cpu() && thread.may_run_on(me))
}

/// Where every new thread begins.
pub(super) extern "C" fn thread_main() -> ! {
    umbra_hw::thread::finish_switch();
    offer();
    let entry = current().entry.lock().take();
    if let Some(entry) = entry {
        entry();
    }
    exit()
}

/// The rest of a CPU's boot flow: waits for work, for ever.
pub(crate) fn idle() -> ! {
    loop {
        irq::poll();
        this().is_idle.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        schedule(false);
        if this().queue.lock().is_empty() {
            irq::before_wait();
            idles(IdleState::Enter);
            umbra_hw::psci::wait_for_interrupt();
            idles(IdleState::Exit);
        }
    }
}

fn idles(state: IdleState) {
    trace::record(Who::UMBRA, move || Event::Idle { state });
}
