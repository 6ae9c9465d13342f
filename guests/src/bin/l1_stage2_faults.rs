//! Does a hypervisor get each fault of its guest on its own stage 2 as the architecture says it: class,
//! kind, level, access, addresses, for every granule and every bad table?
//! umbra-vmm: --nested --cpus 1 --memory 128M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_stage2_faults);

#[cfg(target_os = "none")]
mod l1_stage2_faults {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::exec::{self, sys};
    use umbra_guests::rt::l2::{self, EC_DATA, EC_FETCH, Exit, Guest, Home};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::stage2::{self, CONTIGUOUS, Granule, RAM, Stage2};
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{ensure, equal, mrs};

    const ADDRESS_SIZE: u64 = 0x00;
    const TRANSLATION: u64 = 0x04;
    const ACCESS_FLAG: u64 = 0x08;
    const PERMISSION: u64 = 0x0c;
    const EXTERNAL_ON_WALK: u64 = 0x14;
    const S1PTW: u64 = 1 << 7;
    const SVC: u32 = 0xd400_0001;
    const VALUE: u64 = 0xa5a5_0f0f_1234_8765;
    /// Nothing is here in the machine; there, its UART.
    const HOLE: u64 = 0x0b00_0000;
    const UART: u64 = 0x0900_0000;

    pub(super) fn run(suite: &mut Suite) {
        for granule in Granule::ALL {
            let [translation, flag, rights, blocks, hint] = names(granule);
            suite.check(translation, || translation_faults(granule));
            suite.check(flag, || access_flag_faults(granule));
            suite.check(rights, || permissions(granule));
            suite.check(blocks, || block_content(granule));
            suite.check(hint, || contiguous(granule));
        }
        suite.check("reserved-descriptors", reserved_descriptors);
        suite.check("syndrome-of-each-access", syndromes);
        suite.check("after-the-fault", after_the_fault);
        suite.check("output-size", output_size);
        suite.check("walk-of-stage-1/translation", || {
            stage1_walk(0, TRANSLATION)
        });
        suite.check("walk-of-stage-1/access-flag", || {
            stage1_walk(RAM & !stage2::AF, ACCESS_FLAG)
        });
        suite.check("walk-of-stage-1/execute-never", stage1_walk_execute_never);
        suite.check("walk-of-stage-1/device", stage1_walk_device);
        suite.check("hardware-access-flag", hardware_access_flag);
        suite.check("hardware-dirty-state", hardware_dirty_state);
        suite.check("loop", table_loop);
        // From here on Linux 7.3.4 tries for ever (it takes a walk's permission fault for a write),
        // aliases addresses ([BR6]) or ends the VM.
        if !has_arg("umbra") {
            return;
        }
        suite.check("walk-of-stage-1/permission", || {
            stage1_walk(RAM & !stage2::READ, PERMISSION)
        });
        suite.check("beyond-the-input-size", beyond_input);
        suite.check("bad-vtcr", bad_vtcr);
        suite.check("vttbr-beyond-memory", vttbr_beyond);
        suite.check("tables-nowhere", || tables_at(HOLE));
        suite.check("tables-in-a-device", || tables_at(UART));
        suite.check("table-registers-noise", register_noise);
    }

    macro_rules! names {
        ($granule:literal) => {
            [
                concat!($granule, "/translation"),
                concat!($granule, "/access-flag"),
                concat!($granule, "/permissions"),
                concat!($granule, "/blocks"),
                concat!($granule, "/contiguous"),
            ]
        };
    }

    fn names(granule: Granule) -> [&'static str; 5] {
        [names!("4k"), names!("16k"), names!("64k")][granule as usize]
    }

    /// One per granule, and last of the usual shape; their numbers are the VMIDs.
    static HOMES: [Home; 4] = [const { Home::new() }; 4];
    static FREE: AtomicU64 = AtomicU64::new(0x5000_0000);

    /// Addresses that no check used before: 4 MiB with as much around them.
    fn free() -> u64 {
        FREE.load(Relaxed)
    }

    fn guest_in(at: usize, shape: Stage2) -> (Stage2, Guest) {
        FREE.fetch_add(8 << 20, Relaxed);
        HOMES[at].guest_in(shape, at as u64 + 1, |_| ())
    }

