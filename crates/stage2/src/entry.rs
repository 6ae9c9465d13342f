//! One table entry: what a 64-bit word in a table means to the engine.
//!
//! ```text
//!  bit 0 = 1   leaf (block, or page at level 3) or table: hardware's business (Arm ARM D8.3)
//!  bit 0 = 0   hardware faults; bits 63:62 tell the engine why
//!       0b00   nothing here (the word is zero)
//!       0b01   in transition: broken for break-before-make, bits 61:1 hold the break's ticket
//!       0b10   parked: a leaf with output and attributes, but no access at all
//! ```
//!
//! Hardware ignores bits 63:1 of an invalid descriptor, so the marks cost nothing. A valid
//! descriptor that the engine writes has bits 63:59 clear.

use umbra_arm64::{Granule, Level, Pa};

pub(crate) const VALID: u64 = 1;
/// Set in a table descriptor and in a page descriptor, clear in a block descriptor.
pub(crate) const TABLE_OR_PAGE: u64 = 1 << 1;
pub(crate) const AF: u64 = 1 << 10;
pub(crate) const SOFTWARE_SHIFT: u32 = 55;
pub(crate) const PARKED: u64 = 0b10 << 62;
pub(crate) const ABSENT: u64 = 0;

const IN_TRANSITION: u64 = 0b01 << 62;
const MARK: u64 = 0b11 << 62;
const SOFTWARE: u64 = 0xf << SOFTWARE_SHIFT;
/// Output address bits of a 48-bit descriptor, before the granule's low bits are taken off.
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// The number of one break-before-make, unique within its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// A decoded word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Absent,
    InTransition(Ticket),
    Leaf,
    Table(Pa),
}

/// Reads `word` as an entry of `level`.
pub(crate) fn decode(word: u64, level: Level, granule: Granule) -> Entry {
    if word & VALID == 0 {
        return match word & MARK {
            IN_TRANSITION => Entry::InTransition(Ticket((word & !MARK) >> 1)),
            PARKED => Entry::Leaf,
            _ => Entry::Absent,
        };
    }
    match (level, word & TABLE_OR_PAGE != 0) {
        (Level::L3, true) => Entry::Leaf,
        // Reserved, hardware treats it as invalid; the engine never writes it.
        (Level::L3, false) => Entry::Absent,
        (_, true) => Entry::Table(output(word, granule)),
        (_, false) => Entry::Leaf,
    }
}

/// The output address of a leaf, or the address of the next table.
pub(crate) fn output(word: u64, granule: Granule) -> Pa {
    Pa::new(word & OUTPUT & !(granule.bytes() - 1))
}

/// A leaf of `level` with output `pa` and the attribute bits of a format.
pub(crate) fn leaf(pa: Pa, level: Level, attrs: u64) -> u64 {
    let kind = if level == Level::L3 { TABLE_OR_PAGE } else { 0 };
    let valid = if attrs & PARKED == 0 { VALID } else { 0 };
    pa.raw() | attrs | kind | valid
}

/// A table descriptor without hierarchical attributes.
pub(crate) fn table(pa: Pa) -> u64 {
    pa.raw() | TABLE_OR_PAGE | VALID
}

/// The mark of an entry that was broken under `ticket`.
pub(crate) fn in_transition(ticket: Ticket) -> u64 {
    IN_TRANSITION | ticket.0 << 1
}

/// The attribute bits of a leaf: what a format's `encode` produced.
pub(crate) fn attrs(word: u64, granule: Granule) -> u64 {
    word & !output(word, granule).raw() & !(VALID | TABLE_OR_PAGE)
}

/// Whether hardware could hold a translation made from `old` that `new` contradicts. Access flag
/// and software bits are not part of a translation.
pub(crate) fn needs_invalidation(old: u64, new: u64) -> bool {
    old & VALID != 0 && (old ^ new) & !(AF | SOFTWARE) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decode_to_what_they_were_made_as() {
        let (pa, granule) = (Pa::new(0x0000_8765_4000_0000), Granule::K4);
        for level in [Level::L0, Level::L1, Level::L2, Level::L3] {
            assert_eq!(decode(ABSENT, level, granule), Entry::Absent);
            assert_eq!(
                decode(in_transition(Ticket(7)), level, granule),
                Entry::InTransition(Ticket(7))
            );
            for bits in [AF, AF | PARKED] {
                let word = leaf(pa, level, bits);
                assert_eq!(decode(word, level, granule), Entry::Leaf);
                assert_eq!((output(word, granule), attrs(word, granule)), (pa, bits));
                assert_eq!(word & VALID != 0, bits & PARKED == 0);
            }
            let below = if level == Level::L3 {
                Entry::Leaf
            } else {
                Entry::Table(pa)
            };
            assert_eq!(decode(table(pa), level, granule), below);
        }
        assert_eq!(decode(pa.raw() | VALID, Level::L3, granule), Entry::Absent);
    }

    #[test]
    fn only_a_change_of_translation_needs_invalidation() {
        let old = leaf(Pa::new(0x1000), Level::L3, 0x80);
        assert!(!needs_invalidation(old, old | AF | 1 << SOFTWARE_SHIFT));
        assert!(needs_invalidation(old, old & !0x80));
        assert!(needs_invalidation(old, ABSENT));
        assert!(!needs_invalidation(ABSENT, old));
        assert!(!needs_invalidation(
            leaf(Pa::new(0x1000), Level::L3, PARKED),
            old
        ));
    }
}
