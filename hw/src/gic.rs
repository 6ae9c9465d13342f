//! The physical GICv3: distributor, this CPU's redistributor and CPU interface.
//!
//! Interrupts are taken with EOImode=1: an acknowledge is followed by a priority drop at once and by
//! a deactivation later. umbra deactivates its own; the timers of a guest stay active until the
//! guest deactivates them through a list register with the HW bit.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::mmu::{self, Kind, NoTablePages};
use crate::percpu::{self, MAX_CPUS};
use crate::regs::{insn, mrs, msr};
use crate::sync::SpinLock;

const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
const GICD_IGROUPR: u64 = 0x80;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_IROUTER: u64 = 0x6000;
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const SGI_FRAME: u64 = 0x1_0000;
const REDIST_STRIDE: u64 = 0x2_0000;

/// An acknowledged interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntId(pub u32);

static DIST: AtomicU64 = AtomicU64::new(0);
static REDISTS: AtomicU64 = AtomicU64::new(0);
static LOCK: SpinLock<()> = SpinLock::new("gic", 252, ());
/// Affinity of each CPU, for SGIs.
static AFFINITY: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn read(base: u64, offset: u64) -> u32 {
    // SAFETY: a register inside a mapped GIC frame.
    unsafe { ((base + offset) as *const u32).read_volatile() }
}

fn write(base: u64, offset: u64, value: u32) {
    // SAFETY: as above; umbra owns the physical GIC.
    unsafe { ((base + offset) as *mut u32).write_volatile(value) }
}

/// Maps the distributor and the redistributor region and switches the distributor on.
///
/// # Errors
/// [`NoTablePages`].
pub fn init(distributor: u64, redistributors: u64, redist_bytes: u64) -> Result<(), NoTablePages> {
    let dist = mmu::map_device(distributor, 0x1_0000, Kind::Device)?;
    let redist_bytes = redist_bytes.min(REDIST_STRIDE * MAX_CPUS as u64);
    let redists = mmu::map_device(redistributors, redist_bytes, Kind::Device)?;
    DIST.store(dist, Ordering::Release);
    REDISTS.store(redists, Ordering::Release);
    write(dist, GICD_CTLR, 0);
    let lines = u64::from(read(dist, GICD_TYPER) & 0x1f) + 1;
    for n in 1..lines {
        write(dist, GICD_ICENABLER + 4 * n, u32::MAX);
        write(dist, GICD_ICACTIVER + 4 * n, u32::MAX);
        write(dist, GICD_IGROUPR + 4 * n, u32::MAX);
    }
    for n in 8..lines * 8 {
        write(dist, GICD_IPRIORITYR + 4 * n, 0xa0a0_a0a0);
    }
    // ARE_NS, EnableGrp1 (with security off or seen from Non-secure).
    write(dist, GICD_CTLR, 1 << 4 | 1 << 1);
    Ok(())
}

/// Switches on this CPU's redistributor and CPU interface; SGIs and PPIs stay disabled.
pub fn init_cpu() {
    let mpidr = mrs!("mpidr_el1");
    let affinity = mpidr & 0xff_ffff | (mpidr >> 32 & 0xff) << 24;
    AFFINITY[percpu::cpu()].store(affinity, Ordering::Release);
    let mut base = REDISTS.load(Ordering::Acquire);
    loop {
        let typer = u64::from(read(base, GICR_TYPER)) | u64::from(read(base, GICR_TYPER + 4)) << 32;
        if typer >> 32 == affinity {
            break;
        }
        assert!(
            typer & 1 << 4 == 0,
            "no redistributor for affinity {affinity:#x}"
        );
        base += REDIST_STRIDE;
    }
    percpu::this().gicr.set(base as usize);
    write(base, GICR_WAKER, 0);
    while read(base, GICR_WAKER) & 1 << 2 != 0 {
        core::hint::spin_loop();
    }
    let sgi = base + SGI_FRAME;
    write(sgi, GICD_ICENABLER, u32::MAX);
    write(sgi, GICD_ICACTIVER, u32::MAX);
    write(sgi, GICD_IGROUPR, u32::MAX);
    for n in 0..8 {
        write(sgi, GICD_IPRIORITYR + 4 * n, 0xa0a0_a0a0);
    }
    // SAFETY: the CPU interface at EL2 is umbra's: system registers on, all priorities, EOImode=1.
    unsafe {
        msr!("s3_4_c12_c9_5", 0xf); // ICC_SRE_EL2: Enable, DIB, DFB, SRE
        insn!("isb");
        msr!("s3_0_c12_c12_5", 1); // ICC_SRE_EL1.SRE
        msr!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1
        msr!("s3_0_c12_c12_3", 0); // ICC_BPR1_EL1
        msr!("s3_0_c12_c12_4", 1 << 1); // ICC_CTLR_EL1.EOImode
        msr!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
        msr!("s3_4_c12_c11_0", 0); // ICH_HCR_EL2: no virtual interface until a guest runs
        insn!("isb");
    }
}

