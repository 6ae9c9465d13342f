//! futex.
//!
//! One lock for all futexes. The word is read under it, so that a wake cannot fall between the
//! comparison and the sleep; reading may bring a page in, whose locks have higher ranks.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use umbra_arm64::Hva;
use umbra_hw::sync::SpinLock;
use umbra_linux::Errno;
use umbra_linux::futex::{Futexes, Key, MATCH_ANY, Waiter};
use umbra_linux::time::{Timespec, deadline};

use super::time::Clock;
use super::{Args, user};
use crate::file::Call;
use crate::mm::Mm;
use crate::sched::{self, Thread};

// include/uapi/linux/futex.h
const WAIT: u32 = 0;
const WAKE: u32 = 1;
const REQUEUE: u32 = 3;
const CMP_REQUEUE: u32 = 4;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
const PRIVATE: u32 = 128;
const CLOCK_REALTIME: u32 = 256;

struct Table {
    futexes: Futexes,
    /// The threads that wait. A waiter that is no longer here was woken.
    sleepers: BTreeMap<Waiter, Arc<Thread>>,
}

static TABLE: SpinLock<Table> = SpinLock::new(
    "futexes",
    100,
    Table {
        futexes: Futexes::new(),
        sleepers: BTreeMap::new(),
    },
);

/// Processes share memory only as a whole (vfork), so that the address space and the address always
/// name the word, private or not.
fn key(mm: &Arc<Mm>, addr: Hva) -> Key {
    Key::Private {
        space: Arc::as_ptr(mm).addr() as u64,
        addr,
    }
}

impl Table {
    fn resume(&mut self, woken: &[Waiter]) {
        for waiter in woken {
            if let Some(thread) = self.sleepers.remove(waiter) {
                thread.unpark();
            }
        }
    }

    fn wake(&mut self, key: Key, count: usize, bitset: u32) -> Result<u64, Errno> {
        let woken = self.futexes.wake(key, count, bitset)?;
        self.resume(&woken);
        Ok(woken.len() as u64)
    }
}

/// Wakes everybody who waits for a word: a thread's end.
pub(crate) fn wake_all(mm: &Arc<Mm>, addr: Hva) {
    // Fails only for an empty bitset.
    let _ = TABLE.lock().wake(key(mm, addr), usize::MAX, MATCH_ANY);
}

/// An `int` count: at least one is woken, as in Linux.
fn count(arg: u64) -> usize {
    usize::try_from(super::int(arg)).unwrap_or(0).max(1)
}

pub(super) fn futex(call: &Call<'_>, a: Args) -> Result<u64, Errno> {
    let [addr, op, value, fourth, addr2, value3] = a;
    let (op, realtime) = (
        op as u32 & !(PRIVATE | CLOCK_REALTIME),
        op as u32 & CLOCK_REALTIME != 0,
    );
    let mm = call.process.mm();
    let addr = aligned(addr)?;
    match op {
        WAIT => {
            let until = super::time::timeout(call, fourth)?;
            wait(call, &mm, addr, value as u32, until, MATCH_ANY)
        }
        WAIT_BITSET => {
            let clock = if realtime {
                Clock::Real
            } else {
                Clock::Monotonic
            };
            let until = match user::read_optional::<Timespec>(call, fourth)? {
                Some(spec) => Some(clock.to_monotonic(deadline(spec.to_nanos()?, true, 0))),
                None => None,
            };
            wait(call, &mm, addr, value as u32, until, value3 as u32)
        }
        WAKE => TABLE.lock().wake(key(&mm, addr), count(value), MATCH_ANY),
        WAKE_BITSET => TABLE
            .lock()
            .wake(key(&mm, addr), count(value), value3 as u32),
        REQUEUE | CMP_REQUEUE => {
            let limit = |arg| usize::try_from(super::int(arg)).map_err(|_| Errno::EINVAL);
            let (wake, requeue) = (limit(value)?, limit(fourth)?);
            let to = aligned(addr2)?;
            let mut table = TABLE.lock();
            if op == CMP_REQUEUE && mm.read_word(addr, 2)? as u32 != value3 as u32 {
                return Err(Errno::EAGAIN);
            }
            let moved = table
                .futexes
                .requeue(key(&mm, addr), key(&mm, to), wake, requeue);
            table.resume(&moved.woken);
            let extra = if op == CMP_REQUEUE { moved.moved } else { 0 };
            Ok((moved.woken.len() + extra) as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn aligned(addr: u64) -> Result<Hva, Errno> {
    let addr = Hva::new(addr);
    if addr.is_aligned(4) {
        Ok(addr)
    } else {
        Err(Errno::EINVAL)
    }
}

fn wait(
    call: &Call<'_>,
    mm: &Arc<Mm>,
    addr: Hva,
    expected: u32,
    until: Option<u64>,
    bitset: u32,
) -> Result<u64, Errno> {
    let me = sched::current();
    let waiter = Waiter(me.id);
    {
        let mut table = TABLE.lock();
        if mm.read_word(addr, 2)? as u32 != expected {
            return Err(Errno::EAGAIN);
        }
        table.futexes.wait(key(mm, addr), waiter, bitset)?;
        table.sleepers.insert(waiter, me);
    }
    loop {
        if !TABLE.lock().sleepers.contains_key(&waiter) {
            return Ok(0);
        }
        if call.thread.signal_pending() {
            // Without a timeout it may start again; with one it would wait too long.
            return give_up(waiter, || match until {
                None => call.thread.interrupted(),
                Some(_) => Errno::EINTR,
            });
        }
        if until.is_some_and(|at| sched::now() >= at) {
            return give_up(waiter, || Errno::ETIMEDOUT);
        }
        sched::park(until);
    }
}

/// Stops waiting, unless it was woken just now.
fn give_up(waiter: Waiter, why: impl FnOnce() -> Errno) -> Result<u64, Errno> {
    let mut table = TABLE.lock();
    let thread = table.sleepers.remove(&waiter);
    let waited = table.futexes.cancel(waiter);
    drop(table);
    drop(thread);
    if waited { Err(why()) } else { Ok(0) }
}
