//! A PMUv3 as its registers behave (Arm ARM D13, D24.5): what a trapped access reads, changes, or is undefined.
//!
//! The counting is the machine's: while the guest runs, hardware has the counters of [`Pmu::counting`], and
//! afterwards what it counted comes back ([`Pmu::counted`]). Everything else is here. What always holds: no bit
//! of a counter that is not there is ever set, and a count fits its width.
//!
//! A guest hypervisor's MDCR_EL2 divides the event counters: those from HPMN on are virtual EL2's alone, which
//! HPME starts and which nothing at EL1 sees (D13.6). Its own code counts by NSH, what runs below it by P; hardware
//! runs both at EL1, so [`Pmu::kind`] says in terms of EL1 what counts now.

use crate::sysreg::SysReg;

/// Event counters there can be.
pub const MAX_COUNTERS: usize = 31;
/// The bit of the cycle counter.
pub const CYCLES: u32 = 31;

/// PMCR_EL0: counting is on.
const E: u64 = 1 << 0;
/// PMCR_EL0: the event counters become zero.
const P: u64 = 1 << 1;
/// PMCR_EL0: the cycle counter becomes zero.
const C: u64 = 1 << 2;
/// PMCR_EL0: the cycle counter rests where counting is prohibited.
const DP: u64 = 1 << 5;
/// PMCR_EL0: D, X, DP.
const KEPT: u64 = 1 << 3 | 1 << 4 | DP;
/// PMCR_EL0: the cycle counter overflows at 64 bits, as it always does without AArch32.
const LC: u64 = 1 << 6;
/// PMCR_EL0: event counters overflow at 64 bits (FEAT_PMUv3p5).
const LP: u64 = 1 << 7;
/// PMUSERENR_EL0: EN, SW, CR, ER.
const USER: u64 = 0xf;
/// PMEVTYPER and PMCCFILTR: P, U, NSK, NSU.
const FILTER: u64 = 0xf << 28;
/// P: not at EL1.
const NOT_EL1: u64 = 1 << 31;
/// NSK: where it differs from P, not at EL1 either.
const NSK: u64 = 1 << 29;
/// NSH: at EL2 too. Only a guest hypervisor has it.
const NSH: u64 = 1 << 27;
/// PMEVTYPER: the event.
const EVENT: u64 = 0xffff;

/// MDCR_EL2: event counters below it are EL1's.
const HPMN: u64 = 0x1f;
/// MDCR_EL2: the others count.
const HPME: u64 = 1 << 7;
/// MDCR_EL2: EL1's event counters rest at EL2 (FEAT_PMUv3p1).
const HPMD: u64 = 1 << 17;
/// MDCR_EL2: the cycle counter rests at EL2 (FEAT_PMUv3p5).
const HCCD: u64 = 1 << 23;

/// What a vCPU with virtual EL2 has besides.
#[derive(Clone, Copy, Debug)]
struct Hypervisor {
    mdcr: u64,
    /// Virtual EL2 runs, or EL0 under it.
    runs: bool,
}

/// A register by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PmuReg {
    Control,
    Enable { set: bool },
    Interrupt { set: bool },
    Overflow { set: bool },
    Increment,
    Select,
    User,
    Identification(usize),
    Machine,
    Cycles,
    CycleFilter,
    Selected { count: bool },
    Count(usize),
    Type(usize),
}

