//! Register ids of KVM_GET_ONE_REG and KVM_SET_ONE_REG.
//!
//! ```text
//!   63    60 59 56 55  52 51       32 31 28 27      16 15                 0
//!   ┌───────┬─────┬──────┬───────────┬─────┬──────────┬────────────────────┐
//!   │ 6 arm64     │ log2 │ zero      │zero │ kind     │ which              │
//!   │             │ size │           │     │          │                    │
//!   └───────┴─────┴──────┴───────────┴─────┴──────────┴────────────────────┘
//!   kind 0x10 core: offset into `struct kvm_regs` in 32-bit units      0x11 demultiplexed: CCSIDR
//!        0x13 system register: op0 op1 CRn CRm op2                     0x14 firmware, 0x16 bitmaps
//!        0x15 SVE
//! ```
//!
//! [`RegId::parse`] is the only reader. It names Linux's error for every id that names nothing, and
//! it undoes the ABI's one accident: the ids of the virtual timer's CVAL and of its counter are
//! exchanged, each carrying the other's encoding.

use crate::errno::Errno;
use umbra_arm64::sysreg::SysReg;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct kvm_one_reg`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct OneReg {
    /// The register's id.
    pub id: u64,
    /// The value, in the VMM's address space; as many bytes as the id says.
    pub addr: u64,
}

/// `struct kvm_reg_list`, followed by `n` ids.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegList {
    /// In: room for ids. Out: number of ids, also with E2BIG.
    pub n: u64,
}

/// `struct reg_mask_range`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegMaskRange {
    /// Where the masks go, in the VMM's address space.
    pub addr: u64,
    /// 0, the range of feature ids.
    pub range: u32,
    /// Zero.
    pub reserved: [u32; 13],
}

/// Number of masks in the range of feature ids: op0 3, op1 0, 1 and 3, CRn 0, CRm 0–7.
pub const KVM_ARM_FEATURE_ID_RANGE_SIZE: usize = 3 * 8 * 8;

/// The place of `reg` in the range of feature ids, or `None` outside.
pub const fn feature_id_index(reg: SysReg) -> Option<usize> {
    if reg.op0() != 3 || reg.crn() != 0 || reg.crm() > 7 {
        return None;
    }
    let block = match reg.op1() {
        0 => 0,
        1 => 1,
        3 => 2,
        _ => return None,
    };
    Some(block << 6 | (reg.crm() as usize) << 3 | reg.op2() as usize)
}

const ARM64: u64 = 0x6 << 60;
const SIZE_SHIFT: u32 = 52;
const KIND_SHIFT: u32 = 16;
const U32: u64 = 2;
const U64: u64 = 3;
const U128: u64 = 4;
const U256: u64 = 5;
const U512: u64 = 6;
const U2048: u64 = 8;
const CORE: u64 = 0x10;
const DEMUX: u64 = 0x11;
const SYSREG: u64 = 0x13;
const FW: u64 = 0x14;
const SVE: u64 = 0x15;
const FW_FEAT_BMAP: u64 = 0x16;

/// A register id as it crosses the border.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct RegId(pub u64);

impl core::fmt::Debug for RegId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RegId({:#018x})", self.0)
    }
}

/// What a register id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegKind {
    /// A member of `struct kvm_regs`.
    Core(CoreReg),
    /// A system register that is neither a timer nor demultiplexed.
    Sysreg(SysReg),
    /// A register of the two EL1 timers that goes by an id of its own.
    Timer(TimerId),
    /// CCSIDR_EL1 for this value of CSSELR_EL1.
    Ccsidr(u8),
    /// A firmware pseudo-register.
    Fw(FwReg),
    /// A bitmap of firmware services.
    FwFeatBmap(FwBitmap),
    /// A part of the SVE state.
    Sve(SveReg),
}

/// A member of `struct kvm_regs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreReg {
    /// X0 to X30.
    X(u8),
    /// SP_EL0.
    Sp,
    /// The program counter.
    Pc,
    /// PSTATE.
    Pstate,
    /// SP_EL1.
    SpEl1,
    /// ELR_EL1.
    ElrEl1,
    /// SPSR_EL1 (0) and the AArch32 banks abt, und, irq, fiq (1 to 4).
    Spsr(u8),
    /// V0 to V31, 128 bits.
    V(u8),
    /// FPSR, 32 bits.
    Fpsr,
    /// FPCR, 32 bits.
    Fpcr,
}

