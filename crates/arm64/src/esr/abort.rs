//! The syndromes of instruction and data aborts (Arm ARM, ESR_EL2, "ISS encoding for an exception
//! from an Instruction Abort" and "from a Data Abort").

use crate::fault::FaultStatus;

const ISV: u32 = 1 << 24;
const SAS_SHIFT: u32 = 22;
const SSE: u32 = 1 << 21;
const SRT_SHIFT: u32 = 16;
const SF: u32 = 1 << 15;
const AR: u32 = 1 << 14;
const VNCR: u32 = 1 << 13;
const SET_SHIFT: u32 = 11;
const FNV: u32 = 1 << 10;
const EA: u32 = 1 << 9;
const CM: u32 = 1 << 8;
const S1PTW: u32 = 1 << 7;
const WNR: u32 = 1 << 6;
const FSC: u32 = 0x3f;

/// Bytes of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessSize {
    /// 1.
    Byte,
    /// 2.
    Half,
    /// 4.
    Word,
    /// 8.
    Double,
}

impl AccessSize {
    /// All sizes, by SAS.
    pub const ALL: [AccessSize; 4] = [
        AccessSize::Byte,
        AccessSize::Half,
        AccessSize::Word,
        AccessSize::Double,
    ];

    const fn from_sas(sas: u32) -> Self {
        match sas & 0b11 {
            0 => AccessSize::Byte,
            1 => AccessSize::Half,
            2 => AccessSize::Word,
            _ => AccessSize::Double,
        }
    }

    const fn sas(self) -> u32 {
        match self {
            AccessSize::Byte => 0,
            AccessSize::Half => 1,
            AccessSize::Word => 2,
            AccessSize::Double => 3,
        }
    }

    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        1 << self.sas()
    }
}

/// The instruction behind a data abort, where hardware describes it (ISV = 1): a load or store of
/// one general register without write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// SAS.
    pub size: AccessSize,
    /// SSE: a load that sign-extends.
    pub sign_extend: bool,
    /// SRT: the register, 31 being the zero register.
    pub register: u8,
    /// SF: the register is 64 bits wide.
    pub sixty_four: bool,
    /// AR: acquire or release semantics.
    pub ordered: bool,
}

/// The syndrome of a data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataAbort {
    /// The instruction, if it is described.
    pub access: Option<Access>,
    /// The access was hardware's own, to the page of VNCR_EL2 (FEAT_NV2).
    pub vncr: bool,
    /// SET, bits 12:11, for a synchronous external abort with FEAT_RAS: 0 recoverable, 2
    /// uncontainable, 3 restartable. Other meanings otherwise.
    pub set: u8,
    /// FAR is not valid.
    pub far_not_valid: bool,
    /// EA: IMPLEMENTATION DEFINED classification of an external abort.
    pub external_type: bool,
    /// CM: a cache maintenance or address translation instruction.
    pub cache_op: bool,
    /// A stage-2 fault on the access to a stage-1 descriptor.
    pub s1ptw: bool,
    /// WnR: a write, or a cache maintenance instruction.
    pub write: bool,
    /// The fault status.
    pub status: FaultStatus,
}

impl DataAbort {
    /// The instruction alone, if the 25 bits of `iss` describe one.
    pub fn described(iss: u32) -> Option<Access> {
        (iss & ISV != 0).then_some(Access {
            size: AccessSize::from_sas(iss >> SAS_SHIFT),
            sign_extend: iss & SSE != 0,
            register: (iss >> SRT_SHIFT & 0x1f) as u8,
            sixty_four: iss & SF != 0,
            ordered: iss & AR != 0,
        })
    }

    /// Reads the 25 bits of `iss`. Without ISV the fields that it validates are ignored.
    pub fn decode(iss: u32) -> Self {
        Self {
            access: Self::described(iss),
            vncr: iss & VNCR != 0,
            set: (iss >> SET_SHIFT & 0b11) as u8,
            far_not_valid: iss & FNV != 0,
            external_type: iss & EA != 0,
            cache_op: iss & CM != 0,
            s1ptw: iss & S1PTW != 0,
            write: iss & WNR != 0,
            status: FaultStatus::decode((iss & FSC) as u8),
        }
    }

    /// The ISS; `None` if the status has no code.
    pub fn encode(self) -> Option<u32> {
        let access = self.access.map_or(0, |access| {
            ISV | access.size.sas() << SAS_SHIFT
                | flag(access.sign_extend, SSE)
                | ((access.register & 0x1f) as u32) << SRT_SHIFT
                | flag(access.sixty_four, SF)
                | flag(access.ordered, AR)
        });
        Some(
            access
                | flag(self.vncr, VNCR)
                | ((self.set & 0b11) as u32) << SET_SHIFT
                | flag(self.far_not_valid, FNV)
                | flag(self.external_type, EA)
                | flag(self.cache_op, CM)
                | flag(self.s1ptw, S1PTW)
                | flag(self.write, WNR)
                | self.status.encode()? as u32,
        )
    }
}

/// The syndrome of an instruction abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InstructionAbort {
    /// SET, bits 12:11, as for a data abort.
    pub set: u8,
    /// FAR is not valid.
    pub far_not_valid: bool,
    /// EA: IMPLEMENTATION DEFINED classification of an external abort.
    pub external_type: bool,
    /// A stage-2 fault on the access to a stage-1 descriptor.
    pub s1ptw: bool,
    /// The fault status.
    pub status: FaultStatus,
}

impl InstructionAbort {
    /// Reads the 25 bits of `iss`.
    pub fn decode(iss: u32) -> Self {
        Self {
            set: (iss >> SET_SHIFT & 0b11) as u8,
            far_not_valid: iss & FNV != 0,
            external_type: iss & EA != 0,
            s1ptw: iss & S1PTW != 0,
            status: FaultStatus::decode((iss & FSC) as u8),
        }
    }

    /// The ISS; `None` if the status has no code.
    pub fn encode(self) -> Option<u32> {
        Some(
            ((self.set & 0b11) as u32) << SET_SHIFT
                | flag(self.far_not_valid, FNV)
                | flag(self.external_type, EA)
                | flag(self.s1ptw, S1PTW)
                | self.status.encode()? as u32,
        )
    }
}

const fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_data_abort_is_its_bits(iss in 0u32..1 << 25) {
            let validated = 0x00ff_c000;
            let expected = if iss & ISV != 0 { iss } else { iss & !validated };
            prop_assert_eq!(DataAbort::decode(iss).encode(), Some(expected));
        }

        #[test]
        fn an_instruction_abort_is_its_bits(iss in 0u32..1 << 25) {
            prop_assert_eq!(InstructionAbort::decode(iss).encode(), Some(iss & 0x1ebf));
        }
    }

    #[test]
    fn each_bit_is_one_field() {
        let read = |bit: u32| DataAbort::decode(1 << bit | 1 << 24);
        let access = |bit: u32| read(bit).access.unwrap();
        assert_eq!(
            (access(22).size, access(23).size),
            (AccessSize::Half, AccessSize::Word)
        );
        assert_eq!(
            DataAbort::decode(0b111 << 22).access.unwrap().size.bytes(),
            8
        );
        assert!(access(21).sign_extend && access(15).sixty_four && access(14).ordered);
        assert_eq!((access(16).register, access(20).register), (1, 16));
        assert!(read(13).vncr && read(10).far_not_valid && read(9).external_type);
        assert!(read(8).cache_op && read(7).s1ptw && read(6).write);
        assert_eq!((read(12).set, read(11).set), (2, 1));
        assert_eq!(DataAbort::decode(1 << 21).access, None);
    }
}
