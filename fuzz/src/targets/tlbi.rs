//! TLBI operands by the manual's formulas (Arm ARM C5.5), and the steps that cover a range.

use umbra_arm64::tlbi::{Step, Steps, TlbiRange, by_ipa, by_va, decode_ipa, decode_ttl, decode_va};
use umbra_arm64::{Granule, Gva, Ipa, Level};

use crate::tape::Tape;

/// TTL: granule in 3:2, level in 1:0. Which pairs are a leaf without LPA2.
fn leaf(ttl: u64) -> Option<(Granule, Level)> {
    Some(match ttl & 0xf {
        0b0101 => (Granule::K4, Level::L1),
        0b0110 => (Granule::K4, Level::L2),
        0b0111 => (Granule::K4, Level::L3),
        0b1010 => (Granule::K16, Level::L2),
        0b1011 => (Granule::K16, Level::L3),
        0b1110 => (Granule::K64, Level::L2),
        0b1111 => (Granule::K64, Level::L3),
        _ => return None,
    })
}

fn addresses(operand: u64) {
    let va = decode_va::<Gva>(operand);
    let sign = if operand >> 43 & 1 != 0 {
        0xff << 56
    } else {
        0
    };
    assert_eq!(va.page.raw(), operand << 20 >> 8 | sign);
    assert_eq!(u64::from(va.asid.number()), operand >> 48);
    assert_eq!(va.leaf, leaf(operand >> 44));
    assert_eq!(decode_ttl(operand >> 44 & 0xf), va.leaf);
    assert_eq!(by_va(va.page, va.asid, operand >> 44), operand);
    let ipa = decode_ipa::<Ipa>(operand);
    assert_eq!(ipa.page.raw(), (operand & 0xff_ffff_ffff) << 12);
    assert_eq!(ipa.leaf, va.leaf);
    let kept = 0xf << 44 | 0xff_ffff_ffff;
    assert_eq!(by_ipa(ipa.page, operand >> 44), operand & kept);
}

fn range(operand: u64) {
    let shift = match operand >> 46 & 3 {
        1 => 12,
        2 => 14,
        3 => 16,
        _ => return assert_eq!(TlbiRange::decode(operand), None),
    };
    let (range, asid) = TlbiRange::decode(operand).expect("a granule that is one");
    let (scale, num) = (operand >> 44 & 3, operand >> 39 & 31);
    // BaseADDR * granule ≤ address < BaseADDR * granule + (NUM + 1) * 2^(5*SCALE + 1) * granule
    assert_eq!(range.start, (operand & 0x1f_ffff_ffff) << shift);
    assert_eq!(
        range.bytes(),
        ((num + 1) * 2u64.pow(5 * scale as u32 + 1)) << shift
    );
    assert_eq!(range.encode(asid), operand);
}

/// Steps cover their range exactly, without a gap, and with no more instructions than a range needs.
fn steps(mut tape: Tape<'_>) {
    let granule = Granule::ALL[usize::from(tape.u8()) % 3];
    let level = [None, Some(Level::L2), Some(Level::L3)][usize::from(tape.u8()) % 3];
    let (first, many) = (u64::from(tape.u32()), u64::from(tape.u32() >> 4));
    let mut next = first << granule.shift();
    let end = next + (many << granule.shift());
    let mut count = 0;
    for step in Steps::new(granule, next, end - next, level) {
        let (at, bytes) = match step {
            Step::Page(at) => (at, granule.bytes()),
            Step::Range(range) => {
                assert_eq!((range.granule, range.level), (granule, level));
                let said = TlbiRange::decode(range.encode(umbra_arm64::Asid::new(0)));
                assert_eq!(said.map(|said| said.0.bytes()), Some(range.bytes()));
                (range.start, range.bytes())
            }
        };
        assert_eq!(at, next);
        next += bytes;
        count += 1;
    }
    assert_eq!(next, end);
    assert!(
        count <= 5 + (many >> 21),
        "{count} steps for {many} granules"
    );
}

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let operand = tape.u64();
    addresses(operand);
    range(operand);
    steps(tape);
}
