//! Starting threads and processes: the first program, and clone.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_arm64::Hva;
use umbra_hw::fp::FpState;
use umbra_hw::sync::SpinLock;
use umbra_hw::user::UserFrame;
use umbra_linux::fd::{DEFAULT_LIMIT, FdTable};
use umbra_linux::signal::{Actions, AltStack, Pending, SigSet, Signal, ThreadSignals};
use umbra_linux::wait::{Ending, INIT, Pid};
use umbra_linux::{Errno, uapi};

use super::process::{Files, Gate, Paths, Seat, Signals};
use super::{Process, Program, UserThread, registry, run};
use crate::file::{Call, Description};
use crate::files::{tree, tty};
use crate::mm::Mm;
use crate::sched;

// include/uapi/linux/sched.h
const CSIGNAL: u64 = 0xff;
const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SYSVSEM: u64 = 0x4_0000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_DETACHED: u64 = 0x40_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// What a thread shares, all of it or nothing.
const THREAD: u64 = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
const KNOWN: u64 = CSIGNAL
    | THREAD
    | CLONE_VFORK
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_CHILD_SETTID;

/// Threads in all: each has a kernel stack.
const MAX_THREADS: usize = 4096;

/// The arguments of clone, in arm64's order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clone {
    pub(crate) flags: u64,
    pub(crate) stack: u64,
    pub(crate) parent_tid: Hva,
    pub(crate) tls: u64,
    pub(crate) child_tid: Hva,
}

/// What a new thread needs before it can run, handed over once it exists.
struct Luggage {
    thread: Arc<UserThread>,
    frame: UserFrame,
    fp: FpState,
}

/// A thread that is scheduled and waits for its luggage.
struct Starting {
    scheduled: Arc<sched::Thread>,
    slot: Arc<SpinLock<Option<Luggage>>>,
}

/// Scheduled threads of processes: only counted.
static THREADS: AtomicU64 = AtomicU64::new(0);

/// Threads of processes, of all of them.
pub(crate) fn thread_count() -> u64 {
    THREADS.load(Ordering::Relaxed)
}

impl Starting {
    fn new(process: &Arc<Process>) -> Result<Self, Errno> {
        if THREADS.load(Ordering::Relaxed) >= MAX_THREADS as u64 {
            return Err(Errno::EAGAIN);
        }
        let slot = Arc::new(SpinLock::new("luggage", 10, None::<Luggage>));
        let theirs = slot.clone();
        let scheduled = sched::spawn(Some(Arc::new(Seat(process.clone()))), move || {
            let Luggage { thread, frame, fp } = loop {
                let luggage = theirs.lock().take();
                match luggage {
                    Some(luggage) => break luggage,
                    None => sched::park(None),
                }
            };
            drop(theirs);
            run::thread(thread, frame, fp);
            THREADS.fetch_sub(1, Ordering::Relaxed);
        })
        .ok_or(Errno::EAGAIN)?;
        THREADS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { scheduled, slot })
    }

    fn go(self, thread: Arc<UserThread>, frame: UserFrame, fp: FpState) {
        *self.slot.lock() = Some(Luggage { thread, frame, fp });
        self.scheduled.unpark();
    }
}

/// What a new process begins with, apart from its number.
struct Birth {
    mm: Arc<Mm>,
    files: Arc<Files>,
    paths: Paths,
    actions: Actions,
    gate: Option<Arc<Gate>>,
    exit_signal: u32,
    trampoline: u64,
}

fn new_process(parent: Pid, birth: Birth) -> Result<Arc<Process>, Errno> {
    let pid = registry::add_process(parent)?;
    Ok(Arc::new(Process {
        pid,
        mm: SpinLock::new("process mm", 56, Some(birth.mm)),
        files: SpinLock::new("files", 48, birth.files),
        paths: SpinLock::new("paths", 52, Some(birth.paths)),
        signals: SpinLock::new(
            "process signals",
            40,
            Signals {
                actions: birth.actions,
                shared: Pending::new(),
            },
        ),
        threads: SpinLock::new("threads", 30, Vec::new()),
        ending: SpinLock::new("ending", 58, None),
        dying: AtomicBool::new(false),
        children: sched::WaitQueue::new(),
        gate: SpinLock::new("vfork", 57, birth.gate),
        exit_signal: birth.exit_signal,
        trampoline: AtomicU64::new(birth.trampoline),
        started: sched::now(),
    }))
}

/// Starts the first program, with the console as its standard files, or the file at `stdin` as the
/// first of them.
pub(crate) fn first(
    path: &[u8],
    args: Vec<Vec<u8>>,
    env: &[Vec<u8>],
    stdin: Option<&[u8]>,
) -> Result<(), Errno> {
    let root = tree::with(|fs| {
        let root = fs.root();
        fs.hold(root).map(|()| root)
    })?;
    let mut paths = Paths {
        dir: root,
        umask: 0o022,
        exe: Vec::new(),
    };
    let program = Program::load(path, args, env, |path| tree::find_program(&paths, path));
    let program = match program {
        Ok(program) => program,
        Err(errno) => {
            umbra_hw::aspace::unload();
            return Err(errno);
        }
    };
    umbra_hw::aspace::unload();
    let mut table = FdTable::new(DEFAULT_LIMIT);
    let console = Description::new(tty::console(), uapi::O_RDWR);
    let input = match stdin {
        Some(path) => tree::open_input(&paths, path)?,
        None => console.clone(),
    };
    for file in [input, console.clone(), console] {
        table.insert(file, false)?;
    }
    paths.exe = program.exe;
    let process = new_process(
        INIT,
        Birth {
            mm: program.mm,
            files: Arc::new(Files::new("descriptors", 50, table)),
            paths,
            actions: Actions::new(),
            gate: None,
            exit_signal: 0,
            trampoline: program.trampoline,
        },
    )?;
    let starting = Starting::new(&process)?;
    let thread = UserThread::new(
        process.pid,
        process.clone(),
        starting.scheduled.clone(),
        ThreadSignals::new(SigSet::EMPTY),
        program.name,
    );
    publish(&process, &thread, true);
    starting.go(thread, program.frame, FpState::default());
    Ok(())
}

