//! The kernel heap: `talc`, fed with whole chunks that stay heap for good.
//!
//! The heap never grows by itself: whoever owns the frames watches [`free_bytes`] and feeds it, so
//! that allocation is never a reason to take the frame lock. Running dry is an error the kernel's
//! out-of-memory rules keep guests and VMMs from causing.

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;
use umbra_arm64::Pa;

use crate::mem;
use crate::mmu::NoTablePages;
use crate::sync::SpinLock;

struct Heap;

/// What a block takes of the heap: `talc` gives out multiples of 32 bytes and keeps a word of its own
/// in each. A count of what was asked for would call a heap of small blocks half free when it is full.
const fn cost(layout: Layout) -> usize {
    (layout.size() + size_of::<usize>()).next_multiple_of(32)
}

static TALC: SpinLock<Talc<Manual, DefaultBinning>> = SpinLock::new("heap", 251, Talc::new(Manual));
static TOTAL: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: `talc` gives out disjoint blocks of the chunks it was fed, under one lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees a size above zero.
        match unsafe { TALC.lock().allocate(layout) } {
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
        unsafe { TALC.lock().deallocate(block, layout) }
    }
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;

/// Feeds a free plain chunk to the heap.
///
/// # Errors
/// [`NoTablePages`]; the chunk is the caller's again.
pub fn feed(chunk: Pa) -> Result<(), NoTablePages> {
    let va = mem::claim_heap(chunk)?;
    // SAFETY: the chunk is mapped read-write for good and nobody else's.
    unsafe { TALC.lock().claim(va as *mut u8, mem::CHUNK as usize) };
    TOTAL.fetch_add(mem::CHUNK as usize, Ordering::Relaxed);
    Ok(())
}

/// Bytes not allocated, fragments included.
pub fn free_bytes() -> usize {
    TOTAL
        .load(Ordering::Relaxed)
        .saturating_sub(USED.load(Ordering::Relaxed))
}

/// Bytes fed.
pub fn total_bytes() -> usize {
    TOTAL.load(Ordering::Relaxed)
}

/// Bytes allocated.
pub fn used_bytes() -> usize {
    USED.load(Ordering::Relaxed)
}
