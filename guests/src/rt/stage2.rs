//! Stage 2 tables for this payload's guests: any granule and geometry (Arm ARM D8.2), made by hand,
//! so that a test can put any word anywhere.

use super::mem;

/// Translation granule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// All of them.
    pub const ALL: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

    /// Bits of an offset in a page.
    pub fn bits(self) -> u32 {
        match self {
            Granule::K4 => 12,
            Granule::K16 => 14,
            Granule::K64 => 16,
        }
    }

    /// Bits of an offset in what a descriptor at `level` maps.
    pub fn shift(self, level: u32) -> u32 {
        self.bits() + (3 - level) * (self.bits() - 3)
    }

    /// Bytes that a descriptor at `level` maps.
    pub fn bytes(self, level: u32) -> u64 {
        1 << self.shift(level)
    }

    /// Whether this machine has it at stage 2 (ID_AA64MMFR0_EL1.TGran*_2, else TGran*).
    pub fn is_there(self) -> bool {
        let id = crate::mrs!("id_aa64mmfr0_el1");
        let (stage1, stage2) = match self {
            Granule::K4 => (id >> 28 & 0xf != 0xf, id >> 40 & 0xf),
            Granule::K16 => (id >> 20 & 0xf != 0, id >> 32 & 0xf),
            Granule::K64 => (id >> 24 & 0xf != 0xf, id >> 36 & 0xf),
        };
        match stage2 {
            0 => stage1,
            1 => false,
            _ => true,
        }
    }

    fn tg0(self) -> u64 {
        match self {
            Granule::K4 => 0,
            Granule::K64 => 1,
            Granule::K16 => 2,
        }
    }

    fn sl0(self, start: u32) -> u64 {
        match self {
            Granule::K4 => 2 - u64::from(start),
            Granule::K16 | Granule::K64 => 3 - u64::from(start),
        }
    }
}

/// Access flag.
pub const AF: u64 = 1 << 10;
/// S2AP: reads.
pub const READ: u64 = 1 << 6;
/// S2AP: writes.
pub const WRITE: u64 = 1 << 7;
/// XN\[1:0\]: neither EL0 nor EL1 fetches.
pub const XN: u64 = 2 << 53;
/// DBM: with HD, a read-only page becomes writable by the first write.
pub const DBM: u64 = 1 << 51;
/// Contiguous hint.
pub const CONTIGUOUS: u64 = 1 << 52;
/// Normal write-back memory, inner shareable.
pub const NORMAL: u64 = 0xf << 2 | 3 << 8;
/// What most pages have.
pub const RAM: u64 = NORMAL | AF | READ | WRITE;

/// A stage 2 address space.
#[derive(Debug, Clone, Copy)]
pub struct Stage2 {
    /// Its granule.
    pub granule: Granule,
    /// Bits of an input address.
    pub input: u32,
    /// Level of the root.
    pub start: u32,
    /// Address of the root.
    pub root: u64,
    /// VTCR_EL2 bits on top of those that say the geometry.
    pub more: u64,
}

impl Stage2 {
    /// 4 KiB pages with 39 bits of input, from level 1; without a root.
    pub const USUAL: Self = Self::shape(Granule::K4, 39, 1);

    /// Without a root.
    pub const fn shape(granule: Granule, input: u32, start: u32) -> Self {
        Stage2 {
            granule,
            input,
            start,
            root: 0,
            more: 0,
        }
    }

    /// The same with an empty root, tables concatenated if need be.
    pub fn made(self) -> Self {
        let bytes = (8u64 << (self.input - self.granule.shift(self.start))).max(mem::PAGE);
        let root = mem::fresh(bytes, bytes);
        clear(root, bytes);
        Stage2 { root, ..self }
    }

    /// An empty space of 4 KiB pages with 39 bits of input, from level 1.
    pub fn usual() -> Self {
        Self::USUAL.made()
    }

