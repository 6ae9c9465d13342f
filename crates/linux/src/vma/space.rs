//! The address space itself: finding, placing, mapping and unmapping areas.

use super::{Backing, Changes, PAGE, Prot, Span, Traits, USER_END, USER_MIN, Vma};
use crate::{Errno, uapi};
use alloc::collections::BTreeMap;
use umbra_arm64::Hva;

/// The most areas a process may have (Linux's max_map_count). It bounds the kernel memory that a
/// process can use up by splitting.
pub const MAX_AREAS: usize = 65530;

/// Where a new area goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// At this page if it is free, else anywhere; 0 for anywhere.
    Hint(Hva),
    /// Here, replacing what is there (MAP_FIXED).
    Replace(Hva),
    /// Here, if it is free (MAP_FIXED_NOREPLACE).
    Exactly(Hva),
}

impl Placement {
    /// Reads mmap's address and flags.
    pub const fn from_linux(addr: Hva, flags: u32) -> Self {
        if flags & uapi::MAP_FIXED_NOREPLACE != 0 {
            Self::Exactly(addr)
        } else if flags & uapi::MAP_FIXED != 0 {
            Self::Replace(addr)
        } else {
            Self::Hint(addr)
        }
    }
}

/// A new area.
#[derive(Clone, Debug)]
pub struct Request<O> {
    /// Where.
    pub place: Placement,
    /// Bytes; rounded up to pages.
    pub len: u64,
    /// Who may.
    pub prot: Prot,
    /// What.
    pub backing: Backing<O>,
    /// How.
    pub traits: Traits,
}

/// Where an area ended up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// The pages.
    pub span: Span,
    /// What it pushed aside.
    pub changes: Changes,
}

/// Why an access is not allowed: SIGSEGV's si_code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No area: SEGV_MAPERR.
    NotMapped,
    /// The area forbids it: SEGV_ACCERR.
    NotAllowed,
}

/// All areas of one process.
#[derive(Clone, Debug)]
pub struct AddressSpace<O> {
    pub(super) areas: BTreeMap<u64, Vma<O>>,
    /// Placement goes down from here.
    ceiling: u64,
    /// The limit to which a stack may grow, in bytes.
    stack_limit: u64,
    pub(super) brk_start: u64,
    pub(super) brk_end: u64,
}

impl<O: Clone + PartialEq> AddressSpace<O> {
    /// An empty space, in which areas that name no address are placed below `ceiling`, and a stack
    /// grows to at most `stack_limit` bytes.
    pub fn new(ceiling: Hva, stack_limit: u64) -> Self {
        let ceiling = ceiling.align_down(PAGE).raw().clamp(USER_MIN, USER_END);
        Self {
            areas: BTreeMap::new(),
            ceiling,
            stack_limit,
            brk_start: 0,
            brk_end: 0,
        }
    }

    /// The area that `addr` lies in.
    pub fn find(&self, addr: Hva) -> Option<&Vma<O>> {
        let (_, area) = self.areas.range(..=addr.raw()).next_back()?;
        area.span.contains(addr).then_some(area)
    }

    /// The area that allows `access` to `addr`; a stack just above grows down to it first.
    pub fn fault(&mut self, addr: Hva, access: Prot) -> Result<&Vma<O>, Fault> {
        let start = match self.find(addr) {
            Some(area) => area.span.start(),
            None => {
                self.grow_stack(addr)?;
                let area = self.find(addr).ok_or(Fault::NotMapped)?;
                area.span.start()
            }
        };
        let area = self.areas.get(&start.raw()).ok_or(Fault::NotMapped)?;
        if area.prot.contains(access) {
            Ok(area)
        } else {
            Err(Fault::NotAllowed)
        }
    }

    /// Every area, from the lowest.
    pub fn iter(&self) -> impl Iterator<Item = &Vma<O>> {
        self.areas.values()
    }

    /// Bytes in all areas.
    pub fn bytes(&self) -> u64 {
        self.areas.values().map(|area| area.span.bytes()).sum()
    }

