//! mremap and brk: areas that change their size or their place.

use super::{
    AddressSpace, Backing, Changes, Mapped, Moved, PAGE, Prot, Span, Traits, USER_END, Vma,
};
use crate::{Errno, uapi};
use umbra_arm64::Hva;

impl<O: Clone + PartialEq> AddressSpace<O> {
    /// mremap. `EINVAL`: a bad flag, address or length, or new pages that overlap the old; `EFAULT`:
    /// the old pages are not all in one area; `ENOMEM`: no room. Nothing is changed on failure.
    /// MREMAP_DONTUNMAP and the copying form (an old length of zero) are not known.
    pub fn remap(
        &mut self,
        addr: Hva,
        old_len: u64,
        new_len: u64,
        flags: u32,
        new_addr: Hva,
    ) -> Result<Mapped, Errno> {
        let may_move = flags & uapi::MREMAP_MAYMOVE != 0;
        let fixed = flags & uapi::MREMAP_FIXED != 0;
        if flags & !(uapi::MREMAP_MAYMOVE | uapi::MREMAP_FIXED) != 0 || (fixed && !may_move) {
            return Err(Errno::EINVAL);
        }
        let old = Span::new(addr, old_len)
            .filter(|s| s.end <= USER_END)
            .ok_or(Errno::EINVAL)?;
        let new_len = match new_len.checked_next_multiple_of(PAGE) {
            Some(len) if len > 0 && len <= USER_END => len,
            _ => return Err(Errno::EINVAL),
        };
        let area = self
            .find(addr)
            .filter(|area| area.span.end >= old.end)
            .ok_or(Errno::EFAULT)?;
        if !area.backing_at(addr).reaches(new_len) {
            return Err(Errno::EINVAL);
        }
        // Cuts at both edges of the old and the new pages, and one area more.
        self.check_room(old, 3)?;

        if fixed {
            let new = Span::new(new_addr, new_len).filter(|span| span.in_user_space());
            let new = new
                .filter(|span| !span.overlaps(old))
                .ok_or(Errno::EINVAL)?;
            let mut changes = self.changes_in(new)?;
            self.clear(new, &mut changes);
            return Ok(self.shift(old, new, changes));
        }
        if new_len <= old.bytes() {
            return Ok(self.shrink(old, new_len));
        }
        if let Some(extension) = self.extension(old, new_len) {
            let backing = self
                .find(addr)
                .map(|area| (area.backing_at(old.start()), area.clone()));
            if let Some((backing, area)) = backing {
                let backing = backing.advanced(old.bytes());
                self.insert(Vma {
                    span: extension,
                    backing,
                    ..area
                });
            }
            let span = Span {
                start: old.start,
                end: extension.end,
            };
            return Ok(Mapped {
                span,
                changes: Changes::default(),
            });
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let new = self.find_gap(new_len).ok_or(Errno::ENOMEM)?;
        Ok(self.shift(old, new, Changes::default()))
    }

    fn shrink(&mut self, old: Span, new_len: u64) -> Mapped {
        let mut changes = Changes::default();
        let end = old.start + new_len;
        if end < old.end {
            self.clear(
                Span {
                    start: end,
                    end: old.end,
                },
                &mut changes,
            );
        }
        Mapped {
            span: Span {
                start: old.start,
                end,
            },
            changes,
        }
    }

    /// The pages by which `old`, at the end of its area, can grow where it is.
    fn extension(&self, old: Span, new_len: u64) -> Option<Span> {
        let area = self.find(old.start())?;
        let span = Span {
            start: old.end,
            end: old.start.checked_add(new_len)?,
        };
        (area.span.end == old.end && span.end <= USER_END && self.is_free(span)).then_some(span)
    }

    /// Moves `old`, which lies in one area, to the free pages `new`.
    fn shift(&mut self, old: Span, new: Span, mut changes: Changes) -> Mapped {
        let kept = old.bytes().min(new.bytes());
        if kept < old.bytes() {
            self.clear(
                Span {
                    start: old.start + kept,
                    end: old.end,
                },
                &mut changes,
            );
        }
        let from = Span {
            start: old.start,
            end: old.start + kept,
        };
        self.carve(from);
        let area = self
            .first_in(from)
            .and_then(|start| self.areas.remove(&start));
        if let Some(area) = area {
            self.insert(Vma { span: new, ..area });
            changes.moved = Some(Moved {
                from,
                to: new.start(),
            });
        }
        Mapped { span: new, changes }
    }

    /// Says where the heap begins, once, after the program is loaded.
    pub fn set_brk_start(&mut self, start: Hva) {
        let start = start.align_up(PAGE).map_or(USER_END, Hva::raw);
        (self.brk_start, self.brk_end) = (start, start);
    }

    /// brk: moves the end of the heap if that is possible, and answers where it is.
    pub fn brk(&mut self, wanted: Hva) -> (Hva, Changes) {
        let mut changes = Changes::default();
        if self.try_brk(wanted, &mut changes).is_some() {
            self.brk_end = wanted.raw();
        }
        (Hva::new(self.brk_end), changes)
    }

    fn try_brk(&mut self, wanted: Hva, changes: &mut Changes) -> Option<()> {
        if wanted.raw() < self.brk_start || wanted.raw() > USER_END || self.brk_start == 0 {
            return None;
        }
        let new = wanted.align_up(PAGE)?.raw();
        let old = Hva::new(self.brk_end).align_up(PAGE)?.raw();
        if new < old {
            let span = Span {
                start: new,
                end: old,
            };
            self.check_room(span, 0).ok()?;
            *changes = self.changes_in(span).ok()?;
            self.clear(span, changes);
        } else if new > old {
            let span = Span {
                start: old,
                end: new,
            };
            if !self.is_free(span) || self.check_room(span, 1).is_err() {
                return None;
            }
            self.insert(Vma {
                span,
                prot: Prot::RW,
                backing: Backing::Anon,
                traits: Traits::default(),
            });
        }
        Some(())
    }
}
