//! Memory attributes: what stage 1 says, what stage 2 says, and what comes of both.
//!
//! Two encodings lead in (MAIR_ELx bytes, stage-2 MemAttr with or without FEAT_S2FWB) and one leads
//! out (PAR_EL1.ATTR and SH). In between they are values, so that combining is a handful of
//! comparisons in the order of the manual (Arm ARM D8.6, S2CombineS1MemAttrs).
//!
//! Reserved encodings are CONSTRAINED UNPREDICTABLE; here they read as the strictest there is:
//! Device-nGnRnE, non-cacheable, outer shareable.

use umbra_arm64::Descriptor;

use crate::layout::bits;

/// A type of device memory, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types, reason = "the architecture's own names")]
pub enum Device {
    /// No gathering, no reordering, no early acknowledgement.
    nGnRnE,
    /// No gathering, no reordering.
    nGnRE,
    /// No gathering.
    nGRE,
    /// Gathering and reordering.
    GRE,
}

impl Device {
    const fn decode(two_bits: u64) -> Device {
        match two_bits & 3 {
            0 => Device::nGnRnE,
            1 => Device::nGnRE,
            2 => Device::nGRE,
            _ => Device::GRE,
        }
    }
}

/// How caches of one shareability domain treat a location, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// Not cached.
    NonCacheable,
    /// Write-through.
    WriteThrough,
    /// Write-back.
    WriteBack,
}

/// A policy with its hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cacheability {
    /// The policy.
    pub policy: Policy,
    /// Bit 1: allocate on reads; bit 0: allocate on writes. Zero for non-cacheable memory.
    pub allocate: u8,
    /// The allocation is transient. False for non-cacheable memory.
    pub transient: bool,
}

impl Cacheability {
    /// Not cached.
    pub const NON_CACHEABLE: Cacheability = Cacheability {
        policy: Policy::NonCacheable,
        allocate: 0,
        transient: false,
    };
    /// Write-back, allocating on reads and writes.
    pub const WRITE_BACK: Cacheability = Cacheability {
        policy: Policy::WriteBack,
        allocate: 0b11,
        transient: false,
    };

    const fn decode(nibble: u64) -> Cacheability {
        if nibble & 0xf == 0b0100 {
            return Cacheability::NON_CACHEABLE;
        }
        Cacheability {
            policy: if nibble & 0b0100 == 0 {
                Policy::WriteThrough
            } else {
                Policy::WriteBack
            },
            allocate: nibble as u8 & 3,
            transient: nibble & 0b1000 == 0,
        }
    }

    const fn encode(self) -> u8 {
        let persistent = if self.transient { 0 } else { 0b1000 };
        match self.policy {
            Policy::NonCacheable => 0b0100,
            Policy::WriteThrough => persistent | self.allocate,
            Policy::WriteBack => persistent | 0b0100 | self.allocate,
        }
    }

    /// The weaker policy; hints are those of stage 1 (`self`).
    fn limited_to(self, other: Policy) -> Cacheability {
        match self.policy.min(other) {
            Policy::NonCacheable => Cacheability::NON_CACHEABLE,
            policy => Cacheability { policy, ..self },
        }
    }

    /// Write-back whatever it was, with the hints of stage 1 where that cached at all.
    const fn forced(self) -> Cacheability {
        match self.policy {
            Policy::NonCacheable => Cacheability::WRITE_BACK,
            Policy::WriteThrough | Policy::WriteBack => Cacheability {
                policy: Policy::WriteBack,
                ..self
            },
        }
    }
}

/// What kind of memory a location is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Device.
    Device(Device),
    /// Normal.
    Normal {
        /// Outer cacheability.
        outer: Cacheability,
        /// Inner cacheability.
        inner: Cacheability,
    },
}

impl Memory {
    /// Normal, not cached.
    pub const NON_CACHEABLE: Memory = Memory::Normal {
        outer: Cacheability::NON_CACHEABLE,
        inner: Cacheability::NON_CACHEABLE,
    };
    /// Normal, write-back.
    pub const WRITE_BACK: Memory = Memory::Normal {
        outer: Cacheability::WRITE_BACK,
        inner: Cacheability::WRITE_BACK,
    };

    const fn is_device(self) -> bool {
        matches!(self, Memory::Device(_))
    }
}

/// Who sees a location coherently, the fewest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shareability {
    /// One processing element.
    Non,
    /// The inner domain.
    Inner,
    /// The outer domain.
    Outer,
}

impl Shareability {
    /// From a two-bit SH field.
    pub const fn decode(two_bits: u64) -> Shareability {
        match two_bits & 3 {
            0b00 => Shareability::Non,
            0b11 => Shareability::Inner,
            _ => Shareability::Outer,
        }
    }

