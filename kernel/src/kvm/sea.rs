//! Memory errors that a guest meets: whose they are, who hears of them, and how they go back into the
//! guest.
//!
//! ```text
//!   hardware's abort ─ classify ─► Sea ─┐
//!   a page kept unmapped ─ of_poison ───┴─► the guest's? ─ no ──► umbra's own: healed, or an SError
//!                                             │ yes
//!            VMM opted in ─► KVM_EXIT_ARM_SEA ┴─ otherwise an SError in the guest, as on Linux
//!                               └─ KVM_SET_VCPU_EVENTS: the same abort, in the guest
//! ```
//!
//! What always holds: the exit changes nothing in the guest. `gpa` is an address of the VM's own space
//! or absent, also when the guest's guest made the access (row S11). An abort that the VMM injects right
//! after the exit is the one that was reported: of the same kind, with the same FnV and WnR (row S14).

use alloc::sync::Arc;

use umbra_abort::{Poison, Sea, SeaOwner, Stage2Fault, World};
use umbra_arm64::{Ec, Esr, Gva, Hva, Ipa, L2Ipa, Level, Pa};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_kvm_abi::exit::{ArmSeaExit, Exit as VmmExit};
use umbra_linux::Errno;
use umbra_nested::shadow::ContextId;
use umbra_trace::{Owner, SeaPath};

use super::memory::{self, Memory};
use super::run::Next;
use super::vcpu::{State, Vcpu};
use super::{events, inject, loaded};

/// An abort that left to the VMM: what KVM_SET_VCPU_EVENTS makes pending if the guest has not run since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// The syndrome that the VMM was shown.
    esr: Esr,
    gva: Option<Gva>,
    /// The page in the guest's guest's space, for HPFAR_EL2.
    page: Option<L2Ipa>,
}

/// Where an access to broken memory went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// In the VM's own space.
    pub(super) ipa: Option<Ipa>,
    /// In its guest's space, if that made the access.
    pub(super) below: Option<L2Ipa>,
}

/// Row S12: whether firmware knew of the error that was just met, and its page is known to be bad
/// from now on. Then the access is made again, which tells whoever has to hear of it.
fn firmware_claims(
    vcpu: &Arc<Vcpu>,
    state: &State,
    esr: Esr,
    gva: Option<Gva>,
    place: &Place,
) -> bool {
    let claimed = crate::ghes::claim(&vcpu.vm.mm);
    // Interrupts were taken meanwhile, and one of them may have put the registers away.
    loaded::load(vcpu);
    if claimed {
        let path = SeaPath::Firmware;
        events::sea(vcpu, state, esr, gva, place, Owner::Guest, path);
    }
    claimed
}

/// An external abort that hardware took to EL2.
pub(super) fn met(vcpu: &Arc<Vcpu>, state: &mut State, sea: &Sea<Ipa>) -> Next {
    let nowhere = Place {
        ipa: None,
        below: None,
    };
    let shown = sea.shown(vcpu_has_ras(state));
    if firmware_claims(vcpu, state, shown, sea.gva, &nowhere) {
        return Next::Interrupt;
    }
    let suspect = sea.is_on_walk() || sea.owner == SeaOwner::Host;
    if suspect && heal(vcpu, state) {
        // Loaded anew, and made again: the guest never knows.
        return Next::Interrupt;
    }
    log::warn!(
        "vCPU {}: external abort, {:?}, {:?}'s",
        vcpu.id,
        sea.status,
        sea.owner
    );
    match sea.owner {
        SeaOwner::Host if sea.vncr => {
            log::error!(
                "vCPU {}: its registers in memory are lost: it stops",
                vcpu.id
            );
            Next::Fail(Errno::EHWPOISON)
        }
        SeaOwner::Host => hosts(vcpu, state, sea),
        SeaOwner::Guest => {
            // HPFAR_EL2 is UNKNOWN: the guest's own translation gives the page, or nothing does.
            let page = sea
                .gva
                .filter(|_| !sea.is_on_walk())
                .and_then(|gva| umbra_hw::guest::translate_stage1(gva.raw(), state.hcr));
            let nested = state.world == World::Nested;
            let place = Place {
                // The translation of what runs at EL1 of a guest hypervisor's guest is in that one's
                // space, which is not the VM's.
                ipa: page.filter(|_| !nested),
                below: page.filter(|_| nested).map(|page| L2Ipa::new(page.raw())),
            };
            tell(vcpu, state, sea.shown(vcpu_has_ras(state)), sea.gva, place)
        }
    }
}

