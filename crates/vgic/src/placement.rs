//! Where in the VM's memory the register frames are: KVM_DEV_ARM_VGIC_GRP_ADDR
//! (Linux Documentation/virt/kvm/devices/arm-vgic-v3.rst).
//!
//! ```text
//!   distributor, 64 KiB          redistributors, 128 KiB a vCPU: in one piece for all vCPUs, or in numbered regions
//!                                that vCPUs fill in the order of their index
//! ```
//!
//! A frame is placed once. What cannot be said before the number of vCPUs is settled is said by [`Placement::check`], before a
//! vCPU runs.

use alloc::vec::Vec;
use core::ops::Range;

use umbra_arm64::Ipa;

use crate::attr::RedistRegion;
use crate::mmio::{Frame, REDIST_STRIDE, redist_frame};

/// Bytes of the distributor's frame.
const DIST_BYTES: u64 = 0x1_0000;
/// Alignment of every frame.
const ALIGN: u64 = 0x1_0000;

/// Why a frame cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// It has a place: EEXIST.
    Taken,
    /// Misaligned, overlapping, across the end of memory, out of order, or both kinds of redistributors: EINVAL.
    Invalid,
    /// Beyond the VM's address space: E2BIG.
    Beyond,
    /// No memory to remember it: ENOMEM.
    NoMemory,
}

/// Why the frames are of no use to the vCPUs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The distributor has no place, or not every vCPU has a redistributor: ENXIO.
    Missing,
    /// Frames overlap: EINVAL.
    Overlap,
    /// One piece for all vCPUs, placed when there were fewer, ends beyond the VM's address space: EINVAL.
    Beyond,
}

/// A run of redistributors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Redists {
    base: u64,
    count: u32,
}

impl Redists {
    const fn bytes(self) -> u64 {
        // At most 2^12 redistributors of a region, or one for each vCPU.
        self.count as u64 * REDIST_STRIDE
    }

    /// The end; placed runs end below 2^52.
    const fn end(self) -> u64 {
        self.base.saturating_add(self.bytes())
    }

    const fn overlaps(self, base: u64, bytes: u64) -> bool {
        base < self.end() && self.base < base.saturating_add(bytes)
    }
}

/// Where the frames of a VM's GIC are.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    dist: Option<u64>,
    /// In the order of their indices.
    redists: Vec<Redists>,
    /// `redists` is one piece for all vCPUs, however many there will be.
    single: bool,
}

fn check_range(base: u64, bytes: u64, ipa_bits: u8) -> Result<(), PlaceError> {
    let end = base.checked_add(bytes).ok_or(PlaceError::Invalid)?;
    if !base.is_multiple_of(ALIGN) {
        return Err(PlaceError::Invalid);
    }
    let limit = 1u64.checked_shl(ipa_bits.into()).unwrap_or(u64::MAX);
    if base >= limit || end > limit {
        return Err(PlaceError::Beyond);
    }
    Ok(())
}

impl Placement {
    /// Base of the distributor.
    #[must_use]
    pub fn dist(&self) -> Option<Ipa> {
        self.dist.map(Ipa::new)
    }

    /// Places the distributor.
    ///
    /// # Errors
    /// See [`PlaceError`]; an overlap with redistributors shows in [`Self::check`].
    pub fn set_dist(&mut self, base: Ipa, ipa_bits: u8) -> Result<(), PlaceError> {
        if self.dist.is_some() {
            return Err(PlaceError::Taken);
        }
        check_range(base.raw(), DIST_BYTES, ipa_bits)?;
        self.dist = Some(base.raw());
        Ok(())
    }

    /// Base of the first redistributor.
    #[must_use]
    pub fn redist(&self) -> Option<Ipa> {
        self.redists.first().map(|redists| Ipa::new(redists.base))
    }