    const fn encode(self) -> u8 {
        match self {
            Shareability::Non => 0b00,
            Shareability::Inner => 0b11,
            Shareability::Outer => 0b10,
        }
    }
}

/// Memory attributes after stage 1, or after both stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// The kind of memory.
    pub memory: Memory,
    /// The shareability the tables give; device and uncached memory are outer shareable all the same.
    pub shareability: Shareability,
    /// FEAT_XS: accesses may take long. Reported only where the feature is shown.
    pub xs: bool,
}

impl Attributes {
    /// What memory is while stage 1 is off.
    pub const OFF: Attributes = Attributes {
        memory: Memory::Device(Device::nGnRnE),
        shareability: Shareability::Outer,
        xs: true,
    };
    /// What memory is while stage 1 is off under HCR_EL2.DC.
    pub const DEFAULT_CACHEABLE: Attributes = Attributes {
        memory: Memory::WRITE_BACK,
        shareability: Shareability::Non,
        xs: false,
    };

    /// What a fetch makes of these attributes of the stage 1 that is off: it never sees device
    /// memory, and without HCR_EL2.DC it may be cached write-through (SCTLR_ELx.I).
    pub(crate) const fn as_fetched_flat(self, cached: bool) -> Attributes {
        const THROUGH: Cacheability = Cacheability::decode(0b1010);
        match self.memory {
            Memory::Normal { .. } => self,
            Memory::Device(_) if cached => Attributes {
                memory: Memory::Normal {
                    outer: THROUGH,
                    inner: THROUGH,
                },
                ..self
            },
            Memory::Device(_) => Attributes {
                memory: Memory::NON_CACHEABLE,
                ..self
            },
        }
    }

    /// A byte of MAIR_ELx with the shareability of the descriptor (Arm ARM MAIR_EL1;
    /// S1DecodeMemAttrs). `xs` is FEAT_XS; FEAT_MTE is never shown.
    pub fn from_mair(byte: u64, shareability: Shareability, xs: bool) -> Attributes {
        let byte = byte & 0xff;
        let (memory, slow) = match (byte >> 4, byte & 0xf) {
            (0, low) if low & 3 == 0 => (Memory::Device(Device::decode(low >> 2)), true),
            (0, low) if low & 3 == 1 && xs => (Memory::Device(Device::decode(low >> 2)), false),
            (0b0100, 0) if xs => (Memory::NON_CACHEABLE, false),
            (0b1010, 0) if xs => {
                let through = Cacheability::decode(0b1010);
                let (outer, inner) = (through, through);
                (Memory::Normal { outer, inner }, false)
            }
            (0, _) | (_, 0) => (Memory::Device(Device::nGnRnE), true),
            (high, low) => {
                let (outer, inner) = (Cacheability::decode(high), Cacheability::decode(low));
                let write_back =
                    outer.policy == Policy::WriteBack && inner.policy == Policy::WriteBack;
                (Memory::Normal { outer, inner }, !write_back)
            }
        };
        Attributes {
            memory,
            shareability,
            xs: slow,
        }
    }

    /// The same with the data cache off (SCTLR_ELx.C = 0): normal memory is not cached.
    pub(crate) const fn with_cache_off(self) -> Attributes {
        match self.memory {
            Memory::Device(_) => self,
            Memory::Normal { .. } => Attributes {
                memory: Memory::NON_CACHEABLE,
                shareability: Shareability::Outer,
                ..self
            },
        }
    }

    /// PAR_EL1.ATTR and PAR_EL1.SH (EncodePARAttrs, PAREncodeShareability). `xs` is FEAT_XS.
    pub fn encode_par(self, xs: bool) -> (u8, u8) {
        let quick = xs && !self.xs;
        match self.memory {
            Memory::Device(device) => (
                (device as u8) << 2 | quick as u8,
                Shareability::Outer.encode(),
            ),
            Memory::NON_CACHEABLE => {
                let attr = if quick { 0b0100_0000 } else { 0b0100_0100 };
                (attr, Shareability::Outer.encode())
            }
            Memory::Normal { outer, inner } => {
                let through = outer.encode() == 0b1010 && inner.policy == Policy::WriteThrough;
                let attr = if quick && through {
                    0b1010_0000
                } else {
                    outer.encode() << 4 | inner.encode()
                };
                (attr, self.shareability.encode())
            }
        }
    }
}

