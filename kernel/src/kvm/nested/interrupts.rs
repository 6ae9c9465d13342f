//! Interrupts of what a guest hypervisor runs: its list registers, in hardware while that runs.
//!
//! The guest hypervisor writes ICH_LR<n>_EL2 and the rest of the interface into the VNCR page. On the
//! way in they go to hardware; on the way out the states come back. A link to a physical interrupt
//! (HW = 1) names one of the guest hypervisor's virtual GIC. If that one stands for a timer of the
//! machine the link stays, to the machine's interrupt: what it runs rearms its timer and takes its
//! interrupts without leaving. Any other link is dropped, and in both cases the deactivation is told to
//! the virtual GIC ([`Ended`]).

use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::vgic;

use super::super::time::Ppis;
use super::super::timer;
use super::super::vcpu::{Hw, Vcpu};

const LR: u16 = 0x400;
/// ICH_AP0R0_EL2 and ICH_AP1R0_EL2.
const APR: [u16; 2] = [0x480, 0x4a0];
const ICH_HCR: u16 = 0x4c0;
const ICH_VMCR: u16 = 0x4c8;
const STATE: u64 = 0b11 << 62;
const PENDING: u64 = 1 << 62;
const LINKED: u64 = 1 << 61;
const PINTID: u64 = 0x3ff << 32;
const EOI: u64 = 1 << 41;
/// ICH_HCR_EL2: En, UIE, LRENPIE, NPIE, VGrp*IE, TC, TALL0, TALL1, TDIR.
const HCR_THEIRS: u64 = 0xff | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
const HCR_EOI_COUNT: u64 = 0x1f << 27;
/// ICH_HCR_EL2: the bits that ask about conditions of the whole interface.
const ASKS: u64 = 0xfe;

fn list_registers() -> u16 {
    vgic::limits().list_registers as u16
}

/// The guest hypervisor's own list registers, as the page has them.
fn theirs(hw: &Hw) -> impl Iterator<Item = u64> {
    hw.regs.hw.words(LR, list_registers())
}

/// What of a guest hypervisor's list registers is in hardware; sets of them are a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::kvm) struct Below {
    /// They are.
    pub(in crate::kvm) loaded: bool,
    /// Those that are not empty: the others are in hardware's.
    filled: u16,
    /// Those with a link whose interrupt has not ended yet.
    linked: u16,
}

/// List registers whose link is to an interrupt of the guest hypervisor's GIC that what it runs
/// deactivated.
#[must_use]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kvm) struct Ended(u16);

impl Ended {
    /// Tells the virtual GIC. No lock may be held, and the vCPU does not run.
    pub(in crate::kvm) fn deliver(self, vcpu: &Vcpu) {
        for n in each(self.0) {
            let lr = vcpu.hw.lock().regs.hw.get(LR + 8 * n);
            vcpu.vm.gic.deactivate(vcpu, link(lr).into());
        }
    }
}

/// The numbers of the bits that are set.
fn each(mut bits: u16) -> impl Iterator<Item = u16> {
    core::iter::from_fn(move || {
        let n = bits.trailing_zeros() as u16;
        bits &= bits.wrapping_sub(1);
        (n < 16).then_some(n)
    })
}

/// The interrupt of the guest hypervisor's GIC that a list register is linked to.
const fn link(lr: u64) -> u16 {
    ((lr & PINTID) >> 32) as u16
}

/// The list register for hardware, its link translated or dropped.
fn for_hardware(ppis: &Ppis, lr: u64) -> u64 {
    if lr & LINKED == 0 {
        return lr;
    }
    let machine = timer::links(ppis, false)
        .into_iter()
        .find(|&(intid, _)| intid == u32::from(link(lr)));
    match machine {
        Some((_, physical)) => lr & !PINTID | u64::from(physical) << 32,
        None => lr & !(LINKED | PINTID),
    }
}

/// Puts the guest hypervisor's interface into hardware, whose list registers are empty. Returns
/// ICH_HCR_EL2 for it.
pub(in crate::kvm) fn load(hw: &mut Hw) -> u64 {
    let (mut filled, mut linked) = (0, 0);
    for (lr, n) in theirs(hw).zip(0u16..) {
        // An empty one may ask for maintenance all the same.
        if lr & (STATE | EOI) != 0 {
            filled |= 1 << n;
            linked |= u16::from(lr & LINKED != 0 && lr & STATE != 0) << n;
            vgic::write_lr(usize::from(n), for_hardware(&hw.ppis, lr));
        }
    }
    let page = &hw.regs.hw;
    vgic::write_vmcr(page.get(ICH_VMCR));
    vgic::write_aprs(vgic::limits().priority_bits, |group, n| {
        page.get(APR[group] + 8 * n)
    });
    let hcr = page.get(ICH_HCR) & (HCR_THEIRS | HCR_EOI_COUNT);
    vgic::write_hcr(hcr);
    hw.below = Below {
        loaded: true,
        filled,
        linked,
    };
    hcr
}

