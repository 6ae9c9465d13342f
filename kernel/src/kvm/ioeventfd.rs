//! KVM_IOEVENTFD: a guest's write that signals an event descriptor instead of leaving to the VMM.

use alloc::sync::Arc;
use alloc::vec::Vec;

use umbra_hw::sync::SpinLock;
use umbra_kvm_abi::irq::IoEventFd;
use umbra_linux::Errno;

use super::vm::abi;
use crate::file::Call;
use crate::files::EventFd;

const DEASSIGN: u32 = 1 << 2;

/// Addresses that a VM may have. Linux leaves that to what the process may have of the kernel's memory.
const MOST: usize = 4096;

struct IoEvent {
    wanted: IoEventFd,
    event: Arc<EventFd>,
}

/// The ioeventfds of a VM.
pub(super) struct IoEvents {
    events: SpinLock<Vec<IoEvent>>,
}

impl IoEvents {
    pub(super) fn new() -> Self {
        Self {
            events: SpinLock::new("ioeventfds", 102, Vec::new()),
        }
    }

    /// KVM_IOEVENTFD. `EINVAL`; `EBADF`; `EEXIST`: a write would signal two; `ENOENT`: it is not there to be taken
    /// back; `ENOMEM`: too many.
    pub(super) fn configure(&self, call: &Call<'_>, wanted: &IoEventFd) -> Result<(), Errno> {
        let is_new = wanted.flags & DEASSIGN == 0;
        if is_new {
            abi(wanted.check())?;
        }
        let fd = u32::try_from(wanted.fd).map_err(|_| Errno::EBADF)?;
        let file: Arc<dyn core::any::Any + Send + Sync> = call.process.file(fd)?;
        let event = file.downcast::<EventFd>().map_err(|_| Errno::EINVAL)?;
        let mut events = self.events.lock();
        if !is_new {
            let at = events
                .iter()
                .position(|other| other.wanted.is(wanted) && Arc::ptr_eq(&other.event, &event))
                .ok_or(Errno::ENOENT)?;
            events.remove(at);
            return Ok(());
        }
        if events.iter().any(|other| other.wanted.collides(wanted)) {
            return Err(Errno::EEXIST);
        }
        if events.len() >= MOST {
            return Err(Errno::ENOMEM);
        }
        events.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        events.push(IoEvent {
            wanted: *wanted,
            event,
        });
        Ok(())
    }

    /// Whether a guest's write is one, and then signals it.
    pub(super) fn signal(&self, address: u64, len: u32, value: u64) -> bool {
        let event = {
            let events = self.events.lock();
            let found = events
                .iter()
                .find(|event| event.wanted.matches(address, len, value));
            match found {
                Some(found) => found.event.clone(),
                None => return false,
            }
        };
        event.signal(1);
        true
    }
}
