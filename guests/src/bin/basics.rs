//! Is the machine what it says: exception level, ID registers, hidden features, firmware calls?
//! umbra-vmm: --cpus 1 --memory 64M --cmdline umbra
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(basics);

#[cfg(target_os = "none")]
mod basics {
    use umbra_guests::rt::exec::{self, Regs, exec, sys};
    use umbra_guests::rt::{expect, psci, smp, timer};
    use umbra_guests::suite::{PASS, Suite, Verdict};
    use umbra_guests::{clean, ensure, equal, faults, mrs, op};

    /// Undefined instruction, and a trapped register that the hypervisor calls so.
    const UNDEF: u64 = 0;

    pub(super) fn run(suite: &mut Suite) {
        suite.check("exception-level", exception_level);
        suite.check("affinity", affinity);
        suite.check("id-space-reads", id_space_reads);
        suite.check("hidden-features", hidden_features);
        suite.check("hidden-registers", hidden_registers);
        suite.check("unallocated-encodings", unallocated_encodings);
        suite.check("id-registers-are-read-only", id_registers_are_read_only);
        suite.check("unknown-call", unknown_call);
        suite.check("psci", psci_version_and_features);
        suite.check("smccc", smccc);
        suite.check("vendor-uid", vendor_uid);
        suite.check("trng", trng);
        suite.check("counter", counter);
        suite.check("pointer-authentication", pointer_authentication);
    }

    fn exception_level() -> Verdict {
        equal!(mrs!("CurrentEL") >> 2, 1, "CurrentEL");
        PASS
    }

    fn affinity() -> Verdict {
        let mpidr = mrs!("mpidr_el1");
        equal!(mpidr >> 31 & 1, 1, "MPIDR_EL1 bit 31");
        equal!(mpidr & 0xff_00ff_ffff, 0, "affinity of CPU 0");
        equal!(smp::count(), 1, "CPUs in the device tree");
        ensure!(mrs!("midr_el1") != 0, "MIDR_EL1", 0);
        PASS
    }

    fn read(encoding: u32) -> Result<u64, u64> {
        let mut regs = Regs::pattern(3);
        match exec(exec::mrs(encoding), &mut regs) {
            None => Ok(regs.x[0]),
            Some(fault) => Err(fault.esr),
        }
    }

    /// op0 3, op1 0, CRn 0, CRm 1 to 7 can be read throughout; what is not allocated is zero.
    fn id_space_reads() -> Verdict {
        for crm in 1..8 {
            for op2 in 0..8 {
                let encoding = sys(3, 0, 0, crm, op2);
                let value = read(encoding);
                ensure!(value.is_ok(), "no read of ID register", encoding);
                let unallocated = matches!((crm, op2), (3, 3 | 7) | (5, 2 | 3) | (6, 4..));
                ensure!(
                    !unallocated || value == Ok(0),
                    "unallocated, not 0",
                    encoding
                );
            }
        }
        ensure!(
            mrs!("id_aa64pfr0_el1") & 0xff != 0,
            "ID_AA64PFR0_EL1 EL0, EL1",
            0
        );
        equal!(
            mrs!("id_aa64pfr0_el1") >> 24 & 0xf,
            1,
            "ID_AA64PFR0_EL1.GIC"
        );
        ensure!(
            mrs!("id_aa64mmfr0_el1") & 0xf < 8,
            "PARange",
            mrs!("id_aa64mmfr0_el1")
        );
        PASS
    }

    fn hidden_features() -> Verdict {
        let (pfr0, pfr1) = (mrs!("id_aa64pfr0_el1"), mrs!("id_aa64pfr1_el1"));
        equal!(pfr0 >> 32 & 0xf, 0, "ID_AA64PFR0_EL1.SVE");
        equal!(pfr1 >> 8 & 0xf, 0, "ID_AA64PFR1_EL1.MTE");
        equal!(pfr1 >> 24 & 0xf, 0, "ID_AA64PFR1_EL1.SME");
        equal!(
            mrs!("id_aa64dfr0_el1") >> 8 & 0xf,
            0,
            "ID_AA64DFR0_EL1.PMUVer"
        );
        equal!(mrs!("S3_0_C0_C4_4"), 0, "ID_AA64ZFR0_EL1");
        equal!(mrs!("S3_0_C0_C4_5"), 0, "ID_AA64SMFR0_EL1");
        PASS
    }

    fn undefined(encoding: u32) -> Verdict {
        let mut regs = Regs::pattern(5);
        faults!(exec(exec::mrs(encoding), &mut regs), UNDEF, "mrs");
        equal!(
            regs.x[0],
            Regs::pattern(5).x[0],
            "x0 after an undefined mrs"
        );
        faults!(exec(exec::msr(encoding), &mut regs), UNDEF, "msr");
        PASS
    }

    fn hidden_registers() -> Verdict {
        // ZCR_EL1, SMCR_EL1, TFSR_EL1, GCR_EL1, PMCR_EL0, PMCCNTR_EL0, SCTLR_EL2, SCTLR_EL12.
        for encoding in [
            sys(3, 0, 1, 2, 0),
            sys(3, 0, 1, 2, 6),
            sys(3, 0, 5, 6, 0),
            sys(3, 0, 1, 0, 6),
            sys(3, 3, 9, 12, 0),
            sys(3, 3, 9, 13, 0),
            sys(3, 4, 1, 0, 0),
            sys(3, 5, 1, 0, 0),
        ] {
            undefined(encoding)?;
        }
        PASS
    }

