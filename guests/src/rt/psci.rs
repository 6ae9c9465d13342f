//! Calls to the firmware that the hypervisor plays: SMCCC by hvc, and PSCI on top of it
//! (Arm DEN 0028, DEN 0022).

use core::arch::asm;

/// PSCI_VERSION.
pub const VERSION: u64 = 0x8400_0000;
/// CPU_OFF.
pub const CPU_OFF: u64 = 0x8400_0002;
/// CPU_ON, 64-bit convention.
pub const CPU_ON: u64 = 0xc400_0003;
/// AFFINITY_INFO, 64-bit convention.
pub const AFFINITY_INFO: u64 = 0xc400_0004;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u64 = 0x8400_0009;
/// PSCI_FEATURES.
pub const FEATURES: u64 = 0x8400_000a;

/// SUCCESS.
pub const SUCCESS: i32 = 0;
/// NOT_SUPPORTED.
pub const NOT_SUPPORTED: i32 = -1;
/// INVALID_PARAMETERS.
pub const INVALID_PARAMETERS: i32 = -2;
/// ALREADY_ON.
pub const ALREADY_ON: i32 = -4;

/// A call with up to three arguments; x0 to x3 as they come back.
pub fn hvc(function: u64, args: [u64; 3]) -> [u64; 4] {
    let [mut a, mut b, mut c] = args;
    let mut x0 = function;
    // SAFETY: SMCCC 1.1 keeps x4 to x30; memory is not touched on behalf of the caller.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") a, inout("x2") b, inout("x3") c, options(nostack));
    }
    [x0, a, b, c]
}

/// The same by smc, which a plain guest has no use for.
pub fn smc(function: u64, args: [u64; 3]) -> [u64; 4] {
    let [mut a, mut b, mut c] = args;
    let mut x0 = function;
    // SAFETY: as for hvc. (smc #0, which the assembler wants EL3 for.)
    unsafe {
        asm!(".inst 0xd4000003", inout("x0") x0, inout("x1") a, inout("x2") b, inout("x3") c, options(nostack));
    }
    [x0, a, b, c]
}

/// A PSCI call's status, by smc at EL2, whose hvc goes to itself.
pub fn call(function: u64, args: [u64; 3]) -> i32 {
    let conduit = if super::at_el2() { smc } else { hvc };
    conduit(function, args)[0] as i32
}

/// Ends the machine.
pub fn system_off() -> ! {
    loop {
        call(SYSTEM_OFF, [0; 3]);
    }
}
