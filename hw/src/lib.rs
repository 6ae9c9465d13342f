//! The unsafe island: everything that touches the machine.
#![cfg_attr(target_os = "none", no_std)]
