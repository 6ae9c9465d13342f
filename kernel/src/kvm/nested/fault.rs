//! A stage-2 fault of what a guest hypervisor runs, on a shadow table.
//!
//! The guest hypervisor's own tables are walked first. What they do not allow is its to handle and
//! goes into virtual EL2; what they allow is mapped in the shadow, or is a device of the VM.

use alloc::sync::Arc;

use umbra_abort::{
    Action, Capabilities, Reflection, ShadowAction, SizeRequest, Slot as Lies, Stage2Fault, Wanted,
    mapping_size, reflect, resolve_shadow, shadow_rights,
};
use umbra_arm64::sysreg::Reg;
use umbra_arm64::{Esr, FaultKind, Granule, Hva, Ipa, L2Ipa, Level, Pa, Rights};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_kvm_abi::exit::Exit as VmmExit;
use umbra_linux::Errno;
use umbra_linux::vma::Prot;
use umbra_nested::shadow::{ContextId, Size};
use umbra_nested::stage2::{self, Access, Mapping, Neighbour, Stage2Config, around};
use umbra_nested::{Features, GuestMemory, MemoryError, Stop};
use umbra_stage2::Cursor;
use umbra_trace::{How, Resolution};

use super::super::memory::NotMapped;
use super::super::run::Next;
use super::super::slots::Slot;
use super::super::vcpu::{State, Vcpu};
use super::super::vm::Vm;
use super::super::{events, exit, fault, inject, mmio, sea};
use super::exception::{self, Exception};
use super::shadow::Fill;
use crate::mm::{Failed, MmFault, PageView, Present};

/// The VM's memory, as the walkers read it: through the VMM's mapping, fallibly.
pub(super) struct VmMemory<'a>(pub(super) &'a Vm);

impl VmMemory<'_> {
    fn place(&self, at: Ipa) -> Result<(Slot, umbra_arm64::Hva), MemoryError> {
        let slot = self
            .0
            .memory
            .lock()
            .slot_at(at)
            .ok_or(MemoryError::NotMapped)?;
        let hva = slot.hva_of(at).ok_or(MemoryError::NotMapped)?;
        Ok((slot, hva))
    }
}

impl GuestMemory for VmMemory<'_> {
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError> {
        let (_, hva) = self.place(at)?;
        self.0.mm.walk_read(hva, 3).map_err(unreadable)
    }

    fn read_run(&mut self, at: Ipa, words: &mut [u64]) -> Result<(), MemoryError> {
        let (_, hva) = self.place(at)?;
        let mut bytes = [0; 128];
        let bytes = bytes
            .get_mut(..words.len() * 8)
            .ok_or(MemoryError::NotMapped)?;
        self.0
            .mm
            .read_bytes(hva, bytes)
            .map_err(|_| MemoryError::NotMapped)?;
        let (each, _) = bytes.as_chunks();
        for (word, bytes) in words.iter_mut().zip(each) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        let (slot, hva) = self.place(at)?;
        if left_out(Safeguard::NestedFlagUpdate) {
            return Ok(Ok(()));
        }
        if slot.read_only {
            return Err(MemoryError::ReadOnly);
        }
        let found = self
            .0
            .mm
            .compare_exchange_u64(hva, old, new)
            .map_err(unreadable)?;
        if found != old {
            return Ok(Err(found));
        }
        self.0.memory.lock().mark_dirty(at);
        Ok(Ok(()))
    }
}

fn unreadable(failed: Failed) -> MemoryError {
    match failed {
        Failed::BadAddress => MemoryError::NotMapped,
        Failed::Poisoned => MemoryError::Poisoned,
    }
}

/// HCR_EL2.VM: stage 2 is on.
const HCR_VM: u64 = 1;
/// The fault status of an abort's syndrome.
const FSC: u64 = 0x3f;
/// VTCR_EL2.HA: hardware sets the access flag.
const VTCR_HA: u64 = 1 << 21;
/// VTCR_EL2.PS of 48 bits.
const PS_48: u64 = 0b101;

