//! What is measured: one table of rows, and how a row's value comes out of a session's records.

use super::record::{Cause, Exit, Records, median};
use serde::Serialize;

/// A run of one guest, on one hypervisor and then on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Session {
    /// The payload `bench`, its RAM backed by 4 KiB pages.
    Pages,
    /// The same, backed by 2 MiB where they fit.
    Blocks,
    /// The payload `l1_bench` at virtual EL2, backed by 4 KiB pages.
    L1Pages,
    /// `l1_bench` again, with what takes KVM billions of instructions.
    L1Costly,
    /// A Debian guest to power-off, backed by 2 MiB.
    DebianBlocks,
    /// The same, backed by 4 KiB.
    DebianPages,
    /// Debian as a guest hypervisor and Debian as its guest, backed by 2 MiB at both storeys.
    NestedBlocks,
}

impl Session {
    /// All, in the order in which they run.
    pub(crate) const ALL: [Session; 7] = [
        Session::Pages,
        Session::Blocks,
        Session::L1Pages,
        Session::L1Costly,
        Session::DebianBlocks,
        Session::DebianPages,
        Session::NestedBlocks,
    ];

    /// Its name, for filters and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Blocks => "blocks",
            Self::L1Pages => "l1-pages",
            Self::L1Costly => "l1-costly",
            Self::DebianBlocks => "debian-blocks",
            Self::DebianPages => "debian-pages",
            Self::NestedBlocks => "nested-blocks",
        }
    }

    /// Whether `--quick` leaves it out.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::L1Costly | Self::NestedBlocks)
    }
}

/// What is told of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Instructions of the hypervisor, and of the VMM where it takes part.
    Instructions,
    /// Memory accesses of both.
    Accesses,
}

impl What {
    fn of(self, exit: &Exit) -> u64 {
        match self {
            Self::Instructions => exit.instructions(),
            Self::Accesses => exit.accesses(),
        }
    }
}

/// How a value is found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Measure {
    /// The median over the exits of this cause between the marks of this measurement.
    Exit(usize, Cause, What),
    /// Everything between the marks, for each of so many operations.
    Each(usize, u64, What),
    /// Exits between the marks, for each of so many operations.
    Traps(usize, u64),
    /// The median over operations of a guest of a guest: from its exit to its next entry.
    Storeys(usize, What),
    /// The same, exits.
    StoreysTraps(usize),
    /// Exits of the whole run, of one cause or of all.
    Exits(Option<Cause>),
    /// Instructions of hypervisor and VMM in the whole run.
    Total,
    /// Instructions of the guests themselves.
    Guest,
    /// Instructions from power-on to the guest's first.
    UntilGuest,
}

impl Measure {
    /// The value; `None` if the run has nothing of the kind.
    pub(crate) fn value(self, records: &Records) -> Option<f64> {
        let number = |value: u64| Some(value as f64);
        match self {
            Self::Exit(at, cause, what) => {
                let exits = records.measured(at)?;
                let exits = exits.iter().filter(|e| e.cause == cause);
                // No exit of this cause: the operation does not trap.
                median(exits.map(|e| what.of(e)).collect())
                    .or(Some(0))
                    .and_then(number)
            }
            Self::Each(at, count, what) => {
                let exits = records.measured(at)?;
                let sum: u64 = exits.iter().map(|e| what.of(e)).sum();
                Some(sum as f64 / count as f64)
            }
            Self::Traps(at, count) => Some(records.measured(at)?.len() as f64 / count as f64),
            Self::Storeys(at, what) => {
                let sums = chains(records.measured(at)?);
                let sums = sums.map(|chain| chain.iter().map(|e| what.of(e)).sum());
                median(sums.collect()).and_then(number)
            }
            Self::StoreysTraps(at) => {
                let counts = chains(records.measured(at)?).map(|chain| chain.len() as u64);
                median(counts.collect()).and_then(number)
            }
            Self::Exits(cause) => {
                let exits = records.all().filter(|e| cause.is_none_or(|c| c == e.cause));
                number(exits.count() as u64)
            }
            Self::Total => number(records.all().map(Exit::instructions).sum()),
            Self::Guest => number(records.all().map(|e| e.guest).sum()),
            Self::UntilGuest => records.until_guest.and_then(number),
        }
    }
}

/// Exits from one of a guest's guest to its next entry: what a hypervisor below does for it, and what the
/// hypervisor between them traps while it handles it.
fn chains(exits: &[Exit]) -> impl Iterator<Item = &[Exit]> {
    // The first part begins in the middle if the mark was made at virtual EL2.
    let start = exits
        .iter()
        .position(|e| !e.from_virtual_el2)
        .unwrap_or(exits.len());
    exits[start..]
        .split_inclusive(|e| !e.to_virtual_el2)
        .filter(|chain| chain.last().is_some_and(|e| !e.to_virtual_el2))
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Of what the values are.
    pub(crate) unit: &'static str,
    /// Where it comes from.
    pub(crate) session: Session,
    /// How.
    pub(crate) measure: Measure,
    /// The highest ratio allowed.
    pub(crate) target: Option<f64>,
}

