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

use super::super::timer;
use super::super::vcpu::{Hw, Vcpu};

const LR: u16 = 0x400;
const AP0R: u16 = 0x480;
const AP1R: u16 = 0x4a0;
const ICH_HCR: u16 = 0x4c0;
const ICH_VMCR: u16 = 0x4c8;
const STATE: u64 = 0b11 << 62;
const LINKED: u64 = 1 << 61;
const PINTID: u64 = 0x3ff << 32;
const EOI: u64 = 1 << 41;
/// ICH_HCR_EL2: En, UIE, LRENPIE, NPIE, VGrp*IE, TC, TALL0, TALL1, TDIR.
const HCR_THEIRS: u64 = 0xff | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
const HCR_EOI_COUNT: u64 = 0x1f << 27;

fn list_registers() -> u16 {
    vgic::limits().list_registers as u16
}

/// What of a guest hypervisor's list registers is in hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::kvm) struct Below {
    /// They are.
    pub(in crate::kvm) loaded: bool,
    /// A bit for each with a link whose interrupt has not ended yet.
    linked: u16,
}

/// Interrupts of the guest hypervisor's GIC that what it runs deactivated.
#[must_use]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kvm) struct Ended {
    intids: [u16; vgic::MAX_LRS],
    count: usize,
}

impl Ended {
    fn push(&mut self, intid: u16) {
        if let Some(place) = self.intids.get_mut(self.count) {
            *place = intid;
            self.count += 1;
        }
    }

    /// Tells the virtual GIC. No lock may be held.
    pub(in crate::kvm) fn deliver(self, vcpu: &Vcpu) {
        for &intid in &self.intids[..self.count] {
            vcpu.vm.gic.deactivate(vcpu, intid.into());
        }
    }
}

/// The interrupt of the guest hypervisor's GIC that a list register is linked to.
const fn link(lr: u64) -> u16 {
    ((lr & PINTID) >> 32) as u16
}

/// The list register for hardware, its link translated or dropped.
fn for_hardware(lr: u64) -> u64 {
    if lr & LINKED == 0 {
        return lr;
    }
    let machine = timer::links(false)
        .into_iter()
        .find(|&(intid, _)| intid == u32::from(link(lr)));
    match machine {
        Some((_, physical)) => lr & !PINTID | u64::from(physical) << 32,
        None => lr & !(LINKED | PINTID),
    }
}

/// Puts the guest hypervisor's interface into hardware. Returns ICH_HCR_EL2 for it.
pub(in crate::kvm) fn load(hw: &mut Hw) -> u64 {
    let page = &hw.regs.hw;
    let mut linked = 0;
    for n in 0..list_registers() {
        let lr = page.get(LR + 8 * n);
        if lr & LINKED != 0 && lr & STATE != 0 {
            linked |= 1 << n;
        }
        vgic::write_lr(usize::from(n), for_hardware(lr));
    }
    vgic::write_vmcr(page.get(ICH_VMCR));
    let read = |base: u16| core::array::from_fn(|n| page.get(base + 8 * n as u16));
    vgic::write_aprs(vgic::limits().priority_bits, &[read(AP0R), read(AP1R)]);
    let hcr = page.get(ICH_HCR) & (HCR_THEIRS | HCR_EOI_COUNT);
    vgic::write_hcr(hcr);
    hw.below = Below {
        loaded: true,
        linked,
    };
    hcr
}

/// Which linked interrupts ended since this was last asked.
pub(in crate::kvm) fn collect(hw: &mut Hw) -> Ended {
    let mut ended = Ended::default();
    let mut left = if hw.below.loaded { hw.below.linked } else { 0 };
    while left != 0 {
        let n = left.trailing_zeros() as u16;
        left &= left - 1;
        if vgic::read_lr(usize::from(n)) & STATE == 0 {
            hw.below.linked &= !(1 << n);
            if !left_out(Safeguard::NestedDeactivation) {
                ended.push(link(hw.regs.hw.get(LR + 8 * n)));
            }
        }
    }
    ended
}

