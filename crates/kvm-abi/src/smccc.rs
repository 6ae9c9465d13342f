//! Firmware calls of a guest (SMC or HVC, Arm DEN 0028): who answers, and with what.
//!
//! ```text
//!   31    30     29..24   23..16  15..0
//!   fast  64-bit owner    zero    number        owner 0 architecture, 4 standard (PSCI, TRNG),
//!                                               5 standard hypervisor, 6 vendor hypervisor
//! ```
//!
//! [`call`] decides and does not act. Results are x0 to x3; a call that is not known returns −1 in
//! x0 and leaves the other registers alone.

use crate::psci::{self, PsciAction, VcpuView};

/// x0 of a call that is not known.
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// The version of SMCCC that VERSION answers: 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;

const SMCCC_VERSION: u32 = 0x8000_0000;
const ARCH_FEATURES: u32 = 0x8000_0001;
const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_FEATURES: u32 = 0x8400_0051;
const TRNG_GET_UUID: u32 = 0x8400_0052;
const TRNG_RND32: u32 = 0x8400_0053;
const TRNG_RND64: u32 = 0xc400_0053;
const VENDOR_CALL_UID: u32 = 0x8600_ff01;
const VENDOR_FEATURES: u32 = 0x8600_0000;
const VENDOR_PTP: u32 = 0x8600_0001;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const PV_TIME_ST: u32 = 0xc500_0021;

/// KVM's identity, 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, as four little-endian words: guests look
/// for it before they use KVM's calls.
const KVM_UID: [u64; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];
/// The identity of umbra's source of entropy, 6f7ca7e2-41d3-4b0e-9c55-756d62726131.
const TRNG_UID: [u64; 4] = [0xe2a7_7c6f, 0x0e4b_d341, 0x6d75_559c, 0x3161_7262];

/// TRNG: no such argument.
pub const TRNG_INVALID_PARAMETERS: u64 = -2i64 as u64;
/// TRNG: not enough entropy yet.
pub const TRNG_NO_ENTROPY: u64 = -3i64 as u64;

/// Bit 0 of the bitmap of standard services: TRNG.
pub const STD_TRNG: u64 = 1 << 0;
/// Bit 0 of the bitmap of standard hypervisor services: stolen time.
pub const STD_HYP_PV_TIME: u64 = 1 << 0;
/// Bit 0 of the bitmap of vendor services: the calls that name the vendor and give the bitmap.
pub const VENDOR_HYP_FEATURES: u64 = 1 << 0;
/// Bit 1 of it: the host's clock beside a counter.
pub const VENDOR_HYP_PTP: u64 = 1 << 1;
/// The second bitmap of vendor services, whose calls are the VMM's to answer: which implementations the
/// guest may meet (bits 0 and 1).
pub const VENDOR_HYP_2: u64 = 0b11;

/// The state of a processor flaw that firmware can work round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workaround {
    /// Nothing is known or done.
    NotAvailable,
    /// The call does it.
    Available,
    /// The processor does not have the flaw.
    NotRequired,
}

impl Workaround {
    /// What ARCH_FEATURES answers.
    const fn feature(self) -> u64 {
        match self {
            Self::NotAvailable => NOT_SUPPORTED,
            Self::Available => 0,
            Self::NotRequired => 1,
        }
    }

    /// The value of the pseudo-registers for workarounds 1 and 3.
    pub const fn to_fw_reg(self) -> u64 {
        match self {
            Self::NotAvailable => 0,
            Self::Available => 1,
            Self::NotRequired => 2,
        }
    }

    /// The value of the pseudo-register for workaround 2, which has one state more.
    pub const fn to_fw_reg_2(self) -> u64 {
        match self {
            Self::NotAvailable => 0,
            Self::Available => 2,
            Self::NotRequired => 3,
        }
    }
}

/// What a VM offers its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// PSCI.
    pub psci: psci::Offer,
    /// Standard services: [`STD_TRNG`].
    pub std: u64,
    /// Standard hypervisor services: [`STD_HYP_PV_TIME`].
    pub std_hyp: u64,
    /// Vendor services: [`VENDOR_HYP_FEATURES`], [`VENDOR_HYP_PTP`].
    pub vendor_hyp: u64,
    /// Vendor services that a VMM answers: of [`VENDOR_HYP_2`].
    pub vendor_hyp_2: u64,
    /// Spectre variant 2.
    pub workaround_1: Workaround,
    /// Spectre variant 4.
    pub workaround_2: Workaround,
    /// Branch history.
    pub workaround_3: Workaround,
}

