//! `/chosen/bootargs`: `key=value` words for umbra, then `--`, then the first program's arguments.
//! Double quotes keep blanks, as on Linux's command line.

use alloc::string::String;
use alloc::vec::Vec;

use umbra_arm64::Pa;

/// The command line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BootArgs<'a>(pub(crate) &'a str);

/// One word with its quotes still in it, and the rest of the line.
fn split_word(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(' ');
    if line.is_empty() {
        return None;
    }
    let mut quoted = false;
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' if !quoted => return Some((&line[..index], &line[index..])),
            _ => {}
        }
    }
    Some((line, ""))
}

impl<'a> BootArgs<'a> {
    fn words(self) -> impl Iterator<Item = &'a str> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (word, after) = split_word(rest)?;
            rest = after;
            Some(word)
        })
    }

    fn options(self) -> impl Iterator<Item = &'a str> {
        self.words().take_while(|word| *word != "--")
    }

    fn value(self, key: &str) -> Option<&'a str> {
        self.options()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether umbra prints nothing of its own.
    pub(crate) fn quiet(self) -> bool {
        self.options().any(|word| word == "umbra.quiet")
    }

    /// Whether the machine ends through semihosting, with a status.
    pub(crate) fn semihosting(self) -> bool {
        self.value("umbra.exit") == Some("semihosting")
    }

    /// The safeguard to leave out, in a build for testing.
    pub(crate) fn sabotage(self) -> Option<&'a str> {
        self.value("umbra.sabotage")
    }

    /// Whether events are recorded, and in how many MiB a CPU (0: the usual size).
    pub(crate) fn trace(self) -> Option<u64> {
        match self.value("umbra.trace") {
            Some(size) => Some(size.parse().unwrap_or(0)),
            None => self
                .options()
                .any(|word| word == "umbra.trace")
                .then_some(0),
        }
    }

    /// Where firmware's hardware error source table lies: a physical address.
    pub(crate) fn hest(self) -> Option<Result<Pa, &'a str>> {
        let word = self.value("umbra.hest")?;
        let digits = word.strip_prefix("0x").unwrap_or(word);
        Some(
            u64::from_str_radix(digits, 16)
                .map(Pa::new)
                .map_err(|_| word),
        )
    }

    /// The file of the emulator's host that the events go to in the end.
    pub(crate) fn trace_file(self) -> Option<String> {
        self.value("umbra.trace.file").map(unquote)
    }

    /// The file of the emulator's host that statistics go to while the machine runs.
    pub(crate) fn live_file(self) -> Option<String> {
        self.value("umbra.live").map(unquote)
    }

    /// The file that is the first program's standard input; without one the console is.
    pub(crate) fn stdin(self) -> Option<String> {
        self.value("umbra.stdin").map(unquote)
    }

    /// The first program's path and arguments, argv\[0\] included.
    pub(crate) fn first_program(self) -> Vec<String> {
        let path = unquote(self.value("init").unwrap_or("/init"));
        let arguments = self
            .words()
            .skip_while(|word| *word != "--")
            .skip(1)
            .map(unquote);
        core::iter::once(path).chain(arguments).collect()
    }
}

fn unquote(word: &str) -> String {
    word.chars().filter(|&c| c != '"').collect()
}
