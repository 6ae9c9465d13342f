//! What an exit costs: a thousand of each kind, between marks that an exit profiler sees.
//!
//! A mark is `orr xzr, xzr, x30`, which does nothing. Each operation lies between two, so a profiler
//! prints one block for what is measured and one for what lies between. Results are checked, so the
//! payload means something without a profiler too; what it costs nobody checks here.
//! With the word `pair` on the command line, two vCPUs interrupt each other and nothing else happens.
//! umbra-vmm: --cpus 1 --memory 128M,hugepages=off --disk /guest/bench,ro --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(bench);

#[cfg(target_os = "none")]
mod bench {
    use umbra_guests::rt::mem::{self, BLOCK, PAGE};
    use umbra_guests::rt::timer::Timer;
    use umbra_guests::rt::{boot, gic, irq, psci, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal, mrs, op};

    const COUNT: u64 = 1000;
    const WAKES: u64 = 100;
    const BLOCKS: u64 = 32;
    /// QueueNotify of the first virtio device. The VMM bound it to an event, and nobody has set up a queue.
    const NOTIFY: u64 = 0x0a00_0050;
    /// Line status of the 16550, which the VMM plays: reading it changes nothing.
    const UART_LSR: u64 = 0x0900_0005;
    /// Transmitter empty, holding register empty.
    const IDLE: u8 = 0x60;

    pub(super) fn run(suite: &mut Suite) {
        if boot::has_arg("pair") {
            suite.check("interrupts-between-two", pair);
            return;
        }
        suite.check("empty", empty);
        suite.check("hypercall", hypercall);
        suite.check("id-register", id_register);
        suite.check("distributor", distributor);
        suite.check("vmm", vmm);
        suite.check("notify", notify);
        suite.check("first-touch", first_touch);
        suite.check("first-touch-block", first_touch_block);
        gic::init_distributor();
        gic::init_cpu();
        irq::set_handler(handler);
        suite.check("timer", timer);
        suite.check("sgi", sgi);
        read_first(suite);
        suite.check("timer-of-a-running-guest", running_timer);
    }

    fn mark() {
        op!("orr xzr, xzr, x30");
    }

    fn empty() -> Verdict {
        mark();
        for _ in 0..COUNT {
            op!("nop");
        }
        mark();
        PASS
    }

    /// A function identifier that nobody owns.
    fn hypercall() -> Verdict {
        let mut unknown = 0;
        mark();
        for _ in 0..COUNT {
            unknown += u64::from(psci::hvc(0x8600_7fff, [0; 3])[0] as i32 == psci::NOT_SUPPORTED);
        }
        mark();
        equal!(unknown, COUNT, "calls answered NOT_SUPPORTED");
        PASS
    }

    fn id_register() -> Verdict {
        let mut all = 0;
        mark();
        for _ in 0..COUNT {
            all |= mrs!("id_aa64pfr0_el1");
        }
        mark();
        equal!(all, mrs!("id_aa64pfr0_el1"), "all reads together");
        PASS
    }

    fn distributor() -> Verdict {
        let mut all = 0;
        mark();
        for _ in 0..COUNT {
            all |= mem::read32(gic::DIST + 4); // GICD_TYPER
        }
        mark();
        equal!(all, mem::read32(gic::DIST + 4), "all reads together");
        PASS
    }

    fn vmm() -> Verdict {
        let mut idle = 0;
        mark();
        for _ in 0..COUNT {
            idle += u64::from(mem::read8(UART_LSR) & IDLE == IDLE);
        }
        mark();
        equal!(idle, COUNT, "reads of an idle line");
        PASS
    }

    fn notify() -> Verdict {
        mark();
        for _ in 0..COUNT {
            mem::write32(NOTIFY, 0);
        }
        mark();
        PASS
    }

    /// A word of each 2 MiB: with huge pages an exit brings a block, without them a page.
    fn first_touch_block() -> Verdict {
        let at = mem::fresh(BLOCKS * BLOCK, BLOCK);
        mark();
        for block in 0..BLOCKS {
            mem::write64(at + block * BLOCK, block);
        }
        mark();
        for block in 0..BLOCKS {
            equal!(mem::read64(at + block * BLOCK), block, "word");
            equal!(mem::read64(at + block * BLOCK + BLOCK - 8), 0, "last word");
        }
        PASS
    }

