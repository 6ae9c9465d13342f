//! The program: reads the command line, runs the machines, tells how they ended.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use umbra_vmm::error::{Error, Result};
use umbra_vmm::logger::{self, say};
use umbra_vmm::options::{self, Request};
use umbra_vmm::settings::{self, Named};
use umbra_vmm::stop::Stop;

fn main() -> ExitCode {
    let status = match options::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => {
            print(options::HELP);
            0
        }
        Ok(Request::Version) => {
            print(concat!("umbra-vmm ", env!("CARGO_PKG_VERSION"), "\n"));
            0
        }
        Ok(Request::Run(options)) => {
            logger::start(options.log_level);
            let name = String::new();
            machines(&[Named {
                name,
                options: *options,
            }])
        }
        Ok(Request::Config(file, log_level)) => {
            logger::start(log_level);
            match settings::read(&file) {
                Ok(named) => machines(&named),
                Err(e) => failed(&e),
            }
        }
        Err(e) => failed(&e),
    };
    ExitCode::from(status)
}

/// Writes to stdout; that its reader has left is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Runs them; the status is the first's that did not end well.
fn machines(named: &[Named]) -> u8 {
    let stops = match run(named) {
        Ok(stops) => stops,
        Err(e) => return failed(&e),
    };
    let each = named.iter().zip(&stops);
    let statuses = each.map(|(machine, stop)| ended(&machine.name, stop));
    // All of them are told.
    let statuses: Vec<u8> = statuses.collect();
    statuses
        .into_iter()
        .find(|status| *status != 0)
        .unwrap_or(0)
}

fn ended(name: &str, stop: &Stop) -> u8 {
    let tell = |text: &str| match name {
        "" => say(text),
        name => say(&format!("machine {name:?}: {text}")),
    };
    match stop {
        Stop::PowerOff => {}
        Stop::Reset => tell("the guest asked for a reset"),
        Stop::Crash => tell("the guest crashed"),
        Stop::User => tell("ended by Ctrl-A x"),
        Stop::Failed(text) => tell(text),
    }
    stop.status()
}

fn failed(error: &Error) -> u8 {
    say(&error.to_string());
    error.status()
}

#[cfg(target_arch = "aarch64")]
fn run(machines: &[Named]) -> Result<Vec<Stop>> {
    umbra_vmm::machine::run_all(machines)
}

#[cfg(not(target_arch = "aarch64"))]
fn run(_: &[Named]) -> Result<Vec<Stop>> {
    Err(Error::Failed(
        "this is a build for testing; virtual machines run on aarch64 only".into(),
    ))
}
