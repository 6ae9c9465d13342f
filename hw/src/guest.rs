//! Running a vCPU, and the registers of EL1 that stay loaded while umbra works.
//!
//! *Loaded* means: the EL1 registers of one [`VcpuRegs`] are in this CPU's hardware. They stay there
//! across exits that umbra handles, across the VMM's turn at EL0 and across other threads, since
//! neither umbra nor EL0 uses them. `loaded_on` names the CPU; whoever needs the values elsewhere
//! asks that CPU for a [`save`](VcpuRegs::save).

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use umbra_arm64::Pa;

use crate::debug::DebugRegs;
pub use crate::frame::{Frame, HwPstate};
use crate::pmu::PmuRegs;
use crate::regs::{insn, mrs, msr};
use crate::sabotage::{Safeguard, left_out};
use crate::traps::{self, Traps};
use crate::vectors::{self, CAUSE_IRQ, CAUSE_SERROR, CAUSE_SYNC};
use crate::{fp, mem, percpu, user};

/// Why a guest stopped, before anything of it was read.
#[derive(Clone, Copy, Debug)]
pub struct Cause(u64);

impl Cause {
    /// Reads what there is to know.
    pub fn read(self) -> Exit {
        match self.0 {
            CAUSE_SYNC => Exit::Sync {
                esr: mrs!("esr_el2"),
                far: mrs!("far_el2"),
                hpfar: mrs!("hpfar_el2"),
            },
            CAUSE_IRQ => Exit::Irq,
            CAUSE_SERROR => Exit::SError {
                esr: mrs!("esr_el2"),
            },
            other => unreachable!("the vectors leave one of three causes, not {other}"),
        }
    }
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A synchronous exception to EL2.
    Sync {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2; meaningful for the classes that write it.
        far: u64,
        /// HPFAR_EL2; UNKNOWN for many faults, see the classification.
        hpfar: u64,
    },
    /// A physical interrupt is pending; nothing was acknowledged.
    Irq,
    /// A physical SError.
    SError {
        /// ESR_EL2.
        esr: u64,
    },
}

/// Runs the guest whose registers are loaded until its next exit, with these debug registers and
/// performance counters if it needs any. `watch` is called right before
/// (`None`) and right after it ran: there nothing is in registers that a call would have to save.
#[inline]
pub fn run(
    frame: &mut Frame,
    hcr: u64,
    fp: &mut fp::FpState,
    debug: Option<&DebugRegs>,
    mut counters: Option<&mut PmuRegs>,
    watch: impl Fn(&Frame, Option<Cause>),
) -> Exit {
    fp.load();
    let this = percpu::this();
    if this.hcr.get() != hcr {
        set_hcr(hcr);
    }
    if this.vbar.get() != vectors::guest_vectors() {
        user::set_vbar(vectors::guest_vectors());
    }
    let cptr = this.traps.cptr.get();
    if cptr != fp::CPTR_OPEN {
        fp::trap_guest(cptr);
    }
    if let Some(debug) = debug {
        debug.load();
    }
    watch(frame, None);
    // Last, and first again: umbra's own instructions do not count.
    if let Some(counters) = &counters {
        counters.load();
    }
    // SAFETY: PSTATE is an `HwPstate` (the hardware wrote it at the last exit, or `set_pstate`), so
    // ERET goes to EL1 or EL0, which reach memory only through the VTTBR_EL2 that was loaded.
    let cause = unsafe { vectors::umbra_enter_guest(frame) };
    if let Some(counters) = &mut counters {
        counters.unload();
    }
    if let Some(debug) = debug {
        debug.unload();
    }
    watch(frame, Some(Cause(cause)));
    if cptr != fp::CPTR_OPEN {
        fp::trap_nothing();
    }
    Cause(cause).read()
}

/// HCR_EL2.VSE: a virtual SError waits for the guest to unmask it.
pub const HCR_VSE: u64 = 1 << 8;

