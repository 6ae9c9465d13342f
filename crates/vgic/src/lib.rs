//! A virtual GICv3 as pure logic: what the distributor, the redistributors and the list registers of one VM hold.
//!
//! ```text
//!  devices, irqfd ──set_level/inject_edge──┐                       ┌─ mmio_read/mmio_write ── guest, VMM
//!  other vCPUs ─────────sgi────────────────┤                       │
//!                                          ▼                       ▼
//!                    ┌───────────────── Vgic (one a VM, behind one spin lock) ─────────────┐
//!                    │ SPIs: Irq, Irq, …      vCPU 0: SGI/PPI Irqs, candidates  vCPU 1: …  │
//!                    └──────┬────────────────────────────▲─────────────────────────────────┘
//!                         flush                        sync
//!                           ▼                            │
//!                        LrFile ──load──► ICH_LR<n>_EL2 ─┘ the guest acknowledges and deactivates here, without exits
//! ```
//!
//! # What always holds
//!
//! 1. An interrupt is *resident* in the list registers of at most one vCPU. Between [`Vgic::flush`] and [`Vgic::sync`]
//!    of that vCPU the hardware alone knows whether it was acknowledged; nothing here guesses.
//! 2. A latched pending state is in exactly one place: in `Irq::latch`, or handed to a list register (`Irq::handed`).
//!    So an edge that arrives between the guest's acknowledge and `sync` is neither lost nor delivered twice.
//! 3. An interrupt is in the candidate set of at most one vCPU: the one that has it active, else the one it is
//!    routed to while pending and enabled. `flush` looks at candidates only.
//! 4. The line of a level interrupt is never copied: it is pending because the line is high, and a list register that
//!    carries it asks for a maintenance interrupt on deactivation when the line is still high at load time.
//!
//! # Locking and the caller's duties
//!
//! One spin lock around `Vgic` in `docs/locking.md`; every call is short (the longest walks the candidates of one
//! vCPU, or 32 interrupts). Nothing allocates after [`Vgic::new`], but for [`Vgic::map_lpi`].
//!
//! - Calls return [`Kicks`]: the vCPUs whose list registers should be recomputed. Make each leave the guest (or wake up),
//!   `sync`, `flush`, enter. [`Vgic::needs_flush`] says the same of one vCPU, for the check before guest entry. A vCPU
//!   whose `needs_flush` is false may run on with what is loaded.
//! - A call that would have to know what a list register holds now answers [`Refusal::NeedsSync`]: `sync` those vCPUs,
//!   then call again.
//! - Guest state of the CPU interface (ICH_VMCR_EL2, `ICH_AP<g>R<n>_EL2`) stays with the vCPU: [`CpuIf`]. ICH_VMCR_EL2 is passed
//!   in where it matters.
//!
//! # Known limit
//!
//! With EOImode = 0 hardware only counts the EOIs of active interrupts that are in no list register. They are attributed by urgency, as EOIs
//! nest; a guest that changes the priority of an interrupt while it is active, or mixes ISACTIVER with more nested
//! interrupts than there are list registers, may see another one of its own ended.
//!
//! LPIs exist as far as an ITS maps them (`lpi`, `its`); their memory is asked for when they are mapped, never when
//! they arrive. Not here: nested ICH_* registers.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod attr;
mod banks;
mod cpuif;
mod dist;
mod flush;
mod icc;
mod irq;
mod irqset;
mod its;
mod lpi;
mod lr;
mod mmio;
mod placement;
mod redist;
mod regs;
mod sgi;
mod vcpus;
mod vgic;

pub use attr::{Attr, AttrError, RedistRegion, decode_attr};
pub use cpuif::{CpuIf, HcrBits, Vmcr, Vtr};
pub use flush::{Flushed, LinkedPpis};
pub use icc::{IccReg, InvalidIcc};
pub use irqset::IrqSet;
pub use its::{
    COMMAND_BYTES, Command, Host, ITS_FRAME_BYTES, Its, ItsWrite, NoSuchEvent, TableError,
    has_its_register,
};
pub use lpi::{FIRST_LPI, LpiConfig, MAX_LPIS, TooManyLpis};
pub use lr::{Lr, LrFile, LrState, MAX_LRS};
pub use mmio::{
    Access, Frame, REDIST_STRIDE, Refusal, has_register, known_early, needs_all_stopped,
    redist_frame,
};
pub use placement::{Misplaced, PlaceError, Placement};
pub use sgi::SgiRegister;
pub use vcpus::{Kicks, MAX_VCPUS, VcpuSet};
pub use vgic::{Affinity, Config, ConfigError, NoSuchIrq, Vgic};

/// First shared peripheral interrupt; below it are the 16 SGIs and 16 PPIs each vCPU has of its own.
pub const FIRST_SPI: u32 = 32;
/// One above the highest SPI: 1020 to 1023 are special INTIDs (IHI 0069, "INTIDs").
pub const SPI_END: u32 = 1020;
