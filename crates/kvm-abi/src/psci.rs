//! PSCI as a guest's firmware: what a call means, decided without doing it (Arm DEN 0022F).
//!
//! [`call`] reads the arguments, checks them against a [`VcpuView`] and answers a [`PsciAction`].
//! The caller holds whatever keeps the view true until the action is carried out; two CPU_ON for
//! one vCPU must not both see it off.

/// A version of PSCI as its VERSION call gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// PSCI 0.2.
    pub const V0_2: Self = Self(2);
    /// PSCI 1.0.
    pub const V1_0: Self = Self(0x1_0000);
    /// PSCI 1.1.
    pub const V1_1: Self = Self(0x1_0001);
    /// PSCI 1.2.
    pub const V1_2: Self = Self(0x1_0002);
    /// PSCI 1.3: what a new vCPU sees.
    pub const V1_3: Self = Self(0x1_0003);

    /// From the pseudo-register; `None` for a version that is not offered.
    pub const fn parse(raw: u64) -> Option<Self> {
        match raw {
            2 | 0x1_0000..=0x1_0003 => Some(Self(raw as u32)),
            _ => None,
        }
    }

    /// The value of the pseudo-register and of the VERSION call.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl Default for Version {
    fn default() -> Self {
        Self::V1_3
    }
}

/// Success.
pub const SUCCESS: i64 = 0;
/// The function is not there.
pub const NOT_SUPPORTED: i64 = -1;
/// An argument names nothing.
pub const INVALID_PARAMETERS: i64 = -2;
/// Not now.
pub const DENIED: i64 = -3;
/// The CPU is on.
pub const ALREADY_ON: i64 = -4;
/// The CPU is being switched on.
pub const ON_PENDING: i64 = -5;
/// It went wrong.
pub const INTERNAL_FAILURE: i64 = -6;

/// The bit that tells a 64-bit function id from its 32-bit twin.
const SMC64: u32 = 1 << 30;
const VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SYSTEM_SUSPEND: u32 = 0x8400_000e;
const SYSTEM_RESET2: u32 = 0x8400_0012;
const SYSTEM_OFF2: u32 = 0x8400_0015;
const SMCCC_VERSION: u32 = 0x8000_0000;

/// MIGRATE_INFO_TYPE: there is no trusted OS that could be in the way.
const NO_TRUSTED_OS: i64 = 2;
/// SYSTEM_OFF2: hibernate.
const HIBERNATE_OFF: u64 = 1;
/// The fields of MPIDR_EL1 that name a CPU.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// What a call comes to. Where it returns, the value goes to x0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciAction {
    /// Nothing but the value in x0.
    Return(i64),
    /// Wait for an interrupt, then return SUCCESS.
    Suspend,
    /// Switch the calling vCPU off; does not return.
    CpuOff,
    /// Reset and start vCPU `target` (the view's index); then return SUCCESS.
    CpuOn {
        /// Index in the view.
        target: usize,
        /// Where it starts, a guest virtual address with the MMU off.
        entry: u64,
        /// Its x0.
        context: u64,
    },
    /// Leave all vCPUs and exit with KVM_SYSTEM_EVENT_SHUTDOWN. x0 becomes INTERNAL_FAILURE, for a
    /// VMM that runs the vCPU again.
    SystemOff {
        /// `system_event.flags`.
        flags: u64,
    },
    /// The same with KVM_SYSTEM_EVENT_RESET.
    SystemReset {
        /// `system_event.flags`.
        flags: u64,
    },
    /// Exit with KVM_SYSTEM_EVENT_SUSPEND; on resumption the vCPU starts at `entry`.
    SystemSuspend {
        /// Where it starts.
        entry: u64,
        /// Its x0.
        context: u64,
    },
}

/// What the decision needs to know of the VM.
pub trait VcpuView {
    /// Number of vCPUs.
    fn count(&self) -> usize;
    /// MPIDR_EL1 of vCPU `index`, below `count`.
    fn mpidr(&self, index: usize) -> u64;
    /// Whether vCPU `index` is switched off.
    fn is_off(&self, index: usize) -> bool;
}

