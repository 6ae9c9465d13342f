//! A TLB that forgets nothing: every stage-2 translation that was ever made valid, struck out only by
//! an invalidation that the architecture says covers it.
//!
//! A machine's TLB forgets all the time, and an emulator's more often still; what was not invalidated
//! shows rarely or never. Here it shows at once: who has changed tables asks whether a ghost is left of
//! what no longer holds, before the lock is dropped and the page is free.
//!
//! The memory is bounded: [`GHOSTS`] translations; the oldest of a crowded bucket is forgotten, and
//! then one that was missed would not be told. For builds with checks.

use alloc::boxed::Box;
use alloc::vec::Vec;

use umbra_arm64::{Ipa, Level, Pa, Rights};

use super::radix::OutOfMemory;

const WAYS: usize = 8;
const BUCKETS: usize = 1024;
/// Translations that are remembered.
pub const GHOSTS: usize = WAYS * BUCKETS;

/// One translation that hardware may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ghost {
    /// The VMID it was made under.
    pub vmid: u16,
    /// First input address.
    pub addr: u64,
    /// The level of its leaf, in tables of 4 KiB pages.
    pub level: Level,
    /// Where `addr` goes.
    pub pa: Pa,
    /// What it permits.
    pub rights: Rights,
    /// The VM that it belongs to, by a number of the owner's.
    pub vm: u16,
    /// The address of the VM's own space that it comes from.
    pub source: Ipa,
    /// Its number among all that were made.
    pub serial: u64,
}

impl Ghost {
    /// Bytes that it maps.
    pub const fn bytes(&self) -> u64 {
        umbra_arm64::Granule::K4.level_bytes(self.level)
    }

    const fn meets(&self, start: u64, end: u64, from: u64, bytes: u64) -> bool {
        start < from.saturating_add(bytes) && end > from
    }

    /// Whether it translates something of the range.
    pub const fn translates(&self, from: u64, bytes: u64) -> bool {
        self.meets(self.addr, self.addr + self.bytes(), from, bytes)
    }

    /// Whether it comes from something of the range of the VM.
    pub const fn comes_from(&self, from: Ipa, bytes: u64) -> bool {
        let start = self.source.raw();
        self.meets(start, start + self.bytes(), from.raw(), bytes)
    }
}

/// The memory. See the module.
pub struct Ghosts {
    slots: Box<[Option<Ghost>]>,
    serial: u64,
}

const fn bucket(vmid: u16, addr: u64) -> usize {
    let key = addr >> 12 ^ (vmid as u64) << 44;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize * WAYS
}

impl Ghosts {
    /// None yet.
    pub fn new() -> Result<Ghosts, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(GHOSTS).map_err(|_| OutOfMemory)?;
        slots.resize(GHOSTS, None);
        Ok(Ghosts {
            slots: slots.into_boxed_slice(),
            serial: 0,
        })
    }

    /// Hardware may hold this from now on. Its `serial` is given here.
    pub fn made(&mut self, ghost: Ghost) {
        self.serial += 1;
        let ghost = Ghost {
            serial: self.serial,
            ..ghost
        };
        let at = bucket(ghost.vmid, ghost.addr);
        let ways = &mut self.slots[at..at + WAYS];
        let same = |old: &Ghost| Ghost { serial: 0, ..*old } == Ghost { serial: 0, ..ghost };
        let place = ways
            .iter()
            .position(|slot| slot.as_ref().is_some_and(same))
            .or_else(|| ways.iter().position(Option::is_none))
            .or_else(|| {
                let age = |at: &usize| ways[*at].map_or(0, |old| old.serial);
                (0..WAYS).min_by_key(age)
            });
        if let Some(place) = place {
            ways[place] = Some(ghost);
        }
    }

    /// A TLBI by IPA was executed under `vmid`: `count` times, from `addr` on, `step` bytes apart. With a
    /// level hint it covers leaves of that level alone.
    pub fn struck(
        &mut self,
        vmid: u16,
        addr: u64,
        (step, count): (u64, u64),
        level: Option<Level>,
    ) {
        let covers = |ghost: &Ghost| {
            let named = level.is_none_or(|level| level == ghost.level);
            // Whether one of the addresses lies in what it translates.
            let (start, end) = (ghost.addr, ghost.addr + ghost.bytes());
            let first = start.saturating_sub(addr).div_ceil(step);
            named && first < count && (start..end).contains(&(addr + first * step))
        };
        let step_is_small = count.saturating_mul(3) < (GHOSTS / WAYS) as u64;
        if step_is_small {
            for n in 0..count {
                for at_level in [Level::L1, Level::L2, Level::L3] {
                    let size = umbra_arm64::Granule::K4.level_bytes(at_level);
                    let at = bucket(vmid, (addr + n * step) & !(size - 1));
                    strike(&mut self.slots[at..at + WAYS], vmid, covers);
                }
            }
        } else {
            strike(&mut self.slots, vmid, covers);
        }
    }

    /// A TLBI for everything under `vmid` was executed.
    pub fn struck_all(&mut self, vmid: u16) {
        strike(&mut self.slots, vmid, |_| true);
    }

    /// A TLBI for every guest was executed.
    pub fn struck_every(&mut self) {
        self.slots.fill(None);
    }

    /// A ghost that should be gone: one for which `is_wrong`.
    pub fn find(&self, is_wrong: impl Fn(&Ghost) -> bool) -> Option<&Ghost> {
        self.slots.iter().flatten().find(|ghost| is_wrong(ghost))
    }
}