    fn first_touch() -> Verdict {
        let at = mem::fresh(COUNT * PAGE, PAGE);
        mark();
        for page in 0..COUNT {
            mem::write64(at + page * PAGE, page);
        }
        mark();
        for page in 0..COUNT {
            equal!(mem::read64(at + page * PAGE), page, "word");
            equal!(mem::read64(at + page * PAGE + 8), 0, "word behind it");
        }
        PASS
    }

    /// Reads pages for the first time, and then writes them: memory that is shared until it is written costs
    /// a permission fault there.
    fn read_first(suite: &mut Suite) {
        let at = mem::fresh(COUNT * PAGE, PAGE);
        suite.check("first-read", || {
            let mut all = 0;
            mark();
            for page in 0..COUNT {
                all |= mem::read64(at + page * PAGE);
            }
            mark();
            equal!(all, 0, "all words together");
            PASS
        });
        suite.check("write-after-read", || {
            mark();
            for page in 0..COUNT {
                mem::write64(at + page * PAGE, page);
            }
            mark();
            for page in 0..COUNT {
                equal!(mem::read64(at + page * PAGE), page, "word");
            }
            PASS
        });
    }

    fn handler(intid: u32) {
        if intid == gic::VIRTUAL_TIMER {
            Timer::Virtual.stop();
        }
    }

    /// Sets the timer, sleeps, is woken. Masked across WFI: it ends all the same, and no wake-up is
    /// lost between the look and the sleep.
    fn timer() -> Verdict {
        gic::enable(gic::VIRTUAL_TIMER, 0x80);
        let before = irq::count();
        mark();
        for taken in 1..=WAKES {
            Timer::Virtual.start(100_000);
            while irq::count() - before < taken {
                op!("wfi");
                irq::unmask();
                op!("isb");
                irq::mask();
            }
        }
        mark();
        gic::disable(gic::VIRTUAL_TIMER);
        equal!(irq::count() - before, WAKES, "wake-ups");
        PASS
    }

    /// The timer's interrupt comes while the guest runs.
    fn running_timer() -> Verdict {
        gic::enable(gic::VIRTUAL_TIMER, 0x80);
        let before = irq::count();
        irq::unmask();
        mark();
        for taken in 1..=WAKES {
            Timer::Virtual.start(20_000);
            while irq::count() - before < taken {
                core::hint::spin_loop();
            }
        }
        mark();
        irq::mask();
        gic::disable(gic::VIRTUAL_TIMER);
        equal!(irq::count() - before, WAKES, "interrupts");
        PASS
    }

    /// Waits until this CPU has taken as many interrupts. Masked across WFI, as in `timer`.
    fn wait_for_interrupt(count: u64) {
        while irq::count() < count {
            op!("wfi");
            irq::unmask();
            op!("isb");
            irq::mask();
        }
    }

    /// Answers each interrupt by one, asleep in between.
    fn answer(_: u64) {
        gic::init_cpu();
        gic::enable(1, 0x80);
        for taken in 1..=COUNT {
            wait_for_interrupt(taken);
            gic::send_sgi(1, 1);
        }
    }

    /// Two vCPUs, each of which sleeps until the other one's SGI comes.
    fn pair() -> Verdict {
        gic::init_distributor();
        gic::init_cpu();
        gic::enable(1, 0x80);
        irq::set_handler(|_| {});
        let started = smp::start(1) == Some(psci::SUCCESS);
        ensure!(started, "CPU_ON of CPU 1", started);
        smp::begin(1, answer, 0);
        mark();
        for taken in 1..=COUNT {
            gic::send_sgi(1, 2);
            wait_for_interrupt(taken);
        }
        mark();
        ensure!(smp::wait(1), "CPU 1 does not come back", 0);
        equal!(irq::count(), COUNT, "interrupts");
        PASS
    }

    fn sgi() -> Verdict {
        gic::enable(1, 0x80);
        let before = irq::count();
        irq::unmask();
        mark();
        for taken in 1..=COUNT {
            gic::send_sgi(1, 1);
            while irq::count() - before < taken {
                core::hint::spin_loop();
            }
        }
        mark();
        irq::mask();
        equal!(irq::count() - before, COUNT, "interrupts");
        PASS
    }
}
