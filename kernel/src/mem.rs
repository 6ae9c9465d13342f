//! The frame allocator joined to the machine: table chunks, the heap's supply, and the seam through
//! which the table engine gets its pages.

use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering};

use umbra_arm64::{Pa, Tag};
use umbra_frames::{CHUNK_ORDER, FRAME, Frames, Owner, Pool, Released, Standing};
use umbra_hw::sabotage::{Safeguard, left_out};
use umbra_hw::sync::SpinLock;
use umbra_hw::{heap, scarce};
use umbra_linux::Errno;
use umbra_stage2::{NoMemory, Tables};

/// Threads for which the reserve of the heap has a chunk more: 32 KiB of small blocks for each, on top of the first.
const THREADS_PER_CHUNK: u64 = 64;
/// The kernel half keeps at least this many pages for tables.
const TABLE_PAGES_LOW: usize = 8;

static FRAMES: SpinLock<Option<Frames<'static>>> = SpinLock::new("frames", 200, None);

/// Where the frame table lies: its first address and the one behind it.
static TABLE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The frame table itself, which has no owner in it.
pub(crate) fn frame_table() -> (Pa, Pa) {
    let [start, end] = TABLE
        .each_ref()
        .map(|word| Pa::new(word.load(Ordering::Relaxed)));
    (start, end)
}

/// Takes over physical memory: `ram` are the ranges umbra may use, `reserved` those that the loader
/// filled. Nothing smaller than a chunk next to a reservation is used.
pub(crate) fn init(ram: &[(Pa, u64)], reserved: &[(Pa, u64)]) {
    let usable = |chunk: u64| {
        let end = chunk + umbra_hw::mem::CHUNK;
        ram.iter()
            .any(|&(start, bytes)| chunk >= start.raw() && end <= start.raw() + bytes)
            && !reserved
                .iter()
                .any(|&(start, bytes)| chunk < start.raw() + bytes && end > start.raw())
            && umbra_hw::mem::is_manageable(Pa::new(chunk))
    };
    let chunk_size = umbra_hw::mem::CHUNK;
    let chunks = || {
        ram.iter().flat_map(move |&(start, bytes)| {
            let first = start.raw().next_multiple_of(chunk_size);
            (first..start.raw() + bytes).step_by(chunk_size as usize)
        })
    };
    let (mut low, mut high) = (u64::MAX, 0);
    for chunk in chunks().filter(|&chunk| usable(chunk)) {
        umbra_hw::mem::declare_ram(Pa::new(chunk));
        low = low.min(chunk);
        high = high.max(chunk + chunk_size);
    }
    assert!(low < high, "the device tree names no usable memory");

    // The table itself: the first run of chunks that is long enough.
    let bytes = ((high - low) / FRAME * 8).next_multiple_of(chunk_size);
    let table = chunks()
        .find(|&start| {
            (start..start + bytes)
                .step_by(chunk_size as usize)
                .all(usable)
        })
        .expect("there is room for the frame table");
    for chunk in (table..table + bytes).step_by(chunk_size as usize) {
        umbra_hw::mem::claim_words(Pa::new(chunk)).expect("the early tables cover the frame table");
    }
    TABLE[0].store(table, Ordering::Relaxed);
    TABLE[1].store(table + bytes, Ordering::Relaxed);
    let words = umbra_hw::mem::words(Pa::new(table), (high - low) / FRAME * 8);
    for word in words {
        word.store(0, Ordering::Relaxed);
    }
    let mut frames = Frames::new(words, Pa::new(low));
    for chunk in chunks().filter(|&chunk| usable(chunk) && !(table..table + bytes).contains(&chunk))
    {
        frames.add(Pa::new(chunk), Pa::new(chunk + chunk_size));
    }
    *FRAMES.lock() = Some(frames);
    feed_heap();
    top_up();
}

