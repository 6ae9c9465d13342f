//! Every count that a run left, for `--list`: what rows are made of, in the form in which other counters of
//! exits print theirs, so that they can be compared.

use super::record::{Cause, Exit, Records, median};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A line for each cause of exits between two marks, of virtual EL2 and of everything else.
pub(crate) fn of(name: &str, records: &Records) -> String {
    let mut text = format!("# {name}\n");
    for (at, phase) in records.phases.iter().enumerate() {
        let mut kinds: BTreeMap<(bool, Cause), Vec<&Exit>> = BTreeMap::new();
        for exit in phase {
            let kind = (exit.from_virtual_el2, exit.cause);
            kinds.entry(kind).or_default().push(exit);
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "after mark {at}:");
        for ((el2, cause), exits) in kinds {
            let storey = if el2 { "virtual EL2" } else { "guest" };
            let count = exits.len() as u64;
            let _ = writeln!(
                text,
                "  {storey}, {cause:?}: {count} exits; instructions {}; accesses {}; EL0 instructions {}",
                spread(&exits, |exit| exit.host.instructions
                    + exit.user.instructions),
                spread(&exits, |exit| exit.host.accesses + exit.user.accesses),
                spread(&exits, |exit| exit.user.instructions),
            );
        }
    }
    text
}

/// Mean, smallest and median.
fn spread(exits: &[&Exit], of: impl Fn(&Exit) -> u64) -> String {
    let values: Vec<u64> = exits.iter().map(|exit| of(exit)).collect();
    let mean = values.iter().sum::<u64>() as f64 / values.len().max(1) as f64;
    let least = values.iter().min().copied().unwrap_or(0);
    let middle = median(values).unwrap_or(0);
    format!("mean {mean:.1} min {least} median {middle}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Cost;

    #[test]
    fn a_line_for_each_cause_and_storey() {
        let exit = |from_virtual_el2, instructions| Exit {
            cause: Cause::Hypercall,
            from_virtual_el2,
            to_virtual_el2: false,
            guest: 1,
            host: Cost {
                instructions,
                accesses: 3,
            },
            user: Cost {
                instructions: 5,
                accesses: 0,
            },
        };
        let records = Records {
            phases: vec![
                vec![],
                vec![exit(false, 10), exit(false, 11), exit(true, 7)],
            ],
            ..Records::default()
        };
        let text = of("pages on umbra", &records);
        assert!(
            text.starts_with("# pages on umbra\nafter mark 0:\nafter mark 1:\n"),
            "{text}"
        );
        assert!(
            text.contains("  guest, Hypercall: 2 exits; instructions mean 15.5 min 15 median 16; accesses mean 3.0 "),
            "{text}"
        );
        assert!(
            text.contains("  virtual EL2, Hypercall: 1 exits; instructions mean 12.0 "),
            "{text}"
        );
    }
}
