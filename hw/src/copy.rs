//! The fallible seam: memory of processes (and so of guests), touched by umbra on their behalf.
//!
//! Accesses go through the current process's own mapping (TTBR0_EL2) with PAN lifted for just that
//! instruction. A fault lands at a fix-up and becomes an `Err` with the syndrome: a page that is not
//! there, a right that is missing, or a memory error. Nothing here can panic on a user address.

use core::arch::global_asm;

use umbra_arm64::Hva;

/// First address that no process may have: the end of the 47-bit user half.
pub const USER_END: u64 = 1 << 47;

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not an address of a process, or not aligned for the access.
    BadAddress,
    /// The access faulted at `at`; `esr` is the syndrome of the abort taken at EL2.
    Abort {
        /// The address that faulted.
        at: Hva,
        /// ESR_EL2 of the abort.
        esr: u64,
    },
}

global_asm!(
    r#"
    .macro fixup insn, target
        .pushsection .fixups, "a"
        .balign 8
        .quad   \insn, \target
        .popsection
    .endm

    .pushsection .text.copy, "ax"
    .arch armv8.5-a+lse+pan

    // All return x0 = 0, or the address that faulted with x1 = ESR_EL2 (set by the handler).
    // umbra_copy_in(dst, src, len): src is the user's.
    .global umbra_copy_in
umbra_copy_in:
    cbz     x2, 9f
    msr     pan, #0
1:  cmp     x2, #8
    b.lo    3f
2:  ldr     x3, [x1]
    str     x3, [x0], #8
    add     x1, x1, #8
    sub     x2, x2, #8
    b       1b
3:  cbz     x2, 8f
4:  ldrb    w3, [x1]
    strb    w3, [x0], #1
    add     x1, x1, #1
    sub     x2, x2, #1
    b       3b
8:  msr     pan, #1
9:  mov     x0, #0
    ret
    fixup   2b, umbra_fault
    fixup   4b, umbra_fault

    // umbra_copy_out(dst, src, len): dst is the user's.
    .global umbra_copy_out
umbra_copy_out:
    cbz     x2, 9f
    msr     pan, #0
1:  cmp     x2, #8
    b.lo    3f
    ldr     x3, [x1], #8
2:  str     x3, [x0]
    add     x0, x0, #8
    sub     x2, x2, #8
    b       1b
3:  cbz     x2, 8f
    ldrb    w3, [x1], #1
4:  strb    w3, [x0]
    add     x0, x0, #1
    sub     x2, x2, #1
    b       3b
8:  msr     pan, #1
9:  mov     x0, #0
    ret
    fixup   2b, umbra_fault
    fixup   4b, umbra_fault

    // umbra_user_load(out, addr, log2size)
    .global umbra_user_load
umbra_user_load:
    msr     pan, #0
    cmp     x2, #2
    b.eq    3f
    b.hi    4f
    cbz     x2, 2f
1:  ldrh    w3, [x1]
    b       8f
2:  ldrb    w3, [x1]
    b       8f
3:  ldr     w3, [x1]
    b       8f
4:  ldr     x3, [x1]
8:  msr     pan, #1
    str     x3, [x0]
    mov     x0, #0
    ret
    fixup   1b, umbra_fault
    fixup   2b, umbra_fault
    fixup   3b, umbra_fault
    fixup   4b, umbra_fault

    // umbra_clear_word(addr)
    .global umbra_clear_word
umbra_clear_word:
1:  str     xzr, [x0]
    mov     x0, #0
    ret
    fixup   1b, umbra_fault

    // umbra_user_cas32(out, addr, expected, new) and umbra_user_cas64.
    .global umbra_user_cas32
umbra_user_cas32:
    msr     pan, #0
1:  casal   w2, w3, [x1]
    msr     pan, #1
    str     w2, [x0]
    mov     x0, #0
    ret
    fixup   1b, umbra_fault

    .global umbra_user_cas64
umbra_user_cas64:
    msr     pan, #0
1:  casal   x2, x3, [x1]
    msr     pan, #1
    str     x2, [x0]
    mov     x0, #0
    ret
    fixup   1b, umbra_fault

    // umbra_translate_stage1(va): AT S1E1R. An external abort on the walk is taken at EL2.
    .global umbra_translate_stage1
umbra_translate_stage1:
1:  at      s1e1r, x0
    isb
    mov     x0, #0
    mov     x1, #0
    ret
    fixup   1b, umbra_fault

    // The handler put FAR_EL2 in x0 and ESR_EL2 in x1.
umbra_fault:
    msr     pan, #1
    ret
    .popsection
    "#
);

/// What the assembly returns: a 0 in the first register for success.
#[repr(C)]
struct Raw {
    far: u64,
    esr: u64,
}

unsafe extern "C" {
    fn umbra_copy_in(dst: *mut u8, src: u64, len: usize) -> Raw;
    fn umbra_copy_out(dst: u64, src: *const u8, len: usize) -> Raw;
    fn umbra_user_load(out: *mut u64, addr: u64, log2: u64) -> Raw;
    fn umbra_clear_word(addr: u64) -> Raw;
    fn umbra_user_cas32(out: *mut u32, addr: u64, expected: u32, new: u32) -> Raw;
    fn umbra_user_cas64(out: *mut u64, addr: u64, expected: u64, new: u64) -> Raw;
    fn umbra_translate_stage1(va: u64) -> Raw;
    static __fixups_start: [u64; 2];
    static __fixups_end: [u64; 2];
}

