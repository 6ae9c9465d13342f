//! Does a hypervisor that fills its registers, tables of registers and aliases with noise, on two CPUs,
//! hurt only itself?
//! umbra-vmm: --nested --cpus 2 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_registers);

#[cfg(target_os = "none")]
mod l1_registers {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::l2::{self, Guest, Home};
    use umbra_guests::rt::timer::{self, Timer};
    use umbra_guests::rt::{cpu, gic, psci, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal, mrs, msr};

    const UNDEF: u64 = 0;
    const HYP_PHYSICAL: u32 = 26;
    const ROUNDS: u64 = 60;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        suite.check("every-encoding-can-be-read", every_read);
        suite.check("what-is-written-is-kept", kept);
        suite.check("fixed-values", fixed);
        suite.check("noise", || noise(ROUNDS));
        assert!(smp::start(1) == Some(0), "CPU 1 does not start");
        suite.check("noise-on-two-cpus", noise_on_two);
        suite.check("noise-below", noise_below);
        suite.check("goes-on", goes_on);
    }

    static HOME: Home = Home::new();
    static STRANGE: AtomicU64 = AtomicU64::new(0);

    fn guest() -> Guest {
        HOME.guest(1 + cpu() as u64).1
    }

    static ROUND: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

    /// Where this CPU is: round, and 0 before, 1 in, 2 after its guest.
    fn note(step: u64) {
        ROUND[cpu() & 1].store(step, SeqCst);
    }

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    /// Encodings of EL2 (op1 4), of EL1 by its other names (op1 5), and the unused op1 6.
    fn encodings() -> impl Iterator<Item = u32> {
        (4..7).flat_map(|op1| {
            (1..16).flat_map(move |crn| {
                (0..16).flat_map(move |crm| (0..8).map(move |op2| sys(3, op1, crn, crm, op2)))
            })
        })
    }

    /// Each gives a value or is undefined: nothing else, and nobody above hears of it.
    fn every_read() -> Verdict {
        let mut there = 0;
        for encoding in encodings() {
            let mut regs = Regs::pattern(1);
            match exec(exec::mrs(encoding), &mut regs) {
                None => there += 1,
                Some(fault) => {
                    ensure!(fault.ec() == UNDEF, "class of a read", encoding);
                    equal!(
                        regs.x[0],
                        Regs::pattern(1).x[0],
                        "x0 after an undefined read"
                    );
                }
            }
            equal!(mrs!("CurrentEL") >> 2, 2, "CurrentEL");
        }
        ensure!(there > 60, "registers that can be read", there);
        PASS
    }

    /// EL2's registers without a meaning for EL2 itself keep what their fields can hold.
    fn kept() -> Verdict {
        macro_rules! keeps {
            ($($name:literal $mask:literal)*) => {$(
                let before = mrs!($name);
                for value in [0x5555_5555_5555_5555u64, 0xaaaa_aaaa_aaaa_aaaa, 0] {
                    msr!($name, value & $mask);
                    equal!(mrs!($name), value & $mask, $name);
                }
                msr!($name, before);
            )*};
        }
        keeps!("tpidr_el2" 0xffff_ffff_ffff_ffffu64 "vttbr_el2" 0x00ff_0000_ffff_f000u64
            "vmpidr_el2" 0x8000_0000u64 "cntvoff_el2" 0xffff_ffff_ffff_ffffu64
            "far_el2" 0xffff_ffff_ffff_ffffu64 "hpfar_el2" 0xffff_fff0u64
            "elr_el2" 0xffff_ffff_ffff_fffcu64 "esr_el2" 0xffff_ffffu64
            "S3_5_C2_C0_0" 0x0000_ffff_ffff_f000u64 "S3_5_C6_C0_0" 0xffff_ffff_ffff_ffffu64
            "S3_5_C12_C0_0" 0xffff_ffff_ffff_f800u64 "S3_5_C13_C0_1" 0xffff_ffffu64
            "S3_4_C12_C12_0" 0x3000_0000_0000_0000u64 "sp_el1" 0xffff_ffff_ffff_ffffu64);
        PASS
    }

    fn fixed() -> Verdict {
        equal!(mrs!("hcr_el2") >> 34 & 1, 1, "HCR_EL2.E2H");
        let sre = mrs!("S3_4_C12_C9_5");
        equal!(sre & 1, 1, "ICC_SRE_EL2.SRE");
        msr!("S3_4_C12_C9_5", 0);
        equal!(mrs!("S3_4_C12_C9_5"), sre, "ICC_SRE_EL2 after a write");
        // SPSR_irq, _abt, _und and _fiq are of AArch32's modes.
        for op2 in 0..4 {
            let mut regs = Regs::pattern(1);
            let spsr = sys(3, 4, 4, 3, op2);
            ensure!(
                exec(exec::msr(spsr), &mut regs).is_none(),
                "write to SPSR_<mode>",
                op2
            );
            ensure!(
                exec(exec::mrs(spsr), &mut regs).is_none(),
                "read of SPSR_<mode>",
                op2
            );
            equal!(regs.x[0], 0, "SPSR_<mode>");
        }
        let vtr = mrs!("S3_4_C12_C11_1");
        ensure!(vtr & 0x1f < 16, "ICH_VTR_EL2.ListRegs", vtr);
        let mut regs = Regs::pattern(1);
        let read_only = sys(3, 4, 12, 11, 1);
        let fault = exec(exec::msr(read_only), &mut regs);
        ensure!(
            fault.is_some_and(|f| f.ec() == UNDEF),
            "write to ICH_VTR_EL2",
            read_only
        );
        PASS
    }

    /// Registers that this program itself stands on: its translation, vectors, exception state, stack, and
    /// its own timer and routing.
    fn is_mine(encoding: u32) -> bool {
        let (op1, crn, crm) = (encoding >> 11 & 7, encoding >> 7 & 0xf, encoding >> 3 & 0xf);
        if op1 != 4 {
            return false;
        }
        matches!(
            (crn, crm),
            (1, 0) | (2, 0) | (4, _) | (5, 2) | (10, _) | (12, 0) | (14, 2 | 3)
        ) || encoding == sys(3, 4, 1, 1, 0)
    }

    /// Noise into every register but those, then in and out of a guest, and all back.
    fn noise(rounds: u64) -> Verdict {
        let mut random = Random(0x0123_4567_89ab_cdef ^ (cpu() as u64) << 17);
        gic::enable(HYP_PHYSICAL, 0x80);
        for round in 0..rounds {
            note(round << 8);
            let mut before = [(0u32, 0u64); 256];
            let mut count = 0;
            let one_by_one = random.next();
            for encoding in encodings().filter(|&e| !is_mine(e)) {
                // A different part each time, or a round takes long.
                if (u64::from(encoding) ^ one_by_one) & 7 != 0 {
                    continue;
                }
                let mut regs = Regs::pattern(1);
                if exec(exec::mrs(encoding), &mut regs).is_some() {
                    continue;
                }
                if count < before.len() {
                    before[count] = (encoding, regs.x[0]);
                    count += 1;
                }
                regs.x[0] = random.next();
                // Undefined is an answer too.
                let _ = exec(exec::msr(encoding), &mut regs);
            }
            let mut guest = guest();
            guest.hcr = random.next() & !l2::TGE | l2::E2H | l2::RW | l2::INTERRUPTS;
            if random.next() & 3 != 0 {
                guest.hcr |= l2::VM;
            }
            guest.vtcr = if random.next() & 1 == 0 {
                random.next()
            } else {
                guest.vtcr
            };
            guest.el1.sctlr = random.next();
            guest.el1.tcr = random.next();
            guest.el1.vbar = random.next();
            guest.el1.spsr = random.next();
            guest.set_pc(l2::CODE);
            // Whatever it does, time ends it.
            msr!("S3_4_C14_C1_0", mrs!("S3_4_C14_C1_0") | 3 << 10);
            Timer::Physical.start(timer::microseconds(300));
            note(round << 8 | 1);
            let exit = guest.run();
            note(round << 8 | 2);
            Timer::Physical.stop();
            let known = [0x400, 0x480, 0x500, 0x580];
            ensure!(known.contains(&exit.vector), "vector", exit.vector);
            for &(encoding, value) in &before[..count] {
                let mut regs = Regs::pattern(1);
                regs.x[0] = value;
                let _ = exec(exec::msr(encoding), &mut regs);
            }
            msr!("S3_4_C12_C11_0", 0);
        }
        PASS
    }

    fn other(rounds: u64) {
        gic::init_cpu();
        if let Err(failure) = noise(rounds) {
            STRANGE.store(failure.got.max(1), SeqCst);
        }
    }

    fn noise_on_two() -> Verdict {
        smp::begin(1, other, ROUNDS / 2);
        noise(ROUNDS / 2)?;
        let end = timer::now() + timer::microseconds(20_000_000);
        while timer::now() < end && !smp::wait(1) {}
        let round = ROUND[1].load(SeqCst);
        ensure!(
            smp::wait(1),
            "CPU 1 does not come back, round and step",
            round
        );
        equal!(STRANGE.load(SeqCst), 0, "what CPU 1 found");
        PASS
    }

    /// A guest that reads and writes everything: it ends with an exit of its own or by time.
    fn noise_below() -> Verdict {
        let mut random = Random(0x7654_3210_fedc_ba98);
        let mut guest = guest();
        for n in 0..1500u32 {
            let (op0, op1) = (2 + (n & 1), random.next() as u32 & 7);
            let encoding = sys(
                op0,
                op1,
                random.next() as u32 & 0xf,
                random.next() as u32 & 0xf,
                random.next() as u32 & 7,
            );
            guest.el1 = guest_el1();
            guest.set_pstate(if n & 2 == 0 { l2::EL1H } else { l2::EL0T });
            guest.x()[0] = random.next();
            let word = if n & 4 == 0 {
                exec::mrs(encoding)
            } else {
                exec::msr(encoding)
            };
            Timer::Physical.start(timer::microseconds(2000));
            let exit = guest.execute(&[word]);
            Timer::Physical.stop();
            let known = [0x400, 0x480, 0x580];
            ensure!(known.contains(&exit.vector), "vector", exit.vector);
        }
        PASS
    }

    fn guest_el1() -> l2::El1 {
        guest().el1
    }

    /// After all that a guest runs as ever, and the firmware answers.
    fn goes_on() -> Verdict {
        let mut guest = guest();
        msr!("cnthctl_el2", mrs!("cnthctl_el2") | 3 << 10);
        let exit = guest.execute(&[l2::NOP]);
        ensure!(exit.is_hvc(l2::DONE), "exit: ESR", exit.esr);
        ensure!(
            psci::call(psci::VERSION, [0; 3]) >= 0x1_0000,
            "PSCI_VERSION",
            0
        );
        PASS
    }
}