impl PmuReg {
    fn of(enc: SysReg) -> Option<Self> {
        if (enc.op0(), enc.op1(), enc.crn()) == (3, 3, 14) && enc.crm() >= 8 {
            let n = usize::from(enc.crm() & 3) << 3 | usize::from(enc.op2());
            return match (enc.crm() >= 12, n) {
                (true, 31) => Some(Self::CycleFilter),
                (false, 31) => None,
                (true, n) => Some(Self::Type(n)),
                (false, n) => Some(Self::Count(n)),
            };
        }
        Some(match enc {
            SysReg::PMCR_EL0 => Self::Control,
            SysReg::PMCNTENSET_EL0 => Self::Enable { set: true },
            SysReg::PMCNTENCLR_EL0 => Self::Enable { set: false },
            SysReg::PMINTENSET_EL1 => Self::Interrupt { set: true },
            SysReg::PMINTENCLR_EL1 => Self::Interrupt { set: false },
            SysReg::PMOVSSET_EL0 => Self::Overflow { set: true },
            SysReg::PMOVSCLR_EL0 => Self::Overflow { set: false },
            SysReg::PMSWINC_EL0 => Self::Increment,
            SysReg::PMSELR_EL0 => Self::Select,
            SysReg::PMUSERENR_EL0 => Self::User,
            SysReg::PMCEID0_EL0 => Self::Identification(0),
            SysReg::PMCEID1_EL0 => Self::Identification(1),
            SysReg::PMMIR_EL1 => Self::Machine,
            SysReg::PMCCNTR_EL0 => Self::Cycles,
            SysReg::PMXEVTYPER_EL0 => Self::Selected { count: false },
            SysReg::PMXEVCNTR_EL0 => Self::Selected { count: true },
            _ => return None,
        })
    }
}

/// Whether `enc` is one of a PMU's.
pub fn is_pmu(enc: SysReg) -> bool {
    PmuReg::of(enc).is_some()
}

/// The registers that a VMM saves and restores, in ascending order.
pub fn saved() -> impl Iterator<Item = SysReg> {
    let el1 = [
        SysReg::PMINTENSET_EL1,
        SysReg::PMINTENCLR_EL1,
        SysReg::PMMIR_EL1,
        SysReg::PMCR_EL0,
        SysReg::PMCNTENSET_EL0,
        SysReg::PMCNTENCLR_EL0,
        SysReg::PMOVSCLR_EL0,
        SysReg::PMSWINC_EL0,
        SysReg::PMSELR_EL0,
        SysReg::PMCCNTR_EL0,
        SysReg::PMUSERENR_EL0,
        SysReg::PMOVSSET_EL0,
    ];
    let numbered = (8..16)
        .flat_map(|crm| (0..8).map(move |op2| SysReg::new(3, 3, 14, crm, op2)))
        .filter(|&enc| is_pmu(enc));
    el1.into_iter().chain(numbered)
}

/// The registers of a vCPU's PMU.
#[derive(Clone, Debug)]
pub struct Pmu {
    counters: u8,
    /// Event counters have 64 bits.
    is_long: bool,
    identification: [u64; 2],
    control: u64,
    enabled: u32,
    interrupts: u32,
    overflows: u32,
    select: u64,
    user: u64,
    cycles: u64,
    cycle_filter: u64,
    types: [u64; MAX_COUNTERS],
    counts: [u64; MAX_COUNTERS],
    hypervisor: Option<Hypervisor>,
}

impl Pmu {
    /// A PMU after reset, with as many event counters (31 at most), of 64 bits if `is_long`, which counts the
    /// events that PMCEID0_EL0 and PMCEID1_EL0 name.
    pub fn new(counters: u8, is_long: bool, identification: [u64; 2]) -> Self {
        Self {
            counters: counters.min(MAX_COUNTERS as u8),
            is_long,
            identification,
            control: LC,
            enabled: 0,
            interrupts: 0,
            overflows: 0,
            select: 0,
            user: 0,
            cycles: 0,
            cycle_filter: 0,
            types: [0; MAX_COUNTERS],
            counts: [0; MAX_COUNTERS],
            hypervisor: None,
        }
    }

    /// Event counters there are: PMCR_EL0.N at the highest exception level.
    pub const fn counters(&self) -> u8 {
        self.counters
    }

    /// The vCPU has virtual EL2, whose MDCR_EL2 is `mdcr`; `runs`: virtual EL2 is what runs, or EL0 under it.
    pub fn under(&mut self, mdcr: u64, runs: bool) {
        self.hypervisor = Some(Hypervisor { mdcr, runs });
    }

    /// The event counters that are EL1's; the others are virtual EL2's alone.
    fn of_el1(&self) -> u8 {
        self.hypervisor.map_or(self.counters, |hypervisor| {
            ((hypervisor.mdcr & HPMN) as u8).min(self.counters)
        })
    }