/// The guest hypervisor's stage 2, as its registers have it now.
fn config(vcpu: &Vcpu, state: &State) -> Stage2Config {
    let hw = vcpu.hw.lock();
    let get = |reg| hw.regs.get_any(reg);
    let big_endian = get(Reg::SctlrEl2) >> 25 & 1 == 1;
    let features = Features::of(&state.id_regs);
    let (mut vtcr, mut hcr) = (get(Reg::VtcrEl2), get(Reg::HcrEl2));
    if left_out(Safeguard::NestedWalk) {
        hcr &= !HCR_VM;
    }
    if left_out(Safeguard::NestedOutput) {
        vtcr = vtcr & !(7 << 16) | PS_48 << 16;
    }
    if left_out(Safeguard::NestedAccessFlag) {
        vtcr |= VTCR_HA;
    }
    Stage2Config::new(vtcr, get(Reg::VttbrEl2), hcr, big_endian, &features)
}

/// The walker's name for what an access wants.
const fn access(wanted: Wanted) -> Access {
    match wanted {
        Wanted::Read => Access::Read,
        Wanted::Write => Access::Write,
        Wanted::FetchEl0 => Access::FetchEl0,
        Wanted::FetchEl1 => Access::FetchEl1,
        Wanted::WalkRead => Access::WalkRead,
        Wanted::WalkUpdate => Access::WalkUpdate,
    }
}

/// Whether a walk stopped at a right that is withheld.
fn is_permission(stop: Option<&Stop>) -> bool {
    let fault = stop.and_then(|stop| stop.fault().ok());
    fault.is_some_and(|fault| fault.kind == FaultKind::Permission)
}

/// A fault on the shadow that is loaded.
pub(in crate::kvm) fn shadow(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: Stage2Fault<L2Ipa>,
) -> Next {
    let at = match fault.address {
        Some(at) => at,
        None => match umbra_hw::guest::translate_stage1(fault.gva.raw(), state.hcr) {
            Some(page) => match fault.at_page(L2Ipa::new(page.raw())).address {
                Some(at) => at,
                None => return Next::Guest,
            },
            None => return Next::Guest,
        },
    };
    state.last_far = fault.gva.raw();
    vcpu.stats.shadow_faults.count();
    let Some(id) = vcpu.hw.lock().shadow else {
        return Next::Guest;
    };
    let seq = vcpu.vm.memory.lock().shadows.sequence(id);
    let config = config(vcpu, state);
    let el0 = state.frame.pstate().raw() & 0xf == 0;
    let wanted = Wanted::of(&fault, el0);
    let mut walked = stage2::walk(&config, at, access(wanted), &mut VmMemory(&vcpu.vm));
    if left_out(Safeguard::NestedRights) && is_permission(walked.as_ref().err()) {
        walked = stage2::walk(&config, at, Access::Probe, &mut VmMemory(&vcpu.vm));
        if let Ok(mapping) = &mut walked {
            mapping.translation.rights = Rights::ALL;
        }
    }
    let walked = match walked {
        Ok(mapping) => Ok(mapping),
        Err(Stop::Memory {
            at,
            level,
            error: MemoryError::Poisoned,
        }) => return sea::consumed_by_walk(vcpu, state, esr, &fault, (at, level)),
        Err(stop) => match stop.fault() {
            Ok(walked) => Err(walked),
            // Nothing was decided: let the access happen again.
            Err(_) => return Next::Guest,
        },
    };
    let translation = walked.as_ref().map(|mapping| &mapping.translation);
    events::walk(vcpu, at, translation);
    let slot = translation
        .ok()
        .and_then(|translation| vcpu.vm.memory.lock().slot_at(translation.output));
    let lies = translation.map_or(Lies::None, |translation| {
        fault::lies(vcpu, translation.output, slot)
    });
    let capabilities = Capabilities {
        nisv_to_user: vcpu.vm.options.lock().nisv_to_user,
    };
    let translation = translation.map_err(|fault| *fault);
    match resolve_shadow(&fault, wanted, translation, lies, capabilities) {
        ShadowAction::Reflect(walked) => {
            events::resolved(vcpu, state, Some(at), None, Resolution::Reflected);
            if left_out(Safeguard::NestedReflect) {
                inject::external_abort(vcpu, state, fault.instruction, fault.gva, None);
                return Next::Guest;
            }
            let mut told = reflect(esr, &fault, at, walked);
            if left_out(Safeguard::NestedStatus) {
                told.esr = Esr::new(told.esr.raw() & !FSC | esr.raw() & FSC);
            }
            reflect_fault(vcpu, state, &told);
            Next::Guest
        }
        ShadowAction::Resolve(action) => {
            let found = Found {
                at,
                slot,
                walked: walked.ok().map(|mapping| (config, mapping)),
                context: (id, seq),
            };
            resolve(vcpu, state, esr, &fault, action, &found)
        }
    }
}

