//! The program: reads the command line, runs the machine, tells how it ended.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use umbra_vmm::error::{Error, Result};
use umbra_vmm::logger::{self, say};
use umbra_vmm::options::{self, Options, Request};
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
            match run(&options) {
                Ok(stop) => ended(&stop),
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

fn ended(stop: &Stop) -> u8 {
    match stop {
        Stop::PowerOff => {}
        Stop::Reset => say("the guest asked for a reset"),
        Stop::Crash => say("the guest crashed"),
        Stop::User => say("ended by Ctrl-A x"),
        Stop::Failed(text) => say(text),
    }
    stop.status()
}

fn failed(error: &Error) -> u8 {
    say(&error.to_string());
    error.status()
}

#[cfg(target_arch = "aarch64")]
fn run(options: &Options) -> Result<Stop> {
    umbra_vmm::machine::run(options)
}

#[cfg(not(target_arch = "aarch64"))]
fn run(_: &Options) -> Result<Stop> {
    Err(Error::Failed(
        "this is a build for testing; virtual machines run on aarch64 only".into(),
    ))
}
