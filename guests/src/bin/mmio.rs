//! What does an access outside RAM do: to a device, to nothing, by load, fetch, walk and cache operation?
//! umbra-vmm: --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(mmio);

#[cfg(target_os = "none")]
mod mmio {
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::exec::{Regs, exec};
    use umbra_guests::rt::mmu::{self, DEVICE, NORMAL, PAGE_OR_TABLE};
    use umbra_guests::rt::{Fault, expect, gic, mem, uart};
    use umbra_guests::suite::{Failure, PASS, Suite, Verdict, skip};
    use umbra_guests::{clean, ensure, equal, faults, op};

    const DATA_ABORT: u64 = 0x25;
    const FETCH_ABORT: u64 = 0x21;
    /// Synchronous external abort; on a walk, 0x14 + level.
    const SEA: u64 = 0x10;
    const SEA_WALK: u64 = 0x14;
    /// Nothing is here.
    const HOLE: u64 = 0x0b00_0000;
    /// First address beyond what a VM of the default size has.
    const BEYOND: u64 = 1 << 40;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("device-load", device_load);
        suite.check("device-store", device_store);
        suite.check("sign-extension", sign_extension);
        suite.check("zero-extension", zero_extension);
        suite.check("register-31", register_31);
        suite.check("addressing-forms", addressing_forms);
        suite.check("hole-reads-zero", hole_reads_zero);
        suite.check("hole-takes-writes", hole_takes_writes);
        suite.check("normal-memory-hole", normal_memory_hole);
        suite.check("hole/no-syndrome", no_syndrome);
        suite.check("hole/no-syndrome-leaves-registers", no_syndrome_registers);
        suite.check("hole/fetch", fetch);
        suite.check("hole/walk-by-load", || walk(load));
        suite.check("hole/walk-by-store", || {
            walk(|va| expect(|| mem::write64(va, 1)))
        });
        suite.check("hole/walk-by-fetch", walk_by_fetch);
        suite.check("hole/walk-by-translation", walk_by_translation);
        suite.check("hole/cache-operations", cache_operations);
        suite.check("beyond-the-vm", beyond_the_vm);
        suite.check("beyond-the-vm/fetch", beyond_fetch);
        suite.check("goes-on", goes_on);
    }

    fn load(va: u64) -> Option<Fault> {
        expect(|| mem::read64(va))
    }

    /// Executes an instruction on [x1] with x0 = `x0`, x2 = `x2`; the registers behind it.
    fn access(instruction: u32, at: u64, x0: u64, x2: u64) -> Result<Regs, Failure> {
        let mut regs = Regs::pattern(9);
        (regs.x[0], regs.x[1], regs.x[2]) = (x0, at, x2);
        clean!(exec(instruction, &mut regs), "access");
        Ok(regs)
    }

    fn device_load() -> Verdict {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            mem::write8(uart::SCRATCH, value);
            equal!(mem::read8(uart::SCRATCH), value, "byte of the VMM's device");
            // ldarb w0, [x1]
            equal!(
                access(0x08df_fc20, uart::SCRATCH, !0, 0)?.x[0],
                value,
                "ldarb"
            );
        }
        // Registers that the hypervisor answers, by word and by double word.
        let router = gic::DIST + 0x6000 + 32 * 8;
        mem::write64(router, 0);
        equal!(mem::read64(router), 0, "8 bytes of GICD_IROUTER");
        ensure!(mem::read32(gic::DIST + 4) != 0, "GICD_TYPER", 0);
        let typer = mem::read64(gic::REDIST + 8);
        equal!(
            mem::read32(gic::REDIST + 8),
            typer & 0xffff_ffff,
            "low half of GICR_TYPER"
        );
        equal!(
            mem::read32(gic::REDIST + 12),
            typer >> 32,
            "high half of GICR_TYPER"
        );
        PASS
    }

    fn device_store() -> Verdict {
        let priorities = gic::DIST + 0x400 + 32;
        mem::write32(priorities, 0x1020_3040);
        for (n, want) in (0..).zip([0x40, 0x30, 0x20, 0x10]) {
            equal!(mem::read8(priorities + n), want, "byte of a word written");
        }
        mem::write8(priorities + 2, 0xf8);
        equal!(
            mem::read32(priorities),
            0x10f8_3040,
            "word of which a byte was written"
        );
        // stlrb w0, [x1]
        access(0x089f_fc20, uart::SCRATCH, 0x1177, 0)?;
        equal!(mem::read8(uart::SCRATCH), 0x77, "stlrb");
        PASS
    }

    fn sign_extension() -> Verdict {
        mem::write8(uart::SCRATCH, 0x80);
        // ldrsb x0, [x1]; ldrsb w0, [x1]
        equal!(
            access(0x3980_0020, uart::SCRATCH, 0, 0)?.x[0],
            (-128i64),
            "ldrsb x"
        );
        equal!(
            access(0x39c0_0020, uart::SCRATCH, !0, 0)?.x[0],
            0xffff_ff80u32,
            "ldrsb w"
        );
        mem::write8(uart::SCRATCH, 0x7f);
        equal!(
            access(0x3980_0020, uart::SCRATCH, !0, 0)?.x[0],
            0x7f,
            "ldrsb x, positive"
        );
        let priorities = gic::DIST + 0x400 + 32;
        mem::write32(priorities, 0xf8f8_f8f8);
        // ldrsw x0, [x1]
        let want = 0xffff_ffff_f8f8_f8f8_u64;
        equal!(access(0xb980_0020, priorities, 0, 0)?.x[0], want, "ldrsw");
        PASS
    }

    fn zero_extension() -> Verdict {
        mem::write8(uart::SCRATCH, 0x81);
        // ldrb w0; ldr w0 of a hole; ldrh w0 of a hole
        equal!(
            access(0x3940_0020, uart::SCRATCH, !0, 0)?.x[0],
            0x81,
            "ldrb"
        );
        equal!(access(0xb940_0020, HOLE, !0, 0)?.x[0], 0, "ldr w");
        equal!(access(0x7940_0020, HOLE, !0, 0)?.x[0], 0, "ldrh");
        PASS
    }

    /// Register 31 of a load or store is zero, not SP.
    fn register_31() -> Verdict {
        mem::write8(uart::SCRATCH, 0x5a);
        // ldrb wzr, [x1]; strb wzr, [x1]; str xzr, [x1] to a hole
        let before = Regs::pattern(9).x;
        let after = access(0x3940_003f, uart::SCRATCH, before[0], before[2])?;
        equal!(after.sp_moved, 0, "SP");
        equal!(after.x[30], before[30], "x30");
        access(0x3900_003f, uart::SCRATCH, 0, 0)?;
        equal!(mem::read8(uart::SCRATCH), 0, "stored from register 31");
        access(0xf900_003f, HOLE, 0, 0)?;
        PASS
    }

    fn addressing_forms() -> Verdict {
        mem::write8(uart::SCRATCH, 0x3c);
        // ldrb w0, [x1, #7]; ldrb w0, [x1, x2]; ldurb w0, [x1, #-1]
        equal!(
            access(0x3940_1c20, uart::BASE, 0, 0)?.x[0],
            0x3c,
            "immediate"
        );
        equal!(
            access(0x3862_6820, uart::BASE, 0, 7)?.x[0],
            0x3c,
            "register"
        );
        equal!(
            access(0x385f_f020, uart::BASE + 8, 0, 0)?.x[0],
            0x3c,
            "negative"
        );
        PASS
    }

    fn hole_reads_zero() -> Verdict {
        for at in [
            HOLE,
            HOLE + 0xff8,
            0x0002_0000,
            0x3fff_fff8,
            0x0a00_0000,
            0xffff_fff8,
        ] {
            let probe = || {
                let all = mem::read64(at) | u64::from(mem::read32(at));
                let all = all | u64::from(mem::read16(at)) | u64::from(mem::read8(at));
                assert!(all == 0, "{at:#x} reads {all:#x}");
            };
            clean!(expect(probe), "load");
        }
        PASS
    }

    fn hole_takes_writes() -> Verdict {
        let probe = || {
            mem::write8(HOLE, 1);
            mem::write16(HOLE + 2, 2);
            mem::write32(HOLE + 4, 3);
            mem::write64(HOLE + 8, 4);
        };
        clean!(expect(probe), "store");
        equal!(
            mem::read64(HOLE) | mem::read64(HOLE + 8),
            0,
            "what was written"
        );
        PASS
    }

    /// The guest's memory type makes no difference to what is not there.
    fn normal_memory_hole() -> Verdict {
        let va = mmu::map_new(HOLE, NORMAL);
        clean!(load(va), "load");
        clean!(expect(|| mem::write32(va + 4, 1)), "store");
        PASS
    }

    /// Instructions of which the syndrome does not say what they do.
    const NO_SYNDROME: [u32; 8] = [
        0xa940_0c22, // ldp x2, x3, [x1]
        0xa900_0c22, // stp x2, x3, [x1]
        0xf840_8422, // ldr x2, [x1], #8
        0xf800_8c22, // str x2, [x1, #8]!
        0x3dc0_0020, // ldr q0, [x1]
        0xc85f_7c22, // ldxr x2, [x1]
        0xf822_0023, // ldadd x2, x3, [x1]
        0x0c40_7020, // ld1 {v0.8b}, [x1]
    ];

    fn no_syndrome() -> Verdict {
        if !has_arg("umbra") {
            return skip("Linux ends the VM (ENOSYS)");
        }
        for instruction in NO_SYNDROME {
            let mut regs = Regs::pattern(21);
            regs.x[1] = HOLE + 0x40;
            let fault = faults!(exec(instruction, &mut regs), DATA_ABORT, "access");
            equal!(fault.fsc(), SEA, "FSC");
            let address = fault.far & !0xf;
            equal!(address, HOLE + 0x40, "FAR");
        }
        PASS
    }

    fn no_syndrome_registers() -> Verdict {
        if !has_arg("umbra") {
            return skip("Linux ends the VM (ENOSYS)");
        }
        for instruction in NO_SYNDROME {
            let mut regs = Regs::pattern(22);
            regs.x[1] = uart::BASE + 0x40;
            let before = regs;
            faults!(exec(instruction, &mut regs), DATA_ABORT, "access");
            let changed = (0..31).filter(|n| regs.x[*n] != before.x[*n]).count();
            equal!(changed, 0, "registers changed");
        }
        PASS
    }

    fn fetch() -> Verdict {
        let va = mmu::map_new(HOLE, NORMAL);
        for offset in [0, 0x7fc] {
            let probe = expect(|| mem::call(va + offset, 0));
            let fault = faults!(probe, FETCH_ABORT, "fetch");
            equal!(fault.fsc(), SEA, "FSC");
            equal!(fault.far, va + offset, "FAR");
            equal!(fault.elr, va + offset, "ELR");
        }
        // A device is no place for code either.
        let va = mmu::map_new(uart::BASE, NORMAL);
        let fault = faults!(expect(|| mem::call(va, 0)), FETCH_ABORT, "device");
        equal!(fault.fsc(), SEA, "FSC");
        PASS
    }

    /// A virtual address whose table of `level` is where nothing is.
    fn table_in_hole(level: u32) -> u64 {
        // Level 1 tables hang from the root: an entry of it that nothing else uses.
        let va = match level {
            1 => mmu::WINDOW * 3,
            _ => mmu::window(),
        };
        mmu::set(
            mmu::descriptor(va, level - 1),
            (HOLE + 0x1000) | PAGE_OR_TABLE,
        );
        va
    }

    fn walk(probe: fn(u64) -> Option<Fault>) -> Verdict {
        for level in [1, 2, 3] {
            let va = table_in_hole(level) + 0x18;
            let fault = faults!(probe(va), DATA_ABORT, "table in a hole");
            equal!(fault.fsc(), SEA_WALK + u64::from(level), "FSC");
            equal!(fault.far, va, "FAR");
            equal!(fault.esr >> 7 & 1, 0, "S1PTW");
        }
        PASS
    }

    fn walk_by_fetch() -> Verdict {
        for level in [1, 2, 3] {
            let va = table_in_hole(level) + 0x18;
            let fault = faults!(expect(|| mem::call(va, 0)), FETCH_ABORT, "fetch");
            equal!(fault.fsc(), SEA_WALK + u64::from(level), "FSC");
            equal!(fault.far, va, "FAR");
            equal!(fault.elr, va, "ELR");
        }
        PASS
    }

    fn walk_by_translation() -> Verdict {
        let va = table_in_hole(3);
        let probe = || {
            op!("at s1e1r", va);
            op!("isb");
        };
        let fault = faults!(expect(probe), DATA_ABORT, "AT with a table in a hole");
        equal!(fault.fsc(), SEA_WALK + 3, "FSC");
        PASS
    }

    /// There is nothing to clean: the hypervisor passes over it.
    fn cache_operations() -> Verdict {
        let (normal, device) = (mmu::map_new(HOLE, NORMAL), mmu::map_new(HOLE, DEVICE));
        for va in [normal, device] {
            let probe = || {
                op!("dc civac", va);
                op!("dc cvac", va + 64);
                op!("dc ivac", va + 128);
                op!("dc cvau", va + 192);
                op!("ic ivau", va);
                op!("dsb sy");
            };
            clean!(expect(probe), "cache operation");
        }
        PASS
    }

    /// An external abort; an address size fault where the machine does not claim such addresses.
    fn beyond(fsc: u64) -> Verdict {
        let want = if mem::pa_bits() > 40 { SEA } else { 3 };
        equal!(fsc, want, "FSC");
        PASS
    }

    /// FAR holds the virtual address; Linux 7.2 puts the physical one there in this case.
    fn far(far: u64, va: u64, pa: u64) -> Verdict {
        ensure!(far == va || (!has_arg("umbra") && far == pa), "FAR", far);
        PASS
    }

    fn beyond_the_vm() -> Verdict {
        for pa in [
            BEYOND,
            BEYOND + 0x8000_0000,
            (1 << mem::pa_bits()) - mem::PAGE,
        ] {
            if pa < BEYOND {
                continue;
            }
            let va = mmu::map_new(pa, NORMAL) + 0x28;
            let fault = faults!(load(va), DATA_ABORT, "load");
            beyond(fault.fsc())?;
            far(fault.far, va, pa + 0x28)?;
            let fault = faults!(expect(|| mem::write32(va, 1)), DATA_ABORT, "store");
            beyond(fault.fsc())?;
        }
        PASS
    }

    fn beyond_fetch() -> Verdict {
        let va = mmu::map_new(BEYOND, NORMAL);
        let fault = faults!(expect(|| mem::call(va, 0)), FETCH_ABORT, "fetch");
        beyond(fault.fsc())?;
        far(fault.far, va, BEYOND)
    }

    fn goes_on() -> Verdict {
        mem::write8(uart::SCRATCH, 0x42);
        equal!(mem::read8(uart::SCRATCH), 0x42, "scratch register");
        let page = mem::fresh(mem::PAGE, mem::PAGE);
        mem::write64(page, 1);
        equal!(mem::read64(page), 1, "memory");
        PASS
    }
}
