//! Do EL1's two timers fire when they should, not before, and as levels?
//! umbra-vmm: --cpus 2 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(timer);

#[cfg(target_os = "none")]
mod timer {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::exec::{Regs, exec};
    use umbra_guests::rt::irq::{self, SPURIOUS, waiting};
    use umbra_guests::rt::timer::{ENABLE, IMASK, ISTATUS, Timer, microseconds, now, wait_for};
    use umbra_guests::rt::{cpu, gic, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{clean, ensure, equal, mrs, op};

    const MIDDLE: u8 = 0x80;
    /// What a busy machine may be late by, in microseconds.
    const LATE: u64 = 2_000_000;

    type Check = fn(Timer) -> Verdict;

    pub(super) fn run(suite: &mut Suite) {
        let start = now();
        gic::init_distributor();
        gic::init_cpu();
        suite.check("starts-near-zero", || starts_near_zero(start));
        suite.check("frequency", frequency);
        for (timer, name) in [(Timer::Virtual, "virtual"), (Timer::Physical, "physical")] {
            timer.stop();
            gic::enable(timer.intid(), MIDDLE);
            let checks: [(&str, Check); 10] = [
                ("counts-up", counts_up),
                ("status", status),
                ("values", values),
                ("not-early", not_early),
                ("level", level),
                ("masked", masked),
                ("past-and-never", past_and_never),
                ("sleep", sleep),
                ("periodic", periodic),
                ("exception", exception),
            ];
            for (check, run) in checks {
                suite.check(CheckName(name, check).text(&mut [0; 32]), || run(timer));
                timer.stop();
                gic::forget_all();
                gic::enable(timer.intid(), MIDDLE);
            }
        }
        suite.check("both-at-once", both_at_once);
        suite.check("timed-wait", timed_wait);
        suite.check("each-cpu-its-own", each_cpu_its_own);
    }

    /// `virtual/status`, put together without an allocator.
    struct CheckName(&'static str, &'static str);

    impl CheckName {
        fn text<'a>(&self, room: &'a mut [u8; 32]) -> &'a str {
            let parts = self.0.bytes().chain([b'/']).chain(self.1.bytes());
            let length = parts.zip(room.iter_mut()).map(|(b, r)| *r = b).count();
            core::str::from_utf8(&room[..length]).unwrap_or(self.1)
        }
    }

    /// The virtual counter belongs to the VM and starts with it.
    fn starts_near_zero(start: u64) -> Verdict {
        ensure!(
            start < microseconds(60_000_000),
            "virtual counter at start",
            start
        );
        PASS
    }

    fn frequency() -> Verdict {
        let hz = mrs!("cntfrq_el0");
        ensure!((1_000_000..=10_000_000_000).contains(&hz), "CNTFRQ_EL0", hz);
        PASS
    }

    fn counts_up(timer: Timer) -> Verdict {
        let mut last = timer.counter();
        for _ in 0..5000 {
            let next = timer.counter();
            ensure!(next >= last, "went back by", last - next);
            last = next;
        }
        PASS
    }

    fn take() -> u32 {
        wait_for(3000, waiting);
        gic::acknowledge()
    }

    fn quiet() -> Verdict {
        equal!(wait_for(2, waiting), false, "an interrupt waits");
        PASS
    }

    fn status(timer: Timer) -> Verdict {
        timer.set_compare(timer.counter() + microseconds(20_000));
        equal!(timer.control(), 0, "control of a timer that is off");
        timer.set_control(ENABLE | IMASK);
        equal!(timer.control(), ENABLE | IMASK, "control before");
        ensure!(
            wait_for(3000, || timer.control() & ISTATUS != 0),
            "control behind",
            timer.control()
        );
        ensure!(
            timer.counter() >= timer.compare(),
            "met early",
            timer.counter()
        );
        timer.set_compare(u64::MAX);
        equal!(
            timer.control(),
            ENABLE | IMASK,
            "control, moved to the future"
        );
        PASS
    }

    fn values(timer: Timer) -> Verdict {
        for value in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            timer.set_compare(value);
            equal!(timer.compare(), value, "CVAL");
        }
        let before = timer.counter();
        timer.set_remaining(1_000_000);
        let after = timer.counter();
        let compare = timer.compare();
        ensure!(
            (before + 1_000_000..=after + 1_000_000).contains(&compare),
            "CVAL by TVAL, behind the counter by",
            compare - before
        );
        timer.set_remaining(-1000);
        ensure!(
            timer.compare() < timer.counter(),
            "CVAL by a negative TVAL",
            timer.compare()
        );
        ensure!(timer.remaining() < 0, "TVAL of the past", timer.remaining());
        PASS
    }

    fn not_early(timer: Timer) -> Verdict {
        for length in [100, 500, 1000, 3000, 7000] {
            timer.start(microseconds(length));
            let due = timer.compare();
            equal!(take(), timer.intid(), "acknowledged");
            let at = timer.counter();
            ensure!(at >= due, "early by", due - at);
            ensure!(at - due < microseconds(LATE), "late by", at - due);
            timer.stop();
            gic::end(timer.intid());
        }
        quiet()
    }

    /// Whether the timer's interrupt has gone by itself. A list register keeps it until the next
    /// exit, so ask by one.
    fn gone(timer: Timer) -> bool {
        !gic::is_pending(timer.intid()) && !waiting()
    }

    /// The interrupt is there as long as the condition is: it comes again, and goes by itself.
    fn level(timer: Timer) -> Verdict {
        timer.start(0);
        for _ in 0..5 {
            equal!(take(), timer.intid(), "acknowledged");
            gic::end(timer.intid());
        }
        ensure!(
            wait_for(3000, waiting),
            "does not come again",
            timer.control()
        );
        equal!(gic::is_pending(timer.intid()), true, "pending");
        timer.set_compare(u64::MAX);
        ensure!(
            wait_for(3000, || gone(timer)),
            "does not go",
            timer.control()
        );
        equal!(gic::acknowledge(), SPURIOUS, "acknowledged");
        PASS
    }

    fn masked(timer: Timer) -> Verdict {
        timer.start(0);
        ensure!(wait_for(3000, waiting), "does not come", timer.control());
        timer.set_control(ENABLE | IMASK);
        ensure!(
            wait_for(3000, || gone(timer)),
            "not held back",
            timer.control()
        );
        equal!(timer.control(), ENABLE | IMASK | ISTATUS, "control");
        timer.set_control(ENABLE);
        equal!(take(), timer.intid(), "acknowledged");
        timer.set_control(0);
        gic::end(timer.intid());
        quiet()
    }

    fn past_and_never(timer: Timer) -> Verdict {
        timer.set_compare(0);
        timer.set_control(ENABLE);
        equal!(take(), timer.intid(), "due since the beginning");
        timer.set_compare(u64::MAX);
        gic::end(timer.intid());
        quiet()?;
        equal!(timer.control(), ENABLE, "control");
        PASS
    }

    fn sleep(timer: Timer) -> Verdict {
        for _ in 0..10 {
            let start = timer.counter();
            timer.start(microseconds(10_000));
            while !waiting() {
                op!("wfi");
            }
            let slept = timer.counter() - start;
            ensure!(slept >= microseconds(10_000), "slept only", slept);
            ensure!(slept < microseconds(LATE), "slept", slept);
            equal!(gic::acknowledge(), timer.intid(), "acknowledged");
            timer.stop();
            gic::end(timer.intid());
        }
        PASS
    }

    static COUNT: AtomicU64 = AtomicU64::new(0);
    static EARLY: AtomicU64 = AtomicU64::new(0);

    fn rearm(intid: u32) {
        let timer = match intid {
            gic::VIRTUAL_TIMER => Timer::Virtual,
            _ => Timer::Physical,
        };
        if timer.counter() < timer.compare() {
            EARLY.fetch_add(1, SeqCst);
        }
        COUNT.fetch_add(1, SeqCst);
        timer.set_compare(timer.compare() + microseconds(1000));
    }

    fn periodic(timer: Timer) -> Verdict {
        COUNT.store(0, SeqCst);
        EARLY.store(0, SeqCst);
        irq::set_handler(rearm);
        timer.start(microseconds(1000));
        irq::unmask();
        while COUNT.load(SeqCst) < 100 {
            op!("wfi");
        }
        irq::mask();
        equal!(EARLY.load(SeqCst), 0, "interrupts before their time");
        PASS
    }

    fn exception(timer: Timer) -> Verdict {
        COUNT.store(0, SeqCst);
        EARLY.store(0, SeqCst);
        irq::set_handler(|intid| {
            rearm(intid);
            Timer::Virtual.stop();
            Timer::Physical.stop();
        });
        timer.start(microseconds(2000));
        irq::unmask();
        // Busy all the while: the interrupt has to break in.
        let came = wait_for(3000, || COUNT.load(SeqCst) == 1);
        irq::mask();
        ensure!(came, "interrupts", COUNT.load(SeqCst));
        equal!(EARLY.load(SeqCst), 0, "before its time");
        PASS
    }

    fn both_at_once() -> Verdict {
        for (first, second) in [
            (Timer::Virtual, Timer::Physical),
            (Timer::Physical, Timer::Virtual),
        ] {
            gic::enable(first.intid(), MIDDLE);
            gic::enable(second.intid(), MIDDLE);
            second.start(microseconds(200_000));
            first.start(microseconds(2_000));
            for timer in [first, second] {
                while !waiting() {
                    op!("wfi");
                }
                equal!(gic::acknowledge(), timer.intid(), "acknowledged");
                timer.stop();
                gic::end(timer.intid());
            }
        }
        quiet()
    }

    /// WFIT and WFET, where the machine has them, come back at the latest with an interrupt: QEMU
    /// 10.0 does not tell a hypervisor their register, and Linux then takes them for WFI and WFE.
    fn timed_wait() -> Verdict {
        if mrs!("S3_0_C0_C6_2") & 0xf != 2 {
            return skip("no FEAT_WFxT");
        }
        // wfit x0; wfet x0
        for instruction in [0xd503_1020, 0xd503_1000] {
            let mut regs = Regs::pattern(1);
            let start = now();
            gic::enable(gic::PHYSICAL_TIMER, MIDDLE);
            Timer::Physical.start(microseconds(200_000));
            regs.x[0] = start + microseconds(5000);
            clean!(exec(instruction, &mut regs), "timed wait");
            Timer::Physical.stop();
            ensure!(now() - start < microseconds(LATE), "waited", now() - start);
        }
        PASS
    }

    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static FIRED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

    /// Interrupts that a CPU's own timer has made.
    fn fired(cpu: usize) -> &'static AtomicU64 {
        &FIRED[cpu]
    }

    fn own_timer(_: u64) {
        gic::init_cpu();
        gic::enable(gic::VIRTUAL_TIMER, MIDDLE);
        for _ in 0..20 {
            Timer::Virtual.start(microseconds(1000));
            while !waiting() {
                op!("wfi");
            }
            if gic::acknowledge() == gic::VIRTUAL_TIMER && Timer::Virtual.control() & ISTATUS != 0 {
                fired(cpu()).fetch_add(1, SeqCst);
            }
            Timer::Virtual.stop();
            gic::end(gic::VIRTUAL_TIMER);
        }
    }

    /// Another CPU's timer is no business of this one.
    fn each_cpu_its_own() -> Verdict {
        if smp::count() == 1 {
            return skip("one CPU");
        }
        gic::enable(gic::VIRTUAL_TIMER, MIDDLE);
        for cpu in 1..smp::count() {
            equal!(smp::start(cpu).unwrap_or(-9), 0, "CPU_ON");
            let (here, there) = (now(), smp::run(cpu, |_| COUNTER.store(now(), SeqCst), 0));
            let other = COUNTER.load(SeqCst);
            ensure!(
                there && (here..=now()).contains(&other),
                "counter of another CPU",
                other
            );
            ensure!(smp::run(cpu, own_timer, 0), "no answer from CPU", cpu);
            equal!(fired(cpu).load(SeqCst), 20, "interrupts of its own");
        }
        quiet()
    }
}
