//! Walks of tables that a guest hypervisor wrote.

use std::hint::black_box;

use umbra_arm64::{Ipa, L2Ipa};
use umbra_nested::stage2::{Access, Stage2Config, walk};
use umbra_nested::{Features, Granules, GuestMemory, MemoryError, Support};

use crate::Work;
use crate::engine::LOOKS;

/// The first table; the others follow page by page.
const ROOT: u64 = 0x8000_0000;
const HCR_VM: u64 = 1;
/// RES1, PS = 48 bits, write-back, inner shareable.
const VTCR: u64 = 1 << 31 | 0b101 << 16 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
/// Valid, normal memory, read and write, inner shareable, accessed.
const LEAF: u64 = 1 | 0b1111 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10;
const TABLE: u64 = 0b11;

/// Tables in which only the first entry is used.
struct Tables {
    pages: Vec<u64>,
}

impl GuestMemory for Tables {
    fn read_u64(&mut self, at: Ipa) -> Result<u64, MemoryError> {
        let offset = at.raw().wrapping_sub(ROOT);
        match self.pages.get((offset >> 12) as usize) {
            Some(first) if offset & 0xfff == 0 => Ok(*first),
            Some(_) => Ok(0),
            None => Err(MemoryError::NotMapped),
        }
    }

    fn compare_exchange_u64(
        &mut self,
        _at: Ipa,
        _old: u64,
        _new: u64,
    ) -> Result<Result<(), u64>, MemoryError> {
        Err(MemoryError::ReadOnly)
    }
}

/// Walks for addresses that a leaf of the wanted level maps.
pub(crate) struct Walks {
    config: Stage2Config,
    tables: Tables,
}

impl Walks {
    pub(crate) fn new(levels: u64) -> Self {
        // T0SZ and SL0: 48 bits from level 0, or 39 bits from level 1.
        let shape = if levels == 4 {
            16 | 2 << 6
        } else {
            25 | 1 << 6
        };
        let page = if levels >= 3 { TABLE } else { 0 };
        let mut pages: Vec<u64> = (1..levels).map(|n| (ROOT + n * 4096) | TABLE).collect();
        pages.push(LEAF | page);
        Self {
            config: Stage2Config::new(VTCR | shape, ROOT, HCR_VM, false, &features()),
            tables: Tables { pages },
        }
    }
}

fn features() -> Features {
    let granules = Granules {
        k4: Support::Present,
        k16: Support::Present,
        k64: Support::Present,
    };
    Features {
        pa_bits: 48,
        stage1: granules,
        stage2: granules,
        lva: false,
        small_tables: false,
        access_flag: true,
        dirty_state: true,
        xnx: true,
        hpds: true,
        pan: true,
        epan: true,
        e0pd: true,
        tbid: true,
        fwb: true,
        xs: true,
    }
}

impl Work for Walks {
    fn operations(&self) -> u64 {
        LOOKS
    }

    fn run(&mut self) {
        for offset in 0..LOOKS {
            let at = L2Ipa::new(black_box(offset));
            let walked = walk(&self.config, at, Access::Read, &mut self.tables);
            black_box(walked.expect("it is mapped"));
        }
    }
}
