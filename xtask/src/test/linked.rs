//! A program with a dynamic linker, both made here of a few instructions: no test needs a C library for arm64.
//!
//! The linker looks for AT_BASE and AT_ENTRY on its stack, compares the first with where it lies itself, and goes
//! to the second, where the program exits with [`STATUS`].

/// Where the linker is, and what the program names.
pub(crate) const LINKER: &str = "/lib/linker";
/// What the program exits with.
pub(crate) const STATUS: i32 = 43;
/// Where the code lies in a file and in memory, from the start of either.
const CODE: u64 = 0x1000;

/// The program.
pub(crate) fn program() -> Vec<u8> {
    elf(
        Some(LINKER),
        &[
            0xd280_0560, // mov x0, #43
            0xd280_0ba8, // mov x8, #93: exit
            0xd400_0001, // svc #0
        ],
    )
}

/// Its linker.
pub(crate) fn linker() -> Vec<u8> {
    elf(
        None,
        &[
            0xf940_03e0, // ldr x0, [sp]: argc
            0x9100_23e1, // add x1, sp, #8
            0x8b00_0c21, // add x1, x1, x0, lsl #3
            0x9100_2021, // add x1, x1, #8: the environment
            0xf840_8422, // 1: ldr x2, [x1], #8
            0xb5ff_ffe2, // cbnz x2, 1b
            0xa8c1_0c22, // 2: ldp x2, x3, [x1], #16
            0xf100_1c5f, // cmp x2, #7: AT_BASE
            0x9a84_0064, // csel x4, x3, x4, eq
            0xf100_245f, // cmp x2, #9: AT_ENTRY
            0x5400_0060, // b.eq 3f
            0xb5ff_ff62, // cbnz x2, 2b
            0xd420_0020, // brk #1
            0x10ff_fe65, // 3: adr x5, the first instruction
            0xd140_04a5, // sub x5, x5, #0x1000
            0xeb05_009f, // cmp x4, x5
            0x5400_0041, // b.ne 4f
            0xd61f_0060, // br x3
            0xd420_0040, // 4: brk #2
        ],
    )
}

/// A position-independent executable of this code.
fn elf(interpreter: Option<&str>, code: &[u32]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const PT_LOAD: u32 = 1;
    const PT_INTERP: u32 = 3;
    let named: Vec<u8> = interpreter.map_or_else(Vec::new, |path| [path.as_bytes(), &[0]].concat());
    let count = 1 + u16::from(interpreter.is_some());
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    // ET_DYN, EM_AARCH64, EV_CURRENT.
    bytes.extend([3, 0, 183, 0, 1, 0, 0, 0]);
    for word in [CODE, HEADER as u64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0; 4]);
    for half in [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let end = CODE + 4 * code.len() as u64;
    let name_at = (HEADER + PROGRAM_HEADER * usize::from(count)) as u64;
    let mut header = |kind: u32, flags: u32, offset: u64, len: u64, align: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for word in [offset, offset, offset, len, len, align] {
            bytes.extend(word.to_le_bytes());
        }
    };
    if interpreter.is_some() {
        header(PT_INTERP, 4, name_at, named.len() as u64, 1);
    }
    header(PT_LOAD, 5, 0, end, CODE);
    bytes.extend(named);
    bytes.resize(CODE as usize, 0);
    bytes.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}