/// HCR_EL2.VF and VI: a virtual FIQ or IRQ waits, of a GIC that the VMM has.
pub const HCR_LINES: u64 = 0b11 << 6;

/// Sets the syndrome of the virtual SError (VSESR_EL2; only with FEAT_RAS).
pub fn set_serror_syndrome(iss: u64) {
    // SAFETY: what a guest finds in ESR_EL1; nothing of umbra's.
    unsafe { msr!("s3_4_c5_c2_3", iss & 0x1ff_ffff) };
}

/// Whether the virtual SError that the last entry offered waits still.
pub fn serror_waits() -> bool {
    mrs!("hcr_el2") & HCR_VSE != 0
}

/// Before this CPU waits: a virtual SError or interrupt would end the wait.
pub fn withdraw_serror() {
    set_hcr(percpu::this().hcr.get() & !(HCR_VSE | HCR_LINES));
}

/// SCTLR of the EL1&0 regime as loaded on this CPU (SCTLR_EL12).
pub fn loaded_sctlr() -> u64 {
    mrs!("s3_5_c1_c0_0")
}

/// How often this CPU's guest registers were put away: unchanged means that what was loaded still is.
pub fn saves() -> u64 {
    percpu::this().saves.get()
}

/// Writes HCR_EL2 if it differs from what stands there.
pub(crate) fn set_hcr(hcr: u64) {
    let this = percpu::this();
    if this.hcr.get() != hcr {
        // SAFETY: callers pass `HCR_HOST`-like values with E2H, RW, IMO, FMO and AMO set, so umbra's
        // own regime and interrupt routing do not change.
        unsafe {
            msr!("hcr_el2", hcr | REQUIRED_HCR);
            insn!("isb");
        }
        this.hcr.set(hcr);
    }
}

/// The bits without which EL2 would not be umbra's.
const REQUIRED_HCR: u64 = crate::boot::HCR_E2H
    | crate::boot::HCR_RW
    | crate::boot::HCR_IMO
    | crate::boot::HCR_FMO
    | crate::boot::HCR_AMO;

/// Writes VTTBR_EL2 if it differs; an ISB is the caller's.
pub(crate) fn set_vttbr(vttbr: u64) {
    let this = percpu::this();
    if this.vttbr.get() != vttbr {
        // SAFETY: a stage-2 root that the kernel keeps alive while any CPU has it loaded.
        unsafe {
            msr!("vttbr_el2", vttbr);
            insn!("isb");
        }
        this.vttbr.set(vttbr);
    }
}

/// VTTBR_EL2 as loaded on this CPU.
pub fn loaded_vttbr() -> u64 {
    percpu::this().vttbr.get()
}

/// Forgets the loaded stage 2 of this CPU if it is `vttbr`: before its tables are freed.
pub fn unload_vttbr(vttbr: u64) {
    if percpu::this().vttbr.get() == vttbr {
        set_vttbr(0);
    }
}

/// The registers that have a place in the VNCR page (Arm ARM D8.11, FEAT_NV2), at their offsets:
/// what NV2 redirects there for a guest hypervisor is where umbra keeps it for every vCPU.
#[repr(C, align(4096))]
struct VncrPage([AtomicU64; 512]);

impl VncrPage {
    fn zeroed() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; 512]))
    }

    /// The word at a byte offset. Hardware writes the page too while its guest runs: hence atomics.
    fn word(&self, offset: u16) -> &AtomicU64 {
        &self.0[usize::from(offset / 8) % 512]
    }

    fn get(&self, offset: u16) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    fn set(&self, offset: u16, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }
}

/// Registers without a place in the VNCR page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub enum Extra {
    Par,
    TpidrEl1,
    Cntkctl,
    Csselr,
    SpEl0,
    TpidrEl0,
    TpidrroEl0,
    ApiaLo,
    ApiaHi,
    ApibLo,
    ApibHi,
    ApdaLo,
    ApdaHi,
    ApdbLo,
    ApdbHi,
    ApgaLo,
    ApgaHi,
    Disr,
}