    fn with(granule: Granule) -> (Stage2, Guest) {
        guest_in(granule as usize, shape(granule))
    }

    fn usual() -> (Stage2, Guest) {
        guest_in(3, Stage2::USUAL)
    }

    /// The space with most levels that this machine has for a granule.
    fn shape(granule: Granule) -> Stage2 {
        let pa = mem::pa_bits();
        let (start, most) = match granule {
            Granule::K4 if pa >= 44 => (0, 48),
            Granule::K4 => (1, 40),
            Granule::K16 if pa >= 42 => (1, 47),
            Granule::K16 => (2, 40),
            Granule::K64 if pa >= 44 => (1, 48),
            Granule::K64 => (2, 42),
        };
        Stage2::shape(granule, pa.min(most), start)
    }

    /// How a guest touches an address.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Touch {
        Read,
        Write,
        FetchEl0,
        FetchEl1,
    }
    const TOUCHES: [Touch; 4] = [Touch::Read, Touch::Write, Touch::FetchEl0, Touch::FetchEl1];

    fn touch(guest: &mut Guest, how: Touch, at: u64) -> Exit {
        *guest.x() = [0; 31];
        guest.x()[0] = at;
        guest.x()[1] = VALUE;
        let (pstate, instruction) = match how {
            Touch::Read => (l2::EL1H, l2::LDR),
            Touch::Write => (l2::EL1H, l2::STR),
            Touch::FetchEl0 => (l2::EL0T, l2::BR),
            Touch::FetchEl1 => (l2::EL1H, l2::BR),
        };
        guest.set_pstate(pstate);
        guest.execute(&[instruction])
    }

    /// Whether the access went through: a fetch to the `svc` that stands there.
    fn went_through(how: Touch, exit: &Exit) -> bool {
        exit.is_hvc(match how {
            Touch::Read | Touch::Write => l2::DONE,
            Touch::FetchEl0 => l2::VECTOR_HVC + 8,
            Touch::FetchEl1 => l2::VECTOR_HVC + 4,
        })
    }

    /// Checks all that a hypervisor reads of a fault: `status` is kind and level.
    fn is_fault(guest: &Guest, how: Touch, exit: &Exit, at: u64, status: u64) -> Verdict {
        let fetch = matches!(how, Touch::FetchEl0 | Touch::FetchEl1);
        equal!(exit.vector, 0x400, "vector");
        equal!(exit.ec(), if fetch { EC_FETCH } else { EC_DATA }, "class");
        // ISV, 8 bytes, x1, 64-bit register: an access that a hypervisor can play.
        let access = 1 << 24 | 3 << 22 | 1 << 16 | 1 << 15;
        let iss = match how {
            Touch::Read => access,
            Touch::Write => access | 1 << 6,
            Touch::FetchEl0 | Touch::FetchEl1 => 0,
        };
        equal!(
            exit.esr & 0x3ff_ffff,
            1 << 25 | iss | status,
            "ESR_EL2 IL and ISS"
        );
        equal!(exit.esr >> 32, 0, "upper half of ESR_EL2");
        equal!(exit.far, at, "FAR_EL2");
        // Linux 7.3.4 lends bit 63 to itself and gives it on ([BR4]).
        let shown = if has_arg("umbra") {
            u64::MAX
        } else {
            !(1 << 63)
        };
        equal!(exit.hpfar & shown, at >> 12 << 4, "HPFAR_EL2");
        equal!(guest.pc(), if fetch { at } else { l2::CODE }, "ELR_EL2");
        PASS
    }

    fn levels(space: &Stage2) -> core::ops::RangeInclusive<u32> {
        space.start..=3
    }

    /// Whether a descriptor at this level may be a leaf.
    fn leaf(granule: Granule, level: u32) -> bool {
        match granule {
            Granule::K4 => level >= 1,
            Granule::K16 | Granule::K64 => level >= 2,
        }
    }

    /// An address whose walk comes by untouched descriptors from `level` on; `n` tells them apart.
    fn address(space: &Stage2, level: u32, n: u64) -> u64 {
        let mut at = (if level == space.start { 3 } else { 4 }) << space.granule.shift(space.start);
        for below in space.start + 1..=level {
            at |= (5 + u64::from(level) + 8 * n) << space.granule.shift(below);
        }
        at
    }

    /// Addresses for leaves of one level, far from those of another.
    fn region(level: u32) -> u64 {
        u64::from(level + 8) << 36
    }

    fn translation_faults(granule: Granule) -> Verdict {
        if !granule.is_there() {
            return skip("no such granule at stage 2");
        }
        let (space, mut guest) = with(granule);
        for level in levels(&space) {
            let at = address(&space, level, 0) | 0x678;
            space.set(at, level, 0);
            for how in TOUCHES {
                let exit = touch(&mut guest, how, at);
                is_fault(&guest, how, &exit, at, TRANSLATION | u64::from(level))?;
            }
        }
        PASS
    }

    fn access_flag_faults(granule: Granule) -> Verdict {
        if !granule.is_there() {
            return skip("no such granule at stage 2");
        }
        let (space, mut guest) = with(granule);
        for level in levels(&space).filter(|&level| leaf(granule, level)) {
            let at = address(&space, level, 1);
            let pa = mem::RAM & !(granule.bytes(level) - 1);
            space.map(at, pa, level, RAM & !stage2::AF);
            for how in TOUCHES {
                let exit = touch(&mut guest, how, at | 0x10);
                is_fault(
                    &guest,
                    how,
                    &exit,
                    at | 0x10,
                    ACCESS_FLAG | u64::from(level),
                )?;
            }
        }
        PASS
    }

    /// Every S2AP and XN, at every level that has leaves, for every kind of access.
    fn permissions(granule: Granule) -> Verdict {
        if !granule.is_there() {
            return skip("no such granule at stage 2");
        }
        let has_xnx = mrs!("id_aa64mmfr1_el1") >> 28 & 0xf != 0;
        let (space, mut guest) = with(granule);
        let page = fresh(0x1_0000, 0x1_0000);
        mem::write32(page, SVC);
        mem::sync_code(page, 4);
        for level in [2, 3] {
            let size = granule.bytes(level);
            let within = page & (size - 1);
            for rights in 0..16u64 {
                let (s2ap, xn) = (rights & 3, rights >> 2);
                let (el0, el1) = match xn {
                    0 => (true, true),
                    1 if has_xnx => (true, false),
                    3 if has_xnx => (false, true),
                    1 => (true, true),
                    _ => (false, false),
                };
                for (n, how) in (0u64..).zip(TOUCHES) {
                    // Untouched addresses: nobody has to forget anything.
                    let base = region(level);
                    let at = base + (rights * 4 + n) * size;
                    let attributes = RAM & !(3 << 6) | s2ap << 6 | xn << 53;
                    space.map(at, page - within, level, attributes);
                    let at = at + within;
                    let target = match how {
                        Touch::Read | Touch::Write => at + 0x800,
                        Touch::FetchEl0 | Touch::FetchEl1 => at,
                    };
                    let exit = touch(&mut guest, how, target);
                    let allowed = match how {
                        Touch::Read => s2ap & 1 != 0,
                        Touch::Write => s2ap & 2 != 0,
                        Touch::FetchEl0 => el0,
                        Touch::FetchEl1 => el1,
                    };
                    if allowed {
                        ensure!(went_through(how, &exit), "allowed, but ESR", exit.esr);
                    } else {
                        let status = PERMISSION | u64::from(level);
                        is_fault(&guest, how, &exit, target, status)?;
                    }
                }
            }
            // Now that the allowed half is mapped below: what is withheld stays so.
            for rights in [1u64, 2] {
                let how = if rights == 1 {
                    Touch::Write
                } else {
                    Touch::Read
                };
                let allowed = if rights == 1 {
                    Touch::Read
                } else {
                    Touch::Write
                };
                let base = region(level);
                let at = base + (rights * 4 + allowed as u64) * size + within + 0x800;
                let exit = touch(&mut guest, allowed, at);
                ensure!(went_through(allowed, &exit), "allowed, but ESR", exit.esr);
                let exit = touch(&mut guest, how, at);
                is_fault(&guest, how, &exit, at, PERMISSION | u64::from(level))?;
            }
        }
        PASS
    }

    /// A block is memory at the right place, from its first to its last bytes.
    fn block_content(granule: Granule) -> Verdict {
        if !granule.is_there() {
            return skip("no such granule at stage 2");
        }
        let (space, mut guest) = with(granule);
        let marks = fresh(64 * PAGE, PAGE);
        for level in (1..=2).filter(|&level| level >= space.start && leaf(granule, level)) {
            let size = granule.bytes(level);
            let ipa = region(level + 3);
            space.map(ipa, marks & !(size - 1), level, RAM);
            for page in (0..64).step_by(7) {
                let pa = marks + page * PAGE + page * 8;
                let at = ipa + (pa & (size - 1));
                // The end of the memory may be the end of this block.
                if (marks ^ pa) & !(size - 1) != 0 {
                    continue;
                }
                mem::write64(pa, VALUE ^ page);
                let exit = touch(&mut guest, Touch::Read, at);
                ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
                equal!(guest.x()[1], VALUE ^ page, "content");
                let exit = touch(&mut guest, Touch::Write, at);
                ensure!(exit.is_hvc(l2::DONE), "write: ESR", exit.esr);
                equal!(mem::read64(pa), VALUE, "content after a write");
            }
        }
        PASS
    }

    /// A group with the contiguous hint, each of its pages the right one.
    fn contiguous(granule: Granule) -> Verdict {
        if !granule.is_there() {
            return skip("no such granule at stage 2");
        }
        let pages = if granule == Granule::K16 {
            128
        } else {
            16 << (granule == Granule::K64) as u64
        };
        let size = granule.bytes(3);
        let (space, mut guest) = with(granule);
        let pa = fresh(pages * size, pages * size);
        let ipa = free() & !(pages * size - 1);
        for page in 0..pages {
            space.map(ipa + page * size, pa + page * size, 3, RAM | CONTIGUOUS);
            mem::write64(pa + page * size + 8, VALUE ^ page);
        }
        for page in (0..pages).rev() {
            let exit = touch(&mut guest, Touch::Read, ipa + page * size + 8);
            ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
            equal!(guest.x()[1], VALUE ^ page, "content");
        }
        // Neighbours of the group have no mapping.
        for at in [ipa - 8, ipa + pages * size] {
            let exit = touch(&mut guest, Touch::Read, at);
            equal!(exit.fsc() & !3, TRANSLATION, "beside the group");
        }
        PASS
    }

    /// Words that look valid and are not (Arm ARM D8.3): a block at level 3, one at a root level 0.
    fn reserved_descriptors() -> Verdict {
        let (space, mut guest) = usual();
        let ram = fresh(PAGE, PAGE);
        space.set(free(), 3, ram | RAM | 1);
        let exit = touch(&mut guest, Touch::Read, free());
        is_fault(&guest, Touch::Read, &exit, free(), TRANSLATION | 3)?;
        // An invalid one with everything else set.
        space.set(free() + PAGE, 3, (ram | RAM | 3) & !1);
        let exit = touch(&mut guest, Touch::Write, free() + PAGE);
        is_fault(&guest, Touch::Write, &exit, free() + PAGE, TRANSLATION | 3)?;
        PASS
    }

    /// Loads and stores of all shapes: the syndrome is the one that plays them.
    fn syndromes() -> Verdict {
        let (_, mut guest) = usual();
        // Instruction by base x0, then SAS, SSE, SRT, SF, WnR; None without a syndrome.
        let shapes: [(u32, Option<[u64; 5]>); 15] = [
            (0x3940_0005, Some([0, 0, 5, 0, 0])),  // ldrb w5
            (0x7940_0006, Some([1, 0, 6, 0, 0])),  // ldrh w6
            (0xb940_0007, Some([2, 0, 7, 0, 0])),  // ldr w7
            (0xf940_001e, Some([3, 0, 30, 1, 0])), // ldr x30
            (0x3980_0008, Some([0, 1, 8, 1, 0])),  // ldrsb x8
            (0x79c0_0009, Some([1, 1, 9, 0, 0])),  // ldrsh w9
            (0xb980_000a, Some([2, 1, 10, 1, 0])), // ldrsw x10
            (0x3900_000b, Some([0, 0, 11, 0, 1])), // strb w11
            (0xb900_001f, Some([2, 0, 31, 0, 1])), // str wzr
            (0xf900_001f, Some([3, 0, 31, 1, 1])), // str xzr
            (0xf840_0001, Some([3, 0, 1, 1, 0])),  // ldur x1
            (0xf840_8401, None),                   // ldr x1, [x0], #8
            (0xa940_0801, None),                   // ldp x1, x2
            (0xa900_0801, None),                   // stp x1, x2
            (0x3dc0_0001, None),                   // ldr q1
        ];
        for (instruction, shape) in shapes {
            guest.x()[0] = free() + 0x40;
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[instruction]);
            equal!(exit.ec(), EC_DATA, "class");
            equal!(exit.far, free() + 0x40, "FAR_EL2");
            equal!(exit.fsc(), TRANSLATION | 2, "status");
            equal!(guest.x()[0], free() + 0x40, "base register");
            equal!(exit.esr >> 24 & 1, shape.is_some(), "ISV");
            if let Some([sas, sse, srt, sf, wnr]) = shape {
                let want = sas << 22 | sse << 21 | srt << 16 | sf << 15 | wnr << 6;
                equal!(exit.esr & 0xff_ffc0, want, "ISS");
            }
        }
        PASS
    }

    /// What the hypervisor mends works from then on: once without a TLBI, as the architecture keeps no
    /// invalid entries, and after rights were added with one.
    fn after_the_fault() -> Verdict {
        let (space, mut guest) = usual();
        let ram = fresh(PAGE, PAGE);
        mem::write64(ram + 0x20, VALUE);
        let at = free() + 0x20;
        let exit = touch(&mut guest, Touch::Read, at);
        is_fault(&guest, Touch::Read, &exit, at, TRANSLATION | 2)?;
        space.map(free(), ram, 3, RAM & !stage2::WRITE & !stage2::AF);
        guest.x()[1] = 0;
        let exit = guest.run();
        is_fault(&guest, Touch::Read, &exit, at, ACCESS_FLAG | 3)?;
        space.set(free(), 3, ram | RAM & !stage2::WRITE | 3);
        let exit = guest.run();
        ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
        equal!(guest.x()[1], VALUE, "content");
        let exit = touch(&mut guest, Touch::Write, at);
        is_fault(&guest, Touch::Write, &exit, at, PERMISSION | 3)?;
        space.set(free(), 3, ram | RAM | 3);
        stage2::forget_ipa(guest.vttbr, free(), 0);
        let exit = touch(&mut guest, Touch::Write, at);
        ensure!(exit.is_hvc(l2::DONE), "write: ESR", exit.esr);
        PASS
    }

    /// Addresses in descriptors beyond what VTCR_EL2.PS says, of leaves and of tables.
    fn output_size() -> Verdict {
        let (space, mut guest) = usual();
        // PS = 36 bits: enough for this machine's RAM.
        guest.vtcr = guest.vtcr & !(7 << 16) | 1 << 16;
        for (n, high) in (0u64..).zip([1 << 36, 1 << 40, 1 << 47]) {
            let at = free() + n * PAGE;
            space.map(at, mem::RAM | high, 3, RAM);
            for how in [Touch::Read, Touch::Write, Touch::FetchEl1] {
                let exit = touch(&mut guest, how, at);
                is_fault(&guest, how, &exit, at, ADDRESS_SIZE | 3)?;
            }
            let at = 0x10_0000_0000 + (n << 30); // level 1, no table
            space.set(at, 1, mem::RAM | high | 3);
            let exit = touch(&mut guest, Touch::Read, at);
            is_fault(&guest, Touch::Read, &exit, at, ADDRESS_SIZE | 1)?;
            let at = at + (8 << 30);
            space.map(at, mem::RAM | high, 1, RAM);
            let exit = touch(&mut guest, Touch::Read, at);
            is_fault(&guest, Touch::Read, &exit, at, ADDRESS_SIZE | 1)?;
        }
        PASS
    }

    /// Stage 1 of the guest: tables at this address of its space, an identity map of its first 2 GiB.
    fn tables() -> u64 {
        free() + (2 << 20)
    }

    /// A guest with stage 1 on: level 1 at `tables` maps 1 GiB blocks but for `hole`, whose level 2 table
    /// lies in the page behind. Both pages are given.
    fn with_stage1(space: &Stage2, guest: &mut Guest, hole: u64) -> [u64; 2] {
        let pages = [fresh(PAGE, PAGE), fresh(PAGE, PAGE)];
        for page in pages {
            for at in (0..PAGE).step_by(8) {
                mem::write64(page + at, 0);
            }
        }
        for n in 0..4u64 {
            mem::write64(pages[0] + n * 8, n << 30 | 1 << 10 | 3 << 8 | 1 << 2 | 1);
        }
        mem::write64(pages[0] + (hole >> 30) * 8, (tables() + PAGE) | 3);
        mem::write64(pages[1], free() | 1 << 10 | 3 << 8 | 1 << 2 | 1);
        space.map(tables(), pages[0], 3, RAM);
        guest.el1.mair = 0x44_ff04;
        guest.el1.tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
        guest.el1.ttbr0 = tables();
        guest.el1.sctlr = l2::SCTLR_OFF | 1 | 1 << 2 | 1 << 12;
        pages
    }

    /// A stage 2 fault on the page of a stage-1 table: S1PTW, FAR the access's, HPFAR the table's.
    fn stage1_walk(attributes: u64, kind: u64) -> Verdict {
        let (space, mut guest) = usual();
        const HOLE_VA: u64 = 0xc000_0000;
        let pages = with_stage1(&space, &mut guest, HOLE_VA);
        let level = 3;
        if attributes != 0 {
            space.map(tables() + PAGE, pages[1], 3, attributes);
        }
        for how in TOUCHES {
            if how == Touch::FetchEl0 {
                continue;
            }
            let exit = touch(&mut guest, how, HOLE_VA + 0x128);
            let class = if how == Touch::FetchEl1 {
                EC_FETCH
            } else {
                EC_DATA
            };
            equal!(exit.ec(), class, "class");
            equal!(exit.fsc(), kind | level, "status");
            equal!(exit.esr & S1PTW, S1PTW, "S1PTW");
            equal!(exit.esr >> 24 & 1, 0, "ISV");
            equal!(exit.far, HOLE_VA + 0x128, "FAR_EL2");
            equal!(exit.ipa(), tables() + PAGE, "HPFAR_EL2");
        }
        // With the table in reach the walk goes on: the guest's block leads to FREE.
        let ram = fresh(PAGE, PAGE);
        mem::write64(ram + 0x128, VALUE);
        space.map(free(), ram, 3, RAM);
        space.set(tables() + PAGE, 3, pages[1] | RAM | 3);
        stage2::forget_ipa(guest.vttbr, tables() + PAGE, 0);
        let exit = touch(&mut guest, Touch::Read, HOLE_VA + 0x128);
        ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
        equal!(guest.x()[1], VALUE, "content");
        PASS
    }

    /// The walk for a fetch reads: a table that may not be executed is no obstacle ([BR5]).
    fn stage1_walk_execute_never() -> Verdict {
        let (space, mut guest) = usual();
        const HOLE_VA: u64 = 0xc000_0000;
        let pages = with_stage1(&space, &mut guest, HOLE_VA);
        space.map(
            tables() + PAGE,
            pages[1],
            3,
            RAM & !stage2::WRITE | stage2::XN,
        );
        let ram = fresh(PAGE, PAGE);
        mem::write32(ram, SVC);
        mem::sync_code(ram, 4);
        space.map(free(), ram, 3, RAM);
        let exit = touch(&mut guest, Touch::FetchEl1, HOLE_VA);
        ensure!(went_through(Touch::FetchEl1, &exit), "fetch: ESR", exit.esr);
        PASS
    }

    /// HCR_EL2.PTW: a table in what stage 2 calls device memory is a permission fault of the walk.
    fn stage1_walk_device() -> Verdict {
        let (space, mut guest) = usual();
        const HOLE_VA: u64 = 0xc000_0000;
        let pages = with_stage1(&space, &mut guest, HOLE_VA);
        guest.hcr |= l2::PTW;
        space.map(tables() + PAGE, pages[1], 3, RAM & !(0xf << 2));
        let exit = touch(&mut guest, Touch::Read, HOLE_VA);
        if !has_arg("umbra") && exit.ec() != EC_DATA {
            return skip("Linux does not apply HCR_EL2.PTW to the tables of a guest's guest");
        }
        equal!(exit.ec(), EC_DATA, "class");
        equal!(exit.fsc(), PERMISSION | 3, "status");
        equal!(exit.esr & S1PTW, S1PTW, "S1PTW");
        equal!(exit.ipa(), tables() + PAGE, "HPFAR_EL2");
        PASS
    }

    const HA: u64 = 1 << 21;
    const HD: u64 = 1 << 22;

    fn hardware_access_flag() -> Verdict {
        if mrs!("id_aa64mmfr1_el1") & 0xf == 0 {
            return skip("no FEAT_HAF");
        }
        let mut space = Stage2::usual();
        space.more = HA;
        let mut guest = Guest::new(&space, 8);
        let ram = fresh(4 * PAGE, PAGE);
        mem::write32(ram, SVC);
        mem::sync_code(ram, 4);
        for (n, how) in (0u64..).zip(TOUCHES) {
            let at = free() + n * PAGE;
            space.map(at, ram, 3, RAM & !stage2::AF);
            let exit = touch(&mut guest, how, at + if n < 2 { 0x40 } else { 0 });
            ensure!(went_through(how, &exit), "access: ESR", exit.esr);
            let now = mem::read64(space.descriptor(at, 3));
            equal!(now, ram | RAM | 3, "descriptor");
        }
        // A right that is not there leaves the flag as it is, or not; the fault is told.
        let at = free() + 8 * PAGE;
        space.map(at, ram, 3, RAM & !stage2::AF & !stage2::WRITE);
        let exit = touch(&mut guest, Touch::Write, at);
        is_fault(&guest, Touch::Write, &exit, at, PERMISSION | 3)
    }

    fn hardware_dirty_state() -> Verdict {
        if mrs!("id_aa64mmfr1_el1") & 0xf < 2 {
            return skip("no FEAT_HAFDBS");
        }
        let mut space = Stage2::usual();
        space.more = HA | HD;
        let mut guest = Guest::new(&space, 9);
        let ram = fresh(PAGE, PAGE);
        let clean = RAM & !stage2::WRITE | stage2::DBM;
        space.map(free(), ram, 3, clean);
        let exit = touch(&mut guest, Touch::Read, free());
        ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
        equal!(
            mem::read64(space.descriptor(free(), 3)),
            ram | clean | 3,
            "after a read"
        );
        let exit = touch(&mut guest, Touch::Write, free());
        ensure!(exit.is_hvc(l2::DONE), "write: ESR", exit.esr);
        let dirty = ram | clean | stage2::WRITE | 3;
        equal!(
            mem::read64(space.descriptor(free(), 3)),
            dirty,
            "after a write"
        );
        // Without DBM nobody adds the right.
        space.map(free() + PAGE, ram, 3, RAM & !stage2::WRITE);
        let exit = touch(&mut guest, Touch::Write, free() + PAGE);
        is_fault(&guest, Touch::Write, &exit, free() + PAGE, PERMISSION | 3)
    }

    /// A root whose entry is itself: four levels later a walk stands at a page.
    fn table_loop() -> Verdict {
        let (space, mut guest) = usual();
        mem::write64(space.root + 0x100, space.root | 3);
        let at = 0x20 << 30 | 0x20 << 21 | 0x20 << 12;
        let exit = touch(&mut guest, Touch::Read, at);
        is_fault(&guest, Touch::Read, &exit, at, ACCESS_FLAG | 3)?;
        // As memory it is the table itself.
        mem::write64(space.root + 0x100, space.root | RAM & !(3 << 8) | 3);
        let exit = touch(&mut guest, Touch::Read, at | 0x100);
        ensure!(exit.is_hvc(l2::DONE), "read: ESR", exit.esr);
        equal!(
            guest.x()[1],
            mem::read64(space.root + 0x100),
            "the table by itself"
        );
        PASS
    }

    /// A level 0 translation fault, and no alias of the address below ([BR6]).
    fn beyond_input() -> Verdict {
        let (space, mut guest) = usual();
        let ram = fresh(PAGE, PAGE);
        space.map(free(), ram, 3, RAM);
        for bit in space.input..mem::pa_bits() {
            for at in [1u64 << bit | free(), 1u64 << bit] {
                for how in TOUCHES {
                    let exit = touch(&mut guest, how, at);
                    is_fault(&guest, how, &exit, at, TRANSLATION)?;
                }
            }
        }
        // The space's own last page is inside.
        let last = (1 << space.input) - PAGE;
        let exit = touch(&mut guest, Touch::Read, last);
        is_fault(&guest, Touch::Read, &exit, last, TRANSLATION | 1)
    }

    /// Geometry that cannot be: every walk is a level 0 translation fault.
    fn bad_vtcr() -> Verdict {
        let (_, mut guest) = usual();
        let good = guest.vtcr;
        let geometry = |t0sz: u64, sl0: u64, tg0: u64| {
            good & !(0xffff & !(0x3f << 8)) & !(3 << 14) | t0sz | sl0 << 6 | tg0 << 14
        };
        let cases = [
            geometry(25, 3, 0), // reserved start level, or level 3 without FEAT_TTST
            geometry(25, 0, 0), // level 2 would need 512 concatenated tables
            geometry(16, 1, 0), // 256 tables at level 1
            geometry(0, 1, 0),
            geometry(15, 2, 0),
            geometry(63, 0, 0),
            geometry(45, 1, 0), // less than one entry
            geometry(25, 3, 1),
            geometry(16, 1, 1),
            geometry(25, 0, 2),
        ];
        for vtcr in cases {
            guest.vtcr = vtcr;
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[l2::NOP]);
            equal!(exit.ec(), EC_FETCH, "class");
            equal!(exit.fsc(), TRANSLATION, "status");
            equal!(exit.far, l2::CODE, "FAR_EL2");
            equal!(exit.hpfar, l2::CODE >> 8, "HPFAR_EL2");
        }
        // A reserved granule means another one: whatever comes, it comes here.
        guest.vtcr = good | 3 << 14;
        let exit = guest.execute(&[l2::NOP]);
        ensure!(
            exit.ec() == EC_FETCH || exit.is_hvc(l2::DONE),
            "ESR",
            exit.esr
        );
        guest.vtcr = good;
        let exit = guest.execute(&[l2::NOP]);
        ensure!(exit.is_hvc(l2::DONE), "ESR of a good one", exit.esr);
        PASS
    }

    /// A root beyond VTCR_EL2.PS: address size, level 0.
    fn vttbr_beyond() -> Verdict {
        let (_, mut guest) = usual();
        let good = guest.vttbr;
        guest.vtcr = guest.vtcr & !(7 << 16) | 1 << 16;
        for high in [1 << 36, 1 << 41, 1 << 47] {
            guest.vttbr = good | high;
            let exit = guest.execute(&[l2::NOP]);
            equal!(exit.ec(), EC_FETCH, "class");
            equal!(exit.fsc(), ADDRESS_SIZE, "status");
        }
        PASS
    }

    /// A root, and a table below it, where no memory is: external abort on the walk.
    fn tables_at(nowhere: u64) -> Verdict {
        let (space, mut guest) = usual();
        let good = guest.vttbr;
        guest.vttbr = nowhere | 1 << 48;
        let exit = guest.execute(&[l2::NOP]);
        equal!(exit.ec(), EC_FETCH, "class");
        equal!(exit.fsc(), EXTERNAL_ON_WALK | 1, "status for a root");
        guest.vttbr = good;
        for (level, at) in [(1u32, 0x20_0000_0000u64), (2, 0x30_0000_0000)] {
            space.set(at, level, nowhere | 3);
            for how in TOUCHES {
                let exit = touch(&mut guest, how, at);
                let status = EXTERNAL_ON_WALK | u64::from(level + 1);
                equal!(exit.fsc(), status, "status for a table");
                equal!(exit.far, at, "FAR_EL2");
            }
        }
        PASS
    }

    /// Any VTCR_EL2 and VTTBR_EL2: the guest stops with some abort, and the machine goes on.
    fn register_noise() -> Verdict {
        let (_, mut guest) = usual();
        let good = (guest.vtcr, guest.vttbr);
        let mut x = 0x1234_5678_9abc_def1u64;
        let mut random = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        for n in 0..200 {
            guest.vtcr = random();
            guest.vttbr = if n % 3 == 0 { good.1 } else { random() };
            guest.set_pstate(l2::EL1H);
            let exit = guest.execute(&[exec::mrs(sys(3, 0, 1, 0, 0))]);
            let fine = exit.ec() == EC_FETCH || exit.ec() == EC_DATA || exit.ec() == l2::EC_HVC;
            ensure!(fine, "exit with ESR", exit.esr);
        }
        (guest.vtcr, guest.vttbr) = good;
        let exit = guest.execute(&[l2::NOP]);
        ensure!(exit.is_hvc(l2::DONE), "ESR of a good one", exit.esr);
        PASS
    }
}
