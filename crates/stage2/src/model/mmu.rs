//! The hardware side: a walker and a TLB that caches all it can and forgets only what it is told.
//!
//! Written from the manual (Arm ARM D8.3, D8.16), without a line of the engine's own decoding.

use core::sync::atomic::Ordering::Relaxed;
use std::{collections::HashSet, format, string::String, vec::Vec};

use umbra_arm64::{Granule, Level, Pa, Tag};

use super::{extents::Extent, fake::FakeTables};
use crate::{Geometry, Memory, Rights, Scope, TlbRequest};

/// Which descriptor fields to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Regime {
    /// Stage 2, FWB and XNX.
    Stage2,
    /// EL2&0 stage 1, MAIR indices 0 normal, 1 device, 2 uncached.
    User,
}

/// A cached translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cached {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) level: Level,
    pub(super) pa: u64,
    pub(super) memory: Memory,
    pub(super) rights: Rights,
}

impl Cached {
    fn meets(&self, start: u64, size: u64) -> bool {
        self.start < start + size && start < self.start + self.size
    }

    pub(super) fn extent(&self) -> Extent {
        let Cached {
            start,
            size,
            pa,
            memory,
            rights,
            ..
        } = *self;
        Extent {
            start,
            end: start + size,
            pa,
            memory,
            rights,
        }
    }
}

/// A cached table pointer: `table`, of `level`, translates `size` bytes from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pointer {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) table: Pa,
    pub(super) level: Level,
}

/// What is reachable from the tables right now, or cached from before.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    pub(super) leaves: HashSet<Cached>,
    pub(super) pointers: HashSet<Pointer>,
}

/// One MMU with its TLB.
pub(super) struct Mmu {
    regime: Regime,
    granule: Granule,
    root: Vec<Pointer>,
    tag: Tag,
    pub(super) tlb: Reach,
}

impl Mmu {
    pub(super) fn new(regime: Regime, geometry: Geometry, root: Pa, tag: Tag) -> Self {
        let granule = geometry.granule();
        let size = granule.level_bytes(geometry.start()) * granule.entries() as u64;
        let part = |n: u64| Pointer {
            start: n * size,
            size,
            table: Pa::new(root.raw() + n * granule.bytes()),
            level: geometry.start(),
        };
        let root = (0..geometry.root_tables() as u64).map(part).collect();
        Self {
            regime,
            granule,
            root,
            tag,
            tlb: Reach::default(),
        }
    }

    /// What a walk from the root reaches.
    pub(super) fn reach(&self, tables: &FakeTables) -> Result<Reach, String> {
        let mut reach = Reach::default();
        for root in &self.root {
            self.walk(*root, tables, &mut reach)?;
        }
        Ok(reach)
    }

    /// Caches all that can be reached, from the root and through cached pointers.
    pub(super) fn cache_everything(&mut self, tables: &FakeTables) -> Result<(), String> {
        let mut found = self.reach(tables)?;
        for pointer in &self.tlb.pointers {
            self.walk(*pointer, tables, &mut found)?;
        }
        for new in found.leaves {
            if self.tlb.leaves.contains(&new) {
                continue;
            }
            let clash = self.tlb.leaves.iter().find(|old| {
                old.meets(new.start, new.size)
                    && (old.size != new.size || old.pa != new.pa || old.memory != new.memory)
            });
            if let Some(old) = clash {
                return Err(format!("no break before make: {old:x?} and {new:x?}"));
            }
            if let Some(old) = self
                .tlb
                .pointers
                .iter()
                .find(|old| is_instead_of(&new, old))
            {
                return Err(format!(
                    "no break before make: table {old:x?} and leaf {new:x?}"
                ));
            }
            self.tlb.leaves.insert(new);
        }
        for new in found.pointers {
            if self.tlb.pointers.contains(&new) {
                continue;
            }
            let clash = self
                .tlb
                .pointers
                .iter()
                .find(|old| (old.start, old.level) == (new.start, new.level));
            if let Some(old) = clash {
                return Err(format!("no break before make: {old:x?} and {new:x?}"));
            }
            if let Some(old) = self.tlb.leaves.iter().find(|old| is_instead_of(old, &new)) {
                return Err(format!(
                    "no break before make: leaf {old:x?} and table {new:x?}"
                ));
            }
            self.tlb.pointers.insert(new);
        }
        Ok(())
    }

    fn walk(&self, at: Pointer, tables: &FakeTables, reach: &mut Reach) -> Result<(), String> {
        let entries = tables
            .hardware_view(at.table)
            .ok_or_else(|| format!("a freed table is walked: {at:x?}"))?;
        let size = at.size / self.granule.entries() as u64;
        for (index, slot) in entries.iter().enumerate() {
            let (word, start) = (slot.load(Relaxed), at.start + index as u64 * size);
            let pa = word & 0x0000_ffff_ffff_f000;
            match (word & 0b11, at.level) {
                (0b11, Level::L3) | (0b01, Level::L1 | Level::L2) => {
                    let (memory, rights) = self.attributes(word);
                    reach.leaves.insert(Cached {
                        start,
                        size,
                        level: at.level,
                        pa,
                        memory,
                        rights,
                    });
                }
                (0b11, _) => {
                    let level = at.level.next().ok_or("a table below level 3")?;
                    let pointer = Pointer {
                        start,
                        size,
                        table: Pa::new(pa),
                        level,
                    };
                    reach.pointers.insert(pointer);
                    self.walk(pointer, tables, reach)?;
                }
                (0b01, _) => {
                    return Err(format!(
                        "reserved descriptor {word:#x} at level {:?}",
                        at.level
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn attributes(&self, word: u64) -> (Memory, Rights) {
        let bit = |n: u32| word >> n & 1 == 1;
        match self.regime {
            Regime::Stage2 => {
                let memory = match word >> 2 & 0xf {
                    0b0110 => Memory::Normal,
                    0b0101 => Memory::Uncached,
                    _ => Memory::Device,
                };
                // XN[1] says whether the two differ from "all"; XN[0] inverts it for EL1.
                let (exec_el0, exec_el1) = (!bit(54), bit(54) == bit(53));
                (
                    memory,
                    Rights {
                        read: bit(6),
                        write: bit(7),
                        exec_el0,
                        exec_el1,
                    },
                )
            }
            Regime::User => {
                let memory =
                    [Memory::Normal, Memory::Device, Memory::Uncached][(word >> 2 & 0b11) as usize];
                (
                    memory,
                    Rights {
                        read: bit(6),
                        write: bit(6) && !bit(7),
                        exec_el0: !bit(54),
                        exec_el1: !bit(53),
                    },
                )
            }
        }
    }

    pub(super) fn invalidate(&mut self, request: &TlbRequest) {
        if request.tag != self.tag {
            return;
        }
        match request.scope {
            Scope::All => self.tlb = Reach::default(),
            Scope::Range {
                addr,
                bytes,
                level: hint,
                leaf_only,
            } => {
                // The hint is a promise about the leaves. Hardware may use it to look nowhere else.
                self.tlb.leaves.retain(|leaf| {
                    !leaf.meets(addr, bytes) || hint.is_some_and(|level| level != leaf.level)
                });
                if !leaf_only && hint.is_none() {
                    self.tlb
                        .pointers
                        .retain(|old| old.start + old.size <= addr || addr + bytes <= old.start);
                }
            }
        }
    }
}

/// Whether the leaf stands where the table does, or above it.
fn is_instead_of(leaf: &Cached, table: &Pointer) -> bool {
    leaf.size >= table.size && leaf.meets(table.start, table.size)
}
