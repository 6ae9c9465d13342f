//! One vCPU's registers: which the machine keeps and which are only state.

use umbra_arm64::sysreg::{ARRAY_LEN, HwReg, Identity, Reg, Reset, Slot, UNKNOWN};
use umbra_hw::guest::{Extra, VcpuRegs};

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

impl Registers {
    pub(super) fn new() -> Self {
        Self { hw: VcpuRegs::new(), array: [0; ARRAY_LEN] }
    }

    /// The value of `reg`. The registers must not be loaded on another CPU.
    pub(super) fn get(&self, reg: Reg) -> u64 {
        let info = reg.info();
        match (info.slot, extra(info.home)) {
            (Slot::Vncr(index), _) => self.hw.get(index * 8),
            (Slot::Array(_), Some(extra)) => self.hw.extra(extra),
            (Slot::Array(index), None) => self.array[usize::from(index)],
        }
    }

    /// Sets `reg`. The registers must not be loaded on another CPU.
    pub(super) fn set(&mut self, reg: Reg, value: u64) {
        let info = reg.info();
        match (info.slot, extra(info.home)) {
            (Slot::Vncr(index), _) => self.hw.set(index * 8, value),
            (Slot::Array(_), Some(extra)) => self.hw.set_extra(extra, value),
            (Slot::Array(index), None) => self.array[usize::from(index)] = value,
        }
    }

    /// Gives every register its reset value.
    pub(super) fn reset(&mut self, identity: &Identity) {
        for &reg in Reg::ALL {
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
