//! A guest of this payload's own, when it runs at EL2: a hypervisor's world switch and nothing more.
//!
//! ```text
//!   run():  EL1 registers by their EL12 names ─ VTCR, VTTBR ─ HCR ─ x0–x30, ELR, SPSR ─ ERET
//!           … the guest …
//!   vector: x0–x30, ELR, SPSR, ESR, FAR, HPFAR ─ HCR of the host ─ EL1 registers back
//! ```
//!
//! Every exception from below EL2 ends a run and comes back as an [`Exit`], whatever it was. A guest's
//! program is usually a few instructions and an `hvc` ([`Guest::execute`]); its own vectors are
//! `hvc`s too, so that an exception it takes at EL1 comes back with all of its registers.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::{mem, stage2::Stage2};

/// HCR_EL2.VM: stage 2 is on.
pub const VM: u64 = 1 << 0;
/// HCR_EL2.PTW: a stage-1 walk through device memory faults.
pub const PTW: u64 = 1 << 2;
/// HCR_EL2.FMO, IMO and AMO: interrupts and SErrors go to EL2.
pub const INTERRUPTS: u64 = 0b111 << 3;
/// HCR_EL2.DC: stage 1 is off and memory is normal; implies VM.
pub const DC: u64 = 1 << 12;
/// HCR_EL2.TWI.
pub const TWI: u64 = 1 << 13;
/// HCR_EL2.TWE.
pub const TWE: u64 = 1 << 14;
/// HCR_EL2.TSC: SMC traps.
pub const TSC: u64 = 1 << 19;
/// HCR_EL2.TGE.
pub const TGE: u64 = 1 << 27;
/// HCR_EL2.RW: EL1 is AArch64.
pub const RW: u64 = 1 << 31;
/// HCR_EL2.E2H.
pub const E2H: u64 = 1 << 34;

/// EL1h, all masked.
pub const EL1H: u64 = 0x3c5;
/// EL1t, all masked.
pub const EL1T: u64 = 0x3c4;
/// EL0t, all masked.
pub const EL0T: u64 = 0x3c0;

/// Exception class of HVC.
pub const EC_HVC: u64 = 0x16;
/// Exception class of SMC.
pub const EC_SMC: u64 = 0x17;
/// Exception class of WFI and WFE.
pub const EC_WFX: u64 = 0x01;
/// Exception class of a system register or instruction.
pub const EC_SYSTEM: u64 = 0x18;
/// Exception class of an instruction abort from below.
pub const EC_FETCH: u64 = 0x20;
/// Exception class of a data abort from below.
pub const EC_DATA: u64 = 0x24;

/// `hvc #n`.
pub const fn hvc(n: u32) -> u32 {
    0xd400_0002 | (n & 0xffff) << 5
}
/// `smc #0`.
pub const SMC: u32 = 0xd400_0003;
/// `wfi`.
pub const WFI: u32 = 0xd503_207f;
/// `wfe`.
pub const WFE: u32 = 0xd503_205f;
/// `nop`.
pub const NOP: u32 = 0xd503_201f;
/// `isb`.
pub const ISB: u32 = 0xd503_3fdf;
/// `ldr x1, [x0]`.
pub const LDR: u32 = 0xf940_0001;
/// `str x1, [x0]`.
pub const STR: u32 = 0xf900_0001;
/// `br x0`.
pub const BR: u32 = 0xd61f_0000;

/// What the vectors leave of a guest; the assembly knows the layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    x: [u64; 31],
    pc: u64,
    pstate: u64,
    esr: u64,
    far: u64,
    hpfar: u64,
    vector: u64,
}

/// Why a guest stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Vector offset: 0x400 synchronous, 0x480 IRQ, 0x580 SError.
    pub vector: u64,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

impl Exit {
    /// Exception class; 64 of what is not synchronous.
    pub fn ec(&self) -> u64 {
        if self.vector == 0x400 {
            self.esr >> 26 & 0x3f
        } else {
            64
        }
    }

    /// Fault status code of an abort.
    pub fn fsc(&self) -> u64 {
        self.esr & 0x3f
    }

