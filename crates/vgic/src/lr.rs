//! List registers: the hardware's window on the pending and active interrupts of the vCPU that runs.

use bitfield_struct::bitfield;

/// Most list registers an implementation can have (ICH_VTR_EL2.ListRegs is at most 15).
pub const MAX_LRS: usize = 16;

/// `ICH_LR<n>_EL2`.State.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LrState {
    /// The register is free.
    Invalid = 0,
    /// To be signalled to the guest.
    Pending = 1,
    /// Acknowledged, not yet deactivated.
    Active = 2,
    /// Acknowledged, and raised again since.
    PendingActive = 3,
}

impl LrState {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Invalid,
            1 => Self::Pending,
            2 => Self::Active,
            _ => Self::PendingActive,
        }
    }

    /// The state with these two bits.
    #[must_use]
    pub const fn new(pending: bool, active: bool) -> Self {
        Self::from_bits(pending as u8 | (active as u8) << 1)
    }

    /// Whether the pending bit is set.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Pending | Self::PendingActive)
    }

    /// Whether the active bit is set.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active | Self::PendingActive)
    }
}

/// `ICH_LR<n>_EL2` (IHI 0069, "`ICH_LR<n>_EL2`, Interrupt Controller List Registers").
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Lr {
    /// vINTID: what the guest reads from `ICC_IAR<g>_EL1`.
    #[bits(32)]
    pub vintid: u32,
    /// pINTID when `hw` is set: what the guest's deactivation deactivates. See [`Lr::eoi`] for `hw` clear.
    #[bits(13)]
    pub pintid: u16,
    #[bits(3)]
    __: u8,
    /// Priority; lower is more urgent.
    #[bits(8)]
    pub priority: u8,
    #[bits(4)]
    __: u8,
    /// Group 1 rather than 0.
    pub group1: bool,
    /// Linked to a physical interrupt.
    pub hw: bool,
    /// Pending and active.
    #[bits(2, default = LrState::Invalid)]
    pub state: LrState,
}

impl Lr {
    /// Bit 41: EOI when `hw` is clear.
    const EOI: u64 = 1 << 41;

    /// Whether deactivation raises a maintenance interrupt (ICH_EISR_EL2); false for a register with `hw` set.
    #[must_use]
    pub const fn eoi(self) -> bool {
        !self.hw() && self.into_bits() & Self::EOI != 0
    }

    /// The register with EOI set; only for one with `hw` clear, where bit 41 has that meaning.
    #[must_use]
    pub const fn with_eoi(self) -> Self {
        Self::from_bits(self.into_bits() | Self::EOI)
    }
}

/// What is, or is to be, in the list registers of one CPU. Registers at `used` and above are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LrFile {
    /// The registers, ICH_LR0_EL2 first.
    pub lr: [Lr; MAX_LRS],
    /// How many of them [`crate::Vgic::flush`] filled: the kernel writes these, and zeroes to what it had used beyond.
    pub used: usize,
}

impl LrFile {
    /// No interrupt in any register.
    pub const EMPTY: Self = Self {
        lr: [Lr::from_bits(0); MAX_LRS],
        used: 0,
    };

    /// The registers in use.
    #[must_use]
    pub fn loaded(&self) -> &[Lr] {
        self.lr.get(..self.used).unwrap_or(&self.lr)
    }

    /// The registers in use, to fold the hardware's contents in.
    #[must_use]
    pub fn loaded_mut(&mut self) -> &mut [Lr] {
        let used = self.used.min(MAX_LRS);
        &mut self.lr[..used]
    }

    pub(crate) fn push(&mut self, lr: Lr) {
        if let Some(slot) = self.lr.get_mut(self.used) {
            *slot = lr;
            self.used += 1;
        }
    }
}

impl Default for LrFile {
    fn default() -> Self {
        Self::EMPTY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_sit_where_the_manual_puts_them() {
        assert_eq!(Lr::new().with_vintid(u32::MAX).into_bits(), 0xffff_ffff);
        assert_eq!(Lr::new().with_pintid(0x1fff).into_bits(), 0x1fff << 32);
        assert_eq!(Lr::new().with_priority(0xff).into_bits(), 0xff << 48);
        assert_eq!(Lr::new().with_group1(true).into_bits(), 1 << 60);
        assert_eq!(Lr::new().with_hw(true).into_bits(), 1 << 61);
        assert_eq!(Lr::new().with_state(LrState::Pending).into_bits(), 1 << 62);
        assert_eq!(Lr::new().with_state(LrState::Active).into_bits(), 1 << 63);
        assert_eq!(
            Lr::new().with_state(LrState::PendingActive).into_bits(),
            3 << 62
        );
        assert_eq!(Lr::new().with_eoi().into_bits(), 1 << 41);
    }

    #[test]
    fn bit_41_is_eoi_only_without_hw() {
        assert!(Lr::new().with_eoi().eoi());
        assert!(!Lr::new().with_hw(true).with_pintid(1 << 9).eoi());
    }

    #[test]
    fn a_state_is_its_two_bits() {
        for (pending, active) in [(false, false), (true, false), (false, true), (true, true)] {
            let state = LrState::new(pending, active);
            assert_eq!((state.is_pending(), state.is_active()), (pending, active));
            assert_eq!(Lr::new().with_state(state).state(), state);
        }
    }
}