/// How the stage-2 attributes of a descriptor are to be read, from the control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage2Form {
    /// HCR_EL2.FWB.
    pub(crate) fwb: bool,
    /// HCR_EL2.CD is clear.
    pub(crate) cacheable: bool,
    /// The one shareability of all leaves, where descriptors have no room for it (DS).
    pub(crate) common_sh: Option<Shareability>,
    /// FEAT_XS: bit 11 is FnXS.
    pub(crate) xs: bool,
}

impl Stage2Form {
    pub(crate) fn decode(&self, descriptor: Descriptor) -> Stage2Attributes {
        let raw = descriptor.raw();
        Stage2Attributes {
            fwb: self.fwb,
            cacheable: self.cacheable,
            memattr: bits(raw, 5, 2) as u8,
            shareability: self
                .common_sh
                .unwrap_or(Shareability::decode(bits(raw, 9, 8))),
            fnxs: self.xs && raw >> 11 & 1 != 0,
        }
    }
}

/// Memory attributes of a stage-2 leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stage2Attributes {
    /// MemAttr is to be read by the rules of FEAT_S2FWB.
    pub fwb: bool,
    /// False if HCR_EL2.CD makes all normal memory non-cacheable.
    pub cacheable: bool,
    /// MemAttr\[3:0\].
    pub memattr: u8,
    /// Shareability.
    pub shareability: Shareability,
    /// FnXS: the XS attribute is cleared.
    pub fnxs: bool,
}

const fn stage2_policy(two_bits: u8) -> Policy {
    match two_bits & 3 {
        0b11 => Policy::WriteBack,
        0b10 => Policy::WriteThrough,
        _ => Policy::NonCacheable,
    }
}

impl Stage2Attributes {
    /// Whether this stage makes the memory device memory, whatever stage 1 says.
    pub const fn is_device(self) -> bool {
        if self.fwb {
            self.memattr & 0b0100 == 0
        } else {
            self.memattr & 0b1100 == 0
        }
    }

    /// What stage 1's `first` and this stage make together (Arm ARM D8.6.5 to D8.6.7).
    pub fn combine(self, first: Attributes) -> Attributes {
        let combined = if self.fwb {
            self.combine_forced(first)
        } else {
            self.combine_weakest(first)
        };
        let shareability = first.shareability.max(self.shareability);
        match combined.memory {
            Memory::NON_CACHEABLE | Memory::Device(_) => Attributes {
                shareability: Shareability::Outer,
                ..combined
            },
            Memory::Normal { .. } => Attributes {
                shareability,
                ..combined
            },
        }
    }

    fn device(self) -> Device {
        Device::decode(self.memattr as u64)
    }

    /// Without FEAT_S2FWB: the stricter of the two.
    fn combine_weakest(self, first: Attributes) -> Attributes {
        let memory = match (first.memory, self.is_device()) {
            (Memory::Device(device), true) => Memory::Device(device.min(self.device())),
            (Memory::Device(device), false) => Memory::Device(device),
            (Memory::Normal { .. }, true) => Memory::Device(self.device()),
            (Memory::Normal { outer, inner }, false) => {
                let cap = |two_bits| {
                    if self.cacheable {
                        stage2_policy(two_bits)
                    } else {
                        Policy::NonCacheable
                    }
                };
                Memory::Normal {
                    outer: outer.limited_to(cap(self.memattr >> 2)),
                    inner: inner.limited_to(cap(self.memattr)),
                }
            }
        };
        let xs = first.xs && !self.fnxs;
        Attributes {
            memory,
            xs,
            ..first
        }
    }

    /// With FEAT_S2FWB: MemAttr\[1:0\] may override stage 1.
    fn combine_forced(self, first: Attributes) -> Attributes {
        let combined = match (self.is_device(), self.memattr & 3, first.memory) {
            (true, _, Memory::Device(device)) => Attributes {
                memory: Memory::Device(device.min(self.device())),
                ..first
            },
            (true, _, Memory::Normal { .. }) => Attributes {
                memory: Memory::Device(self.device()),
                ..first
            },
            (false, 0b11, _) => first,
            (false, 0b10, memory) => Attributes {
                memory: match memory {
                    Memory::Normal { outer, inner } => Memory::Normal {
                        outer: outer.forced(),
                        inner: inner.forced(),
                    },
                    Memory::Device(_) => Memory::WRITE_BACK,
                },
                xs: false,
                ..first
            },
            (false, _, Memory::Device(_)) => first,
            (false, _, Memory::Normal { .. }) => Attributes {
                memory: Memory::NON_CACHEABLE,
                ..first
            },
        };
        let memory = if self.cacheable || combined.memory.is_device() {
            combined.memory
        } else {
            Memory::NON_CACHEABLE
        };
        Attributes {
            memory,
            xs: combined.xs && !self.fnxs,
            ..combined
        }
    }
}