/// Which linked interrupts ended since this was last asked.
pub(in crate::kvm) fn collect(hw: &mut Hw) -> Ended {
    let waiting = if hw.below.loaded { hw.below.linked } else { 0 };
    let is_over = |n: &u16| vgic::read_lr(usize::from(*n)) & STATE == 0;
    let over = each(waiting).filter(is_over).fold(0, |all, n| all | 1 << n);
    hw.below.linked &= !over;
    if left_out(Safeguard::NestedDeactivation) {
        return Ended::default();
    }
    Ended(over)
}

/// Takes it back into the page. Returns the interrupts of the guest hypervisor's GIC that what it
/// runs deactivated.
pub(in crate::kvm) fn save(hw: &mut Hw) -> Ended {
    if !hw.below.loaded {
        return Ended::default();
    }
    let ended = collect(hw);
    let Below { filled, .. } = core::mem::take(&mut hw.below);
    let page = &mut hw.regs.hw;
    for n in each(filled) {
        let now = vgic::read_lr(usize::from(n));
        vgic::write_lr(usize::from(n), 0);
        let before = page.get(LR + 8 * n);
        page.set(LR + 8 * n, before & !STATE | now & STATE);
    }
    page.set(ICH_VMCR, vgic::read_vmcr());
    vgic::read_aprs(vgic::limits().priority_bits, |group, n, value| {
        page.set(APR[group] + 8 * n, value);
    });
    let hcr = page.get(ICH_HCR);
    let eois = vgic::read_hcr() & HCR_EOI_COUNT;
    page.set(ICH_HCR, hcr & !HCR_EOI_COUNT | eois);
    vgic::write_hcr(0);
    ended
}

/// Whether a list register of the guest hypervisor's has an interrupt for what it runs that its interface
/// lets through. Running priorities are not looked at: a wait may end without a reason.
pub(in crate::kvm) fn waits_below(hw: &Hw) -> bool {
    if !hw.below.loaded || hw.regs.hw.get(ICH_HCR) & 1 == 0 {
        return false;
    }
    let vmcr = vgic::read_vmcr();
    (0..list_registers()).any(|n| {
        let lr = vgic::read_lr(usize::from(n));
        let is_on = vmcr >> (lr >> 60 & 1) & 1 == 1;
        lr >> 62 & 1 == 1 && is_on && (lr >> 48 & 0xff) < (vmcr >> 24 & 0xff)
    })
}

/// ICH_ELRSR_EL2: list registers that are free and ask for no EOI maintenance.
pub(super) fn empty(hw: &Hw) -> u64 {
    bits(hw, |lr| {
        lr & STATE == 0 && (lr & LINKED != 0 || lr & EOI == 0)
    })
}

/// ICH_EISR_EL2: list registers whose interrupt ended and that ask for maintenance.
pub(super) fn ended(hw: &Hw) -> u64 {
    bits(hw, has_ended)
}

/// The interrupt of this list register ended, and it asks for maintenance.
const fn has_ended(lr: u64) -> bool {
    lr & (STATE | LINKED | EOI) == EOI
}

fn bits(hw: &Hw, is: impl Fn(u64) -> bool) -> u64 {
    let flags = theirs(hw).zip(0..);
    flags.fold(0, |bits, (lr, n): (u64, u32)| bits | u64::from(is(lr)) << n)
}

/// ICH_MISR_EL2 (IHI 0069, "ICH_MISR_EL2"). Its bits 7:1 are conditions that the same bits of
/// ICH_HCR_EL2 ask about.
#[inline(always)]
pub(super) fn maintenance(hw: &Hw) -> u64 {
    let hcr = hw.regs.hw.get(ICH_HCR);
    // Most often nothing is asked for.
    if hcr & ASKS == 0 && theirs(hw).fold(0, |all, lr| all | lr) & EOI == 0 {
        return 0;
    }
    conditions(hw, hcr)
}

#[inline(never)]
fn conditions(hw: &Hw, hcr: u64) -> u64 {
    let vmcr = hw.regs.hw.get(ICH_VMCR);
    let (mut used, mut any, mut ended) = (0, 0, false);
    for lr in theirs(hw) {
        used += u32::from(lr & STATE != 0);
        any |= lr;
        ended |= has_ended(lr);
    }
    // VENG0 and VENG1, each asked about in both senses: enabled, disabled.
    let groups = (vmcr & 1) << 4 | (!vmcr & 1) << 5 | (vmcr & 2) << 5 | (!vmcr & 2) << 6;
    let met = u64::from(used <= 1) << 1
        | u64::from(hcr & HCR_EOI_COUNT != 0) << 2
        | u64::from(any & PENDING == 0) << 3
        | groups;
    u64::from(ended) | hcr & met
}

/// The line of the guest hypervisor's maintenance interrupt.
pub(in crate::kvm) fn maintenance_line(hw: &Hw) -> bool {
    let hcr = hw.regs.hw.get(ICH_HCR);
    // A list register asks by itself (EOI): most guest hypervisors switch the interface off when they
    // are at work, and this is asked after each of their exits.
    let off = hcr & 1 == 0 || left_out(Safeguard::NestedMaintenance);
    !off && (hcr & ASKS != 0 || ended(hw) != 0) && maintenance(hw) != 0
}
