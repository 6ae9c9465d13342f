//! A described access to what is not memory: the GIC, an event descriptor, or the VMM.

use alloc::sync::Arc;

use umbra_abort::World;
use umbra_arm64::Ipa;
use umbra_arm64::esr::Access;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_kvm_abi::exit::{Exit as VmmExit, MmioExit};
use umbra_kvm_abi::run::{self as run_page, RunPage};
use umbra_trace::MmioBy;

use super::events;
use super::exit::{read_x, skip, write_x};
use super::run::Next;
use super::vcpu::{State, Vcpu};

/// An access that left to the VMM: what to do when it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PendingMmio {
    access: Access,
    write: bool,
}

/// A load or store of the guest at `ipa`.
pub(super) fn access(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    ipa: Ipa,
    access: Access,
    write: bool,
) -> Next {
    let ipa = if left_out(Safeguard::MmioOffset) {
        ipa.align_down(4096)
    } else {
        ipa
    };
    let len = access.size.bytes() as u32;
    let data = write.then(|| swapped(state, access, read_x(state, access.register) & mask(access)));
    let vm = &vcpu.vm;
    if state.world == World::VirtualEl2 {
        vm.gic.settle_maintenance(vcpu);
    }
    match vm.gic.mmio(vcpu, ipa.raw(), len as u8, data) {
        Some(value) => answered(vcpu, state, ipa, access, data, value),
        None => elsewhere(vcpu, state, ipa, access, data),
    }
}

/// An interrupt controller has answered.
#[inline(always)]
fn answered(
    vcpu: &Vcpu,
    state: &mut State,
    ipa: Ipa,
    access: Access,
    data: Option<u64>,
    value: u64,
) -> Next {
    let len = access.size.bytes() as u32;
    events::mmio(vcpu, state, ipa, len, data, MmioBy::Gic);
    if data.is_none() {
        load(state, access, value);
    }
    vcpu.stats.mmio_kernel.count();
    skip(state);
    Next::Guest
}

/// An access that is none of the GIC's.
#[inline(never)]
fn elsewhere(vcpu: &Vcpu, state: &mut State, ipa: Ipa, access: Access, data: Option<u64>) -> Next {
    let vm = &vcpu.vm;
    let len = access.size.bytes() as u32;
    if let Some(value) = vm.itses.mmio(vm, ipa.raw(), len as u8, data) {
        return answered(vcpu, state, ipa, access, data, value);
    }
    if let Some(value) = data
        && vm.io_events.signal(ipa.raw(), len, value)
    {
        events::mmio(vcpu, state, ipa, len, data, MmioBy::EventFd);
        vcpu.stats.mmio_kernel.count();
        skip(state);
        return Next::Guest;
    }
    if let Some(value) = data
        && vm.coalesced.queue(ipa.raw(), len, value)
    {
        events::mmio(vcpu, state, ipa, len, data, MmioBy::Vmm);
        vcpu.stats.mmio_kernel.count();
        skip(state);
        return Next::Guest;
    }
    events::mmio(vcpu, state, ipa, len, data, MmioBy::Vmm);
    vcpu.stats.mmio_user.count();
    let write = data.is_some();
    state.pending_mmio = Some(PendingMmio { access, write });
    Next::Vmm(VmmExit::Mmio(MmioExit {
        phys_addr: ipa.raw(),
        data: data.unwrap_or(0).to_le_bytes(),
        len,
        is_write: write,
    }))
}

/// The VMM has answered: finishes the instruction. An abort that it asked for instead wins.
pub(super) fn complete(state: &mut State, page: &dyn RunPage) {
    let Some(pending) = state.pending_mmio.take() else {
        return;
    };
    if state.pending_abort {
        return;
    }
    if !pending.write {
        let value = run_page::mmio_answer(page, pending.access.size.bytes() as u32);
        load(state, pending.access, value);
    }
    skip(state);
}

fn mask(access: Access) -> u64 {
    match access.size.bytes() {
        8 => u64::MAX,
        bytes => (1 << (8 * bytes)) - 1,
    }
}

/// Puts a loaded value into the register as the instruction would.
fn load(state: &mut State, access: Access, value: u64) {
    let value = swapped(state, access, value & mask(access));
    let unused = 64 - 8 * access.size.bytes() as u32;
    let value = if access.sign_extend && !left_out(Safeguard::SignExtension) {
        ((value << unused) as i64 >> unused) as u64
    } else {
        value
    };
    let value = if access.sixty_four {
        value
    } else {
        value & 0xffff_ffff
    };
    write_x(state, access.register, value);
}

/// A big-endian guest's bytes come the other way round.
/// The vCPU is loaded here, so its SCTLR is the machine's.
fn swapped(state: &State, access: Access, value: u64) -> u64 {
    let sctlr = umbra_hw::guest::loaded_sctlr();
    let at_el0 = state.frame.pstate().raw() & 0xf == 0;
    let big_endian = sctlr >> if at_el0 { 24 } else { 25 } & 1 == 1;
    if big_endian {
        value.swap_bytes() >> (64 - 8 * access.size.bytes())
    } else {
        value
    }
}
