//! A stage-2 fault of what a guest hypervisor runs, on a shadow table.
//!
//! The guest hypervisor's own tables are walked first. What they do not allow is its to handle and
//! goes into virtual EL2; what they allow is mapped in the shadow, or is a device of the VM.

use alloc::sync::Arc;

use umbra_abort::{
    Action, Capabilities, SizeRequest, Slot as Lies, SlotRange, Stage2Fault, Stage2Kind,
    mapping_size, resolve_canonical,
};
use umbra_arm64::sysreg::Reg;
use umbra_arm64::{Esr, Granule, GuestFault, Hpfar, Ipa, L2Ipa, Pa, Rights, Translation};
use umbra_linux::Errno;
use umbra_linux::vma::Prot;
use umbra_nested::stage2::{self, Access, Stage2Config};
use umbra_nested::{Features, GuestMemory, MemoryError};

use super::super::memory::{NotMapped, Slot};
use super::super::run::Next;
use super::super::vcpu::{State, Vcpu};
use super::super::vm::Vm;
use super::super::{exit, fault, inject, mmio};
use super::switch::{self, Vector};
use crate::mm::MmFault;

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
        self.0
            .mm
            .read_word(hva, 3)
            .map_err(|_| MemoryError::NotMapped)
    }

    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        let (slot, hva) = self.place(at)?;
        if slot.read_only {
            return Err(MemoryError::ReadOnly);
        }
        let found = self
            .0
            .mm
            .compare_exchange_u64(hva, old, new)
            .map_err(|_| MemoryError::NotMapped)?;
        Ok(if found == old { Ok(()) } else { Err(found) })
    }
}

/// The guest hypervisor's stage 2, as its registers have it now.
fn config(vcpu: &Vcpu, state: &State) -> Stage2Config {
    let hw = vcpu.hw.lock();
    let get = |reg| hw.regs.get(reg);
    let big_endian = get(Reg::SctlrEl2) >> 25 & 1 == 1;
    let features = Features::of(&state.id_regs);
    Stage2Config::new(
        get(Reg::VtcrEl2),
        get(Reg::VttbrEl2),
        get(Reg::HcrEl2),
        big_endian,
        &features,
    )
}

fn wanted(fault: &Stage2Fault<L2Ipa>, state: &State) -> Access {
    let el0 = state.frame.pstate().raw() & 0xf == 0;
    match (fault.s1ptw, fault.exec(), fault.write) {
        (true, _, true) => Access::WalkUpdate,
        (true, _, false) => Access::WalkRead,
        (false, true, _) if el0 => Access::FetchEl0,
        (false, true, _) => Access::FetchEl1,
        (false, false, true) => Access::Write,
        (false, false, false) => Access::Read,
    }
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
    let Some(id) = vcpu.hw.lock().shadow else {
        return Next::Guest;
    };
    let seq = vcpu.vm.memory.lock().shadows.sequence(id);
    let config = config(vcpu, state);
    match stage2::walk(&config, at, wanted(&fault, state), &mut VmMemory(&vcpu.vm)) {
        Ok(mapping) => resolve(vcpu, state, &fault, at, &mapping.translation, (id, seq)),
        Err(stop) => match stop.fault() {
            Ok(walked) => {
                reflect(vcpu, state, esr, &fault, at, walked);
                Next::Guest
            }
            Err(_) => Next::Guest,
        },
    }
}

/// The guest hypervisor's to handle: the hardware's syndrome with the kind and level of its walk.
fn reflect(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: &Stage2Fault<L2Ipa>,
    at: L2Ipa,
    walked: GuestFault,
) {
    let status = u64::from(walked.status().encode().unwrap_or(0));
    let esr = esr.raw() & 0xffff_ffff & !0x3f | status;
    switch::leave(vcpu, state, Vector::Sync, Some(esr), Some(fault.gva.raw()));
    let page = at.align_down(4096);
    vcpu.hw
        .lock()
        .regs
        .set(Reg::HpfarEl2, Hpfar::from_page(page).raw());
}

