//! Does the interrupt controller do what the manual says: states, priorities, more interrupts than
//! list registers, waking from sleep, other CPUs?
//! umbra-vmm: --cpus 4 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(gic);

#[cfg(target_os = "none")]
mod gic {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::gic::{self, DIST, REDIST};
    use umbra_guests::rt::irq::{self, SPURIOUS, waiting};
    use umbra_guests::rt::timer::{self, Timer, wait_for};
    use umbra_guests::rt::{cpu, mem, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{ensure, equal, mrs, op};

    /// SPIs that no device of the VMM has.
    const SPI: u32 = 64;
    /// As many as there are priorities of 5 bits that the widest mask lets through.
    const SPIS: u32 = 31;
    const MIDDLE: u8 = 0x80;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        let mut check = |name: &str, check: fn() -> Verdict| {
            suite.check(name, check);
            // What a failed check left behind is not the next one's start.
            gic::forget_all();
        };
        check("identification", identification);
        check("registers-keep-values", registers_keep_values);
        check("nothing-pending", nothing_pending);
        check("sgi-to-self", sgi_to_self);
        check("all-sgis", all_sgis);
        check("edge-spi", || spi(true));
        check("level-spi", || spi(false));
        check("pending-while-active", pending_while_active);
        check("pending-taken-back", pending_taken_back);
        check("disabled-while-pending", disabled_while_pending);
        check("interface-disabled", interface_disabled);
        check("distributor-disabled", distributor_disabled);
        check("priority-mask", priority_mask);
        check("preemption", preemption);
        check("binary-point", binary_point);
        check("split-end", split_end);
        check("active-by-register", active_by_register);
        check("many-pending-in-order", many_pending_in_order);
        check("many-pending-nested", many_pending_nested);
        check("four-active", || active_at_once(4));
        check("many-active", many_active);
        check("many-taken-as-exceptions", many_as_exceptions);
        check("virtual-timer", || timer_interrupt(Timer::Virtual));
        check("physical-timer", || timer_interrupt(Timer::Physical));
        check("sleep-ends-by-timer", sleep_ends_by_timer);
        check("sleep-ends-by-masked-interrupt", sleep_ends_by_masked);
        check("sgi-to-others", sgi_to_others);
        check("sgi-to-all-but-self", sgi_to_all_but_self);
        check("sgi-wakes-a-sleeper", sgi_wakes_a_sleeper);
        check("spi-routing", spi_routing);
    }

    /// Waits for an interrupt, masked, and acknowledges it.
    fn take() -> u32 {
        wait_for(1000, waiting);
        gic::acknowledge()
    }

    /// No interrupt is there, and none is on its way.
    fn quiet() -> Verdict {
        equal!(wait_for(2, waiting), false, "an interrupt waits");
        equal!(gic::acknowledge(), SPURIOUS, "acknowledged");
        PASS
    }

    fn identification() -> Verdict {
        equal!(
            mem::read32(DIST + 0xffe8) >> 4 & 0xf,
            3,
            "GICD_PIDR2 architecture"
        );
        equal!(
            mem::read32(REDIST + 0xffe8) >> 4 & 0xf,
            3,
            "GICR_PIDR2 architecture"
        );
        equal!(gic::intids(), 128, "interrupts");
        for cpu in 0..smp::count() {
            let typer = mem::read64(REDIST + cpu as u64 * 0x2_0000 + 8);
            equal!(typer >> 32, cpu, "affinity in GICR_TYPER");
            equal!(typer >> 8 & 0xffff, cpu, "processor number in GICR_TYPER");
            equal!(
                typer >> 4 & 1,
                (cpu + 1 == smp::count()),
                "last in GICR_TYPER"
            );
        }
        equal!(
            mem::read32(DIST) & 0x12,
            0x12,
            "GICD_CTLR: affinity routing, group 1"
        );
        PASS
    }

    fn registers_keep_values() -> Verdict {
        for intid in [5, 27, SPI, SPI + 31, 127] {
            gic::set_priority(intid, 0xff);
            let implemented = gic::priority(intid);
            ensure!(implemented & 0xf8 == 0xf8, "priority bits", implemented);
            gic::set_priority(intid, 0x50);
            equal!(gic::priority(intid), 0x50, "priority");
            gic::enable(intid, MIDDLE);
            equal!(gic::is_enabled(intid), true, "enabled");
            gic::disable(intid);
            equal!(gic::is_enabled(intid), false, "disabled");
        }
        gic::route(SPI, 1);
        equal!(
            mem::read64(DIST + 0x6000 + u64::from(SPI) * 8),
            1,
            "GICD_IROUTER"
        );
        gic::route(SPI, 0);
        for value in [0, 0x48, 0xf0] {
            gic::set_mask(value);
            equal!(gic::mask(), value, "ICC_PMR_EL1");
        }
        gic::set_mask(0xff);
        PASS
    }

