//! Which cells were reached: regime and stage, granule, kind of outcome, level. A cell that the
//! architecture has and nothing reached is a failure: agreement about what never came is worth nothing.

use umbra_arm64::{FaultStatus, Granule, Level};

use crate::rt::println;

/// Whose outcome it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Stage 1 of EL1&0.
    El10,
    /// Stage 1 of EL2&0.
    El20,
    /// Stage 2, on the way to a descriptor of stage 1.
    Walk,
    /// Stage 2 of the output.
    Second,
}

const STAGES: [(Stage, &str); 4] = [
    (Stage::El10, "EL1&0"),
    (Stage::El20, "EL2&0"),
    (Stage::Walk, "stage 2 on a walk"),
    (Stage::Second, "stage 2"),
];

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Translation,
    AddressSize,
    AccessFlag,
    Permission,
    External,
    Success,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Translation, "translation"),
    (Kind::AddressSize, "address size"),
    (Kind::AccessFlag, "access flag"),
    (Kind::Permission, "permission"),
    (Kind::External, "external"),
    (Kind::Success, "success"),
];

const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];
const LEVELS: usize = 5;

/// Counts of outcomes.
pub(crate) struct Coverage([[[[u32; LEVELS]; KINDS.len()]; 3]; STAGES.len()]);

fn place(level: Level) -> usize {
    (level.number() + 1) as usize
}

/// Whether the architecture has this cell. `level` counts from -1.
fn exists(stage: Stage, granule: Granule, kind: Kind, level: i32) -> bool {
    let (first, first_leaf) = match granule {
        Granule::K4 => (-1, 0),
        Granule::K16 => (0, 1),
        Granule::K64 => (1, 1),
    };
    match kind {
        // `oracle::is_unaskable` says why.
        Kind::Permission if stage == Stage::Second => false,
        // A bad configuration is told as level 0, with every granule.
        Kind::Translation | Kind::AddressSize => level == 0 || level >= first,
        Kind::External => level >= first,
        Kind::AccessFlag | Kind::Permission => level >= first_leaf,
        // PAR_EL1 does not say the level of a success, and nothing succeeds in the middle of a walk.
        Kind::Success => level == 0 && stage != Stage::Walk,
    }
}

impl Coverage {
    /// Nothing yet.
    pub(crate) const fn new() -> Coverage {
        Coverage([[[[0; LEVELS]; KINDS.len()]; 3]; STAGES.len()])
    }

    /// Counts an outcome; `None` is a success. False if the architecture has no such outcome.
    pub(crate) fn count(
        &mut self,
        stage: Stage,
        granule: Granule,
        fault: Option<FaultStatus>,
    ) -> bool {
        let (kind, level) = match fault {
            None => (Kind::Success, 1),
            Some(FaultStatus::Translation(level)) => (Kind::Translation, place(level)),
            Some(FaultStatus::AddressSize(level)) => (Kind::AddressSize, place(level)),
            Some(FaultStatus::AccessFlag(level)) => (Kind::AccessFlag, place(level)),
            Some(FaultStatus::Permission(level)) => (Kind::Permission, place(level)),
            Some(FaultStatus::ExternalOnWalk(level)) => (Kind::External, place(level)),
            Some(_) => return false,
        };
        let at = |found: Option<usize>| found.unwrap_or(0);
        let row = at(STAGES.iter().position(|(s, _)| *s == stage));
        let column = at(KINDS.iter().position(|(k, _)| *k == kind));
        let size = at(GRANULES.iter().position(|g| *g == granule));
        self.0[row][size][column][level] += 1;
        exists(stage, granule, kind, level as i32 - 1)
    }

    /// Prints the table; the number of empty cells.
    pub(crate) fn report(&self) -> u32 {
        let mut empty = 0;
        println!("outcome, by level -1 to 3 (. = the architecture has none)");
        for (row, (stage, name)) in self.0.iter().zip(STAGES) {
            for (cells, granule) in row.iter().zip(GRANULES) {
                for (levels, (kind, what)) in cells.iter().zip(KINDS) {
                    let size = granule.bytes() >> 10;
                    crate::rt::print(format_args!("{name:<18} {size:>2} KiB {what:<13}"));
                    for (level, count) in (-1..).zip(levels) {
                        if exists(stage, granule, kind, level) {
                            crate::rt::print(format_args!(" {count:>8}"));
                            empty += u32::from(*count == 0);
                        } else {
                            crate::rt::print(format_args!("        ."));
                        }
                    }
                    println!("");
                }
            }
        }
        empty
    }
}