    /// VTCR_EL2 for it: write-back walks, the physical size of this machine up to 48 bits, 8-bit VMIDs.
    pub fn vtcr(&self) -> u64 {
        let size = (crate::mrs!("id_aa64mmfr0_el1") & 0xf).min(5);
        let geometry = u64::from(64 - self.input)
            | self.granule.sl0(self.start) << 6
            | self.granule.tg0() << 14;
        geometry | 1 << 8 | 1 << 10 | 3 << 12 | size << 16 | 1 << 31 | self.more
    }

    /// VTTBR_EL2 for it.
    pub fn vttbr(&self, vmid: u64) -> u64 {
        self.root | vmid << 48
    }

    /// The address of the descriptor of `ipa` at `level`; tables above are made if need be.
    pub fn descriptor(&self, ipa: u64, level: u32) -> u64 {
        let mut at = self.root + (ipa >> self.granule.shift(self.start)) * 8;
        for below in self.start + 1..=level {
            let mut entry = mem::read64(at);
            if entry & 1 == 0 {
                entry = self.empty_table() | 3;
                mem::write64(at, entry);
            }
            assert!(entry & 3 == 3, "{ipa:#x} has a block above level {below}");
            let table = entry & 0x0000_ffff_ffff_f000;
            let mask = (1 << (self.granule.bits() - 3)) - 1;
            at = table + (ipa >> self.granule.shift(below) & mask) * 8;
        }
        at
    }

    /// Zeroed memory for a table.
    pub fn empty_table(&self) -> u64 {
        let bytes = 1 << self.granule.bits();
        let table = mem::fresh(bytes, bytes);
        clear(table, bytes);
        table
    }

    /// Maps what a descriptor at `level` maps, where nothing is mapped.
    pub fn map(&self, ipa: u64, pa: u64, level: u32, attributes: u64) {
        let kind = if level == 3 { 3 } else { 1 };
        mem::write64(self.descriptor(ipa, level), pa | attributes | kind);
        crate::op!("dsb ishst");
    }

    /// Maps the page of the granule that holds `ipa` to memory, readable, writable, executable.
    pub fn map_page(&self, ipa: u64, pa: u64) {
        self.map(ipa, pa, 3, RAM);
    }

    /// Changes a descriptor, without telling any TLB.
    pub fn set(&self, ipa: u64, level: u32, value: u64) {
        mem::write64(self.descriptor(ipa, level), value);
        crate::op!("dsb ishst");
    }

    /// Changes a descriptor and forgets both stages of the current VMID's translations.
    pub fn replace(&self, ipa: u64, level: u32, value: u64, vmid: u64) {
        self.set(ipa, level, value);
        forget_vmid(self.vttbr(vmid));
    }
}

fn clear(start: u64, bytes: u64) {
    for at in (start..start + bytes).step_by(8) {
        mem::write64(at, 0);
    }
}

/// Runs something as a hypervisor that is not a host (TGE clear) with this VTTBR_EL2, as TLB
/// maintenance and AT for a guest want it.
pub fn for_guest<T>(vttbr: u64, run: impl FnOnce() -> T) -> T {
    let hcr = crate::mrs!("hcr_el2");
    crate::msr!("vttbr_el2", vttbr);
    crate::msr!("hcr_el2", hcr & !super::l2::TGE | super::l2::VM);
    let result = run();
    crate::msr!("hcr_el2", hcr);
    result
}

/// Forgets both stages of a VMID's translations, on all CPUs.
pub fn forget_vmid(vttbr: u64) {
    for_guest(vttbr, || {
        crate::op!("dsb ishst");
        crate::op!("tlbi vmalls12e1is");
        crate::op!("dsb ish");
        crate::op!("isb");
    });
}

/// Forgets what stage 2 says of one address of a VMID, on all CPUs, by a TLBI with this operand.
pub fn forget_ipa(vttbr: u64, ipa: u64, ttl: u64) {
    for_guest(vttbr, || {
        crate::op!("dsb ishst");
        crate::op!("tlbi ipas2e1is", ipa >> 12 | ttl << 44);
        crate::op!("dsb ish");
        crate::op!("tlbi vmalle1is");
        crate::op!("dsb ish");
        crate::op!("isb");
    });
}
