//! One thread of execution in the kernel.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use umbra_arm64::Pa;
use umbra_frames::Owner;
use umbra_hw::sync::SpinLock;
use umbra_hw::thread::{Context, STACK_PAGES, Switch};

use super::cpu;
use crate::mem;

/// What a thread works for, as far as the scheduler cares: whose address space it needs.
pub(crate) trait Task: Send + Sync {
    /// Makes the task's address space current on this CPU.
    fn load_address_space(&self);
}

/// Whether a thread may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// On a CPU or in a run queue.
    Runnable,
    /// In [`cpu::park`].
    Parked,
    /// Never to run again.
    Dead,
}

/// What `unpark` and `park` agree on.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) state: State,
    /// An `unpark` that came before its `park`.
    pub(super) pending: bool,
}

type Entry = Box<dyn FnOnce() + Send>;

/// A kernel thread: a stack, and what to do on it.
pub(crate) struct Thread {
    pub(crate) id: u64,
    /// `None` only while the thread is taken apart.
    context: Option<Context>,
    pub(super) permit: SpinLock<Permit>,
    /// Nanoseconds run, on the queues' scale.
    pub(super) runtime: AtomicU64,
    /// CPU it runs or last ran on.
    pub(super) cpu: AtomicUsize,
    /// CPUs it may run on, by bit: its maker's, until it says otherwise.
    pub(super) affinity: AtomicU64,
    /// When it was last put into a queue, in nanoseconds.
    pub(super) queued: AtomicU64,
    /// Nanoseconds it ran.
    pub(super) ran: AtomicU64,
    /// Nanoseconds it could have run and did not.
    pub(super) waited: AtomicU64,
    /// How often it got a CPU.
    pub(super) turns: AtomicU64,
    pub(super) entry: SpinLock<Option<Entry>>,
    task: Option<Arc<dyn Task>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Thread {
    pub(super) fn idle(cpu: usize, context: Context) -> Arc<Self> {
        Arc::new(Self {
            id: 0,
            context: Some(context),
            permit: SpinLock::new(
                "thread",
                120,
                Permit {
                    state: State::Runnable,
                    pending: false,
                },
            ),
            runtime: AtomicU64::new(0),
            cpu: AtomicUsize::new(cpu),
            affinity: AtomicU64::new(u64::MAX),
            queued: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            entry: SpinLock::new("thread entry", 119, None),
            task: None,
        })
    }

    pub(super) fn load_address_space(&self) {
        match &self.task {
            Some(task) => task.load_address_space(),
            None => umbra_hw::aspace::unload(),
        }
    }

    /// Lets the thread go on from, or not enter, its next [`cpu::park`].
    pub(crate) fn unpark(self: &Arc<Self>) {
        let mut permit = self.permit.lock();
        match permit.state {
            State::Parked => {
                permit.state = State::Runnable;
                drop(permit);
                cpu::enqueue(self.clone());
            }
            State::Runnable => permit.pending = true,
            State::Dead => {}
        }
    }

    /// Nanoseconds it ran until it last left a CPU, nanoseconds it waited for one, how often it got one.
    pub(crate) fn statistics(&self) -> (u64, u64, u64) {
        let [ran, waited, turns] =
            [&self.ran, &self.waited, &self.turns].map(|count| count.load(Ordering::Relaxed));
        (ran, waited, turns)
    }

    /// Nanoseconds it could have run and did not: stolen from what it does.
    pub(crate) fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Whether some CPU still runs on its stack, even if only to leave it.
    pub(super) fn is_on_cpu(&self) -> bool {
        self.context.as_ref().is_some_and(Context::is_running)
    }

    /// CPUs it may run on, by bit.
    pub(crate) fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    /// Whether it may run on `cpu`.
    pub(super) fn may_run_on(&self, cpu: usize) -> bool {
        self.affinity().checked_shr(cpu as u32).unwrap_or(0) & 1 != 0
    }

    /// CPU it runs or last ran on.
    pub(crate) fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }
}

impl Switch for Thread {
    fn context(&self) -> &Context {
        self.context
            .as_ref()
            .expect("a thread has its stack until it is dropped")
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(pages) = self.context.take().and_then(Context::into_pages) {
            for page in pages {
                mem::release(page);
            }
        }
    }
}

/// A stack, or `None` when memory is out.
pub(super) fn new_context() -> Option<Context> {
    mem::top_up();
    let mut pages = [Pa::new(0); STACK_PAGES];
    let mut got = 0;
    while got < STACK_PAGES {
        let Some(page) = mem::allocate_plain(0, Owner::Stack) else {
            break;
        };
        pages[got] = page;
        got += 1;
    }
    if got == STACK_PAGES
        && let Ok(context) = Context::new(pages, cpu::thread_main)
    {
        return Some(context);
    }
    for page in &pages[..got] {
        mem::release(*page);
    }
    None
}

/// Starts a thread. `None` when memory or stacks are out.
pub(crate) fn spawn(
    task: Option<Arc<dyn Task>>,
    entry: impl FnOnce() + Send + 'static,
) -> Option<Arc<Thread>> {
    let thread = prepare(task, entry)?;
    cpu::enqueue(thread.clone());
    Some(thread)
}

fn prepare(
    task: Option<Arc<dyn Task>>,
    entry: impl FnOnce() + Send + 'static,
) -> Option<Arc<Thread>> {
    let context = new_context()?;
    Some(Arc::new(Thread {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        context: Some(context),
        permit: SpinLock::new(
            "thread",
            120,
            Permit {
                state: State::Runnable,
                pending: false,
            },
        ),
        runtime: AtomicU64::new(0),
        cpu: AtomicUsize::new(umbra_hw::cpu()),
        affinity: AtomicU64::new(cpu::current().affinity()),
        queued: AtomicU64::new(0),
        ran: AtomicU64::new(0),
        waited: AtomicU64::new(0),
        turns: AtomicU64::new(0),
        entry: SpinLock::new("thread entry", 119, Some(Box::new(entry))),
        task,
    }))
}
