//! The frame that a handler is entered with, and that rt_sigreturn takes back.
//!
//! ```text
//!   old sp ──►                                     (or the top of the alternate stack)
//!             frame record: x29, x30               16   so that unwinders get past the handler
//!             reserved: fpsimd_context, esr_context, end        4096
//!             sigcontext: fault address, x0–x30, sp, pc, pstate  288
//!             ucontext: flags, link, stack, mask                 176
//!   new sp ──► siginfo                                           128
//! ```
//!
//! Layout: `struct rt_sigframe` (`arch/arm64/kernel/signal.c`), `struct sigcontext`
//! (`arch/arm64/include/uapi/asm/sigcontext.h`). umbra hides SVE and SME from processes, so no record
//! is longer than the reserved space.
//!
//! What comes back is the process's to write, so it is an allegation: PSTATE keeps only what EL0 may
//! change itself, and an unknown or misplaced record is an error (the process then gets SIGSEGV).

use super::{AltStack, Handler, SigSet, Siginfo, Signal};
use crate::Errno;
use alloc::vec::Vec;
use umbra_arm64::Hva;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes that rt_sigreturn reads from the stack pointer.
pub const RT_SIGFRAME_BYTES: usize = size_of::<RtSigframe>();
/// Bytes that a signal takes on the stack, without alignment.
pub const FRAME_BYTES: usize = RT_SIGFRAME_BYTES + size_of::<FrameRecord>();
/// AT_MINSIGSTKSZ.
pub const MIN_SIGNAL_STACK: u64 = FRAME_BYTES as u64 + 16;

const RESERVED: usize = 4096;
const FPSIMD_MAGIC: u32 = 0x4650_8001;
const ESR_MAGIC: u32 = 0x4553_5201;

/// What a process may have in PSTATE, and set by sigreturn: NZCV, TCO, DIT, SSBS, BTYPE. Mode, DAIF,
/// IL, SS, PAN and UAO are the kernel's.
const USER_PSTATE: u64 = 0xf << 28 | 1 << 25 | 1 << 24 | 1 << 12 | 3 << 10;
const PSTATE_BTYPE: u64 = 3 << 10;
const PSTATE_TCO: u64 = 1 << 25;

/// The part of `pstate` that is the process's, with EL0 as the mode and nothing masked.
pub const fn user_pstate(pstate: u64) -> u64 {
    pstate & USER_PSTATE
}

/// The general registers of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UserRegs {
    /// x0 to x30.
    pub x: [u64; 31],
    /// SP_EL0.
    pub sp: u64,
    /// The next instruction.
    pub pc: u64,
    /// SPSR, as far as it is the process's.
    pub pstate: u64,
}

