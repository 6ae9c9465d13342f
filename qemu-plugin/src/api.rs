//! QEMU's plugin interface, version 4 (QEMU 9.1 and later), as far as it is used here.
//!
//! Declared by hand from QEMU's documentation of it; the functions are QEMU's own and those of glib, which
//! the dynamic linker finds in the running program.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version that the plugin is written for.
pub(crate) const VERSION: c_int = 4;

/// QEMU_PLUGIN_INLINE_ADD_U64.
pub(crate) const ADD: c_int = 0;
/// QEMU_PLUGIN_MEM_RW.
pub(crate) const READS_AND_WRITES: c_int = 3;
/// QEMU_PLUGIN_CB_NO_REGS.
pub(crate) const NO_REGISTERS: c_int = 0;
/// QEMU_PLUGIN_CB_R_REGS.
pub(crate) const READS_REGISTERS: c_int = 1;

/// This plugin, to QEMU.
pub(crate) type Id = u64;
/// A block of guest code that is being translated.
pub(crate) enum Block {}
/// An instruction in one.
pub(crate) enum Instruction {}
/// Numbers per CPU that translated code can add to.
pub(crate) enum Scoreboard {}
/// A register of a CPU.
pub(crate) enum Register {}

/// One number of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Number {
    pub(crate) score: *mut Scoreboard,
    pub(crate) offset: usize,
}

/// A register's handle and name.
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) handle: *mut Register,
    pub(crate) name: *const c_char,
    pub(crate) feature: *const c_char,
}

/// glib's array: here of [`Descriptor`].
#[repr(C)]
pub(crate) struct Array {
    pub(crate) data: *const Descriptor,
    pub(crate) len: c_uint,
}

/// glib's array of bytes.
#[repr(C)]
pub(crate) struct Bytes {
    pub(crate) data: *const u8,
    pub(crate) len: c_uint,
}

pub(crate) type OnCpu = extern "C" fn(Id, c_uint);
pub(crate) type OnTranslation = extern "C" fn(Id, *mut Block);
pub(crate) type OnExecution = extern "C" fn(c_uint, *mut c_void);
pub(crate) type OnExit = extern "C" fn(Id, *mut c_void);

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_init_cb(id: Id, call: OnCpu);
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, call: OnTranslation);
    pub(crate) fn qemu_plugin_register_atexit_cb(id: Id, call: OnExit, data: *mut c_void);
    pub(crate) fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        call: OnExecution,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        call: OnExecution,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        instruction: *mut Instruction,
        operation: c_int,
        number: Number,
        value: u64,
    );
    pub(crate) fn qemu_plugin_register_vcpu_mem_inline_per_vcpu(
        instruction: *mut Instruction,
        which: c_int,
        operation: c_int,
        number: Number,
        value: u64,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_data(
        instruction: *const Instruction,
        to: *mut c_void,
        len: usize,
    ) -> usize;
    pub(crate) fn qemu_plugin_scoreboard_new(size: usize) -> *mut Scoreboard;
    pub(crate) fn qemu_plugin_u64_get(number: Number, cpu: c_uint) -> u64;
    pub(crate) fn qemu_plugin_get_registers() -> *mut Array;
    pub(crate) fn qemu_plugin_read_register(register: *mut Register, to: *mut Bytes) -> c_int;
    pub(crate) fn g_byte_array_new() -> *mut Bytes;
    pub(crate) fn g_byte_array_set_size(bytes: *mut Bytes, len: c_uint) -> *mut Bytes;
}
