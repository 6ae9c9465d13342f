//! One address space: areas, tables and who has to be told.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use umbra_abort::Poison;
use umbra_arm64::{Asid, Granule, Hva, Pa, Tag};
use umbra_frames::FRAME;
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::{SpinGuard, SpinLock};
use umbra_hw::tlb;
use umbra_linux::Errno;
use umbra_linux::uapi;
use umbra_linux::vma::{
    AddressSpace, Advised, Changes, Fault, Mapped, Placement, Prot, Request, Span,
};
use umbra_stage2::{Config, Cursor, El20, Geometry, Scope, TlbRequest, User};

use super::Object;
use super::pages;
use crate::mem::{self, Provision, TablePages};

/// Where placement of new areas begins, downward; the stack lies above.
const CEILING: u64 = 0x7fff_0000_0000;
/// How far a stack may grow.
const STACK_LIMIT: u64 = 8 << 20;

/// Somebody who derives mappings from this address space (a VM).
pub(crate) trait Notifier: Send + Sync {
    /// The pages of `span` are about to go or to lose rights: when this returns, nothing derived
    /// from them is in use. Called with the address space locked.
    fn invalidate(&self, span: Span);

    /// The one page of `span` is broken and about to go: as `invalidate`, but what is mapped round it
    /// stays mapped where that can be done.
    fn take_page(&self, span: Span) {
        self.invalidate(span);
    }

    /// Table pages may be bad: those that are go, and are made anew on demand. Called without locks.
    fn heal(&self) {}

    /// Breaks something on purpose, to see it healed or contained. Called without locks.
    fn break_on_purpose(&self, _what: Breakage) {}
}

/// What a test breaks, so that hardware raises a real external abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakage {
    /// The root that vCPUs have loaded.
    Root,
    /// The page of the root itself.
    RootPage,
    /// A table below the root of the canonical tables.
    Table,
    /// A table below the root of each shadow.
    Shadow,
    /// The VNCR page.
    Vncr,
}

/// Why a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmFault {
    /// No area there (SEGV_MAPERR).
    NotMapped,
    /// The area forbids the access (SEGV_ACCERR).
    NotAllowed,
    /// Beyond the end of the file behind it (BUS_ADRERR).
    BeyondFile,
    /// Memory is out.
    NoMemory,
    /// The page is broken: its frame, and how far the news of it had spread.
    Poisoned(Pa, Poison),
}

impl From<Fault> for MmFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotMapped => Self::NotMapped,
            Fault::NotAllowed => Self::NotAllowed,
        }
    }
}

/// A present page, as [`Mm::with_page`] shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageView {
    /// First address of the leaf.
    pub(crate) start: Hva,
    /// Where that is in memory.
    pub(crate) pa: Pa,
    /// Bytes of the leaf: a page or a block.
    pub(crate) bytes: u64,
    /// Whether the process may write it.
    pub(crate) writable: bool,
    /// It was brought in just now: its memory is new to everybody.
    pub(crate) fresh: bool,
}

/// What is present in an address space, while it is locked.
#[derive(Clone, Copy)]
pub(crate) struct Present<'a>(&'a User);

impl Present<'_> {
    /// The page or block at `addr`, if it is there and can be read: of one address after another,
    /// with one `cursor`.
    pub(crate) fn at(&self, cursor: &mut Cursor, addr: Hva) -> Option<PageView> {
        let leaf = self.0.lookup_near(cursor, addr, &TablePages)?;
        leaf.attrs.rights.read.then_some(PageView {
            start: leaf.addr,
            pa: leaf.pa,
            bytes: leaf.size,
            writable: leaf.attrs.rights.write,
            fresh: false,
        })
    }

    /// Shows the pages and blocks of `bytes` from `addr` on that are there and can be read.
    pub(crate) fn visit(&self, addr: Hva, bytes: u64, mut each: impl FnMut(PageView)) {
        self.0.visit(addr, bytes, &TablePages, |leaf| {
            if leaf.attrs.rights.read {
                each(PageView {
                    start: leaf.addr,
                    pa: leaf.pa,
                    bytes: leaf.size,
                    writable: leaf.attrs.rights.write,
                    fresh: false,
                });
            }
        });
    }
}

pub(super) struct Inner {
    pub(super) areas: AddressSpace<Object>,
    /// `None` only while the space is being dropped.
    pub(super) table: Option<User>,
    notifiers: Vec<Weak<dyn Notifier>>,
    /// Pages whose frames are bad: in no table, and held until they are unmapped.
    pub(super) bad: Vec<BadPage>,
    /// Where nobody knows any more which frames the pages had, until they are unmapped.
    pub(super) lost: Vec<LostPages>,
    /// Roots that went bad: CPUs may have them loaded.
    pub(super) old_roots: Vec<Pa>,
    /// How many pages of tables had been lost, in the machine, when these were last looked at.
    healed_at: u64,
}

