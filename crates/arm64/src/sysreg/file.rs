//! The register file of a vCPU: which registers have state, and where that state lives.
//!
//! ```text
//!   Reg ──► RegInfo { encoding, class, feature, reset, home, slot }
//!                                                     │      └─ Vncr(i): 64-bit slot i of the VNCR page
//!                                                     │         Array(i): element i of an array beside it
//!                                                     └─ the hardware register that carries the value
//!                                                        while the register's context is loaded
//! ```
//!
//! What always holds: a register has exactly one slot, and the slot is the truth while the vCPU is
//! not loaded; a plain guest has the same layout as a guest hypervisor, so that nesting needs no
//! second file. A register whose feature is off is hidden: its accesses are UNDEFINED, KVM's
//! GET_ONE_REG answers ENOENT, and nobody loads it.

use super::regs::{ARRAY_LEN, REGS, Reg, Reset, Slot, UNKNOWN};
use crate::vncr;

/// A page that the CPU also writes: 512 slots of 64 bits, each read and written whole.
///
/// The kernel implements it over relaxed atomics of the real VNCR page, tests over an array.
pub trait VncrPage {
    /// Reads slot `index`, below [`vncr::SLOTS`].
    fn load(&self, index: u16) -> u64;
    /// Writes slot `index`, below [`vncr::SLOTS`].
    fn store(&self, index: u16, value: u64);
}

/// The identity that some registers are reset to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// MIDR_EL1.
    pub midr: u64,
    /// MPIDR_EL1.
    pub mpidr: u64,
}

/// The values of a vCPU's registers while they are not in hardware.
#[derive(Debug)]
pub struct RegFile<P> {
    page: P,
    array: [u64; ARRAY_LEN],
}

impl<P: VncrPage> RegFile<P> {
    /// A file over `page`, its array zero. Call [`reset`](Self::reset) before the first entry.
    pub const fn new(page: P) -> Self {
        Self {
            page,
            array: [0; ARRAY_LEN],
        }
    }

    /// The VNCR page.
    pub const fn page(&self) -> &P {
        &self.page
    }

    /// The stored value of `reg`.
    pub fn get(&self, reg: Reg) -> u64 {
        match reg.info().slot {
            Slot::Vncr(index) => self.page.load(index),
            Slot::Array(index) => self.array[usize::from(index)],
        }
    }

    /// Stores `value` as the value of `reg`.
    pub fn set(&mut self, reg: Reg, value: u64) {
        match reg.info().slot {
            Slot::Vncr(index) => self.page.store(index, value),
            Slot::Array(index) => self.array[usize::from(index)] = value,
        }
    }

    /// Clears the page and gives every register its reset value.
    pub fn reset(&mut self, identity: &Identity) {
        for index in 0..vncr::SLOTS as u16 {
            self.page.store(index, 0);
        }
        for row in &REGS {
            let value = match row.reset {
                Reset::Zero => 0,
                Reset::Value(value) => value,
                Reset::Unknown => UNKNOWN,
                Reset::Midr => identity.midr,
                Reset::Mpidr => identity.mpidr,
            };
            self.set(row.reg, value);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::Cell;

    struct Page([Cell<u64>; vncr::SLOTS]);

    impl VncrPage for Page {
        fn load(&self, index: u16) -> u64 {
            self.0[usize::from(index)].get()
        }
        fn store(&self, index: u16, value: u64) {
            self.0[usize::from(index)].set(value);
        }
    }

    fn file() -> RegFile<Page> {
        RegFile::new(Page([const { Cell::new(!0) }; vncr::SLOTS]))
    }

    #[test]
    fn reset_reaches_both_halves_and_clears_the_rest_of_the_page() {
        let mut file = file();
        file.reset(&Identity {
            midr: 0x410f_d490,
            mpidr: 0x8000_0001,
        });
        assert_eq!(file.get(Reg::SctlrEl1), 0x00c5_0078);
        assert_eq!(file.get(Reg::HcrEl2), 1 << 34);
        assert_eq!(file.get(Reg::VpidrEl2), 0x410f_d490);
        assert_eq!(file.get(Reg::MpidrEl1), 0x8000_0001);
        assert_eq!(file.get(Reg::TpidrEl0), UNKNOWN);
        assert_eq!(file.page().load(1), 0);
    }

    #[test]
    fn a_value_stays_where_it_was_put() {
        let mut file = file();
        for (at, reg) in Reg::ALL.iter().enumerate() {
            file.set(*reg, at as u64 * 3 + 1);
        }
        for (at, reg) in Reg::ALL.iter().enumerate() {
            assert_eq!(file.get(*reg), at as u64 * 3 + 1, "{}", reg.info().enc);
        }
        assert_eq!(file.page().load(0x110 / 8), file.get(Reg::SctlrEl1));
    }
}