    /// mmap. `EINVAL`: no length, an address or offset that is no page's; `ENOMEM`: no room, too many
    /// areas; `EPERM`: below [`USER_MIN`]; `EEXIST`: not free; `EOVERFLOW`: beyond a file's largest
    /// offset. Nothing is changed on failure.
    pub fn map(&mut self, request: Request<O>) -> Result<Mapped, Errno> {
        if request.len == 0 || !request.backing.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let len = request
            .len
            .checked_next_multiple_of(PAGE)
            .ok_or(Errno::ENOMEM)?;
        if !request.backing.reaches(len) {
            return Err(Errno::EOVERFLOW);
        }
        let span = self.place(request.place, len)?;
        self.check_room(span, 1)?;
        let mut changes = self.changes_in(span)?;
        self.clear(span, &mut changes);
        self.insert(Vma {
            span,
            prot: request.prot,
            backing: request.backing,
            traits: request.traits,
        });
        Ok(Mapped { span, changes })
    }

    /// munmap. `EINVAL`: no length, an address that is no page's, beyond user space; `ENOMEM`: too
    /// many areas. Unmapping nothing is fine.
    pub fn unmap(&mut self, addr: Hva, len: u64) -> Result<Changes, Errno> {
        let span = Span::new(addr, len).filter(|span| span.end <= USER_END);
        let span = span.ok_or(Errno::EINVAL)?;
        self.check_room(span, 0)?;
        let mut changes = self.changes_in(span)?;
        self.clear(span, &mut changes);
        Ok(changes)
    }

    /// Drops every area: the end of the process, or execve. The whole page table goes with it.
    pub fn clear_all(&mut self) {
        self.areas.clear();
        (self.brk_start, self.brk_end) = (0, 0);
    }

    fn place(&self, place: Placement, len: u64) -> Result<Span, Errno> {
        match place {
            Placement::Hint(addr) => {
                let hinted = Span::new(addr.align_down(PAGE), len);
                match hinted.filter(|&span| span.in_user_space() && self.is_free(span)) {
                    Some(span) => Ok(span),
                    None => self.find_gap(len).ok_or(Errno::ENOMEM),
                }
            }
            Placement::Replace(addr) => fixed(addr, len),
            Placement::Exactly(addr) => {
                let span = fixed(addr, len)?;
                // An exact request may lie in a stack's guard, as in Linux.
                if self.overlapping(span).next().is_some() {
                    return Err(Errno::EEXIST);
                }
                Ok(span)
            }
        }
    }

    /// The highest free span of `len` bytes below the ceiling. A span that can hold a block starts on
    /// a block's boundary if possible, so that guest memory can be mapped by blocks.
    pub(super) fn find_gap(&self, len: u64) -> Option<Span> {
        let aligned = if len >= super::BLOCK {
            self.find_aligned_gap(len, super::BLOCK)
        } else {
            None
        };
        aligned.or_else(|| self.find_aligned_gap(len, PAGE))
    }

    fn find_aligned_gap(&self, len: u64, align: u64) -> Option<Span> {
        let fits = |bottom: u64, top: u64| {
            let start = top.checked_sub(len)? & !(align - 1);
            (start >= bottom).then_some(Span {
                start,
                end: start + len,
            })
        };
        let mut top = self.ceiling;
        for area in self.areas.range(..self.ceiling).rev().map(|(_, area)| area) {
            if let Some(span) = fits(area.span.end, top) {
                return Some(span);
            }
            top = top.min(area.guarded_start());
        }
        fits(USER_MIN, top)
    }

    /// Whether no area, nor a stack's guard, lies in `span`.
    pub(super) fn is_free(&self, span: Span) -> bool {
        let above = self.areas.range(span.start..).next().map(|(_, area)| area);
        self.overlapping(span).next().is_none()
            && above.is_none_or(|area| area.guarded_start() >= span.end)
    }

    /// The areas that have a page in `span`, from the lowest.
    pub(super) fn overlapping(&self, span: Span) -> impl Iterator<Item = &Vma<O>> {
        let first = self
            .areas
            .range(..=span.start)
            .next_back()
            .map_or(span.start, |(start, _)| *start);
        self.areas
            .range(first..span.end)
            .map(|(_, area)| area)
            .filter(move |area| area.span.overlaps(span))
    }