    /// Places all redistributors in one piece; `nr_vcpus` are there already.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn set_redist(
        &mut self,
        base: Ipa,
        nr_vcpus: usize,
        ipa_bits: u8,
    ) -> Result<(), PlaceError> {
        let redists = Redists {
            base: base.raw(),
            count: u32::try_from(nr_vcpus).unwrap_or(u32::MAX),
        };
        if !self.redists.is_empty() {
            return Err(if self.single {
                PlaceError::Taken
            } else {
                PlaceError::Invalid
            });
        }
        if self
            .dist
            .is_some_and(|dist| redists.overlaps(dist, DIST_BYTES))
        {
            return Err(PlaceError::Invalid);
        }
        self.add(redists, ipa_bits)?;
        self.single = true;
        Ok(())
    }

    /// The region `index`; the count of the one that is for all vCPUs is 0.
    #[must_use]
    pub fn region(&self, index: u16) -> Option<RedistRegion> {
        let redists = self.redists.get(usize::from(index))?;
        Some(RedistRegion {
            count: if self.single { 0 } else { redists.count },
            base: Ipa::new(redists.base),
            index,
        })
    }

    /// Places the next region of redistributors.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn add_region(&mut self, region: RedistRegion, ipa_bits: u8) -> Result<(), PlaceError> {
        if self.single || usize::from(region.index) != self.redists.len() {
            return Err(PlaceError::Invalid);
        }
        let redists = Redists {
            base: region.base.raw(),
            count: region.count,
        };
        if self
            .dist
            .is_some_and(|dist| redists.overlaps(dist, DIST_BYTES))
        {
            return Err(PlaceError::Invalid);
        }
        self.add(redists, ipa_bits)
    }

    fn add(&mut self, redists: Redists, ipa_bits: u8) -> Result<(), PlaceError> {
        let overlap = self
            .redists
            .iter()
            .any(|other| other.overlaps(redists.base, redists.bytes()));
        if overlap {
            return Err(PlaceError::Invalid);
        }
        check_range(redists.base, redists.bytes(), ipa_bits)?;
        self.redists
            .try_reserve(1)
            .map_err(|_| PlaceError::NoMemory)?;
        self.redists.push(redists);
        Ok(())
    }

    /// The number of vCPUs is settled: a single piece has as many redistributors.
    pub fn settle(&mut self, nr_vcpus: usize) {
        if let Some(redists) = self.redists.first_mut().filter(|_| self.single) {
            redists.count = u32::try_from(nr_vcpus).unwrap_or(u32::MAX);
        }
    }

    /// Whether `nr_vcpus` can run with this, after [`Self::settle`].
    ///
    /// # Errors
    /// See [`Misplaced`].
    pub fn check(&self, nr_vcpus: usize, ipa_bits: u8) -> Result<(), Misplaced> {
        let room = self
            .redists
            .iter()
            .fold(0u64, |room, redists| room + u64::from(redists.count));
        let Some(dist) = self.dist.filter(|_| room >= nr_vcpus as u64) else {
            return Err(Misplaced::Missing);
        };
        if self
            .redists
            .iter()
            .any(|redists| redists.overlaps(dist, DIST_BYTES))
        {
            return Err(Misplaced::Overlap);
        }
        let is_within =
            |redists: &Redists| check_range(redists.base, redists.bytes(), ipa_bits).is_ok();
        if !self.redists.iter().all(is_within) {
            return Err(Misplaced::Beyond);
        }
        Ok(())
    }

    /// The vCPUs of `nr_vcpus` whose redistributor ends a run: GICR_TYPER.Last. A region that is full and the one that begins
    /// where it ends, whatever their indices, are one run, if that one has a redistributor. None while there is no region.
    pub fn last_redists(&self, nr_vcpus: usize) -> impl Iterator<Item = usize> {
        self.used(nr_vcpus).filter_map(move |(redists, used)| {
            let goes_on = used.end - used.start == redists.count as usize
                && self
                    .used(nr_vcpus)
                    .any(|(other, used)| other.base == redists.end() && !used.is_empty());
            (!used.is_empty() && !goes_on).then(|| used.end - 1)
        })
    }

    /// The regions, and which of `nr_vcpus` have their redistributors there.
    fn used(&self, nr_vcpus: usize) -> impl Iterator<Item = (Redists, Range<usize>)> {
        let mut first = 0;
        self.redists.iter().map(move |&redists| {
            let end = nr_vcpus.min(first + redists.count as usize);
            let used = first..end;
            first = end;
            (redists, used)
        })
    }

    /// The frame that `address` lies in, and the offset in it.
    #[must_use]
    pub fn frame(&self, address: Ipa) -> Option<(Frame, u32)> {
        let address = address.raw();
        if let Some(offset) = self.dist.and_then(|base| address.checked_sub(base))
            && offset < DIST_BYTES
        {
            return Some((Frame::Dist, offset as u32));
        }
        let mut first = 0;
        for redists in &self.redists {
            if let Some(offset) = address.checked_sub(redists.base)
                && offset < redists.bytes()
            {
                return Some(redist_frame(first, offset));
            }
            first += redists.count as usize;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const BITS: u8 = 40;

    fn region(index: u16, base: u64, count: u32) -> RedistRegion {
        RedistRegion {
            count,
            base: Ipa::new(base),
            index,
        }
    }

    #[test]
    fn a_frame_is_aligned_within_memory_and_placed_once() {
        let mut place = Placement::default();
        for (base, error) in [
            (0x8000, PlaceError::Invalid),
            (!0xffff, PlaceError::Invalid),
            (1 << 40, PlaceError::Beyond),
            (1 << 52, PlaceError::Beyond),
        ] {
            assert_eq!(
                place.set_dist(Ipa::new(base), BITS),
                Err(error),
                "{base:#x}"
            );
            assert_eq!(place.dist(), None);
        }
        assert_eq!(place.set_dist(Ipa::new((1 << 40) - 0x1_0000), BITS), Ok(()));
        assert_eq!(place.set_dist(Ipa::new(0), BITS), Err(PlaceError::Taken));
    }

    #[test]
    fn one_piece_for_all() {
        let mut place = Placement::default();
        assert_eq!(place.set_dist(Ipa::new(0x800_0000), BITS), Ok(()));
        let base = Ipa::new(0x80a_0000);
        assert_eq!(
            place.set_redist(Ipa::new(0x7fe_0000), 2, BITS),
            Err(PlaceError::Invalid),
            "over the distributor"
        );
        assert_eq!(
            place.set_redist(Ipa::new((1 << 40) - 0x2_0000), 2, BITS),
            Err(PlaceError::Beyond)
        );
        assert_eq!(place.set_redist(base, 2, BITS), Ok(()));
        assert_eq!(place.set_redist(base, 2, BITS), Err(PlaceError::Taken));
        assert_eq!(
            place.add_region(region(1, 0x900_0000, 1), BITS),
            Err(PlaceError::Invalid),
            "mixed"
        );
        assert_eq!(place.region(0), Some(region(0, 0x80a_0000, 0)));
        assert_eq!(place.check(3, BITS), Err(Misplaced::Missing));
        place.settle(3);
        assert_eq!(place.check(3, BITS), Ok(()));
        assert_eq!(
            place.frame(Ipa::new(0x80a_0000 + 2 * REDIST_STRIDE + 4)),
            Some((Frame::Rd(2), 4))
        );
        assert_eq!(place.frame(Ipa::new(0x80a_0000 + 3 * REDIST_STRIDE)), None);
    }

    #[test]
    fn one_piece_grows_with_the_vcpus_and_may_end_too_far() {
        let mut place = Placement::default();
        assert_eq!(place.set_dist(Ipa::new(0), BITS), Ok(()));
        let base = Ipa::new((1 << BITS) - 3 * REDIST_STRIDE);
        assert_eq!(place.set_redist(base, 1, BITS), Ok(()));
        for (nr_vcpus, verdict) in [(3, Ok(())), (4, Err(Misplaced::Beyond))] {
            place.settle(nr_vcpus);
            assert_eq!(place.check(nr_vcpus, BITS), verdict);
        }
    }

    #[test]
    fn regions_come_in_order_and_apart() {
        let mut place = Placement::default();
        assert_eq!(
            place.add_region(region(1, 0x10_0000, 1), BITS),
            Err(PlaceError::Invalid)
        );
        assert_eq!(place.add_region(region(0, 0x10_0000, 2), BITS), Ok(()));
        assert_eq!(
            place.add_region(region(0, 0x20_0000, 2), BITS),
            Err(PlaceError::Invalid)
        );
        assert_eq!(
            place.add_region(region(1, 0x12_0000, 2), BITS),
            Err(PlaceError::Invalid),
            "overlap"
        );
        assert_eq!(
            place.add_region(region(1, 0xf_0000, 1), BITS),
            Err(PlaceError::Invalid),
            "overlap from below"
        );
        assert_eq!(place.add_region(region(1, 0x20_0000, 1), BITS), Ok(()));
        assert_eq!(
            place.set_redist(Ipa::new(0x40_0000), 1, BITS),
            Err(PlaceError::Invalid),
            "mixed"
        );
        assert_eq!(place.region(1), Some(region(1, 0x20_0000, 1)));
        assert_eq!(place.region(2), None);
        assert_eq!(
            place.check(3, BITS),
            Err(Misplaced::Missing),
            "no distributor"
        );
        assert_eq!(
            place.set_dist(Ipa::new(0x13_0000), BITS),
            Ok(()),
            "found when a vCPU is to run"
        );
        assert_eq!(place.check(4, BITS), Err(Misplaced::Missing));
        assert_eq!(place.check(3, BITS), Err(Misplaced::Overlap));
        assert_eq!(
            place.frame(Ipa::new(0x20_0000 + 0x1_0100)),
            Some((Frame::Sgi(2), 0x100))
        );
    }

    #[test]
    fn the_last_of_a_run_says_so() {
        let lasts = |regions: &[(u64, u32)], nr_vcpus| {
            let mut place = Placement::default();
            for (index, &(base, count)) in (0..).zip(regions) {
                assert_eq!(place.add_region(region(index, base, count), BITS), Ok(()));
            }
            place.last_redists(nr_vcpus).collect::<Vec<_>>()
        };
        assert_eq!(lasts(&[], 2), []);
        assert_eq!(lasts(&[(0x10_0000, 8)], 3), [2], "the last that is there");
        assert_eq!(lasts(&[(0x10_0000, 2), (0x20_0000, 2)], 3), [1, 2]);
        assert_eq!(
            lasts(&[(0x10_0000, 2), (0x14_0000, 2)], 3),
            [2],
            "they touch"
        );
        assert_eq!(
            lasts(&[(0x10_0000, 2), (0x14_0000, 2)], 2),
            [1],
            "the second is empty"
        );
        let below = [(0x10_0000, 2), (0x24_0000, 2), (0x20_0000, 2)];
        assert_eq!(
            lasts(&below, 6),
            [1, 3],
            "the third ends where the second begins"
        );
        assert_eq!(lasts(&below, 5), [1, 3, 4], "it is not full");
    }
}