impl Default for Services {
    /// What a new VM offers: everything that is implemented, and no claim about flaws.
    fn default() -> Self {
        Self {
            psci: psci::Offer::default(),
            std: STD_TRNG,
            std_hyp: STD_HYP_PV_TIME,
            vendor_hyp: VENDOR_HYP_FEATURES | VENDOR_HYP_PTP,
            vendor_hyp_2: 0,
            workaround_1: Workaround::NotAvailable,
            workaround_2: Workaround::NotAvailable,
            workaround_3: Workaround::NotAvailable,
        }
    }
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmcccAction {
    /// Only x0.
    Return(u64),
    /// x0 to x3.
    Return4([u64; 4]),
    /// PSCI.
    Psci(PsciAction),
    /// Stolen time (DEN 0057): 0 if the vCPU has a place for it, else [`NOT_SUPPORTED`].
    StolenTimeIsThere,
    /// Stolen time begins: its place, or [`NOT_SUPPORTED`].
    StolenTime,
    /// The host's clock and the counter at the same time, as [`clock`] has it.
    Clock {
        /// The physical counter, not the virtual one.
        physical: bool,
    },
    /// Fetch three random words and return [`entropy`] of them.
    Random {
        /// How many bits, 1 to 192, or to 96 for a 32-bit call.
        bits: u32,
        /// Whether the call was 64 bits wide.
        wide: bool,
    },
}

/// Decides the call with x0 to x3 in `args`, made by vCPU `caller`.
pub fn call(
    args: [u64; 4],
    services: &Services,
    caller: usize,
    vcpus: &dyn VcpuView,
) -> SmcccAction {
    let function = args[0] as u32;
    let [_, a1, a2, a3] = args;
    let trng = services.std & STD_TRNG != 0;
    let pv_time = services.std_hyp & STD_HYP_PV_TIME != 0;
    let vendor = services.vendor_hyp & VENDOR_HYP_FEATURES != 0;
    match function {
        _ if psci::is_psci(function) => SmcccAction::Psci(psci::call(
            function,
            [a1, a2, a3],
            services.psci,
            caller,
            vcpus,
        )),
        SMCCC_VERSION => SmcccAction::Return(VERSION_1_1),
        ARCH_FEATURES => SmcccAction::Return(arch_feature(a1 as u32, services)),
        ARCH_WORKAROUND_1 | ARCH_WORKAROUND_2 | ARCH_WORKAROUND_3 => SmcccAction::Return(0),
        TRNG_VERSION if trng => SmcccAction::Return(0x1_0000),
        TRNG_FEATURES if trng => SmcccAction::Return(match a1 as u32 {
            TRNG_VERSION | TRNG_FEATURES | TRNG_GET_UUID | TRNG_RND32 | TRNG_RND64 => 0,
            _ => NOT_SUPPORTED,
        }),
        TRNG_GET_UUID if trng => SmcccAction::Return4(TRNG_UID),
        TRNG_RND32 if trng => random(a1 & 0xffff_ffff, false),
        TRNG_RND64 if trng => random(a1, true),
        VENDOR_CALL_UID if vendor => SmcccAction::Return4(KVM_UID),
        VENDOR_FEATURES if vendor => {
            SmcccAction::Return4([services.vendor_hyp, 0, services.vendor_hyp_2, 0])
        }
        VENDOR_PTP if services.vendor_hyp & VENDOR_HYP_PTP != 0 => match a1 as u32 {
            0 => SmcccAction::Clock { physical: false },
            1 => SmcccAction::Clock { physical: true },
            _ => SmcccAction::Return(NOT_SUPPORTED),
        },
        PV_TIME_FEATURES if pv_time => match a1 as u32 {
            PV_TIME_FEATURES | PV_TIME_ST => SmcccAction::StolenTimeIsThere,
            _ => SmcccAction::Return(NOT_SUPPORTED),
        },
        PV_TIME_ST if pv_time => SmcccAction::StolenTime,
        _ => SmcccAction::Return(NOT_SUPPORTED),
    }
}

/// Whether any service answers `function`. Of the others [`call`] says [`NOT_SUPPORTED`], whatever the
/// services are; most guests ask for few, so this is worth knowing without a look at any of them.
#[must_use]
pub const fn has_owner(function: u32) -> bool {
    psci::is_psci(function)
        || matches!(
            function,
            SMCCC_VERSION
                | ARCH_FEATURES
                | ARCH_WORKAROUND_1
                | ARCH_WORKAROUND_2
                | ARCH_WORKAROUND_3
                | TRNG_VERSION
                | TRNG_FEATURES
                | TRNG_GET_UUID
                | TRNG_RND32
                | TRNG_RND64
                | VENDOR_CALL_UID
                | VENDOR_FEATURES
                | VENDOR_PTP
                | PV_TIME_FEATURES
                | PV_TIME_ST
        )
}

fn arch_feature(function: u32, services: &Services) -> u64 {
    match function {
        SMCCC_VERSION | ARCH_FEATURES => 0,
        ARCH_WORKAROUND_1 => services.workaround_1.feature(),
        ARCH_WORKAROUND_2 => services.workaround_2.feature(),
        ARCH_WORKAROUND_3 => services.workaround_3.feature(),
        PV_TIME_FEATURES if services.std_hyp & STD_HYP_PV_TIME != 0 => 0,
        _ => NOT_SUPPORTED,
    }
}

fn random(bits: u64, wide: bool) -> SmcccAction {
    let most = if wide { 192 } else { 96 };
    if bits == 0 || bits > most {
        return SmcccAction::Return(TRNG_INVALID_PARAMETERS);
    }
    SmcccAction::Random {
        bits: bits as u32,
        wide,
    }
}

/// x0 to x3 of the clock call: nanoseconds since 1970, then ticks, the upper word of each first.
pub const fn clock(nanoseconds: u64, ticks: u64) -> [u64; 4] {
    const LOW: u64 = 0xffff_ffff;
    [
        nanoseconds >> 32,
        nanoseconds & LOW,
        ticks >> 32,
        ticks & LOW,
    ]
}

/// x0 to x3 of a TRNG call for `bits` random bits: success, then the bits with the least
/// significant in x3 and everything above them zero (DEN 0098, 2.5).
pub fn entropy(bits: u32, wide: bool, random: [u64; 3]) -> [u64; 4] {
    let width = if wide { 64 } else { 32 };
    let mut result = [0; 4];
    let mut left = bits.min(3 * width);
    for (at, word) in random.into_iter().enumerate() {
        let here = left.min(width);
        left -= here;
        result[3 - at] = if here == 64 {
            word
        } else {
            word & ((1 << here) - 1)
        };
    }
    result
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    struct One;

    impl VcpuView for One {
        fn count(&self) -> usize {
            1
        }
        fn mpidr(&self, _: usize) -> u64 {
            0
        }
        fn is_off(&self, _: usize) -> bool {
            false
        }
    }

    fn ask(args: [u64; 4]) -> SmcccAction {
        call(args, &Services::default(), 0, &One)
    }

    #[test]
    fn nobody_answers_what_has_no_owner() {
        let all = Services {
            std: u64::MAX,
            vendor_hyp: u64::MAX,
            ..Services::default()
        };
        let (mut owned, mut not) = (0, 0);
        for top in 0..0x100u32 {
            for low in (0..0x200).chain([0x3fff, 0x7fff, 0x8000, 0xff00, 0xff01, 0xff03]) {
                let function = top << 24 | low;
                if has_owner(function) {
                    owned += 1;
                    continue;
                }
                not += 1;
                for services in [Services::default(), all] {
                    let action = call([function.into(), 1, 0, 0], &services, 0, &One);
                    assert_eq!(action, SmcccAction::Return(NOT_SUPPORTED), "{function:#x}");
                }
            }
        }
        assert!(owned > 40 && not > 10_000, "{owned} {not}");
    }

    #[test]
    fn the_vendor_is_kvm() {
        let SmcccAction::Return4(uid) = ask([0x8600_ff01, 0, 0, 0]) else {
            panic!("four words")
        };
        let bytes: Vec<u8> = uid
            .iter()
            .flat_map(|word| (*word as u32).to_le_bytes())
            .collect();
        let uuid = 0x28b4_6fb6_2ec5_11e9_a9ca_4b56_4d00_3a74u128;
        assert_eq!(bytes, uuid.to_be_bytes());
    }

    #[test]
    fn the_trng_names_itself() {
        let SmcccAction::Return4(uid) = ask([0x8400_0052, 0, 0, 0]) else {
            panic!("four words")
        };
        let bytes: Vec<u8> = uid
            .iter()
            .flat_map(|word| (*word as u32).to_le_bytes())
            .collect();
        let uuid = 0x6f7c_a7e2_41d3_4b0e_9c55_756d_6272_6131u128;
        assert_eq!(bytes, uuid.to_be_bytes());
    }

    #[test]
    fn psci_is_passed_on_and_the_upper_half_of_x0_ignored() {
        let version = SmcccAction::Psci(PsciAction::Return(0x1_0003));
        assert_eq!(ask([0x8400_0000, 0, 0, 0]), version);
        assert_eq!(ask([0xffff_ffff_8400_0000, 0, 0, 0]), version);
    }

    #[test]
    fn architecture_calls() {
        assert_eq!(ask([0x8000_0000, 0, 0, 0]), SmcccAction::Return(0x1_0001));
        assert_eq!(
            ask([0x8000_0001, 0x8000_0001, 0, 0]),
            SmcccAction::Return(0)
        );
        for (number, state, answer) in [
            (0x8000_8000, Workaround::NotAvailable, NOT_SUPPORTED),
            (0x8000_8000, Workaround::Available, 0),
            (0x8000_8000, Workaround::NotRequired, 1),
        ] {
            let services = Services {
                workaround_1: state,
                ..Services::default()
            };
            let said = call([0x8000_0001, number, 0, 0], &services, 0, &One);
            assert_eq!(said, SmcccAction::Return(answer), "{state:?}");
        }
        let services = Services {
            workaround_3: Workaround::NotRequired,
            ..Services::default()
        };
        let said = call([0x8000_0001, 0x8000_3fff, 0, 0], &services, 0, &One);
        assert_eq!(said, SmcccAction::Return(1));
        assert_eq!(
            ask([0x8000_0001, 0x8000_7fff, 0, 0]),
            SmcccAction::Return(NOT_SUPPORTED)
        );
    }

    #[test]
    fn a_service_that_is_off_is_unknown() {
        let none = Services {
            std: 0,
            std_hyp: 0,
            vendor_hyp: 0,
            ..Services::default()
        };
        for (function, argument) in [
            (0x8400_0050u64, 64),
            (0x8400_0052, 64),
            (0xc400_0053, 64),
            (0x8600_ff01, 0),
            (0x8600_0000, 0),
            (0x8600_0001, 1),
            (0xc500_0020, 0xc500_0021),
            (0xc500_0021, 0),
            (0x8000_0001, 0xc500_0020),
        ] {
            let args = [function, argument, 0, 0];
            let off = call(args, &none, 0, &One);
            assert_eq!(off, SmcccAction::Return(NOT_SUPPORTED), "{function:#x}");
            assert_ne!(ask(args), SmcccAction::Return(NOT_SUPPORTED));
        }
        let all = Services {
            vendor_hyp_2: 1,
            ..Services::default()
        };
        assert_eq!(
            call([0x8600_0000, 0, 0, 0], &all, 0, &One),
            SmcccAction::Return4([3, 0, 1, 0])
        );
    }

    #[test]
    fn the_clock_is_beside_one_of_two_counters() {
        let clock_call = |which| ask([0x8600_0001, which, 0, 0]);
        assert_eq!(clock_call(0), SmcccAction::Clock { physical: false });
        assert_eq!(clock_call(1), SmcccAction::Clock { physical: true });
        assert_eq!(clock_call(2), SmcccAction::Return(NOT_SUPPORTED));
        assert_eq!(
            clock(0x1111_2222_3333_4444, 0x5555_6666_7777_8888),
            [0x1111_2222, 0x3333_4444, 0x5555_6666, 0x7777_8888]
        );
    }

    #[test]
    fn entropy_is_asked_for_in_bounds() {
        assert_eq!(
            ask([0xc400_0053, 192, 0, 0]),
            SmcccAction::Random {
                bits: 192,
                wide: true
            }
        );
        assert_eq!(
            ask([0x8400_0053, 96, 0, 0]),
            SmcccAction::Random {
                bits: 96,
                wide: false
            }
        );
        for (function, bits) in [(0xc400_0053, 193), (0xc400_0053, 0), (0x8400_0053, 97)] {
            let refused = SmcccAction::Return(TRNG_INVALID_PARAMETERS);
            assert_eq!(ask([function, bits, 0, 0]), refused);
        }
    }

    #[test]
    fn entropy_fills_from_the_low_end() {
        let ones = [u64::MAX; 3];
        assert_eq!(entropy(192, true, ones), [0, u64::MAX, u64::MAX, u64::MAX]);
        assert_eq!(entropy(65, true, ones), [0, 0, 1, u64::MAX]);
        assert_eq!(entropy(1, true, ones), [0, 0, 0, 1]);
        assert_eq!(
            entropy(96, false, ones),
            [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]
        );
        assert_eq!(entropy(40, false, ones), [0, 0, 0xff, 0xffff_ffff]);
    }

    proptest! {
        #[test]
        fn as_many_bits_as_asked_for(bits in 1u32..=192) {
            let ones: u32 = entropy(bits, true, [u64::MAX; 3]).iter().map(|w| w.count_ones()).sum();
            prop_assert_eq!(ones, bits);
        }

        #[test]
        fn a_call_outside_the_known_ones_is_unknown(function in 0x8700_0000u64..=0xbfff_ffff) {
            prop_assert_eq!(ask([function, 0, 0, 0]), SmcccAction::Return(NOT_SUPPORTED));
        }
    }
}