    /// `ENOMEM` if cutting at the edges of `span` and adding `more` areas would make too many.
    pub(super) fn check_room(&self, span: Span, more: usize) -> Result<(), Errno> {
        let cut = |addr| {
            self.find(Hva::new(addr))
                .is_some_and(|area| area.span.start < addr)
        };
        let cuts = usize::from(cut(span.start)) + usize::from(cut(span.end));
        if self.areas.len() + cuts + more > MAX_AREAS {
            Err(Errno::ENOMEM)
        } else {
            Ok(())
        }
    }

    /// Makes `span` empty.
    pub(super) fn clear(&mut self, span: Span, changes: &mut Changes) {
        self.carve(span);
        while let Some(start) = self.first_in(span) {
            if let Some(area) = self.areas.remove(&start) {
                changes.push_unmap(area.span);
            }
        }
    }

    /// Cuts the areas at the edges of `span`.
    pub(super) fn carve(&mut self, span: Span) {
        self.cut(span.start);
        self.cut(span.end);
    }

    /// Where the lowest area begins that begins in `span`.
    pub(super) fn first_in(&self, span: Span) -> Option<u64> {
        let mut inside = self.areas.range(span.start..span.end);
        inside.next().map(|(start, _)| *start)
    }

    /// Nothing changed, with room for the areas that have a page in `span`. `ENOMEM`.
    pub(super) fn changes_in(&self, span: Span) -> Result<Changes, Errno> {
        let areas = self.overlapping(span).count();
        let mut changes = Changes::default();
        let room = changes.unmap.try_reserve(areas);
        room.map_err(|_| Errno::ENOMEM)?;
        Ok(changes)
    }

    fn cut(&mut self, addr: u64) {
        let Some((_, area)) = self.areas.range_mut(..addr).next_back() else {
            return;
        };
        if area.span.end > addr {
            let upper = area.split_off(addr);
            self.areas.insert(addr, upper);
        }
    }

    /// Adds an area where nothing is, and merges it with its neighbours.
    pub(super) fn insert(&mut self, area: Vma<O>) {
        let span = area.span;
        self.areas.insert(span.start, area);
        self.merge(span);
    }

    /// Joins equal neighbours in and at the edges of `span`.
    pub(super) fn merge(&mut self, span: Span) {
        let below = self
            .areas
            .range(..span.start)
            .next_back()
            .map(|(start, _)| *start);
        let mut at = below.unwrap_or(span.start);
        // `BTreeMap::range` panics if its start lies above its end.
        while at < span.end {
            let Some((&next, _)) = self.areas.range(at + 1..=span.end).next() else {
                break;
            };
            let joins = match (self.areas.get(&at), self.areas.get(&next)) {
                (Some(lower), Some(upper)) => lower.continues_as(upper),
                _ => false,
            };
            if !joins {
                at = next;
                continue;
            }
            let end = self.areas.remove(&next).map(|upper| upper.span.end);
            if let (Some(lower), Some(end)) = (self.areas.get_mut(&at), end) {
                lower.span.end = end;
            }
        }
    }

    fn grow_stack(&mut self, addr: Hva) -> Result<(), Fault> {
        let start = addr.align_down(PAGE).raw();
        let (_, stack) = self.areas.range(start..).next().ok_or(Fault::NotMapped)?;
        let below = self
            .areas
            .range(..start)
            .next_back()
            .map_or(USER_MIN, |(_, area)| area.span.end);
        let old = stack.span.start;
        let allowed = stack.traits.grows_down
            && stack.span.end - start <= self.stack_limit
            && start >= below.saturating_add(super::STACK_GUARD);
        if !allowed {
            return Err(Fault::NotMapped);
        }
        if let Some(mut stack) = self.areas.remove(&old) {
            stack.span.start = start;
            self.areas.insert(start, stack);
        }
        Ok(())
    }
}

fn fixed(addr: Hva, len: u64) -> Result<Span, Errno> {
    if !addr.is_aligned(PAGE) {
        return Err(Errno::EINVAL);
    }
    let span = Span::new(addr, len)
        .filter(|span| span.end <= USER_END)
        .ok_or(Errno::ENOMEM)?;
    if span.start < USER_MIN {
        return Err(Errno::EPERM);
    }
    Ok(span)
}
