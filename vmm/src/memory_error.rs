//! What this VMM does about a memory error that its guest met (`--on-memory-error`).
//!
//! ```text
//!   KVM_EXIT_ARM_SEA ───────────┐                    ┌─ inject    abort in the guest; the page is retired
//!   SIGBUS in KVM_RUN (AR) ─────┤► one JSON line ───►├─ replace   abort in the guest; a fresh page of zeros
//!   SIGBUS elsewhere (AO) ──────┘   (that is all)    ├─ stop      the VM ends
//!                                                    └─ report    an SError, as if nobody had asked
//! ```
//!
//! What always holds: the event is told before anything is done about it, and the loss is named. A
//! guest without firmware tables frees the bad page, and whoever gets it next meets the error again:
//! with `inject` that goes on, with `replace` the page works again, empty.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::Result;
use crate::json::Line;
use crate::kvm::{self, BusError, Sea, Vcpu};
use crate::layout::Memory;
use crate::options::OnMemoryError;
use crate::stop::Stop;

/// The policy, and the memory that it is about.
#[derive(Clone)]
pub struct Policy {
    /// What to do.
    pub action: OnMemoryError,
    /// Guest RAM.
    pub memory: Memory,
}

impl Policy {
    /// The guest met an error, and KVM says where.
    pub fn sea(&self, vcpu: &Vcpu, sea: &Sea) -> Result<Option<Stop>> {
        let line = Line::new("memory-error")
            .text("by", "exit")
            .number("vcpu", vcpu.id.into())
            .address("esr", sea.esr)
            .address("gva", sea.gva)
            .address("gpa", sea.gpa)
            .address("l2_ipa", sea.l2_ipa);
        self.act(vcpu, line, sea.gpa)
    }

    /// A bus error of this thread: of the guest's access if an action is required.
    pub fn bus_error(&self, vcpu: &Vcpu, error: &BusError) -> Result<Option<Stop>> {
        let gpa = self.gpa_of(error.addr);
        let line = Line::new("memory-error")
            .text("by", "signal")
            .number("vcpu", vcpu.id.into())
            .address("hva", error.addr)
            .address("gpa", gpa)
            .number("lsb", u64::try_from(error.lsb).unwrap_or(0));
        if error.code != libc::BUS_MCEERR_AR {
            line.text("action", "none: nobody has met it yet").say();
            return Ok(None);
        }
        self.act(vcpu, line, gpa)
    }

    fn act(&self, vcpu: &Vcpu, line: Line, gpa: Option<u64>) -> Result<Option<Stop>> {
        let line = line.text("action", self.action.name());
        let page = gpa.and_then(|gpa| self.memory.get_host_address(GuestAddress(gpa)).ok());
        match self.action {
            OnMemoryError::Inject => {
                line.say();
                vcpu.inject_abort()?;
                // Where the kernel does not take it, the page stays what it is: the guest meets it again.
                if let Some(page) = page
                    && let Err(e) = kvm::retire_pages(page)
                {
                    log::info!("{e}");
                }
            }
            OnMemoryError::Replace => {
                vcpu.inject_abort()?;
                let lost = match page {
                    Some(page) => kvm::replace_pages(page)?,
                    None => 0,
                };
                line.number("lost_bytes", lost as u64).say();
            }
            OnMemoryError::Stop => {
                line.say();
                let at = gpa.map_or("no address told".into(), |gpa| format!("at {gpa:#x}"));
                return Ok(Some(Stop::Failed(format!(
                    "the guest met a memory error, {at}"
                ))));
            }
            OnMemoryError::Report => {
                line.say();
                vcpu.inject_serror()?;
            }
        }
        Ok(None)
    }

    /// Guest physical address of an address of this process.
    fn gpa_of(&self, hva: u64) -> Option<u64> {
        self.memory.iter().find_map(|region| {
            let offset = hva.checked_sub(region.as_ptr() as u64)?;
            (offset < region.len()).then(|| region.start_addr().0 + offset)
        })
    }
}
