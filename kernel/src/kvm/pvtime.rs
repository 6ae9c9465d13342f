//! Stolen time (DEN 0057, KVM_ARM_VCPU_PVTIME_CTRL): how long a vCPU could have run and did not, in a
//! structure of the guest's memory.
//!
//! The VMM says where the structure lies, the guest asks for it to begin, and from then on what the vCPU's
//! thread waited for a CPU is added whenever it got one again.

use umbra_arm64::Ipa;
use umbra_kvm_abi::device::KVM_ARM_VCPU_PVTIME_IPA;
use umbra_linux::Errno;

use super::device::Verb;
use super::vcpu::{State, Vcpu};
use super::vm::Vm;
use super::{read_struct, write_struct};
use crate::mm::Mm;
use crate::sched;

/// Bytes of the structure, and what it is aligned to.
const BYTES: u64 = 64;
/// Offset of the count: nanoseconds, after revision and attributes, which are zero.
const STOLEN: u64 = 8;
/// What reads as the address of a structure without a place.
const NOWHERE: u64 = u64::MAX;

/// A vCPU's structure.
#[derive(Clone, Copy, Debug)]
pub(super) struct StolenTime {
    at: Ipa,
    /// What the thread had waited when the count was last brought up to date.
    known: u64,
}

/// KVM_{SET,GET,HAS}_DEVICE_ATTR of the group. `ENXIO`: no such attribute; `EINVAL`: not aligned, or not in
/// a slot; `EEXIST`: it has a place; `EFAULT`.
pub(super) fn attr(vcpu: &Vcpu, mm: &Mm, verb: Verb, number: u64, addr: u64) -> Result<u64, Errno> {
    if number != KVM_ARM_VCPU_PVTIME_IPA {
        return Err(Errno::ENXIO);
    }
    match verb {
        Verb::Has => {}
        Verb::Get => {
            let at = vcpu.state.lock().stolen.map_or(NOWHERE, |s| s.at.raw());
            write_struct(mm, addr, &at)?;
        }
        Verb::Set => {
            let at = read_struct::<u64>(mm, addr)?;
            if !at.is_multiple_of(BYTES) {
                return Err(Errno::EINVAL);
            }
            let mut state = vcpu.state.lock();
            if state.stolen.is_some() {
                return Err(Errno::EEXIST);
            }
            let at = Ipa::new(at);
            vcpu.vm.memory.lock().slot_at(at).ok_or(Errno::EINVAL)?;
            state.stolen = Some(StolenTime { at, known: 0 });
        }
    }
    Ok(0)
}

/// The guest asks for it to begin: where it is.
pub(super) fn begin(vcpu: &Vcpu, state: &mut State) -> Option<Ipa> {
    let stolen = state.stolen.as_mut()?;
    stolen.known = sched::current().waited();
    // If the memory is gone the guest finds nothing there either.
    let _ = write(&vcpu.vm, stolen.at, &[0; BYTES as usize]);
    Some(stolen.at)
}

/// Before the guest is entered: what its thread waited since.
pub(super) fn update(vcpu: &Vcpu, state: &mut State) {
    let Some(stolen) = state.stolen.as_mut() else {
        return;
    };
    let waited = sched::current().waited();
    if waited == stolen.known {
        return;
    }
    let new = waited.wrapping_sub(stolen.known);
    let Some(at) = stolen.at.checked_add(STOLEN) else {
        return;
    };
    let mut count = [0; 8];
    if read(&vcpu.vm, at, &mut count).is_some() {
        let count = u64::from_le_bytes(count).wrapping_add(new);
        if write(&vcpu.vm, at, &count.to_le_bytes()).is_some() {
            stolen.known = waited;
        }
    }
}

fn read(vm: &Vm, at: Ipa, into: &mut [u8]) -> Option<()> {
    let slot = vm.memory.lock().slot_at(at)?;
    let hva = slot.hva_of(at)?;
    vm.mm.read_bytes(hva, into).ok()
}

fn write(vm: &Vm, at: Ipa, bytes: &[u8]) -> Option<()> {
    let slot = vm.memory.lock().slot_at(at)?;
    if slot.read_only {
        return None;
    }
    vm.mm.write_bytes(slot.hva_of(at)?, bytes).ok()?;
    vm.memory.lock().mark_dirty(at);
    Some(())
}