/// Pages whose table went bad. What was in them is lost with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostPages {
    pub(super) span: Span,
    /// The frame of the table.
    pub(super) table: Pa,
}

/// A page that was taken because its frame is bad.
#[derive(Clone, Copy, Debug)]
pub(super) struct BadPage {
    pub(super) at: Hva,
    pub(super) frame: Pa,
}

/// The address space of one process.
pub(crate) struct Mm {
    inner: SpinLock<Inner>,
    asid: Asid,
    /// The root of the tables.
    root: AtomicU64,
}

/// ASIDs in use: one bit each. 0 stands for "no process".
static ASIDS: SpinLock<[u64; 1024]> = SpinLock::new("asids", 190, {
    let mut words = [0; 1024];
    words[0] = 1;
    words
});

fn take_asid() -> Option<Asid> {
    let mut words = ASIDS.lock();
    let word = words.iter().position(|&word| word != u64::MAX)?;
    let bit = words[word].trailing_ones();
    words[word] |= 1 << bit;
    Some(Asid::new((word * 64) as u16 + bit as u16))
}

pub(super) fn invalidate(request: &TlbRequest) {
    let Tag::Asid(asid) = request.tag else {
        unreachable!("processes are tagged by ASID")
    };
    match request.scope {
        Scope::All => tlb::Process::everything(),
        Scope::Range { addr, bytes, .. } => {
            tlb::Process::new(asid.number()).pages(addr, bytes / 4096)
        }
    }
}

impl Mm {
    /// An empty address space; `None` when memory or ASIDs are out.
    pub(crate) fn new() -> Option<Arc<Self>> {
        let asid = take_asid()?;
        let config = Config {
            geometry: Geometry::stage1(Granule::K4, 48)?,
            output_bits: 48,
            format: El20 {
                normal: 0,
                uncached: 2,
                device: 1,
            },
            tag: Tag::Asid(asid),
        };
        let table = User::new(config, &TablePages).ok()?;
        let root = AtomicU64::new(table.root().raw());
        let inner = Inner {
            areas: AddressSpace::new(Hva::new(CEILING), STACK_LIMIT),
            table: Some(table),
            notifiers: Vec::new(),
            bad: Vec::new(),
            lost: Vec::new(),
            old_roots: Vec::new(),
            healed_at: umbra_hw::lost::generation(),
        };
        Some(Arc::new(Self {
            inner: SpinLock::new("mm", 150, inner),
            asid,
            root,
        }))
    }

    /// Makes this the address space of the current CPU.
    pub(crate) fn load(&self) {
        umbra_hw::aspace::load(self.root(), self.asid.number());
    }

    /// Whether it is.
    pub(crate) fn is_loaded(&self) -> bool {
        umbra_hw::aspace::current_root() == self.root()
    }

    fn root(&self) -> Pa {
        Pa::new(self.root.load(Ordering::Acquire))
    }

