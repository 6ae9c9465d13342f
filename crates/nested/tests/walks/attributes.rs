//! Memory attributes of both stages.

use umbra_arm64::{L2Ipa, Level};
use umbra_nested::attributes::{
    Attributes, Device, Memory, Policy, Shareability, Stage2Attributes,
};
use umbra_nested::stage2::{Access, Stage2Config, walk};

use crate::fake::Fake;
use crate::stage2::FEATURES;

fn par(byte: u64) -> u8 {
    let attributes = Attributes::from_mair(byte, Shareability::Inner, true);
    attributes.encode_par(true).0
}

/// PAR_EL1.ATTR is the MAIR byte, for every byte that has a meaning.
#[test]
fn every_allocated_mair_byte_comes_back() {
    for byte in 0..256 {
        let (high, low) = (byte >> 4, byte & 15);
        let reserved = match (high, low) {
            (0, low) => low & 0b10 != 0,
            (0b0100 | 0b1010, 0) => false,
            (_, low) => low == 0,
        };
        let expected = if reserved { 0 } else { byte as u8 };
        // 0x44 and its like are their own encodings; nothing else is equivalent to another.
        assert_eq!(par(byte), expected, "{byte:#04x}");
    }
}

#[test]
fn without_feat_xs_its_encodings_are_reserved_and_never_reported() {
    for byte in [0x01, 0x0d, 0x40, 0xa0] {
        let attributes = Attributes::from_mair(byte, Shareability::Inner, false);
        assert_eq!(
            attributes.memory,
            Memory::Device(Device::nGnRnE),
            "{byte:#x}"
        );
        assert_eq!(attributes.encode_par(false), (0, 0b10));
    }
    let quick = Attributes::from_mair(0x40, Shareability::Inner, true);
    assert_eq!(
        (quick.encode_par(true).0, quick.encode_par(false).0),
        (0x40, 0x44)
    );
}

#[test]
fn shareability_is_widened_for_what_is_not_cached() {
    for (byte, sh) in [
        (0x00, 0b10),
        (0x0c, 0b10),
        (0x44, 0b10),
        (0x4f, 0b00),
        (0xff, 0b00),
    ] {
        let attributes = Attributes::from_mair(byte, Shareability::Non, true);
        assert_eq!(attributes.encode_par(true).1, sh, "{byte:#x}");
    }
}

fn second(fwb: bool, memattr: u8) -> Stage2Attributes {
    Stage2Attributes {
        fwb,
        cacheable: true,
        memattr,
        shareability: Shareability::Inner,
        fnxs: false,
    }
}

fn combined(first: u64, second: Stage2Attributes) -> (u8, u8) {
    let first = Attributes::from_mair(first, Shareability::Non, true);
    second.combine(first).encode_par(true)
}

/// Without FEAT_S2FWB the stricter of both stages counts (Arm ARM D8.6.5).
#[test]
fn without_fwb_the_stricter_stage_wins() {
    for (first, memattr, attr) in [
        // Device against device: the stricter type.
        (0x00, 0b0011, 0x00),
        (0x0c, 0b0001, 0x04),
        (0x08, 0b0011, 0x08),
        // Device against normal.
        (0x04, 0b1111, 0x04),
        (0xff, 0b0010, 0x08),
        // Normal against normal: inner and outer by themselves.
        (0xff, 0b1111, 0xff),
        (0xff, 0b1010, 0xbb),
        (0xff, 0b0101, 0x44),
        (0xff, 0b0111, 0x4f),
        (0xbb, 0b1111, 0xbb),
        (0x44, 0b1111, 0x44),
        (0x4f, 0b1101, 0x44),
        // Hints are those of stage 1.
        (0x77, 0b1111, 0x77),
        (0xee, 0b1010, 0xaa),
    ] {
        // Stage 1's 0xff is quick (XS = 0) memory, and stays so unless stage 2 has a say; compare
        // without the feature.
        let first = Attributes::from_mair(first, Shareability::Non, false);
        let found = second(false, memattr).combine(first).encode_par(false).0;
        assert_eq!(found, attr, "{memattr:04b}");
    }
}

