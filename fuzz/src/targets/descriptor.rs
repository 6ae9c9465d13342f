//! A guest's descriptor, field by field (Arm ARM D8.3), for every level and granule.

use umbra_arm64::descriptor::{Descriptor, DescriptorKind};
use umbra_arm64::{Granule, Level};

use crate::tape::Tape;

pub(crate) fn run(bytes: &[u8]) {
    let word = Tape(bytes).u64();
    let descriptor = Descriptor::new(word);
    let bit = |n: u32| word >> n & 1 != 0;
    for level in Level::ALL {
        // Bit 0: valid. Bit 1: a table above level 3, a page at level 3.
        let expected = match (bit(0), bit(1), level) {
            (false, _, _) | (true, false, Level::L3) => DescriptorKind::Invalid,
            (true, true, Level::L3) | (true, false, _) => DescriptorKind::Leaf,
            (true, true, _) => DescriptorKind::Table,
        };
        assert_eq!(descriptor.kind(level), expected);
        for granule in Granule::ALL {
            // Bits 47 down to what the level resolves: pages have page bits, each level stride more.
            let page = granule.shift();
            let low = page + (page - 3) * (3 - level.number()) as u32;
            let output: u64 = (low..48).filter(|n| bit(*n)).map(|n| 1 << n).sum();
            assert_eq!(descriptor.output(level, granule), output);
        }
    }
    assert_eq!(descriptor.accessed(), bit(10));
    assert_eq!(descriptor.contiguous(), bit(52));
    assert_eq!(descriptor.s2ap(), (bit(6), bit(7)));
    let with = descriptor.with_accessed();
    assert!(with.accessed() && (with.raw() ^ word) & !(1 << 10) == 0);
    // XN[1:0] in 54:53: 00 both, 01 EL0 alone, 10 neither, 11 EL1 alone; without XNX bit 53 is ignored.
    let xnx = match word >> 53 & 3 {
        0 => (true, true),
        1 => (true, false),
        2 => (false, false),
        _ => (false, true),
    };
    assert_eq!(descriptor.s2xn(true), xnx);
    assert_eq!(descriptor.s2xn(false), (!bit(54), !bit(54)));
}
