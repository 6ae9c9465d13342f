//! The TLB that forgets nothing (`umbra_nested::shadow::Ghosts`), joined to the kernel: in builds with
//! checks every stage-2 translation that is made is noted, what is executed against it strikes it out,
//! and who takes something away asks at once whether a ghost is left. One is a panic that names it.
//!
//! It holds for the whole machine, since hardware's TLB does. In other builds nothing of it is there.

use core::sync::atomic::{AtomicU64, Ordering};

use umbra_arm64::{Ipa, Level, Pa, Rights};
use umbra_hw::sync::SpinLock;
use umbra_hw::tlb::Issued;
use umbra_nested::shadow::{Ghost, Ghosts};

static GHOSTS: SpinLock<Option<Ghosts>> = SpinLock::new("ghosts", 192, None);

/// What is being made valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    /// VTTBR_EL2 of the table it is in.
    pub(super) vttbr: u64,
    /// Address in that table's space, of a leaf of `level`.
    pub(super) addr: u64,
    pub(super) level: Level,
    pub(super) pa: Pa,
    pub(super) rights: Rights,
    /// The VM, by `events::vm_number`.
    pub(super) vm: u16,
    /// Where in the VM's own space it comes from.
    pub(super) source: Ipa,
}

impl Made {
    fn ghost(&self) -> Ghost {
        Ghost {
            vmid: vmid(self.vttbr),
            addr: self.addr,
            level: self.level,
            pa: self.pa,
            rights: self.rights,
            vm: self.vm,
            source: self.source,
            serial: 0,
        }
    }
}

fn vmid(vttbr: u64) -> u16 {
    (vttbr >> 48) as u16
}

/// Makes room, once. Called where no lock is held; without memory nothing is checked.
pub(super) fn prepare() {
    if cfg!(debug_assertions) && GHOSTS.lock().is_none() {
        let fresh = Ghosts::new().ok();
        let mut ghosts = GHOSTS.lock();
        if ghosts.is_none() {
            *ghosts = fresh;
        }
    }
}

#[inline(always)]
fn with(work: impl FnOnce(&mut Ghosts)) {
    /// How many pages of tables had been lost when somebody last looked.
    static LOST: AtomicU64 = AtomicU64::new(0);
    if cfg!(debug_assertions)
        && let Some(ghosts) = GHOSTS.lock().as_mut()
    {
        let lost = umbra_hw::lost::generation();
        if LOST.swap(lost, Ordering::Relaxed) != lost {
            // With each, every TLB forgot everything of guests.
            ghosts.struck_every();
        }
        work(ghosts);
    }
}

/// A translation was made where nothing was.
#[inline(always)]
pub(super) fn fresh(made: &Made) {
    with(|ghosts| ghosts.made(made.ghost()));
}

/// A translation was made in the place of another, whose invalidation is done.
#[inline(always)]
pub(super) fn replaced(made: &Made) {
    with(|ghosts| {
        let new = made.ghost();
        let wrong = |old: &Ghost| {
            let other = old.addr != new.addr || old.level != new.level || old.pa != new.pa;
            old.vmid == new.vmid
                && old.translates(new.addr, new.bytes())
                && (other || !new.rights.covers(old.rights))
        };
        exorcise(ghosts, "a translation was replaced", wrong);
        ghosts.made(new);
    });
}

/// An invalidation by address: from where, how far apart, how many, and for leaves of which level.
#[inline(always)]
pub(super) fn struck(issued: Option<Issued>, addr: u64, sweep: (u64, u64), level: Option<Level>) {
    if let Some(Issued { vmid }) = issued {
        with(|ghosts| ghosts.struck(vmid, addr, sweep, level));
    }
}

/// An invalidation of everything under a VMID.
#[inline(always)]
pub(super) fn struck_all(issued: Option<Issued>) {
    if let Some(Issued { vmid }) = issued {
        with(|ghosts| ghosts.struck_all(vmid));
    }
}

/// Nothing translates the range of the table any more.
#[inline(always)]
pub(super) fn unmapped(vttbr: u64, addr: u64, bytes: u64) {
    with(|ghosts| {
        let wrong = |old: &Ghost| old.vmid == vmid(vttbr) && old.translates(addr, bytes);
        exorcise(ghosts, "a range was unmapped", wrong);
    });
}

/// Nothing of the VM's range is in use any more, in whatever table.
#[inline(always)]
pub(super) fn taken_back(vm: u16, from: Ipa, bytes: u64) {
    with(|ghosts| {
        let wrong = |old: &Ghost| old.vm == vm && old.comes_from(from, bytes);
        exorcise(ghosts, "pages of a VM were taken back", wrong);
    });
}

/// Nothing writes the VM's range any more.
#[inline(always)]
pub(super) fn write_protected(vm: u16, from: Ipa, bytes: u64) {
    with(|ghosts| {
        let wrong = |old: &Ghost| old.vm == vm && old.rights.write && old.comes_from(from, bytes);
        exorcise(ghosts, "pages of a VM were write-protected", wrong);
    });
}

/// The VM, or a table of its, goes: its VMID is about to be another's.
#[inline(always)]
pub(super) fn gone(vttbr: u64) {
    with(|ghosts| {
        exorcise(ghosts, "a VMID was given back", |old| {
            old.vmid == vmid(vttbr)
        });
    });
}

fn exorcise(ghosts: &Ghosts, what: &str, wrong: impl Fn(&Ghost) -> bool) {
    if let Some(ghost) = ghosts.find(wrong) {
        panic!("ghost TLB: {what}, and no invalidation covered {ghost:?}");
    }
}
