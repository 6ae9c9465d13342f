//! Is nothing stale after a hypervisor's TLBI and DSB: by every instruction, also while another CPU runs
//! its guest?
//! umbra-vmm: --nested --cpus 2 --memory 128M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_tlbi);

#[cfg(target_os = "none")]
mod l1_tlbi {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::l2::{self, Guest, hvc};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::mmu;
    use umbra_guests::rt::stage2::{self, AF, DBM, RAM, Stage2, WRITE, for_guest};
    use umbra_guests::rt::{smp, timer};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{clean, ensure, equal, mrs, op};

    const TRANSLATION: u64 = 0x04;
    const PERMISSION: u64 = 0x0c;
    const OLD: u64 = 0x01d0_01d0_01d0_01d0;
    const NEW: u64 = 0x0e00_0e00_0e00_0e00;
    const DEAD: u64 = 0xdead_dead_dead_dead;
    /// What the checks map.
    const AT: u64 = 0x5000_0000;
    const BLOCK: u64 = 2 << 20;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("each-instruction", || each(false));
        suite.check("each-instruction-on-a-block", || each(true));
        suite.check("nxs-forms", not_xs);
        suite.check("level-hint", level_hint);
        suite.check("ranges", ranges);
        suite.check("other-vmid", other_vmid);
        suite.check("vmid-with-other-tables", other_tables);
        suite.check("stage-1-of-the-guest", stage1_of_guest);
        suite.check("its-own-stage-1", own_stage1);
        suite.check("rights-taken", rights_taken);
        suite.check("table-taken", table_taken);
        equal_or_panic(smp::start(1));
        suite.check("fill-vs-tlbi", || storm(0, Take::Page));
        suite.check("storm-of-ranges", || storm(6, Take::Page));
        suite.check("storm-of-all", || storm(12, Take::Page));
        suite.check("storm-of-every-vmid", || storm(15, Take::Page));
        suite.check("storm-of-tables", || storm(12, Take::Table));
        suite.check("stores-after-the-tlbi", stores);
        suite.check("access-flag-and-dirty-race", dirty_race);
        suite.check("tables-under-the-walker", noise);
    }

    fn equal_or_panic(status: Option<i32>) {
        assert!(status == Some(0), "CPU 1 does not start: {status:?}");
    }

    /// What the operand of a TLBI names.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Names {
        Page,
        Range,
        All,
    }

    /// op1 4 throughout: CRm, op2, operand; those of OS and ranges from their features on.
    const INSTRUCTIONS: [(u32, u32, Names); 18] = [
        (0, 1, Names::Page),  // IPAS2E1IS
        (0, 5, Names::Page),  // IPAS2LE1IS
        (4, 1, Names::Page),  // IPAS2E1
        (4, 5, Names::Page),  // IPAS2LE1
        (4, 0, Names::Page),  // IPAS2E1OS
        (4, 4, Names::Page),  // IPAS2LE1OS
        (0, 2, Names::Range), // RIPAS2E1IS
        (0, 6, Names::Range), // RIPAS2LE1IS
        (4, 2, Names::Range), // RIPAS2E1
        (4, 6, Names::Range), // RIPAS2LE1
        (4, 3, Names::Range), // RIPAS2E1OS
        (4, 7, Names::Range), // RIPAS2LE1OS
        (3, 6, Names::All),   // VMALLS12E1IS
        (7, 6, Names::All),   // VMALLS12E1
        (1, 6, Names::All),   // VMALLS12E1OS
        (3, 4, Names::All),   // ALLE1IS
        (7, 4, Names::All),   // ALLE1
        (1, 4, Names::All),   // ALLE1OS
    ];

    /// Whether this machine has it: ID_AA64ISAR0_EL1.TLB.
    fn is_there((crm, op2, names): (u32, u32, Names)) -> bool {
        let tlb = mrs!("id_aa64isar0_el1") >> 56 & 0xf;
        let outer = crm == 1 || crm == 4 && matches!(op2, 0 | 3 | 4 | 7);
        tlb >= if names == Names::Range {
            2
        } else {
            u64::from(outer)
        }
    }

    /// A range of `2 * (num + 1) << 5 * scale` pages of 4 KiB.
    fn range(ipa: u64, num: u64, scale: u64) -> u64 {
        1 << 46 | scale << 44 | num << 39 | ipa >> 12
    }

    fn operand(names: Names, ipa: u64) -> u64 {
        match names {
            Names::Page => ipa >> 12,
            Names::Range => range(ipa, 0, 0),
            Names::All => 0,
        }
    }

    /// Executes a TLBI of EL2 under this VTTBR_EL2, and what stage 1 may have kept of it, and waits.
    fn forget(vttbr: u64, crn: u32, (crm, op2): (u32, u32), operand: u64) -> Option<u64> {
        let mut regs = Regs::pattern(1);
        regs.x[0] = operand;
        for_guest(vttbr, || {
            op!("dsb ishst");
            let fault = exec(exec::msr(sys(1, 4, crn, crm, op2)), &mut regs);
            op!("dsb ish");
            op!("tlbi vmalle1is");
            op!("dsb ish");
            op!("isb");
            fault.map(|f| f.esr)
        })
    }

    fn page_with(value: u64) -> u64 {
        let page = fresh(PAGE, PAGE);
        mem::write64(page, value);
        page
    }

    fn usual() -> (Stage2, Guest) {
        let space = Stage2::usual();
        let guest = Guest::new(&space, 1);
        (space, guest)
    }

    fn load(guest: &mut Guest, at: u64) -> l2::Exit {
        guest.x()[0] = at;
        guest.x()[1] = 0;
        guest.set_pstate(l2::EL1H);
        guest.execute(&[l2::LDR])
    }

    fn reads(guest: &mut Guest, at: u64, want: u64) -> Verdict {
        let exit = load(guest, at);
        ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
        equal!(guest.x()[1], want, "what it reads");
        PASS
    }

    fn faults_at(guest: &mut Guest, at: u64, level: u64) -> Verdict {
        let exit = load(guest, at);
        equal!(
            exit.ec(),
            l2::EC_DATA,
            "class of a read after its page went"
        );
        equal!(exit.fsc(), TRANSLATION | level, "status");
        equal!(exit.ipa(), at & !0xfff, "HPFAR_EL2");
        PASS
    }

    /// Map, read, take away, TLBI: a fault. Map another: that one.
    fn round(
        (space, guest): (&Stage2, &mut Guest),
        instruction: (u32, u32, Names),
        block: bool,
        pages: [u64; 2],
    ) -> Verdict {
        let (crm, op2, names) = instruction;
        let (level, size) = if block { (2, BLOCK) } else { (3, PAGE) };
        let vttbr = guest.vttbr;
        for (page, value) in pages.into_iter().zip([OLD, NEW]) {
            let inside = page & (size - 1);
            space.map(AT, page - inside, level, RAM);
            reads(guest, AT + inside, value)?;
            space.set(AT, level, 0);
            let by = operand(names, AT + if block { BLOCK / 2 } else { 0 });
            let esr = forget(vttbr, 8, (crm, op2), by);
            ensure!(esr.is_none(), "TLBI: ESR", esr.unwrap_or(0));
            faults_at(guest, AT + inside, u64::from(level))?;
        }
        PASS
    }

    fn each(block: bool) -> Verdict {
        let (space, mut guest) = usual();
        let pages = [page_with(OLD), page_with(NEW)];
        for instruction in INSTRUCTIONS.into_iter().filter(|&i| is_there(i)) {
            round((&space, &mut guest), instruction, block, pages)?;
        }
        PASS
    }

    /// FEAT_XS: the same with CRn 9.
    fn not_xs() -> Verdict {
        if mrs!("id_aa64isar1_el1") >> 56 & 0xf == 0 {
            return skip("no FEAT_XS");
        }
        let (space, mut guest) = usual();
        let pages = [page_with(OLD), page_with(NEW)];
        for instruction in INSTRUCTIONS.into_iter().filter(|&i| is_there(i)) {
            let (crm, op2, names) = instruction;
            space.map(AT, pages[0], 3, RAM);
            reads(&mut guest, AT, OLD)?;
            space.set(AT, 3, 0);
            let esr = forget(guest.vttbr, 9, (crm, op2), operand(names, AT));
            ensure!(esr.is_none(), "TLBI: ESR", esr.unwrap_or(0));
            faults_at(&mut guest, AT, 3)?;
        }
        PASS
    }

    /// TTL names the level of what changed.
    fn level_hint() -> Verdict {
        let (space, mut guest) = usual();
        let page = page_with(OLD);
        for (level, size) in [(3u32, PAGE), (2, BLOCK), (1, 1 << 30)] {
            let at = 0x10_0000_0000 << (3 - level);
            let inside = page & (size - 1);
            space.map(at, page - inside, level, RAM);
            reads(&mut guest, at + inside, OLD)?;
            space.set(at, level, 0);
            let ttl = 0b0100 | u64::from(level);
            let esr = forget(guest.vttbr, 8, (0, 5), at >> 12 | ttl << 44);
            ensure!(esr.is_none(), "TLBI: ESR", esr.unwrap_or(0));
            faults_at(&mut guest, at + inside, u64::from(level))?;
        }
        PASS
    }

    /// First and last page of ranges, and pages beside them.
    fn ranges() -> Verdict {
        if mrs!("id_aa64isar0_el1") >> 56 & 0xf < 2 {
            return skip("no FEAT_TLBIRANGE");
        }
        let (space, mut guest) = usual();
        let page = page_with(OLD);
        for (num, scale) in [(0u64, 0u64), (3, 0), (31, 0), (0, 1), (2, 1), (0, 2)] {
            let pages = (num + 1) << (5 * scale + 1);
            let tried = [0, 1, pages / 2, pages - 1];
            for n in tried {
                space.set(AT + n * PAGE, 3, page | RAM | 3);
                reads(&mut guest, AT + n * PAGE, OLD)?;
            }
            for n in tried {
                space.set(AT + n * PAGE, 3, 0);
            }
            let esr = forget(guest.vttbr, 8, (0, 2), range(AT, num, scale));
            ensure!(esr.is_none(), "TLBI: ESR", esr.unwrap_or(0));
            for n in tried {
                faults_at(&mut guest, AT + n * PAGE, 3)?;
            }
        }
        PASS
    }

    /// Maintenance under one VMID leaves another's memory where it is, and is no maintenance of it.
    fn other_vmid() -> Verdict {
        let (space, mut one) = usual();
        let other = Stage2::usual();
        let mut two = Guest::new(&other, 2);
        let pages = [page_with(OLD), page_with(NEW)];
        space.map(AT, pages[0], 3, RAM);
        other.map(AT, pages[1], 3, RAM);
        for instruction in INSTRUCTIONS.into_iter().filter(|&i| is_there(i)) {
            reads(&mut one, AT, OLD)?;
            reads(&mut two, AT, NEW)?;
            let (crm, op2, names) = instruction;
            other.set(AT, 3, 0);
            let esr = forget(two.vttbr, 8, (crm, op2), operand(names, AT));
            ensure!(esr.is_none(), "TLBI: ESR", esr.unwrap_or(0));
            faults_at(&mut two, AT, 3)?;
            reads(&mut one, AT, OLD)?;
            other.set(AT, 3, pages[1] | RAM | 3);
        }
        PASS
    }

    /// A VMID given to other tables: each guest sees what its own tables say.
    fn other_tables() -> Verdict {
        let (space, mut one) = usual();
        let other = Stage2::usual();
        let mut two = Guest::new(&other, 1);
        space.map(AT, page_with(OLD), 3, RAM);
        other.map(AT, page_with(NEW), 3, RAM);
        for _ in 0..4 {
            reads(&mut one, AT, OLD)?;
            stage2::forget_vmid(two.vttbr);
            reads(&mut two, AT, NEW)?;
            stage2::forget_vmid(one.vttbr);
        }
        PASS
    }

    /// The hypervisor changes its guest's stage 1 and invalidates that (TGE clear).
    fn stage1_of_guest() -> Verdict {
        const VA: u64 = 0x1_0000_0000;
        const TABLE: u64 = 0x4800_0000;
        let (space, mut guest) = usual();
        let table = fresh(PAGE, PAGE);
        for at in (0..PAGE).step_by(8) {
            mem::write64(table + at, 0);
        }
        let block = |pa: u64| pa | 1 << 10 | 3 << 8 | 1 << 2 | 1;
        for n in 0..4u64 {
            mem::write64(table + n * 8, block(n << 30));
        }
        space.map_page(TABLE, table);
        space.map(AT, page_with(OLD), 3, RAM);
        space.map(AT + (1 << 30), page_with(NEW), 3, RAM);
        guest.el1.mair = 0x44_ff04;
        guest.el1.tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
        guest.el1.ttbr0 = TABLE;
        guest.el1.sctlr = l2::SCTLR_OFF | 1 | 1 << 2 | 1 << 12;
        // TLBI by address and ASID, by address, by ASID, all; IS and OS forms.
        let at = (VA + (AT & 0x3fff_ffff)) >> 12;
        let outer = mrs!("id_aa64isar0_el1") >> 56 & 0xf >= 1;
        for (crm, op2, operand) in [
            (3, 1, at),
            (3, 3, at),
            (3, 2, 0),
            (3, 0, 0),
            (3, 5, at),
            (3, 7, at),
        ] {
            for crm in [crm, 7, 1] {
                if crm == 1 && !outer {
                    continue;
                }
                for (to, want) in [(1u64 << 30, OLD), (2 << 30, NEW)] {
                    mem::write64(table + 4 * 8, 0);
                    let mut regs = Regs::pattern(2);
                    regs.x[0] = operand;
                    let fault = for_guest(guest.vttbr, || {
                        op!("dsb ishst");
                        let fault = exec(exec::msr(sys(1, 0, 8, crm, op2)), &mut regs);
                        op!("dsb ish");
                        fault
                    });
                    clean!(fault, "TLBI");
                    mem::write64(table + 4 * 8, block(to));
                    op!("dsb ishst");
                    reads(&mut guest, VA + (AT & 0x3fff_ffff), want)?;
                }
            }
        }
        PASS
    }

    /// The hypervisor's own translations, by EL1's instructions as a host and by EL2's.
    fn own_stage1() -> Verdict {
        let pages = [page_with(OLD), page_with(NEW)];
        let va = mmu::map_new(pages[0], mmu::NORMAL);
        let descriptor = mmu::descriptor(va, 3);
        let at = va >> 12 & 0xfff_ffff_ffff;
        // op1, CRm, op2, operand: VAE1IS, VAAE1IS, VMALLE1IS, VAE2IS, VALE2IS, ALLE2IS, and local.
        for (op1, crm, op2, operand) in [
            (0, 3, 1, at),
            (0, 3, 3, at),
            (0, 3, 0, 0),
            (4, 3, 1, at),
            (4, 3, 5, at),
            (4, 3, 0, 0),
            (0, 7, 1, at),
            (4, 7, 1, at),
            (4, 7, 0, 0),
        ] {
            for (page, want) in pages.into_iter().zip([OLD, NEW]) {
                mmu::set(descriptor, 0);
                let mut regs = Regs::pattern(3);
                regs.x[0] = operand;
                clean!(exec(exec::msr(sys(1, op1, 8, crm, op2)), &mut regs), "TLBI");
                op!("dsb ish");
                op!("isb");
                mmu::set(descriptor, page | mmu::NORMAL | mmu::PAGE_OR_TABLE);
                equal!(mem::read64(va), want, "what it reads");
            }
        }
        PASS
    }

    /// Rights that go are gone; those that stay, stay.
    fn rights_taken() -> Verdict {
        let (space, mut guest) = usual();
        let page = page_with(OLD);
        for (crm, op2, names) in INSTRUCTIONS.into_iter().filter(|&i| is_there(i)) {
            space.set(AT, 3, page | RAM | 3);
            guest.x()[0] = AT;
            guest.x()[1] = OLD;
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[l2::STR]);
            ensure!(exit.is_hvc(l2::DONE), "store: ESR", exit.esr);
            space.set(AT, 3, page | RAM & !WRITE | 3);
            forget(guest.vttbr, 8, (crm, op2), operand(names, AT));
            reads(&mut guest, AT, OLD)?;
            let exit = guest.execute(&[l2::STR]);
            equal!(exit.ec(), l2::EC_DATA, "class of a store");
            equal!(exit.fsc(), PERMISSION | 3, "status");
        }
        PASS
    }

    /// A table that goes, with all it mapped: by the page that was read, not last-level only.
    fn table_taken() -> Verdict {
        let (space, mut guest) = usual();
        let page = page_with(OLD);
        let at = 0x20_0000_0000;
        space.map(at, page, 3, RAM);
        let table = mem::read64(space.descriptor(at, 2));
        for (crm, op2) in [(0, 1), (4, 1), (3, 6), (3, 4)] {
            reads(&mut guest, at, OLD)?;
            space.set(at, 2, 0);
            let by = if crm == 3 { 0 } else { at >> 12 };
            forget(guest.vttbr, 8, (crm, op2), by);
            faults_at(&mut guest, at, 2)?;
            space.set(at, 2, table);
        }
        PASS
    }

    // What CPU 0 tells CPU 1, and what that tells back.
    static ROOT: AtomicU64 = AtomicU64::new(0);
    static CODE: AtomicU64 = AtomicU64::new(0);
    static MORE: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicU64 = AtomicU64::new(0);
    static TURNS: AtomicU64 = AtomicU64::new(0);
    static FAULTS: AtomicU64 = AtomicU64::new(0);
    static STALE: AtomicU64 = AtomicU64::new(0);
    static STRANGE: AtomicU64 = AtomicU64::new(0);

    /// Loads x0 until x4 is 0 (hvc #0) or DEAD was read (hvc #1).
    const READER: [u32; 7] = [
        l2::LDR,
        0xeb03_003f, // cmp x1, x3
        0x5400_0080, // b.eq 6
        0xf100_0484, // subs x4, x4, #1
        0x54ff_ff81, // b.ne 0
        hvc(0),
        hvc(1),
    ];
    /// Stores a growing number to x0 until x4 is 0.
    const WRITER: [u32; 4] = [
        0x9100_0421, // add x1, x1, #1
        l2::STR,
        0xf100_0484, // subs x4, x4, #1
        0x54ff_ffa1, // b.ne 0
    ];

    fn shared_space() -> Stage2 {
        Stage2 {
            root: ROOT.load(SeqCst),
            more: MORE.load(SeqCst),
            ..Stage2::USUAL
        }
    }

    /// CPU 1: runs the guest again and again; its faults are what CPU 0 does to it.
    fn runner(address_mask: u64) {
        let space = shared_space();
        let mut guest = Guest::with_code(&space, 1, CODE.load(SeqCst));
        let mut n = 0u64;
        while STOP.load(SeqCst) == 0 {
            n += 1;
            guest.set_pc(l2::CODE);
            guest.set_pstate(l2::EL1H);
            guest.x()[0] = AT + (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & address_mask & !7);
            guest.x()[3] = DEAD;
            guest.x()[4] = 50;
            loop {
                let exit = guest.run();
                if exit.is_hvc(0) {
                    TURNS.fetch_add(1, SeqCst);
                    break;
                }
                if exit.is_hvc(1) {
                    STALE.fetch_add(1, SeqCst);
                    break;
                }
                FAULTS.fetch_add(1, SeqCst);
                if exit.ec() != l2::EC_DATA {
                    STRANGE.store(exit.esr, SeqCst);
                    break;
                }
                if STOP.load(SeqCst) != 0 || address_mask != 0 {
                    break;
                }
            }
        }
    }

    fn begin(space: &Stage2, program: &[u32], address_mask: u64) -> Guest {
        let guest = Guest::new(space, 1);
        guest.write_program(program);
        ROOT.store(space.root, SeqCst);
        CODE.store(guest.code(), SeqCst);
        MORE.store(space.more, SeqCst);
        for counter in [&STOP, &TURNS, &FAULTS, &STALE, &STRANGE] {
            counter.store(0, SeqCst);
        }
        smp::begin(1, runner, address_mask);
        guest
    }

    fn end() -> Verdict {
        STOP.store(1, SeqCst);
        ensure!(
            smp::wait(1),
            "CPU 1 does not come back, turns",
            TURNS.load(SeqCst)
        );
        equal!(STRANGE.load(SeqCst), 0, "another exit: ESR");
        equal!(STALE.load(SeqCst), 0, "reads of a page that was taken back");
        ensure!(
            TURNS.load(SeqCst) > 0,
            "the guest never ran, faults",
            FAULTS.load(SeqCst)
        );
        PASS
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Take {
        Page,
        Table,
    }

    const ROUNDS: u64 = 400;

    /// Two pages change places under the guest. One that was taken back and is clean of TLBs is
    /// overwritten: whoever reads that has a translation that should be gone.
    fn storm(instruction: usize, take: Take) -> Verdict {
        let (crm, op2, names) = INSTRUCTIONS[instruction];
        if !is_there(INSTRUCTIONS[instruction]) {
            return skip("no such TLBI");
        }
        let space = Stage2::usual();
        let pages = [page_with(OLD), page_with(OLD)];
        space.map(AT, pages[0], 3, RAM);
        let level = if take == Take::Table { 2 } else { 3 };
        // The page's table, or a second one that maps the other page.
        let second = Stage2::usual();
        second.map(AT, pages[1], 3, RAM);
        let words = match take {
            Take::Page => [pages[0] | RAM | 3, pages[1] | RAM | 3],
            Take::Table => [space, second].map(|s| mem::read64(s.descriptor(AT, 2))),
        };
        let guest = begin(&space, &READER, 0);
        for n in 1..=ROUNDS {
            let (this, other) = ((n % 2) as usize, ((n + 1) % 2) as usize);
            mem::write64(pages[this], OLD);
            space.set(AT, level, 0);
            forget(guest.vttbr, 8, (crm, op2), operand(names, AT));
            mem::write64(pages[other], DEAD);
            space.set(AT, level, words[this]);
            let turns = TURNS.load(SeqCst);
            // Let it in from time to time; the other rounds take away what is just being filled.
            if n % 4 == 0 && !timer::wait_for(2000, || TURNS.load(SeqCst) > turns) {
                break;
            }
        }
        end()
    }

    /// A page that was taken back, or made read-only, has its last value.
    fn stores() -> Verdict {
        let space = Stage2::usual();
        let page = page_with(0);
        space.map(AT, page, 3, RAM);
        let guest = begin(&space, &WRITER, 0);
        for n in 1..=ROUNDS / 2 {
            let word = if n % 2 == 0 {
                0
            } else {
                page | RAM & !WRITE | 3
            };
            space.set(AT, 3, word);
            forget(guest.vttbr, 8, (0, 1), AT >> 12);
            let value = mem::read64(page);
            for _ in 0..200 {
                if mem::read64(page) != value {
                    end()?;
                    equal!(mem::read64(page), value, "a store after the TLBI, in round");
                }
            }
            space.set(AT, 3, page | RAM | 3);
            let turns = TURNS.load(SeqCst);
            if !timer::wait_for(2000, || TURNS.load(SeqCst) > turns) {
                break;
            }
        }
        end()
    }

    /// The walker marks what the hypervisor cleans at the same time: no store stays unmarked, and
    /// nothing but the marks changes.
    fn dirty_race() -> Verdict {
        if mrs!("id_aa64mmfr1_el1") & 0xf < 2 {
            return skip("no FEAT_HAFDBS");
        }
        let mut space = Stage2::usual();
        space.more = 1 << 21 | 1 << 22;
        let page = page_with(0);
        let clean = page | RAM & !WRITE & !AF | DBM | 3;
        space.map(AT, page, 3, RAM & !WRITE & !AF | DBM);
        let descriptor = space.descriptor(AT, 3);
        let guest = begin(&space, &WRITER, 0);
        let mut verdict = PASS;
        for _ in 0..ROUNDS / 2 {
            space.set(AT, 3, clean);
            forget(guest.vttbr, 8, (0, 1), AT >> 12);
            let before = mem::read64(page);
            let came = timer::wait_for(2000, || mem::read64(page) != before);
            let word = mem::read64(descriptor);
            if !came || word != clean | WRITE | AF {
                verdict = Err(umbra_guests::suite::Failure {
                    what: "descriptor after a store",
                    got: word,
                    want: Some(clean | WRITE | AF),
                });
                break;
            }
        }
        end()?;
        equal!(mem::read64(descriptor + 8), 0, "the descriptor beside it");
        verdict
    }

    /// Any words in any tables while the guest loads from all over: the machine stays whole.
    fn noise() -> Verdict {
        let space = Stage2::usual();
        let page = page_with(OLD);
        space.map(AT, page, 3, RAM);
        let tables = [
            space.descriptor(AT, 2) & !0xfff,
            space.descriptor(AT, 3) & !0xfff,
        ];
        let keep = space.descriptor(l2::CODE, 2);
        begin(&space, &READER, 0x0fff_ffff);
        let mut x = 0x1357_9bdf_0246_8acfu64;
        let end_of = timer::now() + timer::microseconds(400_000);
        while timer::now() < end_of {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = tables[(x & 1) as usize] + (x >> 8 & 0xff8);
            let word = match x >> 4 & 7 {
                0 => x,
                1 => tables[0] | 3,
                2 => 0x0900_0000 | 3,
                3 => page | RAM | 3,
                4 => x & !3 | RAM | 1,
                _ => x & 0xffff_f000 | RAM | 3,
            };
            if at != keep {
                mem::write64(at, word);
            }
            if x >> 40 & 0xf == 0 {
                stage2::forget_ipa(space.vttbr(1), AT + (x & 0xffff_f000), 0);
            }
        }
        STOP.store(1, SeqCst);
        ensure!(
            smp::wait(1),
            "CPU 1 does not come back, turns",
            TURNS.load(SeqCst)
        );
        let (space, mut guest) = usual();
        space.map(AT, page, 3, RAM);
        reads(&mut guest, AT, OLD)
    }
}
