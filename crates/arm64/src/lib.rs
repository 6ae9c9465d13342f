//! The 64-bit Arm architecture as data.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod descriptor;
pub mod esr;
pub mod fault;
pub mod granule;
pub mod hpfar;
pub mod idreg;
pub mod pmu;
pub mod sysreg;
pub mod tag;
pub mod tlbi;
pub mod translation;
pub mod vncr;

pub use addr::{Address, Gva, Hva, Ipa, Kva, L2Ipa, Pa};
pub use descriptor::{Descriptor, DescriptorKind};
pub use esr::{Ec, Esr, Syndrome};
pub use fault::FaultStatus;
pub use granule::{Granule, Level};
pub use hpfar::Hpfar;
pub use tag::{Asid, Tag, Vmid};
pub use translation::{FaultKind, GuestFault, Rights, Translation};
