//! What does the guest get of a memory error, under each policy of umbra-vmm (`--on-memory-error`), which
//! the command line names too? With `latent` nobody knows of the error before the guest meets it.
//! umbra-vmm: --cpus 1 --memory 64M --error-injection --on-memory-error inject --cmdline inject
#![cfg_attr(target_os = "none", no_std, no_main)]

umbra_guests::payload!(memory_error);

#[cfg(target_os = "none")]
mod memory_error {
    use umbra_guests::rt::boot::has_arg;
    use umbra_guests::rt::mem::{self, PAGE, fresh};
    use umbra_guests::rt::mmu::{self, DEVICE};
    use umbra_guests::rt::probe::Kind;
    use umbra_guests::rt::{Fault, expect};
    use umbra_guests::suite::{Failure, PASS, Suite, Verdict, skip};
    use umbra_guests::{clean, ensure, equal, faults, op};

    const DATA_ABORT: u64 = 0x25;
    const SERROR: u64 = 0x2f;
    /// Synchronous external abort.
    const SEA: u64 = 0x10;
    const WNR: u64 = 1 << 6;
    /// umbra-vmm's device: a page that nobody knows to be bad, one that everybody knows.
    const LATENT: u64 = 0x0910_0000;
    const KNOWN: u64 = LATENT + 8;
    /// The device's answer when it did what it was asked for.
    const DONE: u64 = 1;

    pub(super) fn run(suite: &mut Suite) {
        // The bad page is the middle one.
        let pages = fresh(3 * PAGE, PAGE);
        let bad = pages + PAGE;
        for n in 0..3 {
            mem::write64(pages + n * PAGE, 7 + n);
        }
        suite.check("before", || {
            equal!(mem::read64(bad), 8, "the page");
            PASS
        });
        let register = mmu::map_new(LATENT, DEVICE);
        let at = if has_arg("latent") { LATENT } else { KNOWN };
        mem::write64(register + (at - LATENT), bad);
        if mem::read64(register) != DONE {
            suite.check("all", || skip("the host cannot make memory errors"));
            return;
        }
        if has_arg("inject") {
            suite.check("inject", || inject(bad));
        } else if has_arg("replace") {
            suite.check("replace", || replace(bad));
        } else if has_arg("report") {
            suite.check("report", || report(bad));
        } else {
            suite.check("stop", || {
                mem::read64(bad);
                PASS
            });
        }
        suite.check("neighbours", || {
            equal!(mem::read64(pages), 7, "the page before");
            equal!(mem::read64(bad + PAGE), 9, "the page behind");
            PASS
        });
    }

    /// An external abort at `bad` must have come, once.
    fn met(fault: Option<Fault>, bad: u64, write: bool) -> Result<(), Failure> {
        let fault = faults!(fault, DATA_ABORT, "an abort");
        equal!(fault.fsc(), SEA, "FSC");
        equal!(fault.far, bad, "FAR");
        equal!(fault.count, 1, "aborts");
        // What the host tells by a signal comes back as a plain abort: without WnR.
        ensure!(write || fault.esr & WNR == 0, "WnR", fault.esr);
        Ok(())
    }

    /// As often as it is touched.
    fn inject(bad: u64) -> Verdict {
        for _ in 0..3 {
            met(expect(|| mem::read64(bad)), bad, false)?;
            met(expect(|| mem::write64(bad, 1)), bad, true)?;
        }
        PASS
    }

    /// Once; then a page of zeros is there.
    fn replace(bad: u64) -> Verdict {
        met(expect(|| mem::read64(bad)), bad, false)?;
        for at in (bad..bad + PAGE).step_by(8) {
            equal!(mem::read64(at), 0, "the fresh page");
            mem::write64(at, at);
        }
        clean!(expect(|| mem::read64(bad)), "the fresh page");
        equal!(mem::read64(bad), bad, "what was written to it");
        PASS
    }

    /// An SError, each time.
    fn report(bad: u64) -> Verdict {
        // Unmasked, as Linux runs: a masked one would leave the access to be made for ever.
        op!("msr daifclr, #4");
        for _ in 0..2 {
            let fault = expect(|| mem::read64(bad));
            let Some(fault) = fault else {
                return Err(Failure {
                    what: "no SError",
                    got: 0,
                    want: None,
                });
            };
            ensure!(fault.kind == Kind::SError, "a synchronous one", fault.esr);
            equal!(fault.ec(), SERROR, "class");
        }
        PASS
    }
}
