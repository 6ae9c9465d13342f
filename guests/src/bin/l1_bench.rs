//! What a guest hypervisor's operations cost: some of each kind, between marks that an exit counter sees.
//!
//! As in `bench`, a mark is `orr xzr, xzr, x30`, and each measurement lies between two. Results are
//! checked; what they cost nobody checks here. The word `costly` on the command line asks for those
//! operations that take Linux/KVM billions of instructions each, `many` for the like in great number.
//! umbra-vmm: --nested --cpus 1 --memory 64M,hugepages=off --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_bench);

#[cfg(target_os = "none")]
mod l1_bench {
    use umbra_guests::rt::boot;
    use umbra_guests::rt::l2::{self, Guest, hvc};
    use umbra_guests::rt::mem::{self, PAGE};
    use umbra_guests::rt::stage2::{Stage2, for_guest};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{ensure, equal, mrs, msr, op};

    const COUNT: u64 = 200;
    const PAGES: u64 = 512;
    /// Guests in turn, each with a space of its own.
    const MOST: usize = 64;
    /// Where the guest finds its pages; the other one is not mapped.
    const DATA: u64 = 0x9000_0000;
    const NOTHING: u64 = 0x0100_0000;

    /// `b` to the instruction before.
    const BACK: u32 = 0x17ff_ffff;
    /// `ldr x1, [x0]`, `add x0, x0, x2`, `subs x3, x3, #1`, `b.ne` to the first.
    const TOUCH: [u32; 4] = [l2::LDR, 0x8b02_0000, 0xf100_0463, 0x54ff_ffa1];

    pub(super) fn run(suite: &mut Suite) {
        let space = Stage2::usual();
        let memory = mem::fresh(PAGES * PAGE, PAGE);
        for page in 0..PAGES {
            // Resident before anybody measures.
            mem::write64(memory + page * PAGE, page);
            space.map_page(DATA + page * PAGE, memory + page * PAGE);
        }
        let mut guest = Guest::new(&space, 1);
        let guest = &mut guest;
        if boot::has_arg("costly") {
            suite.check("tlbi-all", || tlbi_all(guest));
            suite.check("contexts-in-turn", || in_turn(guest, 2, COUNT as usize));
            // Where there are only a few shadows, each visit costs seconds: some suffice.
            suite.check("many-contexts-in-turn", || in_turn(guest, 16, 4));
            return;
        }
        if boot::has_arg("many") {
            suite.check("many-contexts-in-turn", || in_turn(guest, MOST, 2 * MOST));
            return;
        }
        suite.check("hypercall", || hypercall(guest));
        suite.check("device", || device(guest));
        suite.check("register-read", register_read);
        suite.check("register-write", register_write);
        suite.check("tlbi-own", tlbi_own);
        suite.check("fill", || fill(guest));
        suite.check("at", || translate(guest));
        suite.check("tlbi-page", || tlbi_page(guest));
    }

    fn mark() {
        op!("orr xzr, xzr, x30");
    }

    /// A guest's `hvc`, and back into it at once.
    fn hypercall(guest: &mut Guest) -> Verdict {
        let mut right = u64::from(guest.execute(&[hvc(1), BACK]).is_hvc(1));
        mark();
        for _ in 0..COUNT {
            right += u64::from(guest.run().is_hvc(1));
        }
        mark();
        equal!(right, COUNT + 1, "exits by hvc");
        PASS
    }

    /// A guest's load from where nothing is, which its hypervisor answers.
    fn device(guest: &mut Guest) -> Verdict {
        guest.x()[0] = NOTHING;
        let mut right = u64::from(guest.execute(&[l2::LDR, BACK]).ipa() == NOTHING);
        mark();
        for _ in 0..COUNT {
            guest.x()[1] = 0x55;
            guest.set_pc(guest.pc() + 4);
            right += u64::from(guest.run().ipa() == NOTHING);
        }
        mark();
        equal!(right, COUNT + 1, "loads that were seen");
        PASS
    }

    /// ICH_MISR_EL2, which changes by itself and so has no place in memory.
    fn register_read() -> Verdict {
        let mut all = 0;
        mark();
        for _ in 0..COUNT {
            all |= mrs!("s3_4_c12_c11_2");
        }
        mark();
        equal!(all, 0, "maintenance interrupts of nothing");
        PASS
    }

    /// CPTR_EL2 by its other name, with the value that it has.
    fn register_write() -> Verdict {
        let value = mrs!("cpacr_el1");
        mark();
        for _ in 0..COUNT {
            msr!("cpacr_el1", value);
        }
        mark();
        equal!(mrs!("cpacr_el1"), value, "CPTR_EL2");
        PASS
    }

    /// What Linux at virtual EL2 does for every page that it unmaps.
    fn tlbi_own() -> Verdict {
        mark();
        for page in 0..COUNT {
            op!("tlbi vaale1is", page);
        }
        mark();
        PASS
    }

    fn touch(guest: &mut Guest) -> Verdict {
        *guest.x() = [0; 31];
        guest.x()[0] = DATA;
        guest.x()[2] = PAGE;
        guest.x()[3] = PAGES;
        let exit = guest.execute(&TOUCH);
        ensure!(exit.is_hvc(l2::DONE), "ESR_EL2 after touching", exit.esr);
        equal!(guest.x()[1], PAGES - 1, "word of the last page");
        PASS
    }

    /// First touches of pages that the guest hypervisor has mapped.
    fn fill(guest: &mut Guest) -> Verdict {
        mark();
        let verdict = touch(guest);
        mark();
        verdict
    }

    fn translate(guest: &mut Guest) -> Verdict {
        let mut par = 0;
        for_guest(guest.vttbr, || {
            mark();
            for _ in 0..COUNT {
                op!("at s12e1r", DATA);
                op!("isb");
            }
            mark();
            par = mrs!("par_el1");
        });
        equal!(par & 1, 0, "PAR_EL1.F");
        PASS
    }

    /// Takes back one page after the other, each of which is mapped.
    fn tlbi_page(guest: &mut Guest) -> Verdict {
        touch(guest)?;
        for_guest(guest.vttbr, || {
            mark();
            for page in 0..COUNT {
                op!("tlbi ipas2e1is", (DATA >> 12) + page);
            }
            mark();
            op!("dsb ish");
            op!("tlbi vmalle1is");
            op!("dsb ish");
        });
        touch(guest)
    }

    /// Takes back all, once.
    fn tlbi_all(guest: &mut Guest) -> Verdict {
        touch(guest)?;
        for_guest(guest.vttbr, || {
            mark();
            op!("tlbi vmalls12e1is");
            mark();
            op!("dsb ish");
        });
        touch(guest)
    }

    /// Guests with spaces of their own, in turn: each has been there before, and then some visits are measured.
    fn in_turn(guest: &Guest, count: usize, visits: usize) -> Verdict {
        guest.write_program(&[hvc(1), BACK]);
        let mut roots = [0; MOST];
        for root in &mut roots[..count] {
            let space = Stage2::usual();
            space.map_page(l2::CODE, guest.code());
            *root = space.root;
        }
        let mut right = 0;
        let mut visit = |number: usize| {
            let space = Stage2 {
                root: roots[number % count],
                ..Stage2::USUAL
            };
            let vmid = 2 + (number % count) as u64;
            let mut other = Guest::with_code(&space, vmid, guest.code());
            right += usize::from(other.run().is_hvc(1));
        };
        (0..count).for_each(&mut visit);
        mark();
        (0..visits).for_each(&mut visit);
        mark();
        equal!(right, count + visits, "exits by hvc");
        PASS
    }
}
