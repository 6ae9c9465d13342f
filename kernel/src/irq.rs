//! Physical interrupts: taken by polling, at exits and in the idle loop.

use umbra_hw::gic::{self, IntId};
use umbra_hw::pmu::PMU_PPI;
use umbra_hw::timer::{HYP_TIMER_PPI, PHYS_TIMER_PPI, VIRT_TIMER_PPI};
use umbra_trace::Event;

use crate::trace::{self, Who};
use crate::{console, kvm, sched};

/// The GIC's maintenance interrupt.
const MAINTENANCE_PPI: u32 = 25;

/// Software-generated interrupts between umbra's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Sgi {
    /// Look at the run queue.
    Reschedule = 0,
    /// Just leave EL0 or the guest.
    Kick = 1,
    /// Put away the vCPU registers that are loaded.
    Put = 3,
    /// Stop for good: another CPU panicked.
    Stop = 2,
}

/// Interrupts another CPU.
pub(crate) fn send(cpu: usize, sgi: Sgi) {
    gic::send(cpu, sgi as u32);
}

/// Enables this CPU's interrupts.
pub(crate) fn init_cpu() {
    gic::init_cpu();
    for sgi in [Sgi::Reschedule, Sgi::Kick, Sgi::Put, Sgi::Stop] {
        gic::enable_private(sgi as u32, true);
    }
    gic::enable_private(MAINTENANCE_PPI, true);
    gic::enable_private(PMU_PPI, true);
    umbra_hw::timer::init_cpu();
}

/// Takes and handles every pending interrupt. Called with no lock held.
pub(crate) fn poll() {
    while let Some(id) = gic::acknowledge() {
        trace::record(Who::UMBRA, move || Event::Interrupt { irq: id.0 });
        match id {
            IntId(0) => sched::request_resched(umbra_hw::cpu()),
            IntId(1) => {}
            IntId(2) => umbra_hw::psci::stop(),
            IntId(3) => kvm::put_loaded(),
            // A guest's timer: the interrupt stays active until the guest deactivates it.
            IntId(VIRT_TIMER_PPI | PHYS_TIMER_PPI) => {
                kvm::fired();
                continue;
            }
            // A guest's counter overflowed: its exit has seen to it, and the line is low again.
            IntId(PMU_PPI) => {}
            // The GIC wants the list registers looked at: the vCPU that is loaded here does.
            IntId(MAINTENANCE_PPI) => kvm::maintenance(),
            IntId(HYP_TIMER_PPI) => {
                umbra_hw::timer::set_deadline(None);
                sched::expire();
            }
            id if Some(id) == console::interrupt() => console::input(),
            IntId(other) => log::warn!("interrupt {other} that nobody asked for"),
        }
        gic::deactivate(id);
    }
}

/// Before this CPU waits: no virtual interrupt may end the wait.
pub(crate) fn before_wait() {
    kvm::before_wait();
}