    pub(super) fn lock(&self) -> SpinGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Tells `who` of changes from now on, as long as it lives.
    /// `ENOMEM`.
    pub(crate) fn add_notifier(&self, who: Weak<dyn Notifier>) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.notifiers.retain(|other| other.strong_count() > 0);
        let room = inner.notifiers.try_reserve(1);
        room.map_err(|_| Errno::ENOMEM)?;
        inner.notifiers.push(who);
        Ok(())
    }

    /// mmap.
    pub(crate) fn map(&self, request: Request<Object>) -> Result<Span, Errno> {
        let mut inner = self.lock();
        if let Placement::Replace(at) = request.place {
            inner.cut_out(at, request.len)?;
        }
        let Mapped { span, changes } = inner.areas.map(request)?;
        inner.apply(changes, None);
        Ok(span)
    }

    /// Makes `bytes` of cleared memory at `pa` the pages at `at`. False: they cannot be, and it is the
    /// caller's still.
    pub(crate) fn place(&self, at: Hva, pa: Pa, bytes: u64) -> bool {
        let mut inner = self.lock();
        let placed = pages::place(&mut inner, at, pa, bytes);
        umbra_hw::tlb::publish();
        placed
    }

    /// munmap.
    pub(crate) fn unmap(&self, addr: Hva, bytes: u64) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.cut_out(addr, bytes)?;
        let changes = inner.areas.unmap(addr, bytes)?;
        inner.apply(changes, None);
        Ok(())
    }

    /// mprotect.
    pub(crate) fn protect(&self, addr: Hva, bytes: u64, prot: Prot) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.cut_out(addr, bytes)?;
        let changes = inner.areas.protect(addr, bytes, prot)?;
        inner.apply(changes, None);
        Ok(())
    }

    /// madvise.
    pub(crate) fn advise(&self, addr: Hva, bytes: u64, advice: u32) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.cut_out(addr, bytes)?;
        match inner.areas.advise(addr, bytes, advice)? {
            Advised::Noted => Ok(()),
            Advised::Discard(changes) => {
                inner.apply(changes, None);
                Ok(())
            }
            Advised::Populate(span, access) => {
                drop(inner);
                let mut at = span.start();
                while at < span.end() {
                    let view = self
                        .with_page(at, access, |view| view)
                        .map_err(|_| Errno::ENOMEM)?;
                    at = view.start.checked_add(view.bytes).ok_or(Errno::ENOMEM)?;
                }
                Ok(())
            }
        }
    }

    /// mremap. Returns the address the area has now.
    pub(crate) fn remap(
        &self,
        from: Hva,
        old: u64,
        new: u64,
        flags: u32,
        to: Hva,
    ) -> Result<Hva, Errno> {
        let mut inner = self.lock();
        inner.cut_out(from, old)?;
        inner.cut_out(from, new)?;
        if flags & uapi::MREMAP_FIXED != 0 {
            inner.cut_out(to, new)?;
        }
        // Where it is, if that can be; only a move takes tables.
        let stays = flags & !uapi::MREMAP_MAYMOVE;
        let fixed = flags & uapi::MREMAP_FIXED != 0;
        if !fixed {
            match inner.areas.remap(from, old, new, stays, to) {
                Ok(Mapped { span, changes }) => {
                    inner.apply(changes, None);
                    return Ok(span.start());
                }
                Err(Errno::ENOMEM) if stays != flags => {}
                Err(errno) => return Err(errno),
            }
        }
        let moves = Span::new(from, old.min(new));
        let provision = moves.map(|span| pages::provision(inner.table(), span));
        let provision = provision.transpose()?;
        let Mapped { span, changes } = inner.areas.remap(from, old, new, flags, to)?;
        inner.apply(changes, provision.as_ref());
        Ok(span.start())
    }

    /// Sets where the heap begins: once, by exec.
    pub(crate) fn set_brk_start(&self, start: Hva) {
        self.lock().areas.set_brk_start(start);
    }

    /// brk.
    pub(crate) fn brk(&self, wanted: Hva) -> Hva {
        let mut inner = self.lock();
        let (end, changes) = inner.areas.brk(wanted);
        inner.apply(changes, None);
        end
    }

    /// Makes the page at `addr` present for `access`: an EL0 or EL2 access faulted there.
    pub(crate) fn fault(&self, addr: Hva, access: Prot) -> Result<(), MmFault> {
        self.with_page(addr, access, |_| ())
    }

    /// Makes the page at `addr` present for `access` and shows it to `f`, under the lock.
    pub(crate) fn with_page<R>(
        &self,
        addr: Hva,
        access: Prot,
        f: impl FnOnce(PageView) -> R,
    ) -> Result<R, MmFault> {
        let mut inner = self.lock();
        self.mend(&mut inner);
        let view = pages::bring_in(&mut inner, addr, access)?;
        umbra_hw::tlb::publish();
        Ok(f(view))
    }

    /// The same, with a look at what else is present.
    pub(crate) fn with_page_and_others<R>(
        &self,
        addr: Hva,
        access: Prot,
        f: impl FnOnce(PageView, Present<'_>) -> R,
    ) -> Result<R, MmFault> {
        let mut inner = self.lock();
        self.mend(&mut inner);
        let view = pages::bring_in(&mut inner, addr, access)?;
        umbra_hw::tlb::publish();
        Ok(f(view, Present(inner.table())))
    }

    /// Takes the bad frame from this process and from every VM of it, where it is mapped. Answers
    /// where it was, and `None` if it is not mapped (any more); `ENOMEM` if a block cannot be cut.
    pub(crate) fn take_bad(&self, frame: Pa) -> Result<Option<Hva>, Errno> {
        let mut inner = self.lock();
        let mut found = None;
        let table = inner.table();
        table.visit(Hva::new(0), 1 << 48, &TablePages, |leaf| {
            let offset = frame.offset_from(leaf.pa).filter(|&at| at < leaf.size);
            if let Some(offset) = offset {
                found = leaf.addr.checked_add(offset);
            }
        });
        let Some(at) = found else {
            return Ok(None);
        };
        let span = Span::new(at, 4096).ok_or(Errno::EINVAL)?;
        inner.bad.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        for who in &inner.notifiers {
            if let Some(who) = who.upgrade() {
                who.take_page(span);
            }
        }
        if !pages::take(inner.table(), span, frame) {
            return Err(Errno::ENOMEM);
        }
        inner.bad.push(BadPage { at, frame });
        Ok(Some(at))
    }

    /// Cuts pages of the process's own tables off that cannot be trusted. Pages of files come again; of the others
    /// nobody knows where they are, and who uses them is told. Answers how many there were.
    pub(crate) fn heal(&self) -> usize {
        let mut inner = self.lock();
        self.heal_locked(&mut inner)
    }

    fn mend(&self, inner: &mut Inner) {
        if inner.healed_at != umbra_hw::lost::generation() {
            self.heal_locked(inner);
        }
    }

    fn heal_locked(&self, inner: &mut Inner) -> usize {
        let lost = umbra_hw::lost::generation();
        let more_lost = core::mem::replace(&mut inner.healed_at, lost) != lost;
        let cuts = pages::heal(inner, more_lost);
        let root = inner.table().root();
        if root != self.root() {
            let was_loaded = self.is_loaded();
            self.root.store(root.raw(), Ordering::Release);
            if was_loaded {
                self.load();
            }
        }
        cuts
    }

    /// A thread of this process goes on here: by way of the root that the process has now.
    pub(crate) fn follow(&self) {
        if !self.is_loaded() {
            self.load();
        }
    }

    fn notifiers(&self) -> Vec<Arc<dyn Notifier>> {
        let inner = self.lock();
        inner.notifiers.iter().filter_map(Weak::upgrade).collect()
    }

    /// A table page of the process, or of a VM of its, may be bad.
    pub(crate) fn heal_tables(&self) {
        self.heal();
        for who in self.notifiers() {
            who.heal();
        }
    }

    /// Breaks something of every VM on purpose.
    pub(crate) fn break_on_purpose(&self, what: Breakage) {
        for who in self.notifiers() {
            who.break_on_purpose(what);
        }
    }

    /// Lets the table of the page at `addr` lie where nothing answers.
    pub(crate) fn misdirect_table(&self, addr: Hva, to: Pa) -> Result<(), Errno> {
        if !umbra_hw::mem::pretend_table(to) {
            return Err(Errno::ENOMEM);
        }
        let mut inner = self.lock();
        let work = inner.table().misdirect(Some(addr), to, &TablePages);
        work.ok_or(Errno::EFAULT)?.finish(&TablePages, invalidate);
        Ok(())
    }

    /// Lets the page at `addr` name a physical address where nothing answers.
    pub(crate) fn misdirect(&self, addr: Hva, to: Pa) -> Result<(), Errno> {
        let mut inner = self.lock();
        let page = Span::new(addr.align_down(4096), 4096).ok_or(Errno::EFAULT)?;
        inner
            .areas
            .fault(addr, Prot::WRITE)
            .map_err(|_| Errno::EFAULT)?;
        inner.notify(page);
        pages::misdirect(inner.table(), page, to).map_err(|_| Errno::ENOMEM)
    }

    /// The bad frame that was taken from the page at `addr`, and what is known of it.
    pub(crate) fn bad_at(&self, addr: Hva) -> Option<(Pa, Poison)> {
        let page = addr.align_down(4096);
        let inner = self.lock();
        let bad = inner.bad.iter().find(|bad| bad.at == page)?;
        Some((bad.frame, crate::poison::state_of(bad.frame)?))
    }

    /// Where the bad frame was, in this process.
    pub(crate) fn places_of_bad(&self, frame: Pa) -> Vec<Hva> {
        let inner = self.lock();
        let taken = inner.bad.iter().filter(|bad| bad.frame == frame);
        taken.map(|bad| bad.at).collect()
    }

    /// The frame behind `addr`, if its page is present.
    pub(crate) fn frame_at(&self, addr: Hva) -> Option<Pa> {
        let mut inner = self.lock();
        let leaf = inner.table().lookup(addr, &TablePages)?;
        leaf.pa.checked_add(addr.offset_from(leaf.addr)?)
    }

    /// Every area and what it allows, from the lowest. `ENOMEM`.
    pub(crate) fn areas(&self) -> Result<Vec<(Span, Prot)>, Errno> {
        let inner = self.lock();
        let mut areas = Vec::new();
        let room = areas.try_reserve_exact(inner.areas.iter().count());
        room.map_err(|_| Errno::ENOMEM)?;
        areas.extend(inner.areas.iter().map(|area| (area.span, area.prot)));
        Ok(areas)
    }

    /// A process's memory in use, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.lock().table.as_ref().map_or(0, User::mapped_bytes)
    }

    /// Memory that its tables take, in bytes.
    pub(crate) fn table_bytes(&self) -> u64 {
        let pages = self.lock().table.as_ref().map_or(0, User::table_pages);
        pages as u64 * FRAME
    }
}

