//! A guest's stage-2 fault: what lies there decides (`umbra_abort::resolve_canonical`).

use alloc::sync::Arc;

use umbra_abort::{
    Action, Capabilities, DeviceAccess, Poison, Slot as Lies, Stage2Fault, resolve_canonical,
};
use umbra_arm64::{Esr, Hva, Ipa, Pa};
use umbra_kvm_abi::exit::Exit as VmmExit;
use umbra_linux::Errno;
use umbra_linux::vma::Prot;
use umbra_trace::Resolution;

use super::memory::{NotMapped, Wanted};
use super::run::Next;
use super::slots::Slot;
use super::vcpu::{State, Vcpu};
use super::{events, exit, inject, mmio, sea};
use crate::mm::MmFault;

/// A broken page: where in the VMM, its frame, and how far the news had spread.
pub(super) type Bad = (Hva, Pa, Poison);

/// A fault on the canonical stage 2.
pub(super) fn stage2(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: Stage2Fault<Ipa>,
) -> Next {
    let vm = &vcpu.vm;
    let ipa = match fault.address {
        Some(ipa) => ipa,
        // Hardware does not vouch for an address: the guest's own translation gives the page. Where
        // it fails, the guest changed its tables meanwhile: let the access happen again.
        None => match umbra_hw::guest::translate_stage1(fault.gva.raw(), state.hcr) {
            Some(page) => match fault.at_page(page).address {
                Some(ipa) => ipa,
                None => return Next::Guest,
            },
            None => return Next::Guest,
        },
    };
    state.last_far = fault.gva.raw();
    let slot = vm.memory.lock().slot_at(ipa);
    let lies = lies(vcpu, ipa, slot);
    let capabilities = Capabilities {
        nisv_to_user: vm.options.lock().nisv_to_user,
    };
    let action = resolve_canonical(&fault, ipa, lies, capabilities);
    let told = |state: &State, what| events::resolved(vcpu, state, None, Some(ipa), what);
    match action {
        Action::Map { write, exec, .. } => match slot {
            Some(slot) => {
                let kind = fault.kind;
                match map(vcpu, ipa, slot, Wanted { write, exec, kind }) {
                    Ok(next) => next,
                    Err(bad) => poisoned(vcpu, state, esr, &fault, ipa, bad),
                }
            }
            None => Next::Guest,
        },
        Action::MakeYoung => {
            told(state, Resolution::Young);
            vm.memory.lock().make_young(ipa);
            Next::Guest
        }
        Action::InjectSea {
            instruction,
            on_walk,
        } => {
            told(state, Resolution::ExternalAbort);
            let level = on_walk
                .then(|| inject::stage1_level(vcpu, state, fault.gva, ipa))
                .flatten();
            inject::external_abort(vcpu, state, instruction, fault.gva, level);
            Next::Guest
        }
        Action::InjectAddressSize { instruction } => {
            told(state, Resolution::AddressSize);
            inject::address_size(vcpu, state, instruction, fault.gva);
            Next::Guest
        }
        Action::Mmio { ipa, access, write } => mmio::access(vcpu, state, ipa, access, write),
        Action::NisvExit { ipa } => {
            told(state, Resolution::Nisv);
            Next::Vmm(VmmExit::ArmNisv {
                esr_iss: fault_iss(&fault),
                fault_ipa: ipa.raw(),
            })
        }
        Action::SkipCacheOp => {
            told(state, Resolution::CacheOpSkipped);
            exit::skip(state);
            Next::Guest
        }
        Action::MemoryFault { ipa } => {
            told(state, Resolution::MemoryFault);
            memory_fault(ipa)
        }
        // The page was not known to be bad when the slot was looked up: it is found out by mapping it.
        Action::ConsumePoison { .. } => Next::Guest,
        Action::OwnTablesBroken => {
            told(state, Resolution::OwnTables);
            log::error!("stage 2 of a VM names an output beyond the machine at {ipa}");
            vm.memory.lock().drop_leaf(ipa);
            Next::Guest
        }
    }
}

/// Whether neither memory lies there nor what no VM has.
pub(super) fn is_device(vcpu: &Vcpu, ipa: Ipa) -> bool {
    let vm = &vcpu.vm;
    let beyond = ipa.raw() >> vm.machine.pa_bits != 0 || ipa.raw() >> vm.ipa_bits != 0;
    !beyond && !vm.memory.lock().is_memory(ipa)
}

/// A described access to a device.
pub(super) fn device(vcpu: &Arc<Vcpu>, state: &mut State, far: u64, device: DeviceAccess) -> Next {
    state.last_far = far;
    let DeviceAccess { ipa, access, write } = device;
    mmio::access(vcpu, state, ipa, access, write)
}

/// The page behind `ipa` is broken: the same table again, which now knows.
fn poisoned(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: &Stage2Fault<Ipa>,
    ipa: Ipa,
    bad: Bad,
) -> Next {
    match resolve_canonical(fault, ipa, Lies::Poisoned, Capabilities::default()) {
        Action::ConsumePoison { .. } => {
            let place = sea::Place {
                ipa: Some(ipa),
                below: None,
            };
            sea::consumed(vcpu, state, esr, fault, bad, place)
        }
        _ => Next::Guest,
    }
}

/// WnR, the one bit of an undescribed access's syndrome that is worth telling besides the status.
fn fault_iss(fault: &Stage2Fault<Ipa>) -> u64 {
    u64::from(fault.write) << 6 | u64::from(fault.cache_op) << 8
}

pub(super) fn lies(vcpu: &Vcpu, ipa: Ipa, slot: Option<Slot>) -> Lies {
    let vm = &vcpu.vm;
    if ipa.raw() >> vm.machine.pa_bits != 0 {
        return Lies::BeyondMachine;
    }
    if ipa.raw() >> vm.ipa_bits != 0 {
        return Lies::BeyondVm;
    }
    match slot {
        None => Lies::None,
        Some(slot) if slot.read_only => Lies::ReadOnly,
        Some(_) => Lies::Ram { writable: true },
    }
}

pub(super) fn memory_fault(ipa: Ipa) -> Next {
    Next::Vmm(VmmExit::MemoryFault {
        flags: 0,
        gpa: ipa.align_down(4096).raw(),
        size: 4096,
    })
}

/// Brings the VMM's page in and maps it for the guest.
fn map(vcpu: &Arc<Vcpu>, ipa: Ipa, slot: Slot, wanted: Wanted) -> Result<Next, Bad> {
    let vm = &vcpu.vm;
    let Some(hva) = slot.hva_of(ipa) else {
        return Ok(Next::Guest);
    };
    let access = if wanted.write { Prot::RW } else { Prot::READ };
    let mapped = vm.mm.with_page_and_others(hva, access, |view, present| {
        let mut memory = vm.memory.lock();
        let mapped = memory.map(ipa, &slot, &view, wanted, present);
        let how = events::how(wanted.kind, wanted.write, wanted.exec, false);
        events::mapped(vcpu, &mut memory, ipa, how);
        mapped
    });
    Ok(match mapped {
        Err(MmFault::Poisoned(frame, poison)) => return Err((hva.align_down(4096), frame, poison)),
        Ok(Ok(()) | Err(NotMapped::Retry)) => Next::Guest,
        Ok(Err(NotMapped::NoMemory)) | Err(MmFault::NoMemory) => Next::Fail(Errno::ENOMEM),
        // Linux answers EFAULT where the VMM's mapping does not allow it, and tells where.
        Err(MmFault::NotMapped | MmFault::NotAllowed | MmFault::BeyondFile) => memory_fault(ipa),
    })
}
