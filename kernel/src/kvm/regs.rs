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

/// Where the machine keeps a register that has no place in the VNCR page.
fn extra(home: Option<HwReg>) -> Option<Extra> {
    Some(match home? {
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
fn hyp_offset(info: &RegInfo) -> Option<u16> {
    if info.class != Class::El2 {
        return None;
    }
    Some(match info.home? {
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

    /// The value of `reg`. The registers must not be loaded on another CPU.
    pub(super) fn get(&self, reg: Reg) -> u64 {
        let info = reg.info();
        if let Some(offset) = hyp_offset(info) {
            return self.hw.hyp(offset);
        }
        match (info.slot, extra(info.home)) {
            (Slot::Vncr(index), _) => self.hw.get(index * 8),
            (Slot::Array(_), Some(extra)) => self.hw.extra(extra),
            (Slot::Array(index), None) => self.array[usize::from(index)],
        }
    }

    /// Sets `reg`. The registers must not be loaded on another CPU.
    pub(super) fn set(&mut self, reg: Reg, value: u64) {
        let info = reg.info();
        if let Some(offset) = hyp_offset(info) {
            return self.hw.set_hyp(offset, value);
        }
        match (info.slot, extra(info.home)) {
            (Slot::Vncr(index), _) => self.hw.set(index * 8, value),
            (Slot::Array(_), Some(extra)) => self.hw.set_extra(extra, value),
            (Slot::Array(index), None) => self.array[usize::from(index)] = value,
        }
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
            self.set(reg, value);
        }
    }
}