const EXTRAS: usize = Extra::Disr as usize + 1;

/// Where [`VcpuRegs::hyp`] keeps CNTHCTL_EL2, whose EL1 counterpart has no place in the VNCR page.
pub const CNTHCTL: u16 = 0xff8;

/// Whose deferred SErrors VDISR_EL2 holds, which is what EL1 reads as DISR_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deferred {
    /// The vCPU's own: DISR_EL1 of a plain guest and of virtual EL2.
    Own,
    /// VDISR_EL2 of the guest hypervisor whose guest runs.
    Below,
}

/// Where the VNCR page has VDISR_EL2.
const VDISR: u16 = 0x500;
/// What VDISR_EL2 can hold: A, IDS, ISS.
const VDISR_VALID: u64 = 1 << 31 | 0x1ff_ffff;

/// What the stage 2 and identification registers hold while a vCPU is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VMPIDR_EL2.
    pub vmpidr: u64,
    /// VPIDR_EL2.
    pub vpidr: u64,
    /// CNTVOFF_EL2, in ticks.
    pub cntvoff: u64,
    /// What traps.
    pub traps: Traps,
    /// The guest is at virtual EL2: FEAT_NV2 redirects its EL2 registers to the page.
    pub virtual_el2: bool,
    /// Whether the machine has PAuth keys to switch.
    pub pauth: bool,
    /// Whose VDISR_EL2 is; `None` without FEAT_RAS.
    pub deferred: Option<Deferred>,
    /// Where VNCR_EL2 points instead of at the registers' page: for tests.
    pub vncr_at: Option<u64>,
}

/// The EL1 and EL0 system registers of one vCPU.
pub struct VcpuRegs {
    page: Box<VncrPage>,
    /// What the EL1 registers hold while the guest is at virtual EL2, at the same offsets: there
    /// they are its EL2 registers. Made by the first [`VcpuRegs::set_hyp`].
    hyp: Option<Box<VncrPage>>,
    /// Which of the two pages the EL1 registers were loaded from.
    virtual_el2: bool,
    extra: [u64; EXTRAS],
    /// CPU number + 1 where loaded, 0 where not.
    loaded_on: AtomicU32,
    /// Whether SP_EL0, TPIDR_EL0 and TPIDRRO_EL0 are this vCPU's too.
    el0_loaded: bool,
    pauth: bool,
    deferred: Option<Deferred>,
}

macro_rules! el1_registers {
    ($each:ident) => {
        $each!(0x110, "s3_5_c1_c0_0"); // SCTLR_EL12
        $each!(0x100, "s3_5_c1_c0_2"); // CPACR_EL12
        $each!(0x200, "s3_5_c2_c0_0"); // TTBR0_EL12
        $each!(0x210, "s3_5_c2_c0_1"); // TTBR1_EL12
        $each!(0x120, "s3_5_c2_c0_2"); // TCR_EL12
        $each!(0x138, "s3_5_c5_c2_0"); // ESR_EL12
        $each!(0x128, "s3_5_c5_c1_0"); // AFSR0_EL12
        $each!(0x130, "s3_5_c5_c1_1"); // AFSR1_EL12
        $each!(0x220, "s3_5_c6_c0_0"); // FAR_EL12
        $each!(0x140, "s3_5_c10_c2_0"); // MAIR_EL12
        $each!(0x148, "s3_5_c10_c3_0"); // AMAIR_EL12
        $each!(0x250, "s3_5_c12_c0_0"); // VBAR_EL12
        $each!(0x108, "s3_5_c13_c0_1"); // CONTEXTIDR_EL12
        $each!(0x230, "s3_5_c4_c0_1"); // ELR_EL12
        $each!(0x160, "s3_5_c4_c0_0"); // SPSR_EL12
        $each!(0x240, "s3_4_c4_c1_0"); // SP_EL1
        $each!(0x168, "s3_5_c14_c3_2"); // CNTV_CVAL_EL02
        $each!(0x170, "s3_5_c14_c3_1"); // CNTV_CTL_EL02
        $each!(0x178, "s3_5_c14_c2_2"); // CNTP_CVAL_EL02
        $each!(0x180, "s3_5_c14_c2_1"); // CNTP_CTL_EL02
    };
}

