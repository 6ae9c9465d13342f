//! Firmware pseudo-registers: what a VMM reads and may change of the services a VM offers
//! (`Documentation/virt/kvm/arm/fw-pseudo-registers.rst`).
//!
//! A write asks for what the VMM saved elsewhere. It is granted where this machine offers at least
//! that, and nothing is stored for the workarounds: their state follows from the machine.

use crate::errno::Errno;
use crate::psci::Version;
use crate::reg::{FwBitmap, FwReg};
use crate::smccc::{
    STD_HYP_PV_TIME, STD_TRNG, Services, VENDOR_HYP_2, VENDOR_HYP_FEATURES, VENDOR_HYP_PTP,
    Workaround,
};

/// The version register of a vCPU without KVM_ARM_VCPU_PSCI_0_2: KVM's own PSCI 0.1.
const PSCI_0_1: u64 = 1;
/// The levels of a workaround register.
const LEVEL_MASK: u64 = 15;
/// Workaround 2: it is switched on.
const WORKAROUND_2_ENABLED: u64 = 1 << 4;
/// Workaround 2: nobody knows.
const WORKAROUND_2_UNKNOWN: u64 = 1;

impl Services {
    /// The value of `reg` for a vCPU with or without KVM_ARM_VCPU_PSCI_0_2.
    pub const fn fw_reg(&self, reg: FwReg, psci_0_2: bool) -> u64 {
        match reg {
            FwReg::PsciVersion if psci_0_2 => self.psci.version.raw() as u64,
            FwReg::PsciVersion => PSCI_0_1,
            FwReg::Workaround1 => self.workaround_1.to_fw_reg(),
            FwReg::Workaround2 => self.workaround_2.to_fw_reg_2(),
            FwReg::Workaround3 => self.workaround_3.to_fw_reg(),
        }
    }

