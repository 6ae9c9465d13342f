//! What can go wrong, as the one line that the user reads.
//!
//! Nothing in this program recovers from one kind of failure differently from another, so an
//! error is its message; the only distinction kept is the one the exit status shows.

use std::fmt;

/// Result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, already worded for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The command line is wrong: exit status 2.
    Usage(String),
    /// Anything else: exit status 1.
    Failed(String),
}

impl Error {
    /// The status that the process ends with.
    pub fn status(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Failed(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text) => write!(f, "{text} (see --help)"),
            Error::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

/// Says what was being done when a call failed.
pub trait Context<T> {
    /// Turns the error into `what: error`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::Failed(format!("{what}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_usage_from_failure() {
        assert_eq!(Error::Usage("x".into()).status(), 2);
        assert_eq!(Error::Failed("x".into()).status(), 1);
    }

    #[test]
    fn context_names_the_step() {
        let r: Result<()> = Err("no such device").context("KVM_CREATE_VM");
        assert_eq!(r.unwrap_err().to_string(), "KVM_CREATE_VM: no such device");
    }
}
