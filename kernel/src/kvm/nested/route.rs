//! Whose is a trap of what a guest hypervisor runs, and what hardware traps of it: the rules are
//! `umbra_nested::route`'s, the registers this vCPU's.

use umbra_abort::World;
use umbra_arm64::Syndrome;
use umbra_arm64::sysreg::Reg;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::traps::Traps;
use umbra_kvm_abi::vcpu::VcpuFeatures;
use umbra_nested::route::{Controls, Loaded, Own, Written};

use super::super::vcpu::{Hw, State};
use super::super::{run, timer};

fn controls(hw: &Hw) -> Controls {
    let regs = &hw.regs;
    hw.masks.controls(&Written {
        hcr: regs.get(Reg::HcrEl2),
        hcrx: regs.get(Reg::HcrxEl2),
        mdcr: regs.get(Reg::MdcrEl2),
        cptr: regs.get(Reg::CptrEl2),
        cnthctl: regs.get(Reg::CnthctlEl2),
        ich_hcr: regs.get(Reg::IchHcrEl2),
        fine: [
            regs.get(Reg::HfgrtrEl2),
            regs.get(Reg::HfgwtrEl2),
            regs.get(Reg::HfgitrEl2),
            regs.get(Reg::HdfgrtrEl2),
            regs.get(Reg::HdfgwtrEl2),
            regs.get(Reg::HafgrtrEl2),
        ],
    })
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
    const FMO: u64 = 1 << 3;
    const IMO: u64 = 1 << 4;
    hw.is_below() && hw.regs.get(Reg::HcrEl2) & (IMO | FMO) != 0
}

/// What umbra itself wants to trap of a vCPU with these features: of a plain guest or what a guest
/// hypervisor runs, and of virtual EL2. `ctr` is the CTR_EL0 that the guest sees.
pub(in crate::kvm) fn own(features: VcpuFeatures, ctr: u64, has_mops: bool) -> [Own; 2] {
    let hcrx = if has_mops { umbra_hw::traps::MSCEN } else { 0 };
    [World::Plain, World::VirtualEl2].map(|world| {
        let traps = Traps::own(world == World::VirtualEl2, hcrx);
        Own {
            hcr: run::hcr(features, world, ctr),
            hcrx: traps.hcrx,
            mdcr: traps.mdcr,
            cnthctl: traps.cnthctl,
            fine: traps.fine,
            cpacr: traps.cpacr,
        }
    })
}

/// What traps of what runs: umbra's own wishes, and a guest hypervisor's of what it runs.
pub(in crate::kvm) fn wishes(hw: &Hw) -> Loaded {
    let own = &hw.own[usize::from(hw.virtual_el2)];
    if !hw.is_below() {
        return own.alone();
    }
    let mut loaded = own.below(&controls(hw));
    if left_out(Safeguard::NestedTraps) {
        loaded.fine = own.fine;
    }
    loaded
}

/// What traps beside HCR_EL2.
pub(in crate::kvm) fn traps(hw: &Hw, loaded: &Loaded) -> Traps {
    let mut traps = Traps {
        hcrx: loaded.hcrx,
        mdcr: loaded.mdcr,
        cnthctl: loaded.cnthctl,
        fine: loaded.fine,
        fp: loaded.fp,
        cpacr: loaded.cpacr,
    };
    if timer::is_shifted(hw) && !left_out(Safeguard::CounterTraps) {
        traps.trap_physical_timer();
    }
    if timer::is_ahead(hw.cntvoff) {
        traps.trap_virtual_timer();
    }
    traps
}
