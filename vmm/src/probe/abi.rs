//! Numbers of the KVM ABI that this program speaks (Linux `include/uapi/linux/kvm.h`), written down
//! here once more on purpose: a test that shares them with umbra's kernel could not find them wrong.

use kvm_bindings as kvm;

const fn none(number: u32) -> u32 {
    0xae00 | number
}
const fn sized<T>(direction: u32, number: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32) << 16 | none(number)
}
const fn write<T>(number: u32) -> u32 {
    sized::<T>(1, number)
}
const fn read<T>(number: u32) -> u32 {
    sized::<T>(2, number)
}
const fn both<T>(number: u32) -> u32 {
    sized::<T>(3, number)
}

pub(crate) const GET_API_VERSION: u32 = none(0x00);
pub(crate) const CREATE_VM: u32 = none(0x01);
pub(crate) const CHECK_EXTENSION: u32 = none(0x03);
pub(crate) const GET_VCPU_MMAP_SIZE: u32 = none(0x04);
pub(crate) const CREATE_VCPU: u32 = none(0x41);
pub(crate) const GET_DIRTY_LOG: u32 = write::<kvm::kvm_dirty_log>(0x42);
pub(crate) const CLEAR_DIRTY_LOG: u32 = both::<kvm::kvm_clear_dirty_log>(0xc0);
pub(crate) const SET_USER_MEMORY_REGION: u32 = write::<kvm::kvm_userspace_memory_region>(0x46);
pub(crate) const SET_USER_MEMORY_REGION2: u32 = write::<kvm::kvm_userspace_memory_region2>(0x49);
pub(crate) const IRQ_LINE: u32 = write::<u64>(0x61);
pub(crate) const IRQ_LINE_STATUS: u32 = both::<u64>(0x67);
pub(crate) const REGISTER_COALESCED_MMIO: u32 = write::<[u64; 2]>(0x67);
pub(crate) const UNREGISTER_COALESCED_MMIO: u32 = write::<[u64; 2]>(0x68);
pub(crate) const SET_GSI_ROUTING: u32 = write::<u64>(0x6a);
pub(crate) const IRQFD: u32 = write::<kvm::kvm_irqfd>(0x76);
pub(crate) const IOEVENTFD: u32 = write::<kvm::kvm_ioeventfd>(0x79);
pub(crate) const RUN: u32 = none(0x80);
pub(crate) const GET_REGS: u32 = read::<kvm::kvm_regs>(0x81);
pub(crate) const SET_REGS: u32 = write::<kvm::kvm_regs>(0x82);
pub(crate) const GET_MP_STATE: u32 = read::<kvm::kvm_mp_state>(0x98);
pub(crate) const SET_MP_STATE: u32 = write::<kvm::kvm_mp_state>(0x99);
pub(crate) const SET_GUEST_DEBUG: u32 = write::<kvm::kvm_guest_debug>(0x9b);
pub(crate) const GET_VCPU_EVENTS: u32 = read::<kvm::kvm_vcpu_events>(0x9f);
pub(crate) const SET_VCPU_EVENTS: u32 = write::<kvm::kvm_vcpu_events>(0xa0);
pub(crate) const ENABLE_CAP: u32 = write::<kvm::kvm_enable_cap>(0xa3);
pub(crate) const SIGNAL_MSI: u32 = write::<[u64; 4]>(0xa5);
pub(crate) const GET_ONE_REG: u32 = write::<kvm::kvm_one_reg>(0xab);
pub(crate) const SET_ONE_REG: u32 = write::<kvm::kvm_one_reg>(0xac);
pub(crate) const VCPU_INIT: u32 = write::<kvm::kvm_vcpu_init>(0xae);
pub(crate) const PREFERRED_TARGET: u32 = read::<kvm::kvm_vcpu_init>(0xaf);
pub(crate) const GET_REG_LIST: u32 = both::<u64>(0xb0);
pub(crate) const GET_REG_WRITABLE_MASKS: u32 = read::<[u64; 8]>(0xb6);
pub(crate) const CREATE_DEVICE: u32 = both::<kvm::kvm_create_device>(0xe0);
pub(crate) const SET_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe1);
pub(crate) const GET_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe2);
pub(crate) const HAS_DEVICE_ATTR: u32 = write::<kvm::kvm_device_attr>(0xe3);
pub(crate) const SET_COUNTER_OFFSET: u32 = write::<[u64; 2]>(0xb5);
pub(crate) const GET_STATS_FD: u32 = none(0xce);
pub(crate) const CREATE_GUEST_MEMFD: u32 = 0xc040_aed4;

/// Offsets in `struct kvm_run`.
pub(crate) mod run {
    pub(crate) const IMMEDIATE_EXIT: usize = 1;
    pub(crate) const EXIT_REASON: usize = 8;
    /// x86's two bytes, then `flags`.
    pub(crate) const FLAGS_WORD: usize = 12;
    pub(crate) const DEBUG_HSR: usize = 32;
    pub(crate) const DEBUG_FAR: usize = 40;
    pub(crate) const MMIO_ADDR: usize = 32;
    pub(crate) const MMIO_DATA: usize = 40;
    pub(crate) const MMIO_LEN: usize = 48;
    pub(crate) const MMIO_IS_WRITE: usize = 52;
    pub(crate) const EVENT_TYPE: usize = 32;
    pub(crate) const SEA_FLAGS: usize = 32;
    pub(crate) const SEA_ESR: usize = 40;
    pub(crate) const SEA_GVA: usize = 48;
    pub(crate) const SEA_GPA: usize = 56;
    pub(crate) const NISV_ISS: usize = 32;
    pub(crate) const NISV_IPA: usize = 40;
}

const ARM64: u64 = 6 << 60;
const U64: u64 = 3 << 52;

/// A member of `struct kvm_regs` by its offset in words of four bytes, with log2 of its size.
pub(crate) const fn core(offset: u64, log2_bytes: u64) -> u64 {
    ARM64 | log2_bytes << 52 | 0x10 << 16 | offset
}

/// x0 to x30.
pub(crate) const fn x(n: u64) -> u64 {
    core(2 * n, 3)
}

pub(crate) const SP_EL0: u64 = core(62, 3);
pub(crate) const PC: u64 = core(64, 3);
pub(crate) const PSTATE: u64 = core(66, 3);
pub(crate) const SP_EL1: u64 = core(68, 3);
pub(crate) const ELR_EL1: u64 = core(70, 3);
pub(crate) const SPSR_EL1: u64 = core(72, 3);

/// A system register.
pub(crate) const fn sys((op0, op1, crn, crm, op2): super::asm::Sys) -> u64 {
    let which = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    ARM64 | U64 | 0x13 << 16 | which as u64
}

/// A firmware pseudo-register.
pub(crate) const fn firmware(n: u64) -> u64 {
    ARM64 | U64 | 0x14 << 16 | n
}

/// Bytes of the register that an id names.
pub(crate) const fn bytes_of(id: u64) -> usize {
    1 << (id >> 52 & 15)
}

/// `vcpu` in the words of KVM_IRQ_LINE, for a private interrupt.
pub(crate) const fn ppi(vcpu: u64, intid: u64) -> u64 {
    2 << 24 | vcpu << 16 | intid
}

/// A shared interrupt in the words of KVM_IRQ_LINE.
pub(crate) const fn spi(intid: u64) -> u64 {
    1 << 24 | intid
}
