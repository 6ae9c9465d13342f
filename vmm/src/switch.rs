//! Ethernet between the machines of one process: a learning switch.
//!
//! ```text
//! machine a   net ──► Port::send ──► where does the address live? ──► inbox of b ──► event ──► loop of b
//! ```
//!
//! A sender puts a frame into the inboxes of those it is for and never waits: a full inbox loses
//! frames, as a cable does. So a machine that does not read holds up nobody. No lock is held while
//! another is taken: the table's comes first and is let go of before any inbox.
//!
//! What a guest sends is an allegation: frames shorter than a header or longer than the largest are
//! not sent on, and addresses beyond the table's size are simply not learned (such frames go to all).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::lock;
use crate::console::signal;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const HEADER: usize = 14;
/// Largest frame: 1,500 bytes of payload, and a VLAN tag.
pub const LARGEST: usize = 1518;

/// Frames that may wait for one machine.
const WAITING: usize = 256;
/// Addresses that are remembered.
const LEARNED: usize = 1024;

/// Frames on their way to one machine.
struct Inbox {
    frames: Mutex<VecDeque<Vec<u8>>>,
    event: Arc<EventFd>,
}

#[derive(Default)]
struct Table {
    ports: Vec<Arc<Inbox>>,
    lives_at: BTreeMap<Mac, usize>,
}

/// A switch. Machines that name the same one are on it.
#[derive(Default)]
pub struct Switch(Mutex<Table>);

impl Switch {
    /// A port, whose `event` is signalled when a frame arrives.
    pub fn port(self: &Arc<Self>, event: Arc<EventFd>) -> Port {
        let inbox = Arc::new(Inbox {
            frames: Mutex::default(),
            event,
        });
        let mut table = lock(&self.0);
        table.ports.push(inbox.clone());
        Port {
            number: table.ports.len() - 1,
            switch: self.clone(),
            inbox,
        }
    }

    /// Whose inboxes a frame from port `from` goes to; what its source says is learned.
    fn route(&self, from: usize, to: Mac, source: Mac) -> Vec<Arc<Inbox>> {
        let mut table = lock(&self.0);
        let room = table.lives_at.len() < LEARNED || table.lives_at.contains_key(&source);
        if !is_group(source) && room {
            table.lives_at.insert(source, from);
        }
        let known = table.lives_at.get(&to).filter(|_| !is_group(to)).copied();
        let others = table.ports.iter().enumerate();
        others
            .filter(|(port, _)| *port != from && known.is_none_or(|known| known == *port))
            .map(|(_, inbox)| inbox.clone())
            .collect()
    }
}

/// Broadcast and multicast (IEEE 802, the lowest bit of the first byte).
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// One machine's end of a switch.
pub struct Port {
    switch: Arc<Switch>,
    number: usize,
    inbox: Arc<Inbox>,
}

impl Port {
    /// Sends a frame to whom it is for.
    pub fn send(&self, frame: &[u8]) {
        let to = frame.first_chunk::<6>();
        let source = frame.get(6..).and_then(|rest| rest.first_chunk::<6>());
        let (Some(to), Some(source)) = (to, source) else {
            return;
        };
        if !(HEADER..=LARGEST).contains(&frame.len()) {
            log::debug!("a frame of {} bytes is dropped", frame.len());
            return;
        }
        for inbox in self.switch.route(self.number, *to, *source) {
            let mut frames = lock(&inbox.frames);
            if frames.len() < WAITING {
                frames.push_back(frame.to_vec());
            }
            drop(frames);
            signal(&inbox.event);
        }
    }

    /// The next frame for this machine.
    pub fn receive(&self) -> Option<Vec<u8>> {
        lock(&self.inbox.frames).pop_front()
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        lock(&self.inbox.frames).is_empty()
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        lock(&self.inbox.frames).clear();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::console::tests::event;

    /// A frame with these last bytes in its addresses, and a tail.
    pub(crate) fn frame(to: u8, source: u8, tail: &[u8]) -> Vec<u8> {
        let mac = |last: u8| match last {
            0xff => [0xff; 6],
            last => [2, 0, 0, 0, 0, last],
        };
        [&mac(to)[..], &mac(source), &[8, 0], tail].concat()
    }

    fn three() -> [Port; 3] {
        let switch = Arc::new(Switch::default());
        std::array::from_fn(|_| switch.port(event()))
    }

    fn tails(port: &Port) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| port.receive())
            .map(|frame| frame[HEADER..].to_vec())
            .collect()
    }

    #[test]
    fn unknown_goes_to_all_and_known_to_one() {
        let [a, b, c] = three();
        a.send(&frame(2, 1, b"x"));
        assert_eq!(
            (tails(&a), tails(&b).len(), tails(&c).len()),
            (vec![], 1, 1)
        );
        // Now the switch knows where 1 lives.
        b.send(&frame(1, 2, b"y"));
        assert_eq!((tails(&a), tails(&c)), (vec![b"y".to_vec()], vec![]));
        a.send(&frame(2, 1, b"z"));
        assert_eq!((tails(&b), tails(&c)), (vec![b"z".to_vec()], vec![]));
        assert!(a.inbox.event.read().is_ok());
    }

    #[test]
    fn broadcast_goes_to_all_others() {
        let [a, b, c] = three();
        b.send(&frame(0xff, 2, b"who"));
        assert_eq!(
            (tails(&a).len(), tails(&b).len(), tails(&c).len()),
            (1, 0, 1)
        );
    }

    #[test]
    fn what_moves_is_found_again() {
        let [a, b, c] = three();
        a.send(&frame(0xff, 1, b""));
        c.send(&frame(0xff, 1, b""));
        let _ = (tails(&a), tails(&b), tails(&c));
        b.send(&frame(1, 2, b"here"));
        assert_eq!((tails(&a).len(), tails(&c).len()), (0, 1));
    }

    #[test]
    fn a_machine_that_does_not_read_loses_frames_and_holds_nobody() {
        let [a, b, _c] = three();
        for _ in 0..2 * WAITING {
            a.send(&frame(0xff, 1, b""));
        }
        assert_eq!(tails(&b).len(), WAITING);
        b.clear();
        assert!(b.is_empty());
    }

    #[test]
    fn no_frame_is_no_frame() {
        let [a, b, _c] = three();
        for len in [0, 5, 11, HEADER - 1, LARGEST + 1, 70_000] {
            a.send(&vec![0xff; len]);
        }
        assert!(b.is_empty());
        a.send(&vec![0xff; LARGEST]);
        assert_eq!(tails(&b).len(), 1);
    }

    #[test]
    fn inventing_addresses_does_not_fill_memory() {
        let [a, b, c] = three();
        for n in 0..3 * LEARNED as u32 {
            let n = n.to_be_bytes();
            let source = [2, 1, n[0], n[1], n[2], n[3]];
            a.send(&[&[0xff; 6][..], &source, &[8, 0]].concat());
        }
        assert_eq!(lock(&a.switch.0).lives_at.len(), LEARNED);
        let _ = (tails(&b), tails(&c));
        // Nobody learned where 3 lives, so all hear what is for it.
        c.send(&frame(0xff, 3, b""));
        let _ = (tails(&a), tails(&b));
        b.send(&frame(3, 2, b"x"));
        assert_eq!((tails(&a).len(), tails(&c).len()), (1, 1));
    }
}
