//! Does a hypervisor at virtual EL2 enter and leave its guest as the architecture says, every register
//! in its place?
//! umbra-vmm: --nested --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_enter);

#[cfg(target_os = "none")]
mod l1_enter {
    use umbra_guests::rt::exec::{self, exception_return, sys};
    use umbra_guests::rt::fp::Fp;
    use umbra_guests::rt::l2::{self, El1, Exit, Guest, Home, hvc};
    use umbra_guests::rt::mmu;
    use umbra_guests::rt::{expect, mem};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{clean, ensure, equal, faults, mrs, msr};

    const SVC: u64 = 0x15;
    const ILLEGAL_STATE: u64 = 0x0e;
    /// HCR_EL2.TID3 and TACR: ID group 3 and ACTLR_EL1 trap.
    const TID3: u64 = 1 << 18;
    const TACR: u64 = 1 << 21;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("virtual-el2", virtual_el2);
        suite.check("hvc", hypervisor_call);
        suite.check("hvc-to-itself", hvc_to_itself);
        suite.check("general-registers", general_registers);
        suite.check("traps-below-virtual-el2", below);
        suite.check("wait-below", wait_below);
        suite.check("el1-registers-in", el1_in);
        suite.check("el1-registers-out", el1_out);
        suite.check("identity", identity);
        suite.check("own-registers", own_registers);
        suite.check("fp", fp);
        suite.check("exceptions-at-el1", exceptions_at_el1);
        suite.check("stack-pointers", stack_pointers);
        suite.check("illegal-returns-as-host", || illegal_returns(true));
        suite.check("illegal-returns", || illegal_returns(false));
        suite.check("illegal-state-below", illegal_state_below);
        suite.check("el2t", el2t);
        suite.check("host-el0", host_el0);
        suite.check("host-el0-faults", host_el0_faults);
        suite.check("every-context-in-turn", every_context);
    }

    static HOME: Home = Home::new();

    fn guest() -> Guest {
        HOME.guest(1).1
    }

    /// A guest is who its hypervisor says, and the hypervisor who it was.
    fn identity() -> Verdict {
        let mut guest = guest();
        let own = (mrs!("midr_el1"), mrs!("mpidr_el1"));
        let before = (mrs!("vpidr_el2"), mrs!("vmpidr_el2"));
        for (midr, mpidr) in [(0x411f_d0c1, 0x8000_0203), (0x610f_0221, 0x8000_0000)] {
            msr!("vpidr_el2", midr);
            msr!("vmpidr_el2", mpidr);
            // mrs x0, midr_el1; mrs x0 + 1, mpidr_el1
            let exit = guest.execute(&[
                exec::mrs(sys(3, 0, 0, 0, 0)),
                exec::mrs(sys(3, 0, 0, 0, 5)) | 1,
            ]);
            ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
            equal!(guest.x()[0], midr, "MIDR_EL1 of the guest");
            equal!(guest.x()[1], mpidr, "MPIDR_EL1 of the guest");
            equal!(mrs!("midr_el1"), own.0, "MIDR_EL1 of the hypervisor");
            equal!(mrs!("mpidr_el1"), own.1, "MPIDR_EL1 of the hypervisor");
        }
        msr!("vpidr_el2", before.0);
        msr!("vmpidr_el2", before.1);
        PASS
    }

    fn pattern(seed: u64) -> [u64; 31] {
        core::array::from_fn(|n| {
            (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.rotate_left(n as u32)
        })
    }

    fn virtual_el2() -> Verdict {
        equal!(mrs!("CurrentEL") >> 2, 2, "CurrentEL");
        equal!(mrs!("hcr_el2") >> 34 & 1, 1, "HCR_EL2.E2H");
        equal!(
            mrs!("id_aa64mmfr1_el1") >> 8 & 0xf,
            1,
            "ID_AA64MMFR1_EL1.VH"
        );
        equal!(mrs!("id_aa64pfr0_el1") >> 8 & 0xf, 1, "ID_AA64PFR0_EL1.EL2");
        PASS
    }

    fn hypervisor_call() -> Verdict {
        let mut guest = guest();
        for n in [0, 1, 0x1234, 0xffff] {
            let exit = guest.execute(&[l2::NOP, hvc(n)]);
            equal!(exit.vector, 0x400, "vector of hvc");
            equal!(
                exit.esr,
                0x16 << 26 | 1 << 25 | u64::from(n),
                "ESR_EL2 of hvc"
            );
            equal!(guest.pc(), l2::CODE + 8, "ELR_EL2 of hvc");
            equal!(guest.pstate() & !(1 << 12), l2::EL1H, "SPSR_EL2 of hvc");
        }
        PASS
    }

    fn hvc_to_itself() -> Verdict {
        let mut regs = exec::Regs::pattern(1);
        let before = regs;
        let fault = faults!(exec::exec(hvc(0x77), &mut regs), l2::EC_HVC, "hvc at EL2");
        equal!(fault.esr & 0xffff, 0x77, "immediate");
        equal!(fault.spsr & 0xf, 9, "mode in SPSR_EL2");
        ensure!(regs == before, "registers after hvc at EL2", regs.x[0]);
        PASS
    }

    /// What each of these leaves in the registers, and how its exit says so.
    fn general_registers() -> Verdict {
        let mut guest = guest();
        let traps = l2::TWI | l2::TWE | l2::TSC | TID3 | TACR;
        let pfr0 = exec::mrs(sys(3, 0, 0, 4, 0)) | 7;
        let actlr = exec::msr(sys(3, 0, 1, 0, 1)) | 9;
        // Instruction, class, syndrome bits, bytes that the return address is past it.
        let cases: [(u32, u64, u64, u64); 6] = [
            (hvc(5), l2::EC_HVC, 5, 4),
            (l2::SMC, l2::EC_SMC, 0, 0),
            (l2::WFI, l2::EC_WFX, 1 << 24 | 0xe << 20, 0),
            (l2::WFE, l2::EC_WFX, 1 << 24 | 0xe << 20 | 1, 0),
            // Op0 21:20, op2 19:17, op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, direction 0.
            (pfr0, l2::EC_SYSTEM, 3 << 20 | 7 << 5 | 4 << 1 | 1, 0),
            (
                actlr,
                l2::EC_SYSTEM,
                3 << 20 | 1 << 17 | 1 << 10 | 9 << 5,
                0,
            ),
        ];
        guest.hcr |= traps;
        for (n, (instruction, ec, iss, past)) in (1u64..).zip(cases) {
            for nzcv in [0, 5, 0xa, 0xf] {
                *guest.x() = pattern(n);
                let pstate = l2::EL1H | nzcv << 28;
                guest.set_pstate(pstate);
                let exit = guest.execute(&[instruction]);
                // An event that waits lets WFE through, and an implementation may invent one.
                let through = instruction == l2::WFE && exit.is_hvc(l2::DONE);
                let (ec, iss, past) = if through {
                    (l2::EC_HVC, 0, 8)
                } else {
                    (ec, iss, past)
                };
                equal!(exit.ec(), ec, "class");
                equal!(exit.esr >> 25 & 1, 1, "ESR_EL2.IL");
                equal!(exit.esr & 0x1ff_ffff, iss, "ESR_EL2.ISS");
                equal!(guest.pc(), l2::CODE + past, "ELR_EL2");
                equal!(guest.pstate() & !(1 << 12), pstate, "SPSR_EL2");
                for (got, want) in guest.x().iter().zip(pattern(n)) {
                    equal!(*got, want, "a general register");
                }
            }
        }
        PASS
    }

    /// Exits that the hypervisor below sees to: nobody above may notice.
    fn below() -> Verdict {
        let (space, mut guest) = HOME.guest(1);
        let ram = mem::fresh(mem::PAGE, mem::PAGE);
        space.map_page(0x5000_0000, ram);
        let mut want = pattern(77);
        want[0] = 0x5000_0008;
        want[1] = 0x1122_3344_5566_7788;
        *guest.x() = want;
        // A first touch, an ID register, and the page's content.
        let pfr0 = exec::mrs(sys(3, 0, 0, 4, 0)) | 7;
        let exit = guest.execute(&[l2::STR, pfr0]);
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        want[7] = guest.x()[7];
        ensure!(want[7] & 0xff != 0, "ID_AA64PFR0_EL1", want[7]);
        for (got, want) in guest.x().iter().zip(want) {
            equal!(*got, want, "a general register");
        }
        equal!(mem::read64(ram + 8), want[1], "what the guest stored");
        PASS
    }

    /// WFE and WFI that nobody above traps.
    fn wait_below() -> Verdict {
        let mut guest = guest();
        *guest.x() = pattern(3);
        // An event of its own, so that WFE does not wait.
        let exit = guest.execute(&[0xd503_20bf, l2::WFE]);
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        PASS
    }

    /// Values that each register keeps: its own, and without reserved bits.
    fn el1_values(seed: u64) -> El1 {
        let s = seed << 16;
        El1 {
            sctlr: l2::SCTLR_OFF | 1 << 12 | (seed & 1) << 2,
            cpacr: 3 << 20,
            ttbr0: 0x8765_4000 + s,
            ttbr1: 0x1_8765_4000 + s,
            tcr: 0x5_0080_3510 | 25 << 16 | (seed & 1) << 39,
            spsr: 0x3c5 | (seed & 1) << 31,
            elr: 0xffff_8000_1234_0000 + s,
            afsr0: 0,
            afsr1: 0,
            esr: 0x5600_0000 + seed,
            far: 0xffff_0000_dead_0000 + s,
            mair: 0x44_ff04 + s,
            amair: 0,
            vbar: l2::VECTORS,
            contextidr: 0x1357 + seed,
            cntkctl: 2 + (seed & 1),
            sp_el1: 0x7000_0000 + s,
            sp_el0: 0x6000_0000 + s,
            tpidr_el0: 0x1111_2222_3333_0000 + s,
            tpidrro_el0: 0x4444_5555_6666_0000 + s,
            tpidr_el1: 0x7777_8888_9999_0000 + s,
            par: 0x0000_0012_3456_7000 + (s << 8),
        }
    }

    /// The registers of [`El1`] as a guest names them, in its order.
    const EL1_NAMES: [u32; 22] = [
        sys(3, 0, 1, 0, 0),
        sys(3, 0, 1, 0, 2),
        sys(3, 0, 2, 0, 0),
        sys(3, 0, 2, 0, 1),
        sys(3, 0, 2, 0, 2),
        sys(3, 0, 4, 0, 0),
        sys(3, 0, 4, 0, 1),
        sys(3, 0, 5, 1, 0),
        sys(3, 0, 5, 1, 1),
        sys(3, 0, 5, 2, 0),
        sys(3, 0, 6, 0, 0),
        sys(3, 0, 10, 2, 0),
        sys(3, 0, 10, 3, 0),
        sys(3, 0, 12, 0, 0),
        sys(3, 0, 13, 0, 1),
        sys(3, 0, 14, 1, 0),
        // SP_EL1 and SP_EL0 below: the current stack pointer has no register's name.
        0,
        sys(3, 0, 4, 1, 0),
        sys(3, 3, 13, 0, 2),
        sys(3, 3, 13, 0, 3),
        sys(3, 0, 13, 0, 4),
        sys(3, 0, 7, 4, 0),
    ];

    const SP_EL1: usize = 16;
    const SP_EL0: usize = 17;
    /// `mov x0, sp` and `mov sp, x0`.
    const READ_SP: u32 = 0x9100_03e0;
    const WRITE_SP: u32 = 0x9100_001f;

    fn listed(el1: &El1) -> [u64; 22] {
        let mut list = [0; 22];
        let mut at = 0;
        el1.each(|_, value| {
            list[at] = value;
            at += 1;
        });
        list
    }

    fn named(el1: &El1, at: usize) -> &'static str {
        let (mut name, mut n) = ("", 0);
        el1.each(|this, _| {
            if n == at {
                name = this;
            }
            n += 1;
        });
        name
    }

    /// A guest reads what was written by the EL12 names, and going round changes none of it.
    fn el1_in() -> Verdict {
        let mut guest = guest();
        for seed in [1, 2] {
            let want = el1_values(seed);
            for (at, name) in EL1_NAMES.into_iter().enumerate() {
                guest.el1 = want;
                // The stack pointer's own name would be undefined at the level that uses it.
                let read = if at == SP_EL1 {
                    READ_SP
                } else {
                    exec::mrs(name)
                };
                guest.set_pstate(l2::EL1H);
                let exit = guest.execute(&[read]);
                ensure!(exit.is_hvc(l2::DONE), named(&want, at), exit.esr);
                equal!(guest.x()[0], listed(&want)[at], named(&want, at));
                for (n, (got, want)) in listed(&guest.el1)
                    .into_iter()
                    .zip(listed(&want))
                    .enumerate()
                {
                    equal!(got, want, named(&guest.el1, n));
                }
            }
        }
        PASS
    }

    /// What a guest writes is found by the EL12 names.
    fn el1_out() -> Verdict {
        let mut guest = guest();
        let start = El1 {
            vbar: l2::VECTORS,
            ..el1_values(4)
        };
        let wanted = listed(&el1_values(5));
        for (at, name) in EL1_NAMES.into_iter().enumerate() {
            guest.el1 = start;
            guest.x()[0] = wanted[at];
            let write = if at == SP_EL1 {
                WRITE_SP
            } else {
                exec::msr(name)
            };
            let exit = guest.execute(&[write, l2::ISB]);
            ensure!(exit.is_hvc(l2::DONE), named(&start, at), exit.esr);
            for (n, (got, before)) in listed(&guest.el1)
                .into_iter()
                .zip(listed(&start))
                .enumerate()
            {
                let want = if n == at { wanted[at] } else { before };
                equal!(got, want, named(&start, n));
            }
        }
        ensure!(SP_EL0 == SP_EL1 + 1, "order of the list", SP_EL0);
        PASS
    }

    /// The hypervisor's own registers, after a guest that had others.
    fn own_registers() -> Verdict {
        let mut guest = guest();
        guest.el1 = el1_values(6);
        macro_rules! keep {
            ($($name:literal)*) => {{
                let before = [$(mrs!($name)),*];
                let exit = guest.execute(&[l2::NOP]);
                ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
                let after = [$(mrs!($name)),*];
                let names = [$($name),*];
                for ((name, before), after) in names.into_iter().zip(before).zip(after) {
                    equal!(after, before, name);
                }
            }};
        }
        msr!("tpidr_el2", 0x1234_5678_9abc_def0);
        msr!("contextidr_el1", 0x4321);
        // Its own names, and those of EL1 that mean the same.
        keep!("sctlr_el1" "ttbr0_el1" "ttbr1_el1" "tcr_el1" "mair_el1" "vbar_el1" "cpacr_el1"
            "contextidr_el1" "cntkctl_el1" "tpidr_el2" "sctlr_el2" "ttbr0_el2" "tcr_el2" "mair_el2"
            "vbar_el2" "cptr_el2" "mdcr_el2" "cnthctl_el2" "vpidr_el2" "vmpidr_el2" "cntvoff_el2"
            "hcr_el2" "hstr_el2" "midr_el1" "mpidr_el1");
        equal!(mrs!("tpidr_el2"), 0x1234_5678_9abc_def0u64, "TPIDR_EL2");
        equal!(
            mrs!("vbar_el2"),
            mrs!("vbar_el1"),
            "VBAR_EL2 by its two names"
        );
        equal!(
            mrs!("ttbr0_el2"),
            mrs!("ttbr0_el1"),
            "TTBR0_EL2 by its two names"
        );
        equal!(
            mrs!("sctlr_el2"),
            mrs!("sctlr_el1"),
            "SCTLR_EL2 by its two names"
        );
        PASS
    }

    fn fp() -> Verdict {
        let mut guest = guest();
        let mine = Fp::pattern(0xfeed);
        mine.load();
        guest.x()[0] = 0x0123_4567_89ab_cdef;
        // fmov d3, x0
        let exit = guest.execute(&[0x9e67_0003]);
        let mut now = Fp::stored();
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        equal!(
            now.q[3][0],
            0x0123_4567_89ab_cdefu64,
            "what the guest wrote"
        );
        equal!(now.q[3][1], 0, "upper half of what the guest wrote");
        now.q[3] = mine.q[3];
        ensure!(now == mine, "another FP register", now.q[4][0]);
        // fmov x5, d9
        let exit = guest.execute(&[0x9e66_0125]);
        ensure!(exit.is_hvc(l2::DONE), "exit with ESR", exit.esr);
        equal!(guest.x()[5], mine.q[9][0], "what the guest reads");
        PASS
    }

    /// A guest's own exceptions are its own.
    fn exceptions_at_el1() -> Verdict {
        let mut guest = guest();
        // svc #9, from EL1 with SP_EL1: vector 4.
        let exit = guest.execute(&[0xd400_0121]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "svc: ESR_EL2", exit.esr);
        equal!(guest.el1.esr, SVC << 26 | 1 << 25 | 9, "ESR_EL1");
        equal!(guest.el1.elr, l2::CODE + 4, "ELR_EL1");
        equal!(guest.el1.spsr & 0xf, 5, "SPSR_EL1");
        // From EL0: vector 8.
        guest.set_pstate(l2::EL0T);
        let exit = guest.execute(&[0xd400_0121]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 8), "svc at EL0", exit.esr);
        equal!(guest.el1.spsr & 0xf, 0, "SPSR_EL1");
        // hvc is undefined at EL0.
        guest.set_pstate(l2::EL0T);
        let exit = guest.execute(&[hvc(3)]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 8), "hvc at EL0", exit.esr);
        equal!(guest.el1.esr, 1 << 25, "ESR_EL1");
        // An EL2 register, and eret to itself.
        guest.set_pstate(l2::EL1H);
        let exit = guest.execute(&[exec::mrs(sys(3, 4, 1, 1, 0))]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "mrs hcr_el2", exit.esr);
        equal!(guest.el1.esr, 1 << 25, "ESR_EL1");
        guest.el1.elr = l2::CODE;
        guest.el1.spsr = l2::EL1H;
        guest.set_pstate(l2::EL1H);
        guest.write_program(&[hvc(6)]);
        guest.write_program(&[hvc(6), l2::NOP, 0xd69f_03e0]);
        guest.set_pc(l2::CODE + 8);
        let exit = guest.run();
        ensure!(exit.is_hvc(6), "eret at EL1", exit.esr);
        PASS
    }

    fn stack_pointers() -> Verdict {
        let mut guest = guest();
        for (pstate, want) in [(l2::EL1H, 0x1110), (l2::EL1T, 0x2220), (l2::EL0T, 0x2220)] {
            guest.el1.sp_el1 = 0x1110;
            guest.el1.sp_el0 = 0x2220;
            guest.set_pstate(pstate);
            // mov x0, sp; svc, which EL0 can do too.
            guest.execute(&[READ_SP, 0xd400_0001]);
            equal!(guest.x()[0], want, "SP");
            equal!(guest.el1.sp_el1, 0x1110, "SP_EL1");
            equal!(guest.el1.sp_el0, 0x2220, "SP_EL0");
        }
        PASS
    }

    /// Arm ARM, "Illegal exception returns from AArch64 state": the modes that are not there.
    fn illegal_returns(host: bool) -> Verdict {
        let hcr = mrs!("hcr_el2");
        let legal_below = [0b00000, 0b00100, 0b00101];
        for mode in 0..32u64 {
            // Here are EL2h and EL2t. Below is EL0 for a host, EL0 and EL1 for a hypervisor.
            if matches!(mode, 8 | 9)
                || (host && mode == 0)
                || (!host && legal_below.contains(&mode))
            {
                continue;
            }
            for flags in [0u64, 0xf] {
                // Flags, and masks but D; A and F stay set as they are.
                let spsr = flags << 28 | 0x1c0 | mode;
                if !host {
                    msr!("hcr_el2", hcr & !l2::TGE);
                }
                let fault = expect(|| exception_return(spsr));
                msr!("hcr_el2", hcr);
                let fault = faults!(fault, ILLEGAL_STATE, "illegal return");
                equal!(fault.spsr & 0x1f, 9, "mode that it stays in");
                equal!(fault.spsr >> 20 & 1, 1, "SPSR_EL2.IL");
                equal!(fault.spsr >> 28, flags, "flags from SPSR");
                equal!(fault.spsr >> 6 & 0xf, 7, "masks from SPSR");
                equal!(fault.esr & 0x1ff_ffff, 0, "ESR_EL2.ISS");
                msr!("daif", 0x3c0);
            }
        }
        PASS
    }

    /// SPSR with IL set and a legal mode: the guest's own Illegal State exception.
    fn illegal_state_below() -> Verdict {
        let mut guest = guest();
        guest.set_pstate(l2::EL1H | 1 << 20);
        let exit = guest.execute(&[l2::NOP]);
        ensure!(exit.is_hvc(l2::VECTOR_HVC + 4), "illegal state", exit.esr);
        equal!(guest.el1.esr >> 26, ILLEGAL_STATE, "class");
        equal!(guest.el1.elr, l2::CODE, "ELR_EL1");
        PASS
    }

    /// EL2 with SP_EL0, there and back.
    fn el2t() -> Verdict {
        clean!(expect(|| exec::through_other_stack(9, 8)), "EL2t and back");
        equal!(mrs!("CurrentEL") >> 2, 2, "CurrentEL");
        equal!(mrs!("SPSel"), 1, "SPSel");
        PASS
    }

    /// A program for EL0 of the host, mapped for it.
    fn host_program(program: &[u32]) -> (Guest, Exit) {
        const EL0: u64 = 1 << 6;
        let mut guest = guest();
        let va = mmu::map_new(guest.code(), mmu::NORMAL | EL0);
        guest.hcr = l2::E2H | l2::RW | l2::TGE;
        guest.write_program(program);
        guest.set_pc(va);
        guest.set_pstate(l2::EL0T);
        *guest.x() = pattern(9);
        let exit = guest.run();
        (guest, exit)
    }

    fn host_el0() -> Verdict {
        let (mut guest, exit) = host_program(&[l2::NOP, 0xd400_0121]);
        equal!(exit.vector, 0x400, "vector");
        equal!(exit.esr, SVC << 26 | 1 << 25 | 9, "ESR_EL2 of svc");
        equal!(guest.pstate() & 0x1f, 0, "mode in SPSR_EL2");
        for (got, want) in guest.x().iter().zip(pattern(9)) {
            equal!(*got, want, "a general register");
        }
        PASS
    }

    fn host_el0_faults() -> Verdict {
        let (_, exit) = host_program(&[hvc(1)]);
        equal!(exit.esr, 1 << 25, "ESR_EL2 of hvc");
        let (_, exit) = host_program(&[exec::mrs(sys(3, 0, 1, 0, 0))]);
        equal!(exit.esr >> 26, 0, "class of mrs sctlr_el1");
        let (guest, exit) = host_program(&[0xf940_0001]);
        equal!(exit.ec(), l2::EC_DATA, "class of a load");
        equal!(exit.far, { guest }.x()[0], "FAR_EL2");
        ensure!(exit.fsc() < 8 || exit.fsc() == 0x21, "status", exit.fsc());
        PASS
    }

    /// Host EL0, EL1 and EL0 of a guest, EL2t, over and over.
    fn every_context() -> Verdict {
        let mut guest = guest();
        guest.write_program(&[0xd400_0001]);
        for n in 0..50 {
            let want = pattern(n);
            *guest.x() = want;
            let (pstate, vector) = match n % 3 {
                0 => (l2::EL1H, 4),
                1 => (l2::EL1T, 0),
                _ => (l2::EL0T, 8),
            };
            guest.set_pstate(pstate);
            guest.set_pc(l2::CODE);
            let exit = guest.run();
            ensure!(exit.is_hvc(l2::VECTOR_HVC + vector), "svc", exit.esr);
            equal!(guest.el1.spsr & 0xf, pstate & 0xf, "SPSR_EL1");
            for (got, want) in guest.x().iter().zip(want) {
                equal!(*got, want, "a general register");
            }
            clean!(expect(|| exec::through_other_stack(9, 8)), "EL2t");
        }
        PASS
    }
}
