//! A guest hypervisor that edits its tables, invalidates, and is filled from, in any order: no shadow
//! entry derives from a leaf that was invalidated.

extern crate std;

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use umbra_arm64::Ipa;

use super::*;
use crate::shadow::{ContextKey, Insert, Place, Places, Size};

const PAGE: u64 = 4096;
/// The space that the guest hypervisor maps, in pages.
const SPACE: u64 = 2048;
const VMIDS: [u16; 3] = [1, 1, 2];

/// A leaf of the guest hypervisor's tables; its number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leaf {
    number: usize,
    first: u64,
    pages: u64,
    output: u64,
}

impl Leaf {
    fn meets(&self, first: u64, pages: u64) -> bool {
        self.first < first + pages && first < self.first + self.pages
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Another leaf, or none, where some may be. The tables of one VMID.
    Edit {
        table: usize,
        page: u64,
        shift: u32,
        map: bool,
    },
    /// A TLBI, `portion` entries at a time; between portions the context is filled at `page`.
    Tlbi {
        vmid: Option<u16>,
        page: u64,
        pages: Option<u64>,
        portion: usize,
    },
    /// A fill reads the sequence and walks.
    Walk {
        context: usize,
        page: u64,
        host: u32,
    },
    /// The oldest fill that has walked installs what it found.
    Install,
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..SPACE;
    let shift = prop::sample::select(std::vec![0u32, 0, 4, 9]);
    let pages = prop::sample::select(std::vec![
        None,
        Some(1),
        Some(1),
        Some(16),
        Some(512),
        Some(700)
    ]);
    let vmid = prop::sample::select(std::vec![Some(1u16), Some(1), Some(2), None]);
    let host = prop::sample::select(std::vec![0u32, 0, 9]);
    prop_oneof![
        3 => (0usize..2, page.clone(), shift, any::<bool>()).prop_map(|(table, page, shift, map)| Step::Edit { table, page, shift, map }),
        2 => (vmid, page.clone(), pages, 1usize..20).prop_map(|(vmid, page, pages, portion)| Step::Tlbi { vmid, page, pages, portion }),
        5 => (0usize..3, page, host).prop_map(|(context, page, host)| Step::Walk { context, page, host }),
        5 => Just(Step::Install),
    ]
}

/// A fill between its walk and its installation.
#[derive(Clone, Copy, Debug)]
struct Fill {
    context: usize,
    seq: u64,
    leaf: Leaf,
    page: u64,
    host: u32,
}

struct World {
    pool: Pool<()>,
    ids: Vec<ContextId>,
    places: Places,
    /// From which leaf an entry of a context was made.
    derived: BTreeMap<(usize, u64), Leaf>,
    /// The tables of VMIDs 1 and 2.
    tables: [Vec<Leaf>; 2],
    /// Leaves that are in no table any more, and not invalidated.
    stale: Vec<(u16, Leaf)>,
    /// Invalidated.
    dead: BTreeSet<usize>,
    fills: Vec<Fill>,
    leaves: usize,
}

fn table_of(context: usize) -> usize {
    usize::from(VMIDS[context]) - 1
}

impl World {
    fn new() -> World {
        let mut pool = Pool::new();
        let roots = (0u64..).zip(VMIDS);
        let ids = roots
            .map(|(root, vmid)| {
                let key = ContextKey::new(u64::from(vmid) << 48 | root << 12, 0, 1);
                pool.insert(key, ()).unwrap()
            })
            .collect();
        World {
            pool,
            ids,
            places: Places::new(),
            derived: BTreeMap::new(),
            tables: [const { Vec::new() }; 2],
            stale: Vec::new(),
            dead: BTreeSet::new(),
            fills: Vec::new(),
            leaves: 0,
        }
    }

    fn edit(&mut self, table: usize, page: u64, shift: u32, map: bool) {
        let (first, pages) = (page >> shift << shift, 1 << shift);
        let (gone, kept) = self.tables[table]
            .iter()
            .partition(|leaf| leaf.meets(first, pages));
        self.tables[table] = kept;
        let gone: Vec<Leaf> = gone;
        self.stale
            .extend(gone.into_iter().map(|leaf| (table as u16 + 1, leaf)));
        if map {
            self.leaves += 1;
            self.tables[table].push(Leaf {
                number: self.leaves,
                first,
                pages,
                output: (self.leaves as u64) << 12,
            });
        }
    }

    fn walk(&mut self, context: usize, page: u64, host: u32) {
        let seq = self.pool.sequence(self.ids[context]).unwrap();
        let found = self.tables[table_of(context)]
            .iter()
            .find(|leaf| leaf.meets(page, 1));
        if let Some(leaf) = found {
            self.fills.push(Fill {
                context,
                seq,
                leaf: *leaf,
                page,
                host,
            });
        }
    }

