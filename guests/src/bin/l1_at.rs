//! Does AT answer a hypervisor for its guest and for itself, whatever tables it is asked about?
//! umbra-vmm: --nested --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_at);

#[cfg(target_os = "none")]
mod l1_at {
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::l2::{self, Guest, Home};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::stage2::{RAM, Stage2, WRITE, for_guest};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{clean, ensure, equal, mrs, msr};

    pub(super) fn run(suite: &mut Suite) {
        suite.check("of-the-guest", of_the_guest);
        suite.check("stage-1", at_stage1);
        suite.check("both-stages", at_both);
        suite.check("faults", at_faults);
        suite.check("own", at_own);
        // Linux 7.3.4 never finishes an AT whose stage 2 cannot be walked ([BR7], [BR12]).
        if has_arg("umbra") {
            suite.check("bad-stage-2", at_bad_stage2);
        }
    }

    static HOME: Home = Home::new();

    fn guest() -> (Stage2, Guest) {
        HOME.guest(1)
    }

    /// HCR_EL2.AT: a guest's own AT is its hypervisor's to answer.
    fn of_the_guest() -> Verdict {
        if mrs!("id_aa64mmfr2_el1") >> 24 & 0xf == 0 {
            return skip("no FEAT_NV, without which the control is reserved");
        }
        let (_, mut guest) = guest();
        let exit = guest.execute(&[exec::msr(S1E1R)]);
        ensure!(exit.is_hvc(l2::DONE), "without the control: ESR", exit.esr);
        guest.hcr |= 1 << 44;
        let exit = guest.execute(&[exec::msr(S1E1R)]);
        equal!(exit.ec(), l2::EC_SYSTEM, "class with HCR_EL2.AT");
        // Op0 21:20, CRn 13:10, CRm 4:1.
        equal!(exit.esr & 0x1ff_ffff, 1 << 20 | 7 << 10 | 8 << 1, "ISS");
        PASS
    }

    const S1E1R: u32 = sys(1, 0, 7, 8, 0);
    const S1E1W: u32 = sys(1, 0, 7, 8, 1);
    const S1E0R: u32 = sys(1, 0, 7, 8, 2);
    const S1E2R: u32 = sys(1, 4, 7, 8, 0);
    const S1E2W: u32 = sys(1, 4, 7, 8, 1);
    const S12E1R: u32 = sys(1, 4, 7, 8, 4);
    const S12E1W: u32 = sys(1, 4, 7, 8, 5);
    const S12E0R: u32 = sys(1, 4, 7, 8, 6);

    /// Where the guest's tables lie, and its address of what they map to AT_IPA: a page, level 3.
    const TABLES: u64 = 0x4800_0000;
    const VA: u64 = 0x12_3456_7000;
    const AT_IPA: u64 = 0x5000_0000;

    /// A guest with stage 1 on, three levels; the page's descriptor has these attributes.
    fn translated(attributes: u64) -> (Stage2, Guest, u64) {
        let (space, mut guest) = guest();
        let tables = fresh(3 * PAGE, PAGE);
        for at in (0..3 * PAGE).step_by(8) {
            mem::write64(tables + at, 0);
        }
        for n in 0..3 {
            space.set(TABLES + n * PAGE, 3, (tables + n * PAGE) | RAM | 3);
        }
        let index = |level: u64| (VA >> (39 - 9 * level) & 0x1ff) * 8;
        mem::write64(tables + index(1), (TABLES + PAGE) | 3);
        mem::write64(tables + PAGE + index(2), (TABLES + 2 * PAGE) | 3);
        mem::write64(tables + 2 * PAGE + index(3), AT_IPA | attributes | 3);
        guest.el1.mair = 0x44_ff04;
        guest.el1.tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
        guest.el1.ttbr0 = TABLES;
        guest.el1.sctlr = l2::SCTLR_OFF | 1 | 1 << 2 | 1 << 12;
        let vttbr = space.vttbr(1);
        umbra_guests::rt::stage2::forget_vmid(vttbr);
        let ram = fresh(PAGE, PAGE);
        space.set(AT_IPA, 3, ram | RAM | 3);
        umbra_guests::rt::stage2::forget_ipa(vttbr, AT_IPA, 0);
        (space, guest, ram)
    }

    /// PAR_EL1 after an AT with the guest's registers loaded.
    fn ask(guest: &Guest, op: u32, va: u64) -> Result<u64, umbra_guests::suite::Failure> {
        guest.el1.load();
        msr!("vtcr_el2", guest.vtcr);
        let mut regs = Regs::pattern(1);
        regs.x[0] = va;
        let fault = for_guest(guest.vttbr, || exec(exec::msr(op), &mut regs));
        match fault {
            None => Ok(mrs!("par_el1")),
            Some(fault) => Err(umbra_guests::suite::Failure {
                what: "AT: ESR",
                got: fault.esr,
                want: None,
            }),
        }
    }

    const NORMAL: u64 = 1 << 2 | 3 << 8 | 1 << 10;
    const READ_ONLY: u64 = 1 << 7;
    const EL0: u64 = 1 << 6;

    fn page(par: u64) -> u64 {
        par & 0x000f_ffff_ffff_f000
    }

