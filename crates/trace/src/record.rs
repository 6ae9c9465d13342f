//! One record: when, what, about whom, and six words.

/// Words in a record.
pub const RECORD_WORDS: usize = 8;
/// Bytes in a record: one cache line of most machines.
pub const RECORD_BYTES: usize = RECORD_WORDS * 8;

/// Which storey of the house an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Storey {
    /// umbra itself, for no vCPU in particular.
    Umbra = 0,
    /// A process at EL0.
    Process = 1,
    /// A guest without virtual EL2.
    Guest = 2,
    /// A guest hypervisor at virtual EL2.
    VirtualEl2 = 3,
    /// A guest of a guest hypervisor.
    Nested = 4,
}

impl Storey {
    /// All of them, from below.
    pub const ALL: [Storey; 5] = [
        Storey::Umbra,
        Storey::Process,
        Storey::Guest,
        Storey::VirtualEl2,
        Storey::Nested,
    ];

    /// The storey of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// The second word of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the event (`Description::number`).
    pub kind: u16,
    /// Number of a [`Storey`]; another version may know more of them.
    pub storey: u8,
    /// Id of the vCPU, where the storey is a vCPU's.
    pub vcpu: u16,
    /// Number of its VM: the VMID of its canonical tables, so unique among those that live.
    pub vm: u16,
}

impl Head {
    /// Bits 15:0 kind, 23:16 storey, 47:32 vCPU, 63:48 VM; the rest is zero.
    pub const fn to_word(self) -> u64 {
        self.kind as u64
            | (self.storey as u64) << 16
            | (self.vcpu as u64) << 32
            | (self.vm as u64) << 48
    }

    /// The parts of such a word.
    pub const fn from_word(word: u64) -> Self {
        Self {
            kind: word as u16,
            storey: (word >> 16) as u8,
            vcpu: (word >> 32) as u16,
            vm: (word >> 48) as u16,
        }
    }
}

/// A record, its event not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, in ticks of the physical counter.
    pub time: u64,
    /// What and about whom.
    pub head: Head,
    /// The event's fields, in order; what it does not use is zero.
    pub words: [u64; 6],
}

impl Record {
    /// The record as it lies in a ring.
    pub const fn to_words(self) -> [u64; RECORD_WORDS] {
        let [a, b, c, d, e, f] = self.words;
        [self.time, self.head.to_word(), a, b, c, d, e, f]
    }

    /// What lies in a ring as a record.
    pub const fn from_words(words: [u64; RECORD_WORDS]) -> Self {
        let [time, head, a, b, c, d, e, f] = words;
        Self {
            time,
            head: Head::from_word(head),
            words: [a, b, c, d, e, f],
        }
    }

    /// A record of a file, little-endian.
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let mut words = [0; RECORD_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b));
        }
        Self::from_words(words)
    }
}
