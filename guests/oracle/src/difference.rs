//! Where QEMU's CPU differs from the manual, which the software walk follows: one line each, with the
//! rule or QEMU's function.
//!
//! What is [`UNASKED`] would end QEMU or lead its walk to where the software walk has not been; it is
//! recognised by the software's outcome and counted. What is [`ACCEPTED`] was asked, and differed in
//! just the way that is told. A line that never comes fails the oracle as well: the lists must not
//! outlive their reasons.

use umbra_arm64::{FaultStatus, Granule};
use umbra_nested::Features;
use umbra_nested::at::Op;

use crate::generate::{stage1_granule, stage2_granule};
use crate::rt::{Answer, Question};
use crate::world::Word;

pub(crate) const F: u64 = 1;
pub(crate) const PTW: u64 = 1 << 8;
pub(crate) const S: u64 = 1 << 9;
const HCR_PTW: u64 = 1 << 2;
const HCR_VM: u64 = 1 << 0;
const HCR_DC: u64 = 1 << 12;
const HCR_CD: u64 = 1 << 32;
const TCR_HA_HD: u64 = 3 << 39;
const SCTLR_EE: u64 = 1 << 25;
const SCTLR_C: u64 = 1 << 2;
const HCR_FWB: u64 = 1 << 46;
const HCR_TGE: u64 = 1 << 27;
const ATTR: u64 = 0xff << 56;
const SH: u64 = 3 << 7;

/// A question and what the software walk answers.
pub(crate) struct Asked<'a> {
    /// The instruction.
    pub(crate) op: Op,
    /// The registers.
    pub(crate) question: &'a Question,
    /// What the machine has.
    pub(crate) features: &'a Features,
    /// PAR_EL1 of the software walk.
    pub(crate) software: u64,
    /// The word that it read last.
    pub(crate) last: u64,
    /// All that it read.
    pub(crate) words: &'a [Word],
}

/// What the CPU answers differently.
pub(crate) struct Told {
    /// PAR_EL1 or the abort.
    pub(crate) cpu: Answer,
    /// Some word was marked dirty by the CPU alone.
    pub(crate) dirty: bool,
    /// Some word was left differently in another way.
    pub(crate) memory: bool,
    /// The answers differ.
    pub(crate) answer: bool,
}

