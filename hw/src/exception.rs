//! An exception taken at EL2 itself: a fallible access that failed, or a bug.

use crate::boot::IMAGE_BASE;
use crate::guest::Frame;
use crate::regs::mrs;
use crate::{copy, lost};
use umbra_arm64::Esr;

macro_rules! say {
    ($($arg:tt)*) => {
        crate::uart::print_unlocked(format_args!("{}\n", format_args!($($arg)*)))
    };
}

#[unsafe(no_mangle)]
extern "C" fn umbra_el2_exception(frame: &mut Frame, kind: u64) {
    let esr = mrs!("esr_el2");
    let far = mrs!("far_el2");
    // What may have gone anywhere is not the access's own affair.
    let mendable = kind == 0 && esr >> 26 == 0x25 && !Esr::new(esr).is_uncontainable();
    if mendable && let Some(target) = copy::fixup(frame.pc) {
        frame.x[0] = far;
        frame.x[1] = esr;
        frame.pc = target;
        return;
    }
    if mendable && lost::mend(far, esr) {
        // The access is made again, and reads zeros.
        return;
    }
    let names = [
        "EL2h sync",
        "EL2h IRQ",
        "EL2h FIQ",
        "EL2h SError",
        "EL2t sync",
        "EL2t IRQ",
    ];
    let name = names
        .get(kind as usize)
        .copied()
        .unwrap_or("FIQ or AArch32");
    say!(
        "exception at EL2: {name}, ESR {esr:#010x} FAR {far:#018x} PC {:#018x} PSTATE {:#x}",
        frame.pc,
        frame.raw_pstate()
    );
    for (index, pair) in frame.x.chunks(3).enumerate() {
        let n = index * 3;
        match pair {
            [a, b, c] => say!(
                "x{n:<2} {a:#018x} x{:<2} {b:#018x} x{:<2} {c:#018x}",
                n + 1,
                n + 2
            ),
            rest => say!("x{n:<2} {rest:#018x?}"),
        }
    }
    backtrace(frame.x[29], frame.pc);
    if kind == 0 && matches!(esr & 0x3f, 0x10 | 0x14..=0x17) {
        // The last that can be said: which frame it was.
        let at = crate::mmu::physical(far);
        panic!(
            "memory error at {at:#x?}, which umbra itself lives in (ESR {esr:#010x} FAR {far:#018x})"
        );
    }
    panic!("unexpected exception at EL2: {name} ESR {esr:#010x} FAR {far:#018x}");
}

/// Prints the chain of frame records from `fp`.
pub fn backtrace(mut fp: u64, pc: u64) {
    say!("backtrace: {pc:#018x}");
    for _ in 0..24 {
        let in_stack = (crate::mmu::STACKS..IMAGE_BASE + (1 << 30)).contains(&fp);
        if !in_stack || !fp.is_multiple_of(16) {
            break;
        }
        // SAFETY: frame records lie on kernel stacks or the boot stack; a wild pointer in that range
        // faults into a second panic, which stops.
        let (next, lr) = unsafe { (*(fp as *const u64), *((fp + 8) as *const u64)) };
        if lr == 0 {
            break;
        }
        say!("           {:#018x}", lr.wrapping_sub(4));
        fp = next;
    }
}

/// The frame pointer of the caller, for a backtrace of a panic.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let fp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack, preserves_flags))
    };
    fp
}
