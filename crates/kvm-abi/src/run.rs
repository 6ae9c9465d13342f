//! The page that a vCPU's run loop and its VMM share: `struct kvm_run` by field offset.
//!
//! ```text
//!      0  request_interrupt_window u8 · immediate_exit u8 (VMM writes, any time) · 6 spare
//!      8  exit_reason u32 · 12 two u8 of x86 · flags u16
//!     16  cr8, apic_base (x86)
//!     32  the exit: 256 bytes, see `exit`
//!    288  kvm_valid_regs, kvm_dirty_regs
//!    304  shared registers: device_irq_level u64 … up to 2352
//! ```
//!
//! The VMM may write any byte of the page while the kernel reads it. So the kernel sees it as
//! atomics, by the named offsets below; it is never a `&mut` of a structure. What the kernel reads
//! back (the data of an MMIO read, a hypercall's result) is the VMM's word and is used once.

/// Access to the page. Offsets are in bytes, below [`SIZE`], aligned to the access; the kernel
/// implements it over relaxed atomics, a VMM over its mapping.
pub trait RunPage {
    /// Reads a byte.
    fn load_u8(&self, offset: usize) -> u8;
    /// Reads four bytes.
    fn load_u32(&self, offset: usize) -> u32;
    /// Reads eight bytes.
    fn load_u64(&self, offset: usize) -> u64;
    /// Writes a byte.
    fn store_u8(&self, offset: usize, value: u8);
    /// Writes four bytes.
    fn store_u32(&self, offset: usize, value: u32);
    /// Writes eight bytes.
    fn store_u64(&self, offset: usize, value: u64);
}

/// Size of `struct kvm_run` in bytes.
pub const SIZE: usize = 2352;

/// `immediate_exit`, u8: nonzero makes KVM_RUN answer EINTR before the guest is entered.
pub const IMMEDIATE_EXIT: usize = 1;
/// `exit_reason`, u32.
pub const EXIT_REASON: usize = 8;
/// `flags`, u16.
pub const FLAGS: usize = 14;
/// The word whose upper half `flags` is; the lower is x86's.
pub const FLAGS_WORD: usize = 12;
/// The start of the exit's own fields.
pub const EXIT: usize = 32;
/// `kvm_valid_regs`, u64.
pub const VALID_REGS: usize = 288;
/// `kvm_dirty_regs`, u64.
pub const DIRTY_REGS: usize = 296;
/// `s.regs.device_irq_level`, u64: with KVM_CAP_ARM_USER_IRQ, the outputs of in-kernel devices.
pub const DEVICE_IRQ_LEVEL: usize = 304;

/// `fail_entry.hardware_entry_failure_reason`, u64.
pub const FAIL_ENTRY_REASON: usize = 32;
/// `fail_entry.cpu`, u32.
pub const FAIL_ENTRY_CPU: usize = 40;
/// `debug.arch.hsr`, u32.
pub const DEBUG_HSR: usize = 32;
/// `debug.arch.hsr_high`, u32.
pub const DEBUG_HSR_HIGH: usize = 36;
/// `debug.arch.far`, u64.
pub const DEBUG_FAR: usize = 40;
/// `mmio.phys_addr`, u64.
pub const MMIO_PHYS_ADDR: usize = 32;
/// `mmio.data`, 8 bytes.
pub const MMIO_DATA: usize = 40;
/// `mmio.len`, u32.
pub const MMIO_LEN: usize = 48;
/// `mmio.is_write`, u8.
pub const MMIO_IS_WRITE: usize = 52;
/// `hypercall.nr`, u64.
pub const HYPERCALL_NR: usize = 32;
/// `hypercall.args`, 6 × u64.
pub const HYPERCALL_ARGS: usize = 40;
/// `hypercall.ret`, u64.
pub const HYPERCALL_RET: usize = 88;
/// `hypercall.flags`, u64.
pub const HYPERCALL_FLAGS: usize = 96;
/// `internal.suberror`, u32.
pub const INTERNAL_SUBERROR: usize = 32;
/// `internal.ndata`, u32.
pub const INTERNAL_NDATA: usize = 36;
/// `internal.data`, 16 × u64.
pub const INTERNAL_DATA: usize = 40;
/// `system_event.type`, u32.
pub const SYSTEM_EVENT_TYPE: usize = 32;
/// `system_event.ndata`, u32.
pub const SYSTEM_EVENT_NDATA: usize = 36;
/// `system_event.data`, 16 × u64; `data[0]` is also called `flags`.
pub const SYSTEM_EVENT_DATA: usize = 40;
/// `arm_nisv.esr_iss`, u64.
pub const ARM_NISV_ESR_ISS: usize = 32;
/// `arm_nisv.fault_ipa`, u64.
pub const ARM_NISV_FAULT_IPA: usize = 40;
/// `memory_fault.flags`, u64.
pub const MEMORY_FAULT_FLAGS: usize = 32;
/// `memory_fault.gpa`, u64.
pub const MEMORY_FAULT_GPA: usize = 40;
/// `memory_fault.size`, u64.
pub const MEMORY_FAULT_SIZE: usize = 48;
/// `arm_sea.flags`, u64.
pub const ARM_SEA_FLAGS: usize = 32;
/// `arm_sea.esr`, u64.
pub const ARM_SEA_ESR: usize = 40;
/// `arm_sea.gva`, u64.
pub const ARM_SEA_GVA: usize = 48;
/// `arm_sea.gpa`, u64.
pub const ARM_SEA_GPA: usize = 56;
/// u64 behind `arm_sea.gpa`, in what Linux calls padding: the L2 physical address of the access,
/// with [`crate::exit::ARM_SEA_FLAG_NESTED`]. umbra's own.
pub const ARM_SEA_L2_IPA: usize = 64;

