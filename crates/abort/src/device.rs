//! The short way for the commonest abort there is: a described load or store where no memory is.
//!
//! Drivers of a guest cause it by the hundred thousand. [`device_access`] recognises it by a few bits of the
//! syndrome; what it says is what [`crate::classify`] and [`crate::resolve_canonical`] would have said, and for all
//! else it says nothing. The tests hold the two ways against each other.

use umbra_arm64::esr::{Access, DataAbort};
use umbra_arm64::{Ec, Esr, Gva, Hpfar, Ipa};

use crate::rules::fault_ipa;

/// A load or store that hardware described, at an address that stage 2 does not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    /// Where.
    pub ipa: Ipa,
    /// The instruction.
    pub access: Access,
    /// It stores.
    pub write: bool,
}

const ISV: u64 = 1 << 24;
/// VNCR, cache operation, S1PTW, and the fault status but for its level.
const PLAIN: u64 = 1 << 13 | 1 << 8 | 1 << 7 | 0b11_1100;
const TRANSLATION: u64 = 0b00_0100;

/// The access, if the abort was a translation fault of stage 2 on the access itself, and described. Whether
/// memory lies there is for the caller to know: then this is not the way.
#[inline]
pub fn device_access(esr: Esr, far: Gva, hpfar: Hpfar) -> Option<DeviceAccess> {
    let iss = esr.raw();
    if esr.ec() != Ec::DataAbortLower || iss & (ISV | PLAIN) != ISV | TRANSLATION {
        return None;
    }
    let access = DataAbort::described(esr.iss())?;
    Some(DeviceAccess {
        ipa: fault_ipa(hpfar, far, false),
        access,
        write: iss >> 6 & 1 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Abort, Action, Capabilities, Context, Slot, World, classify, resolve_canonical};

    const FAR: Gva = Gva::new(0xffff_8000_0000_0abc);
    const HPFAR: Hpfar = Hpfar::new(0x4_0010);

    /// Every status and flag, described by each of some instructions and by none.
    #[test]
    fn it_is_the_long_way_cut_short() {
        let context = Context {
            ras: true,
            world: World::Plain,
        };
        let mut short = 0;
        for ec in [0x20, 0x24, 0x25] {
            for iss in 0..1u32 << 14 {
                for described in [0, 1 << 24, 0x1f << 24 | 0x1f << 16, 0x1c2 << 16 | 1 << 15] {
                    let iss = (iss | described) & 0x1ff_ffff;
                    let esr = Esr::from_parts(Ec::from_number(ec), true, iss);
                    let Some(device) = device_access(esr, FAR, HPFAR) else {
                        continue;
                    };
                    short += 1;
                    let Abort::Stage2(fault) = classify::<Ipa>(esr, FAR, Some(HPFAR), context)
                    else {
                        panic!("{iss:#x} is no stage 2 fault");
                    };
                    let ipa = fault.address.expect("a translation fault has an address");
                    let action =
                        resolve_canonical(&fault, ipa, Slot::None, Capabilities::default());
                    let DeviceAccess { ipa, access, write } = device;
                    assert_eq!(action, Action::Mmio { ipa, access, write }, "{iss:#x}");
                }
            }
        }
        assert!(short > 300, "{short}");
    }

    #[test]
    fn what_is_not_just_that_goes_the_long_way() {
        let plain = 1 << 24 | 0b00_0110;
        let of =
            |ec, iss| device_access(Esr::from_parts(Ec::from_number(ec), true, iss), FAR, HPFAR);
        assert!(of(0x24, plain).is_some());
        assert!(of(0x20, plain).is_none(), "a fetch");
        assert!(of(0x25, plain).is_none(), "umbra's own");
        assert!(of(0x24, plain & !(1 << 24)).is_none(), "not described");
        for other in [1 << 7, 1 << 8, 1 << 13] {
            assert!(of(0x24, plain | other).is_none(), "{other:#x}");
        }
        for status in [0b00_1010, 0b00_1110, 0b01_0000, 0b10_1011] {
            assert!(of(0x24, 1 << 24 | status).is_none(), "{status:#b}");
        }
    }
}
