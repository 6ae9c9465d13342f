//! The machine's firmware: bringing CPUs up, and ending everything.

use core::arch::asm;

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const CPU_ON_64: u64 = 0xc400_0003;

fn smc(function: u64, a: u64, b: u64, c: u64) -> i64 {
    let result: i64;
    // SAFETY: an SMC to PSCI changes x0–x17 at most and no memory of ours.
    unsafe {
        asm!(
            ".inst 0xd4000003", // SMC #0
            inout("x0") function => result, inout("x1") a => _, inout("x2") b => _, inout("x3") c => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
            out("x16") _, out("x17") _, options(nostack)
        );
    }
    result
}

/// Starts the CPU with this MPIDR affinity as umbra's CPU `index` on `stack`.
///
/// # Errors
/// The PSCI error code.
pub fn cpu_on(mpidr: u64, index: usize, stack: crate::thread::StackTop) -> Result<(), i64> {
    unsafe extern "C" {
        static secondary_entry: u8;
    }
    let slot = crate::percpu::slot(index);
    slot.boot_sp
        .store(stack.0, core::sync::atomic::Ordering::Release);
    slot.index
        .store(index as u32, core::sync::atomic::Ordering::Release);
    let entry = crate::mmu::image_pa((&raw const secondary_entry) as u64);
    // SAFETY: a barrier: the slot is in memory before the CPU reads it with caches on.
    unsafe { crate::regs::insn!("dsb sy") };
    match smc(CPU_ON_64, mpidr, entry, core::ptr::from_ref(slot) as u64) {
        0 => Ok(()),
        error => Err(error),
    }
}

/// Switches the machine off.
pub fn system_off() -> ! {
    smc(SYSTEM_OFF, 0, 0, 0);
    stop()
}

/// Resets the machine.
pub fn system_reset() -> ! {
    smc(SYSTEM_RESET, 0, 0, 0);
    stop()
}

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { crate::regs::insn!("wfe") };
    }
}

/// Waits for an interrupt, without taking it.
pub fn wait_for_interrupt() {
    // SAFETY: with interrupts masked a pending one still ends the wait.
    unsafe {
        crate::regs::insn!("dsb sy");
        crate::regs::insn!("wfi");
    }
}
