//! The plugin's file: a record of 64 bytes for each exit of a guest, with what it cost until the next
//! entry, and for each mark that a guest made. `qemu-plugin/src/count.rs` writes them.

use anyhow::{Result, bail};

const MAGIC: &[u8; 8] = b"umbexit2";
const WORDS: usize = 8;

/// Below this physical address of a VM there are devices; from it on, RAM.
const RAM: u64 = 0x8000_0000;

/// What made a guest exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// WFI or WFE.
    Wait,
    /// HVC.
    Hypercall,
    /// SMC.
    Firmware,
    /// A system register or instruction.
    Register,
    /// ERET of a guest hypervisor.
    Return,
    /// An access to an address below RAM.
    Device,
    /// A data abort on memory.
    Data,
    /// An instruction abort.
    Fetch,
    /// A use of FP, SIMD or SVE.
    Fp,
    /// An interrupt.
    Interrupt,
    /// An SError interrupt.
    SError,
    /// Any other exception class.
    Other(u8),
}

impl Cause {
    fn of(vector: u64, esr: u64, hpfar: u64) -> Self {
        match vector {
            1 | 2 => return Self::Interrupt,
            3 => return Self::SError,
            _ => {}
        }
        let page = (hpfar >> 4 & 0xff_ffff_ffff) << 12;
        match esr >> 26 & 0x3f {
            0x01 => Self::Wait,
            0x07 | 0x19 => Self::Fp,
            0x12 | 0x16 => Self::Hypercall,
            0x13 | 0x17 => Self::Firmware,
            0x18 => Self::Register,
            0x1a => Self::Return,
            0x20 => Self::Fetch,
            0x24 if page < RAM => Self::Device,
            0x24 => Self::Data,
            class => Self::Other(class as u8),
        }
    }
}

/// Instructions and memory accesses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Instructions.
    pub(crate) instructions: u64,
    /// Memory accesses.
    pub(crate) accesses: u64,
}

/// An exit, up to the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Why.
    pub(crate) cause: Cause,
    /// The guest was at virtual EL2 (HCR_EL2.NV was set).
    pub(crate) from_virtual_el2: bool,
    /// What is entered next is at virtual EL2.
    pub(crate) to_virtual_el2: bool,
    /// Instructions of the guest before it.
    pub(crate) guest: u64,
    /// The hypervisor's share, at EL2.
    pub(crate) host: Cost,
    /// That of programs at EL0: the VMM.
    pub(crate) user: Cost,
}

impl Exit {
    /// Instructions of hypervisor and VMM.
    pub(crate) fn instructions(&self) -> u64 {
        self.host.instructions + self.user.instructions
    }

    /// Memory accesses of hypervisor and VMM.
    pub(crate) fn accesses(&self) -> u64 {
        self.host.accesses + self.user.accesses
    }
}

/// A whole run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Records {
    /// Instructions from power-on to the first entry of a guest, EL0's included.
    pub(crate) until_guest: Option<u64>,
    /// Wall time of the emulator until then, in seconds.
    pub(crate) seconds_until_guest: f64,
    /// Exits, cut at the marks: the first part is what came before the first mark.
    pub(crate) phases: Vec<Vec<Exit>>,
}

