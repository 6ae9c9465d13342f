//! The caches that a guest is shown: the simplest hierarchy that CTR_EL0 allows.
//!
//! A guest's set/way operations and its view of geometry have no use but to be consistent, and a
//! vCPU moves between CPUs. So the hierarchy is made up from CTR_EL0, which is true: it says which
//! maintenance the Point of Unification needs, and the levels follow. Every cache has one set and
//! one way, which keeps loops over them short.

/// CTR_EL0.IDC: cleaning the data cache is not needed for instruction fetch.
const IDC: u64 = 1 << 28;
/// CTR_EL0.DIC: invalidating the instruction cache is not needed for instruction fetch.
const DIC: u64 = 1 << 29;

const INSTRUCTION: u64 = 1;
const UNIFIED: u64 = 4;

/// CLIDR_EL1 for this CTR_EL0 (Arm ARM D24.2.27).
///
/// The data side is one unified cache at the level of coherence. It is the first level, unless
/// instruction caches must be invalidated but data need not be cleaned: then level 1 is the
/// instruction cache alone.
pub const fn clidr(ctr: u64) -> u64 {
    let clean_needed = ctr & IDC == 0;
    let invalidate_needed = ctr & DIC == 0;
    let coherence = if !clean_needed && invalidate_needed {
        2
    } else {
        1
    };
    let mut value = UNIFIED << (3 * (coherence - 1)) | coherence << 24;
    if invalidate_needed {
        // Separate instruction and data caches (3) where a unified one would stand at level 1.
        value |= INSTRUCTION;
        if coherence == 1 {
            value = value & !7 | 3;
        }
    }
    if clean_needed {
        // LoUU and LoUIS: level 1.
        value |= 1 << 27 | 1 << 21;
    }
    value
}

/// Whether `clidr` is a description of caches that goes with `ctr`: data may be said to need cleaning where it
/// does not, not the other way round.
pub const fn is_hierarchy(clidr: u64, ctr: u64) -> bool {
    let (unification, coherence) = (clidr >> 21 & 7 | clidr >> 27 & 7, clidr >> 24 & 7);
    let is_coherent = coherence == 0 || unification == 0;
    clidr >> 47 == 0 && (ctr & IDC != 0 || !is_coherent)
}

/// CCSIDR_EL1 of the cache that `csselr` selects, or `None` where `clidr` has none there.
///
/// One set, one way, lines as long as CTR_EL0 says.
pub const fn ccsidr(clidr: u64, ctr: u64, csselr: u64) -> Option<u64> {
    let level = csselr >> 1 & 7;
    let instruction = csselr & 1 != 0;
    if level == 7 || csselr >> 4 != 0 {
        return None;
    }
    let there = match clidr >> (3 * level) & 7 {
        1 => instruction,
        2 | 4 => !instruction,
        3 => true,
        _ => false,
    };
    if !there {
        return None;
    }
    // CTR_EL0 counts lines in log2 of words, CCSIDR_EL1 in log2 of bytes less 4.
    let words = if instruction {
        ctr & 15
    } else {
        ctr >> 16 & 15
    };
    Some(match words + 2 {
        0..=4 => 0,
        bytes @ 5..=11 => bytes - 4,
        _ => 7,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: u64 = 4 << 16 | 4;

    #[test]
    fn each_kind_of_coherence_has_its_hierarchy() {
        // Coherent altogether: one unified level.
        assert_eq!(clidr(IDC | DIC), 1 << 24 | 4);
        // Only the instruction cache needs care: it stands at level 1, data at level 2.
        assert_eq!(clidr(IDC), 2 << 24 | 4 << 3 | 1);
        // Only the data cache needs care.
        assert_eq!(clidr(DIC), 1 << 27 | 1 << 24 | 1 << 21 | 4);
        // Both do: separate caches at level 1.
        assert_eq!(clidr(0), 1 << 27 | 1 << 24 | 1 << 21 | 3);
    }

    #[test]
    fn geometry_is_given_for_caches_that_are_there() {
        let separate = clidr(0);
        assert_eq!(ccsidr(separate, LINES, 0), Some(2), "64-byte lines");
        assert_eq!(ccsidr(separate, LINES, 1), Some(2));
        assert_eq!(ccsidr(separate, LINES, 2), None, "no level 2");
        let unified = clidr(IDC | DIC);
        assert_eq!(ccsidr(unified, LINES, 0), Some(2));
        assert_eq!(ccsidr(unified, LINES, 1), None, "no instruction cache");
        let two = clidr(IDC);
        assert_eq!(ccsidr(two, LINES, 0), None);
        assert_eq!(ccsidr(two, LINES, 1), Some(2));
        assert_eq!(ccsidr(two, LINES, 2), Some(2));
    }

    #[test]
    fn a_hierarchy_cleans_where_the_machine_needs_it() {
        for ctr in [0, IDC, DIC, IDC | DIC] {
            assert!(is_hierarchy(clidr(ctr), ctr));
            assert!(
                is_hierarchy(clidr(ctr) | UNIFIED << 9, ctr),
                "one level more"
            );
            assert!(!is_hierarchy(clidr(ctr) | 1 << 47, ctr), "reserved");
        }
        assert!(is_hierarchy(clidr(0), IDC) && !is_hierarchy(clidr(IDC), 0));
    }

    #[test]
    fn no_selection_goes_out_of_bounds() {
        for select in 0..256 {
            for ctr in [0, u64::MAX, LINES, IDC, DIC] {
                if let Some(value) = ccsidr(clidr(ctr), ctr, select) {
                    assert!(value < 8 && select < 14);
                }
            }
        }
    }
}
