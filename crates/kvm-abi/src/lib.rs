//! The KVM ABI for 64-bit Arm as types: numbers, structures, register ids, exits, firmware calls.
//!
//! Written against Linux `include/uapi/linux/kvm.h`, `arch/arm64/include/uapi/asm/kvm.h` and
//! `Documentation/virt/kvm/api.rst` as of Linux 7.x. What always holds:
//!
//! - a structure here has the size, alignment and field offsets that Linux gives it on arm64, on
//!   whatever host this crate is built for, and no hidden padding;
//! - every number that crosses the border is checked into a type on the way in: an id that names
//!   nothing is an [`Errno`], the one that Linux answers;
//! - nothing here acts. [`psci`] and [`smccc`] decide what a guest's firmware call means, and the
//!   caller carries it out.
//!
//! The kernel and the VMM share this crate, so that the two ends cannot drift apart; tests compare
//! it with the independent `kvm-bindings` crate where that is built for arm64.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cap;
pub mod device;
pub mod errno;
pub mod exit;
mod fw_reg;
pub mod ioc;
pub mod ioctl;
pub mod irq;
pub mod memory;
pub mod psci;
pub mod reg;
pub mod reg_list;
pub mod run;
pub mod smccc;
pub mod smccc_filter;
pub mod stats;
pub mod vcpu;
pub mod vgic;

#[cfg(all(test, target_arch = "aarch64", target_os = "linux"))]
mod layout;

pub use errno::Errno;
pub use exit::Exit;
pub use ioc::Ioctl;
pub use reg::{RegId, RegKind};
pub use run::RunPage;
