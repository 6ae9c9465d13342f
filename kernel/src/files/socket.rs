//! Sockets of AF_UNIX, SOCK_STREAM: what VMMs have for their control.
//!
//! A socket is nothing yet, a listener with a name, or a side of a connection. Each has a queue of its
//! own from the beginning; a connection wakes those of both its sides.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_linux::fs::{InodeId, Stat};
use umbra_linux::signal::{Siginfo, Signal, code};
use umbra_linux::socket::{Connection, Listener, Side};
use umbra_linux::{Errno, Events, Readiness, Stop, uapi};

use super::tree;
use crate::file::{Call, Description, File};
use crate::sched::WaitQueue;
use crate::sys::user;

/// What a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// A node of the tree; held while it is bound.
    Node(InodeId),
    /// Bytes that begin with zero.
    Abstract(Vec<u8>),
}

/// The sockets that have names.
static NAMES: SpinLock<BTreeMap<Name, Weak<Socket>>> =
    SpinLock::new("socket names", 67, BTreeMap::new());

/// Open files on their way to another process (SCM_RIGHTS). Never dropped with a lock held: they may be
/// the last of what they name.
pub(crate) type Parcel = Vec<Arc<Description>>;

/// A connection and who waits for it.
struct Shared {
    connection: SpinLock<Connection<Parcel>>,
    queues: [Arc<WaitQueue>; 2],
}

impl Shared {
    fn wake(&self) {
        for queue in &self.queues {
            queue.wake_all();
        }
    }
}

/// One side of a connection; the connection ends for the other when it is dropped.
struct Half {
    shared: Arc<Shared>,
    side: Side,
}

impl Half {
    fn with<R>(&self, f: impl FnOnce(&mut Connection<Parcel>, Side) -> R) -> R {
        f(&mut self.shared.connection.lock(), self.side)
    }

    /// After a change that the other side may wait for.
    fn changed<T>(&self, done: Result<T, Stop>) -> Result<T, Stop> {
        if done.is_ok() {
            self.shared.wake();
        }
        done
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.with(|connection, side| {
            connection.end_writes(side);
            connection.end_reads(side);
        });
        self.shared.wake();
    }
}

enum State {
    /// As socket(2) made it.
    New,
    Listening(Listener<Half>),
    Connected(Arc<Half>),
}

/// One socket.
pub(crate) struct Socket {
    state: SpinLock<State>,
    name: SpinLock<Option<Name>>,
    queue: Arc<WaitQueue>,
}

impl Socket {
    fn with_state(state: State, queue: Arc<WaitQueue>) -> Arc<Self> {
        Arc::new(Self {
            state: SpinLock::new("socket", 69, state),
            name: SpinLock::new("socket name", 66, None),
            queue,
        })
    }

    /// socket(2).
    pub(crate) fn new() -> Arc<Self> {
        Self::with_state(State::New, Arc::new(WaitQueue::new()))
    }

    fn connection(queues: [Arc<WaitQueue>; 2]) -> Result<(Half, Half), Errno> {
        let shared = Arc::new(Shared {
            connection: SpinLock::new("connection", 71, Connection::new()?),
            queues,
        });
        let half = |side| Half {
            shared: shared.clone(),
            side,
        };
        Ok((half(Side::Client), half(Side::Server)))
    }

    /// socketpair(2).
    pub(crate) fn pair() -> Result<(Arc<Self>, Arc<Self>), Errno> {
        let queues = [Arc::new(WaitQueue::new()), Arc::new(WaitQueue::new())];
        let (one, two) = Self::connection(queues.clone())?;
        let [first, second] = queues;
        let socket = |half, queue| Self::with_state(State::Connected(Arc::new(half)), queue);
        Ok((socket(one, first), socket(two, second)))
    }

    fn half(&self) -> Result<Arc<Half>, Errno> {
        match &*self.state.lock() {
            State::Connected(half) => Ok(half.clone()),
            State::New | State::Listening(_) => Err(Errno::ENOTCONN),
        }
    }

    /// bind. `EINVAL`: it has a name; `EADDRINUSE`: another has this one. A node is held by the caller
    /// for this; it is let go of on an error.
    pub(crate) fn bind(self: &Arc<Self>, name: Name) -> Result<(), Errno> {
        let mut own = self.name.lock();
        let mut names = NAMES.lock();
        let taken = names
            .get(&name)
            .is_some_and(|other| other.strong_count() > 0);
        let refused = match (own.is_some(), taken) {
            (true, _) => Some(Errno::EINVAL),
            (_, true) => Some(Errno::EADDRINUSE),
            _ => None,
        };
        if let Some(errno) = refused {
            drop((names, own));
            let_go(&name);
            return Err(errno);
        }
        names.insert(name.clone(), Arc::downgrade(self));
        *own = Some(name);
        Ok(())
    }

