//! `test sabotage`: a checker is proved by breaking what it checks.
//!
//! `kernel/sabotage.txt` lists the safeguards that a build can leave out, one a line: an id, the
//! on-target case that must notice, and what is left out. Each is built alone and its case is run;
//! the case must fail.

use super::boot::{Bench, group};
use super::cases::Case;
use super::report::Tally;
use crate::build::{self, Profile, Programs};
use crate::progress::step;
use crate::setup::Qemu;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::time::Instant;

const LIST: &str = "kernel/sabotage.txt";

/// A safeguard that can be left out.
#[derive(Debug, PartialEq, Eq)]
struct Sabotage {
    id: String,
    case: String,
    what: String,
}

/// Breaks every safeguard of the list in turn.
pub(crate) fn run(
    ws: &Workspace,
    qemu: &Qemu,
    programs: &Programs,
    nonce: &str,
    cases: &[Case],
    tally: &mut Tally,
) -> Result<()> {
    let text = fs::read_to_string(ws.root().join(LIST)).with_context(|| format!("no {LIST}"))?;
    for Sabotage { id, case, what } in parse(&text)? {
        let Some(found) = cases.iter().find(|c| c.name == case) else {
            bail!("{LIST}: {id} names the case {case}, which does not exist");
        };
        let start = Instant::now();
        let kernel = step(&format!("build umbra without {id} ({what})"), || {
            build::kernel(ws, Profile::Checked, Some(&id))
        })?;
        let bench = Bench {
            ws,
            qemu,
            kernel: Some(&kernel),
            programs,
            nonce,
        };
        let mut broken = Tally::default();
        for boot in group(vec![found.clone()]) {
            bench.run(&boot, &mut broken)?;
        }
        let name = format!("sabotage/{id}");
        if broken.any_failed() {
            tally.pass(&name, start.elapsed().as_secs_f64());
        } else {
            tally.fail(
                &name,
                &format!("{case} did not notice that umbra lacks: {what}"),
            );
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
}
