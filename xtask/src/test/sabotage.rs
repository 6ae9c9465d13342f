//! `test sabotage`: a checker is proved by breaking what it checks.
//!
//! umbra with the feature `sabotage` can leave out one safeguard, which its command line names.
//! `kernel/sabotage.txt` lists them, one a line: an id, the on-target case that must notice, and what
//! is left out. One build serves all; each is booted alone, and the case must fail although it passes
//! on the very same build with every safeguard in place.

use super::boot::Bench;
use super::case::Case;
use super::report::Tally;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

const LIST: &str = "kernel/sabotage.txt";

/// How much of what a check said is shown, in characters.
const SIGN: usize = 160;

/// A safeguard that can be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sabotage {
    /// Its name, to umbra and in results.
    pub(crate) id: String,
    /// The case that must notice.
    pub(crate) case: String,
    /// What is left out.
    pub(crate) what: String,
}

impl Sabotage {
    /// The name of its result.
    pub(crate) fn name(&self) -> String {
        format!("sabotage/{}", self.id)
    }

    /// The word on umbra's command line.
    fn word(&self) -> String {
        format!("umbra.sabotage={}", self.id)
    }

    /// What umbra says when it obeys.
    fn admission(&self) -> String {
        format!("umbra: sabotaged: {}", self.id)
    }
}

/// The list, in its order.
pub(crate) fn list(root: &std::path::Path) -> Result<Vec<Sabotage>> {
    let text = fs::read_to_string(root.join(LIST)).with_context(|| format!("no {LIST}"))?;
    parse(&text)
}

/// Leaves out each safeguard in turn. `bench` holds the build with the feature, `cases` all cases.
pub(crate) fn run(
    bench: &Bench<'_>,
    list: &[Sabotage],
    cases: &[Case],
    tally: &mut Tally,
) -> Result<()> {
    let cases: Vec<Case> = cases.iter().cloned().map(Case::shortened).collect();
    let find = |s: &Sabotage| {
        let case = cases.iter().find(|c| c.name == s.case);
        case.with_context(|| format!("{LIST}: {} names no case: {}", s.id, s.case))
    };
    // What fails with every safeguard in place proves nothing when one is missing.
    let mut sound = BTreeMap::new();
    let names: BTreeSet<&str> = list.iter().map(|s| s.case.as_str()).collect();
    for case in cases.iter().filter(|c| names.contains(c.name.as_str())) {
        let limit = Duration::from_secs(10 + case.limit);
        let outcome = bench.run_one(case, "sound", None, limit)?;
        if outcome.result.is_ok() {
            // What hangs need not be waited for as long as what is only slow.
            let limit = Duration::from_secs_f64(5.0 + 3.0 * outcome.seconds);
            sound.insert(case.name.as_str(), limit);
        }
        let name = format!("sabotage/sound/{}", case.name);
        tally.result(&name, outcome.seconds, outcome.result.map(|_| ()));
    }
    for sabotage in list {
        let case = find(sabotage)?;
        let name = sabotage.name();
        let Some(&limit) = sound.get(case.name.as_str()) else {
            tally.fail(
                &name,
                &format!("{} fails without any sabotage", sabotage.case),
            );
            continue;
        };
        let outcome = bench.run_one(case, &sabotage.id, Some(&sabotage.word()), limit)?;
        let admitted = outcome.console.lines().any(|l| l == sabotage.admission());
        match outcome.result {
            _ if !admitted => {
                tally.fail(&name, &format!("umbra does not know {}", sabotage.id));
            }
            Ok(_) => tally.fail(
                &name,
                &format!(
                    "{} did not notice that umbra lacks: {}",
                    sabotage.case, sabotage.what
                ),
            ),
            Err(why) => {
                // What a check said, rather than that the suite ended badly.
                let failed = why.lines().find_map(|l| l.split_once("| FAIL "));
                let sign =
                    failed.map_or_else(|| why.lines().next().unwrap_or_default(), |(_, f)| f);
                let sign: String = sign.chars().take(SIGN).collect();
                tally.pass(
                    &format!("{name} ({}: {sign})", sabotage.case),
                    outcome.seconds,
                );
            }
        }
    }
    Ok(())
}

fn parse(text: &str) -> Result<Vec<Sabotage>> {
    let mut found: Vec<Sabotage> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        let mut words = line.split_whitespace();
        let (Some(id), Some(case)) = (words.next(), words.next()) else {
            bail!("{LIST}: {line:?} is not: id, case, what");
        };
        let what = words.collect::<Vec<_>>().join(" ");
        if what.is_empty() || found.iter().any(|s| s.id == id) {
            bail!("{LIST}: {id} is twice there, or says not what it leaves out");
        }
        found.push(Sabotage {
            id: id.to_owned(),
            case: case.to_owned(),
            what,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_list() {
        let list =
            parse("# id  case  what\n\nunmap-tlbi  payload/unmap  the TLBI after an unmap\n")
                .unwrap();
        assert_eq!(
            (list[0].id.as_str(), list[0].case.as_str()),
            ("unmap-tlbi", "payload/unmap")
        );
        assert_eq!(list[0].what, "the TLBI after an unmap");
        assert!(parse("only-an-id\n").is_err());
        assert!(parse("a  b/c\n").is_err(), "says not what");
        assert!(parse("a b/c x\na b/c x\n").is_err(), "twice");
    }

    #[test]
    fn ids_are_those_of_the_unsafe_island() {
        let source = include_str!("../../../hw/src/sabotage.rs");
        for sabotage in parse(include_str!("../../../kernel/sabotage.txt")).unwrap() {
            let quoted = format!("\"{}\"", sabotage.id);
            assert!(source.contains(&quoted), "{}", sabotage.id);
        }
    }
}