fn with<R>(f: impl FnOnce(&mut Frames<'static>) -> R) -> R {
    f(FRAMES.lock().as_mut().expect("memory is initialised first"))
}

/// Takes `2^order` frames of plain memory; their content is whatever it was.
pub(crate) fn allocate_plain(order: u8, owner: Owner) -> Option<Pa> {
    if scarce::must_fail() {
        return None;
    }
    with(|frames| frames.allocate(order, Pool::Plain, owner))
}

/// Takes `2^order` cleared pages that umbra reaches as words.
pub(crate) fn allocate_words(order: u8, owner: Owner) -> Option<Pa> {
    if scarce::must_fail() {
        return None;
    }
    let pa = with(|frames| {
        if let Some(pa) = frames.allocate(order, Pool::Table, owner) {
            return Some(pa);
        }
        let chunk = frames.allocate(CHUNK_ORDER, Pool::Plain, Owner::Kernel)?;
        if umbra_hw::mem::claim_tables(chunk).is_err() {
            frames.release(chunk);
            return None;
        }
        frames.convert(chunk);
        frames.allocate(order, Pool::Table, owner)
    })?;
    for page in 0..1u64 << order {
        umbra_hw::mem::clear_table(Pa::new(pa.raw() + page * FRAME));
    }
    Some(pa)
}

/// How many blocks of `2^order` frames could be taken now.
pub(crate) fn free_blocks(order: u8) -> u64 {
    with(|frames| frames.free_blocks(order, Pool::Plain))
}

/// Adds a reference to a block.
pub(crate) fn hold(pa: Pa) {
    with(|frames| frames.hold(pa));
}

/// Drops a reference to a block.
pub(crate) fn release(pa: Pa) -> Released {
    with(|frames| frames.release(pa))
}

/// Makes a block single frames.
pub(crate) fn split(pa: Pa) {
    with(|frames| frames.split(pa));
}

/// Who owns the allocated block that `pa` lies in.
pub(crate) fn owner(pa: Pa) -> Option<Owner> {
    with(|frames| frames.block_of(pa).map(|(_, _, owner)| owner))
}

/// Whether `pa` is a page of a table that can be read and believed.
pub(crate) fn is_sound_table(pa: Pa) -> bool {
    owner(pa) == Some(Owner::Table)
        && crate::poison::state_of(pa).is_none()
        && umbra_hw::mem::is_readable(pa)
}

/// A table page that is not sound has been cut off. If it is a page at all, it is retired.
pub(crate) fn give_up_table(pa: Pa) {
    if give_up_root(pa) {
        release(pa);
    }
}

/// The same for a page of a root, which is given back later with the others. Whether it is a page at all.
pub(crate) fn give_up_root(pa: Pa) -> bool {
    let is_page = owner(pa) == Some(Owner::Table);
    if is_page {
        crate::poison::found(pa);
        retire(pa);
        // A CPU that has the root loaded must not find what hung on it, which is about to be another's.
        umbra_hw::lost::scrub(pa);
    }
    umbra_hw::lost::forget(pa);
    is_page
}

/// What the frames of a table, and of a process's memory, are labelled with.
fn label_of(tag: Tag) -> u32 {
    match tag {
        Tag::Vmid(vmid) => 1 << 16 | u32::from(vmid.number()),
        Tag::Asid(asid) => 2 << 16 | u32::from(asid.number()),
    }
}

/// Takes `2^order` frames of plain memory for the process with this tag.
pub(crate) fn allocate_for(order: u8, tag: Tag) -> Option<Pa> {
    let pa = allocate_plain(order, Owner::Anonymous)?;
    with(|frames| frames.label(pa, label_of(tag)));
    Some(pa)
}

/// What was taken for nobody in particular is now the memory of the process with this tag.
pub(crate) fn give_to(pa: Pa, tag: Tag) {
    with(|frames| frames.label(pa, label_of(tag)));
}

/// The `nth` page, counted round and round, of the tables of VMs.
pub(crate) fn nth_vm_table(nth: u64) -> Option<Pa> {
    with(|frames| frames.nth_of(Owner::Table, nth, |label| label >> 16 == 1))
}

/// Tells every run of frames that one owner has.
pub(crate) fn for_each_run(each: impl FnMut(Pa, Pa, Owner)) {
    with(|frames| frames.for_each_run(each));
}

/// A root that was replaced: no sweep frees it.
pub(crate) fn unlabel(pa: Pa) {
    with(|frames| frames.label(pa, 0));
}

/// Frees every frame of a tag that nothing leads to any more: `reached` tells what is led to. The caller holds
/// the lock of what has the tag, and no TLB knows what is freed.
pub(crate) fn sweep(tag: Tag, reached: impl FnOnce(&mut dyn FnMut(Pa))) -> u64 {
    reached(&mut |pa| with(|frames| frames.mark(pa)));
    with(|frames| frames.sweep(label_of(tag)))
}

/// The allocated block that `pa` lies in: its first address and its order.
pub(crate) fn block(pa: Pa) -> Option<(Pa, u8)> {
    with(|frames| frames.block_of(pa).map(|(head, order, _)| (head, order)))
}

/// Whether `pa` is memory that this table keeps, bad frames included.
pub(crate) fn is_ram(pa: Pa) -> bool {
    with(|frames| frames.is_ram(pa))
}

/// The frame of `pa` is bad: it is never given out again.
pub(crate) fn retire(pa: Pa) -> Standing {
    with(|frames| frames.retire(pa))
}

/// Where a frame stands, for a test that leaves out retiring it.
pub(crate) fn standing(pa: Pa) -> Standing {
    owner(pa).map_or(Standing::Free, Standing::Owned)
}

/// Frames that are out of use for good.
pub(crate) fn retired_frames() -> u64 {
    with(|frames| frames.retired_frames())
}

/// Frames free and in all.
pub(crate) fn frame_counts() -> (u64, u64) {
    with(|frames| {
        (
            frames.free_frames(Pool::Plain) + frames.free_frames(Pool::Table),
            frames.total_frames(),
        )
    })
}

fn feed_heap() -> bool {
    let Some(chunk) = allocate_plain(CHUNK_ORDER, Owner::Heap) else {
        return false;
    };
    if heap::feed(chunk).is_err() {
        release(chunk);
        return false;
    }
    true
}

/// Chunks of the heap's reserve that are for small blocks alone.
fn for_small() -> usize {
    let more = crate::proc::thread_count() / THREADS_PER_CHUNK;
    // One stays for those that ask for a large block.
    (1 + more as usize).min(heap::MOST_RESERVE - 1)
}

/// Keeps the heap's reserve and the kernel half supplied. Called where no lock is held: at every system call,
/// and before anything that allocates much. False: memory is out.
fn supply() -> bool {
    let for_small = for_small();
    heap::keep_for_small(for_small);
    while heap::reserve() <= for_small {
        if !feed_heap() {
            break;
        }
    }
    while umbra_hw::table_pages_left() < TABLE_PAGES_LOW {
        let Some(page) = allocate_words(0, Owner::Kernel) else {
            return false;
        };
        if !umbra_hw::donate(page) {
            release(page);
            return false;
        }
    }
    heap::reserve() >= for_small
}

/// The same for those that go on in any case.
pub(crate) fn top_up() {
    supply();
}

/// Lets a call go on that may allocate: what it takes of the heap in small blocks it will get. `ENOMEM`.
pub(crate) fn admit() -> Result<(), Errno> {
    if left_out(Safeguard::Reserve) {
        return Ok(());
    }
    if (heap::reserve() >= for_small() || supply()) && !scarce::must_fail() {
        Ok(())
    } else {
        Err(Errno::ENOMEM)
    }
}

/// The table engine's view of memory (seam 1 of the design).
#[derive(Clone, Copy, Debug)]
pub(crate) struct TablePages;

impl Tables for TablePages {
    fn table(&self, pa: Pa) -> &[AtomicU64] {
        umbra_hw::mem::table(pa)
    }

    fn alloc(&self, pages: usize, tag: Tag) -> Result<Pa, NoMemory> {
        let order = pages.next_power_of_two().trailing_zeros() as u8;
        let pa = allocate_words(order, Owner::Table).ok_or(NoMemory)?;
        with(|frames| frames.label(pa, label_of(tag)));
        Ok(pa)
    }

    fn free(&self, pa: Pa, pages: usize) {
        for page in 0..pages as u64 {
            let page = Pa::new(pa.raw() + page * FRAME);
            if umbra_hw::lost::is_lost(page) {
                give_up_root(page);
            }
        }
        if owner(pa) == Some(Owner::Table) {
            release(pa);
        }
    }
}

/// Pages for tables, taken before something begins that must not fail half way. What is left goes back.
pub(crate) struct Provision(RefCell<Vec<Pa>>);

impl Provision {
    /// So many. `ENOMEM`.
    pub(crate) fn take(pages: usize) -> Result<Self, Errno> {
        let mut taken = Vec::new();
        taken.try_reserve_exact(pages).map_err(|_| Errno::ENOMEM)?;
        let provision = Self(RefCell::new(taken));
        for _ in 0..pages {
            let page = allocate_words(0, Owner::Table).ok_or(Errno::ENOMEM)?;
            provision.0.borrow_mut().push(page);
        }
        Ok(provision)
    }
}

impl Tables for Provision {
    fn table(&self, pa: Pa) -> &[AtomicU64] {
        TablePages.table(pa)
    }

    fn alloc(&self, pages: usize, tag: Tag) -> Result<Pa, NoMemory> {
        let page = (pages == 1).then(|| self.0.borrow_mut().pop()).flatten();
        let Some(page) = page else {
            return TablePages.alloc(pages, tag);
        };
        with(|frames| frames.label(page, label_of(tag)));
        Ok(page)
    }

    fn free(&self, pa: Pa, pages: usize) {
        TablePages.free(pa, pages);
    }
}

impl Drop for Provision {
    fn drop(&mut self) {
        for page in self.0.get_mut().drain(..) {
            release(page);
        }
    }
}