/// Where an address that stage 1 of the running guest has in its tables lies in the VM: behind the guest
/// hypervisor's stage 2, if that is on. `None` where it does not allow the read.
pub(in crate::kvm) fn through_stage2(vcpu: &Vcpu, state: &State, at: Ipa) -> Option<Ipa> {
    if vcpu.hw.lock().shadow.is_none() {
        return Some(at);
    }
    let (config, at) = (config(vcpu, state), L2Ipa::new(at.raw()));
    let mapping = stage2::walk(&config, at, Access::AtWalkRead, &mut VmMemory(&vcpu.vm));
    Some(mapping.ok()?.translation.output)
}

/// The guest hypervisor's to handle.
fn reflect_fault(vcpu: &Arc<Vcpu>, state: &mut State, told: &Reflection) {
    vcpu.stats.reflected.count();
    let exception = Exception::Sync {
        esr: told.esr.raw(),
        far: Some(told.far.raw()),
        hpfar: (!left_out(Safeguard::NestedHpfar)).then_some(told.hpfar.raw()),
    };
    exception::take(vcpu, state, exception);
}

/// What a fill is made of: where, and what the walk found.
struct Found {
    at: L2Ipa,
    slot: Option<Slot>,
    walked: Option<(Stage2Config, Mapping)>,
    /// The shadow, and its sequence before the walk.
    context: (ContextId, u64),
}

