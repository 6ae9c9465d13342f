//! mprotect and madvise: areas that stay where they are and change what they are like.

use super::{AddressSpace, Changes, HugeAdvice, PAGE, Prot, Span, USER_END, Vma};
use crate::{Errno, uapi};
use umbra_arm64::Hva;

/// What madvise asks for, beyond a note in the map.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "the advice has not been taken yet"]
pub enum Advised {
    /// Nothing to do.
    Noted,
    /// Pages to give up: their next touch finds zeros, or the file's bytes.
    Discard(Changes),
    /// Pages to bring in now, with this access.
    Populate(Span, Prot),
}

impl<O: Clone + PartialEq> AddressSpace<O> {
    /// mprotect. `EINVAL`: an address that is no page's; `ENOMEM`: a page that is not mapped, too many
    /// areas. Checked before anything is changed; Linux changes what precedes a hole.
    pub fn protect(&mut self, addr: Hva, len: u64, prot: Prot) -> Result<Changes, Errno> {
        let mut changes = Changes::default();
        let Some(span) = self.whole(addr, len)? else {
            return Ok(changes);
        };
        self.check_room(span, 0)?;
        let areas = self.overlapping(span).count();
        let room = changes.protect.try_reserve(areas);
        room.map_err(|_| Errno::ENOMEM)?;
        self.alter(span, |area| {
            if area.prot != prot {
                area.prot = prot;
                changes.protect.push((area.span, prot));
            }
        });
        Ok(changes)
    }

    /// madvise. `EINVAL`: an address that is no page's, advice that umbra does not know; `ENOMEM`: a
    /// page that is not mapped. MADV_HWPOISON and its kin are the caller's, who knows frames.
    pub fn advise(&mut self, addr: Hva, len: u64, advice: u32) -> Result<Advised, Errno> {
        let span = match self.whole(addr, len)? {
            Some(span) => span,
            None => return Ok(Advised::Noted),
        };
        match advice {
            uapi::MADV_NORMAL
            | uapi::MADV_RANDOM
            | uapi::MADV_SEQUENTIAL
            | uapi::MADV_WILLNEED
            | uapi::MADV_DONTFORK
            | uapi::MADV_DOFORK
            | uapi::MADV_DONTDUMP
            | uapi::MADV_DODUMP => Ok(Advised::Noted),
            uapi::MADV_HUGEPAGE => self.set_huge(span, HugeAdvice::Prefer),
            uapi::MADV_NOHUGEPAGE => self.set_huge(span, HugeAdvice::Never),
            // MADV_FREE allows to discard later; now is a kind of later.
            uapi::MADV_DONTNEED | uapi::MADV_FREE => {
                let mut changes = self.changes_in(span)?;
                for part in self
                    .overlapping(span)
                    .filter_map(|area| area.span.common(span))
                {
                    changes.push_unmap(part);
                }
                Ok(Advised::Discard(changes))
            }
            uapi::MADV_POPULATE_READ => Ok(Advised::Populate(span, Prot::READ)),
            uapi::MADV_POPULATE_WRITE => Ok(Advised::Populate(span, Prot::WRITE)),
            _ => Err(Errno::EINVAL),
        }
    }

    fn set_huge(&mut self, span: Span, huge: HugeAdvice) -> Result<Advised, Errno> {
        self.check_room(span, 0)?;
        self.alter(span, |area| area.traits.huge = huge);
        Ok(Advised::Noted)
    }

    fn alter(&mut self, span: Span, mut change: impl FnMut(&mut Vma<O>)) {
        self.carve(span);
        for (_, area) in self.areas.range_mut(span.start..span.end) {
            change(area);
        }
        self.merge(span);
    }

    /// The span, if all of it is mapped; `None` for an empty one.
    fn whole(&self, addr: Hva, len: u64) -> Result<Option<Span>, Errno> {
        if !addr.is_aligned(PAGE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(None);
        }
        let span = Span::new(addr, len)
            .filter(|span| span.end <= USER_END)
            .ok_or(Errno::ENOMEM)?;
        let mut reached = span.start;
        for area in self.overlapping(span) {
            if area.span.start > reached {
                return Err(Errno::ENOMEM);
            }
            reached = area.span.end;
        }
        if reached < span.end {
            Err(Errno::ENOMEM)
        } else {
            Ok(Some(span))
        }
    }
}