    /// The intermediate physical address of a stage 2 fault, a page's.
    pub fn ipa(&self) -> u64 {
        (self.hpfar >> 4 & 0xff_ffff_ffff) << 12
    }

    /// Whether this is `hvc #n`.
    pub fn is_hvc(&self, n: u32) -> bool {
        self.ec() == EC_HVC && self.esr & 0xffff == u64::from(n)
    }
}

macro_rules! el1_registers {
    ($($field:ident = $name:literal, $doc:literal;)*) => {
        /// The EL1 and EL0 registers of a guest.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct El1 {
            $(#[doc = $doc] pub $field: u64,)*
        }

        impl El1 {
            /// All zero.
            pub const ZERO: El1 = El1 { $($field: 0,)* };

            /// Into the registers.
            pub fn load(&self) {
                $(crate::msr!($name, self.$field);)*
            }

            /// Out of the registers.
            pub fn stored() -> Self {
                El1 { $($field: crate::mrs!($name),)* }
            }

            /// Each with its name.
            pub fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f($doc, self.$field);)*
            }
        }
    };
}

el1_registers! {
    sctlr = "S3_5_C1_C0_0", "SCTLR_EL1";
    cpacr = "S3_5_C1_C0_2", "CPACR_EL1";
    ttbr0 = "S3_5_C2_C0_0", "TTBR0_EL1";
    ttbr1 = "S3_5_C2_C0_1", "TTBR1_EL1";
    tcr = "S3_5_C2_C0_2", "TCR_EL1";
    spsr = "S3_5_C4_C0_0", "SPSR_EL1";
    elr = "S3_5_C4_C0_1", "ELR_EL1";
    afsr0 = "S3_5_C5_C1_0", "AFSR0_EL1";
    afsr1 = "S3_5_C5_C1_1", "AFSR1_EL1";
    esr = "S3_5_C5_C2_0", "ESR_EL1";
    far = "S3_5_C6_C0_0", "FAR_EL1";
    mair = "S3_5_C10_C2_0", "MAIR_EL1";
    amair = "S3_5_C10_C3_0", "AMAIR_EL1";
    vbar = "S3_5_C12_C0_0", "VBAR_EL1";
    contextidr = "S3_5_C13_C0_1", "CONTEXTIDR_EL1";
    cntkctl = "S3_5_C14_C1_0", "CNTKCTL_EL1";
    sp_el1 = "S3_4_C4_C1_0", "SP_EL1";
    sp_el0 = "sp_el0", "SP_EL0";
    tpidr_el0 = "tpidr_el0", "TPIDR_EL0";
    tpidrro_el0 = "tpidrro_el0", "TPIDRRO_EL0";
    tpidr_el1 = "tpidr_el1", "TPIDR_EL1";
    par = "par_el1", "PAR_EL1";
}

/// SCTLR_EL1 of a guest with stage 1 off: the bits that read as one.
pub const SCTLR_OFF: u64 = 0x30d0_0800;

/// A guest: registers, and what its addresses mean.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    frame: Frame,
    /// EL1 and EL0 registers.
    pub el1: El1,
    /// HCR_EL2 while it runs.
    pub hcr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// The page of its program, by this payload's addresses.
    code: u64,
}