impl Inner {
    pub(super) fn table(&mut self) -> &mut User {
        self.table
            .as_mut()
            .expect("the table lives as long as the address space")
    }

    pub(super) fn notify(&mut self, span: Span) {
        if left_out(Safeguard::Notify) {
            return;
        }
        for who in &self.notifiers {
            if let Some(who) = who.upgrade() {
                who.invalidate(span);
            }
        }
    }

    /// Cuts blocks at the edges of what is about to change, so that changing it takes no memory and cannot
    /// fail half way. `ENOMEM`: nothing that could be seen has changed.
    fn cut_out(&mut self, addr: Hva, bytes: u64) -> Result<(), Errno> {
        // Others are refused, or change nothing.
        if let Some(span) = Span::new(addr, bytes) {
            pages::cut(self.table(), span.start())?;
            pages::cut(self.table(), span.end())?;
        }
        Ok(())
    }

    /// Makes the tables follow a change of areas. What moves pages has taken a `provision` of tables before.
    fn apply(&mut self, changes: Changes, provision: Option<&Provision>) {
        for &span in &changes.unmap {
            self.notify(span);
            pages::remove(self.table(), span);
            self.bad.retain(|page| {
                let goes = span.contains(page.at);
                if goes {
                    pages::release(page.frame, 4096);
                }
                !goes
            });
            self.lost = without(&self.lost, span);
        }
        if let (Some(moved), Some(provision)) = (changes.moved, provision) {
            self.notify(moved.from);
            pages::relocate(self.table(), moved.from, moved.to, provision);
            for page in &mut self.bad {
                let offset = page.at.offset_from(moved.from.start());
                if let Some(offset) = offset.filter(|_| moved.from.contains(page.at))
                    && let Some(to) = moved.to.checked_add(offset)
                {
                    page.at = to;
                }
            }
            let from = moved.from;
            let mut went: Vec<LostPages> = Vec::new();
            for pages in &self.lost {
                let start = pages.span.start().max(from.start());
                let bytes = pages.span.end().min(from.end()).offset_from(start);
                let to = start
                    .offset_from(from.start())
                    .and_then(|offset| moved.to.checked_add(offset));
                if let (Some(bytes), Some(to)) = (bytes, to)
                    && let Some(span) = Span::new(to, bytes)
                {
                    went.push(LostPages { span, ..*pages });
                }
            }
            self.lost = without(&self.lost, from);
            self.lost.append(&mut went);
        }
        for &(span, prot) in &changes.protect {
            self.notify(span);
            pages::protect(self.table(), span, prot);
        }
    }
}

