//! Do hypervisors and their guests keep all they have while the host moves them between its CPUs?
//! umbra-vmm: --nested --cpus 4 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_migrate);

#[cfg(target_os = "none")]
mod l1_migrate {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::fp::Fp;
    use umbra_guests::rt::l2::{self, El1, Guest, hvc};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::stage2::Stage2;
    use umbra_guests::rt::{MAX_CPUS, cpu, smp, timer};
    use umbra_guests::suite::{Failure, PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal, mrs, msr};

    const AT: u64 = 0x5000_0000;
    const TURNS: u64 = 60;

    pub(super) fn run(suite: &mut Suite) {
        for cpu in 1..smp::count() {
            assert!(smp::start(cpu) == Some(0), "CPU {cpu} does not start");
        }
        for n in 0..smp::count() {
            let space = Stage2::usual();
            let code = l2::program_page();
            space.map_page(l2::CODE, code);
            space.map_page(AT, fresh(PAGE, PAGE));
            ROOTS[n].store(space.root, SeqCst);
            CODES[n].store(code, SeqCst);
        }
        suite.check("more-hypervisors-than-cpus", || everywhere(false));
        suite.check("one-context-for-all", || everywhere(true));
    }

    static ROOTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
    static CODES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
    static DONE: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    static SHARED: AtomicU64 = AtomicU64::new(0);

    /// Spins x4 times, then says so; every register else stays.
    const PROGRAM: [u32; 3] = [
        0xf100_0484, // subs x4, x4, #1
        0x54ff_ffe1, // b.ne 0
        hvc(0),
    ];

    fn mark(turn: u64) -> u64 {
        (cpu() as u64 + 1) << 56 | turn << 16
    }

    fn turn(guest: &mut Guest, turn: u64) -> Verdict {
        let mark = mark(turn);
        let mine = Fp::pattern(mark);
        let want = El1 {
            sctlr: l2::SCTLR_OFF,
            cpacr: 3 << 20,
            vbar: l2::VECTORS,
            far: mark | 1,
            elr: mark | 4,
            sp_el0: mark | 0x20,
            sp_el1: mark | 0x30,
            tpidr_el0: mark | 5,
            tpidr_el1: mark | 6,
            tpidrro_el0: mark | 7,
            contextidr: turn,
            ..El1::ZERO
        };
        msr!("tpidr_el2", mark | 9);
        guest.el1 = want;
        for (n, x) in (0u64..).zip(guest.x()) {
            *x = mark | n;
        }
        guest.x()[4] = 3000 + turn * 50;
        guest.set_pc(l2::CODE);
        guest.set_pstate(l2::EL1H);
        mine.load();
        let exit = guest.run();
        ensure!(exit.is_hvc(l2::DONE), "exit: ESR", exit.esr);
        ensure!(Fp::stored() == mine, "FP registers, turn", turn);
        equal!(mrs!("tpidr_el2"), mark | 9, "TPIDR_EL2");
        let (mut got, mut n) = ([0; 22], 0);
        guest.el1.each(|_, value| {
            got[n] = value;
            n += 1;
        });
        let (mut wrong, mut n) = (None, 0);
        want.each(|name, value| {
            if got[n] != value {
                wrong = Some((name, got[n], value));
            }
            n += 1;
        });
        if let Some((what, got, want)) = wrong {
            let want = Some(want);
            return Err(Failure { what, got, want });
        }
        for (n, x) in (0u64..).zip(*guest.x()) {
            if n != 4 {
                equal!(x, mark | n, "a general register");
            }
        }
        PASS
    }

    fn turns(_: u64) {
        let at = if SHARED.load(SeqCst) != 0 { 0 } else { cpu() };
        let root = ROOTS[at].load(SeqCst);
        let space = Stage2 {
            root,
            ..Stage2::USUAL
        };
        let vmid = at as u64 + 1;
        let mut guest = Guest::with_code(&space, vmid, CODES[at].load(SeqCst));
        for n in 0..TURNS {
            if let Err(failure) = turn(&mut guest, n) {
                umbra_guests::println!("cpu {}: {failure}", cpu());
                WRONG.fetch_add(1, SeqCst);
                break;
            }
            // The hypervisor's own time, in which it may be moved too.
            let mark = mark(n);
            msr!("tpidr_el1", mark);
            let end = timer::now() + timer::microseconds(200);
            while timer::now() < end {
                core::hint::spin_loop();
            }
            if mrs!("tpidr_el1") != mark {
                WRONG.fetch_add(1 << 32, SeqCst);
            }
        }
        DONE.fetch_add(1, SeqCst);
    }

    fn everywhere(shared: bool) -> Verdict {
        DONE.store(0, SeqCst);
        SHARED.store(shared.into(), SeqCst);
        let count = smp::count();
        for code in CODES.iter().take(count) {
            let code = code.load(SeqCst);
            for (at, word) in (code..).step_by(4).zip(PROGRAM) {
                mem::write32(at, word);
            }
            mem::sync_code(code, 12);
        }
        for cpu in 1..count {
            smp::begin(cpu, turns, 0);
        }
        turns(0);
        let all = timer::wait_for(20_000, || DONE.load(SeqCst) == count as u64);
        ensure!(all, "CPUs that came back", DONE.load(SeqCst));
        for cpu in 1..count {
            ensure!(smp::wait(cpu), "CPU does not take jobs", cpu);
        }
        equal!(WRONG.load(SeqCst), 0, "turns that found something else");
        PASS
    }
}