    fn nothing_pending() -> Verdict {
        equal!(gic::acknowledge(), SPURIOUS, "acknowledged");
        equal!(gic::highest_pending(), SPURIOUS, "ICC_HPPIR1_EL1");
        equal!(gic::running_priority(), 0xff, "running priority");
        PASS
    }

    fn sgi_to_self() -> Verdict {
        gic::enable(3, 0x60);
        gic::send_sgi(3, 1);
        equal!(wait_for(1000, waiting), true, "an interrupt waits");
        equal!(gic::highest_pending(), 3, "ICC_HPPIR1_EL1");
        equal!(gic::acknowledge(), 3, "acknowledged");
        equal!(gic::running_priority(), 0x60, "running priority");
        equal!(waiting(), false, "still waits");
        gic::end(3);
        equal!(
            gic::running_priority(),
            0xff,
            "running priority behind the end"
        );
        quiet()
    }

    fn all_sgis() -> Verdict {
        for sgi in 0..16 {
            gic::enable(sgi, MIDDLE);
        }
        let mut missing: u32 = 0xffff;
        for sgi in 0..16 {
            gic::send_sgi(sgi, 1);
        }
        for _ in 0..16 {
            let sgi = take();
            ensure!(
                sgi < 16 && missing & 1 << sgi != 0,
                "not sent, or twice",
                sgi
            );
            missing &= !(1 << sgi);
            gic::end(sgi);
        }
        quiet()
    }

    /// A pending state that a register write gave is taken once, level or edge.
    fn spi(edge: bool) -> Verdict {
        gic::set_edge(SPI, edge);
        gic::enable(SPI, MIDDLE);
        for _ in 0..10 {
            gic::set_pending(SPI);
            equal!(take(), SPI, "acknowledged");
            equal!(gic::is_active(SPI), true, "active");
            gic::end(SPI);
            equal!(gic::is_active(SPI), false, "active behind the end");
            quiet()?;
        }
        gic::disable(SPI);
        PASS
    }

    /// An edge while the one before it is active: one more, no more.
    fn pending_while_active() -> Verdict {
        gic::set_edge(SPI, true);
        gic::enable(SPI, MIDDLE);
        gic::set_pending(SPI);
        equal!(take(), SPI, "acknowledged");
        equal!(gic::is_pending(SPI), false, "pending while active");
        gic::set_pending(SPI);
        gic::set_pending(SPI);
        equal!(gic::is_pending(SPI), true, "active and pending");
        quiet()?;
        gic::end(SPI);
        equal!(take(), SPI, "acknowledged again");
        gic::end(SPI);
        gic::disable(SPI);
        quiet()
    }

    fn pending_taken_back() -> Verdict {
        gic::set_edge(SPI, true);
        gic::enable(SPI, MIDDLE);
        gic::set_pending(SPI);
        equal!(wait_for(1000, waiting), true, "an interrupt waits");
        gic::clear_pending(SPI);
        equal!(gic::is_pending(SPI), false, "pending");
        quiet()?;
        gic::disable(SPI);
        PASS
    }

    fn disabled_while_pending() -> Verdict {
        gic::enable(SPI, MIDDLE);
        gic::disable(SPI);
        gic::set_pending(SPI);
        equal!(gic::is_pending(SPI), true, "pending");
        quiet()?;
        gic::enable(SPI, MIDDLE);
        equal!(wait_for(1000, waiting), true, "an interrupt waits");
        gic::disable(SPI);
        quiet()?;
        equal!(gic::is_pending(SPI), true, "pending");
        gic::enable(SPI, MIDDLE);
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        gic::disable(SPI);
        quiet()
    }

    fn interface_disabled() -> Verdict {
        gic::enable(SPI, MIDDLE);
        umbra_guests::msr!("S3_0_C12_C12_7", 0);
        gic::set_pending(SPI);
        quiet()?;
        umbra_guests::msr!("S3_0_C12_C12_7", 1);
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        gic::disable(SPI);
        quiet()
    }