    /// The event counters that what runs can reach.
    fn within_reach(&self) -> u8 {
        match self.hypervisor {
            Some(Hypervisor { runs: true, .. }) => self.counters,
            _ => self.of_el1(),
        }
    }

    /// Changes the number of event counters.
    pub fn set_counters(&mut self, counters: u8) {
        self.counters = counters.min(MAX_COUNTERS as u8);
        let mask = below(self.counters);
        self.enabled &= mask;
        self.interrupts &= mask;
        self.overflows &= mask;
    }

    /// Changes what PMCEID0_EL0 and PMCEID1_EL0 name.
    pub fn set_identification(&mut self, identification: [u64; 2]) {
        self.identification = identification;
    }

    /// The counters that what runs can reach, a bit each.
    fn mask(&self) -> u32 {
        below(self.within_reach())
    }

    /// What can be written of a filter.
    fn filter(&self) -> u64 {
        match self.hypervisor {
            Some(_) => FILTER | NSH,
            None => FILTER,
        }
    }

    fn width(&self) -> u64 {
        if self.is_long {
            u64::MAX
        } else {
            u32::MAX.into()
        }
    }

    /// The counter that PMSELR_EL0 names, if there is one; 31 the cycle counter.
    fn selected(&self) -> Option<usize> {
        let n = self.select as usize;
        (n < self.within_reach().into() || n == CYCLES as usize).then_some(n)
    }

    fn check(&self, n: usize) -> Option<usize> {
        (n < self.within_reach().into()).then_some(n)
    }

    /// What a guest that reads `enc` finds; `None` where that is UNDEFINED.
    pub fn read(&self, enc: SysReg) -> Option<u64> {
        Some(match PmuReg::of(enc)? {
            PmuReg::Control => self.control | u64::from(self.within_reach()) << 11,
            PmuReg::Enable { .. } => (self.enabled & self.mask()).into(),
            PmuReg::Interrupt { .. } => (self.interrupts & self.mask()).into(),
            PmuReg::Overflow { .. } => (self.overflows & self.mask()).into(),
            PmuReg::Increment => return None,
            PmuReg::Select => self.select,
            PmuReg::User => self.user,
            PmuReg::Identification(n) => self.identification[n],
            PmuReg::Machine => 0,
            PmuReg::Cycles => self.cycles,
            PmuReg::CycleFilter => self.cycle_filter,
            PmuReg::Selected { count } => match (self.selected()?, count) {
                (31, true) => self.cycles,
                (31, false) => self.cycle_filter,
                (n, true) => self.counts[n],
                (n, false) => self.types[n],
            },
            PmuReg::Count(n) => self.counts[self.check(n)?],
            PmuReg::Type(n) => self.types[self.check(n)?],
        })
    }

    /// A guest writes `enc`; `None` where that is UNDEFINED.
    pub fn write(&mut self, enc: SysReg, value: u64) -> Option<()> {
        let bits = value as u32 & self.mask();
        let change = |word: &mut u32, set: bool| {
            if set {
                *word |= bits;
            } else {
                *word &= !bits;
            }
        };
        match PmuReg::of(enc)? {
            PmuReg::Control => self.set_control(value),
            PmuReg::Enable { set } => change(&mut self.enabled, set),
            PmuReg::Interrupt { set } => change(&mut self.interrupts, set),
            PmuReg::Overflow { set } => change(&mut self.overflows, set),
            PmuReg::Increment => self.increment(bits),
            PmuReg::Select => self.select = value & 31,
            PmuReg::User => self.user = value & USER,
            PmuReg::Identification(_) | PmuReg::Machine => return None,
            PmuReg::Cycles => self.cycles = value,
            PmuReg::CycleFilter => self.cycle_filter = value & self.filter(),
            PmuReg::Selected { count } => match (self.selected()?, count) {
                (31, true) => self.cycles = value,
                (31, false) => self.cycle_filter = value & self.filter(),
                (n, true) => self.counts[n] = value & self.width(),
                (n, false) => self.types[n] = value & (self.filter() | EVENT),
            },
            PmuReg::Count(n) => self.counts[self.check(n)?] = value & self.width(),
            PmuReg::Type(n) => self.types[self.check(n)?] = value & (self.filter() | EVENT),
        }
        Some(())
    }

