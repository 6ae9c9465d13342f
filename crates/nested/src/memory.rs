//! Seam 2: how a walker reaches the memory of the VM whose tables it reads.
//!
//! Every access may fail, and the error says how, because the answers differ: a hole is a fault for
//! whoever owns the table, a poisoned page is a memory error that the VMM hears of, and a page that
//! is on its way back is nobody's fault. A walker that forgets one of them does not compile.

use umbra_arm64::Ipa;

/// Why a word of guest memory could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryError {
    /// No memory slot holds the address: a table in MMIO or in nowhere.
    NotMapped,
    /// The slot is read-only and the access was a compare-and-swap.
    ReadOnly,
    /// The page holds an uncorrected memory error.
    Poisoned,
    /// Not now: the page is being brought in or moved. Ask again without any lock held.
    Retry,
}

/// Memory of one VM, addressed in its own physical space, one aligned word at a time.
///
/// Words are exchanged as the bytes of memory read in little-endian order; the owner of a
/// big-endian table swaps them. An address that is not a multiple of 8 never comes.
pub trait GuestMemory {
    /// Loads the word at `at`.
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError>;

    /// Loads the words from `at` on, which lie in one page.
    fn read_run(&mut self, at: Ipa, words: &mut [u64]) -> Result<(), MemoryError> {
        for (index, word) in words.iter_mut().enumerate() {
            let at = at.checked_add(index as u64 * 8);
            *word = self.read_u64(at.ok_or(MemoryError::NotMapped)?)?;
        }
        Ok(())
    }

    /// Replaces the word at `at` by `new` if it is `old`; otherwise answers `Err` with what it is.
    ///
    /// This is a write of the guest's: it breaks copy-on-write, and it counts for the dirty log.
    fn compare_exchange_u64(
        &mut self,
        at: Ipa,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemoryError>;
}