    fn distributor_disabled() -> Verdict {
        if !has_arg("umbra") {
            return skip("Linux 7.2 forgets what was pending");
        }
        gic::enable(SPI, MIDDLE);
        mem::write32(DIST, 1 << 4);
        gic::set_pending(SPI);
        quiet()?;
        gic::init_distributor();
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        gic::disable(SPI);
        quiet()
    }

    fn priority_mask() -> Verdict {
        gic::enable(SPI, 0x80);
        gic::set_mask(0x80);
        gic::set_pending(SPI);
        quiet()?;
        gic::set_mask(0x88);
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        gic::set_mask(0);
        gic::set_pending(SPI);
        quiet()?;
        gic::set_mask(0xff);
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        gic::disable(SPI);
        quiet()
    }

    fn preemption() -> Verdict {
        for (n, priority) in [(0, 0x80), (1, 0x40), (2, 0xc0), (3, 0x80)] {
            gic::enable(SPI + n, priority);
        }
        gic::set_pending(SPI);
        equal!(take(), SPI, "first");
        gic::set_pending(SPI + 2);
        gic::set_pending(SPI + 3);
        quiet()?;
        gic::set_pending(SPI + 1);
        equal!(take(), SPI + 1, "more urgent");
        equal!(gic::running_priority(), 0x40, "running priority");
        gic::end(SPI + 1);
        equal!(
            gic::running_priority(),
            0x80,
            "running priority behind its end"
        );
        quiet()?;
        gic::end(SPI);
        equal!(take(), SPI + 3, "the more urgent of those left");
        gic::end(SPI + 3);
        equal!(take(), SPI + 2, "last");
        gic::end(SPI + 2);
        (0..4).for_each(|n| gic::disable(SPI + n));
        quiet()
    }

    /// Priorities that differ only below the binary point do not preempt, but do order.
    fn binary_point() -> Verdict {
        gic::set_binary_point(7);
        equal!(gic::binary_point(), 7, "ICC_BPR1_EL1");
        gic::enable(SPI, 0x40);
        gic::enable(SPI + 1, 0x20);
        gic::set_pending(SPI);
        equal!(take(), SPI, "first");
        gic::set_pending(SPI + 1);
        quiet()?;
        gic::end(SPI);
        equal!(take(), SPI + 1, "second");
        gic::end(SPI + 1);
        gic::set_binary_point(0);
        gic::disable(SPI);
        gic::disable(SPI + 1);
        quiet()
    }

    fn split_end() -> Verdict {
        gic::set_split_eoi(true);
        gic::set_edge(SPI, true);
        gic::enable(SPI, MIDDLE);
        gic::set_pending(SPI);
        equal!(take(), SPI, "acknowledged");
        gic::end(SPI);
        equal!(gic::running_priority(), 0xff, "running priority");
        equal!(gic::is_active(SPI), true, "active behind the end");
        gic::set_pending(SPI);
        quiet()?;
        gic::deactivate(SPI);
        equal!(take(), SPI, "acknowledged again");
        gic::end(SPI);
        gic::deactivate(SPI);
        equal!(gic::is_active(SPI), false, "active behind deactivation");
        gic::set_split_eoi(false);
        gic::disable(SPI);
        quiet()
    }

    fn active_by_register() -> Verdict {
        for intid in [SPI, 20] {
            gic::enable(intid, MIDDLE);
            gic::set_active(intid);
            equal!(gic::is_active(intid), true, "active");
            gic::set_pending(intid);
            quiet()?;
            gic::clear_active(intid);
            equal!(gic::is_active(intid), false, "active");
            equal!(take(), intid, "acknowledged");
            gic::end(intid);
            gic::disable(intid);
        }
        quiet()
    }

    /// Priorities of their own, mixed over the interrupts.
    fn pend_many() -> impl Fn(u32) -> u32 {
        let rank = |n: u32| n * 13 % SPIS;
        for n in 0..SPIS {
            gic::set_edge(SPI + n, true);
            gic::enable(SPI + n, rank(n) as u8 * 8);
        }
        // From the least urgent on, so that each arrival changes what comes first.
        for wanted in (0..SPIS).rev() {
            gic::set_pending(SPI + (0..SPIS).find(|n| rank(*n) == wanted).unwrap_or(0));
        }
        rank
    }

    fn disable_many() -> Verdict {
        (0..SPIS).for_each(|n| gic::disable(SPI + n));
        quiet()
    }