/// Row S4: what hardware walks is looked at before the syndrome is believed. True if something was bad
/// and is right now. What was bad does not come back, so this ends.
fn heal(vcpu: &Arc<Vcpu>, state: &State) -> bool {
    if left_out(Safeguard::TableHeal) {
        return false;
    }
    let shadow = vcpu.hw.lock().shadow;
    let (cuts, root) = {
        let mut memory = vcpu.vm.memory.lock();
        let cuts = memory.heal();
        (cuts, root(&mut memory, state.world, shadow))
    };
    reload(vcpu, root) || cuts > 0
}

/// VTTBR_EL2 of what runs.
fn root(memory: &mut Memory, world: World, shadow: Option<ContextId>) -> Option<u64> {
    match (world, shadow) {
        (World::Nested, Some(id)) => memory.shadows.vttbr_of(id),
        (World::Nested, None) => memory.vttbrs().1,
        (World::Plain | World::VirtualEl2, _) => Some(memory.vttbr()),
    }
}

/// A fault was dealt with. If a root was replaced anywhere since the last one, this vCPU's may have been, and the
/// old one maps nothing.
pub(super) fn follow(vcpu: &Arc<Vcpu>, state: &mut State) {
    let replaced = memory::roots_replaced();
    if core::mem::replace(&mut state.roots_replaced, replaced) != replaced {
        let shadow = vcpu.hw.lock().shadow;
        let root = root(&mut vcpu.vm.memory.lock(), state.world, shadow);
        reload(vcpu, root);
    }
}

/// Loads the root that umbra's own books say, if it is another. Whether it was.
fn reload(vcpu: &Arc<Vcpu>, root: Option<u64>) -> bool {
    let loaded = vcpu.hw.lock().vttbr;
    let misled = root.is_some_and(|root| root != loaded);
    if let Some(root) = root.filter(|_| misled) {
        log::warn!("vCPU {}: the root of its tables was lost", vcpu.id);
        loaded::put(vcpu);
        vcpu.hw.lock().vttbr = root;
    }
    misled
}

/// The host's, and nothing of it is found to be bad: the tables are dropped once, and made anew; if that
/// does not help, it is an SError in the guest, as on Linux.
fn hosts(vcpu: &Arc<Vcpu>, state: &mut State, sea: &Sea<Ipa>) -> Next {
    let pc = state.frame.pc;
    if sea.is_on_walk() && state.dropped_at != Some(pc) {
        state.dropped_at = Some(pc);
        vcpu.vm.memory.lock().drop_all();
        return Next::Interrupt;
    }
    let nowhere = Place {
        ipa: None,
        below: None,
    };
    let esr = sea.shown(vcpu_has_ras(state));
    events::sea(
        vcpu,
        state,
        esr,
        sea.gva,
        &nowhere,
        Owner::Host,
        SeaPath::SError,
    );
    serror(state)
}

/// The access of `fault` met a page that is kept unmapped because its frame, behind `hva` in the VMM,
/// is bad. If a stage-1 descriptor of the guest lies there, the abort is its walk's.
pub(super) fn consumed<A: umbra_arm64::Address>(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: &Stage2Fault<A>,
    (hva, frame, poison): (Hva, Pa, Poison),
    place: Place,
) -> Next {
    if poison == Poison::Latent && firmware_claims(vcpu, state, esr, Some(fault.gva), &place) {
        return Next::Interrupt;
    }
    // Another CPU may have met the same error, and heard firmware first.
    if crate::poison::state_of(frame).unwrap_or(poison) == Poison::Known {
        // As Linux: the VMM is told by a signal, whatever it opted in to.
        events::sea(
            vcpu,
            state,
            esr,
            Some(fault.gva),
            &place,
            Owner::Guest,
            SeaPath::Signal,
        );
        return Next::BusError(hva);
    }
    let level = fault.s1ptw.then(|| {
        // The address as the guest's tables have it. A walk that does not come by has changed since.
        let at = place.below.map(|at| Ipa::new(at.raw())).or(place.ipa);
        at.and_then(|at| inject::stage1_level(vcpu, state, fault.gva, at))
            .unwrap_or(Level::L3)
    });
    let sea = Sea::of_poison(esr, fault.gva, fault.address, level);
    tell(vcpu, state, sea.shown(vcpu_has_ras(state)), sea.gva, place)
}

