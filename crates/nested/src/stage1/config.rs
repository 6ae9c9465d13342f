//! The control registers of a stage 1, decoded.
//!
//! Decoding cannot fail: an illegal half of the address space has no root, and every walk in it ends
//! in the level 0 translation fault that the manual names for it.

use umbra_arm64::{Granule, Gva, Level};

use crate::attributes::{Attributes, Shareability};
use crate::descend::Root;
use crate::features::{Features, pa_range};
use crate::layout::{Layout, bits};

/// A translation regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regime {
    /// EL1&0: two halves, EL1 and EL0.
    El10,
    /// EL2&0 (HCR_EL2.E2H = 1): two halves, EL2 and EL0.
    El20,
    /// EL2 (HCR_EL2.E2H = 0): one half, no EL0; TCR_EL2 is laid out differently.
    El2,
}

impl Regime {
    /// Whether there is an EL0, and with it an upper half and user permissions.
    pub(crate) const fn has_el0(self) -> bool {
        match self {
            Regime::El10 | Regime::El20 => true,
            Regime::El2 => false,
        }
    }
}

/// The registers of a stage 1, as the guest wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage1Regs {
    /// SCTLR_ELx.
    pub sctlr: u64,
    /// TCR_ELx.
    pub tcr: u64,
    /// TTBR0_ELx.
    pub ttbr0: u64,
    /// TTBR1_ELx; not looked at in [`Regime::El2`].
    pub ttbr1: u64,
    /// MAIR_ELx.
    pub mair: u64,
}

const SCTLR_M: u64 = 1 << 0;
const SCTLR_C: u64 = 1 << 2;
const SCTLR_I: u64 = 1 << 12;
const SCTLR_WXN: u64 = 1 << 19;
const SCTLR_EE: u64 = 1 << 25;
const SCTLR_EPAN: u64 = 1 << 57;
const HCR_DC: u64 = 1 << 12;
const HCR_TGE: u64 = 1 << 27;

/// Where the fields of TCR_ELx that depend on the half, or on the layout, stand.
struct Fields {
    t_sz: u32,
    tg: u32,
    sh: u32,
    epd: Option<u32>,
    tbi: u32,
    tbid: u32,
    hpd: u32,
    e0pd: Option<u32>,
}

/// The lower half of TCR_EL1, and of TCR_EL2 with E2H.
const LOWER: Fields = Fields {
    t_sz: 0,
    tg: 14,
    sh: 12,
    epd: Some(7),
    tbi: 37,
    tbid: 51,
    hpd: 41,
    e0pd: Some(55),
};
/// The upper half.
const UPPER: Fields = Fields {
    t_sz: 16,
    tg: 30,
    sh: 28,
    epd: Some(23),
    tbi: 38,
    tbid: 52,
    hpd: 42,
    e0pd: Some(56),
};
/// TCR_EL2 without E2H.
const EL2: Fields = Fields {
    t_sz: 0,
    tg: 14,
    sh: 12,
    epd: None,
    tbi: 20,
    tbid: 29,
    hpd: 24,
    e0pd: None,
};

/// Where the fields that both halves share stand: IPS or PS, HA, HD, DS.
struct Common {
    ps: u32,
    ha: u32,
    hd: u32,
    ds: u32,
}

const COMMON: Common = Common {
    ps: 32,
    ha: 39,
    hd: 40,
    ds: 59,
};
const COMMON_EL2: Common = Common {
    ps: 16,
    ha: 21,
    hd: 22,
    ds: 32,
};

/// One half of an address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    /// `None` where TnSZ is out of range.
    pub(crate) root: Option<Root>,
    /// Addresses must be ones above the input size, not zeros.
    pub(crate) upper: bool,
    /// The top byte is ignored.
    pub(crate) tbi: bool,
    /// … except for fetches.
    pub(crate) tbid: bool,
    /// Walks are forbidden (EPDn).
    pub(crate) walks_disabled: bool,
    /// EL0 is kept out (E0PDn).
    pub(crate) el0_faults: bool,
    /// Table descriptors limit permissions (HPDn is clear).
    pub(crate) hierarchical: bool,
    /// The one shareability of all leaves (DS).
    pub(crate) common_sh: Option<Shareability>,
}

/// Stage 1 of one translation regime.
#[derive(Clone, Copy, Debug)]
pub struct Stage1Config {
    pub(crate) regime: Regime,
    /// The MMU is on.
    pub(crate) enabled: bool,
    /// What memory is while it is off.
    pub(crate) flat: Attributes,
    pub(crate) halves: [Half; 2],
    pub(crate) mair: u64,
    pub(crate) ha: bool,
    pub(crate) hd: bool,
    pub(crate) wxn: bool,
    /// FEAT_PAN is there.
    pub(crate) pan: bool,
    pub(crate) epan: bool,
    pub(crate) data_cache: bool,
    pub(crate) fetch_cache: bool,
    pub(crate) xs: bool,
    /// Physical address bits.
    pub(crate) pa_bits: u32,
}

const fn flag(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}

