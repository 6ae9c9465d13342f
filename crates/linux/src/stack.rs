//! The stack that a program finds at its first instruction.
//!
//! ```text
//!   sp ──► argc │ argv… 0 │ envp… 0 │ auxv… AT_NULL │ pad │ 16 random bytes, "aarch64", argv and
//!          envp strings, the program's path │ 8 zero bytes ◄── top
//! ```
//!
//! (System V ABI for AArch64, section "Process Initialization"; `fs/binfmt_elf.c`.) The image is built
//! as bytes and copied out by the caller. SP is a multiple of 16.

use crate::Errno;
use crate::elf::{LoadPlan, PHENT};
use crate::vma::PAGE;
use alloc::vec::Vec;
use umbra_arm64::Hva;

/// The longest single string with its zero (Linux's MAX_ARG_STRLEN).
pub const MAX_STRING: usize = 128 * 1024;
/// The most bytes for everything: a quarter of an 8 MiB stack, as in Linux.
pub const MAX_BYTES: usize = 2 << 20;

// include/uapi/linux/auxvec.h and arch/arm64/include/uapi/asm/auxvec.h
const AT_NULL: u64 = 0;
const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_HWCAP2: u64 = 26;
const AT_EXECFN: u64 = 31;
const AT_MINSIGSTKSZ: u64 = 51;

/// Ticks per second of times(2) and /proc: USER_HZ.
const USER_HZ: u64 = 100;

/// What a program is started with.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Its arguments, the first being its name by custom; without terminating zeros.
    pub args: &'a [&'a [u8]],
    /// Its environment, each NAME=VALUE.
    pub env: &'a [&'a [u8]],
    /// The path it was found by: AT_EXECFN.
    pub path: &'a [u8],
    /// How it was loaded.
    pub plan: &'a LoadPlan,
    /// AT_BASE: where its dynamic linker was, 0 without one.
    pub linker: u64,
    /// AT_HWCAP: which instructions a process may use. Must be true of this machine.
    pub hwcap: u64,
    /// AT_HWCAP2.
    pub hwcap2: u64,
    /// AT_MINSIGSTKSZ: bytes of the largest signal frame.
    pub min_signal_stack: u64,
    /// AT_RANDOM: unpredictable bytes, for stack protectors.
    pub random: [u8; 16],
}

/// The bytes to copy to `sp`, ending at the top of the stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StackImage {
    /// The first stack pointer.
    pub sp: Hva,
    /// What lies from there up.
    pub bytes: Vec<u8>,
}

/// Builds the image below `top`, which must be a multiple of 16. `E2BIG` if a string or everything is
/// too long, `EINVAL` for a zero inside a string, `ENOMEM` if there is no memory for it.
pub fn build(start: &Start<'_>, top: Hva) -> Result<StackImage, Errno> {
    if !top.is_aligned(16) {
        return Err(Errno::EINVAL);
    }
    let strings = Strings::lay_out(start)?;
    let words = 1 + start.args.len() + 1 + start.env.len() + 1 + 2 * AUXV_ENTRIES;
    let size = words
        .checked_mul(8)
        .and_then(|size| size.checked_add(strings.bytes.len()));
    let size = size
        .and_then(|size| size.checked_next_multiple_of(16))
        .ok_or(Errno::E2BIG)?;
    if size > MAX_BYTES {
        return Err(Errno::E2BIG);
    }
    let sp = top.raw().checked_sub(size as u64).ok_or(Errno::E2BIG)?;

    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
    let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
    let base = top.raw() - strings.bytes.len() as u64;
    word(start.args.len() as u64);
    for list in [&strings.args, &strings.env] {
        list.iter().for_each(|&at| word(base + at));
        word(0);
    }
    for (key, value) in auxv(start, base, &strings) {
        word(key);
        word(value);
    }
    bytes.resize(size - strings.bytes.len(), 0);
    bytes.extend_from_slice(&strings.bytes);
    Ok(StackImage {
        sp: Hva::new(sp),
        bytes,
    })
}

