//! The state of one interrupt: IHI 0069, "Interrupt handling state machine", less what a list register knows.
//!
//! ```text
//!             pending (line, or latch)                 flush                      guest: IAR, EOIR/DIR
//!   Inactive ──────────────────────────► candidate ──────────► resident on one vCPU ──────┐
//!      ▲                                     ▲                                            │ sync
//!      └──────── nothing left ───────────────┴── still pending, or active ◄───────────────┘
//! ```

use crate::lr::{Lr, LrState};
use crate::vcpus::VcpuNumber;
use crate::vgic::Affinity;

/// One SGI, PPI or SPI. vCPU numbers fit 16 bits: there are at most [`crate::MAX_VCPUS`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Irq {
    /// The wire is high. Kept for edge interrupts too: ICFGR may change.
    pub(crate) line: bool,
    /// An edge, an SGI or a write to ISPENDR, not yet acknowledged and not `handed`.
    pub(crate) latch: bool,
    /// The latch went into the list register; `sync` brings it back unless it was acknowledged or ICPENDR cleared it.
    pub(crate) handed: bool,
    pub(crate) active: bool,
    pub(crate) enabled: bool,
    /// Edge-triggered rather than level-sensitive.
    pub(crate) edge: bool,
    pub(crate) group1: bool,
    /// Report deactivation through `take_eois`.
    pub(crate) notify_eoi: bool,
    /// Another vCPU deactivated it (ICC_DIR_EL1) while a list register had it: it ends when that is taken back.
    pub(crate) end_asked: bool,
    pub(crate) priority: u8,
    /// The vCPU whose list registers hold this interrupt.
    pub(crate) resident: Option<VcpuNumber>,
    /// The vCPU that acknowledged it, while active. `None` while active: made active by a register write.
    pub(crate) home: Option<VcpuNumber>,
    /// The vCPU it is routed to; `None` for an SPI whose affinity no vCPU has.
    pub(crate) target: Option<VcpuNumber>,
    /// The vCPU whose candidate set it is in.
    pub(crate) candidate_of: Option<VcpuNumber>,
    /// `GICD_IROUTER<n>` of an SPI.
    pub(crate) route: Affinity,
    /// Physical INTID that the guest's deactivation deactivates.
    pub(crate) link: Option<u16>,
}

impl Irq {
    /// Pending as far as is known without asking a list register.
    pub(crate) const fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }

    /// The vCPU whose business this interrupt is now (invariant 3 of the crate). One that a register write made active and that is
    /// routed to no one is the first vCPU's, so that there is someone to end it.
    pub(crate) fn owner(&self) -> Option<VcpuNumber> {
        if self.active {
            self.home.or(self.target).or(Some(0))
        } else if self.pending() && self.enabled {
            self.target
        } else {
            None
        }
    }

    /// Moves the interrupt into a list register of `vcpu`. `signalled` says its group is enabled in GICD_CTLR; `pend_active`
    /// permits the state "pending and active".
    ///
    /// An active level interrupt never carries its pending bit: the line may drop before the deactivation. Where pending is
    /// withheld, or the line would be sampled again, the register asks for a maintenance interrupt on deactivation.
    pub(crate) fn load(
        &mut self,
        intid: u32,
        vcpu: VcpuNumber,
        signalled: bool,
        pend_active: bool,
    ) -> Lr {
        let waiting = signalled && self.pending() && self.enabled;
        let pending =
            waiting && self.target == Some(vcpu) && (!self.active || (self.edge && pend_active));
        // Also when it is routed elsewhere by now: it goes there once it is not active here.
        let again = waiting && (!pending || (self.line && !self.edge));
        let lr = Lr::new()
            .with_vintid(intid)
            .with_priority(self.priority)
            .with_group1(self.group1)
            .with_state(LrState::new(pending, self.active));
        self.resident = Some(vcpu);
        self.end_asked = false;
        if pending {
            self.handed = self.latch;
            self.latch = false;
        }
        if self.active {
            self.home = Some(vcpu);
        }
        match self.link {
            // A software latch has no physical interrupt behind it, so only the line or an activation takes the HW path. The
            // physical line is sampled again by hardware: no maintenance interrupt is needed.
            Some(pintid) if !self.handed && !self.latch && (self.line || self.active) => {
                lr.with_hw(true).with_pintid(pintid)
            }
            _ if again || self.notify_eoi => lr.with_eoi(),
            _ => lr,
        }
    }

    /// Folds the list register back after `vcpu` ran. Returns whether the interrupt was deactivated meanwhile.
    pub(crate) fn unload(&mut self, state: LrState, vcpu: VcpuNumber) -> bool {
        self.latch |= self.handed && state.is_pending();
        self.handed = false;
        self.resident = None;
        self.active = state.is_active();
        self.home = self.active.then_some(vcpu);
        // A register is never loaded without a state, so none left means acknowledged and deactivated.
        state == LrState::Invalid
    }

    /// ISPENDR, an edge or an SGI. Returns whether anything changed.
    pub(crate) fn set_latch(&mut self) -> bool {
        !core::mem::replace(&mut self.latch, true)
    }

    /// ICPENDR. Returns whether anything changed.
    pub(crate) fn clear_latch(&mut self) -> bool {
        let changed = self.latch || self.handed;
        self.latch = false;
        self.handed = false;
        changed
    }
}
