//! The bytes of a regular file: a borrowed base, covered by pages of its own where it was written.
//!
//! ```text
//!   base (initrd)   ████████████████░░░░        visible up to `base_len`
//!   pages                ▒▒▒▒     ▒▒▒▒    ▒▒▒▒   copied on first write, or new
//!   reads           ████ ▒▒▒▒█████▒▒▒▒    ▒▒▒▒   and zeros in between, up to `len`
//! ```
//!
//! What always holds: bytes of the base at or above `base_len`, and bytes of a page at or above `len`,
//! read as zero when the file grows again.

use crate::Errno;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

const PAGE: usize = crate::vma::PAGE as usize;

/// The largest file, in bytes: 1 TiB of mostly nothing.
pub const MAX_FILE: u64 = 1 << 40;

/// A run of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// So many zeros; none at the end of the file.
    Zeros(usize),
}

#[derive(Debug, Default)]
pub(super) struct Content {
    base: &'static [u8],
    base_len: usize,
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Content {
    pub(super) fn borrowed(base: &'static [u8]) -> Self {
        Self {
            base,
            base_len: base.len(),
            len: base.len() as u64,
            pages: BTreeMap::new(),
        }
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// How many pages it owns.
    pub(super) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// What is at `offset`, to the end of the page or the file at most.
    pub(super) fn chunk(&self, offset: u64) -> Chunk<'_> {
        let in_page = (offset % PAGE as u64) as usize;
        let left = self.len.saturating_sub(offset);
        let count = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(PAGE - in_page);
        if let Some(page) = self.pages.get(&(offset / PAGE as u64)) {
            return Chunk::Bytes(page.get(in_page..in_page + count).unwrap_or_default());
        }
        let base = self.base.get(..self.base_len).unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match base.get(start..) {
            Some(rest) if !rest.is_empty() => {
                Chunk::Bytes(rest.get(..count.min(rest.len())).unwrap_or_default())
            }
            _ => Chunk::Zeros(count),
        }
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset.checked_add(done as u64) else {
                break;
            };
            let count = match self.chunk(at) {
                Chunk::Bytes(bytes) => {
                    rest.iter_mut()
                        .zip(bytes)
                        .for_each(|(to, from)| *to = *from);
                    bytes.len().min(rest.len())
                }
                Chunk::Zeros(count) => {
                    rest.iter_mut().take(count).for_each(|to| *to = 0);
                    count.min(rest.len())
                }
            };
            if count == 0 {
                break;
            }
            done += count;
        }
        done
    }

    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        pages_left: &mut u64,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.write_in_page(offset.saturating_add(done as u64), rest, pages_left) {
                Ok(count) => done += count,
                // What was written counts; the error comes with the next call.
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Cuts or extends. Only a cut into the base's last visible page can fail to be exact, and it needs
    /// no page: the base just gets shorter.
    pub(super) fn set_len(&mut self, len: u64, pages_left: &mut u64) -> Result<(), Errno> {
        if len > MAX_FILE {
            return Err(if len > i64::MAX as u64 {
                Errno::EINVAL
            } else {
                Errno::EFBIG
            });
        }
        if len < self.len {
            let gone = self.pages.split_off(&len.div_ceil(PAGE as u64));
            *pages_left += gone.len() as u64;
            let (last, used) = (len / PAGE as u64, (len % PAGE as u64) as usize);
            if let Some(page) = self.pages.get_mut(&last) {
                page.iter_mut().skip(used).for_each(|byte| *byte = 0);
            }
            self.base_len = self
                .base_len
                .min(usize::try_from(len).unwrap_or(usize::MAX));
        }
        self.len = len;
        Ok(())
    }

    /// Makes `start..end` read as zeros, and frees the pages inside. `ENOSPC` if a page of the base
    /// cannot be covered; what lies before it is then zero already.
    pub(super) fn punch(
        &mut self,
        start: u64,
        end: u64,
        pages_left: &mut u64,
    ) -> Result<(), Errno> {
        let end = end.min(self.len);
        let mut at = start;
        while at < end {
            let page = at / PAGE as u64;
            let next = (page + 1).saturating_mul(PAGE as u64).min(end);
            let whole =
                at.is_multiple_of(PAGE as u64) && (next - at == PAGE as u64 || next == self.len);
            let over_base = (page as usize).saturating_mul(PAGE) < self.base_len;
            if whole && !over_base {
                *pages_left += u64::from(self.pages.remove(&page).is_some());
                at = next;
                // Skip a large hole at once.
                if let Some((&owned, _)) = self.pages.range(page..).next() {
                    at = at.max((owned.saturating_mul(PAGE as u64)).min(end));
                } else {
                    at = end;
                }
                continue;
            }
            if over_base || self.pages.contains_key(&page) {
                let from = (at % PAGE as u64) as usize;
                let bytes = self.own(page, pages_left)?.iter_mut().skip(from);
                bytes.take((next - at) as usize).for_each(|byte| *byte = 0);
            }
            at = next;
        }
        Ok(())
    }

    fn write_in_page(
        &mut self,
        offset: u64,
        bytes: &[u8],
        pages_left: &mut u64,
    ) -> Result<usize, Errno> {
        let in_page = (offset % PAGE as u64) as usize;
        let room = usize::try_from(MAX_FILE.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = bytes.len().min(PAGE - in_page).min(room);
        if count == 0 {
            return Err(Errno::EFBIG);
        }
        let page = self.own(offset / PAGE as u64, pages_left)?;
        page.iter_mut()
            .skip(in_page)
            .zip(bytes.iter().take(count))
            .for_each(|(to, from)| *to = *from);
        self.len = self.len.max(offset + count as u64);
        Ok(count)
    }

    /// The page `index`, as its own; a copy of the base if need be.
    fn own(&mut self, index: u64, pages_left: &mut u64) -> Result<&mut Box<[u8]>, Errno> {
        use alloc::collections::btree_map::Entry;
        match self.pages.entry(index) {
            Entry::Occupied(page) => Ok(page.into_mut()),
            Entry::Vacant(slot) => {
                let left = pages_left.checked_sub(1).ok_or(Errno::ENOSPC)?;
                let mut page = Vec::new();
                page.try_reserve_exact(PAGE).map_err(|_| Errno::ENOSPC)?;
                let start = usize::try_from(index)
                    .unwrap_or(usize::MAX)
                    .saturating_mul(PAGE);
                let end = self.base_len.min(start.saturating_add(PAGE));
                page.extend_from_slice(self.base.get(start..end).unwrap_or_default());
                page.resize(PAGE, 0);
                *pages_left = left;
                Ok(slot.insert(page.into_boxed_slice()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Punch(u64, u64),
        Read(u64, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        const TOP: u64 = 5 * PAGE as u64;
        prop_oneof![
            3 => (0..TOP, 1usize..6000, any::<u8>()).prop_map(|(at, len, byte)| Op::Write(at, vec![byte; len])),
            2 => (0..TOP).prop_map(Op::SetLen),
            2 => (0..TOP, 0..TOP).prop_map(|(a, b)| Op::Punch(a.min(b), a.max(b))),
            1 => (0..4u64, 1..4u64).prop_map(|(a, n)| Op::Punch(a * PAGE as u64, (a + n) * PAGE as u64)),
            3 => (0..TOP, 0usize..9000).prop_map(|(at, len)| Op::Read(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(base_len in 0usize..10_000, ops in prop::collection::vec(op(), 1..40)) {
            let base: &'static [u8] = &BASE[..base_len];
            let mut file = Content::borrowed(base);
            let mut model = base.to_vec();
            let mut left = 1000;
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        let end = at as usize + bytes.len();
                        if model.len() < end {
                            model.resize(end, 0);
                        }
                        model[at as usize..end].copy_from_slice(&bytes);
                        prop_assert_eq!(file.write(at, &bytes, &mut left), Ok(bytes.len()));
                    }
                    Op::SetLen(len) => {
                        model.resize(len as usize, 0);
                        file.set_len(len, &mut left).unwrap();
                    }
                    Op::Punch(from, to) => {
                        let to = (to as usize).min(model.len());
                        if let Some(hole) = model.get_mut(from as usize..to) {
                            hole.fill(0);
                        }
                        file.punch(from, to as u64, &mut left).unwrap();
                    }
                    Op::Read(at, len) => {
                        let mut buf = vec![1; len];
                        let count = file.read(at, &mut buf);
                        let at = (at as usize).min(model.len());
                        prop_assert_eq!(&buf[..count], &model[at..model.len().min(at + len)]);
                    }
                }
                prop_assert_eq!(file.len(), model.len() as u64);
                prop_assert_eq!(left + file.pages(), 1000, "pages are accounted for");
            }
            let mut all = vec![1; model.len() + 1];
            prop_assert_eq!(file.read(0, &mut all), model.len());
            prop_assert_eq!(&all[..model.len()], &model[..]);
        }
    }

    static BASE: [u8; 10_000] = {
        let mut base = [0; 10_000];
        let mut n = 0;
        while n < base.len() {
            base[n] = (n % 251) as u8 + 1;
            n += 1;
        }
        base
    };

    #[test]
    fn reading_the_base_owns_nothing_and_a_write_owns_one_page() {
        let mut left = 1;
        let mut file = Content::borrowed(&BASE);
        assert_eq!(file.chunk(100), Chunk::Bytes(&BASE[100..PAGE]));
        assert_eq!(file.pages(), 0);
        assert_eq!(file.write(5000, b"x", &mut left), Ok(1));
        assert_eq!((file.pages(), left), (1, 0));
        assert_eq!(file.write(0, b"x", &mut left), Err(Errno::ENOSPC));
        assert_eq!(file.write(4095 + PAGE as u64, b"xy", &mut left), Ok(1));
        file.set_len(0, &mut left).unwrap();
        assert_eq!(left, 1);
    }

    #[test]
    fn sizes_end_somewhere() {
        let mut left = 10;
        let mut file = Content::default();
        assert_eq!(file.set_len(u64::MAX, &mut left), Err(Errno::EINVAL));
        assert_eq!(file.set_len(MAX_FILE + 1, &mut left), Err(Errno::EFBIG));
        assert_eq!(file.write(MAX_FILE - 1, b"ab", &mut left), Ok(1));
        assert_eq!(file.write(MAX_FILE, b"ab", &mut left), Err(Errno::EFBIG));
        assert_eq!(file.write(u64::MAX, b"ab", &mut left), Err(Errno::EFBIG));
        assert_eq!(file.read(u64::MAX, &mut [0; 8]), 0);
        file.punch(0, MAX_FILE, &mut left).unwrap();
        assert_eq!((file.pages(), left), (0, 10));
    }
}