/// What of lost pages lies outside `span`.
fn without(lost: &[LostPages], span: Span) -> Vec<LostPages> {
    let mut left = Vec::new();
    for pages in lost {
        let (start, end) = (pages.span.start(), pages.span.end());
        for (from, to) in [(start, end.min(span.start())), (start.max(span.end()), end)] {
            if let Some(span) = to
                .offset_from(from)
                .and_then(|bytes| Span::new(from, bytes))
            {
                left.push(LostPages { span, ..*pages });
            }
        }
    }
    left
}

impl Drop for Mm {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if let Some(table) = inner.table.take() {
            let tag = table.tag();
            pages::destroy(table);
            if inner.healed_at != umbra_hw::lost::generation() {
                // A table may have been lost that its pages hung on.
                let bad = core::mem::take(&mut inner.bad);
                tlb::Process::everything();
                mem::sweep(tag, |reach| bad.iter().for_each(|page| reach(page.frame)));
                inner.bad = bad;
            }
        }
        for page in inner.bad.drain(..) {
            pages::release(page.frame, 4096);
        }
        for root in inner.old_roots.drain(..) {
            mem::release(root);
        }
        tlb::Process::everything();
        let number = usize::from(self.asid.number());
        ASIDS.lock()[number / 64] &= !(1 << (number % 64));
    }
}
