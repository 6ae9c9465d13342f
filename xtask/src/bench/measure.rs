//! How a row's value comes out of what a session left.

use super::machine::{ARCHIVE, Run};
use super::record::{Cause, Exit, Records, median};
use crate::qemu::MEMORY;

/// What is told of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Instructions of the hypervisor, and of the VMM where it takes part.
    Instructions,
    /// Memory accesses of both.
    Accesses,
    /// Instructions of the VMM, and of whatever else runs at EL0.
    User,
}

impl What {
    fn of(self, exit: &Exit) -> u64 {
        match self {
            Self::Instructions => exit.instructions(),
            Self::Accesses => exit.accesses(),
            Self::User => exit.user.instructions,
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
    /// The exits of this cause between the marks, for each of so many operations.
    EachOf(usize, Cause, u64, What),
    /// Exits between the marks, for each of so many operations.
    Traps(usize, u64),
    /// The median over operations of a guest of a guest: from its exit to its next entry.
    Storeys(usize, What),
    /// The same, exits.
    StoreysTraps(usize),
    /// The median over what lies between one exit of this cause and the next, the former included.
    Spans(usize, Cause, What),
    /// Exits of the whole run, of one cause or of all.
    Exits(Option<Cause>),
    /// Instructions of hypervisor and VMM in the whole run.
    Total,
    /// Instructions of the guests themselves.
    Guest,
    /// Exits while the guest of a guest exists, of one cause or of all: see [`below`].
    Below(Option<Cause>),
    /// Instructions of hypervisor and VMM in that time.
    BelowTotal,
    /// Instructions from power-on to the guest's first.
    UntilGuest,
    /// Seconds of wall time from the guest's first instruction to the end.
    Wall,
    /// What the guest or its VMM said.
    Said(&'static str),
    /// What the machine's memory is more than that and the files that it was given, in KiB.
    Taken(&'static str),
}

impl Measure {
    /// The value; `None` if the run has nothing of the kind.
    pub(crate) fn value(self, run: &Run) -> Option<f64> {
        let number = |value: u64| Some(value as f64);
        let records = &run.records;
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
            Self::EachOf(at, cause, count, what) => {
                let exits = records.measured(at)?.iter().filter(|e| e.cause == cause);
                let sum: u64 = exits.map(|e| what.of(e)).sum();
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
            Self::Spans(at, cause, what) => {
                let sums = spans(records.measured(at)?, cause);
                median(
                    sums.map(|span| span.iter().map(|e| what.of(e)).sum())
                        .collect(),
                )
                .and_then(number)
            }
            Self::Below(cause) => {
                let exits = below(records)?;
                let exits = exits.filter(|e| cause.is_none_or(|c| c == e.cause));
                number(exits.count() as u64)
            }
            Self::BelowTotal => number(below(records)?.map(Exit::instructions).sum()),
            Self::Exits(cause) => {
                let exits = records.all().filter(|e| cause.is_none_or(|c| c == e.cause));
                number(exits.count() as u64)
            }
            Self::Total => number(records.all().map(Exit::instructions).sum()),
            Self::Guest => number(records.all().map(|e| e.guest).sum()),
            Self::UntilGuest => records.until_guest.and_then(number),
            Self::Wall => {
                records.until_guest?;
                Some(run.seconds - records.seconds_until_guest)
            }
            Self::Said(name) => run.said.get(name).copied(),
            Self::Taken(name) => {
                let (free, files) = (run.said.get(name)?, run.said.get(ARCHIVE)?);
                Some(MEMORY as f64 - free - files)
            }
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

/// From each exit of `cause` to the one before the next; what has no end is left out.
fn spans(exits: &[Exit], cause: Cause) -> impl Iterator<Item = &[Exit]> {
    let starts: Vec<usize> = (0..exits.len())
        .filter(|at| exits[*at].cause == cause)
        .collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().collect();
    starts
        .into_iter()
        .zip(ends)
        .map(|(from, to)| &exits[from..to])
}

/// What happened while there was a guest of a guest: from its first exit to its last.
///
/// A kernel that starts at virtual EL2 looks at EL1 for a moment, long before it has a guest. So the guest's life
/// begins behind the longest time without an exit from anything but virtual EL2.
fn below(records: &Records) -> Option<impl Iterator<Item = &Exit>> {
    let exits = records.all().enumerate();
    let of_guest: Vec<usize> = exits
        .filter(|(_, exit)| !exit.from_virtual_el2)
        .map(|(at, _)| at)
        .collect();
    let (last, had) = (*of_guest.last()?, of_guest.len() != records.all().count());
    let gaps = of_guest.windows(2).max_by_key(|pair| pair[1] - pair[0]);
    let first = gaps.map_or(last, |pair| pair[1]);
    // Without a hypervisor between, it is nobody's guest.
    had.then(|| records.all().take(last + 1).skip(first))
}

#[cfg(test)]
mod tests {
    use super::Measure::{Each, Exit as One, Exits, Guest, Spans, Total, UntilGuest};
    use super::What::{Accesses, Instructions, User};
    use super::*;
    use crate::bench::record::Cause::{Data, Device, Hypercall, Interrupt, Register, Wait};
    use crate::bench::record::Cost;

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
            user: Cost {
                instructions: 0,
                accesses: 0,
            },
        }
    }

    fn run(measured: Vec<Exit>) -> Run {
        Run {
            records: Records {
                until_guest: Some(5),
                seconds_until_guest: 1.5,
                phases: vec![vec![exit(Device, false, false, 1)], measured, vec![]],
            },
            said: [("vm".to_owned(), 3.5), (ARCHIVE.to_owned(), 0.5)].into(),
            seconds: 4.0,
            kept: None,
        }
    }

    #[test]
    fn values_come_from_the_exits_between_the_marks() {
        let run = run(vec![
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
        assert_eq!(
            value(Measure::EachOf(0, Hypercall, 2, Instructions)),
            Some(405.0)
        );
        assert_eq!(value(Measure::Traps(0, 2)), Some(2.0));
        assert_eq!(value(Exits(None)), Some(5.0));
        assert_eq!(value(Exits(Some(Device))), Some(1.0));
        assert_eq!(value(Total), Some(9811.0));
        assert_eq!(value(Guest), Some(35.0));
        assert_eq!(value(UntilGuest), Some(5.0));
        assert_eq!(value(Measure::Wall), Some(2.5));
        assert_eq!(value(Measure::Said("vm")), Some(3.5));
        assert_eq!(value(Measure::Said("vcpu")), None);
        assert_eq!(value(Measure::Taken("vm")), Some(4_194_300.0));
    }

    #[test]
    fn an_operation_of_a_guests_guest_ends_with_its_next_entry() {
        let run = run(vec![
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
    fn a_span_ends_where_the_next_begins() {
        let run = run(vec![
            exit(Wait, false, false, 1000),
            exit(Register, false, false, 10),
            exit(Wait, false, false, 5),
            exit(Register, false, false, 20),
            exit(Wait, false, false, 6),
            exit(Interrupt, false, false, 7),
            exit(Register, false, false, 9000), // the last has no end
        ]);
        let value = |cause| Spans(0, cause, Instructions).value(&run);
        assert_eq!(value(Register), Some(33.0));
        assert_eq!(value(Data), None);
        assert_eq!(Spans(0, Register, User).value(&run), Some(0.0));
    }

    #[test]
    fn the_life_of_a_guests_guest_is_cut_out_of_the_run() {
        let run = run(vec![
            exit(Cause::Return, true, false, 50_000), // L1 looks at EL1 as it starts
            exit(Hypercall, false, true, 50_000),
            exit(Register, true, true, 1_000_000),
            exit(Register, true, true, 1_000_000),
            exit(Register, true, true, 1_000_000),
            exit(Cause::Return, true, false, 50_000), // its guest begins
            exit(Hypercall, false, true, 10),
            exit(Register, true, true, 20),
            exit(Cause::Return, true, false, 30),
            exit(Hypercall, false, true, 11),
            exit(Register, true, true, 1_000_000),
        ]);
        assert_eq!(Measure::Below(None).value(&run), Some(4.0));
        assert_eq!(Measure::Below(Some(Hypercall)).value(&run), Some(2.0));
        assert_eq!(Measure::BelowTotal.value(&run), Some(71.0));
        let plain = super::tests::run(vec![exit(Hypercall, false, false, 1)]);
        assert_eq!(Measure::Below(None).value(&plain), None);
    }
}
