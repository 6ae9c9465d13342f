//! Which pages of a memory slot were written since somebody last asked: the bitmap behind
//! KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.
//!
//! What always holds: a bit of a page beyond the slot is never set. The bitmap lies in pieces of one
//! page each, so that a slot of any size asks the heap for nothing big.

use alloc::vec::Vec;

use crate::NoMemory;

/// 64-bit words in a piece.
const PIECE: usize = 512;
/// Pages that a word of the bitmap stands for.
pub const PAGES_PER_WORD: u64 = 64;

/// A bit a page, set by writes and cleared by who reads it.
#[derive(Debug)]
pub struct DirtyLog {
    pieces: Vec<Vec<u64>>,
    pages: u64,
}

impl DirtyLog {
    /// A log of `pages` pages, all of them written (`set`) or none.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(pages: u64, set: bool) -> Result<Self, NoMemory> {
        let words = usize::try_from(pages.div_ceil(PAGES_PER_WORD)).map_err(|_| NoMemory)?;
        let mut pieces = Vec::new();
        pieces
            .try_reserve_exact(words.div_ceil(PIECE))
            .map_err(|_| NoMemory)?;
        let mut left = words;
        while left != 0 {
            let here = left.min(PIECE);
            let mut piece = Vec::new();
            piece.try_reserve_exact(here).map_err(|_| NoMemory)?;
            piece.resize(here, if set { u64::MAX } else { 0 });
            pieces.push(piece);
            left -= here;
        }
        let mut log = Self { pieces, pages };
        if let Some(last) = log.word_mut(pages / PAGES_PER_WORD) {
            *last &= (1 << (pages % PAGES_PER_WORD)) - 1;
        }
        Ok(log)
    }

    /// Pages of the slot.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// 64-bit words of the bitmap.
    pub fn words(&self) -> u64 {
        self.pages.div_ceil(PAGES_PER_WORD)
    }

    fn word_mut(&mut self, index: u64) -> Option<&mut u64> {
        let index = usize::try_from(index).ok()?;
        self.pieces.get_mut(index / PIECE)?.get_mut(index % PIECE)
    }

    /// Word `index`: bit n is page 64 × index + n. 0 beyond the slot.
    pub fn word(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.pieces.get(index / PIECE)?.get(index % PIECE))
            .copied()
            .unwrap_or(0)
    }

    /// Page `page` was written.
    pub fn mark(&mut self, page: u64) {
        if page < self.pages
            && let Some(word) = self.word_mut(page / PAGES_PER_WORD)
        {
            *word |= 1 << (page % PAGES_PER_WORD);
        }
    }

    /// Clears the bits of `mask` in word `index`, and answers which of them were set: those pages
    /// must not be writable afterwards.
    pub fn clear(&mut self, index: u64, mask: u64) -> u64 {
        match self.word_mut(index) {
            Some(word) => {
                let was = *word & mask;
                *word &= !mask;
                was
            }
            None => 0,
        }
    }

    /// Sets the bits of `bits` again: they could not be told.
    pub fn restore(&mut self, index: u64, bits: u64) {
        for bit in (0..PAGES_PER_WORD).filter(|bit| bits >> bit & 1 == 1) {
            self.mark(index.saturating_mul(PAGES_PER_WORD) + bit);
        }
    }
}

/// What KVM_CLEAR_DIRTY_LOG may name in a slot of `pages`: whole words, but for a slot's end
/// (api.rst 4.117).
pub fn is_clearable(pages: u64, first: u64, count: u64) -> bool {
    let Some(left) = pages.checked_sub(first) else {
        return false;
    };
    first.is_multiple_of(PAGES_PER_WORD)
        && count <= left
        && (count == left || count.is_multiple_of(PAGES_PER_WORD))
}

/// The pages between the first and the last set bit of `bits`: offset and number. `None` for none.
pub fn hull(bits: u64) -> Option<(u64, u64)> {
    (bits != 0).then(|| {
        let first = bits.trailing_zeros();
        let last = 63 - bits.leading_zeros();
        (first.into(), (last - first + 1).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn set(log: &DirtyLog) -> BTreeSet<u64> {
        (0..log.words())
            .flat_map(|word| (0..64).map(move |bit| (word, bit)))
            .filter(|&(word, bit)| log.word(word) >> bit & 1 == 1)
            .map(|(word, bit)| word * 64 + bit)
            .collect()
    }

    #[test]
    fn a_new_log_is_empty_or_full_to_the_page() {
        for pages in [1, 63, 64, 65, 64 * 512, 64 * 512 + 1, 100_000] {
            assert!(set(&DirtyLog::new(pages, false).unwrap()).is_empty());
            let full = DirtyLog::new(pages, true).unwrap();
            assert_eq!(set(&full).len() as u64, pages, "{pages}");
            assert_eq!(full.words(), pages.div_ceil(64));
        }
    }

    #[test]
    fn what_may_be_cleared() {
        for (pages, first, count, may) in [
            (100, 0, 100, true),
            (100, 0, 64, true),
            (100, 64, 36, true),
            (100, 64, 37, false),
            (100, 0, 63, false),
            (100, 1, 64, false),
            (100, 128, 0, false),
            (128, 128, 0, true),
            (100, 0, u64::MAX, false),
        ] {
            assert_eq!(
                is_clearable(pages, first, count),
                may,
                "{pages} {first} {count}"
            );
        }
    }

    #[test]
    fn a_hull_covers_its_bits_and_no_more() {
        assert_eq!(hull(0), None);
        assert_eq!(hull(1), Some((0, 1)));
        assert_eq!(hull(0b1010_0000), Some((5, 3)));
        assert_eq!(hull(u64::MAX), Some((0, 64)));
    }

    proptest! {
        /// Against a set of page numbers.
        #[test]
        fn it_is_a_set_of_pages(
            pages in 1u64..80_000,
            steps in prop::collection::vec((any::<bool>(), any::<u64>(), any::<u64>()), 0..200),
        ) {
            let mut log = DirtyLog::new(pages, false).unwrap();
            let mut model = BTreeSet::new();
            for (mark, a, mask) in steps {
                if mark {
                    let page = a % (pages + 70);
                    log.mark(page);
                    if page < pages {
                        model.insert(page);
                    }
                } else {
                    let word = a % (log.words() + 1);
                    let told = log.clear(word, mask);
                    let was: Vec<u64> = (0..64)
                        .filter(|bit| mask >> bit & 1 == 1)
                        .map(|bit| word * 64 + bit)
                        .filter(|page| model.remove(page))
                        .collect();
                    let bits = was.iter().fold(0, |bits, page| bits | 1 << (page % 64));
                    prop_assert_eq!(told, bits);
                    if mask & 1 == 1 {
                        log.restore(word, told);
                        model.extend(was);
                    }
                }
            }
            prop_assert_eq!(set(&log), model);
        }
    }
}