macro_rules! extra_registers {
    ($each:ident) => {
        $each!(Extra::Par, "s3_0_c7_c4_0");
        $each!(Extra::TpidrEl1, "s3_0_c13_c0_4");
        $each!(Extra::Csselr, "s3_2_c0_c0_0");
    };
}

macro_rules! pauth_registers {
    ($each:ident) => {
        $each!(Extra::ApiaLo, "s3_0_c2_c1_0");
        $each!(Extra::ApiaHi, "s3_0_c2_c1_1");
        $each!(Extra::ApibLo, "s3_0_c2_c1_2");
        $each!(Extra::ApibHi, "s3_0_c2_c1_3");
        $each!(Extra::ApdaLo, "s3_0_c2_c2_0");
        $each!(Extra::ApdaHi, "s3_0_c2_c2_1");
        $each!(Extra::ApdbLo, "s3_0_c2_c2_2");
        $each!(Extra::ApdbHi, "s3_0_c2_c2_3");
        $each!(Extra::ApgaLo, "s3_0_c2_c3_0");
        $each!(Extra::ApgaHi, "s3_0_c2_c3_1");
    };
}

macro_rules! el0_registers {
    ($each:ident) => {
        $each!(Extra::SpEl0, "s3_0_c4_c1_0");
        $each!(Extra::TpidrEl0, "s3_3_c13_c0_2");
        $each!(Extra::TpidrroEl0, "s3_3_c13_c0_3");
    };
}

/// Whether a register at this VNCR offset is in hardware while the vCPU is loaded.
#[inline(always)]
fn is_live(offset: u16) -> bool {
    let mut live = false;
    macro_rules! check {
        ($offset:literal, $name:literal) => {
            live |= offset == $offset;
        };
    }
    el1_registers!(check);
    live
}

impl Default for VcpuRegs {
    fn default() -> Self {
        Self::new()
    }
}

impl VcpuRegs {
    /// All zero, loaded nowhere.
    pub fn new() -> Self {
        Self {
            page: VncrPage::zeroed(),
            hyp: None,
            virtual_el2: false,
            extra: [0; EXTRAS],
            loaded_on: AtomicU32::new(0),
            el0_loaded: false,
            pauth: false,
            deferred: None,
        }
    }

    /// The CPU that holds these registers, if any.
    pub fn loaded_on(&self) -> Option<usize> {
        self.loaded_on
            .load(Ordering::Acquire)
            .checked_sub(1)
            .map(|cpu| cpu as usize)
    }

    /// Whether they are in this CPU's hardware.
    pub fn is_loaded_here(&self) -> bool {
        self.loaded_on() == Some(percpu::cpu())
    }

    /// Physical address of the page, for VNCR_EL2 and for poison tests.
    pub fn page_pa(&self) -> Option<Pa> {
        mem::heap_pa(core::ptr::from_ref(&*self.page) as u64).map(Pa::new)
    }

    /// The register at a VNCR offset (bytes, a multiple of 8 below 4096): from hardware if loaded
    /// here. It must not be loaded on another CPU.
    #[inline(always)]
    pub fn get(&self, offset: u16) -> u64 {
        if is_live(offset) && !self.virtual_el2 && self.is_loaded_here() {
            return read_live(offset);
        }
        debug_assert!(
            self.loaded_on().is_none() || self.is_loaded_here() || !is_live(offset),
            "registers read while loaded elsewhere"
        );
        self.page.get(offset)
    }

