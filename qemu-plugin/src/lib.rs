//! A QEMU TCG plugin that counts exits of guests, and what they cost the hypervisor at EL2, from outside:
//! `-plugin libumbra_exits.so,out=FILE`.
//!
//! It counts every instruction and every memory access of each CPU, in translated code. It looks at the
//! registers only at an ERET and at the vectors that may end a guest's run (`count.rs`). The hypervisor needs
//! no help and gets none, so Linux/KVM and umbra are measured alike. A guest that executes
//! `orr xzr, xzr, x30`, which does nothing, marks the end of one thing and the begin of the next.

mod api;
mod count;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use api::{Block, Bytes, Id, Number, Register, Scoreboard};
use count::{Cost, Cpu, Output, Return};

/// The interface that QEMU checks before anything else.
// SAFETY: the name is the interface's, and QEMU reads it as an int.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU's name")]
pub static qemu_plugin_version: c_int = api::VERSION;

const CPUS: usize = 16;

/// The registers of one CPU that are looked at.
#[derive(Clone, Copy)]
struct Registers {
    esr: *mut Register,
    hcr: *mut Register,
    hpfar: *mut Register,
    vbar: *mut Register,
    spsr: *mut Register,
    pstate: *mut Register,
}

struct State {
    score: *mut Scoreboard,
    buffer: *mut Bytes,
    registers: [Option<Registers>; CPUS],
    cpus: [Cpu; CPUS],
    out: Output,
}

// SAFETY: the pointers are QEMU's and glib's; they belong to no thread, and the mutex lets one in at a time.
unsafe impl Send for State {}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

