//! A test program for the Linux side of umbra: eight threads that use what std's threads rest
//! on, namely futexes (mutex, condition variable, channel, park), atomics, sleep, and memory
//! that comes and goes. Each part has one right answer, and it is checked.
//!
//! Ends with `el0-threads: ok` and status 0, or says what was wrong and ends with status 1.

#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const THREADS: u64 = 8;
const ROUNDS: u64 = 2000;

type Part = fn() -> Result<(), String>;

fn main() -> ExitCode {
    let parts: &[(&str, Part)] = &[
        ("mutex and atomics", counters),
        ("condition variable", ring),
        ("channel", channel),
        ("barrier", barrier),
        ("sleep", sleep),
        ("memory", memory),
        ("memory files", memory_files),
        ("locked files", locked_files),
        ("a write of many parts", many_parts),
        ("sockets", sockets),
        ("files over a socket", files_over_a_socket),
        ("an idle CPU", apart),
        ("affinity", affinity),
    ];
    for &(name, part) in parts {
        if let Err(why) = part() {
            println!("el0-threads: {name}: {why}");
            return ExitCode::FAILURE;
        }
    }
    println!("el0-threads: ok");
    ExitCode::SUCCESS
}

fn expect(what: &str, seen: u64, wanted: u64) -> Result<(), String> {
    if seen == wanted {
        return Ok(());
    }
    Err(format!("{what} is {seen}, not {wanted}"))
}

/// Runs `work` on every thread and gives its results in order.
fn on_all<T, F>(work: F) -> Result<Vec<T>, String>
where
    T: Send,
    F: Fn(u64) -> T + Sync,
{
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| "a thread panicked".to_string()))
            .collect()
    })
}

/// A thread runs on the CPUs that it says, and so do those that it makes.
fn affinity() -> Result<(), String> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
    let allowed = || sched_getaffinity(None).map_err(|e| format!("sched_getaffinity: {e}"));
    let restrict =
        |to: &CpuSet| sched_setaffinity(None, to).map_err(|e| format!("sched_setaffinity: {e}"));
    if restrict(&CpuSet::new()).is_ok() {
        return Err("no CPU at all was granted".into());
    }
    let all = allowed()?;
    let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
    for cpu in cpus {
        let mut one = CpuSet::new();
        one.set(cpu);
        restrict(&one)?;
        let stays = || -> Result<(), String> {
            for _ in 0..100 {
                expect("the CPU", sched_getcpu() as u64, cpu as u64)?;
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(1));
            expect("the CPU after a sleep", sched_getcpu() as u64, cpu as u64)?;
            expect("the set", allowed()?.count().into(), 1)
        };
        stays()?;
        on_all(|_| stays())?
            .into_iter()
            .collect::<Result<(), _>>()?;
    }
    restrict(&all)
}

/// A file in memory (memfd_create): sizes, holes, seals, and what each refuses.
fn memory_files() -> Result<(), String> {
    use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals};
    let made = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let file = std::fs::File::from(made.map_err(|e| format!("memfd_create: {e}"))?);
    let io = |what: &str, e: std::io::Error| format!("{what}: {e}");
    let len = || file.metadata().map(|m| m.len()).map_err(|e| io("fstat", e));
    // Over the end of a page, beyond what was written before.
    let text: Vec<u8> = (0..9000u32).map(|n| (n % 251) as u8).collect();
    file.write_all_at(&text, 5000)
        .map_err(|e| io("pwrite", e))?;
    expect("the length", len()?, 14000)?;
    let mut all = vec![1; 14000];
    file.read_exact_at(&mut all, 0)
        .map_err(|e| io("pread", e))?;
    if all[..5000].iter().any(|b| *b != 0) || all[5000..] != text {
        return Err("what was written is not what is read".into());
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 6000, 6000).map_err(|e| format!("fallocate: {e}"))?;
    file.set_len(13000).map_err(|e| io("ftruncate", e))?;
    file.set_len(20000).map_err(|e| io("ftruncate", e))?;
    let mut all = vec![1; 20000];
    file.read_exact_at(&mut all, 0)
        .map_err(|e| io("pread", e))?;
    let wanted = |at: usize| match at {
        5000..6000 | 12000..13000 => text[at - 5000],
        _ => 0,
    };
    if let Some(at) = (0..all.len()).find(|&at| all[at] != wanted(at)) {
        return Err(format!("byte {at} is {} after hole and cut", all[at]));
    }
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(&file, seals).map_err(|e| format!("F_ADD_SEALS: {e}"))?;
    for (what, done) in [
        ("a shorter file", file.set_len(1)),
        ("a longer file", file.set_len(1 << 20)),
        ("bytes at the end", file.write_all_at(b"xy", 19999)),
    ] {
        let kind = done.err().map(|e| e.kind());
        if kind != Some(ErrorKind::PermissionDenied) {
            return Err(format!("{what}, sealed against it: {kind:?}"));
        }
    }
    file.write_all_at(b"x", 19999)
        .map_err(|e| io("the last byte", e))
}