    /// Sets `reg`.
    ///
    /// # Errors
    /// EINVAL for a version of PSCI that does not go with the vCPU's feature or does not exist, and
    /// for a workaround that this machine does not have.
    pub fn set_fw_reg(&mut self, reg: FwReg, psci_0_2: bool, value: u64) -> Result<(), Errno> {
        let granted = match reg {
            FwReg::PsciVersion if psci_0_2 => {
                let version = Version::parse(value).ok_or(Errno::EINVAL)?;
                self.psci.version = version;
                true
            }
            FwReg::PsciVersion => value == PSCI_0_1,
            FwReg::Workaround1 => is_offered(self.workaround_1, value),
            FwReg::Workaround2 => is_offered_2(self.workaround_2, value),
            FwReg::Workaround3 => is_offered(self.workaround_3, value),
        };
        if granted { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The value of a bitmap of services.
    pub const fn bitmap(&self, bitmap: FwBitmap) -> u64 {
        match bitmap {
            FwBitmap::Std => self.std,
            FwBitmap::StdHyp => self.std_hyp,
            FwBitmap::VendorHyp => self.vendor_hyp,
            FwBitmap::VendorHyp2 => self.vendor_hyp_2,
        }
    }

    /// Sets a bitmap of services; `has_run` says whether a vCPU of the VM has run.
    ///
    /// # Errors
    /// EINVAL for a service that is not implemented; EBUSY for a change after a vCPU has run.
    pub const fn set_bitmap(
        &mut self,
        bitmap: FwBitmap,
        value: u64,
        has_run: bool,
    ) -> Result<(), Errno> {
        let offered = match bitmap {
            FwBitmap::Std => STD_TRNG,
            FwBitmap::StdHyp => STD_HYP_PV_TIME,
            FwBitmap::VendorHyp => VENDOR_HYP_FEATURES | VENDOR_HYP_PTP,
            FwBitmap::VendorHyp2 => VENDOR_HYP_2,
        };
        if value & !offered != 0 {
            return Err(Errno::EINVAL);
        }
        if has_run && value != self.bitmap(bitmap) {
            return Err(Errno::EBUSY);
        }
        match bitmap {
            FwBitmap::Std => self.std = value,
            FwBitmap::StdHyp => self.std_hyp = value,
            FwBitmap::VendorHyp => self.vendor_hyp = value,
            FwBitmap::VendorHyp2 => self.vendor_hyp_2 = value,
        }
        Ok(())
    }
}

/// Whether workaround 1 or 3 in the state `here` is as good as `wanted`.
const fn is_offered(here: Workaround, wanted: u64) -> bool {
    wanted & !LEVEL_MASK == 0 && wanted <= here.to_fw_reg()
}

/// The same of workaround 2, whose levels are others: "available" is satisfied by nothing less than
/// "not required", since whether it was switched on cannot be carried over.
const fn is_offered_2(here: Workaround, wanted: u64) -> bool {
    let available = Workaround::Available.to_fw_reg_2();
    let not_required = Workaround::NotRequired.to_fw_reg_2();
    let level = wanted & LEVEL_MASK;
    if wanted & !(LEVEL_MASK | WORKAROUND_2_ENABLED) != 0
        || wanted & WORKAROUND_2_ENABLED != 0 && level != available
    {
        return false;
    }
    match level {
        0 | WORKAROUND_2_UNKNOWN => true,
        _ if level <= not_required => here.to_fw_reg_2() >= not_required,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_goes_with_the_feature() {
        let mut services = Services::default();
        assert_eq!(services.fw_reg(FwReg::PsciVersion, true), 0x1_0003);
        assert_eq!(services.fw_reg(FwReg::PsciVersion, false), 1);
        for (psci_0_2, value, answer) in [
            (true, 1, Err(Errno::EINVAL)),
            (true, 2, Ok(())),
            (true, 0x1_0001, Ok(())),
            (true, 0x1_0004, Err(Errno::EINVAL)),
            (true, 1 << 32 | 2, Err(Errno::EINVAL)),
            (false, 1, Ok(())),
            (false, 2, Err(Errno::EINVAL)),
        ] {
            let result = services.set_fw_reg(FwReg::PsciVersion, psci_0_2, value);
            assert_eq!(result, answer, "{psci_0_2} {value:#x}");
        }
        assert_eq!(services.fw_reg(FwReg::PsciVersion, true), 0x1_0001);
    }

    #[test]
    fn a_workaround_is_granted_up_to_what_the_machine_has() {
        for (here, wanted, granted) in [
            (Workaround::NotAvailable, 0, true),
            (Workaround::NotAvailable, 1, false),
            (Workaround::Available, 1, true),
            (Workaround::Available, 2, false),
            (Workaround::NotRequired, 2, true),
            (Workaround::NotRequired, 3, false),
            (Workaround::NotRequired, 16, false),
        ] {
            let mut services = Services {
                workaround_1: here,
                workaround_3: here,
                ..Services::default()
            };
            for reg in [FwReg::Workaround1, FwReg::Workaround3] {
                let result = services.set_fw_reg(reg, true, wanted);
                assert_eq!(result.is_ok(), granted, "{here:?} {wanted}");
            }
        }
    }

    #[test]
    fn workaround_2_has_levels_of_its_own() {
        for (here, wanted, granted) in [
            (Workaround::NotAvailable, 0, true),
            (Workaround::NotAvailable, 1, true),
            (Workaround::NotAvailable, 2, false),
            (Workaround::Available, 2, false),
            (Workaround::NotRequired, 2, true),
            (Workaround::NotRequired, 2 | 16, true),
            (Workaround::NotRequired, 3 | 16, false),
            (Workaround::NotRequired, 3, true),
            (Workaround::NotRequired, 4, false),
            (Workaround::NotRequired, 32, false),
        ] {
            let mut services = Services {
                workaround_2: here,
                ..Services::default()
            };
            let result = services.set_fw_reg(FwReg::Workaround2, true, wanted);
            assert_eq!(result.is_ok(), granted, "{here:?} {wanted}");
        }
    }

    #[test]
    fn services_are_settled_by_the_first_run() {
        let mut services = Services::default();
        assert_eq!(
            services.set_bitmap(FwBitmap::Std, 2, false),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            services.set_bitmap(FwBitmap::StdHyp, 2, false),
            Err(Errno::EINVAL)
        );
        assert_eq!(services.set_bitmap(FwBitmap::VendorHyp2, 0, true), Ok(()));
        assert_eq!(services.set_bitmap(FwBitmap::Std, 0, false), Ok(()));
        assert_eq!(services.bitmap(FwBitmap::Std), 0);
        assert_eq!(services.bitmap(FwBitmap::StdHyp), 1);
        assert_eq!(services.bitmap(FwBitmap::VendorHyp), 3);
        assert_eq!(services.set_bitmap(FwBitmap::VendorHyp2, 3, false), Ok(()));
        assert_eq!(services.bitmap(FwBitmap::VendorHyp2), 3);
        assert_eq!(
            services.set_bitmap(FwBitmap::Std, 1, true),
            Err(Errno::EBUSY)
        );
        assert_eq!(
            services.set_bitmap(FwBitmap::Std, 2, true),
            Err(Errno::EINVAL)
        );
        assert_eq!(services.set_bitmap(FwBitmap::Std, 0, true), Ok(()));
        assert_eq!(services.set_bitmap(FwBitmap::VendorHyp, 0, false), Ok(()));
        assert_eq!(services.bitmap(FwBitmap::VendorHyp), 0);
    }
}
