//! The commands of an ITS, decoded (IHI 0069, "ITS commands").

/// Bytes of a command in the queue.
pub const COMMAND_BYTES: u64 = 32;

/// One command. Numbers are the guest's and may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Gives a device a table, or takes it.
    MapDevice {
        /// DeviceID.
        device: u32,
        /// Its interrupt translation table, guest physical.
        table: u64,
        /// Bits of its EventIDs.
        bits: u32,
        /// V.
        valid: bool,
    },
    /// Gives a collection a redistributor, or takes it.
    MapCollection {
        /// ICID.
        collection: u16,
        /// Number of the processor.
        vcpu: u64,
        /// V.
        valid: bool,
    },
    /// MAPTI, and MAPI, whose LPI is its EventID.
    MapEvent {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
        /// The LPI's INTID.
        intid: u32,
        /// ICID.
        collection: u16,
    },
    /// MOVI.
    MoveEvent {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
        /// ICID.
        collection: u16,
    },
    /// DISCARD.
    Discard {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
    },
    /// INT.
    Set {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
    },
    /// CLEAR.
    Clear {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
    },
    /// INV.
    Reload {
        /// DeviceID.
        device: u32,
        /// EventID.
        event: u32,
    },
    /// INVALL.
    ReloadAll {
        /// ICID.
        collection: u16,
    },
    /// MOVALL.
    MoveAll {
        /// Number of the processor that has them.
        from: u64,
        /// Number of the processor that gets them.
        to: u64,
    },
    /// SYNC: what came before has taken effect already.
    Sync,
    /// None of them: ignored.
    Unknown(u8),
}

impl Command {
    /// Reads a command from its four doublewords.
    pub fn decode(words: [u64; 4]) -> Self {
        let [first, second, third, fourth] = words;
        let device = (first >> 32) as u32;
        let event = second as u32;
        let collection = third as u16;
        let valid = third >> 63 == 1;
        let processor = |word: u64| word >> 16 & 0x7_ffff_ffff;
        match first as u8 {
            0x01 => Self::MoveEvent {
                device,
                event,
                collection,
            },
            0x03 => Self::Set { device, event },
            0x04 => Self::Clear { device, event },
            0x05 => Self::Sync,
            0x08 => Self::MapDevice {
                device,
                table: third & 0x000f_ffff_ffff_ff00,
                bits: (second & 0x1f) as u32 + 1,
                valid,
            },
            0x09 => Self::MapCollection {
                collection,
                vcpu: processor(third),
                valid,
            },
            0x0a => Self::MapEvent {
                device,
                event,
                intid: (second >> 32) as u32,
                collection,
            },
            0x0b => Self::MapEvent {
                device,
                event,
                intid: event,
                collection,
            },
            0x0c => Self::Reload { device, event },
            0x0d => Self::ReloadAll { collection },
            0x0e => Self::MoveAll {
                from: processor(third),
                to: processor(fourth),
            },
            0x0f => Self::Discard { device, event },
            other => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_where_the_manual_has_them() {
        let decode = Command::decode;
        assert_eq!(
            decode([8 | 5 << 32, 15, 1 << 63 | 0x4000_0100, 0]),
            Command::MapDevice {
                device: 5,
                table: 0x4000_0100,
                bits: 16,
                valid: true
            }
        );
        assert_eq!(
            decode([9, 0, 1 << 63 | 3 << 16 | 7, 0]),
            Command::MapCollection {
                collection: 7,
                vcpu: 3,
                valid: true
            }
        );
        assert_eq!(
            decode([0xa | 5 << 32, 2 | 8200 << 32, 7, 0]),
            Command::MapEvent {
                device: 5,
                event: 2,
                intid: 8200,
                collection: 7
            }
        );
        assert_eq!(
            decode([0xb | 5 << 32, 8193, 7, 0]),
            Command::MapEvent {
                device: 5,
                event: 8193,
                intid: 8193,
                collection: 7
            }
        );
        assert_eq!(
            decode([0xe, 0, 1 << 16, 2 << 16]),
            Command::MoveAll { from: 1, to: 2 }
        );
        assert_eq!(decode([0, 0, 0, 0]), Command::Unknown(0));
    }

    proptest! {
        #[test]
        fn anything_decodes(words: [u64; 4]) {
            let _ = Command::decode(words);
        }
    }
}