/// An open file goes to the other side of a connection (SCM_RIGHTS) with the bytes it was sent with, and
/// works there.
fn files_over_a_socket() -> Result<(), String> {
    use rustix::fs::MemfdFlags;
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };
    use std::io::{IoSlice, IoSliceMut};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    let (mut here, there) = UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
    let made = rustix::fs::memfd_create("sent", MemfdFlags::CLOEXEC);
    let file = std::fs::File::from(made.map_err(|e| format!("memfd_create: {e}"))?);
    file.write_all_at(b"inside", 0)
        .map_err(|e| format!("pwrite: {e}"))?;
    here.write_all(b"before")
        .map_err(|e| format!("write: {e}"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [file.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err("no room for a control message".into());
    }
    let parts = [IoSlice::new(b"wi"), IoSlice::new(b"th")];
    let sent = sendmsg(&here, &parts, &mut control, SendFlags::empty());
    expect(
        "bytes sent",
        sent.map_err(|e| format!("sendmsg: {e}"))? as u64,
        4,
    )?;
    drop(file);
    // First the bytes from before, without the file; then those that came with it.
    for (text, files) in [(&b"before"[..], 0), (b"with", 1)] {
        let (mut first, mut second) = ([0; 3], [0; 16]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let got = recvmsg(&there, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let got = got.map_err(|e| format!("recvmsg: {e}"))?;
        let bytes = [&first[..], &second].concat();
        if bytes[..got.bytes] != *text {
            return Err(format!("received {:?}, not {text:?}", &bytes[..got.bytes]));
        }
        let received: Vec<_> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => Some(files),
                _ => None,
            })
            .flatten()
            .collect();
        expect("files with it", received.len() as u64, files)?;
        for file in received {
            let mut inside = [0; 6];
            std::fs::File::from(file)
                .read_exact_at(&mut inside, 0)
                .map_err(|e| format!("the received file: {e}"))?;
            if inside != *b"inside" {
                return Err("the received file is another".into());
            }
        }
    }
    Ok(())
}

/// A sum under a lock and one by atomic additions: neither loses any.
fn counters() -> Result<(), String> {
    let locked = Mutex::new(0u64);
    let atomic = AtomicU64::new(0);
    on_all(|n| {
        for i in 0..ROUNDS {
            *locked.lock().expect("no holder panics") += i;
            atomic.fetch_add(n, Ordering::Relaxed);
        }
    })?;
    let sum = *locked.lock().expect("no holder panics");
    expect("locked sum", sum, THREADS * ROUNDS * (ROUNDS - 1) / 2)?;
    expect(
        "atomic sum",
        atomic.into_inner(),
        ROUNDS * THREADS * (THREADS - 1) / 2,
    )
}

/// A token goes around: each thread waits for its turn, so every wake-up has to arrive.
fn ring() -> Result<(), String> {
    let (turn, changed) = (Mutex::new(0u64), Condvar::new());
    let laps = 50;
    on_all(|n| {
        for lap in 0..laps {
            let mut turn = turn.lock().expect("no holder panics");
            while *turn != lap * THREADS + n {
                turn = changed.wait(turn).expect("no holder panics");
            }
            *turn += 1;
            changed.notify_all();
        }
    })?;
    expect(
        "turns",
        turn.into_inner().expect("no holder panics"),
        laps * THREADS,
    )
}

/// Many senders, one receiver, bounded, so that both sides have to wait.
fn channel() -> Result<(), String> {
    let (sender, receiver) = mpsc::sync_channel::<u64>(4);
    let total = thread::spawn(move || receiver.iter().sum::<u64>());
    let sender = Mutex::new(Some(sender));
    on_all(|n| {
        let sender = sender.lock().expect("no holder panics").clone();
        let sender = sender.expect("taken only at the end");
        (0..ROUNDS).filter(|i| sender.send(n * i).is_err()).count()
    })?;
    drop(sender);
    let total = total.join().map_err(|_| "the receiver panicked")?;
    let wanted = THREADS * (THREADS - 1) / 2 * (ROUNDS * (ROUNDS - 1) / 2);
    expect("received sum", total, wanted)
}

/// Nobody leaves a barrier before all have come.
fn barrier() -> Result<(), String> {
    let (gate, arrived) = (Barrier::new(THREADS as usize), AtomicU64::new(0));
    let early: u64 = on_all(|_| {
        (1..=50)
            .filter(|lap| {
                arrived.fetch_add(1, Ordering::SeqCst);
                gate.wait();
                let early = arrived.load(Ordering::SeqCst) < lap * THREADS;
                gate.wait();
                early
            })
            .count() as u64
    })?
    .into_iter()
    .sum();
    expect("threads that left early", early, 0)
}

/// A sleep lasts at least as long as asked, and a park with a time limit ends.
fn sleep() -> Result<(), String> {
    let short: u64 = on_all(|n| {
        let wanted = Duration::from_millis(5 + n);
        let start = Instant::now();
        thread::sleep(wanted);
        let slept = start.elapsed();
        thread::park_timeout(Duration::from_millis(1));
        u64::from(slept < wanted)
    })?
    .into_iter()
    .sum();
    expect("sleeps that were too short", short, 0)
}

/// Blocks from a word to megabytes, filled, handed to another thread, checked and freed.
fn memory() -> Result<(), String> {
    let shared = Arc::new(Mutex::new(Vec::<Vec<u64>>::new()));
    on_all(|n| {
        for round in 0..40 {
            let words = 1usize << (round % 18);
            let block: Vec<u64> = (0..words as u64).map(|i| i ^ n).collect();
            let mut shared = shared.lock().expect("no holder panics");
            shared.push(block);
            if round % 3 == 2 {
                shared.swap_remove(0);
            }
        }
    })?;
    let blocks = shared.lock().expect("no holder panics");
    expect("blocks left", blocks.len() as u64, THREADS * (40 - 13))?;
    let broken = blocks.iter().filter(|block| {
        let n = block[0];
        n >= THREADS || block.iter().zip(0..).any(|(word, i)| *word != i ^ n)
    });
    expect("broken blocks", broken.count() as u64, 0)
}

/// Two threads that never wait come apart as soon as a third leaves the other CPU idle: no thread
/// waits for a CPU while another has nothing to do.
fn apart() -> Result<(), String> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    if cpus != 2 {
        return Ok(());
    }
    let together = (0..60).filter(|_| !come_apart()).count();
    expect("rounds in which they stayed together", together as u64, 0)
}

