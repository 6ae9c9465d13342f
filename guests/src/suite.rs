//! The checks of a payload and how they are told: `ok PAYLOAD/NAME`, `FAIL PAYLOAD/NAME: why`,
//! `skip PAYLOAD/NAME: why`, and `done PAYLOAD` at the end.

use core::fmt;

/// Why a check failed: what was looked at, what it was, what it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What was looked at.
    pub what: &'static str,
    /// What it was.
    pub got: u64,
    /// What it should have been, if it is one value.
    pub want: Option<u64>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x}", self.what, self.got)?;
        match self.want {
            Some(want) => write!(f, ", not {want:#x}"),
            None => Ok(()),
        }
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Pass,
    /// It does not apply to this machine.
    Skip(&'static str),
}

/// What a check returns.
pub type Verdict = Result<Outcome, Failure>;

/// Ends a check that found nothing wrong.
pub const PASS: Verdict = Ok(Outcome::Pass);

/// A check that does not apply here.
pub const fn skip(why: &'static str) -> Verdict {
    Ok(Outcome::Skip(why))
}

/// The checks of one payload.
#[derive(Debug)]
pub struct Suite {
    name: &'static str,
}

impl Suite {
    pub(crate) fn new(name: &'static str) -> Self {
        Suite { name }
    }

    /// Runs a check and tells how it came out.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Verdict) {
        let suite = self.name;
        match check() {
            Ok(Outcome::Pass) => crate::println!("ok {suite}/{name}"),
            Ok(Outcome::Skip(why)) => crate::println!("skip {suite}/{name}: {why}"),
            Err(why) => crate::println!("FAIL {suite}/{name}: {why}"),
        }
    }

    pub(crate) fn finish(&self) {
        crate::println!("done {}", self.name);
    }
}

/// Fails the check unless two numbers are equal.
#[macro_export]
macro_rules! equal {
    ($got:expr, $want:expr, $what:expr) => {{
        let (got, want) = ($got as u64, $want as u64);
        if got != want {
            return Err($crate::suite::Failure {
                what: $what,
                got,
                want: Some(want),
            });
        }
    }};
}

/// Fails the check unless a condition holds; the number tells more.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $what:expr, $got:expr) => {
        if !$condition {
            return Err($crate::suite::Failure {
                what: $what,
                got: $got as u64,
                want: None,
            });
        }
    };
}

/// Fails the check unless a probe took exactly one exception of this class; gives the exception.
#[macro_export]
macro_rules! faults {
    ($probe:expr, $ec:expr, $what:expr) => {{
        let Some(fault) = $probe else {
            return Err($crate::suite::Failure {
                what: concat!($what, ": no exception, class"),
                got: 0,
                want: Some($ec),
            });
        };
        $crate::equal!(fault.ec(), $ec, concat!($what, ": class"));
        $crate::equal!(fault.count, 1, concat!($what, ": exceptions"));
        fault
    }};
}

/// Fails the check if a probe took an exception.
#[macro_export]
macro_rules! clean {
    ($probe:expr, $what:expr) => {
        if let Some(fault) = $probe {
            return Err($crate::suite::Failure {
                what: concat!($what, ": exception with ESR"),
                got: fault.esr,
                want: None,
            });
        }
    };
}
