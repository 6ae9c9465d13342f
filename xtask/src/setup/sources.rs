//! The system's own apt sources, reduced to what a private apt state needs: where the main archive
//! is and which keys sign it.
//!
//! No mirror is named in this project: what the machine uses is what set-up uses. Both spellings are
//! read, deb822 (`*.sources`) and one-line (`sources.list`, `*.list`), in the order apt reads them.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The main archive as this system knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    uri: String,
    signed_by: Option<String>,
}

impl Archive {
    /// The archive that carries `codename`, from the sources below `etc_apt`.
    pub(crate) fn of_system(etc_apt: &Path, codename: &str) -> Result<Self> {
        for file in source_files(etc_apt) {
            let Ok(text) = std::fs::read_to_string(&file) else {
                continue;
            };
            let found = match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => from_deb822(&text, codename),
                _ => from_lines(&text, codename),
            };
            if let Some(archive) = found {
                return Ok(archive);
            }
        }
        bail!(
            "no apt source in {} offers \"{codename} main\"",
            etc_apt.display()
        );
    }

    /// A deb822 stanza for `suite` of this archive.
    pub(crate) fn stanza(&self, suite: &str) -> String {
        let Self { uri, signed_by } = self;
        let mut text = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
        if let Some(keys) = signed_by {
            text.push_str(&format!("Signed-By: {keys}\n"));
        }
        text
    }
}

fn source_files(etc_apt: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<PathBuf> = std::fs::read_dir(etc_apt.join("sources.list.d"))
        .map(|dir| dir.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    parts.retain(|p| {
        matches!(
            p.extension().and_then(|e| e.to_str()),
            Some("sources" | "list")
        )
    });
    parts.sort();
    parts.insert(0, etc_apt.join("sources.list"));
    parts
}

fn from_deb822(text: &str, codename: &str) -> Option<Archive> {
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| format!("{}\n", l.trim_end()))
        .collect();
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| field(stanza, name);
        let words = |name: &str| {
            field(name).map(|v| v.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let has = |name: &str, word: &str| words(name).is_some_and(|w| w.iter().any(|x| x == word));
        let enabled = field("Enabled").is_none_or(|v| !matches!(v.as_str(), "no" | "false"));
        let fits =
            enabled && has("Types", "deb") && has("Suites", codename) && has("Components", "main");
        if !fits {
            return None;
        }
        let uri = words("URIs")?.into_iter().next()?;
        Some(Archive {
            uri,
            signed_by: field("Signed-By"),
        })
    })
}

/// A field of a deb822 stanza, with its continuation lines as they stand (an inline key needs them).
fn field(stanza: &str, name: &str) -> Option<String> {
    let mut lines = stanza.lines().skip_while(|l| {
        !l.split_once(':')
            .is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
    });
    let mut value = lines.next()?.split_once(':')?.1.trim().to_owned();
    for line in lines.take_while(|l| l.starts_with([' ', '\t'])) {
        value.push('\n');
        value.push_str(line);
    }
    Some(value)
}

fn from_lines(text: &str, codename: &str) -> Option<Archive> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb")?;
        let rest = rest.starts_with([' ', '\t']).then(|| rest.trim_start())?;
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split('#').next()?.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        if suite != codename || !words.any(|w| w == "main") {
            return None;
        }
        let signed_by = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="));
        Some(Archive {
            uri: uri.to_owned(),
            signed_by: signed_by.map(str::to_owned),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Archive, from_deb822, from_lines};

    fn archive(uri: &str, keys: Option<&str>) -> Archive {
        Archive {
            uri: uri.to_owned(),
            signed_by: keys.map(str::to_owned),
        }
    }

    #[test]
    fn deb822_with_comments_and_a_foreign_stanza() {
        let text = "Types: deb\nURIs: mirror:/elsewhere\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb deb-src\n# a comment\nURIs: mirror:/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\nSigned-By: /keys.gpg\n";
        assert_eq!(
            from_deb822(text, "bookworm"),
            Some(archive("mirror:/debian", Some("/keys.gpg")))
        );
        assert_eq!(from_deb822(text, "trixie"), None);
    }

    #[test]
    fn deb822_that_is_switched_off_does_not_count() {
        let text = "Enabled: no\nTypes: deb\nURIs: mirror:/x\nSuites: bookworm\nComponents: main\n";
        assert_eq!(from_deb822(text, "bookworm"), None);
    }

    #[test]
    fn an_inline_key_keeps_its_lines() {
        let text = "Types: deb\nURIs: mirror:/x\nSuites: bookworm\nComponents: main\nSigned-By:\n KEY\n .\n END\n";
        let found = from_deb822(text, "bookworm").unwrap();
        assert!(found.stanza("trixie").contains("Suites: trixie\n"));
        assert!(
            found
                .stanza("trixie")
                .contains("Signed-By: \n KEY\n .\n END\n")
        );
    }

    #[test]
    fn one_line_style_with_and_without_options() {
        let text = "# deb mirror:/no bookworm main\ndeb-src mirror:/src bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] mirror:/debian bookworm main contrib # note\n";
        assert_eq!(
            from_lines(text, "bookworm"),
            Some(archive("mirror:/debian", Some("/k.gpg")))
        );
        assert_eq!(
            from_lines("deb mirror:/d bookworm non-free\n", "bookworm"),
            None
        );
        assert_eq!(
            from_lines("deb\tmirror:/d bookworm main\n", "bookworm"),
            Some(archive("mirror:/d", None))
        );
    }
}
