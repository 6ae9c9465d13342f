//! Memory attributes.

use super::{bit, choice, slice};

/// `MemAttrHints`. `attrs`: 0 non-cacheable, 2 write-through, 3 write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttrHints {
    pub(crate) attrs: u8,
    pub(crate) hints: u8,
    pub(crate) transient: bool,
}

const NC: u8 = 0;
const WT: u8 = 2;
const WB: u8 = 3;

/// `MemoryAttributes`. `sh` is an SH field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemAttrs {
    pub(crate) device: Option<u8>,
    pub(crate) inner: AttrHints,
    pub(crate) outer: AttrHints,
    pub(crate) sh: u64,
    pub(crate) xs: bool,
}

const NON_CACHEABLE: AttrHints = AttrHints {
    attrs: NC,
    hints: 0,
    transient: false,
};

const fn hints(attrs: u8, hints: u8) -> AttrHints {
    AttrHints {
        attrs,
        hints,
        transient: false,
    }
}

impl MemAttrs {
    pub(crate) fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// `NormalNCMemAttr`.
    pub(crate) fn normal_nc(xs: bool) -> MemAttrs {
        MemAttrs {
            device: None,
            inner: NON_CACHEABLE,
            outer: NON_CACHEABLE,
            sh: 0b10,
            xs,
        }
    }

    pub(crate) fn write_back_nsh() -> MemAttrs {
        MemAttrs {
            inner: hints(WB, 3),
            outer: hints(WB, 3),
            sh: 0b00,
            ..MemAttrs::normal_nc(false)
        }
    }

    pub(crate) fn write_through_osh() -> MemAttrs {
        MemAttrs {
            inner: hints(WT, 2),
            outer: hints(WT, 2),
            ..MemAttrs::normal_nc(true)
        }
    }

    pub(crate) fn device_ngnrne() -> MemAttrs {
        MemAttrs {
            device: Some(0),
            ..MemAttrs::normal_nc(true)
        }
    }

    /// `WalkMemAttrs`: always normal; more of it is never looked at.
    pub(crate) fn walk() -> MemAttrs {
        MemAttrs::write_back_nsh()
    }
}

fn decode_shareability(sh: u64) -> u64 {
    if sh == 0b01 {
        choice::RESERVED_SHAREABILITY
    } else {
        sh
    }
}

/// `DecodeLDFAttr`.
fn decode_ldf_attr(attr: u64) -> AttrHints {
    let attrs = if !bit(attr, 2) {
        WT
    } else if attr == 0b0100 {
        return NON_CACHEABLE;
    } else {
        WB
    };
    AttrHints {
        attrs,
        hints: slice(attr, 1, 0) as u8,
        transient: slice(attr, 1, 0) != 0 && !bit(attr, 3),
    }
}

/// `S1ConstrainUnpredictableRESMAIR`.
fn is_reserved(attr: u64, have_xs: bool) -> bool {
    if slice(attr, 7, 4) == 0 {
        return match slice(attr, 1, 0) {
            0b00 => false,
            0b01 => !have_xs,
            _ => true,
        };
    }
    match attr {
        0b0100_0000 | 0b1010_0000 => !have_xs,
        // No FEAT_MTE2.
        0b1111_0000 => true,
        _ => slice(attr, 3, 0) == 0,
    }
}

/// `S1DecodeMemAttrs`.
pub(crate) fn s1_decode(attr: u64, sh: u64, have_xs: bool) -> MemAttrs {
    let attr = if is_reserved(attr, have_xs) {
        choice::RESERVED_MAIR
    } else {
        attr
    };
    let sh = decode_shareability(sh);
    if slice(attr, 7, 4) == 0 {
        return MemAttrs {
            device: Some(slice(attr, 3, 2) as u8),
            sh,
            xs: !bit(attr, 0),
            ..MemAttrs::normal_nc(true)
        };
    }
    match attr {
        0b0100_0000 => MemAttrs {
            sh,
            ..MemAttrs::normal_nc(false)
        },
        0b1010_0000 => MemAttrs {
            sh,
            xs: false,
            ..MemAttrs::write_through_osh()
        },
        _ => {
            let outer = decode_ldf_attr(slice(attr, 7, 4));
            let inner = decode_ldf_attr(slice(attr, 3, 0));
            MemAttrs {
                device: None,
                inner,
                outer,
                sh,
                xs: !(inner.attrs == WB && outer.attrs == WB),
            }
        }
    }
}

/// `S2DecodeCacheability`; hints are UNKNOWN and never used.
fn s2_decode_cacheability(attr: u64) -> AttrHints {
    let attr = if attr == 0b00 {
        choice::RESERVED_S2_CACHEABILITY
    } else {
        attr
    };
    match attr {
        0b01 => NON_CACHEABLE,
        0b10 => hints(WT, 0),
        _ => hints(WB, 0),
    }
}

