//! What guest payloads are made of: small bare-metal programs at EL1 or virtual EL2, one for
//! each question about the machine that a VMM and a hypervisor give a guest.
//!
//! A payload is an arm64 Linux `Image`, started by any VMM for `/dev/kvm`; it prints `ok NAME` or
//! `FAIL NAME: why` for each check and `done PAYLOAD` at the end, and powers off by PSCI. All that
//! touches the machine is in `rt`, the only place with `unsafe`; the payloads say what to expect.
//! On the host only [`fdt`] exists, for its tests.
#![cfg_attr(target_os = "none", no_std)]

pub mod fdt;
#[cfg(target_os = "none")]
pub mod rt;
#[cfg(target_os = "none")]
pub mod suite;

/// Makes the module of this name the payload: its `run(&mut Suite)` is called on CPU 0 once the
/// machine is set up. On the host the program only says what it is.
#[macro_export]
macro_rules! payload {
    ($name:ident) => {
        #[cfg(target_os = "none")]
        $crate::entry!($name);

        #[cfg(not(target_os = "none"))]
        fn main() {
            eprintln!(concat!(
                stringify!($name),
                " is a guest payload: see `cargo xtask test`"
            ));
        }
    };
}