/// A question that is not asked.
pub(crate) struct Unasked {
    /// The rule of the manual or the function of QEMU.
    pub(crate) why: &'static str,
    /// Whether this is it.
    pub(crate) explains: fn(&Asked<'_>) -> bool,
}

/// An accepted difference.
pub(crate) struct Accepted {
    /// The rule of the manual or the function of QEMU.
    pub(crate) why: &'static str,
    /// Whether this is it.
    pub(crate) explains: fn(&Asked<'_>, &Told) -> bool,
}

/// All that is not asked.
pub(crate) const UNASKED: [Unasked; 5] = [
    Unasked {
        why: "do_ats_write asserts that attributes are not stage 2's: a permission fault of the output there ends QEMU",
        explains: |asked| {
            let permission = matches!(fault(asked.software), Some(FaultStatus::Permission(_)));
            permission && asked.software & (S | PTW) == S
        },
    },
    Unasked {
        why: "get_phys_addr_lpae marks stage 1's leaf dirty for an AT: were it stage 2's leaf too, that would lose the right to write",
        explains: |asked| {
            let managed = asked.tcr() & TCR_HA_HD == TCR_HA_HD && asked.is_write();
            let leaf = asked.leaf();
            managed && asked.has_second() && leaf >> 51 & 1 != 0 && leaf >> 7 & 1 != 0
        },
    },
    Unasked {
        why: "get_phys_addr_lpae looks at address bits 51:48 only where the output size is 52 bits; AArch64.OAOutOfRange always",
        explains: |asked| {
            let stage = asked.address_size();
            stage.is_some_and(|stage| {
                stage.has_high_bits(asked.leaf()) || asked.words.is_empty() && stage.has_high_base()
            })
        },
    },
    Unasked {
        why: "get_phys_addr_lpae leaves bits 5:2 of a base, which are its bits 51:48, in the address of a table of less than 64 bytes",
        explains: |asked| {
            let question = asked.question;
            let first = stage1_granule(asked.features, asked.tcr(), asked.is_upper());
            let size = if asked.is_upper() {
                asked.tcr() >> 16
            } else {
                asked.tcr()
            };
            let second = stage2_granule(asked.features, question.vtcr);
            is_tiny_and_high(asked.ttbr(), size, first)
                || is_tiny_and_high(question.vttbr, question.vtcr, second)
        },
    },
    Unasked {
        why: "get_phys_addr_lpae compares the descriptor's address with the output size; AArch64.OAOutOfRange the output (blocks bigger than the size)",
        explains: |asked| {
            asked
                .address_size()
                .is_some_and(|stage| stage.is_big_block(asked.leaf()))
        },
    },
];

/// All that may differ.
pub(crate) const ACCEPTED: [Accepted; 13] = [
    Accepted {
        why: "S1_ptw_translate says level 0 of a permission fault by HCR_EL2.PTW, whatever the leaf's level",
        explains: |asked, told| {
            let walk = matches!(fault(asked.software), Some(FaultStatus::Permission(_)))
                && asked.software & (S | PTW) == S | PTW;
            walk && asked.question.hcr & HCR_PTW != 0 && told.cpu == Answer::Par(PTW_FAULT)
        },
    },
    Accepted {
        why: "S1_ptw_translate heeds HCR_EL2.PTW with stage 2 off, where all memory counts as device",
        explains: |asked, told| {
            let off = asked.question.hcr & (HCR_VM | HCR_DC) == 0;
            off && asked.question.hcr & HCR_PTW != 0 && told.cpu == Answer::Par(PTW_FAULT)
        },
    },
    Accepted {
        why: "get_phys_addr_lpae marks a leaf dirty for an AT; AArch64.S1Translate and S2Translate except AccessType_AT",
        explains: |asked, told| told.dirty && !told.memory && !told.answer && asked.is_write(),
    },
    Accepted {
        why: "the same, and stage 2 forbids the write of stage 1's dirty leaf",
        explains: |asked, told| {
            let Answer::Par(cpu) = told.cpu else {
                return false;
            };
            let managed = asked.tcr() & TCR_HA_HD == TCR_HA_HD && asked.is_write();
            let walk = cpu & (F | S | PTW) == F | S | PTW;
            managed && walk && matches!(fault(cpu), Some(FaultStatus::Permission(_)))
        },
    },
    Accepted {
        why: "get_phys_addr_lpae compares also a block's bits below its size with the output size, which are RES0",
        explains: |asked, told| {
            let Answer::Par(cpu) = told.cpu else {
                return false;
            };
            let wide =
                |word: &Word| is_wide_block(word.before) || is_wide_block(word.before.swap_bytes());
            matches!(fault(cpu), Some(FaultStatus::AddressSize(_))) && asked.words.iter().any(wide)
        },
    },
    Accepted {
        why: "do_ats_write does not look at SCTLR_ELx.C (S1DecodeMemAttrs: uncached without it)",
        explains: |asked, told| {
            let uncached = asked.has_first() && asked.regs()[0] & SCTLR_C == 0;
            uncached && asked.attributes(told).is_some()
        },
    },
    Accepted {
        why: "combine_cacheattrs knows no XS (FnXS, and HCR_EL2.DC)",
        explains: |asked, told| {
            let ours = asked.software >> 56;
            // 0b1010_0000 stands for every kind of write-through memory with XS = 0.
            let same = |attr| attr == slow(ours) || ours == 0xa0 && attr & 0xf4 == 0xa0;
            asked.has_second() && asked.attributes(told).is_some_and(same)
        },
    },
    Accepted {
        why: "combine_cacheattrs knows no XS: MAIR_EL1's encodings with XS = 0",
        explains: |asked, told| {
            let mair = asked.question.el1[4].to_le_bytes();
            let quick = mair
                .iter()
                .any(|byte| slow(u64::from(*byte)) != u64::from(*byte));
            quick && asked.has_second() && asked.has_first() && asked.attributes(told).is_some()
        },
    },
    Accepted {
        why: "combined_attrs_fwb takes stage 2's device type; S2ApplyFWBMemAttrs the stricter of both",
        explains: |asked, told| {
            let device = asked
                .memattr()
                .filter(|(memattr, fwb)| *fwb && memattr & 0b1100 == 0);
            device.is_some_and(|(memattr, _)| asked.attributes(told) == Some((memattr & 3) << 2))
        },
    },
    Accepted {
        why: "combined_attrs_fwb and convert_stage2_attrs take reserved MemAttr encodings otherwise",
        explains: |asked, told| {
            let reserved = asked.memattr().is_some_and(|(memattr, fwb)| match fwb {
                true => memattr & 0b1000 != 0 || memattr == 0b0100,
                false => memattr & 0b1100 != 0 && memattr & 3 == 0,
            });
            reserved && asked.attributes(told).is_some()
        },
    },
    Accepted {
        why: "combined_attrs_nofwb takes the low half of normal memory's attribute for a device type",
        explains: |asked, told| {
            let device = asked.software >> 56 & 0xf0 == 0;
            let weakest = asked.memattr().is_some_and(|(_, fwb)| !fwb);
            device && weakest && asked.attributes(told).is_some_and(|attr| attr & 0xf0 == 0)
        },
    },
    Accepted {
        why: "combine_cacheattr_nibble drops stage 1's transient hint where stage 2 is write-through (S2CombineS1AttrHints keeps it)",
        explains: |asked, told| {
            let weakest = asked.memattr().is_some_and(|(_, fwb)| !fwb);
            let hint = |attr| attr & !0x88 == asked.software >> 56 & !0x88;
            weakest && asked.attributes(told).is_some_and(hint)
        },
    },
    Accepted {
        why: "combined_attrs_fwb does not look at HCR_EL2.CD",
        explains: |asked, told| {
            let cd = asked.question.hcr & HCR_CD != 0;
            cd && asked.memattr().is_some_and(|(_, fwb)| fwb) && asked.attributes(told).is_some()
        },
    },
];

/// PAR_EL1 of a permission fault of stage 2 on a walk, at level 0.
const PTW_FAULT: u64 = 1 << 11 | S | PTW | 0b001100 << 1 | F;

/// Whether a base register has bits where its bits 51:48 would be, and a table of less than 64 bytes.
fn is_tiny_and_high(base: u64, size: u64, granule: Granule) -> bool {
    let input = 64 - (size & 0x3f);
    let stride = u64::from(granule.shift()) - 3;
    let below = input.saturating_sub(u64::from(granule.shift()) + 1);
    base >> 2 & 15 != 0 && below % stride + 1 < 3
}

/// Whether a descriptor is a block whose address field has more than 32 bits.
fn is_wide_block(descriptor: u64) -> bool {
    descriptor & 3 == 0b01 && descriptor >> 32 & 0xffff != 0
}

/// Whether a word was marked dirty, in either byte order: it had DBM, and the right to write changed.
pub(crate) fn is_dirtied(word: u64, bits: u64) -> bool {
    let marked = |word: u64, bits: u64| bits == 1 << 7 && word >> 51 & 1 != 0;
    marked(word, bits) || marked(word.swap_bytes(), bits.swap_bytes())
}

/// An attribute of PAR_EL1 without what FEAT_XS tells in it.
fn slow(attr: u64) -> u64 {
    match attr {
        0x01 | 0x05 | 0x09 | 0x0d => attr & !1,
        0x40 => 0x44,
        0xa0 => 0xaa,
        other => other,
    }
}

/// The fault that a PAR_EL1 holds.
pub(crate) fn fault(par: u64) -> Option<FaultStatus> {
    (par & F != 0).then(|| FaultStatus::decode((par >> 1 & 0x3f) as u8))
}

/// The stage that ended in an address size fault.
struct Sizes {
    /// Its output size is less than 52 bits by its own register.
    narrow: bool,
    /// Output bits.
    bits: u32,
    base: u64,
    ds: bool,
    granule: Granule,
}

impl Asked<'_> {
    /// Whether stage 1 is that of EL2&0.
    pub(crate) fn is_own(&self) -> bool {
        self.question.hcr & HCR_TGE != 0 || matches!(self.op, Op::S1E2 { .. })
    }

