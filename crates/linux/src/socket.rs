//! Sockets of AF_UNIX, SOCK_STREAM: a connection is two pipes, and a listener a bounded line of them.
//!
//! Beside bytes go *parcels* (SCM_RIGHTS: open files). A parcel lies at the byte that it was sent with; a
//! read takes at most one, the one at its first byte, and ends before the next.
//!
//! What always holds: what one side writes the other reads, in order; a side that is gone is the end
//! of what the other reads, and an error to what it writes.

use alloc::collections::VecDeque;

use crate::pipe::{End, Pipe};
use crate::{Errno, Events, Readiness, Stop, uapi};

/// Longest name of a socket (`sun_path`).
pub const NAME_MAX: usize = 108;
/// The most connections that may wait for accept.
const MAX_BACKLOG: u32 = 128;

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Server,
}

/// One direction: a pipe, and what lies at its bytes.
#[derive(Debug)]
struct Way<T> {
    pipe: Pipe,
    /// Bytes written and read so far.
    written: u64,
    read: u64,
    /// By the number of the byte that each lies at.
    parcels: VecDeque<(u64, T)>,
}

impl<T> Way<T> {
    fn new() -> Result<Self, Errno> {
        Ok(Self {
            pipe: Pipe::new()?,
            written: 0,
            read: 0,
            parcels: VecDeque::new(),
        })
    }

    fn receive(&mut self, buf: &mut [u8]) -> Result<(usize, Option<T>), Stop> {
        let mut ahead = self.parcels.iter().map(|(at, _)| *at);
        let here = ahead.next();
        let next = if here == Some(self.read) {
            ahead.next()
        } else {
            here
        };
        let room = next.map_or(u64::MAX, |next| next - self.read);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(buf.len());
        let count = self.pipe.read(&mut buf[..room])?;
        let taken = (here == Some(self.read) && count > 0)
            .then(|| self.parcels.pop_front())
            .flatten();
        self.read += count as u64;
        Ok((count, taken.map(|(_, parcel)| parcel)))
    }

    fn send(&mut self, buf: &[u8], parcel: &mut Option<T>) -> Result<usize, Stop> {
        if parcel.is_some() {
            self.parcels.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        }
        let count = self.pipe.write(buf)?;
        if count > 0
            && let Some(parcel) = parcel.take()
        {
            self.parcels.push_back((self.written, parcel));
        }
        self.written += count as u64;
        Ok(count)
    }
}

/// Two sides that write to each other, and send each other parcels.
#[derive(Debug)]
pub struct Connection<T> {
    to_server: Way<T>,
    to_client: Way<T>,
}

impl<T> Connection<T> {
    /// A connection with both sides open. `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            to_server: Way::new()?,
            to_client: Way::new()?,
        })
    }

    fn way_in(&mut self, side: Side) -> &mut Way<T> {
        match side {
            Side::Client => &mut self.to_client,
            Side::Server => &mut self.to_server,
        }
    }

    fn way_out(&mut self, side: Side) -> &mut Way<T> {
        match side {
            Side::Client => &mut self.to_server,
            Side::Server => &mut self.to_client,
        }
    }

    fn inward(&mut self, side: Side) -> &mut Pipe {
        &mut self.way_in(side).pipe
    }

    fn outward(&mut self, side: Side) -> &mut Pipe {
        &mut self.way_out(side).pipe
    }

    /// Takes bytes that the other side wrote, and the parcel at the first of them; no bytes is the end.
    pub fn receive(&mut self, side: Side, buf: &mut [u8]) -> Result<(usize, Option<T>), Stop> {
        self.way_in(side).receive(buf)
    }

    /// Queues bytes for the other side, with a parcel at the first, which is taken if any byte is.
    /// `EPIPE` if it is gone, or this side was shut down.
    pub fn send(&mut self, side: Side, buf: &[u8], parcel: &mut Option<T>) -> Result<usize, Stop> {
        self.way_out(side).send(buf, parcel)
    }

    /// Bytes waiting for `side` (FIONREAD).
    pub fn queued(&mut self, side: Side) -> usize {
        self.inward(side).queued()
    }

    /// `side` writes no more (SHUT_WR).
    pub fn end_writes(&mut self, side: Side) {
        self.outward(side).close(End::Write);
    }

    /// `side` reads no more (SHUT_RD).
    pub fn end_reads(&mut self, side: Side) {
        self.inward(side).close(End::Read);
    }

    /// The state for poll of `side`. The other side's end is a hang-up, not an error as on a pipe.
    pub fn readiness(&mut self, side: Side) -> Readiness {
        let inward = self.inward(side).readiness(End::Read);
        let outward = self.outward(side).readiness(End::Write);
        let mut events = inward.events | outward.events;
        if inward.events.contains(Events::HUP) {
            events |= Events::READABLE | Events::RDHUP;
            events.set(Events::HUP, outward.events.contains(Events::ERR));
        }
        events.remove(Events::ERR);
        Readiness {
            events,
            generation: inward.generation.wrapping_add(outward.generation),
        }
    }
}

