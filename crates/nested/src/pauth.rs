//! Where ERETAA and ERETAB of virtual EL2 go: the authentication of a return address (Arm ARM,
//! AArch64.ExceptionReturn with AuthIA, AuthIB and Auth).
//!
//! The code itself comes from whoever has the keys. It is known from bit 32 up only, which is what PACGA
//! computes; an address space of fewer bits has code below that, which is taken to be right.

use umbra_arm64::idreg::IdRegs;
use umbra_arm64::sysreg::SysReg;

/// Bits of a code that PACGA computes.
const KNOWN: u64 = 0xffff_ffff_0000_0000;
/// The bit that selects the half of the address space; never part of a code.
const HALF: u64 = 1 << 55;

/// Which key an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// APIAKey_EL1: ERETAA, with SCTLR_ELx.EnIA.
    A,
    /// APIBKey_EL1: ERETAB, with SCTLR_ELx.EnIB.
    B,
}

impl Key {
    /// The key of a trapped ERET with this ISS; `None` for a plain one.
    pub const fn of_eret(iss: u32) -> Option<Self> {
        match iss & 3 {
            2 => Some(Key::A),
            3 => Some(Key::B),
            _ => None,
        }
    }

    /// Whether SCTLR_ELx lets instructions with this key authenticate; else they do not.
    pub const fn is_enabled(self, sctlr: u64) -> bool {
        let at = match self {
            Key::A => 31,
            Key::B => 30,
        };
        sctlr >> at & 1 == 1
    }
}

/// The code was wrong, and the machine says so by an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// ISS of the exception of class 0x1c (FPAC): an instruction key, and which.
    pub iss: u32,
}

/// How a guest's machine authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// FEAT_PAuth2: the code is combined with the upper bits.
    combined: bool,
    /// FEAT_FPACCOMBINE: an instruction that does something with the address as well faults.
    faults: bool,
    /// Fewest and most unused upper bits (TCR_ELx.TxSZ).
    sizes: (u64, u64),
}

impl Rules {
    /// What `ids`, as shown to the guest, promise; `None` without authentication of addresses.
    pub fn of(ids: &IdRegs) -> Option<Self> {
        let level = ids
            .field(SysReg::ID_AA64ISAR1_EL1, 4)
            .max(ids.field(SysReg::ID_AA64ISAR1_EL1, 8))
            .max(ids.field(SysReg::ID_AA64ISAR2_EL1, 12));
        let large = ids.field(SysReg::ID_AA64MMFR2_EL1, 16) >= 1;
        let small = ids.field(SysReg::ID_AA64MMFR2_EL1, 28) >= 1;
        (level > 0).then_some(Self {
            combined: level >= 3,
            faults: level >= 5,
            sizes: (if large { 12 } else { 16 }, if small { 48 } else { 39 }),
        })
    }