/// Enables or disables a private interrupt (0..32) of this CPU.
pub fn enable_private(id: u32, on: bool) {
    assert!(id < 32);
    let sgi = percpu::this().gicr.get() as u64 + SGI_FRAME;
    write(
        sgi,
        if on { GICD_ISENABLER } else { GICD_ICENABLER },
        1 << id,
    );
}

/// Sets or clears the active state of a private interrupt of this CPU.
pub fn set_private_active(id: u32, active: bool) {
    assert!(id < 32);
    let sgi = percpu::this().gicr.get() as u64 + SGI_FRAME;
    write(
        sgi,
        if active {
            GICD_ISACTIVER
        } else {
            GICD_ICACTIVER
        },
        1 << id,
    );
}

/// Routes a shared interrupt to this CPU and enables it.
pub fn enable_shared(id: u32) {
    assert!((32..1020).contains(&id));
    let _guard = LOCK.lock();
    let dist = DIST.load(Ordering::Acquire);
    let affinity = AFFINITY[percpu::cpu()].load(Ordering::Acquire);
    let at = GICD_IROUTER + 8 * u64::from(id);
    write(dist, at, affinity as u32 & 0xff_ffff);
    write(dist, at + 4, (affinity >> 24) as u32);
    write(
        dist,
        GICD_ISENABLER + u64::from(id / 32) * 4,
        1 << (id % 32),
    );
}

/// Acknowledges the highest-priority pending interrupt and drops its priority; `None` if there is
/// none. The caller owes a [`deactivate`] unless a guest will do it.
pub fn acknowledge() -> Option<IntId> {
    let id = mrs!("s3_0_c12_c12_0") as u32; // ICC_IAR1_EL1
    if id >= 1020 {
        return None;
    }
    // SAFETY: drops the priority of the interrupt just acknowledged.
    unsafe {
        insn!("dsb sy");
        msr!("s3_0_c12_c12_1", u64::from(id)); // ICC_EOIR1_EL1
        insn!("isb");
    }
    Some(IntId(id))
}

/// Deactivates an interrupt that was acknowledged.
pub fn deactivate(id: IntId) {
    // SAFETY: ICC_DIR_EL1 for an interrupt that umbra took.
    unsafe {
        msr!("s3_0_c12_c11_1", u64::from(id.0));
        insn!("isb");
    }
}

/// Sends software-generated interrupt `id` to another CPU.
pub fn send(cpu: usize, id: u32) {
    assert!(id < 16);
    let affinity = AFFINITY[cpu].load(Ordering::Acquire);
    let aff0 = affinity & 0xff;
    let value = 1u64 << (aff0 & 0xf)
        | (affinity >> 8 & 0xff) << 16
        | u64::from(id) << 24
        | (affinity >> 16 & 0xff) << 32
        | (aff0 >> 4) << 44
        | (affinity >> 24 & 0xff) << 48;
    // SAFETY: ICC_SGI1R_EL1; stores before it are visible to the target first.
    unsafe {
        insn!("dsb ishst");
        msr!("s3_0_c12_c11_5", value);
        insn!("isb");
    }
}