    /// The value of a [`saved`] register for a VMM.
    pub fn save(&self, enc: SysReg) -> u64 {
        match PmuReg::of(enc) {
            Some(PmuReg::Count(n)) => self.counts.get(n).copied().unwrap_or(0),
            Some(PmuReg::Type(n)) => self.types.get(n).copied().unwrap_or(0),
            Some(PmuReg::Control) => self.control | u64::from(self.counters) << 11,
            Some(PmuReg::Enable { .. }) => self.enabled.into(),
            Some(PmuReg::Interrupt { .. }) => self.interrupts.into(),
            Some(PmuReg::Overflow { .. }) => self.overflows.into(),
            _ => self.read(enc).unwrap_or(0),
        }
    }

    /// A VMM sets a [`saved`] register: the pairs that set and clear both take the value itself. PMCR_EL0's
    /// number of counters is left to the caller.
    pub fn restore(&mut self, enc: SysReg, value: u64) {
        let bits = value as u32 & below(self.counters);
        let there = |n: usize| n < self.counters.into();
        match PmuReg::of(enc) {
            Some(PmuReg::Count(n)) if there(n) => self.counts[n] = value & self.width(),
            Some(PmuReg::Type(n)) if there(n) => self.types[n] = value & (self.filter() | EVENT),
            Some(PmuReg::Control) => self.set_control(value & !(P | C)),
            Some(PmuReg::Enable { .. }) => self.enabled = bits,
            Some(PmuReg::Interrupt { .. }) => self.interrupts = bits,
            Some(PmuReg::Overflow { .. }) => self.overflows = bits,
            Some(PmuReg::Increment) | None => {}
            Some(_) => {
                // What is not there stays zero.
                let _ = self.write(enc, value);
            }
        }
    }

    fn set_control(&mut self, value: u64) {
        let long = if self.is_long { LP } else { 0 };
        self.control = value & (E | KEPT | long) | LC;
        if value & P != 0 {
            let reached = self.within_reach().into();
            self.counts[..reached].fill(0);
        }
        if value & C != 0 {
            self.cycles = 0;
        }
    }

    /// PMSWINC_EL0: counters of event 0 that count.
    fn increment(&mut self, bits: u32) {
        let counting = self.counting() & bits & !(1 << CYCLES);
        for n in (0..MAX_COUNTERS).filter(|n| counting >> n & 1 != 0) {
            if self.types[n] & EVENT != 0 {
                continue;
            }
            self.counts[n] = self.counts[n].wrapping_add(1) & self.width();
            let end = if self.control & LP != 0 {
                u64::MAX
            } else {
                u32::MAX.into()
            };
            if self.counts[n] & end == 0 {
                self.overflows |= 1 << n;
            }
        }
    }

    /// Of counters, those that PMCR_EL0.E or MDCR_EL2.HPME starts.
    fn started(&self) -> u32 {
        let of_el1 = below(self.of_el1());
        let by = |on: bool, counters: u32| if on { counters } else { 0 };
        let hypervisor = self.hypervisor.map_or(0, |hypervisor| {
            by(hypervisor.mdcr & HPME != 0, below(self.counters) & !of_el1)
        });
        by(self.control & E != 0, of_el1) | hypervisor
    }

    /// The counters that count, a bit each.
    pub fn counting(&self) -> u32 {
        let mut resting = 0;
        if let Some(Hypervisor { mdcr, runs: true }) = self.hypervisor {
            if mdcr & HPMD != 0 {
                resting |= below(self.of_el1()) & !(1 << CYCLES);
            }
            if mdcr & HCCD != 0 || mdcr & HPMD != 0 && self.control & DP != 0 {
                resting |= 1 << CYCLES;
            }
        }
        self.enabled & self.started() & !resting
    }

    /// Of the counters that count: those whose overflow interrupts.
    pub fn interrupting(&self) -> u32 {
        self.counting() & self.interrupts
    }