    fn many_pending_in_order() -> Verdict {
        gic::set_mask(0xff);
        let rank = pend_many();
        for wanted in 0..SPIS {
            let intid = take();
            ensure!((SPI..SPI + SPIS).contains(&intid), "acknowledged", intid);
            equal!(rank(intid - SPI), wanted, "its rank");
            gic::end(intid);
        }
        disable_many()
    }

    /// Each preempts the one before: more are active at once than there are list registers.
    fn many_pending_nested() -> Verdict {
        for n in 0..SPIS {
            gic::enable(SPI + n, ((SPIS - 1 - n) * 8) as u8);
        }
        // Each with a preemption level of its own, as far as the interface has them.
        let step = 1 << gic::binary_point().saturating_sub(3);
        let levels = SPIS / step;
        for n in 0..levels {
            gic::set_pending(SPI + n * step);
            equal!(take(), SPI + n * step, "preempting");
        }
        for n in (0..levels).rev() {
            gic::end(SPI + n * step);
            equal!(
                gic::is_active(SPI + n * step),
                false,
                "active behind its end"
            );
        }
        equal!(gic::running_priority(), 0xff, "running priority");
        disable_many()
    }

    fn many_active() -> Verdict {
        if !has_arg("umbra") {
            return skip("Linux 7.2 forgets active states beyond the list registers");
        }
        active_at_once(SPIS)
    }

    /// Ended but not deactivated, so many at once; none comes again before its deactivation.
    fn active_at_once(count: u32) -> Verdict {
        gic::set_split_eoi(true);
        for n in 0..count {
            gic::set_edge(SPI + n, true);
            gic::enable(SPI + n, n as u8 * 8);
            gic::set_pending(SPI + n);
        }
        for n in 0..count {
            equal!(take(), SPI + n, "acknowledged");
            gic::end(SPI + n);
        }
        let active = (0..count).filter(|n| gic::is_active(SPI + n));
        let active = active.fold(0u64, |set, n| set | 1 << n);
        equal!(active, (1u64 << count) - 1, "interrupts active");
        (0..count).for_each(|n| gic::set_pending(SPI + n));
        quiet()?;
        for n in 0..count {
            gic::deactivate(SPI + n);
            equal!(take(), SPI + n, "acknowledged again");
            gic::end(SPI + n);
            gic::deactivate(SPI + n);
        }
        let active = (0..count).filter(|n| gic::is_active(SPI + n)).count();
        equal!(active, 0, "interrupts active at the end");
        gic::set_split_eoi(false);
        disable_many()
    }

    static SEEN: AtomicU64 = AtomicU64::new(0);
    static TWICE: AtomicU64 = AtomicU64::new(0);

    fn many_as_exceptions() -> Verdict {
        irq::set_handler(|intid| {
            let bit = 1 << (intid - SPI);
            if SEEN.fetch_or(bit, SeqCst) & bit != 0 {
                TWICE.fetch_or(bit, SeqCst);
            }
        });
        for _ in 0..20 {
            SEEN.store(0, SeqCst);
            let _ = pend_many();
            irq::unmask();
            let all = wait_for(2000, || SEEN.load(SeqCst) == (1u64 << SPIS) - 1);
            irq::mask();
            ensure!(all, "seen", SEEN.load(SeqCst));
            equal!(TWICE.load(SeqCst), 0, "seen twice");
        }
        disable_many()
    }

    fn timer_interrupt(timer: Timer) -> Verdict {
        gic::enable(timer.intid(), MIDDLE);
        for _ in 0..10 {
            timer.start(timer::microseconds(500));
            equal!(take(), timer.intid(), "acknowledged");
            equal!(timer.control(), timer::ENABLE | timer::ISTATUS, "control");
            timer.stop();
            gic::end(timer.intid());
            quiet()?;
        }
        gic::disable(timer.intid());
        PASS
    }

    fn sleep_ends_by_timer() -> Verdict {
        irq::set_handler(|intid| {
            Timer::Virtual.stop();
            SEEN.store(u64::from(intid), SeqCst);
        });
        gic::enable(gic::VIRTUAL_TIMER, MIDDLE);
        for _ in 0..10 {
            SEEN.store(0, SeqCst);
            Timer::Virtual.start(timer::microseconds(2000));
            irq::unmask();
            while SEEN.load(SeqCst) == 0 {
                op!("wfi");
            }
            irq::mask();
            equal!(SEEN.load(SeqCst), gic::VIRTUAL_TIMER, "interrupt");
        }
        gic::disable(gic::VIRTUAL_TIMER);
        quiet()
    }

