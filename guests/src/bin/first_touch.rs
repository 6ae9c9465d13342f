//! Does the first access to a page work, whatever makes it?
//! umbra-vmm: --cpus 1 --memory 64M,hugepages=off --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(first_touch);

#[cfg(target_os = "none")]
mod first_touch {
    use umbra_guests::rt::exec::{Regs, exec};
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::mmu::{self, NORMAL, PAGE_OR_TABLE};
    use umbra_guests::rt::{expect, smp};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{clean, equal, faults, mrs, op};

    const UNDEF: u64 = 0;
    const DATA_ABORT: u64 = 0x25;
    const FETCH_ABORT: u64 = 0x21;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("loads", loads);
        suite.check("stores", stores);
        suite.check("pairs", pairs);
        suite.check("write-back", write_back);
        suite.check("simd", simd);
        suite.check("fetch", fetch);
        suite.check("fetch-across-pages", fetch_across_pages);
        suite.check("exclusive", exclusive);
        suite.check("atomic", atomic);
        suite.check("acquire-release", acquire_release);
        suite.check("zeroing", zeroing);
        suite.check("cache-maintenance", cache_maintenance);
        suite.check("descending", descending);
        suite.check("walk-by-load", walk_by_load);
        suite.check("walk-by-fetch", walk_by_fetch);
        suite.check("walk-by-translation", walk_by_translation);
        suite.check("walk-of-every-level", walk_of_every_level);
    }

    fn page() -> u64 {
        fresh(PAGE, PAGE)
    }

    /// A load or store of x0 at [x1] that touches a page first; x0 behind it.
    fn access(instruction: u32, at: u64) -> Result<Regs, umbra_guests::suite::Failure> {
        let mut regs = Regs::pattern(0x1234_5678_9abc_def0);
        regs.x[1] = at;
        let before = regs;
        clean!(exec(instruction, &mut regs), "access");
        equal!(regs.sp_moved, 0, "SP");
        equal!(regs.nzcv, before.nzcv, "NZCV");
        equal!(
            (2..31).filter(|n| regs.x[*n] != before.x[*n]).count(),
            0,
            "other registers changed"
        );
        Ok(regs)
    }

    fn loads() -> Verdict {
        // ldr x, ldr w, ldrh, ldrb, ldrsw, ldrsh x, ldrsb x, ldar x, ldapr x, ldur x
        for instruction in [
            0xf940_0020,
            0xb940_0020,
            0x7940_0020,
            0x3940_0020,
            0xb980_0020,
            0x7980_0020,
            0x3980_0020,
            0xc8df_fc20,
            0xf8bf_c020,
            0xf840_0020,
        ] {
            let regs = access(instruction, page() + 0x120)?;
            equal!(regs.x[0], 0, "loaded");
        }
        PASS
    }

    fn stores() -> Verdict {
        // str x, str w, strh, strb, stlr x, stur x
        for (instruction, bits) in [
            (0xf900_0020, 64),
            (0xb900_0020, 32),
            (0x7900_0020, 16),
            (0x3900_0020, 8),
            (0xc89f_fc20, 64),
            (0xf800_0020, 64),
        ] {
            let at = page() + 0x340;
            let regs = access(instruction, at)?;
            equal!(
                mem::read64(at),
                regs.x[0] & (u64::MAX >> (64 - bits)),
                "stored"
            );
            equal!(mem::read64(at - 8) | mem::read64(at + 8), 0, "beside it");
        }
        PASS
    }

    fn pairs() -> Verdict {
        for offset in [0, 0xff0, 0xff8] {
            // stp x2, x3, [x1]; ldp x0, x0' would be constrained: ldp x0, xzr, [x1]
            let at = fresh(2 * PAGE, PAGE) + offset;
            let regs = access(0xa900_0c22, at)?;
            equal!(mem::read64(at), regs.x[2], "first of a pair");
            equal!(mem::read64(at + 8), regs.x[3], "second of a pair");
            let regs = access(0xa940_7c20, fresh(2 * PAGE, PAGE) + offset)?;
            equal!(regs.x[0], 0, "loaded");
        }
        PASS
    }

    /// The base register moves once, however often the access is tried.
    fn write_back() -> Verdict {
        // ldr x0, [x1], #16; ldr x0, [x1, #16]!; str x0, [x1], #16; str x0, [x1, #16]!
        for instruction in [0xf841_0420, 0xf841_0c20, 0xf801_0420, 0xf801_0c20] {
            let at = page() + 0x80;
            equal!(access(instruction, at)?.x[1], at + 16, "base");
        }
        // ldp x0, xzr, [x1], #32; stp x2, x3, [x1, #32]!
        for instruction in [0xa8c2_7c20, 0xa982_0c22] {
            let at = page() + 0x80;
            equal!(access(instruction, at)?.x[1], at + 32, "base of a pair");
        }
        PASS
    }

    fn simd() -> Verdict {
        // ldr q0, [x1]; str q0, [x1]; ld1 {v0.16b-v3.16b}, [x1]; st1 likewise; ldp q0, q1, [x1]
        for instruction in [
            0x3dc0_0020,
            0x3d80_0020,
            0x4c40_2020,
            0x4c00_2020,
            0xad40_0420,
        ] {
            for offset in [0, 0xff8] {
                access(instruction, fresh(2 * PAGE, PAGE) + offset)?;
            }
        }
        PASS
    }

    /// A page of zeroes is executed: its first word is no instruction.
    fn fetch() -> Verdict {
        for offset in [0, 0x404, 0xffc] {
            let at = page() + offset;
            let fault = faults!(expect(|| mem::call(at, 0)), UNDEF, "zeroes executed");
            equal!(fault.elr, at, "ELR");
            equal!(mem::read32(at), 0, "what was executed");
        }
        PASS
    }

    /// `nop` at a page's end, and nothing ever seen of the next page.
    fn fetch_across_pages() -> Verdict {
        let next = fresh(2 * PAGE, PAGE) + PAGE;
        mem::write32(next - 4, 0xd503_201f);
        mem::sync_code(next - 4, 4);
        let fault = faults!(expect(|| mem::call(next - 4, 0)), UNDEF, "next page");
        equal!(fault.elr, next, "ELR");
        PASS
    }

    fn exclusive() -> Verdict {
        for n in 1..20 {
            let at = page() + n * 8;
            smp::add_exclusive(at, n);
            equal!(mem::read64(at), n, "sum");
        }
        PASS
    }

    fn atomic() -> Verdict {
        let at = page();
        equal!(smp::add_atomic(at, 5), 0, "old value");
        equal!(mem::read64(at), 5, "sum");
        // swpal x2, x0, [x1]; casal x2, x3, [x1] (0 is not x2, so nothing is stored)
        let at = page();
        let regs = access(0xf8e2_8020, at)?;
        equal!(regs.x[0], 0, "old value");
        equal!(mem::read64(at), regs.x[2], "swapped in");
        let mut regs = Regs::pattern(1);
        regs.x[1] = page();
        regs.x[2] = 0;
        let (at, new) = (regs.x[1], regs.x[3]);
        clean!(exec(0xc8e2_fc23, &mut regs), "casal");
        equal!(mem::read64(at), new, "compared and swapped");
        PASS
    }

    fn acquire_release() -> Verdict {
        for n in 1..20 {
            let at = page() + n * 8;
            // stlr x0, [x1]; ldar x0, [x1]
            let value = access(0xc89f_fc20, at)?.x[0];
            equal!(access(0xc8df_fc20, at)?.x[0], value, "loaded");
        }
        PASS
    }

    fn zeroing() -> Verdict {
        let id = mrs!("dczid_el0");
        let size = 4 << (id & 0xf);
        if id & 0x10 != 0 {
            return umbra_guests::suite::skip("DC ZVA is prohibited");
        }
        let at = page();
        op!("dc zva", at + size);
        equal!(mem::read64(at + size), 0, "zeroed");
        mem::write64(at + size, !0);
        mem::write64(at + 2 * size, !0);
        op!("dc zva", at + size + 8);
        equal!(mem::read64(at + size), 0, "zeroed again");
        equal!(
            mem::read64(at + 2 * size),
            u64::MAX,
            "behind what was zeroed"
        );
        PASS
    }

    fn cache_maintenance() -> Verdict {
        let probe = || {
            op!("dc cvac", page());
            op!("dc civac", page());
            op!("dc ivac", page());
            op!("dc cvau", page());
            op!("ic ivau", page());
            op!("dsb sy");
        };
        clean!(expect(probe), "maintenance");
        PASS
    }

    fn descending() -> Verdict {
        const PAGES: u64 = 1024;
        let start = fresh(PAGES * PAGE, PAGE);
        for n in (0..PAGES).rev() {
            mem::write64(start + n * PAGE + 8, n);
        }
        for n in 0..PAGES {
            equal!(mem::read64(start + n * PAGE + 8), n, "word");
        }
        PASS
    }

    /// Points the level 2 descriptor of a new window to a table that nobody has touched.
    fn untouched_table() -> (u64, u64) {
        let (va, table) = (mmu::window(), page());
        mmu::set(mmu::descriptor(va, 2), table | PAGE_OR_TABLE);
        (va, table)
    }

    /// The walker is the first to read the table, and finds zero: the guest's own fault, not ours.
    fn walk_by_load() -> Verdict {
        for _ in 0..8 {
            let (va, table) = untouched_table();
            let fault = faults!(expect(|| mem::read64(va)), DATA_ABORT, "empty table");
            equal!(fault.fsc(), 0x7, "FSC");
            equal!(fault.far, va, "FAR");
            let data = page();
            mmu::set(table, data | NORMAL | PAGE_OR_TABLE);
            mem::write64(va + 8, 7);
            equal!(mem::read64(data + 8), 7, "written through the table");
        }
        PASS
    }

    fn walk_by_fetch() -> Verdict {
        let (va, table) = untouched_table();
        let fetch = || expect(|| mem::call(va, 0));
        equal!(
            faults!(fetch(), FETCH_ABORT, "empty table").fsc(),
            0x7,
            "FSC"
        );
        mmu::set(table, page() | NORMAL | PAGE_OR_TABLE);
        equal!(faults!(fetch(), UNDEF, "page of zeroes").elr, va, "ELR");
        PASS
    }

    fn walk_by_translation() -> Verdict {
        let (va, _) = untouched_table();
        op!("at s1e1r", va);
        op!("isb");
        let par = mrs!("par_el1");
        equal!(par & 0x7f, 0x7 << 1 | 1, "PAR_EL1");
        PASS
    }

    /// Tables of all levels, filled by stores through the identity map to fresh pages.
    fn walk_of_every_level() -> Verdict {
        for level in 1..4 {
            let va = mmu::window();
            let fault = faults!(expect(|| mem::write64(va, 1)), DATA_ABORT, "store");
            equal!(fault.fsc(), 0x5, "FSC");
            mmu::descriptor(va, level);
            let data = page();
            mmu::map(va, data, NORMAL);
            mem::write64(va, level.into());
            equal!(mem::read64(data), level, "written through new tables");
        }
        PASS
    }
}
