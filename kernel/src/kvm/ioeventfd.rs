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

struct IoEvent {
    wanted: IoEventFd,
    event: Arc<EventFd>,
}

/// The ioeventfds of a VM.
pub(super) struct IoEvents {
    events: SpinLock<Vec<IoEvent>>,
}

fn same(a: &IoEventFd, b: &IoEventFd) -> bool {
    (a.addr, a.len, a.datamatch, a.flags & !DEASSIGN)
        == (b.addr, b.len, b.datamatch, b.flags & !DEASSIGN)
}

impl IoEvents {
    pub(super) fn new() -> Self {
        Self {
            events: SpinLock::new("ioeventfds", 102, Vec::new()),
        }
    }

    /// The ioctl.
    pub(super) fn configure(&self, call: &Call<'_>, wanted: &IoEventFd) -> Result<(), Errno> {
        abi(wanted.check())?;
        let fd = u32::try_from(wanted.fd).map_err(|_| Errno::EBADF)?;
        let file: Arc<dyn core::any::Any + Send + Sync> = call.process.file(fd)?;
        let event = file.downcast::<EventFd>().map_err(|_| Errno::EINVAL)?;
        let mut events = self.events.lock();
        let found = events.iter().position(|other| same(&other.wanted, wanted));
        if wanted.flags & DEASSIGN != 0 {
            let at = found
                .filter(|&at| Arc::ptr_eq(&events[at].event, &event))
                .ok_or(Errno::ENOENT)?;
            events.remove(at);
            return Ok(());
        }
        if found.is_some() {
            return Err(Errno::EEXIST);
        }
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
