//! Exception classes.

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// ESR_ELx.EC: the reason for an exception. Every six-bit value has exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Ec {
            $($(#[$doc])* $name,)*
            /// A class without a meaning here; the value is its number.
            Reserved(u8),
        }

        impl Ec {
            /// The class with this number; bits above the low six are ignored.
            pub const fn from_number(number: u8) -> Ec {
                match number & 0x3f {
                    $($number => Ec::$name,)*
                    other => Ec::Reserved(other),
                }
            }

            /// The six-bit number.
            pub const fn number(self) -> u8 {
                match self {
                    $(Ec::$name => $number,)*
                    Ec::Reserved(number) => number & 0x3f,
                }
            }
        }
    };
}

classes! {
    /// No reason is known.
    Unknown = 0x00,
    /// WFI, WFE, WFIT, WFET.
    Wfx = 0x01,
    /// AArch32 MCR or MRC, coprocessor 15.
    Cp15 = 0x03,
    /// AArch32 MCRR or MRRC, coprocessor 15.
    Cp15Double = 0x04,
    /// AArch32 MCR or MRC, coprocessor 14.
    Cp14 = 0x05,
    /// AArch32 LDC or STC.
    Cp14LoadStore = 0x06,
    /// FP or SIMD access.
    FpAccess = 0x07,
    /// AArch32 VMRS.
    Vmrs = 0x08,
    /// Pointer authentication.
    PointerAuth = 0x09,
    /// LD64B, ST64B and others.
    OtherInstruction = 0x0a,
    /// AArch32 MRRC, coprocessor 14.
    Cp14Double = 0x0c,
    /// Branch target.
    BranchTarget = 0x0d,
    /// Illegal Execution state.
    IllegalState = 0x0e,
    /// AArch32 SVC.
    Svc32 = 0x11,
    /// AArch32 HVC.
    Hvc32 = 0x12,
    /// AArch32 SMC.
    Smc32 = 0x13,
    /// MSRR, MRRS and 128-bit system instructions.
    SysReg128 = 0x14,
    /// SVC.
    Svc = 0x15,
    /// HVC.
    Hvc = 0x16,
    /// SMC.
    Smc = 0x17,
    /// MSR, MRS and system instructions.
    SysReg = 0x18,
    /// SVE access.
    SveAccess = 0x19,
    /// ERET, ERETAA, ERETAB.
    Eret = 0x1a,
    /// Pointer authentication failure.
    PointerAuthFailure = 0x1c,
    /// SME access.
    SmeAccess = 0x1d,
    /// Granule protection check.
    GranuleProtection = 0x1e,
    /// Instruction abort from a lower level.
    InstructionAbortLower = 0x20,
    /// Instruction abort from the current level.
    InstructionAbortSame = 0x21,
    /// PC alignment.
    PcAlignment = 0x22,
    /// Data abort from a lower level.
    DataAbortLower = 0x24,
    /// Data abort from the current level; with FEAT_NV2 also of an access to the VNCR_EL2 page.
    DataAbortSame = 0x25,
    /// SP alignment.
    SpAlignment = 0x26,
    /// Memory copy and set.
    MemoryCopy = 0x27,
    /// AArch32 FP exception.
    Fp32 = 0x28,
    /// FP exception.
    Fp64 = 0x2c,
    /// Guarded control stack.
    ControlStack = 0x2d,
    /// SError interrupt.
    SError = 0x2f,
    /// Breakpoint from a lower level.
    BreakpointLower = 0x30,
    /// Breakpoint from the current level.
    BreakpointSame = 0x31,
    /// Software step from a lower level.
    StepLower = 0x32,
    /// Software step from the current level.
    StepSame = 0x33,
    /// Watchpoint from a lower level.
    WatchpointLower = 0x34,
    /// Watchpoint from the current level.
    WatchpointSame = 0x35,
    /// AArch32 BKPT.
    Bkpt32 = 0x38,
    /// AArch32 vector catch.
    VectorCatch32 = 0x3a,
    /// BRK.
    Brk = 0x3c,
    /// Profiling exception.
    Profiling = 0x3d,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_round_trips() {
        for number in 0..64 {
            assert_eq!(Ec::from_number(number).number(), number);
            assert_eq!(Ec::from_number(number | 0x40), Ec::from_number(number));
        }
    }
}
