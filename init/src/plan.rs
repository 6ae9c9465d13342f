//! The arguments of the first program as a plan of commands.
//!
//! ```text
//! [--] CMD ARGS… [--- CMD ARGS…] [+++ CMD ARGS…]
//! ```
//!
//! `---` starts the next command after those before it have ended, `+++` at the same time. So
//! the plan is a list of groups: the commands of a group run together, the groups one after
//! another. The separators are three characters long because `--` is many programs' own.

use std::ffi::OsString;
use std::fmt;

/// One command: the program and its arguments, never empty.
pub(crate) type Command = Vec<OsString>;
/// Commands that run at the same time, never empty.
pub(crate) type Group = Vec<Command>;

/// Why the arguments are no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    /// No command at all.
    Nothing,
    /// Nothing stands before, between or after separators.
    Empty {
        /// Number of the missing command, from 1.
        number: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Nothing => f.write_str("no command given"),
            Error::Empty { number } => write!(f, "command {number} is empty"),
        }
    }
}

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Vec<Group>, Error> {
    let mut args = args.into_iter().peekable();
    args.next_if(|first| first == "--");
    if args.peek().is_none() {
        return Err(Error::Nothing);
    }

    let mut groups = vec![];
    let mut group = vec![];
    let mut command = vec![];
    let mut number = 1;
    for arg in args {
        if arg != "---" && arg != "+++" {
            command.push(arg);
            continue;
        }
        finish(&mut command, &mut group, number)?;
        number += 1;
        if arg == "---" {
            groups.push(std::mem::take(&mut group));
        }
    }
    finish(&mut command, &mut group, number)?;
    groups.push(group);
    Ok(groups)
}

fn finish(command: &mut Command, group: &mut Group, number: usize) -> Result<(), Error> {
    if command.is_empty() {
        return Err(Error::Empty { number });
    }
    group.push(std::mem::take(command));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Vec<Vec<String>>, Error> {
        let groups = parse(line.split_whitespace().map(OsString::from))?;
        let text = |command: &Command| {
            let words: Vec<_> = command.iter().map(|w| w.to_str().unwrap()).collect();
            words.join(" ")
        };
        Ok(groups
            .iter()
            .map(|group| group.iter().map(text).collect())
            .collect())
    }

    #[test]
    fn leading_dashes_are_optional() {
        assert_eq!(plan("-- a b"), plan("a b"));
        assert_eq!(plan("a -- b").unwrap(), [["a -- b"]]);
    }

    #[test]
    fn groups_and_sequences() {
        assert_eq!(
            plan("a 1 +++ b 2 --- c --- d +++ e").unwrap(),
            [vec!["a 1", "b 2"], vec!["c"], vec!["d", "e"]]
        );
    }

    #[test]
    fn options_of_commands_are_theirs() {
        assert_eq!(
            plan("vmm --kernel=K -c 2").unwrap(),
            [["vmm --kernel=K -c 2"]]
        );
    }

    #[test]
    fn gaps_are_named() {
        assert_eq!(plan(""), Err(Error::Nothing));
        assert_eq!(plan("--"), Err(Error::Nothing));
        assert_eq!(plan("--- a"), Err(Error::Empty { number: 1 }));
        assert_eq!(plan("a +++ --- b"), Err(Error::Empty { number: 2 }));
        assert_eq!(plan("a --- b +++"), Err(Error::Empty { number: 3 }));
    }
}
