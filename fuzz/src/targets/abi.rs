//! What a VMM hands over in structures: register ids, device attributes, features, events, call filters.

use umbra_kvm_abi::device::{DeviceAttr, SmcccFilter as Request};
use umbra_kvm_abi::errno::Errno;
use umbra_kvm_abi::reg::RegId;
use umbra_kvm_abi::smccc_filter::{Handler, SmcccFilter};
use umbra_kvm_abi::vcpu::{VcpuEvents, VcpuFeatures, VcpuInit};
use umbra_kvm_abi::vgic::VgicAttr;
use umbra_vgic::RedistRegion;

use crate::tape::Tape;

/// An id that is read names what it was read from.
fn register(id: u64) {
    match RegId(id).parse() {
        Ok(kind) => assert_eq!(RegId::from(kind), RegId(id)),
        Err(error) => assert!([Errno::EINVAL, Errno::ENOENT].contains(&error)),
    }
}

fn attribute(group: u32, attr: u64) {
    let attribute = DeviceAttr {
        group,
        attr,
        ..DeviceAttr::default()
    };
    match VgicAttr::parse(&attribute) {
        Ok(VgicAttr::DistReg { offset } | VgicAttr::RedistReg { offset, .. }) => {
            assert_eq!((u64::from(offset), offset % 4), (attr & 0xffff_ffff, 0));
        }
        Ok(VgicAttr::LevelInfo { intid, .. }) => assert!(intid % 32 == 0 && intid < 1024),
        Ok(_) => {}
        Err(error) => assert!([Errno::EINVAL, Errno::ENXIO].contains(&error)),
    }
    if let Some(region) = RedistRegion::decode(attr) {
        assert_eq!(region.encode(), attr);
    }
}

fn vcpu(mut tape: Tape<'_>) {
    let offer = (0..32).fold(VcpuFeatures::default(), |offer, n| {
        if tape.0.first().is_some_and(|byte| byte >> (n % 8) & 1 != 0) {
            offer.with(n)
        } else {
            offer
        }
    });
    let init = VcpuInit {
        target: u32::from(tape.u8()),
        features: core::array::from_fn(|_| tape.u32()),
    };
    if let Ok(features) = init.check(offer) {
        assert_eq!(features.bits(), init.features[0]);
        assert_eq!(features.bits() & !offer.bits(), 0);
        assert!(init.target == 5 && init.features[1..] == [0; 6]);
    }
    let events = VcpuEvents {
        serror_pending: tape.u8(),
        serror_has_esr: tape.u8(),
        ext_dabt_pending: tape.u8(),
        pad: [0, 0, 0, 0, tape.u8()],
        serror_esr: tape.u64(),
        reserved: core::array::from_fn(|_| tape.u8().into()),
    };
    if let Ok(request) = events.request(true) {
        assert_eq!(request.serror.is_some(), events.serror_pending != 0);
        assert!(request.serror.flatten().is_none_or(|esr| esr >> 25 == 0));
        assert!(events.pad == [0; 5] && events.reserved == [0; 12]);
    }
}

/// The filter against a list that is searched from its beginning.
fn filter(mut tape: Tape<'_>) {
    let mut filter = SmcccFilter::default();
    let mut model: Vec<(u64, u64, Handler)> = Vec::new();
    let architecture = [0x8000_0000u64, 0xc000_0000].map(|base| (base, base + 0x1_0000));
    while !tape.is_empty() && model.len() < 16 {
        let (base, nr_functions) = (tape.u32(), tape.u32() >> (tape.u8() % 32));
        let action = tape.u8() % 4;
        let mut pad = [0; 15];
        pad[14] = tape.u8() / 250;
        let answer = filter.add(&Request {
            base,
            nr_functions,
            action,
            pad,
        });
        let (first, end) = (u64::from(base), u64::from(base) + u64::from(nr_functions));
        let handler = match action {
            0 => Some(Handler::Kernel),
            1 => Some(Handler::Nobody),
            2 => Some(Handler::Vmm),
            _ => None,
        };
        let bad = nr_functions == 0 || end > 1 << 32 || handler.is_none() || pad[14] != 0;
        let meets = |&(a, b): &(u64, u64)| first < b && a < end;
        let taken = model.iter().map(|(a, b, _)| (*a, *b));
        let expected = if bad {
            Err(Errno::EINVAL)
        } else if taken.chain(architecture).any(|range| meets(&range)) {
            Err(Errno::EEXIST)
        } else {
            model.extend(handler.map(|handler| (first, end, handler)));
            Ok(())
        };
        assert_eq!(answer, expected);
        for function in [base, base.wrapping_add(nr_functions), base.wrapping_sub(1)] {
            let at = u64::from(function);
            let who = model.iter().find(|(a, b, _)| (*a..*b).contains(&at));
            assert_eq!(
                filter.handler(function),
                who.map_or(Handler::Kernel, |range| range.2)
            );
        }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    match tape.u8() % 4 {
        0 => register(tape.u64()),
        1 => attribute(tape.u8().into(), tape.u64()),
        2 => vcpu(tape),
        _ => filter(tape),
    }
}