impl CoreReg {
    /// Offset in `struct kvm_regs` in units of 32 bits, and log2 of the size in bytes.
    const fn place(self) -> (u64, u64) {
        match self {
            Self::X(n) => (2 * n as u64, U64),
            Self::Sp => (62, U64),
            Self::Pc => (64, U64),
            Self::Pstate => (66, U64),
            Self::SpEl1 => (68, U64),
            Self::ElrEl1 => (70, U64),
            Self::Spsr(n) => (72 + 2 * n as u64, U64),
            Self::V(n) => (84 + 4 * n as u64, U128),
            Self::Fpsr => (212, U32),
            Self::Fpcr => (213, U32),
        }
    }

    /// The member at `offset`, EINVAL inside a member or in padding, ENOENT beyond the structure.
    const fn at(offset: u64) -> Result<Self, Errno> {
        let reg = match offset {
            0..=61 => Self::X((offset / 2) as u8),
            62..=63 => Self::Sp,
            64..=65 => Self::Pc,
            66..=67 => Self::Pstate,
            68..=69 => Self::SpEl1,
            70..=71 => Self::ElrEl1,
            72..=81 => Self::Spsr(((offset - 72) / 2) as u8),
            84..=211 => Self::V(((offset - 84) / 4) as u8),
            212 => Self::Fpsr,
            213 => Self::Fpcr,
            82..=83 | 214..=215 => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOENT),
        };
        if reg.place().0 == offset {
            Ok(reg)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Every member, in the order of KVM's list.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..31)
            .map(Self::X)
            .chain([Self::Sp, Self::Pc, Self::Pstate, Self::SpEl1, Self::ElrEl1])
            .chain((0..5).map(Self::Spsr))
            .chain((0..32).map(Self::V))
            .chain([Self::Fpsr, Self::Fpcr])
    }
}

/// A timer register with an id of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerId {
    /// CNTV_CTL_EL0.
    VirtCtl,
    /// CNTV_CVAL_EL0; its id carries the encoding of CNTVCT_EL0.
    VirtCval,
    /// CNTVCT_EL0; its id carries the encoding of CNTV_CVAL_EL0.
    VirtCount,
    /// CNTP_CTL_EL0.
    PhysCtl,
    /// CNTP_CVAL_EL0.
    PhysCval,
    /// CNTPCT_EL0.
    PhysCount,
}

impl TimerId {
    /// Every timer register, in the order of KVM's list.
    pub const ALL: [Self; 6] = [
        Self::VirtCtl,
        Self::VirtCount,
        Self::VirtCval,
        Self::PhysCtl,
        Self::PhysCount,
        Self::PhysCval,
    ];

    /// The encoding that the id carries, which for two of them is not the register's.
    const fn encoding(self) -> SysReg {
        match self {
            Self::VirtCtl => SysReg::CNTV_CTL_EL0,
            Self::VirtCval => SysReg::CNTVCT_EL0,
            Self::VirtCount => SysReg::CNTV_CVAL_EL0,
            Self::PhysCtl => SysReg::CNTP_CTL_EL0,
            Self::PhysCval => SysReg::CNTP_CVAL_EL0,
            Self::PhysCount => SysReg::CNTPCT_EL0,
        }
    }

    fn from_encoding(enc: SysReg) -> Option<Self> {
        Self::ALL.into_iter().find(|timer| timer.encoding() == enc)
    }
}

