//! Kernel stacks, and switching between them.
//!
//! A thread's stack is mapped at a slot of its own, above an unmapped guard of the same size, so an
//! overflow faults. The pages come from plain memory and are mapped nowhere else.

use alloc::sync::Arc;
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use umbra_arm64::Pa;

use crate::mmu::{self, Kind, NoTablePages, STACKS};
use crate::sabotage::{Safeguard, left_out};
use crate::sync::SpinLock;
use crate::{percpu, scarce};

/// Pages of a kernel stack.
pub const STACK_PAGES: usize = 8;
const STACK_BYTES: u64 = STACK_PAGES as u64 * 4096;
const SLOT: u64 = 2 * STACK_BYTES;
const SLOTS: usize = 8192;

static USED: SpinLock<[u64; SLOTS / 64]> = SpinLock::new("stacks", 249, [0; SLOTS / 64]);

global_asm!(
    r#"
    .pushsection .text.switch, "ax"
    // umbra_switch(prev_sp: *mut u64, next_sp: *const u64, prev_running: *mut u8)
    .global umbra_switch
umbra_switch:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x9, sp
    str     x9, [x0]
    ldr     x9, [x1]
    mov     sp, x9
    stlrb   wzr, [x2]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    .global umbra_thread_start
umbra_thread_start:
    mov     x29, #0
    mov     x30, #0
    blr     x19
    brk     #1
    .popsection
    "#
);

unsafe extern "C" {
    fn umbra_switch(prev: *mut u64, next: *const u64, running: *mut u8);
    fn umbra_thread_start();
}

/// Stacks that are in use.
pub fn stacks() -> u64 {
    let used = USED.lock();
    used.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// Top of a boot stack, for [`crate::psci::cpu_on`].
#[derive(Clone, Copy, Debug)]
pub struct StackTop(pub(crate) u64);

struct Stack {
    slot: usize,
    pages: [Pa; STACK_PAGES],
}

/// A context that can be switched to: a stack and what was running on it.
pub struct Context {
    sp: AtomicU64,
    /// Set while some CPU runs on this stack.
    running: AtomicBool,
    stack: Option<Stack>,
}

/// Why there is no stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStack {
    /// Every slot is in use.
    Slots,
    /// The kernel half lacks a table page.
    Tables,
}

impl From<NoTablePages> for NoStack {
    fn from(_: NoTablePages) -> Self {
        NoStack::Tables
    }
}

impl Context {
    /// The context of a CPU's boot flow: the code that calls this is running on it.
    pub const fn boot() -> Self {
        Self {
            sp: AtomicU64::new(0),
            running: AtomicBool::new(true),
            stack: None,
        }
    }

    /// A stack of `pages` on which `entry` will run when first switched to.
    ///
    /// # Errors
    /// [`NoStack`]; the pages are the caller's again.
    pub fn new(pages: [Pa; STACK_PAGES], entry: extern "C" fn() -> !) -> Result<Self, NoStack> {
        let slot = {
            let mut used = USED.lock();
            let word = used
                .iter()
                .position(|&word| word != u64::MAX)
                .ok_or(NoStack::Slots)?;
            let bit = used[word].trailing_ones() as usize;
            used[word] |= 1 << bit;
            word * 64 + bit
        };
        let stack = Stack { slot, pages };
        for (index, page) in (0..).zip(&pages) {
            let at = stack.base() + index * 4096;
            if let Err(error) = map_page(at, *page) {
                mmu::unmap_pages(stack.base(), index);
                if !left_out(Safeguard::StackSlot) {
                    give_slot(slot);
                }
                return Err(error.into());
            }
        }
        let frame = stack.top() - 96;
        // SAFETY: the twelve words at the top of a stack that was mapped just now. x29, x30, x19, x20.
        unsafe {
            let at = frame as *mut u64;
            at.write_bytes(0, 12);
            at.add(1).write(umbra_thread_start as *const () as u64);
            at.add(2).write(entry as *const () as u64);
        }
        Ok(Self {
            sp: AtomicU64::new(frame),
            running: AtomicBool::new(false),
            stack: Some(stack),
        })
    }

    /// Where this context's stack begins, for a CPU that boots straight onto it.
    pub fn boot_stack(&self) -> Option<StackTop> {
        self.running.store(true, Ordering::Release);
        self.stack.as_ref().map(|stack| StackTop(stack.top()))
    }

    /// Whether a CPU still runs on this stack.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Unmaps the stack and gives its pages back. The context must not be running.
    pub fn into_pages(self) -> Option<[Pa; STACK_PAGES]> {
        assert!(
            !self.running.load(Ordering::Acquire),
            "a running context is taken apart"
        );
        let stack = self.stack?;
        mmu::unmap_pages(stack.base(), STACK_PAGES as u64);
        give_slot(stack.slot);
        Some(stack.pages)
    }
}

fn map_page(at: u64, page: Pa) -> Result<(), NoTablePages> {
    if scarce::must_fail() {
        return Err(NoTablePages);
    }
    mmu::map_pages(at, page.raw(), 1, Kind::Memory)
}

fn give_slot(slot: usize) {
    USED.lock()[slot / 64] &= !(1 << (slot % 64));
}

impl Stack {
    fn base(&self) -> u64 {
        STACKS + self.slot as u64 * SLOT + STACK_BYTES
    }

    fn top(&self) -> u64 {
        self.base() + STACK_BYTES
    }
}

/// Something that runs on a stack of its own.
pub trait Switch: Send + Sync {
    /// The stack.
    fn context(&self) -> &Context;
}

/// Leaves `prev`, on which this code runs, and goes on in `next`; returns when something switches
/// back to `prev`. Waits while another CPU is still leaving `next`. Both references are dropped on
/// the other side, so a thread that never comes back leaves nothing behind.
pub fn switch(prev: Arc<dyn Switch>, next: Arc<dyn Switch>) {
    debug_assert!(
        prev.context().is_running(),
        "switching away from a context that is not running"
    );
    while next
        .context()
        .running
        .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        core::hint::spin_loop();
    }
    let prev_sp = prev.context().sp.as_ptr();
    let prev_running = prev.context().running.as_ptr().cast();
    let next_sp = next.context().sp.as_ptr();
    percpu::this().switching.set(Some((prev, next)));
    // SAFETY: `next.sp` is where `next` left off (or its first frame), and the flag just taken makes
    // this CPU the only one to run on that stack; `prev`'s flag is dropped once its state is saved.
    // The CPU's slot keeps both alive until the other side calls `finish_switch`.
    unsafe { umbra_switch(prev_sp, next_sp, prev_running) };
    finish_switch();
}

/// First thing on a stack that was switched to; `switch` does it for all but a new thread.
pub fn finish_switch() {
    drop(percpu::this().switching.take());
}