/// What the VM offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The version shown.
    pub version: Version,
    /// Whether the VMM enabled KVM_CAP_ARM_SYSTEM_SUSPEND.
    pub system_suspend: bool,
}

/// Whether `function` is in PSCI's range (or the 64-bit range beside it).
pub const fn is_psci(function: u32) -> bool {
    function & !(SMC64 | 0x1f) == VERSION
}

/// Decides the call `function` with x1 to x3 in `args`, made by vCPU `caller` of `vcpus`.
///
/// Upper halves of the arguments of a 32-bit function are ignored.
pub fn call(
    function: u32,
    args: [u64; 3],
    offer: Offer,
    caller: usize,
    vcpus: &dyn VcpuView,
) -> PsciAction {
    let wide = function & SMC64 != 0;
    let [a1, a2, a3] = if wide {
        args
    } else {
        args.map(|arg| arg & 0xffff_ffff)
    };
    if !exists(function, offer) {
        return PsciAction::Return(NOT_SUPPORTED);
    }
    match function & !SMC64 {
        VERSION => PsciAction::Return(i64::from(offer.version.raw())),
        CPU_SUSPEND => PsciAction::Suspend,
        CPU_OFF => PsciAction::CpuOff,
        CPU_ON => cpu_on(a1, a2, a3, vcpus),
        AFFINITY_INFO => PsciAction::Return(affinity_info(a1, a2, vcpus)),
        MIGRATE_INFO_TYPE => PsciAction::Return(NO_TRUSTED_OS),
        SYSTEM_OFF => PsciAction::SystemOff { flags: 0 },
        SYSTEM_RESET => PsciAction::SystemReset { flags: 0 },
        FEATURES => PsciAction::Return(features(a1 as u32, offer)),
        SYSTEM_SUSPEND => system_suspend(a1, a2, caller, vcpus),
        SYSTEM_RESET2 => system_reset2(a1),
        SYSTEM_OFF2 => system_off2(a1, a2),
        _ => PsciAction::Return(NOT_SUPPORTED),
    }
}

/// Whether `function` is there in the version on offer: in its 32-bit form, or in the 64-bit form
/// if it takes an address or a CPU.
fn exists(function: u32, offer: Offer) -> bool {
    let wide = function & SMC64 != 0;
    let since = |version| offer.version >= version;
    match function & !SMC64 {
        VERSION | CPU_OFF | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET => !wide,
        CPU_SUSPEND | CPU_ON | AFFINITY_INFO => true,
        FEATURES => !wide && since(Version::V1_0),
        SYSTEM_SUSPEND => since(Version::V1_0) && offer.system_suspend,
        SYSTEM_RESET2 => since(Version::V1_1),
        SYSTEM_OFF2 => since(Version::V1_3),
        _ => false,
    }
}

fn cpu_on(target: u64, entry: u64, context: u64, vcpus: &dyn VcpuView) -> PsciAction {
    let named = |index: &usize| vcpus.mpidr(*index) & MPIDR_AFFINITY == target & MPIDR_AFFINITY;
    match (0..vcpus.count()).find(named) {
        None => PsciAction::Return(INVALID_PARAMETERS),
        Some(index) if !vcpus.is_off(index) => PsciAction::Return(ALREADY_ON),
        Some(index) => PsciAction::CpuOn {
            target: index,
            entry,
            context,
        },
    }
}

/// 0: one of the CPUs that `target` names down to affinity level `lowest` is on; 1: all are off.
fn affinity_info(target: u64, lowest: u64, vcpus: &dyn VcpuView) -> i64 {
    let mask = match lowest {
        0 => MPIDR_AFFINITY,
        1 => MPIDR_AFFINITY & !0xff,
        2 => MPIDR_AFFINITY & !0xffff,
        3 => MPIDR_AFFINITY & !0xff_ffff,
        _ => return INVALID_PARAMETERS,
    };
    let mut named = (0..vcpus.count()).filter(|index| vcpus.mpidr(*index) & mask == target & mask);
    match named.next() {
        None => INVALID_PARAMETERS,
        Some(first) => i64::from(vcpus.is_off(first) && named.all(|index| vcpus.is_off(index))),
    }
}

