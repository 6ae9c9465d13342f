//! A guarded program ends when its parent does: nothing is left behind by an xtask that was killed.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Name and state of a process, while there is one.
fn process(pid: &str) -> Option<(String, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.trim().chars().next()?))
}

fn wait_until(what: &str, good: impl Fn() -> bool) {
    let start = Instant::now();
    while !good() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_ends_with_its_parent() {
    let script = r#""$0" guard --parent $$ --env UMBRA=yes -- sleep 600 & echo $!; wait"#;
    let mut parent = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_xtask")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(parent.stdout.take().unwrap())
        .read_line(&mut pid)
        .unwrap();
    let pid = pid.trim();
    wait_until("it became the program", || {
        process(pid).is_some_and(|(name, _)| name == "sleep")
    });
    // Linux names a program before it has made its memory, so this too comes a moment later.
    wait_until("it has the environment", || {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        environment.split(|&b| b == 0).any(|v| v == b"UMBRA=yes")
    });
    // SIGKILL: nobody has the time to say goodbye.
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until("it ended", || {
        process(pid).is_none_or(|(_, state)| state == 'Z')
    });
}

#[test]
fn it_does_not_begin_without_its_parent() {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["guard", "--parent", "1", "--", "true"])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
}
