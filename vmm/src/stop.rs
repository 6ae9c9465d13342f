//! Why a VM ended, and the exit status that tells it.

/// The reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest reported that it crashed.
    Crash,
    /// The user left by Ctrl-A x.
    User,
    /// The VM cannot go on.
    Failed(String),
}

impl Stop {
    /// The status that the process ends with.
    pub fn status(&self) -> u8 {
        match self {
            Stop::PowerOff => 0,
            Stop::Failed(_) => 1,
            Stop::Reset => 32,
            Stop::Crash => 33,
            // What a shell shows for a program ended by Ctrl-C.
            Stop::User => 130,
        }
    }
}