fn features(function: u32, offer: Offer) -> i64 {
    match function {
        SMCCC_VERSION => SUCCESS,
        // A bit for each kind of power-off that SYSTEM_OFF2 knows.
        _ if function & !SMC64 == SYSTEM_OFF2 && exists(function, offer) => HIBERNATE_OFF as i64,
        _ if is_psci(function) && exists(function, offer) => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

/// Only the last CPU that is on can suspend the system.
fn system_suspend(entry: u64, context: u64, caller: usize, vcpus: &dyn VcpuView) -> PsciAction {
    let others_off = (0..vcpus.count()).all(|index| index == caller || vcpus.is_off(index));
    if others_off {
        PsciAction::SystemSuspend { entry, context }
    } else {
        PsciAction::Return(DENIED)
    }
}

/// Reset type 0 is the architecture's warm reset, types with bit 31 are the vendor's.
fn system_reset2(kind: u64) -> PsciAction {
    if kind as u32 == 0 || kind as u32 & 1 << 31 != 0 {
        PsciAction::SystemReset {
            flags: crate::exit::KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2,
        }
    } else {
        PsciAction::Return(INVALID_PARAMETERS)
    }
}

/// The type may be 0 for the only one there is; the cookie must be zero.
fn system_off2(kind: u64, cookie: u64) -> PsciAction {
    if matches!(kind, 0 | HIBERNATE_OFF) && cookie == 0 {
        PsciAction::SystemOff {
            flags: crate::exit::KVM_SYSTEM_EVENT_SHUTDOWN_FLAG_PSCI_OFF2,
        }
    } else {
        PsciAction::Return(INVALID_PARAMETERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Vm(&'static [(u64, bool)]);

    impl VcpuView for Vm {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn mpidr(&self, index: usize) -> u64 {
            self.0[index].0
        }
        fn is_off(&self, index: usize) -> bool {
            self.0[index].1
        }
    }

    /// CPUs 0 and 1 of cluster 0 and CPU 0 of cluster 1; only the first is on.
    const VM: Vm = Vm(&[
        (0x8000_0000, false),
        (0x8000_0001, true),
        (0x8000_0100, true),
    ]);

    fn ask(function: u32, args: [u64; 3]) -> PsciAction {
        call(function, args, Offer::default(), 0, &VM)
    }

    fn value(function: u32, args: [u64; 3]) -> i64 {
        match ask(function, args) {
            PsciAction::Return(value) => value,
            other => panic!("{other:?} returns no value"),
        }
    }

    #[test]
    fn version_1_3_and_no_trusted_os() {
        assert_eq!(value(0x8400_0000, [0; 3]), 0x1_0003);
        assert_eq!(value(0x8400_0006, [0; 3]), 2);
    }

    #[test]
    fn cpu_on_starts_a_cpu_that_is_off() {
        let on = PsciAction::CpuOn {
            target: 1,
            entry: 0x4020_0000,
            context: 7,
        };
        assert_eq!(ask(0xc400_0003, [1, 0x4020_0000, 7]), on);
        assert_eq!(
            ask(0x8400_0003, [0xf_0000_0001, 0x4020_0000, 7]),
            on,
            "upper half ignored"
        );
        assert_eq!(value(0xc400_0003, [0, 0, 0]), ALREADY_ON);
        assert_eq!(value(0xc400_0003, [2, 0, 0]), INVALID_PARAMETERS);
        assert_eq!(
            value(0xc400_0003, [1 << 32 | 1, 0, 0]),
            INVALID_PARAMETERS,
            "Aff3 counts"
        );
    }

    #[test]
    fn affinity_info_speaks_of_groups() {
        assert_eq!(value(0xc400_0004, [0, 0, 0]), 0);
        assert_eq!(value(0xc400_0004, [1, 0, 0]), 1);
        assert_eq!(
            value(0xc400_0004, [1, 1, 0]),
            0,
            "CPU 0 of the cluster is on"
        );
        assert_eq!(value(0xc400_0004, [0x100, 1, 0]), 1);
        assert_eq!(value(0xc400_0004, [0x200, 1, 0]), INVALID_PARAMETERS);
        assert_eq!(value(0xc400_0004, [0, 4, 0]), INVALID_PARAMETERS);
    }

    #[test]
    fn the_system_goes_down_with_its_flags() {
        assert_eq!(ask(0x8400_0008, [0; 3]), PsciAction::SystemOff { flags: 0 });
        assert_eq!(
            ask(0x8400_0009, [0; 3]),
            PsciAction::SystemReset { flags: 0 }
        );
        assert_eq!(
            ask(0xc400_0012, [0; 3]),
            PsciAction::SystemReset { flags: 1 }
        );
        assert_eq!(
            ask(0xc400_0012, [1 << 31, 0, 0]),
            PsciAction::SystemReset { flags: 1 }
        );
        assert_eq!(value(0xc400_0012, [1, 0, 0]), INVALID_PARAMETERS);
        assert_eq!(
            ask(0xc400_0015, [1, 0, 0]),
            PsciAction::SystemOff { flags: 1 }
        );
        assert_eq!(value(0xc400_0015, [1, 1, 0]), INVALID_PARAMETERS);
        assert_eq!(value(0xc400_0015, [2, 0, 0]), INVALID_PARAMETERS);
    }

    #[test]
    fn suspension_is_offered_and_for_the_last_cpu() {
        assert_eq!(value(0xc400_000e, [1, 2, 0]), NOT_SUPPORTED);
        let offer = Offer {
            system_suspend: true,
            ..Offer::default()
        };
        let suspend = |caller| call(0xc400_000e, [1, 2, 0], offer, caller, &VM);
        assert_eq!(
            suspend(0),
            PsciAction::SystemSuspend {
                entry: 1,
                context: 2
            }
        );
        assert_eq!(suspend(1), PsciAction::Return(DENIED));
    }

    #[test]
    fn an_older_version_knows_less() {
        for (version, function) in [
            (Version::V0_2, FEATURES),
            (Version::V1_0, SYSTEM_RESET2),
            (Version::V1_2, SYSTEM_OFF2),
        ] {
            let offer = Offer {
                version,
                ..Offer::default()
            };
            let action = call(function, [FEATURES.into(), 0, 0], offer, 0, &VM);
            assert_eq!(action, PsciAction::Return(NOT_SUPPORTED), "{function:#x}");
        }
    }

    #[test]
    fn features_agrees_with_what_exists() {
        for function in (0x8400_0000u32..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
            let said = value(FEATURES, [function.into(), 0, 0]) != NOT_SUPPORTED;
            // VERSION as the argument, so that FEATURES itself has something to say.
            let there = ask(function, [VERSION.into(), 0, 0]) != PsciAction::Return(NOT_SUPPORTED);
            assert_eq!(said, there, "{function:#x}");
        }
        assert_eq!(value(FEATURES, [0x8000_0000, 0, 0]), SUCCESS);
        assert_eq!(value(FEATURES, [0xc400_0015, 0, 0]), 1);
        assert_eq!(
            value(FEATURES, [0x8400_0013, 0, 0]),
            NOT_SUPPORTED,
            "MEM_PROTECT"
        );
    }

    #[test]
    fn versions_come_from_the_pseudo_register() {
        assert_eq!(Version::parse(0x1_0003), Some(Version::V1_3));
        assert_eq!(Version::parse(2), Some(Version::V0_2));
        for bad in [0, 1, 3, 0x1_0004, 0x2_0000, 1 << 32 | 2] {
            assert_eq!(Version::parse(bad), None, "{bad:#x}");
        }
    }

    proptest! {
        #[test]
        fn only_a_vcpu_that_is_off_is_ever_started(function: u32, args: [u64; 3]) {
            if let PsciAction::CpuOn { target, .. } = ask(function, args) {
                prop_assert!(VM.is_off(target));
            }
        }
    }
}
