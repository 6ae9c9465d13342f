//! ESR_ELx, read once into a type.
//!
//! `Esr` is the raw word with its three fixed fields; `Esr::syndrome` is what it means. After that
//! nobody looks at bits again: flags are `bool`s and what hardware marks as invalid is `None`
//! (Arm ARM, ESR_EL2).

mod abort;
mod ec;
mod serror;
mod trap;

pub use abort::{Access, AccessSize, DataAbort, InstructionAbort};
pub use ec::Ec;
pub use serror::{Aet, SError};
pub use trap::{SysRegTrap, Wfx, WfxKind};

/// A value of ESR_ELx.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Esr(u64);

const EC_SHIFT: u32 = 26;
const IL: u64 = 1 << 25;
const ISS: u64 = (1 << 25) - 1;

/// What an exception was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// WFI, WFE, WFIT or WFET, trapped.
    Wfx(Wfx),
    /// FP or SIMD access, trapped (EC 0x07).
    FpAccess,
    /// SVE access, trapped.
    SveAccess,
    /// SME access, trapped.
    SmeAccess,
    /// Pointer authentication, trapped (EC 0x09).
    PointerAuth,
    /// Execution in the Illegal Execution state: an exception return to a state that is not
    /// there (EC 0x0E).
    IllegalState,
    /// SVC with its immediate.
    Svc(u16),
    /// HVC with its immediate.
    Hvc(u16),
    /// SMC with its immediate, trapped.
    Smc(u16),
    /// MSR, MRS or a system instruction, trapped.
    SysReg(SysRegTrap),
    /// ERET, ERETAA or ERETAB, trapped; the value is the ISS.
    Eret(u32),
    /// Instruction abort.
    InstructionAbort {
        /// From a lower exception level (EC 0x20), not the current one (0x21).
        lower: bool,
        /// The syndrome.
        abort: InstructionAbort,
    },
    /// Data abort.
    DataAbort {
        /// From a lower exception level (EC 0x24), not the current one (0x25).
        lower: bool,
        /// The syndrome.
        abort: DataAbort,
    },
    /// SError interrupt.
    SError(SError),
    /// Anything else, undecoded.
    Other(Ec),
}

impl Esr {
    /// The value read from the register.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Puts a value together. `iss` beyond 25 bits is cut off.
    pub const fn from_parts(ec: Ec, il: bool, iss: u32) -> Self {
        let il = if il { IL } else { 0 };
        Self((ec.number() as u64) << EC_SHIFT | il | iss as u64 & ISS)
    }

    /// The value as read or made.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Exception class, bits 31:26.
    #[inline]
    pub const fn ec(self) -> Ec {
        Ec::from_number((self.0 >> EC_SHIFT & 0x3f) as u8)
    }

    /// Whether the exception is of this class: [`Esr::ec`] where one alone matters.
    #[inline]
    pub const fn is(self, ec: Ec) -> bool {
        (self.0 >> EC_SHIFT & 0x3f) as u8 == ec.number()
    }

    /// Whether this is an abort by an error that may have gone anywhere: its severity (SET, bits 12:11) is
    /// uncontainable, or reserved. Hardware gives one for the access itself alone (FSC 0x10), not for a
    /// walk, and zeros without FEAT_RAS (Arm ARM, ESR_ELx, ISS encodings of instruction and data aborts).
    pub const fn is_uncontainable(self) -> bool {
        let abort = matches!(self.0 >> EC_SHIFT & 0x3f, 0x20 | 0x21 | 0x24 | 0x25);
        abort && self.0 & 0x3f == 0x10 && matches!(self.0 >> 11 & 3, 0b01 | 0b10)
    }

    /// Whether the instruction was 32 bits long (IL, bit 25).
    pub const fn il(self) -> bool {
        self.0 & IL != 0
    }

    /// Instruction specific syndrome, bits 24:0.
    pub const fn iss(self) -> u32 {
        (self.0 & ISS) as u32
    }

    /// Second instruction specific syndrome, bits 55:32.
    pub const fn iss2(self) -> u32 {
        (self.0 >> 32 & 0x00ff_ffff) as u32
    }

