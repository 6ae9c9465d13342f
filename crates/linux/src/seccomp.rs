//! Filters of system calls (seccomp(2), `SECCOMP_SET_MODE_FILTER`): classic BPF programs over what a call is.
//!
//! A thread's filters are a chain that only grows and that its children have too. Each call runs all of them, and
//! the strictest answer counts. What always holds of a [`Filter`]: every path through it ends within its length,
//! because jumps only go forward and the last instruction returns.

use crate::Errno;
use alloc::sync::Arc;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The most instructions of one program (BPF_MAXINSNS).
pub const MOST: usize = 4096;
/// The most instructions of a thread's filters, four more counted for each (MAX_INSNS_PER_PATH).
const MOST_IN_CHAIN: usize = 32768;
/// AUDIT_ARCH_AARCH64.
pub const ARCH: u32 = 0xc000_00b7;
/// Words of scratch memory.
const MEMORY: usize = 16;

// include/uapi/linux/bpf_common.h: classes, sizes, modes, operations, sources.
const LD: u16 = 0;
const LDX: u16 = 1;
const ST: u16 = 2;
const STX: u16 = 3;
const ALU: u16 = 4;
const JMP: u16 = 5;
const RET: u16 = 6;
const MISC: u16 = 7;
const IMM: u16 = 0x00;
const ABS: u16 = 0x20;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const X: u16 = 0x08;
const A: u16 = 0x10;
const TXA: u16 = 0x80;

/// `struct sock_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Insn {
    /// Class, size or operation, mode or source.
    pub code: u16,
    /// Instructions to skip where a condition holds.
    pub jt: u8,
    /// And where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// `struct seccomp_data`: what a filter sees of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Data {
    /// The call's number.
    pub number: u32,
    /// [`ARCH`].
    pub arch: u32,
    /// The address behind the instruction.
    pub pc: u64,
    /// x0 to x5.
    pub args: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The process is killed by SIGSYS.
    KillProcess,
    /// The thread is.
    KillThread,
    /// SIGSYS, with these 16 bits as its error number.
    Trap(u16),
    /// The call is not made and fails so; 0: it seems to succeed.
    Errno(u16),
    /// Somebody else would decide, and nobody does: ENOSYS.
    Nobody,
    /// The call is made.
    Allow,
}

impl Action {
    // include/uapi/linux/seccomp.h
    fn of(raw: u32) -> Self {
        let data = raw as u16;
        match raw & 0xffff_0000 {
            0 => Self::KillThread,
            0x0003_0000 => Self::Trap(data),
            0x0005_0000 => Self::Errno(data.min(4095)),
            0x7fc0_0000 | 0x7ff0_0000 => Self::Nobody,
            0x7ffc_0000 | 0x7fff_0000 => Self::Allow,
            // KILL_PROCESS, and what nobody knows.
            _ => Self::KillProcess,
        }
    }

    /// Whether a filter that answers `raw` gets what it means (`SECCOMP_GET_ACTION_AVAIL`).
    pub fn is_available(raw: u32) -> bool {
        matches!(
            raw,
            0x8000_0000 | 0 | 0x0003_0000 | 0x0005_0000 | 0x7ffc_0000 | 0x7fff_0000
        )
    }
}

/// A program that was checked.
#[derive(Clone, Debug)]
pub struct Filter(Vec<Insn>);

impl Filter {
    /// `EINVAL`: empty, too long, or an instruction that is not there, is undefined or leads out of the program.
    pub fn new(code: Vec<Insn>) -> Result<Self, Errno> {
        let ends = code
            .last()
            .is_some_and(|insn| matches!(insn.code, RET | RETURN_A));
        let sound = |(at, insn): (usize, &Insn)| insn.is_sound(code.len() - at - 1);
        if !ends || code.len() > MOST || !code.iter().enumerate().all(sound) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(code))
    }

    /// What it answers.
    fn run(&self, data: &Data) -> u32 {
        let bytes = data.as_bytes();
        let load = |at: u32| {
            let at = at as usize;
            bytes
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY]);
        let mut at = 0;
        while let Some(insn) = self.0.get(at) {
            at += 1;
            let k = insn.k;
            let cell = k as usize % MEMORY;
            let operand = if insn.code & X != 0 { x } else { k };
            match insn.code & 7 {
                LD => {
                    a = match insn.code & 0xe0 {
                        IMM => k,
                        ABS => load(k),
                        MEM => memory[cell],
                        _ => size_of::<Data>() as u32,
                    }
                }
                LDX => {
                    x = match insn.code & 0xe0 {
                        IMM => k,
                        MEM => memory[cell],
                        _ => size_of::<Data>() as u32,
                    }
                }
                ST => memory[cell] = a,
                STX => memory[cell] = x,
                ALU => match alu(insn.code & 0xf0, a, operand) {
                    Some(result) => a = result,
                    // Divided by zero.
                    None => return 0,
                },
                JMP => {
                    let taken = match insn.code & 0xf0 {
                        0x00 => {
                            at += k as usize;
                            continue;
                        }
                        0x10 => a == operand,
                        0x20 => a > operand,
                        0x30 => a >= operand,
                        _ => a & operand != 0,
                    };
                    at += usize::from(if taken { insn.jt } else { insn.jf });
                }
                RET => return if insn.code == RETURN_A { a } else { k },
                _ if insn.code == MISC | TXA => a = x,
                _ => x = a,
            }
        }
        // Every path returns.
        0
    }
}

