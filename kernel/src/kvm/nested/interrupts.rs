//! Interrupts of what a guest hypervisor runs: its list registers, in hardware while that runs.
//!
//! The guest hypervisor writes ICH_LR<n>_EL2 and the rest of the interface into the VNCR page. On the
//! way in they go to hardware, without the link to physical interrupts (pINTID is the guest
//! hypervisor's number, and its GIC is virtual); on the way out the states come back, and the
//! deactivation that the link stands for is done on its virtual GIC.

use alloc::vec::Vec;

use umbra_hw::vgic;

use super::super::vcpu::Hw;

const LR: u16 = 0x400;
const AP0R: u16 = 0x480;
const AP1R: u16 = 0x4a0;
const ICH_HCR: u16 = 0x4c0;
const ICH_VMCR: u16 = 0x4c8;
const STATE: u64 = 0b11 << 62;
const LINKED: u64 = 1 << 61;
const PINTID: u64 = 0x1fff << 32;
const EOI: u64 = 1 << 41;
/// ICH_HCR_EL2: En, UIE, LRENPIE, NPIE, VGrp*IE, TC, TALL0, TALL1, TDIR.
const HCR_THEIRS: u64 = 0xff | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
const HCR_EOI_COUNT: u64 = 0x1f << 27;

fn list_registers() -> u16 {
    vgic::limits().list_registers as u16
}

/// Puts the guest hypervisor's interface into hardware. Returns ICH_HCR_EL2 for it.
pub(in crate::kvm) fn load(hw: &mut Hw) -> u64 {
    let page = &hw.regs.hw;
    for n in 0..list_registers() {
        let lr = page.get(LR + 8 * n);
        let lr = if lr & LINKED != 0 {
            lr & !(LINKED | PINTID)
        } else {
            lr
        };
        vgic::write_lr(usize::from(n), lr);
    }
    vgic::write_vmcr(page.get(ICH_VMCR));
    let read = |base: u16| core::array::from_fn(|n| page.get(base + 8 * n as u16));
    vgic::write_aprs(vgic::limits().priority_bits, &[read(AP0R), read(AP1R)]);
    let hcr = page.get(ICH_HCR) & HCR_THEIRS;
    vgic::write_hcr(hcr);
    hw.below_loaded = true;
    hcr
}

/// Takes it back into the page. Returns the interrupts of the guest hypervisor's GIC that what it
/// runs deactivated.
pub(in crate::kvm) fn save(hw: &mut Hw) -> Vec<u32> {
    let mut ended = Vec::new();
    if !core::mem::take(&mut hw.below_loaded) {
        return ended;
    }
    let eois = vgic::read_hcr() & HCR_EOI_COUNT;
    for n in 0..list_registers() {
        let now = vgic::read_lr(usize::from(n));
        vgic::write_lr(usize::from(n), 0);
        let before = hw.regs.hw.get(LR + 8 * n);
        if before & LINKED != 0 && before & STATE != 0 && now & STATE == 0 {
            ended.push((before >> 32 & 0x1fff) as u32);
        }
        hw.regs.hw.set(LR + 8 * n, before & !STATE | now & STATE);
    }
    hw.regs.hw.set(ICH_VMCR, vgic::read_vmcr());
    let [ap0r, ap1r] = vgic::read_aprs(vgic::limits().priority_bits);
    for n in 0..4 {
        hw.regs.hw.set(AP0R + 8 * n as u16, ap0r[n]);
        hw.regs.hw.set(AP1R + 8 * n as u16, ap1r[n]);
    }
    let hcr = hw.regs.hw.get(ICH_HCR);
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
    hw.regs.hw.get(ICH_HCR) & 1 != 0 && maintenance(hw) != 0
}
