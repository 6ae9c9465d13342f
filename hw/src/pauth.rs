//! Pointer authentication codes under a guest's keys.

use crate::regs::{insn, mrs, msr};

/// The code of `value` with `modifier` under APIAKey_EL1 or, `b`, APIBKey_EL1 of the guest whose
/// registers are loaded here, from bit 32 up: PACGA, to which that key is lent. The machine must have
/// generic authentication by the algorithm of that of addresses.
pub fn code(value: u64, modifier: u64, b: bool) -> u64 {
    let key = if b {
        (mrs!("s3_0_c2_c1_2"), mrs!("s3_0_c2_c1_3"))
    } else {
        (mrs!("s3_0_c2_c1_0"), mrs!("s3_0_c2_c1_1"))
    };
    let own = (mrs!("s3_0_c2_c3_0"), mrs!("s3_0_c2_c3_1"));
    let code: u64;
    // SAFETY: the generic key is the guest's, umbra uses none, and it is put back; the instruction
    // computes on registers.
    unsafe {
        msr!("s3_0_c2_c3_0", key.0);
        msr!("s3_0_c2_c3_1", key.1);
        insn!("isb");
        // pacga x0, x0, x1
        core::arch::asm!(".inst 0x9ac13000", inout("x0") value => code, in("x1") modifier,
            options(nomem, nostack, preserves_flags));
        msr!("s3_0_c2_c3_0", own.0);
        msr!("s3_0_c2_c3_1", own.1);
        insn!("isb");
    }
    code
}

/// Whether codes can be had, of addresses and by [`code`]: both kinds of authentication are there, by
/// one algorithm.
pub fn is_there() -> bool {
    let isar1 = crate::idregs::read(6, 1);
    let isar2 = crate::idregs::read(6, 2);
    let both = |register: u64, address: u32, generic: u32| {
        register >> address & 0xf != 0 && register >> generic & 0xf != 0
    };
    // QARMA5, IMPLEMENTATION DEFINED, QARMA3.
    both(isar1, 4, 24) || both(isar1, 8, 28) || both(isar2, 12, 8)
}
