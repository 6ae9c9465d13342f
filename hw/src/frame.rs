//! The general registers of a vCPU and its PSTATE, as the assembly of entry and exit has them.
//!
//! What always holds: a [`Frame`]'s PSTATE is an [`HwPstate`], so that an ERET with it goes to EL1 or EL0.

use crate::sabotage::{Safeguard, left_out};

/// The general registers of a vCPU. The assembly knows the layout.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Frame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Program counter.
    pub pc: u64,
    pstate: u64,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            x: [0; 31],
            pc: 0,
            pstate: HwPstate::EL1H_MASKED.0,
        }
    }
}

/// A PSTATE that may go into SPSR_EL2 when a guest is entered: EL0t, EL1t or EL1h in AArch64, and
/// only bits the architecture defines. EL2's own modes cannot be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwPstate(u64);

impl HwPstate {
    /// EL1h with D, A, I, F masked: the reset value of a vCPU.
    pub const EL1H_MASKED: Self = Self(0x3c5);
    /// N Z C V, TCO, DIT, UAO, PAN, SS, IL, SSBS, BTYPE, DAIF, M.
    const ALLOWED: u64 = 0xf000_0000 | 0x03c0_0000 | 0x30_0000 | 1 << 12 | 0b11 << 10 | 0x3cf;

    /// `raw` as a guest's PSTATE, undefined bits dropped; `None` for a mode a guest cannot have.
    pub fn new(raw: u64) -> Option<Self> {
        match raw & 0x1f {
            0b0_0000 | 0b0_0100 | 0b0_0101 => Some(Self(raw & Self::ALLOWED)),
            _ if left_out(Safeguard::Pstate) => Some(Self::EL1H_MASKED),
            _ => None,
        }
    }

    /// The bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl Frame {
    /// PSTATE as saved at the last exit or set since.
    pub fn pstate(&self) -> HwPstate {
        HwPstate(self.pstate)
    }

    /// Sets PSTATE for the next entry.
    pub fn set_pstate(&mut self, pstate: HwPstate) {
        self.pstate = pstate.0;
    }

    pub(crate) fn raw_pstate(&self) -> u64 {
        self.pstate
    }
}