fn strike(slots: &mut [Option<Ghost>], vmid: u16, covers: impl Fn(&Ghost) -> bool) {
    for slot in slots {
        slot.take_if(|ghost| ghost.vmid == vmid && covers(ghost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ghost(vmid: u16, addr: u64, level: Level) -> Ghost {
        Ghost {
            vmid,
            addr,
            level,
            pa: Pa::new(addr + (1 << 40)),
            rights: Rights::READ_WRITE,
            vm: 1,
            source: Ipa::new(addr + (1 << 30)),
            serial: 0,
        }
    }

    fn ghosts(all: &[Ghost]) -> Ghosts {
        let mut ghosts = Ghosts::new().unwrap();
        all.iter().for_each(|ghost| ghosts.made(*ghost));
        ghosts
    }

    fn left(ghosts: &Ghosts) -> usize {
        ghosts.slots.iter().flatten().count()
    }

    const PAGE: u64 = 4096;

    #[test]
    fn only_what_an_invalidation_covers_is_struck() {
        let page = ghost(3, 0x8000_5000, Level::L3);
        for (vmid, addr, sweep, level, gone) in [
            (3, 0x8000_5000, (PAGE, 1), None, true),
            (3, 0x8000_5000, (PAGE, 1), Some(Level::L3), true),
            // Another level, VMID, address; before and behind.
            (3, 0x8000_5000, (PAGE, 1), Some(Level::L2), false),
            (4, 0x8000_5000, (PAGE, 1), None, false),
            (3, 0x8000_6000, (PAGE, 1), None, false),
            (3, 0x8000_4000, (PAGE, 1), None, false),
            (3, 0x8000_4000, (PAGE, 2), None, true),
            (3, 0x8000_0000, (PAGE, 512), None, true),
            (3, 0x8000_0000, (2 << 20, 4), None, false),
        ] {
            let mut ghosts = ghosts(&[page]);
            ghosts.struck(vmid, addr, sweep, level);
            assert_eq!(
                left(&ghosts) == 0,
                gone,
                "{vmid} {addr:#x} {sweep:?} {level:?}"
            );
        }
        let block = ghost(3, 0x8020_0000, Level::L2);
        for (addr, gone) in [
            (0x803f_f000, true),
            (0x8040_0000, false),
            (0x801f_f000, false),
        ] {
            let mut ghosts = ghosts(&[block]);
            ghosts.struck(3, addr, (PAGE, 1), None);
            assert_eq!(left(&ghosts) == 0, gone, "{addr:#x}");
        }
    }

    #[test]
    fn everything_under_a_vmid_is_struck_at_once() {
        let mut ghosts = ghosts(&[ghost(3, 0, Level::L3), ghost(4, 0, Level::L3)]);
        ghosts.struck_all(3);
        assert_eq!(ghosts.find(|_| true).map(|ghost| ghost.vmid), Some(4));
    }

    #[test]
    fn old_and_new_translations_of_one_address_are_two() {
        let old = ghost(3, 0x1000, Level::L3);
        let moved = Ghost {
            pa: Pa::new(0x9000),
            ..old
        };
        let tightened = Ghost {
            rights: Rights::READ,
            ..old
        };
        let ghosts = ghosts(&[old, moved, tightened, old]);
        assert_eq!(left(&ghosts), 3);
        assert!(
            ghosts
                .find(|ghost| ghost.pa == old.pa && ghost.rights.write)
                .is_some()
        );
    }

    #[test]
    fn a_ghost_knows_what_it_maps_and_whence() {
        let block = ghost(3, 0x8020_0000, Level::L2);
        assert!(block.translates(0x803f_f000, PAGE) && !block.translates(0x8040_0000, PAGE));
        assert!(block.comes_from(Ipa::new(0xc020_0000), PAGE));
        assert!(!block.comes_from(Ipa::new(0x8020_0000), PAGE));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut ghosts = Ghosts::new().unwrap();
        for n in 0..3 * GHOSTS as u64 {
            ghosts.made(ghost(1, n * PAGE, Level::L3));
        }
        assert!(left(&ghosts) <= GHOSTS);
        let newest = (3 * GHOSTS as u64 - 1) * PAGE;
        assert!(ghosts.find(|ghost| ghost.addr == newest).is_some());
    }
}
