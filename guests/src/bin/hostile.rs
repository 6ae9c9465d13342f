//! Does a guest that does everything wrong hurt only itself, and get the architecture's own answer?
//! umbra-vmm: --cpus 2 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(hostile);

#[cfg(target_os = "none")]
mod hostile {
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::mmu::{self, NORMAL};
    use umbra_guests::rt::{expect, gic, psci, smp, uart};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{ensure, equal, faults, mrs, op};

    const UNDEF: u64 = 0;
    const TRAP: u64 = 0x18;
    const ILLEGAL_STATE: u64 = 0x0e;
    const FETCH_ABORT: u64 = 0x21;
    const PC_ALIGNMENT: u64 = 0x22;
    const SP_ALIGNMENT: u64 = 0x26;
    const HOLE: u64 = 0x0b00_0000;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        suite.check("jump-to-nowhere", jump_to_nowhere);
        suite.check("misaligned-pc", misaligned_pc);
        suite.check("misaligned-sp", misaligned_sp);
        suite.check("illegal-return", illegal_return);
        suite.check("undefined-instructions", undefined_instructions);
        suite.check("calls", calls);
        suite.check("secure-calls", secure_calls);
        suite.check("calls-with-immediates", calls_with_immediates);
        suite.check("firmware-arguments", firmware_arguments);
        suite.check("hole-hammering", hole_hammering);
        suite.check("sleep-with-interrupt", sleep_with_interrupt);
        suite.check("system-instructions", system_instructions);
        suite.check("debug-registers", || noise(2));
        suite.check("system-registers", || noise(3));
        suite.check("distributor-noise", || device_noise(gic::DIST, 0x1_0000));
        suite.check("redistributor-noise", || {
            device_noise(gic::REDIST, 0x1_0000)?;
            device_noise(gic::REDIST + 0x1_0000, 0x1_0000)
        });
        suite.check("no-syndrome-hammering", no_syndrome_hammering);
        suite.check("goes-on", goes_on);
    }

    /// A number for the n-th try; the same in each run.
    fn random(n: u64) -> u64 {
        let x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ x >> 29
    }

    fn jump_to_nowhere() -> Verdict {
        let unmapped = mmu::window();
        let fault = faults!(expect(|| mem::call(unmapped, 0)), FETCH_ABORT, "unmapped");
        equal!(fault.fsc(), 0x5, "FSC");
        let fault = faults!(
            expect(|| mem::call(0xffff_ffff_ffff_fff0, 0)),
            FETCH_ABORT,
            "upper half"
        );
        ensure!((0x4..0x8).contains(&fault.fsc()), "FSC", fault.fsc());
        let fault = faults!(
            expect(|| mem::call(0x00ff_0000_0000_0000, 0)),
            FETCH_ABORT,
            "no address"
        );
        ensure!((0x4..0x8).contains(&fault.fsc()), "FSC", fault.fsc());
        let hole = mmu::map_new(HOLE, NORMAL);
        for _ in 0..100 {
            let fault = faults!(expect(|| mem::call(hole, 0)), FETCH_ABORT, "hole");
            equal!(fault.fsc(), 0x10, "FSC");
        }
        PASS
    }

    fn misaligned_pc() -> Verdict {
        for offset in 1..4 {
            let at = mem::RAM + (2 << 20) + offset;
            let fault = faults!(expect(|| mem::call(at, 0)), PC_ALIGNMENT, "branch");
            equal!(fault.far, at, "FAR");
        }
        PASS
    }

    fn misaligned_sp() -> Verdict {
        let page = fresh(PAGE, PAGE);
        for offset in [1, 4, 8] {
            // QEMU 10.0 does not check the alignment of SP.
            if let Some(fault) = expect(|| exec::load_by_stack_pointer(page + offset)) {
                equal!(fault.ec(), SP_ALIGNMENT, "class");
            }
        }
        PASS
    }

    /// To EL2, EL3, and to modes that do not exist: still EL1, with PSTATE.IL.
    fn illegal_return() -> Verdict {
        for mode in [0x8, 0x9, 0xc, 0xd, 0x1, 0x2, 0x6, 0x1a, 0x1f] {
            let fault = expect(|| exec::exception_return(0x3c0 | mode));
            faults!(fault, ILLEGAL_STATE, "return");
            equal!(mrs!("CurrentEL") >> 2, 1, "CurrentEL");
        }
        PASS
    }

    fn undefined_instructions() -> Verdict {
        // udf #0, udf #0xffff, cntb x0 of SVE, smstart of SME
        for instruction in [0, 0xffff, 0x0420_e3e0, 0xd503_477f] {
            let mut regs = Regs::pattern(1);
            let fault = exec(instruction, &mut regs);
            let fault = faults!(fault, UNDEF, "instruction of a hidden feature");
            ensure!(fault.esr >> 25 & 1 == 1, "ESR", fault.esr);
        }
        PASS
    }

    /// Whether calling this would end, stop or start something.
    fn is_psci(function: u64) -> bool {
        matches!(function as u32 & !0x4000_001f, 0x8400_0000)
    }

    /// -1 in a register of 32 or 64 bits, or something the firmware has.
    fn calls() -> Verdict {
        let mut refused = 0u64;
        for n in 0..2000 {
            let (a, b) = (random(2 * n), random(2 * n + 1));
            // Every owner, few numbers; or any number at all.
            let function = match n % 2 {
                0 => 0x8000_0000 | a & 0x7f00_003f,
                _ => a & 0xffff_ffff,
            };
            if is_psci(function) {
                continue;
            }
            let x0 = psci::hvc(function, [b, b >> 7, b << 9])[0];
            refused += u64::from(x0 as u32 == u32::MAX);
        }
        ensure!(refused > 1000, "calls refused", refused);
        PASS
    }

    /// SMC is trapped or undefined, as the host has it; it never leaves the VM.
    fn secure_calls() -> Verdict {
        for n in 0..200 {
            let function = 0x8000_0000 | random(n) & 0x7f00_ffff;
            if is_psci(function) {
                continue;
            }
            let fault = expect(|| psci::smc(function, [n, n, n]));
            if let Some(fault) = fault {
                equal!(fault.ec(), UNDEF, "class");
            }
        }
        PASS
    }

    fn calls_with_immediates() -> Verdict {
        for immediate in [1, 0x1234, 0xffff] {
            let mut regs = Regs::pattern(2);
            regs.x[0] = 0x8400_ffff;
            // hvc #immediate
            if let Some(fault) = exec(0xd400_0002 | immediate << 5, &mut regs) {
                equal!(fault.ec(), UNDEF, "class");
            }
        }
        PASS
    }

    /// Real functions with arguments that make no sense: an error, and nothing started.
    fn firmware_arguments() -> Verdict {
        for n in 0..200 {
            // Bits that are no affinity, or an affinity nobody has.
            let target = random(n) | 0x0000_0001_0000_0000;
            let on = psci::call(psci::CPU_ON, [target, random(n + 1), 0]);
            equal!(on, psci::INVALID_PARAMETERS, "CPU_ON of nobody");
            let info = psci::call(psci::AFFINITY_INFO, [target, random(n) & 0xff, 0]);
            ensure!(info < 0, "AFFINITY_INFO of nobody", info);
            psci::call(psci::FEATURES, [random(n), random(n + 1), 0]);
        }
        equal!(smp::started(), 0, "CPUs started");
        PASS
    }

    fn hole_hammering() -> Verdict {
        for n in 0..5_000 {
            let at = HOLE + (random(n) & 0xf_fff8);
            mem::write32(at, n as u32);
            equal!(mem::read32(at), 0, "what a hole reads as");
        }
        PASS
    }

    fn sleep_with_interrupt() -> Verdict {
        gic::enable(7, 0x80);
        gic::send_sgi(7, 1);
        (0..200).for_each(|_| op!("wfi"));
        equal!(gic::acknowledge(), 7, "acknowledged");
        gic::end(7);
        PASS
    }

    /// op0 1: cache, TLB and address translation operations, on a page that is there.
    fn system_instructions() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let (mut done, mut undefined) = (0u64, 0u64);
        for encoding in sys(1, 0, 0, 0, 0)..sys(2, 0, 0, 0, 0) {
            let mut regs = Regs::pattern(u64::from(encoding));
            regs.x[0] = page;
            match exec(exec::msr(encoding), &mut regs) {
                None => done += 1,
                Some(fault) if fault.ec() == UNDEF => undefined += 1,
                Some(fault) => ensure!(false, "ESR", fault.esr),
            }
        }
        ensure!(done > 20, "operations done", done);
        ensure!(undefined > 1000, "operations undefined", undefined);
        PASS
    }

    /// Registers whose noise would end the payload itself, not the machine.
    fn is_own(encoding: u32) -> bool {
        let (op1, crn) = (encoding >> 11 & 7, encoding >> 7 & 0xf);
        let (crm, op2) = (encoding >> 3 & 0xf, encoding & 7);
        matches!(
            (encoding >> 14, op1, crn, crm, op2),
            // SCTLR, SCTLR2; TTBR0, TCR, TCR2; SPSel; MAIR and its kin; VBAR; DAIF.
            (3, 0, 1, 0, 0 | 3)
                | (3, 0, 2, 0, 0 | 2 | 3)
                | (3, 0, 4, 2, 0)
                | (3, 0, 10, 2, _)
                | (3, 0, 12, 0, 0)
                | (3, 3, 4, 2, 1)
        )
    }

    /// Reads here, if undefined, may say so as a trapped register's (FEAT_IDST).
    fn is_id(encoding: u32) -> bool {
        encoding >> 14 == 3 && encoding >> 7 & 0xf == 0
    }

    /// Reads every register of one op0, writes noise to it, and puts back what was there.
    fn noise(op0: u32) -> Verdict {
        let (mut read, mut written, mut undefined) = (0u64, 0u64, 0u64);
        for encoding in sys(op0, 0, 0, 0, 0)..sys(op0, 7, 15, 15, 7) + 1 {
            let mut regs = Regs::pattern(u64::from(encoding));
            let fault = exec(exec::mrs(encoding), &mut regs);
            let old = match fault {
                None => Some(regs.x[0]),
                Some(fault) => {
                    let known = fault.ec() == UNDEF || is_id(encoding) && fault.ec() == TRAP;
                    ensure!(known, "read: ESR", fault.esr);
                    undefined += 1;
                    None
                }
            };
            read += u64::from(old.is_some());
            if is_own(encoding) {
                continue;
            }
            regs.x[0] = random(encoding.into());
            match exec(exec::msr(encoding), &mut regs) {
                None => {
                    written += 1;
                    regs.x[0] = old.unwrap_or(0);
                    exec(exec::msr(encoding), &mut regs);
                }
                Some(fault) => ensure!(fault.ec() == UNDEF, "write: ESR", fault.esr),
            }
        }
        ensure!(read > 10, "registers read", read);
        ensure!(written > 10, "registers written", written);
        ensure!(undefined > 1000, "registers undefined", undefined);
        gic::forget_all();
        goes_on()
    }

    /// Noise to a device of the hypervisor's own, by accesses of every size, and then order again.
    fn device_noise(base: u64, size: u64) -> Verdict {
        for n in (0..size).step_by(4) {
            // All of the first 4 KiB, and a part of the rest.
            if n >= 0x1000 && n % 0x3c != 0 {
                continue;
            }
            let value = random(n);
            let probe = || match value % 4 {
                0 => {
                    mem::read8(base + n);
                    mem::write8(base + n, value as u8);
                }
                1 => {
                    mem::read16(base + n);
                    mem::write16(base + n, value as u16);
                }
                2 => {
                    mem::read64(base + n / 8 * 8);
                    mem::write64(base + n / 8 * 8, value);
                }
                _ => {
                    mem::read32(base + n);
                    mem::write32(base + n, value as u32);
                }
            };
            if let Some(fault) = expect(probe) {
                equal!(fault.ec(), 0x25, "class");
            }
        }
        gic::init_distributor();
        gic::forget_all();
        goes_on()
    }

    fn no_syndrome_hammering() -> Verdict {
        if !has_arg("umbra") {
            return skip("Linux ends the VM (ENOSYS)");
        }
        for n in 0..500 {
            let mut regs = Regs::pattern(n);
            regs.x[1] = HOLE + (random(n) & 0xf_fff0);
            // ldp x2, x3, [x1], #16
            let fault = faults!(exec(0xa8c1_0c22, &mut regs), 0x25, "ldp");
            equal!(fault.fsc(), 0x10, "FSC");
        }
        PASS
    }

    fn goes_on() -> Verdict {
        gic::enable(7, 0x80);
        gic::send_sgi(7, 1);
        equal!(gic::acknowledge(), 7, "acknowledged");
        gic::end(7);
        mem::write8(uart::SCRATCH, 0x42);
        equal!(mem::read8(uart::SCRATCH), 0x42, "scratch register");
        let page = fresh(PAGE, PAGE);
        mem::write64(page, 7);
        equal!(mem::read64(page), 7, "memory");
        ensure!(psci::call(psci::VERSION, [0; 3]) > 0, "PSCI_VERSION", 0);
        PASS
    }
}
