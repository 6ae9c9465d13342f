//! Is guest RAM memory: does it keep what is written, by every width, alignment and mapping, and
//! are the faults of the guest's own tables the guest's own?
//! umbra-vmm: --cpus 1 --memory 96M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(memory);

#[cfg(target_os = "none")]
mod memory {
    use umbra_guests::rt::exec::{Regs, exec};
    use umbra_guests::rt::mem::{self, BLOCK, PAGE, fresh};
    use umbra_guests::rt::mmu::{self, NON_CACHEABLE, NORMAL};
    use umbra_guests::rt::{Fault, expect};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{clean, equal, faults, op};

    const DATA_ABORT: u64 = 0x25;
    const FETCH_ABORT: u64 = 0x21;
    /// `ret`.
    const RET: u32 = 0xd65f_03c0;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("starts-as-zero", starts_as_zero);
        suite.check("keeps-a-pattern", keeps_a_pattern);
        suite.check("unaligned", unaligned);
        suite.check("page-crossing", || crossing(PAGE));
        suite.check("block-crossing", || crossing(BLOCK));
        suite.check("aliases", aliases);
        suite.check("non-cacheable-alias", non_cacheable_alias);
        suite.check("block-mapping", block_mapping);
        suite.check("remapping", remapping);
        suite.check("new-code", new_code);
        suite.check("code-through-an-alias", code_through_an_alias);
        suite.check("translation-fault", translation_fault);
        suite.check("permission-fault", permission_fault);
        suite.check("access-flag-fault", access_flag_fault);
        suite.check("execute-never", execute_never);
        suite.check("address-size-fault", address_size_fault);
        suite.check("address-translation", address_translation);
    }

    fn starts_as_zero() -> Verdict {
        let start = fresh(4 << 20, BLOCK);
        for at in (start..start + (4 << 20)).step_by(8 * 67) {
            equal!(mem::read64(at), 0, "memory nobody wrote");
        }
        PASS
    }

    fn keeps_a_pattern() -> Verdict {
        const SIZE: u64 = 32 << 20;
        let start = fresh(SIZE, BLOCK);
        let value = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Another word of each page, so that all parts of pages are seen.
        let places = || (0..SIZE / PAGE).map(|n| start + n * PAGE + n * 8 % PAGE);
        places().for_each(|at| mem::write64(at, value(at)));
        for at in places() {
            equal!(mem::read64(at), value(at), "word");
        }
        PASS
    }

    fn unaligned() -> Verdict {
        let page = fresh(PAGE, PAGE);
        for offset in 0..64 {
            let at = page + offset;
            mem::write64(at, 0x0123_4567_89ab_cdef);
            equal!(mem::read64(at), 0x0123_4567_89ab_cdef_u64, "8 bytes");
            equal!(mem::read8(at + 7), 1, "last byte");
            mem::write32(at + 1, 0xdead_beef);
            equal!(
                mem::read64(at),
                0x0123_45de_adbe_efef_u64,
                "4 bytes inside 8"
            );
            mem::write16(at + 3, 0x5566);
            equal!(mem::read16(at + 3), 0x5566, "2 bytes");
        }
        PASS
    }

    /// Accesses that lie in two pages, neither of which has been touched.
    fn crossing(size: u64) -> Verdict {
        for before in 1..8 {
            let middle = fresh(2 * size, size) + size;
            let at = middle - before;
            mem::write64(at, 0x1122_3344_5566_7788);
            equal!(mem::read64(at), 0x1122_3344_5566_7788_u64, "8 bytes");
            let mut regs = Regs::pattern(before);
            regs.x[3] = middle - 8;
            let (low, high) = (regs.x[1], regs.x[2]);
            // stp x1, x2, [x3] and ldp x4, x5, [x3]
            clean!(exec(0xa900_0861, &mut regs), "stp");
            clean!(exec(0xa940_1464, &mut regs), "ldp");
            equal!(regs.x[4], low, "first of a pair");
            equal!(regs.x[5], high, "second of a pair");
            if size > PAGE {
                break;
            }
        }
        PASS
    }

    fn aliases() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let (a, b) = (mmu::map_new(page, NORMAL), mmu::map_new(page, NORMAL));
        mem::write64(a + 8, 1);
        equal!(mem::read64(b + 8), 1, "written through the other");
        mem::write64(b + 8, 2);
        equal!(mem::read64(page + 8), 2, "written through an alias");
        PASS
    }

    /// With stage 2's forced write-back both are the same; without it, cleaning makes them so.
    fn non_cacheable_alias() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let other = mmu::map_new(page, NON_CACHEABLE);
        for value in 1..50 {
            mem::write64(page, value);
            op!("dc civac", page);
            op!("dsb sy");
            equal!(mem::read64(other), value, "read non-cacheable");
            mem::write64(other + 64, value);
            op!("dsb sy");
            op!("dc civac", page + 64);
            op!("dsb sy");
            equal!(mem::read64(page + 64), value, "written non-cacheable");
        }
        PASS
    }

    fn block_mapping() -> Verdict {
        let block = fresh(BLOCK, BLOCK);
        let va = mmu::window();
        mmu::set(mmu::descriptor(va, 2), block | NORMAL | mmu::BLOCK);
        for at in (0..BLOCK).step_by(PAGE as usize) {
            mem::write64(va + at, at + 1);
        }
        for at in (0..BLOCK).step_by(PAGE as usize) {
            equal!(mem::read64(block + at), at + 1, "written through a block");
        }
        PASS
    }

    /// A virtual page moves between two pages of RAM by break-before-make.
    fn remapping() -> Verdict {
        let pages = fresh(2 * PAGE, PAGE);
        mem::write64(pages, 10);
        mem::write64(pages + PAGE, 11);
        let va = mmu::window();
        let descriptor = mmu::descriptor(va, 3);
        for round in 0..200 {
            mmu::set(descriptor, 0);
            mmu::invalidate_page(va);
            let fault = faults!(expect(|| mem::read64(va)), DATA_ABORT, "unmapped");
            equal!(fault.fsc(), 0x7, "unmapped: FSC");
            let page = pages + round % 2 * PAGE;
            mmu::set(descriptor, page | NORMAL | mmu::PAGE_OR_TABLE);
            equal!(
                mem::read64(va),
                10 + round % 2,
                "read through the new mapping"
            );
        }
        PASS
    }

    /// `mov x0, #value`.
    fn mov_x0(value: u32) -> u32 {
        0xd280_0000 | value << 5
    }

    fn new_code() -> Verdict {
        for n in 0..16 {
            let page = fresh(PAGE, PAGE);
            for value in 0..8 {
                mem::write32(page, mov_x0(n * 8 + value));
                mem::write32(page + 4, RET);
                mem::sync_code(page, 8);
                equal!(mem::call(page, 0), n * 8 + value, "result of new code");
            }
        }
        PASS
    }

    fn code_through_an_alias() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let va = mmu::map_new(page, NORMAL);
        for value in 0..50 {
            mem::write32(page, mov_x0(value));
            mem::write32(page + 4, RET);
            mem::sync_code(page, 8);
            mem::sync_code(va, 8);
            equal!(mem::call(va, 0), value, "result of new code");
        }
        PASS
    }

    fn load(va: u64) -> Option<Fault> {
        expect(|| mem::read64(va))
    }

    fn store(va: u64) -> Option<Fault> {
        expect(|| mem::write64(va, 1))
    }

    fn translation_fault() -> Verdict {
        let va = mmu::window() + 0x1238;
        let fault = faults!(load(va), DATA_ABORT, "nothing at level 1");
        equal!(fault.fsc(), 0x5, "FSC");
        equal!(fault.far, va, "FAR");
        mmu::descriptor(va, 2);
        equal!(faults!(load(va), DATA_ABORT, "level 2").fsc(), 0x6, "FSC");
        mmu::descriptor(va, 3);
        let fault = faults!(store(va), DATA_ABORT, "level 3");
        equal!(fault.fsc(), 0x7, "FSC");
        equal!(fault.esr >> 6 & 1, 1, "WnR of a store");
        equal!(fault.esr >> 7 & 1, 0, "S1PTW");
        PASS
    }

    fn permission_fault() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let va = mmu::map_new(page, NORMAL | 1 << 7);
        clean!(load(va), "load from a read-only page");
        let fault = faults!(store(va + 16), DATA_ABORT, "store to a read-only page");
        equal!(fault.fsc(), 0xf, "FSC");
        equal!(fault.far, va + 16, "FAR");
        equal!(mem::read64(page + 16), 0, "what was there");
        PASS
    }

    fn access_flag_fault() -> Verdict {
        let va = mmu::map_new(fresh(PAGE, PAGE), NORMAL & !(1 << 10));
        equal!(faults!(load(va), DATA_ABORT, "load").fsc(), 0xb, "FSC");
        PASS
    }

    fn execute_never() -> Verdict {
        let va = mmu::map_new(fresh(PAGE, PAGE), NORMAL | 1 << 53);
        let fetch = || expect(|| mem::call(va, 0));
        let fault = faults!(fetch(), FETCH_ABORT, "fetch");
        equal!(fault.fsc(), 0xf, "FSC");
        equal!(fault.far, va, "FAR");
        equal!(fault.elr, va, "ELR");
        PASS
    }

    /// An output address beyond TCR_EL1.IPS never reaches stage 2.
    fn address_size_fault() -> Verdict {
        let va = mmu::map_new(1 << 40, NORMAL);
        let mut fault = None;
        mmu::with_output_size(2, || fault = load(va));
        let fault = faults!(fault, DATA_ABORT, "load beyond 40 bits");
        equal!(fault.fsc(), 0x3, "FSC");
        PASS
    }

    fn address_translation() -> Verdict {
        let page = fresh(PAGE, PAGE);
        let va = mmu::map_new(page, NORMAL);
        op!("at s1e1r", va);
        op!("isb");
        let par = umbra_guests::mrs!("par_el1");
        equal!(par & 1, 0, "PAR_EL1.F of a mapped page");
        equal!(par & 0x000f_ffff_ffff_f000, page, "PAR_EL1.PA");
        op!("at s1e1w", va + PAGE);
        op!("isb");
        let par = umbra_guests::mrs!("par_el1");
        equal!(par & 1, 1, "PAR_EL1.F of an unmapped page");
        equal!(par >> 1 & 0x3f, 0x7, "PAR_EL1.FST");
        PASS
    }
}
