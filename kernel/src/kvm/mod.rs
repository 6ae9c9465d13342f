//! /dev/kvm: Linux's ABI for virtual machines, and the machines behind it.
//!
//! ```text
//!  system ── KVM_CREATE_VM ──► vm ── KVM_CREATE_VCPU ──► vcpu ── KVM_RUN ──► run
//!                               │                          │                  │
//!                    memory (slots, stage 2)      loaded (EL1 in hardware)   exit ─► fault, sysreg, firmware
//!                    gic, its, ioeventfd          state (registers)                  inject, mmio, sea
//!                    slots, dirty, routing        stats, timer, pvtime, pmu          nested (virtual EL2), debug
//! ```
//!
//! Numbers, structures, errors and their order are Linux's; where not, `docs/abi.md` says so. A guest
//! can cause no error here: whatever it does has an outcome in the guest or a named exit.

mod coalesced;
mod debug;
mod device;
mod dirty;
mod events;
mod exit;
mod fault;
mod firmware;
mod ghost;
mod gic;
mod inject;
mod ioeventfd;
mod its;
mod live;
mod loaded;
mod memory;
mod mmio;
mod nested;
mod onereg;
mod pmu;
mod pvtime;
mod regs;
mod routing;
mod run;
mod sea;
mod slots;
mod stage1;
mod stats;
mod sysreg;
mod system;
mod time;
mod timer;
mod user_lines;
mod vcpu;
mod vm;

use alloc::sync::Arc;

use umbra_linux::Errno;

pub(crate) use live::each as each_statistic;
pub(crate) use loaded::{before_wait, put_loaded};
pub(crate) use timer::{fired, maintenance};

use crate::file::File;

/// Opens /dev/kvm.
pub(crate) fn open() -> Result<Arc<dyn File>, Errno> {
    Ok(Arc::new(system::System))
}

/// The ABI crate's error numbers are Linux's too.
fn errno(error: umbra_kvm_abi::Errno) -> Errno {
    Errno::from_code(error.number() as u16).unwrap_or(Errno::EINVAL)
}

/// Reads a structure of the ABI from the process.
fn read_struct<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    mm: &crate::mm::Mm,
    from: u64,
) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    mm.read_bytes(umbra_arm64::Hva::new(from), value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a structure of the ABI to the process.
fn write_struct<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    mm: &crate::mm::Mm,
    to: u64,
    value: &T,
) -> Result<(), Errno> {
    mm.write_bytes(umbra_arm64::Hva::new(to), value.as_bytes())
}