const AUXV_ENTRIES: usize = 20;

fn auxv(start: &Start<'_>, base: u64, strings: &Strings) -> [(u64, u64); AUXV_ENTRIES] {
    [
        (AT_HWCAP, start.hwcap),
        (AT_PAGESZ, PAGE),
        (AT_CLKTCK, USER_HZ),
        (AT_PHDR, start.plan.phdr.map_or(0, Hva::raw)),
        (AT_PHENT, PHENT),
        (AT_PHNUM, u64::from(start.plan.phnum)),
        (AT_BASE, start.linker),
        (AT_FLAGS, 0),
        (AT_ENTRY, start.plan.entry.raw()),
        (AT_UID, 0),
        (AT_EUID, 0),
        (AT_GID, 0),
        (AT_EGID, 0),
        (AT_SECURE, 0),
        (AT_RANDOM, base + strings.random),
        (AT_HWCAP2, start.hwcap2),
        (AT_EXECFN, base + strings.path),
        (AT_PLATFORM, base + strings.platform),
        (AT_MINSIGSTKSZ, start.min_signal_stack),
        (AT_NULL, 0),
    ]
}

/// The upper part of the image; places are offsets from its start.
struct Strings {
    bytes: Vec<u8>,
    random: u64,
    platform: u64,
    args: Vec<u64>,
    env: Vec<u64>,
    path: u64,
}

impl Strings {
    fn lay_out(start: &Start<'_>) -> Result<Self, Errno> {
        let mut bytes = start.random.to_vec();
        let platform = push(&mut bytes, b"aarch64")?;
        let (mut args, mut env) = (Vec::new(), Vec::new());
        let room = args.try_reserve_exact(start.args.len());
        room.map_err(|_| Errno::ENOMEM)?;
        let room = env.try_reserve_exact(start.env.len());
        room.map_err(|_| Errno::ENOMEM)?;
        for arg in start.args {
            args.push(push(&mut bytes, arg)?);
        }
        for var in start.env {
            env.push(push(&mut bytes, var)?);
        }
        let path = push(&mut bytes, start.path)?;
        bytes.try_reserve(24).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(bytes.len() + 8, 0);
        // So that the words below end on a boundary of 16, with the padding between.
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        Ok(Self {
            bytes,
            random: 0,
            platform,
            args,
            env,
            path,
        })
    }
}

