//! Readiness: what poll, ppoll and epoll speak of.
//!
//! Values are those of `include/uapi/asm-generic/poll.h` and `include/uapi/linux/eventpoll.h`; poll's
//! 16 bits and epoll's 32 agree where both are defined.

use bitflags::bitflags;

bitflags! {
    /// A set of readiness events, with epoll's input flags in the upper bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Events: u32 {
        /// There is something to read.
        const IN = 0x001;
        /// There is something urgent to read.
        const PRI = 0x002;
        /// A write would make progress.
        const OUT = 0x004;
        /// An error condition; reported whether or not it was asked for.
        const ERR = 0x008;
        /// The other side is gone; reported whether or not it was asked for.
        const HUP = 0x010;
        /// The descriptor is not open (poll only).
        const NVAL = 0x020;
        /// As `IN`, for normal data.
        const RDNORM = 0x040;
        /// As `IN`, for priority data; never reported.
        const RDBAND = 0x080;
        /// As `OUT`, for normal data.
        const WRNORM = 0x100;
        /// As `OUT`, for priority data; never reported.
        const WRBAND = 0x200;
        /// Unused by Linux; accepted.
        const MSG = 0x400;
        /// The writing side is shut down.
        const RDHUP = 0x2000;
        /// epoll: wake one of several waiters.
        const EXCLUSIVE = 1 << 28;
        /// epoll: keep the system awake; accepted and ignored.
        const WAKEUP = 1 << 29;
        /// epoll: report once, then be silent until modified.
        const ONESHOT = 1 << 30;
        /// epoll: report changes, not states.
        const EDGE = 1 << 31;
    }
}

impl Events {
    /// Ready for reading.
    pub const READABLE: Self = Self::IN.union(Self::RDNORM);
    /// Ready for writing.
    pub const WRITABLE: Self = Self::OUT.union(Self::WRNORM);
    /// Reported even if nobody asked.
    pub const ALWAYS: Self = Self::ERR.union(Self::HUP);
    /// The bits of an epoll interest that are behaviour, not events.
    pub const BEHAVIOUR: Self = Self::EXCLUSIVE
        .union(Self::WAKEUP)
        .union(Self::ONESHOT)
        .union(Self::EDGE);

    /// What of this readiness someone who asked for `wanted` is told.
    pub const fn reported_to(self, wanted: Self) -> Self {
        self.intersection(wanted.union(Self::ALWAYS))
            .difference(Self::BEHAVIOUR)
    }
}

/// The state of a pollable object, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Readiness {
    /// What is ready now.
    pub events: Events,
    /// Counts the moments at which Linux would have woken the pollers of the object. Two equal
    /// counts mean that nothing happened in between; this is what makes an edge.
    pub generation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_reported_unasked_and_others_are_not() {
        let state = Events::READABLE | Events::WRITABLE | Events::HUP;
        assert_eq!(state.reported_to(Events::IN), Events::IN | Events::HUP);
        assert_eq!(state.reported_to(Events::empty()), Events::HUP);
        assert_eq!(
            Events::IN.reported_to(Events::OUT | Events::EDGE),
            Events::empty()
        );
    }
}
