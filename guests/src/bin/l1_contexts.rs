//! Does each of many guests of a hypervisor see its own memory and registers, in turn and at once, with
//! and without a stage 2?
//! umbra-vmm: --nested --cpus 2 --memory 128M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_contexts);

#[cfg(target_os = "none")]
mod l1_contexts {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::fp::Fp;
    use umbra_guests::rt::l2::{self, Guest};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::smp;
    use umbra_guests::rt::stage2::{RAM, Stage2};
    use umbra_guests::suite::{Failure, PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal};

    const AT: u64 = 0x5000_0000;
    const COUNT: usize = 100;
    const MARK: u64 = 0x00c0_ffee_0000_0000;

    pub(super) fn run(suite: &mut Suite) {
        // Linux 7.3.4 has two contexts for each CPU, and a third costs it half a minute.
        let count = if has_arg("umbra") { COUNT } else { 2 };
        prepare(count);
        suite.check("in-turn", || in_turn(count));
        suite.check("registers-in-turn", || registers_in_turn(count));
        suite.check("many-vmids-one-table", || many_vmids(count));
        suite.check("stage-2-off", stage2_off);
        if has_arg("umbra") {
            suite.check("default-cacheable", default_cacheable);
        }
        suite.check("two-cpus-at-once", || at_once(count));
        suite.check("one-context-on-two-cpus", one_on_two);
    }