/// Measurements of the payload `bench`, by their places between its marks.
mod at {
    pub(super) const HYPERCALL: usize = 1;
    pub(super) const ID_REGISTER: usize = 2;
    pub(super) const DISTRIBUTOR: usize = 3;
    pub(super) const VMM: usize = 4;
    pub(super) const NOTIFY: usize = 5;
    pub(super) const FIRST_TOUCH: usize = 6;
    pub(super) const FIRST_TOUCH_BLOCK: usize = 7;
    pub(super) const TIMER: usize = 8;
    pub(super) const SGI: usize = 9;
}

/// Measurements of the payload `l1_bench`.
mod l1 {
    pub(super) const HYPERCALL: usize = 0;
    pub(super) const DEVICE: usize = 1;
    pub(super) const READ: usize = 2;
    pub(super) const WRITE: usize = 3;
    pub(super) const TLBI_OWN: usize = 4;
    pub(super) const FILL: usize = 5;
    pub(super) const AT: usize = 6;
    pub(super) const TLBI_PAGE: usize = 7;
    /// The next two are the costly ones', in a run of their own.
    pub(super) const TLBI_ALL: usize = 0;
    pub(super) const TWO_CONTEXTS: usize = 1;
    /// Pages that FILL touches.
    pub(super) const PAGES: u64 = 512;
}

const fn row(
    name: &'static str,
    unit: &'static str,
    session: Session,
    measure: Measure,
    target: Option<f64>,
) -> Row {
    Row {
        name,
        unit,
        session,
        measure,
        target,
    }
}

/// A row of instructions.
const fn insn(name: &'static str, session: Session, measure: Measure, target: Option<f64>) -> Row {
    row(name, "instructions", session, measure, target)
}

/// A row of memory accesses.
const fn access(
    name: &'static str,
    session: Session,
    measure: Measure,
    target: Option<f64>,
) -> Row {
    row(name, "accesses", session, measure, target)
}

use Cause::{Data, Device, Fetch, Fp, Hypercall, Interrupt, Register, Return, Wait};
use Measure::{Each, Exit as One, Exits, Guest, Storeys, StoreysTraps, Total, Traps, UntilGuest};
use Session::{Blocks, DebianBlocks, DebianPages, L1Costly, L1Pages, NestedBlocks, Pages};
use What::{Accesses, Instructions};