/// Takes it back into the page. Returns the interrupts of the guest hypervisor's GIC that what it
/// runs deactivated.
pub(in crate::kvm) fn save(hw: &mut Hw) -> Ended {
    if !hw.below.loaded {
        return Ended::default();
    }
    let ended = collect(hw);
    hw.below = Below::default();
    for n in 0..list_registers() {
        let now = vgic::read_lr(usize::from(n));
        vgic::write_lr(usize::from(n), 0);
        let before = hw.regs.hw.get(LR + 8 * n);
        hw.regs.hw.set(LR + 8 * n, before & !STATE | now & STATE);
    }
    hw.regs.hw.set(ICH_VMCR, vgic::read_vmcr());
    let [ap0r, ap1r] = vgic::read_aprs(vgic::limits().priority_bits);
    for n in 0..4 {
        hw.regs.hw.set(AP0R + 8 * n as u16, ap0r[n]);
        hw.regs.hw.set(AP1R + 8 * n as u16, ap1r[n]);
    }
    let hcr = hw.regs.hw.get(ICH_HCR);
    let eois = vgic::read_hcr() & HCR_EOI_COUNT;
    hw.regs.hw.set(ICH_HCR, hcr & !HCR_EOI_COUNT | eois);
    vgic::write_hcr(0);
    ended
}

/// ICH_ELRSR_EL2: list registers that are free and ask for no EOI maintenance.
pub(super) fn empty(hw: &Hw) -> u64 {
    bits(hw, |lr| {
        lr & STATE == 0 && (lr & LINKED != 0 || lr & EOI == 0)
    })
}

/// ICH_EISR_EL2: list registers whose interrupt ended and that ask for maintenance.
pub(super) fn ended(hw: &Hw) -> u64 {
    bits(hw, |lr| {
        lr & STATE == 0 && lr & LINKED == 0 && lr & EOI != 0
    })
}

fn bits(hw: &Hw, is: impl Fn(u64) -> bool) -> u64 {
    (0..list_registers()).fold(0, |bits, n| {
        bits | u64::from(is(hw.regs.hw.get(LR + 8 * n))) << n
    })
}

/// ICH_MISR_EL2 (IHI 0069, "ICH_MISR_EL2").
pub(super) fn maintenance(hw: &Hw) -> u64 {
    let hcr = hw.regs.hw.get(ICH_HCR);
    let vmcr = hw.regs.hw.get(ICH_VMCR);
    let bit = |value: u64, n: u32| value >> n & 1 == 1;
    let used = bits(hw, |lr| lr & STATE != 0).count_ones();
    let pending = bits(hw, |lr| lr >> 62 & 1 == 1) != 0;
    let flags = [
        ended(hw) != 0,
        bit(hcr, 1) && used <= 1,
        bit(hcr, 2) && hcr & HCR_EOI_COUNT != 0,
        bit(hcr, 3) && !pending,
        bit(hcr, 4) && bit(vmcr, 0),
        bit(hcr, 5) && !bit(vmcr, 0),
        bit(hcr, 6) && bit(vmcr, 1),
        bit(hcr, 7) && !bit(vmcr, 1),
    ];
    flags
        .iter()
        .enumerate()
        .fold(0, |misr, (n, &set)| misr | u64::from(set) << n)
}

/// The line of the guest hypervisor's maintenance interrupt.
pub(in crate::kvm) fn maintenance_line(hw: &Hw) -> bool {
    const ASKS: u64 = 0xfe;
    let hcr = hw.regs.hw.get(ICH_HCR);
    // A list register asks by itself (EOI): most guest hypervisors switch the interface off when they
    // are at work, and this is asked after each of their exits.
    let off = hcr & 1 == 0 || left_out(Safeguard::NestedMaintenance);
    !off && (hcr & ASKS != 0 || ended(hw) != 0) && maintenance(hw) != 0
}
