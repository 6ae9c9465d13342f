//! Which CPU's hardware holds which vCPU's registers.
//!
//! Loaded state stays: across exits umbra handles, across the VMM's turn at EL0, across other
//! threads. It is put away when another vCPU needs the CPU, or when somebody needs the values
//! elsewhere ([`put`]), which for a remote CPU means an interrupt and a short wait. `LOADED[cpu]`
//! (rank 161) names the vCPU; its `hw` lock (162) covers the values.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use umbra_arm64::sysreg::Reg;
use umbra_hw::guest::Machine;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_hw::timer::{PHYS_TIMER_PPI, VIRT_TIMER_PPI};
use umbra_hw::{MAX_CPUS, gic, vgic};
use umbra_nested::route::Loaded;
use umbra_vgic::{HcrBits, Kicks, Lr, Vmcr};

use super::gic::deliver;
use super::vcpu::{Hw, Vcpu, has_pauth, has_ras};
use super::{events, nested, timer};
use crate::irq::{self, Sgi};

static LOADED: [SpinLock<Option<Arc<Vcpu>>>; MAX_CPUS] =
    [const { SpinLock::new("loaded", 161, None) }; MAX_CPUS];
/// Set when the idle loop switched this CPU's virtual interface off.
static INTERFACE_OFF: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(true) }; MAX_CPUS];

/// The vCPU whose registers are in this CPU.
pub(super) fn here() -> Option<Arc<Vcpu>> {
    LOADED[umbra_hw::cpu()].lock().clone()
}

/// Before this CPU waits: no virtual interrupt may end the wait.
pub(crate) fn before_wait() {
    vgic::write_hcr(0);
    INTERFACE_OFF[umbra_hw::cpu()].store(true, Ordering::Relaxed);
    umbra_hw::guest::withdraw_serror();
}

/// Another CPU asked for what is loaded here.
pub(crate) fn put_loaded() {
    if let Some(vcpu) = here() {
        put_here(&vcpu);
    }
}

/// Sees that `vcpu`'s registers are in memory, where they stay until somebody runs it. One that runs
/// goes on: it is loaded again as soon as it was put.
pub(super) fn put(vcpu: &Vcpu) {
    let (cpu, puts) = {
        let hw = vcpu.hw.lock();
        (hw.regs.hw.loaded_on(), hw.puts)
    };
    match cpu {
        None => {}
        Some(cpu) if cpu == umbra_hw::cpu() => put_here(vcpu),
        Some(cpu) => {
            irq::send(cpu, Sgi::Put);
            // Counted, as being unloaded may be over before this CPU looks. The other CPU may be
            // waiting for this one in the same way.
            while vcpu.hw.lock().puts == puts {
                irq::poll();
                core::hint::spin_loop();
            }
        }
    }
}

/// Loads `vcpu` here, if it is not; another vCPU that is goes first.
pub(super) fn load(vcpu: &Arc<Vcpu>) {
    {
        // A VMM may have moved the guest's counter since.
        let hw = vcpu.hw.lock();
        if hw.regs.hw.is_loaded_here() && !timer::has_new_offset(vcpu, &hw) {
            return;
        }
    }
    load_anew(vcpu);
}

#[inline(never)]
fn load_anew(vcpu: &Arc<Vcpu>) {
    let cpu = umbra_hw::cpu();
    put(vcpu);
    put_loaded();
    let vm = &vcpu.vm;
    *LOADED[cpu].lock() = Some(vcpu.clone());
    let vttbr = {
        let mut hw = vcpu.hw.lock();
        timer::adopt_offsets(vcpu, &mut hw);
        let machine = machine(vcpu, &hw, &nested::wishes(&hw));
        hw.regs.hw.load(&machine);
        load_interface(&mut hw);
        hw.vttbr
    };
    events::load(vcpu, vttbr, true);
    // ASIDs are per vCPU: what another one of this VM left in this CPU's TLB must go.
    let me = vcpu.index() + 1;
    let before = vm.last_ran[cpu].swap(me, Ordering::AcqRel);
    if before != me {
        let memory = vm.memory.lock();
        let (canonical, below) = memory.vttbrs();
        core::iter::once(canonical)
            .chain(below)
            .chain(memory.shadows.vttbrs(None))
            .for_each(|vttbr| umbra_hw::tlb::Stage2::with(vttbr, umbra_hw::tlb::Stage2::local));
    }
    gic::enable_private(VIRT_TIMER_PPI, true);
    gic::enable_private(PHYS_TIMER_PPI, true);
    vcpu.kick(super::vcpu::request::GIC);
}

/// What the registers of the machine hold while `vcpu` runs as `hw` says, and what it traps as `wishes` do.
pub(super) fn machine(vcpu: &Vcpu, hw: &Hw, wishes: &Loaded) -> Machine {
    let vm = &vcpu.vm;
    // What a guest hypervisor runs has the identity that it was given.
    let (vpidr, vmpidr) = if hw.is_below() {
        (hw.regs.get(Reg::VpidrEl2), hw.regs.get(Reg::VmpidrEl2))
    } else {
        (hw.midr, vcpu.mpidr())
    };
    let bits = if hw.shadow.is_some() {
        vm.machine.pa_bits
    } else {
        vm.ipa_bits
    };
    Machine {
        vttbr: hw.vttbr,
        vtcr: vm.machine.vtcr(bits),
        vmpidr,
        vpidr,
        cntvoff: hw.cntvoff,
        traps: nested::traps(hw, wishes),
        pauth: has_pauth(),
        deferred: has_ras().then(|| nested::deferred(hw)),
        virtual_el2: hw.virtual_el2,
        vncr_at: hw.vncr_at,
    }
}