    /// So many neighbours from a VNCR offset on, none of which is ever in hardware.
    pub fn words(&self, offset: u16, count: u16) -> impl Iterator<Item = u64> {
        let first = usize::from(offset / 8) % 512;
        let end = (first + usize::from(count)).min(512);
        let words = self.page.0[first..end].iter();
        words.map(|word| word.load(Ordering::Relaxed))
    }

    /// Sets the register at a VNCR offset, in hardware too if loaded here.
    #[inline(always)]
    pub fn set(&mut self, offset: u16, value: u64) {
        if is_live(offset) && !self.virtual_el2 && self.is_loaded_here() {
            write_live(offset, value);
        }
        debug_assert!(
            self.is_loaded_here() || self.loaded_on().is_none(),
            "registers written while loaded elsewhere"
        );
        self.page.set(offset, value);
    }

    /// The EL2 register of the guest that lives in the EL1 register at this VNCR offset while the
    /// guest is at virtual EL2 (CNTHCTL_EL2 at [`CNTHCTL`]): from hardware if loaded here.
    #[inline(always)]
    pub fn hyp(&self, offset: u16) -> u64 {
        if self.is_loaded_here() && self.virtual_el2 {
            return if offset == CNTHCTL {
                read_live_extra(Extra::Cntkctl)
            } else {
                read_live(offset)
            };
        }
        self.hyp.as_ref().map_or(0, |page| page.get(offset))
    }

    /// Sets such a register, in hardware too if loaded here.
    #[inline(always)]
    pub fn set_hyp(&mut self, offset: u16, value: u64) {
        if self.is_loaded_here() && self.virtual_el2 {
            if offset == CNTHCTL {
                write_live_extra(Extra::Cntkctl, value);
            } else {
                write_live(offset, value);
            }
        }
        let page = self.hyp.get_or_insert_with(VncrPage::zeroed);
        page.set(offset, value);
    }

    fn is_live_extra(&self, which: Extra) -> bool {
        self.is_loaded_here()
            && (!is_el0(which) || self.el0_loaded)
            && (!is_pauth(which) || self.pauth)
            && (which != Extra::Cntkctl || !self.virtual_el2)
            && (which != Extra::Disr || self.deferred == Some(Deferred::Own))
    }

    /// A register outside the VNCR page.
    pub fn extra(&self, which: Extra) -> u64 {
        if self.is_live_extra(which) {
            return read_live_extra(which);
        }
        self.extra[which as usize]
    }

    /// Sets a register outside the VNCR page.
    pub fn set_extra(&mut self, which: Extra, value: u64) {
        if self.is_live_extra(which) {
            write_live_extra(which, value);
        }
        self.extra[which as usize] = value;
    }

    /// Puts the EL1 registers and the machine's into hardware. They must be loaded nowhere, and no
    /// other vCPU's may be loaded here.
    pub fn load(&mut self, machine: &Machine) {
        assert!(
            self.loaded_on().is_none(),
            "loading registers that are loaded already"
        );
        self.pauth = machine.pauth;
        // SAFETY: EL1's registers change nothing for umbra, which runs in the EL2&0 regime. The DSB ends
        // walks of the previous EL1&0 context first.
        unsafe {
            insn!("dsb nsh");
            macro_rules! load_extra {
                ($which:expr, $name:literal) => {
                    msr!($name, self.extra[$which as usize]);
                };
            }
            extra_registers!(load_extra);
            if machine.pauth {
                pauth_registers!(load_extra);
            }
        }
        self.load_bank(machine);
        self.loaded_on
            .store(percpu::cpu() as u32 + 1, Ordering::Release);
    }

    /// Goes between virtual EL2 and what it runs, while loaded here: the EL1 registers change their
    /// owner, everything else stays.
    pub fn switch(&mut self, machine: &Machine) {
        assert!(
            self.is_loaded_here(),
            "switching registers that are not loaded here"
        );
        self.save_bank();
        // SAFETY: a barrier: walks of the EL1&0 context that is left end before it is changed. An
        // exception return in between would do it too, but there is none.
        unsafe { insn!("dsb nsh") };
        self.load_bank(machine);
    }

