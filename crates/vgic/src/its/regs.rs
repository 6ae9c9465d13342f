//! The ITS's registers as the guest and the VMM see them (IHI 0069, "The ITS register map"), and the
//! sizes of the guest's tables that they give.

use super::{COMMAND_BYTES, Host, ID_BITS, Its};

/// Bytes of the two frames of an ITS: control and translation.
pub const ITS_FRAME_BYTES: u64 = 0x2_0000;

const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;
/// GITS_BASER.Page_Size.
const PAGE_SIZE: u64 = 3 << 8;
/// Bytes of a page of the guest's tables: the one size there is, as on KVM (Page_Size is fixed).
const PAGE_BYTES: u64 = 64 << 10;
const PAGE_64K: u64 = 2 << 8;
/// GITS_BASER: what the guest may write. Shareability and cacheability read as they were written.
const BASER_WRITABLE: u64 = VALID | INDIRECT | 7 << 59 | 7 << 53 | 0xffff_ffff_ffff & !PAGE_SIZE;
/// GITS_BASER after a reset: inner shareable, write-back, as on KVM.
const BASER_RESET: u64 = 7 << 59 | 1 << 10 | PAGE_64K;
const BASER_DEVICES: u64 = 1 << 56;
const BASER_COLLECTIONS: u64 = 4 << 56;
/// Bytes of an entry, in all tables.
pub(super) const ENTRY_BYTES: u64 = 8;
/// Product "u", implementer Arm as KVM has it; revision 0 is the layout of saved tables.
const IIDR: u64 = 0x75 << 24 | 0x43b;
/// IIDR's revision, the layout of saved tables: there is one.
const REVISION: u64 = 0xf << 12;
/// Physical LPIs, 8 bytes an event, processors by number.
const TYPER: u64 =
    1 | (ENTRY_BYTES - 1) << 4 | (ID_BITS as u64 - 1) << 8 | (ID_BITS as u64 - 1) << 13;
/// Nothing under way: commands are done before the write that gives them is.
const QUIESCENT: u64 = 1 << 31;

const CTLR: u32 = 0x0;
const CBASER: u32 = 0x80;
const CWRITER: u32 = 0x88;
const CREADR: u32 = 0x90;
const BASER: u32 = 0x100;

/// What an ITS remembers besides its maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regs {
    enabled: bool,
    cbaser: u64,
    cwriter: u64,
    creadr: u64,
    /// Devices, collections.
    baser: [u64; 2],
}

impl Default for Regs {
    fn default() -> Self {
        Self {
            enabled: false,
            cbaser: 0,
            cwriter: 0,
            creadr: 0,
            baser: [BASER_RESET; 2],
        }
    }
}

/// What is left to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItsWrite {
    /// Nothing.
    Done,
    /// There may be commands: [`Its::step`] until there are none.
    Commands,
    /// The VMM may not write that: EBUSY for a register that is settled while the ITS is on, EINVAL
    /// for a revision that is not there.
    Refused,
}

/// Whether a VMM reaches a register at `offset` with 64 bits (KVM_DEV_ARM_VGIC_GRP_ITS_REGS).
pub fn has_its_register(offset: u32) -> bool {
    matches!(offset, CTLR | 0x4 | 0x8 | CBASER | CWRITER | CREADR)
        || (BASER..BASER + 64).contains(&offset) && offset.is_multiple_of(8)
        || (0xffd0..0x1_0000).contains(&offset) && offset.is_multiple_of(4)
}

/// One of the guest's tables: devices or collections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table(u64);

impl Table {
    fn bytes(self) -> u64 {
        ((self.0 & 0xff) + 1) * PAGE_BYTES
    }

    fn base(self) -> u64 {
        self.0 & 0xffff_ffff_0000 | (self.0 >> 12 & 0xf) << 48
    }

    pub(super) fn is_indirect(self) -> bool {
        self.0 & INDIRECT != 0
    }

    /// Number of entries that it has room for, the second level full.
    pub(super) fn entries(self) -> u64 {
        let first = self.bytes() / ENTRY_BYTES;
        if self.is_indirect() {
            first * self.per_page()
        } else {
            first
        }
    }

    /// Entries that a page of the second level has.
    pub(super) fn per_page(self) -> u64 {
        PAGE_BYTES / ENTRY_BYTES
    }

    /// Where entry `id` lies. `None`: the table does not reach there.
    pub(super) fn entry(self, id: u64, host: &mut impl Host) -> Option<u64> {
        if self.0 & VALID == 0 || id >= self.entries() {
            return None;
        }
        if !self.is_indirect() {
            return Some(self.base() + id * ENTRY_BYTES);
        }
        let mut bytes = [0; 8];
        let at = self.base() + id / self.per_page() * ENTRY_BYTES;
        let first = host.read(at, &mut bytes).then(|| u64::from_le_bytes(bytes));
        let second = first.filter(|entry| entry & VALID != 0)? & 0x000f_ffff_ffff_f000;
        Some(second + id % self.per_page() * ENTRY_BYTES)
    }
}

impl Its {
    /// GITS_CTLR.Enabled.
    pub fn is_enabled(&self) -> bool {
        self.regs.enabled
    }

    pub(super) fn device_table(&self) -> Table {
        Table(self.regs.baser[0])
    }

    pub(super) fn collection_table(&self) -> Table {
        Table(self.regs.baser[1])
    }

    pub(super) fn has_device_entry(&self, id: u32, host: &mut impl Host) -> bool {
        id >> ID_BITS == 0 && self.device_table().entry(id.into(), host).is_some()
    }