    static ROOTS: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];
    static PAGES: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];
    static CODE: AtomicU64 = AtomicU64::new(0);
    static LIMIT: AtomicU64 = AtomicU64::new(0);

    /// Spaces that map one page of program, shared, and one of data, each its own.
    fn prepare(count: usize) {
        let code = l2::program_page();
        CODE.store(code, SeqCst);
        LIMIT.store(count as u64, SeqCst);
        for n in 0..count {
            let space = Stage2::usual();
            space.map_page(l2::CODE, code);
            let page = fresh(PAGE, PAGE);
            mem::write64(page, MARK + n as u64);
            space.map_page(AT, page);
            ROOTS[n].store(space.root, SeqCst);
            PAGES[n].store(page, SeqCst);
        }
        guest(0).write_program(&[l2::LDR, 0xf900_0401]); // str x1, [x0, #8]
    }

    fn space(n: usize) -> Stage2 {
        Stage2 {
            root: ROOTS[n].load(SeqCst),
            ..Stage2::USUAL
        }
    }

    fn guest(n: usize) -> Guest {
        Guest::with_code(&space(n), n as u64 + 1, CODE.load(SeqCst))
    }

    /// The guest copies its own mark, and nobody else's.
    fn visit(n: usize) -> Verdict {
        let page = PAGES[n].load(SeqCst);
        mem::write64(page + 8, 0);
        let mut guest = guest(n);
        guest.x()[0] = AT;
        guest.set_pc(l2::CODE);
        let exit = guest.run();
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        equal!(guest.x()[1], MARK + n as u64, "what it reads");
        equal!(mem::read64(page + 8), MARK + n as u64, "what it wrote");
        PASS
    }

    fn in_turn(count: usize) -> Verdict {
        for round in 0..3 {
            for n in 0..count {
                // Forwards, backwards, and by leaps.
                let n = match round {
                    0 => n,
                    1 => count - 1 - n,
                    _ => n * 37 % count,
                };
                visit(n)?;
            }
        }
        PASS
    }

    /// Registers belong to the guest that has them, also FP, which the hypervisor switches here.
    fn registers_in_turn(count: usize) -> Verdict {
        let mut guests = [guest(0), guest(1)];
        for (n, guest) in (0u64..).zip(&mut guests) {
            guest.el1.tpidr_el1 = MARK + n;
            guest.el1.far = MARK + 16 + n;
            guest.el1.sp_el0 = MARK + 32 + n;
            guest.el1.contextidr = 48 + n;
            guest.x()[28] = MARK + 64 + n;
        }
        let fp = [Fp::pattern(1), Fp::pattern(2)];
        for turn in 0..20 {
            let n = turn % 2;
            let guest = &mut guests[n];
            fp[n].load();
            guest.x()[0] = AT;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
            ensure!(Fp::stored() == fp[n], "FP registers", turn);
            let n = n as u64;
            equal!(guest.el1.tpidr_el1, MARK + n, "TPIDR_EL1");
            equal!(guest.el1.far, MARK + 16 + n, "FAR_EL1");
            equal!(guest.el1.sp_el0, MARK + 32 + n, "SP_EL0");
            equal!(guest.el1.contextidr, 48 + n, "CONTEXTIDR_EL1");
            equal!(guest.x()[28], MARK + 64 + n, "x28");
            visit(turn % count)?;
        }
        PASS
    }

    fn many_vmids(count: usize) -> Verdict {
        let space = space(0);
        for vmid in 0..(count as u64) {
            let mut guest = Guest::with_code(&space, 255 - vmid, CODE.load(SeqCst));
            guest.x()[0] = AT;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
            equal!(guest.x()[1], MARK, "what it reads");
        }
        PASS
    }

    /// Without VM and DC a guest's physical addresses are the hypervisor's.
    fn stage2_off() -> Verdict {
        let code = CODE.load(SeqCst);
        for (n, page) in PAGES.iter().enumerate().take(2) {
            let page = page.load(SeqCst);
            let mut guest = guest(n);
            guest.hcr &= !l2::VM;
            guest.el1.vbar = code + 0x800;
            guest.set_pc(code);
            mem::write64(page + 8, 0);
            guest.x()[0] = page;
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
            equal!(guest.x()[1], MARK + n as u64, "what it reads");
            equal!(mem::read64(page + 8), MARK + n as u64, "what it wrote");
            // With a stage 2 again the same address is somewhere else, or nowhere.
            visit(n)?;
        }
        PASS
    }

    /// HCR_EL2.DC turns stage 1 off, makes memory normal, and implies VM.
    fn default_cacheable() -> Verdict {
        for n in 0..2 {
            let mut guest = guest(n);
            guest.hcr = guest.hcr & !l2::VM | l2::DC;
            // Tables that would fault everything, if stage 1 were on.
            guest.el1.sctlr |= 1;
            guest.el1.ttbr0 = 0;
            guest.x()[0] = AT;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
            equal!(guest.x()[1], MARK + n as u64, "what it reads");
            // Normal memory may be read at any address.
            guest.x()[0] = AT + 1;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::DONE), "not aligned: ESR", exit.esr);
            // What stage 2 does not map faults there.
            guest.x()[0] = AT + PAGE;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            equal!(exit.ec(), l2::EC_DATA, "class beside the page");
            equal!(exit.fsc(), 0x07, "status beside the page");
        }
        PASS
    }

    static WRONG: AtomicU64 = AtomicU64::new(0);
    static VISITS: AtomicU64 = AtomicU64::new(0);

    fn odd_ones(rounds: u64) {
        let count = LIMIT.load(SeqCst) as usize;
        for _ in 0..rounds {
            for n in (1..count).step_by(2) {
                if let Err(Failure { got, .. }) = visit(n) {
                    WRONG.store(got.max(1), SeqCst);
                }
                VISITS.fetch_add(1, SeqCst);
            }
        }
    }

    fn ready() {
        if smp::started() == 0 {
            assert!(smp::start(1) == Some(0), "CPU 1 does not start");
        }
    }

    fn at_once(count: usize) -> Verdict {
        ready();
        smp::begin(1, odd_ones, 5);
        for _ in 0..5 {
            for n in (0..count).step_by(2) {
                visit(n)?;
            }
        }
        ensure!(
            smp::wait(1),
            "CPU 1 does not come back",
            VISITS.load(SeqCst)
        );
        equal!(WRONG.load(SeqCst), 0, "what CPU 1 found");
        ensure!(VISITS.load(SeqCst) > 0, "visits of CPU 1", 0);
        PASS
    }

    fn counter(rounds: u64) {
        for _ in 0..rounds {
            let mut guest = guest(0);
            guest.x()[0] = AT;
            guest.x()[4] = 100;
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            if !exit.is_hvc(l2::DONE) {
                WRONG.store(exit.esr, SeqCst);
            }
        }
    }

    /// Two CPUs in one context add to one word by exclusives.
    fn one_on_two() -> Verdict {
        ready();
        // add: ldaxr x1, [x0]; add x1, x1, #1; stlxr w2, x1, [x0]; cbnz w2, add; subs x4, x4, #1; b.ne add
        let program = [
            0xc85f_fc01,
            0x9100_0421,
            0xc802_fc01,
            0x35ff_ffa2,
            0xf100_0484,
            0x54ff_ff61,
        ];
        // Exclusives want normal memory: stage 1 off makes it a device's, DC does not.
        let page = PAGES[0].load(SeqCst);
        let mut one = guest(0);
        one.hcr |= l2::DC;
        one.write_program(&program);
        mem::write64(page, 0);
        smp::begin(1, counter, 20);
        counter(20);
        ensure!(smp::wait(1), "CPU 1 does not come back", 0);
        equal!(WRONG.load(SeqCst), 0, "an exit with ESR");
        equal!(mem::read64(page), 4000, "sum");
        equal!(
            mem::read64(space(0).descriptor(AT, 3)),
            page | RAM | 3,
            "descriptor"
        );
        PASS
    }
}
