//! One vCPU's registers: which the machine keeps and which are only state.

use umbra_arm64::sysreg::{
    ARRAY_LEN, Class, Features, HwReg, Identity, Reg, RegInfo, Reset, Slot, UNKNOWN,
};
use umbra_hw::guest::{CNTHCTL, Extra, VcpuRegs};

/// The system registers of a vCPU: those of the hardware, and those that only software looks at.
pub(super) struct Registers {
    pub(super) hw: VcpuRegs,
    array: [u64; ARRAY_LEN],
}

/// Where a register is.
#[derive(Clone, Copy)]
enum Place {
    /// In the VNCR page, at this offset; some are in hardware while loaded.
    Page(u16),
    /// In the EL1 register whose place in the VNCR page this is, while the guest is at virtual EL2.
    Hyp(u16),
    /// Where the machine keeps what has no place in the page.
    Machine(Extra),
    /// An element of the array.
    Array(u16),
}

/// By number, so that a register that is named where it is asked for costs no search.
static PLACES: [Place; Reg::ALL.len()] = {
    let mut places = [Place::Array(0); Reg::ALL.len()];
    let mut at = 0;
    while at < places.len() {
        places[at] = place(Reg::ALL[at].info());
        at += 1;
    }
    places
};

const fn place(info: &RegInfo) -> Place {
    match (hyp_offset(info), info.slot, extra(info.home)) {
        (Some(offset), ..) => Place::Hyp(offset),
        (None, Slot::Vncr(index), _) => Place::Page(index * 8),
        (None, Slot::Array(_), Some(extra)) => Place::Machine(extra),
        (None, Slot::Array(index), None) => Place::Array(index),
    }
}

/// Where the machine keeps a register that has no place in the VNCR page.
const fn extra(home: Option<HwReg>) -> Option<Extra> {
    let Some(home) = home else { return None };
    Some(match home {
        HwReg::TpidrEl0 => Extra::TpidrEl0,
        HwReg::TpidrroEl0 => Extra::TpidrroEl0,
        HwReg::TpidrEl1 => Extra::TpidrEl1,
        HwReg::SpEl0 => Extra::SpEl0,
        HwReg::ParEl1 => Extra::Par,
        HwReg::CntkctlEl12 => Extra::Cntkctl,
        HwReg::VdisrEl2 => Extra::Disr,
        HwReg::ApIaKeyLoEl1 => Extra::ApiaLo,
        HwReg::ApIaKeyHiEl1 => Extra::ApiaHi,
        HwReg::ApIbKeyLoEl1 => Extra::ApibLo,
        HwReg::ApIbKeyHiEl1 => Extra::ApibHi,
        HwReg::ApDaKeyLoEl1 => Extra::ApdaLo,
        HwReg::ApDaKeyHiEl1 => Extra::ApdaHi,
        HwReg::ApDbKeyLoEl1 => Extra::ApdbLo,
        HwReg::ApDbKeyHiEl1 => Extra::ApdbHi,
        HwReg::ApGaKeyLoEl1 => Extra::ApgaLo,
        HwReg::ApGaKeyHiEl1 => Extra::ApgaHi,
        _ => return None,
    })
}

/// Where the EL1 counterpart of an EL2 register has its place in the VNCR page: the guest's EL2
/// register lives in that EL1 register while the guest is at virtual EL2.
const fn hyp_offset(info: &RegInfo) -> Option<u16> {
    let (Class::El2, Some(home)) = (info.class, info.home) else {
        return None;
    };
    Some(match home {
        HwReg::SctlrEl12 => 0x110,
        HwReg::CpacrEl12 => 0x100,
        HwReg::Ttbr0El12 => 0x200,
        HwReg::Ttbr1El12 => 0x210,
        HwReg::TcrEl12 => 0x120,
        HwReg::EsrEl12 => 0x138,
        HwReg::Afsr0El12 => 0x128,
        HwReg::Afsr1El12 => 0x130,
        HwReg::FarEl12 => 0x220,
        HwReg::MairEl12 => 0x140,
        HwReg::AmairEl12 => 0x148,
        HwReg::VbarEl12 => 0x250,
        HwReg::ContextidrEl12 => 0x108,
        HwReg::ElrEl12 => 0x230,
        HwReg::SpsrEl12 => 0x160,
        HwReg::SpEl1 => 0x240,
        HwReg::CntvCvalEl02 => 0x168,
        HwReg::CntvCtlEl02 => 0x170,
        HwReg::CntpCvalEl02 => 0x178,
        HwReg::CntpCtlEl02 => 0x180,
        HwReg::CntkctlEl12 => CNTHCTL,
        _ => return None,
    })
}

impl Registers {
    pub(super) fn new() -> Self {
        Self {
            hw: VcpuRegs::new(),
            array: [0; ARRAY_LEN],
        }
    }

    /// The value of `reg`, which is known where this is called: else [`Registers::get_any`]. The
    /// registers must not be loaded on another CPU.
    #[inline(always)]
    pub(super) fn get(&self, reg: Reg) -> u64 {
        match PLACES[reg as usize] {
            Place::Page(offset) => self.hw.get(offset),
            Place::Hyp(offset) => self.hw.hyp(offset),
            Place::Machine(extra) => self.hw.extra(extra),
            Place::Array(index) => self.array[usize::from(index)],
        }
    }

    /// Sets `reg`, which is known where this is called: else [`Registers::set_any`]. The registers
    /// must not be loaded on another CPU.
    #[inline(always)]
    pub(super) fn set(&mut self, reg: Reg, value: u64) {
        match PLACES[reg as usize] {
            Place::Page(offset) => self.hw.set(offset, value),
            Place::Hyp(offset) => self.hw.set_hyp(offset, value),
            Place::Machine(extra) => self.hw.set_extra(extra, value),
            Place::Array(index) => self.array[usize::from(index)] = value,
        }
    }

    /// [`Registers::get`] of a register that turns out as the program runs.
    #[inline(never)]
    pub(super) fn get_any(&self, reg: Reg) -> u64 {
        self.get(reg)
    }

    /// [`Registers::set`] of a register that turns out as the program runs.
    #[inline(never)]
    pub(super) fn set_any(&mut self, reg: Reg, value: u64) {
        self.set(reg, value);
    }

    /// Gives every register that the vCPU has its reset value.
    pub(super) fn reset(&mut self, identity: &Identity, features: &Features) {
        for &reg in Reg::ALL.iter().filter(|reg| reg.exists(features)) {
            let value = match reg.info().reset {
                Reset::Zero => 0,
                Reset::Value(value) => value,
                Reset::Unknown => UNKNOWN,
                Reset::Midr => identity.midr,
                Reset::Mpidr => identity.mpidr,
            };
            self.set_any(reg, value);
        }
    }
}