    /// The bank of what runs, and the registers of the machine.
    fn load_bank(&mut self, machine: &Machine) {
        self.virtual_el2 = machine.virtual_el2;
        if machine.virtual_el2 {
            self.hyp.get_or_insert_with(VncrPage::zeroed);
        }
        let (bank, cntkctl) = match &self.hyp {
            Some(hyp) if machine.virtual_el2 => (hyp, hyp.get(CNTHCTL)),
            _ => (&self.page, self.extra[Extra::Cntkctl as usize]),
        };
        self.deferred = machine.deferred;
        let deferred = self.deferred.map(|whose| match whose {
            Deferred::Own => self.extra[Extra::Disr as usize],
            Deferred::Below => self.page.get(VDISR),
        });
        // SAFETY: EL1's registers and the guest-facing EL2 ones change nothing for umbra, which runs
        // in the EL2&0 regime.
        unsafe {
            macro_rules! load {
                ($offset:literal, $name:literal) => {
                    msr!($name, bank.get($offset));
                };
            }
            el1_registers!(load);
            msr!("s3_5_c14_c1_0", cntkctl);
            if machine.virtual_el2 {
                // VNCR_EL2: the page's address in umbra's own regime.
                let page = core::ptr::from_ref(&*self.page) as u64;
                msr!("s3_4_c2_c2_0", machine.vncr_at.unwrap_or(page));
            }
            msr!("vtcr_el2", machine.vtcr);
            msr!("vmpidr_el2", machine.vmpidr);
            msr!("vpidr_el2", machine.vpidr);
            msr!("cntvoff_el2", machine.cntvoff);
            if let Some(deferred) = deferred {
                msr!("s3_4_c12_c1_1", deferred & VDISR_VALID); // VDISR_EL2
            }
        }
        traps::load(&machine.traps);
        set_vttbr(machine.vttbr);
        // SAFETY: a barrier.
        unsafe { insn!("isb") };
    }

    fn save_bank(&mut self) {
        let bank = match &mut self.hyp {
            Some(hyp) if self.virtual_el2 => hyp,
            _ => &mut self.page,
        };
        macro_rules! save {
            ($offset:literal, $name:literal) => {
                bank.set($offset, mrs!($name));
            };
        }
        if !left_out(Safeguard::El1Registers) {
            el1_registers!(save);
        }
        let cntkctl = mrs!("s3_5_c14_c1_0");
        match &mut self.hyp {
            // What stands in CNTKCTL_EL1 is CNTHCTL_EL2's.
            Some(hyp) if self.virtual_el2 => hyp.set(CNTHCTL, cntkctl),
            _ => self.extra[Extra::Cntkctl as usize] = cntkctl,
        }
        match self.deferred {
            Some(Deferred::Own) => self.extra[Extra::Disr as usize] = mrs!("s3_4_c12_c1_1"),
            Some(Deferred::Below) => self.page.set(VDISR, mrs!("s3_4_c12_c1_1")),
            None => {}
        }
    }

    /// Takes the registers back from this CPU's hardware.
    pub fn save(&mut self) {
        assert!(
            self.is_loaded_here(),
            "saving registers that are not loaded here"
        );
        self.save_el0();
        self.save_bank();
        macro_rules! save_extra {
            ($which:expr, $name:literal) => {
                self.extra[$which as usize] = mrs!($name);
            };
        }
        extra_registers!(save_extra);
        if self.pauth {
            pauth_registers!(save_extra);
        }
        // SAFETY: stops the guest's timers on this CPU; their state was saved above.
        unsafe {
            msr!("s3_5_c14_c3_1", 0);
            msr!("s3_5_c14_c2_1", 0);
            insn!("isb");
        }
        self.loaded_on.store(0, Ordering::Release);
        let saves = &percpu::this().saves;
        saves.set(saves.get().wrapping_add(1));
    }

