//! What a process is told of the CPU: AT_HWCAP, and the ID registers it may read.
//!
//! Linux shows EL0 a sanitised view (Documentation/arch/arm64/cpu-feature-registers.rst). umbra
//! shows less: only what every CPU of the machine does without the kernel's help. SVE, SME and
//! pointer authentication are the kernel's to switch on, so they are not there.

/// A 4-bit field of an ID register that a process sees: CRm and op2 of the register, its lowest
/// bit, and the AT_HWCAP bits (arch/arm64/include/uapi/asm/hwcap.h) with the least value of each.
struct Field {
    crm: u8,
    op2: u8,
    shift: u8,
    caps: &'static [(u64, u8)],
}

const fn field(crm: u8, op2: u8, shift: u8, caps: &'static [(u64, u8)]) -> Field {
    Field {
        crm,
        op2,
        shift,
        caps,
    }
}

/// EL0 can read ID registers: it is emulated.
const HWCAP_CPUID: u64 = 11;

const FIELDS: &[Field] = &[
    // ID_AA64ISAR0_EL1: AES, SHA1, SHA2, CRC32, Atomic, RDM, SHA3, SM3, SM4, DP, FHM, TS.
    field(6, 0, 4, &[(3, 1), (4, 2)]),
    field(6, 0, 8, &[(5, 1)]),
    field(6, 0, 12, &[(6, 1), (21, 2)]),
    field(6, 0, 16, &[(7, 1)]),
    field(6, 0, 20, &[(8, 2)]),
    field(6, 0, 28, &[(12, 1)]),
    field(6, 0, 32, &[(17, 1)]),
    field(6, 0, 36, &[(18, 1)]),
    field(6, 0, 40, &[(19, 1)]),
    field(6, 0, 44, &[(20, 1)]),
    field(6, 0, 48, &[(23, 1)]),
    field(6, 0, 52, &[(27, 1)]),
    // ID_AA64ISAR1_EL1: DPB, JSCVT, FCMA, LRCPC, SB.
    field(6, 1, 0, &[(16, 1)]),
    field(6, 1, 12, &[(13, 1)]),
    field(6, 1, 16, &[(14, 1)]),
    field(6, 1, 20, &[(15, 1), (26, 2)]),
    field(6, 1, 36, &[(29, 1)]),
    // ID_AA64PFR0_EL1: DIT. FP and AdvSIMD count from -1 and follow below.
    field(4, 0, 48, &[(24, 1)]),
    // ID_AA64MMFR2_EL1: AT (unaligned atomics).
    field(7, 2, 32, &[(25, 1)]),
];

const PFR0_FP: u8 = 16;
const PFR0_ASIMD: u8 = 20;
/// EL0 and EL1 are AArch64 only, as far as a process can see.
const PFR0_ELS: u64 = 0x11;

fn nibble(value: u64, shift: u8) -> u8 {
    (value >> shift & 0xf) as u8
}

/// AT_HWCAP.
pub(super) fn hwcap() -> u64 {
    let mut caps = 1 << HWCAP_CPUID;
    for field in FIELDS {
        let value = nibble(umbra_hw::idregs::read(field.crm, field.op2), field.shift);
        for (bit, least) in field.caps {
            caps |= u64::from(value >= *least) << bit;
        }
    }
    let pfr0 = umbra_hw::idregs::read(4, 0);
    for (shift, plain, half) in [(PFR0_FP, 0, 9), (PFR0_ASIMD, 1, 10)] {
        match nibble(pfr0, shift) {
            0xf => {}
            0 => caps |= 1 << plain,
            _ => caps |= 1 << plain | 1 << half,
        }
    }
    caps
}

/// What EL0 reads from the ID register with op0=3, op1=0, CRn=0 and these numbers.
pub(super) fn id_register(crm: u8, op2: u8) -> u64 {
    let real = umbra_hw::idregs::read(crm, op2);
    match (crm, op2) {
        // MIDR_EL1 and REVIDR_EL1 as they are; MPIDR_EL1 names no CPU.
        (0, 0 | 6) => real,
        (0, 5) => 1 << 31,
        (4, 0) => {
            let fp = 0xff << PFR0_FP;
            real & fp | PFR0_ELS | seen(real, crm, op2)
        }
        _ => seen(real, crm, op2),
    }
}

fn seen(real: u64, crm: u8, op2: u8) -> u64 {
    FIELDS
        .iter()
        .filter(|field| (field.crm, field.op2) == (crm, op2))
        .map(|field| real & 0xf << field.shift)
        .fold(0, |sum, bits| sum | bits)
}
