//! Does a device that a hypervisor plays for its guest work, and one of its own that the guest reaches
//! through stage 2?
//! umbra-vmm: --nested --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_mmio);

#[cfg(target_os = "none")]
mod l1_mmio {
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::l2::{self, Exit, Guest, Home};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::stage2::{AF, RAM, READ, Stage2, WRITE};
    use umbra_guests::rt::{gic, uart};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal};

    /// What stage 2 calls a device's memory, nGnRE.
    const DEVICE: u64 = 1 << 2 | AF | READ | WRITE;
    const HOLE: u64 = 0x0b00_0000;
    /// Where the guest sees the UART, the distributor and the hole.
    const UART_AT: u64 = 0x1000_0000;
    const DIST_AT: u64 = 0x1100_0000;
    const HOLE_AT: u64 = 0x1200_0000;
    const VALUE: u64 = 0x8182_8384_8586_8788;
    const EXTERNAL: u64 = 0x10;
    /// HCR_EL2.TEA.
    const TEA: u64 = 1 << 37;

    pub(super) fn run(suite: &mut Suite) {
        gic::init_distributor();
        suite.check("played-by-the-hypervisor", played);
        suite.check("every-load-played", every_load);
        suite.check("uart-behind-stage-2", uart_behind);
        suite.check("widths-and-signs", widths);
        suite.check("distributor-behind-stage-2", distributor_behind);
        suite.check("hole-behind-stage-2", hole_behind);
        suite.check("cache-operation-on-a-hole", cache_operation);
        suite.check("one-device-at-two-addresses", two_addresses);
        // Linux ends the VM at an access without a syndrome.
        if has_arg("umbra") {
            suite.check("no-syndrome", no_syndrome);
        }
        suite.check("fetch-from-a-device", fetch);
        suite.check("walk-of-stage-1-in-a-device", walk);
    }

    static HOME: Home = Home::new();

    /// One space for all: devices, and a program.
    fn guest() -> (Stage2, Guest) {
        let (space, guest) = HOME.guest_in(Stage2::USUAL, 1, |space| {
            for (at, to) in [(UART_AT, uart::BASE), (DIST_AT, gic::DIST), (HOLE_AT, HOLE)] {
                space.map(at, to, 3, DEVICE);
            }
        });
        (space, guest)
    }

    fn done(exit: &Exit) -> Verdict {
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        PASS
    }

    /// Loads, adds one, stores: the hypervisor plays both accesses.
    fn played() -> Verdict {
        let (_, mut guest) = guest();
        const NOTHING: u64 = 0x2000_0000;
        guest.x()[0] = NOTHING;
        // add x1, x1, #1; str x1, [x0, #8]
        let exit = guest.execute(&[l2::LDR, 0x9100_0421, 0xf900_0401]);
        equal!(exit.ec(), l2::EC_DATA, "class of the load");
        equal!(
            exit.esr >> 16 & 0x1ff,
            0x1 | 3 << 6 | 1 << 8,
            "ISV, SAS, SRT of the load"
        );
        equal!(
            exit.ipa() | exit.far & 0xfff,
            NOTHING,
            "address of the load"
        );
        guest.x()[1] = 41;
        let pc = guest.pc();
        guest.set_pc(pc + 4);
        let exit = guest.run();
        equal!(exit.ec(), l2::EC_DATA, "class of the store");
        equal!(exit.esr >> 6 & 1, 1, "WnR of the store");
        equal!(
            exit.ipa() | exit.far & 0xfff,
            NOTHING + 8,
            "address of the store"
        );
        equal!(guest.x()[1], 42, "what it stores");
        let pc = guest.pc();
        guest.set_pc(pc + 4);
        done(&guest.run())
    }

    /// SRT names the register, whichever it is.
    fn every_load() -> Verdict {
        let (_, mut guest) = guest();
        for register in 1..31u32 {
            guest.x()[0] = 0x2000_0000;
            let exit = guest.execute(&[0xf940_0000 | register]);
            equal!(exit.ec(), l2::EC_DATA, "class");
            equal!(exit.esr >> 16 & 0x1f, register, "SRT");
        }
        PASS
    }

    /// The guest's bytes go to the VMM's UART, and come back.
    fn uart_behind() -> Verdict {
        let (_, mut guest) = guest();
        let scratch = UART_AT + (uart::SCRATCH - uart::BASE);
        for value in [0x5a, 0xa5, 0] {
            guest.x()[0] = scratch;
            guest.x()[1] = value;
            guest.x()[2] = !0;
            // strb w1, [x0]; ldrb w2, [x0]
            done(&guest.execute(&[0x3900_0001, 0x3940_0002]))?;
            equal!(guest.x()[2], value, "what it loads");
            equal!(
                mem::read8(uart::SCRATCH),
                value,
                "what the hypervisor loads"
            );
            mem::write8(uart::SCRATCH, !value as u8);
            done(&guest.execute(&[0x3940_0002]))?;
            equal!(guest.x()[2], !value & 0xff, "what the hypervisor stored");
        }
        PASS
    }

    fn widths() -> Verdict {
        let (_, mut guest) = guest();
        let scratch = UART_AT + (uart::SCRATCH - uart::BASE);
        mem::write8(uart::SCRATCH, 0x85);
        // ldrb w2; ldrsb w2; ldrsb x2
        for (load, want) in [
            (0x3940_0002, 0x85),
            (0x39c0_0002, 0xffff_ff85),
            (0x3980_0002, 0xffff_ffff_ffff_ff85u64),
        ] {
            guest.x()[0] = scratch;
            done(&guest.execute(&[load]))?;
            equal!(guest.x()[2], want, "what it loads");
        }
        PASS
    }

    fn distributor_behind() -> Verdict {
        let (_, mut guest) = guest();
        for register in [0, 4, 8, 0xfe8] {
            guest.x()[0] = DIST_AT + (register & 0xfff);
            // ldr w1, [x0]
            done(&guest.execute(&[0xb940_0001]))?;
            let want = mem::read32(gic::DIST + (register & 0xfff));
            equal!(guest.x()[1], want, "a register of the distributor");
        }
        PASS
    }

    fn hole_behind() -> Verdict {
        let (_, mut guest) = guest();
        guest.x()[0] = HOLE_AT + 0x18;
        guest.x()[1] = VALUE;
        // A store that nobody minds, then a load.
        done(&guest.execute(&[l2::STR, l2::LDR]))?;
        equal!(guest.x()[1], mem::read64(HOLE + 0x18), "what it loads");
        PASS
    }

    /// N19: behind a valid stage 2 there is nothing to maintain.
    fn cache_operation() -> Verdict {
        let (_, mut guest) = guest();
        guest.x()[0] = HOLE_AT;
        // dc civac, dc cvac, dc cvau, dc ivac
        done(&guest.execute(&[0xd50b_7e20, 0xd50b_7a20, 0xd50b_7b20, 0xd508_7620]))
    }

    fn two_addresses() -> Verdict {
        let (space, mut guest) = guest();
        const AGAIN: u64 = 0x1300_0000;
        space.map(AGAIN, uart::BASE, 3, DEVICE);
        let offset = uart::SCRATCH - uart::BASE;
        guest.x()[0] = UART_AT + offset;
        guest.x()[1] = 0x77;
        guest.x()[3] = AGAIN + offset;
        // strb w1, [x0]; ldrb w2, [x3]
        done(&guest.execute(&[0x3900_0001, 0x3940_0062]))?;
        equal!(guest.x()[2], 0x77, "by the other address");
        PASS
    }

    /// The guest's own external abort.
    fn no_syndrome() -> Verdict {
        let (_, mut guest) = guest();
        // ldp x1, x2, [x0]; ldr x1, [x0], #8
        for load in [0xa940_0801, 0xf840_8401] {
            guest.x()[0] = UART_AT;
            let exit = guest.execute(&[load]);
            ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "exit with ESR", exit.esr);
            equal!(guest.el1.esr >> 26, 0x25, "class");
            equal!(guest.el1.esr & 0x3f, EXTERNAL, "status");
            equal!(guest.el1.far, UART_AT, "FAR_EL1");
            equal!(guest.x()[0], UART_AT, "base register");
        }
        PASS
    }

    fn fetch() -> Verdict {
        let (_, mut guest) = guest();
        for at in [UART_AT, HOLE_AT] {
            guest.x()[0] = at;
            guest.hcr &= !TEA;
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[l2::BR]);
            ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "exit with ESR", exit.esr);
            equal!(guest.el1.esr >> 26, 0x21, "class");
            equal!(guest.el1.esr & 0x3f, EXTERNAL, "status");
            equal!(guest.el1.far, at, "FAR_EL1");
            // External aborts are the hypervisor's if it says so.
            guest.hcr |= TEA;
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[l2::BR]);
            equal!(exit.ec(), l2::EC_FETCH, "class with TEA");
            equal!(exit.fsc(), EXTERNAL, "status with TEA");
            equal!(exit.far, at, "FAR_EL2 with TEA");
        }
        PASS
    }

    /// The guest's own tables in a device: an external abort on its walk.
    fn walk() -> Verdict {
        let (space, mut guest) = guest();
        const TABLE: u64 = 0x1400_0000;
        let table = fresh(PAGE, PAGE);
        for at in (0..PAGE).step_by(8) {
            mem::write64(table + at, 0);
        }
        mem::write64(table, 1 << 10 | 3 << 8 | 1 << 2 | 1);
        mem::write64(table + 8, 1 << 30 | 1 << 10 | 3 << 8 | 1 << 2 | 1);
        mem::write64(table + 16, HOLE_AT | 3);
        space.map(TABLE, table, 3, RAM);
        guest.el1.mair = 0x44_ff04;
        guest.el1.tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
        guest.el1.ttbr0 = TABLE;
        guest.el1.sctlr = l2::SCTLR_OFF | 1 | 1 << 2 | 1 << 12;
        guest.x()[0] = 2 << 30;
        let exit = guest.execute(&[l2::LDR]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "exit with ESR", exit.esr);
        equal!(guest.el1.esr >> 26, 0x25, "class");
        equal!(
            guest.el1.esr & 0x3f,
            0x14 | 2,
            "status: external abort on the walk, level 2"
        );
        equal!(guest.el1.far, 2u64 << 30, "FAR_EL1");
        PASS
    }
}
