//! From the loader's jump to Rust at a high address, on every CPU.
//!
//! The image is an arm64 Linux `Image` (Documentation/arch/arm64/booting.rst): MMU off, device tree
//! in x0, EL2. The code below runs at its load address until the MMU is on, so it uses nothing but
//! PC-relative addresses. It builds the first tables: one identity block in TTBR0 (dropped as soon
//! as Rust runs) and the image in TTBR1, page by page with the rights its sections ask for, so that
//! no page is ever writable and executable at once.
//!
//! A CPU on which umbra cannot run goes another way: at EL1, which every CPU has, to `refused`, with
//! all of the first 512 GiB mapped as it is, so that there is a console to say why.

use core::arch::global_asm;

use crate::refused::Missing;

/// Base of the image in umbra's address space; `link.ld` has the same number.
pub(crate) const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// HCR_EL2 with no guest loaded: VHE, lower levels AArch64, interrupts and errors to EL2.
pub(crate) const HCR_HOST: u64 =
    HCR_E2H | HCR_TGE | HCR_RW | HCR_AMO | HCR_IMO | HCR_FMO | HCR_APK | HCR_API;
/// HCR_EL2.FMO, physical FIQ routing (Arm ARM D24.2.48).
pub const HCR_FMO: u64 = 1 << 3;
/// HCR_EL2.IMO, physical IRQ routing.
pub const HCR_IMO: u64 = 1 << 4;
/// HCR_EL2.AMO, physical SError routing.
pub const HCR_AMO: u64 = 1 << 5;
/// HCR_EL2.TGE, EL0 belongs to EL2.
pub const HCR_TGE: u64 = 1 << 27;
/// HCR_EL2.RW, EL1 is AArch64.
pub const HCR_RW: u64 = 1 << 31;
/// HCR_EL2.E2H, EL2 hosts an operating system.
pub const HCR_E2H: u64 = 1 << 34;
/// HCR_EL2.APK, no trap of the PAuth key registers.
pub const HCR_APK: u64 = 1 << 40;
/// HCR_EL2.API, no trap of PAuth instructions.
pub const HCR_API: u64 = 1 << 41;

/// MAIR_EL2: index 0 Normal write-back, 1 Device-nGnRE, 2 Normal non-cacheable.
const MAIR: u64 = 0xff | 0x04 << 8 | 0x44 << 16;
/// TCR_EL2 (E2H form): 48-bit halves, 4 KiB granule, write-back walks, inner shareable, 16-bit ASID
/// from TTBR0, hardware access flag; IPS is filled in at boot.
const TCR: u64 = 16
    | 1 << 8
    | 1 << 10
    | 3 << 12
    | 16 << 16
    | 1 << 24
    | 1 << 26
    | 3 << 28
    | 0b10 << 30
    | 1 << 36
    | 1 << 39;
/// SCTLR_EL2 (E2H form): M, C, I, SA, SA0, EOS, EIS, LSMAOE, nTLSMD, UCI, UCT, DZE, nTWE set;
/// SPAN clear (an exception from EL0 sets PAN); nTWI, UMA and EnTP2 clear.
const SCTLR: u64 = 1
    | 1 << 2
    | 1 << 12
    | 1 << 3
    | 1 << 4
    | 1 << 11
    | 1 << 22
    | 1 << 28
    | 1 << 29
    | 1 << 26
    | 1 << 15
    | 1 << 14
    | 1 << 18;

/// Valid, AF, inner shareable, Normal, EL2 read-only; PXN/UXN and write access are added per use.
const PAGE_RX: u64 = 0b11 | 1 << 10 | 3 << 8 | 1 << 7 | 1 << 54;
const PAGE_RO: u64 = 0b11 | 1 << 10 | 3 << 8 | 1 << 7 | 1 << 54 | 1 << 53;
const PAGE_RW: u64 = 0b11 | 1 << 10 | 3 << 8 | 1 << 54 | 1 << 53;
/// The identity block: executable, since the instruction after the MMU goes on is fetched through it.
const BLOCK_ID: u64 = 0b01 | 1 << 10 | 3 << 8 | 1 << 7 | 1 << 54;

/// The same of the device tree's, which nobody executes.
const BLOCK_TREE: u64 = BLOCK_ID | 1 << 53;
/// An identity block of devices.
const BLOCK_DEVICE: u64 = 0b01 | 1 << 2 | 1 << 10 | 1 << 54 | 1 << 53;
/// SPSR for EL1 with its own stack pointer, everything masked.
const TO_EL1: u64 = 0x3c5;

