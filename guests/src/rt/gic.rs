//! GICv3 as a guest sees it: distributor and redistributors by MMIO, CPU interface by system
//! registers (Arm IHI 0069).

use super::{cpu, mem};

/// Base of the distributor.
pub const DIST: u64 = 0x0800_0000;
/// Base of the first redistributor; each has 128 KiB.
pub const REDIST: u64 = 0x080a_0000;
/// INTID of the EL1 virtual timer.
pub const VIRTUAL_TIMER: u32 = 27;
/// INTID of the EL1 physical timer.
pub const PHYSICAL_TIMER: u32 = 30;

const CTLR: u64 = 0x0;
const TYPER: u64 = 0x4;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;
const WAKER: u64 = 0x14;
const SGI_FRAME: u64 = 0x1_0000;

/// Register write pending (GICD_CTLR, GICR_CTLR alike where it matters here).
const RWP: u32 = 1 << 31;

/// Priorities that a virtual GIC tells apart at the least: 5 bits, the highest of the byte.
pub const PRIORITY_STEP: u8 = 8;

/// Turns on the distributor for group 1; once, by CPU 0.
pub fn init_distributor() {
    // Affinity routing, group 1.
    mem::write32(DIST + CTLR, 1 << 4 | 1 << 1);
    wait();
}

/// Makes this CPU take group 1 interrupts of every priority above idle, all of its own disabled.
pub fn init_cpu() {
    let redist = redist(cpu());
    mem::write32(redist + WAKER, 0);
    while mem::read32(redist + WAKER) & 1 << 2 != 0 {
        core::hint::spin_loop();
    }
    mem::write32(redist + SGI_FRAME + ICENABLER, !0);
    mem::write32(redist + SGI_FRAME + IGROUPR, !0);
    crate::msr!("S3_0_C12_C12_5", crate::mrs!("S3_0_C12_C12_5") | 1); // ICC_SRE_EL1.SRE
    set_mask(0xff);
    set_binary_point(0);
    set_split_eoi(false);
    crate::msr!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
}

/// Takes back every state of every interrupt that this CPU sees, and its running priorities.
pub fn forget_all() {
    for first in (0..intids()).step_by(32) {
        for register in [ICENABLER, ICPENDR, ICACTIVER] {
            let (at, _) = bit(register, first);
            mem::write32(at, !0);
        }
    }
    wait();
    for _ in 0..32 {
        if running_priority() == 0xff {
            break;
        }
        end(32);
    }
    init_cpu();
}

/// Interrupts that the distributor has, SGIs and PPIs included.
pub fn intids() -> u32 {
    (mem::read32(DIST + TYPER) & 0x1f) * 32 + 32
}

fn redist(cpu: usize) -> u64 {
    REDIST + cpu as u64 * 0x2_0000
}

/// The frame that holds an interrupt's bits: this CPU's for SGIs and PPIs.
fn frame(intid: u32) -> u64 {
    if intid < 32 {
        redist(cpu()) + SGI_FRAME
    } else {
        DIST
    }
}

fn bit(register: u64, intid: u32) -> (u64, u32) {
    (
        frame(intid) + register + u64::from(intid / 32) * 4,
        1 << (intid % 32),
    )
}

fn wait() {
    while mem::read32(DIST + CTLR) & RWP != 0 {
        core::hint::spin_loop();
    }
}

fn write_bit(register: u64, intid: u32) {
    let (at, bit) = bit(register, intid);
    mem::write32(at, bit);
    wait();
}

fn read_bit(register: u64, intid: u32) -> bool {
    let (at, bit) = bit(register, intid);
    mem::read32(at) & bit != 0
}

/// Enables an interrupt at a priority, in group 1, SPIs routed to CPU 0.
pub fn enable(intid: u32, priority: u8) {
    set_priority(intid, priority);
    if intid >= 32 {
        let (at, bit) = bit(IGROUPR, intid);
        mem::write32(at, mem::read32(at) | bit);
        route(intid, 0);
    }
    write_bit(ISENABLER, intid);
}

/// Disables an interrupt.
pub fn disable(intid: u32) {
    write_bit(ICENABLER, intid);
}