/// Connections that wait for accept, each with what its server side will need.
#[derive(Debug)]
pub struct Listener<T> {
    waiting: VecDeque<T>,
    backlog: u32,
    generation: u64,
}

impl<T> Listener<T> {
    /// A listener that lets `backlog` connections wait: listen's argument, of which a negative one is
    /// as many as can be.
    pub fn new(backlog: i32) -> Self {
        Self {
            waiting: VecDeque::new(),
            backlog: (backlog as u32).min(MAX_BACKLOG),
            generation: 0,
        }
    }

    /// A connection arrives. `EAGAIN` if too many wait, `ENOMEM`.
    pub fn arrive(&mut self, connection: T) -> Result<(), Errno> {
        // One more than the backlog, as Linux has it.
        if self.waiting.len() > self.backlog as usize {
            return Err(Errno::EAGAIN);
        }
        self.waiting.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.waiting.push_back(connection);
        self.generation += 1;
        Ok(())
    }

    /// The connection that waits longest.
    pub fn accept(&mut self) -> Result<T, Stop> {
        self.waiting.pop_front().ok_or(Stop::WouldBlock)
    }

    /// The state for poll.
    pub fn readiness(&self) -> Readiness {
        let mut events = Events::empty();
        events.set(Events::READABLE, !self.waiting.is_empty());
        Readiness {
            events,
            generation: self.generation,
        }
    }
}