    /// TCR of the stage 1 that is asked about.
    pub(crate) fn tcr(&self) -> u64 {
        if self.is_own() {
            self.question.el2[1]
        } else {
            self.question.el1[1]
        }
    }

    /// Whether the address is in the upper half.
    pub(crate) fn is_upper(&self) -> bool {
        self.question.va >> 55 & 1 != 0
    }

    fn is_write(&self) -> bool {
        matches!(
            self.op,
            Op::S1E1 { write: true, .. }
                | Op::S1E0 { write: true }
                | Op::S1E2 { write: true }
                | Op::S12E1 { write: true }
                | Op::S12E0 { write: true }
        )
    }

    /// The descriptor that was read last, in the byte order of its stage.
    fn leaf(&self) -> u64 {
        let second = match self.software & F {
            0 => self.has_second(),
            _ => self.software & S != 0,
        };
        let sctlr = if second {
            self.question.el2[0]
        } else {
            self.regs()[0]
        };
        if sctlr & SCTLR_EE != 0 {
            self.last.swap_bytes()
        } else {
            self.last
        }
    }

    fn regs(&self) -> [u64; 5] {
        if self.is_own() {
            self.question.el2
        } else {
            self.question.el1
        }
    }

    fn ttbr(&self) -> u64 {
        let [_, _, lower, upper, _] = self.regs();
        if self.is_upper() { upper } else { lower }
    }