impl Raw {
    fn result(self) -> Result<(), Fault> {
        // Address 0 is below every process's first page, so 0 is no faulting address of ours: a
        // fault at 0 is refused by `check` before the access.
        if self.far == 0 {
            Ok(())
        } else {
            Err(Fault::Abort {
                at: Hva::new(self.far),
                esr: self.esr,
            })
        }
    }
}

fn check(at: Hva, bytes: u64) -> Result<(), Fault> {
    match at.raw().checked_add(bytes) {
        Some(end) if at.raw() >= 4096 && end <= USER_END => Ok(()),
        _ => Err(Fault::BadAddress),
    }
}

/// Copies from the current process.
///
/// # Errors
/// [`Fault`]; part of `dst` may have been written.
pub fn copy_in(dst: &mut [u8], src: Hva) -> Result<(), Fault> {
    check(src, dst.len() as u64)?;
    // SAFETY: `dst` is ours; `src` is in the user half, where a fault reaches the fix-up.
    unsafe { umbra_copy_in(dst.as_mut_ptr(), src.raw(), dst.len()) }.result()
}

/// Copies to the current process.
///
/// # Errors
/// [`Fault`]; part of the destination may have been written.
pub fn copy_out(dst: Hva, src: &[u8]) -> Result<(), Fault> {
    check(dst, src.len() as u64)?;
    // SAFETY: as for `copy_in`.
    unsafe { umbra_copy_out(dst.raw(), src.as_ptr(), src.len()) }.result()
}

/// Copies from constant memory that may have gone bad, such as boot data. Both are as long as `dst`.
///
/// # Errors
/// [`Fault::Abort`]; part of `dst` may have been written. [`Fault::BadAddress`] if `src` is shorter.
pub fn copy_constant(dst: &mut [u8], src: &[u8]) -> Result<(), Fault> {
    let src = src.get(..dst.len()).ok_or(Fault::BadAddress)?;
    // SAFETY: both are slices of that length; an abort lands at the fix-up.
    unsafe { umbra_copy_in(dst.as_mut_ptr(), src.as_ptr() as u64, dst.len()) }.result()
}

/// Reads 1, 2, 4 or 8 bytes (`1 << log2`) with a single access.
///
/// # Errors
/// [`Fault`], also for an address that is not aligned.
pub fn load(addr: Hva, log2: u8) -> Result<u64, Fault> {
    check(addr, 1 << log2)?;
    if log2 > 3 || !addr.is_aligned(1 << log2) {
        return Err(Fault::BadAddress);
    }
    let mut out = 0;
    // SAFETY: as for `copy_in`.
    unsafe { umbra_user_load(&mut out, addr.raw(), u64::from(log2)) }.result()?;
    Ok(out)
}

/// Whether a word of umbra's own memory can be read.
pub(crate) fn is_readable(va: u64) -> bool {
    let mut out = 0;
    // SAFETY: callers pass an aligned address in the linear map; nothing is written there, and an abort
    // lands at the fix-up.
    unsafe { umbra_user_load(&mut out, va, 3) }.result().is_ok()
}

/// Clears a word of a page of tables that is about to be replaced. False where it cannot be written.
pub(crate) fn clear_word(va: u64) -> bool {
    // SAFETY: callers pass an aligned address of a table page in the linear map, which is reached as atomic words
    // only and whose content is lost; an abort lands at the fix-up.
    unsafe { umbra_clear_word(va) }.result().is_ok()
}

/// Compare-and-exchange of a 32-bit word; returns what was there.
///
/// # Errors
/// [`Fault`], also for an address that is not aligned.
pub fn compare_exchange_u32(addr: Hva, expected: u32, new: u32) -> Result<u32, Fault> {
    check(addr, 4)?;
    if !addr.is_aligned(4) {
        return Err(Fault::BadAddress);
    }
    let mut out = 0;
    // SAFETY: as for `copy_in`.
    unsafe { umbra_user_cas32(&mut out, addr.raw(), expected, new) }.result()?;
    Ok(out)
}

/// Compare-and-exchange of a 64-bit word; returns what was there.
///
/// # Errors
/// [`Fault`], also for an address that is not aligned.
pub fn compare_exchange_u64(addr: Hva, expected: u64, new: u64) -> Result<u64, Fault> {
    check(addr, 8)?;
    if !addr.is_aligned(8) {
        return Err(Fault::BadAddress);
    }
    let mut out = 0;
    // SAFETY: as for `copy_in`.
    unsafe { umbra_user_cas64(&mut out, addr.raw(), expected, new) }.result()?;
    Ok(out)
}

/// AT S1E1R for the guest that is loaded; PAR_EL1 has the answer. Returns false where the walk met an
/// external abort.
pub(crate) fn translate_stage1(va: u64) -> bool {
    // SAFETY: reads tables through the guest's own translation and writes PAR_EL1, which the caller
    // keeps; an abort on the way lands at the fix-up, with a syndrome that is never zero.
    unsafe { umbra_translate_stage1(va) }.esr == 0
}

/// Where to resume after an abort at `pc`, if the instruction there has a fix-up.
pub(crate) fn fixup(pc: u64) -> Option<u64> {
    let start = &raw const __fixups_start;
    let end = &raw const __fixups_end;
    // SAFETY: the linker script brackets the table of pairs, which is constant.
    let table = unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) };
    table.iter().find(|pair| pair[0] == pc).map(|pair| pair[1])
}