    /// The event and filter of counter `n`, or the filter of the cycle counter, for what runs at EL1 of hardware
    /// now.
    pub fn kind(&self, n: u32) -> u64 {
        let kind = self
            .types
            .get(n as usize)
            .copied()
            .unwrap_or(self.cycle_filter);
        match self.hypervisor {
            Some(Hypervisor { runs: true, .. }) => {
                let counts = kind & NSH != 0;
                kind & !(NOT_EL1 | NSK | NSH) | if counts { 0 } else { NOT_EL1 }
            }
            _ => kind & !NSH,
        }
    }

    /// What counter `n` stands at.
    pub fn count(&self, n: u32) -> u64 {
        self.counts.get(n as usize).copied().unwrap_or(self.cycles)
    }

    /// PMCR_EL0 for hardware that counts for this PMU.
    pub fn hardware_control(&self) -> u64 {
        self.control & (E | LC | LP | 1 << 3)
    }

    /// PMUSERENR_EL0.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Hardware counted: counter `n` stands at `count` now.
    pub fn counted(&mut self, n: u32, count: u64) {
        let width = self.width();
        match self.counts.get_mut(n as usize) {
            Some(old) => *old = count & width,
            None => self.cycles = count,
        }
    }

    /// Hardware saw these counters overflow.
    pub fn overflowed(&mut self, counters: u32) {
        self.overflows |= counters & below(self.counters);
    }

    /// Whether the overflow interrupt is asserted.
    pub fn line(&self) -> bool {
        self.started() & self.overflows & self.interrupts != 0
    }
}