    fn at_stage1() -> Verdict {
        let (_, guest, _) = translated(NORMAL | EL0);
        for op in [S1E1R, S1E1W, S1E0R] {
            let par = ask(&guest, op, VA | 0x123)?;
            equal!(par & 1, 0, "PAR_EL1.F");
            equal!(page(par), AT_IPA, "PAR_EL1.PA");
            equal!(par >> 56, 0xff, "PAR_EL1.ATTR");
            equal!(par >> 7 & 3, 3, "PAR_EL1.SH");
        }
        PASS
    }

    fn at_both() -> Verdict {
        let (_, guest, ram) = translated(NORMAL | EL0);
        for op in [S12E1R, S12E1W, S12E0R] {
            let par = ask(&guest, op, VA | 0x123)?;
            equal!(par & 1, 0, "PAR_EL1.F");
            equal!(page(par), ram, "PAR_EL1.PA");
        }
        PASS
    }

    /// F, status, S (stage 2), PTW.
    fn fails(par: u64, status: u64, stage2: bool, walk: bool) -> Verdict {
        equal!(par & 1, 1, "PAR_EL1.F");
        equal!(par >> 1 & 0x3f, status, "PAR_EL1.FST");
        equal!(par >> 9 & 1, stage2, "PAR_EL1.S");
        equal!(par >> 8 & 1, walk, "PAR_EL1.PTW");
        PASS
    }

    fn at_faults() -> Verdict {
        let (space, guest, ram) = translated(NORMAL | READ_ONLY);
        fails(ask(&guest, S1E1W, VA)?, 0x0f, false, false)?;
        fails(ask(&guest, S1E0R, VA)?, 0x0f, false, false)?;
        fails(ask(&guest, S1E1R, VA + PAGE)?, 0x07, false, false)?;
        fails(ask(&guest, S12E1R, VA + (1 << 30))?, 0x05, false, false)?;
        equal!(page(ask(&guest, S12E1R, VA)?), ram, "readable");
        // Stage 2 of the output, then of a table.
        let vttbr = guest.vttbr;
        let set = |ipa, word| {
            space.set(ipa, 3, word);
            umbra_guests::rt::stage2::forget_ipa(vttbr, ipa, 0);
        };
        set(AT_IPA, 0);
        fails(ask(&guest, S12E1R, VA)?, 0x07, true, false)?;
        equal!(page(ask(&guest, S1E1R, VA)?), AT_IPA, "stage 1 alone");
        set(AT_IPA, ram | RAM & !WRITE | 3);
        equal!(page(ask(&guest, S12E1R, VA)?), ram, "readable");
        let table = mem::read64(space.descriptor(TABLES + 2 * PAGE, 3));
        set(TABLES + 2 * PAGE, 0);
        fails(ask(&guest, S12E1R, VA)?, 0x07, true, true)?;
        fails(ask(&guest, S1E1R, VA)?, 0x07, true, true)?;
        set(TABLES + 2 * PAGE, table);
        equal!(page(ask(&guest, S12E1R, VA)?), ram, "with its table again");
        PASS
    }

    /// The hypervisor's own translations.
    fn at_own() -> Verdict {
        let va = &raw const HOME as u64;
        for op in [S1E2R, S1E2W, S1E1R] {
            let mut regs = Regs::pattern(2);
            regs.x[0] = va;
            clean!(exec(exec::msr(op), &mut regs), "AT");
            let par = mrs!("par_el1");
            equal!(par & 1, 0, "PAR_EL1.F");
            equal!(page(par), va & !0xfff, "PAR_EL1.PA");
            regs.x[0] = 0x7000_0000_0000;
            clean!(exec(exec::msr(op), &mut regs), "AT");
            let par = mrs!("par_el1");
            equal!(par & 0x7f, 0x4 << 1 | 1, "PAR_EL1 of nothing");
        }
        PASS
    }

    /// [BR7]: tables nowhere, in a device, or a geometry that cannot be: an answer, with F.
    fn at_bad_stage2() -> Verdict {
        let (_, mut guest, ram) = translated(NORMAL);
        let good = (guest.vttbr, guest.vtcr);
        for root in [0x0b00_0000, 0x0900_0000, 0x7f_0000_0000] {
            guest.vttbr = root | 1 << 48;
            for op in [S1E1R, S12E1R, S12E1W] {
                equal!(ask(&guest, op, VA)? & 1, 1, "PAR_EL1.F of a bad VTTBR_EL2");
            }
        }
        guest.vttbr = good.0;
        for geometry in [25 | 3 << 6, 16 | 1 << 6, 0] {
            guest.vtcr = good.1 & !0xff | geometry;
            let par = ask(&guest, S12E1R, VA)?;
            equal!(par & 1, 1, "PAR_EL1.F of a bad VTCR_EL2");
            equal!(par >> 9 & 1, 1, "PAR_EL1.S of a bad VTCR_EL2");
        }
        guest.vtcr = good.1;
        equal!(
            page(ask(&guest, S12E1R, VA)?),
            ram,
            "PAR_EL1.PA of a good one"
        );
        PASS
    }
}
