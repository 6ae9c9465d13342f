//! Syndromes: what `classify` makes of ESR, FAR and HPFAR, against the fields read once more from the
//! manual's text (Arm ARM, ESR_EL2, "ISS encoding for an exception from a Data Abort").

use umbra_abort::{Abort, Context, Stage2Kind, World, classify};
use umbra_arm64::{Esr, FaultStatus, Gva, Hpfar, Ipa};

use crate::tape::Tape;

/// A fault status code: its kind, its level.
#[derive(Debug, PartialEq, Eq)]
enum Code {
    Stage2(Stage2Kind, i8),
    External { walk: bool },
    TlbConflict,
    Exclusive,
    Other,
}

fn code(fsc: u64) -> Code {
    let level = (fsc & 0b11) as i8;
    match fsc {
        0b000000..=0b000011 => Code::Stage2(Stage2Kind::AddressSize, level),
        0b000100..=0b000111 => Code::Stage2(Stage2Kind::Translation, level),
        0b001000..=0b001011 => Code::Stage2(Stage2Kind::AccessFlag, level),
        0b001100..=0b001111 => Code::Stage2(Stage2Kind::Permission, level),
        0b101001 => Code::Stage2(Stage2Kind::AddressSize, -1),
        0b101011 => Code::Stage2(Stage2Kind::Translation, -1),
        // External, and parity or ECC; of a walk at level -1 to 3.
        0b010000 | 0b011000 => Code::External { walk: false },
        0b010011..=0b010111 | 0b011011..=0b011111 => Code::External { walk: true },
        0b110000 => Code::TlbConflict,
        0b110101 => Code::Exclusive,
        _ => Code::Other,
    }
}

/// An abort from below.
fn lower(esr: u64, far: u64, hpfar: Option<u64>, abort: &Abort<Ipa>) {
    let bit = |n: u32| esr >> n & 1 != 0;
    let (instruction, s1ptw) = (esr >> 26 & 0x3f == 0x20, bit(7));
    match (code(esr & 0x3f), abort) {
        (Code::Stage2(kind, level), Abort::Stage2(fault)) => {
            assert_eq!((fault.kind, fault.level.number()), (kind, level));
            assert_eq!((fault.instruction, fault.s1ptw), (instruction, s1ptw));
            assert_eq!(fault.gva, Gva::new(far));
            let write = if s1ptw {
                kind == Stage2Kind::Permission
            } else {
                !instruction && bit(6)
            };
            assert_eq!(fault.write, write);
            assert_eq!(fault.cache_op, !instruction && bit(8) && !s1ptw);
            // ISV validates what describes the instruction, and an access of the walker is none.
            let described = !instruction && bit(24) && !s1ptw;
            assert_eq!(fault.access.is_some(), described);
            if let Some(access) = fault.access {
                assert_eq!(access.size.bytes() as u64, 1 << (esr >> 22 & 3));
                assert_eq!(u64::from(access.register), esr >> 16 & 31);
                assert_eq!((access.sign_extend, access.sixty_four), (bit(21), bit(15)));
            }
            // R_FKLWR: HPFAR is written for all of them but a permission fault of the access itself.
            let valid = kind != Stage2Kind::Permission || s1ptw;
            let offset = if s1ptw { 0 } else { far & 0xfff };
            let address = hpfar
                .filter(|_| valid)
                .map(|hpfar| (hpfar >> 4 & 0xff_ffff_ffff) << 12 | offset);
            assert_eq!(fault.address.map(Ipa::raw), address);
        }
        (Code::External { walk }, Abort::Sea(sea)) => {
            assert_eq!(sea.is_on_walk(), walk);
            assert_eq!(sea.instruction, instruction);
            // FnV says that FAR is not valid; an access by way of VNCR_EL2 has none of the guest's.
            let vncr = !instruction && bit(13);
            assert_eq!(sea.gva, (!bit(10) && !vncr).then(|| Gva::new(far)));
        }
        (Code::TlbConflict, Abort::TlbConflict) => {}
        (Code::Exclusive, Abort::UnsupportedExclusive { gva }) => assert_eq!(gva.raw(), far),
        (Code::Other, Abort::Unexpected { gva, .. }) => assert_eq!(gva.raw(), far),
        (code, abort) => panic!("{code:?} became {abort:?}"),
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let flags = tape.u8();
    let (esr, far, hpfar) = (tape.u64(), tape.u64(), tape.u64());
    let hpfar = (flags & 1 != 0).then_some(hpfar);
    let context = Context {
        ras: flags & 2 != 0,
        world: [World::Plain, World::VirtualEl2, World::Nested][usize::from(flags >> 2) % 3],
    };
    let abort: Abort<Ipa> = classify(Esr::new(esr), Gva::new(far), hpfar.map(Hpfar::new), context);
    let vncr = esr >> 13 & 1 != 0;
    match esr >> 26 & 0x3f {
        0x20 | 0x24 => lower(esr, far, hpfar, &abort),
        0x25 if vncr => assert!(
            matches!(abort, Abort::Vncr(_) | Abort::Sea(_) | Abort::TlbConflict),
            "{abort:?}"
        ),
        0x21 | 0x25 => assert_eq!(abort, Abort::AtEl2),
        0x2f => assert!(matches!(abort, Abort::SError(_)), "{abort:?}"),
        0x0e => assert_eq!(abort, Abort::IllegalReturn),
        ec => assert!(
            matches!(abort, Abort::NotAnAbort(of) if u64::from(of.number()) == ec),
            "{abort:?}"
        ),
    }
    let status = FaultStatus::decode(esr as u8);
    assert_eq!(status.encode(), Some(esr as u8 & 0x3f));
}