    /// Puts SP_EL0 and the thread pointers into hardware, for the time the guest runs.
    pub fn load_el0(&mut self) {
        assert!(self.is_loaded_here());
        if !self.el0_loaded {
            // SAFETY: umbra uses none of them; a process's are put back by its next entry.
            unsafe {
                macro_rules! load {
                    ($which:expr, $name:literal) => {
                        msr!($name, self.extra[$which as usize]);
                    };
                }
                el0_registers!(load);
            }
            self.el0_loaded = true;
        }
    }

    /// Takes SP_EL0 and the thread pointers back, before EL0 or another thread runs.
    pub fn save_el0(&mut self) {
        if self.el0_loaded {
            macro_rules! save {
                ($which:expr, $name:literal) => {
                    self.extra[$which as usize] = mrs!($name);
                };
            }
            if !left_out(Safeguard::El0Registers) {
                el0_registers!(save);
            }
            // SAFETY: TPIDRRO_EL0 is not a process's to see.
            unsafe { msr!("s3_3_c13_c0_3", 0) };
            self.el0_loaded = false;
        }
    }
}

impl Drop for VcpuRegs {
    fn drop(&mut self) {
        assert!(
            self.loaded_on().is_none(),
            "registers are freed while a CPU has them loaded"
        );
    }
}

fn is_el0(which: Extra) -> bool {
    matches!(which, Extra::SpEl0 | Extra::TpidrEl0 | Extra::TpidrroEl0)
}

fn is_pauth(which: Extra) -> bool {
    (Extra::ApiaLo as usize..=Extra::ApgaHi as usize).contains(&(which as usize))
}

#[inline(always)]
fn read_live(offset: u16) -> u64 {
    let mut value = 0;
    macro_rules! read {
        ($offset:literal, $name:literal) => {
            if offset == $offset {
                value = mrs!($name);
            }
        };
    }
    el1_registers!(read);
    value
}

#[inline(always)]
fn write_live(offset: u16, value: u64) {
    macro_rules! write {
        ($offset:literal, $name:literal) => {
            if offset == $offset {
                // SAFETY: as in `load`.
                unsafe { msr!($name, value) };
            }
        };
    }
    el1_registers!(write);
}

fn read_live_extra(which: Extra) -> u64 {
    let mut value = 0;
    macro_rules! read {
        ($which:expr, $name:literal) => {
            if which == $which {
                value = mrs!($name);
            }
        };
    }
    read!(Extra::Cntkctl, "s3_5_c14_c1_0");
    read!(Extra::Disr, "s3_4_c12_c1_1");
    extra_registers!(read);
    pauth_registers!(read);
    el0_registers!(read);
    value
}

fn write_live_extra(which: Extra, value: u64) {
    macro_rules! write {
        ($which:expr, $name:literal) => {
            if which == $which {
                // SAFETY: as in `load`.
                unsafe { msr!($name, value) };
            }
        };
    }
    write!(Extra::Cntkctl, "s3_5_c14_c1_0");
    write!(Extra::Disr, "s3_4_c12_c1_1");
    extra_registers!(write);
    pauth_registers!(write);
    el0_registers!(write);
}

/// Translates a guest virtual address with the loaded guest's own stage 1 (AT S1E1R): the IPA page,
/// or `None` where the walk fails. PAR_EL1 is the guest's and is put back.
pub fn translate_stage1(va: u64, hcr: u64) -> Option<umbra_arm64::Ipa> {
    let old = percpu::this().hcr.get();
    set_hcr(hcr);
    let par_before = mrs!("s3_0_c7_c4_0");
    let walked = crate::copy::translate_stage1(va);
    let par = mrs!("s3_0_c7_c4_0");
    // SAFETY: as above.
    unsafe { msr!("s3_0_c7_c4_0", par_before) };
    set_hcr(old);
    (walked && par & 1 == 0).then(|| umbra_arm64::Ipa::new(par & 0x000f_ffff_ffff_f000))
}
