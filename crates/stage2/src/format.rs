//! How the attributes of a mapping are written into a leaf descriptor.
//!
//! Two formats share the engine: stage 2 of a VM (`S2`) and stage 1 of a process at EL0 under EL2
//! (`El20`). They agree on everything the engine itself decides (valid bit, type bit, output address,
//! access flag, software bits) and differ in the rest, so a format is an encoder and a decoder of
//! `Attrs` and nothing more (Arm ARM D8.3.2, D8.5.5).

use umbra_arm64::Rights;

use crate::entry::{AF, PARKED, SOFTWARE_SHIFT};

/// What memory is, for caching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Normal, write-back, inner shareable.
    Normal,
    /// Normal, not cached.
    Uncached,
    /// Device-nGnRE.
    Device,
}

/// Everything a leaf says besides its output address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attrs {
    /// Cacheability.
    pub memory: Memory,
    /// Permissions.
    pub rights: Rights,
    /// The access flag. Hardware sets it too, if it manages the flag.
    pub accessed: bool,
    /// Four bits that hardware ignores (descriptor bits 58 to 55), for the owner of the table.
    pub software: u8,
}

impl Attrs {
    /// Normal memory with `rights`, accessed, no software bits.
    pub const fn normal(rights: Rights) -> Attrs {
        Attrs {
            memory: Memory::Normal,
            rights,
            accessed: true,
            software: 0,
        }
    }

    /// Device memory with `rights`, accessed, no software bits.
    pub const fn device(rights: Rights) -> Attrs {
        Attrs {
            memory: Memory::Device,
            rights,
            accessed: true,
            software: 0,
        }
    }
}

/// A leaf descriptor's attribute fields.
pub trait Format: Copy {
    /// The attribute bits of `attrs`: everything but valid bit, type bit and output address.
    /// `None` where this format cannot say it; nothing is rounded.
    fn encode(&self, attrs: Attrs) -> Option<u64>;

    /// Inverse of `encode`, for a descriptor that `encode` made.
    fn decode(&self, descriptor: u64) -> Attrs;
}

const SH_INNER: u64 = 0b11 << 8;

fn common(attrs: Attrs) -> Option<u64> {
    if attrs.software >= 16 {
        return None;
    }
    Some((attrs.software as u64) << SOFTWARE_SHIFT | if attrs.accessed { AF } else { 0 } | SH_INNER)
}

fn software(descriptor: u64) -> u8 {
    (descriptor >> SOFTWARE_SHIFT & 0xf) as u8
}

/// Stage 2 with FEAT_S2FWB: MemAttr names the final type, whatever the guest's stage 1 says
/// (Arm ARM D8.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S2 {
    /// FEAT_XNX: fetches at EL0 and EL1 are permitted separately. Without it they must be equal.
    pub xnx: bool,
}

const S2_MEMATTR_SHIFT: u32 = 2;
const S2_READ: u64 = 1 << 6;
const S2_WRITE: u64 = 1 << 7;
const S2_XN_SHIFT: u32 = 53;

impl Format for S2 {
    fn encode(&self, attrs: Attrs) -> Option<u64> {
        let Rights {
            read,
            write,
            exec_el0,
            exec_el1,
        } = attrs.rights;
        let memattr = match attrs.memory {
            Memory::Normal => 0b0110,
            Memory::Uncached => 0b0101,
            Memory::Device => 0b0001,
        };
        let xn = match (exec_el0, exec_el1) {
            (true, true) => 0b00,
            (false, false) => 0b10,
            (true, false) if self.xnx => 0b01,
            (false, true) if self.xnx => 0b11,
            _ => return None,
        };
        Some(
            common(attrs)?
                | memattr << S2_MEMATTR_SHIFT
                | if read { S2_READ } else { 0 }
                | if write { S2_WRITE } else { 0 }
                | xn << S2_XN_SHIFT,
        )
    }

    fn decode(&self, descriptor: u64) -> Attrs {
        let (exec_el0, exec_el1) = match descriptor >> S2_XN_SHIFT & 0b11 {
            0b00 => (true, true),
            0b01 => (true, false),
            0b10 => (false, false),
            _ => (false, true),
        };
        Attrs {
            memory: match descriptor >> S2_MEMATTR_SHIFT & 0b1111 {
                0b0110 => Memory::Normal,
                0b0101 => Memory::Uncached,
                _ => Memory::Device,
            },
            rights: Rights {
                read: descriptor & S2_READ != 0,
                write: descriptor & S2_WRITE != 0,
                exec_el0,
                exec_el1,
            },
            accessed: descriptor & AF != 0,
            software: software(descriptor),
        }
    }
}

/// Stage 1 of the EL2&0 regime, pages of EL0 only: non-global, never executable at EL2.
///
/// A mapping without read permission cannot be said by a valid descriptor that EL0 may use. It is
/// *parked*: invalid to hardware, so that EL2's own copies fault on it too, but still a leaf to the
/// engine, with its output and attributes (what `mprotect(PROT_NONE)` needs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El20 {
    /// Index into MAIR_EL2 of Normal write-back memory.
    pub normal: u8,
    /// Index into MAIR_EL2 of Normal non-cacheable memory.
    pub uncached: u8,
    /// Index into MAIR_EL2 of Device-nGnRE memory.
    pub device: u8,
}

