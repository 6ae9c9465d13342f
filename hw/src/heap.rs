//! The kernel heap: `talc`, fed with whole chunks that stay heap for good, and a reserve.
//!
//! ```text
//!   talc's chunks ──full──► one chunk of the reserve becomes talc's
//!   reserve: mapped chunks that talc does not have yet; whoever owns the frames keeps it full
//! ```
//!
//! **A block of at most [`SMALL`] bytes can be had whenever the reserve is whole.** Only such blocks take the last
//! of it; larger ones are refused before, and whoever asks for one must expect that (`try_reserve`). So the code
//! between does not have to: a call that will allocate is let in while the reserve is whole, and answers ENOMEM
//! at once when it is not (`mem::admit` in the kernel). The heap never grows by itself otherwise, so that
//! allocation is never a reason to take the frame lock.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;
use umbra_arm64::Pa;

use crate::mmu::NoTablePages;
use crate::sync::SpinLock;
use crate::{mem, scarce};

struct Heap;

/// What a block takes of the heap: `talc` gives out multiples of 32 bytes and keeps a word of its own
/// in each. A count of what was asked for would call a heap of small blocks half free when it is full.
const fn cost(layout: Layout) -> usize {
    (layout.size() + size_of::<usize>()).next_multiple_of(32)
}

/// Bytes of the largest block that may take the last of the reserve.
pub const SMALL: usize = 64 << 10;
/// Chunks that the reserve has room for.
pub const MOST_RESERVE: usize = 80;

struct Arena {
    talc: Talc<Manual, DefaultBinning>,
    /// Where the chunks of the reserve are mapped; the first [`RESERVE`] of them.
    reserve: [u64; MOST_RESERVE],
}

static ARENA: SpinLock<Arena> = SpinLock::new(
    "heap",
    251,
    Arena {
        talc: Talc::new(Manual),
        reserve: [0; MOST_RESERVE],
    },
);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);
/// Chunks of the reserve. Changes with the arena locked.
static RESERVE: AtomicUsize = AtomicUsize::new(0);
/// How many chunks of the reserve are for small blocks alone.
static FOR_SMALL: AtomicUsize = AtomicUsize::new(1);

impl Arena {
    /// A block, from the reserve if need be.
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the caller of `alloc` guarantees a size above zero.
        if let Some(block) = unsafe { self.talc.allocate(layout) } {
            return Some(block);
        }
        let untouchable = if layout.size() <= SMALL {
            0
        } else {
            FOR_SMALL.load(Ordering::Relaxed)
        };
        let kept = reserve();
        if kept <= untouchable {
            return None;
        }
        RESERVE.store(kept - 1, Ordering::Relaxed);
        let chunk = self.reserve[kept - 1] as *mut u8;
        // SAFETY: the chunk is mapped read-write for good; it was nobody's but the reserve's.
        unsafe { self.talc.claim(chunk, mem::CHUNK as usize) };
        // SAFETY: as above.
        unsafe { self.talc.allocate(layout) }
    }
}

// SAFETY: `talc` gives out disjoint blocks of the chunks it was fed, under one lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > SMALL && scarce::must_fail() {
            return core::ptr::null_mut();
        }
        match ARENA.lock().allocate(layout) {
            Some(block) => {
                USED.fetch_add(cost(layout), Ordering::Relaxed);
                block.as_ptr()
            }
            None => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        USED.fetch_sub(cost(layout), Ordering::Relaxed);
        // SAFETY: the caller guarantees that `block` came from `alloc` with this layout.
        unsafe { ARENA.lock().talc.deallocate(block, layout) }
    }
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;

/// Adds a free plain chunk to the reserve.
///
/// # Errors
/// [`NoTablePages`]: the kernel half lacks a table page, or the reserve is full; the chunk is the caller's again.
pub fn feed(chunk: Pa) -> Result<(), NoTablePages> {
    if reserve() >= MOST_RESERVE {
        return Err(NoTablePages);
    }
    let va = mem::claim_heap(chunk)?;
    let mut arena = ARENA.lock();
    let kept = reserve();
    if kept < MOST_RESERVE {
        arena.reserve[kept] = va;
        RESERVE.store(kept + 1, Ordering::Relaxed);
    } else {
        // Others fed it meanwhile.
        // SAFETY: the chunk is mapped read-write for good and nobody else's.
        unsafe { arena.talc.claim(va as *mut u8, mem::CHUNK as usize) };
    }
    TOTAL.fetch_add(mem::CHUNK as usize, Ordering::Relaxed);
    Ok(())
}

/// Chunks of the reserve.
pub fn reserve() -> usize {
    RESERVE.load(Ordering::Relaxed)
}

/// Leaves the last `chunks` of the reserve to small blocks.
pub fn keep_for_small(chunks: usize) {
    FOR_SMALL.store(chunks, Ordering::Relaxed);
}

/// Bytes fed.
pub fn total_bytes() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

/// Bytes allocated.
pub fn used_bytes() -> usize {
    USED.load(Ordering::Relaxed)
}
