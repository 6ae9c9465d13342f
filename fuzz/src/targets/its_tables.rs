//! An ITS whose tables and registers hold anything: restored or refused, and nothing is left after a reset.

use super::its::{Vm, on};
use crate::tape::Tape;

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape(bytes);
    let writes = tape.u8() % 8;
    let mut vm = Vm::default();
    let mut its = on(&mut vm);
    for _ in 0..writes {
        let (at, flags) = (u32::from(tape.u16()) % 0x180, tape.u8());
        let len = 1 << (flags & 3);
        let value = tape.u64();
        let _ = its.write(at & !(len - 1), len as u8, value, flags & 4 != 0, &mut vm);
        let _ = its.read(at & !(len - 1), len as u8);
        for _ in 0..16 {
            its.step(&mut vm);
        }
    }
    vm.fill = tape.0.to_vec();
    let _ = its.restore_tables(&mut vm);
    let _ = its.save_tables(&mut vm);
    for _ in 0..16 {
        its.step(&mut vm);
    }
    its.reset(&mut vm);
    assert!(vm.lpis.is_empty(), "{:?} outlive the reset", vm.lpis);
}