/// The virtual CPU interface of what runs goes into hardware.
pub(super) fn load_interface(hw: &mut Hw) {
    if nested::routes_interrupts(hw) {
        hw.ich_hcr = nested::load_interface(hw);
        INTERFACE_OFF[umbra_hw::cpu()].store(false, Ordering::Relaxed);
    } else {
        restore_interface(hw);
    }
}

/// It comes back. What the guest's guest deactivated of its hypervisor's interrupts, and the kicks,
/// are the caller's to deliver once `hw` is unlocked.
pub(super) fn put_interface(vcpu: &Vcpu, hw: &mut Hw) -> (Kicks, nested::Ended) {
    // A maintenance interrupt may have taken the guest hypervisor's list registers out before.
    let below = nested::routes_interrupts(hw);
    let ended = nested::save_interface(hw);
    let kicks = if left_out(Safeguard::VgicSync) {
        Kicks::NONE
    } else {
        sync_interface(vcpu, hw)
    };
    if !below {
        save_interface(hw);
    }
    (kicks, ended)
}

fn put_here(vcpu: &Vcpu) {
    let cpu = umbra_hw::cpu();
    let (kicks, vttbr, ended) = {
        let mut hw = vcpu.hw.lock();
        if !hw.regs.hw.is_loaded_here() {
            return;
        }
        let (kicks, ended) = put_interface(vcpu, &mut hw);
        hw.regs.hw.save();
        hw.puts = hw.puts.wrapping_add(1);
        (kicks, hw.vttbr, ended)
    };
    events::load(vcpu, vttbr, false);
    gic::enable_private(VIRT_TIMER_PPI, false);
    gic::enable_private(PHYS_TIMER_PPI, false);
    gic::set_private_active(VIRT_TIMER_PPI, false);
    gic::set_private_active(PHYS_TIMER_PPI, false);
    let owner = LOADED[cpu].lock().take();
    umbra_hw::guest::unload_vttbr(vttbr);
    deliver(&vcpu.vm, kicks);
    ended.deliver(vcpu);
    drop(owner);
}

fn priority_bits() -> u32 {
    vgic::limits().priority_bits
}

/// Puts VMCR and the active priorities into hardware; the list registers come with the next flush.
fn restore_interface(hw: &Hw) {
    vgic::write_vmcr(hw.cpuif.vmcr.into_bits());
    let aprs = [&hw.cpuif.ap0r, &hw.cpuif.ap1r];
    vgic::write_aprs(priority_bits(), |group, n| {
        aprs[group][usize::from(n)].into()
    });
}

fn save_interface(hw: &mut Hw) {
    hw.cpuif.vmcr = Vmcr::from_bits(vgic::read_vmcr());
    let aprs = [&mut hw.cpuif.ap0r, &mut hw.cpuif.ap1r];
    vgic::read_aprs(priority_bits(), |group, n, value| {
        aprs[group][usize::from(n)] = value as u32;
    });
    vgic::write_hcr(0);
    INTERFACE_OFF[umbra_hw::cpu()].store(true, Ordering::Relaxed);
}

/// Takes the list registers back into the distributor's books. The vCPU must be loaded here. The
/// kicks are to be delivered once `hw` is unlocked.
pub(super) fn sync_interface(vcpu: &Vcpu, hw: &mut Hw) -> Kicks {
    // A guest hypervisor's own list registers are in hardware: none of the VM's are.
    if hw.below.loaded || hw.lrs.used == 0 && nested::routes_interrupts(hw) {
        return Kicks::NONE;
    }
    for index in 0..hw.lrs.used {
        hw.lrs.lr[index] = Lr::from_bits(vgic::read_lr(index));
        vgic::write_lr(index, 0);
    }
    hw.cpuif.vmcr = Vmcr::from_bits(vgic::read_vmcr());
    // With EOImode = 1 an end of interrupt deactivates nothing, and what does (ICC_DIR_EL1) traps: a
    // count is then not of deactivations. (QEMU counts ends in either mode.)
    let eois = if hw.cpuif.vmcr.eoi_mode() {
        0
    } else {
        HcrBits::from_bits(vgic::read_hcr()).eoi_count()
    };
    let kicks = vcpu.vm.gic.sync(vcpu, &hw.lrs, eois);
    hw.lrs.used = 0;
    kicks
}

/// Puts list registers and ICH_HCR_EL2 into hardware.
pub(super) fn load_lrs(hw: &mut Hw, ich_hcr: u64) {
    for index in 0..hw.lrs.used {
        vgic::write_lr(index, hw.lrs.lr[index].into_bits());
    }
    hw.ich_hcr = ich_hcr;
    vgic::write_hcr(ich_hcr);
    INTERFACE_OFF[umbra_hw::cpu()].store(false, Ordering::Relaxed);
}

/// Right before entry: the interface works, whatever the idle loop did.
pub(super) fn interface_on(vcpu: &Vcpu) {
    let cpu = umbra_hw::cpu();
    if INTERFACE_OFF[cpu].load(Ordering::Relaxed) {
        vgic::write_hcr(vcpu.hw.lock().ich_hcr);
        INTERFACE_OFF[cpu].store(false, Ordering::Relaxed);
    }
}