const RETURN_A: u16 = RET | A;

fn alu(operation: u16, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.wrapping_shl(b),
        0x70 => a.wrapping_shr(b),
        0x80 => a.wrapping_neg(),
        _ => a ^ b,
    })
}

impl Insn {
    /// Whether it means something, with `left` instructions behind it.
    fn is_sound(&self, left: usize) -> bool {
        let within = (self.k as usize) < MEMORY;
        let (class, rest) = (self.code & 7, self.code & !7);
        match (class, rest) {
            (LD, ABS) => self.k.is_multiple_of(4) && self.k < size_of::<Data>() as u32,
            (LD | LDX, IMM | LEN) => true,
            (LD | LDX, MEM) | (ST | STX, 0) => within,
            // DIV by zero; shifts by 32 and more.
            (ALU, 0x30) => self.k != 0,
            (ALU, 0x60 | 0x70) => self.k < 32,
            (ALU, 0x00 | 0x08 | 0x10 | 0x18 | 0x20 | 0x28 | 0x38 | 0x40 | 0x48 | 0x50 | 0x58) => {
                true
            }
            (ALU, 0x68 | 0x78 | 0x80 | 0xa0 | 0xa8) => true,
            (JMP, 0x00) => (self.k as usize) < left,
            (JMP, 0x10 | 0x18 | 0x20 | 0x28 | 0x30 | 0x38 | 0x40 | 0x48) => {
                usize::from(self.jt.max(self.jf)) < left
            }
            (RET, 0 | A) | (MISC, 0 | TXA) => true,
            _ => false,
        }
    }
}

/// A thread's filters, the newest first.
#[derive(Clone, Debug)]
pub struct Chain(Arc<Link>);

#[derive(Debug)]
struct Link {
    filter: Filter,
    older: Option<Chain>,
    weight: usize,
}

impl Drop for Link {
    // One after the other: a long chain must not take a stack.
    fn drop(&mut self) {
        let mut next = self.older.take();
        while let Some(Chain(link)) = next {
            let Some(mut link) = Arc::into_inner(link) else {
                break;
            };
            next = link.older.take();
        }
    }
}

impl Chain {
    /// A chain with one more filter. `ENOMEM`: too long.
    pub fn with(older: Option<Self>, filter: Filter) -> Result<Self, Errno> {
        let below = older.as_ref().map_or(0, |chain| chain.0.weight + 4);
        let weight = below + filter.0.len();
        if weight > MOST_IN_CHAIN {
            return Err(Errno::ENOMEM);
        }
        Ok(Self(Arc::new(Link {
            filter,
            older,
            weight,
        })))
    }

    /// Whether `self` is `other`, or begins where it ends.
    pub fn continues(&self, other: &Self) -> bool {
        let mut link = Some(self);
        while let Some(chain) = link {
            if Arc::ptr_eq(&chain.0, &other.0) {
                return true;
            }
            link = chain.0.older.as_ref();
        }
        false
    }