global_asm!(
    ".macro L2VECTOR n",
    ".balign 0x80",
    "stp x0, x1, [sp, #16]",
    "mov x1, #(\\n * 0x80)",
    "b umbra_guest_l2_exit",
    ".endm",
    // An exception of EL2 itself while its guest is about to run is the runtime's own.
    ".macro L2OWN n",
    ".balign 0x80",
    "b umbra_guest_vectors + \\n * 0x80",
    ".endm",
    ".text",
    ".balign 2048",
    "umbra_guest_l2_vectors:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "L2OWN \\n",
    ".endr",
    ".irp n, 8, 9, 10, 11, 12, 13, 14, 15",
    "L2VECTOR \\n",
    ".endr",
    ".balign 0x80",
    "umbra_guest_l2_enter:",
    "stp x29, x30, [sp, #-128]!",
    "stp x19, x20, [sp, #32]",
    "stp x21, x22, [sp, #48]",
    "stp x23, x24, [sp, #64]",
    "stp x25, x26, [sp, #80]",
    "stp x27, x28, [sp, #96]",
    "mrs x1, vbar_el1",
    "str x1, [sp, #112]",
    "sub sp, sp, #32",
    "str x0, [sp]",
    "ldr x1, =umbra_guest_l2_vectors",
    "msr vbar_el1, x1",
    "ldp x1, x2, [x0, #248]",
    "msr elr_el2, x1",
    "msr spsr_el2, x2",
    "isb",
    "ldp x2, x3, [x0, #16]",
    "ldp x4, x5, [x0, #32]",
    "ldp x6, x7, [x0, #48]",
    "ldp x8, x9, [x0, #64]",
    "ldp x10, x11, [x0, #80]",
    "ldp x12, x13, [x0, #96]",
    "ldp x14, x15, [x0, #112]",
    "ldp x16, x17, [x0, #128]",
    "ldp x18, x19, [x0, #144]",
    "ldp x20, x21, [x0, #160]",
    "ldp x22, x23, [x0, #176]",
    "ldp x24, x25, [x0, #192]",
    "ldp x26, x27, [x0, #208]",
    "ldp x28, x29, [x0, #224]",
    "ldr x30, [x0, #240]",
    "ldp x0, x1, [x0]",
    "eret",
    // x0 and x1 are at SP + 16, x1 = vector offset.
    "umbra_guest_l2_exit:",
    "ldr x0, [sp]",
    "stp x2, x3, [x0, #16]",
    "stp x4, x5, [x0, #32]",
    "stp x6, x7, [x0, #48]",
    "stp x8, x9, [x0, #64]",
    "stp x10, x11, [x0, #80]",
    "stp x12, x13, [x0, #96]",
    "stp x14, x15, [x0, #112]",
    "stp x16, x17, [x0, #128]",
    "stp x18, x19, [x0, #144]",
    "stp x20, x21, [x0, #160]",
    "stp x22, x23, [x0, #176]",
    "stp x24, x25, [x0, #192]",
    "stp x26, x27, [x0, #208]",
    "stp x28, x29, [x0, #224]",
    "str x30, [x0, #240]",
    "ldp x2, x3, [sp, #16]",
    "stp x2, x3, [x0]",
    "mrs x2, elr_el2",
    "mrs x3, spsr_el2",
    "stp x2, x3, [x0, #248]",
    "mrs x2, esr_el2",
    "mrs x3, far_el2",
    "stp x2, x3, [x0, #264]",
    "mrs x2, hpfar_el2",
    "stp x2, x1, [x0, #280]",
    "add sp, sp, #32",
    "ldr x1, [sp, #112]",
    "msr vbar_el1, x1",
    "isb",
    "ldp x19, x20, [sp, #32]",
    "ldp x21, x22, [sp, #48]",
    "ldp x23, x24, [sp, #64]",
    "ldp x25, x26, [sp, #80]",
    "ldp x27, x28, [sp, #96]",
    "ldp x29, x30, [sp], #128",
    "ret",
);

unsafe extern "C" {
    fn umbra_guest_l2_enter(frame: &mut Frame);
}

/// Where a guest made by [`Guest::new`] finds its program.
pub const CODE: u64 = 0x4000_0000;
/// Its vectors, behind the program.
pub const VECTORS: u64 = CODE + 0x800;
/// The `hvc` of its vector at offset 0x80 * n is this plus n.
pub const VECTOR_HVC: u32 = 0x100;
/// The `hvc` behind a program of [`Guest::execute`].
pub const DONE: u32 = 0;

impl Guest {
    /// A guest at EL1 with stage 1 off and a page of program at [`CODE`] of this space.
    pub fn new(space: &Stage2, vmid: u64) -> Self {
        let code = program_page();
        space.map_page(CODE, code);
        Self::with_code(space, vmid, code)
    }

    /// The same, with a page made by [`program_page`] that is mapped by the caller.
    pub fn with_code(space: &Stage2, vmid: u64, code: u64) -> Self {
        let el1 = El1 {
            sctlr: SCTLR_OFF,
            cpacr: 3 << 20,
            vbar: VECTORS,
            ..El1::ZERO
        };
        Guest {
            frame: Frame {
                x: [0; 31],
                pc: CODE,
                pstate: EL1H,
                esr: 0,
                far: 0,
                hpfar: 0,
                vector: 0,
            },
            el1,
            hcr: E2H | RW | VM | INTERRUPTS,
            vttbr: space.vttbr(vmid),
            vtcr: space.vtcr(),
            code,
        }
    }

