//! umbra-vmm: boots a Linux Image in a virtual machine, through `/dev/kvm` and nothing else.
//!
//! The same static file runs on Linux and on umbra. That is its purpose: umbra's KVM interface
//! is right when this program, and any other, cannot tell the two apart. So it uses few system
//! calls, no `/proc`, and nothing that only one of the two has.
//!
//! ```text
//! vcpu0 … vcpuN   KVM_RUN ──► bus ──► serial, virtio registers
//! main            epoll: stdin ──► console · idle output · virtio queues · stop
//! ```
//!
//! One process runs one machine, or those of a file of settings, each with such threads of its own;
//! what they have in common is a switch ([`switch`]).
//!
//! vCPU threads and the main thread meet in a device's lock, held for one register access or
//! one queue run, and never two at a time. `unsafe` is in `kvm.rs` and its folder alone. What knows KVM is
//! compiled for aarch64 only; the rest runs, and is tested, anywhere.

#![deny(unsafe_code)]

pub mod bus;
pub mod console;
pub mod error;
pub mod escape;
pub mod event_loop;
pub mod fdt;
pub mod image;
pub mod json;
pub mod layout;
pub mod logger;
pub mod options;
pub mod serial;
pub mod settings;
pub mod stats;
pub mod stop;
pub mod switch;
pub mod virtio;

#[cfg(target_arch = "aarch64")]
pub mod injection;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)] // the island of this program, see its head
pub mod kvm;
#[cfg(target_arch = "aarch64")]
pub mod machine;
#[cfg(target_arch = "aarch64")]
pub mod memory_error;
#[cfg(target_arch = "aarch64")]
pub mod vcpu;
