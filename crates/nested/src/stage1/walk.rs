//! The walk of a guest's stage 1.

use umbra_arm64::{Address, Descriptor, FaultKind, Gva, Level, Rights, Translation};

use super::config::{Half, Stage1Config};
use super::permission::{Limits, READ_ONLY, rights};
use crate::attributes::{Attributes, Memory, Shareability};
use crate::descend::{ATTEMPTS, Leaf, Purpose, Root, Tables, fault};
use crate::layout::{bits, ones};
use crate::stop::{Stop, Stop1};

/// What a virtual address is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A fetch.
    Fetch,
}

/// An access to a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What for.
    pub kind: Kind,
    /// By EL0; otherwise by the regime's higher level.
    pub el0: bool,
    /// PSTATE.PAN holds for it. False for AT but the forms that honour PAN.
    pub pan: bool,
    /// Whether it happens at all.
    pub purpose: Purpose,
}

impl Access {
    /// Whether `rights`, those of this access, suffice.
    const fn is_permitted(self, rights: Rights) -> bool {
        match self.kind {
            Kind::Read => rights.read,
            Kind::Write => rights.write,
            Kind::Fetch if self.el0 => rights.exec_el0,
            Kind::Fetch => rights.exec_el1,
        }
    }

    fn is_fetch(self) -> bool {
        self.kind == Kind::Fetch
    }
}

/// A successful walk of stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<A> {
    /// Output, size, level. `rights.read` and `write` are those of the level that asked, PAN included;
    /// `exec_el1` is the regime's higher level, EL2 in EL2&0. A leaf that is writable but clean (DBM)
    /// is not reported as writable until a walk for a write marked it.
    pub translation: Translation<A>,
    /// Memory attributes of this stage.
    pub attributes: Attributes,
}

const DBM: u64 = 1 << 51;

/// Walks the tables of `config`, which lie in `tables`, for `va` (Arm ARM AArch64.S1Translate).
///
/// Faults, in the manual's order: an illegal size, an address beyond it, EL0 kept out, walks
/// disabled (translation, level 0); those of the descent, with those of stage 2 on the way; access
/// flag; permission. With the MMU off only an address beyond the physical address size faults
/// (address size, level 0).
pub fn walk<T: Tables<Stop = Stop1>>(
    config: &Stage1Config,
    va: Gva,
    access: Access,
    tables: &mut T,
) -> Result<Mapping<T::Space>, Stop1> {
    let half = config.half(va);
    if !config.enabled {
        return flat(config, half, va, access);
    }
    let root = half
        .root
        .filter(|root| is_canonical(half, root, va, access.is_fetch()))
        .filter(|_| !(half.walks_disabled || half.el0_faults && access.el0))
        .ok_or(fault(FaultKind::Translation, Level::L0))?;
    let purpose = access.purpose;
    for _ in 0..ATTEMPTS {
        let (leaf, limits) = descend(half, &root, va, purpose, tables)?;
        let marked = judge(config, &leaf, limits, access)?;
        if marked == leaf.descriptor || root.mark(&leaf, marked, purpose, tables)? {
            return Ok(mapping(config, half, &leaf, limits, marked, access));
        }
    }
    if purpose == Purpose::At {
        let (leaf, limits) = descend(half, &root, va, purpose, tables)?;
        judge(config, &leaf, limits, access)?;
        return Ok(mapping(
            config,
            half,
            &leaf,
            limits,
            leaf.descriptor,
            access,
        ));
    }
    Err(Stop::Contended.into())
}

/// Whether the bits of `va` above the input size are as its half demands.
fn is_canonical(half: &Half, root: &Root, va: Gva, fetch: bool) -> bool {
    let above = ones(half.top_bit(fetch) + 1) & !ones(root.input_bits);
    let expected = if half.upper { above } else { 0 };
    va.raw() & above == expected
}

fn descend<T: Tables<Stop = Stop1>>(
    half: &Half,
    root: &Root,
    va: Gva,
    purpose: Purpose,
    tables: &mut T,
) -> Result<(Leaf<T::Space>, Limits), Stop1> {
    let mut limits = Limits::default();
    let leaf = root.descend(va.raw(), purpose, tables, |table| {
        if half.hierarchical {
            limits.add(table);
        }
    })?;
    Ok((leaf, limits))
}

