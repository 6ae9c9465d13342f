//! The machine's performance counters, lent to a guest while it runs (Arm ARM D13).
//!
//! Guests' accesses trap. Before an entry the counters that count are written and started, after the exit they
//! are stopped and read: nothing counts while umbra or a process runs, and no overflow is left asserted, so
//! that the machine's interrupt does nothing but end the guest.

use crate::regs::{insn, mrs, msr};

/// The interrupt of the performance counters.
pub const PMU_PPI: u32 = 23;
const CYCLES: u32 = 31;

/// PMUVer of the machine, 0 where it has no PMUv3.
pub fn version() -> u8 {
    match crate::idregs::read(5, 0) >> 8 & 0xf {
        0xf => 0,
        version => version as u8,
    }
}

/// Event counters of the machine.
pub fn counters() -> u8 {
    (mrs!("s3_3_c9_c12_0") >> 11 & 0x1f) as u8 // PMCR_EL0.N
}

/// PMCEID0_EL0 and PMCEID1_EL0: the events that can be counted.
pub fn events() -> [u64; 2] {
    [mrs!("s3_3_c9_c12_6"), mrs!("s3_3_c9_c12_7")]
}

/// What hardware has while a guest runs, and what it counted.
#[derive(Clone, Debug, Default)]
pub struct PmuRegs {
    /// PMCR_EL0.
    pub control: u64,
    /// PMUSERENR_EL0.
    pub user: u64,
    /// The counters that count; bit 31 for cycles. No other is looked at.
    pub counting: u32,
    /// Those whose overflow ends the guest.
    pub interrupting: u32,
    /// Event and filter of each counter; the last is the cycle counter's filter.
    pub kinds: [u64; 32],
    /// What each counter stands at; the last counts cycles.
    pub counts: [u64; 32],
    /// Those that overflowed.
    pub overflows: u32,
}

/// PMEVTYPER: what may be asked of hardware: P, U, NSK, NSU, the event. Never counting at EL2.
const KIND: u64 = 0xf000_ffff;

/// Runs `$each!(n, CRm of the count, CRm of the type, op2)` for every event counter.
macro_rules! event_counters {
    ($each:ident) => {
        $each!(0, "8", "12", "0");
        $each!(1, "8", "12", "1");
        $each!(2, "8", "12", "2");
        $each!(3, "8", "12", "3");
        $each!(4, "8", "12", "4");
        $each!(5, "8", "12", "5");
        $each!(6, "8", "12", "6");
        $each!(7, "8", "12", "7");
        $each!(8, "9", "13", "0");
        $each!(9, "9", "13", "1");
        $each!(10, "9", "13", "2");
        $each!(11, "9", "13", "3");
        $each!(12, "9", "13", "4");
        $each!(13, "9", "13", "5");
        $each!(14, "9", "13", "6");
        $each!(15, "9", "13", "7");
        $each!(16, "10", "14", "0");
        $each!(17, "10", "14", "1");
        $each!(18, "10", "14", "2");
        $each!(19, "10", "14", "3");
        $each!(20, "10", "14", "4");
        $each!(21, "10", "14", "5");
        $each!(22, "10", "14", "6");
        $each!(23, "10", "14", "7");
        $each!(24, "11", "15", "0");
        $each!(25, "11", "15", "1");
        $each!(26, "11", "15", "2");
        $each!(27, "11", "15", "3");
        $each!(28, "11", "15", "4");
        $each!(29, "11", "15", "5");
        $each!(30, "11", "15", "6");
    };
}

fn read_count(number: u32) -> u64 {
    let mut count = 0;
    macro_rules! read {
        ($n:literal, $count:literal, $kind:literal, $op2:literal) => {
            if number == $n {
                count = mrs!(concat!("s3_3_c14_c", $count, "_", $op2));
            }
        };
    }
    event_counters!(read);
    count
}

fn write_counter(number: u32, kind: u64, count: u64) {
    macro_rules! write {
        ($n:literal, $count:literal, $kind:literal, $op2:literal) => {
            if number == $n {
                // SAFETY: a counter that is stopped; it counts nothing of umbra's.
                unsafe {
                    msr!(concat!("s3_3_c14_c", $kind, "_", $op2), kind & KIND);
                    msr!(concat!("s3_3_c14_c", $count, "_", $op2), count);
                }
            }
        };
    }
    event_counters!(write);
}

/// The numbers of the counters in `set`, cycles apart.
fn events_of(set: u32) -> impl Iterator<Item = u32> {
    (0..CYCLES).filter(move |n| set >> n & 1 != 0)
}

impl PmuRegs {
    /// Right before the guest is entered.
    pub(crate) fn load(&self) {
        // SAFETY: counters and their controls, which nobody else uses; counting at EL2 is never asked for.
        unsafe {
            msr!("s3_3_c9_c14_0", self.user & 0xf); // PMUSERENR_EL0
            if self.counting == 0 {
                return;
            }
            for n in events_of(self.counting) {
                write_counter(n, self.kinds[n as usize], self.counts[n as usize]);
            }
            if self.counting >> CYCLES != 0 {
                msr!("s3_3_c14_c15_7", self.kinds[31] & KIND & !0xffff); // PMCCFILTR_EL0
                msr!("s3_3_c9_c13_0", self.counts[31]); // PMCCNTR_EL0
            }
            msr!("s3_3_c9_c12_1", u64::from(self.counting)); // PMCNTENSET_EL0
            msr!(
                "s3_0_c9_c14_1",
                u64::from(self.interrupting & self.counting)
            ); // PMINTENSET_EL1
            // PMCR_EL0: E, D, LC, LP; nothing is reset by it.
            msr!("s3_3_c9_c12_0", self.control & (1 | 1 << 3 | 0b11 << 6));
            insn!("isb");
        }
    }

    /// Right after it left.
    pub(crate) fn unload(&mut self) {
        const ALL: u64 = 0xffff_ffff;
        // SAFETY: as in `load`.
        unsafe {
            msr!("s3_3_c9_c14_0", 0);
            if self.counting == 0 {
                return;
            }
            msr!("s3_3_c9_c12_0", 1 << 6);
            insn!("isb");
        }
        for n in events_of(self.counting) {
            self.counts[n as usize] = read_count(n);
        }
        if self.counting >> CYCLES != 0 {
            self.counts[31] = mrs!("s3_3_c9_c13_0");
        }
        self.overflows = mrs!("s3_3_c9_c14_3") as u32;
        // SAFETY: as in `load`.
        unsafe {
            msr!("s3_3_c9_c12_2", ALL); // PMCNTENCLR_EL0
            msr!("s3_0_c9_c14_2", ALL); // PMINTENCLR_EL1
            msr!("s3_3_c9_c12_3", ALL); // PMOVSCLR_EL0
            insn!("isb");
        }
    }
}

/// Nothing counts. Once per CPU.
pub(crate) fn init_cpu() {
    if version() == 0 {
        return;
    }
    const ALL: u64 = 0xffff_ffff;
    // SAFETY: as in `load`.
    unsafe {
        msr!("s3_3_c9_c12_0", 1 << 6);
        msr!("s3_3_c9_c12_2", ALL);
        msr!("s3_0_c9_c14_2", ALL);
        msr!("s3_3_c9_c12_3", ALL);
        msr!("s3_3_c9_c14_0", 0);
        insn!("isb");
    }
}