/// With FEAT_S2FWB, MemAttr[1:0] may override stage 1 (Arm ARM D8.6.6).
#[test]
fn with_fwb_stage_2_may_override() {
    for (first, memattr, attr) in [
        // 0b0110: write-back, whatever stage 1 says.
        (0x00, 0b0110, 0xff),
        (0x44, 0b0110, 0xff),
        (0xbb, 0b0110, 0xff),
        (0xee, 0b0110, 0xee),
        // 0b0111: as stage 1 says.
        (0x00, 0b0111, 0x00),
        (0x77, 0b0111, 0x77),
        // 0b0101: not cached, or stage 1's device.
        (0xff, 0b0101, 0x44),
        (0x08, 0b0101, 0x08),
        // 0b00xx: device.
        (0xff, 0b0010, 0x08),
        (0x04, 0b0010, 0x04),
        (0x0c, 0b0000, 0x00),
    ] {
        let first_attributes = Attributes::from_mair(first, Shareability::Non, false);
        let found = second(true, memattr)
            .combine(first_attributes)
            .encode_par(false)
            .0;
        assert_eq!(found, attr, "{first:#x} {memattr:04b}");
    }
}

#[test]
fn the_wider_shareability_counts() {
    use Shareability::{Inner, Non, Outer};
    for (first, other, sh) in [
        (Non, Non, 0b00),
        (Non, Inner, 0b11),
        (Inner, Non, 0b11),
        (Inner, Outer, 0b10),
        (Outer, Non, 0b10),
    ] {
        let first = Attributes::from_mair(0xff, first, true);
        let other = Stage2Attributes {
            shareability: other,
            ..second(false, 0b1111)
        };
        assert_eq!(other.combine(first).encode_par(true).1, sh);
    }
}

#[test]
fn fnxs_makes_memory_quick() {
    let other = Stage2Attributes {
        fnxs: true,
        ..second(false, 0b0101)
    };
    assert_eq!(combined(0x44, other).0, 0x40);
    assert_eq!(combined(0x44, second(false, 0b0101)).0, 0x44);
    let device = Stage2Attributes {
        fnxs: true,
        ..second(true, 0b0001)
    };
    assert_eq!(combined(0x0c, device).0, 0x05);
}

/// HCR_EL2.CD: no normal memory is cached.
#[test]
fn stage_2_can_switch_caching_off() {
    for fwb in [false, true] {
        let off = |memattr| Stage2Attributes {
            cacheable: false,
            ..second(fwb, memattr)
        };
        let first = Attributes::from_mair(0xff, Shareability::Non, false);
        let normal = if fwb { 0b0110 } else { 0b1111 };
        assert_eq!(off(normal).combine(first).memory, Memory::NON_CACHEABLE);
        let device = off(0b0001).combine(first).memory;
        assert_eq!(device, Memory::Device(Device::nGnRE));
    }
}

#[test]
fn a_stage_2_walk_reports_the_attributes_of_its_leaf() {
    const ROOT: u64 = 0x40_0000;
    let leaf = 0b01 | 1 << 10 | 0b1010 << 2 | 0b10 << 8;
    let found = |vtcr: u64, hcr: u64| {
        let mut memory = Fake::new();
        memory.put(ROOT, leaf);
        let config = Stage2Config::new(vtcr, ROOT, 1 | hcr, false, &FEATURES);
        let mapping = walk(&config, L2Ipa::new(0), Access::Probe, &mut memory).expect("mapped");
        assert_eq!(mapping.translation.level, Level::L1);
        mapping.attributes.expect("stage 2 is on")
    };
    let vtcr = 24 | 1 << 6 | 5 << 16 | 0b11 << 12;
    let plain = found(vtcr, 0);
    assert_eq!(
        (plain.memattr, plain.shareability),
        (0b1010, Shareability::Outer)
    );
    assert!(!plain.fwb && plain.cacheable && !plain.is_device());
    assert!(found(vtcr, 1 << 46).fwb && !found(vtcr, 1 << 32).cacheable);
    // With DS those bits are address bits, and VTCR_EL2.SH0 speaks for all.
    let mut memory = Fake::new();
    memory.put(ROOT, leaf & !(0b10 << 8));
    let wide = Stage2Config::new(vtcr | 1 << 32, ROOT, 1, false, &FEATURES);
    let mapping = walk(&wide, L2Ipa::new(0), Access::Probe, &mut memory).expect("mapped");
    let attributes = mapping.attributes.expect("stage 2 is on");
    assert_eq!(attributes.shareability, Shareability::Inner);
    let through = Attributes::from_mair(0xff, Shareability::Non, true);
    let Memory::Normal { outer, inner } = attributes.combine(through).memory else {
        panic!("normal memory");
    };
    assert_eq!(
        (outer.policy, inner.policy),
        (Policy::WriteThrough, Policy::WriteThrough)
    );
}
