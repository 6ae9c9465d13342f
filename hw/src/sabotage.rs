//! Safeguards that a build for testing can leave out, one at a time, so that the checks which should
//! notice are checked themselves (`cargo xtask test sabotage`, `kernel/sabotage.txt`).
//!
//! Only a build with the feature `sabotage` can; in every other one [`left_out`] is the constant
//! `false` and costs nothing. Barriers, instruction-cache maintenance and break-before-make are not
//! among them: QEMU's TCG has no store buffer, no separate instruction cache and no TLB conflicts,
//! so no test on it could notice. Neither could one notice that maintenance is missing when a CPU
//! changes from one vCPU to another: VTTBR_EL2 changes too, and then TCG forgets the guest's part.

use core::sync::atomic::{AtomicU32, Ordering};

macro_rules! safeguards {
    ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => {
        /// A safeguard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Safeguard {
            $($(#[$doc])* $name,)*
        }

        const ALL: &[(&str, Safeguard)] = &[$(($id, Safeguard::$name),)*];
    };
}

safeguards! {
    /// Asking whether the heap's reserve is whole before a call is let in.
    Reserve = "reserve",
    /// Giving back the place of a stack that could not be mapped.
    StackSlot = "stack-slot",
    /// TLB maintenance after stage-2 entries of a range changed.
    Stage2Range = "stage2-range",
    /// TLB maintenance after much of a stage 2 changed.
    Stage2All = "stage2-all",
    /// TLB maintenance after a process's mappings changed.
    ProcessPages = "process-pages",
    /// Taking the right to write from what is logged as clean.
    DirtyProtect = "dirty-protect",
    /// Taking it from the shadows that map them.
    ShadowProtect = "shadow-protect",
    /// TLB maintenance after a right to write was taken from a VM's pages.
    TightenTlbi = "tighten-tlbi",
    /// TLB maintenance after entries of a shadow changed.
    ShadowTlbi = "shadow-tlbi",
    /// Doing that under the shadow's own VMID.
    ShadowVmid = "shadow-vmid",
    /// Finding the shadow entries of pages that are taken back.
    ShadowReverse = "shadow-reverse",
    /// Forgetting which slot was found last when slots change.
    SlotFound = "slot-found",
    /// Telling VMs that their VMM's mappings change.
    Notify = "notify",
    /// Saving FP registers before somebody else's are loaded.
    FpSave = "fp-save",
    /// Taking SP_EL0 and the thread pointers back from a guest.
    El0Registers = "el0-registers",
    /// Saving a vCPU's EL1 registers before another's are loaded.
    El1Registers = "el1-registers",
    /// Sanitising the PSTATE that a VMM gives a guest.
    Pstate = "pstate",
    /// Clearing memory before it is handed out.
    Clear = "clear",
    /// Giving the frames of a vCPU's run page back.
    RunPage = "run-page",
    /// Trapping debug registers and performance counters.
    DebugTraps = "debug-traps",
    /// Switching a guest's debugging off when it leaves.
    DebugOff = "debug-off",
    /// Taking list registers back when a vCPU's registers are put away.
    VgicSync = "vgic-sync",
    /// Interrupting a CPU whose vCPU has something to look at.
    Kick = "kick",
    /// The timers' deadline while a vCPU waits.
    WaitDeadline = "wait-deadline",
    /// Watching the timer of a counter that is ahead of the machine's.
    CounterAhead = "counter-ahead",
    /// Trapping the physical timer and counter of a guest whose counter is not the machine's.
    CounterTraps = "counter-traps",
    /// Sign extension of what a load from a device gives.
    SignExtension = "sign-extension",
    /// Trapping what a guest hypervisor asks to have trapped of its guest by fine-grained controls.
    NestedTraps = "nested-traps",
    /// Deactivating a guest hypervisor's interrupt when its guest ends the one that is linked to it.
    NestedDeactivation = "nested-deactivation",
    /// The line of a guest hypervisor's maintenance interrupt.
    NestedMaintenance = "nested-maintenance",
    /// Walking a guest hypervisor's stage 2 before anything is mapped for its guest.
    NestedWalk = "nested-walk",
    /// Giving the guest hypervisor the faults of its own stage 2.
    NestedReflect = "nested-reflect",
    /// Keeping to the rights that a guest hypervisor gives.
    NestedRights = "nested-rights",
    /// Telling a fault in a guest's guest's space from one in the VM's own.
    NestedSpace = "nested-space",
    /// Mapping in a shadow at the address that faulted.
    NestedAddress = "nested-address",
    /// Blocks in a shadow only where the guest hypervisor's own are as big.
    NestedBlock = "nested-block",
    /// Refusing outputs beyond what VTCR_EL2.PS says.
    NestedOutput = "nested-output",
    /// Faulting where the access flag is clear and nobody asked for its management.
    NestedAccessFlag = "nested-access-flag",
    /// Setting the flags that VTCR_EL2.HA and HD ask for.
    NestedFlagUpdate = "nested-flag-update",
    /// Telling the fault status of the walk, not that of the shadow.
    NestedStatus = "nested-status",
    /// Telling the address that faulted in HPFAR_EL2.
    NestedHpfar = "nested-hpfar",
    /// Authenticating the address that ERETAA and ERETAB of virtual EL2 return to.
    NestedAuthentication = "nested-authentication",
    /// Aligning the address that a block is mapped at.
    MappingAlign = "mapping-align",
    /// Blocks only within a slot, and only where its addresses are congruent.
    MappingSlot = "mapping-slot",
    /// Taking the right to write from what read-only slots map.
    ReadOnlySlot = "read-only-slot",
    /// The offset in its page of an address that a device is accessed at.
    MmioOffset = "mmio-offset",
    /// Refusing slots beyond the VM's address space.
    SlotBeyond = "slot-beyond",
    /// Hiding what a guest does not have from its ID registers.
    IdRegisters = "id-registers",
    /// Telling the VMM of a guest's memory error, if it asked for that.
    SeaExit = "sea-exit",
    /// Reporting a memory error in the VM's own space when its guest's guest met it.
    SeaSpace = "sea-space",
    /// Injecting the abort that was told, of its own kind.
    SeaKind = "sea-kind",
    /// Giving external aborts of its guest to the guest hypervisor that asked for them.
    SeaRoute = "sea-route",
    /// Taking a bad page from the VMs that map it.
    PoisonStage2 = "poison-stage2",
    /// Keeping bad frames out of use.
    PoisonRetire = "poison-retire",
    /// Telling whoever asked for it of memory errors that somebody else found.
    EarlyWord = "early-word",
    /// Asking firmware about a memory error before anybody else is told of it.
    FirmwareFirst = "firmware-first",
    /// Telling firmware that its error record was read.
    FirmwareAcknowledge = "firmware-acknowledge",
    /// Checking umbra's own tables after an external abort on a walk.
    TableHeal = "table-heal",
}

/// Number + 1 of the safeguard that is left out.
static SELECTED: AtomicU32 = AtomicU32::new(0);

/// Leaves out the safeguard of this name from now on. False if this build cannot, or knows none such.
pub fn select(id: &str) -> bool {
    let found = ALL.iter().find(|(name, _)| *name == id);
    match found {
        Some((_, safeguard)) if cfg!(feature = "sabotage") => {
            SELECTED.store(*safeguard as u32 + 1, Ordering::Relaxed);
            true
        }
        _ => false,
    }
}

/// Whether this safeguard is left out.
#[inline]
pub fn left_out(safeguard: Safeguard) -> bool {
    cfg!(feature = "sabotage") && SELECTED.load(Ordering::Relaxed) == safeguard as u32 + 1
}
