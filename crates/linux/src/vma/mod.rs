//! The map of a process's address space: which addresses mean what.
//!
//! ```text
//!  0x1_0000                 program, brk ──►          ◄── mmap           stack   1 << 47
//!     ├───────┬──────────────┬────────┬──────── … ───────┬─────┬────────┬─────────┤
//! ```
//!
//! What always holds: areas do not overlap, are not empty, start and end on page boundaries, and two
//! that touch differ in something (equal neighbours are merged). The page table may hold fewer pages
//! than the map allows, never other ones: each call that takes something away returns [`Changes`], and
//! they are discharged before the call's effect is shown to the process.
//!
//! An area that is backed by an object holds it by a clone of `O`, so splitting and dropping areas
//! keeps the object's count right without help.

mod change;
mod remap;
mod space;
#[cfg(test)]
mod tests;

pub use change::Advised;
pub use space::{AddressSpace, Fault, MAX_AREAS, Mapped, Placement, Request};

use crate::{Errno, uapi};
use alloc::vec::Vec;
use bitflags::bitflags;
use umbra_arm64::Hva;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in the block that a level-2 entry maps.
pub const BLOCK: u64 = 2 << 20;
/// The lowest address a process may map, so that a null pointer with an offset faults.
pub const USER_MIN: u64 = 0x1_0000;
/// One above the highest address a process may map.
pub const USER_END: u64 = 1 << 47;
/// Bytes kept free below an area that grows down (Linux's stack_guard_gap).
pub const STACK_GUARD: u64 = 256 * PAGE;

bitflags! {
    /// What a process may do with a page.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Prot: u8 {
        /// Load.
        const READ = 1;
        /// Store.
        const WRITE = 2;
        /// Fetch.
        const EXEC = 4;
    }
}

impl Prot {
    /// Load and store.
    pub const RW: Self = Self::READ.union(Self::WRITE);

    /// Reads the argument of mmap and mprotect. PROT_BTI is accepted and not enforced, as on a
    /// machine without FEAT_BTI; `EINVAL` for other unknown bits.
    pub fn from_linux(prot: u32) -> Result<Self, Errno> {
        u8::try_from(prot & !uapi::PROT_BTI)
            .ok()
            .and_then(Self::from_bits)
            .ok_or(Errno::EINVAL)
    }
}

/// Pages `start..end`, both multiples of [`PAGE`], not empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// The pages from `start`, which must be a page's address, that hold `len` bytes; `None` if there
    /// are none, or if they leave 64 bits.
    pub fn new(start: Hva, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?.align_up(PAGE)?.raw();
        let start = start.raw();
        (start.is_multiple_of(PAGE) && start < end).then_some(Self { start, end })
    }

    /// The first address.
    pub const fn start(self) -> Hva {
        Hva::new(self.start)
    }

    /// The first address above.
    pub const fn end(self) -> Hva {
        Hva::new(self.end)
    }

    /// Bytes in all, a multiple of [`PAGE`].
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Whether `addr` lies in it.
    pub const fn contains(self, addr: Hva) -> bool {
        self.start <= addr.raw() && addr.raw() < self.end
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn common(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    fn in_user_space(self) -> bool {
        self.start >= USER_MIN && self.end <= USER_END
    }
}

/// What the bytes of an area are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backing<O> {
    /// Private zeros.
    Anon,
    /// A private copy of an object's bytes, made when written.
    Private {
        /// The object, usually a file.
        object: O,
        /// Bytes from its start to the area's start.
        offset: u64,
    },
    /// The object's own pages: shared memory, a vCPU's run page.
    Shared {
        /// The object.
        object: O,
        /// Bytes from its start to the area's start.
        offset: u64,
    },
}

impl<O: Clone + PartialEq> Backing<O> {
    /// The backing of what lies `bytes` further on. Cannot overflow inside an area: see
    /// [`Self::reaches`].
    fn advanced(&self, bytes: u64) -> Self {
        let mut later = self.clone();
        match &mut later {
            Self::Anon => {}
            Self::Private { offset, .. } | Self::Shared { offset, .. } => {
                *offset = offset.wrapping_add(bytes);
            }
        }
        later
    }

    /// Whether `bytes` from here have offsets that fit a file's (`loff_t`).
    fn reaches(&self, bytes: u64) -> bool {
        match self {
            Self::Anon => true,
            Self::Private { offset, .. } | Self::Shared { offset, .. } => offset
                .checked_add(bytes)
                .is_some_and(|end| end <= i64::MAX as u64),
        }
    }

    fn is_page_aligned(&self) -> bool {
        match self {
            Self::Anon => true,
            Self::Private { offset, .. } | Self::Shared { offset, .. } => {
                offset.is_multiple_of(PAGE)
            }
        }
    }
}

/// What the process said about block mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugeAdvice {
    /// Nothing: the kernel's policy.
    #[default]
    Default,
    /// MADV_HUGEPAGE.
    Prefer,
    /// MADV_NOHUGEPAGE.
    Never,
}

/// How an area behaves, apart from what it holds and who may touch it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traits {
    /// MAP_NORESERVE: memory is not promised.
    pub no_reserve: bool,
    /// A stack: a fault just below extends it.
    pub grows_down: bool,
    /// Block mappings.
    pub huge: HugeAdvice,
}

/// One area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vma<O> {
    /// Where.
    pub span: Span,
    /// Who may.
    pub prot: Prot,
    /// What.
    pub backing: Backing<O>,
    /// How.
    pub traits: Traits,
}

impl<O: Clone + PartialEq> Vma<O> {
    /// What backs the page at `addr`, which must lie in the area.
    pub fn backing_at(&self, addr: Hva) -> Backing<O> {
        self.backing
            .advanced(addr.align_down(PAGE).raw().saturating_sub(self.span.start))
    }

    /// The part from `addr` on, which is cut off here. `addr` must lie strictly inside.
    fn split_off(&mut self, addr: u64) -> Self {
        let upper = Self {
            span: Span {
                start: addr,
                end: self.span.end,
            },
            backing: self.backing.advanced(addr - self.span.start),
            ..self.clone()
        };
        self.span.end = addr;
        upper
    }

    fn continues_as(&self, next: &Self) -> bool {
        self.span.end == next.span.start
            && self.prot == next.prot
            && self.traits == next.traits
            && self.backing.advanced(self.span.bytes()) == next.backing
    }

    /// The lowest address that others must stay above.
    fn guarded_start(&self) -> u64 {
        let guard = if self.traits.grows_down {
            STACK_GUARD
        } else {
            0
        };
        self.span.start.saturating_sub(guard)
    }
}

/// Pages that change their address, with what the process wrote to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where they were; nothing is mapped there now.
    pub from: Span,
    /// Where the first of them goes.
    pub to: Hva,
}

/// What the page table owes the map. To be done in this order: unmap, move, protect.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "the page table still allows what the map no longer does"]
pub struct Changes {
    /// Entries to remove; private pages behind them are freed.
    pub unmap: Vec<Span>,
    /// Entries to move.
    pub moved: Option<Moved>,
    /// Entries that get other rights. Rights that a page's state withholds (write to a page that is
    /// still shared with a file) stay withheld.
    pub protect: Vec<(Span, Prot)>,
}

impl Changes {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.unmap.is_empty() && self.moved.is_none() && self.protect.is_empty()
    }

    fn push_unmap(&mut self, span: Span) {
        match self.unmap.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            _ => self.unmap.push(span),
        }
    }
}