    /// The address that `signed` stands for to a fetch at EL2 with E2H, under TCR_EL2 `tcr`. `code` gives
    /// the authentication code of an address.
    pub fn authenticate(
        &self,
        key: Key,
        signed: u64,
        tcr: u64,
        code: impl FnOnce(u64) -> u64,
    ) -> Result<u64, Failed> {
        let upper = signed & HALF != 0;
        let (size, ignored) = if upper {
            (tcr >> 16, tcr >> 38 & 1 == 1 && tcr >> 52 & 1 == 0)
        } else {
            (tcr, tcr >> 37 & 1 == 1 && tcr >> 51 & 1 == 0)
        };
        let size = (size & 0x3f).clamp(self.sizes.0, self.sizes.1);
        let top = if ignored { u64::MAX >> 8 } else { u64::MAX };
        let field = u64::MAX << (64 - size) & top & !HALF;
        let sign = if upper { field } else { 0 };
        let original = signed & !field | sign;
        let wrong =
            (code(original) ^ signed ^ if self.combined { sign } else { 0 }) & field & KNOWN;
        if wrong == 0 {
            return Ok(original);
        }
        let number = match key {
            Key::A => 0u32,
            Key::B => 1,
        };
        if self.combined {
            return if self.faults {
                Err(Failed { iss: number })
            } else {
                Ok(original ^ wrong)
            };
        }
        // An address that no table can map: 01 or 10 where the upper bits would all be alike.
        let error = u64::from(number << 1 | (number ^ 1));
        let at = if ignored { 53 } else { 61 };
        Ok(original & !(3 << at) | error << at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOWER: u64 = 0x0000_0012_3456_7890;
    const UPPER: u64 = 0xffff_ffd2_3456_7890;
    /// 39 bits in both halves.
    const TCR: u64 = 25 | 25 << 16;
    const IGNORED: u64 = 0b11 << 37;
    const DATA_ONLY: u64 = 0b11 << 51;

    fn rules(level: u64) -> Rules {
        let mut ids = IdRegs::default();
        ids.set(SysReg::ID_AA64ISAR1_EL1, level << 8);
        Rules::of(&ids).unwrap()
    }

    /// Some function of the address.
    fn code(address: u64) -> u64 {
        address.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
    }

    /// Bits of an address that hold its code.
    fn field(tcr: u64) -> u64 {
        let below = u64::MAX << 39 & !HALF;
        if tcr & IGNORED != 0 && tcr & DATA_ONLY == 0 {
            below << 8 >> 8
        } else {
            below
        }
    }

    /// PACIA (AArch64.AddPAC) of an address whose upper bits are alike.
    fn sign(level: u64, address: u64, tcr: u64) -> u64 {
        let field = field(tcr);
        let code = code(address) & field;
        if level >= 3 {
            address ^ code
        } else {
            address & !field | code
        }
    }

    #[test]
    fn what_was_signed_goes_where_it_went() {
        for level in 1..=5 {
            for tcr in [TCR, TCR | IGNORED, TCR | IGNORED | DATA_ONLY] {
                for address in [LOWER, UPPER] {
                    let signed = sign(level, address, tcr);
                    let found = rules(level).authenticate(Key::A, signed, tcr, code);
                    assert_eq!(found, Ok(address), "level {level}, {tcr:#x}");
                }
            }
        }
    }

    #[test]
    fn each_bit_of_the_code_counts_and_no_other() {
        for level in 1..=5 {
            for tcr in [TCR, TCR | IGNORED] {
                for (address, key) in [(LOWER, Key::A), (UPPER, Key::B)] {
                    for bit in (39..64).filter(|&bit| bit != 55) {
                        let signed = sign(level, address, tcr) ^ 1 << bit;
                        let found = rules(level).authenticate(key, signed, tcr, code);
                        let flipped = address ^ 1 << bit;
                        if field(tcr) >> bit & 1 == 0 {
                            // An ignored bit is signed with the rest, as it is.
                            let signed = sign(level, flipped, tcr);
                            let found = rules(level).authenticate(key, signed, tcr, code);
                            assert_eq!(found, Ok(flipped));
                            continue;
                        }
                        let number = u32::from(key == Key::B);
                        let error = [0b01, 0b10][number as usize];
                        let at = if tcr & IGNORED == 0 { 61 } else { 53 };
                        match level {
                            5 => assert_eq!(found, Err(Failed { iss: number })),
                            3 | 4 => assert_eq!(found, Ok(flipped)),
                            _ => assert_eq!(found, Ok(address & !(3 << at) | error << at)),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_stay_within_what_there_is() {
        // 64 bits and none at all: 48 bits, and 25 of which the code is known from 32 on.
        for (size, bits) in [(0, 48), (63, 32)] {
            let tcr = size | size << 16;
            let signed = LOWER & 0xffff_ffff ^ 1 << bits;
            let found = rules(5).authenticate(Key::A, signed, tcr, |_| 0);
            assert_eq!(found, Err(Failed { iss: 0 }), "TxSZ {size}");
            let below = LOWER & 0xffff_ffff ^ 1 << (bits - 1);
            let found = rules(5).authenticate(Key::A, below, tcr, |_| 0);
            assert!(found.is_ok(), "TxSZ {size}");
        }
    }

    #[test]
    fn keys_have_their_bits() {
        assert_eq!(
            [0, 1, 2, 3].map(Key::of_eret),
            [None, None, Some(Key::A), Some(Key::B)]
        );
        assert!(Key::A.is_enabled(1 << 31) && !Key::A.is_enabled(1 << 30));
        assert!(Key::B.is_enabled(1 << 30) && !Key::B.is_enabled(1 << 31));
        assert_eq!(Rules::of(&IdRegs::default()), None);
    }
}