/// Whether the VMM asks that KVM_RUN return at once.
pub fn immediate_exit(page: &dyn RunPage) -> bool {
    page.load_u8(IMMEDIATE_EXIT) != 0
}

/// The VMM's side: answers an MMIO read that just exited. Bytes beyond the access are ignored.
pub fn answer_mmio(page: &dyn RunPage, value: u64) {
    page.store_u64(MMIO_DATA, value.to_le());
}

/// The kernel's side: what the VMM answered an MMIO read of `len` bytes, zero-extended.
pub fn mmio_answer(page: &dyn RunPage, len: u32) -> u64 {
    let value = u64::from_le(page.load_u64(MMIO_DATA));
    match len {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A page of plain bytes.

    use super::{RunPage, SIZE};
    use core::cell::Cell;

    pub(crate) struct Page(pub(crate) [Cell<u8>; SIZE]);

    impl Page {
        pub(crate) fn filled(with: u8) -> Self {
            Self(core::array::from_fn(|_| Cell::new(with)))
        }

        fn load<const N: usize>(&self, offset: usize) -> [u8; N] {
            assert_eq!(offset % N, 0, "aligned");
            core::array::from_fn(|at| self.0[offset + at].get())
        }

        fn store<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
            assert_eq!(offset % N, 0, "aligned");
            for (at, byte) in bytes.into_iter().enumerate() {
                self.0[offset + at].set(byte);
            }
        }
    }

    impl RunPage for Page {
        fn load_u8(&self, offset: usize) -> u8 {
            self.0[offset].get()
        }
        fn load_u32(&self, offset: usize) -> u32 {
            u32::from_le_bytes(self.load(offset))
        }
        fn load_u64(&self, offset: usize) -> u64 {
            u64::from_le_bytes(self.load(offset))
        }
        fn store_u8(&self, offset: usize, value: u8) {
            self.0[offset].set(value);
        }
        fn store_u32(&self, offset: usize, value: u32) {
            self.store(offset, value.to_le_bytes());
        }
        fn store_u64(&self, offset: usize, value: u64) {
            self.store(offset, value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_width_of_the_access() {
        let page = fake::Page::filled(0);
        answer_mmio(&page, 0x1122_3344_5566_7788);
        for (len, value) in [
            (1, 0x88),
            (2, 0x7788),
            (4, 0x5566_7788),
            (8, 0x1122_3344_5566_7788),
        ] {
            assert_eq!(mmio_answer(&page, len), value);
        }
    }

    #[test]
    fn immediate_exit_is_the_second_byte() {
        let page = fake::Page::filled(0);
        assert!(!immediate_exit(&page));
        page.0[1].set(1);
        assert!(immediate_exit(&page));
    }
}
