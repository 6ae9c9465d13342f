//! What a guest hypervisor maps round an address that has just been walked: candidates for being
//! mapped ahead of an access.
//!
//! Nothing is marked, and nothing is followed but the table that the leaf stands in: one look. A page
//! is a candidate only if its own descriptor is valid with the access flag set and its output is in
//! range, and with exactly the rights that stand there; so mapping it ahead shows the guest nothing
//! that its own access would not have shown, and leaves no trace in the guest's tables.

use umbra_arm64::{Descriptor, DescriptorKind, Ipa, L2Ipa, Level, Rights};

use super::Stage2Config;
use super::walk::{Mapping, rights};
use crate::layout::ones;
use crate::memory::GuestMemory;

/// How far round an address one look goes: naturally aligned, in bytes.
pub const WINDOW: u64 = 64 << 10;
const PAGE: u64 = 4096;
const PAGES: usize = (WINDOW / PAGE) as usize;

/// A page that may be mapped ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub at: L2Ipa,
    /// Where it goes.
    pub output: Ipa,
    /// What the tables permit.
    pub rights: Rights,
    /// Bytes of the leaf that maps it, contiguous neighbours included.
    pub bytes: u64,
}

/// The pages of 4 KiB of one window.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    pages: [Option<Neighbour>; PAGES],
}

impl Around {
    /// No candidates.
    pub const NONE: Around = Around {
        pages: [None; PAGES],
    };

    /// The candidate at `at`; the page that was walked is none.
    pub fn at(&self, at: L2Ipa) -> Option<&Neighbour> {
        let found = self.pages[(at.offset_in(WINDOW) / PAGE) as usize].as_ref();
        found.filter(|neighbour| neighbour.at == at)
    }

    /// The candidates.
    pub fn iter(&self) -> impl Iterator<Item = &Neighbour> {
        self.pages.iter().flatten()
    }
}

/// The candidates round `input`, which `mapping` is the walk of.
pub fn around(
    config: &Stage2Config,
    input: L2Ipa,
    mapping: &Mapping,
    memory: &mut impl GuestMemory,
) -> Around {
    let (Some(root), Some(descriptor)) = (config.root, mapping.descriptor) else {
        return Around::NONE;
    };
    let base = input.align_down(WINDOW);
    let end = base.raw().saturating_add(WINDOW);
    if (end - 1) & !ones(root.input_bits) != 0 {
        return Around::NONE;
    }
    // Where a stage-1 walk through device memory faults (HCR_EL2.PTW), a page mapped ahead would let
    // it through unseen.
    let unseen =
        |descriptor| config.protected_walks && config.attributes.decode(descriptor).is_device();
    let translation = &mapping.translation;
    let mut around = Around::NONE;
    let mut note = |at: L2Ipa, output: Ipa, rights, bytes| {
        if at != input.align_down(PAGE) {
            let index = at.offset_in(WINDOW) / PAGE;
            around.pages[index as usize] = Some(Neighbour {
                at,
                output,
                rights,
                bytes,
            });
        }
    };
    let page_of = |output: u64, at: L2Ipa, leaf_bytes: u64| {
        let inside = at.offset_in(leaf_bytes);
        Ipa::new(output & !(leaf_bytes - 1) | inside)
    };
    let pages = (0..PAGES as u64).filter_map(|n| base.checked_add(n * PAGE));
    if translation.leaf_bytes >= WINDOW {
        let device = config.protected_walks && mapping.attributes.is_some_and(|a| a.is_device());
        if translation.accessed && !device {
            for at in pages {
                let output = page_of(translation.output.raw(), at, translation.leaf_bytes);
                note(at, output, translation.rights, translation.bytes);
            }
        }
        return around;
    }
    // Leaves smaller than the window are pages of the granule, side by side in one table.
    let granule = translation.leaf_bytes;
    let count = (WINDOW / granule) as usize;
    let mut words = [0; PAGES];
    let words = &mut words[..count];
    let first = descriptor.align_down(count as u64 * 8);
    if translation.level != Level::L3 || memory.read_run(first, words).is_err() {
        return around;
    }
    for at in pages {
        let word = words[(at.offset_in(WINDOW) / granule) as usize];
        let descriptor = Descriptor::new(root.ordered(word));
        let is_leaf = root.layout.kind(descriptor, Level::L3) == DescriptorKind::Leaf;
        if !is_leaf || !descriptor.accessed() || unseen(descriptor) {
            continue;
        }
        let leaf = root.leaf(descriptor, Level::L3, first, at.raw());
        if root.in_range(leaf.output) {
            let output = page_of(leaf.output, at, granule);
            note(at, output, rights(descriptor, config), leaf.bytes);
        }
    }
    around
}