    fn sleep_ends_by_masked() -> Verdict {
        gic::enable(5, MIDDLE);
        gic::send_sgi(5, 1);
        // If it did not return at once, nothing else would wake it.
        for _ in 0..100 {
            op!("wfi");
        }
        equal!(take(), 5, "acknowledged");
        gic::end(5);
        quiet()
    }

    static COUNTS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

    /// SGIs that a CPU has taken.
    fn taken(cpu: usize) -> &'static AtomicU64 {
        &COUNTS[cpu]
    }

    static STOP: AtomicU64 = AtomicU64::new(0);

    /// On another CPU: takes SGI 1 until it gets SGI 2, sleeping in between.
    fn count_sgis(_: u64) {
        gic::init_cpu();
        gic::enable(1, MIDDLE);
        gic::enable(2, 0xc0);
        taken(cpu()).store(0, SeqCst);
        STOP.fetch_add(1, SeqCst);
        loop {
            op!("wfi");
            match gic::acknowledge() {
                SPURIOUS => {}
                2 => {
                    gic::end(2);
                    return;
                }
                other => {
                    gic::end(other);
                    taken(cpu()).fetch_add(1, SeqCst);
                }
            }
        }
    }

    /// Starts the counters on all other CPUs that are there.
    fn counters() -> Verdict {
        STOP.store(0, SeqCst);
        for cpu in 1..smp::count() {
            if smp::started() < cpu as u64 {
                equal!(smp::start(cpu).is_some_and(|s| s == 0), true, "CPU_ON");
            }
            smp::begin(cpu, count_sgis, 0);
        }
        let others = smp::count() as u64 - 1;
        ensure!(
            wait_for(2000, || STOP.load(SeqCst) == others),
            "CPUs that count",
            STOP.load(SeqCst)
        );
        PASS
    }

    fn stop_counters() -> Verdict {
        gic::send_sgi(2, !1);
        for cpu in 1..smp::count() {
            ensure!(smp::wait(cpu), "no answer from CPU", cpu);
        }
        PASS
    }

    /// One at a time, so that none can merge with the one before.
    fn sgi_to_others() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        counters()?;
        for cpu in 1..smp::count() {
            for n in 1..=50 {
                gic::send_sgi(1, 1 << cpu);
                let came = wait_for(2000, || taken(cpu).load(SeqCst) == n);
                ensure!(came, "SGIs taken", taken(cpu).load(SeqCst));
            }
        }
        stop_counters()?;
        for cpu in 1..smp::count() {
            equal!(taken(cpu).load(SeqCst), 50, "SGIs taken in all");
        }
        quiet()
    }

    fn sgi_to_all_but_self() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        gic::enable(1, MIDDLE);
        counters()?;
        for n in 1..=20 {
            // ICC_SGI1R_EL1.IRM
            umbra_guests::msr!("S3_0_C12_C11_5", 1 << 40 | 1 << 24);
            for cpu in 1..smp::count() {
                let came = wait_for(2000, || taken(cpu).load(SeqCst) == n);
                ensure!(came, "SGIs taken", taken(cpu).load(SeqCst));
            }
            quiet()?;
        }
        stop_counters()
    }

    fn sgi_wakes_a_sleeper() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        counters()?;
        for cpu in 1..smp::count() {
            // Time to fall asleep, really.
            wait_for(20, || false);
            gic::send_sgi(1, 1 << cpu);
            ensure!(
                wait_for(2000, || taken(cpu).load(SeqCst) == 1),
                "asleep: CPU",
                cpu
            );
        }
        stop_counters()
    }

    fn spi_routing() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        counters()?;
        gic::set_edge(SPI, true);
        gic::enable(SPI, MIDDLE);
        for cpu in 1..smp::count() {
            gic::route(SPI, cpu as u64);
            gic::set_pending(SPI);
            ensure!(
                wait_for(2000, || taken(cpu).load(SeqCst) == 1),
                "no SPI on CPU",
                cpu
            );
            quiet()?;
        }
        // Moved while it is pending and cannot be taken.
        gic::disable(SPI);
        gic::set_pending(SPI);
        gic::route(SPI, 0);
        gic::enable(SPI, MIDDLE);
        equal!(take(), SPI, "back on CPU 0");
        gic::end(SPI);
        gic::disable(SPI);
        ensure!(mrs!("mpidr_el1") & 0xff == 0, "this CPU", cpu());
        stop_counters()
    }
}
