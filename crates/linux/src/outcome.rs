//! How an operation that may have to wait ends when it cannot succeed now.

use crate::Errno;

/// Why an operation did not complete.
///
/// Waiting is not an error number here, so that a caller who forgets to wait does not compile: the
/// joining layer either parks the thread and tries again, or answers [`Errno::EAGAIN`] if the file
/// is non-blocking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Nothing was changed; the operation can succeed after the object's state changes.
    WouldBlock,
    /// The operation failed for good.
    Failed(Errno),
}

impl Stop {
    /// The error a non-blocking caller sees.
    pub const fn without_waiting(self) -> Errno {
        match self {
            Self::WouldBlock => Errno::EAGAIN,
            Self::Failed(errno) => errno,
        }
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_becomes_eagain() {
        assert_eq!(Stop::WouldBlock.without_waiting(), Errno::EAGAIN);
        assert_eq!(Stop::from(Errno::EPIPE).without_waiting(), Errno::EPIPE);
    }
}