    fn unallocated_encodings() -> Verdict {
        for encoding in [
            sys(3, 0, 1, 7, 7),
            sys(3, 0, 15, 15, 7),
            sys(3, 1, 5, 5, 5),
            sys(3, 2, 2, 2, 2),
            sys(3, 3, 1, 1, 1),
            sys(3, 7, 1, 1, 1),
        ] {
            undefined(encoding)?;
        }
        let mut regs = Regs::pattern(6);
        faults!(exec(0, &mut regs), UNDEF, "udf");
        PASS
    }

    fn id_registers_are_read_only() -> Verdict {
        let before = mrs!("id_aa64pfr0_el1");
        let mut regs = Regs::pattern(7);
        faults!(exec(exec::msr(sys(3, 0, 0, 4, 0)), &mut regs), UNDEF, "msr");
        equal!(mrs!("id_aa64pfr0_el1"), before, "ID_AA64PFR0_EL1");
        PASS
    }

    fn unknown_call() -> Verdict {
        for function in [
            0x8400_ffff,
            0xc300_0001,
            0x8700_0123,
            0xb900_0000,
            0x0000_0001,
        ] {
            let x0 = psci::hvc(function, [1, 2, 3])[0];
            ensure!(x0 == u64::MAX || x0 == 0xffff_ffff, "answer", x0);
        }
        PASS
    }

    fn psci_version_and_features() -> Verdict {
        let version = psci::call(psci::VERSION, [0; 3]);
        ensure!(version >= 0x1_0000, "PSCI_VERSION", version);
        for function in [
            psci::CPU_ON,
            psci::CPU_OFF,
            psci::SYSTEM_OFF,
            psci::SYSTEM_RESET,
        ] {
            let status = psci::call(psci::FEATURES, [function, 0, 0]);
            ensure!(status >= 0, "PSCI_FEATURES of a function", function);
        }
        let unknown = psci::call(psci::FEATURES, [0x8400_00ff, 0, 0]);
        equal!(unknown, psci::NOT_SUPPORTED, "PSCI_FEATURES of nothing");
        let affinity = psci::call(psci::AFFINITY_INFO, [0, 0, 0]);
        equal!(affinity, 0, "AFFINITY_INFO of this CPU (on)");
        let migrate = psci::call(0x8400_0006, [0; 3]);
        equal!(migrate, 2, "MIGRATE_INFO_TYPE (no trusted OS)");
        PASS
    }

    fn smccc() -> Verdict {
        let version = psci::call(0x8000_0000, [0; 3]);
        ensure!(version >= 0x1_0001, "SMCCC_VERSION", version);
        equal!(
            psci::call(psci::FEATURES, [0x8000_0000, 0, 0]),
            0,
            "PSCI_FEATURES of SMCCC"
        );
        let unknown = psci::call(0x8000_0001, [0x8000_7fff, 0, 0]);
        equal!(unknown, -1i32, "ARCH_FEATURES of nothing");
        PASS
    }

    /// What Linux looks for before it uses KVM's own calls.
    fn vendor_uid() -> Verdict {
        let uid = psci::hvc(0x8600_ff01, [0; 3]).map(|w| w & 0xffff_ffff);
        let want = [0xb66f_b428_u64, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];
        for (got, want) in uid.into_iter().zip(want) {
            equal!(got, want, "vendor UID");
        }
        PASS
    }

    fn trng() -> Verdict {
        let version = psci::call(0x8400_0050, [0; 3]);
        ensure!(version >= 0x1_0000, "TRNG_VERSION", version);
        let draw = || psci::hvc(0xc400_0053, [192, 0, 0]);
        let (a, b) = (draw(), draw());
        equal!(a[0] | b[0], 0, "TRNG_RND");
        ensure!(a[1..] != b[1..] && a[1..] != [0; 3], "random numbers", a[1]);
        let some = psci::hvc(0xc400_0053, [8, 0, 0]);
        equal!(some[3] & !0xff, 0, "bits beyond the 8 asked for");
        let much = psci::call(0xc400_0053, [193, 0, 0]);
        equal!(much, -2i32, "TRNG_RND of too much");
        PASS
    }

    fn counter() -> Verdict {
        ensure!(
            mrs!("cntfrq_el0") >= 1_000_000,
            "CNTFRQ_EL0",
            mrs!("cntfrq_el0")
        );
        let mut before = timer::now();
        for _ in 0..1000 {
            let now = timer::now();
            ensure!(now >= before, "counter went back by", before - now);
            before = now;
        }
        ensure!(
            timer::wait_for(1000, || timer::now() > before),
            "counter stands at",
            before
        );
        PASS
    }

    /// Hints of FEAT_PAuth, which are no-operations where it is hidden.
    fn pointer_authentication() -> Verdict {
        let probe = || {
            op!("hint #25\nhint #29"); // PACIASP, AUTIASP
            op!("hint #7"); // XPACLRI
        };
        clean!(expect(probe), "hints");
        let isar1 = mrs!("id_aa64isar1_el1") >> 4 & 0xff | mrs!("S3_0_C0_C6_2") >> 12 & 0xf;
        let mut regs = Regs::pattern(8);
        // pacga x0, x1, x2: an instruction of its own, undefined without the feature.
        let generic = mrs!("id_aa64isar1_el1") >> 24 & 0xff | mrs!("S3_0_C0_C6_2") >> 8 & 0xf;
        let fault = exec(0x9ac2_3020, &mut regs);
        if generic != 0 {
            clean!(fault, "pacga");
            equal!(regs.x[0] & 0xffff_ffff, 0, "low half of pacga's result");
        } else {
            faults!(fault, UNDEF, "pacga");
        }
        // APIAKeyLo_EL1 goes with the address half of the feature.
        let fault = exec(exec::mrs(sys(3, 0, 2, 1, 0)), &mut regs);
        if isar1 != 0 {
            clean!(fault, "key");
        } else {
            faults!(fault, UNDEF, "key");
        }
        PASS
    }
}