fn come_apart() -> bool {
    const UNKNOWN: u64 = u64::MAX;
    let cpu = || rustix::thread::sched_getcpu() as u64;
    let (idle, done) = (AtomicBool::new(false), AtomicBool::new(false));
    // Where the second was seen once the third had left.
    let second_at = AtomicU64::new(UNKNOWN);
    let (held, gate) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // In this order: the second and the first then begin on one CPU, the third on the other.
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if idle.load(Ordering::SeqCst) {
                    second_at.store(cpu(), Ordering::SeqCst);
                }
                thread::yield_now();
            }
        });
        // Busy long enough for the others to share what is left, then asleep until all is over.
        let left = &idle;
        scope.spawn(move || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(6) {
                std::hint::spin_loop();
            }
            left.store(true, Ordering::SeqCst);
            gate.recv().is_err()
        });
        let first = scope.spawn(|| {
            let held = held;
            while !idle.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let start = Instant::now();
            let mut apart = false;
            while !apart && start.elapsed() < Duration::from_millis(300) {
                let second = second_at.load(Ordering::SeqCst);
                apart = second != UNKNOWN && second != cpu();
                thread::yield_now();
            }
            done.store(true, Ordering::SeqCst);
            drop(held);
            apart
        });
        first.join().unwrap_or(false)
    })
}

/// A file takes a write of many parts as a whole, though each needs memory.
fn many_parts() -> Result<(), String> {
    const NAME: &str = "/tmp-parts";
    const PARTS: usize = 1024;
    let block = vec![7; 16 << 10];
    let mut file = std::fs::File::create(NAME).map_err(|e| format!("open: {e}"))?;
    let written = file.write_vectored(&[std::io::IoSlice::new(&block); PARTS]);
    std::fs::remove_file(NAME).map_err(|e| format!("unlink: {e}"))?;
    let written = written.map_err(|e| format!("writev: {e}"))?;
    expect(
        "bytes written",
        written as u64,
        (PARTS * block.len()) as u64,
    )
}