/// `S2DecodeMemAttrs`, with XS from FnXS as in `AArch64.S2NextWalkStateLeaf`.
pub(crate) fn s2_decode(attr: u64, sh: u64, fnxs: bool) -> MemAttrs {
    let sh = decode_shareability(sh);
    let xs = !fnxs;
    if slice(attr, 3, 2) == 0 {
        return MemAttrs {
            device: Some(slice(attr, 1, 0) as u8),
            sh,
            ..MemAttrs::normal_nc(xs)
        };
    }
    MemAttrs {
        device: None,
        outer: s2_decode_cacheability(slice(attr, 3, 2)),
        inner: s2_decode_cacheability(slice(attr, 1, 0)),
        sh,
        xs,
    }
}

/// `S2CombineS1AttrHints`.
fn combine_hints(first: AttrHints, second: AttrHints) -> AttrHints {
    if first.attrs == NC || second.attrs == NC {
        return NON_CACHEABLE;
    }
    let attrs = if first.attrs == WT || second.attrs == WT {
        WT
    } else {
        WB
    };
    AttrHints { attrs, ..first }
}

/// `S2CombineS1Shareability`.
fn combine_sh(first: u64, second: u64) -> u64 {
    if first == 0b10 || second == 0b10 {
        0b10
    } else if first == 0b11 || second == 0b11 {
        0b11
    } else {
        0b00
    }
}

/// `EffectiveShareability`.
fn effective(attrs: MemAttrs) -> MemAttrs {
    let uncached = attrs.inner.attrs == NC && attrs.outer.attrs == NC;
    let sh = if attrs.is_device() || uncached {
        0b10
    } else {
        attrs.sh
    };
    MemAttrs { sh, ..attrs }
}

/// `S2CombineS1MemAttrs`.
pub(crate) fn s2_combine_s1(first: MemAttrs, second: MemAttrs) -> MemAttrs {
    let mut attrs = match (first.device, second.device) {
        (Some(one), Some(two)) => MemAttrs {
            device: Some(one.min(two)),
            ..first
        },
        (Some(_), None) => first,
        (None, Some(_)) => second,
        (None, None) => MemAttrs {
            inner: combine_hints(first.inner, second.inner),
            outer: combine_hints(first.outer, second.outer),
            ..first
        },
    };
    attrs.sh = combine_sh(first.sh, second.sh);
    let write_back = !attrs.is_device() && attrs.inner.attrs == WB && attrs.outer.attrs == WB;
    attrs.xs = if write_back {
        false
    } else {
        second.xs && first.xs
    };
    effective(attrs)
}

/// `AArch64.S2ApplyFWBMemAttrs`.
pub(crate) fn s2_apply_fwb(first: MemAttrs, attr: u64, sh: u64, fnxs: bool) -> MemAttrs {
    let force = |one: AttrHints| {
        if first.is_device() || one.attrs == NC {
            hints(WB, 3)
        } else {
            AttrHints { attrs: WB, ..one }
        }
    };
    let mut attrs = if !bit(attr, 2) {
        let device = slice(attr, 1, 0) as u8;
        MemAttrs {
            device: Some(first.device.map_or(device, |one| one.min(device))),
            ..first
        }
    } else {
        match slice(attr, 1, 0) {
            0b11 => first,
            0b10 => MemAttrs {
                device: None,
                inner: force(first.inner),
                outer: force(first.outer),
                sh: first.sh,
                xs: false,
            },
            _ if first.is_device() => first,
            _ => MemAttrs::normal_nc(first.xs),
        }
    };
    attrs.sh = combine_sh(first.sh, decode_shareability(sh));
    if fnxs {
        attrs.xs = false;
    }
    effective(attrs)
}

/// `PAREncodeShareability`.
pub(crate) fn par_encode_shareability(attrs: &MemAttrs) -> u64 {
    effective(*attrs).sh
}

/// `EncodePARAttrs`. XS is not reported where FEAT_XS is not there.
pub(crate) fn encode_par_attrs(attrs: &MemAttrs, have_xs: bool) -> u64 {
    let quick = have_xs && !attrs.xs;
    if let Some(device) = attrs.device {
        return u64::from(device) << 2 | u64::from(quick);
    }
    if quick {
        let outer = attrs.outer;
        if outer.attrs == WT && attrs.inner.attrs == WT && !outer.transient && outer.hints == 2 {
            return 0b1010_0000;
        } else if outer.attrs == NC && attrs.inner.attrs == NC {
            return 0b0100_0000;
        }
    }
    let nibble = |one: AttrHints| {
        let kind: u64 = match (one.attrs, one.transient) {
            (NC, _) => return 0b0100,
            (WT, true) => 0b00,
            (WT, false) => 0b10,
            (_, true) => 0b01,
            (_, false) => 0b11,
        };
        kind << 2 | u64::from(one.hints)
    };
    nibble(attrs.outer) << 4 | nibble(attrs.inner)
}
