//! KVM_DEV_ARM_VGIC_GRP_ADDR: the rules are `umbra_vgic::Placement`'s, the lock is the layout's.

use umbra_arm64::Ipa;
use umbra_linux::Errno;
use umbra_vgic::{Attr, Misplaced, PlaceError, RedistRegion};

use crate::kvm::vm::Vm;

/// What reads as the base of a frame without a place.
const NOWHERE: u64 = u64::MAX;

/// Places the distributor or redistributors. `EEXIST`, `EINVAL`, `E2BIG`.
pub(super) fn set(vm: &Vm, what: Attr, value: u64) -> Result<(), Errno> {
    let nr_vcpus = vm.all_vcpus().len();
    let ipa_bits = vm.ipa_bits;
    let placed = {
        let mut layout = vm.gic.layout.lock();
        let placement = &mut layout.placement;
        match what {
            Attr::DistAddr => placement.set_dist(Ipa::new(value), ipa_bits),
            Attr::RedistRegion => {
                let region = RedistRegion::decode(value).ok_or(Errno::EINVAL)?;
                placement.add_region(region, ipa_bits)
            }
            _ => placement.set_redist(Ipa::new(value), nr_vcpus, ipa_bits),
        }
    };
    placed.map_err(|error| match error {
        PlaceError::Taken => Errno::EEXIST,
        PlaceError::Invalid => Errno::EINVAL,
        PlaceError::Beyond => Errno::E2BIG,
        PlaceError::NoMemory => Errno::ENOMEM,
    })?;
    settle(vm);
    Ok(())
}

/// The base of the distributor or of the first redistributor.
pub(super) fn get(vm: &Vm, what: Attr) -> u64 {
    let layout = vm.gic.layout.lock();
    let base = match what {
        Attr::DistAddr => layout.placement.dist(),
        _ => layout.placement.redist(),
    };
    base.map_or(NOWHERE, Ipa::raw)
}

/// The region whose index is in `value`. `ENOENT`.
pub(super) fn get_region(vm: &Vm, value: u64) -> Result<u64, Errno> {
    let index = (value & 0xfff) as u16;
    let region = vm.gic.layout.lock().placement.region(index);
    region.map(RedistRegion::encode).ok_or(Errno::ENOENT)
}

/// Once the GIC is initialised: what follows from the number of vCPUs and the regions.
pub(super) fn settle(vm: &Vm) {
    if !vm.gic.is_initialised() {
        return;
    }
    let nr_vcpus = vm.all_vcpus().len();
    let mut layout = vm.gic.layout.lock();
    layout.placement.settle(nr_vcpus);
    vm.gic
        .set_last_in_region(layout.placement.last_redists(nr_vcpus));
}

/// Before a vCPU's first run: a GIC that was created must be usable. `ENXIO`: a frame has no place;
/// `EINVAL`: they overlap, or end beyond the VM; `EBUSY`: not initialised.
pub(in crate::kvm) fn check_before_run(vm: &Vm) -> Result<(), Errno> {
    let nr_vcpus = vm.all_vcpus().len();
    {
        let mut layout = vm.gic.layout.lock();
        if !layout.created {
            return Ok(());
        }
        layout.placement.settle(nr_vcpus);
        layout
            .placement
            .check(nr_vcpus, vm.ipa_bits)
            .map_err(|error| match error {
                Misplaced::Missing => Errno::ENXIO,
                Misplaced::Overlap | Misplaced::Beyond => Errno::EINVAL,
            })?;
    }
    if vm.gic.is_initialised() {
        Ok(())
    } else {
        Err(Errno::EBUSY)
    }
}