/// A firmware pseudo-register (`Documentation/virt/kvm/arm/fw-pseudo-registers.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FwReg {
    /// The PSCI version that the guest sees.
    PsciVersion = 0,
    /// The state of SMCCC_ARCH_WORKAROUND_1.
    Workaround1 = 1,
    /// The state of SMCCC_ARCH_WORKAROUND_2.
    Workaround2 = 2,
    /// The state of SMCCC_ARCH_WORKAROUND_3.
    Workaround3 = 3,
}

/// A bitmap of firmware services that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FwBitmap {
    /// Standard secure services: bit 0 TRNG.
    Std = 0,
    /// Standard hypervisor services: bit 0 stolen time.
    StdHyp = 1,
    /// The vendor's hypervisor services: bit 0 features, bit 1 the host's clock.
    VendorHyp = 2,
    /// More of them: bits 0 and 1 discovery of implementations.
    VendorHyp2 = 3,
}

/// A part of the SVE state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SveReg {
    /// 2048 bits of a Z register.
    Z {
        /// Which register, 0 to 31.
        n: u8,
        /// Which slice.
        slice: u8,
    },
    /// 256 bits of a P register.
    P {
        /// Which register, 0 to 15.
        n: u8,
        /// Which slice.
        slice: u8,
    },
    /// 256 bits of FFR.
    Ffr {
        /// Which slice.
        slice: u8,
    },
    /// The set of vector lengths, 512 bits.
    Vls,
}

impl SveReg {
    const fn place(self) -> (u64, u64) {
        match self {
            Self::Z { n, slice } => ((n as u64) << 5 | slice as u64, U2048),
            Self::P { n, slice } => (0x400 | (n as u64) << 5 | slice as u64, U256),
            Self::Ffr { slice } => (0x600 | slice as u64, U256),
            Self::Vls => (0xffff, U512),
        }
    }

    const fn at(which: u16) -> Result<Self, Errno> {
        let n = (which >> 5 & 31) as u8;
        let slice = (which & 31) as u8;
        match which {
            0..=0x3ff => Ok(Self::Z { n, slice }),
            0x400..=0x5ff => Ok(Self::P { n, slice }),
            0x600..=0x61f => Ok(Self::Ffr { slice }),
            0xffff => Ok(Self::Vls),
            _ => Err(Errno::ENOENT),
        }
    }
}

impl RegId {
    const fn build(kind: u64, log2_size: u64, which: u64) -> Self {
        Self(ARM64 | log2_size << SIZE_SHIFT | kind << KIND_SHIFT | which)
    }

    /// The size of the register's value in bytes: 1 to 32768, a power of two.
    pub const fn size(self) -> usize {
        1 << (self.0 >> SIZE_SHIFT & 15)
    }

    /// Reads the id.
    ///
    /// # Errors
    /// EINVAL for another architecture, and for a core register that is misaligned or has another
    /// size; ENOENT for whatever else names nothing.
    pub fn parse(self) -> Result<RegKind, Errno> {
        let log2_size = self.0 >> SIZE_SHIFT & 15;
        if (self.0 & !(15 << SIZE_SHIFT)) >> 32 != ARM64 >> 32 {
            return Err(Errno::EINVAL);
        }
        let which = self.0 as u16;
        let sized = |wanted: u64, kind: RegKind| {
            if log2_size == wanted {
                Ok(kind)
            } else {
                Err(Errno::ENOENT)
            }
        };
        match (self.0 as u32 >> KIND_SHIFT) as u64 {
            CORE => {
                let reg = CoreReg::at(u64::from(which))?;
                if reg.place().1 == log2_size {
                    Ok(RegKind::Core(reg))
                } else {
                    Err(Errno::EINVAL)
                }
            }
            DEMUX => match which {
                0..=0xff => sized(U32, RegKind::Ccsidr(which as u8)),
                _ => Err(Errno::ENOENT),
            },
            SYSREG => {
                let enc = SysReg::from_id(which);
                let kind = TimerId::from_encoding(enc).map_or(RegKind::Sysreg(enc), RegKind::Timer);
                sized(U64, kind)
            }
            FW => {
                let reg = match which {
                    0 => FwReg::PsciVersion,
                    1 => FwReg::Workaround1,
                    2 => FwReg::Workaround2,
                    3 => FwReg::Workaround3,
                    _ => return Err(Errno::ENOENT),
                };
                sized(U64, RegKind::Fw(reg))
            }
            FW_FEAT_BMAP => {
                let bitmap = match which {
                    0 => FwBitmap::Std,
                    1 => FwBitmap::StdHyp,
                    2 => FwBitmap::VendorHyp,
                    3 => FwBitmap::VendorHyp2,
                    _ => return Err(Errno::ENOENT),
                };
                sized(U64, RegKind::FwFeatBmap(bitmap))
            }
            SVE => {
                let reg = SveReg::at(which)?;
                sized(reg.place().1, RegKind::Sve(reg))
            }
            _ => Err(Errno::ENOENT),
        }
    }
}