/// The floating-point and vector registers of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FpRegs {
    /// FPSR.
    pub fpsr: u32,
    /// FPCR.
    pub fpcr: u32,
    /// v0 to v31, each as its low and its high half.
    pub v: [[u64; 2]; 32],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RecordHead {
    magic: u32,
    size: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FpsimdContext {
    head: RecordHead,
    regs: FpRegs,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct EsrContext {
    head: RecordHead,
    esr: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RtSigframe {
    info: Siginfo,
    flags: u64,
    link: u64,
    stack: AltStack,
    mask: SigSet,
    unused: [u8; 120],
    align: u64,
    fault_address: u64,
    regs: UserRegs,
    align2: u64,
    reserved: [u8; RESERVED],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrameRecord {
    fp: u64,
    lr: u64,
}

/// How a handler is entered.
#[derive(Clone, Copy, Debug)]
pub struct HandlerEntry {
    /// The signal.
    pub signal: Signal,
    /// About it.
    pub info: Siginfo,
    /// The handler.
    pub handler: Handler,
    /// What rt_sigreturn is to block again.
    pub saved_mask: SigSet,
    /// Address and syndrome of the fault, if a fault it was.
    pub fault: Option<(Hva, u64)>,
    /// Where the handler returns to if it names no place itself.
    pub trampoline: Hva,
}

/// A frame to write, and the registers to go on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where the bytes go; also the new stack pointer.
    pub addr: Hva,
    /// [`FRAME_BYTES`] bytes.
    pub bytes: Vec<u8>,
    /// The registers of the handler's first instruction.
    pub regs: UserRegs,
}

impl Frame {
    /// The frame for `entry` in a thread with these registers. `EFAULT`: there is no stack for it, and
    /// the process gets SIGSEGV; `ENOMEM`: no memory to build it in.
    pub fn build(
        entry: &HandlerEntry,
        regs: &UserRegs,
        fp: &FpRegs,
        alt_stack: &AltStack,
    ) -> Result<Self, Errno> {
        let top = alt_stack.frame_top(regs.sp, entry.handler.on_stack);
        let record = top.checked_sub(16).ok_or(Errno::EFAULT)? & !15;
        let sp = record
            .checked_sub(RT_SIGFRAME_BYTES as u64)
            .ok_or(Errno::EFAULT)?;
        // A frame that leaves an alternate stack would overwrite what lies below it.
        if alt_stack.holds(top) && !alt_stack.holds(sp) {
            return Err(Errno::EFAULT);
        }
        let saved = UserRegs {
            pstate: user_pstate(regs.pstate),
            ..*regs
        };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(FRAME_BYTES)
            .map_err(|_| Errno::ENOMEM)?;
        let mut frame = RtSigframe::new_zeroed();
        frame.info = entry.info;
        frame.stack = alt_stack.reported(regs.sp);
        frame.mask = entry.saved_mask;
        frame.fault_address = entry.fault.map_or(0, |(addr, _)| addr.raw());
        frame.regs = saved;
        write_records(&mut frame.reserved, fp, entry.fault.map(|(_, esr)| esr));
        bytes.extend_from_slice(frame.as_bytes());
        let [.., x29, x30] = regs.x;
        bytes.extend_from_slice(FrameRecord { fp: x29, lr: x30 }.as_bytes());

        let restorer = entry.handler.restorer.unwrap_or(entry.trampoline);
        let mut new = UserRegs {
            sp,
            pc: entry.handler.entry.raw(),
            pstate: saved.pstate & !(PSTATE_BTYPE | PSTATE_TCO),
            ..saved
        };
        new.x[0] = u64::from(entry.signal.number());
        if entry.handler.siginfo {
            new.x[1] = sp;
            new.x[2] = sp + core::mem::offset_of!(RtSigframe, flags) as u64;
        }
        new.x[29] = record;
        new.x[30] = restorer.raw();
        Ok(Self {
            addr: Hva::new(sp),
            bytes,
            regs: new,
        })
    }
}

/// What rt_sigreturn restores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The general registers; PSTATE is safe to load.
    pub regs: UserRegs,
    /// The vector registers.
    pub fp: FpRegs,
    /// What is blocked from now on.
    pub mask: SigSet,
    /// The alternate stack, if the one in the frame is valid.
    pub alt_stack: Option<AltStack>,
}

impl Restored {
    /// Reads the [`RT_SIGFRAME_BYTES`] bytes at the stack pointer. `EINVAL` if they are no frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let (frame, _) = RtSigframe::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
        let regs = UserRegs {
            pstate: user_pstate(frame.regs.pstate),
            ..frame.regs
        };
        Ok(Self {
            regs,
            fp: read_records(&frame.reserved)?,
            mask: frame.mask.as_mask(),
            alt_stack: frame.stack.requested().ok(),
        })
    }
}

fn write_records(reserved: &mut [u8; RESERVED], fp: &FpRegs, esr: Option<u64>) {
    let head = |magic, size: usize| RecordHead {
        magic,
        size: size as u32,
    };
    let fpsimd = FpsimdContext {
        head: head(FPSIMD_MAGIC, size_of::<FpsimdContext>()),
        regs: *fp,
    };
    let esr = esr.map(|esr| EsrContext {
        head: head(ESR_MAGIC, size_of::<EsrContext>()),
        esr,
    });
    let esr = esr.as_ref().map_or(&[][..], |esr| esr.as_bytes());
    // The rest is zero, which is also the record that ends the list.
    for (to, from) in reserved.iter_mut().zip(fpsimd.as_bytes().iter().chain(esr)) {
        *to = *from;
    }
}

fn read_records(mut rest: &[u8]) -> Result<FpRegs, Errno> {
    let mut fp = None;
    loop {
        let (head, _) = RecordHead::ref_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
        let size = head.size as usize;
        match (head.magic, size) {
            (0, 0) => return fp.ok_or(Errno::EINVAL),
            (FPSIMD_MAGIC, _) if fp.is_none() && size == size_of::<FpsimdContext>() => {
                let record = FpsimdContext::read_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
                fp = Some(record.0.regs);
            }
            (ESR_MAGIC, _) if size == size_of::<EsrContext>() => {}
            _ => return Err(Errno::EINVAL),
        }
        rest = rest.get(size..).ok_or(Errno::EINVAL)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Actions, Disposition, SigactionAbi, code};
    use super::*;
    use core::mem::offset_of;
    use proptest::prelude::*;

    const SA_SIGINFO: u64 = 4;
    const SA_RESTORER: u64 = 0x0400_0000;
    const SA_ONSTACK: u64 = 0x0800_0000;

    fn entry(flags: u64) -> HandlerEntry {
        let mut actions = Actions::new();
        let action = SigactionAbi {
            handler: 0x40_1000,
            flags,
            restorer: 0x40_2000,
            mask: SigSet::EMPTY,
        };
        actions.set(Signal::SEGV, action).unwrap();
        let Disposition::Handle(handler) = actions.disposition(Signal::SEGV) else {
            panic!("no handler")
        };
        HandlerEntry {
            signal: Signal::SEGV,
            info: Siginfo::fault(Signal::SEGV, code::SEGV_MAPERR, Hva::new(0xdead)),
            handler,
            saved_mask: SigSet::EMPTY.with(Signal::USR1),
            fault: None,
            trampoline: Hva::new(0x7000),
        }
    }

    fn regs(sp: u64) -> UserRegs {
        UserRegs {
            x: core::array::from_fn(|n| n as u64 + 100),
            sp,
            pc: 0x40_3000,
            pstate: 0x6000_0000,
        }
    }

    fn fp() -> FpRegs {
        FpRegs {
            fpsr: 1,
            fpcr: 2,
            v: core::array::from_fn(|n| [n as u64, !(n as u64)]),
        }
    }

    #[test]
    fn offsets_are_those_of_the_arm64_abi() {
        // sizeof(struct rt_sigframe), offsetof(…, uc) and offsets in ucontext and sigcontext.
        assert_eq!((RT_SIGFRAME_BYTES, FRAME_BYTES), (4688, 4704));
        let uc = offset_of!(RtSigframe, flags);
        assert_eq!(uc, 128);
        assert_eq!(offset_of!(RtSigframe, mask) - uc, 40);
        let mcontext = uc + 176;
        assert_eq!(offset_of!(RtSigframe, fault_address), mcontext);
        assert_eq!(offset_of!(RtSigframe, regs), mcontext + 8);
        assert_eq!(offset_of!(RtSigframe, reserved), mcontext + 288);
        assert_eq!(size_of::<FpsimdContext>(), 528);
    }

    #[test]
    fn a_handler_finds_its_arguments() {
        let frame =
            Frame::build(&entry(SA_SIGINFO), &regs(0x8_0008), &fp(), &AltStack::NONE).unwrap();
        let record = 0x7_fff0;
        assert_eq!(frame.addr.raw(), record - 4688);
        let mut expected = regs(frame.addr.raw());
        expected.pc = 0x40_1000;
        expected.x[0] = 11;
        expected.x[1] = frame.addr.raw();
        expected.x[2] = frame.addr.raw() + 128;
        expected.x[29] = record;
        expected.x[30] = 0x7000;
        assert_eq!(frame.regs, expected);
        assert_eq!(frame.bytes.len(), FRAME_BYTES);
        assert_eq!(frame.bytes[16..18], [0xad, 0xde]);
        assert_eq!(frame.bytes[FRAME_BYTES - 16], 129);

        let plain =
            Frame::build(&entry(SA_RESTORER), &regs(0x8_0000), &fp(), &AltStack::NONE).unwrap();
        assert_eq!(
            (plain.regs.x[1], plain.regs.x[2], plain.regs.x[30]),
            (101, 102, 0x40_2000)
        );
    }

    #[test]
    fn the_alternate_stack_is_used_once_and_not_overrun() {
        let alt = AltStack::new(Hva::new(0x10_0000), 0x2000);
        let e = entry(SA_ONSTACK);
        let first = Frame::build(&e, &regs(0x8_0000), &fp(), &alt).unwrap();
        assert_eq!(first.addr.raw(), 0x10_2000 - FRAME_BYTES as u64);
        let nested = Frame::build(&e, &first.regs, &fp(), &alt);
        assert_eq!(nested, Err(Errno::EFAULT));
        let off = Frame::build(&entry(0), &regs(0x8_0000), &fp(), &alt).unwrap();
        assert_eq!(off.addr.raw(), 0x8_0000 - FRAME_BYTES as u64);
        assert_eq!(
            Frame::build(&e, &regs(100), &fp(), &AltStack::NONE),
            Err(Errno::EFAULT)
        );
    }

    #[test]
    fn sigreturn_undoes_entry() {
        let alt = AltStack::new(Hva::new(0x10_0000), 0x4000);
        for fault in [None, Some((Hva::new(0xdead), 0x9200_0046))] {
            let e = HandlerEntry {
                fault,
                ..entry(SA_SIGINFO)
            };
            let frame = Frame::build(&e, &regs(0x8_0000), &fp(), &alt).unwrap();
            let back = Restored::parse(&frame.bytes).unwrap();
            let expected = Restored {
                regs: regs(0x8_0000),
                fp: fp(),
                mask: SigSet::EMPTY.with(Signal::USR1),
                alt_stack: Some(alt),
            };
            assert_eq!(back, expected);
            let at = offset_of!(RtSigframe, reserved) + 528;
            let magic = u32::from_le_bytes(frame.bytes[at..at + 4].try_into().unwrap());
            assert_eq!(magic == ESR_MAGIC, fault.is_some());
        }
    }

    #[test]
    fn a_forged_frame_gains_nothing() {
        let frame = Frame::build(&entry(0), &regs(0x8_0000), &fp(), &AltStack::NONE).unwrap();
        let with = |at: usize, value: u64| {
            let mut bytes = frame.bytes.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            Restored::parse(&bytes)
        };
        let pstate = offset_of!(RtSigframe, regs) + 33 * 8;
        let forged = with(pstate, u64::MAX).unwrap().regs.pstate;
        assert_eq!(forged & 0x1f, 0, "EL0");
        assert_eq!(forged & (0xf << 6), 0, "nothing masked");
        assert_eq!(
            forged & (1 << 20 | 1 << 21 | 1 << 22 | 1 << 23),
            0,
            "IL, SS, PAN, UAO"
        );
        assert_eq!(forged >> 28, 0xf, "flags stay");
        let mask = offset_of!(RtSigframe, mask);
        assert!(!with(mask, u64::MAX).unwrap().mask.contains(Signal::KILL));

        let record = offset_of!(RtSigframe, reserved);
        assert_eq!(with(record, 0), Err(Errno::EINVAL), "no vector registers");
        assert_eq!(
            with(record, u64::from(FPSIMD_MAGIC) | 512 << 32),
            Err(Errno::EINVAL)
        );
        assert_eq!(with(record, 0x1234_5678 | 528 << 32), Err(Errno::EINVAL));
        assert_eq!(
            with(record + 528, u64::from(FPSIMD_MAGIC) | 528 << 32),
            Err(Errno::EINVAL)
        );
        assert_eq!(Restored::parse(&frame.bytes[..4000]), Err(Errno::EINVAL));
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_safe_state(patches in prop::collection::vec((0usize..4688, any::<u8>()), 0..40)) {
            let frame = Frame::build(&entry(0), &regs(0x8_0000), &fp(), &AltStack::NONE).unwrap();
            let mut bytes = frame.bytes;
            for (at, byte) in patches {
                bytes[at] = byte;
            }
            if let Ok(back) = Restored::parse(&bytes) {
                prop_assert_eq!(back.regs.pstate & !USER_PSTATE, 0);
                prop_assert_eq!(back.mask, back.mask.as_mask());
            }
        }

        #[test]
        fn any_stack_pointer_gives_an_aligned_frame_or_an_error(sp: u64) {
            if let Ok(frame) = Frame::build(&entry(0), &regs(sp), &fp(), &AltStack::NONE) {
                prop_assert!(frame.addr.is_aligned(16));
                prop_assert!(frame.addr.raw() + FRAME_BYTES as u64 <= sp);
            }
        }
    }
}
