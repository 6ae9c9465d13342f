//! What a vCPU is made with and asked about: features, power state, events, debug (api.rst 4.82,
//! 4.38, 4.31, 4.87, 4.37).

use crate::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The only target that KVM_ARM_PREFERRED_TARGET answers; the others are of history.
pub const KVM_ARM_TARGET_GENERIC_V8: u32 = 5;
/// One more than the highest target number.
pub const KVM_ARM_NUM_TARGETS: u32 = 6;

/// Feature bit: the vCPU starts powered off.
pub const KVM_ARM_VCPU_POWER_OFF: u32 = 0;
/// Feature bit: EL1 in AArch32.
pub const KVM_ARM_VCPU_EL1_32BIT: u32 = 1;
/// Feature bit: PSCI 0.2 or later instead of KVM's own 0.1.
pub const KVM_ARM_VCPU_PSCI_0_2: u32 = 2;
/// Feature bit: performance counters.
pub const KVM_ARM_VCPU_PMU_V3: u32 = 3;
/// Feature bit: SVE.
pub const KVM_ARM_VCPU_SVE: u32 = 4;
/// Feature bit: pointer authentication of addresses.
pub const KVM_ARM_VCPU_PTRAUTH_ADDRESS: u32 = 5;
/// Feature bit: generic pointer authentication.
pub const KVM_ARM_VCPU_PTRAUTH_GENERIC: u32 = 6;
/// Feature bit: virtual EL2.
pub const KVM_ARM_VCPU_HAS_EL2: u32 = 7;
/// Feature bit: virtual EL2 whose E2H is 0.
pub const KVM_ARM_VCPU_HAS_EL2_E2H0: u32 = 8;

/// `struct kvm_vcpu_init`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VcpuInit {
    /// [`KVM_ARM_TARGET_GENERIC_V8`].
    pub target: u32,
    /// A bit set over `KVM_ARM_VCPU_*`, 32 to a word.
    pub features: [u32; 7],
}

/// The features of a vCPU as a set of `KVM_ARM_VCPU_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuFeatures(u32);

impl VcpuFeatures {
    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether `KVM_ARM_VCPU_*` number `feature` is in the set.
    pub const fn has(self, feature: u32) -> bool {
        feature < 32 && self.0 & 1 << feature != 0
    }

    /// With `feature` added.
    pub const fn with(self, feature: u32) -> Self {
        Self(self.0 | 1 << feature)
    }

    /// Whether a second KVM_ARM_VCPU_INIT may follow: everything but the power state is settled.
    pub const fn same_vcpu_as(self, other: Self) -> bool {
        let mask = !(1 << KVM_ARM_VCPU_POWER_OFF);
        self.0 & mask == other.0 & mask
    }
}

impl VcpuInit {
    /// Checks the request against the features on `offer`.
    ///
    /// # Errors
    /// EINVAL for another target, for a feature that is not offered, and for half of pointer
    /// authentication (the two halves are given together or not at all); ENOENT for a feature that
    /// no KVM knows.
    pub fn check(&self, offer: VcpuFeatures) -> Result<VcpuFeatures, Errno> {
        if self.target != KVM_ARM_TARGET_GENERIC_V8 {
            return Err(Errno::EINVAL);
        }
        let known = (1 << (KVM_ARM_VCPU_HAS_EL2_E2H0 + 1)) - 1;
        if self.features[0] & !known != 0 || self.features[1..].iter().any(|word| *word != 0) {
            return Err(Errno::ENOENT);
        }
        let features = VcpuFeatures(self.features[0]);
        let address = features.has(KVM_ARM_VCPU_PTRAUTH_ADDRESS);
        let generic = features.has(KVM_ARM_VCPU_PTRAUTH_GENERIC);
        let e2h0_alone =
            features.has(KVM_ARM_VCPU_HAS_EL2_E2H0) && !features.has(KVM_ARM_VCPU_HAS_EL2);
        if features.0 & !offer.0 != 0 || address != generic || e2h0_alone {
            return Err(Errno::EINVAL);
        }
        Ok(features)
    }
}

/// `struct kvm_mp_state`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MpState {
    /// `KVM_MP_STATE_*`.
    pub mp_state: u32,
}

/// Whether a vCPU is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Power {
    /// Runs when KVM_RUN is called.
    #[default]
    Runnable = 0,
    /// Switched off by PSCI or by the VMM.
    Stopped = 5,
    /// Waits for a wake-up event after SYSTEM_SUSPEND.
    Suspended = 10,
}

