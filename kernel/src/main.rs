//! umbra's EL2 program: joins the pure crates to the machine.
//!
//! `boot` brings the CPUs up and starts the first program; from there on everything runs in threads
//! (`sched`), each in the middle of one of two loops: a process at EL0 (`proc`, `sys`) or a vCPU
//! (`kvm`). Interrupts are never taken at EL2: exits from EL0 and guests and the idle loop poll for
//! them (`irq`).
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]
#![cfg_attr(not(target_os = "none"), allow(unused))]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod file;
#[cfg(target_os = "none")]
mod files;
#[cfg(target_os = "none")]
mod ghes;
#[cfg(target_os = "none")]
mod irq;
#[cfg(target_os = "none")]
mod kvm;
#[cfg(target_os = "none")]
mod live;
#[cfg(target_os = "none")]
mod mem;
#[cfg(target_os = "none")]
mod mm;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod poison;
#[cfg(target_os = "none")]
mod proc;
#[cfg(target_os = "none")]
mod sched;
#[cfg(target_os = "none")]
mod sys;
#[cfg(target_os = "none")]
mod trace;

#[cfg(target_os = "none")]
umbra_hw::entry!(boot::primary, boot::secondary, boot::refused);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("umbra runs on a machine of its own: see `cargo xtask run`");
}
