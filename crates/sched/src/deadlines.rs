//! What is due when, on one CPU.

use alloc::collections::BTreeMap;

/// Names one entry, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    at: u64,
    serial: u64,
}

/// A set of `T`s, each due at a time in nanoseconds.
#[derive(Debug)]
pub struct Deadlines<T> {
    due: BTreeMap<Ticket, T>,
    serial: u64,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deadlines<T> {
    /// Nothing due.
    pub const fn new() -> Self {
        Self {
            due: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Adds `what`, due at `at`.
    pub fn add(&mut self, at: u64, what: T) -> Ticket {
        self.serial += 1;
        let ticket = Ticket {
            at,
            serial: self.serial,
        };
        self.due.insert(ticket, what);
        ticket
    }

    /// Takes an entry back, unless it was taken by [`Deadlines::expired`] before.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        self.due.remove(&ticket)
    }

    /// The earliest time anything is due.
    pub fn next(&self) -> Option<u64> {
        self.due.first_key_value().map(|(ticket, _)| ticket.at)
    }

    /// Takes one entry that is due at or before `now`, earliest first.
    pub fn expired(&mut self, now: u64) -> Option<T> {
        let (ticket, _) = self.due.first_key_value()?;
        if ticket.at > now {
            return None;
        }
        self.due.pop_first().map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_expire_in_order_and_once() {
        let mut deadlines = Deadlines::new();
        deadlines.add(30, 'c');
        let cancelled = deadlines.add(10, 'x');
        deadlines.add(10, 'a');
        deadlines.add(20, 'b');
        assert_eq!(deadlines.next(), Some(10));
        assert_eq!(deadlines.cancel(cancelled), Some('x'));
        assert_eq!(deadlines.cancel(cancelled), None);
        assert_eq!(deadlines.expired(9), None);
        assert_eq!(deadlines.expired(25), Some('a'));
        assert_eq!(deadlines.expired(25), Some('b'));
        assert_eq!(deadlines.expired(25), None);
        assert_eq!(deadlines.next(), Some(30));
    }
}