/// A walker of umbra's met a broken descriptor of the guest hypervisor's stage 2, at `at` in the VM.
pub(super) fn consumed_by_walk(
    vcpu: &Arc<Vcpu>,
    state: &mut State,
    esr: Esr,
    fault: &Stage2Fault<L2Ipa>,
    (at, level): (Ipa, Level),
) -> Next {
    let slot = vcpu.vm.memory.lock().slot_at(at);
    let hva = slot.and_then(|slot| slot.hva_of(at));
    let lies = || hva.and_then(|hva| vcpu.vm.mm.bad_at(hva));
    let place = Place {
        ipa: Some(at),
        below: fault.address,
    };
    if let Some((_, Poison::Latent)) = lies()
        && firmware_claims(vcpu, state, esr, Some(fault.gva), &place)
    {
        return Next::Interrupt;
    }
    // Another CPU may have met the same error, and heard firmware first.
    if let (Some(hva), Some((_, Poison::Known))) = (hva, lies()) {
        events::sea(
            vcpu,
            state,
            esr,
            Some(fault.gva),
            &place,
            Owner::Guest,
            SeaPath::Signal,
        );
        return Next::BusError(hva);
    }
    let sea = Sea::of_poison(esr, fault.gva, fault.address, Some(level));
    tell(vcpu, state, sea.shown(vcpu_has_ras(state)), sea.gva, place)
}

fn vcpu_has_ras(state: &State) -> bool {
    state.features.ras
}

fn tell(vcpu: &Arc<Vcpu>, state: &mut State, esr: Esr, gva: Option<Gva>, place: Place) -> Next {
    let path = if !left_out(Safeguard::SeaExit) && vcpu.vm.options.lock().sea_to_user {
        SeaPath::Vmm
    } else {
        SeaPath::SError
    };
    events::sea(vcpu, state, esr, gva, &place, Owner::Guest, path);
    if path == SeaPath::SError {
        return serror(state);
    }
    state.told = Some(Told {
        esr,
        gva,
        page: place.below.map(|at| at.align_down(4096)),
    });
    Next::Vmm(VmmExit::ArmSea(ArmSeaExit {
        esr: esr.raw(),
        gva: gva.map_or(0, Gva::raw),
        gpa: match place.below {
            Some(below) if left_out(Safeguard::SeaSpace) => Some(below.align_down(4096).raw()),
            _ => place.ipa.map(|ipa| ipa.align_down(4096).raw()),
        },
        l2_ipa: place.below.map(|at| at.align_down(4096).raw()),
    }))
}

/// As Linux without the capability, and for what is nobody's but umbra's: an SError without a syndrome
/// of its own.
fn serror(state: &mut State) -> Next {
    state.pending_serror = Some(None);
    // Entered anew, which makes it pending.
    Next::Interrupt
}

/// What KVM_SET_VCPU_EVENTS asked for: the abort that was told, else a data abort at the last address.
pub(super) fn inject(vcpu: &Arc<Vcpu>, state: &mut State, told: Option<Told>) {
    const ISS: u64 = (1 << 25) - 1;
    const FNV: u64 = 1 << 10;
    const EXTERNAL: u64 = 0x10;
    let told = told.filter(|_| !left_out(Safeguard::SeaKind));
    let (instruction, iss, far, page) = match told {
        Some(told) => {
            let instruction = matches!(
                told.esr.ec(),
                Ec::InstructionAbortLower | Ec::InstructionAbortSame
            );
            let fnv = if told.gva.is_none() { FNV } else { 0 };
            let iss = told.esr.raw() & ISS | fnv;
            (instruction, iss, told.gva.map(Gva::raw), told.page)
        }
        None => (false, EXTERNAL, Some(state.last_far), None),
    };
    inject::abort(vcpu, state, instruction, iss, far, page);
}