    /// The strictest of all answers; of equals the newest's.
    pub fn decide(&self, data: &Data) -> Action {
        let strictness = |raw: u32| (raw & 0xffff_0000).cast_signed();
        let mut decided = self.0.filter.run(data);
        let mut link = self.0.older.as_ref();
        while let Some(Chain(older)) = link {
            let answer = older.filter.run(data);
            if strictness(answer) < strictness(decided) {
                decided = answer;
            }
            link = older.older.as_ref();
        }
        Action::of(decided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const TRAP: u32 = 0x0003_0000;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
        Insn { code, jt, jf, k }
    }

    fn call(number: u32, first: u64) -> Data {
        Data {
            number,
            arch: ARCH,
            pc: 0x40_0004,
            args: [first, 0, 0, 0, 0, 0],
        }
    }

    /// `answer` for this number, else ALLOW.
    fn for_number(number: u32, answer: u32) -> Filter {
        Filter::new(vec![
            insn(LD | ABS, 0, 0, 0),
            insn(JMP | 0x10, 0, 1, number),
            insn(RET, 0, 0, answer),
            insn(RET, 0, 0, ALLOW),
        ])
        .unwrap()
    }

    #[test]
    fn the_strictest_answer_counts_and_of_equals_the_newest() {
        let chain = Chain::with(None, for_number(1, ERRNO | 5)).unwrap();
        let longer = Chain::with(Some(chain.clone()), for_number(1, ERRNO | 6)).unwrap();
        let longest = Chain::with(Some(longer.clone()), for_number(2, TRAP | 7)).unwrap();
        assert_eq!(chain.decide(&call(1, 0)), Action::Errno(5));
        assert_eq!(longer.decide(&call(1, 0)), Action::Errno(6));
        assert_eq!(longest.decide(&call(1, 0)), Action::Errno(6));
        assert_eq!(longest.decide(&call(2, 0)), Action::Trap(7));
        assert_eq!(longest.decide(&call(3, 0)), Action::Allow);
        assert!(longest.continues(&chain) && !chain.continues(&longer));
        let killed = Chain::with(Some(longest), for_number(2, 0x8000_0000)).unwrap();
        assert_eq!(killed.decide(&call(2, 0)), Action::KillProcess);
        for (raw, action) in [
            (0, Action::KillThread),
            (0x1234_0000, Action::KillProcess),
            (ERRNO | 0xffff, Action::Errno(4095)),
            (0x7ff0_0000, Action::Nobody),
            (0x7ffc_0000, Action::Allow),
        ] {
            assert_eq!(Action::of(raw), action);
        }
    }

    #[test]
    fn arguments_are_seen_by_halves() {
        let filter = Filter::new(vec![
            insn(LD | ABS, 0, 0, 20),
            insn(ST, 0, 0, 3),
            insn(LD | ABS, 0, 0, 16),
            insn(LDX | MEM, 0, 0, 3),
            insn(ALU | X, 0, 0, 0),
            insn(RETURN_A, 0, 0, 0),
        ])
        .unwrap();
        assert_eq!(filter.run(&call(0, 0x3_0000_0004)), 7);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let allow = insn(RET, 0, 0, ALLOW);
        for bad in [
            vec![],
            vec![insn(LD | IMM, 0, 0, 0)],
            vec![insn(JMP, 0, 0, 1), allow],
            vec![insn(JMP | 0x10, 0, 1, 0), allow],
            vec![insn(JMP | 0x10, 1, 0, 0), allow],
            vec![insn(LD | ABS, 0, 0, 2), allow],
            vec![insn(LD | ABS, 0, 0, 64), allow],
            vec![insn(ST, 0, 0, 16), allow],
            vec![insn(ALU | 0x30, 0, 0, 0), allow],
            vec![insn(ALU | 0x60, 0, 0, 32), allow],
            vec![insn(LD | ABS | 0x10, 0, 0, 0), allow],
            vec![insn(0xffff, 0, 0, 0), allow],
            vec![allow; MOST + 1],
        ] {
            assert!(Filter::new(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(Filter::new(vec![allow; MOST]).is_ok());
        let mut chain = None;
        let added = (0..20)
            .take_while(|_| {
                let filter = Filter::new(vec![allow; MOST]).unwrap();
                Chain::with(chain.take(), filter)
                    .map(|longer| chain = Some(longer))
                    .is_ok()
            })
            .count();
        assert_eq!(added, 7);
    }

    proptest! {
        #[test]
        fn any_program_is_refused_or_ends(
            code in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), 0u32..80), 0..12),
            number: u32, first: u64,
        ) {
            let classes = code.iter().map(|&(code, jt, jf, k)| insn(code & 0xff, jt % 4, jf % 4, k));
            let mut code: Vec<Insn> = classes.filter(|insn| insn.is_sound(usize::MAX)).collect();
            code.push(insn(RETURN_A, 0, 0, 0));
            if let Ok(filter) = Filter::new(code) {
                filter.run(&call(number, first));
            }
        }
    }
}