    /// listen. `EINVAL`: it has no name, or is connected.
    pub(crate) fn listen(&self, backlog: i32) -> Result<(), Errno> {
        if self.name.lock().is_none() {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        match &*state {
            State::New => *state = State::Listening(Listener::new(backlog)),
            State::Listening(_) => {}
            State::Connected(_) => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// accept. `EINVAL`: it does not listen.
    pub(crate) fn accept(&self) -> Result<Arc<Self>, Stop> {
        let half = match &mut *self.state.lock() {
            State::Listening(listener) => listener.accept()?,
            State::New | State::Connected(_) => return Err(Errno::EINVAL.into()),
        };
        let queue = half.shared.queues[1].clone();
        Ok(Self::with_state(State::Connected(Arc::new(half)), queue))
    }

    /// connect. `ECONNREFUSED`: nobody listens there; `EAGAIN`: too many wait; `EISCONN`; `EINVAL`:
    /// it listens itself.
    pub(crate) fn connect(&self, name: &Name) -> Result<(), Errno> {
        let found = NAMES.lock().get(name).and_then(Weak::upgrade);
        let there = found.ok_or(Errno::ECONNREFUSED)?;
        let queues = [self.queue.clone(), Arc::new(WaitQueue::new())];
        let (client, server) = Self::connection(queues)?;
        // One socket's state at a time: it may be its own listener.
        match &*self.state.lock() {
            State::New => {}
            State::Connected(_) => return Err(Errno::EISCONN),
            State::Listening(_) => return Err(Errno::EINVAL),
        }
        match &mut *there.state.lock() {
            State::Listening(listener) => listener.arrive(server)?,
            State::New | State::Connected(_) => return Err(Errno::ECONNREFUSED),
        }
        let mut state = self.state.lock();
        if !matches!(*state, State::New) {
            return Err(Errno::EISCONN);
        }
        *state = State::Connected(Arc::new(client));
        drop(state);
        there.queue.wake_all();
        Ok(())
    }

    /// shutdown. `ENOTCONN`, `EINVAL`.
    pub(crate) fn shutdown(&self, how: u32) -> Result<(), Errno> {
        let half = self.half()?;
        if how > uapi::SHUT_RDWR {
            return Err(Errno::EINVAL);
        }
        half.with(|connection, side| {
            if how != uapi::SHUT_WR {
                connection.end_reads(side);
            }
            if how != uapi::SHUT_RD {
                connection.end_writes(side);
            }
        });
        half.shared.wake();
        Ok(())
    }
}

/// Ends the hold that a name has on its node.
fn let_go(name: &Name) {
    if let Name::Node(id) = name {
        tree::release(*id);
    }
}

impl Socket {
    /// recvmsg: bytes, and the open files that lie at the first of them.
    pub(crate) fn receive(&self, buf: &mut [u8]) -> Result<(usize, Option<Parcel>), Stop> {
        let half = self.half()?;
        let done = half.with(|connection, side| connection.receive(side, buf));
        half.changed(done)
    }

    /// sendmsg: bytes, and open files with the first of them, which are taken if any byte is.
    pub(crate) fn send(
        &self,
        call: &Call<'_>,
        bytes: &[u8],
        parcel: &mut Option<Parcel>,
    ) -> Result<usize, Stop> {
        let half = self.half()?;
        let done = half.with(|connection, side| connection.send(side, bytes, parcel));
        if done == Err(Stop::Failed(Errno::EPIPE)) {
            let info = Siginfo::from_process(Signal::PIPE, code::SI_USER, call.process.pid, 0);
            // Not a real-time signal, so it cannot be refused.
            let _ = call.thread.send(Signal::PIPE, info);
        }
        half.changed(done)
    }
}

impl File for Socket {
    fn read(&self, _call: &Call<'_>, buf: &mut [u8]) -> Result<usize, Stop> {
        // Who reads without asking for files does not get them, and nobody else does.
        self.receive(buf).map(|(count, _)| count)
    }

    fn write(&self, call: &Call<'_>, bytes: &[u8]) -> Result<usize, Stop> {
        self.send(call, bytes, &mut None)
    }

    fn ioctl(&self, call: &Call<'_>, request: u32, arg: u64) -> Result<u64, Errno> {
        const FIONREAD: u32 = 0x541b;
        if request != FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let half = self.half()?;
        let queued = half.with(|connection, side| connection.queued(side)) as u32;
        user::write(call, arg, &queued)?;
        Ok(0)
    }

    fn readiness(&self) -> Readiness {
        match &*self.state.lock() {
            State::New => Readiness {
                events: Events::HUP | Events::WRITABLE,
                generation: 0,
            },
            State::Listening(listener) => listener.readiness(),
            State::Connected(half) => half.with(|connection, side| connection.readiness(side)),
        }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn stat(&self) -> Stat {
        let mut stat = Stat::default();
        stat.mode = uapi::S_IFSOCK | 0o777;
        stat.nlink = 1;
        stat.blksize = 4096;
        stat
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(name) = self.name.get_mut().take() {
            let mut names = NAMES.lock();
            names.remove(&name);
            if names.is_empty() {
                // An empty map keeps its last node otherwise, from the first name in the machine's life on.
                *names = BTreeMap::new();
            }
            drop(names);
            let_go(&name);
        }
    }
}
