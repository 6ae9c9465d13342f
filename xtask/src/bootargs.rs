//! umbra's boot arguments: how a list of words becomes the one string that `/chosen/bootargs` holds.
//!
//! The rule is Linux's: words are separated by blanks, and double quotes protect blanks. There is
//! no escape, so a word with a double quote of its own cannot be said; that is an error here and
//! not a guest that mysteriously gets other arguments.

use anyhow::{Result, bail};

/// Boot arguments under construction: `key=value` words, then the first program and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct BootArgs {
    words: Vec<String>,
    argv: Vec<String>,
}

impl BootArgs {
    /// Boot arguments that start `init` (a path in the initrd) with `argv` behind it.
    pub(crate) fn new(init: &str, argv: Vec<String>) -> Self {
        Self {
            words: vec!["umbra.exit=semihosting".to_owned(), format!("init={init}")],
            argv,
        }
    }

    /// Adds a word before the `--`.
    pub(crate) fn with(self, word: &str) -> Self {
        self.with_all([word])
    }

    /// Adds words before the `--`.
    pub(crate) fn with_all<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.words.extend(words.into_iter().map(str::to_owned));
        self
    }

    /// The string for `-append`.
    pub(crate) fn render(&self) -> Result<String> {
        let mut parts = self
            .words
            .iter()
            .map(|w| quote(w))
            .collect::<Result<Vec<_>>>()?;
        if !self.argv.is_empty() {
            parts.push("--".to_owned());
            for arg in &self.argv {
                parts.push(quote(arg)?);
            }
        }
        Ok(parts.join(" "))
    }
}

/// One word, in double quotes if it has blanks or is empty.
pub(crate) fn quote(word: &str) -> Result<String> {
    if word.contains('"') || word.contains(['\n', '\0']) {
        bail!("boot arguments cannot hold a double quote or a line break: {word:?}");
    }
    if word.is_empty() || word.contains([' ', '\t']) {
        return Ok(format!("\"{word}\""));
    }
    Ok(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::BootArgs;
    use proptest::prelude::*;

    /// The reading half of the contract, as the kernel does it: blanks separate, quotes protect.
    fn split(text: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
        for c in text.chars() {
            match c {
                '"' => {
                    quoted = !quoted;
                    any = true;
                }
                ' ' | '\t' if !quoted => {
                    if any {
                        words.push(std::mem::take(&mut word));
                    }
                    any = false;
                }
                c => {
                    word.push(c);
                    any = true;
                }
            }
        }
        if any {
            words.push(word);
        }
        words
    }

    #[test]
    fn plain_words_stay_plain() {
        let args = BootArgs::new(
            "/init",
            vec!["/bin/umbra-vmm".into(), "--cpus".into(), "2".into()],
        );
        assert_eq!(
            args.with("umbra.quiet").render().unwrap(),
            "umbra.exit=semihosting init=/init umbra.quiet -- /bin/umbra-vmm --cpus 2"
        );
    }

    #[test]
    fn a_command_line_is_one_argument() {
        let args = BootArgs::new(
            "/init",
            vec!["--cmdline".into(), "console=ttyS0 quiet".into()],
        );
        assert_eq!(
            args.render().unwrap(),
            "umbra.exit=semihosting init=/init -- --cmdline \"console=ttyS0 quiet\""
        );
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        for bad in ["a\"b", "a\nb", "a\0b"] {
            assert!(
                BootArgs::new("/init", vec![bad.into()]).render().is_err(),
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn splitting_gives_the_words_back(argv in prop::collection::vec("[a-z =,/\t-]{0,12}", 0..6)) {
            let text = BootArgs::new("/init", argv.clone()).render().unwrap();
            let words = split(&text);
            let tail = words.iter().position(|w| w == "--").map_or(&[][..], |at| &words[at + 1..]);
            prop_assert_eq!(tail, &argv[..]);
        }
    }
}