/// Makes a thread, and with `new` its process, findable, before either runs.
fn publish(process: &Arc<Process>, thread: &Arc<UserThread>, new: bool) {
    process.threads.lock().push(thread.clone());
    registry::insert_thread(thread);
    if new {
        registry::insert(process);
    }
}

/// clone: a thread, or a process that shares the address space until it ends or calls execve.
pub(crate) fn clone(
    call: &Call<'_>,
    frame: &UserFrame,
    fp: &mut FpState,
    args: &Clone,
) -> Result<u64, Errno> {
    if args.flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let is_thread = args.flags & CLONE_THREAD != 0;
    if is_thread && args.flags & THREAD != THREAD {
        return Err(Errno::EINVAL);
    }
    // A process with memory of its own needs copies of pages: `fork` is left out.
    if args.flags & CLONE_VM == 0 || (!is_thread && args.flags & CLONE_VFORK == 0) {
        return Err(Errno::ENOSYS);
    }
    let mm = call.process.mm();
    let (process, gate) = if is_thread {
        (call.process.clone(), None)
    } else {
        let gate = Arc::new(Gate::default());
        (
            child(call.process, &mm, args.flags, gate.clone())?,
            Some(gate),
        )
    };
    let started = start_thread(call, &process, frame, fp, args, !is_thread);
    let tid = match started {
        Ok(tid) => tid,
        Err(errno) => {
            if !is_thread {
                abandon(&process);
            }
            return Err(errno);
        }
    };
    if let Some(gate) = gate {
        // Only the end of the whole process keeps a vfork parent from waiting.
        gate.queue.wait(
            None,
            || call.process.is_dying(),
            || gate.open.load(Ordering::Acquire).then_some(()),
        );
    }
    Ok(tid as u64)
}

fn child(
    parent: &Arc<Process>,
    mm: &Arc<Mm>,
    flags: u64,
    gate: Arc<Gate>,
) -> Result<Arc<Process>, Errno> {
    let paths = parent.with_paths(|paths| (paths.dir, paths.umask, paths.exe.clone()))?;
    let (dir, umask, exe) = paths;
    tree::with(|fs| fs.hold(dir))?;
    let paths = Paths { dir, umask, exe };
    let files = if flags & CLONE_FILES != 0 {
        parent.files()
    } else {
        let copy = parent.files().lock().clone();
        Arc::new(Files::new("descriptors", 50, copy))
    };
    let exit_signal = (flags & CSIGNAL) as u32;
    if exit_signal != 0 {
        Signal::new(exit_signal)?;
    }
    let actions = parent.signals.lock().actions.clone();
    new_process(
        parent.pid,
        Birth {
            mm: mm.clone(),
            files,
            paths,
            actions,
            gate: Some(gate),
            exit_signal,
            trampoline: parent.trampoline.load(Ordering::Relaxed),
        },
    )
}

/// A process whose first thread could not be made: as if it had never been.
fn abandon(process: &Arc<Process>) {
    super::family(|family| {
        // It cannot have ended before, and nobody is told.
        let _ = family.exit(process.pid, Ending::Exited(0), |_| true);
    });
}

fn start_thread(
    call: &Call<'_>,
    process: &Arc<Process>,
    frame: &UserFrame,
    fp: &mut FpState,
    args: &Clone,
    new: bool,
) -> Result<Pid, Errno> {
    let tid = if new {
        process.pid
    } else {
        super::new_number()?
    };
    let starting = Starting::new(process)?;
    let (mask, alt_stack) = {
        let own = call.thread.signals.lock();
        (own.mask(), own.alt_stack)
    };
    let mut signals = ThreadSignals::new(mask);
    if new {
        // Linux keeps the alternate stack only where the memory is not shared, or shared by vfork.
        signals.alt_stack = alt_stack;
    } else {
        signals.alt_stack = AltStack::NONE;
    }
    let name = *call.thread.name.lock();
    let thread = UserThread::new(
        tid,
        process.clone(),
        starting.scheduled.clone(),
        signals,
        name,
    );
    let filters = call.thread.filters.lock().clone();
    if let Some(filters) = filters {
        thread.filter(filters);
    }
    let word = call.thread.memory_error_word.load(Ordering::Relaxed);
    thread.memory_error_word.store(word, Ordering::Relaxed);
    if args.flags & CLONE_CHILD_CLEARTID != 0 {
        thread
            .clear_tid
            .store(args.child_tid.raw(), Ordering::Relaxed);
    }
    let mm = call.process.mm();
    let word = (tid as u32).to_le_bytes();
    if args.flags & CLONE_PARENT_SETTID != 0 {
        // As in Linux, a bad address does not undo the clone.
        let _ = mm.write_bytes(args.parent_tid, &word);
    }
    if args.flags & CLONE_CHILD_SETTID != 0 {
        let _ = mm.write_bytes(args.child_tid, &word);
    }
    let mut child = *frame;
    child.x[0] = 0;
    if args.stack != 0 {
        child.sp = args.stack;
    }
    if args.flags & CLONE_SETTLS != 0 {
        child.tpidr = args.tls;
    }
    let mut child_fp = FpState::default();
    *child_fp.regs() = fp.regs().clone();
    publish(process, &thread, new);
    // A process that ends meanwhile has not seen this thread; the thread sees the end itself.
    starting.go(thread, child, child_fp);
    Ok(tid)
}