fn resolve(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: &Stage2Fault<L2Ipa>,
    action: Action,
    found: &Found,
) -> Next {
    let ipa = found.walked.as_ref().map(|(_, m)| m.translation.output);
    let told = |state: &State, what| events::resolved(vcpu, state, Some(found.at), ipa, what);
    match action {
        Action::Map { write, .. } => match (found.slot, &found.walked) {
            (Some(slot), Some((config, mapping))) => {
                let how = events::how(fault.kind, write, fault.exec(), fault.s1ptw);
                match map(vcpu, &slot, found, (config, mapping), (write, how)) {
                    Ok(next) => next,
                    Err(bad) => {
                        let place = sea::Place {
                            ipa: Some(mapping.translation.output),
                            below: Some(found.at),
                        };
                        sea::consumed(vcpu, state, esr, fault, bad, place)
                    }
                }
            }
            _ => Next::Guest,
        },
        Action::MakeYoung => {
            told(state, Resolution::Young);
            let mut memory = vcpu.vm.memory.lock();
            memory.mend();
            memory.shadows.make_young(found.context, found.at);
            Next::Guest
        }
        Action::Mmio { ipa, access, write } => mmio::access(vcpu, state, ipa, access, write),
        Action::NisvExit { ipa } => {
            told(state, Resolution::Nisv);
            Next::Vmm(VmmExit::ArmNisv {
                esr_iss: u64::from(esr.iss()),
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
            fault::memory_fault(ipa)
        }
        Action::InjectSea { instruction, .. } | Action::InjectAddressSize { instruction } => {
            told(state, Resolution::ExternalAbort);
            let level = fault.s1ptw.then(|| {
                let at = Ipa::new(found.at.raw());
                inject::stage1_level(vcpu, state, fault.gva, at).unwrap_or(Level::L3)
            });
            inject::external_abort(vcpu, state, instruction, fault.gva, level);
            Next::Guest
        }
        // The page was not known to be bad when the slot was looked up: it is found out by mapping it.
        Action::ConsumePoison { .. } => Next::Guest,
        Action::OwnTablesBroken => {
            told(state, Resolution::OwnTables);
            // Row N13: the walk refuses such an address before a shadow can name it.
            log::error!(
                "a shadow names an output beyond the machine at {}",
                found.at
            );
            vcpu.vm.memory.lock().shadows.rebuild(found.context.0);
            Next::Guest
        }
    }
}

/// Maps what the walk found, and round it what one look at the same table finds and the VMM has
/// present already.
fn map(
    vcpu: &Arc<Vcpu>,
    slot: &Slot,
    found: &Found,
    (config, mapping): (&Stage2Config, &Mapping),
    (write, how): (bool, How),
) -> Result<Next, fault::Bad> {
    let vm = &vcpu.vm;
    let (at, translation) = (found.at, &mapping.translation);
    let ipa = translation.output;
    let Some(hva) = slot.hva_of(ipa) else {
        return Ok(Next::Guest);
    };
    // After the sequence was read, before the lock: like the walk itself.
    let near = around(config, at, mapping, &mut VmMemory(vm));
    let access = if write { Prot::RW } else { Prot::READ };
    let mapped = vm.mm.with_page_and_others(hva, access, |view, present| {
        let size = mapping_size(&SizeRequest {
            granule: Granule::K4,
            table_limit: 1 << 30,
            ipa,
            slot: slot.range(),
            host_bytes: view.bytes,
            logging: slot.logging,
            guest_bytes: (!left_out(Safeguard::NestedBlock)).then_some(translation.bytes),
        });
        let size = Size::of(size).unwrap_or(Size::Page);
        let leaf = Fill {
            at: if left_out(Safeguard::NestedAddress) {
                L2Ipa::new(ipa.align_down(size.bytes()).raw())
            } else {
                at.align_down(size.bytes())
            },
            ipa: ipa.align_down(size.bytes()),
            pa: frame(hva.align_down(size.bytes()), &view).ok_or(NotMapped::Retry)?,
            size,
            rights: rights(translation.rights, slot, &view, write),
            leaf_bytes: translation.bytes,
        };
        let mut memory = vm.memory.lock();
        if memory.slot_at(ipa) != Some(*slot) {
            return Err(NotMapped::Retry);
        }
        if slot.logging && write {
            memory.mark_dirty(ipa);
        }
        synchronise(&leaf);
        let context = found.context.0;
        memory.mend();
        memory.shadows.fill(found.context, &leaf)?;
        events::shadow_mapped(vcpu, context, &leaf, how);
        if size == Size::Page {
            // Nobody waits for these: what fails is left out.
            let mut cursor = Cursor::default();
            let pick = |at| {
                let leaf = ahead(near.at(at)?, slot, present, &mut cursor)?;
                synchronise(&leaf);
                Some(leaf)
            };
            let made = |leaf: &Fill| events::shadow_mapped(vcpu, context, leaf, How::Around);
            memory.shadows.fill_around(context, leaf.at, pick, made);
        }
        umbra_hw::tlb::publish();
        Ok(())
    });
    Ok(match mapped {
        Err(MmFault::Poisoned(frame, poison)) => return Err((hva.align_down(4096), frame, poison)),
        Ok(Ok(()) | Err(NotMapped::Retry)) => Next::Guest,
        Ok(Err(NotMapped::NoMemory)) | Err(MmFault::NoMemory) => Next::Fail(Errno::ENOMEM),
        Err(MmFault::NotMapped | MmFault::NotAllowed | MmFault::BeyondFile) => {
            Next::Fail(Errno::EFAULT)
        }
    })
}

/// Where the page at `hva`, which `view` shows, lies in memory.
fn frame(hva: Hva, view: &PageView) -> Option<Pa> {
    view.pa.checked_add(hva.offset_from(view.start)?)
}

fn rights(theirs: Rights, slot: &Slot, view: &PageView, write: bool) -> Rights {
    shadow_rights(
        theirs,
        view.writable && slot.may_be_written(),
        slot.logging,
        write,
    )
}

/// A page that the guest hypervisor maps and the VMM has present, as it would be mapped ahead.
fn ahead(
    neighbour: &Neighbour,
    slot: &Slot,
    present: Present<'_>,
    cursor: &mut Cursor,
) -> Option<Fill> {
    let hva = slot.hva_of(neighbour.output).filter(|_| {
        let last = neighbour.output.offset_from(slot.base);
        last.is_some_and(|offset| offset < slot.bytes)
    })?;
    let view = present.at(cursor, hva)?;
    Some(Fill {
        at: neighbour.at,
        ipa: neighbour.output,
        pa: frame(hva, &view)?,
        size: Size::Page,
        rights: rights(neighbour.rights, slot, &view, false),
        leaf_bytes: neighbour.bytes,
    })
}

/// What may be executed is as memory says it.
fn synchronise(leaf: &Fill) {
    if leaf.rights.exec_el0 || leaf.rights.exec_el1 {
        umbra_hw::mem::sync_instructions(leaf.pa, leaf.size.bytes());
    }
}
