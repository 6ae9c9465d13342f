//! What the machine side keeps for each CPU, found through TPIDR_EL2.

use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::boot::HCR_HOST;
use crate::regs::{mrs, msr};
use crate::thread::Switch;
use crate::traps::Standing;

/// CPUs that umbra can bring up.
pub const MAX_CPUS: usize = 16;

/// The thread that is left and the one that goes on.
pub(crate) type Switching = (Arc<dyn Switch>, Arc<dyn Switch>);

/// The machine state of one CPU that is cached because reading it back costs more.
#[repr(C)]
pub(crate) struct PerCpu {
    /// Stack pointer for `secondary_entry`; must stay first.
    pub(crate) boot_sp: AtomicU64,
    pub(crate) index: AtomicU32,
    /// HCR_EL2 as it stands in the register.
    pub(crate) hcr: Cell<u64>,
    /// VBAR_EL2 as it stands.
    pub(crate) vbar: Cell<u64>,
    /// VTTBR_EL2 as it stands.
    pub(crate) vttbr: Cell<u64>,
    /// How often a vCPU's registers were taken back from here.
    pub(crate) saves: Cell<u64>,
    /// TTBR0_EL2 as it stands.
    pub(crate) ttbr0: Cell<u64>,
    /// Whose FP registers are loaded: 0 nobody's, else the address of an `FpState`.
    pub(crate) fp_owner: Cell<usize>,
    /// CPACR/CPTR as it stands: whether EL0 traps FP.
    pub(crate) fp_trap: Cell<bool>,
    /// What of a guest traps, as it stands in the registers.
    pub(crate) traps: Standing,
    /// Redistributor base of this CPU.
    pub(crate) gicr: Cell<usize>,
    /// The table page of this CPU's mapping window, once it was used.
    pub(crate) window_table: Cell<*const [AtomicU64; 512]>,
    /// Whether the mapping window is in use.
    pub(crate) window_busy: Cell<bool>,
    /// The two threads of a switch under way.
    pub(crate) switching: Cell<Option<Switching>>,
}

// SAFETY: the `Cell`s are only reached through `this()`, that is by the CPU they belong to, which
// runs umbra with interrupts masked; the other fields are atomics.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const fn new() -> Self {
        Self {
            boot_sp: AtomicU64::new(0),
            index: AtomicU32::new(0),
            hcr: Cell::new(HCR_HOST),
            vbar: Cell::new(0),
            vttbr: Cell::new(0),
            saves: Cell::new(0),
            ttbr0: Cell::new(0),
            fp_owner: Cell::new(0),
            fp_trap: Cell::new(false),
            traps: Standing::unknown(),
            gicr: Cell::new(0),
            window_table: Cell::new(core::ptr::null()),
            window_busy: Cell::new(false),
            switching: Cell::new(None),
        }
    }
}

static PER_CPU: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

/// The slot of CPU `index`, for handing it its boot stack.
pub(crate) fn slot(index: usize) -> &'static PerCpu {
    &PER_CPU[index]
}

/// This CPU's slot.
pub(crate) fn this() -> &'static PerCpu {
    let slot = mrs!("tpidr_el2") as *const PerCpu;
    // SAFETY: `install` stored the address of a `PerCpu` static before anything else ran here.
    unsafe { &*slot }
}

/// Makes `index` this CPU's number. Called once per CPU, first of all.
pub(crate) fn install(index: usize) {
    let slot = slot(index);
    slot.index.store(index as u32, Ordering::Relaxed);
    // SAFETY: TPIDR_EL2 is umbra's alone.
    unsafe { msr!("tpidr_el2", core::ptr::from_ref(slot) as u64) };
}

/// This CPU's affinity (MPIDR_EL1, Aff3 to Aff0), as device trees and PSCI name CPUs.
pub fn affinity() -> u64 {
    crate::regs::mrs!("mpidr_el1") & 0xff_00ff_ffff
}

/// This CPU's number, from 0.
pub fn cpu() -> usize {
    this().index.load(Ordering::Relaxed) as usize
}