/// Whether hardware management of dirty state makes `leaf` as good as a writable one.
fn is_dirtyable(config: &Stage1Config, leaf: Descriptor) -> bool {
    config.hd && leaf.raw() & DBM != 0
}

fn effective(config: &Stage1Config, leaf: Descriptor) -> Descriptor {
    if is_dirtyable(config, leaf) {
        Descriptor::new(leaf.raw() & !READ_ONLY)
    } else {
        leaf
    }
}

/// What the descriptor of `leaf` must read for `access` to go ahead, or the fault.
fn judge<S>(
    config: &Stage1Config,
    leaf: &Leaf<S>,
    limits: Limits,
    access: Access,
) -> Result<Descriptor, Stop1> {
    let descriptor = leaf.descriptor;
    if access.purpose == Purpose::Probe {
        return Ok(descriptor);
    }
    if !descriptor.accessed() && !config.ha {
        return Err(fault(FaultKind::AccessFlag, leaf.level).into());
    }
    let effective = effective(config, descriptor);
    if !access.is_permitted(rights(config, effective, limits, access)) {
        return Err(fault(FaultKind::Permission, leaf.level).into());
    }
    let marks_dirty = access.kind == Kind::Write && access.purpose == Purpose::Access;
    let marked = if marks_dirty { effective } else { descriptor };
    Ok(marked.with_accessed())
}

fn mapping<A: Address>(
    config: &Stage1Config,
    half: &Half,
    leaf: &Leaf<A>,
    limits: Limits,
    descriptor: Descriptor,
    access: Access,
) -> Mapping<A> {
    let permitted = rights(config, effective(config, descriptor), limits, access);
    Mapping {
        translation: Translation {
            output: A::from_raw(leaf.output),
            level: leaf.level,
            leaf_bytes: leaf.leaf_bytes,
            bytes: leaf.bytes,
            rights: Rights {
                write: permitted.write && descriptor.raw() & READ_ONLY == 0,
                ..permitted
            },
            accessed: descriptor.accessed(),
        },
        attributes: attributes(config, half, descriptor, access),
    }
}

fn attributes(config: &Stage1Config, half: &Half, leaf: Descriptor, access: Access) -> Attributes {
    let raw = leaf.raw();
    let shareability = half
        .common_sh
        .unwrap_or(Shareability::decode(bits(raw, 9, 8)));
    let index = bits(raw, 4, 2) as u32;
    let byte = bits(config.mair, index * 8 + 7, index * 8);
    let attributes = Attributes::from_mair(byte, shareability, config.xs);
    if access.is_fetch() {
        fetched(attributes, config.fetch_cache)
    } else if config.data_cache {
        attributes
    } else {
        attributes.with_cache_off()
    }
}

/// A fetch never sees device memory, and caches only with SCTLR_ELx.I.
fn fetched(attributes: Attributes, cached: bool) -> Attributes {
    match attributes.memory {
        Memory::Normal { .. } if cached => attributes,
        Memory::Normal { .. } | Memory::Device(_) => Attributes {
            memory: Memory::NON_CACHEABLE,
            shareability: Shareability::Outer,
            ..attributes
        },
    }
}

/// The MMU is off (AArch64.S1DisabledOutput). There is no leaf, so nothing bounds a mapping; level 0
/// stands for that.
fn flat<A: Address>(
    config: &Stage1Config,
    half: &Half,
    va: Gva,
    access: Access,
) -> Result<Mapping<A>, Stop1> {
    let address = va.raw() & ones(half.top_bit(access.is_fetch()) + 1);
    if address & !ones(config.pa_bits) != 0 {
        return Err(fault(FaultKind::AddressSize, Level::L0).into());
    }
    let everything = 1 << 52;
    Ok(Mapping {
        translation: Translation {
            output: A::from_raw(address),
            level: Level::L0,
            leaf_bytes: everything,
            bytes: everything,
            rights: Rights::ALL,
            accessed: true,
        },
        attributes: if access.is_fetch() {
            config.flat.as_fetched_flat(config.fetch_cache)
        } else {
            config.flat
        },
    })
}