    /// As the kernel installs: nothing if the sequence moved, what lies there otherwise goes first.
    fn install(&mut self) {
        if self.fills.is_empty() {
            return;
        }
        let fill = self.fills.remove(0);
        let id = self.ids[fill.context];
        if self.pool.sequence(id) != Some(fill.seq) {
            return;
        }
        let block = fill.host == 9 && fill.leaf.pages == 512;
        let size = if block { Size::Block } else { Size::Page };
        let first = if block { fill.leaf.first } else { fill.page };
        let at = first * PAGE;
        while let Some(gone) = self.places.pop(id, L2Ipa::new(at), at + size.bytes()) {
            self.derived.remove(&(fill.context, gone.at.raw()));
        }
        let place = Place {
            context: id,
            at: L2Ipa::new(at),
            ipa: Ipa::new(
                ((fill.leaf.output + first - fill.leaf.first) * PAGE) & !(size.bytes() - 1),
            ),
            size,
            leaf_shift: 12 + fill.leaf.pages.trailing_zeros() as u8,
        };
        match self.places.insert(place).unwrap() {
            Insert::Crowded(other) => {
                let context = self.ids.iter().position(|id| *id == other.context).unwrap();
                self.derived.remove(&(context, other.at.raw()));
            }
            Insert::Done | Insert::Known => {}
        }
        self.derived.insert((fill.context, at), fill.leaf);
    }

    fn portion(&mut self, tlbi: &mut Tlbi, mut portion: usize) -> bool {
        while let Some((id, part)) = tlbi.due(&self.pool) {
            loop {
                if portion == 0 {
                    return false;
                }
                let popped = match part {
                    Part::Leaf(at) => self.places.pop_leaf(id, at, &mut tlbi.cursor),
                    Part::Range(from, end) => {
                        let from = L2Ipa::new(from.raw().max(tlbi.cursor));
                        self.places.pop(id, from, end)
                    }
                };
                let Some(gone) = popped else { break };
                portion -= 1;
                if let Part::Range(..) = part {
                    tlbi.cursor = gone.at.raw() + gone.size.bytes();
                }
                let context = self.ids.iter().position(|other| *other == id).unwrap();
                self.derived
                    .remove(&(context, gone.at.raw()))
                    .expect("every entry has a leaf");
            }
            tlbi.done();
        }
        true
    }

    fn tlbi(&mut self, vmid: Option<u16>, page: u64, pages: Option<u64>, portion: usize) {
        let range = pages.map(|pages| (L2Ipa::new(page * PAGE), (page + pages) * PAGE));
        let mut tlbi = Tlbi::new(vmid, range);
        tlbi.begin(&mut self.pool);
        while !self.portion(&mut tlbi, portion) {
            // Meanwhile the guests run on.
            for context in 0..VMIDS.len() {
                self.walk(context, page, 0);
                self.install();
            }
        }
        let covered = |owner: u16, leaf: &Leaf| {
            vmid.is_none_or(|vmid| vmid == owner)
                && pages.is_none_or(|pages| leaf.meets(page, pages))
        };
        let (dead, stale): (Vec<_>, Vec<_>) = self
            .stale
            .drain(..)
            .partition(|(owner, leaf)| covered(*owner, leaf));
        self.stale = stale;
        self.dead.extend(dead.iter().map(|(_, leaf)| leaf.number));
    }

    fn check(&self) {
        for ((context, at), leaf) in &self.derived {
            assert!(
                !self.dead.contains(&leaf.number),
                "context {context} still has {at:#x} from {leaf:?}"
            );
        }
        assert_eq!(self.places.len(), self.derived.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_derives_from_what_was_invalidated(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Edit { table, page, shift, map } => world.edit(table, page, shift, map),
                Step::Tlbi { vmid, page, pages, portion } => world.tlbi(vmid, page, pages, portion),
                Step::Walk { context, page, host } => world.walk(context, page, host),
                Step::Install => world.install(),
            }
            world.check();
        }
    }
}

#[test]
fn a_fill_that_walked_before_is_void() {
    let mut world = World::new();
    world.edit(0, 5, 0, true);
    world.walk(0, 5, 0);
    world.edit(0, 5, 0, false);
    world.tlbi(Some(1), 5, Some(1), 1);
    world.install();
    world.check();
    assert!(world.derived.is_empty());
    // Under another VMID it would have stayed.
    world.edit(0, 5, 0, true);
    world.walk(0, 5, 0);
    world.tlbi(Some(2), 5, Some(1), 1);
    world.install();
    assert_eq!(world.derived.len(), 1);
}