fn push(bytes: &mut Vec<u8>, string: &[u8]) -> Result<u64, Errno> {
    if string.contains(&0) {
        return Err(Errno::EINVAL);
    }
    if string.len() >= MAX_STRING || bytes.len() + string.len() >= MAX_BYTES {
        return Err(Errno::E2BIG);
    }
    let at = bytes.len() as u64;
    bytes
        .try_reserve(string.len() + 1)
        .map_err(|_| Errno::ENOMEM)?;
    bytes.extend_from_slice(string);
    bytes.push(0);
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;

    const TOP: Hva = Hva::new(0x7fff_ffff_f000);

    fn plan() -> LoadPlan {
        LoadPlan {
            segments: Vec::new(),
            entry: Hva::new(0x40_0680),
            phdr: Some(Hva::new(0x40_0040)),
            phnum: 9,
            brk: Hva::new(0x50_0000),
            exec_stack: false,
            bias: 0,
        }
    }

    fn start<'a>(args: &'a [&'a [u8]], env: &'a [&'a [u8]], plan: &'a LoadPlan) -> Start<'a> {
        let random = *b"0123456789abcdef";
        Start {
            args,
            env,
            path: b"/bin/x",
            plan,
            linker: 0x77_0000,
            hwcap: 0xff,
            hwcap2: 7,
            min_signal_stack: 4720,
            random,
        }
    }

    /// Reads an image as a program's start-up code does.
    struct Walk<'a>(&'a StackImage);

    impl Walk<'_> {
        fn word(&self, n: usize) -> u64 {
            u64::from_le_bytes(self.0.bytes[8 * n..8 * n + 8].try_into().unwrap())
        }

        fn string(&self, addr: u64) -> Vec<u8> {
            let at = (addr - self.0.sp.raw()) as usize;
            self.0.bytes[at..]
                .iter()
                .copied()
                .take_while(|&b| b != 0)
                .collect()
        }

        fn list(&self, at: &mut usize) -> Vec<Vec<u8>> {
            let mut all = Vec::new();
            while self.word(*at) != 0 {
                all.push(self.string(self.word(*at)));
                *at += 1;
            }
            *at += 1;
            all
        }
    }

    proptest! {
        #[test]
        fn a_program_finds_what_it_was_given(
            args in prop::collection::vec("[a-z ]{0,30}", 0..6),
            env in prop::collection::vec("[A-Z]{1,5}=[a-z]{0,9}", 0..6),
        ) {
            let plan = plan();
            let a: Vec<&[u8]> = args.iter().map(|s| s.as_bytes()).collect();
            let e: Vec<&[u8]> = env.iter().map(|s| s.as_bytes()).collect();
            let image = build(&start(&a, &e, &plan), TOP).unwrap();
            prop_assert!(image.sp.is_aligned(16));
            prop_assert_eq!(image.sp.raw() + image.bytes.len() as u64, TOP.raw());
            let walk = Walk(&image);
            prop_assert_eq!(walk.word(0), a.len() as u64);
            let mut at = 1;
            prop_assert_eq!(walk.list(&mut at), a);
            prop_assert_eq!(walk.list(&mut at), e);
            let mut aux = BTreeMap::new();
            while walk.word(at) != AT_NULL {
                prop_assert!(aux.insert(walk.word(at), walk.word(at + 1)).is_none());
                at += 2;
            }
            prop_assert_eq!(walk.string(aux[&AT_EXECFN]), b"/bin/x");
            prop_assert_eq!(walk.string(aux[&AT_PLATFORM]), b"aarch64");
            let random = walk.string(aux[&AT_RANDOM]);
            prop_assert!(random.starts_with(b"0123456789abcdef"));
            prop_assert_eq!(aux[&AT_RANDOM] % 16, 0);
            for (key, value) in [
                (AT_PHDR, 0x40_0040), (AT_PHENT, 56), (AT_PHNUM, 9), (AT_PAGESZ, 4096), (AT_ENTRY, 0x40_0680),
                (AT_HWCAP, 0xff), (AT_HWCAP2, 7), (AT_SECURE, 0), (AT_UID, 0), (AT_CLKTCK, 100),
                (AT_MINSIGSTKSZ, 4720), (AT_BASE, 0x77_0000),
            ] {
                prop_assert_eq!(aux.get(&key), Some(&value));
            }
        }
    }

    #[test]
    fn too_much_is_e2big() {
        let plan = plan();
        let long = vec![b'a'; MAX_STRING];
        let fits = &long[1..];
        assert_eq!(build(&start(&[&long], &[], &plan), TOP), Err(Errno::E2BIG));
        assert!(build(&start(&[fits], &[], &plan), TOP).is_ok());
        assert_eq!(
            build(&start(&[fits; 17], &[], &plan), TOP),
            Err(Errno::E2BIG)
        );
        // Pointers count too.
        assert_eq!(
            build(&start(&vec![&b""[..]; 240_000], &[], &plan), TOP),
            Err(Errno::E2BIG)
        );
        assert_eq!(
            build(&start(&[b"a\0b"], &[], &plan), TOP),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            build(&start(&[], &[], &plan), Hva::new(0x100)),
            Err(Errno::E2BIG)
        );
        assert_eq!(
            build(&start(&[], &[], &plan), Hva::new(TOP.raw() + 8)),
            Err(Errno::EINVAL)
        );
    }
}
