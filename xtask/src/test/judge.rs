//! Judging what a boot printed: cutting the console into the parts of its commands, and comparing a
//! part with what its case expects. Pure functions on text.

use super::case::{Case, Work};
use super::report::tail;
use regex::Regex;

/// How one command of a boot ended, with everything printed since the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The output.
    pub(crate) output: String,
    /// Exit status; `Err` holds init's words for any other end.
    pub(crate) status: Result<i32, String>,
}

impl Part {
    /// Commands that ran at the same time as one: all they printed, and the first failure or else the
    /// first status. `None` of none.
    pub(crate) fn joined(parts: Vec<Part>) -> Option<Part> {
        let failed = parts.iter().position(|part| part.status != Ok(0));
        let status = parts.get(failed.unwrap_or(0))?.status.clone();
        let output = parts.into_iter().map(|part| part.output).collect();
        Some(Part { output, status })
    }
}

/// Cuts a console at init's reports: `umbra-init: N PATH exited STATUS`. What follows the last
/// report belongs to a command that did not end.
pub(crate) fn parts(console: &str) -> (Vec<Part>, String) {
    let mut found = Vec::new();
    let mut output = String::new();
    for line in console.lines() {
        match end_of(line) {
            Some(status) => found.push(Part {
                output: std::mem::take(&mut output),
                status,
            }),
            None => {
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    (found, output)
}

/// How a command ended, if the line is init's report of it.
fn end_of(line: &str) -> Option<Result<i32, String>> {
    // A program that ended without a line break leaves its last words before the report.
    let report = &line[line.find("umbra-init: ")? + "umbra-init: ".len()..];
    let (number, rest) = report.split_once(' ')?;
    number.parse::<u32>().ok()?;
    match rest
        .rsplit_once(" exited ")
        .and_then(|(_, status)| status.parse().ok())
    {
        Some(status) => Some(Ok(status)),
        None => Some(Err(rest.to_owned())),
    }
}

/// What a part that is as expected said of its checks, if it is a suite.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Lines `ok NAME`.
    pub(crate) ok: usize,
    /// Name and reason of each line `skip NAME: why`.
    pub(crate) skipped: Vec<(String, String)>,
}

impl Passed {
    fn of(output: &str) -> Self {
        let skips = output.lines().filter_map(|l| l.strip_prefix("skip "));
        Self {
            ok: output.lines().filter(|l| l.starts_with("ok ")).count(),
            skipped: skips
                .map(|s| s.split_once(": ").unwrap_or((s, "no reason given")))
                .map(|(name, why)| (name.to_owned(), why.to_owned()))
                .collect(),
        }
    }

    /// ": N checks", or nothing where there were none to count.
    pub(crate) fn checks(&self) -> String {
        match self.ok {
            0 => String::new(),
            n => format!(": {n} checks"),
        }
    }
}

/// Whether a part is what its case expects.
pub(crate) fn judge(case: &Case, part: &Part) -> Result<Passed, String> {
    let with_tail = |why: String| Err(format!("{why}\n{}", tail(&part.output, 40)));
    match &part.status {
        Ok(status) if *status == case.status => {}
        Ok(status) => {
            return with_tail(format!("exit status {status}, not {}", case.status));
        }
        Err(end) => return with_tail(end.clone()),
    }
    if let Work::First(_, _, text) = &case.work
        && part.output != *text
    {
        return with_tail(format!("the output is not exactly {text:?}"));
    }
    if let Some(line) = part.output.lines().find(|l| l.starts_with("FAIL ")) {
        return with_tail(line.to_owned());
    }
    for pattern in &case.expect {
        match Regex::new(pattern) {
            Ok(regex) if regex.is_match(&part.output) => {}
            Ok(_) => return with_tail(format!("no match for {pattern}")),
            Err(error) => return Err(format!("{pattern}: {error}")),
        }
    }
    Ok(Passed::of(&part.output))
}

#[cfg(test)]
mod tests {
    use super::{Part, judge, parts};
    use crate::test::case::{Case, File, Work};

    fn case(work: Work, status: i32, expect: &[&str]) -> Case {
        Case {
            model: None,
            events: &[],
            name: "a/b".into(),
            cpus: 1,
            work,
            status,
            expect: expect.iter().map(|e| (*e).to_owned()).collect(),
            limit: 1,
            full_only: None,
        }
    }

    fn part(output: &str, status: i32) -> Part {
        Part {
            output: output.into(),
            status: Ok(status),
        }
    }

    #[test]
    fn a_console_is_cut_at_inits_reports() {
        let console = "umbra: 2 CPUs up\nhello\numbra-init: 1 /bin/a exited 0\n\
                       no line breakumbra-init: 2 /bin/b exited 7\n\
                       umbra-init: 3 /bin/c killed by signal 11\n\
                       umbra-init: 4 /bin/d: no such program\nhangs\n";
        let (found, rest) = parts(console);
        assert_eq!(found[0], part("umbra: 2 CPUs up\nhello\n", 0));
        assert_eq!(found[1].status, Ok(7));
        assert_eq!(found[2].status, Err("/bin/c killed by signal 11".into()));
        assert_eq!(found[3].status, Err("/bin/d: no such program".into()));
        assert_eq!((found.len(), rest.as_str()), (4, "hangs\n"));
    }

    #[test]
    fn commands_that_ran_together_fail_together() {
        let joined = |parts: &[Part]| Part::joined(parts.to_vec());
        assert_eq!(joined(&[]), None);
        assert_eq!(joined(&[part("a", 7)]), Some(part("a", 7)));
        assert_eq!(joined(&[part("a", 0), part("b", 0)]), Some(part("ab", 0)));
        let died = Part {
            output: "b".into(),
            status: Err("killed".into()),
        };
        let both = joined(&[part("a", 0), died]).unwrap();
        assert_eq!(
            (both.output.as_str(), both.status),
            ("ab", Err("killed".into()))
        );
    }

    #[test]
    fn status_patterns_and_fail_lines_count() {
        let program = || Work::Program(File::Busybox, vec![]);
        let wanted = case(program(), 0, &["(?m)^ok \\S"]);
        assert!(judge(&wanted, &part("ok one\nok two\n", 0)).is_ok());
        assert!(judge(&wanted, &part("ok one\n", 1)).is_err(), "status");
        assert!(judge(&wanted, &part("", 0)).is_err(), "said nothing");
        assert!(
            judge(&wanted, &part("ok one\nFAIL two: why\n", 0)).is_err(),
            "one FAIL"
        );
        let killed = Part {
            output: "ok one\n".into(),
            status: Err("killed".into()),
        };
        assert!(judge(&wanted, &killed).is_err());
        assert!(judge(&case(program(), 7, &["x"]), &part("x", 7)).is_ok());
    }

    #[test]
    fn checks_are_counted_and_skips_named() {
        let wanted = case(Work::Program(File::Busybox, vec![]), 0, &["(?m)^done s$"]);
        let passed = judge(
            &wanted,
            &part("ok s/a\nskip s/b: no such thing\nok s/c\ndone s\n", 0),
        )
        .unwrap();
        assert_eq!(passed.checks(), ": 2 checks");
        assert_eq!(
            passed.skipped,
            [("s/b".to_owned(), "no such thing".to_owned())]
        );
        assert!(judge(&wanted, &part("ok s/a\n", 0)).is_err(), "cut short");
    }

    #[test]
    fn a_first_programs_output_is_exact() {
        let wanted = case(Work::First(File::Busybox, vec![], "text\n"), 0, &[]);
        assert!(judge(&wanted, &part("text\n", 0)).is_ok());
        assert!(judge(&wanted, &part("umbra: noise\ntext\n", 0)).is_err());
        assert!(judge(&wanted, &part("text", 0)).is_err());
    }
}
