//! The one loop that goes down a table, for both stages.
//!
//! It visits each level at most once, so nothing that a guest writes into its tables makes it run
//! longer: a table that points to itself is just read again one level further down.

use umbra_arm64::{Address, Descriptor, DescriptorKind, FaultKind, GuestFault, Level};

use crate::layout::{Layout, ones};
use crate::stop::Stop;

/// Attempts to mark a descriptor that others keep changing, before the walk gives up for now.
pub(crate) const ATTEMPTS: usize = 8;

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// An access that happens: access flags and dirty state are marked where the tables ask for it.
    Access,
    /// An AT: access flags are marked if that succeeds soon, and dirty state never is.
    At,
    /// A look: nothing is marked and nothing is forbidden. Rights and access flag are reported as
    /// they are.
    Probe,
}

/// Where the descriptors of one stage are, and how they are reached.
pub trait Tables {
    /// The space that table addresses are in.
    type Space: Address;
    /// What a walk ends in, if not in a leaf.
    type Stop: From<GuestFault> + From<Stop>;

    /// The word at `at`, in a table at `level`.
    fn read(&mut self, at: Self::Space, level: Level, purpose: Purpose) -> Result<u64, Self::Stop>;

    /// Replaces the word at `at`, if it is still the first of `change`, by the second; answers
    /// whether it was.
    fn replace(
        &mut self,
        at: Self::Space,
        level: Level,
        purpose: Purpose,
        change: (u64, u64),
    ) -> Result<bool, Self::Stop>;
}

/// What is to be walked. All of it has been checked but the size of `base`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) layout: Layout,
    pub(crate) start: Level,
    /// Address of the start table.
    pub(crate) base: u64,
    /// Bits of input address that are resolved.
    pub(crate) input_bits: u32,
    /// Bits that an output address may have.
    pub(crate) output_bits: u32,
    /// Descriptors are big-endian.
    pub(crate) big_endian: bool,
}

/// The leaf that an input address leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf<S> {
    pub(crate) descriptor: Descriptor,
    pub(crate) level: Level,
    /// Where the descriptor is.
    pub(crate) at: S,
    /// The output for the input, in range.
    pub(crate) output: u64,
    /// Bytes that the leaf maps, without and with its contiguous neighbours.
    pub(crate) leaf_bytes: u64,
    pub(crate) bytes: u64,
}

/// Every fault has a kind and a level.
pub(crate) const fn fault(kind: FaultKind, level: Level) -> GuestFault {
    GuestFault { kind, level }
}

impl Root {
    pub(crate) const fn in_range(&self, output: u64) -> bool {
        output & !ones(self.output_bits) == 0
    }

    /// A descriptor's value from the word in memory, and the other way round.
    pub(crate) const fn ordered(&self, word: u64) -> u64 {
        if self.big_endian {
            word.swap_bytes()
        } else {
            word
        }
    }

    /// Walks to the leaf for `input`. `on_table` sees each table descriptor on the way.
    ///
    /// Faults in the manual's order: a base beyond the output size at level 0 (R_BFHQH), then at
    /// the level of the descriptor at hand translation, and address size of a table or a leaf.
    pub(crate) fn descend<T: Tables>(
        &self,
        input: u64,
        purpose: Purpose,
        tables: &mut T,
        mut on_table: impl FnMut(Descriptor),
    ) -> Result<Leaf<T::Space>, T::Stop> {
        if !self.in_range(self.base) {
            return Err(fault(FaultKind::AddressSize, Level::L0).into());
        }
        let input = input & ones(self.input_bits);
        let mut table = self.base;
        let mut level = self.start;
        loop {
            let offset = self.layout.entry_offset(input, level, level == self.start);
            let at = T::Space::from_raw(table | offset);
            let descriptor = Descriptor::new(self.ordered(tables.read(at, level, purpose)?));
            match (self.layout.kind(descriptor, level), level.next()) {
                (DescriptorKind::Table, Some(next)) => {
                    table = self.layout.table(descriptor);
                    if !self.in_range(table) {
                        return Err(fault(FaultKind::AddressSize, level).into());
                    }
                    on_table(descriptor);
                    level = next;
                }
                (DescriptorKind::Leaf, _) => {
                    let leaf = self.leaf(descriptor, level, at, input);
                    if !self.in_range(leaf.output) {
                        return Err(fault(FaultKind::AddressSize, level).into());
                    }
                    return Ok(leaf);
                }
                (DescriptorKind::Invalid, _) | (DescriptorKind::Table, None) => {
                    return Err(fault(FaultKind::Translation, level).into());
                }
            }
        }
    }

    pub(crate) fn leaf<S>(
        &self,
        descriptor: Descriptor,
        level: Level,
        at: S,
        input: u64,
    ) -> Leaf<S> {
        let leaf_bytes = self.layout.granule.level_bytes(level);
        let base = self.layout.leaf(descriptor, level);
        Leaf {
            descriptor,
            level,
            at,
            output: base | input & (leaf_bytes - 1),
            leaf_bytes,
            bytes: self
                .contiguous_bytes(descriptor, level, base, input)
                .unwrap_or(leaf_bytes),
        }
    }

    /// Bytes that the contiguous hint promises. A hint may always be ignored, and is where it
    /// contradicts itself: where the group is bigger than the input address space, or where the leaf
    /// does not lie in its group on the output side as it does on the input side (Arm ARM D8.6.1).
    fn contiguous_bytes(
        &self,
        descriptor: Descriptor,
        level: Level,
        base: u64,
        input: u64,
    ) -> Option<u64> {
        let leaf_bytes = self.layout.granule.level_bytes(level);
        let bytes = self
            .layout
            .contiguous_bytes(level)
            .filter(|_| descriptor.contiguous())?;
        let congruent = (base ^ input) & (bytes - 1) & !(leaf_bytes - 1) == 0;
        let fits = bytes - 1 <= ones(self.input_bits);
        (congruent && fits).then_some(bytes)
    }

    /// Writes `new` over the leaf's descriptor, unless somebody changed it: then `false`.
    pub(crate) fn mark<T: Tables>(
        &self,
        leaf: &Leaf<T::Space>,
        new: Descriptor,
        purpose: Purpose,
        tables: &mut T,
    ) -> Result<bool, T::Stop> {
        tables.replace(
            leaf.at,
            leaf.level,
            purpose,
            (self.ordered(leaf.descriptor.raw()), self.ordered(new.raw())),
        )
    }
}
