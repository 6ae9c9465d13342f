//! The machine, for payloads that have no `unsafe` of their own.
//!
//! What always holds after boot: EL1 with SP_EL1 (or EL2 as a host, E2H and TGE set, with SP_EL2,
//! where the names of EL1's registers are EL2's own: all below works there as well), MMU and caches on, everything of the first
//! 4 GiB at its own address (0-1 GiB device, 2-3 GiB normal memory, read, write and execute),
//! VA bits 47:39 = 1 free for experiments ([`mmu::WINDOW`]), interrupts and debug exceptions
//! masked, FP untrapped. The payload is the whole machine: functions here that take an address
//! refuse those of the image itself, where Rust's own objects live, and allow all others.

pub mod boot;
pub mod exec;
pub mod fp;
pub mod gic;
pub mod irq;
pub mod l2;
pub mod mem;
pub mod mmu;
pub mod probe;
pub mod psci;
#[macro_use]
pub mod regs;
pub mod smp;
pub mod stage2;
pub mod timer;
pub mod uart;
mod vectors;

pub use probe::{Fault, expect};

/// Most CPUs of a machine.
pub const MAX_CPUS: usize = 8;

/// This CPU's number: affinity 0 of MPIDR_EL1, which is how both KVM and umbra number vCPUs.
pub fn cpu() -> usize {
    (crate::mrs!("mpidr_el1") & 0xff) as usize % MAX_CPUS
}

/// Whether this is EL2, as the machine has it with `--nested`.
pub fn at_el2() -> bool {
    crate::mrs!("CurrentEL") == 2 << 2
}