/// Reads a `struct sockaddr_un`: the name, whose first byte is zero for one that is not a path.
/// `EINVAL` for another length or family.
pub fn name_of(address: &[u8]) -> Result<&[u8], Errno> {
    let (family, name) = address.split_first_chunk::<2>().ok_or(Errno::EINVAL)?;
    if u16::from_le_bytes(*family) != uapi::AF_UNIX || name.is_empty() || name.len() > NAME_MAX {
        return Err(Errno::EINVAL);
    }
    if name[0] == 0 {
        return Ok(name);
    }
    let end = name.iter().position(|&byte| byte == 0);
    Ok(&name[..end.unwrap_or(name.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    type Plain = Connection<u8>;

    impl Plain {
        fn read(&mut self, side: Side, buf: &mut [u8]) -> Result<usize, Stop> {
            self.receive(side, buf).map(|(count, _)| count)
        }

        fn write(&mut self, side: Side, buf: &[u8]) -> Result<usize, Stop> {
            self.send(side, buf, &mut None)
        }
    }

    #[test]
    fn a_parcel_comes_with_its_byte_and_one_at_a_time() {
        let mut connection = Plain::new().unwrap();
        connection.write(Side::Client, b"ab").unwrap();
        for (bytes, parcel) in [(&b"cd"[..], 1), (b"ef", 2)] {
            let mut parcel = Some(parcel);
            connection.send(Side::Client, bytes, &mut parcel).unwrap();
            assert_eq!(parcel, None);
        }
        connection.write(Side::Client, b"gh").unwrap();
        let mut take = |room: usize| {
            let mut buf = [0; 16];
            let taken = connection.receive(Side::Server, &mut buf[..room]);
            let (count, parcel) = taken.unwrap();
            (buf[..count].to_vec(), parcel)
        };
        assert_eq!(take(16), (b"ab".to_vec(), None));
        assert_eq!(take(1), (b"c".to_vec(), Some(1)));
        assert_eq!(take(16), (b"d".to_vec(), None));
        assert_eq!(take(0), (b"".to_vec(), None));
        assert_eq!(take(16), (b"efgh".to_vec(), Some(2)));
    }

    #[test]
    fn a_parcel_that_finds_no_room_stays_the_sender_s() {
        let mut connection = Plain::new().unwrap();
        while connection.write(Side::Client, &[0; 4096]).is_ok() {}
        let mut parcel = Some(3);
        let full = connection.send(Side::Client, b"x", &mut parcel);
        assert_eq!((full, parcel), (Err(Stop::WouldBlock), Some(3)));
    }

    #[test]
    fn each_side_reads_what_the_other_wrote() {
        let mut connection = Plain::new().unwrap();
        assert_eq!(connection.write(Side::Client, b"to server"), Ok(9));
        assert_eq!(connection.write(Side::Server, b"back"), Ok(4));
        let mut buf = [0; 16];
        assert_eq!(connection.read(Side::Server, &mut buf), Ok(9));
        assert_eq!(&buf[..9], b"to server");
        assert_eq!(connection.queued(Side::Client), 4);
        assert_eq!(connection.read(Side::Client, &mut buf), Ok(4));
        assert_eq!(
            connection.read(Side::Client, &mut buf),
            Err(Stop::WouldBlock)
        );
    }

    #[test]
    fn a_side_that_is_gone_is_an_end_and_an_error() {
        let mut connection = Plain::new().unwrap();
        assert_eq!(connection.readiness(Side::Client).events, Events::WRITABLE);
        connection.end_writes(Side::Server);
        connection.end_reads(Side::Server);
        let mut buf = [0; 4];
        assert_eq!(connection.read(Side::Client, &mut buf), Ok(0));
        assert_eq!(
            connection.write(Side::Client, b"x"),
            Err(Stop::Failed(Errno::EPIPE))
        );
        let events = connection.readiness(Side::Client).events;
        assert!(events.contains(Events::HUP | Events::RDHUP | Events::IN));
        assert!(!events.contains(Events::ERR));
    }

    #[test]
    fn half_a_shutdown_is_half_an_end() {
        let mut connection = Plain::new().unwrap();
        connection.end_writes(Side::Client);
        let events = connection.readiness(Side::Server).events;
        assert!(events.contains(Events::RDHUP | Events::IN | Events::OUT));
        assert!(!events.contains(Events::HUP));
        assert_eq!(connection.write(Side::Server, b"x"), Ok(1));
    }

    #[test]
    fn a_line_has_an_end() {
        let mut listener = Listener::new(1);
        assert_eq!(listener.accept(), Err(Stop::WouldBlock));
        assert_eq!((listener.arrive(1), listener.arrive(2)), (Ok(()), Ok(())));
        assert_eq!(listener.arrive(3), Err(Errno::EAGAIN));
        assert_eq!(listener.readiness().events, Events::READABLE);
        assert_eq!((listener.accept(), listener.accept()), (Ok(1), Ok(2)));
        assert!(listener.readiness().events.is_empty());
    }

    #[test]
    fn a_negative_backlog_is_the_longest() {
        let mut listener = Listener::new(-1);
        assert!((0..=MAX_BACKLOG).all(|n| listener.arrive(n).is_ok()));
        assert_eq!(listener.arrive(0), Err(Errno::EAGAIN));
    }

    #[test]
    fn names_are_paths_or_begin_with_zero() {
        assert_eq!(name_of(b"\x01\x00/tmp/a\x00rest"), Ok(&b"/tmp/a"[..]));
        assert_eq!(name_of(b"\x01\x00/tmp/a"), Ok(&b"/tmp/a"[..]));
        assert_eq!(name_of(b"\x01\x00\x00a\x00"), Ok(&b"\x00a\x00"[..]));
        for bad in [&b"\x01\x00"[..], b"\x01", b"", b"\x02\x00/a", &[1; 111]] {
            assert_eq!(name_of(bad), Err(Errno::EINVAL));
        }
    }

    proptest! {
        /// Both directions against queues.
        #[test]
        fn bytes_keep_their_order(steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0usize..9000), 0..60)) {
            let mut connection = Plain::new().unwrap();
            let mut queues: [Vec<u8>; 2] = Default::default();
            let mut next = 0u8;
            for (server, write, count) in steps {
                let (side, mine, theirs) = if server { (Side::Server, 0, 1) } else { (Side::Client, 1, 0) };
                if write {
                    let bytes: Vec<u8> = (0..count).map(|n| next.wrapping_add(n as u8)).collect();
                    if let Ok(done) = connection.write(side, &bytes) {
                        queues[mine].extend(&bytes[..done]);
                        next = next.wrapping_add(done as u8);
                    }
                } else {
                    let mut buf = alloc::vec![0; count];
                    let done = connection.read(side, &mut buf).unwrap_or(0);
                    let expected: Vec<u8> = queues[theirs].drain(..done).collect();
                    prop_assert_eq!(&buf[..done], &expected[..]);
                }
            }
        }
    }
}