impl Records {
    /// Reads a file of the plugin.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            bail!("not a file of this version's plugin");
        };
        if rest.len() % (WORDS * 8) != 0 {
            bail!("the plugin's file ends in the middle of a record");
        }
        let mut records = Self {
            until_guest: None,
            seconds_until_guest: 0.0,
            phases: vec![Vec::new()],
        };
        for record in rest.chunks_exact(WORDS * 8) {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(record.chunks_exact(8)) {
                *word = bytes
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
            records.take(words)?;
        }
        Ok(records)
    }

    fn take(&mut self, words: [u64; WORDS]) -> Result<()> {
        let [
            kind,
            esr,
            hpfar,
            guest,
            instructions,
            accesses,
            user,
            user_accesses,
        ] = words;
        match kind & 0xff {
            0 => {
                let exit = Exit {
                    cause: Cause::of(kind >> 16 & 0xff, esr, hpfar),
                    from_virtual_el2: kind >> 24 & 1 != 0,
                    to_virtual_el2: kind >> 25 & 1 != 0,
                    guest,
                    host: Cost {
                        instructions,
                        accesses,
                    },
                    user: Cost {
                        instructions: user,
                        accesses: user_accesses,
                    },
                };
                if let Some(phase) = self.phases.last_mut() {
                    phase.push(exit);
                }
            }
            1 => self.phases.push(Vec::new()),
            2 if self.until_guest.is_none() => {
                self.until_guest = Some(instructions + user);
                self.seconds_until_guest = esr as f64 / 1e6;
            }
            // Another vCPU's.
            2 => {}
            other => bail!("the plugin's file has a record of kind {other}, which is unknown here"),
        }
        Ok(())
    }

    /// The exits between the two marks of the measurement of this number, if the guest came that far.
    pub(crate) fn measured(&self, number: usize) -> Option<&[Exit]> {
        let (begun, ended) = (number * 2 + 1, number * 2 + 2);
        self.phases.get(ended)?;
        self.phases.get(begun).map(Vec::as_slice)
    }

    /// Every exit.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Exit> {
        self.phases.iter().flatten()
    }
}

/// The middle of `values`; `None` of nothing.
pub(crate) fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: &[[u64; WORDS]]) -> Vec<u8> {
        let words = records.iter().flatten().flat_map(|word| word.to_le_bytes());
        MAGIC.iter().copied().chain(words).collect()
    }

    const HVC: u64 = 0x16 << 26;
    const ABORT: u64 = 0x24 << 26;

    #[test]
    fn exits_are_cut_at_marks_and_keep_their_shares() {
        let bytes = file(&[
            [2, 1_500_000, 0, 0, 700, 50, 300, 20],
            [2 | 1 << 8, 1_600_000, 0, 0, 1, 1, 1, 1],
            [0, HVC, 0, 9, 255, 118, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 0],
            [0, ABORT, 0x0900_0000 >> 8, 5, 2000, 900, 233, 80],
            [1 << 16 | 1 << 24, 0, 0, 5, 40, 20, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 0],
        ]);
        let records = Records::decode(&bytes).unwrap();
        assert_eq!(records.until_guest, Some(1000));
        assert_eq!(records.seconds_until_guest, 1.5);
        assert_eq!(records.phases.len(), 3);
        let Some([device, interrupt]) = records.measured(0) else {
            panic!("two exits between the marks");
        };
        assert_eq!(device.cause, Cause::Device);
        assert_eq!((device.instructions(), device.accesses()), (2233, 980));
        assert_eq!(interrupt.cause, Cause::Interrupt);
        assert!(interrupt.from_virtual_el2 && !interrupt.to_virtual_el2);
        assert_eq!(records.all().count(), 3);
        assert!(records.measured(1).is_none());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(Records::decode(b"").is_err());
        assert!(Records::decode(b"umbexit0").is_err());
        assert!(Records::decode(&file(&[])[..]).is_ok());
        let mut cut = file(&[[0; WORDS]]);
        cut.pop();
        assert!(Records::decode(&cut).is_err());
        assert!(Records::decode(&file(&[[9; WORDS]])).is_err());
    }

    #[test]
    fn causes_by_class_vector_and_address() {
        let of = |class: u64, page: u64| Cause::of(0, class << 26, page >> 8);
        assert_eq!(of(0x24, 0x8000_0000), Cause::Data);
        assert_eq!(of(0x24, 0x7fff_f000), Cause::Device);
        assert_eq!(of(0x20, 0), Cause::Fetch);
        assert_eq!(of(0x1a, 0), Cause::Return);
        assert_eq!(of(0x3c, 0), Cause::Other(0x3c));
        assert_eq!(Cause::of(1, HVC, 0), Cause::Interrupt);
        assert_eq!(Cause::of(3, HVC, 0), Cause::SError);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![5, 1, 9]), Some(5));
        assert_eq!(median(vec![4, 1]), Some(4));
    }

    #[test]
    fn it_is_the_plugins_format() {
        let source = include_str!("../../../qemu-plugin/src/count.rs");
        for part in [
            "b\"umbexit2\"",
            "EXIT: u64 = 0",
            "MARK: u64 = 1",
            "FIRST: u64 = 2",
        ] {
            assert!(source.contains(part), "{part}");
        }
    }
}