/// Runs `body` with the state, if QEMU installed the plugin.
fn with(body: impl FnOnce(&mut State)) {
    if let Some(state) = STATE.get() {
        body(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl State {
    fn number(&self, index: usize) -> Number {
        Number {
            score: self.score,
            offset: index * 8,
        }
    }

    fn now(&self, cpu: c_uint) -> Cost {
        // SAFETY: the scoreboard has two numbers for every CPU, and is never freed.
        unsafe {
            Cost {
                instructions: api::qemu_plugin_u64_get(self.number(0), cpu),
                accesses: api::qemu_plugin_u64_get(self.number(1), cpu),
            }
        }
    }

    /// The value of a register, in a callback that may read them; 0 if there is no such register.
    fn read(&mut self, register: *mut Register) -> u64 {
        if register.is_null() {
            return 0;
        }
        let mut value = [0; 8];
        // SAFETY: the handle is this CPU's own, from `start`; the callback was registered as reading
        // registers; the buffer is ours, and QEMU makes it as long as the register.
        unsafe {
            api::g_byte_array_set_size(self.buffer, 0);
            api::qemu_plugin_read_register(register, self.buffer);
            let len = ((*self.buffer).len as usize).min(value.len());
            if len > 0 {
                let bytes = std::slice::from_raw_parts((*self.buffer).data, len);
                value[..len].copy_from_slice(bytes);
            }
        }
        u64::from_le_bytes(value)
    }
}

extern "C" fn start(_: Id, cpu: c_uint) {
    let mut found = Registers {
        esr: null_mut(),
        hcr: null_mut(),
        hpfar: null_mut(),
        vbar: null_mut(),
        spsr: null_mut(),
        pstate: null_mut(),
    };
    // SAFETY: QEMU gives an array of `len` descriptors with strings that end; it is called where it may be.
    let list = unsafe {
        let array = &*api::qemu_plugin_get_registers();
        std::slice::from_raw_parts(array.data, array.len as usize)
    };
    for descriptor in list {
        // SAFETY: as above.
        let name = unsafe { CStr::from_ptr(descriptor.name) };
        let place = match name.to_bytes() {
            b"ESR_EL2" => &mut found.esr,
            b"HCR_EL2" => &mut found.hcr,
            b"HPFAR_EL2" => &mut found.hpfar,
            b"VBAR_EL2" => &mut found.vbar,
            b"SPSR_EL2" => &mut found.spsr,
            b"cpsr" => &mut found.pstate,
            _ => continue,
        };
        *place = descriptor.handle;
    }
    let missing = [found.esr, found.hcr, found.vbar, found.spsr, found.pstate];
    if missing.iter().any(|register| register.is_null()) {
        eprintln!("umbra_exits: this QEMU does not show EL2's registers; nothing will be counted");
    }
    with(|state| {
        if let Some(place) = state.registers.get_mut(cpu as usize) {
            *place = Some(found);
        }
    });
}

extern "C" fn on_eret(cpu: c_uint, _: *mut c_void) {
    with(|state| {
        let at = cpu as usize;
        let Some(Some(registers)) = state.registers.get(at).copied() else {
            return;
        };
        if !state.cpus[at].may_leave() {
            return;
        }
        let to = Return {
            hcr: state.read(registers.hcr),
            spsr: state.read(registers.spsr),
            vbar: state.read(registers.vbar),
        };
        let (now, el) = (state.now(cpu), state.read(registers.pstate) >> 2 & 3);
        if el == 2 {
            state.cpus[at].leave(cpu, now, &to, &mut state.out);
        }
    });
}

extern "C" fn on_vector(cpu: c_uint, address: *mut c_void) {
    let address = address as u64;
    with(|state| {
        let at = cpu as usize;
        let Some(Some(registers)) = state.registers.get(at).copied() else {
            return;
        };
        // A guest's own vectors may lie at the same address.
        if !state.cpus[at].may_enter(address) || state.read(registers.pstate) >> 2 & 3 != 2 {
            return;
        }
        let (esr, hpfar) = (state.read(registers.esr), state.read(registers.hpfar));
        let now = state.now(cpu);
        state.cpus[at].enter(now, address, esr, hpfar);
    });
}

extern "C" fn on_mark(cpu: c_uint, _: *mut c_void) {
    with(|state| state.out.mark(cpu));
}

/// ERET and its two authenticated forms.
const ERETS: [u32; 3] = [0xd69f_03e0, 0xd69f_0bff, 0xd69f_0fff];
/// orr xzr, xzr, x30.
const MARK: u32 = 0xaa1e_03ff;

extern "C" fn translate(_: Id, block: *mut Block) {
    with(|state| {
        let (instructions, accesses) = (state.number(0), state.number(1));
        // SAFETY: the block is valid during this call, and so are its instructions. The calls that are
        // registered keep nothing of either; what the first one is given is a number.
        unsafe {
            let address = api::qemu_plugin_tb_vaddr(block);
            if address & 0x7f == 0 {
                let data = address as *mut c_void;
                api::qemu_plugin_register_vcpu_tb_exec_cb(
                    block,
                    on_vector,
                    api::READS_REGISTERS,
                    data,
                );
            }
            for index in 0..api::qemu_plugin_tb_n_insns(block) {
                let instruction = api::qemu_plugin_tb_get_insn(block, index);
                let mut word = [0u8; 4];
                api::qemu_plugin_insn_data(instruction, word.as_mut_ptr().cast(), word.len());
                let call: Option<(api::OnExecution, c_int)> = match u32::from_le_bytes(word) {
                    eret if ERETS.contains(&eret) => Some((on_eret, api::READS_REGISTERS)),
                    MARK => Some((on_mark, api::NO_REGISTERS)),
                    _ => None,
                };
                if let Some((call, flags)) = call {
                    api::qemu_plugin_register_vcpu_insn_exec_cb(
                        instruction,
                        call,
                        flags,
                        null_mut(),
                    );
                }
                api::qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
                    instruction,
                    api::ADD,
                    instructions,
                    1,
                );
                api::qemu_plugin_register_vcpu_mem_inline_per_vcpu(
                    instruction,
                    api::READS_AND_WRITES,
                    api::ADD,
                    accesses,
                    1,
                );
            }
        }
    });
}

extern "C" fn finish(_: Id, _: *mut c_void) {
    with(|state| state.out.finish());
}

/// What QEMU calls first.
///
/// # Safety
///
/// `argv` must hold `argc` strings that end.
// SAFETY: the name is the interface's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: QEMU gives `argc` strings.
    let path = (0..count)
        .filter_map(|at| unsafe { CStr::from_ptr(*argv.add(at)) }.to_str().ok())
        .find_map(|word| word.strip_prefix("out="));
    let Some(path) = path else {
        eprintln!("umbra_exits: say out=FILE");
        return 1;
    };
    let out = match Output::new(path) {
        Ok(out) => out,
        Err(error) => {
            eprintln!("umbra_exits: {path}: {error}");
            return 1;
        }
    };
    // SAFETY: plain allocations, kept until the process ends.
    let (score, buffer) = unsafe { (api::qemu_plugin_scoreboard_new(16), api::g_byte_array_new()) };
    let state = State {
        score,
        buffer,
        registers: [None; CPUS],
        cpus: [const { Cpu::new() }; CPUS],
        out,
    };
    if STATE.set(Mutex::new(state)).is_err() {
        return 1;
    }
    // SAFETY: the functions have the types that the interface asks for, and live as long as the process.
    unsafe {
        api::qemu_plugin_register_vcpu_init_cb(id, start);
        api::qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
        api::qemu_plugin_register_atexit_cb(id, finish, null_mut());
    }
    0
}
