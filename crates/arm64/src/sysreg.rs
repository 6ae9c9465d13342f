//! System registers as data: how one is named, where its state lives, what a trapped access means.
//!
//! [`SysReg`] is an encoding (op0, op1, CRn, CRm, op2) and nothing else; every encoding exists.
//! [`Reg`] is a register that a vCPU keeps *state* for: an index into the register file, with its
//! reset rule, its place in the VNCR page and its hardware home ([`RegFile`]). [`trap()`] says what an
//! access that trapped to EL2 from a plain guest amounts to ([`trap`](mod@trap)).
//!
//! All three are tables with tests that walk them for duplicates and order: a new register is a
//! row, and a forgotten one is an UNDEFINED exception in the guest, never a wrong value.

mod feature;
pub mod file;
mod names;
mod regs;
pub mod trap;

use core::fmt;

pub use feature::{Feature, Features};
pub use file::{Identity, RegFile, VncrPage};
pub use regs::{ARRAY_LEN, Class, HwReg, Reg, RegInfo, Reset, Slot, UNKNOWN};
pub use trap::{Emulated, SgiGroup, TimerReg, TrapAction, is_at, is_id_space, is_tlbi, trap};

/// The encoding of an A64 system register or system instruction.
///
/// Held in the layout of the low 16 bits of a KVM register id (op0 in \[15:14\], op1 in
/// \[13:11\], CRn in \[10:7\], CRm in \[6:3\], op2 in \[2:0\]), so that the order of encodings, of
/// KVM's register list and of our tables is one order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SysReg(u16);

impl SysReg {
    /// Names a register by its five fields; bits beyond a field's width are dropped.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 3) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | (op2 as u16 & 7),
        )
    }

    /// From the low 16 bits of a KVM system register id.
    pub const fn from_id(id: u16) -> Self {
        Self(id)
    }

    /// The low 16 bits of the KVM register id.
    pub const fn id(self) -> u16 {
        self.0
    }

    /// op0: 1 system instruction, 2 debug and trace, 3 system register.
    pub const fn op0(self) -> u8 {
        (self.0 >> 14) as u8 & 3
    }

    /// op1: chiefly the exception level (3 EL0, 0 EL1, 4 EL2, 5 `_EL12`, 6 EL3).
    pub const fn op1(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }

    /// CRn: the group.
    pub const fn crn(self) -> u8 {
        (self.0 >> 7) as u8 & 15
    }

    /// CRm: the row in the group.
    pub const fn crm(self) -> u8 {
        (self.0 >> 3) as u8 & 15
    }

    /// op2: the column in the row.
    pub const fn op2(self) -> u8 {
        self.0 as u8 & 7
    }

    /// The register's name, where this crate has one for it.
    pub fn name(self) -> Option<&'static str> {
        let at = names::NAMES.binary_search_by_key(&self, |row| row.0).ok()?;
        Some(names::NAMES[at].1)
    }

    /// `DBGBVR<n>_EL1`; n is taken modulo 16.
    pub const fn dbgbvr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 4)
    }

    /// `DBGBCR<n>_EL1`; n is taken modulo 16.
    pub const fn dbgbcr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 5)
    }

    /// `DBGWVR<n>_EL1`; n is taken modulo 16.
    pub const fn dbgwvr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 6)
    }

    /// `DBGWCR<n>_EL1`; n is taken modulo 16.
    pub const fn dbgwcr(n: u8) -> Self {
        Self::new(2, 0, 0, n, 7)
    }

    /// `ICH_LR<n>_EL2`; n is taken modulo 16.
    pub const fn ich_lr(n: u8) -> Self {
        Self::new(3, 4, 12, 12 + (n >> 3 & 1), n & 7)
    }
}

impl fmt::Display for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(
                f,
                "S{}_{}_C{}_C{}_{}",
                self.op0(),
                self.op1(),
                self.crn(),
                self.crm(),
                self.op2()
            ),
        }
    }
}

impl fmt::Debug for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;

    #[test]
    fn names_ascend_without_duplicates() {
        for pair in names::NAMES.windows(2) {
            assert!(
                pair[0].0 < pair[1].0,
                "{} is not before {}",
                pair[0].1,
                pair[1].1
            );
        }
    }

    #[test]
    fn fields_come_back_out() {
        let reg = SysReg::SCTLR_EL12;
        assert_eq!(
            (reg.op0(), reg.op1(), reg.crn(), reg.crm(), reg.op2()),
            (3, 5, 1, 0, 0)
        );
        assert_eq!(format!("{reg}"), "SCTLR_EL12");
        assert_eq!(
            format!("{}", SysReg::new(3, 7, 15, 14, 5)),
            "S3_7_C15_C14_5"
        );
    }

    #[test]
    fn families_agree_with_their_named_members() {
        assert_eq!(SysReg::dbgbvr(0), SysReg::DBGBVR0_EL1);
        assert_eq!(SysReg::dbgbcr(15), SysReg::DBGBCR15_EL1);
        assert_eq!(SysReg::dbgwvr(7), SysReg::DBGWVR7_EL1);
        assert_eq!(SysReg::dbgwcr(9), SysReg::DBGWCR9_EL1);
        assert_eq!(SysReg::ich_lr(7), SysReg::ICH_LR7_EL2);
        assert_eq!(SysReg::ich_lr(8), SysReg::ICH_LR8_EL2);
        assert_eq!(SysReg::ich_lr(15), SysReg::ICH_LR15_EL2);
    }

    proptest! {
        #[test]
        fn every_id_survives_the_round_trip(id: u16) {
            let reg = SysReg::from_id(id);
            let again = SysReg::new(reg.op0(), reg.op1(), reg.crn(), reg.crm(), reg.op2());
            prop_assert_eq!(again.id(), id);
        }
    }
}
