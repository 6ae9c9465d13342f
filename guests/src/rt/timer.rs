//! The generic timer: counter, and the two timers of EL1.

/// Fires when the counter reaches the compare value: ENABLE, IMASK and ISTATUS of CNTx_CTL_EL0.
pub const ENABLE: u64 = 1;
/// The timer's interrupt is held back.
pub const IMASK: u64 = 2;
/// The condition is met.
pub const ISTATUS: u64 = 4;

/// One of EL1's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// CNTV, interrupt 27.
    Virtual,
    /// CNTP, interrupt 30.
    Physical,
}

/// Virtual counter, in ticks.
pub fn now() -> u64 {
    crate::op!("isb");
    crate::mrs!("cntvct_el0")
}

/// Ticks of some microseconds.
pub fn microseconds(count: u64) -> u64 {
    crate::mrs!("cntfrq_el0") * count / 1_000_000
}

/// Spins until a condition holds; false if `milliseconds` came first.
pub fn wait_for(milliseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = now() + microseconds(milliseconds * 1000);
    loop {
        if condition() {
            return true;
        }
        if now() > end {
            return false;
        }
        core::hint::spin_loop();
    }
}

impl Timer {
    /// Its interrupt.
    pub fn intid(self) -> u32 {
        match self {
            Timer::Virtual => super::gic::VIRTUAL_TIMER,
            Timer::Physical => super::gic::PHYSICAL_TIMER,
        }
    }

    /// Its counter.
    pub fn counter(self) -> u64 {
        crate::op!("isb");
        match self {
            Timer::Virtual => crate::mrs!("cntvct_el0"),
            Timer::Physical => crate::mrs!("cntpct_el0"),
        }
    }

    /// Reads CTL.
    pub fn control(self) -> u64 {
        crate::op!("isb");
        match self {
            Timer::Virtual => crate::mrs!("cntv_ctl_el0"),
            Timer::Physical => crate::mrs!("cntp_ctl_el0"),
        }
    }

    /// Writes CTL.
    pub fn set_control(self, value: u64) {
        match self {
            Timer::Virtual => crate::msr!("cntv_ctl_el0", value),
            Timer::Physical => crate::msr!("cntp_ctl_el0", value),
        }
    }

    /// Reads CVAL.
    pub fn compare(self) -> u64 {
        match self {
            Timer::Virtual => crate::mrs!("cntv_cval_el0"),
            Timer::Physical => crate::mrs!("cntp_cval_el0"),
        }
    }

    /// Writes CVAL.
    pub fn set_compare(self, value: u64) {
        match self {
            Timer::Virtual => crate::msr!("cntv_cval_el0", value),
            Timer::Physical => crate::msr!("cntp_cval_el0", value),
        }
    }

    /// Reads TVAL: 32 bits, signed.
    pub fn remaining(self) -> i32 {
        match self {
            Timer::Virtual => crate::mrs!("cntv_tval_el0") as i32,
            Timer::Physical => crate::mrs!("cntp_tval_el0") as i32,
        }
    }

    /// Writes TVAL.
    pub fn set_remaining(self, value: i32) {
        let value = u64::from(value as u32);
        match self {
            Timer::Virtual => crate::msr!("cntv_tval_el0", value),
            Timer::Physical => crate::msr!("cntp_tval_el0", value),
        }
    }

    /// Fires in so many ticks.
    pub fn start(self, ticks: u64) {
        self.set_compare(self.counter() + ticks);
        self.set_control(ENABLE);
    }

    /// Turns it off.
    pub fn stop(self) {
        self.set_control(0);
    }
}
