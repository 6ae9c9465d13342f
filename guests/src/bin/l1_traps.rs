//! Does each control of a hypervisor trap what it names in its guest, and nothing without it: coarse and
//! fine-grained?
//! umbra-vmm: --nested --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(l1_traps);

#[cfg(target_os = "none")]
mod l1_traps {
    use umbra_guests::rt::exec::{mrs as read_of, msr as write_of, sys};
    use umbra_guests::rt::l2::{self, Exit, Guest};
    use umbra_guests::rt::stage2::Stage2;
    use umbra_guests::suite::{PASS, Suite, Verdict, skip};
    use umbra_guests::{ensure, equal, mrs, msr, op};

    /// HCR_EL2.APK and API: PAuth does not trap.
    const PAUTH: u64 = 0b11 << 40;
    /// CPTR_EL2.FPEN: FP does not trap.
    const FPEN: u64 = 0b11 << 20;
    /// CNTHCTL_EL2.EL1PCTEN and EL1PTEN: counter and physical timer do not trap.
    const TIMERS: u64 = 0b11 << 10;

    /// Which register a control is in.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum In {
        Hcr,
        Mdcr,
        Cptr,
        Cnthctl,
        IchHcr,
        Hfgrtr,
        Hfgwtr,
        Hfgitr,
        Hdfgrtr,
        Hdfgwtr,
    }

    /// All controls, quiet.
    fn quiet(guest: &mut Guest) {
        guest.hcr |= PAUTH;
        for which in [
            In::Mdcr,
            In::IchHcr,
            In::Hfgrtr,
            In::Hfgwtr,
            In::Hfgitr,
            In::Hdfgrtr,
            In::Hdfgwtr,
        ] {
            write(guest, which, 0);
        }
        write(guest, In::Cptr, FPEN);
        write(guest, In::Cnthctl, TIMERS | 0b11);
    }

    fn write(guest: &mut Guest, which: In, value: u64) {
        match which {
            In::Hcr => guest.hcr = value,
            In::Mdcr => msr!("mdcr_el2", value),
            In::Cptr => msr!("cptr_el2", value),
            In::Cnthctl => msr!("cnthctl_el2", value),
            In::IchHcr => msr!("S3_4_C12_C11_0", value),
            In::Hfgrtr if has_fgt() => msr!("S3_4_C1_C1_4", value),
            In::Hfgwtr if has_fgt() => msr!("S3_4_C1_C1_5", value),
            In::Hfgitr if has_fgt() => msr!("S3_4_C1_C1_6", value),
            In::Hdfgrtr if has_fgt() => msr!("S3_4_C3_C1_4", value),
            In::Hdfgwtr if has_fgt() => msr!("S3_4_C3_C1_5", value),
            _ => {}
        }
    }

    fn quiet_value(guest: &Guest, which: In) -> u64 {
        match which {
            In::Hcr => guest.hcr,
            In::Cptr => FPEN,
            In::Cnthctl => TIMERS | 0b11,
            _ => 0,
        }
    }

    fn has_fgt() -> bool {
        mrs!("id_aa64mmfr0_el1") >> 56 & 0xf != 0
    }

    fn guest() -> Guest {
        let mut guest = Guest::new(&Stage2::usual(), 1);
        quiet(&mut guest);
        guest
    }

    pub(super) fn run(suite: &mut Suite) {
        suite.check("hcr", || each(&HCR));
        suite.check("other-coarse", || each(&COARSE));
        suite.check("pointer-authentication", pauth);
        suite.check("fp", fp);
        suite.check("fine-grained/registers", || fine(&REGISTERS));
        suite.check("fine-grained/instructions", || fine(&INSTRUCTIONS));
        suite.check("fine-grained/debug", || fine(&DEBUG));
        suite.check("fine-grained/svc", svc);
        suite.check("debug-exceptions", debug_exceptions);
        suite.check("single-step", single_step);
        suite.check("breakpoint", breakpoint);
        suite.check("watchpoint", watchpoint);
        suite.check("reserved-bits", reserved);
    }

    /// A control, its bit, and an instruction that it traps (with x0).
    type Case = (In, u32, u32);

    const fn read(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
        read_of(sys(op0, op1, crn, crm, op2)) | 7
    }

    const fn put(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
        write_of(sys(op0, op1, crn, crm, op2))
    }

    const HCR: [Case; 15] = [
        (In::Hcr, 16, read(3, 0, 0, 0, 6)),  // TID1: REVIDR_EL1
        (In::Hcr, 16, read(3, 1, 0, 0, 7)),  // TID1: AIDR_EL1
        (In::Hcr, 17, read(3, 3, 0, 0, 1)),  // TID2: CTR_EL0
        (In::Hcr, 17, read(3, 1, 0, 0, 1)),  // TID2: CLIDR_EL1
        (In::Hcr, 18, read(3, 0, 0, 7, 0)),  // TID3: ID_AA64MMFR0_EL1
        (In::Hcr, 21, read(3, 0, 1, 0, 1)),  // TACR: ACTLR_EL1
        (In::Hcr, 22, put(1, 0, 7, 6, 2)),   // TSW: DC ISW
        (In::Hcr, 23, put(1, 3, 7, 14, 1)),  // TPC: DC CIVAC
        (In::Hcr, 24, put(1, 0, 7, 5, 0)),   // TPU: IC IALLU
        (In::Hcr, 25, put(1, 0, 8, 7, 0)),   // TTLB: TLBI VMALLE1
        (In::Hcr, 25, put(1, 0, 8, 3, 0)),   // TTLB: TLBI VMALLE1IS
        (In::Hcr, 26, put(3, 0, 13, 0, 1)),  // TVM: CONTEXTIDR_EL1
        (In::Hcr, 30, read(3, 0, 1, 0, 0)),  // TRVM: SCTLR_EL1
        (In::Hcr, 30, read(3, 0, 13, 0, 1)), // TRVM: CONTEXTIDR_EL1
        (In::Hcr, 13, l2::WFI),              // TWI
    ];

    const COARSE: [Case; 14] = [
        (In::Mdcr, 9, read(2, 0, 0, 2, 2)),      // TDA: MDSCR_EL1
        (In::Mdcr, 9, read(2, 0, 0, 0, 4)),      // TDA: DBGBVR0_EL1
        (In::Mdcr, 10, read(2, 0, 1, 1, 4)),     // TDOSA: OSLSR_EL1
        (In::Mdcr, 11, read(2, 0, 1, 0, 0)),     // TDRA: MDRAR_EL1
        (In::Mdcr, 8, read(2, 0, 0, 2, 2)),      // TDE: MDSCR_EL1
        (In::Cptr, 31, read(3, 0, 1, 0, 2)),     // TCPAC: CPACR_EL1
        (In::Cnthctl, 10, read(3, 3, 14, 0, 1)), // EL1PCTEN: CNTPCT_EL0
        (In::Cnthctl, 11, read(3, 3, 14, 2, 1)), // EL1PTEN: CNTP_CTL_EL0
        (In::Cnthctl, 13, read(3, 3, 14, 3, 1)), // EL1TVT: CNTV_CTL_EL0
        (In::Cnthctl, 14, read(3, 3, 14, 0, 2)), // EL1TVCT: CNTVCT_EL0
        (In::IchHcr, 10, read(3, 0, 4, 6, 0)),   // TC: ICC_PMR_EL1
        (In::IchHcr, 11, read(3, 0, 12, 8, 3)),  // TALL0: ICC_BPR0_EL1
        (In::IchHcr, 12, read(3, 0, 12, 12, 3)), // TALL1: ICC_BPR1_EL1
        (In::IchHcr, 14, put(3, 0, 12, 11, 1)),  // TDIR: ICC_DIR_EL1
    ];

    const REGISTERS: [Case; 16] = [
        (In::Hfgrtr, 0, read(3, 0, 5, 1, 0)),    // AFSR0_EL1
        (In::Hfgrtr, 9, read(3, 1, 0, 0, 0)),    // CCSIDR_EL1
        (In::Hfgrtr, 14, read(3, 3, 0, 0, 1)),   // CTR_EL0
        (In::Hfgrtr, 18, read(3, 0, 12, 1, 0)),  // ISR_EL1
        (In::Hfgrtr, 25, read(3, 0, 0, 0, 0)),   // MIDR_EL1
        (In::Hfgrtr, 26, read(3, 0, 0, 0, 5)),   // MPIDR_EL1
        (In::Hfgrtr, 27, read(3, 0, 7, 4, 0)),   // PAR_EL1
        (In::Hfgrtr, 29, read(3, 0, 1, 0, 0)),   // SCTLR_EL1
        (In::Hfgrtr, 33, read(3, 0, 13, 0, 4)),  // TPIDR_EL1
        (In::Hfgrtr, 39, read(3, 0, 12, 12, 7)), // ICC_IGRPEN1_EL1
        (In::Hfgwtr, 13, put(3, 2, 0, 0, 0)),    // CSSELR_EL1
        (In::Hfgwtr, 11, put(3, 0, 13, 0, 1)),   // CONTEXTIDR_EL1
        (In::Hfgwtr, 24, put(3, 0, 10, 2, 0)),   // MAIR_EL1
        (In::Hfgwtr, 33, put(3, 0, 13, 0, 4)),   // TPIDR_EL1
        (In::Hfgwtr, 35, put(3, 3, 13, 0, 2)),   // TPIDR_EL0
        (In::Hfgwtr, 36, put(3, 0, 2, 0, 0)),    // TTBR0_EL1
    ];

    const INSTRUCTIONS: [Case; 8] = [
        (In::Hfgitr, 0, put(1, 0, 7, 1, 0)),   // IC IALLUIS
        (In::Hfgitr, 4, put(1, 0, 7, 6, 2)),   // DC ISW
        (In::Hfgitr, 10, put(1, 3, 7, 14, 1)), // DC CIVAC
        (In::Hfgitr, 12, put(1, 0, 7, 8, 0)),  // AT S1E1R
        (In::Hfgitr, 28, put(1, 0, 8, 3, 0)),  // TLBI VMALLE1IS
        (In::Hfgitr, 31, put(1, 0, 8, 3, 3)),  // TLBI VAAE1IS
        (In::Hfgitr, 42, put(1, 0, 8, 7, 0)),  // TLBI VMALLE1
        (In::Hfgitr, 54, put(1, 3, 7, 10, 1)), // DC CVAC
    ];

    const DEBUG: [Case; 6] = [
        (In::Hdfgrtr, 0, read(2, 0, 0, 0, 5)), // DBGBCR0_EL1
        (In::Hdfgrtr, 4, read(2, 0, 0, 2, 2)), // MDSCR_EL1
        (In::Hdfgrtr, 9, read(2, 0, 1, 1, 4)), // OSLSR_EL1
        (In::Hdfgwtr, 1, put(2, 0, 0, 0, 4)),  // DBGBVR0_EL1
        (In::Hdfgwtr, 4, put(2, 0, 0, 2, 2)),  // MDSCR_EL1
        (In::Hdfgwtr, 8, put(2, 0, 1, 0, 4)),  // OSLAR_EL1
    ];

    /// ISS of a trapped system instruction: op0 21:20, op2 19:17, op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, direction 0.
    fn iss(instruction: u32) -> u64 {
        let field = |low: u32, width: u32| u64::from(instruction >> low & ((1 << width) - 1));
        let op0 = field(19, 2);
        op0 << 20
            | field(5, 3) << 17
            | field(16, 3) << 14
            | field(12, 4) << 10
            | field(0, 5) << 5
            | field(8, 4) << 1
            | field(21, 1)
    }

    fn execute(guest: &mut Guest, instruction: u32) -> Exit {
        guest.x()[0] = l2::CODE;
        guest.set_pstate(l2::EL1H);
        guest.execute(&[instruction])
    }

    fn each(cases: &[Case]) -> Verdict {
        let mut guest = guest();
        for &(which, bit, instruction) in cases {
            let before = quiet_value(&guest, which);
            if instruction != l2::WFI {
                let exit = execute(&mut guest, instruction);
                ensure!(
                    exit.is_hvc(l2::DONE),
                    "without the control: instruction",
                    instruction
                );
            }
            write(&mut guest, which, before ^ 1 << bit);
            let exit = execute(&mut guest, instruction);
            write(&mut guest, which, before);
            if instruction == l2::WFI {
                equal!(exit.ec(), l2::EC_WFX, "class of WFI");
                continue;
            }
            ensure!(
                exit.ec() == l2::EC_SYSTEM,
                "with the control: instruction",
                instruction
            );
            equal!(exit.esr & 0x1ff_ffff, iss(instruction), "ESR_EL2.ISS");
            equal!(guest.pc(), l2::CODE, "ELR_EL2");
        }
        PASS
    }

    fn fine(cases: &[Case]) -> Verdict {
        if !has_fgt() {
            return skip("no FEAT_FGT");
        }
        each(cases)
    }

    fn pauth() -> Verdict {
        if mrs!("id_aa64isar1_el1") >> 4 & 0xff == 0 && mrs!("id_aa64isar2_el1") >> 12 & 0xf == 0 {
            return skip("no FEAT_PAuth");
        }
        each(&[(In::Hcr, 40, read(3, 0, 2, 1, 0))])?; // APK: APIAKeyLo_EL1
        let mut guest = guest();
        const PACGA: u32 = 0x9ac3_3041;
        let exit = execute(&mut guest, PACGA);
        ensure!(exit.is_hvc(l2::DONE), "PACGA: ESR", exit.esr);
        guest.hcr &= !(1 << 41);
        let exit = execute(&mut guest, PACGA);
        equal!(exit.ec(), 0x09, "class of PACGA without API");
        PASS
    }

    fn fp() -> Verdict {
        let mut guest = guest();
        const FMOV: u32 = 0x9e67_03e0; // fmov d0, xzr
        for (fpen, traps) in [(3, false), (0, true), (2, true), (1, false)] {
            write(&mut guest, In::Cptr, fpen << 20);
            let exit = execute(&mut guest, FMOV);
            write(&mut guest, In::Cptr, FPEN);
            equal!(
                exit.ec(),
                if traps { 0x07 } else { l2::EC_HVC },
                "class of FP"
            );
        }
        PASS
    }

    fn svc() -> Verdict {
        if !has_fgt() {
            return skip("no FEAT_FGT");
        }
        let mut guest = guest();
        const SVC: u32 = 0xd400_0001 | 9 << 5;
        let exit = execute(&mut guest, SVC);
        equal!(exit.esr & 0xffff, l2::VECTOR_HVC + 4, "SVC goes to EL1");
        write(&mut guest, In::Hfgitr, 1 << 53);
        let exit = execute(&mut guest, SVC);
        write(&mut guest, In::Hfgitr, 0);
        equal!(exit.ec(), 0x15, "class of SVC");
        equal!(exit.esr & 0xffff, 9, "immediate");
        PASS
    }

    const BREAKPOINT: u64 = 0x30;
    const STEP: u64 = 0x32;
    const WATCHPOINT: u64 = 0x34;
    /// Fault status of a debug exception.
    const DEBUG_STATUS: u64 = 0x22;
    /// MDCR_EL2.TDE.
    const TDE: u64 = 1 << 8;
    /// MDSCR_EL1.MDE.
    const MDE: u64 = 1 << 15;

    fn mdscr(value: u64) {
        msr!("S2_0_C0_C2_2", value);
        op!("isb");
    }

    /// With TDE the hypervisor steps its guest, instruction by instruction.
    fn single_step() -> Verdict {
        const SS: u64 = 1 << 21;
        let mut guest = guest();
        for pstate in [l2::EL1H, l2::EL0T] {
            write(&mut guest, In::Mdcr, TDE);
            mdscr(1);
            guest.write_program(&[l2::NOP, l2::NOP, l2::NOP]);
            guest.set_pc(l2::CODE);
            let mut steps = [Exit {
                vector: 0,
                esr: 0,
                far: 0,
                hpfar: 0,
            }; 3];
            let mut places = [0; 3];
            for n in 0..3 {
                guest.set_pstate(pstate | SS);
                steps[n] = guest.run();
                places[n] = guest.pc();
            }
            mdscr(0);
            write(&mut guest, In::Mdcr, 0);
            for (n, exit) in (1..).zip(steps) {
                equal!(exit.ec(), STEP, "class of a step");
                equal!(exit.esr & 0x3f, DEBUG_STATUS, "status of a step");
                equal!(
                    places[n as usize - 1],
                    l2::CODE + 4 * n,
                    "ELR_EL2 of a step"
                );
            }
        }
        PASS
    }

    /// A breakpoint in the guest is its own, or with TDE its hypervisor's.
    fn breakpoint() -> Verdict {
        let mut guest = guest();
        for (pstate, control, routed) in [
            (l2::EL1H, TDE, true),
            (l2::EL0T, TDE, true),
            (l2::EL0T, 0, false),
        ] {
            write(&mut guest, In::Mdcr, control);
            msr!("S2_0_C0_C0_4", l2::CODE + 8);
            msr!("S2_0_C0_C0_5", 0x1e7u64);
            mdscr(MDE);
            guest.set_pstate(pstate);
            let exit = guest.execute(&[l2::NOP, l2::NOP, l2::NOP]);
            mdscr(0);
            msr!("S2_0_C0_C0_5", 0u64);
            write(&mut guest, In::Mdcr, 0);
            if routed {
                equal!(exit.ec(), BREAKPOINT, "class of a breakpoint");
                equal!(guest.pc(), l2::CODE + 8, "ELR_EL2 of a breakpoint");
            } else {
                ensure!(
                    exit.is_hvc(l2::VECTOR_HVC + 8),
                    "a breakpoint goes to EL1",
                    exit.esr
                );
                equal!(guest.el1.esr >> 26, BREAKPOINT, "class at EL1");
                equal!(guest.el1.elr, l2::CODE + 8, "ELR_EL1 of a breakpoint");
            }
        }
        PASS
    }

    /// So is a watchpoint, which has an address.
    fn watchpoint() -> Verdict {
        const AT: u64 = l2::CODE + 0x100;
        let mut guest = guest();
        for (instruction, writes) in [(l2::LDR, 0), (l2::STR, 1)] {
            write(&mut guest, In::Mdcr, TDE);
            msr!("S2_0_C0_C0_6", AT);
            msr!("S2_0_C0_C0_7", 0x1fffu64);
            mdscr(MDE);
            guest.set_pstate(l2::EL1H);
            guest.x()[0] = AT;
            let exit = guest.execute(&[l2::NOP, instruction]);
            mdscr(0);
            msr!("S2_0_C0_C0_7", 0u64);
            write(&mut guest, In::Mdcr, 0);
            equal!(exit.ec(), WATCHPOINT, "class of a watchpoint");
            equal!(exit.esr & 0x3f, DEBUG_STATUS, "status of a watchpoint");
            equal!(exit.esr >> 6 & 1, writes, "ESR_EL2.WnR");
            equal!(exit.far, AT, "FAR_EL2");
            equal!(guest.pc(), l2::CODE + 4, "ELR_EL2");
        }
        PASS
    }

    /// A breakpoint instruction of the guest is its own, or with MDCR_EL2.TDE its hypervisor's, from EL1
    /// and from EL0.
    fn debug_exceptions() -> Verdict {
        const BRK: u32 = 0xd420_0000 | 0x5a5 << 5;
        let mut guest = guest();
        // Entries of the guest's vectors: synchronous, from EL1 with SP_EL1 and from EL0.
        for (pstate, entry) in [(l2::EL1H, 4), (l2::EL0T, 8)] {
            for (control, routed) in [(0, false), (TDE, true)] {
                write(&mut guest, In::Mdcr, control);
                guest.set_pstate(pstate);
                let exit = guest.execute(&[l2::NOP, BRK]);
                write(&mut guest, In::Mdcr, 0);
                if routed {
                    equal!(exit.vector, 0x400, "vector of BRK");
                    equal!(exit.esr, 0x3cu64 << 26 | 1 << 25 | 0x5a5, "ESR_EL2 of BRK");
                    equal!(guest.pc(), l2::CODE + 4, "ELR_EL2 of BRK");
                } else {
                    ensure!(
                        exit.is_hvc(l2::VECTOR_HVC + entry),
                        "BRK goes to EL1",
                        exit.esr
                    );
                    equal!(
                        guest.el1.esr,
                        0x3cu64 << 26 | 1 << 25 | 0x5a5,
                        "ESR_EL1 of BRK"
                    );
                    equal!(guest.el1.elr, l2::CODE + 4, "ELR_EL1 of BRK");
                }
            }
        }
        PASS
    }

    /// Every bit of every control at once, those of features that are not there too: the guest still runs.
    fn reserved() -> Verdict {
        let mut guest = guest();
        for which in [
            In::Mdcr,
            In::Cptr,
            In::Cnthctl,
            In::IchHcr,
            In::Hfgrtr,
            In::Hfgwtr,
            In::Hfgitr,
            In::Hdfgrtr,
            In::Hdfgwtr,
        ] {
            let value = if which == In::Cnthctl { !0x3f0 } else { !0 };
            write(&mut guest, which, value & !1);
        }
        let exit = guest.execute(&[l2::NOP]);
        quiet(&mut guest);
        ensure!(exit.is_hvc(l2::DONE), "ESR", exit.esr);
        let exit = guest.execute(&[l2::NOP]);
        ensure!(exit.is_hvc(l2::DONE), "ESR afterwards", exit.esr);
        PASS
    }
}
