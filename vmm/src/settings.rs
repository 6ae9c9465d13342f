//! The file of settings: several machines for one process (`--config`).
//!
//! ```json
//! { "machines": [
//!     { "name": "left",  "kernel": "/Image", "memory": "256M", "net": ["lan"] },
//!     { "name": "right", "kernel": "/Image", "cpus": 2, "disk": ["/right.img"], "net": ["lan"] } ] }
//! ```
//!
//! There is one grammar: a name is that of a long option, a value is what stands behind it, a list
//! repeats the option, `true` is an option without a value. So each machine is read by
//! [`options::parse`], and its messages are those of the command line, with the file and the
//! machine before them.

use std::path::Path;

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::options::{self, Options, Request};

/// Options that may stand in a list.
const REPEATED: [&str; 2] = ["disk", "net"];
/// Options that are the command line's own.
const OUTSIDE: [&str; 4] = ["config", "log-level", "help", "version"];

/// Most machines in a file.
const MOST: usize = 64;

/// A machine and the name that messages call it by.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// What it is.
    pub options: Options,
}

/// The machines of a file, in order.
pub fn read(file: &Path) -> Result<Vec<Named>> {
    let name = format!("settings {}", file.display());
    let text = std::fs::read_to_string(file).context(&name)?;
    parse(&text).map_err(|why| match why {
        Error::Usage(why) | Error::Failed(why) => Error::Usage(format!("{name}: {why}")),
    })
}

/// The machines of a text.
pub fn parse(text: &str) -> Result<Vec<Named>> {
    let usage = |why: &str| Error::Usage(why.into());
    let root: Value = serde_json::from_str(text).map_err(|e| Error::Usage(e.to_string()))?;
    let Value::Object(root) = root else {
        return Err(usage("expected an object with \"machines\""));
    };
    if let Some(other) = root.keys().find(|key| *key != "machines") {
        return Err(Error::Usage(format!(
            "unknown setting {other:?}; there is \"machines\""
        )));
    }
    let machines = match root.get("machines") {
        Some(Value::Array(machines)) if !machines.is_empty() => machines,
        _ => return Err(usage("\"machines\" is to be a list of at least one")),
    };
    if machines.len() > MOST {
        return Err(Error::Usage(format!("more than {MOST} machines")));
    }
    let mut named: Vec<Named> = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let machine = one(index, machine)?;
        if named.iter().any(|other| other.name == machine.name) {
            return Err(Error::Usage(format!(
                "two machines have the name {:?}",
                machine.name
            )));
        }
        named.push(machine);
    }
    Ok(named)
}

fn one(index: usize, machine: &Value) -> Result<Named> {
    let number = index + 1;
    let Value::Object(settings) = machine else {
        return Err(Error::Usage(format!(
            "machine {number} is to be an object of settings"
        )));
    };
    let name = match settings.get("name") {
        None => number.to_string(),
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(other) => {
            return Err(Error::Usage(format!(
                "machine {number}: \"name\": {other} is no name"
            )));
        }
    };
    let in_machine = |e| match e {
        Error::Usage(why) | Error::Failed(why) => Error::Usage(format!("machine {name:?}: {why}")),
    };
    let mut args = Vec::new();
    for (key, value) in settings.iter().filter(|(key, _)| *key != "name") {
        arguments(key, value, &mut args).map_err(in_machine)?;
    }
    match options::parse(args).map_err(in_machine)? {
        Request::Run(options) => Ok(Named {
            name,
            options: *options,
        }),
        // Their options are refused before.
        Request::Config(..) | Request::Help | Request::Version => {
            Err(in_machine(Error::Usage("no machine".into())))
        }
    }
}