impl TryFrom<MpState> for Power {
    type Error = Errno;

    /// Answers EINVAL for a state that arm64 does not have.
    fn try_from(state: MpState) -> Result<Self, Errno> {
        match state.mp_state {
            0 => Ok(Self::Runnable),
            5 => Ok(Self::Stopped),
            10 => Ok(Self::Suspended),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl From<Power> for MpState {
    fn from(power: Power) -> Self {
        Self {
            mp_state: power as u32,
        }
    }
}

/// `struct kvm_vcpu_events`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VcpuEvents {
    /// 1: an SError is pending.
    pub serror_pending: u8,
    /// 1: [`serror_esr`](Self::serror_esr) says with which syndrome.
    pub serror_has_esr: u8,
    /// 1 on the way in: inject a synchronous external data abort. Reads as 0.
    pub ext_dabt_pending: u8,
    /// Zero.
    pub pad: [u8; 5],
    /// The syndrome, bits \[24:0\].
    pub serror_esr: u64,
    /// Zero.
    pub reserved: [u32; 12],
}

/// What KVM_SET_VCPU_EVENTS asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRequest {
    /// Make an SError pending, with this syndrome where there is one.
    pub serror: Option<Option<u32>>,
    /// Inject a synchronous external data abort at the address of the last abort.
    pub external_abort: bool,
}

impl VcpuEvents {
    /// Checks what a VMM wrote.
    ///
    /// # Errors
    /// EINVAL for nonzero reserved fields, for a syndrome without FEAT_RAS (`has_ras`), and for a
    /// syndrome wider than ISS.
    pub fn request(&self, has_ras: bool) -> Result<EventRequest, Errno> {
        if self.pad != [0; 5] || self.reserved != [0; 12] {
            return Err(Errno::EINVAL);
        }
        let serror = match (self.serror_pending != 0, self.serror_has_esr != 0) {
            (false, _) => None,
            (true, false) => Some(None),
            (true, true) if has_ras && self.serror_esr < 1 << 25 => {
                Some(Some(self.serror_esr as u32))
            }
            (true, true) => return Err(Errno::EINVAL),
        };
        Ok(EventRequest {
            serror,
            external_abort: self.ext_dabt_pending != 0,
        })
    }
}

/// `struct kvm_enable_cap`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EnableCap {
    /// `KVM_CAP_*`.
    pub cap: u32,
    /// Zero.
    pub flags: u32,
    /// What the capability takes.
    pub args: [u64; 4],
    /// Ignored.
    pub pad: [u8; 64],
}

/// `struct kvm_signal_mask`, followed by `len` bytes of signal set.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SignalMask {
    /// Size of the signal set in bytes: 8.
    pub len: u32,
}

/// `struct kvm_translation`. arm64 refuses the call.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Translation {
    /// In.
    pub linear_address: u64,
    /// Out.
    pub physical_address: u64,
    /// Out.
    pub valid: u8,
    /// Out.
    pub writeable: u8,
    /// Out.
    pub usermode: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// `struct kvm_arm_counter_offset`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CounterOffset {
    /// What both counters of the guest lag behind the host's.
    pub counter_offset: u64,
    /// Zero.
    pub reserved: u64,
}

/// KVM_SET_GUEST_DEBUG: debugging is on.
pub const KVM_GUESTDBG_ENABLE: u32 = 1;
/// KVM_SET_GUEST_DEBUG: one instruction at a time.
pub const KVM_GUESTDBG_SINGLESTEP: u32 = 2;
/// KVM_SET_GUEST_DEBUG: BRK exits.
pub const KVM_GUESTDBG_USE_SW_BP: u32 = 1 << 16;
/// KVM_SET_GUEST_DEBUG: the breakpoints and watchpoints of `arch` are used.
pub const KVM_GUESTDBG_USE_HW: u32 = 1 << 17;
/// Every bit that arm64 knows.
pub const KVM_GUESTDBG_VALID_MASK: u32 =
    KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW;

/// `struct kvm_guest_debug`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GuestDebug {
    /// `KVM_GUESTDBG_*`.
    pub control: u32,
    /// Ignored.
    pub pad: u32,
    /// `DBGBCR<n>_EL1`.
    pub dbg_bcr: [u64; 16],
    /// `DBGBVR<n>_EL1`.
    pub dbg_bvr: [u64; 16],
    /// `DBGWCR<n>_EL1`.
    pub dbg_wcr: [u64; 16],
    /// `DBGWVR<n>_EL1`.
    pub dbg_wvr: [u64; 16],
}