    /// What the value means. Total.
    #[inline]
    pub fn syndrome(self) -> Syndrome {
        let iss = self.iss();
        let immediate = (iss & 0xffff) as u16;
        match self.ec() {
            Ec::Wfx => Syndrome::Wfx(Wfx::decode(iss)),
            Ec::FpAccess => Syndrome::FpAccess,
            Ec::SveAccess => Syndrome::SveAccess,
            Ec::SmeAccess => Syndrome::SmeAccess,
            Ec::PointerAuth => Syndrome::PointerAuth,
            Ec::IllegalState => Syndrome::IllegalState,
            Ec::Svc => Syndrome::Svc(immediate),
            Ec::Hvc => Syndrome::Hvc(immediate),
            Ec::Smc => Syndrome::Smc(immediate),
            Ec::SysReg => Syndrome::SysReg(SysRegTrap::decode(iss)),
            Ec::Eret => Syndrome::Eret(iss),
            Ec::InstructionAbortLower | Ec::InstructionAbortSame => Syndrome::InstructionAbort {
                lower: self.ec() == Ec::InstructionAbortLower,
                abort: InstructionAbort::decode(iss),
            },
            Ec::DataAbortLower | Ec::DataAbortSame => Syndrome::DataAbort {
                lower: self.ec() == Ec::DataAbortLower,
                abort: DataAbort::decode(iss),
            },
            Ec::SError => Syndrome::SError(SError::decode(iss)),
            other => Syndrome::Other(other),
        }
    }
}

impl core::fmt::Debug for Esr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Esr({:#018x}, {:?})", self.0, self.ec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FaultStatus, Level};
    use proptest::prelude::*;

    #[test]
    fn only_severity_makes_an_abort_uncontainable() {
        for ec in 0..64u8 {
            for code in 0..64u32 {
                for set in 0..4u32 {
                    let abort = matches!(ec, 0x20 | 0x21 | 0x24 | 0x25) && code == 0x10;
                    let esr = Esr::from_parts(Ec::from_number(ec), true, set << 11 | code);
                    // UER 0, reserved 1, UC 2, UEO 3.
                    let worst = abort && (set == 1 || set == 2);
                    assert_eq!(esr.is_uncontainable(), worst, "{ec:#x} {code:#x} {set}");
                }
            }
        }
    }

    #[test]
    fn values_seen_in_logs() {
        let hvc = Esr::new(0x5a00_0012);
        assert_eq!(
            (hvc.ec(), hvc.il(), hvc.syndrome()),
            (Ec::Hvc, true, Syndrome::Hvc(0x12))
        );
        // A 32-bit store of x1 to unmapped device space, level 2.
        let Syndrome::DataAbort { lower: true, abort } = Esr::new(0x9381_0046).syndrome() else {
            panic!("a data abort from below");
        };
        let access = abort.access.unwrap();
        assert_eq!(
            (access.size.bytes(), access.register, access.sixty_four),
            (4, 1, false)
        );
        assert!(abort.write && !access.sign_extend && !abort.s1ptw && !abort.cache_op);
        assert_eq!(abort.status, FaultStatus::Translation(Level::L2));
        assert_eq!(Esr::new(0x3a00_0000).syndrome(), Syndrome::IllegalState);
        assert_eq!(Esr::new(0x0000_0012_5a00_0000).iss2(), 0x12);
    }

    #[test]
    fn only_what_has_no_decoder_is_other() {
        let decoded = (0..64u8)
            .filter(|ec| !matches!(Esr::new((*ec as u64) << 26).syndrome(), Syndrome::Other(_)));
        let expected = [
            0x01, 0x07, 0x09, 0x0e, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1d, 0x20, 0x21, 0x24,
            0x25, 0x2f,
        ];
        assert!(decoded.eq(expected));
    }

    proptest! {
        #[test]
        fn any_value_has_a_syndrome_and_its_parts_make_it_again(raw in any::<u64>()) {
            let esr = Esr::new(raw);
            let _ = esr.syndrome();
            prop_assert_eq!(Esr::from_parts(esr.ec(), esr.il(), esr.iss()).raw(), raw & 0xffff_ffff);
        }
    }
}