impl From<RegKind> for RegId {
    /// The id that names `kind`; what [`RegId::parse`] reads back.
    fn from(kind: RegKind) -> Self {
        match kind {
            RegKind::Core(reg) => {
                let (offset, log2_size) = reg.place();
                Self::build(CORE, log2_size, offset)
            }
            RegKind::Sysreg(enc) => Self::build(SYSREG, U64, u64::from(enc.id())),
            RegKind::Timer(timer) => Self::build(SYSREG, U64, u64::from(timer.encoding().id())),
            RegKind::Ccsidr(select) => Self::build(DEMUX, U32, u64::from(select)),
            RegKind::Fw(reg) => Self::build(FW, U64, reg as u64),
            RegKind::FwFeatBmap(bitmap) => Self::build(FW_FEAT_BMAP, U64, bitmap as u64),
            RegKind::Sve(reg) => {
                let (which, log2_size) = reg.place();
                Self::build(SVE, log2_size, which)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::Regs;
    use core::mem::offset_of;
    use proptest::prelude::*;

    fn id(kind: RegKind) -> u64 {
        RegId::from(kind).0
    }

    #[test]
    fn ids_are_those_of_linux() {
        for (kind, raw) in [
            (RegKind::Core(CoreReg::X(0)), 0x6030_0000_0010_0000),
            (RegKind::Core(CoreReg::Pc), 0x6030_0000_0010_0040),
            (RegKind::Core(CoreReg::Pstate), 0x6030_0000_0010_0042),
            (RegKind::Core(CoreReg::V(1)), 0x6040_0000_0010_0058),
            (RegKind::Core(CoreReg::Fpcr), 0x6020_0000_0010_00d5),
            (RegKind::Sysreg(SysReg::MPIDR_EL1), 0x6030_0000_0013_c005),
            (RegKind::Ccsidr(2), 0x6020_0000_0011_0002),
            (RegKind::Fw(FwReg::PsciVersion), 0x6030_0000_0014_0000),
            (
                RegKind::FwFeatBmap(FwBitmap::VendorHyp),
                0x6030_0000_0016_0002,
            ),
            (RegKind::Sve(SveReg::Vls), 0x6060_0000_0015_ffff),
        ] {
            assert_eq!(id(kind), raw, "{kind:?}: {:#x}", id(kind));
        }
    }

    #[test]
    fn the_virtual_timers_ids_are_exchanged() {
        assert_eq!(id(RegKind::Timer(TimerId::VirtCval)), 0x6030_0000_0013_df02);
        assert_eq!(
            id(RegKind::Timer(TimerId::VirtCount)),
            0x6030_0000_0013_df1a
        );
        assert_eq!(
            id(RegKind::Timer(TimerId::VirtCval)),
            id(RegKind::Sysreg(SysReg::CNTVCT_EL0))
        );
        assert_eq!(
            id(RegKind::Timer(TimerId::PhysCval)),
            id(RegKind::Sysreg(SysReg::CNTP_CVAL_EL0)),
            "the physical timer's are not"
        );
    }

    #[test]
    fn core_offsets_are_those_of_the_structure() {
        for (reg, bytes) in [
            (CoreReg::X(30), offset_of!(Regs, regs) + 240),
            (CoreReg::Sp, offset_of!(Regs, sp)),
            (CoreReg::Pc, offset_of!(Regs, pc)),
            (CoreReg::Pstate, offset_of!(Regs, pstate)),
            (CoreReg::SpEl1, offset_of!(Regs, sp_el1)),
            (CoreReg::ElrEl1, offset_of!(Regs, elr_el1)),
            (CoreReg::Spsr(4), offset_of!(Regs, spsr) + 32),
            (CoreReg::V(31), offset_of!(Regs, vregs) + 31 * 16),
            (CoreReg::Fpsr, offset_of!(Regs, fpsr)),
            (CoreReg::Fpcr, offset_of!(Regs, fpcr)),
        ] {
            assert_eq!(reg.place().0 as usize * 4, bytes, "{reg:?}");
        }
        assert_eq!(CoreReg::all().count(), 31 + 5 + 5 + 32 + 2);
    }

    #[test]
    fn what_names_nothing_is_refused_as_linux_refuses_it() {
        for (raw, errno) in [
            (0x4030_0000_0010_0000, Errno::EINVAL),
            (0x6030_0001_0010_0000, Errno::EINVAL),
            (0x6030_0000_0010_0001, Errno::EINVAL),
            (0x6020_0000_0010_0000, Errno::EINVAL),
            (0x6030_0000_0010_0052, Errno::EINVAL),
            (0x6030_0000_0010_00d8, Errno::ENOENT),
            (0x6020_0000_0013_c005, Errno::ENOENT),
            (0x6030_0000_0011_0000, Errno::ENOENT),
            (0x6020_0000_0011_0100, Errno::ENOENT),
            (0x6030_0000_0014_0004, Errno::ENOENT),
            (0x6030_0000_0015_0000, Errno::ENOENT),
            (0x6030_0000_0012_0000, Errno::ENOENT),
            (0x6030_0000_1010_0000, Errno::ENOENT),
        ] {
            assert_eq!(RegId(raw).parse(), Err(errno), "{raw:#x}");
        }
    }

    #[test]
    fn the_range_of_feature_ids_is_three_blocks() {
        assert_eq!(feature_id_index(SysReg::MIDR_EL1), Some(0));
        assert_eq!(feature_id_index(SysReg::ID_AA64PFR0_EL1), Some(4 << 3));
        assert_eq!(feature_id_index(SysReg::CLIDR_EL1), Some(65));
        assert_eq!(feature_id_index(SysReg::CTR_EL0), Some(129));
        assert_eq!(
            feature_id_index(SysReg::new(3, 3, 0, 7, 7)),
            Some(KVM_ARM_FEATURE_ID_RANGE_SIZE - 1)
        );
        assert_eq!(feature_id_index(SysReg::CSSELR_EL1), None);
        assert_eq!(feature_id_index(SysReg::SCTLR_EL1), None);
    }

    proptest! {
        #[test]
        fn what_parses_builds_the_same_id(kind in 0x0fu64..0x18, size in 0u64..9, which: u16) {
            let id = RegId::build(kind, size, u64::from(which));
            if let Ok(parsed) = id.parse() {
                prop_assert_eq!(RegId::from(parsed), id);
            }
        }

        #[test]
        fn no_id_panics(raw: u64) {
            let _ = RegId(raw).parse();
        }
    }

    #[test]
    fn every_core_register_parses() {
        for reg in CoreReg::all() {
            let id = RegId::from(RegKind::Core(reg));
            assert_eq!(id.parse(), Ok(RegKind::Core(reg)));
        }
    }
}
