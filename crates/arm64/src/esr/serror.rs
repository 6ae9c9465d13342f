//! The syndrome of an SError interrupt (Arm ARM, ESR_EL2, "ISS encoding for an SError interrupt").

const IDS: u32 = 1 << 24;
const IESB: u32 = 1 << 13;
const AET_SHIFT: u32 = 10;
const EA: u32 = 1 << 9;
const FSC: u32 = 0x3f;
/// The status of an asynchronous error that is categorised, the only one for which AET counts.
const ASYNCHRONOUS: u32 = 0x11;

/// How far an asynchronous error has spread (FEAT_RAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aet {
    /// It may have gone anywhere.
    Uncontainable,
    /// Contained, but the PE's state is lost.
    Unrecoverable,
    /// The PE can go on where it was.
    Restartable,
    /// The PE can go on if software repairs what is wrong.
    Recoverable,
    /// Nothing is wrong any more.
    Corrected,
    /// A value without a meaning.
    Reserved(u8),
}

impl Aet {
    const fn decode(bits: u8) -> Aet {
        match bits & 0b111 {
            0 => Aet::Uncontainable,
            1 => Aet::Unrecoverable,
            2 => Aet::Restartable,
            3 => Aet::Recoverable,
            6 => Aet::Corrected,
            other => Aet::Reserved(other),
        }
    }

    const fn encode(self) -> u8 {
        match self {
            Aet::Uncontainable => 0,
            Aet::Unrecoverable => 1,
            Aet::Restartable => 2,
            Aet::Recoverable => 3,
            Aet::Corrected => 6,
            Aet::Reserved(other) => other & 0b111,
        }
    }
}

/// The syndrome of an SError interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SError {
    /// IDS = 1: the other 24 bits belong to the implementation.
    ImplementationDefined(u32),
    /// Categorised by FEAT_RAS.
    Categorised {
        /// Severity.
        aet: Aet,
        /// EA: IMPLEMENTATION DEFINED classification of an external abort.
        external_type: bool,
        /// Taken by an implicit error synchronisation at exception entry.
        iesb: bool,
    },
    /// Not categorised; the six bits of the status.
    Uncategorised(u8),
}

impl SError {
    /// Reads the 25 bits of `iss`.
    pub const fn decode(iss: u32) -> Self {
        if iss & IDS != 0 {
            SError::ImplementationDefined(iss & (IDS - 1))
        } else if iss & FSC == ASYNCHRONOUS {
            SError::Categorised {
                aet: Aet::decode((iss >> AET_SHIFT) as u8),
                external_type: iss & EA != 0,
                iesb: iss & IESB != 0,
            }
        } else {
            SError::Uncategorised((iss & FSC) as u8)
        }
    }

    /// The ISS.
    pub const fn encode(self) -> u32 {
        match self {
            SError::ImplementationDefined(bits) => IDS | bits & (IDS - 1),
            SError::Categorised {
                aet,
                external_type,
                iesb,
            } => {
                (aet.encode() as u32) << AET_SHIFT
                    | if external_type { EA } else { 0 }
                    | if iesb { IESB } else { 0 }
                    | ASYNCHRONOUS
            }
            SError::Uncategorised(status) => status as u32 & FSC,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn severities_count_only_when_categorised() {
        let severity = |aet: u32| SError::decode(aet << 10 | 0x11);
        let expected = [
            Aet::Uncontainable,
            Aet::Unrecoverable,
            Aet::Restartable,
            Aet::Recoverable,
            Aet::Reserved(4),
            Aet::Reserved(5),
            Aet::Corrected,
            Aet::Reserved(7),
        ];
        for (bits, aet) in expected.into_iter().enumerate() {
            let categorised = SError::Categorised {
                aet,
                external_type: false,
                iesb: false,
            };
            assert_eq!(severity(bits as u32), categorised);
        }
        assert_eq!(SError::decode(6 << 10), SError::Uncategorised(0));
        assert_eq!(
            SError::decode(1 << 24 | 6 << 10 | 0x11),
            SError::ImplementationDefined(6 << 10 | 0x11)
        );
    }

    proptest! {
        #[test]
        fn decoding_inverts_encoding(iss in 0u32..1 << 25) {
            let error = SError::decode(iss);
            prop_assert_eq!(SError::decode(error.encode()), error);
            // Nothing is made up, and only undefined bits are lost.
            prop_assert_eq!(error.encode() & !iss, 0);
            if iss & IDS != 0 {
                prop_assert_eq!(error.encode(), iss);
            }
        }
    }
}
