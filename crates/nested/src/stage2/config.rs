//! A guest hypervisor's stage-2 control registers, decoded.
//!
//! Decoding cannot fail: what is illegal is remembered as "no start level", and every walk then
//! ends in the level 0 translation fault that the manual names for it.

use umbra_arm64::{Granule, Level};

use crate::attributes::{Shareability, Stage2Form};
use crate::descend::Root;
use crate::features::{Features, pa_range};
use crate::layout::{Layout, bits};

const HCR_VM: u64 = 1 << 0;
const HCR_PTW: u64 = 1 << 2;
const HCR_DC: u64 = 1 << 12;
const HCR_TGE: u64 = 1 << 27;
const HCR_CD: u64 = 1 << 32;
const HCR_FWB: u64 = 1 << 46;
const VTCR_HA: u64 = 1 << 21;
const VTCR_HD: u64 = 1 << 22;
const VTCR_DS: u64 = 1 << 32;
const VTCR_SL2: u64 = 1 << 33;

/// Stage 2 of one guest of a guest hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Stage2Config {
    /// Stage 2 is on: HCR_EL2.VM, or HCR_EL2.DC which implies it.
    pub(crate) enabled: bool,
    /// `None` for a configuration under which every walk faults.
    pub(crate) root: Option<Root>,
    /// The walker sets the access flag.
    pub(crate) ha: bool,
    /// The walker manages dirty state.
    pub(crate) hd: bool,
    /// XN has two bits.
    pub(crate) xnx: bool,
    /// A stage-1 walk must not touch device memory.
    pub(crate) protected_walks: bool,
    /// How memory attributes are written.
    pub(crate) attributes: Stage2Form,
}

fn granule(tg0: u64) -> Option<Granule> {
    match tg0 {
        0b00 => Some(Granule::K4),
        0b01 => Some(Granule::K64),
        0b10 => Some(Granule::K16),
        _ => None,
    }
}

/// The start level that SL2:SL0 name. `None` for reserved encodings and for those that the size of
/// physical addresses forbids (Arm ARM VTCR_EL2.SL0, AArch64.S2InvalidSL).
fn start_level(layout: Layout, sl2: bool, sl0: u64, features: &Features) -> Option<Level> {
    let reaches = |pa_bits| features.pa_bits >= pa_bits;
    match (layout.granule, sl2, sl0) {
        (Granule::K4, true, 0b00) => Some(Level::Minus1),
        (Granule::K4, true, _) => None,
        (Granule::K4, false, 0b00) => Some(Level::L2),
        (Granule::K4, false, 0b01) => Some(Level::L1),
        (Granule::K4, false, 0b10) => reaches(44).then_some(Level::L0),
        (Granule::K4, false, _) => features.small_tables.then_some(Level::L3),
        (Granule::K16 | Granule::K64, _, 0b00) => Some(Level::L3),
        (Granule::K16 | Granule::K64, _, 0b01) => Some(Level::L2),
        (Granule::K16, _, 0b10) => reaches(42).then_some(Level::L1),
        (Granule::K16, _, _) => layout.ds().then_some(Level::L0),
        (Granule::K64, _, 0b10) => reaches(44).then_some(Level::L1),
        (Granule::K64, _, _) => None,
    }
}

/// Whether a walk from `start` resolves `input_bits`: the start table has at least two entries, and
/// at most 16 tables are concatenated (AArch64.S2InconsistentSL).
fn is_consistent(layout: Layout, start: Level, input_bits: u32) -> bool {
    let below = layout.granule.level_shift(start);
    (below + 1..=below + layout.stride() + 4).contains(&input_bits)
}

/// The smallest legal T0SZ: an input is not bigger than physical addresses are.
fn min_t0sz(layout: Layout, features: &Features) -> u32 {
    let most = if layout.granule == Granule::K64 || layout.ds() {
        52
    } else {
        48
    };
    64 - features.pa_bits.min(most)
}

impl Stage2Config {
    /// Decodes VTCR_EL2, VTTBR_EL2 and HCR_EL2 of a guest that was shown `features`; `big_endian`
    /// is its SCTLR_EL2.EE.
    ///
    /// T0SZ out of range is always a fault here (the manual leaves clamping open where FEAT_LPA is
    /// absent).
    pub fn new(
        vtcr: u64,
        vttbr: u64,
        hcr: u64,
        big_endian: bool,
        features: &Features,
    ) -> Stage2Config {
        let granule = features.stage2.select(granule(bits(vtcr, 15, 14)));
        let support = features.stage2.support(granule);
        let layout = Layout::new(granule, support, vtcr & VTCR_DS != 0, features);
        let ha = features.access_flag && vtcr & VTCR_HA != 0;
        let fwb = features.fwb && hcr & HCR_FWB != 0;
        Stage2Config {
            enabled: hcr & (HCR_VM | HCR_DC) != 0,
            root: root(vtcr, vttbr, big_endian, layout, features),
            ha,
            hd: ha && features.dirty_state && vtcr & VTCR_HD != 0,
            xnx: features.xnx,
            protected_walks: hcr & (HCR_TGE | HCR_PTW) == HCR_PTW,
            attributes: Stage2Form {
                fwb,
                cacheable: hcr & HCR_CD == 0,
                common_sh: layout
                    .ds()
                    .then(|| Shareability::decode(bits(vtcr, 13, 12))),
                xs: features.xs,
            },
        }
    }

    /// Whether stage 2 translates at all (HCR_EL2.VM or DC). If not, [`super::walk()`] is the
    /// identity.
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The granule of the tables; `None` where no walk can succeed.
    pub fn granule(&self) -> Option<Granule> {
        self.root.map(|root| root.layout.granule)
    }
}

fn root(
    vtcr: u64,
    vttbr: u64,
    big_endian: bool,
    layout: Layout,
    features: &Features,
) -> Option<Root> {
    let t0sz = bits(vtcr, 5, 0) as u32;
    if t0sz < min_t0sz(layout, features) || t0sz > features.max_txsz(layout.granule) {
        return None;
    }
    let input_bits = 64 - t0sz;
    let sl2 = layout.ds() && vtcr & VTCR_SL2 != 0;
    let start = start_level(layout, sl2, bits(vtcr, 7, 6), features)
        .filter(|start| is_consistent(layout, *start, input_bits))?;
    let ps = bits(vtcr, 18, 16);
    let table_bits = layout.start_table_bits(input_bits, start);
    Some(Root {
        layout,
        start,
        base: layout.base(vttbr, table_bits, ps == 0b110),
        input_bits,
        output_bits: pa_range(ps).min(features.pa_bits),
        big_endian,
    })
}