    /// x0 to x30.
    pub fn x(&mut self) -> &mut [u64; 31] {
        &mut self.frame.x
    }

    /// Program counter.
    pub fn pc(&self) -> u64 {
        self.frame.pc
    }

    /// Sets the program counter.
    pub fn set_pc(&mut self, pc: u64) {
        self.frame.pc = pc;
    }

    /// PSTATE.
    pub fn pstate(&self) -> u64 {
        self.frame.pstate
    }

    /// Sets PSTATE.
    pub fn set_pstate(&mut self, pstate: u64) {
        self.frame.pstate = pstate;
    }

    /// Runs the guest to its next exit.
    pub fn run(&mut self) -> Exit {
        self.el1.load();
        crate::msr!("vtcr_el2", self.vtcr);
        crate::msr!("vttbr_el2", self.vttbr);
        let host = crate::mrs!("hcr_el2");
        crate::msr!("hcr_el2", self.hcr);
        // SAFETY: the guest reaches memory through the tables of its own only, which map none of the
        // image that Rust owns; the assembly keeps what the procedure call standard keeps.
        unsafe { umbra_guest_l2_enter(&mut self.frame) };
        crate::msr!("hcr_el2", host);
        self.el1 = El1::stored();
        Exit {
            vector: self.frame.vector,
            esr: self.frame.esr,
            far: self.frame.far,
            hpfar: self.frame.hpfar,
        }
    }

    /// Puts a program in place, with `hvc #DONE` behind it.
    pub fn write_program(&self, program: &[u32]) {
        assert!(program.len() < 0x1ff, "a program of one half page");
        let end = [hvc(DONE)];
        for (at, word) in (self.code..).step_by(4).zip(program.iter().chain(&end)) {
            mem::write32(at, *word);
        }
        mem::sync_code(self.code, program.len() as u64 * 4 + 4);
    }

    /// Runs a program from its first instruction to its next exit.
    pub fn execute(&mut self, program: &[u32]) -> Exit {
        self.write_program(program);
        self.frame.pc = CODE;
        self.run()
    }

    /// The address of the page of its program, by this payload.
    pub fn code(&self) -> u64 {
        self.code
    }
}

/// A space and a program page that guests have in common, made when they are first asked for: Linux takes
/// many seconds to give a hypervisor another.
#[derive(Debug)]
pub struct Home {
    root: AtomicU64,
    code: AtomicU64,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// Not made yet.
    pub const fn new() -> Self {
        Home {
            root: AtomicU64::new(0),
            code: AtomicU64::new(0),
        }
    }

    /// A guest at home, in a space of the usual shape.
    pub fn guest(&self, vmid: u64) -> (Stage2, Guest) {
        self.guest_in(Stage2::USUAL, vmid, |_| ())
    }

    /// The same in a space of this shape; `furnish` is for what it begins with besides the program.
    pub fn guest_in(
        &self,
        shape: Stage2,
        vmid: u64,
        furnish: impl FnOnce(&Stage2),
    ) -> (Stage2, Guest) {
        if self.root.load(SeqCst) == 0 {
            let (space, page) = (shape.made(), program_page());
            space.map_page(CODE, page);
            furnish(&space);
            self.code.store(page, SeqCst);
            self.root.store(space.root, SeqCst);
        }
        let root = self.root.load(SeqCst);
        let space = Stage2 { root, ..shape };
        let guest = Guest::with_code(&space, vmid, self.code.load(SeqCst));
        (space, guest)
    }
}

/// A page for a program, with vectors in its second half.
pub fn program_page() -> u64 {
    let page = mem::fresh(0x1_0000, 0x1_0000);
    for at in (0..0x800).step_by(4) {
        let slot = (at / 0x80) as u32;
        mem::write32(page + at, hvc(DONE));
        mem::write32(page + 0x800 + at, hvc(VECTOR_HVC + slot));
    }
    mem::sync_code(page, 0x1000);
    page
}
