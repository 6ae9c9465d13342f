//! The syndromes of trapped instructions.

use crate::sysreg::SysReg;

/// Which waiting instruction was trapped (TI, bits 1:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WfxKind {
    /// WFI.
    Wfi,
    /// WFE.
    Wfe,
    /// WFIT: WFI with a timeout.
    Wfit,
    /// WFET: WFE with a timeout.
    Wfet,
}

/// The syndrome of a trapped WFI, WFE, WFIT or WFET (EC 0x01). An AArch64 instruction is
/// unconditional, so the condition fields are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wfx {
    /// Which.
    pub kind: WfxKind,
    /// The register with the timeout, a CNTVCT_EL0 value, if it is known (RV, RN).
    pub timeout_register: Option<u8>,
}

impl Wfx {
    /// Reads the 25 bits of `iss`.
    pub const fn decode(iss: u32) -> Self {
        Self {
            kind: match iss & 0b11 {
                0 => WfxKind::Wfi,
                1 => WfxKind::Wfe,
                2 => WfxKind::Wfit,
                _ => WfxKind::Wfet,
            },
            timeout_register: if iss >> 2 & 1 != 0 {
                Some((iss >> 5 & 0x1f) as u8)
            } else {
                None
            },
        }
    }

    /// The ISS, with the condition of an AArch64 instruction (CV = 1, COND = always).
    pub const fn encode(self) -> u32 {
        let kind = match self.kind {
            WfxKind::Wfi => 0,
            WfxKind::Wfe => 1,
            WfxKind::Wfit => 2,
            WfxKind::Wfet => 3,
        };
        let register = match self.timeout_register {
            Some(register) => 1 << 2 | (register as u32 & 0x1f) << 5,
            None => 0,
        };
        1 << 24 | 0xe << 20 | register | kind
    }
}

/// The syndrome of a trapped MSR, MRS or system instruction (EC 0x18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SysRegTrap {
    /// The register or the instruction.
    pub reg: SysReg,
    /// The general register, 31 being the zero register.
    pub rt: u8,
    /// A read (MRS), not a write.
    pub read: bool,
}

impl SysRegTrap {
    /// Reads the 25 bits of `iss`.
    #[inline]
    pub const fn decode(iss: u32) -> Self {
        // op0 and op2 change places with what lies between; op1 and CRn are neighbours in both forms.
        let id = iss >> 6 & 0xc000 | iss >> 3 & 0x3f80 | iss << 2 & 0x78 | iss >> 17 & 7;
        Self {
            reg: SysReg::from_id(id as u16),
            rt: (iss >> 5 & 0x1f) as u8,
            read: iss & 1 != 0,
        }
    }

    /// The ISS; a field too big for its place is cut.
    pub const fn encode(self) -> u32 {
        let reg = self.reg;
        (reg.op0() as u32) << 20
            | (reg.op2() as u32) << 17
            | (reg.op1() as u32) << 14
            | (reg.crn() as u32) << 10
            | (self.rt as u32 & 0x1f) << 5
            | (reg.crm() as u32) << 1
            | self.read as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_register_decodes() {
        // mrs x3, ICC_IAR1_EL1: S3_0_C12_C12_0.
        let trap = SysRegTrap {
            reg: SysReg::new(3, 0, 12, 12, 0),
            rt: 3,
            read: true,
        };
        assert_eq!(SysRegTrap::decode(0x30_3079), trap);
        // TLBI VAE1IS, x5: op0 1, op1 0, CRn 8, CRm 3, op2 1.
        let tlbi = SysRegTrap {
            reg: SysReg::new(1, 0, 8, 3, 1),
            rt: 5,
            read: false,
        };
        assert_eq!(
            SysRegTrap::decode(1 << 20 | 1 << 17 | 8 << 10 | 5 << 5 | 3 << 1),
            tlbi
        );
    }

    proptest! {
        #[test]
        fn a_register_trap_is_its_bits(iss in 0u32..1 << 25) {
            prop_assert_eq!(SysRegTrap::decode(iss).encode(), iss & 0x3f_ffff);
        }

        #[test]
        fn a_wait_is_its_kind_and_register(iss in 0u32..1 << 25) {
            let wait = Wfx::decode(iss);
            prop_assert_eq!(Wfx::decode(wait.encode()), wait);
            let register = if iss & 4 != 0 { 0x3e0 } else { 0 };
            prop_assert_eq!(wait.encode() & 0xf_ffff, iss & (0b111 | register));
        }
    }
}
