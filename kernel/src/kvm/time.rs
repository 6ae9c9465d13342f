//! What the timers of a VM's vCPUs have in common: how far its counters lie behind the machine's, and which
//! private interrupts the timers raise (KVM_ARM_SET_COUNTER_OFFSET, KVM_REG_ARM_{,P}TIMER_CNT,
//! KVM_ARM_VCPU_TIMER_CTRL).
//!
//! A vCPU takes a new offset over when it is loaded next, so who changes one kicks them all. The interrupts
//! are settled by the first vCPU that runs and change no more.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_hw::sync::SpinLock;
use umbra_hw::timer::{HYP_TIMER_PPI, HYP_VIRT_TIMER_PPI, PHYS_TIMER_PPI, VIRT_TIMER_PPI};
use umbra_kvm_abi::vcpu::CounterOffset;
use umbra_linux::Errno;

use super::vcpu::request;
use super::vm::Vm;

/// The interrupts of a vCPU's timers, 16 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ppis {
    /// EL1's virtual timer.
    pub(super) virt: u32,
    /// EL1's physical timer.
    pub(super) phys: u32,
    /// EL2's virtual timer.
    pub(super) hyp_virt: u32,
    /// EL2's physical timer.
    pub(super) hyp: u32,
}

impl Default for Ppis {
    /// The machine's numbers, which are also the usual ones.
    fn default() -> Self {
        Self {
            virt: VIRT_TIMER_PPI,
            phys: PHYS_TIMER_PPI,
            hyp_virt: HYP_VIRT_TIMER_PPI,
            hyp: HYP_TIMER_PPI,
        }
    }
}

impl Ppis {
    /// Whether the timers that a vCPU has, of EL2 too if it is `nested`, and `others` have an interrupt each.
    fn are_distinct(&self, nested: bool, others: &[Option<u32>]) -> bool {
        let el2 = nested.then_some([self.hyp_virt, self.hyp]);
        let timers = [self.virt, self.phys].into_iter();
        let mut seen = 0u32;
        timers
            .chain(el2.into_iter().flatten())
            .chain(others.iter().flatten().copied().filter(|&irq| irq < 32))
            .all(|ppi| {
                let bit = 1 << ppi;
                let is_new = seen & bit == 0;
                seen |= bit;
                is_new
            })
    }
}

/// The time of a VM.
pub(super) struct VmTime {
    virt: AtomicU64,
    phys: AtomicU64,
    /// KVM_ARM_SET_COUNTER_OFFSET was called: single counters are not set any more.
    is_set: AtomicBool,
    ppis: SpinLock<(Ppis, bool)>,
}

impl VmTime {
    pub(super) fn new() -> Self {
        Self {
            // The virtual counter starts at zero, as on Linux.
            virt: AtomicU64::new(umbra_hw::timer::ticks()),
            phys: AtomicU64::new(0),
            is_set: AtomicBool::new(false),
            ppis: SpinLock::new("vm timers", 111, (Ppis::default(), false)),
        }
    }

    /// CNTVOFF_EL2 of every vCPU, in ticks.
    pub(super) fn virt(&self) -> u64 {
        self.virt.load(Ordering::Acquire)
    }

    /// How far the physical counter lies behind the machine's, in ticks.
    pub(super) fn phys(&self) -> u64 {
        self.phys.load(Ordering::Acquire)
    }

    /// Whether a VMM chose both offsets.
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// The timers' interrupts.
    pub(super) fn ppis(&self) -> Ppis {
        self.ppis.lock().0
    }

    /// Changes one of the interrupts. `EBUSY`: a vCPU has run.
    pub(super) fn set_ppi<R>(&self, change: impl FnOnce(&mut Ppis) -> R) -> Result<R, Errno> {
        let mut ppis = self.ppis.lock();
        if ppis.1 {
            return Err(Errno::EBUSY);
        }
        Ok(change(&mut ppis.0))
    }

    /// A vCPU runs for the first time: the interrupts are settled. `EINVAL`: two are the same, or one is
    /// among the `others` that this vCPU has.
    pub(super) fn settle(&self, nested: bool, others: &[Option<u32>]) -> Result<Ppis, Errno> {
        let mut ppis = self.ppis.lock();
        if !ppis.0.are_distinct(nested, others) {
            return Err(Errno::EINVAL);
        }
        ppis.1 = true;
        Ok(ppis.0)
    }
}

/// A VMM sets one counter of a guest. It is for all vCPUs, and for nothing once both were set together.
pub(super) fn set_counter(vm: &Vm, is_virtual: bool, count: u64) {
    let time = &vm.time;
    if time.is_set() || !is_virtual && vm.is_nested() {
        return;
    }
    let offset = umbra_hw::timer::ticks().wrapping_sub(count);
    let which = if is_virtual { &time.virt } else { &time.phys };
    which.store(offset, Ordering::Release);
    // One that runs leaves the guest and is loaded again.
    for vcpu in vm.all_vcpus() {
        vcpu.kick(request::GIC);
    }
}

/// KVM_ARM_SET_COUNTER_OFFSET. `EINVAL`: something in the reserved word, or a VM whose vCPUs have a virtual
/// EL2 (docs/abi.md); `EBUSY`: a vCPU is in use.
pub(super) fn set_offset(vm: &Vm, offset: &CounterOffset) -> Result<u64, Errno> {
    if offset.reserved != 0 || vm.is_nested() {
        return Err(Errno::EINVAL);
    }
    super::device::with_all_stopped(vm, || {
        vm.time.is_set.store(true, Ordering::Release);
        vm.time.virt.store(offset.counter_offset, Ordering::Release);
        vm.time.phys.store(offset.counter_offset, Ordering::Release);
        Ok(0)
    })
}