/// The first `counters` event counters and the cycle counter, a bit each.
fn below(counters: u8) -> u32 {
    ((1u64 << counters) - 1) as u32 | 1 << CYCLES
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn counter(n: u8) -> SysReg {
        SysReg::new(3, 3, 14, 8 + (n >> 3), n & 7)
    }

    fn kind(n: u8) -> SysReg {
        SysReg::new(3, 3, 14, 12 + (n >> 3), n & 7)
    }

    #[test]
    fn what_a_vmm_saves_ascends_and_is_all_of_linux_s_list() {
        let saved: Vec<SysReg> = saved().collect();
        assert!(saved.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(saved.len(), 12 + 31 + 32);
    }

    #[test]
    fn counters_beyond_n_are_not_there() {
        let mut pmu = Pmu::new(4, true, [0; 2]);
        assert_eq!(pmu.read(SysReg::PMCR_EL0), Some(4 << 11 | LC));
        assert_eq!(pmu.write(counter(3), 7), Some(()));
        assert_eq!(pmu.write(counter(4), 7), None);
        assert_eq!(pmu.read(kind(30)), None);
        assert_eq!(pmu.write(kind(31), 1 << 31), Some(()));
        assert_eq!(pmu.read(SysReg::PMCCFILTR_EL0), Some(1 << 31));
        pmu.write(SysReg::PMCNTENSET_EL0, u64::MAX);
        assert_eq!(pmu.read(SysReg::PMCNTENCLR_EL0), Some(0x8000_000f));
        pmu.set_counters(1);
        assert_eq!(pmu.read(SysReg::PMCNTENSET_EL0), Some(0x8000_0001));
        for select in [1, 30] {
            pmu.write(SysReg::PMSELR_EL0, select);
            assert_eq!(pmu.read(SysReg::PMXEVCNTR_EL0), None);
            assert_eq!(pmu.write(SysReg::PMXEVTYPER_EL0, 0), None);
        }
    }

    #[test]
    fn the_selected_counter_goes_by_two_names() {
        let mut pmu = Pmu::new(6, true, [0; 2]);
        pmu.write(SysReg::PMSELR_EL0, 5);
        pmu.write(SysReg::PMXEVCNTR_EL0, 0x1234);
        pmu.write(SysReg::PMXEVTYPER_EL0, u64::MAX);
        assert_eq!(pmu.read(counter(5)), Some(0x1234));
        assert_eq!(pmu.read(kind(5)), Some(FILTER | EVENT));
        pmu.write(SysReg::PMSELR_EL0, 31);
        pmu.write(SysReg::PMXEVCNTR_EL0, 9);
        assert_eq!(pmu.read(SysReg::PMCCNTR_EL0), Some(9));
        assert_eq!(pmu.count(CYCLES), 9);
    }

    #[test]
    fn one_register_sets_and_the_other_clears() {
        let mut pmu = Pmu::new(6, true, [0; 2]);
        for (set, clear) in [
            (SysReg::PMCNTENSET_EL0, SysReg::PMCNTENCLR_EL0),
            (SysReg::PMINTENSET_EL1, SysReg::PMINTENCLR_EL1),
            (SysReg::PMOVSSET_EL0, SysReg::PMOVSCLR_EL0),
        ] {
            pmu.write(set, 0b101);
            pmu.write(clear, 0b001);
            assert_eq!((pmu.read(set), pmu.read(clear)), (Some(4), Some(4)));
            pmu.restore(clear, 3);
            assert_eq!(pmu.save(set), 3);
        }
    }

    #[test]
    fn control_resets_and_switches() {
        let mut pmu = Pmu::new(2, false, [0; 2]);
        pmu.write(counter(0), u64::MAX);
        assert_eq!(pmu.read(counter(0)), Some(0xffff_ffff));
        pmu.write(SysReg::PMCCNTR_EL0, u64::MAX);
        pmu.write(SysReg::PMCNTENSET_EL0, 1);
        assert_eq!(pmu.counting(), 0);
        pmu.write(SysReg::PMCR_EL0, E | P | LP);
        assert_eq!(pmu.counting(), 1);
        assert_eq!(pmu.read(SysReg::PMCR_EL0), Some(2 << 11 | LC | E));
        assert_eq!(pmu.read(counter(0)), Some(0));
        assert_eq!(pmu.read(SysReg::PMCCNTR_EL0), Some(u64::MAX));
        pmu.write(SysReg::PMCR_EL0, C);
        assert_eq!(pmu.read(SysReg::PMCCNTR_EL0), Some(0));
    }

    #[test]
    fn a_software_increment_overflows_into_the_interrupt() {
        for (long, at, overflows) in [
            (false, 0xffff_ffff, true),
            (true, 0xffff_ffff, false),
            (true, u64::MAX, true),
        ] {
            let mut pmu = Pmu::new(2, true, [0; 2]);
            pmu.write(SysReg::PMCR_EL0, E | if long { LP } else { 0 });
            pmu.write(counter(1), at);
            pmu.write(SysReg::PMINTENSET_EL1, 2);
            pmu.write(SysReg::PMSWINC_EL0, 2);
            assert_eq!(pmu.count(1), at);
            pmu.write(SysReg::PMCNTENSET_EL0, 2);
            pmu.write(SysReg::PMSWINC_EL0, 2);
            assert_eq!(pmu.count(1), at.wrapping_add(1));
            assert_eq!(pmu.line(), overflows, "{long} {at:#x}");
            pmu.write(SysReg::PMOVSCLR_EL0, 2);
            assert!(!pmu.line());
            pmu.write(kind(1), 8);
            pmu.write(SysReg::PMSWINC_EL0, 2);
            assert_eq!(pmu.count(1), at.wrapping_add(1));
        }
    }

    #[test]
    fn what_hardware_counted_comes_back() {
        let mut pmu = Pmu::new(2, false, [5, 6]);
        pmu.counted(1, 1 << 32 | 7);
        pmu.counted(CYCLES, 1 << 32);
        pmu.overflowed(0xff);
        assert_eq!((pmu.count(1), pmu.count(CYCLES)), (7, 1 << 32));
        assert_eq!(pmu.read(SysReg::PMOVSSET_EL0), Some(3));
        assert_eq!(pmu.read(SysReg::PMCEID1_EL0), Some(6));
        assert_eq!(pmu.write(SysReg::PMCEID0_EL0, 1), None);
        assert_eq!(pmu.read(SysReg::PMSWINC_EL0), None);
    }

    /// Six counters of which virtual EL2 keeps two to itself.
    fn divided(mdcr: u64, runs: bool) -> Pmu {
        let mut pmu = Pmu::new(6, true, [0; 2]);
        pmu.under(6, true);
        pmu.write(SysReg::PMCNTENSET_EL0, u64::MAX);
        pmu.write(SysReg::PMINTENSET_EL1, u64::MAX);
        for n in 0..6 {
            pmu.write(counter(n), 100);
        }
        pmu.under(4 | mdcr, runs);
        pmu
    }

    #[test]
    fn below_a_guest_hypervisor_its_counters_are_not_there() {
        let mut pmu = divided(0, false);
        assert_eq!(pmu.read(SysReg::PMCR_EL0), Some(4 << 11 | LC));
        assert_eq!(pmu.read(SysReg::PMCNTENSET_EL0), Some(0x8000_000f));
        assert_eq!(pmu.read(counter(4)), None);
        pmu.write(SysReg::PMCNTENCLR_EL0, u64::MAX);
        pmu.write(SysReg::PMCR_EL0, P);
        assert_eq!(pmu.save(SysReg::PMCNTENSET_EL0), 0x30);
        assert_eq!((pmu.save(counter(3)), pmu.save(counter(4))), (0, 100));
        assert_eq!(pmu.save(SysReg::PMCR_EL0) >> 11, 6);
        pmu.restore(counter(5), 7);
        pmu.under(4, true);
        assert_eq!(pmu.read(counter(5)), Some(7));
        assert_eq!(pmu.read(SysReg::PMCR_EL0), Some(6 << 11 | LC));
        pmu.write(SysReg::PMCR_EL0, P);
        assert_eq!(pmu.read(counter(5)), Some(0));
        // More than there are is all there are.
        pmu.under(31, false);
        assert_eq!(pmu.read(SysReg::PMCR_EL0), Some(6 << 11 | LC));
    }

    #[test]
    fn each_half_has_its_own_switch() {
        const CYCLE: u32 = 1 << CYCLES;
        for (mdcr, control, runs, counting) in [
            (0, 0, false, 0),
            (0, E, false, CYCLE | 0xf),
            (HPME, 0, false, 0x30),
            (HPME, E, true, CYCLE | 0x3f),
            (HPME | HPMD, E, true, CYCLE | 0x30),
            (HPME | HPMD, E, false, CYCLE | 0x3f),
            (HPME | HPMD, E | DP, true, 0x30),
            (HPME | HPMD, E | DP, false, CYCLE | 0x3f),
            (HCCD, E, true, 0xf),
            (HCCD, E, false, CYCLE | 0xf),
        ] {
            let mut pmu = divided(mdcr, runs);
            pmu.write(SysReg::PMCR_EL0, control);
            assert_eq!(pmu.counting(), counting, "{mdcr:#x} {control:#x} {runs}");
            pmu.overflowed(1 << 5);
            assert_eq!(pmu.line(), mdcr & HPME != 0);
            pmu.overflowed(1 << 1);
            assert_eq!(pmu.line(), mdcr & HPME != 0 || control & E != 0);
        }
    }

    #[test]
    fn virtual_el2_counts_by_its_own_bit() {
        let mut pmu = Pmu::new(1, true, [0; 2]);
        pmu.write(kind(0), NSH | 0x11);
        assert_eq!(pmu.kind(0), 0x11, "no EL2, no bit for it");
        for (filter, at_el2, below_it) in [
            (0, NOT_EL1, 0),
            (NSH, 0, 0),
            (NSH | NOT_EL1, 0, NOT_EL1),
            (NOT_EL1, NOT_EL1, NOT_EL1),
            (NSH | NOT_EL1 | NSK, 0, NOT_EL1 | NSK),
            (1 << 30, NOT_EL1 | 1 << 30, 1 << 30),
        ] {
            pmu.under(1, true);
            pmu.write(kind(0), filter | 0x11);
            pmu.write(kind(31), filter);
            assert_eq!((pmu.kind(0), pmu.kind(CYCLES)), (at_el2 | 0x11, at_el2));
            pmu.under(1, false);
            assert_eq!((pmu.kind(0), pmu.kind(CYCLES)), (below_it | 0x11, below_it));
            assert_eq!(pmu.read(kind(0)), Some(filter | 0x11));
        }
    }
}
