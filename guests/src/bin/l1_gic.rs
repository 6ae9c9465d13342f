//! Do a hypervisor's list registers drive its guest, do maintenance and its own interrupts reach it, and
//! do four timers keep apart?
//! umbra-vmm: --nested --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_gic);

#[cfg(target_os = "none")]
mod l1_gic {
    use umbra_guests::rt::exec::{self, sys};
    use umbra_guests::rt::l2::{self, Exit, Guest, Home, hvc};
    use umbra_guests::rt::timer::Timer;
    use umbra_guests::rt::{gic, timer};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal, mrs, msr};

    const IAR1: u32 = sys(3, 0, 12, 12, 0);
    const EOIR1: u32 = sys(3, 0, 12, 12, 1);
    const HPPIR1: u32 = sys(3, 0, 12, 12, 2);
    const DIR: u32 = sys(3, 0, 12, 11, 1);
    const RPR: u32 = sys(3, 0, 12, 11, 3);
    const PMR: u32 = sys(3, 0, 4, 6, 0);
    /// `b .`
    const SPIN: u32 = 0x1400_0000;

    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HW: u64 = 1 << 61;
    const GROUP1: u64 = 1 << 60;
    const EOI: u64 = 1 << 41;
    /// ICH_HCR_EL2.En.
    const EN: u64 = 1;
    /// ICH_VMCR_EL2: group 1 on, every priority; VEOIM splits EOI.
    const VMCR: u64 = 0xff << 24 | 2;
    const VEOIM: u64 = 1 << 9;

    const MAINTENANCE: u32 = 25;
    const HYP_PHYSICAL: u32 = 26;
    const VIRTUAL: u32 = 27;
    const HYP_VIRTUAL: u32 = 28;
    const PHYSICAL: u32 = 30;
    const SPURIOUS: u64 = 1023;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        gic::init_cpu();
        for intid in [MAINTENANCE, HYP_PHYSICAL, VIRTUAL, HYP_VIRTUAL, PHYSICAL] {
            gic::enable(intid, 0x80);
        }
        suite.check("inject-take-end", inject);
        suite.check("masked", masked);
        suite.check("priorities", priorities);
        suite.check("split-end", split_end);
        suite.check("pending-and-active", pending_and_active);
        suite.check("hardware-linked", hardware_linked);
        suite.check("maintenance-of-an-end", end_maintenance);
        suite.check("maintenance-status", maintenance_status);
        suite.check("maintenance-line", maintenance_line);
        suite.check("trapped-interface", trapped_interface);
        suite.check("own-interrupt-ends-a-run", own_interrupt);
        suite.check("wait-with-something-virtual", wait_with_something);
        suite.check("own-timers", own_timers);
        suite.check("offset-of-the-guest", offset);
        suite.check("guest-timer-while-it-runs", guest_timer);
        suite.check("guest-timer-while-it-does-not", guest_timer_away);
        suite.check("guest-timer-status", guest_timer_status);
        suite.check("four-timers-at-once", four_timers);
    }

    static HOME: Home = Home::new();

    fn guest() -> Guest {
        clear();
        HOME.guest(1).1
    }

    /// The interface as a hypervisor leaves it, with nothing in it.
    fn clear() {
        msr!("S3_4_C12_C11_0", EN);
        msr!("S3_4_C12_C11_7", VMCR);
        msr!("S3_4_C12_C9_0", 0);
        for n in 0..4 {
            set_lr(n, 0);
        }
    }

    fn set_hcr(value: u64) {
        msr!("S3_4_C12_C11_0", value);
    }

    fn set_lr(n: usize, value: u64) {
        match n {
            0 => msr!("S3_4_C12_C12_0", value),
            1 => msr!("S3_4_C12_C12_1", value),
            2 => msr!("S3_4_C12_C12_2", value),
            _ => msr!("S3_4_C12_C12_3", value),
        }
    }

    fn lr(n: usize) -> u64 {
        match n {
            0 => mrs!("S3_4_C12_C12_0"),
            1 => mrs!("S3_4_C12_C12_1"),
            2 => mrs!("S3_4_C12_C12_2"),
            _ => mrs!("S3_4_C12_C12_3"),
        }
    }

    fn misr() -> u64 {
        mrs!("S3_4_C12_C11_2")
    }

    fn eisr() -> u64 {
        mrs!("S3_4_C12_C11_3")
    }

    fn elrsr() -> u64 {
        mrs!("S3_4_C12_C11_5")
    }

    const fn virq(intid: u64, priority: u64) -> u64 {
        PENDING | GROUP1 | priority << 48 | intid
    }

    const STATE: u64 = PENDING | ACTIVE;

    fn done(exit: &Exit) -> Verdict {
        ensure!(exit.is_hvc(l2::DONE), "exit: ESR", exit.esr);
        PASS
    }

    /// The guest reads one of its interface's registers, all interrupts masked.
    fn read(guest: &mut Guest, register: u32) -> Result<u64, umbra_guests::suite::Failure> {
        guest.set_pstate(l2::EL1H);
        let exit = guest.execute(&[exec::mrs(register)]);
        done(&exit)?;
        Ok(guest.x()[0])
    }

    fn write(guest: &mut Guest, register: u32, value: u64) -> Verdict {
        guest.set_pstate(l2::EL1H);
        guest.x()[0] = value;
        let exit = guest.execute(&[exec::msr(register), l2::ISB]);
        done(&exit)
    }

    /// PSTATE of EL1h with interrupts let in.
    const OPEN: u64 = l2::EL1H & !(1 << 7);

    fn inject() -> Verdict {
        let mut guest = guest();
        set_lr(0, virq(40, 0x80));
        guest.set_pstate(OPEN);
        let exit = guest.execute(&[SPIN]);
        // Vector 5: IRQ from EL1 with SP_EL1.
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 5), "exit: ESR", exit.esr);
        equal!(lr(0), virq(40, 0x80), "LR before the acknowledge");
        equal!(read(&mut guest, IAR1)?, 40, "ICC_IAR1_EL1");
        equal!(lr(0) & STATE, ACTIVE, "state of the LR when active");
        equal!(read(&mut guest, RPR)?, 0x80, "ICC_RPR_EL1");
        equal!(elrsr() & 1, 0, "ICH_ELRSR_EL2 of one in use");
        write(&mut guest, EOIR1, 40)?;
        equal!(lr(0) & STATE, 0, "state of the LR after its end");
        equal!(elrsr() & 1, 1, "ICH_ELRSR_EL2 of a free one");
        equal!(read(&mut guest, RPR)?, 0xff, "ICC_RPR_EL1 when idle");
        equal!(read(&mut guest, IAR1)?, SPURIOUS, "ICC_IAR1_EL1 when idle");
        PASS
    }

    /// By PMR, by the group's enable, by the interface's, by PSTATE.
    fn masked() -> Verdict {
        let mut guest = guest();
        set_lr(0, virq(41, 0x80));
        write(&mut guest, PMR, 0x80)?;
        equal!(mrs!("S3_4_C12_C11_7") >> 24, 0x80, "ICH_VMCR_EL2.VPMR");
        equal!(read(&mut guest, IAR1)?, SPURIOUS, "masked by priority");
        msr!("S3_4_C12_C11_7", VMCR & !2);
        equal!(read(&mut guest, HPPIR1)?, SPURIOUS, "masked by group");
        msr!("S3_4_C12_C11_7", VMCR);
        set_hcr(0);
        guest.set_pstate(OPEN);
        done(&guest.execute(&[l2::NOP]))?;
        set_hcr(EN);
        guest.set_pstate(OPEN);
        let exit = guest.execute(&[SPIN]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 5), "exit: ESR", exit.esr);
        PASS
    }

    fn priorities() -> Verdict {
        let mut guest = guest();
        set_lr(0, virq(50, 0xa0));
        set_lr(1, virq(51, 0x40));
        set_lr(2, virq(52, 0x60));
        for want in [51, 52, 50] {
            equal!(read(&mut guest, HPPIR1)?, want, "ICC_HPPIR1_EL1");
            equal!(read(&mut guest, IAR1)?, want, "ICC_IAR1_EL1");
            // While it is active nothing less urgent comes.
            equal!(
                read(&mut guest, IAR1)?,
                SPURIOUS,
                "ICC_IAR1_EL1 while active"
            );
            write(&mut guest, EOIR1, want)?;
        }
        equal!(mrs!("S3_4_C12_C9_0"), 0, "ICH_AP1R0_EL2");
        PASS
    }

    fn split_end() -> Verdict {
        let mut guest = guest();
        msr!("S3_4_C12_C11_7", VMCR | VEOIM);
        set_lr(0, virq(42, 0x80));
        equal!(read(&mut guest, IAR1)?, 42, "ICC_IAR1_EL1");
        ensure!(mrs!("S3_4_C12_C9_0") != 0, "ICH_AP1R0_EL2", 0);
        write(&mut guest, EOIR1, 42)?;
        equal!(lr(0) & STATE, ACTIVE, "state after the end");
        equal!(read(&mut guest, RPR)?, 0xff, "ICC_RPR_EL1");
        write(&mut guest, DIR, 42)?;
        equal!(lr(0) & STATE, 0, "state after the deactivation");
        PASS
    }

    fn pending_and_active() -> Verdict {
        let mut guest = guest();
        set_lr(0, virq(43, 0x80) | ACTIVE);
        set_lr(1, virq(44, 0x80));
        msr!("S3_4_C12_C9_0", 1 << 16);
        equal!(
            read(&mut guest, IAR1)?,
            SPURIOUS,
            "while the same priority is active"
        );
        write(&mut guest, EOIR1, 43)?;
        equal!(lr(0) & STATE, PENDING, "state after the first end");
        let first = read(&mut guest, IAR1)?;
        ensure!(matches!(first, 43 | 44), "ICC_IAR1_EL1", first);
        PASS
    }

    /// The guest's end deactivates the hypervisor's own interrupt.
    fn hardware_linked() -> Verdict {
        let mut guest = guest();
        gic::set_active(VIRTUAL);
        equal!(gic::is_active(VIRTUAL), true, "active before");
        set_lr(0, virq(60, 0x80) | HW | u64::from(VIRTUAL) << 32);
        equal!(read(&mut guest, IAR1)?, 60, "ICC_IAR1_EL1");
        equal!(
            gic::is_active(VIRTUAL),
            true,
            "active while the guest handles it"
        );
        write(&mut guest, EOIR1, 60)?;
        equal!(
            gic::is_active(VIRTUAL),
            false,
            "active after the guest's end"
        );
        equal!(lr(0) & STATE, 0, "state of the LR");
        PASS
    }

    /// The maintenance interrupt, as the hypervisor's GIC has it: a level.
    fn maintenance() -> bool {
        gic::is_pending(MAINTENANCE)
    }

    fn end_maintenance() -> Verdict {
        let mut guest = guest();
        set_lr(0, virq(45, 0x80) | EOI);
        equal!(read(&mut guest, IAR1)?, 45, "ICC_IAR1_EL1");
        equal!(maintenance(), false, "maintenance before the end");
        guest.set_pstate(l2::EL1H);
        guest.x()[0] = 45;
        let exit = guest.execute(&[exec::msr(EOIR1), l2::ISB, l2::NOP, l2::NOP]);
        ensure!(
            exit.vector == 0x480 || exit.is_hvc(0),
            "exit: ESR",
            exit.esr
        );
        equal!(eisr() & 1, 1, "ICH_EISR_EL2");
        equal!(misr() & 1, 1, "ICH_MISR_EL2.EOI");
        equal!(elrsr() & 1, 0, "ICH_ELRSR_EL2");
        ensure!(
            timer::wait_for(1000, maintenance),
            "maintenance after the end",
            0
        );
        equal!(
            gic::acknowledge(),
            MAINTENANCE,
            "what the hypervisor acknowledges"
        );
        set_lr(0, 0);
        equal!(misr(), 0, "ICH_MISR_EL2 when done");
        gic::end(MAINTENANCE);
        ensure!(
            timer::wait_for(1000, || !maintenance()),
            "maintenance when done",
            1
        );
        PASS
    }

    /// Each condition of ICH_MISR_EL2 with its enable in ICH_HCR_EL2.
    fn maintenance_status() -> Verdict {
        guest();
        const UIE: u64 = 1 << 1;
        const NPIE: u64 = 1 << 3;
        const GROUP1_ON: u64 = 1 << 6;
        const GROUP1_OFF: u64 = 1 << 7;
        for (enable, lrs, vmcr, want) in [
            (UIE, [virq(40, 0x80), 0], VMCR, true),
            (UIE, [virq(40, 0x80), virq(41, 0x80)], VMCR, false),
            (NPIE, [0, 0], VMCR, true),
            (NPIE, [virq(40, 0x80) & !PENDING | ACTIVE, 0], VMCR, true),
            (NPIE, [virq(40, 0x80), 0], VMCR, false),
            (GROUP1_ON, [0, 0], VMCR, true),
            (GROUP1_ON, [0, 0], VMCR & !2, false),
            (GROUP1_OFF, [0, 0], VMCR & !2, true),
            (GROUP1_OFF, [0, 0], VMCR, false),
        ] {
            set_lr(0, lrs[0]);
            set_lr(1, lrs[1]);
            msr!("S3_4_C12_C11_7", vmcr);
            set_hcr(EN | enable);
            equal!(misr() & !1, if want { enable } else { 0 }, "ICH_MISR_EL2");
            set_hcr(EN);
            equal!(misr() & !1, 0, "ICH_MISR_EL2 without the enable");
        }
        clear();
        PASS
    }

    /// The line follows what the hypervisor writes, without a guest having run in between.
    fn maintenance_line() -> Verdict {
        guest();
        const NPIE: u64 = 1 << 3;
        for _ in 0..2 {
            set_hcr(EN | NPIE);
            equal!(maintenance(), true, "maintenance with nothing pending");
            set_lr(0, virq(40, 0x80));
            equal!(maintenance(), false, "maintenance with something pending");
            set_lr(0, 0);
            equal!(maintenance(), true, "maintenance with nothing again");
            set_hcr(NPIE);
            equal!(maintenance(), false, "maintenance with the interface off");
        }
        clear();
        PASS
    }

    /// ICH_HCR_EL2.TALL1, TC and TDIR.
    fn trapped_interface() -> Verdict {
        let mut guest = guest();
        for (bit, register, is_read) in [(12, IAR1, true), (12, EOIR1, false), (10, PMR, true)] {
            for set in [false, true] {
                set_hcr(EN | u64::from(set) << bit);
                guest.set_pstate(l2::EL1H);
                guest.x()[0] = SPURIOUS;
                let word = if is_read {
                    exec::mrs(register)
                } else {
                    exec::msr(register)
                };
                let exit = guest.execute(&[word]);
                if set {
                    equal!(exit.ec(), l2::EC_SYSTEM, "class");
                } else {
                    done(&exit)?;
                }
            }
        }
        clear();
        PASS
    }

    /// What the EL1 timers' names mean here: the hypervisor's own.
    const OWN: [(Timer, u32); 2] = [
        (Timer::Physical, HYP_PHYSICAL),
        (Timer::Virtual, HYP_VIRTUAL),
    ];

    fn own_interrupt() -> Verdict {
        let mut guest = guest();
        for (timer, intid) in OWN {
            timer.start(timer::microseconds(500));
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[SPIN]);
            equal!(exit.vector, 0x480, "vector");
            equal!(guest.pc(), l2::CODE, "ELR_EL2");
            equal!(
                gic::acknowledge(),
                intid,
                "what the hypervisor acknowledges"
            );
            timer.stop();
            gic::end(intid);
        }
        // And one that waits before the guest is entered.
        gic::set_pending(VIRTUAL);
        guest.set_pstate(l2::EL1H);
        let exit = guest.execute(&[SPIN]);
        equal!(exit.vector, 0x480, "vector of one that waited");
        gic::clear_pending(VIRTUAL);
        PASS
    }

    /// A wait of the guest ends at once where its hypervisor has an interrupt for it, masked or not; and
    /// where it has none, or one that the interface holds back, the hypervisor's own timer ends it.
    fn wait_with_something() -> Verdict {
        const VI: u64 = 1 << 7;
        const VF: u64 = 1 << 6;
        const VSE: u64 = 1 << 8;
        let low = VMCR & !(0xff << 24) | 0x40 << 24;
        for (lr, vmcr, hcr, ends) in [
            (virq(45, 0x80), VMCR, 0, true),
            (0, VMCR, VI, true),
            (0, VMCR, VF, true),
            (0, VMCR, VSE, true),
            (0, VMCR, 0, false),
            (virq(45, 0x80), low, 0, false),
            (virq(45, 0x80), VMCR & !2, 0, false),
            (virq(45, 0x80) & !PENDING | ACTIVE, VMCR, 0, false),
        ] {
            let mut guest = guest();
            guest.hcr |= hcr;
            msr!("S3_4_C12_C11_7", vmcr);
            set_lr(0, lr);
            let timer = Timer::Physical;
            timer.start(timer::microseconds(20_000));
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[l2::WFI]);
            timer.stop();
            clear();
            if ends {
                ensure!(
                    exit.is_hvc(l2::DONE),
                    "a wait that ends: vector",
                    exit.vector
                );
            } else {
                equal!(exit.vector, 0x480, "vector where it does not end");
                gic::end(gic::acknowledge());
            }
        }
        PASS
    }

    fn own_timers() -> Verdict {
        for (timer, intid) in OWN {
            equal!(gic::is_pending(intid), false, "pending before");
            timer.start(timer::microseconds(300));
            ensure!(
                timer::wait_for(1000, || gic::is_pending(intid)),
                "own timer",
                intid
            );
            equal!(timer.control() & 5, 5, "CTL");
            timer.stop();
            ensure!(
                timer::wait_for(1000, || !gic::is_pending(intid)),
                "level",
                intid
            );
        }
        PASS
    }

    /// CNTVOFF_EL2 holds for the guest, and not for the hypervisor.
    fn offset() -> Verdict {
        let mut guest = guest();
        for offset in [0, 1 << 20, 1 << 40, 0u64.wrapping_sub(1 << 30)] {
            msr!("cntvoff_el2", offset);
            let before = Timer::Physical.counter();
            let seen = read(&mut guest, sys(3, 3, 14, 0, 2))?;
            let after = Timer::Physical.counter();
            msr!("cntvoff_el2", 0);
            let seen = seen.wrapping_add(offset);
            ensure!(
                (before..=after).contains(&seen),
                "the guest's counter",
                seen
            );
            let own = timer::now();
            ensure!(
                own >= after && own - after < 1 << 28,
                "its own counter",
                own
            );
        }
        PASS
    }

    /// Sets the guest's timer by its EL02 name: an absolute time by the hypervisor's counter.
    fn set_guest_timer(virtual_one: bool, at: u64, control: u64) {
        if virtual_one {
            msr!("S3_5_C14_C3_2", at);
            msr!("S3_5_C14_C3_1", control);
        } else {
            msr!("S3_5_C14_C2_2", at);
            msr!("S3_5_C14_C2_1", control);
        }
    }

    fn guest_control(virtual_one: bool) -> u64 {
        if virtual_one {
            mrs!("S3_5_C14_C3_1")
        } else {
            mrs!("S3_5_C14_C2_1")
        }
    }

    const BOTH: [(bool, u32); 2] = [(true, VIRTUAL), (false, PHYSICAL)];

    /// It fires for the hypervisor, which takes its interrupts.
    fn guest_timer() -> Verdict {
        let mut guest = guest();
        for (which, intid) in BOTH {
            set_guest_timer(which, timer::now() + timer::microseconds(500), 1);
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[SPIN]);
            equal!(exit.vector, 0x480, "vector");
            equal!(
                gic::acknowledge(),
                intid,
                "what the hypervisor acknowledges"
            );
            equal!(guest_control(which), 5, "the guest's CTL");
            set_guest_timer(which, 0, 0);
            gic::end(intid);
        }
        PASS
    }

    fn guest_timer_away() -> Verdict {
        guest();
        for (which, intid) in BOTH {
            set_guest_timer(which, timer::now() + timer::microseconds(300), 1);
            ensure!(
                timer::wait_for(1000, || gic::is_pending(intid)),
                "the guest's timer",
                intid
            );
            set_guest_timer(which, 0, 0);
            ensure!(
                timer::wait_for(1000, || !gic::is_pending(intid)),
                "its level",
                intid
            );
        }
        PASS
    }

    fn guest_timer_status() -> Verdict {
        guest();
        for (which, intid) in BOTH {
            // Masked: the status shows, no interrupt comes.
            set_guest_timer(which, 0, 3);
            equal!(guest_control(which), 7, "CTL, masked and met");
            equal!(gic::is_pending(intid), false, "pending while masked");
            set_guest_timer(which, u64::MAX >> 8, 1);
            equal!(guest_control(which), 1, "CTL, not met");
            set_guest_timer(which, 0, 0);
            equal!(guest_control(which) & 3, 0, "CTL, off");
        }
        PASS
    }

    fn four_timers() -> Verdict {
        let mut guest = guest();
        let now = timer::now();
        let step = timer::microseconds(400);
        set_guest_timer(true, now + step, 1);
        Timer::Physical.set_compare(now + 2 * step);
        Timer::Physical.set_control(1);
        set_guest_timer(false, now + 3 * step, 1);
        Timer::Virtual.set_compare(now + 4 * step);
        Timer::Virtual.set_control(1);
        let mut seen = 0u64;
        for _ in 0..4 {
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[SPIN]);
            equal!(exit.vector, 0x480, "vector");
            let intid = gic::acknowledge();
            match intid {
                VIRTUAL => set_guest_timer(true, 0, 0),
                PHYSICAL => set_guest_timer(false, 0, 0),
                HYP_PHYSICAL => Timer::Physical.stop(),
                HYP_VIRTUAL => Timer::Virtual.stop(),
                _ => {}
            }
            gic::end(intid);
            seen |= 1 << intid;
        }
        let want = [VIRTUAL, PHYSICAL, HYP_PHYSICAL, HYP_VIRTUAL];
        equal!(
            seen,
            want.iter().fold(0u64, |set, n| set | 1 << n),
            "interrupts, by bits"
        );
        done(&guest.execute(&[hvc(0)]))
    }
}