/// A setting as the command line has it.
fn arguments(key: &str, value: &Value, args: &mut Vec<String>) -> Result<()> {
    let plain = key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    if key.len() < 2 || !plain || OUTSIDE.contains(&key) {
        return Err(Error::Usage(format!("{key:?} is no setting of a machine")));
    }
    match value {
        Value::String(text) => args.push(format!("--{key}={text}")),
        Value::Number(number) => args.push(format!("--{key}={number}")),
        Value::Bool(true) => args.push(format!("--{key}")),
        // Tried, so that a name that is none is told in either case.
        Value::Bool(false) => {
            let tried = options::parse(["--kernel=K".to_owned(), format!("--{key}")]);
            tried.map(drop)?;
        }
        Value::Array(list) if REPEATED.contains(&key) => {
            for value in list {
                match value {
                    Value::String(text) => args.push(format!("--{key}={text}")),
                    other => {
                        return Err(Error::Usage(format!("--{key}: {other} is no text")));
                    }
                }
            }
        }
        other => {
            return Err(Error::Usage(format!(
                "--{key}: {other} is no value of an option"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        match parse(text) {
            Err(Error::Usage(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_machine_is_what_the_command_line_would_make_it() {
        let file = r#"{"machines": [
            {"name": "left", "kernel": "K", "cpus": 2, "memory": "64M,hugepages=off",
             "disk": ["a", "path=b,ro"], "net": "lan", "nested": true, "stats": false},
            {"kernel": "L", "cmdline": "--console=x y", "net": ["lan", "wan,mac=02:00:00:00:00:01"]}
        ]}"#;
        let machines = parse(file).unwrap();
        let args = |args: &[&str]| match options::parse(args.iter().copied()) {
            Ok(Request::Run(options)) => *options,
            other => panic!("{other:?}"),
        };
        let left = [
            "-kK",
            "-c2",
            "-m64M,hugepages=off",
            "-da",
            "-db,ro",
            "-nlan",
            "--nested",
        ];
        assert_eq!(machines[0].name, "left");
        assert_eq!(machines[0].options, args(&left));
        let right = [
            "-kL",
            "-p--console=x y",
            "-nlan",
            "-nwan,mac=02:00:00:00:00:01",
        ];
        assert_eq!(machines[1].name, "2");
        assert_eq!(machines[1].options, args(&right));
    }

    #[test]
    fn each_mistake_is_told_with_its_place() {
        for (text, words) in [
            ("", &["line 1"][..]),
            ("{\n\"machines\": [}", &["line 2"]),
            ("[]", &["machines"]),
            ("{}", &["machines"]),
            (r#"{"machines": []}"#, &["at least one"]),
            (r#"{"machines": {}}"#, &["a list"]),
            (r#"{"machine": []}"#, &["\"machine\""]),
            (r#"{"machines": [3]}"#, &["machine 1", "object"]),
            (
                r#"{"machines": [{"name": "a"}]}"#,
                &["\"a\"", "--kernel is missing"],
            ),
            (r#"{"machines": [{"name": 7}]}"#, &["machine 1", "7"]),
            (r#"{"machines": [{"name": ""}]}"#, &["name"]),
            (
                r#"{"machines": [{"kernel": "K", "cpus": 9}]}"#,
                &["\"1\"", "--cpus 9"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "cpus": [1]}]}"#,
                &["--cpus", "[1]"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "cpus": true}]}"#,
                &["cpus"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "cpus": null}]}"#,
                &["--cpus", "null"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "disk": [1]}]}"#,
                &["--disk", "1"],
            ),
            (r#"{"machines": [{"kernel": "K", "frob": 1}]}"#, &["--frob"]),
            (
                r#"{"machines": [{"kernel": "K", "frob": false}]}"#,
                &["--frob"],
            ),
            (r#"{"machines": [{"kernel": "K", "k": "L"}]}"#, &["\"k\""]),
            (
                r#"{"machines": [{"kernel": "K", "log-level": "info"}]}"#,
                &["log-level"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "help": true}]}"#,
                &["help"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "config": "F"}]}"#,
                &["config"],
            ),
            (
                r#"{"machines": [{"kernel": "K", "name": "2"}, {"kernel": "K"}]}"#,
                &["two machines", "\"2\""],
            ),
        ] {
            let why = refused(text);
            for word in words {
                assert!(why.contains(word), "{text}: {why}");
            }
        }
        let many = vec![r#"{"kernel": "K"}"#; MOST + 1].join(",");
        assert!(refused(&format!(r#"{{"machines": [{many}]}}"#)).contains("64"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let e = read(Path::new("/no/such/file")).unwrap_err();
        assert!(
            e.to_string().contains("/no/such/file") && e.status() == 1,
            "{e}"
        );
    }
}