    /// Whether stage 1 translates.
    fn has_first(&self) -> bool {
        let off = !self.is_own() && self.question.hcr & HCR_DC != 0;
        self.regs()[0] & 1 != 0 && !off
    }

    /// Whether stage 2 translates the output.
    fn has_second(&self) -> bool {
        let two = matches!(self.op, Op::S12E1 { .. } | Op::S12E0 { .. });
        two && !self.is_own() && self.question.hcr & (HCR_VM | HCR_DC) != 0
    }

    /// Whether the answers differ in the attributes of a success alone; then the CPU's attribute.
    fn attributes(&self, told: &Told) -> Option<u64> {
        let Answer::Par(cpu) = told.cpu else {
            return None;
        };
        let other = (cpu ^ self.software) & !(ATTR | SH);
        (!told.memory && other == 0 && cpu & F == 0).then_some(cpu >> 56)
    }

    /// MemAttr of the leaf of stage 2, if there is one, and whether HCR_EL2.FWB holds for it.
    fn memattr(&self) -> Option<(u64, bool)> {
        let fwb = self.question.hcr & HCR_FWB != 0;
        self.has_second().then_some((self.leaf() >> 2 & 15, fwb))
    }

    fn address_size(&self) -> Option<Sizes> {
        let Some(FaultStatus::AddressSize(_)) = fault(self.software) else {
            return None;
        };
        let second = self.software & S != 0;
        let (ps, ds, granule, base) = if second {
            let vtcr = self.question.vtcr;
            let granule = stage2_granule(self.features, vtcr);
            (vtcr >> 16 & 7, vtcr >> 32 & 1, granule, self.question.vttbr)
        } else {
            let tcr = self.tcr();
            let granule = stage1_granule(self.features, tcr, self.is_upper());
            (tcr >> 32 & 7, tcr >> 59 & 1, granule, self.ttbr())
        };
        Some(Sizes {
            narrow: ps < 6,
            bits: [32, 36, 40, 42, 44, 48, 52, 52][ps as usize],
            ds: ds != 0 && granule != Granule::K64,
            granule,
            base,
        })
    }
}

impl Sizes {
    /// Whether the base register has bits of the address above 47.
    fn has_high_base(&self) -> bool {
        self.narrow && self.ds && self.base >> 2 & 15 != 0
    }

    /// Whether `descriptor` has bits of the address above 47, while its other bits are in range.
    fn has_high_bits(&self, descriptor: u64) -> bool {
        let high = match self.granule {
            Granule::K64 => descriptor >> 12 & 15,
            Granule::K4 | Granule::K16 if self.ds => descriptor >> 8 & 3 | descriptor >> 48 & 3,
            Granule::K4 | Granule::K16 => 0,
        };
        self.narrow && high != 0 && self.is_in_range(descriptor)
    }

    /// Whether `descriptor` is a block, out of range by its size alone.
    fn is_big_block(&self, descriptor: u64) -> bool {
        self.narrow && descriptor & 3 == 0b01 && self.is_in_range(descriptor)
    }

    fn is_in_range(&self, descriptor: u64) -> bool {
        let address = descriptor & 0x0000_ffff_ffff_f000;
        address >> self.bits.min(48) == 0
    }
}
