//! Do several CPUs start, stop, wake each other and see the same memory?
//! umbra-vmm: --cpus 2 --memory 64M,hugepages=off --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(smp);

#[cfg(target_os = "none")]
mod smp {
    use core::sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    };
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::mmu::{self, NORMAL, PAGE_OR_TABLE};
    use umbra_guests::rt::timer::wait_for;
    use umbra_guests::rt::{cpu, expect, gic, irq, psci, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{ensure, equal, op};

    /// AFFINITY_INFO of a CPU that is on, or off.
    const ON: i32 = 0;
    const OFF: i32 = 1;
    /// `ret`, and `mov x0, #value`.
    const RET: u32 = 0xd65f_03c0;
    const MOV_X0: u32 = 0xd280_0000;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        suite.check("refused-starts", refused_starts);
        suite.check("affinity-before", || affinity(OFF));
        suite.check("start", start);
        suite.check("affinity-after", || affinity(ON));
        suite.check("start-again", start_again);
        suite.check("entry-state", entry_state);
        suite.check("stop-and-start", stop_and_start);
        suite.check("ping-pong", ping_pong);
        suite.check("interrupt-of-a-busy-cpu", interrupt_of_a_busy_cpu);
        suite.check("messages", messages);
        suite.check("lock", lock);
        suite.check("exclusive-sum", || sum(add_exclusive));
        suite.check("atomic-sum", || sum(add_atomic));
        suite.check("same-fresh-pages", same_fresh_pages);
        suite.check("same-fresh-tables", same_fresh_tables);
        suite.check("remapping-seen-by-all", remapping);
        suite.check("new-code-seen-by-all", new_code);
    }

    fn affinity_info(cpu: u64) -> i32 {
        psci::call(psci::AFFINITY_INFO, [cpu, 0, 0])
    }

    fn refused_starts() -> Verdict {
        let on = |cpu: u64| psci::call(psci::CPU_ON, [cpu, smp::entry(), cpu]);
        equal!(on(0), psci::ALREADY_ON, "CPU_ON of this CPU");
        equal!(on(200), psci::INVALID_PARAMETERS, "CPU_ON of no CPU");
        equal!(
            on(1 << 32),
            psci::INVALID_PARAMETERS,
            "CPU_ON in no cluster"
        );
        equal!(
            affinity_info(200),
            psci::INVALID_PARAMETERS,
            "AFFINITY_INFO of no CPU"
        );
        PASS
    }

    fn affinity(want: i32) -> Verdict {
        equal!(affinity_info(0), ON, "AFFINITY_INFO of this CPU");
        for cpu in 1..smp::count() {
            equal!(affinity_info(cpu as u64), want, "AFFINITY_INFO");
        }
        PASS
    }

    fn start() -> Verdict {
        for cpu in 1..smp::count() {
            let status = smp::start(cpu);
            ensure!(status.is_some(), "never came: CPU", cpu);
            equal!(status.unwrap_or(-9), psci::SUCCESS, "CPU_ON");
        }
        PASS
    }

    fn start_again() -> Verdict {
        for cpu in 1..smp::count() as u64 {
            let status = psci::call(psci::CPU_ON, [cpu, smp::entry(), cpu]);
            equal!(status, psci::ALREADY_ON, "CPU_ON");
        }
        PASS
    }

    /// EL1, MMU off, DAIF masked (PSCI 6.4.3).
    fn entry_state() -> Verdict {
        for cpu in 1..smp::count() {
            equal!(smp::entry_state(cpu), 1 << 2 | 0xf << 6, "state at entry");
        }
        PASS
    }

    static REFUSED: AtomicU64 = AtomicU64::new(0);

    fn stop_and_start() -> Verdict {
        for _ in 0..20 {
            for cpu in 1..smp::count() {
                smp::begin(cpu, |_| REFUSED.store(smp::off() as u64, SeqCst), 0);
            }
            for cpu in 1..smp::count() {
                let off = wait_for(5000, || affinity_info(cpu as u64) == OFF);
                ensure!(off, "still on: CPU", cpu);
            }
            for cpu in 1..smp::count() {
                equal!(smp::start(cpu).unwrap_or(-9), psci::SUCCESS, "CPU_ON");
            }
        }
        equal!(REFUSED.load(SeqCst), 0, "CPU_OFF came back with");
        entry_state()
    }

    const ROUNDS: u64 = 1000;

    /// Waits for an SGI, asleep, and takes it.
    fn take() -> u32 {
        loop {
            let intid = gic::acknowledge();
            if intid != irq::SPURIOUS {
                gic::end(intid);
                return intid;
            }
            op!("wfi");
        }
    }

    fn answer(_: u64) {
        gic::init_cpu();
        gic::enable(1, 0x80);
        for _ in 0..ROUNDS {
            take();
            gic::send_sgi(2, 1);
        }
    }

    fn ping_pong() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        gic::enable(2, 0x80);
        smp::begin(1, answer, 0);
        // The other has to have enabled its SGI; a pending one waits for that.
        for _ in 0..ROUNDS {
            gic::send_sgi(1, 1 << 1);
            equal!(take(), 2, "answer");
        }
        ensure!(smp::wait(1), "no end of CPU", 1);
        equal!(gic::acknowledge(), irq::SPURIOUS, "answers in excess");
        PASS
    }

    static AWAKE: AtomicU64 = AtomicU64::new(0);

    /// An interrupt for a CPU that is busy and has no exit of its own by which it would be noticed.
    fn interrupt_of_a_busy_cpu() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        fn busy(rounds: u64) {
            gic::init_cpu();
            gic::enable(3, 0x80);
            for n in 1..=rounds {
                AWAKE.store(2 * n - 1, Release);
                loop {
                    let intid = gic::acknowledge();
                    if intid != irq::SPURIOUS {
                        gic::end(intid);
                        break;
                    }
                    core::hint::spin_loop();
                }
                AWAKE.store(2 * n, Release);
            }
        }
        smp::begin(1, busy, 20);
        for n in 1..=20 {
            let is = |state| wait_for(2000, || AWAKE.load(Acquire) == state);
            ensure!(n > 1 || is(1), "not begun", n);
            // Long enough for a CPU that wrote a register of the GIC to be in its loop again.
            wait_for(2, || false);
            gic::send_sgi(3, 1 << 1);
            ensure!(
                wait_for(2000, || AWAKE.load(Acquire) >= 2 * n),
                "not noticed",
                n
            );
        }
        ensure!(smp::wait(1), "no end of CPU", 1);
        PASS
    }

    /// Runs a job on every CPU, this one included.
    fn on_all(job: smp::Job, argument: u64) -> Verdict {
        READY.store(0, SeqCst);
        for cpu in 1..smp::count() {
            smp::begin(cpu, job, argument);
        }
        job(argument);
        for cpu in 1..smp::count() {
            ensure!(smp::wait(cpu), "no answer from CPU", cpu);
        }
        PASS
    }

    static READY: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);

    /// Meets all other CPUs of an `on_all`, `round` counted from 1.
    fn meet(round: u64) {
        READY.fetch_add(1, SeqCst);
        while READY.load(SeqCst) < round * smp::count() as u64 {
            core::hint::spin_loop();
        }
    }

    static DATA: AtomicU64 = AtomicU64::new(0);
    static FLAG: AtomicU64 = AtomicU64::new(0);

    /// What was written before a released flag is seen behind its acquisition.
    fn messages() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        fn reader(rounds: u64) {
            for n in 1..=rounds {
                while FLAG.load(Acquire) != n {
                    core::hint::spin_loop();
                }
                if DATA.load(Relaxed) != n * 3 {
                    WRONG.fetch_add(1, SeqCst);
                }
                FLAG.store(0, Release);
            }
        }
        smp::begin(1, reader, 2000);
        for n in 1..=2000 {
            DATA.store(n * 3, Relaxed);
            FLAG.store(n, Release);
            ensure!(
                wait_for(2000, || FLAG.load(Acquire) == 0),
                "no answer to message",
                n
            );
        }
        ensure!(smp::wait(1), "no end of CPU", 1);
        equal!(WRONG.load(SeqCst), 0, "messages without their data");
        PASS
    }

    static LOCK: AtomicU64 = AtomicU64::new(0);

    /// A plain counter under a lock, in memory that the lock alone protects.
    fn lock() -> Verdict {
        fn job(at: u64) {
            for _ in 0..1000 {
                while LOCK.swap(1, Acquire) != 0 {
                    core::hint::spin_loop();
                }
                mem::write64(at, mem::read64(at) + 1);
                op!("dmb ish");
                LOCK.store(0, Release);
            }
        }
        let at = fresh(PAGE, PAGE);
        on_all(job, at)?;
        equal!(mem::read64(at), 1000 * smp::count(), "sum");
        PASS
    }

    /// Adds to 64 counters of a page, all CPUs at once.
    fn sum(job: smp::Job) -> Verdict {
        let at = fresh(PAGE, PAGE);
        on_all(job, at)?;
        let total: u64 = (0..64).map(|n| mem::read64(at + n * 8)).sum();
        equal!(total, smp::count() as u64 * 2000 * 1999 / 2, "sum");
        PASS
    }

    fn add_exclusive(at: u64) {
        (0..2000).for_each(|n| smp::add_exclusive(at + n % 64 * 8, n));
    }

    fn add_atomic(at: u64) {
        for n in 0..2000 {
            smp::add_atomic(at + n % 64 * 8, n);
        }
    }

    const PAGES: u64 = 512;

    /// All CPUs touch each page at the same time, nobody before them.
    fn same_fresh_pages() -> Verdict {
        fn job(start: u64) {
            for n in 0..PAGES {
                meet(n + 1);
                smp::add_atomic(start + n * PAGE + n * 8 % PAGE, 1);
                smp::add_exclusive(start + n * PAGE + n * 8 % PAGE, 1);
            }
        }
        let start = fresh(PAGES * PAGE, PAGE);
        on_all(job, start)?;
        for n in 0..PAGES {
            let at = start + n * PAGE + n * 8 % PAGE;
            equal!(mem::read64(at), 2 * smp::count(), "count on a fresh page");
        }
        PASS
    }

    /// All CPUs walk an untouched table at the same time; it is empty, as fresh memory is.
    fn same_fresh_tables() -> Verdict {
        fn job(va: u64) {
            for n in 0..64 {
                meet(n + 1);
                let fault = expect(|| mem::read64(va + n * mem::BLOCK));
                if !fault.is_some_and(|f| f.ec() == 0x25 && f.fsc() == 0x7) {
                    WRONG.fetch_add(1, SeqCst);
                }
            }
        }
        let va = mmu::window();
        for n in 0..64 {
            let table = fresh(PAGE, PAGE);
            mmu::set(
                mmu::descriptor(va + n * mem::BLOCK, 2),
                table | PAGE_OR_TABLE,
            );
        }
        WRONG.store(0, SeqCst);
        on_all(job, va)?;
        equal!(WRONG.load(SeqCst), 0, "walks that found something else");
        PASS
    }

    /// What no CPU may read once the page it is in has been unmapped everywhere.
    const STALE: u64 = 0x5741_1e57_a1e5_7a1e;

    static STOP: AtomicU64 = AtomicU64::new(0);
    static READS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

    /// Reads that a CPU has done.
    fn reads(cpu: usize) -> &'static AtomicU64 {
        &READS[cpu]
    }

    fn read_until_stopped(va: u64) {
        while STOP.load(Relaxed) == 0 {
            let mut value = 0;
            // Unmapped for a moment is as it should be.
            let fault = expect(|| value = mem::read64(va));
            match fault {
                None if value == STALE => _ = WRONG.fetch_add(1, SeqCst),
                None => _ = reads(cpu()).fetch_add(1, Relaxed),
                Some(fault) if fault.ec() == 0x25 && fault.fsc() == 0x7 => {}
                Some(_) => _ = WRONG.fetch_add(1 << 32, SeqCst),
            }
        }
    }

    /// A page is unmapped by break-before-make while all others read it: when DSB has completed the
    /// broadcast TLBI, nobody sees what is written to it afterwards.
    fn remapping() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        let pages = fresh(2 * PAGE, PAGE);
        mem::write64(pages, 0);
        let va = mmu::map_new(pages, NORMAL);
        let descriptor = mmu::descriptor(va, 3);
        WRONG.store(0, SeqCst);
        STOP.store(0, SeqCst);
        for cpu in 1..smp::count() {
            smp::begin(cpu, read_until_stopped, va);
        }
        for cpu in 1..smp::count() {
            let reading = wait_for(5000, || reads(cpu).load(Relaxed) > 10);
            ensure!(reading, "does not read: CPU", cpu);
        }
        for round in 1..500 {
            let (old, new) = (pages + (round + 1) % 2 * PAGE, pages + round % 2 * PAGE);
            mem::write64(new, round);
            mmu::set(descriptor, 0);
            mmu::invalidate_page(va);
            mem::write64(old, STALE);
            mmu::set(descriptor, new | NORMAL | PAGE_OR_TABLE);
        }
        STOP.store(1, SeqCst);
        for cpu in 1..smp::count() {
            ensure!(smp::wait(cpu), "no end of CPU", cpu);
        }
        equal!(
            WRONG.load(SeqCst) & 0xffff_ffff,
            0,
            "reads through a stale translation"
        );
        equal!(WRONG.load(SeqCst) >> 32, 0, "faults of another kind");
        PASS
    }

    /// One CPU writes code, the others run it after a context synchronisation of their own.
    fn new_code() -> Verdict {
        static CODE: AtomicU64 = AtomicU64::new(0);
        fn job(rounds: u64) {
            let at = CODE.load(SeqCst);
            for n in 1..=rounds {
                if cpu() == 0 {
                    mem::write32(at, MOV_X0 | (n as u32) << 5);
                    mem::write32(at + 4, RET);
                    mem::sync_code(at, 8);
                }
                meet(2 * n - 1);
                op!("isb");
                if mem::call(at, 0) != n {
                    WRONG.fetch_add(1, SeqCst);
                }
                meet(2 * n);
            }
        }
        CODE.store(fresh(PAGE, PAGE), SeqCst);
        WRONG.store(0, SeqCst);
        on_all(job, 200)?;
        equal!(WRONG.load(SeqCst), 0, "calls of old code");
        PASS
    }
}