/// Whether it is enabled.
pub fn is_enabled(intid: u32) -> bool {
    read_bit(ISENABLER, intid)
}

/// Sets a priority; lower is more urgent.
pub fn set_priority(intid: u32, priority: u8) {
    mem::write8(frame(intid) + IPRIORITYR + u64::from(intid), priority);
}

/// The priority, as the GIC keeps it.
pub fn priority(intid: u32) -> u8 {
    mem::read8(frame(intid) + IPRIORITYR + u64::from(intid))
}

/// Routes an SPI to a CPU.
pub fn route(intid: u32, cpu: u64) {
    mem::write64(DIST + IROUTER + u64::from(intid) * 8, cpu);
}

/// Makes an SPI an edge, or a level.
pub fn set_edge(intid: u32, edge: bool) {
    let at = frame(intid) + ICFGR + u64::from(intid / 16) * 4;
    let bit = 2 << (intid % 16 * 2);
    let old = mem::read32(at);
    mem::write32(at, if edge { old | bit } else { old & !bit });
}

/// Sets an interrupt pending.
pub fn set_pending(intid: u32) {
    write_bit(ISPENDR, intid);
}

/// Takes the pending state that `set_pending` gave.
pub fn clear_pending(intid: u32) {
    write_bit(ICPENDR, intid);
}

/// Whether it is pending.
pub fn is_pending(intid: u32) -> bool {
    read_bit(ISPENDR, intid)
}

/// Sets an interrupt active.
pub fn set_active(intid: u32) {
    write_bit(ISACTIVER, intid);
}

/// Takes its active state.
pub fn clear_active(intid: u32) {
    write_bit(ICACTIVER, intid);
}

/// Whether it is active.
pub fn is_active(intid: u32) -> bool {
    read_bit(ISACTIVER, intid)
}

/// Sends an SGI to the CPUs of this set (ICC_SGI1R_EL1, affinity 0 by bits).
pub fn send_sgi(intid: u32, cpus: u16) {
    crate::op!("dsb ishst");
    crate::msr!(
        "S3_0_C12_C11_5",
        u64::from(intid & 15) << 24 | u64::from(cpus)
    );
}

/// Acknowledges the most urgent interrupt (ICC_IAR1_EL1).
pub fn acknowledge() -> u32 {
    let intid = crate::mrs!("S3_0_C12_C12_0") as u32;
    crate::op!("dsb sy");
    intid
}

/// What `acknowledge` would give (ICC_HPPIR1_EL1).
pub fn highest_pending() -> u32 {
    crate::mrs!("S3_0_C12_C12_2") as u32
}

/// Drops the running priority, and deactivates unless EOI is split (ICC_EOIR1_EL1).
pub fn end(intid: u32) {
    crate::msr!("S3_0_C12_C12_1", u64::from(intid));
}

/// Deactivates, when EOI is split (ICC_DIR_EL1).
pub fn deactivate(intid: u32) {
    crate::msr!("S3_0_C12_C11_1", u64::from(intid));
}

/// Running priority, 0xff when idle (ICC_RPR_EL1).
pub fn running_priority() -> u8 {
    crate::mrs!("S3_0_C12_C11_3") as u8
}

/// Lets in interrupts more urgent than this (ICC_PMR_EL1).
pub fn set_mask(priority: u8) {
    crate::msr!("S3_0_C4_C6_0", u64::from(priority));
}

/// The mask as kept.
pub fn mask() -> u8 {
    crate::mrs!("S3_0_C4_C6_0") as u8
}

/// Priority bits that do not take part in preemption, less one (ICC_BPR1_EL1).
pub fn set_binary_point(value: u64) {
    crate::msr!("S3_0_C12_C12_3", value);
}

/// The binary point as kept: the least that the interface has, if less was written.
pub fn binary_point() -> u64 {
    crate::mrs!("S3_0_C12_C12_3") & 7
}

/// EOImode: whether ending and deactivating are two steps (ICC_CTLR_EL1).
pub fn set_split_eoi(split: bool) {
    let ctlr = crate::mrs!("S3_0_C12_C12_4");
    crate::msr!("S3_0_C12_C12_4", ctlr & !2 | u64::from(split) << 1);
}