fn granule(upper: bool, tg: u64) -> Option<Granule> {
    match (upper, tg) {
        (false, 0b00) | (true, 0b10) => Some(Granule::K4),
        (false, 0b10) | (true, 0b01) => Some(Granule::K16),
        (false, 0b01) | (true, 0b11) => Some(Granule::K64),
        _ => None,
    }
}

/// The level at which a walk of `input_bits` begins: as few levels as resolve them all.
fn start_level(layout: Layout, input_bits: u32) -> Option<Level> {
    Level::ALL
        .into_iter()
        .rev()
        .find(|level| input_bits <= layout.granule.level_shift(*level) + layout.stride())
}

impl Half {
    fn new(
        regime: Regime,
        upper: bool,
        regs: &Stage1Regs,
        common: &Common,
        features: &Features,
    ) -> Half {
        let tcr = regs.tcr;
        let fields = match (regime, upper) {
            (Regime::El2, _) => &EL2,
            (_, false) => &LOWER,
            (_, true) => &UPPER,
        };
        let asked = granule(upper, bits(tcr, fields.tg + 1, fields.tg));
        let granule = features.stage1.select(asked);
        let support = features.stage1.support(granule);
        let layout = Layout::new(granule, support, flag(tcr, common.ds), features);
        let ttbr = if upper { regs.ttbr1 } else { regs.ttbr0 };
        let sh = Shareability::decode(bits(tcr, fields.sh + 1, fields.sh));
        Half {
            root: root(
                layout,
                bits(tcr, fields.t_sz + 5, fields.t_sz) as u32,
                ttbr,
                bits(tcr, common.ps + 2, common.ps),
                flag(regs.sctlr, SCTLR_EE.trailing_zeros()),
                features,
            ),
            upper,
            tbi: flag(tcr, fields.tbi),
            tbid: features.tbid && flag(tcr, fields.tbid),
            walks_disabled: fields.epd.is_some_and(|at| flag(tcr, at)),
            el0_faults: features.e0pd && fields.e0pd.is_some_and(|at| flag(tcr, at)),
            hierarchical: !(features.hpds && flag(tcr, fields.hpd)),
            common_sh: layout.ds().then_some(sh),
        }
    }

    /// The highest address bit that is looked at.
    pub(crate) const fn top_bit(&self, fetch: bool) -> u32 {
        if self.tbi && !(self.tbid && fetch) {
            55
        } else {
            63
        }
    }
}

fn root(
    layout: Layout,
    t_sz: u32,
    ttbr: u64,
    ps: u64,
    big_endian: bool,
    features: &Features,
) -> Option<Root> {
    let wide = layout.ds() || layout.granule == Granule::K64 && features.lva;
    let least = if wide { 12 } else { 16 };
    if t_sz < least || t_sz > features.max_txsz(layout.granule) {
        return None;
    }
    let input_bits = 64 - t_sz;
    let start = start_level(layout, input_bits)?;
    let table_bits = layout.start_table_bits(input_bits, start);
    Some(Root {
        layout,
        start,
        base: layout.base(ttbr, table_bits, ps == 0b110),
        input_bits,
        output_bits: pa_range(ps).min(features.pa_bits),
        big_endian,
    })
}

impl Stage1Config {
    /// Decodes the registers of `regime` for a guest that was shown `features`. `hcr` is the
    /// HCR_EL2 that is in force for EL1&0: DC and TGE switch that stage 1 off.
    ///
    /// TnSZ out of range is always a fault here (the manual leaves clamping open in part).
    pub fn new(regime: Regime, regs: &Stage1Regs, hcr: u64, features: &Features) -> Stage1Config {
        let under_hcr = regime == Regime::El10;
        let default_cacheable = under_hcr && hcr & HCR_DC != 0;
        let switched_off = under_hcr && hcr & (HCR_DC | HCR_TGE) != 0;
        let common = match regime {
            Regime::El10 | Regime::El20 => &COMMON,
            Regime::El2 => &COMMON_EL2,
        };
        let ha = features.access_flag && flag(regs.tcr, common.ha);
        Stage1Config {
            regime,
            enabled: regs.sctlr & SCTLR_M != 0 && !switched_off,
            flat: if default_cacheable {
                Attributes::DEFAULT_CACHEABLE
            } else {
                Attributes::OFF
            },
            halves: [false, true].map(|upper| Half::new(regime, upper, regs, common, features)),
            mair: regs.mair,
            ha,
            hd: ha && features.dirty_state && flag(regs.tcr, common.hd),
            wxn: regs.sctlr & SCTLR_WXN != 0,
            pan: features.pan,
            epan: features.epan && regs.sctlr & SCTLR_EPAN != 0,
            data_cache: regs.sctlr & SCTLR_C != 0,
            fetch_cache: regs.sctlr & SCTLR_I != 0,
            xs: features.xs,
            pa_bits: features.pa_bits,
        }
    }

    /// The half that `va` lies in: bit 55 says (Arm ARM D8.2.2).
    pub(crate) fn half(&self, va: Gva) -> &Half {
        let [lower, upper] = &self.halves;
        if self.regime.has_el0() && va.raw() >> 55 & 1 != 0 {
            upper
        } else {
            lower
        }
    }
}