fn resolve(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    fault: &Stage2Fault<L2Ipa>,
    at: L2Ipa,
    translation: &Translation<Ipa>,
    context: (u64, u64),
) -> Next {
    let ipa = translation.output;
    let slot = vcpu.vm.memory.lock().slot_at(ipa);
    let canonical = Stage2Fault {
        kind: match fault.kind {
            // Our own access flag is always set: a fault of that kind is a missing mapping here.
            Stage2Kind::AccessFlag => Stage2Kind::Translation,
            kind => kind,
        },
        level: fault.level,
        write: fault.write,
        instruction: fault.instruction,
        s1ptw: fault.s1ptw,
        cache_op: fault.cache_op,
        access: fault.access,
        gva: fault.gva,
        address: Some(ipa),
    };
    let lies = fault::lies(vcpu, ipa, slot);
    let capabilities = Capabilities {
        nisv_to_user: vcpu.vm.options.lock().nisv_to_user,
    };
    match (resolve_canonical(&canonical, ipa, lies, capabilities), slot) {
        (Action::Map { write, .. }, Some(slot)) => {
            map(vcpu, &slot, at, translation, write, context)
        }
        (Action::Mmio { ipa, access, write }, _) => mmio::access(vcpu, state, ipa, access, write),
        (Action::InjectSea { instruction, .. }, _) if lies == Lies::None || fault.s1ptw => {
            inject::external_abort(vcpu, state, instruction, fault.gva, None);
            Next::Guest
        }
        (Action::SkipCacheOp, _) => {
            exit::skip(state);
            Next::Guest
        }
        (_, _) => {
            inject::external_abort(vcpu, state, fault.instruction, fault.gva, None);
            Next::Guest
        }
    }
}

fn map(
    vcpu: &Arc<Vcpu>,
    slot: &Slot,
    at: L2Ipa,
    translation: &Translation<Ipa>,
    write: bool,
    (id, seq): (u64, u64),
) -> Next {
    let vm = &vcpu.vm;
    let ipa = translation.output;
    let Some(hva) = slot.hva_of(ipa) else {
        return Next::Guest;
    };
    let access = if write { Prot::RW } else { Prot::READ };
    let mapped = vm.mm.with_page(hva, access, |view| {
        let size = mapping_size(&SizeRequest {
            granule: Granule::K4,
            table_limit: 1 << 30,
            ipa,
            slot: SlotRange {
                ipa: slot.base,
                hva: slot.hva,
                bytes: slot.bytes,
            },
            host_bytes: view.bytes,
            logging: false,
            guest_bytes: Some(translation.bytes),
        });
        let base = ipa.align_down(size);
        let offset = hva
            .align_down(size)
            .offset_from(view.start)
            .ok_or(NotMapped::Retry)?;
        let pa = Pa::new(view.pa.raw() + offset);
        let rights = Rights {
            write: translation.rights.write && view.writable && !slot.read_only,
            ..translation.rights
        };
        if rights.exec_el0 || rights.exec_el1 {
            umbra_hw::mem::sync_instructions(pa, size);
        }
        let mut memory = vm.memory.lock();
        if memory.slot_at(ipa) != Some(*slot) {
            return Err(NotMapped::Retry);
        }
        memory
            .shadows
            .map(id, seq, (at.align_down(size), base, pa), size, rights)
    });
    match mapped {
        Ok(Ok(()) | Err(NotMapped::Retry)) => Next::Guest,
        Ok(Err(NotMapped::NoMemory)) | Err(MmFault::NoMemory) => Next::Fail(Errno::ENOMEM),
        Err(MmFault::NotMapped | MmFault::NotAllowed | MmFault::BeyondFile) => {
            Next::Fail(Errno::EFAULT)
        }
    }
}
