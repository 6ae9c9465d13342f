//! No memory to allocate. `umbra_nested` has parts that need some; the walks are none of them, so that
//! whoever asks has gone astray and fails.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;

struct None;

// SAFETY: it never gives anything, which an allocator may.
unsafe impl GlobalAlloc for None {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: None = None;