/// All rows. A target is umbra's limit over what KVM takes by the reference measurement.
pub(crate) const ROWS: &[Row] = &[
    insn(
        "hypercall that nobody owns",
        Pages,
        One(at::HYPERCALL, Hypercall, Instructions),
        Some(250.0 / 1773.0),
    ),
    access(
        "hypercall that nobody owns",
        Pages,
        One(at::HYPERCALL, Hypercall, Accesses),
        Some(70.0 / 514.0),
    ),
    insn(
        "read of ID_AA64PFR0_EL1",
        Pages,
        One(at::ID_REGISTER, Register, Instructions),
        None,
    ),
    insn(
        "read of GICD_TYPER",
        Pages,
        One(at::DISTRIBUTOR, Device, Instructions),
        Some(400.0 / 2743.0),
    ),
    access(
        "read of GICD_TYPER",
        Pages,
        One(at::DISTRIBUTOR, Device, Accesses),
        None,
    ),
    insn(
        "read of a UART register, answered by the VMM",
        Pages,
        One(at::VMM, Device, Instructions),
        Some(0.5),
    ),
    access(
        "read of a UART register, answered by the VMM",
        Pages,
        One(at::VMM, Device, Accesses),
        None,
    ),
    insn(
        "write that an ioeventfd takes",
        Pages,
        One(at::NOTIFY, Device, Instructions),
        None,
    ),
    insn(
        "first touch of a 4 KiB page, zeroing included",
        Pages,
        One(at::FIRST_TOUCH, Data, Instructions),
        Some(800.0 / 8654.0),
    ),
    access(
        "first touch of a 4 KiB page, zeroing included",
        Pages,
        One(at::FIRST_TOUCH, Data, Accesses),
        None,
    ),
    insn(
        "first touch of a 2 MiB block, zeroing included",
        Blocks,
        One(at::FIRST_TOUCH_BLOCK, Data, Instructions),
        None,
    ),
    insn(
        "WFI until the virtual timer",
        Pages,
        One(at::TIMER, Wait, Instructions),
        None,
    ),
    insn(
        "SGI to the own vCPU",
        Pages,
        One(at::SGI, Register, Instructions),
        None,
    ),
    insn(
        "power-on to the guest's first instruction",
        Pages,
        UntilGuest,
        None,
    ),
    insn(
        "L2 hypercall handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::HYPERCALL, Instructions),
        Some(10_000.0 / 57_780.0),
    ),
    access(
        "L2 hypercall handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::HYPERCALL, Accesses),
        None,
    ),
    row(
        "L2 hypercall handled by a small L1",
        "exits",
        L1Pages,
        StoreysTraps(l1::HYPERCALL),
        Some(5.0 / 8.1),
    ),
    insn(
        "L2 load handled by a small L1, all of L0's part",
        L1Pages,
        Storeys(l1::DEVICE, Instructions),
        None,
    ),
    row(
        "L2 load handled by a small L1",
        "exits",
        L1Pages,
        StoreysTraps(l1::DEVICE),
        None,
    ),
    insn(
        "ERET of L1 to L2",
        L1Pages,
        One(l1::HYPERCALL, Return, Instructions),
        None,
    ),
    insn(
        "L1's read of ICH_MISR_EL2",
        L1Pages,
        One(l1::READ, Register, Instructions),
        Some(250.0 / 5_100.0),
    ),
    insn(
        "L1's write of CPACR_EL1",
        L1Pages,
        One(l1::WRITE, Register, Instructions),
        Some(250.0 / 681.0),
    ),
    insn(
        "L1's TLBI VAALE1IS",
        L1Pages,
        One(l1::TLBI_OWN, Register, Instructions),
        Some(250.0 / 683.0),
    ),
    insn(
        "L1's TLBI IPAS2E1IS, one mapped page",
        L1Pages,
        One(l1::TLBI_PAGE, Register, Instructions),
        Some(1_000.0 / 71_800.0),
    ),
    insn(
        "L1's TLBI VMALLS12E1IS, 513 mapped pages",
        L1Costly,
        Each(l1::TLBI_ALL, 1, Instructions),
        None,
    ),
    insn(
        "L1's AT S12E1R",
        L1Pages,
        One(l1::AT, Register, Instructions),
        None,
    ),
    insn(
        "shadow fill, one exit",
        L1Pages,
        One(l1::FILL, Data, Instructions),
        None,
    ),
    insn(
        "shadow fill, for each page touched",
        L1Pages,
        Each(l1::FILL, l1::PAGES, Instructions),
        Some(600.0 / 9_301.0),
    ),
    row(
        "shadow fill, for each page touched",
        "exits",
        L1Pages,
        Traps(l1::FILL, l1::PAGES),
        None,
    ),
    insn(
        "L2 hypercall, two contexts in turn, all of L0's part",
        L1Costly,
        Storeys(l1::TWO_CONTEXTS, Instructions),
        None,
    ),
    row(
        "Debian boot, 2 MiB backing",
        "exits",
        DebianBlocks,
        Exits(None),
        Some(1.0),
    ),
    row(
        "… device accesses",
        "exits",
        DebianBlocks,
        Exits(Some(Device)),
        None,
    ),
    row(
        "… interrupts",
        "exits",
        DebianBlocks,
        Exits(Some(Interrupt)),
        None,
    ),
    row(
        "… system registers",
        "exits",
        DebianBlocks,
        Exits(Some(Register)),
        None,
    ),
    row(
        "… data aborts on memory",
        "exits",
        DebianBlocks,
        Exits(Some(Data)),
        None,
    ),
    row(
        "… instruction aborts on memory",
        "exits",
        DebianBlocks,
        Exits(Some(Fetch)),
        None,
    ),
    row(
        "… hypercalls",
        "exits",
        DebianBlocks,
        Exits(Some(Hypercall)),
        None,
    ),
    row(
        "… WFI and WFE",
        "exits",
        DebianBlocks,
        Exits(Some(Wait)),
        None,
    ),
    row(
        "… FP accesses",
        "exits",
        DebianBlocks,
        Exits(Some(Fp)),
        None,
    ),
    insn("… hypervisor and VMM", DebianBlocks, Total, None),
    insn("… the guest itself", DebianBlocks, Guest, None),
    row(
        "Debian boot, 4 KiB backing",
        "exits",
        DebianPages,
        Exits(None),
        None,
    ),
    insn("… hypervisor and VMM (4 KiB)", DebianPages, Total, None),
    row(
        "Debian and its Debian guest, 2 MiB backing",
        "exits",
        NestedBlocks,
        Exits(None),
        None,
    ),
    insn("… L0 and both VMMs", NestedBlocks, Total, None),
    row(
        "… ERETs of L1",
        "exits",
        NestedBlocks,
        Exits(Some(Return)),
        None,
    ),
    row(
        "… system registers (two storeys)",
        "exits",
        NestedBlocks,
        Exits(Some(Register)),
        None,
    ),
];

