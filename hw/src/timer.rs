//! The counter, and this CPU's own timer (CNTHP, PPI 26).

use crate::regs::{insn, mrs, msr};

/// The interrupt of umbra's own timer.
pub const HYP_TIMER_PPI: u32 = 26;
/// The interrupt of EL2's virtual timer: umbra leaves its own alone, a guest hypervisor has one.
pub const HYP_VIRT_TIMER_PPI: u32 = 28;
/// The interrupt of a guest's virtual timer.
pub const VIRT_TIMER_PPI: u32 = 27;
/// The interrupt of a guest's physical timer.
pub const PHYS_TIMER_PPI: u32 = 30;

/// Ticks per second.
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0")
}

/// The physical counter, in ticks.
pub fn ticks() -> u64 {
    // SAFETY: keeps the read from being hoisted over earlier code.
    unsafe { insn!("isb") };
    mrs!("cntpct_el0")
}

/// Nanoseconds since the counter started, without overflow for 500 years.
pub fn now_ns() -> u64 {
    ticks_to_ns(ticks())
}

/// Converts ticks to nanoseconds.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency().max(1))) as u64
}

/// Converts nanoseconds to ticks, rounding up, saturating.
pub fn ns_to_ticks(ns: u64) -> u64 {
    let ticks = (u128::from(ns) * u128::from(frequency())).div_ceil(1_000_000_000);
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Lets this CPU's timer fire at `deadline` (nanoseconds of [`now_ns`]), or never.
pub fn set_deadline(deadline: Option<u64>) {
    // SAFETY: with E2H the CNTP names are CNTHP, which is umbra's alone.
    unsafe {
        match deadline {
            Some(ns) => {
                msr!("cntp_cval_el0", ns_to_ticks(ns));
                msr!("cntp_ctl_el0", 1);
            }
            None => msr!("cntp_ctl_el0", 0),
        }
        insn!("isb");
    }
}

/// Opens the counters to EL0 and to guests, and stops umbra's timer. Once per CPU.
pub fn init_cpu() {
    // SAFETY: CNTHCTL_EL2 (E2H form): EL0PCTEN, EL0VCTEN act for processes; EL1PCTEN, EL1PTEN for
    // guests. Both offsets are zero until a guest brings its own.
    unsafe {
        msr!("cnthctl_el2", 1 | 1 << 1 | 1 << 10 | 1 << 11);
        msr!("cntvoff_el2", 0);
        msr!("cntp_ctl_el0", 0);
        insn!("isb");
    }
    crate::gic::enable_private(HYP_TIMER_PPI, true);
}