    pub(super) fn has_collection_entry(&self, id: u16) -> bool {
        u64::from(id) < self.collection_table().entries()
    }

    fn queue_bytes(&self) -> u64 {
        ((self.regs.cbaser & 0xff) + 1) * 4096
    }

    /// Where the next command lies, guest physical.
    pub(super) fn next_command(&self) -> Option<u64> {
        let regs = &self.regs;
        let waiting = regs.enabled && regs.cbaser & VALID != 0 && regs.creadr != regs.cwriter;
        waiting.then(|| (regs.cbaser & 0x000f_ffff_ffff_f000) + regs.creadr)
    }

    pub(super) fn command_done(&mut self) {
        self.regs.creadr = (self.regs.creadr + COMMAND_BYTES) % self.queue_bytes();
    }

    fn register(&self, offset: u32) -> u64 {
        let regs = &self.regs;
        match offset {
            CTLR => u64::from(regs.enabled) | QUIESCENT,
            0x4 => IIDR,
            0x8 => TYPER,
            CBASER => regs.cbaser,
            CWRITER => regs.cwriter,
            CREADR => regs.creadr,
            BASER => regs.baser[0] | BASER_DEVICES | (ENTRY_BYTES - 1) << 48,
            0x108 => regs.baser[1] | BASER_COLLECTIONS | (ENTRY_BYTES - 1) << 48,
            0xffe8 => 0x3b, // PIDR2: GICv3
            // Component and peripheral identification.
            0xfff0 => 0x0d,
            0xfff4 => 0xf0,
            0xfff8 => 0x05,
            0xfffc => 0xb1,
            _ => 0,
        }
    }

    /// Reads `len` bytes (4 or 8) of the control frame; other sizes and places read as zero.
    pub fn read(&self, offset: u32, len: u8) -> u64 {
        match (len, offset % 8) {
            (8, 0) => self.register(offset),
            // Two registers of 32 bits in one doubleword.
            (4, _) if !(8..0xffd0).contains(&offset) => self.register(offset) & 0xffff_ffff,
            (4, 0) => self.register(offset) & 0xffff_ffff,
            (4, 4) => self.register(offset & !7) >> 32,
            _ => 0,
        }
    }

    /// Writes `len` bytes (4 or 8) of the control frame; other sizes and places ignore it.
    pub fn write(
        &mut self,
        offset: u32,
        len: u8,
        value: u64,
        by_vmm: bool,
        host: &mut impl Host,
    ) -> ItsWrite {
        let low = u64::from(u32::MAX);
        let (register, value) = match (len, offset % 8) {
            (8, 0) => (offset, value),
            (4, _) if offset < 8 => (offset, value & low),
            (4, 0) => (offset, self.register(offset) & !low | value & low),
            (4, 4) => (offset & !7, self.register(offset & !7) & low | value << 32),
            _ => return ItsWrite::Done,
        };
        match register {
            CTLR => return self.set_ctlr(value, by_vmm),
            0x4 if by_vmm && (value ^ IIDR) & REVISION != 0 => return ItsWrite::Refused,
            CBASER if self.regs.enabled && by_vmm => return ItsWrite::Refused,
            CBASER if !self.regs.enabled => {
                self.regs.cbaser = value & !0x300;
                self.regs.creadr = 0;
                if !by_vmm {
                    self.regs.cwriter = 0;
                }
            }
            CWRITER => {
                let at = value & 0xf_ffe0;
                if at < self.queue_bytes() {
                    self.regs.cwriter = at;
                    if !by_vmm {
                        return ItsWrite::Commands;
                    }
                }
            }
            CREADR if by_vmm => {
                if self.regs.enabled {
                    return ItsWrite::Refused;
                }
                let at = value & 0xf_ffe0;
                if at >= self.queue_bytes() {
                    return ItsWrite::Refused;
                }
                self.regs.creadr = at;
            }
            BASER | 0x108 => {
                if self.regs.enabled {
                    return if by_vmm {
                        ItsWrite::Refused
                    } else {
                        ItsWrite::Done
                    };
                }
                self.set_baser((register != BASER).into(), value, host);
            }
            _ => {}
        }
        ItsWrite::Done
    }

    fn set_ctlr(&mut self, value: u64, by_vmm: bool) -> ItsWrite {
        let [devices, collections] = self.regs.baser;
        let ready = devices & collections & self.regs.cbaser & VALID != 0;
        let on = value & 1 == 1;
        if on && !self.regs.enabled && !ready {
            return ItsWrite::Done;
        }
        self.regs.enabled = on;
        if on && !by_vmm {
            ItsWrite::Commands
        } else {
            ItsWrite::Done
        }
    }

    fn set_baser(&mut self, which: usize, value: u64, host: &mut impl Host) {
        // Collections are few: their table is flat.
        let writable = if which == 0 {
            BASER_WRITABLE
        } else {
            BASER_WRITABLE & !INDIRECT
        };
        let new = value & writable | PAGE_64K;
        let old = core::mem::replace(&mut self.regs.baser[which], new);
        // A guest that writes back what is there, after a suspension, loses nothing.
        if old == new {
            return;
        }
        if which == 0 {
            self.drop_devices(host);
        } else {
            for at in 0..self.collections.len() {
                let id = self.collections[at].id;
                for event in self.events().filter(|event| event.collection == id) {
                    host.target(event.intid, None);
                }
            }
            self.collections.clear();
        }
    }
}
