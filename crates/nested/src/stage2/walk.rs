//! The walk of a guest hypervisor's stage 2.

use umbra_arm64::{Descriptor, FaultKind, Ipa, L2Ipa, Level, Rights, Translation};

use super::Stage2Config;
use crate::attributes::Stage2Attributes;
use crate::descend::{ATTEMPTS, Leaf, Purpose, Tables, fault};
use crate::layout::ones;
use crate::memory::GuestMemory;
use crate::stop::Stop;

/// What an address of stage 2 is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch at EL0.
    FetchEl0,
    /// A fetch at EL1.
    FetchEl1,
    /// The read of a stage-1 descriptor: a data access, even when a fetch caused the walk.
    WalkRead,
    /// The same on behalf of an AT.
    AtWalkRead,
    /// The atomic update of a stage-1 descriptor.
    WalkUpdate,
    /// AT for a read.
    AtRead,
    /// AT for a write: it never marks anything dirty.
    AtWrite,
    /// A look that changes nothing and forbids nothing: for mapping a neighbour in advance. Rights
    /// and access flag are reported as they are.
    Probe,
}

impl Access {
    const fn is_walk(self) -> bool {
        matches!(
            self,
            Access::WalkRead | Access::AtWalkRead | Access::WalkUpdate
        )
    }

    const fn marks_dirty(self) -> bool {
        matches!(self, Access::Write | Access::WalkUpdate)
    }

    const fn may_stay_unmarked(self) -> bool {
        matches!(
            self,
            Access::AtRead | Access::AtWrite | Access::AtWalkRead | Access::Probe
        )
    }

    /// Whether `rights` suffice.
    const fn is_permitted(self, rights: Rights) -> bool {
        match self {
            Access::Read | Access::WalkRead | Access::AtWalkRead | Access::AtRead => rights.read,
            Access::Write | Access::AtWrite => rights.write,
            Access::WalkUpdate => rights.read && rights.write,
            Access::FetchEl0 => rights.exec_el0,
            Access::FetchEl1 => rights.exec_el1,
            Access::Probe => true,
        }
    }
}

/// A successful walk of stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Output, size, level. `rights` are those that need no further walk: a leaf that is writable
    /// but clean (DBM) is not reported as writable until a walk for a write marked it.
    pub translation: Translation<Ipa>,
    /// Memory attributes of this stage; `None` where stage 2 is off.
    pub attributes: Option<Stage2Attributes>,
    /// Where the leaf's descriptor stands; `None` where stage 2 is off.
    pub descriptor: Option<Ipa>,
}

const DBM: u64 = 1 << 51;
const WRITE: u64 = 1 << 7;

pub(super) fn rights(descriptor: Descriptor, config: &Stage2Config) -> Rights {
    let (read, write) = descriptor.s2ap();
    let (exec_el0, exec_el1) = descriptor.s2xn(config.xnx);
    Rights {
        read,
        write,
        exec_el0,
        exec_el1,
    }
}

/// Walks the tables of `config` for `input` (Arm ARM AArch64.S2Translate).
///
/// Faults, in the manual's order: a bad configuration or an input beyond the input size
/// (translation, level 0); those of the descent; access flag; permission.
pub fn walk(
    config: &Stage2Config,
    input: L2Ipa,
    access: Access,
    memory: &mut impl GuestMemory,
) -> Result<Mapping, Stop> {
    if !config.enabled {
        return Ok(identity(input));
    }
    let root = config
        .root
        .filter(|root| input.raw() & !ones(root.input_bits) == 0)
        .ok_or(fault(FaultKind::Translation, Level::L0))?;
    let mut tables = Direct { memory };
    for _ in 0..ATTEMPTS {
        let leaf = root.descend(input.raw(), Purpose::Access, &mut tables, |_| ())?;
        let marked = judge(config, &leaf, access)?;
        if marked == leaf.descriptor || root.mark(&leaf, marked, Purpose::Access, &mut tables)? {
            return Ok(mapping(config, &leaf, marked));
        }
    }
    if access.may_stay_unmarked() {
        let leaf = root.descend(input.raw(), Purpose::Access, &mut tables, |_| ())?;
        judge(config, &leaf, access)?;
        return Ok(mapping(config, &leaf, leaf.descriptor));
    }
    Err(Stop::Contended)
}

/// What the descriptor of `leaf` must read for `access` to go ahead, or the fault.
fn judge(config: &Stage2Config, leaf: &Leaf<Ipa>, access: Access) -> Result<Descriptor, Stop> {
    let descriptor = leaf.descriptor;
    if access == Access::Probe {
        return Ok(descriptor);
    }
    if !descriptor.accessed() && !config.ha {
        return Err(fault(FaultKind::AccessFlag, leaf.level).into());
    }
    // With hardware management of dirty state, DBM makes a clean leaf as good as a writable one.
    let dirtyable = config.hd && descriptor.raw() & DBM != 0;
    let dirty = Descriptor::new(descriptor.raw() | WRITE);
    let effective = rights(if dirtyable { dirty } else { descriptor }, config);
    let device = config.attributes.decode(descriptor).is_device();
    let walks_a_device = access.is_walk() && config.protected_walks && device;
    if walks_a_device || !access.is_permitted(effective) {
        return Err(fault(FaultKind::Permission, leaf.level).into());
    }
    let marked = if dirtyable && access.marks_dirty() {
        dirty
    } else {
        descriptor
    };
    Ok(marked.with_accessed())
}

fn mapping(config: &Stage2Config, leaf: &Leaf<Ipa>, descriptor: Descriptor) -> Mapping {
    Mapping {
        translation: Translation {
            output: Ipa::new(leaf.output),
            level: leaf.level,
            leaf_bytes: leaf.leaf_bytes,
            bytes: leaf.bytes,
            rights: rights(descriptor, config),
            accessed: descriptor.accessed(),
        },
        attributes: Some(config.attributes.decode(descriptor)),
        descriptor: Some(leaf.at),
    }
}

/// Stage 2 is off: a guest of the guest hypervisor runs in the VM's own space. There is no leaf, so
/// nothing bounds a mapping; level 0 stands for that.
fn identity(input: L2Ipa) -> Mapping {
    let everything = 1 << 52;
    Mapping {
        translation: Translation {
            output: Ipa::new(input.raw()),
            level: Level::L0,
            leaf_bytes: everything,
            bytes: everything,
            rights: Rights::ALL,
            accessed: true,
        },
        attributes: None,
        descriptor: None,
    }
}

/// Tables that lie in the VM's own space.
struct Direct<'a, M> {
    memory: &'a mut M,
}

impl<M: GuestMemory> Tables for Direct<'_, M> {
    type Space = Ipa;
    type Stop = Stop;

    fn read(&mut self, at: Ipa, level: Level, _: Purpose) -> Result<u64, Stop> {
        self.memory
            .read_u64(at)
            .map_err(|error| Stop::Memory { at, level, error })
    }

    fn replace(
        &mut self,
        at: Ipa,
        level: Level,
        _: Purpose,
        (old, new): (u64, u64),
    ) -> Result<bool, Stop> {
        self.memory
            .compare_exchange_u64(at, old, new)
            .map(|outcome| outcome.is_ok())
            .map_err(|error| Stop::Memory { at, level, error })
    }
}
