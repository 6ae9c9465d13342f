//! Does an exit leave alone what it has no business with: general, FP and system registers?
//! umbra-vmm: --cpus 4 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(registers);

#[cfg(target_os = "none")]
mod registers {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::fp::Fp;
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::timer::Timer;
    use umbra_guests::rt::{cpu, gic, psci, smp, uart};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{clean, ensure, equal, mrs, op};

    /// Exits that change no register but those they are for.
    const HVC: u32 = 0xd400_0002;
    const WFI: u32 = 0xd503_207f;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        suite.check("general/mmio-load", mmio_load);
        suite.check("general/mmio-store", mmio_store);
        suite.check("general/kernel-mmio", kernel_mmio);
        suite.check("general/hvc", hvc);
        suite.check("general/register-trap", register_trap);
        suite.check("general/page-fault", page_fault);
        suite.check("general/wfi", wfi);
        suite.check("fp", fp);
        suite.check("system", system);
        suite.check("stack-pointer-of-el0", stack_pointer);
        suite.check("all-cpus-at-once", all_cpus);
    }

    /// Executes an instruction and fails if a register outside `may_change` is another.
    fn kept(
        instruction: u32,
        regs: Regs,
        may_change: &[usize],
    ) -> Result<Regs, umbra_guests::suite::Failure> {
        let mut after = regs;
        clean!(exec(instruction, &mut after), "instruction");
        for n in 0..31 {
            if !may_change.contains(&n) {
                equal!(
                    after.x[n],
                    regs.x[n],
                    "register that had nothing to do with it"
                );
            }
        }
        equal!(after.nzcv, regs.nzcv, "NZCV");
        equal!(after.sp_moved, 0, "SP");
        Ok(after)
    }

    /// `ldrb wN, [xM]` from a device of the VMM, for every N.
    fn mmio_load() -> Verdict {
        mem::write8(uart::SCRATCH, 0xa5);
        for n in 0..31 {
            let base = (n + 7) % 31;
            let mut regs = Regs::pattern(n as u64 + 1);
            regs.x[base] = uart::SCRATCH;
            let after = kept(0x3940_0000 | (base << 5 | n) as u32, regs, &[n])?;
            equal!(after.x[n], 0xa5, "loaded");
        }
        PASS
    }

    /// `strb wN, [xM]`.
    fn mmio_store() -> Verdict {
        for n in 0..31 {
            let base = (n + 11) % 31;
            let mut regs = Regs::pattern(n as u64 + 3);
            regs.x[base] = uart::SCRATCH;
            kept(0x3900_0000 | (base << 5 | n) as u32, regs, &[])?;
            equal!(mem::read8(uart::SCRATCH), regs.x[n] & 0xff, "stored");
        }
        PASS
    }

    /// `ldr wN, [xM]` from the distributor, which the hypervisor answers itself.
    fn kernel_mmio() -> Verdict {
        let typer = mem::read32(gic::DIST + 4);
        for n in 0..31 {
            let base = (n + 13) % 31;
            let mut regs = Regs::pattern(n as u64 + 5);
            regs.x[base] = gic::DIST + 4;
            let after = kept(0xb940_0000 | (base << 5 | n) as u32, regs, &[n])?;
            equal!(after.x[n], typer, "loaded");
        }
        PASS
    }

    /// SMCCC 1.1 keeps x4 and up, known function or not.
    fn hvc() -> Verdict {
        for function in [psci::VERSION, 0x8000_0000, 0x8400_ffff, 0xc600_1234] {
            let mut regs = Regs::pattern(function);
            regs.x[0] = function;
            kept(HVC, regs, &[0, 1, 2, 3])?;
        }
        PASS
    }

    /// A trapped read writes its own register, of whichever number.
    fn register_trap() -> Verdict {
        let id = mrs!("id_aa64mmfr0_el1");
        for n in 0..31 {
            let regs = Regs::pattern(n as u64 + 9);
            let after = kept(exec::mrs(sys(3, 0, 0, 7, 0)) | n as u32, regs, &[n])?;
            equal!(after.x[n], id, "ID_AA64MMFR0_EL1");
        }
        // Register 31 is no register here: mrs xzr, and OSLAR_EL1 written from xzr.
        kept(exec::mrs(sys(3, 0, 0, 7, 0)) | 31, Regs::pattern(77), &[])?;
        kept(exec::msr(sys(2, 0, 1, 0, 4)) | 31, Regs::pattern(78), &[])?;
        PASS
    }

    fn page_fault() -> Verdict {
        for n in 0..31 {
            let base = (n + 3) % 31;
            let mut regs = Regs::pattern(n as u64 + 11);
            regs.x[base] = fresh(PAGE, PAGE);
            let after = kept(0xf940_0000 | (base << 5 | n) as u32, regs, &[n])?;
            equal!(after.x[n], 0, "loaded");
        }
        PASS
    }

    /// Sleeps until the virtual timer's interrupt is there, which stays masked.
    fn sleep(microseconds: u64) {
        gic::enable(gic::VIRTUAL_TIMER, 0x80);
        Timer::Virtual.start(umbra_guests::rt::timer::microseconds(microseconds));
    }

    fn wfi() -> Verdict {
        for n in 0..20 {
            sleep(1000);
            kept(WFI, Regs::pattern(n + 100), &[])?;
            Timer::Virtual.stop();
        }
        PASS
    }

    /// Exits of every kind, as a test of all else that must stay.
    fn exits() {
        mem::write8(uart::SCRATCH, 1);
        mem::read32(gic::DIST + 4);
        psci::hvc(psci::VERSION, [0; 3]);
        mrs!("id_aa64pfr0_el1");
        sleep(300);
        op!("wfi");
        Timer::Virtual.stop();
    }

    fn fp() -> Verdict {
        for seed in 1..20 {
            let mine = Fp::pattern(seed * 0x0123_4567_89ab_cdef);
            mine.load();
            exits();
            mem::write64(fresh(PAGE, PAGE), 1);
            let found = Fp::stored();
            let wrong = (0..32).filter(|n| found.q[*n] != mine.q[*n]).count();
            equal!(wrong, 0, "FP registers changed");
            equal!(found.fpcr, mine.fpcr, "FPCR");
            equal!(found.fpsr, mine.fpsr, "FPSR");
        }
        PASS
    }

    /// System registers that are the guest's to keep. What may not hold a pattern is masked.
    fn system() -> Verdict {
        macro_rules! keeps {
            ($($name:literal $mask:expr;)*) => {
                $(
                    let old = mrs!($name);
                    let pattern = 0x1122_3344_5566_7788_u64.rotate_left(line!() % 64) & $mask;
                    umbra_guests::msr!($name, pattern);
                    exits();
                    let found = mrs!($name) & $mask;
                    umbra_guests::msr!($name, old);
                    equal!(found, pattern, $name);
                )*
            };
        }
        keeps! {
            "tpidr_el0" u64::MAX;
            "tpidr_el1" u64::MAX;
            "tpidrro_el0" u64::MAX;
            "contextidr_el1" 0xffff_ffff;
            "ttbr1_el1" 0x0000_ffff_ffff_f000;
            "esr_el1" 0xffff_ffff;
            "far_el1" u64::MAX;
            "elr_el1" u64::MAX;
            "spsr_el1" 0xf000_0000;
            "afsr0_el1" 0;
            "par_el1" 0x0000_ffff_ffff_f000;
            "cntkctl_el1" 0x303;
            "csselr_el1" 0x2;
            "cntv_cval_el0" 0;
            "cntp_cval_el0" u64::MAX;
            "mdscr_el1" 0x1000;
        }
        if mrs!("id_aa64isar1_el1") >> 4 & 0xff != 0 {
            keeps! {
                "S3_0_C2_C1_0" u64::MAX;
                "S3_0_C2_C1_1" u64::MAX;
                "S3_0_C2_C2_2" u64::MAX;
            }
        }
        PASS
    }

    fn stack_pointer() -> Verdict {
        for value in [0x1230, 0xffff_ffff_ffff_fff0] {
            umbra_guests::msr!("sp_el0", value);
            exits();
            equal!(mrs!("sp_el0"), value, "SP_EL0");
        }
        PASS
    }

    static FOREIGN: AtomicU64 = AtomicU64::new(0);
    static ROUNDS: AtomicU64 = AtomicU64::new(0);

    /// One CPU's values must not turn up on another, whoever they share a real CPU with.
    fn own_values(seed: u64) {
        gic::init_cpu();
        for round in 0..60 {
            let value = seed << 32 | round;
            let mine = Fp::pattern(value.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            mine.load();
            umbra_guests::msr!("tpidr_el0", value);
            umbra_guests::msr!("tpidr_el1", !value);
            umbra_guests::msr!("contextidr_el1", value & 0xffff_ffff);
            exits();
            let same = Fp::stored() == mine
                && mrs!("tpidr_el0") == value
                && mrs!("tpidr_el1") == !value
                && mrs!("contextidr_el1") == value & 0xffff_ffff;
            if !same {
                FOREIGN.fetch_or(1 << cpu(), SeqCst);
            }
            ROUNDS.fetch_add(1, SeqCst);
        }
    }

    fn all_cpus() -> Verdict {
        for cpu in 1..smp::count() {
            equal!(smp::start(cpu).is_some_and(|s| s == 0), true, "CPU_ON");
        }
        for cpu in 1..smp::count() {
            smp::begin(cpu, own_values, cpu as u64 + 1);
        }
        own_values(1);
        for cpu in 1..smp::count() {
            ensure!(smp::wait(cpu), "no answer from CPU", cpu);
        }
        equal!(
            FOREIGN.load(SeqCst),
            0,
            "CPUs (as bits) that lost a register"
        );
        equal!(ROUNDS.load(SeqCst), 60 * smp::count(), "rounds");
        PASS
    }
}