/// `struct kvm_regs`: never copied as a whole, but core register ids are offsets into it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct Regs {
    /// X0 to X30.
    pub regs: [u64; 31],
    /// SP_EL0.
    pub sp: u64,
    /// The program counter.
    pub pc: u64,
    /// PSTATE in the layout of SPSR_EL2.
    pub pstate: u64,
    /// SP_EL1.
    pub sp_el1: u64,
    /// ELR_EL1.
    pub elr_el1: u64,
    /// SPSR_EL1, then the AArch32 banks abt, und, irq, fiq.
    pub spsr: [u64; 5],
    /// Padding to the vector registers' alignment.
    pub pad: u64,
    /// V0 to V31.
    pub vregs: [u128; 32],
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
    /// Padding.
    pub reserved: [u32; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(features: u32) -> VcpuInit {
        VcpuInit {
            target: KVM_ARM_TARGET_GENERIC_V8,
            features: [features, 0, 0, 0, 0, 0, 0],
        }
    }

    #[test]
    fn only_offered_features_of_the_generic_target_pass() {
        let offer = VcpuFeatures::default()
            .with(KVM_ARM_VCPU_PSCI_0_2)
            .with(KVM_ARM_VCPU_POWER_OFF);
        assert_eq!(init(0b101).check(offer).map(VcpuFeatures::bits), Ok(0b101));
        assert_eq!(init(1 << KVM_ARM_VCPU_SVE).check(offer), Err(Errno::EINVAL));
        assert_eq!(init(1 << 9).check(offer), Err(Errno::ENOENT));
        assert_eq!(
            VcpuInit {
                target: 0,
                ..init(0)
            }
            .check(offer),
            Err(Errno::EINVAL)
        );
        let mut second_word = init(0);
        second_word.features[1] = 1;
        assert_eq!(second_word.check(offer), Err(Errno::ENOENT));
    }

    #[test]
    fn pointer_authentication_comes_whole_and_e2h0_needs_el2() {
        let offer = VcpuFeatures(!0);
        let (address, generic) = (
            1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS,
            1 << KVM_ARM_VCPU_PTRAUTH_GENERIC,
        );
        assert!(init(address | generic).check(offer).is_ok());
        assert_eq!(init(address).check(offer), Err(Errno::EINVAL));
        assert_eq!(init(generic).check(offer), Err(Errno::EINVAL));
        let (el2, e2h0) = (1 << KVM_ARM_VCPU_HAS_EL2, 1 << KVM_ARM_VCPU_HAS_EL2_E2H0);
        assert!(init(el2 | e2h0).check(offer).is_ok());
        assert_eq!(init(e2h0).check(offer), Err(Errno::EINVAL));
    }

    #[test]
    fn a_second_init_may_change_the_power_state_only() {
        let off = VcpuFeatures(1);
        assert!(off.same_vcpu_as(VcpuFeatures(0)));
        assert!(!off.same_vcpu_as(VcpuFeatures(0b101)));
    }

    #[test]
    fn events_are_checked() {
        let none = VcpuEvents::default();
        assert_eq!(
            none.request(true),
            Ok(EventRequest {
                serror: None,
                external_abort: false
            })
        );
        let serror = VcpuEvents {
            serror_pending: 1,
            serror_has_esr: 1,
            serror_esr: 2,
            ..none
        };
        assert_eq!(serror.request(true).map(|r| r.serror), Ok(Some(Some(2))));
        assert_eq!(serror.request(false), Err(Errno::EINVAL));
        let wide = VcpuEvents {
            serror_esr: 1 << 25,
            ..serror
        };
        assert_eq!(wide.request(true), Err(Errno::EINVAL));
        let abort = VcpuEvents {
            ext_dabt_pending: 1,
            ..none
        };
        assert_eq!(abort.request(false).map(|r| r.external_abort), Ok(true));
        let padded = VcpuEvents {
            pad: [0, 0, 1, 0, 0],
            ..none
        };
        assert_eq!(padded.request(true), Err(Errno::EINVAL));
    }

    #[test]
    fn power_states_round_trip() {
        for power in [Power::Runnable, Power::Stopped, Power::Suspended] {
            assert_eq!(Power::try_from(MpState::from(power)), Ok(power));
        }
        assert_eq!(Power::try_from(MpState { mp_state: 3 }), Err(Errno::EINVAL));
    }
}
