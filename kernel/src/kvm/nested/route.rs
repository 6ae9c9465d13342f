//! Whose is a trap of what a guest hypervisor runs, and what hardware traps of it: the rules are
//! `umbra_nested::route`'s, the registers this vCPU's.

use umbra_abort::World;
use umbra_arm64::Syndrome;
use umbra_arm64::sysreg::SysReg;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::traps::Traps;
use umbra_nested::route::{Controls, Loaded, Own};

use super::super::run;
use super::super::vcpu::{Hw, State};

fn controls(hw: &Hw) -> Controls {
    hw.masks.controls(|reg| hw.regs.get(reg))
}

/// Whether a synchronous exit of its guest, not an abort, goes to the guest hypervisor.
pub(in crate::kvm) fn is_theirs(hw: &Hw, state: &State, syndrome: Syndrome) -> bool {
    match syndrome {
        Syndrome::Hvc(_) => true,
        _ => controls(hw).takes(syndrome, state.frame.pstate().raw() & 0xf == 0),
    }
}

/// Whether the guest hypervisor takes interrupts of what it runs, whose list registers are then its
/// own.
pub(in crate::kvm) fn routes_interrupts(hw: &Hw) -> bool {
    use umbra_arm64::sysreg::Reg;
    const FMO: u64 = 1 << 3;
    const IMO: u64 = 1 << 4;
    hw.is_below() && hw.regs.get(Reg::HcrEl2) & (IMO | FMO) != 0
}

fn loaded(hw: &Hw, hcr: u64) -> Loaded {
    let own = Traps::own(hw.virtual_el2);
    let own = Own {
        hcr,
        hcrx: own.hcrx,
        mdcr: own.mdcr,
        cnthctl: own.cnthctl,
        fine: own.fine,
    };
    let mut loaded = own.below(&controls(hw));
    if left_out(Safeguard::NestedTraps) {
        loaded.fine = own.fine;
    }
    loaded
}

/// What traps beside HCR_EL2.
pub(in crate::kvm) fn traps(hw: &Hw) -> Traps {
    if !hw.is_below() {
        return Traps::own(hw.virtual_el2);
    }
    let loaded = loaded(hw, 0);
    Traps {
        hcrx: loaded.hcrx,
        mdcr: loaded.mdcr,
        cnthctl: loaded.cnthctl,
        fine: loaded.fine,
        fp: loaded.fp,
        cpacr: loaded.cpacr,
    }
}

/// HCR_EL2 for what runs.
pub(super) fn hcr(hw: &Hw, state: &State, world: World) -> u64 {
    let ctr = state.id_regs.get(SysReg::CTR_EL0);
    let own = run::hcr(state.init.unwrap_or_default(), world, ctr);
    match world {
        World::Nested => loaded(hw, own).hcr,
        World::Plain | World::VirtualEl2 => own,
    }
}