/// A row with its values, as `bench.json` has it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Value {
    /// The row's name.
    pub(crate) name: &'static str,
    /// Of what the values are.
    pub(crate) unit: &'static str,
    /// Linux/KVM's.
    pub(crate) kvm: Option<f64>,
    /// umbra's.
    pub(crate) umbra: Option<f64>,
    /// umbra's over KVM's.
    pub(crate) ratio: Option<f64>,
    /// The highest ratio allowed.
    pub(crate) target: Option<f64>,
}

impl Value {
    /// Puts two measurements side by side.
    pub(crate) fn new(row: &Row, kvm: Option<f64>, umbra: Option<f64>) -> Self {
        let ratio = kvm.zip(umbra).filter(|(kvm, _)| *kvm > 0.0);
        Self {
            name: row.name,
            unit: row.unit,
            kvm,
            umbra,
            ratio: ratio.map(|(kvm, umbra)| umbra / kvm),
            target: row.target,
        }
    }

    /// Whether the target is met; `None` where there is none, or nothing to compare.
    pub(crate) fn met(&self) -> Option<bool> {
        self.ratio
            .zip(self.target)
            .map(|(ratio, target)| ratio <= target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Cost;
    use std::collections::BTreeSet;

    fn exit(cause: Cause, from: bool, to: bool, instructions: u64) -> Exit {
        Exit {
            cause,
            from_virtual_el2: from,
            to_virtual_el2: to,
            guest: 7,
            host: Cost {
                instructions,
                accesses: instructions / 2,
            },
            user: Cost::default(),
        }
    }

    fn records(measured: Vec<Exit>) -> Records {
        Records {
            until_guest: Some(5),
            phases: vec![vec![exit(Device, false, false, 1)], measured, vec![]],
        }
    }

    #[test]
    fn values_come_from_the_exits_between_the_marks() {
        let run = records(vec![
            exit(Hypercall, false, false, 250),
            exit(Hypercall, false, false, 260),
            exit(Interrupt, false, false, 9000),
            exit(Hypercall, false, false, 300),
        ]);
        let value = |measure: Measure| measure.value(&run);
        assert_eq!(value(One(0, Hypercall, Instructions)), Some(260.0));
        assert_eq!(value(One(0, Hypercall, Accesses)), Some(130.0));
        assert_eq!(
            value(One(0, Wait, Instructions)),
            Some(0.0),
            "nothing of the kind"
        );
        assert_eq!(
            value(One(4, Hypercall, Instructions)),
            None,
            "no such measurement"
        );
        assert_eq!(value(Each(0, 2, Instructions)), Some(4905.0));
        assert_eq!(value(Measure::Traps(0, 2)), Some(2.0));
        assert_eq!(value(Exits(None)), Some(5.0));
        assert_eq!(value(Exits(Some(Device))), Some(1.0));
        assert_eq!(value(Total), Some(9811.0));
        assert_eq!(value(Guest), Some(35.0));
        assert_eq!(value(UntilGuest), Some(5.0));
    }

    #[test]
    fn an_operation_of_a_guests_guest_ends_with_its_next_entry() {
        let run = records(vec![
            exit(Register, true, true, 1_000_000), // L1, before its guest runs
            exit(Cause::Return, true, false, 500),
            exit(Hypercall, false, true, 10),
            exit(Register, true, true, 20),
            exit(Cause::Return, true, false, 30),
            exit(Hypercall, false, true, 11),
            exit(Cause::Return, true, false, 31),
            exit(Hypercall, false, true, 77), // the mark comes before the next entry
        ]);
        assert_eq!(Measure::Storeys(0, Instructions).value(&run), Some(60.0));
        assert_eq!(Measure::StoreysTraps(0).value(&run), Some(3.0));
    }

    #[test]
    fn rows_are_told_apart_and_ratios_compare() {
        let names: BTreeSet<_> = ROWS.iter().map(|r| (r.name, r.unit)).collect();
        assert_eq!(names.len(), ROWS.len());
        let value = |kvm, umbra| Value::new(&ROWS[0], kvm, umbra).met();
        assert_eq!(value(Some(1773.0), Some(250.0)), Some(true));
        assert_eq!(value(Some(1773.0), Some(251.0)), Some(false));
        assert_eq!(value(None, Some(251.0)), None);
        assert_eq!(value(Some(0.0), Some(251.0)), None);
    }
}