const S1_ATTR_SHIFT: u32 = 2;
const S1_EL0: u64 = 1 << 6;
const S1_READ_ONLY: u64 = 1 << 7;
const S1_NOT_GLOBAL: u64 = 1 << 11;
const S1_PXN: u64 = 1 << 53;
const S1_UXN: u64 = 1 << 54;

impl Format for El20 {
    fn encode(&self, attrs: Attrs) -> Option<u64> {
        let Rights {
            read,
            write,
            exec_el0,
            exec_el1,
        } = attrs.rights;
        if exec_el1 || (!read && (write || exec_el0)) {
            return None;
        }
        let index = match attrs.memory {
            Memory::Normal => self.normal,
            Memory::Uncached => self.uncached,
            Memory::Device => self.device,
        };
        Some(
            common(attrs)?
                | ((index & 7) as u64) << S1_ATTR_SHIFT
                | S1_EL0
                | if write { 0 } else { S1_READ_ONLY }
                | S1_NOT_GLOBAL
                | S1_PXN
                | if exec_el0 { 0 } else { S1_UXN }
                | if read { 0 } else { PARKED },
        )
    }

    fn decode(&self, descriptor: u64) -> Attrs {
        let index = (descriptor >> S1_ATTR_SHIFT & 7) as u8;
        Attrs {
            memory: if index == self.normal & 7 {
                Memory::Normal
            } else if index == self.uncached & 7 {
                Memory::Uncached
            } else {
                Memory::Device
            },
            rights: if descriptor & PARKED != 0 {
                Rights::NONE
            } else {
                Rights {
                    read: true,
                    write: descriptor & S1_READ_ONLY == 0,
                    exec_el0: descriptor & S1_UXN == 0,
                    exec_el1: false,
                }
            },
            accessed: descriptor & AF != 0,
            software: software(descriptor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_attrs() -> impl Iterator<Item = Attrs> {
        (0..3 * 16 * 2 * 16u32).map(|n| Attrs {
            memory: [Memory::Normal, Memory::Uncached, Memory::Device][(n % 3) as usize],
            rights: Rights {
                read: (n / 3) & 1 != 0,
                write: (n / 3) & 2 != 0,
                exec_el0: (n / 3) & 4 != 0,
                exec_el1: (n / 3) & 8 != 0,
            },
            accessed: (n / 48) & 1 != 0,
            software: (n / 96) as u8,
        })
    }

    #[test]
    fn what_can_be_said_is_read_back() {
        let (s2, old, user) = (
            S2 { xnx: true },
            S2 { xnx: false },
            El20 {
                normal: 0,
                uncached: 2,
                device: 1,
            },
        );
        for attrs in all_attrs() {
            let same_exec = attrs.rights.exec_el0 == attrs.rights.exec_el1;
            assert_eq!(s2.encode(attrs).map(|bits| s2.decode(bits)), Some(attrs));
            assert_eq!(
                old.encode(attrs).map(|bits| old.decode(bits)),
                same_exec.then_some(attrs)
            );
            let Rights {
                read,
                write,
                exec_el0,
                exec_el1,
            } = attrs.rights;
            let sayable = !exec_el1 && (read || !write && !exec_el0);
            assert_eq!(
                user.encode(attrs).map(|bits| user.decode(bits)),
                sayable.then_some(attrs)
            );
        }
    }

    #[test]
    fn fields_stand_where_the_manual_puts_them() {
        let s2 = S2 { xnx: true };
        let ram = s2.encode(Attrs::normal(Rights {
            exec_el0: true,
            exec_el1: true,
            ..Rights::READ_WRITE
        }));
        // MemAttr 0b0110, S2AP 0b11, SH 0b11, AF, XN 0b00.
        assert_eq!(ram, Some(0b0110 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10));
        let device = s2.encode(Attrs {
            accessed: false,
            software: 0b1001,
            ..Attrs::device(Rights::READ)
        });
        assert_eq!(
            device,
            Some(0b0001 << 2 | 0b01 << 6 | 0b11 << 8 | 0b10 << 53 | 0b1001 << 55)
        );

        let user = El20 {
            normal: 3,
            uncached: 5,
            device: 4,
        };
        let text = user.encode(Attrs::normal(Rights {
            exec_el0: true,
            ..Rights::READ
        }));
        // AttrIndx 3, AP 0b11, SH 0b11, AF, nG, PXN; UXN clear.
        assert_eq!(
            text,
            Some(3 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11 | 1 << 53)
        );
        let data = user.encode(Attrs::normal(Rights::READ_WRITE));
        assert_eq!(
            data,
            Some(3 << 2 | 0b01 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11 | 0b11 << 53)
        );
    }

    #[test]
    fn software_bits_are_four() {
        assert_eq!(
            S2 { xnx: true }.encode(Attrs {
                software: 16,
                ..Attrs::normal(Rights::READ)
            }),
            None
        );
    }
}