// Register use: x20 device tree, x21 image PA, x22 first boot table PA, x23 per-CPU argument, x24 what
// is missing (`refused::Missing`), or 0.
// Boot tables: [0] identity L0, [1] identity L1, [2] TTBR1 L0, [3] TTBR1 L1, [4] TTBR1 L2,
// [5..12] TTBR1 L3 (14 MiB of image at most).
global_asm!(
    r#"
    .macro load64 reg, value
        movz \reg, #((\value) & 0xffff)
        movk \reg, #(((\value) >> 16) & 0xffff), lsl #16
        movk \reg, #(((\value) >> 32) & 0xffff), lsl #32
        movk \reg, #(((\value) >> 48) & 0xffff), lsl #48
    .endm

    // Maps image pages [x0, x1) (PA) with attributes x2; clobbers x3-x5.
    .macro map_image
    7:  cmp x0, x1
        b.hs 8f
        sub x3, x0, x21
        lsr x3, x3, #12
        add x4, x22, #(5 * 4096)
        orr x5, x0, x2
        str x5, [x4, x3, lsl #3]
        add x0, x0, #4096
        b 7b
    8:
    .endm

    // TCR for this CPU into x0; clobbers x1, x2.
    .macro tcr_value
    load64  x0, {tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    mov     x2, #5                              // 48 bits at most: no LPA2 descriptors
    cmp     x1, x2
    csel    x1, x1, x2, lo
    orr     x0, x0, x1, lsl #32
    .endm

    // Returns to the same place in the high image; clobbers x1.
    .macro return_high
    adrp    x1, __image_start
    sub     x30, x30, x1
    load64  x1, {base}
    add     x30, x30, x1
    ret
    .endm

    .pushsection .head, "ax"
    .global _head
_head:
    b       primary_entry
    .long   0
    .quad   0                                   // text_offset
    .quad   __image_size                        // image_size
    .quad   0b1010                              // little endian, 4 KiB pages, anywhere
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

primary_entry:
    msr     daifset, #0xf
    mov     x20, x0
    adrp    x21, __image_start
    adrp    x22, __boot_tables
    mov     x24, #0
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.eq    1f
    cmp     x9, #(1 << 2)
    b.ne    park
    mov     x24, #{no_el2}
    b       2f
1:  mrs     x9, id_aa64mmfr1_el1
    ubfx    x9, x9, #8, #4                      // VH
    mrs     x10, id_aa64isar0_el1
    ubfx    x10, x10, #20, #4                   // Atomic
    mov     x11, #{no_lse}
    cmp     x10, #0
    csel    x24, x11, x24, eq
    mov     x11, #{no_vhe}
    cmp     x9, #0
    csel    x24, x11, x24, eq
2:
    // Clear bss and the tables, with caches off: then throw away stale lines.
    adrp    x0, __bss_start
    adrp    x1, __bss_end
    mov     x2, x0
1:  stp     xzr, xzr, [x2], #16
    cmp     x2, x1
    b.lo    1b

    // Image, section by section.
    adrp    x0, __image_start
    adrp    x1, __text_end
    load64  x2, {page_rx}
    map_image
    adrp    x0, __text_end
    adrp    x1, __rodata_end
    load64  x2, {page_ro}
    map_image
    adrp    x0, __rodata_end
    adrp    x1, __boot_stack_guard
    load64  x2, {page_rw}
    map_image
    adrp    x0, __boot_stack_guard
    add     x0, x0, #4096
    adrp    x1, __image_end
    load64  x2, {page_rw}
    map_image

    // TTBR1: L0[511] -> L1[510] -> L2[0..7] -> L3.
    mov     x2, #3
    add     x0, x22, #(2 * 4096)
    add     x1, x22, #(3 * 4096)
    orr     x1, x1, x2
    str     x1, [x0, #(511 * 8)]
    add     x0, x22, #(3 * 4096)
    add     x1, x22, #(4 * 4096)
    orr     x1, x1, x2
    str     x1, [x0, #(510 * 8)]
    add     x0, x22, #(4 * 4096)
    add     x1, x22, #(5 * 4096)
    mov     x3, #7
2:  orr     x4, x1, x2
    str     x4, [x0], #8
    add     x1, x1, #4096
    subs    x3, x3, #1
    b.ne    2b

    // Identity: the 1 GiB that holds the image.
    lsr     x3, x21, #39
    add     x1, x22, #4096
    orr     x1, x1, x2
    str     x1, [x22, x3, lsl #3]
    ubfx    x3, x21, #30, #9
    lsr     x4, x21, #30
    lsl     x4, x4, #30
    load64  x5, {block_id}
    orr     x4, x4, x5
    add     x1, x22, #4096
    str     x4, [x1, x3, lsl #3]
    cbz     x24, 6f

    // To say that umbra cannot run: where the device tree is, and all else for its devices.
    ubfx    x3, x20, #30, #9
    ldr     x4, [x1, x3, lsl #3]
    cbnz    x4, 4f
    lsr     x4, x20, #30
    lsl     x4, x4, #30
    load64  x5, {block_tree}
    orr     x4, x4, x5
    str     x4, [x1, x3, lsl #3]
4:  load64  x5, {block_device}
    mov     x3, #0
5:  ldr     x4, [x1, x3, lsl #3]
    orr     x6, x5, x3, lsl #30
    cmp     x4, #0
    csel    x4, x6, x4, eq
    str     x4, [x1, x3, lsl #3]
    add     x3, x3, #1
    cmp     x3, #512
    b.ne    5b

6:  adrp    x0, __bss_start
    adrp    x1, __bss_end
    dmb     sy
3:  dc      civac, x0
    add     x0, x0, #16
    cmp     x0, x1
    b.lo    3b
    dsb     sy

    cbnz    x24, refused
    bl      mmu_on
    ldr     x1, =__boot_stack_top
    mov     sp, x1
    mov     x29, #0
    mov     x30, #0
    mov     x0, x20
    mov     x1, x21
    ldr     x2, =primary_rust
    br      x2

refused:
    mrs     x9, CurrentEL
    cmp     x9, #(1 << 2)
    b.eq    9f
    load64  x0, {rw}
    msr     hcr_el2, x0
    load64  x0, {to_el1}
    msr     spsr_el2, x0
    adr     x0, 9f
    msr     elr_el2, x0
    isb
    eret
9:  bl      mmu_on_at_el1
    ldr     x1, =__boot_stack_top
    mov     sp, x1
    mov     x29, #0
    mov     x30, #0
    mov     x0, x20
    mov     x1, x24
    ldr     x2, =refused_rust
    br      x2

    // PSCI CPU_ON lands here with the CPU's argument (a high address) in x0.
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x23, x0
    adrp    x22, __boot_tables
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    park
    bl      mmu_on
    ldr     x1, [x23]
    mov     sp, x1
    mov     x29, #0
    mov     x30, #0
    mov     x0, x23
    ldr     x2, =secondary_rust
    br      x2

park:
    wfe
    b       park

    // Turns VHE and the MMU on and returns at the high address. x22: boot tables' PA.
mmu_on:
    load64  x0, {hcr}
    msr     hcr_el2, x0
    isb
    load64  x0, {mair}
    msr     mair_el2, x0
    tcr_value
    msr     tcr_el2, x0
    msr     ttbr0_el2, x22
    add     x0, x22, #(2 * 4096)
    msr     s3_4_c2_c0_1, x0                    // TTBR1_EL2
    isb
    tlbi    alle2
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    load64  x0, {sctlr}
    msr     sctlr_el2, x0
    isb
    return_high

    // The same without VHE and without EL2: the formats are EL1's anyway.
mmu_on_at_el1:
    load64  x0, {mair}
    msr     mair_el1, x0
    tcr_value
    msr     tcr_el1, x0
    msr     ttbr0_el1, x22
    add     x0, x22, #(2 * 4096)
    msr     ttbr1_el1, x0
    isb
    tlbi    vmalle1
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    load64  x0, {sctlr}
    msr     sctlr_el1, x0
    isb
    return_high
    .ltorg
    .popsection
    "#,
    page_rx = const PAGE_RX,
    page_ro = const PAGE_RO,
    page_rw = const PAGE_RW,
    block_id = const BLOCK_ID,
    block_tree = const BLOCK_TREE,
    block_device = const BLOCK_DEVICE,
    to_el1 = const TO_EL1,
    rw = const HCR_RW,
    no_el2 = const Missing::El2 as u64,
    no_vhe = const Missing::Vhe as u64,
    no_lse = const Missing::Lse as u64,
    hcr = const HCR_HOST,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    base = const IMAGE_BASE,
);