/// A lock on a file keeps other open files of it out, may be shared, goes over to who waits for it, and ends
/// with the file.
fn locked_files() -> Result<(), String> {
    const NAME: &str = "/tmp-locked";
    let open = || std::fs::File::create(NAME).map_err(|e| format!("open: {e}"));
    let failed = |what: &'static str| move |why: std::io::Error| format!("{what}: {why}");
    let taken = |file: &std::fs::File, what: &str| match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Ok(()),
        other => Err(format!("{what}: {other:?}")),
    };
    let (first, second) = (open()?, open()?);
    first.lock_shared().map_err(failed("a shared lock"))?;
    second.lock_shared().map_err(failed("another's"))?;
    taken(&second, "an exclusive one beside it")?;
    second.unlock().map_err(failed("unlock"))?;
    let copy = first.try_clone().map_err(failed("dup"))?;
    copy.lock().map_err(failed("by another descriptor"))?;
    taken(&second, "what a copy locked")?;
    drop(first);
    taken(&second, "what one of two descriptors still locks")?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| second.lock());
        std::thread::sleep(Duration::from_millis(20));
        if waiter.is_finished() {
            return Err("a lock was had that another has".to_owned());
        }
        drop(copy);
        waiter
            .join()
            .map_err(|_| "it panicked".to_owned())?
            .map_err(failed("a lock that was waited for"))
    })?;
    std::fs::remove_file(NAME).map_err(failed("unlink"))
}

/// A listener in a directory of its own; every thread has an answer from it. Then what is not there.
fn sockets() -> Result<(), String> {
    const DIR: &str = "/el0-sockets";
    const NAME: &str = "/el0-sockets/here";
    let failed = |what: &str| {
        let what = what.to_owned();
        move |why: std::io::Error| format!("{what}: {why}")
    };
    std::fs::create_dir(DIR).map_err(failed("mkdir"))?;
    let listener = UnixListener::bind(NAME).map_err(failed("bind"))?;
    let again = UnixListener::bind(NAME).map(drop).map_err(|e| e.kind());
    if again != Err(ErrorKind::AddrInUse) {
        return Err(format!("binding a name twice: {again:?}"));
    }
    thread::scope(|scope| -> Result<(), String> {
        let server = scope.spawn(|| -> std::io::Result<()> {
            for _ in 0..THREADS {
                let (mut peer, _) = listener.accept()?;
                let mut bytes = Vec::new();
                peer.read_to_end(&mut bytes)?;
                bytes.reverse();
                peer.write_all(&bytes)?;
            }
            Ok(())
        });
        let answers = on_all(|number| -> std::io::Result<bool> {
            let mut peer = UnixStream::connect(NAME)?;
            let mut wanted: Vec<u8> = (0..200_000u64).map(|n| (n * 7 + number) as u8).collect();
            peer.write_all(&wanted)?;
            peer.shutdown(std::net::Shutdown::Write)?;
            let mut seen = Vec::new();
            peer.read_to_end(&mut seen)?;
            wanted.reverse();
            Ok(seen == wanted)
        })?;
        for answer in answers {
            expect("an answer", answer.map_err(failed("connect"))?.into(), 1)?;
        }
        let served = server.join().map_err(|_| "the server panicked")?;
        served.map_err(failed("accept"))
    })?;
    drop(listener);
    let refused = UnixStream::connect(NAME).map(drop).map_err(|e| e.kind());
    if refused != Err(ErrorKind::ConnectionRefused) {
        return Err(format!("a listener that is gone: {refused:?}"));
    }
    std::fs::remove_file(NAME).map_err(failed("unlink"))?;
    std::fs::remove_dir(DIR).map_err(failed("rmdir"))?;
    let missing = UnixStream::connect(NAME).map(drop).map_err(|e| e.kind());
    if missing != Err(ErrorKind::NotFound) {
        return Err(format!("a name that is gone: {missing:?}"));
    }
    let (mut one, mut two) = UnixStream::pair().map_err(failed("socketpair"))?;
    one.write_all(b"x").map_err(failed("write"))?;
    drop(one);
    let mut bytes = Vec::new();
    two.read_to_end(&mut bytes).map_err(failed("read"))?;
    expect("bytes of a pair", bytes.len() as u64, 1)
}
